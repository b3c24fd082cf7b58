//! Shares a shard's thread between its cameras and its clients.
//!
//! Between two passes of the shard, all its cameras together may be read for a limited time and amount ([`CAMERAS_TURN_MAX_US`],
//! [`CAMERAS_TURN_BYTES_MAX`]). Cameras that become ready after that wait in a queue, and a camera that was read goes to its end. If no
//! shard takes part, as in a program that only pulls, nothing waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::limits::{CAMERAS_TURN_BYTES_MAX, CAMERAS_TURN_MAX_US};

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

#[derive(Debug, Default)]
struct Turns {
    /// The waker of the shard, which starts each turn.
    shard: Option<Waker>,
    spent: Duration,
    bytes: usize,
    /// The waiting cameras, in order.
    line: VecDeque<(u64, Waker)>,
    /// The number for the next camera.
    next: u64,
}

impl Turns {
    fn is_over(&self) -> bool {
        self.spent >= Duration::from_micros(CAMERAS_TURN_MAX_US) || self.bytes >= CAMERAS_TURN_BYTES_MAX
    }

    fn wake_first(&self) {
        if let Some((_, first)) = self.line.front() {
            first.wake_by_ref();
        }
    }

    fn wake_shard(&self) {
        if let Some(shard) = &self.shard {
            shard.wake_by_ref();
        }
    }

    fn wait(&mut self, number: u64, cx: &Context<'_>) {
        match self.line.iter_mut().find(|(of, _)| *of == number) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => self.line.push_back((number, cx.waker().clone())),
        }
        if self.is_over() { self.wake_shard() } else { self.wake_first() }
    }
}

/// The shard, whose task `cx` wakes, makes a pass; a new turn starts after it.
pub(crate) fn begin(cx: &Context<'_>) {
    TURNS.with_borrow_mut(|turns| {
        match &mut turns.shard {
            Some(shard) => shard.clone_from(cx.waker()),
            None => turns.shard = Some(cx.waker().clone()),
        }
        (turns.spent, turns.bytes) = (Duration::ZERO, 0);
        turns.wake_first();
    });
}

/// One who takes part.
#[derive(Debug)]
pub(super) struct Turn {
    number: u64,
}

impl Turn {
    pub(super) fn new() -> Turn {
        TURNS.with_borrow_mut(|turns| {
            turns.next += 1;
            Turn { number: turns.next }
        })
    }

    /// Whether it may read now. If not, the task of `cx` is woken when it may.
    pub(super) fn may_read(&self, cx: &Context<'_>) -> bool {
        TURNS.with_borrow_mut(|turns| {
            if turns.shard.is_none() {
                return true;
            }
            let is_first = turns.line.front().is_none_or(|(first, _)| *first == self.number);
            if !is_first || turns.is_over() {
                turns.wait(self.number, cx);
                return false;
            }
            turns.line.pop_front();
            // It may find nothing to read, and would then wake no other.
            turns.wake_first();
            true
        })
    }

    /// Adds the time and bytes that it has read; returns whether the turn is over.
    pub(super) fn spent(&self, time: Duration, bytes: usize) -> bool {
        TURNS.with_borrow_mut(|turns| {
            turns.spent += time;
            turns.bytes = turns.bytes.saturating_add(bytes);
            let over = turns.is_over();
            if !turns.line.is_empty() {
                if over { turns.wake_shard() } else { turns.wake_first() }
            }
            over
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // When the thread ends, nobody is waiting any more.
        let _ = TURNS.try_with(|turns| {
            let Ok(mut turns) = turns.try_borrow_mut() else { return };
            let first = turns.line.front().is_some_and(|(first, _)| *first == self.number);
            turns.line.retain(|(of, _)| *of != self.number);
            if first {
                turns.wake_first();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::WakeCount;

    /// A task that counts how often it is woken.
    struct Task(Arc<WakeCount>, Waker);

    impl Task {
        fn new() -> Task {
            let woken = Arc::new(WakeCount::default());
            Task(Arc::clone(&woken), Waker::from(woken))
        }

        fn cx(&self) -> Context<'_> {
            Context::from_waker(&self.1)
        }

        fn woken(&self) -> bool {
            self.0.take() > 0
        }
    }

    const ALL: Duration = Duration::from_micros(CAMERAS_TURN_MAX_US);

    #[test]
    fn cameras_that_flood_take_turns_and_the_shard_has_its_own_between() {
        let (shard, tasks) = (Task::new(), [Task::new(), Task::new(), Task::new()]);
        begin(&shard.cx());
        let cameras = [Turn::new(), Turn::new(), Turn::new()];
        let mut read = [0; 3];
        for turn in 0..30 {
            // All of them always have something to read, and each reads as long as it may.
            for (at, camera) in cameras.iter().enumerate() {
                if turn == 0 || tasks[at].woken() {
                    while camera.may_read(&tasks[at].cx()) {
                        read[at] += 1;
                        camera.spent(ALL, 1);
                    }
                }
            }
            assert!(shard.woken(), "somebody waits for its next pass");
            begin(&shard.cx());
        }
        // The first one is in the queue when the others arrive.
        assert!(read.iter().sum::<i32>() == 30 && read.iter().all(|times| (9..=11).contains(times)), "{read:?}");
    }

    #[test]
    fn who_is_gone_holds_nobody_up() {
        let (shard, tasks) = (Task::new(), [Task::new(), Task::new()]);
        begin(&shard.cx());
        let [first, second] = [Turn::new(), Turn::new()];
        first.spent(ALL, 0);
        assert!(!first.may_read(&tasks[0].cx()) && !second.may_read(&tasks[1].cx()));
        drop(first);
        begin(&shard.cx());
        assert!(tasks[1].woken() && second.may_read(&tasks[1].cx()));
        // If less than a turn was spent, the next continues at once.
        let third = Turn::new();
        assert!(!second.spent(ALL / 2, 0) && third.may_read(&tasks[0].cx()));
        assert!(third.spent(ALL / 2, 0) && !third.may_read(&tasks[0].cx()));
    }

    #[test]
    fn without_a_shard_nobody_waits() {
        std::thread::spawn(|| {
            let (turn, task) = (Turn::new(), Task::new());
            assert!(turn.spent(ALL, 0) && turn.may_read(&task.cx()));
        })
        .join()
        .unwrap();
    }
}
