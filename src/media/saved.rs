//! State as plain data, for saving and for another process.
//!
//! Types that contain times have them as a type parameter: an [`Instant`] in use, a [`Moment`] when saved.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use crate::wire::saved_bytes as bytes;

/// A time in nanoseconds relative to a reference that the saver and the restorer agree on; negative before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(i64);

impl Moment {
    /// `at` relative to `reference`. Differences of centuries are clamped.
    pub fn of(at: Instant, reference: Instant) -> Moment {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        match at.checked_duration_since(reference) {
            Some(after) => Moment(nanos(after)),
            None => Moment(-nanos(reference.saturating_duration_since(at))),
        }
    }

    /// The time in this process, where `reference` is the agreed reference. Times that the clock cannot represent become `reference`.
    pub fn at(self, reference: Instant) -> Instant {
        let away = Duration::from_nanos(self.0.unsigned_abs());
        let at = if self.0 < 0 { reference.checked_sub(away) } else { reference.checked_add(away) };
        at.unwrap_or(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back_to_the_nanosecond() {
        let now = Instant::now();
        for away in [0, 1, 999_999_999, 86_400_000_000_000] {
            let away = Duration::from_nanos(away);
            for at in [now + away, now.checked_sub(away).unwrap_or(now)] {
                assert_eq!(Moment::of(at, now).at(now), at);
            }
        }
    }
}
