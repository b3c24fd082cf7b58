//! TCP sends that ended because the system is short of memory: the rest is retried a little later, byte for byte, so that the client
//! only notices a delay.

use std::io;
use std::time::{Duration, Instant};

use crate::egress::{Piece, Token};
use crate::limits::SHORTAGE_PAUSE_MS;
use crate::told::Told;

/// The waiting sends. Their links stay busy meanwhile, and the egress has nothing of them.
pub(super) struct PutOff {
    sends: Vec<(Token, Vec<Piece>)>,
    until: Instant,
    told: Told,
}

impl PutOff {
    pub(super) fn new(now: Instant) -> Self {
        PutOff { sends: Vec::new(), until: now, told: Told::default() }
    }

    /// A send waits a little.
    pub(super) fn add(&mut self, now: Instant, token: Token, unsent: Vec<Piece>) {
        if self.sends.is_empty() {
            self.until = now + Duration::from_millis(SHORTAGE_PAUSE_MS);
        }
        self.sends.push((token, unsent));
    }

    /// The waiting sends are retried at once.
    pub(super) fn make_due(&mut self, now: Instant) {
        self.until = self.until.min(now);
    }

    /// What the link waits to send.
    pub(super) fn of(&self, token: Token) -> &[Piece] {
        self.sends.iter().find(|(of, _)| *of == token).map_or(&[], |(_, unsent)| unsent)
    }

    /// Takes the sends to be retried now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Token, Vec<Piece>)> {
        if self.due().is_some_and(|due| due <= now) { std::mem::take(&mut self.sends) } else { Vec::new() }
    }

    /// When [`PutOff::take_due`] has something to return.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.sends.is_empty()).then_some(self.until)
    }

    /// Removes the link's send; returns whether it had one.
    pub(super) fn forget(&mut self, token: Token) -> bool {
        let place = self.sends.iter().position(|(of, _)| *of == token);
        place.is_some_and(|place| {
            self.sends.swap_remove(place);
            true
        })
    }

    /// Logs it, at a limited rate.
    pub(super) fn tell(&mut self, now: Instant, error: &io::Error) {
        if self.told.is_due(now) {
            tracing::warn!(
                %error,
                "the system is out of socket memory: TCP sends are retried, datagrams are dropped; free memory, or raise net.ipv4.tcp_mem, net.core.wmem_max or what limits the relay (MemoryMax= in a unit)"
            );
        }
    }
}
