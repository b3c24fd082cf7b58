//! `rtsprelay upgrade`: asks a running relay to hand everything over to the program that now lies at its path, and says what came of
//! it.
//!
//! The relay sends the outcome of each attempt to a socket that is named after its process id, if somebody listens there. Any local
//! user can send to that socket, so the command believes only the user that the relay runs as, and root; the kernel says who has sent a
//! datagram (`SO_PASSCRED`, unix(7)).

use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt};
use nix::unistd::Pid;

use super::failure::Failure;

/// How long an attempt may take: longer than the relay itself waits.
const OUTCOME_MAX: Duration = Duration::from_secs(120);

/// Interval of checks whether the relay still runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long the relay tries to send the outcome. Whoever listens may not read.
const TELL_MAX: Duration = Duration::from_millis(100);

/// Maximum size of an outcome in bytes.
const OUTCOME_BYTES_MAX: usize = 8 * 1024;

fn address(pid: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("rtsprelay-upgrade-{pid}"))
}

/// Tells whoever has asked for the attempt what came of it.
pub(super) fn tell(outcome: &Result<String, Failure>) {
    let text = match outcome {
        Ok(done) => format!("+{done}"),
        Err(why) => format!("-{why}"),
    };
    let text = &text.as_bytes()[..text.len().min(OUTCOME_BYTES_MAX)];
    // Usually nobody listens.
    let sent = || {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TELL_MAX))?;
        socket.send_to_addr(text, &address(std::process::id())?)
    };
    let _ = sent();
}

/// Upgrades the relay with that process id, or the only one that runs here; returns what it says.
///
/// # Errors
/// Why it was not upgraded, and the cure.
pub fn upgrade(pid: Option<u32>) -> Result<String, Failure> {
    let pid = pid.map_or_else(only_relay, Ok)?;
    let shown = format!("process {pid}");
    if !catches_signal(pid).ok_or_else(|| format!("there is no {shown}; give the relay's process id with --pid"))? {
        return Err(format!("{shown} is no relay, or one of a version that cannot be upgraded; restart it").into());
    }
    let user = user_of(pid).ok_or_else(|| format!("there is no {shown} any more"))?;
    let bound = address(pid).and_then(|address| UnixDatagram::bind_addr(&address));
    let socket = bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => format!("somebody else is just upgrading {shown}; wait for that"),
        _ => format!("cannot listen for the outcome ({error})"),
    })?;
    socket.set_read_timeout(Some(LOOK_EVERY)).map_err(|error| error.to_string())?;
    setsockopt(&socket, PassCred, &true).map_err(|error| format!("cannot tell who sends the outcome ({error})"))?;
    kill(Pid::from_raw(pid as i32), Signal::SIGUSR2).map_err(|error| match error {
        Errno::EPERM => format!("{shown} belongs to another user; become that user, or root"),
        error => format!("{shown} cannot be signalled ({error})"),
    })?;
    outcome(&socket, pid, user)
}

/// Whether a datagram of this user is the relay's, which runs as `user`.
fn is_believed(from: u32, user: u32) -> bool {
    from == user || from == 0
}

/// Receives a datagram, and the user who has sent it if the kernel says so.
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> nix::Result<(usize, Option<u32>)> {
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
    // It fails if more came with the datagram than credentials: the relay sends nothing else.
    let from = received.cmsgs().ok().into_iter().flatten().find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(who) => Some(who.uid()),
        _ => None,
    });
    Ok((received.bytes, from))
}

fn outcome(socket: &UnixDatagram, pid: u32, user: u32) -> Result<String, Failure> {
    let deadline = Instant::now() + OUTCOME_MAX;
    let mut buffer = [0; OUTCOME_BYTES_MAX];
    let mut ended = false;
    while Instant::now() < deadline {
        match receive(socket, &mut buffer) {
            Ok((count, Some(from))) if is_believed(from, user) => {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                return match text.strip_prefix('+') {
                    Some(done) => Ok(done.to_owned()),
                    None => Err(text.trim_start_matches('-').into()),
                };
            }
            // Somebody else's.
            Ok(_) => {}
            // What it said before it ended has been received.
            Err(_) if ended => return Err("the relay has ended and has not said why; its log does".into()),
            Err(_) => ended = catches_signal(pid).is_none(),
        }
    }
    Err("the relay has not said what came of it in time; its log does".into())
}

/// Whether a process catches SIGUSR2; `None` if there is no such process.
fn catches_signal(pid: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
    Some(caught >> (Signal::SIGUSR2 as u32 - 1) & 1 == 1)
}

/// The user that a process runs as: the real user id, which the kernel also gives for datagrams.
fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// The only relay that runs here.
fn only_relay() -> Result<u32, Failure> {
    let processes = fs::read_dir("/proc").map_err(|error| format!("/proc cannot be read ({error}); use --pid"))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let relays: Vec<u32> = pids.filter(|pid| is_relay(*pid) && *pid != std::process::id()).collect();
    match relays[..] {
        [pid] => Ok(pid),
        [] => Err("no relay runs here; start one".into()),
        _ => {
            let pids: Vec<_> = relays.iter().map(u32::to_string).collect();
            Err(format!("several relays run here ({}); choose one with --pid", pids.join(", ")).into())
        }
    }
}

fn is_relay(pid: u32) -> bool {
    let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { return false };
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let serves = line.split(|byte| *byte == 0).nth(1).is_some_and(|command| [&b"run"[..], b"demo"].contains(&command));
    name.trim() == "rtsprelay" && serves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_would_die_of_the_signal_is_left_alone() {
        assert_eq!(catches_signal(std::process::id()), Some(false));
        let why = upgrade(Some(std::process::id())).unwrap_err().to_string();
        assert!(why.contains("cannot be upgraded"), "{why}");
    }

    #[test]
    fn an_outcome_is_believed_by_who_sends_it() {
        let own = nix::unistd::getuid().as_raw();
        assert_eq!(user_of(std::process::id()), Some(own));
        assert!(is_believed(1_000, 1_000) && is_believed(0, 1_000));
        assert!(!is_believed(1_001, 1_000) && !is_believed(1_000, 0));
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_read_timeout(Some(LOOK_EVERY)).unwrap();
        setsockopt(&near, PassCred, &true).unwrap();
        far.send(b"+done").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receive(&near, &mut buffer), Ok((5, Some(own))));
        far.send(b"+done").unwrap();
        assert_eq!(outcome(&near, std::process::id(), own).unwrap(), "done");
        // Without credentials it is nobody's; the process that should say more does not exist.
        setsockopt(&near, PassCred, &false).unwrap();
        far.send(b"+done").unwrap();
        let why = outcome(&near, u32::MAX, own).unwrap_err().to_string();
        assert!(why.contains("has ended"), "{why}");
    }
}
