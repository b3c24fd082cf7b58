//! The pipeline of one stream, from the source's packets to the shards.
//!
//! It has no sockets and no clock: the source passes it packets with the time they were read, and it passes chunks to a [`StreamSink`].
//! It runs on the stream's home shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::input::{Input, InputState, Tally, chunks};
use super::stats::{Notice, SourceStats, TrackStats};
use super::timeline::{Passed, Place, Timeline, TimelineState};
use crate::limits::{PACKET_BYTES_MAX, TRACKS_MAX};
use crate::media::chunker::{Chunker, ChunkerState};
use crate::media::saved::Moment;
use crate::media::{Description, SourceTrack, StreamEvent, StreamSink, Track, TrackId};
use crate::told::Told;
use crate::wire::rtp::Header;

/// What has been reported about the camera's clock in this session.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct ToldClock {
    wrong: bool,
    stepped: bool,
}

/// The pipeline of one stream.
pub struct Pipeline {
    random: fastrand::Rng,
    cname: String,
    description: Option<Arc<Description>>,
    inputs: Vec<Input>,
    timeline: Option<Timeline>,
    chunker: Chunker,
    connected: bool,
    /// Whether there was nothing to read when last asked, and nothing has arrived since.
    drained: bool,
    tally: Tally,
    told_clock: ToldClock,
    told_lost: Told,
    /// Lost packets that have been reported.
    lost_told: u64,
}

/// A pipeline as plain data.
#[derive(Clone, Serialize, Deserialize)]
pub struct PipelineState {
    /// The value that SSRCs and other identifiers are derived from next.
    random: u64,
    cname: String,
    description: Option<Description<Moment>>,
    inputs: Vec<InputState>,
    timeline: Option<TimelineState>,
    chunker: ChunkerState,
    connected: bool,
    drained: bool,
    stats: SourceStats,
    notices: Vec<Notice>,
    told_clock: ToldClock,
    told_lost: Option<Moment>,
    lost_told: u64,
}

impl PipelineState {
    /// The bytes of its open chunks, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.chunker.each_bytes(each);
    }
}

impl Pipeline {
    /// Its state as plain data. A connected source continues with the restored pipeline.
    pub fn save(&self, now: Instant) -> PipelineState {
        let moment = |at| Moment::of(at, now);
        PipelineState {
            random: self.random.get_seed(),
            cname: self.cname.clone(),
            description: self.description.as_ref().map(|description| description.with_moments(moment)),
            inputs: self.inputs.iter().map(|input| input.save(now)).collect(),
            timeline: self.timeline.as_ref().map(|timeline| timeline.save(now)),
            chunker: self.chunker.save(now),
            connected: self.connected,
            drained: self.drained,
            stats: self.tally.stats.clone(),
            notices: self.tally.notices.iter().copied().collect(),
            told_clock: self.told_clock,
            told_lost: self.told_lost.0.map(moment),
            lost_told: self.lost_told,
        }
    }

    /// Restores a saved pipeline. It does not publish again what was already published.
    pub fn restore(now: Instant, state: PipelineState) -> Pipeline {
        let instant = |moment: Moment| moment.at(now);
        Pipeline {
            random: fastrand::Rng::with_seed(state.random),
            cname: state.cname,
            description: state.description.map(|description| Arc::new(description.with_moments(instant))),
            inputs: state.inputs.iter().map(|input| Input::restore(now, input)).collect(),
            timeline: state.timeline.map(|timeline| Timeline::restore(now, &timeline)),
            chunker: Chunker::restore(now, state.chunker),
            connected: state.connected,
            drained: state.drained,
            tally: Tally { stats: state.stats, notices: state.notices.into() },
            told_clock: state.told_clock,
            told_lost: Told(state.told_lost.map(instant)),
            lost_told: state.lost_told,
        }
    }

    /// The description as last published.
    pub fn description(&self) -> Option<&Arc<Description>> {
        self.description.as_ref()
    }

    /// An empty pipeline. SSRCs, first sequence numbers and first timestamps are derived from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Pipeline {
            cname: format!("{:016x}", random.u64(..)),
            random,
            description: None,
            inputs: Vec::new(),
            timeline: None,
            chunker: Chunker::default(),
            connected: false,
            drained: false,
            tally: Tally { stats: SourceStats::default(), notices: VecDeque::new() },
            told_clock: ToldClock::default(),
            told_lost: Told::default(),
            lost_told: 0,
        }
    }

    /// The canonical name (RFC 3550 section 6.5.1) in the stream's sender reports.
    pub fn cname(&self) -> &str {
        &self.cname
    }

    /// The source plays, for the first time or again, with these tracks. Publishes the description if it is new or changed.
    ///
    /// Returns, for each of `tracks`, the stream's track that its packets belong to: a source may return with the same tracks in
    /// another order or with other payload types. `tracks` beyond [`TRACKS_MAX`](crate::limits::TRACKS_MAX) are ignored.
    pub fn connected(&mut self, now: Instant, mut tracks: Vec<SourceTrack>, out: &mut impl StreamSink) -> Vec<TrackId> {
        self.disconnected(out);
        self.connected = true;
        self.told_clock = ToldClock::default();
        tracks.truncate(TRACKS_MAX);
        let timeline = self.timeline.get_or_insert_with(|| Timeline::new(now));
        let old = self.description.take();
        let continued = old.as_deref().and_then(|old| places(old, &self.inputs, &tracks));
        let is_new = continued.is_none();
        let places = continued.unwrap_or_else(|| (0..tracks.len()).collect());
        if is_new {
            let before = std::mem::take(&mut self.inputs);
            for (index, track) in tracks.iter().enumerate() {
                let mut input = Input::new(TrackId(index as u8), track, &mut self.random);
                if let Some(before) = before.get(index) {
                    (input.frames, input.lost) = (before.frames, before.lost);
                }
                self.inputs.push(input);
            }
            timeline.set_tracks(tracks.iter().map(|track| (clock_rate(track), self.random.u32(..))));
            self.chunker.set_tracks(tracks.len());
        }
        let mut described: Vec<(usize, Track)> = Vec::with_capacity(tracks.len());
        for (&index, track) in places.iter().zip(&tracks) {
            let input = &mut self.inputs[index];
            input.new_session(track);
            described.push((index, describe(track, input, timeline.estimate(index))));
        }
        described.sort_unstable_by_key(|(index, _)| *index);
        let new = Description { tracks: described.into_iter().map(|(_, track)| track).collect() };
        match old {
            Some(old) if says_the_same(&old, &new) => self.description = Some(old),
            _ => {
                let new = Arc::new(new);
                self.description = Some(new.clone());
                out.accept(StreamEvent::Described(new));
            }
        }
        places.into_iter().map(|index| TrackId(index as u8)).collect()
    }

    /// An RTP packet that was read from the source at `received`.
    pub fn packet(&mut self, track: TrackId, received: Instant, rtp: &[u8], out: &mut impl StreamSink) {
        let Pipeline { inputs, timeline, chunker, tally, .. } = self;
        self.drained = false;
        tally.stats.packets += 1;
        tally.stats.bytes += rtp.len() as u64;
        let index = usize::from(track.0);
        let (Some(input), Some(timeline), true) = (inputs.get_mut(index), timeline.as_mut(), self.connected) else {
            tally.stats.malformed += 1;
            return;
        };
        let (Ok(header), true) = (Header::parse(rtp), rtp.len() <= PACKET_BYTES_MAX) else {
            tally.stats.malformed += 1;
            return;
        };
        if !input.admits(&header, received, tally, chunker, out) {
            return;
        }
        let place = input.order.place(header.sequence, header.ssrc, header.timestamp);
        if place == Place::Late {
            tally.stats.late += 1;
            return;
        }
        tally.stats.restarts += u64::from(place == Place::Restart);
        // If only the numbers restart, it is still the same encoder.
        let breaks_off = place == Place::Restart && !timeline.goes_on(index, header.timestamp, received);
        if breaks_off || !input.goes_on(header.timestamp) {
            input.end_frame(tally, chunker, out);
        }
        if breaks_off {
            input.gate();
        }
        if let Place::After(lost @ 1..) = place {
            tally.stats.lost += u64::from(lost);
            if self.told_lost.is_due(received) {
                let packets = tally.stats.lost - std::mem::replace(&mut self.lost_told, tally.stats.lost);
                tally.notices.push_back(Notice::Lost { packets });
            }
            input.lose(lost, chunker, out);
        }
        if header.payload.is_empty() {
            tally.stats.empty += 1;
            if input.goes_on(header.timestamp) {
                input.end_at_marker(header.marker, tally, chunker, out);
            }
            return;
        }
        let begins = || input.begins(&rtp[header.payload.clone()]);
        let mapped = timeline.map(index, header.timestamp, received, place == Place::Restart, begins);
        tally.stats.jumps += u64::from(mapped.jumped);
        if mapped.jumped && input.goes_on(header.timestamp) {
            // Only now is the frame's type known; what preceded this was not picture data.
            input.restamp(mapped.rtp_time, chunker);
        }
        if let Some(passed) = timeline.saved_report(index, received) {
            tally.judge_clock(&passed, &mut self.told_clock);
            if let Some(report) = passed.report {
                input.report(report, received, &self.cname, chunker, out);
            }
        }
        let description = &mut self.description;
        input.packet(rtp, &header, mapped.rtp_time, received, tally, chunker, out, |fmtp, out| {
            let mut new = Description::clone(description.as_ref().expect("a connected stream is described"));
            new.tracks[index].fmtp = fmtp;
            let new = Arc::new(new);
            *description = Some(new.clone());
            out.accept(StreamEvent::Described(new));
        });
    }

    /// A sender report of the source (RFC 3550 section 6.4.1), read at `received`, when the relay's clock was at `wall`. Its counts are
    /// not relayed, because the relay has its own.
    pub fn sender_report(
        &mut self,
        track: TrackId,
        received: Instant,
        wall: SystemTime,
        ntp: u64,
        rtp_time: u32,
        out: &mut impl StreamSink,
    ) {
        let index = usize::from(track.0);
        let (Some(input), Some(timeline), true) = (self.inputs.get(index), self.timeline.as_mut(), self.connected)
        else {
            return;
        };
        let Ok(passed) = timeline.map_report(index, received, wall, ntp, rtp_time) else {
            self.tally.stats.bad_reports += 1;
            return;
        };
        self.tally.judge_clock(&passed, &mut self.told_clock);
        if let Some(report) = passed.report {
            input.report(report, received, &self.cname, &mut self.chunker, out);
        }
    }

    /// There is nothing more to read from the source at present.
    pub fn drained(&mut self, now: Instant, out: &mut impl StreamSink) {
        self.drained = true;
        self.chunker.close_parts(now, &mut chunks(out));
    }

    /// Whether any track has an incomplete frame.
    pub fn is_in_frame(&self) -> bool {
        self.connected && self.inputs.iter().any(Input::is_in_frame)
    }

    /// Video frames that have ended so far, on all tracks.
    pub fn pictures(&self) -> u64 {
        self.inputs.iter().filter(|input| input.video).map(|input| input.frames).sum()
    }

    /// When [`Self::tick`] should be called.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.connected {
            return None;
        }
        let part = self.chunker.parts_due().filter(|_| self.drained);
        let report = self.timeline.as_ref().and_then(Timeline::own_report_due);
        part.into_iter().chain(report).min()
    }

    /// Does what is due at `now`, when the relay's clock is at `wall`.
    pub fn tick(&mut self, now: Instant, wall: SystemTime, out: &mut impl StreamSink) {
        if !self.connected {
            return;
        }
        if self.drained {
            self.chunker.close_parts(now, &mut chunks(out));
        }
        let Some(timeline) = &mut self.timeline else { return };
        for (index, input) in self.inputs.iter().enumerate() {
            if let Some(report) = timeline.own_report(index, now, wall) {
                input.report(report, now, &self.cname, &mut self.chunker, out);
            }
        }
    }

    /// The source is gone: its current frame is ended, or discarded if none of it was published.
    pub fn disconnected(&mut self, out: &mut impl StreamSink) {
        if !std::mem::replace(&mut self.connected, false) {
            return;
        }
        self.drained = false;
        for input in &mut self.inputs {
            input.abandon_frame(&mut self.tally, &mut self.chunker, out);
        }
        if let Some(timeline) = &mut self.timeline {
            timeline.new_session();
        }
    }

    /// The next notice for the operator.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.tally.notices.pop_front()
    }

    /// Counts since the start.
    pub fn stats(&self) -> SourceStats {
        let track = |(index, input): (usize, &Input)| {
            let sent = self.chunker.sent(TrackId(index as u8));
            TrackStats {
                frames: input.frames,
                keyframes: sent.keyframes,
                packets: sent.packets,
                bytes: sent.bytes,
                lost: input.lost,
            }
        };
        SourceStats { tracks: self.inputs.iter().enumerate().map(track).collect(), ..self.tally.stats.clone() }
    }
}

impl Tally {
    /// Counts and reports what a sender report shows about the camera's clock.
    fn judge_clock(&mut self, passed: &Passed, told: &mut ToldClock) {
        // In NTP format; only tenths of a second are reported.
        let duration = |ntp: i64| Duration::from_millis(((u128::from(ntp.unsigned_abs()) * 1_000) >> 32) as u64);
        self.stats.clock_steps += u64::from(passed.stepped.is_some());
        if let Some(step) = passed.stepped
            && !std::mem::replace(&mut told.stepped, true)
        {
            self.notices.push_back(Notice::ClockStepped { by: duration(step), forward: step > 0 });
        }
        if let Some(off) = passed.wrong
            && !std::mem::replace(&mut told.wrong, true)
        {
            self.notices.push_back(Notice::ClockWrong { by: duration(off), ahead: off > 0 });
        }
    }
}

fn clock_rate(track: &SourceTrack) -> u32 {
    if track.clock_rate == 0 { 90_000 } else { track.clock_rate }
}

fn describe(track: &SourceTrack, input: &Input, clock: (Instant, u32)) -> Track {
    Track {
        media: track.media.clone(),
        encoding: track.encoding.clone(),
        payload_type: input.payload_type,
        clock_rate: clock_rate(track),
        channels: track.channels,
        fmtp: input.fmtp(),
        attributes: track.attributes.clone(),
        ssrc: input.ssrc,
        first_seq: input.first_seq,
        clock,
    }
}

/// Matches the source's tracks with the stream's, if they are the same. The kind of track decides; among equal ones their format
/// parameters, then their payload types, then their positions.
fn places(old: &Description, inputs: &[Input], tracks: &[SourceTrack]) -> Option<Vec<usize>> {
    if old.tracks.len() != tracks.len() {
        return None;
    }
    let is = |new: &SourceTrack, at: usize| {
        let old = &old.tracks[at];
        old.media == new.media
            && old.encoding.eq_ignore_ascii_case(&new.encoding)
            && old.clock_rate == clock_rate(new)
            && old.channels == new.channels
    };
    let mut places = vec![None; tracks.len()];
    let mut is_taken = vec![false; tracks.len()];
    for criterion in 0..4 {
        for (index, new) in tracks.iter().enumerate() {
            if places[index].is_some() {
                continue;
            }
            let fits = |at: &usize| {
                let like = match criterion {
                    0 => new.fmtp.is_some() && inputs[*at].source_fmtp() == new.fmtp.as_deref(),
                    1 => inputs[*at].payload_type == new.payload_type,
                    2 => *at == index,
                    _ => true,
                };
                like && !is_taken[*at] && is(new, *at)
            };
            // Its own position is tried first.
            let found = std::iter::once(index).chain(0..tracks.len()).find(fits);
            if let Some(at) = found {
                places[index] = Some(at);
                is_taken[at] = true;
            }
        }
    }
    places.into_iter().collect()
}

/// Whether two descriptions differ only in their clock estimates.
fn says_the_same(old: &Description, new: &Description) -> bool {
    old.tracks.len() == new.tracks.len()
        && old.tracks.iter().zip(&new.tracks).all(|(old, new)| *old == Track { clock: old.clock, ..new.clone() })
}
