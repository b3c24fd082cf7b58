//! Which system calls a server makes, as the kernel counts them at its tracepoints (`perf stat`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fanout::children::Process;

/// Seconds that are counted.
const SECONDS: f64 = 1.5;

/// Seconds that the players play: longer than usual, because perf needs time to start and stop.
const PLAY_SECONDS: f64 = 5.0;

/// The system calls of each kind. A kernel for another processor has no `epoll_wait`.
const KINDS: [(&str, &[&str]); 6] = [
    ("read", &["read", "readv", "recvfrom", "recvmsg"]),
    ("write", &["write", "writev", "sendto", "sendmsg"]),
    #[cfg(target_arch = "x86_64")]
    ("epoll_wait", &["epoll_wait", "epoll_pwait"]),
    #[cfg(not(target_arch = "x86_64"))]
    ("epoll_wait", &["epoll_pwait"]),
    ("io_uring_enter", &["io_uring_enter"]),
    ("epoll_ctl", &["epoll_ctl"]),
    ("futex", &["futex"]),
];

/// The event of all system calls.
const ALL: &str = "raw_syscalls:sys_enter";

/// Whether calls can be counted here.
pub fn check() -> Result<(), String> {
    let cure =
        "install perf, and be root or set kernel.perf_event_paranoid to -1 with tracefs readable, or leave --calls out";
    match perf(&["-e", ALL, "--", "true"]) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("--calls: {error}; {cure}")),
    }
}

fn perf(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ","]).args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("cannot start perf: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("perf: {}", text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason")))
    }
}

/// Counts the calls of a server while its players play, per frame of a camera, of which `frames_a_second` arrive.
pub fn count(
    pid: i32,
    urls: &[String],
    clients: usize,
    cpu: Option<usize>,
    frames_a_second: f64,
    log: &Path,
) -> Result<BTreeMap<String, f64>, String> {
    let mut arguments: Vec<String> =
        ["load", "--json", "--quiet", "--announce", "--warmup=500ms"].map(String::from).into();
    arguments.extend([format!("--seconds={PLAY_SECONDS}"), format!("--clients={clients}")]);
    arguments.extend(urls.iter().map(|url| format!("--url={url}")));
    let mut load = Process::own("load", cpu, &arguments, log)?;
    match load.first_line()?.as_str() {
        "measuring" => {}
        other => return Err(format!("load did not begin: {other}")),
    }
    let events: Vec<String> =
        KINDS.iter().flat_map(|kind| kind.1).map(|name| format!("syscalls:sys_enter_{name}")).collect();
    let events = format!("{ALL},{}", events.join(","));
    let text = perf(&["-e", &events, "-p", &pid.to_string(), "--", "sleep", &SECONDS.to_string()])?;
    if load.ended() {
        return Err("the players had ended before their server's calls were counted".into());
    }
    let frames = frames_a_second * SECONDS;
    Ok(kinds(&text).into_iter().map(|(kind, calls)| (kind, calls as f64 / frames)).collect())
}

/// What perf printed, by kinds, with all calls as `all`.
fn kinds(text: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        // COUNT,UNIT,EVENT,…
        let mut fields = line.split(',');
        let Some(count) = fields.next().and_then(|count| count.parse::<u64>().ok()) else { continue };
        let event = fields.nth(1).unwrap_or_default();
        let name = event.strip_prefix("syscalls:sys_enter_").unwrap_or_default();
        let kind = KINDS.iter().find(|kind| kind.1.contains(&name)).map(|kind| kind.0);
        if let Some(kind) = kind.or((event == ALL).then_some("all")) {
            *counts.entry(kind.to_string()).or_default() += count;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_kinds() {
        let text = "# started\n\n100,,raw_syscalls:sys_enter,1501,100.00,,\n7,,syscalls:sys_enter_read,1,100.00,,\n\
                    5,,syscalls:sys_enter_recvfrom,1,100.00,,\n<not counted>,,syscalls:sys_enter_futex,0,0.00,,\n";
        let counts = kinds(text);
        assert_eq!((counts["all"], counts["read"], counts.len()), (100, 12, 2));
    }
}
