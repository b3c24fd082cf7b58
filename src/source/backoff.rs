//! How long to wait before the next try.

use std::time::Duration;

/// The shortest wait.
pub const WAIT_MIN: Duration = Duration::from_millis(200);

/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Exponential backoff with jitter: each wait is drawn from the upper half of a span that doubles from twice [`WAIT_MIN`] to
/// [`WAIT_MAX`]. The jitter keeps many relays from coming back to a rebooted camera all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    span: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { span: WAIT_MIN * 2 }
    }
}

impl Backoff {
    /// The next wait, from [`WAIT_MIN`] to [`WAIT_MAX`]. `random` is from 0 to 1.
    pub fn wait(&mut self, random: f64) -> Duration {
        let half = self.span / 2;
        self.span = (self.span * 2).min(WAIT_MAX);
        half + half.mul_f64(random.clamp(0.0, 1.0))
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
        (0..10).map(|_| backoff.wait(random).as_millis()).collect()
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
            assert!((0..100).all(|_| (WAIT_MIN..=WAIT_MAX).contains(&backoff.wait(random))));
        }
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut backoff = Backoff::default();
        millis(&mut backoff, 0.5);
        backoff.reset();
        assert_eq!(backoff.wait(0.0), WAIT_MIN);
    }
}
