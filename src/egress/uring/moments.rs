//! Estimates when the operations ended whose completions are in the ring's queue.
//!
//! A submission of hundreds of sends takes milliseconds, and the kernel shows their completions together at its end, although the first
//! sends were finished long before. They are executed one after the other, so each is assumed to have ended at its proportional share
//! of the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Completions of one submission, oldest first.
struct Batch {
    count: u32,
    /// When the first of them ended.
    next: Instant,
    /// The interval between them.
    step: Duration,
}

/// The times of the completions in the queue, in order.
#[derive(Default)]
pub(super) struct Moments {
    batches: VecDeque<Batch>,
    /// Completions in all batches.
    known: usize,
}

impl Moments {
    /// The kernel processed the sends of a submission from `begun` to `ended`; the queue had `before` and then `after` completions.
    pub(super) fn submitted(&mut self, begun: Instant, ended: Instant, before: usize, after: usize) {
        // Completions that arrived on their own since the last check are known to be there now.
        self.push(before.saturating_sub(self.known), begun, Duration::ZERO);
        let count = after.saturating_sub(before);
        let step = ended.saturating_duration_since(begun).checked_div(count as u32).unwrap_or_default();
        self.push(count, begun + step, step);
    }

    fn push(&mut self, count: usize, next: Instant, step: Duration) {
        if count > 0 {
            self.known += count;
            self.batches.push_back(Batch { count: count as u32, next, step });
        }
    }

    /// The time of the completion that is now taken from the queue; `None` if it arrived after the last submission.
    pub(super) fn take(&mut self) -> Option<Instant> {
        let batch = self.batches.front_mut()?;
        let at = batch.next;
        batch.next += batch.step;
        batch.count -= 1;
        self.known -= 1;
        if batch.count == 0 {
            self.batches.pop_front();
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn sends_of_a_submission_end_one_after_the_other_and_what_came_before_it_was_there() {
        let start = Instant::now();
        let mut moments = Moments::default();
        // Two were there already, and four sends took 8 ms.
        moments.submitted(start, start + 8 * MS, 2, 6);
        let taken: Vec<_> = (0..3).map(|_| moments.take()).collect();
        assert_eq!(taken, [Some(start), Some(start), Some(start + 2 * MS)]);
        // One more arrived on its own; the next submission has two.
        moments.submitted(start + 10 * MS, start + 12 * MS, 4, 6);
        let taken: Vec<_> = (0..7).map(|_| moments.take()).collect();
        let at = |ms: u32| Some(start + ms * MS);
        assert_eq!(taken, [at(4), at(6), at(8), at(10), at(11), at(12), None]);
    }
}
