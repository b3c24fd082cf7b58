//! The contents of a report: plain numbers, merged from all shards and sources.

use std::time::{Duration, SystemTime};

use hdrhistogram::{Counter, Histogram};

use super::{DropReason, SourceDrop};
use crate::egress::EgressStats;
use crate::media::SourceState;

/// A source's counts since startup and its state, from its home shard.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceGauge {
    /// How it is doing.
    pub state: SourceState,
    /// Since when; `None` before the source has started.
    pub since: Option<SystemTime>,
    /// Why it is not live, without secrets.
    pub fault: Option<String>,
    /// Time until the next attempt, during a delay.
    pub next_try_in: Option<Duration>,
    /// Frames ended: of the first video track, or of the first track if none is video.
    pub frames: u64,
    /// Bytes of RTP.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
    /// Sessions after the first that received packets.
    pub reconnects: u64,
    /// Sessions, or attempts to start one, that failed.
    pub failures: u64,
    /// Frames discarded because the source stopped within them.
    pub torn: u64,
    /// Frames withheld after an interruption because what they refer to is gone.
    pub unreferenced: u64,
    /// Steps of its clock by more than 100 ms; relayed reports do not show them.
    pub clock_steps: u64,
    /// Packets that are not in the stream, by [`SourceDrop`].
    pub dropped: [u64; SourceDrop::COUNT],
    /// Reads of its connection or sockets that returned data.
    pub reads: u64,
    /// Bytes of media copied between the receive buffer and the chunk.
    pub copied: u64,
    /// Bytes received and not read yet; `None` if unknown, as for datagrams.
    pub unread: Option<u64>,
    /// The encodings of its first video and of its first audio track.
    pub encodings: [Option<String>; 2],
}

impl Default for SourceGauge {
    fn default() -> Self {
        SourceGauge {
            state: SourceState::Connecting,
            since: None,
            fault: None,
            next_try_in: None,
            frames: 0,
            bytes: 0,
            lost: 0,
            reconnects: 0,
            failures: 0,
            torn: 0,
            unreferenced: 0,
            clock_steps: 0,
            reads: 0,
            copied: 0,
            dropped: [0; SourceDrop::COUNT],
            unread: None,
            encodings: [None, None],
        }
    }
}

/// Percentiles of the relay latency. `None` when nothing was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// Sends that were counted.
    pub count: u64,
    /// Median.
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
            // A bucket's upper edge may be above the largest value in it.
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

/// What a report covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The time since the last report.
    Interval,
    /// The whole run.
    Summary,
}

/// The contents of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What rates and latencies cover.
    pub scope: Scope,
    /// When it was made.
    pub at: SystemTime,
    /// Time since startup.
    pub uptime: Duration,
    /// The time that rates and latencies cover.
    pub span: Duration,
    /// The streams, in the order of the configuration; those added by a reload come last.
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
    /// State of its source.
    pub state: SourceState,
    /// Since when; `None` if unknown.
    pub since: Option<SystemTime>,
    /// Why the source is not live.
    pub fault: Option<String>,
    /// Time until the next attempt, during a delay.
    pub next_try_in: Option<Duration>,
    /// Sessions with the source, or attempts to start one, that failed since startup.
    pub failures: u64,
    /// Frames per second, as received.
    pub fps: f64,
    /// Bytes that the source has sent and the relay has not read yet; `None` if unknown.
    pub unread: Option<u64>,
    /// The numbers that also exist for all streams together.
    pub flow: Flow,
    /// Frames dropped since the start, by [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
    /// Packets of the source that are not in the stream, since the start, by [`SourceDrop`].
    pub source_drops: [u64; SourceDrop::COUNT],
    /// The encodings of its first video and of its first audio track.
    pub encodings: [Option<String>; 2],
}

/// All streams together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// The numbers that also exist for single streams.
    pub flow: Flow,
    /// Open connections, playing or not.
    pub connections: u64,
    /// RTSP sessions, playing or not.
    pub sessions: u64,
    /// Send operations that are queued or in flight.
    pub in_flight: u64,
    /// Counts of the shards' egresses since startup.
    pub egress: EgressStats,
    /// Shards that did not answer in time; their last known counts are used.
    pub silent_shards: usize,
}

/// The numbers that exist both for a stream and for all together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// Bits per second from the source.
    pub in_bps: f64,
    /// Bits per second of media to all clients.
    pub out_bps: f64,
    /// Clients that are playing over TCP.
    pub clients_tcp: u64,
    /// Clients that are playing over UDP.
    pub clients_udp: u64,
    /// Clients that receive a multicast group.
    pub clients_multicast: u64,
    /// Browsers.
    pub clients_websocket: u64,
    /// Clients that started to play since startup.
    pub joined: u64,
    /// The relay latency.
    pub latency: Percentiles,
    /// Current lag of the slowest client.
    pub lag: Duration,
    /// Skips to a keyframe in the span of the report.
    pub skips: u64,
    /// Skips since the start.
    pub skips_total: u64,
    /// Packets from the source that were lost since startup.
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
        self.clients_tcp + self.clients_udp + self.clients_multicast + self.clients_websocket
    }
}
