//! Merges the counts of shards and sources into reports.

#[path = "collect_saved.rs"]
mod saved;

use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;

use super::digest::Digest;
use super::latency::{count, relay_histogram, stream_histogram};
use super::report::{Flow, Percentiles, Report, Scope, SourceGauge, StreamReport, Totals, octaves};
use super::scrape::{Scrape, SourceSums, StreamScrape};
use super::shard::{ShardSnapshot, StreamCounts};
use super::{Counter, DropReason, Limited, Transport, process};
use crate::egress::EgressStats;
use crate::media::StreamId;

pub use self::saved::CountsState;

/// Latencies of the current span, and of everything before it. A span's counts saturate at 2^32 in a bucket: 49,000 frames a second, all of
/// the same latency, for the 24 hours that a span has at most.
#[derive(Debug)]
struct Latencies {
    span: Histogram<u32>,
    before: Histogram<u64>,
}

impl Latencies {
    fn of_relay() -> Self {
        Latencies { span: relay_histogram(), before: relay_histogram() }
    }

    fn of_stream() -> Self {
        Latencies { span: stream_histogram(), before: stream_histogram() }
    }

    fn add(&mut self, interval: &Histogram<u32>) {
        self.span.add(interval).expect("histograms of the same bounds add up");
    }

    fn end_span(&mut self) {
        add_all(&mut self.before, &self.span);
        self.span.reset();
    }

    fn whole(&self) -> Histogram<u64> {
        let mut whole = self.before.clone();
        add_all(&mut whole, &self.span);
        whole
    }
}

/// Adds histograms of different counter widths, bucket by bucket.
fn add_all(into: &mut Histogram<u64>, from: &Histogram<u32>) {
    for bucket in from.iter_recorded() {
        count(into, bucket.value_iterated_to(), bucket.count_since_last_iteration());
    }
}

/// Counts of all streams at the last digest, from which the next one is computed.
#[derive(Clone, Debug)]
struct Mark {
    at: Instant,
    in_bytes: u64,
    out_bytes: u64,
    skips: u64,
    dropped: u64,
    lost: u64,
}

impl Mark {
    fn new(at: Instant) -> Mark {
        Mark { at, in_bytes: 0, out_bytes: 0, skips: 0, dropped: 0, lost: 0 }
    }
}

/// A shard's last answer.
#[derive(Debug, Default)]
struct Known {
    streams: Vec<Seen>,
    counters: [u64; Counter::COUNT],
    limited: [u64; Limited::COUNT],
    /// Its counts for removed streams, including streams that were removed since its answer.
    gone: StreamCounts,
    leaving: StreamCounts,
    egress: EgressStats,
    connections: u64,
    sessions: u64,
    in_flight: u64,
}

/// A stream in a shard's answer.
#[derive(Clone, Debug, Default)]
struct Seen {
    counts: StreamCounts,
    lag: Duration,
    log_bytes: u64,
    unread: Option<u64>,
}

/// A stream's counts, summed over the shards.
#[derive(Clone, Debug, Default)]
struct Summed {
    counts: StreamCounts,
    lag: Duration,
    log_bytes: u64,
    unread: Option<u64>,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    name: String,
    /// Made on first use.
    latency: Option<Latencies>,
    source: SourceGauge,
    source_at_span_start: SourceGauge,
    at_span_start: Summed,
    carried: Option<Box<Carried>>,
}

/// What a process before has counted for a stream.
#[derive(Debug)]
struct Carried {
    counts: StreamCounts,
    latency: Histogram<u64>,
    /// Of its source, which continues them.
    frames: u64,
    bytes: u64,
}

/// Merges snapshots; makes the reports.
#[derive(Debug)]
pub struct Collector {
    started: Instant,
    span_start: Instant,
    shards: Vec<Known>,
    silent: usize,
    /// By index; `None` where one was removed.
    streams: Vec<Option<Stream>>,
    /// Sums over the sources of removed streams.
    gone: SourceSums,
    latency: Latencies,
    /// When the last digest was made, and the latencies since then.
    digested: (Mark, Histogram<u64>),
    /// Counts at the start of this process.
    began: Mark,
    /// The sources have not told yet what they had counted in a process before.
    begins: bool,
    /// What a process before has counted, apart from its streams.
    carried_gone: StreamCounts,
    carried_egress: EgressStats,
}

impl Collector {
    /// For this many shards; streams are added later.
    pub fn new(now: Instant, shards: usize) -> Self {
        Collector {
            started: now,
            span_start: now,
            shards: (0..shards).map(|_| Known::default()).collect(),
            silent: 0,
            streams: Vec::new(),
            gone: SourceSums::default(),
            latency: Latencies::of_relay(),
            digested: (Mark::new(now), relay_histogram()),
            began: Mark::new(now),
            begins: false,
            carried_gone: StreamCounts::default(),
            carried_egress: EgressStats::default(),
        }
    }

    /// Starts counting for a stream.
    pub fn add_stream(&mut self, id: StreamId, name: &str) {
        let index = id.index();
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index] = Some(Stream {
            id,
            name: name.to_owned(),
            latency: None,
            source: SourceGauge::default(),
            source_at_span_start: SourceGauge::default(),
            at_span_start: Summed::default(),
            carried: None,
        });
    }

    /// Removes a stream. The relay's totals keep its last known counts.
    pub fn remove_stream(&mut self, id: StreamId) {
        let index = id.index();
        let Some(stream) = self.streams.get_mut(index).and_then(|place| place.take_if(|stream| stream.id == id)) else {
            return;
        };
        self.gone.add(&stream.source);
        if let Some(carried) = &stream.carried {
            self.carried_gone.add(&carried.counts);
        }
        for shard in &mut self.shards {
            let Some(seen) = shard.streams.get_mut(index) else { continue };
            // Until the shard's answer includes it among the removed ones.
            let Seen { mut counts, .. } = std::mem::take(seen);
            counts.clients = [0; Transport::COUNT];
            shard.leaving.add(&counts);
        }
    }

    /// Processes one round of answers: a snapshot per shard (`None`: it did not answer in time), a gauge per stream.
    pub fn absorb(&mut self, snapshots: Vec<Option<ShardSnapshot>>, sources: Vec<(StreamId, SourceGauge)>) {
        debug_assert_eq!(snapshots.len(), self.shards.len());
        self.silent = snapshots.iter().filter(|snapshot| snapshot.is_none()).count();
        for (known, snapshot) in self.shards.iter_mut().zip(snapshots) {
            let Some(snapshot) = snapshot else { continue };
            self.latency.add(&snapshot.latency);
            add_all(&mut self.digested.1, &snapshot.latency);
            known.egress = snapshot.egress;
            known.counters = snapshot.counters;
            known.limited = snapshot.limited;
            known.connections = snapshot.connections;
            known.sessions = snapshot.sessions;
            known.in_flight = snapshot.in_flight;
            known.gone = snapshot.gone;
            known.leaving = StreamCounts::default();
            known.streams.clear();
            known.streams.resize_with(self.streams.len(), Default::default);
            for part in snapshot.streams {
                let index = part.stream.index();
                let place = self.streams.get_mut(index).and_then(Option::as_mut);
                let Some(stream) = place.filter(|stream| stream.id == part.stream) else { continue };
                if let Some(latency) = &part.latency {
                    stream.latency.get_or_insert_with(Latencies::of_stream).add(latency);
                }
                known.streams[index] =
                    Seen { counts: part.counts, lag: part.worst_lag, log_bytes: part.log_bytes, unread: part.unread };
            }
        }
        for (id, source) in sources {
            let place = self.streams.get_mut(id.index()).and_then(Option::as_mut);
            if let Some(stream) = place.filter(|stream| stream.id == id) {
                stream.source = source;
            }
        }
        if std::mem::take(&mut self.begins) {
            self.begin();
        }
    }

    /// The report for the time since the last one.
    pub fn interval(&mut self, now: Instant, at: SystemTime) -> Report {
        let report = self.report(now, at, Scope::Interval);
        for index in 0..self.streams.len() {
            let summed = self.summed(index);
            let Some(stream) = &mut self.streams[index] else { continue };
            stream.at_span_start = summed;
            stream.source_at_span_start = stream.source.clone();
            if let Some(latency) = &mut stream.latency {
                latency.end_span();
            }
        }
        self.latency.end_span();
        self.span_start = now;
        report
    }

    /// The report for the whole run so far.
    pub fn summary(&self, now: Instant, at: SystemTime) -> Report {
        self.report(now, at, Scope::Summary)
    }

    /// The digest for the time since the last one, or for the whole run.
    pub fn digest(&mut self, now: Instant, at: SystemTime, scope: Scope) -> Digest {
        let summary = self.summary(now, at);
        let flow = &summary.total.flow;
        let mark = self.mark(now, flow);
        let (before, latency) = match scope {
            Scope::Summary => (self.began.clone(), flow.latency),
            Scope::Interval => {
                let before = std::mem::replace(&mut self.digested.0, mark.clone());
                let latency = Percentiles::of(&self.digested.1);
                self.digested.1.reset();
                (before, latency)
            }
        };
        let span = now.saturating_duration_since(before.at);
        let bps = |now: u64, then: u64| 8.0 * now.saturating_sub(then) as f64 / span.as_secs_f64().max(1e-3);
        Digest {
            scope,
            span,
            clients: flow.clients(),
            in_bps: bps(mark.in_bytes, before.in_bytes),
            out_bps: bps(mark.out_bytes, before.out_bytes),
            latency,
            skips: mark.skips.saturating_sub(before.skips),
            dropped: mark.dropped.saturating_sub(before.dropped),
            lost: mark.lost.saturating_sub(before.lost),
            silent_shards: summary.total.silent_shards,
            streams: summary.streams.into_iter().map(|stream| (stream.name, stream.state)).collect(),
        }
    }

    fn mark(&self, at: Instant, flow: &Flow) -> Mark {
        Mark {
            at,
            in_bytes: self.source_sums().bytes,
            out_bytes: flow.bytes_total,
            skips: flow.skips_total,
            dropped: flow.dropped_total,
            lost: flow.lost_total,
        }
    }

    fn report(&self, now: Instant, at: SystemTime, scope: Scope) -> Report {
        let uptime = now.saturating_duration_since(self.started);
        let (span, latency, histogram) = match scope {
            Scope::Interval => {
                let latency = &self.latency.span;
                (now.saturating_duration_since(self.span_start), Percentiles::of(latency), octaves(latency))
            }
            Scope::Summary => {
                let latency = self.latency.whole();
                (uptime, Percentiles::of(&latency), octaves(&latency))
            }
        };
        let streams: Vec<_> = (0..self.streams.len()).filter_map(|index| self.stream(index, span, scope)).collect();
        let mut total = Totals { silent_shards: self.silent, egress: self.carried_egress, ..Totals::default() };
        for shard in &self.shards {
            total.connections += shard.connections;
            total.sessions += shard.sessions;
            total.in_flight += shard.in_flight;
            total.egress += shard.egress;
        }
        for stream in &streams {
            let (sum, flow) = (&mut total.flow, &stream.flow);
            sum.in_bps += flow.in_bps;
            sum.out_bps += flow.out_bps;
            sum.clients_tcp += flow.clients_tcp;
            sum.clients_udp += flow.clients_udp;
            sum.clients_multicast += flow.clients_multicast;
            sum.clients_websocket += flow.clients_websocket;
            sum.joined += flow.joined;
            sum.lag = sum.lag.max(flow.lag);
            sum.skips += flow.skips;
            sum.skips_total += flow.skips_total;
            sum.lost_total += flow.lost_total;
            sum.reconnects_total += flow.reconnects_total;
            sum.dropped_total += flow.dropped_total;
            sum.bytes_total += flow.bytes_total;
        }
        // Totals never shrink, even if streams are removed.
        let (gone, sum) = (self.gone_counts(), &mut total.flow);
        sum.joined += gone.joined.iter().sum::<u64>();
        sum.skips_total += gone.skips;
        sum.lost_total += self.gone.lost;
        sum.reconnects_total += self.gone.reconnects;
        sum.dropped_total += gone.drops.iter().sum::<u64>() + self.gone.dropped;
        sum.bytes_total += gone.bytes;
        total.flow.latency = latency;
        Report { scope, at, uptime, span, streams, total, histogram }
    }

    fn stream(&self, index: usize, span: Duration, scope: Scope) -> Option<StreamReport> {
        let stream = self.streams[index].as_ref()?;
        let summed = self.summed(index);
        let mut start = (Summed::default(), SourceGauge::default());
        if let Some(carried) = &stream.carried {
            start.0.counts = carried.counts.clone();
            (start.1.frames, start.1.bytes) = (carried.frames, carried.bytes);
        }
        let (before, source_before) = match scope {
            Scope::Interval => (&stream.at_span_start, &stream.source_at_span_start),
            Scope::Summary => (&start.0, &start.1),
        };
        let seconds = span.as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let latency = stream.latency.as_ref().map(|latency| match scope {
            Scope::Interval => Percentiles::of(&latency.span),
            Scope::Summary => Percentiles::of(&latency.whole()),
        });
        let mut drops = summed.counts.drops;
        drops[DropReason::SourceTorn.index()] += stream.source.torn;
        drops[DropReason::WaitingKeyframe.index()] += stream.source.unreferenced;
        let counts = &summed.counts;
        Some(StreamReport {
            name: stream.name.clone(),
            state: stream.source.state,
            since: stream.source.since,
            fault: stream.source.fault.clone(),
            next_try_in: stream.source.next_try_in,
            failures: stream.source.failures,
            fps: rate(stream.source.frames, source_before.frames),
            unread: stream.source.unread.or(summed.unread),
            encodings: stream.source.encodings.clone(),
            flow: Flow {
                in_bps: 8.0 * rate(stream.source.bytes, source_before.bytes),
                out_bps: 8.0 * rate(counts.bytes, before.counts.bytes),
                clients_tcp: counts.clients[Transport::Tcp.index()],
                clients_udp: counts.clients[Transport::Udp.index()],
                clients_multicast: counts.clients[Transport::Multicast.index()],
                clients_websocket: counts.clients[Transport::WebSocket.index()],
                joined: counts.joined.iter().sum(),
                latency: latency.unwrap_or_default(),
                lag: summed.lag,
                skips: counts.skips.saturating_sub(before.counts.skips),
                skips_total: counts.skips,
                lost_total: stream.source.lost,
                reconnects_total: stream.source.reconnects,
                dropped_total: drops.iter().sum(),
                bytes_total: counts.bytes,
            },
            drops,
            source_drops: stream.source.dropped,
        })
    }

    /// The shards' counts for removed streams.
    fn gone_counts(&self) -> StreamCounts {
        let mut gone = self.carried_gone.clone();
        for shard in &self.shards {
            gone.add(&shard.gone);
            gone.add(&shard.leaving);
        }
        gone
    }

    /// Sums over all current and former sources.
    fn source_sums(&self) -> SourceSums {
        let mut sums = self.gone;
        self.streams.iter().flatten().for_each(|stream| sums.add(&stream.source));
        sums
    }

    /// Everything since startup, for a scraper.
    pub fn scrape(&self, now: Instant, at: SystemTime) -> Scrape {
        let streams = (0..self.streams.len()).filter_map(|index| {
            let stream = self.streams[index].as_ref()?;
            let Summed { counts, log_bytes, .. } = self.summed(index);
            let latency = stream.all_latency();
            Some(StreamScrape::new(latency.as_ref(), counts, &stream.source, log_bytes))
        });
        let (mut counters, mut limited) = (process::counted_total(), process::limited_total());
        for shard in &self.shards {
            add(&mut counters, &shard.counters);
            add(&mut limited, &shard.limited);
        }
        let shards = self.shards.len();
        let mut all = self.gone_counts();
        for index in 0..self.streams.len() {
            all.add(&self.summed(index).counts);
        }
        let sources = self.source_sums();
        Scrape { summary: self.summary(now, at), streams: streams.collect(), counters, limited, shards, all, sources }
    }

    /// A stream's counts over all shards.
    fn summed(&self, index: usize) -> Summed {
        let mut sum = Summed::default();
        if let Some(carried) = self.streams[index].as_ref().and_then(|stream| stream.carried.as_ref()) {
            sum.counts.add(&carried.counts);
        }
        for Seen { counts, lag, log_bytes, unread } in self.shards.iter().filter_map(|shard| shard.streams.get(index)) {
            sum.lag = sum.lag.max(*lag);
            // Every shard's log refers to the same chunks.
            sum.log_bytes = sum.log_bytes.max(*log_bytes);
            // One shard has the publisher's connection, if there is one.
            sum.unread = sum.unread.or(*unread);
            sum.counts.add(counts);
        }
        sum
    }
}

fn add(into: &mut [u64], counts: &[u64]) {
    for (into, count) in into.iter_mut().zip(counts) {
        *into += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{LeaveReason, ShardMetrics};

    #[test]
    fn another_process_continues_every_count() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (a, b, gone) = (StreamId::first(0), StreamId::first(1), StreamId::first(2));
        let mut before = Collector::new(start, 1);
        let mut metrics = ShardMetrics::new();
        for (id, name) in [(a, "a"), (b, "b"), (gone, "gone")] {
            before.add_stream(id, name);
            metrics.client_joined(id, Transport::WebSocket);
            for us in [1, 70, 90_000, 70_000_000] {
                metrics.sent(id, Duration::from_micros(us), 1_000);
            }
            metrics.skipped(id);
            metrics.dropped(id, DropReason::Lagging, 3);
        }
        metrics.client_left(b, Transport::WebSocket, LeaveReason::Teardown);
        let source = SourceGauge { frames: 60, bytes: 250_000, lost: 2, ..SourceGauge::default() };
        let egress = EgressStats { operations: 7, submits: 5, ..EgressStats::default() };
        let snapshot = |metrics: &mut ShardMetrics| ShardSnapshot { egress, ..metrics.snapshot() };
        before.absorb(vec![Some(snapshot(&mut metrics))], vec![(a, source.clone())]);
        before.remove_stream(gone);
        let state: CountsState = serde_json::from_str(&serde_json::to_string(&before.save()).unwrap()).unwrap();
        let then = before.scrape(start + second, SystemTime::UNIX_EPOCH);

        // Twice: what was carried once is carried again, wherever its stream is.
        let mut between = Collector::new(start + second, 1);
        between.add_stream(a, "a");
        between.add_stream(b, "b");
        between.restore_streams(state);
        let mut after = Collector::new(start + second, 2);
        after.add_stream(b, "a");
        after.add_stream(a, "b");
        after.restore_streams(between.save());
        let mut metrics = ShardMetrics::new();
        metrics.client_restored(b, Transport::WebSocket);
        metrics.sent(b, Duration::from_micros(70), 500);
        after.absorb(vec![Some(snapshot(&mut metrics)), None], vec![(b, source.clone())]);
        let now = after.scrape(start + 2 * second, SystemTime::UNIX_EPOCH);
        let (was, is) = (&then.streams[0], &now.streams[1]);
        assert_eq!((is.counts.bytes, is.counts.sends, is.sends), (was.counts.bytes + 500, was.counts.sends + 1, 5));
        let rest = |counts: &StreamCounts| (counts.drops, counts.left, counts.joined, counts.clients);
        assert_eq!(rest(&is.counts), rest(&was.counts));
        assert!((is.sum_us - was.sum_us - 70.0).abs() < 0.5, "{} {}", was.sum_us, is.sum_us);
        assert!(is.buckets.iter().zip(&was.buckets).all(|(is, was)| is >= was));
        assert_eq!(now.streams[0].counts, then.streams[1].counts);
        assert_eq!((now.all.bytes, now.all.skips), (then.all.bytes + 500, then.all.skips));
        assert_eq!((now.summary.total.egress.operations, now.sources.bytes), (14, 250_000));
        // Rates and the summary are of this process.
        let report = after.interval(start + 2 * second, SystemTime::UNIX_EPOCH);
        let flow = &report.streams[1].flow;
        assert_eq!((flow.in_bps, flow.out_bps, report.streams[1].fps), (0.0, 4_000.0, 0.0));
        let digest = after.digest(start + 2 * second, SystemTime::UNIX_EPOCH, Scope::Summary);
        assert_eq!((digest.in_bps, digest.skips, digest.lost), (0.0, 0, 0));
    }

    #[test]
    fn intervals_and_the_whole_run_add_up_over_shards() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut collector = Collector::new(start, 2);
        let (mut one, mut two) = (ShardMetrics::new(), ShardMetrics::new());
        let (a, b) = (StreamId::first(0), StreamId::first(1));
        collector.add_stream(a, "a");
        collector.add_stream(b, "b");

        one.client_joined(a, Transport::Tcp);
        two.client_joined(a, Transport::Udp);
        for _ in 0..99 {
            one.sent(a, Duration::from_micros(100), 1_000);
        }
        two.sent(a, Duration::from_millis(50), 1_000);
        let source = SourceGauge { frames: 60, bytes: 250_000, lost: 2, torn: 1, ..SourceGauge::default() };
        let mut snapshot = two.snapshot();
        snapshot.stream_mut(a).worst_lag = second;
        collector
            .absorb(vec![Some(one.snapshot()), Some(snapshot)], vec![(a, source.clone()), (b, SourceGauge::default())]);
        let report = collector.interval(start + 2 * second, SystemTime::UNIX_EPOCH);
        let stream = &report.streams[0];
        assert_eq!((stream.fps, stream.flow.in_bps, stream.flow.out_bps), (30.0, 1_000_000.0, 400_000.0));
        assert_eq!((stream.flow.clients_tcp, stream.flow.clients_udp, stream.flow.lag), (1, 1, second));
        assert_eq!(stream.flow.latency.count, 100);
        assert_eq!(stream.flow.latency.p50, Some(Duration::from_micros(100)));
        assert_eq!(stream.drops[DropReason::SourceTorn.index()], 1);
        let max = report.total.flow.latency.max.unwrap().as_micros();
        assert!((49_900..50_100).contains(&max), "{max}");
        assert_eq!(report.histogram[6], 99, "64 to 128 µs");
        assert_eq!(report.streams[1].flow, Flow::default());

        // The second shard does not answer: its old counts are used, and its latencies are not counted twice.
        one.client_left(a, Transport::Tcp, LeaveReason::Disconnected);
        one.skipped(a);
        one.sent(b, Duration::from_micros(10), 500);
        collector.absorb(vec![Some(one.snapshot()), None], vec![(a, source), (b, SourceGauge::default())]);
        let report = collector.interval(start + 3 * second, SystemTime::UNIX_EPOCH);
        let stream = &report.streams[0];
        assert_eq!((stream.fps, stream.flow.out_bps, stream.flow.clients()), (0.0, 0.0, 1));
        assert_eq!((stream.flow.latency.count, stream.flow.skips), (0, 1));
        assert_eq!((report.total.flow.latency.count, report.total.silent_shards), (1, 1));

        let summary = collector.summary(start + 4 * second, SystemTime::UNIX_EPOCH);
        assert_eq!(summary.total.flow.latency.count, 101);
        assert_eq!(summary.streams[0].flow.latency.count, 100);
        assert_eq!((summary.streams[0].fps, summary.span), (15.0, 4 * second));
        assert_eq!((summary.total.flow.skips, summary.total.flow.bytes_total), (1, 100_500));

        // A stream that reuses a removed one's index starts from zero, and the totals keep the removed one's counts.
        let before = collector.summary(start + 4 * second, SystemTime::UNIX_EPOCH).total.flow;
        let gone = SourceGauge { lost: 2, torn: 1, bytes: 300_000, ..SourceGauge::default() };
        collector.absorb(vec![None, None], vec![(a, gone)]);
        collector.remove_stream(a);
        let totals =
            |flow: &Flow| (flow.bytes_total, flow.skips_total, flow.lost_total, flow.dropped_total, flow.joined);
        let now = |collector: &Collector| collector.summary(start + 4 * second, SystemTime::UNIX_EPOCH).total.flow;
        assert_eq!(totals(&now(&collector)), totals(&before));
        one.remove_stream(a);
        collector.absorb(vec![Some(one.snapshot()), None], vec![]);
        assert_eq!(totals(&now(&collector)), totals(&before), "one of two shards has told so");
        two.remove_stream(a);
        collector.absorb(vec![Some(one.snapshot()), Some(two.snapshot())], vec![]);
        assert_eq!(totals(&now(&collector)), totals(&before));
        let scrape = collector.scrape(start + 4 * second, SystemTime::UNIX_EPOCH);
        assert_eq!((scrape.all.bytes, scrape.sources.bytes), (before.bytes_total, 300_000));
        assert_eq!(collector.summary(start + 4 * second, SystemTime::UNIX_EPOCH).streams.len(), 1);
        let c = a.next_generation();
        collector.add_stream(c, "c");
        collector.remove_stream(a);
        one.skipped(a);
        collector.absorb(vec![Some(one.snapshot()), None], vec![]);
        let summary = collector.summary(start + 4 * second, SystemTime::UNIX_EPOCH);
        assert_eq!((summary.streams[0].name.as_str(), summary.streams[0].flow.bytes_total), ("c", 0));
    }
}
