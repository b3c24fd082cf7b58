//! Egress with io_uring: one ring per shard, one submission for all clients of a chunk.
#![allow(unsafe_code)]

mod clock;
#[cfg(test)]
mod forget_tests;
mod hold;
mod id;
mod left;
mod moments;
mod refusals;
#[cfg(test)]
mod shortage_tests;
mod slot;
#[cfg(test)]
mod zero_copy_tests;

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use std::{io, mem};

use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, cqueue, opcode, types};
use socket2::{SockAddr, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use clock::{Clock, Displaced};
use hold::Holds;
use id::{SLOTS_MAX, Tag, UserData};
use left::leave;
use moments::Moments;
use refusals::Refusals;
use slot::{Lending, Outcome, SLOT_HOT_BYTES, Slot, State, is_refusal};

use super::probe::explained;
use super::{Completion, Conn, Datagram, Datagrams, Egress, EgressStats, Piece, Route, Token, ZeroCopy, is_shortage};
use crate::burst::ShrinkIfSparse;
use crate::egress::ready::Ready;
use crate::limits::{EGRESS_DRAIN_MAX_MS, ZERO_COPY_BYTES_MIN, ZERO_COPY_HELD_MAX};

/// Completion queue entries per submission queue entry; the kernel keeps what does not fit, at a cost.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Entries that are taken from the completion queue ahead of their processing.
const LOOK_AHEAD: usize = 8;

/// How often in a row the kernel may refuse a submission before the thread does other work and retries later.
const REFUSALS_MAX: u32 = 4;

/// Maximum number of submissions per reap for continuing operations of several messages.
const PASSES_MAX: u32 = 16;

/// Sends through its own ring, which tokio watches for completions.
///
/// A 16.7 KB frame to 500 clients over loopback costs 0.85 to 0.95 of a bare loop of `write` in CPU time (5.0 against 5.8 µs per
/// client), and about 1.08 of bare `SEND`s. Registered files (`IORING_REGISTER_FILES`) gain nothing.
pub struct UringEgress {
    ring: AsyncFd<IoUring>,
    slots: Vec<Slot>,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<Entry>,
    /// Completions taken from the queue so that their slots are in the cache when they are processed.
    ahead: VecDeque<(UserData, cqueue::Entry, Option<Instant>)>,
    /// Completions taken from the queue to make room in it.
    done: VecDeque<Completion>,
    active: usize,
    zero_copy: ZeroCopy,
    holds: Holds,
    moments: Moments,
    /// `None` if it could not be created, or did not work when it was tried.
    clock: Option<Clock>,
    displaced: Displaced,
    refusals: Refusals,
    stats: EgressStats,
}

/// In the result of a notification: the kernel copied (`IORING_NOTIF_USAGE_ZC_COPIED`).
const USAGE_COPIED: u32 = 1 << 31;

impl UringEgress {
    /// Creates a ring of `entries` (clamped to what the kernel allows, 32,768) for the calling thread, inside its runtime. With more
    /// clients than entries, there is a submission for each `entries` of them.
    ///
    /// # Errors
    /// The error of `io_uring_setup`, with an [`IoUringUnavailable`](super::probe::IoUringUnavailable) inside, or of the registration
    /// with epoll.
    pub fn new(entries: u32) -> io::Result<UringEgress> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
        // Not DEFER_TASKRUN: such a ring never wakes anyone who polls its descriptor.
        let ring = builder
            .clone()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_submit_all()
            .build(entries)
            // Linux before 6.0 does not know all of these flags; it works without them.
            .or_else(|_| builder.build(entries))
            .map_err(explained)?;
        // SAFETY: the descriptor is the ring's own, open until the ring is dropped, and nothing replaces the ring.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
        let mut egress = UringEgress {
            ring,
            slots: Vec::new(),
            backlog: VecDeque::new(),
            ahead: VecDeque::with_capacity(LOOK_AHEAD),
            done: VecDeque::new(),
            active: 0,
            zero_copy: ZeroCopy::Off,
            holds: Holds::default(),
            moments: Moments::default(),
            refusals: Refusals::default(),
            clock: None,
            displaced: Displaced::default(),
            stats: EgressStats::default(),
        };
        egress.try_clock();
        Ok(egress)
    }

    /// Reads the clock once, and disables it if that does not work.
    fn try_clock(&mut self) {
        let Ok(clock) = Clock::new() else { return };
        // It stays as long as one of its entries is queued, because the entry names its socket.
        let Some(entry) = self.clock.insert(clock).ask() else { return };
        let begun = Instant::now();
        let submitted = self.push(&entry) && self.ring.get_mut().submit().is_ok_and(|taken| taken > 0);
        let told = self.clock.as_mut().and_then(Clock::told);
        if submitted && !told.is_some_and(|told| (begun..=Instant::now()).contains(&told)) {
            self.without_clock();
        }
    }

    /// Disables the clock, none of whose entries is queued.
    #[cold]
    fn without_clock(&mut self) {
        self.clock = None;
        tracing::debug!("the kernel does not stamp the end of submissions; the shard looks at the clock itself");
    }

    /// Sets which sends use zero copy; initially none. Returns whether the kernel supports it.
    pub fn set_zero_copy(&mut self, zero_copy: ZeroCopy) -> bool {
        let mut operations = Probe::new();
        let known = self.ring.get_mut().submitter().register_probe(&mut operations).is_ok()
            && operations.is_supported(opcode::SendZc::CODE)
            && operations.is_supported(opcode::SendMsgZc::CODE);
        self.zero_copy = if known { zero_copy } else { ZeroCopy::Off };
        known
    }

    /// Makes the operation that the slot is about to queue lend its pieces, if that pays off.
    fn lend(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let State::Stream(op) = &slot.state else { return };
        let large = self.zero_copy == ZeroCopy::On || op.total as usize >= ZERO_COPY_BYTES_MIN;
        if slot.lending.generation != Some(slot.token.generation) {
            let allowed = match self.zero_copy {
                ZeroCopy::Off => false,
                ZeroCopy::On => true,
                ZeroCopy::Auto => slot.connection().is_some_and(|connection| is_elsewhere(connection)),
            };
            slot.lending = Lending { generation: Some(slot.token.generation), allowed, held: 0 };
        }
        if slot.lending.allowed && large && slot.lending.held < ZERO_COPY_HELD_MAX {
            let lent = self.holds.keep(slot.token, slot.pieces());
            slot.lending.held += 1;
            slot.lend(lent);
        }
    }

    /// The kernel has released what a send lent to it.
    fn returned(&mut self, id: Token) -> Option<&mut Slot> {
        let client = self.holds.release(id);
        // If the slot is gone, the send was an earlier client's.
        let slot = self.slots.get_mut(client.slot as usize)?;
        if slot.lending.generation != Some(client.generation) {
            return None;
        }
        slot.lending.held -= 1;
        Some(slot)
    }

    /// The notification that ends a zero-copy send.
    fn notified(&mut self, id: Token, usage: i32) {
        let copied = usage as u32 & USAGE_COPIED != 0;
        if copied {
            self.stats.zero_copy_copied += 1;
        } else {
            self.stats.zero_copy += 1;
        }
        let auto = self.zero_copy == ZeroCopy::Auto;
        if let Some(slot) = self.returned(id)
            && copied
            && auto
        {
            // The path copies, so lending costs more than copying.
            slot.lending.allowed = false;
        }
    }

    /// Gives back the memory of the last slots, if these are free.
    fn shrink(&mut self) {
        while self.slots.last().is_some_and(Slot::is_free) {
            self.slots.pop();
        }
        self.slots.shrink_if_sparse();
    }

    fn slot(&mut self, token: Token) -> &mut Slot {
        assert!(token.slot < SLOTS_MAX, "slots are numbered densely from 0");
        let index = token.slot as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::new);
        }
        &mut self.slots[index]
    }

    /// Queues the entry after earlier ones, and submits if there is no room.
    fn queue(&mut self, entry: Entry) {
        if !self.backlog.is_empty() || !self.push(&entry) {
            self.backlog.push_back(entry);
            self.submit();
            // Several submissions before a reap: their completions would overflow the queue.
            self.absorb();
            self.refill();
        }
    }

    /// Queues the entry after earlier ones; submitting is up to the caller of [`UringEgress::take`].
    fn queue_later(&mut self, entry: Entry) {
        if !self.backlog.is_empty() || !self.push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: an entry points into its slot, at the pieces, the chunk or the vectors that the slot holds, and names the
        // descriptor of a connection that the slot holds. The slot changes none of them until `Slot::complete` has seen the
        // completion; if they are to go before that, `drop` leaks them. The clock's points at a static and names a socket of the
        // clock's, which stays until its entry has been taken.
        unsafe { self.ring.get_mut().submission().push(entry).is_ok() }
    }

    /// Submits the submission queue; returns whether the kernel accepted anything.
    fn submit(&mut self) -> bool {
        loop {
            self.stats.submits += 1;
            let before = self.ring.get_mut().completion().len();
            let asked = self.ask_clock();
            let queued = self.ring.get_mut().submission().len();
            let begun = Instant::now();
            let submitted = self.refusals.scripted().map_or_else(|| self.ring.get_mut().submit(), Err);
            let whole = submitted.as_ref().is_ok_and(|&taken| taken >= queued);
            let ended = self.ended(begun, queued, asked && whole);
            let after = self.ring.get_mut().completion().len();
            self.moments.submitted(begun, ended, before, after);
            match submitted {
                Ok(taken) => return taken > 0,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The kernel requires that its overflowed completions are taken first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return false,
                Err(error) => {
                    self.stats.submits_refused += u64::from(is_shortage(&error));
                    self.refusals.refused(&error);
                    return false;
                }
            }
        }
    }

    /// Queues the entry that reads the clock after all others, if that pays off; returns whether it did.
    fn ask_clock(&mut self) -> bool {
        let queued = self.ring.get_mut().submission().len();
        let room = queued < self.ring.get_ref().params().sq_entries() as usize;
        if !self.displaced.asks(queued) || !room {
            return false;
        }
        let Some(entry) = self.clock.as_mut().and_then(Clock::ask) else { return false };
        self.push(&entry)
    }

    /// When the kernel finished a submission of so many entries: by its own timestamp, if the last entry was `stamped`.
    fn ended(&mut self, begun: Instant, entries: usize, stamped: bool) -> Instant {
        let now = Instant::now();
        // An entry that had waited in the queue would give a time in the middle.
        let told = self.clock.as_mut().and_then(Clock::told).filter(|told| stamped && (begun..=now).contains(told));
        self.displaced.submitted(entries, now - begun, told.map(|told| now - told));
        told.unwrap_or(now)
    }

    /// Moves the backlog into the submission queue as far as there is room.
    fn refill(&mut self) {
        while let Some(entry) = self.backlog.front().cloned() {
            if !self.push(&entry) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Takes entries from the ring's queue some turns before they are processed, and prefetches their slots.
    fn look_ahead(&mut self) {
        while self.ahead.len() < LOOK_AHEAD {
            let Some(entry) = self.ring.get_mut().completion().next() else { return };
            let id = UserData::unpack(entry.user_data()).expect("every entry has been given user data");
            // For a zero-copy send this is another slot, or none.
            self.prefetch_slot(id.token.slot);
            self.ahead.push_back((id, entry, self.moments.take()));
        }
    }

    fn prefetch_slot(&self, slot: u32) {
        if let Some(slot) = self.slots.get(slot as usize) {
            crate::sys::prefetch(slot, SLOT_HOT_BYTES);
        }
    }

    /// Takes the next completion of an operation from the ring's queue.
    fn take(&mut self) -> Option<Completion> {
        loop {
            self.look_ahead();
            let (mut id, entry, at) = self.ahead.pop_front()?;
            if id.tag == Tag::Clock {
                self.without_clock();
                continue;
            }
            if id.tag == Tag::ZeroCopy {
                // Only the flags tell which of its completions this is, never the result.
                if cqueue::notif(entry.flags()) {
                    self.notified(id.token, entry.result());
                    continue;
                }
                let client = self.holds.client(id.token);
                if is_refusal(entry.result()) {
                    self.stats.zero_copy_refused += 1;
                    if entry.result() != -libc::ENOMEM && entry.result() != -libc::ENOBUFS {
                        self.slots[client.slot as usize].lending.allowed = false;
                    }
                }
                if !cqueue::more(entry.flags()) {
                    self.returned(id.token);
                }
                id.token = client;
            }
            if id.tag == Tag::Cancel {
                // A send that was about to be retried is not found (ENOENT) or not stopped (EALREADY).
                if entry.result() < 0
                    && let Some(slot) = self.slots.get(id.token.slot as usize)
                    && slot.token == id.token
                    && slot.is_cancelled()
                {
                    let cancel = cancel_entry(slot);
                    self.queue_later(cancel);
                }
                continue;
            }
            let slot = &mut self.slots[id.token.slot as usize];
            assert_eq!(slot.token, id.token, "a slot is not given on before its operation has completed");
            match slot.complete(entry.result()) {
                Outcome::More => {
                    let entry = slot.next_entry();
                    self.queue_later(entry);
                }
                Outcome::Done(bytes, error) => {
                    let unsegmented = mem::take(&mut slot.unsegmented);
                    self.active -= 1;
                    self.stats.operations += 1;
                    let error = error.map(io::Error::from_raw_os_error);
                    return Some(Completion { token: id.token, bytes, error, at, unsegmented });
                }
            }
        }
    }

    /// Empties the completion queue into `done`.
    fn absorb(&mut self) {
        while let Some(completion) = self.take() {
            self.done.push_back(completion);
        }
    }

    fn unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.get_mut().submission().is_empty()
    }

    /// Cancels everything and waits for it, but at most [`EGRESS_DRAIN_MAX_MS`].
    fn drain(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(EGRESS_DRAIN_MAX_MS);
        let tokens: Vec<Token> = self.slots.iter().filter(|slot| !slot.is_idle()).map(|slot| slot.token).collect();
        for token in tokens {
            self.cancel(token);
        }
        while self.active + self.holds.len() > 0 && Instant::now() < deadline {
            self.flush();
            self.absorb();
            if self.active + self.holds.len() > 0 {
                let wait = types::Timespec::new().nsec(10_000_000);
                let args = types::SubmitArgs::new().timespec(&wait);
                // A timeout (ETIME) or an interruption is handled like a completion: the loop checks again.
                if self
                    .ring
                    .get_mut()
                    .submitter()
                    .submit_with_args(1, &args)
                    .is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

fn cancel_entry(slot: &Slot) -> Entry {
    let own = UserData { tag: Tag::Cancel, token: slot.token }.pack();
    opcode::AsyncCancel::new(slot.stream_id().pack()).build().user_data(own)
}

/// Whether the connection leads to another machine; the kernel always copies for a local process.
fn is_elsewhere(stream: &Ready) -> bool {
    let socket = SockRef::from(stream);
    let ip = |address: io::Result<SockAddr>| Some(address.ok()?.as_socket()?.ip().to_canonical());
    match (ip(socket.peer_addr()), ip(socket.local_addr())) {
        (Some(peer), Some(local)) => !peer.is_loopback() && peer != local,
        _ => false,
    }
}

impl Egress for UringEgress {
    fn send(&mut self, token: Token, conn: &Conn, pieces: &mut Vec<Piece>, apart: bool) {
        let Conn::Uring(stream, _) = conn else { panic!("an io_uring egress sends on connections of IoKind::Uring") };
        self.slot(token).begin_stream(token, stream, pieces, apart);
        if self.zero_copy != ZeroCopy::Off {
            self.lend(token.slot);
        }
        let entry = self.slots[token.slot as usize].next_entry();
        self.active += 1;
        self.queue(entry);
    }

    fn send_datagrams(&mut self, token: Token, socket: &Datagram, route: Route, chunk: &Rc<Datagrams>, plain: bool) {
        let Datagram::Uring(socket) = socket else { panic!("an io_uring egress sends on sockets of IoKind::Uring") };
        let slot = self.slot(token);
        slot.begin_datagrams(token, socket.clone(), &route, chunk.clone(), plain);
        let entry = slot.next_entry();
        self.active += 1;
        self.queue(entry);
    }

    fn prefetch(&self, soon: u32, next: u32) {
        self.prefetch_slot(soon);
        if let Some(slot) = self.slots.get(next as usize) {
            slot.prefetch_message();
        }
    }

    fn flush(&mut self) {
        let mut refusals = 0;
        let refused = self.refusals.count;
        self.refill();
        while self.unsubmitted() && refusals < REFUSALS_MAX {
            refusals = if self.submit() { 0 } else { refusals + 1 };
            if refusals > 0 || self.unsubmitted() {
                self.absorb();
                self.refill();
            }
        }
        if !self.unsubmitted() {
            self.refusals.over();
        } else if refusals == REFUSALS_MAX && self.refusals.count > refused {
            self.refusals.pause();
        }
    }

    fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        let enough = out.len().saturating_add(max);
        for _ in 0..PASSES_MAX {
            while out.len() < enough {
                let Some(completion) = self.done.pop_front().or_else(|| self.take()) else { break };
                out.push(completion);
            }
            if self.unsubmitted() {
                // Continues operations that have more to send.
                self.flush();
                if self.unsubmitted() && self.refusals.is_paused() {
                    return;
                }
            } else if self.ring.get_mut().submission().cq_overflow() {
                // Completions that the kernel kept for lack of room.
                self.submit();
            } else {
                return;
            }
            if out.len() == enough {
                return;
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token.slot as usize) else { return };
        if slot.token != token {
            return;
        }
        // Datagrams never wait, so there is nothing to cancel.
        let State::Stream(op) = &mut slot.state else { return };
        if !mem::replace(&mut op.cancelled, true) {
            let cancel = cancel_entry(slot);
            self.queue(cancel);
            self.flush();
        }
    }

    fn take_unsent(&mut self, token: Token) -> Vec<Piece> {
        self.slots.get_mut(token.slot as usize).map(|slot| mem::take(&mut slot.unsent)).unwrap_or_default()
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !(self.done.is_empty() && self.ahead.is_empty())
                || (self.unsubmitted() && self.refusals.poll_over(cx).is_ready())
            {
                return Poll::Ready(());
            }
            let ring = self.ring.get_mut();
            if !ring.completion().is_empty() || ring.submission().cq_overflow() {
                return Poll::Ready(());
            }
            match ready!(self.ring.poll_read_ready(cx)) {
                Ok(mut ready) => ready.clear_ready(),
                // Only a runtime that is shutting down returns this; nothing wakes the task then anyway.
                Err(_) => return Poll::Pending,
            }
        }
    }

    fn is_busy(&self, token: Token) -> bool {
        let under_way = self.slots.get(token.slot as usize).is_some_and(|slot| slot.token == token && !slot.is_idle());
        under_way || self.done.iter().any(|completion| completion.token == token)
    }

    fn holds(&self, token: Token) -> bool {
        let lending = self.slots.get(token.slot as usize).map(|slot| slot.lending).unwrap_or_default();
        lending.generation == Some(token.generation) && lending.held > 0
    }

    fn is_refused(&self) -> bool {
        self.refusals.is_paused()
    }

    fn forget(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token.slot as usize).filter(|slot| slot.token == token) {
            slot.forget();
            self.shrink();
        }
    }

    fn in_flight(&self) -> usize {
        self.active + self.done.len()
    }

    fn stats(&self) -> EgressStats {
        self.stats
    }
}

impl Drop for UringEgress {
    fn drop(&mut self) {
        if self.active + self.holds.len() > 0 {
            self.drain();
        }
        if self.active + self.holds.len() > 0 {
            tracing::warn!(
                operations = self.active,
                lent = self.holds.len(),
                "sends did not complete within {EGRESS_DRAIN_MAX_MS} ms after they were cancelled; their memory is leaked because the kernel may still read it"
            );
            for slot in self.slots.iter_mut().filter(|slot| slot.is_idle()) {
                slot.forget();
            }
            leave(mem::take(&mut self.slots), mem::take(&mut self.holds));
        }
    }
}
