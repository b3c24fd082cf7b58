//! From measurements of many cameras to medians, ratios, tables and charts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::Measurement;
use crate::fanout::chart::{Chart, Panel, distinct};
use crate::fanout::summary::{Rounds, Spread, against, cpu_us, keys, p50_ms, p99_ms, told};
use crate::load::report::Report;

/// One server in one scene, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The scene's kind.
    pub kind: String,
    /// Cameras.
    pub cameras: usize,
    /// Players of each of them.
    pub players: usize,
    /// The server's name.
    pub server: String,
    /// Rounds measured.
    pub rounds: usize,
    /// Runs that failed.
    pub failed: usize,
    /// CPU time per player and frame, in µs; where nobody watches, per camera and frame. `None` if no frame came in any round.
    pub cpu_us: Option<Spread>,
    /// The same as a multiple of the proxy's in the same round.
    pub cpu_ratio: Option<Spread>,
    /// CPU, percent of a core.
    pub cpu_percent: Spread,
    /// Reads per frame of a camera: of its connection if the server publishes them, otherwise everything that it reads with `read` and
    /// similar calls.
    pub reads: Option<Spread>,
    /// Whether the reads come from the server itself.
    pub reads_told: bool,
    /// Times that a thread slept and was woken, per frame of a camera.
    pub wakes: Option<Spread>,
    /// Bytes copied on the way in per frame of a camera, if the server tells them.
    pub copied_bytes: Option<Spread>,
    /// Median latency in ms; `None` if no frame with a stamp arrived in any round.
    pub p50_ms: Option<Spread>,
    /// 99 % latency in ms.
    pub p99_ms: Option<Spread>,
    /// Frames missing or damaged, over all rounds.
    pub frames_lost: u64,
    /// Resident memory at the end of the measurement, in MB (1e6 bytes).
    pub resident_mb: Spread,
    /// What the figures must be read with.
    pub remarks: String,
}

/// Frames that the cameras sent while a server was measured.
fn camera_frames(m: &Measurement, report: &Report) -> Option<f64> {
    let frames = if m.players == 0 {
        m.cameras as f64 * m.fps * report.seconds
    } else {
        (report.normal.frames + report.normal.frames_missing) as f64 / m.players as f64
    };
    (frames > 0.0).then_some(frames)
}

/// Summaries in the order of kinds, cameras and servers as they first occur.
pub fn summarize(measurements: &[Measurement]) -> Vec<Summary> {
    let mut summaries: Vec<Summary> = Vec::new();
    let numbers: Vec<usize> = {
        let mut all: Vec<usize> = measurements.iter().map(|m| m.cameras).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    // Without players, their number does not distinguish scenes: one number of cameras at a time.
    for cameras in numbers {
        let of_number = measurements.iter().filter(|m| m.cameras == cameras);
        for (kind, clients, server) in keys(of_number.clone().map(|m| &m.base)) {
            let Some(model) = of_number.clone().find(|m| m.base.kind == kind) else { continue };
            let rounds = Rounds::of(of_number.clone().map(|m| &m.base), kind, clients, server);
            summaries.push(summary(model, &rounds, server));
        }
    }
    let kinds = distinct(measurements.iter().map(|m| m.base.kind.as_str()));
    summaries.sort_by_key(|s| kinds.iter().position(|kind| *kind == s.kind));
    summaries
}

fn summary(model: &Measurement, rounds: &Rounds<'_>, server: &str) -> Summary {
    let told_by = |r: &Report| r.server.as_ref()?.told;
    let a_frame = |r: &Report, count: Option<u64>| Some(count? as f64 / camera_frames(model, r)?);
    let of_source = |r: &Report| told_by(r)?.source_reads;
    let reads_told = rounds.reports().any(|r| of_source(r).is_some());
    let of_process = |r: &Report| r.server.as_ref()?.reads;
    let reads = |r: &Report| if reads_told { of_source(r) } else { of_process(r) };
    Summary {
        kind: model.base.kind.clone(),
        cameras: model.cameras,
        players: model.players,
        server: server.into(),
        rounds: rounds.reports().count(),
        failed: rounds.failed(),
        cpu_us: rounds.known(cpu_us),
        cpu_ratio: rounds.ratio(cpu_us),
        cpu_percent: rounds.spread(|r| r.server.as_ref().map_or(0.0, |s| s.cpu_percent)),
        reads: rounds.known(|r| a_frame(r, reads(r))),
        reads_told,
        wakes: rounds.known(|r| a_frame(r, Some(r.server.as_ref()?.wakes))),
        copied_bytes: rounds.known(|r| a_frame(r, told_by(r)?.copied_bytes)),
        p50_ms: rounds.known(p50_ms),
        p99_ms: rounds.known(p99_ms),
        frames_lost: rounds.reports().map(|r| r.normal.frames_missing + r.normal.frames_damaged).sum(),
        resident_mb: rounds.spread(|r| r.server.as_ref().map_or(0.0, |s| s.rss_after as f64 / 1e6)),
        remarks: rounds.remarks(),
    }
}

/// The tables, one for each kind of scene.
pub fn markdown(summaries: &[Summary]) -> String {
    let mut out = String::new();
    let mut kind = "";
    for s in summaries {
        if s.kind != kind {
            kind = &s.kind;
            let whose = if s.players == 0 { "camera" } else { "player" };
            let _ = write!(
                out,
                "\n### {kind}\n\n| cameras | server | CPU µs per {whose} and frame | × floor | CPU % | reads a frame | wakes a frame \
                 | bytes copied a frame | p50 ms | p99 ms | frames lost | resident MB | remarks |\n\
                 |--:|---|---|---|--:|---|---|---|---|---|--:|--:|---|\n",
            );
        }
        // Without any report the value is unknown, and zero would be wrong.
        let measured = |text: String| if s.rounds == 0 { "–".to_string() } else { text };
        let reads = if s.reads_told { format!("{}, of cameras alone", told(s.reads)) } else { told(s.reads) };
        let copied = s.copied_bytes.map_or_else(|| "–".to_string(), |spread| spread.text(0));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {reads} | {} | {copied} | {} | {} | {} | {} | {} |",
            s.cameras,
            s.server,
            told(s.cpu_us),
            told(s.cpu_ratio),
            measured(format!("{:.1}", s.cpu_percent.median)),
            told(s.wakes),
            told(s.p50_ms),
            told(s.p99_ms),
            measured(s.frames_lost.to_string()),
            measured(format!("{:.1}", s.resident_mb.median)),
            s.remarks,
        );
    }
    out
}

/// What frames in pieces cost each server: CPU of those scenes as a multiple of that of whole frames.
pub fn pacing(measurements: &[Measurement], link: &str, whole: &str) -> String {
    let mut rows = Vec::new();
    let mut numbers: Vec<usize> = measurements.iter().map(|m| m.cameras).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for cameras in numbers {
        let of_number = measurements.iter().filter(|m| m.cameras == cameras).map(|m| &m.base);
        rows.extend(against(of_number, link, whole).into_iter().map(|(_, server, ratio)| (cameras, server, ratio)));
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut out = format!("\n### {link}, against whole frames\n\n| cameras | server | CPU × whole |\n|--:|---|---|\n");
    for (cameras, server, ratio) in rows {
        let _ = writeln!(out, "| {cameras} | {server} | {} |", ratio.text(2));
    }
    out
}

/// System calls a frame, if they were counted: the median over the rounds.
pub fn calls(measurements: &[Measurement]) -> String {
    type Key<'a> = (usize, &'a str, usize, &'a str);
    let mut rows: Vec<(Key<'_>, BTreeMap<&str, Vec<f64>>)> = Vec::new();
    let kinds = distinct(measurements.iter().map(|m| m.base.kind.as_str()));
    for m in measurements {
        let Some(calls) = &m.calls else { continue };
        let place = kinds.iter().position(|kind| *kind == m.base.kind).unwrap_or_default();
        let key = (place, m.base.kind.as_str(), m.cameras, m.base.server.as_str());
        let index = rows.iter().position(|row| row.0 == key).unwrap_or_else(|| {
            rows.push((key, BTreeMap::new()));
            rows.len() - 1
        });
        for (kind, count) in calls {
            rows[index].1.entry(kind).or_default().push(*count);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by_key(|row| (row.0.0, row.0.2));
    let names = distinct(rows.iter().flat_map(|row| row.1.keys().copied()));
    let mut out = format!(
        "\n### System calls per frame of a camera\n\n| scene | cameras | server | {} |\n|---|--:|---|{}\n",
        names.join(" | "),
        "--:|".repeat(names.len())
    );
    for ((_, kind, cameras, server), counts) in rows {
        let median = |name: &&str| {
            counts.get(name).map_or_else(|| "–".to_string(), |all| format!("{:.2}", Spread::of(all.clone()).median))
        };
        let cells: Vec<String> = names.iter().map(median).collect();
        let _ = writeln!(out, "| {kind} | {cameras} | {server} | {} |", cells.join(" | "));
    }
    out
}

/// The chart of one kind of scene; `None` if there are fewer than two numbers of cameras.
pub fn chart(summaries: &[Summary], kind: &str, caption: &str) -> Option<String> {
    let of_kind: Vec<&Summary> = summaries.iter().filter(|s| s.kind == kind && s.rounds > 0).collect();
    let servers = distinct(of_kind.iter().map(|s| s.server.as_str()));
    let panel = |title, value: fn(&Summary) -> Option<Spread>, log| {
        let points = of_kind.iter().filter_map(|s| Some((s.server.as_str(), s.cameras, value(s)?)));
        Panel::of(title, log, &servers, points)
    };
    let panels = vec![
        panel("CPU per player and frame, µs", |s| s.cpu_us, false),
        panel("p99 latency, ms", |s| s.p99_ms, true),
        panel("resident memory, MB", |s| Some(s.resident_mb), false),
    ];
    let title = format!("Cost, latency and memory against cameras, {kind}");
    Chart { title, counted: "cameras", caption, servers, panels }.svg()
}

/// A measurement as a line for the terminal.
pub fn line(m: &Measurement, rounds: usize, elapsed: Duration) -> String {
    let head = format!(
        "{:>5} s  round {}/{rounds}  {:>5} cameras, {:<28} {:<10}",
        elapsed.as_secs(),
        m.base.round + 1,
        m.cameras,
        m.base.kind.chars().take(28).collect::<String>(),
        m.base.server
    );
    let error = m.base.error.as_deref().map(|e| format!("  FAILED: {e}")).unwrap_or_default();
    let Some(report) = &m.base.report else { return format!("{head}{error}") };
    let Some(cpu_us) = cpu_us(report) else { return format!("{head} no frame{error}") };
    let server = report.server.clone().unwrap_or_default();
    let lost = report.normal.frames_missing + report.normal.frames_damaged;
    let limit = if report.generator.bottleneck.is_some() { "  (generator at its limit)" } else { "" };
    format!(
        "{head} {cpu_us:6.2} µs a frame, p99 {:7.2} ms, {lost} frames lost, {:5.1} MB{limit}{error}",
        report.normal.latency_us.p99 as f64 / 1e3,
        server.rss_after as f64 / 1e6,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout;
    use crate::load::report::Server;
    use crate::metrics::Told;

    fn measurement(kind: &str, cameras: usize, players: usize, server: &str, round: usize, cpu: f64) -> Measurement {
        let mut report = Report { seconds: 2.0, ..Report::default() };
        report.normal.frames = (cameras * players * 50) as u64;
        (report.normal.latency_us.count, report.normal.latency_us.p99) = (1, 1500);
        report.server = Some(Server {
            cpu_us_per_client_frame: Some(cpu),
            reads: Some(cameras as u64 * 100),
            wakes: cameras as u64 * 25,
            rss_after: 3_000_000,
            ..Server::default()
        });
        let base = fanout::Measurement {
            kind: kind.into(),
            clients: cameras * players,
            server: server.into(),
            round,
            report: Some(report),
            error: None,
        };
        Measurement { cameras, players, fps: 25.0, base, calls: None }
    }

    #[test]
    fn reads_and_wakes_are_per_frame_of_a_camera() {
        let mut all: Vec<Measurement> = (0..5)
            .flat_map(|r| [measurement("k", 4, 2, "floor", r, 2.0), measurement("k", 4, 2, "uring", r, 3.0)])
            .collect();
        let summaries = summarize(&all);
        let uring = &summaries[1];
        assert_eq!((uring.reads.unwrap().median, uring.wakes.unwrap().median), (2.0, 0.5));
        assert_eq!((uring.cpu_ratio.unwrap().median, summaries[0].cpu_ratio), (1.5, None));
        assert!(
            markdown(&summaries)
                .contains("| 4 | uring | 3.00 (3.00–3.00) | 1.50 (1.50–1.50) | 0.0 | 2.00 (2.00–2.00) |")
        );
        // The relay's own count of its cameras' reads is preferred to the kernel's count of everything it reads.
        let server = all[1].base.report.as_mut().unwrap().server.as_mut().unwrap();
        server.told = Some(Told { source_reads: Some(300), copied_bytes: Some(2_000_000) });
        let uring = &summarize(&all)[1];
        assert_eq!((uring.reads.unwrap().median, uring.copied_bytes.unwrap().median), (1.5, 10_000.0));
    }

    #[test]
    fn scenes_without_players_are_kept_apart_by_their_cameras() {
        let all = [measurement("k", 4, 0, "floor", 0, 2.0), measurement("k", 8, 0, "floor", 0, 3.0)];
        let summaries = summarize(&all);
        assert_eq!(summaries.iter().map(|s| s.cameras).collect::<Vec<_>>(), [4, 8]);
        // 4 cameras of 25 frames a second for 2 s.
        assert_eq!(summaries[0].reads.unwrap().median, 2.0);
        let chart = chart(&summaries, "k", "caption").unwrap();
        assert!(chart.contains(">cameras</text>") && chart.matches("<polyline").count() == 3, "{chart}");
    }

    #[test]
    fn pieces_are_compared_with_whole_frames_of_the_same_round() {
        let mut all = Vec::new();
        for round in 0..5 {
            let slower = (round + 1) as f64;
            all.push(measurement("whole", 4, 1, "uring", round, 2.0 * slower));
            all.push(measurement("link", 4, 1, "uring", round, 5.0 * slower));
        }
        assert!(pacing(&all, "link", "whole").contains("| 4 | uring | 2.50 (2.50–2.50) |"));
        assert_eq!(pacing(&all[..4], "link", "whole"), "");
    }

    #[test]
    fn calls_have_their_own_table() {
        let mut one = measurement("k", 4, 1, "uring", 0, 2.0);
        assert_eq!(calls(std::slice::from_ref(&one)), "");
        one.calls = Some([("all".to_string(), 7.25), ("read".to_string(), 2.0)].into());
        let table = calls(&[one]);
        assert!(table.contains("| all | read |") && table.contains("| k | 4 | uring | 7.25 | 2.00 |"), "{table}");
    }
}
