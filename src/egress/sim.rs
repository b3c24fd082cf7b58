//! The scripted egress for tests: sockets that accept bytes at a rate set by the test, on a clock controlled by the test.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{Completion, Conn, Datagram, Datagrams, Egress, EgressStats, Piece, Route, Token, is_shortage, rest_of};

/// How a scripted client reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// Everything, at once.
    AtOnce,
    /// This many bytes per second.
    Rate(u64),
    /// Nothing.
    Stalled,
    /// The connection is broken: every operation fails with `EPIPE`.
    Broken,
}

/// A scripted TCP socket.
#[derive(Debug)]
struct Socket {
    reading: Reading,
    /// Bytes that it accepts before an operation blocks.
    capacity: usize,
    buffered: usize,
    /// Fractions of a byte left over from the rate.
    carry: f64,
    /// What was sent to the client, in order, until the test takes it.
    received: Vec<u8>,
    operation: Option<Operation>,
    /// The error with which the current or next operation ends, after at most this many more bytes.
    refusal: Option<(usize, i32)>,
    unsent: Vec<Piece>,
    /// See [`SimEgress::is_cut_short`].
    cut_short: bool,
}

#[derive(Debug)]
struct Operation {
    token: Token,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are in the socket.
    offset: usize,
    done: usize,
}

/// The scripted egress. TCP sockets are created by their first send, reading at once.
#[derive(Debug, Default)]
pub struct SimEgress {
    /// By slot, in an order that is the same in every run.
    sockets: BTreeMap<u32, Socket>,
    queued: Vec<u32>,
    completions: VecDeque<Completion>,
    /// The datagrams sent, until the test takes them.
    pub datagrams: Vec<(Token, SocketAddr, Vec<u8>)>,
    /// See [`Egress::is_refused`].
    pub refused: bool,
    /// The next datagram operations fail with these errors.
    pub datagram_errors: VecDeque<i32>,
    stats: EgressStats,
}

/// Bytes that a scripted socket accepts before an operation blocks, as with `TCP_NOTSENT_LOWAT`.
const CAPACITY_BYTES: usize = 160 * 1024;

impl Socket {
    fn new() -> Self {
        Socket {
            reading: Reading::AtOnce,
            capacity: CAPACITY_BYTES,
            buffered: 0,
            carry: 0.0,
            received: Vec::new(),
            operation: None,
            refusal: None,
            unsent: Vec::new(),
            cut_short: false,
        }
    }

    /// Moves bytes of the operation into the socket; returns its completion when it is done.
    fn push(&mut self) -> Option<Completion> {
        let operation = self.operation.as_mut()?;
        if self.reading == Reading::Broken {
            let error = Some(io::Error::from_raw_os_error(libc::EPIPE));
            let completion =
                Completion { token: operation.token, bytes: operation.done, error, at: None, unsegmented: false };
            self.operation = None;
            return Some(completion);
        }
        let mut before = self.refusal.map_or(usize::MAX, |(bytes, _)| bytes);
        while let Some(piece) = operation.pieces.front() {
            let room = match self.reading {
                Reading::AtOnce => usize::MAX,
                _ => self.capacity - self.buffered.min(self.capacity),
            };
            let room = room.min(before);
            let part = &piece.as_slice()[operation.offset..];
            let taken = part.len().min(room);
            self.received.extend_from_slice(&part[..taken]);
            if self.reading != Reading::AtOnce {
                self.buffered += taken;
            }
            operation.done += taken;
            before -= taken;
            if taken < part.len() {
                operation.offset += taken;
                let (_, errno) = self.refusal.take_if(|(bytes, _)| {
                    *bytes = before;
                    before == 0
                })?;
                let Operation { token, pieces, offset, done: bytes } = self.operation.take()?;
                let error = io::Error::from_raw_os_error(errno);
                if is_shortage(&error) {
                    self.unsent = rest_of(pieces.into_iter(), offset);
                    self.cut_short = true;
                }
                return Some(Completion { token, bytes, error: Some(error), at: None, unsegmented: false });
            }
            operation.offset = 0;
            operation.pieces.pop_front();
        }
        let completion =
            Completion { token: operation.token, bytes: operation.done, error: None, at: None, unsegmented: false };
        self.operation = None;
        Some(completion)
    }
}

impl SimEgress {
    /// Without sockets.
    pub fn new() -> Self {
        SimEgress::default()
    }

    /// Sets how the client in that slot reads from now on.
    pub fn set_reading(&mut self, slot: u32, reading: Reading) {
        let socket = self.sockets.entry(slot).or_insert_with(Socket::new);
        socket.reading = reading;
        if reading == Reading::AtOnce {
            socket.buffered = 0;
        }
    }

    /// Fills the socket in that slot, so that it accepts nothing until its client has read.
    pub fn fill(&mut self, slot: u32) {
        let socket = self.sockets.entry(slot).or_insert_with(Socket::new);
        socket.buffered = socket.capacity;
    }

    /// Makes the current or next operation of the client in that slot end with the error after this many more bytes; if it is shorter,
    /// the one after it.
    pub fn refuse(&mut self, slot: u32, bytes: usize, errno: i32) {
        self.sockets.entry(slot).or_insert_with(Socket::new).refusal = Some((bytes, errno));
    }

    /// Whether the last operation in that slot ended for want of memory, and the rest has not been sent again yet.
    pub fn is_cut_short(&self, slot: u32) -> bool {
        self.sockets.get(&slot).is_some_and(|socket| socket.cut_short)
    }

    /// Advances time by `elapsed`: clients read, and blocked operations continue.
    pub fn advance(&mut self, elapsed: Duration) {
        for socket in self.sockets.values_mut() {
            if let Reading::Rate(rate) = socket.reading {
                let read = rate as f64 * elapsed.as_secs_f64() + socket.carry;
                socket.carry = read.fract();
                socket.buffered = socket.buffered.saturating_sub(read as usize);
            }
            self.completions.extend(socket.push());
        }
    }

    /// What was sent to the client in that slot since the last call.
    pub fn take_received(&mut self, slot: u32) -> Vec<u8> {
        self.sockets.get_mut(&slot).map(|socket| std::mem::take(&mut socket.received)).unwrap_or_default()
    }

    /// Bytes of blocked operations.
    pub fn blocked_bytes(&self) -> usize {
        let blocked = self.sockets.values().filter_map(|socket| socket.operation.as_ref());
        blocked.map(|op| op.pieces.iter().map(Piece::len).sum::<usize>()).sum()
    }

    /// The sockets have other slots from now on, and those without one are closed.
    pub fn renumber(&mut self, slot: impl Fn(u32) -> Option<u32>) {
        let sockets = std::mem::take(&mut self.sockets).into_iter();
        self.sockets = sockets.filter_map(|(old, socket)| Some((slot(old)?, socket))).collect();
    }

    /// Removes the socket in that slot, for the next client that gets it.
    pub fn renew(&mut self, slot: u32) {
        self.sockets.remove(&slot);
    }
}

impl Egress for SimEgress {
    fn send(&mut self, token: Token, _conn: &Conn, pieces: &mut Vec<Piece>, _apart: bool) {
        assert!(!pieces.is_empty() && pieces.iter().all(|piece| !piece.is_empty()), "an operation has bytes to send");
        assert!(pieces.len() <= crate::limits::OP_IOVECS_MAX);
        let socket = self.sockets.entry(token.slot).or_insert_with(Socket::new);
        assert!(socket.operation.is_none(), "one operation in flight per client");
        socket.cut_short = false;
        socket.operation = Some(Operation { token, pieces: pieces.drain(..).collect(), offset: 0, done: 0 });
        self.queued.push(token.slot);
    }

    fn send_datagrams(&mut self, token: Token, _socket: &Datagram, route: Route, chunk: &Rc<Datagrams>, _plain: bool) {
        if let Some(errno) = self.datagram_errors.pop_front() {
            let error = Some(io::Error::from_raw_os_error(errno));
            self.completions.push_back(Completion { token, bytes: 0, error, at: None, unsegmented: false });
            return;
        }
        let mut bytes = 0;
        for span in &chunk.packets {
            let packet = &chunk.bytes()[span.offset as usize..span.offset as usize + usize::from(span.len)];
            bytes += packet.len();
            self.datagrams.push((token, route.to, packet.to_vec()));
        }
        self.completions.push_back(Completion { token, bytes, error: None, at: None, unsegmented: false });
    }

    fn flush(&mut self) {
        self.stats.submits += u64::from(!self.queued.is_empty());
        for slot in self.queued.drain(..) {
            let socket = self.sockets.get_mut(&slot).expect("queued by a socket");
            self.completions.extend(socket.push());
        }
    }

    fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        let count = self.completions.len().min(max);
        self.stats.operations += count as u64;
        out.extend(self.completions.drain(..count));
    }

    fn cancel(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(&token.slot) else { return };
        if let Some(operation) = socket.operation.take_if(|operation| operation.token == token) {
            let error = Some(io::Error::from_raw_os_error(libc::ECANCELED));
            socket.unsent = rest_of(operation.pieces.into_iter(), operation.offset);
            self.completions.push_back(Completion {
                token,
                bytes: operation.done,
                error,
                at: None,
                unsegmented: false,
            });
        }
    }

    fn take_unsent(&mut self, token: Token) -> Vec<Piece> {
        self.sockets.get_mut(&token.slot).map(|socket| std::mem::take(&mut socket.unsent)).unwrap_or_default()
    }

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        if self.completions.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn is_busy(&self, token: Token) -> bool {
        let operation = self.sockets.get(&token.slot).and_then(|socket| socket.operation.as_ref());
        let done = || self.completions.iter().any(|completion| completion.token == token);
        operation.is_some_and(|operation| operation.token == token) || done()
    }

    fn is_refused(&self) -> bool {
        self.refused
    }

    fn in_flight(&self) -> usize {
        let blocked = self.sockets.values().filter(|socket| socket.operation.is_some()).count();
        blocked + self.completions.len()
    }

    fn stats(&self) -> EgressStats {
        self.stats
    }
}
