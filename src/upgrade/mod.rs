//! Hands everything that a running relay has to the process of another version: what the two say to each other, and how.
//!
//! The running relay starts the other program with one end of a socket pair ([`start`]). Then, in this order:
//!
//! 1. it says which version of the format it speaks, and the other which one it accepts ([`Channel::greet`], [`Channel::greeted`]);
//! 2. [`Hello`], with the listening sockets, the shards' UDP sockets and the carriers' control connections;
//! 3. the other checks its configuration, starts its threads, and says [`Ready`];
//! 4. while all runs on, the running relay sends its logs ([`Next::Part`]);
//! 5. it freezes ([`Next::Frozen`]), and sends each shard's state, with its descriptors and what the logs have got since;
//! 6. the other says [`Taken`], and is told how long everything took ([`Spent`]);
//! 7. **one byte** ([`Channel::commit`]). Until it, the other process sends and reads nothing, and the running relay takes everything
//!    back if anything goes wrong. After it, the running relay ends without closing anything towards a client or camera.
//!
//! If it has clients over TLS it stays as their **carrier**: the keys of a connection cannot move. Then the channel becomes their
//! [`Control`].

mod channel;
mod control;
mod successor;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, io};

use serde::{Deserialize, Serialize};

pub use channel::{Channel, Received, written};
pub use control::{Control, Order};
pub use successor::Successor;

use crate::media::saved::Moment;
use crate::metrics::CountsState;
use crate::shard::saved::LogPart;
use crate::sys;

/// The version of the format that this program writes. Version 1 did not copy the logs ahead.
pub const VERSION: u32 = 2;

/// The oldest version that it reads.
pub const VERSION_OLDEST: u32 = 2;

/// A stream, as two processes compare them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamKnown {
    /// Its name.
    pub name: String,
    /// Where it comes from, without passwords.
    pub source: String,
    /// The shard that runs its source.
    pub home: u16,
    /// How it came to be, unless it is in the configuration.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// Why there is a stream that is not in the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// It was added while the relay ran, with these keys.
    Added(String),
    /// Its name was requested or published.
    Made(Made),
}

/// A stream that was created by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The pattern.
    pub pattern: String,
    /// The relays that the request for it has passed through.
    pub via: Option<String>,
    /// Whose request is being looked up.
    pub lookup: Option<IpAddr>,
    /// Whether it has been live.
    pub was_live: bool,
    /// When it will be removed, in [`Frozen`] relative to its reference, and why.
    pub due: Option<(Moment, String)>,
}

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// RTSP.
    Rtsp,
    /// RTSP over TLS.
    Rtsps,
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// A shard's UDP sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramSockets {
    /// Whether there are two for RTP and RTCP, in this order.
    pub pair: bool,
    /// The multicast groups that it sends to, with their streams' names; a socket each.
    pub groups: Vec<(String, SocketAddr)>,
}

/// What the running relay says first. With it come the listening sockets, in this order, then the shards'
/// UDP sockets, then the control connections of the carriers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// How many shards it has.
    pub shards: usize,
    /// Whether they send by io_uring.
    pub uring: bool,
    /// Its streams.
    pub streams: Vec<StreamKnown>,
    /// The listening sockets.
    pub listeners: Vec<(Purpose, SocketAddr)>,
    /// The UDP sockets, by shard.
    #[serde(default)]
    pub datagrams: Vec<DatagramSockets>,
    /// The secret of its nonces, and the age of their time, in nanoseconds.
    pub nonces: ([u8; 32], u64),
    /// How other relays know it.
    pub id: String,
    /// A time of its clock for browsers in nanoseconds of `CLOCK_MONOTONIC`, and the corresponding Unix time.
    #[serde(default)]
    pub clock: Option<(u64, Duration)>,
    /// Its process id.
    #[serde(default)]
    pub pid: u32,
    /// The carriers, oldest first. Their control connections come last, in this order.
    #[serde(default)]
    pub carriers: Vec<CarrierKnown>,
}

/// A process that carries TLS connections for the one that serves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierKnown {
    /// Its process id.
    pub pid: u32,
    /// How many connections it has, as far as it has said; 0: it has not said that it carries any.
    pub connections: usize,
}

/// The other process is ready to take over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// Its answer to [`Hello`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is ready.
    Ready(Ready),
    /// It cannot take over: why, and the cure.
    Refused(String),
}

/// What the running relay says next.
#[derive(Clone, Serialize, Deserialize)]
pub enum Next {
    /// Chunks of a stream's log, with times relative to that many nanoseconds of `CLOCK_MONOTONIC`.
    Part(u64, LogPart),
    /// Nothing is sent or read any more, and the shards' states follow.
    Frozen(Box<Frozen>),
}

/// What precedes the shards' states.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// The time that all times are relative to, in nanoseconds of `CLOCK_MONOTONIC`.
    pub reference_ns: u64,
    /// How many states follow.
    pub shards: usize,
    /// The streams, of which some may have been created since [`Hello`], and others are gone.
    pub streams: Vec<StreamKnown>,
    /// Counts that go on.
    #[serde(default)]
    pub counts: CountsState,
}

/// What the other process says after the states.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Taken {
    /// It has restored everything.
    All,
    /// It cannot: why, and the cure.
    Refused(String),
}

/// How long the parts of an upgrade took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spent {
    /// Until the other process was ready.
    pub start: Duration,
    /// Until the logs were copied.
    pub copy: Duration,
    /// From the freeze until everything was at rest.
    pub freeze: Duration,
    /// Until all states were sent.
    pub save: Duration,
    /// Until the other process had restored the rest of them.
    pub restore: Duration,
}

impl Spent {
    /// How long clients were served nothing.
    pub fn frozen(&self) -> Duration {
        self.freeze + self.save + self.restore
    }
}

/// The program at the path by which this process was started, however it has been replaced since. Ask for it at startup, because a
/// relative path depends on the working directory.
pub fn own_program() -> Option<PathBuf> {
    let called = PathBuf::from(env::args_os().next()?);
    if called.components().count() > 1 {
        return std::path::absolute(called).ok();
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(&called)).find(|program| program.is_file())
}

/// Starts the program with the arguments of this one. It becomes a child of the service manager, and finds the other end of the
/// channel with [`taken_over`].
///
/// # Errors
/// It cannot be started.
pub fn start(program: &Path) -> io::Result<(Channel, Successor)> {
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1));
    start_command(&mut command)
}

/// Starts any command so that it takes over from this process.
///
/// # Errors
/// It cannot be started.
pub fn start_command(command: &mut Command) -> io::Result<(Channel, Successor)> {
    let (near, far) = UnixStream::pair()?;
    let again = near.try_clone()?;
    let pid = sys::spawn_detached(command, far.as_fd())?;
    Ok((Channel::new(near), Successor::new(pid, again)))
}

/// The channel to the running relay that has started this process to take over from it, if one has.
pub fn taken_over() -> Option<Channel> {
    sys::handed_descriptor().map(|fd: OwnedFd| Channel::new(UnixStream::from(fd)))
}

/// The time in nanoseconds of `CLOCK_MONOTONIC`, which all processes share. [`monotonic_at`] is its exact reverse.
pub fn monotonic_ns(at: Instant) -> u64 {
    let (ns, here) = agreed();
    match at.checked_duration_since(here) {
        Some(after) => ns.saturating_add(after.as_nanos() as u64),
        None => ns.saturating_sub(here.saturating_duration_since(at).as_nanos() as u64),
    }
}

/// The time at so many nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_at(ns: u64) -> Instant {
    let (agreed, here) = agreed();
    match ns.checked_sub(agreed) {
        Some(after) => here.checked_add(Duration::from_nanos(after)),
        None => here.checked_sub(Duration::from_nanos(agreed - ns)),
    }
    .unwrap_or(here)
}

/// A moment on both clocks, always the same one: two shards write the same times into a frame's fragment, whichever way they came to them.
fn agreed() -> (u64, Instant) {
    static AGREED: OnceLock<(u64, Instant)> = OnceLock::new();
    *AGREED.get_or_init(|| {
        let one = || {
            let before = Instant::now();
            let ns = clock();
            let took = before.elapsed();
            (took, (ns, before + took / 2))
        };
        // The one that was interrupted least.
        (1..8).map(|_| one()).fold(one(), |best, next| if next.0 < best.0 { next } else { best }).1
    })
}

fn clock() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.unwrap_or_default().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_same_in_every_process() {
        let now = Instant::now();
        for at in [now, now + Duration::from_secs(5), now.checked_sub(Duration::from_secs(5)).unwrap_or(now)] {
            let ns = monotonic_ns(at);
            assert_eq!(monotonic_at(ns), at);
        }
        let before = clock();
        let ns = monotonic_ns(Instant::now());
        // The two clocks were read one after another, once.
        let off = Duration::from_millis(50).as_nanos() as u64;
        assert!((before.saturating_sub(off)..clock() + off).contains(&ns), "{before} ns, then {ns}");
    }

    #[test]
    fn a_program_is_found_by_its_path() {
        assert_eq!(own_program().as_deref(), env::current_exe().ok().as_deref());
    }
}
