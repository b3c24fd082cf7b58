//! The delays between attempts to connect.

use std::time::{Duration, Instant};

use super::camera::fault::Retry;

/// For this long after it was live, a source is retried with the first delay.
pub const EAGER: Duration = Duration::from_secs(10);

/// The same for a camera that has never been live, while it is only unreachable, because one that restarts is back soon. A camera that
/// answers and refuses is not retried that often.
const EAGER_AT_FIRST: Duration = Duration::from_secs(5);

/// Maximum delay for something that answers in place of the camera and has no stream at present.
const UNREADY_MAX: Duration = Duration::from_secs(5);

/// Delays after the second and further refusals of the same password. Cameras lock out an address for a minute or more, and restart
/// that time with each attempt.
const REFUSED: [Duration; 4] =
    [Duration::from_secs(60), Duration::from_secs(120), Duration::from_secs(300), Duration::from_secs(600)];

/// The configured delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The first wait, about.
    pub first: Duration,
    /// The maximum delay, except after a refused password.
    pub max: Duration,
    /// The maximum delay after a refused password.
    pub refused_max: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Waits {
            first: Duration::from_millis(250),
            max: Duration::from_secs(30),
            refused_max: REFUSED[REFUSED.len() - 1],
        }
    }
}

/// Exponential backoff with jitter, which prevents many relays from reconnecting to a rebooted camera at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    waits: Waits,
    /// The next delay is drawn from the upper half of this.
    span: Duration,
    waited: Duration,
    /// Until when the source counts as recently live.
    eager: Option<Instant>,
}

impl Backoff {
    /// Starts with the shortest delay.
    pub fn new(waits: Waits) -> Self {
        Backoff { waits, span: waits.first * 2, waited: Duration::ZERO, eager: None }
    }

    /// The source was live until `now`.
    pub fn lost(&mut self, now: Instant) {
        *self = Backoff { eager: Some(now + EAGER), ..Backoff::new(self.waits) };
    }

    /// The next delay, after a fault of this kind. `random` is from 0 to 1.
    pub fn wait(&mut self, now: Instant, retry: Retry, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let Waits { first, max, .. } = self.waits;
        if self.eager.is_some_and(|until| now < until) {
            return first.mul_f64(0.8 + 0.4 * random);
        }
        let half = self.span / 2;
        let wait = half + half.mul_f64(random);
        self.waited += wait;
        if retry != Retry::Absent || self.eager.is_some() || self.waited >= EAGER_AT_FIRST {
            self.span = (self.span * 2).min(max);
        }
        if retry == Retry::Unready { wait.min(UNREADY_MAX) } else { wait.min(max) }
    }
}

/// A camera's refusals of the password: after the second refusal of the same password it is not contacted for increasingly long times.
#[derive(Clone, Debug)]
pub struct Refusals {
    waits: Waits,
    /// In a row.
    count: usize,
    until: Option<Instant>,
}

impl Refusals {
    /// None so far.
    pub fn new(waits: Waits) -> Self {
        Refusals { waits, count: 0, until: None }
    }

    /// A session ended at `now`; `refused` is whether because of the password. Another fault shows that the camera has changed.
    pub fn judge(&mut self, now: Instant, refused: bool) {
        self.count = if refused { self.count + 1 } else { 0 };
        self.until =
            self.count.checked_sub(2).map(|at| now + REFUSED[at.min(REFUSED.len() - 1)].min(self.waits.refused_max));
    }

    /// How long from `now` on the camera must not be contacted.
    pub fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Allows an attempt now. If it is refused too, the delay after it is the next longer one.
    pub fn forget_wait(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &mut Backoff, retry: Retry, random: f64, times: usize) -> Vec<u128> {
        let now = Instant::now();
        (0..times).map(|_| backoff.wait(now, retry, random).as_millis()).collect()
    }

    #[test]
    fn waits_double_between_their_bounds() {
        let low = millis(&mut Backoff::new(Waits::default()), Retry::Other, 0.0, 9);
        assert_eq!(low, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
        let high = millis(&mut Backoff::new(Waits::default()), Retry::Other, 1.0, 9);
        assert_eq!(high, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        let waits = Waits { first: Duration::from_secs(1), max: Duration::from_secs(3), ..Waits::default() };
        assert_eq!(millis(&mut Backoff::new(waits), Retry::Other, 1.0, 3), [2_000, 3_000, 3_000]);
    }

    #[test]
    fn one_that_is_not_there_is_asked_often_for_a_while() {
        let waits = millis(&mut Backoff::new(Waits::default()), Retry::Absent, 0.0, 23);
        assert_eq!(waits[..20], [250; 20]);
        assert_eq!(waits[20..], [500, 1_000, 2_000]);
    }

    #[test]
    fn one_that_was_live_is_asked_often_whatever_it_says() {
        let mut backoff = Backoff::new(Waits::default());
        let lost = Instant::now();
        backoff.lost(lost);
        for (retry, random, wait) in [(Retry::Absent, 0.0, 200), (Retry::Unready, 0.5, 250), (Retry::Other, 1.0, 300)] {
            assert_eq!(backoff.wait(lost + EAGER / 2, retry, random).as_millis(), wait);
        }
        let later = lost + EAGER;
        let waits: Vec<_> = (0..4).map(|_| backoff.wait(later, Retry::Absent, 0.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000]);
    }

    #[test]
    fn what_has_no_stream_now_is_asked_every_few_seconds() {
        let waits = millis(&mut Backoff::new(Waits::default()), Retry::Unready, 1.0, 20);
        assert_eq!(waits.iter().max(), Some(&5_000));
    }

    #[test]
    fn a_refused_password_is_hardly_tried_again() {
        let now = Instant::now();
        let seconds = |refusals: &mut Refusals, times: usize| -> Vec<u64> {
            let mut wait = || {
                refusals.judge(now, true);
                refusals.left(now).as_secs()
            };
            (0..times).map(|_| wait()).collect()
        };
        let mut refusals = Refusals::new(Waits::default());
        assert_eq!(seconds(&mut refusals, 6), [0, 60, 120, 300, 600, 600]);
        refusals.forget_wait();
        assert_eq!(refusals.left(now), Duration::ZERO);
        assert_eq!(seconds(&mut refusals, 1), [600]);
        refusals.judge(now, false);
        assert_eq!(seconds(&mut refusals, 2), [0, 60]);
        assert_eq!(refusals.left(now + Duration::from_secs(59)), Duration::from_secs(1));
        let short = Waits { refused_max: Duration::from_secs(90), ..Waits::default() };
        assert_eq!(seconds(&mut Refusals::new(short), 4), [0, 60, 90, 90]);
    }
}
