//! What a scraper is told: counts since the start, and the latency in buckets.

use hdrhistogram::Histogram;

use super::report::Report;
use super::shard::StreamCounts;
use super::{Counter, Limited};

/// Microseconds that the first bucket ends at.
const FIRST_US: f64 = 10.0;

/// What each bucket's end is multiplied with to get the next one's.
const FACTOR: f64 = 1.25;

/// Buckets with an end: the last one's is 60.7 s.
pub(super) const BUCKETS: usize = 71;

/// The end of a bucket in microseconds.
pub(super) fn bucket_end_us(bucket: usize) -> f64 {
    FIRST_US * FACTOR.powi(bucket as i32)
}

/// Everything since the start.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The report on the whole run.
    pub summary: Report,
    /// More of each of its streams, in the same order.
    pub streams: Vec<StreamScrape>,
    /// Counts that belong to no stream, by [`Counter`].
    pub counters: [u64; Counter::COUNT],
    /// What passed a limit, by [`Limited`].
    pub limited: [u64; Limited::COUNT],
    /// Shards there are.
    pub shards: usize,
}

/// A stream in a [`Scrape`].
#[derive(Clone, Debug)]
pub struct StreamScrape {
    /// Sends by their latency, those of one bucket alone.
    pub(super) buckets: [u64; BUCKETS],
    /// Sends, the ones beyond the last bucket among them.
    pub(super) sends: u64,
    /// All latencies together, in microseconds.
    pub(super) sum_us: f64,
    /// What the shards counted.
    pub counts: StreamCounts,
    /// Frames of the source.
    pub frames: u64,
    /// Bytes of RTP from the source.
    pub source_bytes: u64,
    /// Bytes in the log now.
    pub log_bytes: u64,
}

impl StreamScrape {
    pub(super) fn new(
        latency: Option<&Histogram<u64>>,
        counts: StreamCounts,
        frames: u64,
        source_bytes: u64,
        log_bytes: u64,
    ) -> Self {
        let (mut buckets, mut sends, mut sum_us) = ([0; BUCKETS], 0, 0.0);
        let mut bucket = 0;
        for recorded in latency.into_iter().flat_map(|latency| latency.iter_recorded()) {
            let (us, count) = (recorded.value_iterated_to() as f64, recorded.count_since_last_iteration());
            // Values come in their order.
            while bucket < BUCKETS && bucket_end_us(bucket) < us {
                bucket += 1;
            }
            if bucket < BUCKETS {
                buckets[bucket] += count;
            }
            sends += count;
            sum_us += us * count as f64;
        }
        StreamScrape { buckets, sends, sum_us, counts, frames, source_bytes, log_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::latency::stream_histogram;

    #[test]
    fn every_send_is_in_the_bucket_that_ends_at_or_above_it() {
        assert!(bucket_end_us(BUCKETS - 1) >= 60_000_000.0);
        let mut latency = stream_histogram::<u64>();
        for us in [1, 10, 11, 100, 20_000, 60_000_000] {
            latency.record(us).unwrap();
        }
        let scrape = StreamScrape::new(Some(&latency), StreamCounts::default(), 0, 0, 0);
        assert_eq!((scrape.buckets[0], scrape.buckets[1], scrape.sends), (2, 1, 6));
        assert_eq!(scrape.buckets.iter().sum::<u64>(), 6);
        let at = scrape.buckets.iter().rposition(|&count| count > 0).unwrap();
        assert!(at >= BUCKETS - 2);
        assert!((60_020_000.0..60_800_000.0).contains(&scrape.sum_us), "{}", scrape.sum_us);
    }
}
