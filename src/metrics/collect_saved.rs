//! The counts as plain data, for another process in which they continue.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Carried, Collector, Latencies, Mark, Stream, Summed, add, count};
use crate::egress::EgressStats;
use crate::metrics::latency::stream_histogram;
use crate::metrics::scrape::SourceSums;
use crate::metrics::shard::StreamCounts;
use crate::metrics::{Counter, DropReason, LeaveReason, Limited, Panicked, TlsCounts, TlsOutcome, Transport, process};

/// Counts by their stable names, without those that are zero. Names that a process does not know are passed over.
type Named = BTreeMap<String, u64>;

/// All counts that only grow, except those of sources, which are saved with them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CountsState {
    counters: Named,
    limited: Named,
    panicked: Named,
    lines_dropped: u64,
    tls: Named,
    egress: EgressStats,
    streams: Vec<SavedStream>,
    /// The counts for removed streams, and for their sources.
    gone: SavedCounts,
    gone_sources: SourceSums,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SavedStream {
    name: String,
    counts: SavedCounts,
    /// Sends by latency in microseconds.
    latency: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SavedCounts {
    sends: u64,
    bytes: u64,
    skips: u64,
    drops: Named,
    joined: Named,
    left: Named,
}

fn named<'a>(names: impl Iterator<Item = &'a str>, counts: &[u64]) -> Named {
    names.zip(counts).filter(|(_, count)| **count > 0).map(|(name, count)| (name.to_owned(), *count)).collect()
}

fn counts<'a, const COUNT: usize>(names: impl Iterator<Item = &'a str>, named: &Named) -> [u64; COUNT] {
    let mut counts = [0; COUNT];
    for (count, name) in counts.iter_mut().zip(names) {
        *count = named.get(name).copied().unwrap_or(0);
    }
    counts
}

impl SavedCounts {
    fn of(counts: &StreamCounts) -> SavedCounts {
        SavedCounts {
            sends: counts.sends,
            bytes: counts.bytes,
            skips: counts.skips,
            drops: named(DropReason::ALL.iter().map(|is| is.name()), &counts.drops),
            joined: named(Transport::ALL.iter().map(|is| is.name()), &counts.joined),
            left: named(LeaveReason::ALL.iter().map(|is| is.name()), &counts.left),
        }
    }

    fn restore(&self) -> StreamCounts {
        StreamCounts {
            sends: self.sends,
            bytes: self.bytes,
            skips: self.skips,
            drops: counts(DropReason::ALL.iter().map(|is| is.name()), &self.drops),
            joined: counts(Transport::ALL.iter().map(|is| is.name()), &self.joined),
            left: counts(LeaveReason::ALL.iter().map(|is| is.name()), &self.left),
            // The other process counts those that play there.
            clients: [0; Transport::COUNT],
        }
    }
}

impl CountsState {
    /// Adds the counts for TLS.
    pub fn add_tls(&mut self, tls: &TlsCounts) {
        let totals = TlsOutcome::ALL.map(|outcome| tls.total(outcome));
        self.tls = named(TlsOutcome::ALL.iter().map(|is| is.name()), &totals);
    }

    /// Restores those.
    pub fn restore_tls(&self, tls: &TlsCounts) {
        let totals: [u64; TlsOutcome::COUNT] = counts(TlsOutcome::ALL.iter().map(|is| is.name()), &self.tls);
        TlsOutcome::ALL.iter().zip(totals).for_each(|(outcome, total)| tls.add(*outcome, total));
    }
}

impl Collector {
    /// All counts since startup, as far as they have been collected.
    pub fn save(&self) -> CountsState {
        let (mut counters, mut limited) = (process::counted_total(), process::limited_total());
        let mut egress = self.carried_egress;
        for shard in &self.shards {
            add(&mut counters, &shard.counters);
            add(&mut limited, &shard.limited);
            egress += shard.egress;
        }
        let panicked: Vec<u64> = Panicked::ALL.iter().map(|what| process::panicked_total(*what)).collect();
        let streams = self.streams.iter().enumerate().filter_map(|(index, stream)| {
            let stream = stream.as_ref()?;
            let latency = stream.all_latency();
            let buckets = latency.iter().flat_map(Histogram::iter_recorded);
            Some(SavedStream {
                name: stream.name.clone(),
                counts: SavedCounts::of(&self.summed(index).counts),
                latency: buckets.map(|is| (is.value_iterated_to(), is.count_since_last_iteration())).collect(),
            })
        });
        CountsState {
            counters: named(Counter::ALL.iter().map(|is| is.name()), &counters),
            limited: named(Limited::ALL.iter().map(|is| is.name()), &limited),
            panicked: named(Panicked::ALL.iter().map(|is| is.name()), &panicked),
            lines_dropped: process::lines_dropped_total(),
            tls: Named::new(),
            egress,
            streams: streams.collect(),
            gone: SavedCounts::of(&self.gone_counts()),
            gone_sources: self.gone,
        }
    }

    /// Continues the counts of another process. Those of the whole process continue in [`process`]. Rates, percentiles and the
    /// summary still cover only this process.
    pub fn restore(&mut self, state: CountsState) {
        let counters = counts::<{ Counter::COUNT }>(Counter::ALL.iter().map(|is| is.name()), &state.counters);
        let limited = counts::<{ Limited::COUNT }>(Limited::ALL.iter().map(|is| is.name()), &state.limited);
        let panicked = counts::<{ Panicked::COUNT }>(Panicked::ALL.iter().map(|is| is.name()), &state.panicked);
        process::restore(&counters, &limited, &panicked, state.lines_dropped);
        self.restore_streams(state);
    }

    pub(super) fn restore_streams(&mut self, state: CountsState) {
        self.carried_egress = state.egress;
        self.carried_gone = state.gone.restore();
        self.gone = state.gone_sources;
        for saved in state.streams {
            let counts = saved.counts.restore();
            let Some(stream) = self.streams.iter_mut().flatten().find(|stream| stream.name == saved.name) else {
                self.carried_gone.add(&counts);
                continue;
            };
            let mut latency = stream_histogram();
            saved.latency.iter().for_each(|(us, times)| count(&mut latency, *us, *times));
            stream.at_span_start = Summed { counts: counts.clone(), ..Summed::default() };
            stream.carried = Some(Box::new(Carried { counts, latency, frames: 0, bytes: 0 }));
        }
        self.begins = true;
    }

    /// The sources have told for the first time what they had counted in the process before.
    pub(super) fn begin(&mut self) {
        for stream in self.streams.iter_mut().flatten() {
            stream.source_at_span_start = stream.source.clone();
            if let Some(carried) = &mut stream.carried {
                (carried.frames, carried.bytes) = (stream.source.frames, stream.source.bytes);
            }
        }
        let mark = self.mark(self.started, &self.summary(self.started, SystemTime::UNIX_EPOCH).total.flow);
        self.digested.0 = Mark { at: self.digested.0.at, ..mark.clone() };
        self.began = mark;
    }
}

impl Stream {
    /// All latencies, those of the process before included.
    pub(super) fn all_latency(&self) -> Option<Histogram<u64>> {
        let own = self.latency.as_ref().map(Latencies::whole);
        let Some(carried) = &self.carried else { return own };
        let mut all = carried.latency.clone();
        if let Some(own) = own {
            all.add(own).expect("histograms of the same digits add up, or grow");
        }
        Some(all)
    }
}
