//! How long to wait before the next try.

use std::time::Duration;

/// The shortest wait.
pub const WAIT_MIN: Duration = Duration::from_millis(200);

/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Time for which a camera that is merely not there is asked again and again with the shortest waits: one that restarts is
/// back within half a second then. One that answers, and refuses, is not pressed like that.
pub const EAGER: Duration = Duration::from_secs(5);

/// Exponential backoff with jitter: each wait is drawn from the upper half of a span that doubles from twice [`WAIT_MIN`] to
/// [`WAIT_MAX`]. The jitter keeps many relays from coming back to a rebooted camera all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    span: Duration,
    waited: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { span: WAIT_MIN * 2, waited: Duration::ZERO }
    }
}

impl Backoff {
    /// The next wait, from [`WAIT_MIN`] to [`WAIT_MAX`]. `random` is from 0 to 1; `absent` is for a camera that does not answer
    /// at all ([`EAGER`]).
    pub fn wait(&mut self, random: f64, absent: bool) -> Duration {
        let half = self.span / 2;
        let wait = half + half.mul_f64(random.clamp(0.0, 1.0));
        self.waited += wait;
        if !absent || self.waited >= EAGER {
            self.span = (self.span * 2).min(WAIT_MAX);
        }
        wait
    }

    /// Begins anew with the shortest wait.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &mut Backoff, random: f64) -> Vec<u128> {
        (0..10).map(|_| backoff.wait(random, false).as_millis()).collect()
    }

    #[test]
    fn waits_double_between_their_bounds() {
        let low = millis(&mut Backoff::default(), 0.0);
        assert_eq!(low, [200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000, 15_000]);
        let high = millis(&mut Backoff::default(), 1.0);
        assert_eq!(high, [400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn every_wait_is_within_the_limits() {
        for random in [-1.0, 0.0, 0.3, 0.999, 1.0, 7.0] {
            let mut backoff = Backoff::default();
            assert!((0..100).all(|_| (WAIT_MIN..=WAIT_MAX).contains(&backoff.wait(random, false))));
        }
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut backoff = Backoff::default();
        millis(&mut backoff, 0.5);
        backoff.reset();
        assert_eq!(backoff.wait(0.0, false), WAIT_MIN);
    }

    #[test]
    fn one_that_is_not_there_is_asked_often_for_a_while() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..28).map(|_| backoff.wait(0.0, true).as_millis()).collect();
        assert_eq!(waits[..25], [200; 25]);
        assert_eq!(waits[25..], [400, 800, 1_600]);
    }
}
