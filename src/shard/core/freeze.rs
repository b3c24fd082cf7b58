//! The freeze before a hand-over to another process: nothing is sent any more, and every operation is joined. What an operation has
//! not sent waits, byte for byte, like after a shortage.

use std::io;
use std::time::{Duration, Instant};

use super::link::{Closing, Kind};
use super::state::Core;
use crate::egress::{Egress, Token, is_shortage};
use crate::limits::THAWED_MS;

impl<E: Egress> Core<E> {
    /// Sends nothing from now on, and cancels what is in flight. [`Core::is_frozen`] says when it has been joined.
    pub fn freeze(&mut self) {
        self.frozen = true;
        let busy = self.links.iter().filter(|(_, link)| link.busy.is_some());
        let tokens = busy.map(|(slot, link)| Token { slot: slot as u32, generation: link.generation });
        for token in tokens.collect::<Vec<_>>() {
            self.egress.cancel(token);
        }
        self.egress.flush();
    }

    /// Whether nothing is sent, and nothing is in flight.
    pub fn is_frozen(&self) -> bool {
        self.frozen && self.egress.in_flight() == 0
    }

    /// Sends again: the rest of each operation first, then what has come meanwhile. Nobody lags or times out for the time in between. (A
    /// player whose link cannot carry in `queue.age` what has come in a long freeze lags all the same, and skips.)
    pub fn thaw(&mut self, now: Instant) {
        self.frozen = false;
        self.spares_until = Some(now + Duration::from_millis(THAWED_MS));
        self.put_off.make_due(now);
        self.streams.offer_all();
        self.streams.resume(now);
        let slots: Vec<u32> = self.links.iter().map(|(slot, _)| slot as u32).collect();
        for slot in slots {
            self.links.wake(slot);
        }
        self.send_again(now);
    }

    /// An operation has ended early. Returns whether its rest is sent later.
    #[cold]
    pub(super) fn goes_on_later(&mut self, now: Instant, token: Token, error: &io::Error) -> bool {
        let is_cancelled = error.raw_os_error() == Some(libc::ECANCELED);
        (is_shortage(error) && self.shortage(now, token, error)) || (is_cancelled && self.interrupted(now, token))
    }

    /// An operation was cancelled, and not because its connection is being closed: by a freeze, which may be over by now. Its rest is
    /// kept. Returns whether there is one to keep.
    fn interrupted(&mut self, now: Instant, token: Token) -> bool {
        let unsent = self.egress.take_unsent(token);
        let Some(link) = self.links.of_token_mut(token) else { return false };
        if unsent.is_empty() || link.closing == Closing::Join || !matches!(link.kind, Kind::Tcp { .. }) {
            return false;
        }
        link.busy = Some(now);
        self.put_off.add(now, token, unsent);
        true
    }
}
