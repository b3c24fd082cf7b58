//! Decides which handshake computes next: of those with data available the newest, one that begins or one that was answered, whichever kind
//! has computed less so far. All together they may use only part of each time slice, so that the thread's other work continues.
//!
//! Under overload, the order decides who is served at all. With the oldest first, every client would wait as long as the attackers'
//! connections do, until it gives up. With the newest first, some clients are served immediately. Those that were answered have a queue of
//! their own, so that a client that was lucky with its first message need not be lucky again with its last one. They do not always go
//! first, because an attacker can ask for a cheap answer and make the next message the expensive one (RFC 8446 section 4.1.4). Time is
//! compared, not turns, because an attacker can have many cheap ones.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use crate::limits::{TLS_HALF_OPEN_MAX, TLS_SLICE_COMPUTED_US, TLS_SLICE_US};

/// What a handshake waits to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The answer to the client's first message.
    First,
    /// What follows that answer.
    Answered,
}

/// The waiting handshakes. No borrow is held across an `await`.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: RefCell<Waiting>,
    come: Notify,
}

/// The waiting handshakes of each stage, newest last.
#[derive(Debug, Default)]
struct Waiting {
    first: Vec<oneshot::Sender<Turn>>,
    answered: Vec<oneshot::Sender<Turn>>,
}

impl Waiting {
    fn of(&mut self, stage: Stage) -> &mut Vec<oneshot::Sender<Turn>> {
        match stage {
            Stage::First => &mut self.first,
            Stage::Answered => &mut self.answered,
        }
    }

    fn add(&mut self, stage: Stage, give: oneshot::Sender<Turn>) {
        let waiting = self.of(stage);
        if waiting.len() >= 2 * TLS_HALF_OPEN_MAX {
            // Those at the bottom might never be checked for being still there.
            waiting.retain(|give| !give.is_closed());
        }
        waiting.push(give);
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.answered.is_empty()
    }

    /// Removes the newest of the stage that has computed less, or of the other one if none waits there.
    fn next(&mut self, slice: &Slice) -> Option<(Stage, oneshot::Sender<Turn>)> {
        slice.stages().into_iter().find_map(|stage| Some((stage, self.of(stage).pop()?)))
    }
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

/// The time computed in the current slice, and by how much each stage is ahead of the other.
#[derive(Debug)]
pub(super) struct Slice {
    began: Instant,
    computed: Duration,
    first: Duration,
    answered: Duration,
}

impl Slice {
    pub(super) fn new(began: Instant) -> Self {
        Slice { began, computed: Duration::ZERO, first: Duration::ZERO, answered: Duration::ZERO }
    }

    fn add(&mut self, stage: Stage, computed: Duration) {
        self.computed += computed;
        match stage {
            Stage::First => self.first += computed,
            Stage::Answered => self.answered += computed,
        }
        let both = self.first.min(self.answered);
        // Who computed while nobody else wanted to need not wait for long because of it.
        let ahead = |stage: Duration| (stage - both).min(Duration::from_micros(TLS_SLICE_COMPUTED_US));
        (self.first, self.answered) = (ahead(self.first), ahead(self.answered));
    }

    /// The stages in the order in which they may compute.
    fn stages(&self) -> [Stage; 2] {
        if self.first < self.answered { [Stage::First, Stage::Answered] } else { [Stage::Answered, Stage::First] }
    }

    /// When there is time for another turn; `None` if that is now.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        let end = self.began + Duration::from_micros(TLS_SLICE_US);
        if now >= end {
            (self.began, self.computed) = (now, Duration::ZERO);
        }
        (self.computed >= Duration::from_micros(TLS_SLICE_COMPUTED_US)).then_some(end)
    }
}

impl Turns {
    /// Waits for a turn. Dropping the future stops waiting.
    pub(super) async fn turn(&self, stage: Stage) -> Turn {
        let (give, given) = oneshot::channel();
        self.waiting.borrow_mut().add(stage, give);
        self.come.notify_one();
        match given.await {
            Ok(turn) => turn,
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives turns, one after another, until it is dropped.
    pub(super) async fn give(&self) {
        let mut slice = Slice::new(Instant::now());
        loop {
            if self.waiting.borrow().is_empty() {
                self.come.notified().await;
                continue;
            }
            if let Some(next) = slice.next(Instant::now()) {
                sleep_until(next.into()).await;
                continue;
            }
            self.give_one(&mut slice).await;
        }
    }

    /// Gives the next turn, and adds what it computed to the slice. Returns whether somebody had it.
    pub(super) async fn give_one(&self, slice: &mut Slice) -> bool {
        let Some((stage, next)) = self.waiting.borrow_mut().next(slice) else { return false };
        let (over, is_over) = oneshot::channel();
        let is_there = next.send(Turn { computed: Duration::ZERO, over: Some(over) }).is_ok();
        if is_there {
            slice.add(stage, is_over.await.unwrap_or_default());
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{spawn_local, yield_now};

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    /// The order of the turns of handshakes that come in this stage, of which the third leaves.
    fn order(stage: Stage) -> Vec<usize> {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let turns = Rc::new(Turns::default());
            let order = Rc::new(RefCell::new(Vec::new()));
            let mut tasks = Vec::new();
            for number in 0..4 {
                let (turns, order) = (Rc::clone(&turns), Rc::clone(&order));
                tasks.push(spawn_local(async move {
                    let mut turn = turns.turn(stage).await;
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
            order.take()
        })
    }

    #[test]
    fn the_newest_has_the_next_turn_and_who_has_gone_has_none() {
        assert_eq!(order(Stage::First), [3, 1, 0]);
        assert_eq!(order(Stage::Answered), [3, 1, 0]);
    }

    #[test]
    fn the_stage_that_has_computed_less_has_the_next_turn() {
        let (first, answered, began) = (Duration::from_millis(6), Duration::from_millis(1), Instant::now());
        let (mut waiting, mut slice) = (Waiting::default(), Slice::new(began));
        let mut turns = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..8 {
            for stage in [Stage::First, Stage::Answered] {
                let (give, given) = oneshot::channel();
                waiting.add(stage, give);
                receivers.push(given);
            }
        }
        for turn in 0..10 {
            // A slice has time for three of these.
            let _ = slice.next(began + Duration::from_millis(7) * turn);
            let (stage, _) = waiting.next(&slice).unwrap();
            slice.add(stage, if stage == Stage::First { first } else { answered });
            turns.push(stage);
        }
        let (a, f) = (Stage::Answered, Stage::First);
        assert_eq!(turns, [a, f, a, a, a, a, a, a, f, a]);
        // One that has had much time alone waits no longer than for that of a slice.
        for _ in 0..100 {
            slice.add(Stage::First, first);
        }
        assert_eq!(slice.first, Duration::from_micros(TLS_SLICE_COMPUTED_US));
    }

    #[test]
    fn a_stage_whose_turns_take_a_slice_leaves_time_to_the_other() {
        let began = Instant::now();
        let mut slice = Slice::new(began);
        for slices in 0..10 {
            let _ = slice.next(began + Duration::from_micros(TLS_SLICE_US) * slices);
            let expected = if slices % 2 == 0 { Stage::Answered } else { Stage::First };
            assert_eq!(slice.stages()[0], expected);
            slice.add(expected, Duration::from_micros(TLS_SLICE_US + u64::from(slices % 2)));
        }
    }

    #[test]
    fn those_who_have_gone_take_no_room_for_ever() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let turns = Turns::default();
            for _ in 0..10 * TLS_HALF_OPEN_MAX {
                let mut turn = std::pin::pin!(turns.turn(Stage::First));
                assert!(futures::poll!(turn.as_mut()).is_pending());
            }
            assert!(turns.waiting.borrow().first.len() <= 2 * TLS_HALF_OPEN_MAX + 1);
        });
    }

    #[test]
    fn a_slice_has_only_so_much_of_it() {
        let began = Instant::now();
        let mut slice = Slice::new(began);
        assert_eq!(slice.next(began), None);
        slice.add(Stage::First, Duration::from_micros(TLS_SLICE_COMPUTED_US - 1));
        assert_eq!(slice.next(began), None);
        slice.add(Stage::Answered, Duration::from_micros(1));
        let end = began + Duration::from_micros(TLS_SLICE_US);
        assert_eq!(slice.next(began), Some(end));
        assert_eq!(slice.next(end), None);
    }
}
