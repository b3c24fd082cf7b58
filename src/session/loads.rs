//! The number of connections of each shard, visible to all shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections by shard. Updated when one opens or closes, never by media.
#[derive(Clone, Debug)]
pub struct Loads(Arc<[AtomicUsize]>);

/// How many more connections than this shard a stream's home may have to still get the stream's first client: a constant, plus a
/// fraction of the connections. A stream that crosses no thread is worth that.
const SLACK: usize = 16;
const SLACK_DIVISOR: usize = 4;

impl Loads {
    /// For this many shards without connections.
    pub fn new(shards: usize) -> Self {
        Loads((0..shards).map(|_| AtomicUsize::new(0)).collect())
    }

    /// Connections of a shard, including those still in its inbox.
    pub fn connections(&self, shard: u16) -> usize {
        self.0.get(usize::from(shard)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A shard gets one more.
    pub fn come(&self, shard: u16) {
        if let Some(count) = self.0.get(usize::from(shard)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One of a shard's connections is gone.
    pub fn gone(&self, shard: u16) {
        if let Some(count) = self.0.get(usize::from(shard)) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether a client of a stream moves from `here` to the stream's home: if that is not the busier one. For the stream's first
    /// client `here`, it may be somewhat busier.
    pub fn may_move(&self, here: u16, home: u16, first: bool) -> bool {
        let (own, there) = (self.connections(here), self.connections(home));
        if first { there <= own + SLACK + own / SLACK_DIVISOR } else { there < own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(counts: [usize; 2]) -> Loads {
        let loads = Loads::new(2);
        for (shard, count) in (0..).zip(counts) {
            (0..count).for_each(|_| loads.come(shard));
        }
        loads
    }

    #[test]
    fn a_streams_first_client_moves_unless_its_home_is_far_busier() {
        for (counts, first, moves) in [
            ([1, 0], true, true),
            ([1, 0], false, true),
            ([1, 1], false, false),
            ([1, 17], true, true),
            ([1, 18], true, false),
            ([100, 141], true, true),
            ([100, 142], true, false),
            ([100, 99], false, true),
            ([100, 100], false, false),
        ] {
            assert_eq!(loads(counts).may_move(0, 1, first), moves, "{counts:?} {first}");
        }
    }

    #[test]
    fn players_of_one_stream_end_up_on_both_shards() {
        let loads = Loads::new(2);
        for _ in 0..500 {
            // The acceptor gives each connection to the shard with the fewest.
            let shard = u16::from(loads.connections(1) < loads.connections(0));
            loads.come(shard);
            if shard == 1 && loads.may_move(1, 0, loads.connections(1) == 1) {
                loads.gone(1);
                loads.come(0);
            }
        }
        let counts = [loads.connections(0), loads.connections(1)];
        assert!(counts.iter().sum::<usize>() == 500 && counts[0].abs_diff(counts[1]) <= 2, "{counts:?}");
    }
}
