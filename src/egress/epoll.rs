//! Egress with plain `sendmsg`, for machines where io_uring is not available.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use smallvec::SmallVec;
use socket2::{MsgHdr, SockAddr, SockRef};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::control::{Control, Route};
use super::{
    Completion, Conn, Datagram, Datagrams, Egress, EgressStats, Piece, Token, datagram_errno, is_shortage, rest_of,
};

/// Sends at once; if a socket accepts no more, tokio watches for its writability.
pub struct EpollEgress {
    slots: Vec<Slot>,
    woken: Arc<Woken>,
    /// The slots taken from `woken`, kept for its capacity.
    retry: Vec<u32>,
    done: VecDeque<Completion>,
    blocked: usize,
    stats: EgressStats,
}

#[derive(Default)]
struct Slot {
    blocked: Option<Blocked>,
    /// See [`Egress::take_unsent`].
    unsent: Vec<Piece>,
    /// Puts the slot on the list of [`Woken`]; created when the slot blocks for the first time.
    waker: Option<Waker>,
}

/// An operation that its socket did not accept completely.
struct Blocked {
    token: Token,
    stream: Rc<TcpStream>,
    /// The remaining pieces, the first from `offset` on.
    pieces: VecDeque<Piece>,
    offset: usize,
    sent: usize,
    apart: bool,
}

/// Slots whose sockets have become writable. With a waker per slot and this list, a wake-up need not check all blocked clients.
#[derive(Default)]
struct Woken(Mutex<WokenList>);

#[derive(Default)]
struct WokenList {
    slots: Vec<u32>,
    task: Option<Waker>,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, WokenList> {
        // The list is consistent even if a holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct SlotWaker {
    slot: u32,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let task = {
            let mut list = self.woken.lock();
            list.slots.push(self.slot);
            list.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl EpollEgress {
    /// An egress for the calling thread; its connections are of the kind [`IoKind::Epoll`](super::IoKind::Epoll).
    #[allow(clippy::new_without_default, reason = "all implementations are made by name")]
    pub fn new() -> EpollEgress {
        EpollEgress {
            slots: Vec::new(),
            woken: Arc::default(),
            retry: Vec::new(),
            done: VecDeque::new(),
            blocked: 0,
            stats: EgressStats::default(),
        }
    }

    fn finish(&mut self, token: Token, bytes: usize, error: Option<io::Error>) {
        self.stats.operations += 1;
        self.done.push_back(Completion { token, bytes, error, at: Some(Instant::now()), unsegmented: false });
    }

    /// Sends what the sockets of the woken slots accept.
    fn drive(&mut self) {
        std::mem::swap(&mut self.woken.lock().slots, &mut self.retry);
        let mut retry = std::mem::take(&mut self.retry);
        for slot in retry.drain(..) {
            self.advance(slot);
        }
        self.retry = retry;
    }

    /// Sends what the slot's socket accepts, and arranges for a wake-up when it accepts more.
    fn advance(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(op) = &mut slot.blocked else { return };
        let waker = slot
            .waker
            .get_or_insert_with(|| Waker::from(Arc::new(SlotWaker { slot: index, woken: self.woken.clone() })));
        let mut cx = Context::from_waker(waker);
        let error = loop {
            match op.stream.poll_write_ready(&mut cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => break Some(error),
                Poll::Ready(Ok(())) => {}
            }
            self.stats.submits += 1;
            let (stream, pieces, offset, apart) = (&op.stream, &op.pieces, op.offset, op.apart);
            // A refusal through `try_io` clears tokio's readiness, so that the next poll waits for the kernel.
            match stream.try_io(Interest::WRITABLE, || send_pieces(stream, pieces.iter(), offset, apart)) {
                Ok(bytes) => {
                    op.consume(bytes);
                    if op.pieces.is_empty() {
                        break None;
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => break Some(error),
            }
        };
        let (token, sent) = (op.token, op.sent);
        if error.as_ref().is_some_and(is_shortage) {
            slot.unsent = rest_of(op.pieces.drain(..), op.offset);
        }
        slot.blocked = None;
        self.blocked -= 1;
        self.finish(token, sent, error);
    }
}

impl Blocked {
    fn consume(&mut self, mut bytes: usize) {
        self.sent += bytes;
        while let Some(first) = self.pieces.front() {
            let left = first.len() - self.offset;
            if bytes < left {
                self.offset += bytes;
                return;
            }
            bytes -= left;
            self.offset = 0;
            self.pieces.pop_front();
        }
    }
}

/// One `sendmsg` of the pieces, the first from `offset` on.
fn send_pieces<'a>(
    stream: &TcpStream,
    pieces: impl Iterator<Item = &'a Piece>,
    offset: usize,
    apart: bool,
) -> io::Result<usize> {
    let mut slices: SmallVec<[IoSlice<'_>; 16]> = pieces.map(|piece| IoSlice::new(piece.as_slice())).collect();
    if let Some(first) = slices.first_mut() {
        first.advance(offset);
    }
    let end = if apart { libc::MSG_EOR } else { 0 };
    SockRef::from(stream).send_vectored_with_flags(&slices, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | end)
}

impl Egress for EpollEgress {
    fn send(&mut self, token: Token, conn: &Conn, pieces: &mut Vec<Piece>, apart: bool) {
        let Conn::Epoll(stream, _) = conn else { panic!("an epoll egress sends on connections of IoKind::Epoll") };
        let index = token.slot as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        assert!(self.slots[index].blocked.is_none(), "an idle client has no operation in flight");
        self.stats.submits += 1;
        let bytes = match send_pieces(stream, pieces.iter(), 0, apart) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => {
                if is_shortage(&error) {
                    self.slots[index].unsent = std::mem::take(pieces);
                }
                pieces.clear();
                return self.finish(token, 0, Some(error));
            }
        };
        if bytes == pieces.iter().map(Piece::len).sum::<usize>() {
            pieces.clear();
            return self.finish(token, bytes, None);
        }
        let mut op =
            Blocked { token, stream: stream.clone(), pieces: pieces.drain(..).collect(), offset: 0, sent: 0, apart };
        op.consume(bytes);
        self.slots[index].blocked = Some(op);
        self.blocked += 1;
        self.advance(token.slot);
    }

    fn send_datagrams(&mut self, token: Token, socket: &Datagram, route: Route, chunk: &Rc<Datagrams>, plain: bool) {
        let Datagram::Epoll(socket) = socket else { panic!("an epoll egress sends on sockets of IoKind::Epoll") };
        let to = SockAddr::from(route.to);
        let mut control = Control::new();
        control.set_route(&route);
        let (mut plain, mut unsegmented) = (plain, false);
        let (mut sent, mut index) = (0, 0);
        let mut error = None;
        while index < chunk.messages_count(plain) {
            let (packets, segment) = chunk.message(index, plain);
            let slices: SmallVec<[IoSlice<'_>; 64]> =
                chunk.packets[packets.clone()].iter().map(|span| IoSlice::new(chunk.packet(span))).collect();
            control.set_segment(segment);
            let message = MsgHdr::new().with_addr(&to).with_buffers(&slices).with_control(control.as_bytes());
            let result = loop {
                self.stats.submits += 1;
                match SockRef::from(&**socket).sendmsg(&message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            };
            match result {
                Ok(bytes) => {
                    sent += bytes;
                    index += 1;
                }
                Err(refused) => match datagram_errno(refused.raw_os_error().unwrap_or(libc::EIO), segment) {
                    libc::EMSGSIZE if segment.is_some() => (plain, index, unsegmented) = (true, packets.start, true),
                    errno => {
                        error = Some(io::Error::from_raw_os_error(errno));
                        break;
                    }
                },
            }
        }
        self.stats.operations += 1;
        self.done.push_back(Completion { token, bytes: sent, error, at: Some(Instant::now()), unsegmented });
    }

    fn flush(&mut self) {}

    fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        self.drive();
        let count = max.min(self.done.len());
        out.extend(self.done.drain(..count));
    }

    fn cancel(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token.slot as usize) else { return };
        if let Some(mut op) = slot.blocked.take_if(|op| op.token == token) {
            slot.unsent = rest_of(op.pieces.drain(..), op.offset);
            self.blocked -= 1;
            self.finish(token, op.sent, Some(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
    }

    fn take_unsent(&mut self, token: Token) -> Vec<Piece> {
        self.slots.get_mut(token.slot as usize).map(|slot| std::mem::take(&mut slot.unsent)).unwrap_or_default()
    }

    fn forget(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token.slot as usize) {
            slot.unsent = Vec::new();
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut list = self.woken.lock();
        // A task that has used up tokio's budget is told that no socket is writable: it must yield before it tries again.
        if !self.done.is_empty() || (!list.slots.is_empty() && tokio::task::coop::has_budget_remaining()) {
            return Poll::Ready(());
        }
        if !list.slots.is_empty() {
            cx.waker().wake_by_ref();
        }
        if !list.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            list.task = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn is_busy(&self, token: Token) -> bool {
        let blocked = self.slots.get(token.slot as usize).and_then(|slot| slot.blocked.as_ref());
        blocked.is_some_and(|op| op.token == token) || self.done.iter().any(|completion| completion.token == token)
    }

    fn in_flight(&self) -> usize {
        self.blocked + self.done.len()
    }

    fn stats(&self) -> EgressStats {
        self.stats
    }
}
