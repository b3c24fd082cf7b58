//! `fanout` runs the whole experiment, ends by itself, and leaves nothing behind, even if interrupted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Held while a test runs, because the tests measure and would disturb each other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory for this test.
fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rtsprelay-fanout-{name}-{}", std::process::id()))
}

/// Processes whose command line contains a word, which the test's directory makes unique.
fn processes_with(word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if text.contains(word) {
            found.push(text);
        }
    }
    found
}

/// Processes started by the experiment with this process id: the parent's id is among their arguments.
fn children_of(pid: u32) -> Vec<String> {
    processes_with(&format!("--parent {pid} "))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120), "timeout: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A CPU that this process may use.
fn cpu() -> String {
    let may = sched_getaffinity(Pid::from_raw(0)).expect("it can be asked");
    (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap_or(false)).expect("it runs on one").to_string()
}

fn quick(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rtsprelay-bench"));
    command.stdin(Stdio::null());
    let out = out.display().to_string();
    // The same CPU for both, so that the test runs on machines with one.
    let cpu = cpu();
    command.args(["fanout", "--quick", "--servers", "floor", "--server-cpu", &cpu, "--load-cpu", &cpu, "--out", &out]);
    command
}

#[test]
fn a_quick_experiment_gives_table_and_chart_and_leaves_no_process() {
    let _turn = turn();
    let out = directory("quick");
    let child = quick(&out).stdout(Stdio::null()).spawn().expect("it starts");
    let pid = child.id();
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{:?}", fs::read_to_string(out.join("results.jsonl")));
    assert_eq!(children_of(pid), Vec::<String>::new());
    let table = fs::read_to_string(out.join("table.md")).expect("the table");
    assert!(table.contains("### TCP\n") && table.contains("### UDP\n") && table.contains("| 20 | floor |"), "{table}");
    let chart = fs::read_to_string(out.join("tcp.svg")).expect("the chart");
    assert!(chart.starts_with("<svg") && chart.ends_with("</svg>\n") && chart.matches("<polyline").count() == 2);
    fs::remove_dir_all(&out).expect("it is ours");
}

#[test]
fn what_cannot_be_measured_is_refused_at_once_with_its_cause() {
    let _turn = turn();
    let out = directory("refused");
    for (arguments, said) in [
        (&["--load-cpu", "999"][..], "--load-cpu: cannot run on CPU 999"),
        (&["--relay", "/nowhere/rtsprelay", "--servers", "uring"], "the relay is not at /nowhere/rtsprelay"),
        (&["--peer", "x=rtsp://127.0.0.1:9/,999999999"], "there is no process 999999999"),
        // What a child prints is passed on.
        (&["--camera-listen", "192.0.2.1:1"], "camera ended at once: rtsprelay-bench: cannot listen at 192.0.2.1:1"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rtsprelay-bench"));
        let cpu = cpu();
        command.args(["fanout", "--quick", "--server-cpu", &cpu, "--out"]).arg(&out);
        if !arguments.contains(&"--load-cpu") {
            command.args(["--load-cpu", &cpu]);
        }
        if !arguments.contains(&"--servers") {
            command.args(["--servers", "floor"]);
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(said), "{arguments:?}: {error}");
    }
    let _ = fs::remove_dir_all(&out);
}

#[test]
fn ctrl_c_ends_the_experiment_and_everything_it_started() {
    let _turn = turn();
    let out = directory("interrupted");
    let mut child = quick(&out).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    lines.next().expect("a line").expect("readable");
    let pid = child.id();
    // Camera, paced camera, floor, load: the middle of a measurement.
    wait_until("the load", || children_of(pid).len() >= 4);
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).expect("it runs");
    for line in lines {
        line.expect("readable");
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    assert_eq!(children_of(pid), Vec::<String>::new());
    fs::remove_dir_all(&out).expect("it is ours");
}

#[test]
fn children_end_with_an_experiment_that_is_killed() {
    let _turn = turn();
    let out = directory("killed");
    let mut child = quick(&out).stdout(Stdio::null()).spawn().expect("it starts");
    let pid = child.id();
    wait_until("the cameras", || children_of(pid).len() >= 2);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    wait_until("the children's end", || children_of(pid).is_empty());
    fs::remove_dir_all(&out).expect("it is ours");
}
