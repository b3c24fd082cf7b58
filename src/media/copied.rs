//! Chunks that are copied to another process before it takes over: which ones it has been sent, and those that it keeps meanwhile.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::chunk::{Chunk, ChunkState};

/// A set of numbers, kept as ranges: what is copied of a log is nearly contiguous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// In order, not empty, and not touching.
    ranges: Vec<Range<u64>>,
}

impl Numbers {
    /// Adds a number; returns whether it is new. Cheapest in rising order.
    pub fn insert(&mut self, number: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.end < number);
        match self.ranges.get_mut(at) {
            Some(range) if range.contains(&number) => return false,
            Some(range) if range.end == number => {
                range.end += 1;
                let end = range.end;
                if self.ranges.get(at + 1).is_some_and(|next| next.start == end) {
                    self.ranges[at].end = self.ranges.remove(at + 1).end;
                }
            }
            Some(range) if range.start == number + 1 => range.start = number,
            _ => self.ranges.insert(at, number..number + 1),
        }
        true
    }

    /// Removes the numbers before that one.
    pub fn forget_before(&mut self, oldest: u64) {
        self.ranges.retain(|range| range.end > oldest);
        if let Some(first) = self.ranges.first_mut() {
            first.start = first.start.max(oldest);
        }
    }

    /// The numbers of the range that it lacks, in order.
    pub fn lacking(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let from = self.ranges.partition_point(|have| have.end <= range.start);
        let have = self.ranges[from..].iter().take_while(move |have| have.start < range.end);
        let (starts, end) = (range.start, range.end);
        let ends = have.clone().map(move |have| have.start.max(starts)).chain([end]);
        let begins = std::iter::once(starts).chain(have.map(move |have| have.end.min(end)));
        begins.zip(ends).flat_map(|(start, end)| start..end)
    }
}

/// A stream's chunks that came from another process before its log did, by number.
#[derive(Debug, Default)]
pub struct Kept(BTreeMap<u64, Arc<Chunk>>);

impl Kept {
    /// Adds a chunk, unless it is there. Its times are relative to `reference`.
    pub fn add(&mut self, reference: Instant, chunk: ChunkState) {
        self.0.entry(chunk.number()).or_insert_with(|| Arc::new(Chunk::restore(reference, chunk)));
    }

    /// Chunks before that number have left the log.
    pub fn drop_before(&mut self, oldest: u64) {
        self.0 = self.0.split_off(&oldest);
    }

    /// The chunk with that number.
    pub fn get(&self, number: u64) -> Option<&Arc<Chunk>> {
        self.0.get(&number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_lacking_lies_between_the_ranges() {
        let mut numbers = Numbers::default();
        for number in [3, 4, 5, 9, 10, 7] {
            assert!(numbers.insert(number));
        }
        assert!(!numbers.insert(4));
        assert_eq!(numbers.ranges, [3..6, 7..8, 9..11]);
        let lacking = |range| numbers.lacking(range).collect::<Vec<_>>();
        assert_eq!(lacking(0..13), [0, 1, 2, 6, 8, 11, 12]);
        assert_eq!((lacking(4..5), lacking(5..7), lacking(11..12), lacking(4..4)), (vec![], vec![6], vec![11], vec![]));
        numbers.forget_before(4);
        assert_eq!(numbers.ranges, [4..6, 7..8, 9..11]);
        numbers.forget_before(8);
        assert_eq!(numbers.ranges, std::slice::from_ref(&(9..11)));
    }

    proptest! {
        #[test]
        fn it_is_a_set(inserted in proptest::collection::vec(0u64..40, 0..60), start in 0u64..40, len in 0u64..40) {
            let mut numbers = Numbers::default();
            let mut set = std::collections::BTreeSet::new();
            for number in inserted {
                prop_assert_eq!(numbers.insert(number), set.insert(number));
            }
            prop_assert!(numbers.ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            let range = start..start + len;
            let lacking: Vec<u64> = numbers.lacking(range.clone()).collect();
            prop_assert_eq!(lacking, range.filter(|number| !set.contains(number)).collect::<Vec<_>>());
        }
    }
}
