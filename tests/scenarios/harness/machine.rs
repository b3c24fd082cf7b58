//! Scenarios run in parallel, except those that measure or change the machine, which run alone.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, unshare};

use super::DEADLINE;
use super::program::run;

/// Held while a scenario runs. A file lock, so it also works between processes.
pub struct Turn {
    _gate: Option<Flock<File>>,
    _machine: Flock<File>,
}

fn lock(name: &str, how: FlockArg) -> Flock<File> {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = File::options().create(true).truncate(false).write(true).open(&path).expect("lock file");
    Flock::lock(file, how).map_err(|(_, errno)| errno).expect("flock")
}

/// Runs beside other scenarios.
pub fn beside_others() -> Turn {
    // A scenario that must run alone holds the gate while waiting, so newcomers cannot starve it.
    drop(lock("gate.lock", FlockArg::LockExclusive));
    Turn { _gate: None, _machine: lock("machine.lock", FlockArg::LockShared) }
}

/// Runs with no other scenario at the same time.
pub fn alone() -> Turn {
    let gate = lock("gate.lock", FlockArg::LockExclusive);
    Turn { _machine: lock("machine.lock", FlockArg::LockExclusive), _gate: Some(gate) }
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("/proc")) == 0
}

/// Reports that a scenario cannot run here; in CI that is a failure.
pub fn cannot_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run here: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Gives this thread and its children their own network, with loopback up and all ports free. If that is not possible,
/// reports it with [`cannot_run`] and returns `false`.
pub fn has_own_network() -> bool {
    if !is_root() {
        cannot_run("a network namespace needs root");
        return false;
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        cannot_run(&format!("a network namespace: {error}"));
        return false;
    }
    run(DEADLINE, "ip", &["link", "set", "lo", "up"]).expect_silent_success();
    true
}

/// A counter of the calling thread's network namespace: a protocol and a name in /proc/net/snmp (RFC 4022, RFC 4113).
pub fn snmp(protocol: &str, name: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("/proc/thread-self/net/snmp");
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|known| known == name).expect("the kernel counts it");
    values.split(' ').nth(at).unwrap().parse().expect("a number")
}

/// The calling thread gets only the processor time that nobody else wants. Attackers have machines of their own; here they share the relay's,
/// and a relay that waits for a processor which an attacker's program uses would count as one that the attack slows down.
pub fn only_when_idle() {
    let thread = nix::unistd::gettid().to_string();
    run(DEADLINE, "chrt", &["--idle", "--pid", "0", &thread]).expect_silent_success();
}
