//! What is due at a given time: timeouts, stalled clients, trimming logs, paths, reports of outages.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::link::{Closing, Kind};
use super::state::Core;
use crate::egress::Egress;
use crate::session::{ConnId, EndReason};

/// Interval of checks: of stalled clients, logs, paths, reports, subscriptions and browsers.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(250);

/// How much later a check may be if nothing else wakes the shard. With a wake-up for each check, and another of the runtime's timers before
/// it, a shard with one camera woke half as often again as its frames arrived.
const CHECK_LATE: Duration = Duration::from_millis(750);

/// How long clients have during a stop to receive what is in flight.
const STOP_FLUSH: Duration = Duration::from_millis(500);

impl<E: Egress> Core<E> {
    /// Does what is due by `now`.
    pub fn timeout(&mut self, now: Instant) {
        if self.server_due().is_some_and(|at| at <= now) {
            self.server.timeout(now);
            self.process_events(now);
        }
        for slot in self.pacing.take_due(now) {
            if let Some(Kind::Udp { paced, .. }) = self.links.get_mut(slot as usize).map(|link| &mut link.kind) {
                *paced = false;
            }
            self.links.wake(slot);
        }
        self.send_again(now);
        if self.is_check_due(now) {
            let late = self.next_check.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
            self.next_check = Some(now + CHECK_EVERY);
            self.check_stalled(now, CHECK_EVERY + late);
            // Frees what is too old.
            for index in self.streams.at_rest() {
                self.trim(now, index);
            }
            self.paths.check(now, &mut self.links, &self.streams);
            self.streams.make_reports(now);
            self.unsubscribe_unwanted(now);
            self.check_web(now);
        }
    }

    /// Replaces the chunks of all logs by copies if `number` is another one than the last time ([`Renewal`](super::renewal::Renewal)). To be called
    /// before each check.
    pub fn renew_logs(&mut self, number: u32) {
        self.renewal.go_on(number, &mut self.streams);
    }

    /// Whether [`Core::timeout`] has something to do that the shard need not be woken for.
    pub fn is_check_due(&self, now: Instant) -> bool {
        self.next_check.is_none_or(|at| at <= now)
    }

    /// When [`Core::timeout`] should be called; it may be called earlier.
    pub fn next_timeout(&self, now: Instant) -> Instant {
        let on_time = self.stopping.is_some() || self.streams.are_away();
        let late = if on_time { Duration::ZERO } else { CHECK_LATE };
        let check = self.next_check.map_or(now, |at| at + late);
        let server = self.server_due().unwrap_or(check);
        check.min(server).min(self.pacing.due().unwrap_or(check)).min(self.put_off.due().unwrap_or(check))
    }

    /// When the next connection or session may time out.
    fn server_due(&self) -> Option<Instant> {
        self.server.next_timeout().map(|due| self.spared(due))
    }

    /// When something times out that is due at `due`: not at once after a freeze.
    pub(super) fn spared(&self, due: Instant) -> Instant {
        self.spares_until.map_or(due, |until| until.max(due))
    }

    /// Closes clients that have read nothing for `stall_timeout`; `elapsed` is the time since the last check.
    fn check_stalled(&mut self, now: Instant, elapsed: Duration) {
        if self.stopping.is_none() && self.egress.is_refused() {
            // The time in which the relay could not send does not count.
            for busy in self.links.iter_mut().filter_map(|(_, link)| link.busy.as_mut()) {
                *busy = now.min(*busy + elapsed);
            }
        }
        let flush_over = self.stopping.is_some_and(|since| now >= since + STOP_FLUSH);
        let mut late: SmallVec<[u32; 8]> = SmallVec::new();
        for (slot, link) in self.links.iter() {
            let Some(since) = link.busy else { continue };
            let stalled = now.saturating_duration_since(since) >= self.stall_timeout && !link.stalled;
            if stalled || (flush_over && link.closing != Closing::Join) {
                late.push(slot as u32);
            }
        }
        for slot in late {
            self.links[slot as usize].stalled = true;
            let link = &self.links[slot as usize];
            if self.stopping.is_none() {
                if let Some(playing) = &link.playing {
                    tracing::info!(
                        stream = %self.streams[playing.stream.index()].name,
                        client = %playing.peer,
                        session = %playing.session,
                        next_seq = self.next_seq(now, slot),
                        bytes = link.op_bytes,
                        "the client read nothing for queue.stall_timeout: closed"
                    );
                }
                self.end_client(now, slot, EndReason::Stalled);
            }
            // The connection may have had only answers in flight, and its slot is about to be reused.
            if let Some(Kind::Tcp { .. }) = self.links.get(slot as usize).map(|link| &link.kind) {
                self.server.disconnected(now, ConnId(slot));
            }
            self.close(slot, Closing::Join);
        }
        self.process_events(now);
    }
}
