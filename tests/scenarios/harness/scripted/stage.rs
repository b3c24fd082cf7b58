//! The media of one session: which frame and audio packet is due, and what is sent of it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::media::{SOUND_BYTES, sound};
use super::{Kind, Outgoing, Piece, Report, Script, SentFrame, SentPacket, Shared, framed};

/// Clock rates of video and audio, in Hz.
const VIDEO_RATE: u64 = 90_000;
const AUDIO_RATE: u64 = 8_000;

/// Audio packets a second.
const SOUNDS: u64 = AUDIO_RATE / SOUND_BYTES as u64;

/// Seconds from 1900 to 1970.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;

/// How a track's packets are sent.
pub(super) enum Way {
    /// On these channels of the connection: RTP, RTCP.
    Channels(u8, u8),
    /// As datagrams.
    Ports {
        /// Sends RTP.
        rtp: UdpSocket,
        /// Sends and receives RTCP.
        rtcp: UdpSocket,
        /// The destinations of RTP and RTCP.
        to: [SocketAddr; 2],
    },
}

/// A track that was set up.
pub(super) struct Track {
    pub(super) kind: Kind,
    /// Its position in the description, from 1.
    place: usize,
    pub(super) way: Way,
    ssrc: u32,
    /// The sequence number of the next packet.
    extended_seq: u32,
    first_time: u32,
    time: u32,
    packets: u64,
    frames: u64,
}

impl Track {
    pub(super) fn new(kind: Kind, place: usize, way: Way, script: &Script) -> Track {
        let first_seq = script.first_seq.unwrap_or_else(|| fastrand::u16(..));
        let first_time = fastrand::u32(..);
        Track {
            kind,
            place,
            way,
            ssrc: fastrand::u32(1..),
            extended_seq: u32::from(first_seq),
            first_time,
            time: first_time,
            packets: 0,
            frames: 0,
        }
    }

    /// The `RTP-Info` about its next packet.
    pub(super) fn rtp_info(&self, base: &str) -> String {
        format!("url={base}/track{};seq={};rtptime={}", self.place, self.extended_seq as u16, self.first_time)
    }

    fn rate(&self) -> u64 {
        match self.kind {
            Kind::Video => VIDEO_RATE,
            Kind::Audio => AUDIO_RATE,
        }
    }

    fn header(&self, marker: bool) -> Vec<u8> {
        let payload_type = match self.kind {
            Kind::Video => 96,
            Kind::Audio => 0,
        };
        let mut bytes = vec![0x80, u8::from(marker) << 7 | payload_type];
        bytes.extend((self.extended_seq as u16).to_be_bytes());
        bytes.extend(self.time.to_be_bytes());
        bytes.extend(self.ssrc.to_be_bytes());
        bytes
    }
}

/// Data to write to the connection.
#[derive(Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    /// The camera's own requests in it.
    pub(super) asks: usize,
}

/// The tracks that were set up, and when playback started.
#[derive(Default)]
pub(super) struct Stage {
    pub(super) tracks: Vec<Track>,
    pub(super) begun: Option<Instant>,
    reports: u64,
}

impl Stage {
    /// When the next packet is due.
    pub(super) fn next(&self, script: &Script) -> Option<Instant> {
        let begun = self.begun?;
        self.tracks.iter().map(|track| begun + at(track, script)).min()
    }

    /// Sends what is due.
    pub(super) fn advance(&mut self, shared: &Shared, script: &Script, now: Instant, output: &mut Output) {
        let Some(begun) = self.begun else { return };
        let elapsed = now.duration_since(begun);
        for track in &mut self.tracks {
            while at(track, script) <= elapsed {
                track.time = track
                    .first_time
                    .wrapping_add((at(track, script).as_nanos() as u64 / 1_000 * track.rate() / 1_000_000) as u32);
                match track.kind {
                    Kind::Video => send_frame(track, shared, script, output),
                    Kind::Audio => {
                        let number = shared.sounds.fetch_add(1, Ordering::Relaxed);
                        let payload = sound(number as u32);
                        send(track, shared, script, output, &payload, Part::WHOLE);
                    }
                }
                track.frames += 1;
            }
        }
        // One after the first frames, then one a second.
        if elapsed > Duration::from_secs(self.reports) + Duration::from_millis(100) {
            self.reports += 1;
            for track in &mut self.tracks {
                report(track, script, output, elapsed);
            }
        }
    }

    /// Reports that arrived as datagrams.
    pub(super) fn reports(&self) -> Vec<Report> {
        let mut found = Vec::new();
        for track in &self.tracks {
            let Way::Ports { rtcp, .. } = &track.way else { continue };
            let mut bytes = [0; 2_048];
            while let Ok(len) = rtcp.recv(&mut bytes) {
                found.push(Report { kind: track.kind, bytes: bytes[..len].to_vec() });
            }
        }
        found
    }
}

/// When a track's next frame is due, since the start.
fn at(track: &Track, script: &Script) -> Duration {
    let rate = match track.kind {
        Kind::Video => u64::from(script.fps),
        Kind::Audio => SOUNDS,
    };
    Duration::from_nanos(track.frames * 1_000_000_000 / rate)
}

/// Which part of a frame a packet is.
struct Part {
    key: bool,
    first: bool,
    last: bool,
}

impl Part {
    const WHOLE: Part = Part { key: false, first: true, last: true };
}

fn send_frame(track: &mut Track, shared: &Shared, script: &Script, output: &mut Output) {
    let number = shared.frames.fetch_add(1, Ordering::Relaxed);
    let frame = script.clip.frame(track.frames, number);
    shared.record().frames.push(SentFrame { at: Instant::now(), number, hash: frame.hash });
    let last = frame.payloads.len() - 1;
    for (index, payload) in frame.payloads.iter().enumerate() {
        let part = Part { key: frame.key, first: index == 0, last: index == last };
        send(track, shared, script, output, payload, part);
    }
}

fn send(track: &mut Track, shared: &Shared, script: &Script, output: &mut Output, payload: &[u8], part: Part) {
    let mut bytes = track.header(part.last && track.kind == Kind::Video);
    bytes.extend_from_slice(payload);
    let pieces = pieces(track, script, false, part, bytes);
    shared.record().packets.push(SentPacket {
        kind: track.kind,
        ssrc: track.ssrc,
        extended_seq: track.extended_seq,
        left_out: pieces.is_empty(),
    });
    track.extended_seq += 1;
    track.packets += 1;
    put(track, pieces, false, output);
}

/// A sender report (RFC 3550 section 6.4.1) of a track, with its CNAME.
fn report(track: &Track, script: &Script, output: &mut Output, elapsed: Duration) {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let seconds = (since_1970.as_secs() + NTP_TO_UNIX_S).wrapping_add_signed(script.clock_ahead_s);
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    let ntp = (seconds << 32) | fraction;
    let now = track.first_time.wrapping_add((elapsed.as_micros() as u64 * track.rate() / 1_000_000) as u32);
    let mut bytes = vec![0x80, 200, 0, 6];
    bytes.extend(track.ssrc.to_be_bytes());
    bytes.extend(ntp.to_be_bytes());
    bytes.extend(now.to_be_bytes());
    bytes.extend((track.packets as u32).to_be_bytes());
    bytes.extend((track.packets as u32 * 1_000).to_be_bytes());
    bytes.extend([0x81, 202, 0, 3]);
    bytes.extend(track.ssrc.to_be_bytes());
    bytes.extend(*b"\x01\x03cam\0\0\0");
    let pieces = pieces(track, script, true, Part::WHOLE, bytes);
    put(track, pieces, true, output);
}

/// What the script does with a packet.
fn pieces(track: &Track, script: &Script, rtcp: bool, part: Part, bytes: Vec<u8>) -> Vec<Piece> {
    let channel = match track.way {
        Way::Channels(rtp, _) if !rtcp => rtp,
        Way::Channels(_, rtcp) => rtcp,
        Way::Ports { .. } => 0,
    };
    let Part { key, first, last } = part;
    let (kind, count, frame) = (track.kind, track.packets, track.frames);
    let mut outgoing = Outgoing { kind, rtcp, channel, count, frame, key, first, last, bytes };
    match &script.on_packet {
        Some(change) => (change.lock().unwrap())(&mut outgoing),
        None => outgoing.whole(),
    }
}

fn put(track: &Track, pieces: Vec<Piece>, rtcp: bool, output: &mut Output) {
    for piece in pieces {
        let (bytes, by_rtcp) = match piece {
            Piece::Packet(bytes) => (bytes, rtcp),
            Piece::Report(bytes) => (bytes, true),
            Piece::Raw(bytes) => {
                output.bytes.extend(bytes);
                continue;
            }
            Piece::Ask(text) => {
                output.bytes.extend(text.into_bytes());
                output.asks += 1;
                continue;
            }
        };
        match &track.way {
            Way::Channels(rtp, rtcp) => output.bytes.extend(framed(if by_rtcp { *rtcp } else { *rtp }, &bytes)),
            Way::Ports { rtp, rtcp, to } => {
                // The client may be gone.
                let _ = if by_rtcp { rtcp.send_to(&bytes, to[1]) } else { rtp.send_to(&bytes, to[0]) };
            }
        }
    }
}
