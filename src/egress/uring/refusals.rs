//! Handles refused submissions: logs them, and retries after a while.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::egress::is_shortage;
use crate::limits::SHORTAGE_PAUSE_MS;
use crate::told::Told;

/// Refusals of one ring.
#[derive(Default)]
pub(super) struct Refusals {
    /// Runs until the next attempt, unless something else triggers one.
    pause: Option<Pin<Box<Sleep>>>,
    /// The total, for any reason.
    pub count: u64,
    /// When one was last logged: one that is not a shortage, and one that is.
    told: [Told; 2],
    /// The next submissions are refused with these errors.
    #[cfg(test)]
    pub script: std::collections::VecDeque<i32>,
}

impl Refusals {
    /// Counts one, and logs it if that is due.
    #[cold]
    pub(super) fn refused(&mut self, error: &io::Error) {
        self.count += 1;
        let shortage = is_shortage(error);
        if !self.told[usize::from(shortage)].is_due(Instant::now()) {
            return;
        }
        if shortage {
            tracing::warn!(
                %error,
                "the kernel accepts no sends from this shard, which keeps trying; free memory or raise the relay's limits (MemoryMax=, LimitMEMLOCK= in a unit)"
            );
        } else {
            tracing::warn!(%error, "the kernel accepts no sends from this shard, which keeps trying; io = \"epoll\" works without io_uring");
        }
    }

    /// Submissions were refused several times in a row.
    pub(super) fn pause(&mut self) {
        self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(SHORTAGE_PAUSE_MS))));
    }

    /// Everything has been submitted.
    pub(super) fn over(&mut self) {
        self.pause = None;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether it is time to retry; otherwise registers the waker.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// The error that a test wants in place of a submission.
    #[cfg(test)]
    pub(crate) fn scripted(&mut self) -> Option<io::Error> {
        self.script.pop_front().map(io::Error::from_raw_os_error)
    }

    #[cfg(not(test))]
    pub(super) fn scripted(&mut self) -> Option<io::Error> {
        None
    }
}
