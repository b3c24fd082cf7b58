//! Limits the rate of requests on a connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::{FLOOD_REMEMBERED_S, FLOODERS_MAX, FRAMES_PER_REQUEST, REQUESTS_AT_ONCE_MAX, REQUESTS_PER_S_MAX};

/// The cost of a request, as the time in which the allowance recovers it.
const REQUEST: Duration = Duration::from_nanos(1_000_000_000 / REQUESTS_PER_S_MAX as u64);

/// The cost of an interleaved frame.
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / (REQUESTS_PER_S_MAX * FRAMES_PER_REQUEST) as u64);

/// The whole allowance.
const WHOLE: Duration = Duration::from_nanos(REQUEST.as_nanos() as u64 * REQUESTS_AT_ONCE_MAX as u64);

/// A connection's allowance: a burst of [`REQUESTS_AT_ONCE_MAX`] requests, which refills by [`REQUESTS_PER_S_MAX`] per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// When the allowance will be full again.
    whole_at: Instant,
}

impl Rate {
    /// The whole allowance.
    pub(super) fn new(now: Instant) -> Rate {
        Rate { whole_at: now }
    }

    /// Without a burst: for a connection from an address that has sent a flood.
    pub(super) fn spent(now: Instant) -> Rate {
        Rate { whole_at: now + WHOLE }
    }

    /// An allowance that will be whole at that time.
    pub(super) fn whole(whole_at: Instant) -> Rate {
        Rate { whole_at }
    }

    /// When the allowance will be whole again.
    pub(super) fn whole_at(&self) -> Instant {
        self.whole_at
    }

    /// Until when the next request must wait; `None` if it need not.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        let missing = self.whole_at.saturating_duration_since(now);
        (missing + REQUEST > WHOLE).then(|| now + (missing + REQUEST - WHOLE))
    }

    /// Counts a request.
    pub(super) fn spend(&mut self, now: Instant) {
        self.whole_at = self.whole_at.max(now) + REQUEST;
    }

    /// Counts an interleaved frame.
    pub(super) fn spend_frame(&mut self, now: Instant) {
        self.whole_at = self.whole_at.max(now) + FRAME;
    }
}

/// Remembers where floods came from: a client that was closed for sending too many requests reconnects at once, and would have a new
/// allowance each time.
#[derive(Debug, Default)]
pub(super) struct Flooders {
    until: HashMap<IpAddr, Instant>,
}

impl Flooders {
    /// A connection from there was closed for sending too many requests. At most [`FLOODERS_MAX`] addresses are remembered; newer ones
    /// are ignored.
    pub(super) fn add(&mut self, now: Instant, origin: IpAddr) {
        if self.until.len() >= FLOODERS_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < FLOODERS_MAX || self.until.contains_key(&origin) {
            self.until.insert(origin, now + Duration::from_secs(FLOOD_REMEMBERED_S));
        }
    }

    /// Whether a flood has come from there recently.
    pub(super) fn has(&self, now: Instant, origin: IpAddr) -> bool {
        self.until.get(&origin).is_some_and(|until| *until > now)
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

    #[test]
    fn floods_are_remembered_for_a_while_and_only_so_many() {
        let start = Instant::now();
        let address = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        let mut flooders = Flooders::default();
        for number in 0..=FLOODERS_MAX {
            flooders.add(start, address(number));
        }
        assert!(flooders.has(start, address(0)) && !flooders.has(start, address(FLOODERS_MAX)));
        assert!(Rate::spent(start).wait(start).is_some());
        let later = start + Duration::from_secs(FLOOD_REMEMBERED_S);
        assert!(!flooders.has(later, address(0)));
        flooders.add(later, address(FLOODERS_MAX));
        assert!(flooders.has(later, address(FLOODERS_MAX)), "those whose time is over make room");
    }
}
