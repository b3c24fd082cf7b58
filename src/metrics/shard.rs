//! The counts of one shard.

use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::oneshot;

use super::latency::{micros, relay_histogram, stream_histogram};
use super::{Counter, DropReason, LeaveReason, Limited, Transport};
use crate::egress::EgressStats;
use crate::stream::{StreamId, TrackId};

/// The reporter's question to a shard.
#[derive(Debug)]
pub struct ReportRequest {
    /// Where the answer goes.
    pub reply: oneshot::Sender<ShardSnapshot>,
    /// Whether [`ShardSnapshot::clients`] is wanted.
    pub clients: bool,
}

/// What a shard counts of one stream, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Chunks that clients got whole.
    pub sends: u64,
    /// Bytes of media that clients got.
    pub bytes: u64,
    /// Times that a lagging client was moved on to a keyframe.
    pub skips: u64,
    /// Frames dropped, by [`DropReason`]; a frame counts once for every client that missed it.
    pub drops: [u64; DropReason::COUNT],
    /// Clients that began to play, by [`Transport`].
    pub joined: [u64; Transport::COUNT],
    /// Clients that left, by [`LeaveReason`].
    pub left: [u64; LeaveReason::COUNT],
    /// Clients that play now, by [`Transport`].
    pub clients: [u64; Transport::COUNT],
}

/// The counts of one shard. Lives on the shard's thread.
#[derive(Debug)]
pub struct ShardMetrics {
    relay: Histogram<u32>,
    streams: Vec<Place>,
    counters: [u64; Counter::COUNT],
    limited: [u64; Limited::COUNT],
    /// For tests of what counting costs: nothing is counted of what clients are sent.
    unmeasured: bool,
}

/// What is known of a stream.
#[derive(Debug, Default)]
enum Place {
    /// Nothing was counted yet.
    #[default]
    Empty,
    Counted(Box<StreamMetrics>),
    /// It is no more. What still ends of its sends is counted for the relay alone.
    Removed,
}

#[derive(Debug)]
struct StreamMetrics {
    counts: StreamCounts,
    latency: Histogram<u32>,
}

/// What a shard answers to a [`ReportRequest`].
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// Latency of the interval that ends with this snapshot, in microseconds.
    pub latency: Histogram<u32>,
    /// The streams that were ever used, in the order of their ids.
    pub streams: Vec<StreamSnapshot>,
    /// Counts since the start, by [`Counter`].
    pub counters: [u64; Counter::COUNT],
    /// What passed a limit since the start, by [`Limited`].
    pub limited: [u64; Limited::COUNT],
    /// What the shard's egress has done since the start. Filled in by the shard.
    pub egress: EgressStats,
    /// Connections open, playing or not. Filled in by the shard.
    pub connections: u64,
    /// RTSP sessions, playing or not. Filled in by the shard.
    pub sessions: u64,
    /// Send operations queued or under way. Filled in by the shard.
    pub in_flight: u64,
    /// The clients, when they were asked for. Filled in by the shard.
    pub clients: Vec<ClientSnapshot>,
}

/// A stream in a [`ShardSnapshot`].
#[derive(Clone, Debug)]
pub struct StreamSnapshot {
    /// Which stream.
    pub stream: StreamId,
    /// Counts since the start.
    pub counts: StreamCounts,
    /// Latency of the interval, in microseconds; `None` when nothing was sent in it.
    pub latency: Option<Histogram<u32>>,
    /// Lag of the worst client now. Filled in by the shard.
    pub worst_lag: Duration,
    /// Bytes in the stream's log now. Filled in by the shard.
    pub log_bytes: u64,
    /// Bytes that the stream's publisher has sent and nobody has read yet, if its connection is the shard's. Filled in by the
    /// shard.
    pub unread: Option<u64>,
}

/// A client in a [`ShardSnapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSnapshot {
    /// Its address.
    pub peer: SocketAddr,
    /// Its session, as its player knows it.
    pub session: String,
    /// The player's name for itself.
    pub user_agent: Option<String>,
    /// Time since it began to play.
    pub playing: Duration,
    /// What it plays.
    pub stream: StreamId,
    /// How it gets it.
    pub transport: Transport,
    /// Whether it comes by TLS.
    pub tls: bool,
    /// Bytes of media that it got.
    pub bytes: u64,
    /// Its lag now.
    pub lag: Duration,
    /// Times that it was moved on to a keyframe.
    pub skips: u64,
    /// Its own p99 of the relay latency.
    pub p99: Option<Duration>,
    /// Smoothed round-trip time, from `TCP_INFO`.
    pub rtt: Option<Duration>,
    /// Segments sent again, from `TCP_INFO`.
    pub retransmits: Option<u64>,
    /// What its last receiver report says.
    pub reception: Option<Reception>,
}

/// What a client says of its reception (RFC 3550 section 6.4.1), of its first track that it reports on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reception {
    /// The track.
    pub track: TrackId,
    /// Part of the packets lost since the report before, from 0 to 1.
    pub fraction_lost: f32,
    /// Packets lost since it began; fewer than none if some came twice.
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
            unmeasured: false,
        }
    }

    /// Counts no sends any more, for tests of what counting costs.
    pub fn stop_measuring(&mut self) {
        self.unmeasured = true;
    }

    /// Whether sends are counted.
    pub fn is_measuring(&self) -> bool {
        !self.unmeasured
    }

    /// A chunk of `bytes` is in a client's socket, `latency` after its last packet was read from the source.
    pub fn sent(&mut self, stream: StreamId, latency: Duration, bytes: u64) {
        let us = micros(latency);
        self.relay.saturating_record(us);
        let Some(stream) = self.stream(stream) else { return };
        stream.latency.saturating_record(us);
        stream.counts.sends += 1;
        stream.counts.bytes += bytes;
    }

    /// A lagging client was moved on to a keyframe.
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

    /// A client begins to play.
    pub fn client_joined(&mut self, stream: StreamId, transport: Transport) {
        if let Some(StreamMetrics { counts, .. }) = self.stream(stream) {
            counts.joined[transport.index()] += 1;
            counts.clients[transport.index()] += 1;
        }
    }

    /// A client that had joined plays no more.
    pub fn client_left(&mut self, stream: StreamId, transport: Transport, reason: LeaveReason) {
        let Some(StreamMetrics { counts, .. }) = self.stream(stream) else { return };
        counts.left[reason.index()] += 1;
        let clients = &mut counts.clients[transport.index()];
        debug_assert!(*clients > 0, "a client left that had not joined");
        *clients = clients.saturating_sub(1);
    }

    /// Adds to a counter of the shard.
    pub fn count(&mut self, counter: Counter, n: u64) {
        self.counters[counter.index()] += n;
    }

    /// Sets a counter that is kept elsewhere to its total since the start.
    pub fn set(&mut self, counter: Counter, total: u64) {
        self.counters[counter.index()] = total;
    }

    /// Something passed a limit.
    pub fn limited(&mut self, limited: Limited) {
        self.limited[limited.index()] += 1;
    }

    /// Forgets a stream that is no more, for good: its number is not used again.
    pub fn remove_stream(&mut self, id: StreamId) {
        *self.place(id) = Place::Removed;
    }

    /// The counts since the start and the latencies since the last snapshot; the shard fills in its gauges.
    pub fn snapshot(&mut self) -> ShardSnapshot {
        let streams = self.streams.iter_mut().enumerate().filter_map(|(id, stream)| {
            let Place::Counted(stream) = stream else { return None };
            let latency =
                (!stream.latency.is_empty()).then(|| std::mem::replace(&mut stream.latency, stream_histogram()));
            Some(StreamSnapshot {
                stream: StreamId(id as u16),
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
            egress: EgressStats::default(),
            connections: 0,
            sessions: 0,
            in_flight: 0,
            clients: Vec::new(),
        }
    }

    fn place(&mut self, id: StreamId) -> &mut Place {
        let index = usize::from(id.0);
        if index >= self.streams.len() {
            self.streams.resize_with(index + 1, Place::default);
        }
        &mut self.streams[index]
    }

    /// Where to count for a stream; nowhere if it is no more.
    fn stream(&mut self, id: StreamId) -> Option<&mut StreamMetrics> {
        let place = self.place(id);
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
    /// The stream's part, made when the shard has counted nothing of it yet.
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
        metrics.client_joined(StreamId(2), Transport::Udp);
        metrics.sent(StreamId(2), Duration::from_micros(1_500), 100);
        metrics.sent(StreamId(2), Duration::ZERO, 50);
        let first = metrics.snapshot();
        assert_eq!(first.latency.len(), 2);
        assert_eq!(first.streams.len(), 1);
        assert_eq!(first.streams[0].latency.as_ref().map(|l| l.len()), Some(2));

        metrics.sent(StreamId(2), Duration::from_secs(3600), 1);
        metrics.dropped(StreamId(2), DropReason::Lagging, 30);
        metrics.skipped(StreamId(2));
        metrics.client_left(StreamId(2), Transport::Udp, LeaveReason::Teardown);
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
        metrics.client_joined(StreamId(1), Transport::Tcp);
        metrics.client_left(StreamId(1), Transport::Tcp, LeaveReason::StreamRemoved);
        metrics.remove_stream(StreamId(1));
        // Its last operations are reaped after that.
        metrics.sent(StreamId(1), Duration::from_micros(50), 100);
        metrics.dropped(StreamId(1), DropReason::UdpSend, 1);
        metrics.skipped(StreamId(1));
        let snapshot = metrics.snapshot();
        assert!(snapshot.streams.is_empty(), "{snapshot:?}");
        assert_eq!(snapshot.latency.len(), 1, "the relay has sent it");
    }

    #[test]
    fn a_stream_without_sends_has_no_histogram_in_the_snapshot() {
        let mut metrics = ShardMetrics::new();
        metrics.skipped(StreamId(0));
        let mut snapshot = metrics.snapshot();
        assert!(snapshot.streams[0].latency.is_none());
        snapshot.stream_mut(StreamId(3)).worst_lag = Duration::from_millis(5);
        snapshot.stream_mut(StreamId(1)).log_bytes = 7;
        assert_eq!(snapshot.streams.iter().map(|s| s.stream.0).collect::<Vec<_>>(), [0, 1, 3]);
    }
}
