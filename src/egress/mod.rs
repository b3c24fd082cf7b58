//! Egress sends shared chunks to clients' sockets, behind the trait [`Egress`]; ingress is the receiving side.
//!
//! A shard queues at most one operation per client with [`Egress::send`] or [`Egress::send_datagrams`], submits them with
//! [`Egress::flush`], and collects completions with [`Egress::reap`]. An operation owns the buffers that it sends from until its
//! [`Completion`] has been reaped.

#[cfg(test)]
mod beside_tests;
mod conn;
mod control;
mod epoll;
pub mod probe;
mod ready;
#[cfg(test)]
mod route_tests;
pub mod runtime;
mod secured;
#[cfg(feature = "testing")]
pub mod sim;
#[cfg(test)]
mod tests;
mod uring;
mod valve;

use std::io;
use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use self::conn::{Listener, datagram_pair};
pub use self::control::Route;
pub use self::epoll::EpollEgress;
pub use self::ready::Ready;
pub use self::runtime::IoKind;
pub use self::secured::Secured;
pub use self::uring::UringEgress;
pub use self::valve::Valve;
pub use crate::media::rendering::{Datagrams, Piece};

/// Whether sends lend their pages to the kernel (`SEND_ZC`) instead of having it copy them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Large sends to other machines, until the kernel reports that it copied them anyway.
    #[default]
    Auto,
    /// All TCP sends do.
    On,
    /// None does.
    Off,
}

/// Identifies a client in its shard: an index, and a generation that distinguishes it from earlier clients with that index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Index of the client in its shard.
    pub slot: u32,
    /// How often the index was used before.
    pub generation: u32,
}

/// The error of a datagram message. What kernels return for a segment larger than the path's MTU (`EINVAL` before Linux 6.14) and for a
/// route that cannot segment (`EIO`) becomes `EMSGSIZE`.
fn datagram_errno(errno: i32, segment: Option<u16>) -> i32 {
    match errno {
        libc::EINVAL | libc::EIO if segment.is_some() => libc::EMSGSIZE,
        errno => errno,
    }
}

/// Whether the error means that the system is temporarily short of something, usually memory, and the operation may be retried.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN))
}

/// The rest of the pieces after the first `sent` bytes.
fn rest_of(pieces: impl Iterator<Item = Piece>, mut sent: usize) -> Vec<Piece> {
    let rest = pieces.filter_map(|piece| {
        let gone = sent.min(piece.len());
        sent -= gone;
        match gone {
            0 => Some(piece),
            _ if gone == piece.len() => None,
            _ => Some(piece.without_first(gone)),
        }
    });
    rest.collect()
}

/// A client's connection, shared by egress and ingress. The descriptor closes with the last clone. It is a TCP connection or, for a TLS
/// client, a local stream socket together with the TCP connection.
#[derive(Clone)]
pub enum Conn {
    /// Sent on through a ring.
    Uring(Rc<Ready>, Option<Arc<Secured>>),
    /// Sent on with separate system calls.
    Epoll(Rc<tokio::net::TcpStream>, Option<Arc<Secured>>),
    /// No descriptor: the scripted egress of the tests identifies clients by their token.
    #[cfg(feature = "testing")]
    Scripted,
}

/// A UDP socket shared by several clients.
#[derive(Clone)]
pub enum Datagram {
    /// Sent on through a ring.
    Uring(Rc<Ready>),
    /// Sent on with separate system calls.
    Epoll(Rc<tokio::net::UdpSocket>),
    /// As [`Conn::Scripted`].
    #[cfg(feature = "testing")]
    Scripted,
}

/// The result of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Whose operation it was.
    pub token: Token,
    /// Bytes put into the socket. For TCP, fewer than requested only after [`Egress::cancel`] or an error; for UDP, the bytes of all
    /// runs before the first that failed.
    pub bytes: usize,
    /// The error that ended it early: for TCP (`ECANCELED` after a cancel), or for the first UDP run that failed.
    pub error: Option<io::Error>,
    /// When the egress learned of it; `None`: at the start of the [`Egress::reap`] that returns it.
    pub at: Option<Instant>,
    /// For UDP: the path accepted no run of several packets (`EMSGSIZE`), so they were sent one by one.
    pub unsegmented: bool,
}

/// Sends for one shard. Implementations live on the shard's thread and are not `Send`. Methods without a default body are what a new
/// egress must implement.
pub trait Egress {
    /// Queues `pieces` as one operation on a TCP connection, and leaves the vector empty (its capacity is reused).
    ///
    /// The operation completes when everything is in the socket, on an error, or after [`Egress::cancel`]; a client that blocks does
    /// not delay others. There are at most [`OP_IOVECS_MAX`](crate::limits::OP_IOVECS_MAX) `pieces`, none empty.
    ///
    /// `apart` keeps the next operation's bytes out of this one's last segment (`MSG_EOR`): otherwise an unsent segment is filled up,
    /// to 64 KiB, whatever `TCP_NOTSENT_LOWAT` says.
    fn send(&mut self, token: Token, conn: &Conn, pieces: &mut Vec<Piece>, apart: bool);

    /// Queues a chunk's runs as one operation of datagrams along `route`. Never blocks: what the socket does not accept at once fails.
    /// After a failed run, no further run of the operation is sent.
    ///
    /// `plain` requests one datagram per packet without `UDP_SEGMENT`, for a path that refuses runs. When a run is refused with
    /// `EMSGSIZE` (which stands for every refusal caused by segmentation), its packets and the following ones are sent singly too, and
    /// the completion says so. A single packet that is too large is a failed run.
    fn send_datagrams(&mut self, token: Token, socket: &Datagram, route: Route, chunk: &Rc<Datagrams>, plain: bool);

    /// The clients of two slots are about to send, first `next`, then `soon`. The implementation may prefetch their data: for `next`
    /// also what an earlier call with it as `soon` has located.
    fn prefetch(&self, _soon: u32, _next: u32) {}

    /// Submits everything that was queued and not yet submitted to the kernel, in order.
    fn flush(&mut self);

    /// Appends completions to `out`, at most `max` of them, without waiting.
    fn reap(&mut self, max: usize, out: &mut Vec<Completion>);

    /// Requests that the operation of `token` ends soon; its completion still arrives, with what was sent. Does nothing if no operation
    /// is in flight.
    fn cancel(&mut self, token: Token);

    /// The part of a connection's operation that was not sent, if its completion reported a shortage ([`is_shortage`]) or a cancel
    /// (`ECANCELED`); the caller takes it then, and sends it later or drops it. Empty after any other error.
    fn take_unsent(&mut self, _token: Token) -> Vec<Piece> {
        Vec::new()
    }

    /// Whether there may be completions to reap; otherwise registers the waker.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the client has an operation whose completion was not reaped yet.
    fn is_busy(&self, token: Token) -> bool;

    /// Whether the kernel still reads bytes of the client's completed operations (zero copy). Its connection must then be closed with a
    /// reset, or the kernel would hold them for as long as it tries to deliver them.
    fn holds(&self, _token: Token) -> bool {
        false
    }

    /// The client is gone and has no operation in flight: releases what was kept for its next one, including its connection.
    fn forget(&mut self, _token: Token) {}

    /// Whether the system accepts no operations at present: they wait, and this is not the clients' fault.
    fn is_refused(&self) -> bool {
        false
    }

    /// Number of operations queued or in flight.
    fn in_flight(&self) -> usize;

    /// Counts since the start.
    fn stats(&self) -> EgressStats;
}

/// Counts since the egress was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressStats {
    /// Operations completed.
    pub operations: u64,
    /// System calls that submitted operations (`io_uring_enter`; with epoll one per send).
    pub submits: u64,
    /// Of these, the ones that the kernel refused for lack of memory.
    pub submits_refused: u64,
    /// Zero-copy sends for which the kernel reported that it copied nothing.
    pub zero_copy: u64,
    /// Zero-copy sends that the kernel copied anyway.
    pub zero_copy_copied: u64,
    /// Zero-copy sends that it refused and that were repeated with a copy.
    pub zero_copy_refused: u64,
}

impl AddAssign for EgressStats {
    fn add_assign(&mut self, other: EgressStats) {
        self.operations += other.operations;
        self.submits += other.submits;
        self.submits_refused += other.submits_refused;
        self.zero_copy += other.zero_copy;
        self.zero_copy_copied += other.zero_copy_copied;
        self.zero_copy_refused += other.zero_copy_refused;
    }
}
