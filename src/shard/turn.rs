//! The order in which shards that are saved beside each other come to what they share: each needs what those before it have sent.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

/// A shard's turn. If it is dropped before it is passed on, the shards after it wait no longer.
#[derive(Debug)]
pub struct Turn {
    deadline: Instant,
    /// From the shard before it; `None` for the first one.
    comes: Option<Receiver<()>>,
    /// To the shard after it.
    next: Sender<()>,
}

impl Turn {
    /// One for each of so many shards, in their order. Each waits at most until the deadline.
    pub fn all(count: usize, deadline: Instant) -> impl Iterator<Item = Turn> {
        let mut comes = None;
        (0..count).map(move |_| {
            let (next, then) = channel();
            Turn { deadline, comes: comes.replace(then), next }
        })
    }

    /// Waits for it; blocks the thread.
    ///
    /// # Errors
    /// Why it does not come, or not before the deadline.
    pub fn wait(&self) -> Result<(), String> {
        let Some(comes) = &self.comes else { return Ok(()) };
        comes.recv_timeout(self.deadline.saturating_duration_since(Instant::now())).map_err(|error| match error {
            RecvTimeoutError::Timeout => "the shard before took too long".into(),
            RecvTimeoutError::Disconnected => "the shard before was not saved".into(),
        })
    }

    /// Passes it on.
    pub fn pass(self) {
        // The shard after it may have given up.
        let _ = self.next.send(());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn all_come_in_their_order() {
        let done = Mutex::new(Vec::new());
        let turns: Vec<_> = Turn::all(4, Instant::now() + SOON).enumerate().collect();
        thread::scope(|scope| {
            for (number, turn) in turns.into_iter().rev() {
                let done = &done;
                scope.spawn(move || {
                    turn.wait().expect("its turn");
                    done.lock().unwrap().push(number);
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
        assert_eq!(last.wait().unwrap_err(), "the shard before was not saved");
        let late: Vec<_> = Turn::all(2, Instant::now() + Duration::from_millis(20)).collect();
        assert_eq!(late[1].wait().unwrap_err(), "the shard before took too long");
    }
}
