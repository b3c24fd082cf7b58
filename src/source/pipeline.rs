//! One stream's way from the source's packets to the shards.
//!
//! The pipeline has no sockets and no clock: the source hands it packets with the moment they were read, and it hands chunks to
//! a [`Publish`]. It lives on the control thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::input::{Input, Tally, chunks};
use super::timeline::{Place, Timeline};
use crate::limits::{PACKET_BYTES_MAX, TRACKS_MAX};
use crate::shard::inbox::SourceState;
use crate::stream::chunk::Chunk;
use crate::stream::chunker::Chunker;
use crate::stream::{Description, Track, TrackId};
use crate::told::Told;
use crate::wire::rtp::Header;

/// Takes what a pipeline makes, in order.
pub trait Publish {
    /// Passes `msg` on to whoever plays the stream.
    fn publish(&mut self, msg: Published);
}

/// What the shards are told of a stream.
#[derive(Clone, Debug)]
pub enum Published {
    /// The stream's description, before its first chunk and after every change.
    Described(Arc<Description>),
    /// The next chunk; numbers are dense.
    Chunk(Arc<Chunk>),
    /// How the source is doing. The supervisor publishes it; a pipeline never does.
    State(SourceState),
}

/// What the source tells of a track before its first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTrack {
    /// The media of the SDP's `m=` line: `video`, `audio`, `application`, …
    pub media: String,
    /// The encoding name of `a=rtpmap`, as the camera spells it, or that of RFC 3551 section 6.
    pub encoding: String,
    /// The RTP payload type.
    pub payload_type: u8,
    /// Ticks of the RTP timestamp a second; 0 is taken as 90,000.
    pub clock_rate: u32,
    /// Channels of an audio track, when the SDP tells.
    pub channels: Option<u16>,
    /// The value of `a=fmtp` without the payload type.
    pub fmtp: Option<String>,
    /// Further `a=` lines to pass on, without the `a=`.
    pub attributes: Vec<String>,
}

/// Counts since the pipeline was made; all of them only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Packets that the source handed in, the discarded ones too.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Packets that were no RTP, or on a track that does not exist: discarded.
    pub malformed: u64,
    /// Packets without a payload: discarded.
    pub empty: u64,
    /// Packets of another payload type than the track's: discarded.
    pub foreign: u64,
    /// Packets that came twice or too late to be put in their place: discarded.
    pub late: u64,
    /// Packets that never came, by the gaps between sequence numbers.
    pub lost: u64,
    /// Oversize H.264 and H.265 packets that could not be cut: discarded.
    pub oversize: u64,
    /// Oversize H.264 and H.265 packets that were cut.
    pub fragmented: u64,
    /// Packets with parameter sets that were put before keyframes.
    pub inserted: u64,
    /// Frames discarded because the source went away in the middle of them.
    pub torn: u64,
    /// Frames kept back after a break because what they refer to is gone: all up to the next keyframe.
    pub unreferenced: u64,
    /// Times that sequence numbers began again in mid-session.
    pub restarts: u64,
    /// Times that timestamps jumped in mid-session.
    pub jumps: u64,
    /// Sender reports of the source whose timestamp was nowhere near the track's: discarded.
    pub bad_reports: u64,
    /// The tracks of the present description.
    pub tracks: Vec<TrackStats>,
}

/// Counts of one track since the pipeline was made; all of them only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackStats {
    /// Frames ended; of a video track only those with a picture in them.
    pub frames: u64,
    /// Video frames published that decoding can start at.
    pub keyframes: u64,
    /// Packets sent on.
    pub packets: u64,
    /// Bytes of those packets, RTP headers included.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
}

/// Something about the source that its operator should know. Each is told once a session at most, loss once a minute
/// ([`TOLD_EVERY_S`](crate::limits::TOLD_EVERY_S)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The camera's clock is wrong; its sender reports carry the relay's time instead.
    ClockWrong {
        /// How far the camera's clock is from ours.
        by: Duration,
        /// Whether it is ahead of ours.
        ahead: bool,
    },
    /// A video track had no keyframe for so long that every frame of it is now taken for one.
    NoKeyframes {
        /// The track.
        track: TrackId,
        /// How long there was none.
        waited: Duration,
    },
    /// A track's marker bits do not say where frames end; its frames end at the next timestamp, a frame later.
    MarkerWrong {
        /// The track.
        track: TrackId,
    },
    /// Packets of a payload type that the SDP does not announce are discarded.
    ForeignPayload {
        /// The track.
        track: TrackId,
        /// The payload type that came.
        payload_type: u8,
        /// The first such packet's sequence number, as the camera sent it.
        seq: u16,
    },
    /// Packets never came.
    Lost {
        /// How many since it was told last.
        packets: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Notice::ClockWrong { by, ahead } => write!(
                f,
                "the camera's clock is {} s {} ours; its sender reports are passed on with our time (set the camera's NTP \
                 server to keep its own)",
                by.as_secs(),
                if ahead { "ahead of" } else { "behind" }
            ),
            Notice::NoKeyframes { track, waited } => write!(
                f,
                "no keyframe on track {} for {} s; players now start at any frame of it (shorten the camera's keyframe \
                 interval)",
                track.0,
                waited.as_secs()
            ),
            Notice::MarkerWrong { track } => write!(
                f,
                "the camera's marker bits on track {} do not end frames; each frame waits for the next one's first packet",
                track.0
            ),
            Notice::ForeignPayload { track, payload_type, seq } => write!(
                f,
                "track {} brings packets of payload type {payload_type} (first with seq {seq}), which the camera's SDP does not announce for it; \
                 they are discarded",
                track.0
            ),
            Notice::Lost { packets } => write!(
                f,
                "packets lost before they reached the relay: {packets}; the network on the way or the source itself is overloaded \
                 (over UDP: transport = \"tcp\" loses none on the way)"
            ),
        }
    }
}

/// One stream's way from packets to shards.
pub struct Pipeline {
    random: fastrand::Rng,
    cname: String,
    description: Option<Arc<Description>>,
    inputs: Vec<Input>,
    timeline: Option<Timeline>,
    chunker: Chunker,
    connected: bool,
    /// Whether nothing was there to read when last asked, and nothing has come since.
    drained: bool,
    tally: Tally,
    told_clock: bool,
    told_lost: Told,
    /// Of the packets lost those that have been told.
    lost_told: u64,
}

impl Pipeline {
    /// A pipeline that has seen nothing. SSRCs, first sequence numbers and first timestamps derive from `seed`.
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
            told_clock: false,
            told_lost: Told::default(),
            lost_told: 0,
        }
    }

    /// The canonical name (RFC 3550 section 6.5.1) in the stream's sender reports.
    pub fn cname(&self) -> &str {
        &self.cname
    }

    /// The source plays, for the first time or again; these are its tracks. Publishes the description if it is new or changed.
    ///
    /// `tracks` beyond [`TRACKS_MAX`](crate::limits::TRACKS_MAX) are left out.
    pub fn connected(&mut self, now: Instant, mut tracks: Vec<SourceTrack>, out: &mut impl Publish) {
        self.disconnected(out);
        self.connected = true;
        self.told_clock = false;
        tracks.truncate(TRACKS_MAX);
        let timeline = self.timeline.get_or_insert_with(|| Timeline::new(now));
        let old = self.description.take();
        let continued = old.as_deref().filter(|old| {
            let new = tracks.iter().map(|track| describe(track, 0, 0, (now, 0))).collect();
            old.continues_as(&Description { tracks: new })
        });
        if continued.is_none() {
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
        let mut described = Vec::with_capacity(tracks.len());
        for (index, (input, track)) in self.inputs.iter_mut().zip(&tracks).enumerate() {
            input.new_session(track);
            let mut track = describe(track, input.ssrc, input.first_seq, timeline.estimate(index));
            track.fmtp = input.fmtp();
            described.push(track);
        }
        let new = Description { tracks: described };
        match old {
            Some(old) if says_the_same(&old, &new) => self.description = Some(old),
            _ => {
                let new = Arc::new(new);
                self.description = Some(new.clone());
                out.publish(Published::Described(new));
            }
        }
    }

    /// One RTP packet as read from the source at `received`.
    pub fn packet(&mut self, track: TrackId, received: Instant, rtp: &[u8], out: &mut impl Publish) {
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
        // A camera whose first packet is not of the announced type announces the wrong one.
        let source_type = *input.source_type.get_or_insert(header.payload_type);
        if header.payload_type != source_type && header.payload_type != input.payload_type {
            tally.stats.foreign += 1;
            if !std::mem::replace(&mut input.told.foreign, true) {
                let (payload_type, seq) = (header.payload_type, header.sequence);
                tally.notices.push_back(Notice::ForeignPayload { track, payload_type, seq });
            }
            return;
        }
        let place = input.order.place(header.sequence, header.ssrc);
        if place == Place::Late {
            tally.stats.late += 1;
            return;
        }
        if place == Place::Restart {
            tally.stats.restarts += 1;
        }
        if place == Place::Restart || !input.goes_on(header.timestamp) {
            input.end_frame(tally, chunker, out);
        }
        if place == Place::Restart {
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
        let mapped = timeline.map(index, header.timestamp, received, place == Place::Restart);
        tally.stats.jumps += u64::from(mapped.jumped);
        if let Some(report) = timeline.saved_report(index, received) {
            input.report(report, received, &self.cname, chunker, out);
        }
        let description = &mut self.description;
        input.packet(rtp, &header, mapped.rtp_time, received, tally, chunker, out, |fmtp, out| {
            let mut new = Description::clone(description.as_ref().expect("a connected stream is described"));
            new.tracks[index].fmtp = fmtp;
            let new = Arc::new(new);
            *description = Some(new.clone());
            out.publish(Published::Described(new));
        });
    }

    /// A sender report of the source (RFC 3550 section 6.4.1), read at `received`, when our clock said `wall`. Its counts are
    /// not passed on: the relay has its own.
    pub fn sender_report(
        &mut self,
        track: TrackId,
        received: Instant,
        wall: SystemTime,
        ntp: u64,
        rtp_time: u32,
        out: &mut impl Publish,
    ) {
        let index = usize::from(track.0);
        let (Some(input), Some(timeline), true) = (self.inputs.get(index), self.timeline.as_mut(), self.connected)
        else {
            return;
        };
        let Ok((report, wrong)) = timeline.map_report(index, received, wall, ntp, rtp_time) else {
            self.tally.stats.bad_reports += 1;
            return;
        };
        if let Some(off) = wrong
            && !std::mem::replace(&mut self.told_clock, true)
        {
            let by = Duration::from_secs(off.unsigned_abs() >> 32);
            self.tally.notices.push_back(Notice::ClockWrong { by, ahead: off > 0 });
        }
        if let Some(report) = report {
            input.report(report, received, &self.cname, &mut self.chunker, out);
        }
    }

    /// There is nothing more to read from the source now.
    pub fn drained(&mut self, now: Instant, out: &mut impl Publish) {
        self.drained = true;
        self.chunker.close_parts(now, &mut chunks(out));
    }

    /// When [`Self::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.connected {
            return None;
        }
        let part = self.chunker.parts_due().filter(|_| self.drained);
        let report = self.timeline.as_ref().and_then(Timeline::own_report_due);
        part.into_iter().chain(report).min()
    }

    /// Does what is due at `now`, when our clock says `wall`.
    pub fn tick(&mut self, now: Instant, wall: SystemTime, out: &mut impl Publish) {
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

    /// The source is gone: the frame it was in the middle of is ended, or discarded if none of it has been published.
    pub fn disconnected(&mut self, out: &mut impl Publish) {
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

    /// The next thing that the operator should know.
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

fn clock_rate(track: &SourceTrack) -> u32 {
    if track.clock_rate == 0 { 90_000 } else { track.clock_rate }
}

fn describe(track: &SourceTrack, ssrc: u32, first_seq: u16, clock: (Instant, u32)) -> Track {
    Track {
        media: track.media.clone(),
        encoding: track.encoding.clone(),
        payload_type: track.payload_type,
        clock_rate: clock_rate(track),
        channels: track.channels,
        fmtp: track.fmtp.clone(),
        attributes: track.attributes.clone(),
        ssrc,
        first_seq,
        clock,
    }
}

/// Whether two descriptions differ in nothing but the clocks' estimates.
fn says_the_same(old: &Description, new: &Description) -> bool {
    old.tracks.len() == new.tracks.len()
        && old.tracks.iter().zip(&new.tracks).all(|(old, new)| *old == Track { clock: old.clock, ..new.clone() })
}
