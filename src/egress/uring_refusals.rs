//! What to do when the kernel refuses a submission: say so, and try again after a while.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::limits::{SHORTAGE_PAUSE_MS, SHORTAGE_TOLD_EVERY_S};

/// Refusals of one ring.
#[derive(Default)]
pub(super) struct Refusals {
    /// Runs until the next try, if nothing else gives an occasion for one.
    pause: Option<Pin<Box<Sleep>>>,
    told: Option<Instant>,
    /// The next submissions are refused with these errors.
    #[cfg(test)]
    pub script: std::collections::VecDeque<i32>,
}

impl Refusals {
    /// Says it, but not again for [`SHORTAGE_TOLD_EVERY_S`].
    #[cold]
    pub fn tell(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(SHORTAGE_TOLD_EVERY_S)) {
            self.told = Some(Instant::now());
            tracing::warn!(
                %error,
                "the kernel takes no sends from this shard, which goes on trying; free memory or raise the limits that hold the relay (MemoryMax=, LimitMEMLOCK= in a unit)"
            );
        }
    }

    /// Submissions were refused several times in a row.
    pub fn pause(&mut self) {
        self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(SHORTAGE_PAUSE_MS))));
    }

    pub fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether it is time to try again; registers the waker otherwise.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// The error that a test wants instead of a submission.
    #[cfg(test)]
    pub fn scripted(&mut self) -> Option<io::Error> {
        self.script.pop_front().map(io::Error::from_raw_os_error)
    }

    #[cfg(not(test))]
    pub fn scripted(&mut self) -> Option<io::Error> {
        None
    }
}
