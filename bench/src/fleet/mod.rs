//! `fleet`: many cameras with few players each. Servers take turns under the same load, each with restarted cameras, and are compared
//! round by round.

mod calls;
mod servers;
mod summary;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::fanout::children::{Load, Process, wait_ready};
use crate::fanout::{self, Course, Files, Own, Results, sleep};
use crate::load::report::{Report, Server};
use crate::os;
use crate::proc::{Activity, CpuSample, machine_busy_ns, resident_bytes};
use servers::{Build, Contender, Peer};

/// Maximum CPU in percent that cameras and players may use together: above that, frames are late because of them.
const BUSY_PERCENT_MAX: f64 = 90.0;

/// How the cameras send frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Frames {
    /// Each frame at once.
    Whole,
    /// In pieces, as over a link of --link.
    Link,
}

/// Arguments of `fleet`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers of cameras.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 50, 300, 1000])]
    pub cameras: Vec<usize>,
    /// Numbers of TCP players per camera; 0 for none.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub players: Vec<usize>,
    /// How the cameras send frames.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Frames::Whole, Frames::Link])]
    pub frames: Vec<Frames>,
    /// Simulated bit rate of a camera's link, with --frames link.
    #[arg(long, default_value = "100M", value_parser = os::quantity)]
    pub link: u64,
    /// Its course.
    #[command(flatten)]
    pub course: Course,
    /// Numbers of shards of the relay; several numbers take turns.
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub workers: Vec<usize>,
    /// Another build of the relay, to compare with. Can be repeated.
    #[arg(long = "build", value_name = "NAME=PROGRAM")]
    pub builds: Vec<Build>,
    /// Another server, restarted for each turn. In its command, {port} is the port on 127.0.0.1 to listen on, and {sources} is a file
    /// with a camera's URL on each line, to serve at the same path. Can be repeated; bench/peers has scripts.
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    pub peers: Vec<Peer>,
    /// Let everything run on all CPUs.
    #[arg(long)]
    pub unpinned: bool,
    /// Bit rate of each camera.
    #[arg(long, default_value = "2M", value_parser = os::quantity)]
    pub bitrate: u64,
    /// Frames per second of each camera.
    #[arg(long, default_value = "25", value_parser = os::positive)]
    pub fps: f64,
    /// Frames from one keyframe to the next.
    #[arg(long, default_value_t = 50)]
    pub gop: u64,
    /// Also count system calls, in a second run of each server that is not timed; needs `perf` and the right to trace.
    #[arg(long)]
    pub calls: bool,
    /// Output directory for results.jsonl, summary.json, table.md and the charts.
    #[arg(long, default_value = "fleet")]
    pub out: PathBuf,
    /// A short run with few cameras, to check that everything works; its figures mean nothing.
    #[arg(long)]
    pub quick: bool,
}

/// One server under one load in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Cameras.
    pub cameras: usize,
    /// Players of each of them.
    pub players: usize,
    /// Frames that a camera sends a second.
    pub fps: f64,
    /// The scene's kind, all players, the server, the round, what `load` reported.
    #[serde(flatten)]
    pub base: fanout::Measurement,
    /// System calls of each kind per frame of a camera, with `--calls`.
    pub calls: Option<BTreeMap<String, f64>>,
}

struct Scene {
    kind: String,
    cameras: usize,
    players: usize,
    frames: Frames,
}

/// The running experiment.
struct Fleet<'a> {
    args: &'a Args,
    log: PathBuf,
    stop: &'a AtomicBool,
}

/// Runs the experiment and writes its results.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let mut args = args.clone();
    if args.quick {
        args.cameras = vec![2, 5];
        args.course.shorten();
    }
    check(&args)?;
    let contenders = contenders(&args)?;
    let mut results = Results::create(&args.out)?;
    println!("results in {}", args.out.display());
    let fleet = Fleet { args: &args, log: results.log.clone(), stop: &stop };
    let mut measurements = Vec::new();
    let begun = Instant::now();
    'all: for round in 0..args.course.rounds {
        for scene in &scenes(&args) {
            for turn in 0..contenders.len() {
                // Each round starts with another server.
                let contender = &contenders[(turn + round) % contenders.len()];
                let measurement = fleet.measure(scene, contender, round);
                if stop.load(Ordering::Relaxed) {
                    break 'all;
                }
                println!("{}", summary::line(&measurement, args.course.rounds, begun.elapsed()));
                results.add(&measurement)?;
                measurements.push(measurement);
            }
        }
    }
    let stopped = stop.load(Ordering::Relaxed);
    write_results(&args, &measurements, stopped)?;
    let failed = measurements.iter().filter(|m| m.base.error.is_some()).count();
    results.outcome(stopped, failed)
}

/// Errors that can be found before anything is measured.
fn check(args: &Args) -> Result<(), String> {
    if args.course.rounds == 0 || args.cameras.is_empty() || args.cameras.contains(&0) {
        return Err("there is nothing to measure; set --rounds and each number of --cameras above 0".into());
    }
    if args.workers.is_empty() || args.workers.contains(&0) {
        return Err("--workers 0 depends on the machine; give the number of shards".into());
    }
    if !args.unpinned {
        args.course.may_pin()?;
    }
    if args.calls { calls::check() } else { Ok(()) }
}

/// Who takes turns.
fn contenders(args: &Args) -> Result<Vec<Contender>, String> {
    let ours = Build { name: String::new(), program: args.course.relay_program()? };
    let mut all: Vec<Contender> = Vec::new();
    if args.course.servers.contains(&Own::Floor) {
        all.push(Contender::proxy());
    }
    for build in std::iter::once(&ours).chain(&args.builds) {
        for io in args.course.servers.iter().filter(|own| **own != Own::Floor) {
            for &workers in &args.workers {
                all.push(Contender::relay(build, *io, workers, args.workers.len() > 1)?);
            }
        }
    }
    all.extend(args.peers.iter().map(Contender::peer));
    match all.iter().enumerate().find(|(index, one)| all[..*index].iter().any(|other| other.name == one.name)) {
        Some((_, twice)) => Err(format!("two servers have the name {:?}; give each its own", twice.name)),
        None if all.is_empty() => Err("there is no server to measure; name one with --servers or --peer".into()),
        None => Ok(all),
    }
}

fn scenes(args: &Args) -> Vec<Scene> {
    let mut scenes = Vec::new();
    for &players in &args.players {
        for &frames in &args.frames {
            let kind = kind(args, players, frames);
            scenes.extend(args.cameras.iter().map(|&cameras| Scene { kind: kind.clone(), cameras, players, frames }));
        }
    }
    scenes
}

/// The name of a kind of scene.
fn kind(args: &Args, players: usize, frames: Frames) -> String {
    let players = match players {
        0 => "no player".into(),
        1 => "1 player each".into(),
        many => format!("{many} players each"),
    };
    match frames {
        Frames::Whole => format!("{players}, whole frames"),
        Frames::Link => format!("{players}, frames by a link of {} Mbit/s", args.link as f64 / 1e6),
    }
}

impl Fleet<'_> {
    fn measure(&self, scene: &Scene, contender: &Contender, round: usize) -> Measurement {
        let mut base = fanout::Measurement {
            kind: scene.kind.clone(),
            clients: scene.cameras * scene.players,
            server: contender.name.clone(),
            round,
            report: None,
            error: None,
        };
        let mut calls = None;
        match self.turn(scene, contender) {
            Ok((report, counted)) => {
                base.error = report.verdict().err();
                base.report = Some(report);
                calls = counted;
            }
            Err(error) => base.error = Some(error),
        }
        Measurement { cameras: scene.cameras, players: scene.players, fps: self.args.fps, base, calls }
    }

    fn turn(&self, scene: &Scene, contender: &Contender) -> Result<(Report, Option<BTreeMap<String, f64>>), String> {
        let args = self.args;
        let (server_cpu, load_cpu) =
            if args.unpinned { (None, None) } else { (Some(args.course.server_cpu), Some(args.course.load_cpu)) };
        // The server is dropped first, so that it does not see its cameras disappear.
        let mut camera = Process::own("camera", load_cpu, &camera_arguments(args, scene), &self.log)?;
        let first = camera.first_line()?;
        let address = first.rsplit_once('/').map_or(first.as_str(), |(address, _)| address);
        let sources: Vec<String> = (0..scene.cameras).map(|number| format!("{address}/cam{number}")).collect();
        let mut server = contender.start(&sources, server_cpu, &args.out, &self.log)?;
        let urls: Vec<String> =
            (0..scene.cameras).map(|number| format!("rtsp://{}/cam{number}", server.listen)).collect();
        for url in &urls {
            wait_ready(&mut server.process, url, self.stop)?;
        }
        sleep(args.course.settle, self.stop);
        let beside = camera.pid();
        if scene.players == 0 {
            let mut report = self.unwatched(scene, server.process.pid(), beside)?;
            if let Some(told) = report.server.as_mut().filter(|_| server.pages.is_some()) {
                // The kernel counts `read` and its like; the relay takes what comes by `recv`.
                told.reads = None;
            }
            return Ok((report, None));
        }
        let mut more = vec![format!("--ramp={}", args.course.ramp), format!("--beside={beside}")];
        more.extend(server.pages.map(|pages| format!("--metrics={pages}")));
        let load = Load {
            cpu: load_cpu,
            urls: &urls,
            pid: server.process.pid(),
            clients: scene.cameras * scene.players,
            seconds: args.course.seconds,
            warmup: args.course.warmup,
            more,
            log: &self.log,
        };
        let mut report = load.run(self.stop)?;
        let busy_percent = report.generator.cpu_percent + report.generator.beside_percent;
        if !args.unpinned && busy_percent > BUSY_PERCENT_MAX {
            let reason = || format!("it and the cameras used {busy_percent:.0} % of their core; use fewer cameras");
            report.generator.bottleneck.get_or_insert_with(reason);
        }
        let calls = args.calls.then(|| {
            let frames_a_second = scene.cameras as f64 * args.fps;
            let clients = scene.cameras * scene.players;
            calls::count(server.process.pid(), &urls, clients, load_cpu, frames_a_second, &self.log)
        });
        Ok((report, calls.transpose()?))
    }

    /// What a server costs without players: its cost per frame of a camera.
    fn unwatched(&self, scene: &Scene, pid: i32, beside: i32) -> Result<Report, String> {
        let sample = || {
            let (server, camera, own) =
                (CpuSample::of(pid)?, CpuSample::of(beside)?, CpuSample::of(std::process::id() as i32)?);
            Ok::<_, String>((server, camera, own, Activity::of(pid), machine_busy_ns(), Instant::now()))
        };
        let before = sample()?;
        sleep(self.args.course.seconds, self.stop);
        let after = sample()?;
        let wall = after.5 - before.5;
        let percent = |ns: u64| ns as f64 / wall.as_nanos() as f64 * 100.0;
        let used = after.0.used_ns_since(&before.0);
        let known = used + after.1.used_ns_since(&before.1) + after.2.used_ns_since(&before.2);
        let mut report = Report { seconds: wall.as_secs_f64(), transport: "none".into(), ..Report::default() };
        report.generator.beside_percent = percent(after.1.used_ns_since(&before.1));
        report.generator.others_percent = percent((after.4 - before.4).saturating_sub(known));
        let frames = scene.cameras as f64 * self.args.fps * report.seconds;
        report.server = Some(Server {
            cpu_percent: percent(used),
            cpu_us_per_client_frame: Some(used as f64 / 1e3 / frames),
            reads: after.3.reads_since(&before.3),
            wakes: after.3.wakes_since(&before.3),
            rss_after: resident_bytes(pid)?,
            ..Server::default()
        });
        Ok(report)
    }
}

fn camera_arguments(args: &Args, scene: &Scene) -> Vec<String> {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut arguments = vec![
        "camera".to_string(),
        "--repeat".into(),
        format!("--listen={any}"),
        format!("--bitrate={}", args.bitrate),
        format!("--fps={}", args.fps),
        format!("--gop={}", args.gop),
    ];
    if scene.frames == Frames::Link {
        arguments.push(format!("--link={}", args.link));
    }
    arguments.extend((0..scene.cameras).map(|number| format!("--path=cam{number}")));
    arguments
}

fn write_results(args: &Args, measurements: &[Measurement], stopped: bool) -> Result<(), String> {
    let summaries = summary::summarize(measurements);
    let place = if args.unpinned {
        "everything on every CPU".to_string()
    } else {
        format!("servers on CPU {}, players and cameras on CPU {}", args.course.server_cpu, args.course.load_cpu)
    };
    let setting = format!(
        "cameras with {} Mbit/s and {} frames/s each, a keyframe every {} frames, {} rounds of {} s; {place}",
        args.bitrate as f64 / 1e6,
        args.fps,
        args.gop,
        args.course.rounds,
        args.course.seconds.as_secs_f64(),
    );
    let files = Files { out: &args.out };
    let mut table = files.summary(&args.course, &summaries, &setting, stopped)?;
    table.push_str(&summary::markdown(&summaries));
    for &players in &args.players {
        let kinds = [Frames::Link, Frames::Whole].map(|frames| kind(args, players, frames));
        table.push_str(&summary::pacing(measurements, &kinds[0], &kinds[1]));
    }
    table.push_str(&summary::calls(measurements));
    files.write("table.md", &table)?;
    for &players in &args.players {
        for (frames, word) in [(Frames::Whole, "whole"), (Frames::Link, "link")] {
            let name = format!("{players}-{word}.svg");
            files.chart(&name, summary::chart(&summaries, &kind(args, players, frames), &setting))?;
        }
    }
    println!("{table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::parse_from([&["fleet"], words].concat()).args
    }

    #[test]
    fn servers_take_turns_by_shards_and_builds() {
        let mut args = args(&["--workers", "1,2", "--build", "before=/bin/true", "--servers", "floor,uring"]);
        args.course.relay = Some("/bin/true".into());
        let names: Vec<String> = contenders(&args).unwrap().into_iter().map(|one| one.name).collect();
        let expected =
            ["floor", "uring, 1 shard", "uring, 2 shards", "before uring, 1 shard", "before uring, 2 shards"];
        assert_eq!(names, expected);
        args.builds.push("before=/bin/false".parse().unwrap());
        assert!(contenders(&args).err().unwrap().contains("\"before uring, 1 shard\""));
    }

    #[test]
    fn scenes_are_named_by_what_they_are() {
        let args = args(&["--players", "0,1,2", "--cameras", "3", "--link", "20M"]);
        let kinds: Vec<String> = scenes(&args).into_iter().map(|scene| scene.kind).collect();
        assert_eq!(
            kinds[1..4],
            [
                "no player, frames by a link of 20 Mbit/s",
                "1 player each, whole frames",
                "1 player each, frames by a link of 20 Mbit/s"
            ]
        );
        assert_eq!(kinds.len(), 6);
    }
}
