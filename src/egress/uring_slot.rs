//! What the kernel reads of an operation while it is under way: one slot a client, its memory used again and again.
#![allow(unsafe_code)]

use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::ptr;
use std::rc::{Rc, Weak};

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use socket2::SockAddr;

use super::uring_id::{Tag, UserData};
use super::{Datagrams, Piece, Token};
use crate::limits::DATAGRAM_RUNS_QUEUED_MAX;

/// Entries above which a slot's vector is given back after its operation.
const KEPT_ENTRIES_MAX: usize = 16;

/// A client's operation and the memory that it lives in.
///
/// Everything that a submitted entry points at is on the heap behind a slot's vectors and boxes, so a slot may move; and none
/// of it changes or goes between the submission and the last completion.
pub(super) struct Slot {
    pub token: Token,
    pub state: State,
    pieces: Vec<Piece>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<Message>,
    to: Option<Box<SockAddr>>,
}

pub(super) enum State {
    Idle,
    Stream(StreamOp),
    Datagrams(DatagramsOp),
}

/// A send on a TCP connection.
pub(super) struct StreamOp {
    /// Keeps the descriptor open.
    stream: Rc<tokio_uring::net::TcpStream>,
    total: usize,
    pub sent: usize,
    pub cancelled: bool,
}

/// A chunk's datagrams to one address.
pub(super) struct DatagramsOp {
    /// Keeps the descriptor open.
    socket: Rc<tokio_uring::net::UdpSocket>,
    chunk: Rc<Datagrams>,
    packets: Rc<[libc::iovec]>,
    plain: bool,
    /// The first message that has not been queued.
    next: usize,
    /// Messages queued and not completed.
    queued: usize,
    pub sent: usize,
    pub error: Option<i32>,
}

/// A message header and the control data it points at.
struct Message {
    header: libc::msghdr,
    control: SegmentControl,
}

/// The control message `UDP_SEGMENT` (udp(7)).
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment: u16,
    pad: [u8; size_of::<usize>() - size_of::<u16>()],
}

// SAFETY: these only compute sizes.
const CONTROL_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;
// SAFETY: as above.
const CONTROL_LEN: usize = unsafe { libc::CMSG_LEN(size_of::<u16>() as u32) } as usize;
const _: () = assert!(size_of::<SegmentControl>() == CONTROL_SPACE);

/// What became of an operation after one of its completions.
pub(super) enum Outcome {
    /// Another completion will come.
    Waiting,
    /// [`Slot::next_entries`] has more to queue.
    More,
    /// It is over: the bytes sent, and the error that ended it early.
    Done(usize, Option<i32>),
}

impl Slot {
    pub fn new() -> Slot {
        Slot {
            token: Token { slot: 0, generation: 0 },
            state: State::Idle,
            pieces: Vec::new(),
            iovecs: Vec::new(),
            messages: Vec::new(),
            to: None,
        }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether a send is under way that has been asked to end.
    pub fn is_cancelled(&self) -> bool {
        matches!(&self.state, State::Stream(op) if op.cancelled)
    }

    pub fn begin_stream(&mut self, token: Token, stream: Rc<tokio_uring::net::TcpStream>, pieces: &mut Vec<Piece>) {
        assert!(self.is_idle(), "an idle client has no operation in flight");
        self.token = token;
        self.pieces.append(pieces);
        let total = self.pieces.iter().map(Piece::len).sum();
        self.state = State::Stream(StreamOp { stream, total, sent: 0, cancelled: false });
    }

    pub fn begin_datagrams(
        &mut self,
        token: Token,
        socket: Rc<tokio_uring::net::UdpSocket>,
        to: SocketAddr,
        chunk: Rc<Datagrams>,
        packets: Rc<[libc::iovec]>,
        plain: bool,
    ) {
        assert!(self.is_idle(), "an idle client has no operation in flight");
        self.token = token;
        match &mut self.to {
            Some(place) => **place = to.into(),
            None => self.to = Some(Box::new(to.into())),
        }
        self.state =
            State::Datagrams(DatagramsOp { socket, chunk, packets, plain, next: 0, queued: 0, sent: 0, error: None });
    }

    /// Gives `out` the entries that the operation has to queue next, linked to one another. They point into the slot.
    pub fn next_entries(&mut self, out: &mut Vec<Entry>) {
        match self.state {
            State::Idle => {}
            State::Stream(_) => out.push(self.stream_entry()),
            State::Datagrams(_) => self.message_entries(out),
        }
    }

    fn stream_entry(&mut self) -> Entry {
        let State::Stream(op) = &self.state else { unreachable!("asked for a stream's operation alone") };
        let fd = types::Fd(op.stream.as_raw_fd());
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = if let [piece] = &self.pieces[..] {
            let rest = &piece.as_slice()[op.sent..];
            opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32).flags(flags).build()
        } else {
            self.iovecs.clear();
            // Only after a send that the kernel ended early is there anything to leave out.
            let mut skip = op.sent;
            for piece in &self.pieces {
                let bytes = piece.as_slice();
                let skipped = skip.min(bytes.len());
                skip -= skipped;
                if skipped < bytes.len() {
                    self.iovecs.push(iovec(&bytes[skipped..]));
                }
            }
            self.messages.clear();
            let mut message = Message::new(None);
            message.header.msg_iov = self.iovecs.as_mut_ptr();
            message.header.msg_iovlen = self.iovecs.len() as _;
            self.messages.push(message);
            opcode::SendMsg::new(fd, &raw const self.messages[0].header).flags(flags as u32).build()
        };
        entry.user_data(UserData { tag: Tag::Stream, token: self.token }.pack())
    }

    fn message_entries(&mut self, out: &mut Vec<Entry>) {
        let State::Datagrams(op) = &mut self.state else { unreachable!("asked for datagrams alone") };
        let to = self.to.as_ref().expect("set with the operation");
        debug_assert_eq!(op.queued, 0, "the kernel still reads the messages");
        let end = op.chunk.messages_count(op.plain).min(op.next + DATAGRAM_RUNS_QUEUED_MAX);
        self.messages.clear();
        // No push below may move a message that an entry points at.
        self.messages.reserve(end - op.next);
        let id = UserData { tag: Tag::Message, token: self.token }.pack();
        for index in op.next..end {
            let (packets, segment) = op.chunk.message(index, op.plain);
            self.messages.push(Message::new(segment));
            let message = self.messages.last_mut().expect("just pushed");
            message.header.msg_name = to.as_ptr().cast_mut().cast();
            message.header.msg_namelen = to.len();
            message.header.msg_iov = op.packets[packets.clone()].as_ptr().cast_mut();
            message.header.msg_iovlen = packets.len() as _;
            if segment.is_some() {
                message.header.msg_control = (&raw mut message.control).cast();
                message.header.msg_controllen = CONTROL_SPACE as _;
            }
            let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32;
            let entry = opcode::SendMsg::new(types::Fd(op.socket.as_raw_fd()), &raw const message.header);
            // A link that fails fails all that follow it.
            let link = if index + 1 < end { Flags::IO_LINK } else { Flags::empty() };
            out.push(entry.flags(flags).build().flags(link).user_data(id));
        }
        op.queued = end - op.next;
        op.next = end;
    }

    /// Takes in the result of one completion.
    pub fn complete(&mut self, result: i32) -> Outcome {
        let outcome = match &mut self.state {
            State::Idle => unreachable!("a completion without an operation"),
            State::Stream(op) => op.complete(result),
            State::Datagrams(op) => op.complete(result),
        };
        if let Outcome::Done(..) = outcome {
            self.state = State::Idle;
            self.pieces.clear();
            self.pieces.shrink_to(KEPT_ENTRIES_MAX);
            self.iovecs.clear();
            self.iovecs.shrink_to(KEPT_ENTRIES_MAX);
            self.messages.clear();
        }
        outcome
    }
}

impl StreamOp {
    fn complete(&mut self, result: i32) -> Outcome {
        match result {
            // A request that has not been cancelled goes on after an interruption …
            _ if -result == libc::EINTR && !self.cancelled => return Outcome::More,
            _ if -result == libc::EINTR => return Outcome::Done(self.sent, Some(libc::ECANCELED)),
            ..0 => return Outcome::Done(self.sent, Some(-result)),
            0 => return Outcome::Done(self.sent, Some(libc::EPIPE)),
            1.. => self.sent += result as usize,
        }
        if self.sent == self.total {
            Outcome::Done(self.sent, None)
        } else if self.cancelled {
            Outcome::Done(self.sent, Some(libc::ECANCELED))
        } else {
            // … and after a part, which tells that an error follows (or of a kernel before 5.19, that ignores MSG_WAITALL).
            Outcome::More
        }
    }
}

impl DatagramsOp {
    fn complete(&mut self, result: i32) -> Outcome {
        self.queued -= 1;
        if result >= 0 {
            self.sent += result as usize;
        } else if self.error.is_none_or(|error| error == libc::ECANCELED) {
            // The message that failed tells why, those linked to it that they were cancelled.
            self.error = Some(-result);
        }
        if self.queued > 0 {
            Outcome::Waiting
        } else if self.error.is_none() && self.next < self.chunk.messages_count(self.plain) {
            Outcome::More
        } else {
            Outcome::Done(self.sent, self.error)
        }
    }
}

impl Message {
    fn new(segment: Option<u16>) -> Message {
        Message {
            // SAFETY: null pointers and zero lengths are an empty message header.
            header: unsafe { mem::zeroed() },
            control: SegmentControl::new(segment.unwrap_or(0)),
        }
    }
}

impl SegmentControl {
    fn new(segment: u16) -> SegmentControl {
        // SAFETY: a header of integers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = CONTROL_LEN as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        SegmentControl { header, segment, pad: Default::default() }
    }
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Chunks whose packets' vectors are remembered: a few streams and tracks come in turn.
const REMEMBERED: usize = 8;

/// The weak pointer keeps the address from being used again, not the bytes.
type Remembered = (Weak<Datagrams>, Rc<[libc::iovec]>);

/// The I/O vectors of the newest chunks' packets, which all clients of a chunk share.
#[derive(Default)]
pub(super) struct PacketVectors {
    remembered: [Option<Remembered>; REMEMBERED],
    oldest: usize,
}

impl PacketVectors {
    /// One vector a packet. They are good as long as `chunk` is held.
    pub fn of(&mut self, chunk: &Rc<Datagrams>) -> Rc<[libc::iovec]> {
        let found = self.remembered.iter().flatten().find(|(key, _)| ptr::eq(key.as_ptr(), Rc::as_ptr(chunk)));
        if let Some((_, vectors)) = found {
            return vectors.clone();
        }
        let vectors: Rc<[libc::iovec]> = chunk.packets.iter().map(|span| iovec(chunk.packet(span))).collect();
        self.remembered[self.oldest] = Some((Rc::downgrade(chunk), vectors.clone()));
        self.oldest = (self.oldest + 1) % REMEMBERED;
        vectors
    }
}
