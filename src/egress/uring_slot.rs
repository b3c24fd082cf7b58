//! What the kernel reads of an operation while it is under way: one slot a client, its memory used again and again.
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
use tokio_uring::net::TcpStream;

use super::uring_id::{Tag, UserData};
use super::{Datagrams, Piece, Token, datagram_errno, is_shortage, rest_of};

/// Entries above which a slot's vector is given back after its operation.
const KEPT_ENTRIES_MAX: usize = 16;

/// A client's operation and the memory that it lives in.
///
/// A submitted entry points at the bytes of pieces and chunks, at the I/O vectors and at the message, all of them on the heap,
/// so a slot may move; and none of it changes or goes between the submission and the completion.
///
/// The other clients' media has driven it out of the cache by each of its turns: what the end of an operation needs is in its first
/// line of 64 bytes, and the connection's own memory is touched by the first operation alone.
#[repr(C, align(64))]
pub(super) struct Slot {
    pub token: Token,
    pub state: State,
    /// The descriptor of `connection`; negative without one.
    fd: RawFd,
    /// The operation of datagrams goes on without segmentation; taken at its end.
    pub unsegmented: bool,
    pieces: SmallVec<[Piece; 2]>,
    /// Made when it is needed first, then kept.
    message: Option<Box<Message>>,
    /// The client's connection, whose descriptor it keeps open: from the client's first operation on, until it is forgotten.
    connection: Option<Rc<TcpStream>>,
    /// Where the pieces are kept that an operation has lent the kernel.
    lent: Token,
    iovecs: Vec<libc::iovec>,
    /// See [`Egress::take_unsent`](super::Egress::take_unsent).
    pub unsent: Vec<Piece>,
    pub lending: Lending,
}

/// What the beginning of an operation needs of a slot.
pub(super) const SLOT_HOT_BYTES: usize = mem::offset_of!(Slot, lent);
const _: () = assert!(mem::offset_of!(Slot, message) <= 64);

/// How the slot's client stands with zero copy.
#[derive(Clone, Copy, Default)]
pub(super) struct Lending {
    /// Which client this is about; `None` before the slot's first.
    pub generation: Option<u32>,
    /// Its sends are worth a try.
    pub allowed: bool,
    /// Its sends whose notification is to come.
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
    /// Its last segment takes nothing of the next operation.
    apart: bool,
    pub cancelled: bool,
    /// The entry now with the kernel lends it the pieces. Only the first entry of an operation does.
    lent: bool,
}

/// A chunk's datagrams to one address.
///
/// Its messages go one after the other, the next when the last has completed: so that none follows one that failed. Linking
/// them (`IOSQE_IO_LINK`) does the same for as much CPU time or a little more (2 to 5 % with two runs a client, when the
/// machine was quiet), and with chains to keep whole.
pub(super) struct DatagramsOp {
    /// Keeps the descriptor open.
    socket: Rc<tokio_uring::net::UdpSocket>,
    chunk: Rc<Datagrams>,
    sent: u32,
    /// The message that is with the kernel, or next.
    message: u16,
    plain: bool,
}

/// A message header and what it points at besides the data.
struct Message {
    header: libc::msghdr,
    control: SegmentControl,
    to: Address,
}

/// Where a message goes, as the kernel reads it.
enum Address {
    /// To whom the socket is connected.
    Peer,
    V4(SockaddrIn),
    V6(SockaddrIn6),
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

/// Has the notification of a zero-copy send say whether it copied (`IORING_SEND_ZC_REPORT_USAGE`, Linux 6.2).
const REPORT_USAGE: u16 = 1 << 3;

/// What became of an operation after a completion.
pub(super) enum Outcome {
    /// [`Slot::next_entry`] goes on with it.
    More,
    /// It is over: the bytes sent, and the error that ended it early.
    Done(usize, Option<i32>),
}

impl Slot {
    pub fn new() -> Slot {
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

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether a send is under way that has been asked to end.
    pub fn is_cancelled(&self) -> bool {
        matches!(&self.state, State::Stream(op) if op.cancelled)
    }

    pub fn begin_stream(&mut self, token: Token, connection: &Rc<TcpStream>, pieces: &mut Vec<Piece>, apart: bool) {
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

    /// The connection that operations are for.
    pub fn connection(&self) -> Option<&Rc<TcpStream>> {
        self.connection.as_ref()
    }

    /// Lets go of the client's connection.
    pub fn forget(&mut self) {
        assert!(self.is_idle(), "a client is forgotten when its operation was joined");
        self.connection = None;
        self.fd = -1;
    }

    /// Has the operation that is about to be queued lend its pieces, which are kept there meanwhile.
    pub fn lend(&mut self, kept: Token) {
        let State::Stream(op) = &mut self.state else { unreachable!("datagrams are never lent") };
        op.lent = true;
        self.lent = kept;
    }

    /// What the operation on a connection sends.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The user data of the entry that is with the kernel, for a cancel.
    pub fn stream_id(&self) -> UserData {
        match &self.state {
            State::Stream(op) if op.lent => UserData { tag: Tag::ZeroCopy, token: self.lent },
            _ => UserData { tag: Tag::Stream, token: self.token },
        }
    }

    /// Asks for the memory of the message that a client of datagrams is about to send.
    pub fn prefetch_message(&self) {
        if self.fd < 0
            && let Some(message) = self.message.as_deref()
        {
            crate::sys::prefetch(message, size_of::<Message>());
        }
    }

    pub fn begin_datagrams(
        &mut self,
        token: Token,
        socket: Rc<tokio_uring::net::UdpSocket>,
        to: SocketAddr,
        chunk: Rc<Datagrams>,
        plain: bool,
    ) {
        assert!(self.is_idle(), "an idle client has no operation in flight");
        self.token = token;
        self.message.get_or_insert_with(Message::boxed).to = to.into();
        self.state = State::Datagrams(DatagramsOp { socket, chunk, plain, message: 0, sent: 0 });
    }

    /// The entry that the operation has to queue next; it points into the slot's memory.
    ///
    /// # Panics
    /// Without an operation.
    pub fn next_entry(&mut self) -> Entry {
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
            // Only after a send that the kernel ended early is there anything to leave out.
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
            message.set(&self.iovecs, None);
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
        message.set(&op.chunk.vectors()[packets], segment);
        opcode::SendMsg::new(types::Fd(op.socket.as_raw_fd()), &raw const message.header)
            .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)
            .build()
            .user_data(UserData { tag: Tag::Message, token: self.token }.pack())
    }

    /// Takes in the result of a completion.
    pub fn complete(&mut self, result: i32) -> Outcome {
        let outcome = match &mut self.state {
            State::Idle => unreachable!("a completion without an operation"),
            State::Stream(op) => op.complete(result),
            State::Datagrams(op) => op.complete(result, &mut self.unsegmented),
        };
        if let Outcome::Done(sent, error) = outcome {
            if let State::Stream(_) = &self.state {
                if error.is_some_and(|errno| is_shortage(&io::Error::from_raw_os_error(errno))) {
                    self.unsent = rest_of(self.pieces.drain(..), sent);
                }
                let len = self.pieces.len();
                self.pieces.clear();
                if len > KEPT_ENTRIES_MAX {
                    self.iovecs = Vec::new();
                }
                // Memory of its own is kept only as long as operations need it: it is not at hand as the slot is.
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
            // A zero-copy send that the kernel has no memory for (or does not know at all) goes with a copy.
            _ if lent && is_refusal(result) && !self.cancelled => return Outcome::More,
            // A request that has not been cancelled goes on after an interruption …
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
            // … and after a part, which tells that an error follows (or of a kernel before 5.19, that ignores MSG_WAITALL).
            Outcome::More
        }
    }
}

/// Whether the result of a zero-copy send says that it was not to be had, while a plain one may be.
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
            control: SegmentControl::new(0),
            to: Address::Peer,
        })
    }

    /// Makes it a message of these parts, to where it goes. What it points at in itself stays where it is, because it is boxed.
    fn set(&mut self, iovecs: &[libc::iovec], segment: Option<u16>) {
        // SAFETY: as in `boxed`.
        self.header = unsafe { mem::zeroed() };
        (self.header.msg_name, self.header.msg_namelen) = match &self.to {
            Address::Peer => (ptr::null_mut(), 0),
            Address::V4(to) => (to.as_ptr().cast_mut().cast(), to.len()),
            Address::V6(to) => (to.as_ptr().cast_mut().cast(), to.len()),
        };
        self.header.msg_iov = iovecs.as_ptr().cast_mut();
        self.header.msg_iovlen = iovecs.len() as _;
        if let Some(segment) = segment {
            self.control.segment = segment;
            self.header.msg_control = (&raw mut self.control).cast();
            self.header.msg_controllen = CONTROL_SPACE as _;
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
