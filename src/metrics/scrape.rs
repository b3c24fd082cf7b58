//! Data for a scraper: counts since startup, and the latency in buckets.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::report::{Report, SourceGauge};
use super::shard::StreamCounts;
use super::{Counter, Limited};

/// Upper edge of the first bucket in microseconds.
const FIRST_US: f64 = 10.0;

/// Ratio of successive buckets' upper edges.
const FACTOR: f64 = 1.25;

/// Number of buckets with an upper edge; the last one's is 60.7 s.
pub(super) const BUCKETS: usize = 71;

/// The upper edge of a bucket in microseconds.
pub(super) fn bucket_end_us(bucket: usize) -> f64 {
    FIRST_US * FACTOR.powi(bucket as i32)
}

/// Everything since the start.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The report for the whole run.
    pub summary: Report,
    /// Additional data for each of its streams, in the same order.
    pub streams: Vec<StreamScrape>,
    /// Counts independent of streams, by [`Counter`].
    pub counters: [u64; Counter::COUNT],
    /// What exceeded limits, by [`Limited`].
    pub limited: [u64; Limited::COUNT],
    /// Shards there are.
    pub shards: usize,
    /// The shards' counts for all streams, including removed ones.
    pub all: StreamCounts,
    /// The counts of all streams' sources, including removed ones.
    pub sources: SourceSums,
}

/// Sums over sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceSums {
    /// Bytes of RTP.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Sessions after the first.
    pub reconnects: u64,
    /// Sessions that failed.
    pub failures: u64,
    /// Frames that did not reach the log.
    pub dropped: u64,
}

impl SourceSums {
    /// Adds one source's counts.
    pub fn add(&mut self, source: &SourceGauge) {
        self.bytes += source.bytes;
        self.lost += source.lost;
        self.reconnects += source.reconnects;
        self.failures += source.failures;
        self.dropped += source.torn + source.unreferenced;
    }
}

/// A stream in a [`Scrape`].
#[derive(Clone, Debug)]
pub struct StreamScrape {
    /// Sends by latency, for each bucket separately.
    pub(super) buckets: [u64; BUCKETS],
    /// Sends, including those beyond the last bucket.
    pub(super) sends: u64,
    /// Sum of all latencies, in microseconds.
    pub(super) sum_us: f64,
    /// What the shards counted.
    pub counts: StreamCounts,
    /// Frames of the source.
    pub frames: u64,
    /// Bytes of RTP from the source.
    pub source_bytes: u64,
    /// Steps of the source's clock.
    pub clock_steps: u64,
    /// Reads of the source.
    pub source_reads: u64,
    /// Bytes copied on the way in.
    pub source_copied: u64,
    /// Current bytes in the log.
    pub log_bytes: u64,
}

impl StreamScrape {
    pub(super) fn new(
        latency: Option<&Histogram<u64>>,
        counts: StreamCounts,
        source: &SourceGauge,
        log_bytes: u64,
    ) -> Self {
        let (mut buckets, mut sends, mut sum_us) = ([0; BUCKETS], 0, 0.0);
        let mut bucket = 0;
        for recorded in latency.into_iter().flat_map(|latency| latency.iter_recorded()) {
            let (us, count) = (recorded.value_iterated_to() as f64, recorded.count_since_last_iteration());
            // Values come in ascending order.
            while bucket < BUCKETS && bucket_end_us(bucket) < us {
                bucket += 1;
            }
            if bucket < BUCKETS {
                buckets[bucket] += count;
            }
            sends += count;
            sum_us += us * count as f64;
        }
        let (frames, source_bytes, clock_steps) = (source.frames, source.bytes, source.clock_steps);
        let (source_reads, source_copied) = (source.reads, source.copied);
        StreamScrape {
            buckets,
            sends,
            sum_us,
            counts,
            frames,
            source_bytes,
            clock_steps,
            source_reads,
            source_copied,
            log_bytes,
        }
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
        let scrape = StreamScrape::new(Some(&latency), StreamCounts::default(), &SourceGauge::default(), 0);
        assert_eq!((scrape.buckets[0], scrape.buckets[1], scrape.sends), (2, 1, 6));
        assert_eq!(scrape.buckets.iter().sum::<u64>(), 6);
        let at = scrape.buckets.iter().rposition(|&count| count > 0).unwrap();
        assert!(at >= BUCKETS - 2);
        assert!((60_020_000.0..60_800_000.0).contains(&scrape.sum_us), "{}", scrape.sum_us);
    }
}
