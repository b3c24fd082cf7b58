//! A track in the pipeline: from the source's packets to frames in the chunker.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::payload_types::{PayloadTypes, Whose};
use super::stats::{Notice, SourceStats};
use super::timeline::{Order, SenderReport};
use crate::limits::{KEYFRAME_WAIT_MAX_S, PACKETS_OF_ONE_MAX, RTP_PACKET_BYTES_MAX, RTP_PART_BYTES_MAX};
use crate::media::chunk::Chunk;
use crate::media::chunker::{Chunker, Packet};
use crate::media::codec::fragment::{self, Sizes, fragment};
use crate::media::codec::parameter_sets::ParameterSets;
use crate::media::codec::{self, Codec, ParameterSet, Sight};
use crate::media::saved::Moment;
use crate::media::{SourceTrack, StreamEvent, StreamSink, TrackId};
use crate::wire::rtcp;
use crate::wire::rtp::{HEADER_BYTES, Header};

/// Maximum sizes of H.264 and H.265 payloads.
const PAYLOAD_BYTES: Sizes =
    Sizes { whole: RTP_PACKET_BYTES_MAX - HEADER_BYTES, part: RTP_PART_BYTES_MAX - HEADER_BYTES };

/// Frames that continued after their marker before the track's markers are no longer trusted.
const MARKER_STRIKES: u8 = 3;

/// The marker bit, in the header's second byte.
const MARKER: u8 = 0x80;

/// Where chunks go.
pub(super) fn chunks(out: &mut impl StreamSink) -> impl FnMut(Arc<Chunk>) {
    |chunk| out.accept(StreamEvent::Chunk(chunk))
}

/// Counts and notices for the whole source.
pub(super) struct Tally {
    pub(super) stats: SourceStats,
    pub(super) notices: VecDeque<Notice>,
}

/// Notices given in this session.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct ToldNotices {
    no_keyframes: bool,
    marker: bool,
    pub(super) foreign: bool,
}

/// How long a video track has been without a keyframe.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct KeyframeWait<T = Instant> {
    /// The newest keyframe, or the session's first frame.
    since: Option<T>,
    /// Whether that was a keyframe.
    keyframe: bool,
    /// The longest keyframe interval in one session.
    longest: Duration,
}

impl Default for KeyframeWait {
    fn default() -> Self {
        KeyframeWait { since: None, keyframe: false, longest: Duration::ZERO }
    }
}

impl KeyframeWait {
    fn new_session(&mut self) {
        self.since = None;
        self.keyframe = false;
    }

    /// How long there has been no keyframe, if that is so long that none is expected.
    fn given_up(&mut self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
        // A camera with long intervals is given more time, because a picture that cannot be decoded is useless.
        let most = Duration::from_secs(KEYFRAME_WAIT_MAX_S).max(self.longest * 3);
        (waited >= most).then_some(waited)
    }

    fn keyframe(&mut self, now: Instant) {
        if let (Some(since), true) = (self.since, self.keyframe) {
            self.longest = self.longest.max(now.saturating_duration_since(since));
        }
        self.since = Some(now);
        self.keyframe = true;
    }
}

/// One track.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Input<T = Instant> {
    id: TrackId,
    pub(super) video: bool,
    codec: Codec,
    /// The format parameters in the source's SDP.
    fmtp: Option<String>,
    pub(super) sets: ParameterSets,
    /// That the relay sends.
    pub(super) payload_type: u8,
    pub(super) ssrc: u32,
    /// Sequence number and timestamp of the first packet ever sent.
    pub(super) first_seq: u16,
    next_seq: u16,
    /// That the source sends.
    pub(super) source_types: PayloadTypes<T>,
    pub(super) order: Order,
    pub(super) told: ToldNotices,
    /// The source's timestamp of the newest frame in this session, and whether the frame is incomplete.
    frame_time: Option<u32>,
    in_frame: bool,
    /// The relay's timestamp of it.
    rtp_time: u32,
    /// When its newest packet arrived.
    arrival: Option<T>,
    sight: Sight,
    /// Set if no keyframe was expected when the frame started: how long there had been none.
    given_up: Option<Duration>,
    /// After an interruption nothing can be decoded before the next keyframe, so nothing is published.
    gated: bool,
    /// The current frame is withheld by the gate.
    held_back: bool,
    /// The track had no keyframes when this was last checked, so it is not withheld while waiting for one.
    without_keyframes: bool,
    /// The frame has the timestamp of one that a marker ended.
    continued: bool,
    marker_strikes: u8,
    keyframe_wait: KeyframeWait<T>,
    /// An empty fragment was the start of a unit; the next fragment becomes the start.
    start_owed: bool,
    pub(super) frames: u64,
    pub(super) lost: u64,
}

/// A track as plain data.
pub(super) type InputState = Input<Moment>;

impl<T: Copy> Input<T> {
    fn with_moments<U>(&self, to: impl Fn(T) -> U) -> Input<U> {
        let KeyframeWait { since, keyframe, longest } = self.keyframe_wait;
        Input {
            id: self.id,
            video: self.video,
            codec: self.codec,
            fmtp: self.fmtp.clone(),
            sets: self.sets.clone(),
            payload_type: self.payload_type,
            ssrc: self.ssrc,
            first_seq: self.first_seq,
            next_seq: self.next_seq,
            source_types: self.source_types.with_moments(&to),
            order: self.order,
            told: self.told,
            frame_time: self.frame_time,
            in_frame: self.in_frame,
            rtp_time: self.rtp_time,
            arrival: self.arrival.map(&to),
            sight: self.sight,
            given_up: self.given_up,
            gated: self.gated,
            held_back: self.held_back,
            without_keyframes: self.without_keyframes,
            continued: self.continued,
            marker_strikes: self.marker_strikes,
            keyframe_wait: KeyframeWait { since: since.map(&to), keyframe, longest },
            start_owed: self.start_owed,
            frames: self.frames,
            lost: self.lost,
        }
    }
}

impl Input {
    /// Its state as plain data.
    pub(super) fn save(&self, now: Instant) -> InputState {
        self.with_moments(|at| Moment::of(at, now))
    }

    /// Restores a saved track.
    pub(super) fn restore(now: Instant, state: &InputState) -> Input {
        state.with_moments(|at| at.at(now))
    }

    pub(super) fn new(id: TrackId, track: &SourceTrack, random: &mut fastrand::Rng) -> Self {
        let video = track.media == "video";
        let codec = if video { Codec::new(&track.encoding, track.fmtp.as_deref()) } else { Codec::Intra };
        let first_seq = random.u16(..);
        Input {
            id,
            video,
            codec,
            fmtp: None,
            sets: ParameterSets::new(codec),
            payload_type: track.payload_type,
            ssrc: random.u32(..),
            first_seq,
            next_seq: first_seq,
            source_types: PayloadTypes::new(track.payload_type),
            order: Order::default(),
            told: ToldNotices::default(),
            frame_time: None,
            in_frame: false,
            rtp_time: 0,
            arrival: None,
            sight: Sight::default(),
            given_up: None,
            gated: false,
            held_back: false,
            without_keyframes: false,
            continued: false,
            marker_strikes: 0,
            keyframe_wait: KeyframeWait::default(),
            start_owed: false,
            frames: 0,
            lost: 0,
        }
    }

    pub(super) fn new_session(&mut self, track: &SourceTrack) {
        debug_assert!(!self.in_frame);
        if self.video {
            self.codec = Codec::new(&track.encoding, track.fmtp.as_deref());
        }
        self.fmtp.clone_from(&track.fmtp);
        self.sets.take_from(track.fmtp.as_deref());
        self.source_types = PayloadTypes::new(track.payload_type);
        self.order = Order::default();
        self.told = ToldNotices::default();
        self.frame_time = None;
        self.continued = false;
        self.marker_strikes = 0;
        self.keyframe_wait.new_session();
        self.start_owed = false;
        self.gate();
    }

    /// Whether a packet is the track's, by its payload type. Foreign packets are reported once.
    pub(super) fn admits(
        &mut self,
        header: &Header,
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut impl StreamSink,
    ) -> bool {
        let whose = self.source_types.judge(header, received);
        tally.stats.foreign += u64::from(whose == Whose::Foreign);
        if !self.told.foreign
            && let Some((payload_type, seq)) = self.source_types.foreign()
        {
            self.told.foreign = true;
            tally.notices.push_back(Notice::ForeignPayload { track: self.id, payload_type, seq });
        }
        if whose == Whose::OursAfterAll {
            self.order = Order::default();
            self.end_frame(tally, chunker, out);
            self.gate();
        }
        whose != Whose::Foreign
    }

    /// Players have received what preceded an interruption; pictures that refer to missing ones are withheld from them.
    pub(super) fn gate(&mut self) {
        let begun = self.next_seq != self.first_seq;
        self.gated = self.video && begun && !self.without_keyframes;
    }

    /// The format parameters to serve.
    pub(super) fn fmtp(&self) -> Option<String> {
        self.sets.fmtp(self.fmtp.as_deref())
    }

    /// The latest format parameters from the source.
    pub(super) fn source_fmtp(&self) -> Option<&str> {
        self.fmtp.as_deref()
    }

    /// Whether a frame is incomplete.
    pub(super) fn is_in_frame(&self) -> bool {
        self.in_frame
    }

    /// Whether the packet with this timestamp of the source continues the current frame.
    pub(super) fn goes_on(&self, source_time: u32) -> bool {
        self.in_frame && self.frame_time == Some(source_time)
    }

    /// Whether something starts with this payload that refers to nothing before: a keyframe or what precedes one; for anything but
    /// video, any packet.
    pub(super) fn begins(&self, payload: &[u8]) -> bool {
        let mut sight = Sight::default();
        codec::inspect(self.codec, payload, &mut sight, &mut |_| {});
        !self.video || sight.random_access || sight.has(ParameterSet::Sequence)
    }

    /// Changes the relay's timestamp of the current frame, unless part of it has been published.
    pub(super) fn restamp(&mut self, rtp_time: u32, chunker: &mut Chunker) {
        if chunker.restamp(self.id, rtp_time) {
            self.rtp_time = rtp_time;
        }
    }

    /// `count` packets are missing at this point.
    pub(super) fn lose(&mut self, count: u16, chunker: &mut Chunker, out: &mut impl StreamSink) {
        self.lost += u64::from(count);
        self.start_owed = false;
        // The missing packets may have been the rest of the previous frame, including its marker.
        self.frame_time = self.frame_time.filter(|_| self.in_frame);
        // The packets of a chunk have consecutive numbers, so a gap must be visible to the player.
        chunker.cut(self.id, &mut chunks(out));
        // Before the first packet nothing can be missing; the description has promised the first number.
        if self.next_seq != self.first_seq && !self.gated {
            self.next_seq = self.next_seq.wrapping_add(count);
        }
    }

    /// Adds a packet with a payload to its frame. `describe` is called when parameter sets changed, before the frame with them is
    /// published.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn packet<P: StreamSink>(
        &mut self,
        rtp: &[u8],
        header: &Header,
        rtp_time: u32,
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut P,
        describe: impl FnOnce(Option<String>, &mut P),
    ) {
        let payload = &rtp[header.payload.clone()];
        if !self.in_frame {
            self.continued = self.frame_time == Some(header.timestamp);
            self.frame_time = Some(header.timestamp);
            self.in_frame = true;
            self.rtp_time = rtp_time;
            self.sight = Sight::default();
            self.held_back = false;
            self.given_up = if self.video { self.keyframe_wait.given_up(received) } else { None };
        }
        self.arrival = Some(received);
        if !self.video {
            self.pass(rtp, header.marker, received, chunker, out);
            self.sight.picture = true;
            self.end_frame(tally, chunker, out);
            return;
        }
        let Some(payload) = self.repair(payload, tally, chunker) else {
            self.end_at_marker(header.marker, tally, chunker, out);
            return;
        };
        let before = self.sight.picture;
        let Input { codec, sets, sight, .. } = self;
        sets.at(received);
        codec::inspect(*codec, &payload, sight, &mut |set| sets.see(set));
        if !before && self.sight.picture {
            self.first_picture(received, tally, chunker, out, describe);
        }
        if self.held_back {
            // Only counted as received.
        } else if self.codec.has_nal_units() {
            self.cut(&payload, received, tally, chunker, out);
        } else {
            self.pass(rtp, false, received, chunker, out);
        }
        self.end_at_marker(header.marker, tally, chunker, out);
    }

    /// Known when a frame's first picture data arrives, before the frame is published.
    fn first_picture<P: StreamSink>(
        &mut self,
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut P,
        describe: impl FnOnce(Option<String>, &mut P),
    ) {
        if self.continued {
            // A picture with the same timestamp after a marker: the marker did not end the frame, and this is the rest of it.
            self.sight.beheaded = true;
            self.marker_strikes = self.marker_strikes.saturating_add(1);
            if self.marker_strikes >= MARKER_STRIKES && !std::mem::replace(&mut self.told.marker, true) {
                tally.notices.push_back(Notice::MarkerWrong { track: self.id });
            }
        }
        if self.gated {
            self.gated = !self.sight.starts() && self.given_up.is_none();
            if self.gated {
                self.held_back = true;
                tally.stats.unreferenced += 1;
                if let Some(first_seq) = chunker.abandon_frame(self.id, &mut chunks(out)) {
                    self.next_seq = first_seq;
                }
                return;
            }
        }
        if self.sets.take_changed() {
            describe(self.fmtp(), out);
        }
        if self.sight.starts() && self.codec.has_nal_units() {
            let mut sets = std::mem::replace(&mut self.sets, ParameterSets::new(self.codec));
            let bytes = sets.lacking(self.sight).map(<[u8]>::len).sum();
            if sets.may_insert(bytes) {
                for nal in sets.lacking(self.sight) {
                    self.emit(0x80, false, &[], nal, received, chunker, out);
                    tally.stats.inserted += 1;
                }
            }
            self.sets = sets;
        }
    }

    /// Compensates for empty fragments, which players refuse: their start and end flags move to a neighbour. `None` if nothing of the
    /// payload is left.
    fn repair<'a>(&mut self, payload: &'a [u8], tally: &mut Tally, chunker: &mut Chunker) -> Option<Cow<'a, [u8]>> {
        let Some(unit) = fragment::unit(self.codec, payload) else {
            self.start_owed = false;
            return Some(Cow::Borrowed(payload));
        };
        if unit.empty {
            tally.stats.empty += 1;
            if unit.start {
                self.start_owed = true;
            } else if unit.end
                && let Some(last) = chunker.last_packet(self.id)
                && let Some(before) = fragment::unit(self.codec, &last[HEADER_BYTES..])
                && last[HEADER_BYTES + before.header] & 0x3f == payload[unit.header] & 0x3f
            {
                last[HEADER_BYTES + before.header] |= fragment::END;
            }
            return None;
        }
        if std::mem::take(&mut self.start_owed) && !unit.start {
            let mut repaired = payload.to_vec();
            repaired[unit.header] |= fragment::START;
            return Some(Cow::Owned(repaired));
        }
        Some(Cow::Borrowed(payload))
    }

    /// Publishes the payload in packets small enough for UDP.
    fn cut(
        &mut self,
        payload: &[u8],
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut impl StreamSink,
    ) {
        let mut packets = 0u64;
        let known = fragment(self.codec, payload, PAYLOAD_BYTES, &mut |prefix, body| {
            packets += 1;
            if packets <= PACKETS_OF_ONE_MAX {
                self.emit(0x80, false, prefix, body, received, chunker, out);
            }
        });
        tally.stats.oversize += u64::from(!known || packets > PACKETS_OF_ONE_MAX);
        tally.stats.malformed += u64::from(known && packets == 0);
        tally.stats.fragmented += u64::from(payload.len() > PAYLOAD_BYTES.whole && packets > 0);
    }

    /// Publishes the packet unchanged except for the header's fixed part.
    fn pass(&mut self, rtp: &[u8], marker: bool, received: Instant, chunker: &mut Chunker, out: &mut impl StreamSink) {
        self.emit(rtp[0], marker, &[], &rtp[HEADER_BYTES..], received, chunker, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn emit(
        &mut self,
        first: u8,
        marker: bool,
        prefix: &[u8],
        body: &[u8],
        received: Instant,
        chunker: &mut Chunker,
        out: &mut impl StreamSink,
    ) {
        let mut header = Header::write(marker, self.payload_type, self.next_seq, self.rtp_time, self.ssrc);
        header[0] = first;
        let key = self.video && (self.sight.starts() || self.given_up.is_some());
        let packet = Packet { header, sequence: self.next_seq, rtp_time: self.rtp_time, prefix, body };
        chunker.append(self.id, received, key, packet, &mut chunks(out));
        self.next_seq = self.next_seq.wrapping_add(1);
    }

    /// Ends the frame if a packet with this marker ends it: not if it has only parameter sets and SEI so far, which some cameras mark.
    pub(super) fn end_at_marker(
        &mut self,
        marker: bool,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut impl StreamSink,
    ) {
        if marker && self.sight.picture && self.marker_strikes < MARKER_STRIKES {
            self.end_frame(tally, chunker, out);
        }
    }

    /// Ends the current frame, if there is one.
    pub(super) fn end_frame(&mut self, tally: &mut Tally, chunker: &mut Chunker, out: &mut impl StreamSink) {
        if !std::mem::replace(&mut self.in_frame, false) {
            return;
        }
        self.frames += u64::from(self.sight.picture);
        let picture = self.video && self.sight.picture;
        if picture && let Some(last) = chunker.last_packet(self.id) {
            // Only here is the marker known to be right, whatever the source set.
            last[1] |= MARKER;
        }
        let key = chunker.end_frame(self.id, &mut chunks(out));
        if picture {
            if key && self.sight.starts() {
                self.without_keyframes = false;
                self.keyframe_wait.keyframe(self.arrival.expect("a frame has packets"));
            } else if let Some(waited) = self.given_up
                && !std::mem::replace(&mut self.told.no_keyframes, true)
            {
                self.without_keyframes = true;
                tally.notices.push_back(Notice::NoKeyframes { track: self.id, waited });
            }
        }
    }

    /// Ends the current frame as it is, or discards it if none of it is published.
    pub(super) fn abandon_frame(&mut self, tally: &mut Tally, chunker: &mut Chunker, out: &mut impl StreamSink) {
        if std::mem::replace(&mut self.in_frame, false) {
            tally.stats.torn += 1;
            if let Some(first_seq) = chunker.abandon_frame(self.id, &mut chunks(out)) {
                self.next_seq = first_seq;
            }
        }
    }

    /// Publishes a sender report.
    pub(super) fn report(
        &self,
        report: SenderReport,
        received: Instant,
        cname: &str,
        chunker: &mut Chunker,
        out: &mut impl StreamSink,
    ) {
        let sent = chunker.sent(self.id);
        let octets = sent.bytes - sent.packets * HEADER_BYTES as u64;
        // Both counts wrap (RFC 3550 section 6.4.1).
        let (packets, octets) = (sent.packets as u32, octets as u32);
        let compound = rtcp::sender_report(self.ssrc, report.ntp, report.rtp_time, packets, octets, cname);
        chunker.report(self.id, received, self.next_seq, report.rtp_time, &compound, &mut chunks(out));
    }
}
