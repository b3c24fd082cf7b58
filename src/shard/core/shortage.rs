//! Operations that end because the system is short of memory.

#[cfg(test)]
#[path = "shortage_tests.rs"]
mod tests;

use std::io;
use std::time::Instant;

use super::link::{Closing, Kind};
use super::state::Core;
use crate::egress::{Egress, Token};
use crate::metrics::Counter;

impl<E: Egress> Core<E> {
    /// An operation ended with a shortage. Returns whether it is continued later; otherwise it has failed.
    #[cold]
    pub(super) fn shortage(&mut self, now: Instant, token: Token, error: &io::Error) -> bool {
        let unsent = self.egress.take_unsent(token);
        // For UDP, EAGAIN means that the path is backed up.
        if error.raw_os_error() != Some(libc::EAGAIN) || !unsent.is_empty() {
            self.put_off.tell(now, error);
        }
        let Some(link) = self.links.of_token_mut(token) else { return false };
        if unsent.is_empty() || link.closing == Closing::Join {
            return false;
        }
        // The client is not responsible for this wait.
        link.busy = Some(now);
        self.metrics.count(Counter::SendsPutOff, 1);
        self.put_off.add(now, token, unsent);
        true
    }

    /// Retries what was delayed, if it is time.
    pub(super) fn send_again(&mut self, now: Instant) {
        for (token, mut pieces) in self.put_off.take_due(now) {
            // A client that was closed meanwhile has removed its send, except for one whose code panicked.
            let Some(link) = self.links.of_token_mut(token) else { continue };
            let Kind::Tcp { conn, .. } = &link.kind else { continue };
            // The client had nothing to read meanwhile.
            link.busy = Some(now);
            let lags = link.playing.as_ref().is_some_and(|playing| playing.lagging_until.is_some());
            self.egress.send(token, &conn.clone(), &mut pieces, lags);
        }
    }
}
