//! What a report says: plain numbers, merged from all shards and sources.

use std::time::{Duration, SystemTime};

use hdrhistogram::{Counter, Histogram};

use super::{DropReason, SourceDrop};
use crate::egress::EgressStats;
use crate::shard::inbox::SourceState;

/// A source's counts and state, as the control thread knows them. Counts are since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceGauge {
    /// How it is doing.
    pub state: SourceState,
    /// Since when; `None` before the source has begun.
    pub since: Option<SystemTime>,
    /// Why it is not live, without secrets.
    pub fault: Option<String>,
    /// Frames ended: of the first video track, or of the first track when none is video.
    pub frames: u64,
    /// Bytes of RTP.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Sessions after the first that brought packets.
    pub reconnects: u64,
    /// Sessions that failed, and tries at one.
    pub failures: u64,
    /// Frames discarded because the source broke off in the middle of them.
    pub torn: u64,
    /// Frames kept back after a break because what they refer to is gone.
    pub unreferenced: u64,
    /// Packets that are not in the stream, by [`SourceDrop`].
    pub dropped: [u64; SourceDrop::COUNT],
    /// Bytes that came and were not read yet; `None` where that is not known, as of datagrams.
    pub unread: Option<u64>,
}

impl Default for SourceGauge {
    fn default() -> Self {
        SourceGauge {
            state: SourceState::Connecting,
            since: None,
            fault: None,
            frames: 0,
            bytes: 0,
            lost: 0,
            reconnects: 0,
            failures: 0,
            torn: 0,
            unreferenced: 0,
            dropped: [0; SourceDrop::COUNT],
            unread: None,
        }
    }
}

/// Percentiles of the relay latency. `None` when nothing was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// Sends that were counted.
    pub count: u64,
    /// Half of the sends took no longer.
    pub p50: Option<Duration>,
    /// 90 of 100.
    pub p90: Option<Duration>,
    /// 99 of 100.
    pub p99: Option<Duration>,
    /// 999 of 1,000.
    pub p999: Option<Duration>,
    /// The longest.
    pub max: Option<Duration>,
}

impl Percentiles {
    /// Of a histogram of microseconds.
    pub(super) fn of<C: Counter>(histogram: &Histogram<C>) -> Percentiles {
        let at = |quantile| {
            // A bucket's upper edge may lie above the largest value in it.
            let us = histogram.value_at_quantile(quantile).min(histogram.max());
            (!histogram.is_empty()).then(|| Duration::from_micros(us))
        };
        Percentiles { count: histogram.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// Octaves of [`Report::histogram`]: up to 2^26 µs, 67 s.
pub const HISTOGRAM_OCTAVES: usize = 27;

/// Sends by the octave of their latency: entry `n` counts those of at least 2^n and less than 2^(n+1) microseconds.
pub(super) fn octaves<C: Counter>(histogram: &Histogram<C>) -> [u64; HISTOGRAM_OCTAVES] {
    let mut counts = [0; HISTOGRAM_OCTAVES];
    for bucket in histogram.iter_recorded() {
        let octave = bucket.value_iterated_to().max(1).ilog2() as usize;
        counts[octave.min(HISTOGRAM_OCTAVES - 1)] += bucket.count_since_last_iteration();
    }
    counts
}

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The time since the last report.
    Interval,
    /// The whole run.
    Summary,
}

/// Everything that a report says.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What rates and latencies are about.
    pub scope: Scope,
    /// When it was made.
    pub at: SystemTime,
    /// Time since the start.
    pub uptime: Duration,
    /// Time that rates and latencies are about.
    pub span: Duration,
    /// The streams, in the order of the configuration; those that a reload has added come last.
    pub streams: Vec<StreamReport>,
    /// All of them together.
    pub total: Totals,
    /// Sends of all streams by the octave of their latency.
    pub histogram: [u64; HISTOGRAM_OCTAVES],
}

/// One stream in a report.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamReport {
    /// Its name.
    pub name: String,
    /// How its source is doing.
    pub state: SourceState,
    /// Since when; `None` if that is not known.
    pub since: Option<SystemTime>,
    /// Why the source is not live.
    pub fault: Option<String>,
    /// Sessions with the source that failed since the start, and tries at one.
    pub failures: u64,
    /// Frames a second, as received.
    pub fps: f64,
    /// Bytes that the source has sent and nobody has read yet; `None` where that is not known.
    pub unread: Option<u64>,
    /// What the numbers that all streams together have as well.
    pub flow: Flow,
    /// Frames dropped since the start, by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
    /// Packets of the source that are not in the stream, since the start, by [`SourceDrop`].
    pub source_drops: [u64; SourceDrop::COUNT],
}

/// All streams together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// The numbers that single streams have as well.
    pub flow: Flow,
    /// Connections open, playing or not.
    pub connections: u64,
    /// RTSP sessions, playing or not.
    pub sessions: u64,
    /// Send operations queued or under way.
    pub in_flight: u64,
    /// What the shards' egresses have done since the start.
    pub egress: EgressStats,
    /// Shards that did not answer in time; their last known counts stand in for them.
    pub silent_shards: usize,
}

/// The numbers that a stream and all of them together have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// Bits a second from the source.
    pub in_bps: f64,
    /// Bits a second of media to all clients.
    pub out_bps: f64,
    /// Clients that play over TCP now.
    pub clients_tcp: u64,
    /// Clients that play over UDP now.
    pub clients_udp: u64,
    /// Clients now that receive a multicast group.
    pub clients_multicast: u64,
    /// Clients that ever began to play.
    pub joined: u64,
    /// The relay latency.
    pub latency: Percentiles,
    /// Lag of the worst client now.
    pub lag: Duration,
    /// Skips to a keyframe in the span of the report.
    pub skips: u64,
    /// Skips since the start.
    pub skips_total: u64,
    /// Packets lost at the source, since the start.
    pub lost_total: u64,
    /// Reconnects of the source, since the start.
    pub reconnects_total: u64,
    /// Frames dropped since the start.
    pub dropped_total: u64,
    /// Bytes of media to all clients since the start.
    pub bytes_total: u64,
}

impl Flow {
    /// Clients that play now.
    pub fn clients(&self) -> u64 {
        self.clients_tcp + self.clients_udp + self.clients_multicast
    }
}
