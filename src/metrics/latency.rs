//! Latency histograms: of a shard, of a stream, and a small one for every client.

use std::time::Duration;

use hdrhistogram::{Counter, Histogram};

/// Smallest value of a histogram in microseconds; shorter latencies count as this.
const LATENCY_MIN_US: u64 = 1;

/// Largest value of a histogram in microseconds (60 s); longer latencies count as this.
const LATENCY_MAX_US: u64 = 60_000_000;

/// A histogram of the whole relay's latency: microseconds to 3 digits.
pub(crate) fn relay_histogram<C: Counter>() -> Histogram<C> {
    Histogram::new_with_bounds(LATENCY_MIN_US, LATENCY_MAX_US, 3).expect("constant bounds are valid")
}

/// A histogram of one stream's latency: microseconds to 2 digits. It grows with what it counts, as there may be a thousand of them and hardly
/// one sees more than some milliseconds.
pub(crate) fn stream_histogram<C: Counter>() -> Histogram<C> {
    Histogram::new(2).expect("a constant number of digits is valid")
}

/// Counts a latency of [`micros`] in any histogram this many times.
pub(crate) fn count<C: Counter>(histogram: &mut Histogram<C>, us: u64, times: C) {
    histogram.record_n(us.min(LATENCY_MAX_US), times).expect("a histogram has room up to the bound, or grows")
}

/// A latency in whole microseconds, within the histograms' range.
pub(crate) fn micros(latency: Duration) -> u64 {
    (latency.as_secs().saturating_mul(1_000_000) + u64::from(latency.subsec_micros()))
        .clamp(LATENCY_MIN_US, LATENCY_MAX_US)
}

/// Buckets per octave, as a power of two.
const SUB_BITS: u32 = 3;
const SUBS: usize = 1 << SUB_BITS;
/// Octaves up to 2^26 µs (67 s), the first [`SUB_BITS`] of which share the linear start.
const BUCKETS: usize = (26 - SUB_BITS as usize + 1) * SUBS;

/// One client's latency: 192 buckets on a logarithmic scale, each at most 12.5 % wide.
///
/// When a bucket is full, all are halved, so newer values weigh more in a long run.
#[derive(Clone)]
pub struct ClientLatency {
    counts: [u16; BUCKETS],
}

const _: () = assert!(size_of::<ClientLatency>() <= 512);

impl Default for ClientLatency {
    fn default() -> Self {
        ClientLatency { counts: [0; BUCKETS] }
    }
}

impl std::fmt::Debug for ClientLatency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientLatency").field("p99", &self.p99()).finish()
    }
}

impl ClientLatency {
    /// Counts one send. Latencies over 60 s count as 60 s.
    pub fn record(&mut self, latency: Duration) {
        let bucket = &mut self.counts[bucket_of(micros(latency) as u32)];
        *bucket += 1;
        if *bucket == u16::MAX {
            for count in &mut self.counts {
                *count /= 2;
            }
        }
    }

    /// The latency that 99 of 100 sends did not exceed (the upper edge of its bucket), or `None` before the first send.
    pub fn p99(&self) -> Option<Duration> {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let rank = (total * 99).div_ceil(100);
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if count > 0 && seen >= rank {
                return Some(Duration::from_micros(u64::from(bucket_end(bucket))));
            }
        }
        None
    }
}

/// The bucket for a latency of `us` microseconds (below 2^26).
fn bucket_of(us: u32) -> usize {
    let octave = 31 - us.max(1).leading_zeros();
    if octave < SUB_BITS {
        return us as usize;
    }
    let sub = (us >> (octave - SUB_BITS)) as usize & (SUBS - 1);
    (octave - SUB_BITS + 1) as usize * SUBS + sub
}

/// The largest number of microseconds in a bucket.
fn bucket_end(bucket: usize) -> u32 {
    if bucket < SUBS {
        return bucket as u32;
    }
    let octave = (bucket / SUBS) as u32 + SUB_BITS - 1;
    let width = 1 << (octave - SUB_BITS);
    (1 << octave) + (bucket % SUBS) as u32 * width + width - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_falls_into_a_bucket_that_holds_it_within_an_eighth() {
        for us in (1..5_000).chain((5_000..LATENCY_MAX_US as u32).step_by(997)).chain([LATENCY_MAX_US as u32]) {
            let bucket = bucket_of(us);
            let end = bucket_end(bucket);
            assert!(
                end >= us && f64::from(end) <= f64::from(us) * 1.125 + 1.0,
                "{us} µs in a bucket that ends at {end}"
            );
            assert!(bucket == 0 || bucket_end(bucket - 1) < us, "{us} µs belongs one bucket lower");
        }
    }

    #[test]
    fn a_client_knows_its_p99() {
        let mut latency = ClientLatency::default();
        assert_eq!(latency.p99(), None);
        for _ in 0..990 {
            latency.record(Duration::from_micros(400));
        }
        for _ in 0..10 {
            latency.record(Duration::from_millis(80));
        }
        let p99 = latency.p99().expect("sends were counted").as_micros();
        assert!((400..=450).contains(&p99), "{p99} µs");
        latency.record(Duration::from_secs(3600));
        assert!(latency.p99().expect("sends were counted") >= Duration::from_millis(80));
    }

    #[test]
    fn a_full_bucket_halves_all_and_loses_no_proportion() {
        let mut latency = ClientLatency::default();
        for n in 0..400_000 {
            latency.record(Duration::from_micros(if n % 20 == 0 { 9_000 } else { 90 }));
        }
        assert!(latency.p99().expect("sends were counted") >= Duration::from_micros(9_000));
    }
}
