//! Fragments of MP4 in WebSocket messages, for browsers.
//!
//! Each frame is a fragment of one track, preceded by `prft` with the time of its arrival at the relay. A message starts with the
//! WebSocket header, which is the same for all clients because servers do not mask, followed by two bytes: the track's number and a
//! [`MessageKind`].
//!
//! Decoding times of video follow the order in which frames arrive. A frame that is shown before an earlier one (B frames) gets a
//! negative offset. All tracks of a stream share one timeline, derived from the arrival times, and between tracks from their sender
//! reports.

pub mod boxes;
mod flac;
mod format;
#[cfg(feature = "testing")]
pub mod fuzz;
mod order;
#[cfg(all(test, feature = "testing"))]
mod order_tests;
mod saved;
mod sound;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use boxes::{Fragment, Sample};
pub use format::{Format, Init};
use order::{Came, Order};
pub use saved::{ClockState, FragmentsState};

use super::{Form, Rendered, Rendering};
use crate::limits::FRAGMENT_STATED_MS;
use crate::media::chunk::Chunk;
use crate::media::codec::access_unit::AccessUnit;
use crate::media::codec::{Codec, av1, jpeg, parameter_sets, vp9};
use crate::media::rendering::Piece;
use crate::media::{Description, Track, TrackId};
use crate::wire::rtcp::{self, SenderInfo};
use crate::wire::rtp;
use crate::wire::websocket::{self, HEADER_BYTES_MAX, Opcode};

/// Maximum size of what precedes a fragment's media: the message's header, `prft`, `moof` with one sample, and the header of `mdat`.
const OVERHEAD_BYTES: usize = HEADER_BYTES_MAX + 2 + 160;

/// How far a track's relation to the others may be off before it is corrected.
const SYNC_OFF_MAX: Duration = Duration::from_millis(80);

/// What follows the two bytes of a binary message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// An initialization segment.
    Init = 0,
    /// A fragment at which decoding can start.
    Sync = 1,
    /// Another fragment.
    Fragment = 2,
    /// The arrival time as NTP time (8 bytes), and a JPEG picture.
    Picture = 3,
}

/// The relay's clock: a time and the corresponding Unix time. It is never adjusted, so that it runs evenly.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    at: Instant,
    unix: Duration,
}

impl Clock {
    /// The Unix time was `unix` at `at`.
    pub fn new(at: Instant, unix: Duration) -> Clock {
        Clock { at, unix }
    }

    /// The Unix time at a given time.
    pub fn unix(&self, at: Instant) -> Duration {
        match at.checked_duration_since(self.at) {
            Some(after) => self.unix + after,
            None => self.unix.saturating_sub(self.at.saturating_duration_since(at)),
        }
    }

    /// A time, and the Unix time at that time: what it was made of.
    pub fn origin(&self) -> (Instant, Duration) {
        (self.at, self.unix)
    }

    /// The same as NTP time (RFC 3550 section 4).
    fn ntp(&self, at: Instant) -> u64 {
        rtcp::ntp(self.unix(at))
    }
}

/// A track's timestamp, and the corresponding time on the stream's timeline, in the track's ticks.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: Instant,
    rtp_time: u32,
    ticks: i64,
}

/// Ticks of a signed duration.
fn ticks_between(from: Instant, to: Instant, rate: u32) -> i64 {
    let ticks = |duration: Duration| (duration.as_nanos() * u128::from(rate) / 1_000_000_000) as i64;
    match to.checked_duration_since(from) {
        Some(after) => ticks(after),
        None => -ticks(from.saturating_duration_since(to)),
    }
}

/// State after the last fragment of a track.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Last {
    frame: u64,
    /// Video: the last decoding time. Audio: where it ends.
    ticks: i64,
}

#[derive(Debug)]
struct TrackState {
    format: Format,
    rate: u32,
    anchor: Anchor,
    /// The initialization segment from the newest key frame, or of the audio track.
    init: Option<(Init, Piece)>,
    /// Parameter sets from the description, for key frames that have none.
    described: Vec<Vec<u8>>,
    /// Whether the H.264 stream shows its pictures in decoding order.
    order: Order,
    last: Option<Last>,
}

impl TrackState {
    fn of(track: &Track, number: u8, origin: Instant) -> Option<TrackState> {
        let format = Format::of(track).ok()?;
        let rate = track.clock_rate;
        let anchor =
            Anchor { at: track.clock.0, rtp_time: track.clock.1, ticks: ticks_between(origin, track.clock.0, rate) };
        let init = format.audio_init(rate).map(|init| {
            let piece = init_message(number, &format, &init, track);
            (init, piece)
        });
        let described = match format {
            Format::Nal(codec) => parameter_sets::described(codec, track.fmtp.as_deref()),
            _ => Vec::new(),
        };
        Some(TrackState { format, rate, anchor, init, described, order: Order::default(), last: None })
    }

    /// The presentation time on the timeline of a frame that arrived at a given time with this timestamp.
    fn ticks(&self, rtp_time: u32, arrival: Instant) -> i64 {
        let expected = ticks_between(self.anchor.at, arrival, self.rate);
        // Of all times with this timestamp, the one nearest to the arrival.
        let off = rtp_time.wrapping_sub(self.anchor.rtp_time).wrapping_sub(expected as u32) as i32;
        self.anchor.ticks + expected + i64::from(off)
    }
}

/// A rendered frame before it becomes a message.
struct Unit {
    media: Vec<u8>,
    samples: SmallVec<[Sample; 2]>,
    /// When its first sample is decoded, and the delay until it is shown, in ticks.
    decoded: i64,
    offset: i32,
    is_sync: bool,
}

/// Makes fragments of a stream's frames for all browsers of a shard.
#[derive(Debug)]
pub struct Fragments {
    clock: Clock,
    description: Arc<Description>,
    tracks: Vec<Option<TrackState>>,
    /// The newest sender report of each track: NTP time, timestamp, and when it arrived.
    reports: Vec<Option<(u64, u32, Instant)>>,
}

impl Fragments {
    /// For a stream with this description.
    pub fn new(now: Instant, clock: Clock, description: Arc<Description>) -> Fragments {
        // Times on the timeline must not be negative, whatever is still in the log.
        let hour = Duration::from_secs(3_600);
        let oldest = description.tracks.iter().map(|track| track.clock.0).chain([now]).min().unwrap_or(now);
        let origin = oldest.checked_sub(hour).unwrap_or(oldest);
        let tracks = (0u8..).zip(&description.tracks).map(|(number, track)| TrackState::of(track, number, origin));
        let tracks: Vec<_> = tracks.collect();
        let reports = vec![None; tracks.len()];
        Fragments { clock, description, tracks, reports }
    }

    /// Whether it still matches this description.
    pub fn is_of(&self, description: &Arc<Description>) -> bool {
        Arc::ptr_eq(&self.description, description)
    }

    /// The description changed, but the stream can be continued.
    pub fn describe(&mut self, description: &Arc<Description>) {
        self.description = Arc::clone(description);
        for (state, track) in self.tracks.iter_mut().zip(&description.tracks) {
            if let Some(TrackState { format: Format::Nal(codec), described, .. }) = state {
                *described = parameter_sets::described(*codec, track.fmtp.as_deref());
            }
        }
    }

    /// A sender report of a track. With one for video and one for audio, their relation is known.
    pub fn report(&mut self, chunk: &Chunk) {
        let Some(span) = chunk.spans().next() else { return };
        let packet = chunk.bytes.get(span.offset as usize..).unwrap_or_default();
        let Some(SenderInfo { ntp, rtp_time, .. }) = SenderInfo::of(packet) else { return };
        if let Some(report) = self.reports.get_mut(usize::from(chunk.track.0)) {
            *report = Some((ntp, rtp_time, chunk.arrival));
            self.synchronize();
        }
    }

    /// Aligns audio with video by their sender reports, if the error would be noticeable.
    fn synchronize(&mut self) {
        let is_video = |state: &Option<TrackState>| state.as_ref().is_some_and(|state| state.format.is_video());
        let Some(video) = self.tracks.iter().position(is_video) else { return };
        let (Some(state), Some((ntp, rtp_time, at))) = (&self.tracks[video], self.reports[video]) else { return };
        let seconds = state.ticks(rtp_time, at) as f64 / f64::from(state.rate);
        for (index, state) in self.tracks.iter_mut().enumerate() {
            let (Some(state), Some((of, rtp_time, at))) = (state, self.reports[index]) else { continue };
            // Reports of one session are seconds apart; larger differences mean that the clocks are unrelated.
            let apart = of.wrapping_sub(ntp) as i64 as f64 / f64::from(2.0f32).powi(32);
            if index == video || apart.abs() > 60.0 {
                continue;
            }
            let ticks = ((seconds + apart) * f64::from(state.rate)) as i64;
            let off = (state.ticks(rtp_time, at) - ticks).unsigned_abs();
            if off > ticks_between(at, at + SYNC_OFF_MAX, state.rate).unsigned_abs() {
                state.anchor = Anchor { at, rtp_time, ticks };
                state.last = None;
            }
        }
    }

    /// The first message to a browser, as JSON: the tracks, and whether they can be played.
    pub fn hello(&self, now: Instant, stream: &str) -> String {
        let tracks: Vec<_> = (0u8..)
            .zip(&self.description.tracks)
            .map(|(number, track)| {
                let format = Format::of(track);
                serde_json::json!({
                    "track": number,
                    "media": track.media,
                    "encoding": track.encoding,
                    "plays": format.is_ok(),
                    "why": format.err(),
                    "mime": self.mime(TrackId(number)),
                })
            })
            .collect();
        let clock = self.clock.unix(now).as_secs_f64() * 1_000.0;
        serde_json::json!({ "type": "hello", "stream": stream, "clock": clock, "tracks": tracks }).to_string()
    }

    /// The MIME type of a track, once it is known.
    fn mime(&self, track: TrackId) -> Option<String> {
        let state = self.tracks.get(usize::from(track.0))?.as_ref()?;
        let made;
        let init = match &state.init {
            Some((init, _)) => init,
            None => {
                made = state.format.video_init(state.rate, &state.described, &[], false)?;
                &made
            }
        };
        Some(mime(&state.format, &init.codec))
    }

    /// Whether the track can be sent in this form.
    pub fn plays(&self, track: TrackId) -> bool {
        self.tracks.get(usize::from(track.0)).is_some_and(Option::is_some)
    }

    /// The relay's time in milliseconds since 1970.
    pub fn clock_ms(&self, now: Instant) -> f64 {
        self.clock.unix(now).as_secs_f64() * 1_000.0
    }

    fn frame(&mut self, chunks: &[&Chunk]) -> Option<Rendered> {
        let (first, last) = (*chunks.first()?, *chunks.last()?);
        let number = first.track.0;
        let state = self.tracks.get_mut(usize::from(number))?.as_mut()?;
        let described = self.description.tracks.get(usize::from(number))?;
        let payloads = Payloads::of(chunks);
        let arrived = self.clock.ntp(last.arrival);
        let shown = state.ticks(first.rtp_time, last.arrival);
        if state.format == Format::Jpeg {
            let picture = jpeg::picture(payloads.iter().map(|(payload, _)| payload))?;
            return Some(Rendered { head: None, body: Some(picture_message(number, arrived, &picture)) });
        }
        let unit = match state.format {
            Format::Nal(_) | Format::Av1 | Format::Vp9 => {
                video(state, &payloads, (first, last), shown, |init, state| {
                    init_message(number, &state.format, init, described)
                })?
            }
            _ => sound::unit(&state.format, state.rate, &mut state.last, &payloads, first.frame, shown)?,
        };
        let fragment = Fragment {
            // The same in every shard.
            sequence: (first.frame as u32).wrapping_add(1),
            decode_time: unit.decoded.max(0) as u64,
            offset: unit.offset,
            is_sync: unit.is_sync,
            is_video: state.format.is_video(),
            arrived,
            samples: &unit.samples,
        };
        let kind = if unit.is_sync { MessageKind::Sync } else { MessageKind::Fragment };
        let head = state.init.as_ref().filter(|_| unit.is_sync).map(|(_, piece)| piece.clone());
        let body = message(number, kind, OVERHEAD_BYTES + 8 * unit.samples.len() + unit.media.len(), |out| {
            boxes::fragment(out, &fragment, unit.media.len());
            out.extend_from_slice(&unit.media);
        });
        Some(Rendered { head, body: Some(body) })
    }
}

impl Rendering for Fragments {
    const WHOLE_FRAMES: bool = true;

    fn form(&self) -> Form {
        Form::Fragment
    }

    fn render(&mut self, chunks: &[&Chunk]) -> Rendered {
        self.frame(chunks).unwrap_or_default()
    }
}

/// The payloads of a frame's packets, each with a flag whether packets before it are missing.
struct Payloads<'a>(SmallVec<[(&'a [u8], bool); 16]>);

impl<'a> Payloads<'a> {
    fn of(chunks: &[&'a Chunk]) -> Payloads<'a> {
        let mut next: Option<u16> = None;
        let mut payloads = SmallVec::new();
        for chunk in chunks {
            for span in chunk.spans() {
                let start = span.offset as usize;
                let Some(packet) = chunk.bytes.get(start..start + usize::from(span.len)) else { continue };
                let Ok(header) = rtp::Header::parse(packet) else { continue };
                let is_lost = next.replace(header.sequence.wrapping_add(1)).is_some_and(|next| next != header.sequence);
                payloads.push((&packet[header.payload], is_lost));
            }
        }
        Payloads(payloads)
    }

    fn iter(&self) -> impl Iterator<Item = (&'a [u8], bool)> + '_ {
        self.0.iter().copied()
    }
}

/// Assembles a video frame.
fn video(
    state: &mut TrackState,
    payloads: &Payloads<'_>,
    (chunk, last): (&Chunk, &Chunk),
    shown: i64,
    make_init: impl Fn(&Init, &TrackState) -> Piece,
) -> Option<Unit> {
    let bytes = || payloads.iter().map(|(payload, _)| payload);
    let (media, sets) = match state.format {
        Format::Nal(codec) => {
            let mut unit = AccessUnit::new(codec, bytes().map(<[u8]>::len).sum::<usize>() + 64);
            for (payload, is_lost) in payloads.iter() {
                unit.push(payload, is_lost);
            }
            unit.finish();
            if chunk.keyframe && unit.sets.is_empty() {
                unit.sets.clone_from(&state.described);
            }
            if codec == Codec::H264 {
                note_order(&mut state.order, &unit, (chunk, last), shown);
            }
            (unit.data, unit.sets)
        }
        Format::Av1 => (av1::temporal_unit(bytes())?, Vec::new()),
        _ => (vp9::frames(bytes())?, Vec::new()),
    };
    if media.is_empty() {
        return None;
    }
    if chunk.keyframe {
        match state.format.video_init(state.rate, &sets, &media, state.order.is_certain()) {
            Some(init) if state.init.as_ref().is_none_or(|(known, _)| *known != init) => {
                let piece = make_init(&init, state);
                state.init = Some((init, piece));
            }
            // If the duration is unknown, the last frame stays on the screen.
            _ => {}
        }
        state.init.as_ref()?;
    }
    // Consecutive frames are decoded in that order; after a restart, or if it is far off, the decoding time is the presentation time.
    let reordered_max = i64::from(state.rate) * 2;
    let before = state.last.filter(|last| last.frame + 1 == chunk.frame && (last.ticks - shown).abs() < reordered_max);
    let decoded = before.map_or(shown, |last| shown.max(last.ticks + 1));
    state.last = Some(Last { frame: chunk.frame, ticks: decoded });
    let duration = state.rate / 1_000 * FRAGMENT_STATED_MS;
    Some(Unit {
        samples: smallvec![Sample { size: media.len() as u32, duration }],
        media,
        decoded,
        offset: (shown - decoded) as i32,
        is_sync: chunk.keyframe,
    })
}

/// Records whether the stream still shows its pictures in decoding order.
fn note_order(order: &mut Order, unit: &AccessUnit, (first, last): (&Chunk, &Chunk), shown: i64) {
    if let Some(sps) = format::avc_sps(&unit.sets) {
        order.set(sps);
    }
    order.take(Came {
        frame: first.frame,
        sequence: (first.first_seq, last.first_seq.wrapping_add(last.packets)),
        shown,
        is_key: first.keyframe,
        is_whole: !unit.damaged,
        has_b: unit.has_b_slice(),
    });
}

fn mime(format: &Format, codec: &str) -> String {
    format!("{}/mp4; codecs=\"{codec}\"", if format.is_video() { "video" } else { "audio" })
}

/// A binary message about a track, with the bytes that `content` appends, in `room` bytes if possible.
fn message(track: u8, kind: MessageKind, room: usize, content: impl FnOnce(&mut Vec<u8>)) -> Piece {
    // The length precedes the content and has a variable size.
    let mut out = Vec::with_capacity(room);
    out.resize(HEADER_BYTES_MAX, 0);
    out.extend_from_slice(&[track, kind as u8]);
    content(&mut out);
    let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
    websocket::write_header(&mut header, Opcode::Binary, out.len() - HEADER_BYTES_MAX);
    let start = HEADER_BYTES_MAX - header.len();
    out[start..HEADER_BYTES_MAX].copy_from_slice(&header);
    Piece::from(Bytes::from(out).slice(start..))
}

fn picture_message(track: u8, arrived: u64, picture: &[u8]) -> Piece {
    message(track, MessageKind::Picture, OVERHEAD_BYTES + picture.len(), |out| {
        boxes::u64(out, arrived);
        out.extend_from_slice(picture);
    })
}

/// What a browser needs before a track's first fragment: a text message with the MIME type, and the initialization segment.
fn init_message(number: u8, format: &Format, init: &Init, track: &Track) -> Piece {
    let told = serde_json::json!({
        "type": "track",
        "track": number,
        "media": track.media,
        "encoding": track.encoding,
        "mime": mime(format, &init.codec),
        "codec": init.codec,
        "width": init.picture.map(|picture| picture.0),
        "height": init.picture.map(|picture| picture.1),
        "rate": track.clock_rate,
        "channels": track.channels,
    });
    let mut out = websocket::frame(Opcode::Text, told.to_string().as_bytes());
    let binary = message(number, MessageKind::Init, OVERHEAD_BYTES + init.segment.len(), |out| {
        out.extend_from_slice(&init.segment);
    });
    out.extend_from_slice(binary.as_slice());
    Piece::from(Bytes::from(out))
}

/// A keyframe as a separate file: an initialization segment and one MP4 fragment, or a JPEG. Returns the MIME type and the bytes.
pub fn still(clock: Clock, now: Instant, description: &Arc<Description>, chunks: &[&Chunk]) -> Option<(String, Bytes)> {
    let mut fragments = Fragments::new(now, clock, Arc::clone(description));
    let rendered = fragments.frame(chunks)?;
    let body = rendered.body?;
    // After the WebSocket header, the two bytes, and for a picture its time.
    let payload = |message: &[u8]| match message.get(1)? & 0x7f {
        126 => Some(4),
        127 => Some(10),
        _ => Some(2),
    };
    let start = payload(body.as_slice())? + 2;
    let state = fragments.tracks.get(usize::from(chunks.first()?.track.0))?.as_ref()?;
    match &state.init {
        Some((init, _)) => {
            let fragment = body.as_slice().get(start..)?;
            Some((mime(&state.format, &init.codec), Bytes::from([&init.segment[..], fragment].concat())))
        }
        None => Some(("image/jpeg".into(), Bytes::copy_from_slice(body.as_slice().get(start + 8..)?))),
    }
}
