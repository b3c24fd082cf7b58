//! A future that is polled only when it has been woken itself.
//!
//! The conditions that end a camera's session are rare, and are polled in one task together with the camera's socket. Without this,
//! each read would check all of these conditions and touch their memory, which is no longer in the cache.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    /// The task that polls.
    task: Mutex<Waker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

/// Stands between a task and one of its futures.
#[derive(Debug)]
pub(super) struct Gate {
    bell: Arc<Bell>,
    waker: Waker,
    /// The waker that was last passed to the bell.
    task: Waker,
}

impl Gate {
    pub(super) fn new() -> Gate {
        let task = Waker::noop().clone();
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        Gate { waker: Waker::from(Arc::clone(&bell)), bell, task }
    }

    /// Polls the future if it was woken since the last time, or never polled. It must always be the same future.
    pub(super) fn poll<F: Future + ?Sized>(&mut self, cx: &Context<'_>, future: Pin<&mut F>) -> Poll<F::Output> {
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            self.bell.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(cx.waker());
        }
        if self.bell.rung.load(Ordering::Relaxed) && self.bell.rung.swap(false, Ordering::Acquire) {
            return future.poll(&mut Context::from_waker(&self.waker));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::watch;

    use super::*;

    #[test]
    fn a_future_is_polled_when_it_is_woken_and_not_with_its_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (sender, mut seen) = watch::channel(0);
            let polls = Cell::new(0);
            let mut inner = pin!(seen.wait_for(|value| *value == 2));
            let mut counted = pin!(poll_fn(|cx| {
                polls.set(polls.get() + 1);
                inner.as_mut().poll(cx).map(|value| *value.expect("the sender is there"))
            }));
            let mut gate = Gate::new();
            let mut turns = 0;
            let came = poll_fn(|cx| {
                turns += 1;
                match turns {
                    // Woken by something else, again and again.
                    1..100 => cx.waker().wake_by_ref(),
                    100 => sender.send(1).expect("somebody looks"),
                    101 => sender.send(2).expect("somebody looks"),
                    _ => {}
                }
                gate.poll(cx, counted.as_mut())
            });
            assert_eq!(came.await, 2);
            assert!((2..=3).contains(&polls.get()), "{} polls in {turns} turns", polls.get());
        });
    }
}
