//! Egress: from shared chunks into clients' sockets, behind one trait; and ingress, the way back.
//!
//! A shard queues at most one operation per client with [`Egress::send`] or [`Egress::send_datagrams`], sees to it with
//! [`Egress::flush`] that the kernel has them all, and takes what has completed with [`Egress::reap`]. An operation owns the
//! buffers it sends from until its [`Completion`] has been reaped.

mod conn;
mod epoll;
#[cfg(test)]
mod forget_tests;
pub mod probe;
pub mod runtime;
#[cfg(test)]
mod shortage_tests;
pub mod sim;
#[cfg(test)]
mod tests;
mod uring;
mod uring_clock;
mod uring_hold;
mod uring_id;
mod uring_left;
mod uring_moments;
mod uring_refusals;
mod uring_slot;
#[cfg(test)]
mod zero_copy_tests;

use std::cell::OnceCell;
use std::io;
use std::net::SocketAddr;
use std::ops::{AddAssign, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;

pub use self::conn::{Listener, datagram_pair};
pub use self::epoll::EpollEgress;
pub use self::runtime::IoKind;
pub use self::uring::UringEgress;
use crate::stream::chunk::{Chunk, Run, Span};
use crate::tls::Secured;

/// Whether sends lend their pages to the kernel (`SEND_ZC`) instead of having them copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Large sends to other machines do, until the kernel says that it copied all the same.
    #[default]
    Auto,
    /// All TCP sends do.
    On,
    /// None does.
    Off,
}

/// A client's place in its shard, with the generation that tells it from the client that had the place before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Index of the client in its shard.
    pub slot: u32,
    /// Times that the slot has been given out before.
    pub generation: u32,
}

/// Bytes to send over TCP: of a chunk that the shard's clients share, or of one client alone. Cloning one touches no count that
/// another shard touches.
#[derive(Clone, Debug)]
pub struct Piece(Rc<Bytes>);

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Piece(Rc::new(bytes))
    }
}

impl Piece {
    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Bytes in the piece.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

/// A chunk as UDP clients are sent it; made once per shard and chunk, shared by the clients.
#[derive(Debug)]
pub struct Datagrams {
    /// The chunk's bytes. Private, because the vectors point at them: nobody may put others in their place.
    bytes: Bytes,
    /// Where each packet lies.
    pub packets: Box<[Span]>,
    /// The packets cut into runs.
    pub runs: Box<[Run]>,
    vectors: OnceCell<Box<[libc::iovec]>>,
}

impl Datagrams {
    /// Packets that lie in `bytes` where `packets` says, one after the other in `runs`.
    pub fn new(bytes: Bytes, packets: Box<[Span]>, runs: Box<[Run]>) -> Self {
        Datagrams { bytes, packets, runs, vectors: OnceCell::new() }
    }

    /// The packets of `chunk`.
    pub fn of(chunk: &Chunk) -> Self {
        Datagrams::new(chunk.bytes.clone(), chunk.packets.clone(), chunk.runs.clone())
    }

    /// The chunk's bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes of one packet.
    pub fn packet(&self, span: &Span) -> &[u8] {
        &self.bytes[span.offset as usize..][..usize::from(span.len)]
    }

    /// One I/O vector a packet, made when the first client needs them. They are good as long as these datagrams are there.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        self.vectors.get_or_init(|| {
            let vector =
                |packet: &[u8]| libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            self.packets.iter().map(|span| vector(self.packet(span))).collect()
        })
    }

    /// How many messages it takes to send them: one a run, or one a packet if `plain`.
    pub(crate) fn messages_count(&self, plain: bool) -> usize {
        if plain { self.packets.len() } else { self.runs.len() }
    }

    /// The packets of one message by their index, and the segment size if it takes `UDP_SEGMENT` to part them.
    pub(crate) fn message(&self, index: usize, plain: bool) -> (Range<usize>, Option<u16>) {
        if plain {
            return (index..index + 1, None);
        }
        let run = self.runs[index];
        let first = usize::from(run.first);
        (first..first + usize::from(run.count), (run.count > 1).then_some(run.segment))
    }
}

/// The error of a message of datagrams; what kernels say of a segment larger than the path's MTU (`EINVAL` before Linux 6.14)
/// and of a route that cannot segment (`EIO`) becomes `EMSGSIZE`.
fn datagram_errno(errno: i32, segment: Option<u16>) -> i32 {
    match errno {
        libc::EINVAL | libc::EIO if segment.is_some() => libc::EMSGSIZE,
        errno => errno,
    }
}

/// Whether the error says that the system is short of something just now, mostly memory; what failed may be tried again later.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN))
}

/// What is left of the pieces when the first `sent` bytes are gone.
fn rest_of(pieces: impl Iterator<Item = Piece>, mut sent: usize) -> Vec<Piece> {
    let rest = pieces.filter_map(|piece| {
        let gone = sent.min(piece.len());
        sent -= gone;
        match &piece {
            _ if gone == 0 => Some(piece),
            _ if gone == piece.len() => None,
            Piece(bytes) => Some(bytes.slice(gone..).into()),
        }
    });
    rest.collect()
}

/// A client's connection as both egress and ingress use it. The descriptor closes with the last clone. It is a TCP connection or,
/// for a client that speaks TLS, a local stream socket with the TCP connection beside it.
#[derive(Clone)]
pub enum Conn {
    /// Read through tokio-uring.
    Uring(Rc<tokio_uring::net::TcpStream>, Option<Arc<Secured>>),
    /// Read through tokio's epoll.
    Epoll(Rc<tokio::net::TcpStream>, Option<Arc<Secured>>),
    /// No descriptor at all: the scripted egress of the tests knows clients by their token.
    Scripted,
}

/// A UDP socket that several clients share.
#[derive(Clone)]
pub enum Datagram {
    /// Read through tokio-uring.
    Uring(Rc<tokio_uring::net::UdpSocket>),
    /// Read through tokio's epoll.
    Epoll(Rc<tokio::net::UdpSocket>),
    /// As [`Conn::Scripted`].
    Scripted,
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Whose operation it was.
    pub token: Token,
    /// Bytes put into the socket. Over TCP fewer than asked for only after [`Egress::cancel`]; over UDP the bytes of all runs
    /// before the first that failed.
    pub bytes: usize,
    /// The error that ended it early: of a TCP connection (`ECANCELED` after a cancel), or of the first UDP run that failed.
    pub error: Option<io::Error>,
    /// When the egress learnt of it; `None`: at the beginning of the [`Egress::reap`] that gives it.
    pub at: Option<Instant>,
    /// Over UDP: the path took no run of several packets (`EMSGSIZE`), and they went one by one instead.
    pub unsegmented: bool,
}

/// Sends for one shard. Implementations live on the shard's thread and are not `Send`.
pub trait Egress {
    /// Queues all of `pieces` as one operation on a TCP connection, and leaves the vector empty (its capacity is reused).
    ///
    /// The operation completes when everything is in the socket, on an error, or after [`Egress::cancel`]; the client's
    /// blocking delays nobody else. `pieces` are at most [`OP_IOVECS_MAX`](crate::limits::OP_IOVECS_MAX), none empty.
    ///
    /// `apart` keeps the next operation's bytes out of this one's last segment (`MSG_EOR`): a segment not sent yet is otherwise
    /// filled up, to 64 KiB, whatever `TCP_NOTSENT_LOWAT` says.
    fn send(&mut self, token: Token, conn: &Conn, pieces: &mut Vec<Piece>, apart: bool);

    /// Queues a chunk's runs as one operation of datagrams to `to`. Never blocks: what the socket does not take at once
    /// fails. After a run that failed no further run of the operation is sent.
    ///
    /// `plain` asks for one datagram a packet without `UDP_SEGMENT`, for a path that refuses runs. When one is refused with
    /// `EMSGSIZE` (as every refusal is taken that comes of the segmentation), its packets and those after it are sent so too,
    /// and the completion says so. One packet alone that is too large is a run that failed.
    fn send_datagrams(&mut self, token: Token, socket: &Datagram, to: SocketAddr, chunk: &Rc<Datagrams>, plain: bool);

    /// The clients of two slots are about to send, `next` and then `soon`: what is kept for them may be brought into the cache, of
    /// `next` also what a call for it as `soon` has made known the place of.
    fn prefetch(&self, _soon: u32, _next: u32) {}

    /// Hands to the kernel what it does not have yet of what was queued, in the order of queueing.
    fn flush(&mut self);

    /// Moves completions of operations to the end of `out`, at most `max` of them, without waiting.
    fn reap(&mut self, max: usize, out: &mut Vec<Completion>);

    /// Asks for the operation of `token` to end soon; its completion still comes, with what had been sent. No operation in
    /// flight: nothing happens.
    fn cancel(&mut self, token: Token);

    /// What a connection's operation did not get into its socket, when its completion has told of a shortage ([`is_shortage`]); to
    /// be taken then, and sent again later or dropped. Nothing after any other error.
    fn take_unsent(&mut self, _token: Token) -> Vec<Piece> {
        Vec::new()
    }

    /// Whether there may be completions to reap; registers the waker otherwise.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the client has an operation whose completion has not been reaped yet.
    fn is_busy(&self, token: Token) -> bool;

    /// Whether the kernel still reads bytes of the client's operations that have completed (zero copy). Its connection is then
    /// to be closed with a reset, for else the kernel would keep them for as long as it tries to deliver them.
    fn holds(&self, _token: Token) -> bool {
        false
    }

    /// The client is no more, and has no operation in flight: lets go of what was kept for its next one, its connection among it.
    fn forget(&mut self, _token: Token) {}

    /// Whether the system takes no operations at present: they wait, and their clients are not to blame.
    fn is_refused(&self) -> bool {
        false
    }

    /// Operations queued or under way.
    fn in_flight(&self) -> usize;

    /// Counts since the start.
    fn stats(&self) -> EgressStats;
}

/// What an egress has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressStats {
    /// Operations completed.
    pub operations: u64,
    /// System calls that handed operations over (`io_uring_enter`; one a send for epoll).
    pub submits: u64,
    /// Of those the ones that the kernel refused because it was short of memory.
    pub submits_refused: u64,
    /// Zero-copy sends of which the kernel has said that it copied nothing.
    pub zero_copy: u64,
    /// Zero-copy sends that the kernel copied all the same.
    pub zero_copy_copied: u64,
    /// Zero-copy sends that it refused and that were sent again with a copy.
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
