//! `fleet` measures many cameras against the proxy and other servers, with plausible figures, and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_rtsprelay-bench");

/// A directory for one test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("rtsprelay-fleet-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("it can be made");
        Directory(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running camera or proxy, killed when dropped.
struct Serving {
    child: Child,
    /// The URL that it printed.
    url: String,
}

impl Serving {
    fn start(arguments: &[&str]) -> Serving {
        let mut command = Command::new(BENCH);
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut url).expect("its first line");
        assert!(url.starts_with("rtsp://"), "{arguments:?} printed {url:?}");
        Serving { child, url: url.trim_end().to_string() }
    }

    /// Its address, preceded by `rtsp://`.
    fn address(&self) -> &str {
        self.url.rsplit_once('/').expect("a path").0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(urls: &[String], arguments: &[&str]) -> Value {
    let mut command = Command::new(BENCH);
    command.args(["load", "--json", "--warmup", "200ms"]).args(arguments).stdin(Stdio::null());
    command.args(urls.iter().map(|url| format!("--url={url}")));
    let output = command.output().expect("it runs");
    let why = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {why}"))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {value}"))
}

/// A CPU that this process may use.
fn cpu() -> String {
    let may = sched_getaffinity(Pid::from_raw(0)).expect("it can be asked");
    (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap_or(false)).expect("it runs on one").to_string()
}

fn fleet(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BENCH);
    let cpu = cpu();
    command.args(["fleet", "--quick", "--server-cpu", &cpu, "--load-cpu", &cpu, "--out"]).arg(out);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn paths(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("--path=cam{number}")).collect()
}

/// A whole frame usually arrives in one read; over a slow link it arrives in pieces, and a player that keeps up reads each separately.
#[test]
fn a_link_gives_each_frame_in_many_reads() {
    let reads_a_frame = |link: &[&str]| {
        let camera = Serving::start(&[&["camera", "--repeat", "--bitrate", "2M", "--fps", "25"], link].concat());
        let report = load(std::slice::from_ref(&camera.url), &["--clients", "1", "--seconds", "2"]);
        assert!(number(&report, "/normal/frames") > 0.0, "{report}");
        assert_eq!(
            number(&report, "/normal/frames_missing") + number(&report, "/normal/frames_damaged"),
            0.0,
            "{report}"
        );
        number(&report, "/normal/reads") / number(&report, "/normal/frames")
    };
    let (whole, link) = (reads_a_frame(&[]), reads_a_frame(&["--link", "20M"]));
    assert!(whole < 2.0 && link > 2.0 * whole, "{whole} reads a whole frame, {link} by a link");
}

/// Two players of each of many cameras get the same bytes through the proxy, and from the right camera.
#[test]
fn the_proxy_gives_every_player_its_camera_unchanged() {
    const CAMERAS: usize = 40;
    let all = paths(CAMERAS);
    let mut arguments = vec!["camera", "--repeat", "--bitrate", "500k", "--audio", "--link", "20M"];
    arguments.extend(all.iter().map(String::as_str));
    let camera = Serving::start(&arguments);
    let directory = Directory::new("proxy");
    let sources: Vec<String> = (0..CAMERAS).map(|number| format!("{}/cam{number}", camera.address())).collect();
    fs::write(directory.file("sources"), sources.join("\n")).expect("it can be written");
    let proxy = Serving::start(&["proxy", "--sources", &directory.file("sources")]);
    let urls: Vec<String> = (0..CAMERAS).map(|number| format!("{}/cam{number}", proxy.address())).collect();
    let pid = proxy.child.id().to_string();
    let clients = (2 * CAMERAS).to_string();
    let report = load(&urls, &["--clients", &clients, "--seconds", "2", "--verify", "--pid", &pid]);
    assert_eq!(number(&report, "/normal/playing"), 2.0 * CAMERAS as f64, "{report}");
    assert_eq!(number(&report, "/normal/frames_missing"), 0.0, "{report}");
    assert_eq!(number(&report, "/normal/frames_damaged"), 0.0, "{report}");
    assert_eq!(number(&report, "/verified/different"), 0.0, "{report}");
    // More than half of all frames of all players could be compared with another player's.
    assert!(number(&report, "/verified/compared") > 0.8 * number(&report, "/verified/frames"), "{report}");
    // It reads with calls that the kernel counts, at least one per frame of a camera.
    assert!(number(&report, "/server/reads") >= number(&report, "/normal/frames") / 2.0 * 0.9, "{report}");
    assert!(number(&report, "/server/wakes") > 0.0, "{report}");
}

/// Runs a short fleet. Returns its measurements and its table.
fn quick(directory: &Directory, arguments: &[&str]) -> (Vec<Value>, String) {
    let output = fleet(&directory.0, arguments).output().expect("it runs");
    let results = fs::read_to_string(directory.file("results.jsonl")).expect("the results");
    let log = fs::read_to_string(directory.file("log.txt")).unwrap_or_default();
    assert!(output.status.success(), "{results}\n{log}");
    let all = results.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (all, fs::read_to_string(directory.file("table.md")).expect("the table"))
}

#[test]
fn a_quick_fleet_gives_tables_and_charts_of_all_its_servers() {
    let directory = Directory::new("quick");
    let peer = format!("other={BENCH} proxy --listen 127.0.0.1:{{port}} --sources {{sources}}");
    let arguments = ["--servers", "floor", "--peer", &peer, "--players", "2", "--frames", "link"];
    let (all, table) = quick(&directory, &arguments);
    // Two numbers of cameras, two servers.
    assert_eq!(all.len(), 4, "{table}");
    for one in &all {
        let clients = 2.0 * number(one, "/cameras");
        assert_eq!((number(one, "/clients"), number(one, "/report/normal/playing")), (clients, clients), "{one}");
        assert!(number(one, "/report/server/cpu_us_per_client_frame") > 0.0, "{one}");
        assert!(number(one, "/report/server/reads") > 0.0, "{one}");
        // The camera is recognized, and there is no other load.
        assert!(number(one, "/report/generator/beside_percent") > 0.0, "{one}");
        assert_eq!(number(one, "/report/normal/frames_damaged"), 0.0, "{one}");
    }
    assert!(table.contains("### 2 players each, frames by a link of 100 Mbit/s\n"), "{table}");
    assert!(table.contains("| 5 | floor |") && table.contains("| 5 | other |"), "{table}");
    let chart = fs::read_to_string(directory.file("2-link.svg")).expect("a chart");
    assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n") && chart.contains(">cameras</text>"), "{chart}");
}

#[test]
fn a_server_that_nobody_watches_is_measured_too() {
    let directory = Directory::new("unwatched");
    let (all, table) = quick(&directory, &["--servers", "floor", "--players", "0", "--frames", "whole"]);
    assert_eq!(all.len(), 2, "{table}");
    for one in &all {
        // It pulls its cameras nevertheless.
        assert!(number(one, "/report/server/reads") > 0.0 && number(one, "/report/server/cpu_percent") > 0.0, "{one}");
        assert_eq!(number(one, "/clients"), 0.0, "{one}");
    }
    assert!(table.contains("### no player, whole frames\n") && table.contains("| 5 | floor |"), "{table}");
}

#[test]
fn what_a_fleet_cannot_measure_is_refused_at_once_with_its_cause() {
    let directory = Directory::new("refused");
    for (arguments, said) in [
        (&["--servers", "uring", "--relay", "/nowhere/rtsprelay"][..], "the relay is not at /nowhere/rtsprelay"),
        (&["--servers", "floor", "--rounds", "0", "--cameras", "0"], "each number of --cameras"),
        (&["--servers", "floor", "--workers", "0"], "give the number of shards"),
        (&["--servers", "floor", "--peer", "floor=x {port} {sources}"], "two servers have the name \"floor\""),
        (&["--servers", "floor", "--peer", "x=/nowhere/at {port} {sources}"], "cannot start /nowhere/at"),
    ] {
        // The quick run has its own numbers of cameras.
        let mut command = fleet(&directory.0, arguments);
        if arguments.contains(&"0") {
            command = Command::new(BENCH);
            command.args(["fleet", "--out"]).arg(&directory.0).args(arguments).stdin(Stdio::null());
        }
        let output = command.output().expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.code() == Some(1) && text.contains(said), "{arguments:?}: {text}");
    }
}

/// The scripts for other servers configure every camera, at the requested address.
#[test]
fn other_servers_are_told_of_every_camera() {
    let directory = Directory::new("peers");
    let sources = directory.file("sources");
    fs::write(&sources, "rtsp://127.0.0.1:9/cam0\nrtsp://127.0.0.1:9/cam1\n").expect("it can be written");
    // A stand-in for the server: it prints its configuration, which is the last argument.
    let program = directory.file("server");
    fs::write(&program, "#!/bin/sh\nfor last; do :; done\ncat \"$last\"\nrm \"$last\"\n").expect("it can be written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("it is ours");
    let script = format!("{}/peers/many.py", env!("CARGO_MANIFEST_DIR"));
    for (kind, listen, streams) in
        [("go2rtc", "/rtsp/listen", "/streams/cam1"), ("mediamtx", "/rtspAddress", "/paths/cam1/source")]
    {
        let mut command = Command::new("python3");
        let output = command.args([&script, kind, &program, "7", &sources]).output().expect("Python runs");
        let why = String::from_utf8_lossy(&output.stderr);
        let configuration: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {why}"));
        let told = |path| configuration.pointer(path).and_then(Value::as_str);
        assert_eq!((told(listen), told(streams)), (Some("127.0.0.1:7"), Some("rtsp://127.0.0.1:9/cam1")));
    }
}
