//! The end of cameras' pauses, for all cameras of a thread together.
//!
//! The runtime's timers end on the whole milliseconds of its clock, up to a pause's length late, and each costs a lock. One timer of the kernel's
//! (timerfd_create(2)) ends pauses on time, and those that end close together by one wake-up.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;

use crate::limits::CAMERA_PAUSES_TOGETHER_US;
use crate::sys;

thread_local! {
    static PAUSES: RefCell<Option<Pauses>> = const { RefCell::new(None) };
}

#[derive(Debug)]
struct Pauses {
    timer: TimerFd,
    /// When the timer ends.
    armed: Option<Instant>,
    /// Ends are counted from here, in steps of [`CAMERA_PAUSES_TOGETHER_US`].
    begun: Instant,
    waiting: Vec<(Instant, Waker)>,
}

impl Pauses {
    fn start() -> io::Result<Pauses> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        spawn_local(end_pauses(sys::watched(timer.as_fd().try_clone_to_owned()?)?, Over));
        Ok(Pauses { timer, armed: None, begun: Instant::now(), waiting: Vec::new() })
    }

    fn add(&mut self, until: Instant, waker: Waker) {
        let until = stepped(self.begun, until);
        self.waiting.push((until, waker));
        if self.armed.is_none_or(|armed| until < armed) {
            self.arm(until);
        }
    }

    fn arm(&mut self, until: Instant) {
        // Zero would disarm it.
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let set = self.timer.set(Expiration::OneShot(left.into()), TimerSetTimeFlags::empty());
        debug_assert!(set.is_ok(), "{set:?}");
        self.armed = Some(until);
    }

    fn end(&mut self, now: Instant) {
        self.waiting.retain(|(until, waker)| {
            if *until <= now {
                waker.wake_by_ref();
            }
            *until > now
        });
        self.armed = None;
        if let Some(next) = self.waiting.iter().map(|(until, _)| *until).min() {
            self.arm(next);
        }
    }
}

/// The end of the step, counted from `begun`, that `until` is in. It is never earlier than requested, because a task that is woken
/// earlier is not woken again.
fn stepped(begun: Instant, until: Instant) -> Instant {
    let step = u128::from(CAMERA_PAUSES_TOGETHER_US) * 1_000;
    let over = until.saturating_duration_since(begun).as_nanos() % step;
    until + Duration::from_nanos(((step - over) % step) as u64)
}

/// Makes what the thread's cameras need, before there is one: what a thread holds open does not grow later. Without it they have the
/// runtime's timers.
pub(crate) fn prepare() {
    PAUSES.with_borrow_mut(|pauses| {
        if pauses.is_none() {
            *pauses = Pauses::start().ok();
        }
    });
}

/// Wakes the task of `cx` at that time, or a little later; whether it will.
pub(super) fn wake_at(until: Instant, cx: &Context<'_>) -> bool {
    prepare();
    PAUSES.with_borrow_mut(|pauses| {
        let Some(pauses) = pauses else { return false };
        pauses.add(until, cx.waker().clone());
        true
    })
}

/// Takes the thread's pauses away with the runtime that they end on.
struct Over;

impl Drop for Over {
    fn drop(&mut self) {
        // Where the thread ends they are gone already.
        let _ = PAUSES.try_with(|pauses| pauses.try_borrow_mut().map(|mut pauses| pauses.take()));
    }
}

async fn end_pauses(timer: AsyncFd<OwnedFd>, _over: Over) {
    while let Ok(mut ended) = timer.readable().await {
        ended.clear_ready();
        PAUSES.with_borrow_mut(|pauses| {
            if let Some(pauses) = pauses {
                pauses.end(Instant::now());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    async fn sleep_until(until: Instant) {
        let mut told = false;
        poll_fn(|cx| {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut told, true) {
                assert!(wake_at(until, cx));
            }
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn no_end_is_brought_forward_however_long_the_thread_has_run() {
        let (begun, step) = (Instant::now(), Duration::from_micros(CAMERA_PAUSES_TOGETHER_US));
        for days in [0, 13, 400, 10_000] {
            for us in [0, 1, 249, 250, 251] {
                let until = begun + Duration::from_secs(days * 86_400) + Duration::from_micros(us);
                let stepped = stepped(begun, until);
                assert!(stepped >= until && stepped - until < step, "{days} days, {us} us");
                assert_eq!((stepped - begun).as_nanos() % step.as_nanos(), 0);
            }
        }
    }

    #[test]
    fn all_end_and_on_each_runtime_of_a_thread() {
        for _ in 0..2 {
            Runtime::new(IoKind::Epoll).unwrap().block_on(async {
                let begun = Instant::now();
                let tasks = [7, 1, 5, 3, 5].map(|after| spawn_local(sleep_until(begun + Duration::from_millis(after))));
                for task in tasks {
                    task.await.unwrap();
                }
                assert!(begun.elapsed() >= Duration::from_millis(7));
            });
        }
    }
}
