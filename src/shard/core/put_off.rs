//! Sends on connections that end because the system is short of memory: what is left of them is tried again a little later, byte
//! for byte, so that the client sees nothing of it but a delay.

#[cfg(test)]
#[path = "put_off_tests.rs"]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use super::{Closing, Core, Kind};
use crate::egress::{Egress, Piece, Token};
use crate::limits::SHORTAGE_PAUSE_MS;
use crate::metrics::Counter;
use crate::told::Told;

/// Sends that wait. Their links stay busy for so long, and nothing of them is with the egress.
pub(super) struct PutOff {
    sends: Vec<(Token, Vec<Piece>)>,
    until: Instant,
    told: Told,
}

impl PutOff {
    pub fn new(now: Instant) -> Self {
        PutOff { sends: Vec::new(), until: now, told: Told::default() }
    }

    /// When [`Core::send_again`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        (!self.sends.is_empty()).then_some(self.until)
    }

    /// Whether the link had a send here; it has none now.
    pub fn forget(&mut self, token: Token) -> bool {
        let place = self.sends.iter().position(|(of, _)| *of == token);
        place.is_some_and(|place| {
            self.sends.swap_remove(place);
            true
        })
    }

    fn tell(&mut self, now: Instant, error: &io::Error) {
        if self.told.is_due(now) {
            tracing::warn!(
                %error,
                "the system is short of memory for sockets: connections wait for what they lack, datagrams are left out; free memory, or raise net.ipv4.tcp_mem, net.core.wmem_max or what limits the relay (MemoryMax= in a unit)"
            );
        }
    }
}

impl<E: Egress> Core<E> {
    /// An operation has ended with a shortage. Returns whether it goes on later; else it has failed.
    #[cold]
    pub(super) fn shortage(&mut self, now: Instant, token: Token, error: &io::Error) -> bool {
        let unsent = self.egress.take_unsent(token);
        // A UDP path that is backed up says EAGAIN.
        if error.raw_os_error() != Some(libc::EAGAIN) || !unsent.is_empty() {
            self.put_off.tell(now, error);
        }
        let Some(link) = self.links.get_mut(token.slot as usize).filter(|link| link.generation == token.generation)
        else {
            return false;
        };
        if unsent.is_empty() || link.closing == Closing::Join {
            return false;
        }
        // That it waits is not its client's fault.
        link.busy = Some(now);
        self.metrics.count(Counter::SendsPutOff, 1);
        if self.put_off.sends.is_empty() {
            self.put_off.until = now + Duration::from_millis(SHORTAGE_PAUSE_MS);
        }
        self.put_off.sends.push((token, unsent));
        true
    }

    /// Tries again what was put off, if it is time.
    pub(super) fn send_again(&mut self, now: Instant) {
        if self.put_off.due().is_none_or(|due| due > now) {
            return;
        }
        for (token, mut pieces) in std::mem::take(&mut self.put_off.sends) {
            // One that was closed meanwhile has taken itself out, but for one whose code has failed.
            let Some(link) = self.link(token) else { continue };
            let Kind::Tcp { conn, .. } = &link.kind else { continue };
            let lags = link.playing.as_ref().is_some_and(|playing| playing.lagging_until.is_some());
            self.egress.send(token, &conn.clone(), &mut pieces, lags);
        }
    }
}
