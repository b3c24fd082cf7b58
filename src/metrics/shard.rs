//! The counts of one shard.

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::oneshot;

use super::latency::{count, micros, relay_histogram, stream_histogram};
use super::{Counter, DropReason, LeaveReason, Limited, SourceGauge, Transport};
use crate::egress::EgressStats;
use crate::media::{StreamId, TrackId};
use crate::testing::Testing;

/// The reporter's request to a shard.
#[derive(Debug)]
pub struct ReportRequest {
    /// Where the answer goes.
    pub reply: oneshot::Sender<ShardSnapshot>,
    /// Whether [`ShardSnapshot::clients`] is wanted.
    pub clients: bool,
}

/// A shard's counts for one stream, since startup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Chunks sent to clients completely.
    pub sends: u64,
    /// Bytes of media sent to clients.
    pub bytes: u64,
    /// Times that a lagging client skipped to a keyframe.
    pub skips: u64,
    /// Frames dropped, by [`DropReason`]; a frame counts once for every client that missed it.
    pub drops: [u64; DropReason::COUNT],
    /// Clients that started to play, by [`Transport`].
    pub joined: [u64; Transport::COUNT],
    /// Clients that left, by [`LeaveReason`].
    pub left: [u64; LeaveReason::COUNT],
    /// Clients that are playing, by [`Transport`].
    pub clients: [u64; Transport::COUNT],
}

impl StreamCounts {
    /// Adds the counts of another stream or shard.
    pub fn add(&mut self, other: &StreamCounts) {
        let sum = |into: &mut [u64], from: &[u64]| into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
        self.sends += other.sends;
        self.bytes += other.bytes;
        self.skips += other.skips;
        sum(&mut self.drops, &other.drops);
        sum(&mut self.joined, &other.joined);
        sum(&mut self.left, &other.left);
        sum(&mut self.clients, &other.clients);
    }
}

/// The counts of one shard. Lives on the shard's thread.
#[derive(Debug)]
pub struct ShardMetrics {
    relay: Histogram<u32>,
    streams: Vec<(StreamId, Place)>,
    counters: [u64; Counter::COUNT],
    limited: [u64; Limited::COUNT],
    /// The counts for removed streams.
    gone: StreamCounts,
    /// For tests of the cost of counting: nothing about sends is counted.
    testing: Testing,
}

/// What is kept for a stream.
#[derive(Debug, Default)]
enum Place {
    /// Nothing was counted yet.
    #[default]
    Empty,
    Counted(Box<StreamMetrics>),
    /// It was removed. Its remaining sends are counted only for the relay.
    Removed,
}

#[derive(Debug)]
struct StreamMetrics {
    counts: StreamCounts,
    latency: Histogram<u32>,
}

/// A shard's answer to a [`ReportRequest`].
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// Latency in the interval that ends with this snapshot, in microseconds.
    pub latency: Histogram<u32>,
    /// All streams that were ever used, in the order of their ids.
    pub streams: Vec<StreamSnapshot>,
    /// Counts since startup, by [`Counter`].
    pub counters: [u64; Counter::COUNT],
    /// What exceeded limits since startup, by [`Limited`].
    pub limited: [u64; Limited::COUNT],
    /// The counts for removed streams.
    pub gone: StreamCounts,
    /// Counts of the shard's egress since startup. Filled in by the shard.
    pub egress: EgressStats,
    /// Open connections, playing or not. Filled in by the shard.
    pub connections: u64,
    /// RTSP sessions, playing or not. Filled in by the shard.
    pub sessions: u64,
    /// Send operations that are queued or in flight. Filled in by the shard.
    pub in_flight: u64,
    /// The clients, if requested. Filled in by the shard.
    pub clients: Vec<ClientSnapshot>,
    /// The sources that run on the shard. Filled in by its thread.
    pub sources: Vec<(StreamId, SourceGauge)>,
}

/// A stream in a [`ShardSnapshot`].
#[derive(Clone, Debug)]
pub struct StreamSnapshot {
    /// Which stream.
    pub stream: StreamId,
    /// Counts since the start.
    pub counts: StreamCounts,
    /// Latency in the interval, in microseconds; `None` if nothing was sent.
    pub latency: Option<Histogram<u32>>,
    /// Current lag of the slowest client. Filled in by the shard.
    pub worst_lag: Duration,
    /// Current bytes in the stream's log. Filled in by the shard.
    pub log_bytes: u64,
    /// Bytes that the stream's publisher has sent and the relay has not read yet, if its connection is on this shard. Filled in by the
    /// shard.
    pub unread: Option<u64>,
}

/// A client in a [`ShardSnapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSnapshot {
    /// Its address.
    pub peer: SocketAddr,
    /// Its session id, as the player knows it.
    pub session: String,
    /// The player's `User-Agent`.
    pub user_agent: Option<String>,
    /// Time since it started to play.
    pub playing: Duration,
    /// What it plays.
    pub stream: StreamId,
    /// How it gets it.
    pub transport: Transport,
    /// Whether it uses TLS.
    pub tls: bool,
    /// Bytes of media sent to it.
    pub bytes: u64,
    /// Its lag now.
    pub lag: Duration,
    /// Times that it skipped to a keyframe.
    pub skips: u64,
    /// Its own p99 of the relay latency.
    pub p99: Option<Duration>,
    /// Smoothed round-trip time, from `TCP_INFO`.
    pub rtt: Option<Duration>,
    /// Retransmitted segments, from `TCP_INFO`.
    pub retransmits: Option<u64>,
    /// Its last receiver report.
    pub reception: Option<Reception>,
}

/// A client's reception (RFC 3550 section 6.4.1), for the first track that it reports on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reception {
    /// The track.
    pub track: TrackId,
    /// Fraction of packets lost since the previous report, from 0 to 1.
    pub fraction_lost: f32,
    /// Packets lost since it started; negative if there were more duplicates.
    pub lost: i32,
    /// Interarrival jitter.
    pub jitter: Duration,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        ShardMetrics::new()
    }
}

impl ShardMetrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        ShardMetrics {
            relay: relay_histogram(),
            streams: Vec::new(),
            counters: [0; Counter::COUNT],
            limited: [0; Limited::COUNT],
            gone: StreamCounts::default(),
            testing: Testing::default(),
        }
    }

    /// Tests can disable counting, to measure its cost.
    pub fn set_testing(&mut self, testing: Testing) {
        self.testing = testing;
    }

    /// Whether sends are counted.
    pub fn is_measuring(&self) -> bool {
        !self.testing.is_unmeasured()
    }

    /// A chunk of `bytes` is in a client's socket, `latency` after its last packet was read from the source.
    pub fn sent(&mut self, stream: StreamId, latency: Duration, bytes: u64) {
        let us = micros(latency);
        count(&mut self.relay, us, 1);
        let Some(stream) = self.stream(stream) else { return };
        count(&mut stream.latency, us, 1);
        stream.counts.sends += 1;
        stream.counts.bytes += bytes;
    }

    /// A lagging client skipped to a keyframe.
    pub fn skipped(&mut self, stream: StreamId) {
        if let Some(stream) = self.stream(stream) {
            stream.counts.skips += 1;
        }
    }

    /// `frames` frames will not reach a client (or, dropped before the log, any client of this shard).
    pub fn dropped(&mut self, stream: StreamId, reason: DropReason, frames: u64) {
        if let Some(stream) = self.stream(stream) {
            stream.counts.drops[reason.index()] += frames;
        }
    }

    /// A client starts to play.
    pub fn client_joined(&mut self, stream: StreamId, transport: Transport) {
        if let Some(StreamMetrics { counts, .. }) = self.stream(stream) {
            counts.joined[transport.index()] += 1;
            counts.clients[transport.index()] += 1;
        }
    }

    /// A client plays on that another process has counted when it started.
    pub fn client_restored(&mut self, stream: StreamId, transport: Transport) {
        if let Some(StreamMetrics { counts, .. }) = self.stream(stream) {
            counts.clients[transport.index()] += 1;
        }
    }

    /// A client stopped playing.
    pub fn client_left(&mut self, stream: StreamId, transport: Transport, reason: LeaveReason) {
        let Some(StreamMetrics { counts, .. }) = self.stream(stream) else { return };
        counts.left[reason.index()] += 1;
        let clients = &mut counts.clients[transport.index()];
        debug_assert!(*clients > 0, "a client left that had not joined");
        *clients = clients.saturating_sub(1);
    }

    /// Increments a counter of the shard.
    pub fn count(&mut self, counter: Counter, n: u64) {
        self.counters[counter.index()] += n;
    }

    /// Sets a counter that is kept elsewhere to its total since startup.
    pub fn set(&mut self, counter: Counter, total: u64) {
        self.counters[counter.index()] = total;
    }

    /// Something passed a limit.
    pub fn limited(&mut self, limited: Limited) {
        self.limited[limited.index()] += 1;
    }

    /// Removes a stream for good. Its counts stay in the relay's totals.
    pub fn remove_stream(&mut self, id: StreamId) {
        let Some(place) = self.place(id) else { return };
        if let Place::Counted(stream) = std::mem::replace(place, Place::Removed) {
            // Clients that are still playing are ended with it.
            self.gone.add(&StreamCounts { clients: [0; Transport::COUNT], ..stream.counts });
        }
    }

    /// The counts since startup and the latencies since the last snapshot; the shard fills in its gauges.
    pub fn snapshot(&mut self) -> ShardSnapshot {
        let streams = self.streams.iter_mut().filter_map(|(id, stream)| {
            let Place::Counted(stream) = stream else { return None };
            let latency = (!stream.latency.is_empty()).then(|| {
                let next = Histogram::new_from(&stream.latency);
                std::mem::replace(&mut stream.latency, next)
            });
            Some(StreamSnapshot {
                stream: *id,
                counts: stream.counts.clone(),
                latency,
                worst_lag: Duration::ZERO,
                log_bytes: 0,
                unread: None,
            })
        });
        ShardSnapshot {
            streams: streams.collect(),
            latency: std::mem::replace(&mut self.relay, relay_histogram()),
            counters: self.counters,
            limited: self.limited,
            gone: self.gone.clone(),
            egress: EgressStats::default(),
            connections: 0,
            sessions: 0,
            in_flight: 0,
            clients: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// The stream's index; `None` if another stream uses it now.
    fn place(&mut self, id: StreamId) -> Option<&mut Place> {
        let index = id.index();
        for place in self.streams.len()..=index {
            self.streams.push((StreamId::first(place as u16), Place::Empty));
        }
        let (of, place) = &mut self.streams[index];
        if *of < id {
            (*of, *place) = (id, Place::Empty);
        }
        (*of == id).then_some(place)
    }

    /// The counts for a stream; `None` if it was removed.
    fn stream(&mut self, id: StreamId) -> Option<&mut StreamMetrics> {
        let place = self.place(id)?;
        if let Place::Empty = place {
            *place = Place::Counted(Box::new(StreamMetrics {
                counts: StreamCounts::default(),
                latency: stream_histogram(),
            }));
        }
        match place {
            Place::Counted(stream) => Some(stream),
            Place::Empty | Place::Removed => None,
        }
    }
}

impl ShardSnapshot {
    /// The stream's counts, created if the shard has none yet.
    pub fn stream_mut(&mut self, id: StreamId) -> &mut StreamSnapshot {
        let index = match self.streams.binary_search_by_key(&id, |stream| stream.stream) {
            Ok(index) => index,
            Err(index) => {
                let empty = StreamSnapshot {
                    stream: id,
                    counts: StreamCounts::default(),
                    latency: None,
                    worst_lag: Duration::ZERO,
                    log_bytes: 0,
                    unread: None,
                };
                self.streams.insert(index, empty);
                index
            }
        };
        &mut self.streams[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_interval_s_latency_and_the_whole_run_s_counts() {
        let mut metrics = ShardMetrics::new();
        metrics.client_joined(StreamId::first(2), Transport::Udp);
        metrics.sent(StreamId::first(2), Duration::from_micros(1_500), 100);
        metrics.sent(StreamId::first(2), Duration::ZERO, 50);
        let first = metrics.snapshot();
        assert_eq!(first.latency.len(), 2);
        assert_eq!(first.streams.len(), 1);
        assert_eq!(first.streams[0].latency.as_ref().map(|l| l.len()), Some(2));

        metrics.sent(StreamId::first(2), Duration::from_secs(3600), 1);
        metrics.dropped(StreamId::first(2), DropReason::Lagging, 30);
        metrics.skipped(StreamId::first(2));
        metrics.client_left(StreamId::first(2), Transport::Udp, LeaveReason::Teardown);
        let second = metrics.snapshot();
        assert_eq!(second.latency.len(), 1, "the first interval is not in the second");
        let counts = &second.streams[0].counts;
        assert_eq!((counts.sends, counts.bytes, counts.skips), (3, 151, 1));
        assert_eq!(counts.drops[DropReason::Lagging.index()], 30);
        assert_eq!(counts.clients, [0; Transport::COUNT]);
        assert_eq!(counts.left[LeaveReason::Teardown.index()], 1);
    }

    #[test]
    fn a_removed_stream_does_not_come_back() {
        let mut metrics = ShardMetrics::new();
        metrics.client_joined(StreamId::first(1), Transport::Tcp);
        metrics.client_left(StreamId::first(1), Transport::Tcp, LeaveReason::StreamRemoved);
        metrics.remove_stream(StreamId::first(1));
        // Its last operations are reaped afterwards.
        metrics.sent(StreamId::first(1), Duration::from_micros(50), 100);
        metrics.dropped(StreamId::first(1), DropReason::UdpSend, 1);
        metrics.skipped(StreamId::first(1));
        let snapshot = metrics.snapshot();
        assert!(snapshot.streams.is_empty(), "{snapshot:?}");
        assert_eq!(snapshot.latency.len(), 1, "the relay has sent it");
        // It must not be mistaken for the next stream with this index either.
        let next = StreamId::first(1).next_generation();
        metrics.skipped(next);
        metrics.skipped(StreamId::first(1));
        let snapshot = metrics.snapshot();
        assert_eq!(
            (snapshot.streams.len(), snapshot.streams[0].stream, snapshot.streams[0].counts.skips),
            (1, next, 1)
        );
    }

    #[test]
    fn a_stream_without_sends_has_no_histogram_in_the_snapshot() {
        let mut metrics = ShardMetrics::new();
        metrics.skipped(StreamId::first(0));
        let mut snapshot = metrics.snapshot();
        assert!(snapshot.streams[0].latency.is_none());
        snapshot.stream_mut(StreamId::first(3)).worst_lag = Duration::from_millis(5);
        snapshot.stream_mut(StreamId::first(1)).log_bytes = 7;
        assert_eq!(snapshot.streams.iter().map(|s| s.stream.index()).collect::<Vec<_>>(), [0, 1, 3]);
    }
}
