//! The ids of running streams, and of removed ones that a shard still refers to.

use std::collections::HashMap;

use crate::media::StreamId;

/// Allocates stream ids. The index of a removed stream is reused once every shard has released it, so that no shard has two streams
/// with one index.
#[derive(Debug)]
pub(super) struct StreamIds {
    shards: usize,
    /// Number of indices ever used.
    given: u16,
    /// Ids to reuse before new indices.
    free: Vec<StreamId>,
    /// Removed streams, and how many shards have released each.
    leaving: HashMap<StreamId, usize>,
}

impl StreamIds {
    /// For a relay with this many shards; the first ids have the indices from 0 on.
    pub(super) fn new(shards: usize) -> Self {
        StreamIds { shards, given: 0, free: Vec::new(), leaving: HashMap::new() }
    }

    /// How many ids are available now.
    pub(super) fn left(&self) -> usize {
        usize::from(u16::MAX - self.given) + self.free.len()
    }

    /// The id for a new stream; `None` if every index is in use.
    pub(super) fn take(&mut self) -> Option<StreamId> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        let id = StreamId::first(self.given);
        self.given = self.given.checked_add(1)?;
        Some(id)
    }

    /// The shards were told that the stream was removed.
    pub(super) fn removed(&mut self, id: StreamId) {
        self.leaving.insert(id, 0);
    }

    /// One of the shards has released a removed stream. Returns whether it was the last.
    pub(super) fn released(&mut self, id: StreamId) -> bool {
        let Some(shards) = self.leaving.get_mut(&id) else { return false };
        *shards += 1;
        if *shards < self.shards {
            return false;
        }
        self.leaving.remove(&id);
        self.free.push(id.next_generation());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_anew_once_every_shard_has_let_go_of_it() {
        let mut ids = StreamIds::new(2);
        let (a, b) = (ids.take().unwrap(), ids.take().unwrap());
        assert_eq!((a, b), (StreamId::first(0), StreamId::first(1)));
        ids.removed(a);
        assert!(!ids.released(a));
        assert_eq!(ids.take(), Some(StreamId::first(2)));
        assert!(ids.released(a));
        assert!(!ids.released(a), "nobody lets go of it twice");
        let next = ids.take().unwrap();
        assert_eq!((next, next.index()), (a.next_generation(), a.index()));
        assert_ne!(next, a);
    }

    #[test]
    fn ids_run_out_and_come_back() {
        let mut ids = StreamIds::new(1);
        let all: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!((all.len(), ids.left()), (usize::from(u16::MAX), 0));
        ids.removed(all[7]);
        assert!(ids.released(all[7]));
        assert_eq!((ids.left(), ids.take()), (1, Some(all[7].next_generation())));
    }
}
