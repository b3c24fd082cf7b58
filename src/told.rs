//! What may happen a thousand times a second is not told as often.

use std::time::{Duration, Instant};

const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Says a thing once a minute at most.
#[derive(Debug, Default)]
pub(crate) struct Told(Option<Instant>);

impl Told {
    pub(crate) fn warn(&mut self, message: &str) {
        if self.0.is_none_or(|last| last.elapsed() >= TOLD_EVERY) {
            self.0 = Some(Instant::now());
            tracing::warn!("{message}");
        }
    }
}
