//! Limits repeated log messages.

use std::time::{Duration, Instant};

use crate::limits::TOLD_EVERY_S;

/// When a problem was last logged.
#[derive(Debug)]
pub(crate) struct Told<T = Instant>(pub(crate) Option<T>);

impl Default for Told {
    fn default() -> Self {
        Told(None)
    }
}

impl Told {
    /// Whether to log it now: at most once per [`TOLD_EVERY_S`].
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(TOLD_EVERY_S));
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_at_once_and_then_not_for_a_while() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut told = Told::default();
        let due = [0, 1, TOLD_EVERY_S - 1, TOLD_EVERY_S, TOLD_EVERY_S + 1].map(|seconds| told.is_due(at(seconds)));
        assert_eq!(due, [true, false, false, true, false]);
    }
}
