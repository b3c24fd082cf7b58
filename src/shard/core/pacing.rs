//! UDP links that wait for their next burst, so that a client that catches up does not overflow its receive buffer.

use std::time::{Duration, Instant};

/// Minimum interval between bursts to a UDP client; with bursts of 64 KiB this is 131 Mbit/s.
pub(super) const BURST_EVERY: Duration = Duration::from_millis(4);

/// The waiting links, all until the same time.
#[derive(Debug)]
pub(super) struct Pacing {
    links: Vec<u32>,
    until: Instant,
}

impl Pacing {
    pub(super) fn new(now: Instant) -> Pacing {
        Pacing { links: Vec::new(), until: now }
    }

    /// Adds a link that is not waiting yet.
    pub(super) fn wait(&mut self, now: Instant, slot: u32) {
        if self.links.is_empty() {
            self.until = now + BURST_EVERY;
        }
        self.links.push(slot);
    }

    /// When the waiting links continue.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.links.is_empty()).then_some(self.until)
    }

    /// Takes the links that continue now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        if self.until <= now { std::mem::take(&mut self.links) } else { Vec::new() }
    }
}
