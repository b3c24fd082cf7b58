//! What `load` found, as a table, JSON and CSV.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::player::{Phase, Role};
use super::receive::{Totals, histogram};
use super::{Args, Load, Mark};
use crate::metrics::Told;

/// Growth of a player's unread bytes, in frames, from which on the generator counts as too slow.
const BACKLOG_FRAMES_MAX: f64 = 3.0;

/// Percentage of time that the generator may wait for a CPU, because a longer wait would distort the measurement. Chosen: on a quiet
/// machine it is 2 or 3; beside much other work, 65 was seen, with packets lost because of it.
const CPU_WAIT_PERCENT_MAX: f64 = 33.0;

/// Quantiles of a time, in µs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Times {
    /// Values recorded.
    pub count: u64,
    /// Half of them are at most this.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Times {
    fn of(histogram: &Histogram<u64>) -> Times {
        let at = |q| histogram.value_at_quantile(q);
        Times {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// What one kind of players measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// Players of this kind.
    pub clients: u64,
    /// Of these, playing at the end.
    pub playing: u64,
    /// Of these, closed by the server or broken while playing.
    pub closed: u64,
    /// Video frames per player and second: mean over the players that were there all the time.
    pub fps_mean: f64,
    /// The worst of them.
    pub fps_worst: f64,
    /// Video frames that ended, over all players.
    pub frames: u64,
    /// Of these, with every packet there.
    pub frames_whole: u64,
    /// Of these, with packets missing.
    pub frames_damaged: u64,
    /// Frame numbers that never arrived.
    pub frames_missing: u64,
    /// Frames doubled or late.
    pub frames_disordered: u64,
    /// Times that the frame after missing ones was a keyframe.
    pub resumed_on_keyframe: u64,
    /// Times that it was none.
    pub resumed_elsewhere: u64,
    /// RTP packets.
    pub packets: u64,
    /// Sequence numbers that never came.
    pub packets_missing: u64,
    /// Places where some are missing.
    pub sequence_gaps: u64,
    /// Packets doubled or late.
    pub packets_disordered: u64,
    /// New SSRC, or a sequence number far off.
    pub timeline_restarts: u64,
    /// Packets that are not RTP.
    pub malformed: u64,
    /// Reads over TCP that brought something.
    #[serde(default)]
    pub reads: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The same as a rate.
    pub gbit_per_second: f64,
    /// From the stamp in a frame to the end of the read that brought its last byte, in µs.
    pub latency_us: Times,
    /// Of each player that was there all the time: its longest time from the end of a video frame to that of the next one, in µs.
    #[serde(default)]
    pub longest_wait_us: Times,
    /// From PLAY to the end of the first keyframe, in µs, since the start.
    pub first_keyframe_us: Times,
    /// Players whose first frame was not a keyframe, since the start.
    pub began_elsewhere: u64,
    /// From the read that brought an audio packet to the one that brought the next, in µs.
    #[serde(default)]
    pub audio_wait_us: Times,
    /// From an audio packet's timestamp to that of the next one, in µs.
    #[serde(default)]
    pub audio_skip_us: Times,
}

impl Group {
    /// The lines about it in the report for people.
    fn rows(&self, row: &mut impl FnMut(&str, String)) {
        row("playing at the end", format!("{} of {} ({} closed)", self.playing, self.clients, self.closed));
        row("frames/s per player", format!("mean {:.2}, worst {:.2}", self.fps_mean, self.fps_worst));
        row("latency µs", times(&self.latency_us));
        row("longest time without a frame µs", times(&self.longest_wait_us));
        row("first keyframe µs", times(&self.first_keyframe_us));
        row("first frame no keyframe", self.began_elsewhere.to_string());
        row(
            "frames",
            format!(
                "{} whole, {} damaged, {} missing, {} out of order",
                self.frames_whole, self.frames_damaged, self.frames_missing, self.frames_disordered
            ),
        );
        row("came back", format!("{} on a keyframe, {} elsewhere", self.resumed_on_keyframe, self.resumed_elsewhere));
        row(
            "packets",
            format!(
                "{}, {} missing in {} gaps, {} out of order, {} malformed, {} new timelines",
                self.packets,
                self.packets_missing,
                self.sequence_gaps,
                self.packets_disordered,
                self.malformed,
                self.timeline_restarts
            ),
        );
        if self.audio_wait_us.count > 0 {
            row("audio: time without µs", times(&self.audio_wait_us));
            row("audio: skipped µs", times(&self.audio_skip_us));
        }
        row("received", format!("{:.1} MB, {:.3} Gbit/s", self.bytes as f64 / 1e6, self.gbit_per_second));
    }
}

/// The generator's own state: whether the figures are valid for the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generator {
    /// Its CPU time, percent of one core.
    pub cpu_percent: f64,
    /// Time it waited for a CPU, percent of the measurement.
    pub cpu_wait_percent: f64,
    /// Reads in which more than one frame ended, percent of all reads.
    pub reads_behind_percent: f64,
    /// Bytes that had arrived for a player over TCP and were not read, on average, when the measurement began.
    pub unread_before: f64,
    /// The same when it ended.
    pub unread_after: f64,
    /// Datagrams that were dropped at the sockets of normal players: they count as missing, because of the generator.
    #[serde(default)]
    pub datagrams_dropped: u64,
    /// CPU time of the processes of `--beside`, percent of one core.
    #[serde(default)]
    pub beside_percent: f64,
    /// CPU time of all other processes, including a camera that is not given by `--beside`, in percent of one core.
    pub others_percent: f64,
    /// Why it was the bottleneck, if it was.
    pub bottleneck: Option<String>,
}

/// The server's process, with `--pid`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Server {
    /// CPU time, percent of one core.
    pub cpu_percent: f64,
    /// CPU time per client and video frame, in µs; `None` if no frame came.
    pub cpu_us_per_client_frame: Option<f64>,
    /// CPU time per gigabyte (1e9 bytes) received by the players, in s; `None` if no byte came.
    pub cpu_s_per_gigabyte: Option<f64>,
    /// `read`, `readv` and similar calls during the measurement, of anything, including those that returned nothing (`syscr` of
    /// /proc/PID/io), but not `recv` and similar calls, nor io_uring's reads. `None` if the kernel does not report it.
    #[serde(default)]
    pub reads: Option<u64>,
    /// Times that one of its threads slept and was woken (voluntary context switches).
    #[serde(default)]
    pub wakes: u64,
    /// Its own metrics at `--metrics`, over the measurement.
    #[serde(default)]
    pub told: Option<Told>,
    /// Resident memory before the first player, in bytes.
    pub rss_before: u64,
    /// Resident memory at the end of the measurement, in bytes.
    pub rss_after: u64,
    /// Their difference by players, in bytes.
    pub rss_per_client: f64,
}

/// Comparison of all players, with `--verify`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Different frames seen, of all tracks.
    pub frames: u64,
    /// Comparisons of a player's frame with the first player's.
    pub compared: u64,
    /// Comparisons that failed.
    pub different: u64,
}

/// A file that reports are appended to, a line each.
pub struct Csv {
    path: PathBuf,
    file: File,
}

impl Csv {
    /// Opens or creates it, and writes the header line if it is empty.
    pub fn open(path: &Path) -> Result<Csv, String> {
        let fail = |e: std::io::Error| format!("--csv: cannot write {}: {e}", path.display());
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(fail)?;
        let names: Vec<&str> = Report::default().fields().iter().map(|f| f.0).collect();
        let header = names.join(",");
        let mut first = String::new();
        // For a pipe or terminal this cannot be known.
        if file.metadata().map_err(fail)?.is_file() {
            File::open(path).and_then(|file| BufReader::new(file).read_line(&mut first)).map_err(fail)?;
        }
        if first.is_empty() {
            file.write_all(format!("{header}\n").as_bytes()).map_err(fail)?;
        } else if first.trim_end() != header {
            return Err(format!("--csv: {} has other columns; give a new file", path.display()));
        }
        Ok(Csv { path: path.into(), file })
    }

    /// Appends a report.
    pub fn append(&mut self, report: &Report) -> Result<(), String> {
        // Only the URL can hold a comma or a quote.
        let quote = |value: &str| {
            if value.contains([',', '"', '\n']) { format!("\"{}\"", value.replace('"', "\"\"")) } else { value.into() }
        };
        let values: Vec<String> = report.fields().iter().map(|f| quote(&f.1)).collect();
        let line = format!("{}\n", values.join(","));
        self.file.write_all(line.as_bytes()).map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }
}

/// What `load` found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The URL, the first of several.
    pub url: String,
    /// tcp or udp.
    pub transport: String,
    /// Players asked for.
    pub clients: u64,
    /// Seconds measured.
    pub seconds: f64,
    /// Players that came to play, replacements included.
    pub joined: u64,
    /// Players that left of their own will (`--churn`).
    pub left: u64,
    /// Why players ended early, and how many.
    pub failures: Vec<(String, u64)>,
    /// Players that read as they should.
    pub normal: Group,
    /// Players of `--slow`.
    pub slow: Option<Group>,
    /// Players of `--stalled`.
    pub stalled: Option<Group>,
    /// The generator itself.
    pub generator: Generator,
    /// The server's process.
    pub server: Option<Server>,
    /// The comparison of all players.
    pub verified: Option<Verified>,
}

fn group(load: &Load<'_>, role: Role, totals: &Totals, seconds: f64) -> Group {
    let of_role = || load.players.iter().flatten().filter(move |p| p.role == role);
    let mut rates: Vec<f64> = of_role().filter(|p| p.steady).map(|p| p.receiver.frames as f64 / seconds).collect();
    rates.sort_by(f64::total_cmp);
    let mut longest = histogram();
    for player in of_role().filter(|player| player.steady) {
        longest.saturating_record(player.receiver.longest_wait_us);
    }
    Group {
        clients: (0..load.players.len()).filter(|&place| load.role(place) == role).count() as u64,
        playing: of_role().filter(|p| p.phase == Phase::Playing).count() as u64,
        closed: load.closed[role as usize],
        fps_mean: if rates.is_empty() { 0.0 } else { rates.iter().sum::<f64>() / rates.len() as f64 },
        fps_worst: rates.first().copied().unwrap_or(0.0),
        frames: totals.frames,
        frames_whole: totals.frames_whole,
        frames_damaged: totals.frames_damaged,
        frames_missing: totals.frames_missing,
        frames_disordered: totals.frames_disordered,
        resumed_on_keyframe: totals.resumed_on_keyframe,
        resumed_elsewhere: totals.resumed_elsewhere,
        packets: totals.packets,
        packets_missing: totals.packets_missing,
        sequence_gaps: totals.gaps,
        packets_disordered: totals.packets_disordered,
        timeline_restarts: totals.restarts,
        malformed: totals.malformed,
        reads: totals.reads,
        bytes: totals.bytes,
        gbit_per_second: totals.bytes as f64 * 8.0 / 1e9 / seconds,
        latency_us: Times::of(&totals.latency_us),
        longest_wait_us: Times::of(&longest),
        first_keyframe_us: Times::of(&totals.first_keyframe_us),
        began_elsewhere: totals.began_elsewhere,
        audio_wait_us: Times::of(&totals.audio_wait_us),
        audio_skip_us: Times::of(&totals.audio_skip_us),
    }
}

/// Why the generator was itself the bottleneck, if it was: the datagrams dropped, the CPU used and waited for, the bytes unread before and
/// after, those of a frame.
fn bottleneck(
    datagrams_dropped: u64,
    (cpu_percent, cpu_wait_percent): (f64, f64),
    (unread_before, unread_after): (f64, f64),
    frame_bytes: f64,
) -> Option<String> {
    // Certain reasons on its own side come before probable ones.
    if datagrams_dropped > 0 {
        Some(format!(
            "{datagrams_dropped} datagrams were dropped because its sockets were full; use fewer players, or raise net.core.rmem_max if this is not root"
        ))
    } else if cpu_percent > 90.0 {
        Some(format!("it used {cpu_percent:.0} % of its core; use fewer players or several generators"))
    } else if cpu_percent + cpu_wait_percent > 90.0 || cpu_wait_percent > CPU_WAIT_PERCENT_MAX {
        Some(format!("it waited {cpu_wait_percent:.0} % of the time for a CPU; give it one of its own (--cpu)"))
    } else if unread_after - unread_before > BACKLOG_FRAMES_MAX * frame_bytes {
        Some(format!("unread data grew to {:.0} KB a player; use fewer players", unread_after / 1e3))
    } else {
        None
    }
}

/// Makes the report of a load that has ended but whose players are still there.
pub(super) fn make(args: &Args, load: &Load<'_>, start: &Mark, end: &Mark, memory: Option<(u64, u64)>) -> Report {
    let wall = end.at - start.at;
    let seconds = wall.as_secs_f64();
    let percent = |ns: u64| ns as f64 / wall.as_nanos() as f64 * 100.0;
    let groups = [Role::Normal, Role::Slow, Role::Stalled].map(|r| group(load, r, &load.totals[r as usize], seconds));
    let frames: u64 = groups.iter().map(|g| g.frames).sum();
    let bytes: u64 = groups.iter().map(|g| g.bytes).sum();
    let reads: u64 = load.totals.iter().map(|t| t.reads).sum();
    let cpu_percent = percent(end.own.used_ns_since(&start.own));
    let cpu_wait_percent = percent(end.own.waited_ns_since(&start.own));
    let datagrams_dropped = end.dropped.saturating_sub(start.dropped);
    let bottleneck = bottleneck(
        datagrams_dropped,
        (cpu_percent, cpu_wait_percent),
        (start.unread, end.unread),
        bytes as f64 / frames.max(1) as f64,
    );
    let server = start.server.as_ref().zip(end.server.as_ref()).map(|(before, after)| {
        let used = after.used_ns_since(before);
        let (rss_before, rss_after) = memory.unwrap_or((0, 0));
        Server {
            cpu_percent: percent(used),
            cpu_us_per_client_frame: (frames > 0).then(|| used as f64 / 1e3 / frames as f64),
            cpu_s_per_gigabyte: (bytes > 0).then(|| used as f64 / bytes as f64),
            reads: end.activity.reads_since(&start.activity),
            wakes: end.activity.wakes_since(&start.activity),
            told: end.told.zip(start.told).map(|(now, before)| now.since(&before)),
            rss_before,
            rss_after,
            rss_per_client: rss_after.saturating_sub(rss_before) as f64 / args.clients as f64,
        }
    });
    let beside = end.beside.iter().zip(&start.beside).map(|(now, before)| now.used_ns_since(before));
    let beside_percent = percent(beside.sum());
    let known = cpu_percent + beside_percent + server.as_ref().map_or(0.0, |s| s.cpu_percent);
    let [normal, slow, stalled] = groups;
    Report {
        url: load.urls[0].0.bare.clone(),
        transport: args.transport.name().into(),
        clients: args.clients as u64,
        seconds,
        joined: load.joined,
        left: load.left,
        failures: load.failures.iter().map(|(reason, count)| (reason.clone(), *count)).collect(),
        normal,
        slow: (args.slow > 0).then_some(slow),
        stalled: (args.stalled > 0).then_some(stalled),
        generator: Generator {
            cpu_percent,
            cpu_wait_percent,
            reads_behind_percent: load.totals[0].reads_behind as f64 / reads.max(1) as f64 * 100.0,
            beside_percent,
            others_percent: (percent(end.machine_ns.saturating_sub(start.machine_ns)) - known).max(0.0),
            unread_before: start.unread,
            unread_after: end.unread,
            datagrams_dropped,
            bottleneck,
        },
        server,
        verified: load.verify.as_ref().map(|v| Verified {
            frames: v.frames() as u64,
            compared: v.compared,
            different: v.different,
        }),
    }
}

impl Report {
    /// The report for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<26} {value}");
        };
        row("url", self.url.clone());
        row("players", format!("{} over {}, {:.1} s measured", self.clients, self.transport, self.seconds));
        if self.left > 0 {
            row("joined, left", format!("{}, {}", self.joined, self.left));
        }
        for (reason, count) in &self.failures {
            row("ended early", format!("{count}: {reason}"));
        }
        let groups = [("", Some(&self.normal)), ("slow: ", self.slow.as_ref()), ("stalled: ", self.stalled.as_ref())];
        for (prefix, group) in groups {
            if let Some(group) = group {
                group.rows(&mut |name: &str, value| row(&format!("{prefix}{name}"), value));
            }
        }
        if let Some(v) = &self.verified {
            let text = format!("{} frames, {} comparisons, {} different", v.frames, v.compared, v.different);
            row("identical streams", format!("{} ({text})", if v.different == 0 { "yes" } else { "NO" }));
        }
        let frames: u64 = groups.iter().filter_map(|(_, group)| Some(group.as_ref()?.frames)).sum();
        if let Some(s) = &self.server {
            let mut cpu = format!("{:.1} % of a core", s.cpu_percent);
            if let Some(us) = s.cpu_us_per_client_frame {
                let _ = write!(cpu, ", {us:.2} µs per client and frame");
            }
            if let Some(seconds) = s.cpu_s_per_gigabyte {
                let _ = write!(cpu, ", {seconds:.3} s per GB");
            }
            row("server CPU", cpu);
            if frames > 0 {
                let reads = s.reads.map_or_else(|| "unknown".into(), |n| format!("{:.2}", n as f64 / frames as f64));
                let wakes = s.wakes as f64 / frames as f64;
                row("server's turns", format!("{reads} reads and {wakes:.2} wakes per client and frame"));
            }
            row(
                "server memory",
                format!("{:.1} MB, {:.2} KB per client", s.rss_after as f64 / 1e6, s.rss_per_client / 1e3),
            );
        }
        let g = &self.generator;
        row(
            "this generator",
            format!(
                "{:.1} % of a core, {:.1} % waiting for one, {:.2} % of reads a frame behind",
                g.cpu_percent, g.cpu_wait_percent, g.reads_behind_percent
            ),
        );
        row("all other processes", format!("{:.1} % of a core", g.others_percent));
        if let Some(reason) = &g.bottleneck {
            row("THE BOTTLENECK", format!("was this generator: {reason}"));
        }
        if let Err(reason) = self.verdict() {
            row("FAILED", reason);
        }
        out
    }

    /// Names and values of a line of CSV. What was not measured is empty.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let (g, server) = (&self.normal, self.server.as_ref());
        let of_server = |value: &dyn Fn(&Server) -> Option<String>| server.and_then(value).unwrap_or_default();
        let time = |times: &Times, value: u64| if times.count == 0 { String::new() } else { value.to_string() };
        let (l, first) = (&g.latency_us, &g.first_keyframe_us);
        vec![
            ("url", self.url.clone()),
            ("transport", self.transport.clone()),
            ("clients", self.clients.to_string()),
            ("seconds", format!("{:.3}", self.seconds)),
            ("playing", g.playing.to_string()),
            ("fps_mean", format!("{:.3}", g.fps_mean)),
            ("fps_worst", format!("{:.3}", g.fps_worst)),
            ("latency_p50_us", time(l, l.p50)),
            ("latency_p90_us", time(l, l.p90)),
            ("latency_p99_us", time(l, l.p99)),
            ("latency_p999_us", time(l, l.p999)),
            ("latency_max_us", time(l, l.max)),
            ("first_keyframe_p50_us", time(first, first.p50)),
            ("first_keyframe_max_us", time(first, first.max)),
            ("frames_whole", g.frames_whole.to_string()),
            ("frames_damaged", g.frames_damaged.to_string()),
            ("frames_missing", g.frames_missing.to_string()),
            ("packets_missing", g.packets_missing.to_string()),
            ("gbit_per_second", format!("{:.4}", g.gbit_per_second)),
            ("server_cpu_percent", of_server(&|s| Some(format!("{:.2}", s.cpu_percent)))),
            ("server_cpu_us_per_client_frame", of_server(&|s| s.cpu_us_per_client_frame.map(|v| format!("{v:.3}")))),
            ("server_cpu_s_per_gigabyte", of_server(&|s| s.cpu_s_per_gigabyte.map(|v| format!("{v:.4}")))),
            ("server_rss_bytes", of_server(&|s| Some(s.rss_after.to_string()))),
            ("server_rss_per_client_bytes", of_server(&|s| Some(format!("{:.0}", s.rss_per_client)))),
            ("generator_cpu_percent", format!("{:.2}", self.generator.cpu_percent)),
            ("generator_was_bottleneck", self.generator.bottleneck.is_some().to_string()),
            ("joined", self.joined.to_string()),
            ("left", self.left.to_string()),
            ("closed", g.closed.to_string()),
            ("packets", g.packets.to_string()),
            ("sequence_gaps", g.sequence_gaps.to_string()),
            ("resumed_on_keyframe", g.resumed_on_keyframe.to_string()),
            ("resumed_elsewhere", g.resumed_elsewhere.to_string()),
            ("bytes", g.bytes.to_string()),
        ]
    }

    /// Whether the run counts as a success: all players joined, none was disconnected, media arrived with complete frames, and
    /// `--verify` found no difference. The server may close slow and stalled players.
    pub fn verdict(&self) -> Result<(), String> {
        let lost = self.normal.clients.saturating_sub(self.normal.playing);
        if lost > 0 && self.left == 0 {
            return Err(format!("{lost} of {} players were not playing at the end", self.normal.clients));
        }
        let g = &self.normal;
        if g.playing > 0 && g.packets == 0 {
            return Err(format!(
                "{} players are playing and none received a packet: the server accepted PLAY but sent nothing, or its source sends nothing",
                g.playing
            ));
        }
        if g.frames > 0 && g.frames_whole == 0 {
            return Err("every received frame was damaged: the server cuts frames or omits packets".into());
        }
        match &self.verified {
            Some(v) if v.different > 0 => Err(format!("{} frames differ between players", v.different)),
            _ => Ok(()),
        }
    }
}

fn times(t: &Times) -> String {
    if t.count == 0 {
        return "none".into();
    }
    format!("p50 {}, p90 {}, p99 {}, p99.9 {}, max {} ({} values)", t.p50, t.p90, t.p99, t.p999, t.max, t.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_sends_nothing_or_only_pieces_has_failed() {
        let mut report = Report { server: Some(Server::default()), ..Report::default() };
        (report.normal.clients, report.normal.playing) = (3, 3);
        let silent = report.verdict().unwrap_err();
        assert!(silent.starts_with("3 players are playing and none received a packet"), "{silent}");
        let table = report.table();
        assert!(table.contains(&silent) && !table.contains("per client and frame"), "{table}");
        (report.normal.packets, report.normal.frames, report.normal.frames_damaged) = (9, 4, 4);
        assert!(report.verdict().unwrap_err().starts_with("every received frame was damaged"));
        (report.normal.frames_damaged, report.normal.frames_whole) = (3, 1);
        assert_eq!(report.verdict(), Ok(()));
    }
}
