//! `fanout`: the whole experiment. Servers take turns under the same load, and are compared round by round.

pub mod chart;
pub mod children;
mod course;
pub mod summary;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use crate::client::Transport;
use crate::load::report::Report;
use crate::os;
use children::{Load, Process, free_port, wait_described, wait_ready};
pub use course::{Course, Files, Results};

/// A server that is already running.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    name: String,
    url: String,
    pid: i32,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let wrong = || format!("{text:?}: write NAME=URL,PID");
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (url, pid) = rest.rsplit_once(',').ok_or_else(wrong)?;
        let pid = pid.parse().map_err(|_| wrong())?;
        Ok(Peer { name: name.into(), url: url.into(), pid })
    }
}

/// A server that this program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Own {
    /// The bare loop.
    Floor,
    /// The relay with `--io uring`.
    Uring,
    /// The relay with `--io epoll`.
    Epoll,
}

impl Own {
    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Own::Floor => "floor",
            Own::Uring => "uring",
            Own::Epoll => "epoll",
        }
    }
}

/// Arguments of `fanout`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers of TCP players, with a camera that sends whole frames; 0 to skip.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 500, 1000, 2000])]
    pub clients: Vec<usize>,
    /// Numbers of UDP players; 0 to skip.
    #[arg(long, value_delimiter = ',', default_values_t = [200])]
    pub udp_clients: Vec<usize>,
    /// Numbers of TCP players, with a camera that spreads its frames (see --pace); 0 to skip.
    #[arg(long, value_delimiter = ',', default_values_t = [500])]
    pub paced_clients: Vec<usize>,
    /// The time over which the paced camera spreads each frame.
    #[arg(long, default_value = "10ms", value_parser = os::duration)]
    pub pace: Duration,
    /// Its course.
    #[command(flatten)]
    pub course: Course,
    /// Another server that is already running as process PID and serves the camera's stream at URL. Can be repeated.
    #[arg(long = "peer", value_name = "NAME=URL,PID")]
    pub peers: Vec<Peer>,
    /// Fixed address of the camera, for peers that need it; its stream is /cam.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub camera_listen: SocketAddr,
    /// Bit rate of the camera.
    #[arg(long, default_value = "4M", value_parser = os::quantity)]
    pub bitrate: u64,
    /// Frames per second of the camera.
    #[arg(long, default_value = "30", value_parser = os::positive)]
    pub fps: f64,
    /// Output directory for results.jsonl, summary.json, table.md and the charts.
    #[arg(long, default_value = "fanout")]
    pub out: PathBuf,
    /// A short run with few players, to check that everything works; its figures mean nothing.
    #[arg(long)]
    pub quick: bool,
}

/// One server under one load in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The scene's kind: `TCP`, `UDP`, …
    pub kind: String,
    /// Number of players.
    pub clients: usize,
    /// The server's name.
    pub server: String,
    /// The round, from 0.
    pub round: usize,
    /// What `load` reported.
    pub report: Option<Report>,
    /// Why there is no report, or what is wrong with it.
    pub error: Option<String>,
}

struct Scene {
    kind: String,
    clients: usize,
    transport: Transport,
    camera: String,
    paced: bool,
}

/// Who takes a turn.
enum Turn<'a> {
    Own(Own),
    Peer(&'a Peer),
}

/// Runs the experiment and writes its results.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let args = checked(args)?;
    let relay = args.course.relay_program()?;
    let mut results = Results::create(&args.out)?;
    let log = results.log.clone();

    let mut camera = camera(&args, args.camera_listen, Duration::ZERO, &log)?;
    let whole = camera.first_line()?;
    let mut paced = None;
    let mut paced_url = String::new();
    if !args.paced_clients.is_empty() {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let process = paced.insert(self::camera(&args, any, args.pace, &log)?);
        paced_url = process.first_line()?;
    }
    println!("camera at {whole}, results in {}", args.out.display());
    for peer in &args.peers {
        pin_process(peer.pid, args.course.server_cpu)?;
        // Some servers start only now that there is a camera.
        let gone = || {
            let is_there = fs::metadata(format!("/proc/{}", peer.pid)).is_ok();
            (!is_there).then(|| format!("there is no process {}", peer.pid))
        };
        wait_described(&peer.name, &peer.url, gone, &stop)?;
    }
    let scenes = scenes(&args, &whole, &paced_url);
    let mut measurements = Vec::new();
    let begun = Instant::now();
    'all: for round in 0..args.course.rounds {
        for scene in &scenes {
            for turn in turns(&args, scene, round) {
                if stop.load(Ordering::Relaxed) {
                    break 'all;
                }
                let measurement = measure(&args, scene, &turn, round, &relay, &log, &stop);
                if stop.load(Ordering::Relaxed) {
                    break 'all;
                }
                println!("{}", line(&measurement, args.course.rounds, begun.elapsed()));
                results.add(&measurement)?;
                measurements.push(measurement);
            }
        }
    }
    drop((camera, paced));
    let stopped = stop.load(Ordering::Relaxed);
    write_results(&args, &measurements, stopped)?;
    let failed = measurements.iter().filter(|m| m.error.is_some()).count();
    results.outcome(stopped, failed)
}

/// The arguments without what there is nothing to measure of.
fn checked(args: &Args) -> Result<Args, String> {
    let mut args = args.clone();
    if args.quick {
        args.clients = vec![5, 20];
        args.udp_clients = vec![5];
        args.paced_clients = vec![5];
        args.course.shorten();
    }
    for counts in [&mut args.clients, &mut args.udp_clients, &mut args.paced_clients] {
        counts.retain(|count| *count > 0);
    }
    if args.clients.is_empty() && args.udp_clients.is_empty() && args.paced_clients.is_empty()
        || args.course.rounds == 0
    {
        return Err("there is nothing to measure; set --rounds and one of the numbers of players above 0".into());
    }
    args.course.may_pin()?;
    Ok(args)
}

fn camera(args: &Args, listen: SocketAddr, pace: Duration, log: &Path) -> Result<Process, String> {
    let arguments: Vec<String> = [
        "camera".to_string(),
        format!("--listen={listen}"),
        format!("--bitrate={}", args.bitrate),
        format!("--fps={}", args.fps),
        format!("--pace={}us", pace.as_micros()),
    ]
    .into();
    Process::own("camera", Some(args.course.load_cpu), &arguments, log)
}

fn scenes(args: &Args, whole: &str, paced: &str) -> Vec<Scene> {
    let scene = |kind: &str, clients: &usize, transport, camera: &str, paced| Scene {
        kind: kind.into(),
        clients: *clients,
        transport,
        camera: camera.into(),
        paced,
    };
    let paced_kind = paced_kind(args);
    let tcp = args.clients.iter().map(|c| scene("TCP", c, Transport::Tcp, whole, false));
    let spread = args.paced_clients.iter().map(|c| scene(&paced_kind, c, Transport::Tcp, paced, true));
    let udp = args.udp_clients.iter().map(|c| scene("UDP", c, Transport::Udp, whole, false));
    tcp.chain(spread).chain(udp).collect()
}

fn paced_kind(args: &Args) -> String {
    format!("TCP, frames spread over {} ms", args.pace.as_secs_f64() * 1e3)
}

/// The servers for a scene, in this round's order: each round starts with a different one. Peers pull the camera that sends whole
/// frames.
fn turns<'a>(args: &'a Args, scene: &Scene, round: usize) -> Vec<Turn<'a>> {
    let mut turns: Vec<Turn<'_>> = args.course.servers.iter().map(|s| Turn::Own(*s)).collect();
    if !scene.paced {
        turns.extend(args.peers.iter().map(Turn::Peer));
    }
    let first = round % turns.len().max(1);
    turns.rotate_left(first);
    turns
}

fn measure(
    args: &Args,
    scene: &Scene,
    turn: &Turn<'_>,
    round: usize,
    relay: &Path,
    log: &Path,
    stop: &AtomicBool,
) -> Measurement {
    let server = match turn {
        Turn::Own(own) => own.name().to_string(),
        Turn::Peer(peer) => peer.name.clone(),
    };
    let mut measurement =
        Measurement { kind: scene.kind.clone(), clients: scene.clients, server, round, report: None, error: None };
    match turn_of(args, scene, turn, relay, log, stop) {
        Ok(report) => {
            measurement.error = report.verdict().err();
            measurement.report = Some(report);
        }
        Err(error) => measurement.error = Some(error),
    }
    measurement
}

fn turn_of(
    args: &Args,
    scene: &Scene,
    turn: &Turn<'_>,
    relay: &Path,
    log: &Path,
    stop: &AtomicBool,
) -> Result<Report, String> {
    // Dropped at the end of the turn, and with it the process.
    let mut process;
    let (url, pid) = match turn {
        Turn::Peer(peer) => (peer.url.clone(), peer.pid),
        Turn::Own(own) => {
            let url;
            (process, url) = start_server(args, *own, &scene.camera, relay, log)?;
            wait_ready(&mut process, &url, stop)?;
            sleep(args.course.settle, stop);
            (url, process.pid())
        }
    };
    let load = Load {
        cpu: Some(args.course.load_cpu),
        urls: &[url],
        pid,
        clients: scene.clients,
        seconds: args.course.seconds,
        warmup: args.course.warmup,
        more: vec![format!("--transport={}", scene.transport.name()), format!("--ramp={}", args.course.ramp)],
        log,
    };
    load.run(stop)
}

fn start_server(args: &Args, own: Own, camera: &str, relay: &Path, log: &Path) -> Result<(Process, String), String> {
    let cpu = Some(args.course.server_cpu);
    if own == Own::Floor {
        let arguments = ["floor".to_string(), format!("--source={camera}")];
        let mut process = Process::own("floor", cpu, &arguments, log)?;
        let url = process.first_line()?;
        return Ok((process, url));
    }
    let listen = format!("127.0.0.1:{}", free_port()?);
    let arguments: Vec<String> =
        ["run", "--source", camera, "--listen", &listen, "--workers", "1", "--io", own.name()].map(String::from).into();
    let process = Process::other(own.name(), cpu, relay, &arguments, log)?;
    Ok((process, format!("rtsp://{listen}/")))
}

/// Sleeps, unless it is to stop.
pub fn sleep(time: Duration, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10).min(time));
    }
}

/// Puts all threads of a peer on the servers' CPU.
fn pin_process(pid: i32, cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|e| format!("CPU {cpu}: {e}"))?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|_| format!("there is no process {pid}; --peer needs NAME=URL,PID of a running server"))?;
    for task in tasks.flatten() {
        if let Some(tid) = task.file_name().to_str().and_then(|n| n.parse().ok()) {
            sched_setaffinity(Pid::from_raw(tid), &set).map_err(|e| format!("cannot pin process {pid}: {e}"))?;
        }
    }
    Ok(())
}

fn line(m: &Measurement, rounds: usize, elapsed: Duration) -> String {
    let head = format!(
        "{:>5} s  round {}/{rounds}  {:<12} {:>5} clients  {:<10}",
        elapsed.as_secs(),
        m.round + 1,
        m.kind.chars().take(12).collect::<String>(),
        m.clients,
        m.server
    );
    let error = m.error.as_deref().map(|e| format!("  FAILED: {e}")).unwrap_or_default();
    let Some(report) = &m.report else { return format!("{head}{error}") };
    let server = report.server.clone().unwrap_or_default();
    let Some(cpu_us) = server.cpu_us_per_client_frame else { return format!("{head} no frame{error}") };
    format!(
        "{head} {cpu_us:6.2} µs per client and frame, p99 {:7.2} ms, worst {:5.2} fps{}{error}",
        report.normal.latency_us.p99 as f64 / 1e3,
        report.normal.fps_worst,
        if report.generator.bottleneck.is_some() { "  (generator at its limit)" } else { "" }
    )
}

fn write_results(args: &Args, measurements: &[Measurement], stopped: bool) -> Result<(), String> {
    let summaries = summary::summarize(measurements);
    let setting = format!(
        "camera with {} Mbit/s and {} frames/s, {} rounds of {} s; servers on CPU {}, players and camera on CPU {}",
        args.bitrate as f64 / 1e6,
        args.fps,
        args.course.rounds,
        args.course.seconds.as_secs_f64(),
        args.course.server_cpu,
        args.course.load_cpu
    );
    let files = Files { out: &args.out };
    let mut table = files.summary(&args.course, &summaries, &setting, stopped)?;
    table.push_str(&summary::markdown(&summaries));
    table.push_str(&summary::pacing(measurements, &paced_kind(args)));
    files.write("table.md", &table)?;
    for (kind, name) in [("TCP", "tcp.svg"), ("UDP", "udp.svg")] {
        files.chart(name, chart::svg(&summaries, kind, &setting))?;
    }
    println!("{table}");
    Ok(())
}

/// Date, kernel, CPU and command, as a Markdown list.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let models: Vec<&str> =
        cpu.lines().filter(|l| l.starts_with("model name")).filter_map(|l| l.split_once(": ")).map(|l| l.1).collect();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let command: Vec<String> = std::env::args().skip(1).collect();
    format!(
        "- {}, Linux {}, {} × {}, TCP congestion control {}\n- `rtsprelay-bench {}`",
        date(seconds / 86_400),
        read("/proc/sys/kernel/osrelease").trim(),
        models.len(),
        models.first().copied().unwrap_or("unknown CPU"),
        read("/proc/sys/net/ipv4/tcp_congestion_control").trim(),
        command.join(" ")
    )
}

/// The date this many days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> String {
    let (mut year, mut left) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(59), "1970-03-01");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(20_453), "2025-12-31");
    }

    #[test]
    fn peers_are_read() {
        let peer = "gst=rtsp://127.0.0.1:8554/test,4711".parse::<Peer>().unwrap();
        assert_eq!((peer.name.as_str(), peer.url.as_str(), peer.pid), ("gst", "rtsp://127.0.0.1:8554/test", 4711));
        assert!("gst".parse::<Peer>().is_err());
    }
}
