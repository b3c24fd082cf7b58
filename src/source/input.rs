//! A track on its way through the pipeline: from the source's packets to frames in the chunker.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fragment::{self, fragment};
use super::parameter_sets::ParameterSets;
use super::pipeline::{Notice, Publish, Published, SourceStats, SourceTrack};
use super::timeline::{Order, Report};
use crate::limits::{KEYFRAME_WAIT_MAX_S, RTP_PACKET_BYTES_MAX};
use crate::stream::TrackId;
use crate::stream::chunk::Chunk;
use crate::stream::chunker::{Chunker, Packet};
use crate::stream::keyframe::{self, Codec, Sight};
use crate::wire::rtcp;
use crate::wire::rtp::{HEADER_BYTES, Header};

/// Bytes of an H.264 or H.265 payload at most.
const PAYLOAD_BYTES_MAX: usize = RTP_PACKET_BYTES_MAX - HEADER_BYTES;

/// Frames that went on after their marker before the track's markers are no longer believed.
const MARKER_STRIKES: u8 = 3;

/// The marker bit, in the header's second byte.
const MARKER: u8 = 0x80;

/// Where chunks go.
pub(super) fn chunks(out: &mut impl Publish) -> impl FnMut(Arc<Chunk>) {
    |chunk| out.publish(Published::Chunk(chunk))
}

/// Counts and notices of the whole source.
pub(super) struct Tally {
    pub(super) stats: SourceStats,
    pub(super) notices: VecDeque<Notice>,
}

/// Notices given in this session.
#[derive(Default)]
pub(super) struct Told {
    no_keyframes: bool,
    marker: bool,
    pub(super) foreign: bool,
}

/// How long a video track has been without a keyframe.
#[derive(Default)]
struct KeyframeWait {
    /// The newest keyframe, or the session's first frame.
    since: Option<Instant>,
    /// Whether that was a keyframe.
    keyframe: bool,
    /// The longest time between two keyframes of one session.
    longest: Duration,
}

impl KeyframeWait {
    fn new_session(&mut self) {
        self.since = None;
        self.keyframe = false;
    }

    /// How long there has been none, if that is so long that none is to be expected.
    fn given_up(&mut self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
        // A camera that has shown long intervals is given more time; a picture that cannot be decoded helps nobody.
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
pub(super) struct Input {
    id: TrackId,
    video: bool,
    codec: Codec,
    /// The format parameters as the source's SDP has them.
    fmtp: Option<String>,
    pub(super) sets: ParameterSets,
    pub(super) payload_type: u8,
    pub(super) ssrc: u32,
    /// Of the first packet ever sent.
    pub(super) first_seq: u16,
    next_seq: u16,
    /// The payload type that this session's packets have.
    pub(super) source_type: Option<u8>,
    pub(super) order: Order,
    pub(super) told: Told,
    /// The source's timestamp of the newest frame in this session, and whether the frame is under way.
    frame_time: Option<u32>,
    in_frame: bool,
    /// The relay's timestamp of it.
    rtp_time: u32,
    /// When its newest packet came.
    arrival: Option<Instant>,
    sight: Sight,
    /// Set when the frame began without hope for a keyframe: how long there had been none.
    given_up: Option<Duration>,
    /// After a break nothing can be decoded before the next keyframe, so that nothing is sent.
    gated: bool,
    /// The frame under way is one that the gate keeps back.
    held_back: bool,
    /// The track had no keyframes when it was last looked at for long: it is not kept back over them.
    without_keyframes: bool,
    /// The frame has the timestamp of one that a marker ended.
    continued: bool,
    marker_strikes: u8,
    keyframe_wait: KeyframeWait,
    /// An empty fragment was the beginning of a unit; the next fragment becomes it.
    start_owed: bool,
    pub(super) frames: u64,
    pub(super) lost: u64,
}

impl Input {
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
            source_type: None,
            order: Order::default(),
            told: Told::default(),
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
        self.source_type = None;
        self.order = Order::default();
        self.told = Told::default();
        self.frame_time = None;
        self.continued = false;
        self.marker_strikes = 0;
        self.keyframe_wait.new_session();
        self.start_owed = false;
        self.gate();
    }

    /// Whoever plays has got what came before a break: what refers to pictures that are gone is kept from them.
    pub(super) fn gate(&mut self) {
        let begun = self.next_seq != self.first_seq;
        self.gated = self.video && begun && !self.without_keyframes;
    }

    /// The format parameters to serve.
    pub(super) fn fmtp(&self) -> Option<String> {
        self.sets.fmtp(self.fmtp.as_deref())
    }

    /// Whether the packet with this timestamp of the source goes on with the frame under way.
    pub(super) fn goes_on(&self, source_time: u32) -> bool {
        self.in_frame && self.frame_time == Some(source_time)
    }

    /// `count` packets are missing now.
    pub(super) fn lose(&mut self, count: u16, chunker: &mut Chunker, out: &mut impl Publish) {
        self.lost += u64::from(count);
        self.start_owed = false;
        // What is missing may have been the rest of the frame before, markers and all.
        self.frame_time = self.frame_time.filter(|_| self.in_frame);
        // The packets of a chunk follow one another; the player is to see the gap.
        chunker.cut(self.id, &mut chunks(out));
        // Before the first packet there is nothing to be missed; the description has promised where numbers begin.
        if self.next_seq != self.first_seq && !self.gated {
            self.next_seq = self.next_seq.wrapping_add(count);
        }
    }

    /// Puts a packet with a payload into its frame. `describe` is called when parameter sets changed, before the frame that they
    /// came with is published.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn packet<P: Publish>(
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
        keyframe::inspect(*codec, &payload, sight, &mut |set| sets.see(set));
        if !before && self.sight.picture {
            self.first_picture(received, tally, chunker, out, describe);
        }
        if self.held_back {
            // Counted as received, and that is all.
        } else if self.codec.has_nal_units() {
            self.cut(&payload, received, tally, chunker, out);
        } else {
            self.pass(rtp, false, received, chunker, out);
        }
        self.end_at_marker(header.marker, tally, chunker, out);
    }

    /// What is known when a frame's first picture data comes, before it goes out.
    fn first_picture<P: Publish>(
        &mut self,
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut P,
        describe: impl FnOnce(Option<String>, &mut P),
    ) {
        if self.continued {
            // A picture after a marker with the same timestamp: the marker did not end the frame, and this is the rest of it.
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
            let sets = std::mem::replace(&mut self.sets, ParameterSets::new(self.codec));
            for nal in sets.lacking(self.sight) {
                self.emit(0x80, false, &[], nal, received, chunker, out);
                tally.stats.inserted += 1;
            }
            self.sets = sets;
        }
    }

    /// Makes good for empty fragments, which players refuse: their start and end flags move to a neighbour. None if nothing is
    /// left of the payload.
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

    /// Sends the payload on in packets that UDP carries.
    fn cut(
        &mut self,
        payload: &[u8],
        received: Instant,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut impl Publish,
    ) {
        let mut packets = 0u64;
        let known = fragment(self.codec, payload, PAYLOAD_BYTES_MAX, &mut |prefix, body| {
            self.emit(0x80, false, prefix, body, received, chunker, out);
            packets += 1;
        });
        tally.stats.oversize += u64::from(!known);
        tally.stats.malformed += u64::from(known && packets == 0);
        tally.stats.fragmented += u64::from(payload.len() > PAYLOAD_BYTES_MAX && packets > 0);
    }

    /// Sends the packet on as it is, but for the header's fixed part.
    fn pass(&mut self, rtp: &[u8], marker: bool, received: Instant, chunker: &mut Chunker, out: &mut impl Publish) {
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
        out: &mut impl Publish,
    ) {
        let mut header = Header::write(marker, self.payload_type, self.next_seq, self.rtp_time, self.ssrc);
        header[0] = first;
        let key = self.video && (self.sight.starts() || self.given_up.is_some());
        let packet = Packet { header, sequence: self.next_seq, rtp_time: self.rtp_time, prefix, body };
        chunker.append(self.id, received, key, packet, &mut chunks(out));
        self.next_seq = self.next_seq.wrapping_add(1);
    }

    /// Ends the frame if a packet with this marker ends it: not if all there is are parameter sets and SEI, which some cameras
    /// mark.
    pub(super) fn end_at_marker(
        &mut self,
        marker: bool,
        tally: &mut Tally,
        chunker: &mut Chunker,
        out: &mut impl Publish,
    ) {
        if marker && self.sight.picture && self.marker_strikes < MARKER_STRIKES {
            self.end_frame(tally, chunker, out);
        }
    }

    /// Ends the frame under way, if there is one.
    pub(super) fn end_frame(&mut self, tally: &mut Tally, chunker: &mut Chunker, out: &mut impl Publish) {
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

    /// Ends the frame under way as it is, or discards it if none of it is published.
    pub(super) fn abandon_frame(&mut self, tally: &mut Tally, chunker: &mut Chunker, out: &mut impl Publish) {
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
        report: Report,
        received: Instant,
        cname: &str,
        chunker: &mut Chunker,
        out: &mut impl Publish,
    ) {
        let sent = chunker.sent(self.id);
        let octets = sent.bytes - sent.packets * HEADER_BYTES as u64;
        // Both counts wrap (RFC 3550 section 6.4.1).
        let (packets, octets) = (sent.packets as u32, octets as u32);
        let compound = rtcp::sender_report(self.ssrc, report.ntp, report.rtp_time, packets, octets, cname);
        chunker.report(self.id, received, self.next_seq, report.rtp_time, &compound, &mut chunks(out));
    }
}
