//! `siege`: how thousands of connections that only cost the relay resources affect its normal players.
//!
//! Windows with and without the attack alternate at one relay, and each pair is compared by itself, because other work on the machine
//! affects both alike.

pub mod attack;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fanout::children::{Load, Process, free_port, wait_ready};
use crate::fanout::summary::Spread;
use crate::load::report::Report;
use crate::os;
use attack::Tally;

/// Time for the relay to recover from an attack before the next window.
const CALM: Duration = Duration::from_secs(1);

/// Arguments of `siege`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Number of normal players.
    #[arg(long, default_value_t = 100)]
    pub clients: usize,
    /// Connections that send nothing.
    #[arg(long, default_value_t = 1000)]
    pub half_open: usize,
    /// Connections that send one byte per second.
    #[arg(long, default_value_t = 1000)]
    pub dripping: usize,
    /// Connections that send requests as fast as possible.
    #[arg(long, default_value_t = 100)]
    pub flooding: usize,
    /// Pairs of windows, one with and one without the attack.
    #[arg(long, default_value_t = 10)]
    pub pairs: usize,
    /// Time of each window.
    #[arg(long, default_value = "5", value_parser = os::duration)]
    pub seconds: Duration,
    /// Time between the last player's start and the window.
    #[arg(long, default_value = "1", value_parser = os::duration)]
    pub warmup: Duration,
    /// Succeed if the p99 with the attack divided by that without it, as the median of the pairs, is at most this.
    #[arg(long, default_value_t = 1.5)]
    pub ratio_max: f64,
    /// The relay's program; by default the one in this program's directory.
    #[arg(long)]
    pub relay: Option<PathBuf>,
    /// CPU of the relay.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// CPU of the camera, the players and the attackers, which have the lowest priority.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
    /// File for the output of the relay and the other processes.
    #[arg(long, default_value = "siege.log")]
    pub log: PathBuf,
}

/// Measures, and prints a line for each pair and the sum.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let beside = std::env::current_exe().ok().and_then(|me| me.parent().map(|dir| dir.join("rtsprelay")));
    let relay = args.relay.clone().or(beside).unwrap_or_else(|| PathBuf::from("rtsprelay"));
    let mut camera = Process::own("camera", Some(args.load_cpu), &["camera".into()], &args.log)?;
    let source = camera.first_line()?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let arguments =
        ["run", "--source", &source, "--listen", &listen, "--workers", "1", "--report-every", "0s"].map(String::from);
    let mut server = Process::other("relay", Some(args.server_cpu), &relay, &arguments, &args.log)?;
    let url = format!("rtsp://{listen}/");
    wait_ready(&mut server, &url, &stop)?;

    let mut ratios = Vec::new();
    let (mut calm, mut besieged) = (Vec::new(), Vec::new());
    let mut hurt = 0;
    for pair in 0..args.pairs {
        let mut window = |attacked: bool| {
            let (report, tally) = window(args, &url, server.pid(), attacked, &stop)?;
            hurt += lost(&report);
            Ok::<_, String>((report, tally))
        };
        // The order changes from pair to pair.
        let (without, (with, tally)) = if pair.is_multiple_of(2) {
            let first = window(false)?.0;
            (first, window(true)?)
        } else {
            let first = window(true)?;
            (window(false)?.0, first)
        };
        let p99 = |report: &Report| report.normal.latency_us.p99 as f64 / 1e3;
        let ratio = p99(&with) / p99(&without).max(1e-3);
        println!(
            "pair {:>2}: p99 {:.2} ms without, {:.2} ms with the attack, ratio {ratio:.2}; relay {:.0} and {:.0} %, others {:.0} and {:.0} % of a core; {}",
            pair + 1,
            p99(&without),
            p99(&with),
            without.server.as_ref().map_or(0.0, |server| server.cpu_percent),
            with.server.as_ref().map_or(0.0, |server| server.cpu_percent),
            without.generator.others_percent,
            with.generator.others_percent,
            told(&tally)
        );
        calm.push(p99(&without));
        besieged.push(p99(&with));
        ratios.push(ratio);
    }
    let (ratios, calm, besieged) = (Spread::of(ratios), Spread::of(calm), Spread::of(besieged));
    println!("p99 without the attack {} ms, with it {} ms", calm.text(2), besieged.text(2));
    println!("ratio of the pairs {} (median, smallest, largest)", ratios.text(2));
    println!("frames missing or damaged, and players closed: {hurt}");
    drop((server, camera));
    if hurt > 0 {
        return Err(format!("{hurt} frames or players were lost"));
    }
    if ratios.median > args.ratio_max {
        return Err(format!("the p99 grew {:.2} times, more than {}", ratios.median, args.ratio_max));
    }
    Ok(())
}

fn told(tally: &Option<Tally>) -> String {
    let Some(tally) = tally else { return "no attack".into() };
    format!(
        "{} connections, {} closed, {} failed, {:.1} MB of requests, {:.1} MB of answers",
        tally.connected,
        tally.closed,
        tally.failed,
        tally.bytes_sent as f64 / 1e6,
        tally.bytes_received as f64 / 1e6
    )
}

/// Frames and players that a healthy player's stream lacks.
fn lost(report: &Report) -> u64 {
    let (normal, asked) = (&report.normal, report.clients);
    normal.frames_missing + normal.frames_damaged + normal.closed + asked.saturating_sub(normal.playing)
}

fn window(
    args: &Args,
    url: &str,
    pid: i32,
    attacked: bool,
    stop: &AtomicBool,
) -> Result<(Report, Option<Tally>), String> {
    let mut attack = attacked.then(|| besiege(args, url, &args.log)).transpose()?;
    let load = Load {
        cpu: Some(args.load_cpu),
        urls: &[url.into()],
        pid,
        clients: args.clients,
        seconds: args.seconds,
        warmup: args.warmup,
        more: Vec::new(),
        log: &args.log,
    };
    let report = load.run(stop)?;
    let tally = attack.as_mut().map(|attack| {
        attack.terminate();
        attack.output(stop)
    });
    let tally = tally.transpose()?.and_then(|text| serde_json::from_str(text.lines().last()?).ok());
    if attacked && !stop.load(Ordering::Relaxed) {
        // Leftovers of the attack must not count in the next window, and nothing reports when the kernel is done with it.
        std::thread::sleep(CALM);
    }
    Ok((report, tally))
}

/// Starts the attack and waits until it is in progress. It gets the CPU time that the players leave.
fn besiege(args: &Args, url: &str, log: &Path) -> Result<Process, String> {
    let arguments = [
        "attack".into(),
        format!("--url={url}"),
        format!("--half-open={}", args.half_open),
        format!("--dripping={}", args.dripping),
        format!("--flooding={}", args.flooding),
    ];
    let mut attack = Process::own("attack", Some(args.load_cpu), &arguments, log)?;
    os::come_last(attack.pid())?;
    match attack.first_line()?.as_str() {
        "ready" => Ok(attack),
        other => Err(format!("the attack did not begin: {other}")),
    }
}
