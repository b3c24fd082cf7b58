//! Decides which handshake computes next: among those with data available, the newest. All together they may use only part of each time
//! slice, so that the thread's other work continues.
//!
//! Under overload, the order decides who is served at all. With the oldest first, every client would wait as long as the attackers'
//! connections do, until it gives up. With the newest first, some clients are served immediately.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use crate::limits::{TLS_HALF_OPEN_MAX, TLS_SLICE_COMPUTED_US, TLS_SLICE_US};

/// The waiting handshakes, newest last. No borrow is held across an `await`.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: RefCell<Vec<oneshot::Sender<Turn>>>,
    come: Notify,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    computed: Duration,
    over: Option<oneshot::Sender<Duration>>,
}

impl Turn {
    /// Computes something.
    pub(super) fn compute<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = what();
        self.computed += began.elapsed();
        // A shard that waits for this processor would otherwise wait for the next ones, too (sched_yield(2)).
        std::thread::yield_now();
        done
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(over) = self.over.take() {
            // During a stop, no more turns are given.
            let _ = over.send(self.computed);
        }
    }
}

/// The time computed in the current slice.
#[derive(Debug)]
struct Slice {
    began: Instant,
    computed: Duration,
}

impl Slice {
    /// When there is time for another turn; `None` if that is now.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        let end = self.began + Duration::from_micros(TLS_SLICE_US);
        if now >= end {
            *self = Slice { began: now, computed: Duration::ZERO };
        }
        (self.computed >= Duration::from_micros(TLS_SLICE_COMPUTED_US)).then_some(end)
    }
}

impl Turns {
    /// Waits for a turn. Dropping the future stops waiting.
    pub(super) async fn turn(&self) -> Turn {
        let (give, given) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            if waiting.len() >= 2 * TLS_HALF_OPEN_MAX {
                // Those at the bottom might never be checked for being still there.
                waiting.retain(|give| !give.is_closed());
            }
            waiting.push(give);
        }
        self.come.notify_one();
        match given.await {
            Ok(turn) => turn,
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives turns, one after another, until it is dropped.
    pub(super) async fn give(&self) {
        let mut slice = Slice { began: Instant::now(), computed: Duration::ZERO };
        loop {
            if self.waiting.borrow().is_empty() {
                self.come.notified().await;
                continue;
            }
            if let Some(next) = slice.next(Instant::now()) {
                sleep_until(next.into()).await;
                continue;
            }
            // Those that arrived meanwhile go first.
            let Some(newest) = self.waiting.borrow_mut().pop() else { continue };
            let (over, is_over) = oneshot::channel();
            if newest.send(Turn { computed: Duration::ZERO, over: Some(over) }).is_ok() {
                slice.computed += is_over.await.unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{spawn_local, yield_now};

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    #[test]
    fn the_newest_has_the_next_turn_and_who_has_gone_has_none() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let turns = Rc::new(Turns::default());
            let order = Rc::new(RefCell::new(Vec::new()));
            let mut tasks = Vec::new();
            for number in 0..4 {
                let (turns, order) = (Rc::clone(&turns), Rc::clone(&order));
                tasks.push(spawn_local(async move {
                    let mut turn = turns.turn().await;
                    turn.compute(|| order.borrow_mut().push(number));
                }));
                yield_now().await;
            }
            tasks.remove(2).abort();
            yield_now().await;
            let giver = spawn_local({
                let turns = Rc::clone(&turns);
                async move { turns.give().await }
            });
            for task in tasks {
                task.await.unwrap();
            }
            giver.abort();
            assert_eq!(*order.borrow(), [3, 1, 0]);
        });
    }

    #[test]
    fn those_who_have_gone_take_no_room_for_ever() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let turns = Turns::default();
            for _ in 0..10 * TLS_HALF_OPEN_MAX {
                let mut turn = std::pin::pin!(turns.turn());
                assert!(futures::poll!(turn.as_mut()).is_pending());
            }
            assert!(turns.waiting.borrow().len() <= 2 * TLS_HALF_OPEN_MAX + 1);
        });
    }

    #[test]
    fn a_slice_has_only_so_much_of_it() {
        let began = Instant::now();
        let mut slice = Slice { began, computed: Duration::ZERO };
        assert_eq!(slice.next(began), None);
        slice.computed += Duration::from_micros(TLS_SLICE_COMPUTED_US);
        let end = began + Duration::from_micros(TLS_SLICE_US);
        assert_eq!(slice.next(began), Some(end));
        assert_eq!(slice.next(end), None);
    }
}
