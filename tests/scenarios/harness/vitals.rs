//! The resources that the relay holds at a time: system resources from /proc, clients from its own report. Used to find leaks.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::http::{get, sum, value};
use super::relay::Relay;

/// What the relay holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// RTSP connections.
    pub connections: u64,
    /// RTSP sessions.
    pub sessions: u64,
    /// Playing clients.
    pub clients: u64,
    /// Send operations that are queued or in flight.
    pub in_flight: u64,
}

impl Vitals {
    /// Reads them now. This opens an HTTP connection to the relay, which may still be counted.
    pub fn of(relay: &Relay, http: SocketAddr) -> Vitals {
        let (status, metrics) = get(http, "/metrics");
        assert_eq!(status, 200, "{metrics}");
        let count = |name: &str| value(&metrics, name) as u64;
        Vitals {
            descriptors: descriptors(relay),
            threads: entries(relay, "task").filter(|task| !is_kernels(task)).count(),
            connections: count("rtsprelay_connections "),
            sessions: count("rtsprelay_sessions "),
            clients: sum(&metrics, "rtsprelay_clients") as u64,
            in_flight: count("rtsprelay_sends_in_flight "),
        }
    }

    /// Waits until the relay holds no more than this again; panics with the difference after `deadline`.
    pub fn come_back(&self, relay: &Relay, http: SocketAddr, deadline: Duration) {
        let start = Instant::now();
        loop {
            let now = Vitals::of(relay, http);
            if now.within(self) {
                return;
            }
            assert!(start.elapsed() < deadline, "leaked after {deadline:?}:\nnow    {now:?}\nbefore {self:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn within(&self, before: &Vitals) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.connections <= before.connections
            && self.sessions <= before.sessions
            && self.clients <= before.clients
            && self.in_flight <= before.in_flight
    }
}

/// Descriptors that the relay has open.
pub fn descriptors(relay: &Relay) -> usize {
    entries(relay, "fd").count()
}

fn entries(relay: &Relay, directory: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/{directory}", relay.pid())).expect("/proc of the relay");
    entries.map(|entry| entry.expect("an entry").path())
}

/// Whether a task is a worker of io_uring, which the kernel creates and ends as it likes.
fn is_kernels(task: &Path) -> bool {
    fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("iou-"))
}

/// Memory of the relay, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident: private memory, and the parts of the program and libraries that it has touched.
    pub resident: u64,
    /// The private part of it.
    pub anonymous: u64,
}

impl Memory {
    /// Reads it now.
    pub fn of(relay: &Relay) -> Memory {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", relay.pid())).expect("/proc of the relay");
        let bytes = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name)).expect(name);
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
        };
        Memory { resident: bytes("Rss:"), anonymous: bytes("Anonymous:") }
    }
}

/// The largest resident memory of the relay so far, in bytes (`VmHWM`, proc_pid_status(5)).
pub fn peak(relay: &Relay) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("/proc of the relay");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1_024
}
