//! A shard's part in the hand-over of clients and sources from one process to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::core::{KeptLogs, SentLogs};
use super::saved::{Copying, Freezing, HandOver, Restoring, SavedClients, Saving, ShardState};
use super::thread::Thread;
use super::turn::Turn;
use crate::egress::Egress;
use crate::limits::READ_BYTES_MAX;

/// Interval of checks whether everything has come to rest.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Interval of checks while nothing is waited for; messages wake the shard.
const IDLE_LOOK_EVERY: Duration = Duration::from_secs(1);

impl<E: Egress> Thread<E> {
    /// Does a step of a hand-over.
    pub(super) fn hand_over_step(&mut self, now: Instant, step: HandOver) {
        match step {
            // The requesters may have given up.
            HandOver::Survey(reply) => drop(reply.send(self.reconnecting())),
            HandOver::Copy(Copying { anew, reply }) => {
                if anew {
                    self.handing.copied.clear();
                }
                let _ = reply.send(self.core.copy_logs(&mut self.handing.copied));
            }
            HandOver::Sockets(reply) => drop(reply.send(self.core.sockets())),
            HandOver::Freeze(Freezing { reference, reply }) => {
                if !std::mem::replace(&mut self.handing.frozen, true) {
                    self.valve.close();
                    self.homes.hold(reference);
                    self.core.freeze();
                }
                self.handing.waiting.push(reply);
            }
            HandOver::Thaw => {
                self.handing.waiting.clear();
                if std::mem::take(&mut self.handing.frozen) {
                    self.core.thaw(now);
                    self.homes.release();
                    self.valve.open();
                }
            }
            HandOver::Save(Saving { reference, sent, turn, carrier, reply }) => {
                let saved = self.save(reference, &sent, turn).and_then(|(state, connections)| {
                    let clients = SavedClients { all: state.core.clients(), carried: self.core.carried_here() };
                    let descriptors: Vec<BorrowedFd<'_>> =
                        self.core.saved_connections().chain(connections.iter().map(AsFd::as_fd)).collect();
                    carrier(state, &descriptors).map_err(|error| error.to_string())?;
                    Ok(clients)
                });
                let _ = reply.send(saved);
            }
            HandOver::Restore(Restoring { reference, state, descriptors, kept, reply }) => {
                let restored = self.restore(now, reference, state, descriptors, &kept);
                let _ = reply.send(restored);
            }
            HandOver::GoOn => self.go_on(now),
            HandOver::End => self.handing.ended = true,
        }
    }

    /// While the shard is frozen, nothing is due; what it is to wait for is checked often.
    pub(super) fn absorb_frozen(&mut self, cx: &mut Context<'_>, any: bool) -> Poll<()> {
        let every = if self.handing.waiting.is_empty() { IDLE_LOOK_EVERY } else { LOOK_EVERY };
        let next = Instant::now() + every;
        let due = self.timer.as_mut().poll(cx).is_ready();
        if due || self.timer_at > next {
            self.timer_at = next;
            self.timer.as_mut().reset(next.into());
            // Otherwise nobody is woken; it cannot be over yet.
            let _ = self.timer.as_mut().poll(cx);
        }
        if any || due { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Answers who wait for everything to come to rest, if it has.
    pub(super) fn answer_frozen(&mut self) {
        if self.handing.waiting.is_empty() {
            return;
        }
        let at_rest = self.core.is_frozen()
            && !self.core.has_more()
            && self.homes.are_held()
            && self.local.is_empty()
            && self.reads.is_empty()
            // Their readers hold none either: one that waits for room has taken some of it.
            && self.datagrams.capacity() == self.datagrams.max_capacity()
            && self.inbox.is_empty();
        if at_rest {
            let told = std::mem::take(&mut self.handing.told);
            for reply in self.handing.waiting.drain(..) {
                let _ = reply.send(told);
            }
        }
    }

    fn reconnecting(&self) -> Vec<(String, &'static str)> {
        let named = |(stream, why)| (self.core.stream_name(stream).unwrap_or_default().to_owned(), why);
        self.homes.reconnecting().map(named).collect()
    }

    fn save(
        &self,
        reference: Instant,
        sent: &Mutex<SentLogs>,
        turn: Turn,
    ) -> Result<(ShardState, Vec<OwnedFd>), String> {
        let (mut sources, mut connections) = (Vec::new(), Vec::new());
        for (stream, saved, sockets) in self.homes.save(reference) {
            let Some(name) = self.core.stream_name(stream) else { continue };
            sources.push((name.to_owned(), saved));
            connections.extend(sockets);
        }
        let core = self.core.save_beyond(reference, || {
            turn.wait()?;
            Ok(sent.lock().unwrap_or_else(PoisonError::into_inner))
        })?;
        turn.pass();
        Ok((ShardState { core, sources }, connections))
    }

    fn restore(
        &mut self,
        now: Instant,
        reference: Instant,
        state: ShardState,
        descriptors: Vec<OwnedFd>,
        kept: &RwLock<KeptLogs>,
    ) -> Result<(), String> {
        let ShardState { core, sources } = state;
        let mut descriptors = descriptors.into_iter();
        let conns = core.connections(&mut descriptors, self.io).map_err(|error| error.to_string())?;
        for (name, saved) in sources {
            let sockets = descriptors.by_ref().take(saved.descriptors()).collect();
            if let Some(stream) = self.core.stream_named(&name) {
                self.homes.restore(stream, reference, saved, sockets);
            }
        }
        let kept = || kept.read().unwrap_or_else(PoisonError::into_inner);
        self.handing.restored = self.core.restore_with(now, reference, core, conns, kept)?;
        for _ in &self.handing.restored {
            self.inbox.connection_restored();
        }
        Ok(())
    }

    /// The other process has ended: what it left goes on here.
    fn go_on(&mut self, now: Instant) {
        (self.handing.frozen, self.handing.is_heir) = (false, false);
        self.valve.open();
        for hosting in std::mem::take(&mut self.handing.hostings) {
            self.host(now, hosting);
        }
        self.core.go_on(now);
        for (token, conn) in std::mem::take(&mut self.handing.restored) {
            if self.core.is_there(token) {
                self.read_on(token, conn, Vec::with_capacity(READ_BYTES_MAX), 0);
            }
        }
    }
}
