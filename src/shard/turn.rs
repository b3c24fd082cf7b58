//! The order in which shards that are saved beside each other come to what they share: each needs what those before it have sent.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
struct Known {
    /// The shard whose turn it is.
    next: usize,
    /// The first one that will not pass its turn on.
    stops: Option<usize>,
}

#[derive(Debug, Default)]
struct Order {
    known: Mutex<Known>,
    changed: Condvar,
}

/// A shard's turn. If it is dropped before it is passed on, the shards after it wait no longer.
#[derive(Debug)]
pub struct Turn {
    number: usize,
    deadline: Instant,
    order: Arc<Order>,
}

impl Turn {
    /// One for each of so many shards, in their order. Each waits at most until the deadline.
    pub fn all(count: usize, deadline: Instant) -> impl Iterator<Item = Turn> {
        let order = Arc::<Order>::default();
        (0..count).map(move |number| Turn { number, deadline, order: Arc::clone(&order) })
    }

    /// Waits for it; blocks the thread.
    ///
    /// # Errors
    /// Why it does not come, or not before the deadline.
    pub fn wait(&self) -> Result<(), String> {
        let known = self.order.known.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.deadline.saturating_duration_since(Instant::now());
        let stops = |known: &Known| known.stops.filter(|stops| *stops < self.number);
        let is_early = |known: &mut Known| known.next < self.number && stops(known).is_none();
        let (known, _) =
            self.order.changed.wait_timeout_while(known, left, is_early).unwrap_or_else(PoisonError::into_inner);
        match stops(&known) {
            _ if known.next == self.number => Ok(()),
            Some(stops) => Err(format!("shard {stops} was not saved")),
            None => Err(format!("shard {} took too long", known.next)),
        }
    }

    /// Passes it on.
    pub fn pass(self) {
        let mut known = self.order.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.next = self.number + 1;
        self.order.changed.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut known = self.order.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.next <= self.number {
            known.stops = Some(known.stops.map_or(self.number, |stops| stops.min(self.number)));
            self.order.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn all_come_in_their_order() {
        let done = Mutex::new(Vec::new());
        let turns: Vec<_> = Turn::all(4, Instant::now() + SOON).collect();
        thread::scope(|scope| {
            for turn in turns.into_iter().rev() {
                let done = &done;
                scope.spawn(move || {
                    turn.wait().expect("its turn");
                    done.lock().unwrap().push(turn.number);
                    turn.pass();
                });
            }
        });
        assert_eq!(*done.lock().unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn nobody_waits_for_one_that_was_given_up_or_is_late() {
        let mut turns = Turn::all(4, Instant::now() + SOON);
        let [first, second, third, last] = [(); 4].map(|()| turns.next().unwrap());
        // Before the first has had its turn, which it still has.
        drop(third);
        first.wait().unwrap();
        first.pass();
        second.wait().unwrap();
        second.pass();
        assert_eq!(last.wait().unwrap_err(), "shard 2 was not saved");
        let late: Vec<_> = Turn::all(2, Instant::now() + Duration::from_millis(20)).collect();
        assert_eq!(late[1].wait().unwrap_err(), "shard 0 took too long");
    }
}
