//! How much one connection may ask.

use std::time::{Duration, Instant};

use crate::limits::{FRAMES_PER_REQUEST, REQUESTS_AT_ONCE_MAX, REQUESTS_PER_S_MAX};

/// What a request takes of the allowance, as the time in which as much comes back.
const REQUEST: Duration = Duration::from_nanos(1_000_000_000 / REQUESTS_PER_S_MAX as u64);

/// What an interleaved frame takes.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / (REQUESTS_PER_S_MAX * FRAMES_PER_REQUEST) as u64);

/// The whole allowance.
const WHOLE: Duration = Duration::from_nanos(REQUEST.as_nanos() as u64 * REQUESTS_AT_ONCE_MAX as u64);

/// A connection's allowance: [`REQUESTS_AT_ONCE_MAX`] requests, of which [`REQUESTS_PER_S_MAX`] come back every second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// When nothing is missing of the allowance.
    whole_at: Instant,
}

impl Rate {
    /// The whole allowance.
    pub(super) fn new(now: Instant) -> Rate {
        Rate { whole_at: now }
    }

    /// Until when the next request has to wait; `None` if it need not.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        let missing = self.whole_at.saturating_duration_since(now);
        (missing + REQUEST > WHOLE).then(|| now + (missing + REQUEST - WHOLE))
    }

    /// A request is looked at.
    pub(super) fn spend(&mut self, now: Instant) {
        self.whole_at = self.whole_at.max(now) + REQUEST;
    }

    /// An interleaved frame is looked at.
    pub(super) fn spend_frame(&mut self, now: Instant) {
        self.whole_at = self.whole_at.max(now) + FRAME;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_go_at_once_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..REQUESTS_AT_ONCE_MAX {
            assert_eq!(rate.wait(start), None);
            rate.spend(start);
        }
        let until = rate.wait(start).unwrap();
        assert_eq!(until, start + REQUEST);
        assert_eq!(rate.wait(until), None);
        let later = start + 2 * WHOLE;
        let asked = (0..).take_while(|_| rate.wait(later).is_none().then(|| rate.spend(later)).is_some()).count();
        assert_eq!(asked, REQUESTS_AT_ONCE_MAX as usize, "what has come back is no more than the whole");
    }
}
