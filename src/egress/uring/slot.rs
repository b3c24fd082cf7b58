//! The memory that the kernel reads during an operation: one slot per client, reused for each operation.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::rc::Rc;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, SockaddrLike};
use smallvec::SmallVec;

use super::id::{Tag, UserData};
use crate::egress::control::{Control, Route};
use crate::egress::ready::Ready;
use crate::egress::{Datagrams, Piece, Token, datagram_errno, is_shortage, rest_of};

/// A slot's vector with more entries than this is freed after its operation.
const KEPT_ENTRIES_MAX: usize = 16;

/// A client's operation and its memory.
///
/// A submitted entry points at the bytes of pieces and chunks, at the I/O vectors and at the message. All of these are on the heap, so
/// a slot may move, and none of them changes or is freed between submission and completion.
///
/// By each turn of the client, the other clients' media have evicted the slot from the cache. Therefore what the end of an operation
/// needs is in its first 64-byte line, and only the first operation touches the connection's own memory.
#[repr(C, align(64))]
pub(super) struct Slot {
    pub token: Token,
    pub state: State,
    /// The descriptor of `connection`; negative if there is none.
    fd: RawFd,
    /// The operation of datagrams continues without segmentation; reported at its end.
    pub unsegmented: bool,
    pieces: SmallVec<[Piece; 2]>,
    /// Created on first use, then kept until the slot is forgotten.
    message: Option<Box<Message>>,
    /// The client's connection, whose descriptor it keeps open from the client's first operation until the slot is forgotten.
    connection: Option<Rc<Ready>>,
    /// The index of the held pieces of an operation that lent them to the kernel.
    lent: Token,
    iovecs: Vec<libc::iovec>,
    /// See [`Egress::take_unsent`](crate::egress::Egress::take_unsent).
    pub unsent: Vec<Piece>,
    pub lending: Lending,
}

/// What the start of an operation needs from a slot.
pub(super) const SLOT_HOT_BYTES: usize = mem::offset_of!(Slot, lent);
const _: () = assert!(mem::offset_of!(Slot, message) <= 64);

/// The state of zero copy for the slot's client.
#[derive(Clone, Copy, Default)]
pub(super) struct Lending {
    /// Which client this is about; `None` before the slot's first.
    pub generation: Option<u32>,
    /// Zero copy is worth trying for its sends.
    pub allowed: bool,
    /// Sends whose notification has not arrived.
    pub held: u8,
}

pub(super) enum State {
    Idle,
    Stream(StreamOp),
    Datagrams(DatagramsOp),
}

/// A send on a TCP connection.
pub(super) struct StreamOp {
    pub total: u32,
    sent: u32,
    /// Its last segment must not contain data of the next operation.
    apart: bool,
    pub cancelled: bool,
    /// The current entry lends the pieces to the kernel. Only the first entry of an operation does.
    lent: bool,
}

/// A chunk's datagrams to one address.
///
/// Its messages are sent one after the other, the next one when the previous has completed, so that none follows a failed one. Linking
/// them (`IOSQE_IO_LINK`) does the same for slightly more CPU time (2 to 5 % with two runs per client, on a quiet machine), and
/// requires keeping chains together.
pub(super) struct DatagramsOp {
    /// Keeps the descriptor open.
    socket: Rc<Ready>,
    chunk: Rc<Datagrams>,
    sent: u32,
    /// The current or next message.
    message: u16,
    plain: bool,
}

/// A message header and what it points at besides the data.
struct Message {
    header: libc::msghdr,
    to: Address,
    /// Of datagrams alone.
    control: Control,
}

/// A message's destination, as the kernel reads it.
enum Address {
    /// The peer that the socket is connected to.
    Peer,
    V4(SockaddrIn),
    V6(SockaddrIn6),
}

/// Makes the notification of a zero-copy send say whether it copied (`IORING_SEND_ZC_REPORT_USAGE`, Linux 6.2).
const REPORT_USAGE: u16 = 1 << 3;

/// State of an operation after a completion.
pub(super) enum Outcome {
    /// [`Slot::next_entry`] continues it.
    More,
    /// It is finished: the bytes sent, and the error that ended it early.
    Done(usize, Option<i32>),
}

impl Slot {
    pub(super) fn new() -> Slot {
        Slot {
            token: Token { slot: 0, generation: 0 },
            state: State::Idle,
            fd: -1,
            unsegmented: false,
            pieces: SmallVec::new(),
            message: None,
            connection: None,
            lent: Token { slot: 0, generation: 0 },
            iovecs: Vec::new(),
            unsent: Vec::new(),
            lending: Lending::default(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether a send is in progress that has been cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(&self.state, State::Stream(op) if op.cancelled)
    }

    pub(super) fn begin_stream(&mut self, token: Token, connection: &Rc<Ready>, pieces: &mut Vec<Piece>, apart: bool) {
        assert!(self.is_idle(), "an idle client has no operation in flight");
        if !self.connection.as_ref().is_some_and(|known| Rc::ptr_eq(known, connection)) {
            self.fd = connection.as_raw_fd();
            self.connection = Some(Rc::clone(connection));
        }
        self.token = token;
        let mut total = 0;
        self.pieces.extend(pieces.drain(..).inspect(|piece| total += piece.len()));
        debug_assert!(total > 0, "an operation has something to send");
        self.state = State::Stream(StreamOp { total: total as u32, sent: 0, apart, cancelled: false, lent: false });
    }

    /// The connection for the client's operations.
    pub(super) fn connection(&self) -> Option<&Rc<Ready>> {
        self.connection.as_ref()
    }

    /// Releases the client's connection, and the memory of its operations: after a burst of clients it would lie between what others use.
    pub(super) fn forget(&mut self) {
        assert!(self.is_idle(), "a client is forgotten when its operation was joined");
        self.connection = None;
        self.fd = -1;
        self.unsent = Vec::new();
        self.message = None;
        self.iovecs = Vec::new();
        self.pieces = SmallVec::new();
    }

    /// Whether nothing of a client is left: it was forgotten, and the kernel holds nothing that it lent.
    pub(super) fn is_free(&self) -> bool {
        self.is_idle() && self.connection.is_none() && self.message.is_none() && self.lending.held == 0
    }

    /// Makes the operation that is about to be queued lend its pieces, which are held at that index.
    pub(super) fn lend(&mut self, kept: Token) {
        let State::Stream(op) = &mut self.state else { unreachable!("datagrams are never lent") };
        op.lent = true;
        self.lent = kept;
    }

    /// The pieces of a connection's operation.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The user data of the entry in flight, for a cancel.
    pub(super) fn stream_id(&self) -> UserData {
        match &self.state {
            State::Stream(op) if op.lent => UserData { tag: Tag::ZeroCopy, token: self.lent },
            _ => UserData { tag: Tag::Stream, token: self.token },
        }
    }

    /// Prefetches the message of a UDP client that is about to send.
    pub(super) fn prefetch_message(&self) {
        if self.fd < 0
            && let Some(message) = self.message.as_deref()
        {
            crate::sys::prefetch(message, size_of::<Message>());
        }
    }

    pub(super) fn begin_datagrams(
        &mut self,
        token: Token,
        socket: Rc<Ready>,
        route: &Route,
        chunk: Rc<Datagrams>,
        plain: bool,
    ) {
        assert!(self.is_idle(), "an idle client has no operation in flight");
        self.token = token;
        let message = self.message.get_or_insert_with(Message::boxed);
        message.to = route.to.into();
        message.control.set_route(route);
        self.state = State::Datagrams(DatagramsOp { socket, chunk, plain, message: 0, sent: 0 });
    }

    /// The operation's next entry; it points into the slot's memory.
    ///
    /// # Panics
    /// Without an operation.
    pub(super) fn next_entry(&mut self) -> Entry {
        match &self.state {
            State::Idle => unreachable!("nothing to queue"),
            State::Stream(_) => self.stream_entry(),
            State::Datagrams(_) => self.message_entry(),
        }
    }

    fn stream_entry(&mut self) -> Entry {
        let State::Stream(op) = &self.state else { unreachable!("asked for a stream's operation alone") };
        let fd = types::Fd(self.fd);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL | if op.apart { libc::MSG_EOR } else { 0 };
        let lent = op.lent;
        let entry = if let [piece] = &self.pieces[..] {
            let rest = &piece.as_slice()[op.sent as usize..];
            let len = rest.len() as u32;
            if lent {
                opcode::SendZc::new(fd, rest.as_ptr(), len).flags(flags).zc_flags(REPORT_USAGE).build()
            } else {
                opcode::Send::new(fd, rest.as_ptr(), len).flags(flags).build()
            }
        } else {
            self.iovecs.clear();
            // Something must be skipped only after a send that the kernel ended early.
            let mut skip = op.sent as usize;
            for piece in &self.pieces {
                let bytes = piece.as_slice();
                let skipped = skip.min(bytes.len());
                skip -= skipped;
                if skipped < bytes.len() {
                    self.iovecs.push(iovec(&bytes[skipped..]));
                }
            }
            let message = self.message.get_or_insert_with(Message::boxed);
            message.to = Address::Peer;
            message.set(&self.iovecs);
            let header = &raw const message.header;
            if lent {
                opcode::SendMsgZc::new(fd, header).flags(flags as u32).ioprio(REPORT_USAGE).build()
            } else {
                opcode::SendMsg::new(fd, header).flags(flags as u32).build()
            }
        };
        entry.user_data(self.stream_id().pack())
    }

    fn message_entry(&mut self) -> Entry {
        let State::Datagrams(op) = &self.state else { unreachable!("asked for datagrams alone") };
        let (packets, segment) = op.chunk.message(usize::from(op.message), op.plain);
        let message = self.message.as_mut().expect("made with the operation");
        message.set(&op.chunk.vectors()[packets]);
        message.set_segment(segment);
        opcode::SendMsg::new(types::Fd(op.socket.as_raw_fd()), &raw const message.header)
            .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)
            .build()
            .user_data(UserData { tag: Tag::Message, token: self.token }.pack())
    }

    /// Processes the result of a completion.
    pub(super) fn complete(&mut self, result: i32) -> Outcome {
        let outcome = match &mut self.state {
            State::Idle => unreachable!("a completion without an operation"),
            State::Stream(op) => op.complete(result),
            State::Datagrams(op) => op.complete(result, &mut self.unsegmented),
        };
        if let Outcome::Done(sent, error) = outcome {
            if let State::Stream(_) = &self.state {
                if error.is_some_and(keeps_rest) {
                    self.unsent = rest_of(self.pieces.drain(..), sent);
                }
                let len = self.pieces.len();
                self.pieces.clear();
                if len > KEPT_ENTRIES_MAX {
                    self.iovecs = Vec::new();
                }
                // Separate memory is kept only while operations need it, because unlike the slot it is not in the cache.
                if len > KEPT_ENTRIES_MAX || len <= self.pieces.inline_size() {
                    self.pieces.shrink_to_fit();
                }
            }
            self.state = State::Idle;
        }
        outcome
    }
}

impl StreamOp {
    fn complete(&mut self, result: i32) -> Outcome {
        let lent = mem::take(&mut self.lent);
        match result {
            // A zero-copy send for which the kernel has no memory (or that it does not support) is repeated with a copy.
            _ if lent && is_refusal(result) && !self.cancelled => return Outcome::More,
            // An operation that was not cancelled continues after an interruption …
            _ if -result == libc::EINTR && !self.cancelled => return Outcome::More,
            _ if -result == libc::EINTR => return Outcome::Done(self.sent as usize, Some(libc::ECANCELED)),
            ..0 => return Outcome::Done(self.sent as usize, Some(-result)),
            0 => return Outcome::Done(self.sent as usize, Some(libc::EPIPE)),
            1.. => self.sent += result as u32,
        }
        if self.sent == self.total {
            Outcome::Done(self.sent as usize, None)
        } else if self.cancelled {
            Outcome::Done(self.sent as usize, Some(libc::ECANCELED))
        } else {
            // … and after a partial send, which means that an error follows (or a kernel before 5.19 that ignores MSG_WAITALL).
            Outcome::More
        }
    }
}

/// Whether the rest of an operation that ended with this error may be sent later.
fn keeps_rest(errno: i32) -> bool {
    errno == libc::ECANCELED || is_shortage(&io::Error::from_raw_os_error(errno))
}

/// Whether the result of a zero-copy send means that zero copy failed, although a plain send may succeed.
pub(super) fn is_refusal(result: i32) -> bool {
    matches!(-result, libc::ENOMEM | libc::ENOBUFS | libc::EOPNOTSUPP | libc::EINVAL)
}

impl DatagramsOp {
    fn complete(&mut self, result: i32, unsegmented: &mut bool) -> Outcome {
        match result {
            _ if -result == libc::EINTR => return Outcome::More,
            ..0 => {
                let (packets, segment) = self.chunk.message(usize::from(self.message), self.plain);
                let errno = datagram_errno(-result, segment);
                if errno == libc::EMSGSIZE && segment.is_some() {
                    (self.plain, self.message, *unsegmented) = (true, packets.start as u16, true);
                    return Outcome::More;
                }
                return Outcome::Done(self.sent as usize, Some(errno));
            }
            0.. => self.sent += result as u32,
        }
        self.message += 1;
        if usize::from(self.message) < self.chunk.messages_count(self.plain) {
            Outcome::More
        } else {
            Outcome::Done(self.sent as usize, None)
        }
    }
}

impl Message {
    fn boxed() -> Box<Message> {
        Box::new(Message {
            // SAFETY: null pointers and zero lengths are an empty message header.
            header: unsafe { mem::zeroed() },
            to: Address::Peer,
            control: Control::new(),
        })
    }

    /// Makes it a message of these parts with this destination. What it points at within itself does not move, because it is boxed.
    fn set(&mut self, iovecs: &[libc::iovec]) {
        // SAFETY: as in `boxed`.
        self.header = unsafe { mem::zeroed() };
        (self.header.msg_name, self.header.msg_namelen) = match &self.to {
            Address::Peer => (ptr::null_mut(), 0),
            Address::V4(to) => (to.as_ptr().cast_mut().cast(), to.len()),
            Address::V6(to) => (to.as_ptr().cast_mut().cast(), to.len()),
        };
        self.header.msg_iov = iovecs.as_ptr().cast_mut();
        self.header.msg_iovlen = iovecs.len() as _;
    }

    /// Sets the segment size for its datagrams, or none, and their source address according to the route.
    fn set_segment(&mut self, segment: Option<u16>) {
        self.control.set_segment(segment);
        let control = self.control.as_bytes();
        if !control.is_empty() {
            self.header.msg_control = control.as_ptr().cast_mut().cast();
            self.header.msg_controllen = control.len() as _;
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(to: SocketAddr) -> Self {
        match to {
            SocketAddr::V4(to) => Address::V4(to.into()),
            SocketAddr::V6(to) => Address::V6(to.into()),
        }
    }
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}
