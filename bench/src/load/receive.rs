//! Processes the bytes that one player receives: framing, sequence, frames, stamps. No socket and no clock.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use rtsprelay::source::stamp::{self, Stamp};

use super::websocket::Messages;
use crate::client::{Codec, TrackInfo};
use crate::nal;
use crate::rtsp::{Malformed, Message};

/// Bytes at the start of a packet that are parsed; the rest is only counted (and hashed, if requested).
///
/// Enough for an RTP header with an extension and, in one aggregation packet, parameter sets and the stamp.
const HEAD_BYTES: usize = 256;

/// Minimum jump of the sequence number that counts as a new timeline instead of loss.
const SEQUENCE_JUMP_MAX: i16 = 3000;

/// Why a player can no longer follow its connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Neither a packet nor a message.
    #[error("byte {0:#04x} where a packet should begin")]
    NoPacket(u8),
    /// No frame of a WebSocket server.
    #[error("bytes {0:#04x} {1:#04x} where a WebSocket frame should begin")]
    NoFrame(u8, u8),
    /// The server closed the WebSocket.
    #[error("the server closed the WebSocket")]
    Closed,
    /// An invalid message.
    #[error(transparent)]
    Message(#[from] Malformed),
}

impl From<Broken> for String {
    fn from(error: Broken) -> String {
        error.to_string()
    }
}

/// Counts over all players of one kind, during the measurement.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Whether what happens now counts.
    pub measuring: bool,
    /// End-to-end latency of whole frames with a stamp, in µs.
    pub latency_us: Histogram<u64>,
    /// Video frames that ended.
    pub frames: u64,
    /// Frames with every packet there.
    pub frames_whole: u64,
    /// Frames with some packets missing.
    pub frames_damaged: u64,
    /// Frame numbers that never arrived.
    pub frames_missing: u64,
    /// Frames whose number had arrived before, or that arrived after a later one.
    pub frames_disordered: u64,
    /// RTP packets.
    pub packets: u64,
    /// Sequence numbers passed over.
    pub packets_missing: u64,
    /// Places where sequence numbers were passed over.
    pub gaps: u64,
    /// Packets behind their sequence (duplicate or late).
    pub packets_disordered: u64,
    /// New timelines: another SSRC, or a sequence number far off.
    pub restarts: u64,
    /// Times that a player missed frames and the next frame was a keyframe.
    pub resumed_on_keyframe: u64,
    /// Times that a player missed frames and the next frame was not a keyframe.
    pub resumed_elsewhere: u64,
    /// Bytes read, framing included.
    pub bytes: u64,
    /// Packets that are not RTP.
    pub malformed: u64,
    /// Reads in which more than one frame ended: the player is behind by a frame.
    pub reads_behind: u64,
    /// Reads.
    pub reads: u64,
    /// Players whose first frame was not a keyframe, since the start.
    pub began_elsewhere: u64,
    /// From PLAY to the end of the first keyframe, in µs, since the start.
    pub first_keyframe_us: Histogram<u64>,
    /// From the read that brought an audio packet to the one that brought the next, in µs.
    pub audio_wait_us: Histogram<u64>,
    /// From an audio packet's timestamp to that of the next one, in µs.
    pub audio_skip_us: Histogram<u64>,
}

/// For times in µs.
pub fn histogram() -> Histogram<u64> {
    // 1 µs to 60 s with three digits; the limits are constants, so this cannot fail.
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds in order")
}

impl Totals {
    /// All zero.
    pub fn new() -> Totals {
        Totals {
            measuring: false,
            latency_us: histogram(),
            frames: 0,
            frames_whole: 0,
            frames_damaged: 0,
            frames_missing: 0,
            frames_disordered: 0,
            packets: 0,
            packets_missing: 0,
            gaps: 0,
            packets_disordered: 0,
            restarts: 0,
            resumed_on_keyframe: 0,
            resumed_elsewhere: 0,
            bytes: 0,
            malformed: 0,
            reads_behind: 0,
            reads: 0,
            began_elsewhere: 0,
            first_keyframe_us: histogram(),
            audio_wait_us: histogram(),
            audio_skip_us: histogram(),
        }
    }
}

/// The frames that all players got, compared by hash.
#[derive(Debug, Default)]
pub struct Verify {
    /// By stream, track and frame: the first player's hash.
    seen: HashMap<(u16, u8, u64), u32>,
    /// Frames compared with one seen before.
    pub compared: u64,
    /// Frames that differed.
    pub different: u64,
}

impl Verify {
    fn frame(&mut self, stream: u16, track: u8, key: u64, hash: u32) {
        match self.seen.insert((stream, track, key), hash) {
            None => {}
            Some(first) => {
                self.compared += 1;
                if first != hash {
                    self.different += 1;
                    // The first one remains the reference.
                    self.seen.insert((stream, track, key), first);
                }
            }
        }
    }

    /// Different frames seen.
    pub fn frames(&self) -> usize {
        self.seen.len()
    }
}

/// State that the players share while bytes are processed.
pub struct Env<'a> {
    /// Counts of this player's kind.
    pub totals: &'a mut Totals,
    /// Comparison of all players, if asked for.
    pub verify: Option<&'a mut Verify>,
    /// CLOCK_REALTIME in ns just after the read.
    pub now_ns: u64,
}

/// One track of one player.
#[derive(Debug, Default)]
struct Track {
    video: bool,
    codec: Codec,
    rtp_channel: u8,
    started: bool,
    ssrc: u32,
    next_seq: u16,
    time: u32,
    /// A frame has begun and not ended.
    open: bool,
    /// The packet under way carries the marker.
    ending: bool,
    stamp: Option<Stamp>,
    keyframe: bool,
    damaged: bool,
    /// Packets were missing right before this frame, after one that had ended properly.
    gap_before: bool,
    hash: crc32fast::Hasher,
    /// Number of the last frame that ended.
    last_number: Option<u64>,
    /// Ticks a second of an audio track's timestamps.
    clock_rate: u32,
    /// Audio: when the last packet was read (CLOCK_REALTIME in ns), and its timestamp.
    heard: Option<(u64, u32)>,
}

impl Track {
    fn hear(&mut self, env: &mut Env<'_>) {
        if let Some((at_ns, time)) = self.heard.replace((env.now_ns, self.time))
            && env.totals.measuring
        {
            let skip_us = u64::from(self.time.wrapping_sub(time)) * 1_000_000 / u64::from(self.clock_rate);
            env.totals.audio_wait_us.saturating_record(env.now_ns.saturating_sub(at_ns) / 1000);
            env.totals.audio_skip_us.saturating_record(skip_us);
        }
    }
}

/// The clock rate in a track's description (`a=rtpmap:0 PCMU/8000`).
fn clock_rate(sdp: &[String]) -> u32 {
    let map = sdp.iter().find_map(|line| line.strip_prefix("a=rtpmap:"));
    let rate = map.and_then(|map| map.split('/').nth(1)?.trim().parse().ok());
    rate.filter(|rate| *rate > 0).unwrap_or(8_000)
}

/// The receiving side of one player.
#[derive(Debug, Default)]
pub struct Receiver {
    stream: u16,
    tracks: Vec<Track>,
    hashes: bool,
    /// The track of the current packet.
    current: Option<usize>,
    /// Remaining bytes of the current packet.
    skip: usize,
    /// The start of a packet or answer that was split across reads.
    carry: Vec<u8>,
    /// CLOCK_REALTIME in ns at PLAY.
    play_ns: u64,
    /// Whether the first video frame has ended, and the first keyframe.
    seen_frame: bool,
    /// Whether a keyframe has ended.
    pub seen_keyframe: bool,
    /// Video frames that ended within the measurement.
    pub frames: u64,
    /// When the last video frame ended (CLOCK_REALTIME in ns), within the measurement.
    ended_ns: Option<u64>,
    /// The longest time from the end of a video frame to that of the next one within the measurement, in µs.
    pub longest_wait_us: u64,
    /// Frames that ended in this read.
    ended_now: u32,
    /// Of a player by WebSocket.
    messages: Option<Box<Messages>>,
}

impl Receiver {
    /// A player of these tracks that asked for PLAY at `play_ns`.
    pub fn new(stream: u16, tracks: &[TrackInfo], hashes: bool, play_ns: u64) -> Receiver {
        let tracks = tracks
            .iter()
            .map(|t| Track {
                video: t.video,
                codec: t.codec,
                rtp_channel: t.channels.0,
                clock_rate: clock_rate(&t.sdp),
                ..Track::default()
            })
            .collect();
        Receiver { stream, tracks, hashes, play_ns, ..Receiver::default() }
    }

    /// A player by WebSocket, of the video alone, that asked for it at `play_ns`.
    pub fn by_websocket(stream: u16, hashes: bool, play_ns: u64) -> Receiver {
        let tracks = vec![Track { video: true, ..Track::default() }];
        Receiver { stream, tracks, hashes, play_ns, messages: Some(Box::default()), ..Receiver::default() }
    }

    /// Whether frames are compared.
    pub fn is_hashing(&self) -> bool {
        self.hashes
    }

    /// A video frame has arrived completely, as an MP4 fragment.
    pub fn fragment(&mut self, stamp: Option<Stamp>, keyframe: bool, hash: u32, env: &mut Env<'_>) {
        env.totals.packets += u64::from(env.totals.measuring);
        let track = &mut self.tracks[0];
        (track.open, track.stamp, track.keyframe, track.damaged, track.gap_before) =
            (true, stamp, keyframe, false, false);
        track.hash = crc32fast::Hasher::new_with_initial(hash);
        self.frame_ended(0, env);
    }

    /// Whether it has what a player needs to show a picture: a keyframe, if there is video.
    pub fn has_picture(&self) -> bool {
        self.seen_keyframe || self.tracks.iter().all(|t| !t.video)
    }

    /// Processes bytes of the connection, however they are split. An error means that the framing is lost.
    pub fn interleaved(&mut self, bytes: &[u8], env: &mut Env<'_>) -> Result<(), Broken> {
        self.ended_now = 0;
        if env.totals.measuring {
            env.totals.bytes += bytes.len() as u64;
            env.totals.reads += 1;
        }
        let result = match self.messages.take() {
            Some(mut messages) => {
                let result = messages.take(bytes, self, env);
                self.messages = Some(messages);
                result
            }
            None => self.take(bytes, env),
        };
        if env.totals.measuring && self.ended_now > 1 {
            env.totals.reads_behind += 1;
        }
        result
    }

    fn take(&mut self, mut bytes: &[u8], env: &mut Env<'_>) -> Result<(), Broken> {
        if !self.carry.is_empty() {
            let mut carry = std::mem::take(&mut self.carry);
            loop {
                let need = needed(&carry, bytes.len())?;
                if carry.len() >= need {
                    break;
                }
                let taken = (need - carry.len()).min(bytes.len());
                carry.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                if carry.len() < need {
                    self.carry = carry;
                    return Ok(());
                }
            }
            // What is left of the read follows what was carried: the packet's tail, or the next one.
            self.whole(&carry, env)?;
        }
        self.whole(bytes, env)
    }

    /// Processes bytes that start at a packet, or in the rest of one.
    fn whole(&mut self, mut bytes: &[u8], env: &mut Env<'_>) -> Result<(), Broken> {
        loop {
            if self.skip > 0 {
                let count = self.skip.min(bytes.len());
                self.feed(&bytes[..count]);
                self.skip -= count;
                bytes = &bytes[count..];
                if self.skip > 0 {
                    return Ok(());
                }
                self.packet_ended(env);
            }
            let Some(&first) = bytes.first() else { return Ok(()) };
            if first != b'$' {
                // An answer, or a request from the server, which need not be answered for media to continue.
                if !first.is_ascii_uppercase() {
                    return Err(Broken::NoPacket(first));
                }
                match Message::parse(bytes)? {
                    Some((_, used)) => bytes = &bytes[used..],
                    None => {
                        self.carry = bytes.to_vec();
                        return Ok(());
                    }
                }
                continue;
            }
            let head_len = match bytes.get(..4) {
                Some(h) => usize::from(u16::from_be_bytes([h[2], h[3]])).min(HEAD_BYTES),
                None => usize::MAX,
            };
            let Some(head) = head_len.checked_add(4).and_then(|end| bytes.get(4..end)) else {
                self.carry = bytes.to_vec();
                return Ok(());
            };
            let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
            let channel = bytes[1];
            self.current = self.tracks.iter().position(|t| t.rtp_channel == channel);
            self.packet_begins(head, env);
            self.skip = len - head.len();
            bytes = &bytes[4 + head.len()..];
            if self.skip == 0 {
                self.packet_ended(env);
            }
        }
    }

    /// One RTP packet that came by itself.
    pub fn datagram(&mut self, track: usize, packet: &[u8], env: &mut Env<'_>) {
        if env.totals.measuring {
            env.totals.bytes += packet.len() as u64;
        }
        self.current = Some(track);
        let (head, rest) = packet.split_at(packet.len().min(HEAD_BYTES));
        self.packet_begins(head, env);
        self.feed(rest);
        self.packet_ended(env);
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.hashes
            && let Some(index) = self.current
        {
            self.tracks[index].hash.update(bytes);
        }
    }

    fn packet_begins(&mut self, head: &[u8], env: &mut Env<'_>) {
        let Some(index) = self.current else { return };
        let Some(payload) = nal::payload(head).filter(|_| head.len() >= 12) else {
            env.totals.malformed += u64::from(env.totals.measuring);
            self.current = None;
            return;
        };
        let marker = head[1] & 0x80 != 0;
        let seq = u16::from_be_bytes([head[2], head[3]]);
        let time = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let ssrc = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let count = u64::from(env.totals.measuring);
        let track = &mut self.tracks[index];
        env.totals.packets += count;
        let ahead = seq.wrapping_sub(track.next_seq) as i16;
        let mut gap = false;
        if !track.started || ssrc != track.ssrc || ahead.unsigned_abs() > SEQUENCE_JUMP_MAX as u16 {
            env.totals.restarts += if track.started { count } else { 0 };
            track.started = true;
            track.ssrc = ssrc;
            if track.open {
                track.damaged = true;
                self.frame_ended(index, env);
            }
        } else if ahead < 0 {
            env.totals.packets_disordered += count;
            self.current = None;
            return;
        } else if ahead > 0 {
            gap = true;
            env.totals.packets_missing += count * ahead as u64;
            env.totals.gaps += count;
        }
        let track = &mut self.tracks[index];
        track.next_seq = seq.wrapping_add(1);
        let mut gap_before = gap;
        if track.open {
            if track.time == time {
                track.damaged |= gap;
            } else {
                // The last packet with the marker is lost, or this source does not set markers; whether the start of this frame is lost
                // too is visible from its stamp.
                track.damaged |= gap;
                gap_before = false;
                self.frame_ended(index, env);
            }
        }
        let track = &mut self.tracks[index];
        if !track.open {
            track.open = true;
            track.time = time;
            track.stamp = None;
            track.keyframe = false;
            track.damaged = false;
            track.gap_before = gap_before;
            track.hash = crc32fast::Hasher::new();
        }
        if track.video && track.stamp.is_none() {
            track.stamp = stamp::find(payload);
            track.keyframe |= match track.stamp {
                Some(stamp) => stamp.keyframe(),
                None => nal::tells_keyframe(track.codec, payload),
            };
        }
        track.ending = marker || !track.video;
        if self.hashes {
            track.hash.update(head);
        }
    }

    fn packet_ended(&mut self, env: &mut Env<'_>) {
        if let Some(index) = self.current.take()
            && self.tracks[index].ending
        {
            self.frame_ended(index, env);
        }
    }

    fn frame_ended(&mut self, index: usize, env: &mut Env<'_>) {
        let track = &mut self.tracks[index];
        track.open = false;
        let totals = &mut *env.totals;
        if self.hashes
            && let Some(verify) = &mut env.verify
        {
            let key = match track.stamp {
                Some(stamp) => stamp.frame,
                None => u64::from(track.time) << 16 | u64::from(track.next_seq),
            };
            verify.frame(self.stream, index as u8, key, track.hash.clone().finalize());
        }
        if !track.video {
            track.hear(env);
            return;
        }
        self.ended_now += 1;
        // A stamped stream's frame without a stamp has lost its start; it is the one after the last.
        let number = match (track.stamp, track.last_number) {
            (Some(stamp), _) => Some(stamp.frame),
            (None, Some(last)) => {
                track.damaged = true;
                Some(last + 1)
            }
            (None, None) => None,
        };
        let mut jumped = false;
        if let (Some(number), Some(last)) = (number, track.last_number) {
            if number <= last {
                totals.frames_disordered += u64::from(totals.measuring);
            } else if number > last + 1 {
                jumped = true;
                if totals.measuring {
                    totals.frames_missing += number - last - 1;
                    let resumed =
                        if track.keyframe { &mut totals.resumed_on_keyframe } else { &mut totals.resumed_elsewhere };
                    *resumed += 1;
                }
            }
        }
        if track.stamp.is_none() || !jumped {
            track.damaged |= track.gap_before && self.seen_frame;
        }
        track.last_number = number.max(track.last_number);
        if !self.seen_frame {
            self.seen_frame = true;
            totals.began_elsewhere += u64::from(!track.keyframe);
        }
        if track.keyframe && !self.seen_keyframe {
            self.seen_keyframe = true;
            totals.first_keyframe_us.saturating_record(env.now_ns.saturating_sub(self.play_ns) / 1000);
        }
        if !totals.measuring {
            return;
        }
        self.frames += 1;
        let waited = env.now_ns.saturating_sub(self.ended_ns.replace(env.now_ns).unwrap_or(env.now_ns));
        self.longest_wait_us = self.longest_wait_us.max(waited / 1000);
        totals.frames += 1;
        if track.damaged {
            totals.frames_damaged += 1;
            return;
        }
        totals.frames_whole += 1;
        // Frames from before PLAY come from the server's store: their age says nothing about its speed.
        if let Some(stamp) = track.stamp.filter(|s| s.unix_ns >= self.play_ns) {
            totals.latency_us.saturating_record((env.now_ns.saturating_sub(stamp.unix_ns) / 1000).max(1));
        }
    }
}

/// Bytes that are needed to continue with the carried bytes. `more`: the number of bytes available after them.
fn needed(carry: &[u8], more: usize) -> Result<usize, Broken> {
    if carry[0] != b'$' {
        // An answer: complete, or everything there is.
        let complete = Message::parse(carry)?.is_some();
        return Ok(if complete { carry.len() } else { carry.len() + more.max(1) });
    }
    Ok(match carry.get(2..4) {
        Some(len) => 4 + usize::from(u16::from_be_bytes([len[0], len[1]])).min(HEAD_BYTES),
        None => 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Burst, Rtp};

    fn tracks() -> Vec<TrackInfo> {
        let track = |video, rtp| TrackInfo {
            video,
            codec: if video { Codec::H264 } else { Codec::Other },
            control: String::new(),
            client_ports: (0, 0),
            channels: (rtp, rtp + 1),
            server_ports: (0, 0),
            sdp: Vec::new(),
        };
        vec![track(true, 0), track(false, 2)]
    }

    /// Frames of which `lost(frame, packet)` packets are not there.
    fn stream(frames: u64, lost: impl Fn(u64, usize) -> bool) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut rtp = Rtp::new(96, &mut random);
        let mut out = Burst::default();
        for number in 0..frames {
            let stamp = Stamp { frame: number, unix_ns: 1_000_000, flags: u32::from(number % 10 == 0) };
            let mut sei = Vec::new();
            stamp.write_nal(stamp::H264_SEI, &mut sei);
            let mut nals = vec![sei.clone(), vec![0x41; 3000]];
            if stamp.keyframe() {
                nals = vec![vec![0x67; 12], vec![0x68; 5], sei, vec![0x65; 9000]];
            }
            let mut frame = Burst::default();
            rtp.access_unit(0, number as u32 * 3000, &nals, 1400, &mut frame);
            for (index, packet) in frame.packets().enumerate().filter(|(index, _)| !lost(number, *index)) {
                let _ = index;
                out.push(0, packet, &[]);
            }
        }
        out.bytes
    }

    fn receive(bytes: &[u8], cut: usize) -> Totals {
        let mut totals = Totals::new();
        totals.measuring = true;
        let mut receiver = Receiver::new(0, &tracks(), true, 0);
        let mut verify = Verify::default();
        for piece in bytes.chunks(cut) {
            let mut env = Env { totals: &mut totals, verify: Some(&mut verify), now_ns: 5_000_000 };
            receiver.interleaved(piece, &mut env).unwrap();
        }
        totals
    }

    #[test]
    fn a_whole_stream_is_whole_however_it_is_cut() {
        let mut bytes = stream(25, |_, _| false);
        // An answer between packets is no loss, nor is a request.
        bytes.extend_from_slice(b"RTSP/1.0 200 OK\r\nCSeq: 9\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
        bytes.extend_from_slice(b"$\x01\x00\x04abcd");
        for cut in [1, 3, 7, 64, 1000, 1404, 100_000] {
            let totals = receive(&bytes, cut);
            assert_eq!((totals.frames, totals.frames_whole), (25, 25), "cut at {cut}");
            assert_eq!((totals.packets_missing, totals.frames_missing, totals.malformed), (0, 0, 0));
            assert_eq!(
                (totals.latency_us.max(), totals.began_elsewhere),
                (totals.latency_us.value_at_quantile(0.5), 0)
            );
            assert_eq!(totals.latency_us.len(), 25);
        }
    }

    #[test]
    fn each_kind_of_loss_is_counted_as_what_it_is() {
        // The stamp's packet; the middle; the marker; the first of a keyframe; whole frames.
        type Lost = fn(u64, usize) -> bool;
        let cases: [(Lost, u64, u64); 6] = [
            (|f, p| f == 5 && p == 0, 1, 0),
            (|f, p| f == 5 && p == 2, 1, 0),
            (|f, p| f == 5 && p == 3, 1, 0),
            (|f, p| f == 10 && p == 0, 1, 0),
            (|f, _| f == 5 || f == 6, 0, 2),
            (|f, _| (5..10).contains(&f), 0, 5),
        ];
        for (index, (lost, damaged, missing)) in cases.into_iter().enumerate() {
            let totals = receive(&stream(25, lost), 999);
            assert_eq!((totals.frames_damaged, totals.frames_missing), (damaged, missing), "case {index}");
            assert_eq!(totals.frames_whole + damaged + missing, 25, "case {index}");
            assert_eq!(totals.gaps, 1, "case {index}");
            assert_eq!(totals.resumed_on_keyframe, u64::from(index == 5), "case {index}");
            assert_eq!(totals.resumed_elsewhere, u64::from(index == 4), "case {index}");
        }
    }

    #[test]
    fn a_different_byte_is_found() {
        let mut verify = Verify::default();
        let bytes = stream(12, |_, _| false);
        for player in 0..3 {
            let mut bytes = bytes.clone();
            if player == 2 {
                *bytes.last_mut().unwrap() ^= 1;
            }
            let mut totals = Totals::new();
            let mut receiver = Receiver::new(0, &tracks(), true, 0);
            for piece in bytes.chunks(1000 + player) {
                let mut env = Env { totals: &mut totals, verify: Some(&mut verify), now_ns: 0 };
                receiver.interleaved(piece, &mut env).unwrap();
            }
        }
        assert_eq!((verify.frames(), verify.compared, verify.different), (12, 24, 1));
    }

    #[test]
    fn lost_framing_is_an_error() {
        let mut totals = Totals::new();
        let mut receiver = Receiver::new(0, &tracks(), false, 0);
        let mut env = Env { totals: &mut totals, verify: None, now_ns: 0 };
        assert!(receiver.interleaved(b"\x00\x01", &mut env).is_err());
    }
}
