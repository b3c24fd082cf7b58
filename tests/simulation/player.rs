//! A simulated player that checks every byte it receives.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtsprelay::egress::Token;
use rtsprelay::egress::sim::Reading;
use rtsprelay::wire::rtcp::{self, SenderInfo};

use super::camera::{Camera, is_after, off_line};

/// Magic, frame number, packet number, packets of the frame, keyframe: the contents of each simulated packet.
const LABEL_BYTES: usize = 8 + 4 + 4 + 1;
/// The RTP header, and the bytes before the label by which the relay recognizes keyframes.
const HEADER_BYTES: usize = 12 + 2;

/// By how much a returning camera may report an earlier time than our clock, in NTP format: it drifts by up to 100 ms, which is
/// passed on, and its timestamps continue from when its packets arrived, some of which were late.
const DRIFT_NTP: u64 = (1 << 32) / 4;

/// What a client has seen of one track.
#[derive(Default, Debug)]
pub struct Seen {
    /// The incomplete frame, and the packet that is expected next.
    open: Option<(u64, u32)>,
    pub last: Option<u64>,
    frames: u64,
    pub gaps: u64,
    /// The newest frame that it missed before one that it received.
    pub missed: Option<u64>,
    last_seq: Option<u16>,
    /// When it was last sent anything on the track.
    pub heard: Option<Instant>,
    /// It has just started to play, and gets the newest report first, and then possibly older ones with the media.
    begins: bool,
    /// The index of the last report from the pipeline that it was sent.
    told: Option<usize>,
    /// The NTP time of the newest report, and of the newest one during an outage.
    newest: Option<u64>,
    pub of_outage: Option<u64>,
}

impl Seen {
    /// Its requests to play.
    pub fn begin(&mut self) {
        self.begins = true;
        self.told = None;
        self.of_outage = None;
    }
}

/// A simulated player.
#[derive(Debug)]
pub struct Client {
    pub name: u64,
    pub token: Token,
    pub reading: Reading,
    pub since: Instant,
    pub buffer: Vec<u8>,
    /// The track of each channel.
    pub channels: Vec<(u8, usize)>,
    pub wants: [bool; 2],
    pub seen: [Seen; 2],
    pub session: Option<String>,
    pub setups: Vec<usize>,
    pub playing: bool,
    pub paused: bool,
    /// It has paused, so it may miss recent audio.
    pub has_paused: bool,
    pub cseq: u32,
    pub udp: Option<SocketAddr>,
    /// Reports during outages.
    pub reports: u64,
}

impl Client {
    pub fn request(&mut self, method: &str, path: &str, headers: &str) -> String {
        self.cseq += 1;
        if method == "PLAY" {
            self.seen.iter_mut().for_each(Seen::begin);
        }
        let session = self.session.as_ref().map(|id| format!("Session: {id}\r\n")).unwrap_or_default();
        format!("{method} rtsp://127.0.0.1/cam{path} RTSP/1.0\r\nCSeq: {}\r\n{session}{headers}\r\n", self.cseq)
    }

    /// Receives and checks bytes; returns the RTSP responses among them.
    pub fn take(&mut self, bytes: Vec<u8>, now: Instant, camera: &Camera) -> Vec<String> {
        // Most of the time nothing is left over, and nothing is copied.
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            buffer = bytes;
        } else {
            buffer.extend_from_slice(&bytes);
        }
        let mut answers = Vec::new();
        let mut at = 0;
        while let Some(len) = self.take_one(&buffer[at..], now, camera, &mut answers) {
            at += len;
        }
        buffer.drain(..at);
        self.buffer = buffer;
        answers
    }

    /// Takes one packet or response; returns its size if it is complete.
    fn take_one(&mut self, rest: &[u8], now: Instant, camera: &Camera, answers: &mut Vec<String>) -> Option<usize> {
        let name = self.name;
        if *rest.first()? == b'$' {
            let head: &[u8; 4] = rest.first_chunk()?;
            let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let packet = rest.get(4..4 + len)?;
            let Some((_, track)) = self.channels.iter().find(|(channel, _)| *channel == head[1]) else {
                panic!("client {name}: channel {} was never set up", head[1]);
            };
            assert!(self.playing, "client {name}: media before the answer to PLAY");
            self.packet(*track, packet, now, camera);
            return Some(4 + len);
        }
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(rest[..end].to_vec()).expect("an answer is text");
        assert!(head.starts_with("RTSP/1.0 200"), "client {name}: {head}");
        assert!(!head.contains("Content-Length"), "no answer here has a body");
        self.playing |= head.contains("RTP-Info");
        answers.push(head);
        Some(end)
    }

    pub fn packet(&mut self, track: usize, packet: &[u8], now: Instant, camera: &Camera) {
        self.seen[track].heard = Some(now);
        if (200..=204).contains(&packet[1]) {
            return self.rtcp(track, packet, now, camera);
        }
        let name = self.name;
        assert!(packet.len() >= HEADER_BYTES + LABEL_BYTES, "client {name}: a short packet");
        assert_eq!(usize::from((packet[1] & 0x7f) - 96), track, "client {name}: a packet on the wrong channel");
        let seq = u16::from_be_bytes([packet[2], packet[3]]);
        let label = &packet[HEADER_BYTES..];
        let frame = u64::from_be_bytes(label[..8].try_into().expect("8 bytes"));
        let index = u32::from_be_bytes(label[8..12].try_into().expect("4 bytes"));
        let total = u32::from_be_bytes(label[12..16].try_into().expect("4 bytes"));
        let keyframe = label[16] == 1;
        let seen = &mut self.seen[track];
        match seen.open {
            Some((open, next)) => {
                assert_eq!((frame, index), (open, next), "client {name}: a torn frame on track {track}");
            }
            None => {
                assert_eq!(index, 0, "client {name}: frame {frame} of track {track} begins in its middle");
                if let Some(last) = seen.last {
                    assert!(frame > last, "client {name}: frame {frame} after {last} on track {track}");
                }
                let follows = seen.last.is_some_and(|last| frame == last + 1);
                if !follows {
                    seen.gaps += u64::from(seen.last.is_some());
                    seen.missed = seen.last.map(|_| frame - 1);
                    assert!(track == 1 || keyframe, "client {name}: came back on frame {frame}, no keyframe");
                } else if let Some(last_seq) = seen.last_seq {
                    assert_eq!(seq, last_seq.wrapping_add(1), "client {name}: a sequence gap without a missing frame");
                }
            }
        }
        seen.last_seq = Some(seq);
        if index + 1 == total {
            seen.open = None;
            seen.last = Some(frame);
            seen.frames += 1;
        } else {
            seen.open = Some((frame, index + 1));
        }
    }

    /// A report, or a BYE at the end. A report comes from the pipeline, or extrapolates one of the pipeline's.
    fn rtcp(&mut self, track: usize, packet: &[u8], now: Instant, camera: &Camera) {
        let name = self.name;
        assert!(rtcp::parse(packet).all(|part| part.is_ok()), "client {name}: a report in pieces");
        let Some(report) = SenderInfo::of(packet) else { return };
        let told = &camera.told[track];
        let reads = self.reading == Reading::AtOnce && self.since + Duration::from_secs(1) < now;
        let seen = &mut self.seen[track];
        if let Some(place) = told.iter().rposition(|told| *told == report) {
            let after = seen.told.is_none_or(|before| before < place);
            assert!(after, "client {name}: the pipeline's report {place} of track {track} after {:?}", seen.told);
            let after = seen.of_outage.is_none_or(|before| is_after(report.ntp, before.wrapping_sub(DRIFT_NTP)));
            assert!(after, "client {name}: {report:?} of track {track} after {:?} in an outage", seen.of_outage);
            if !std::mem::take(&mut seen.begins) {
                seen.told = Some(place);
            }
        } else {
            // A client that reads is sent a report while it is extrapolated from the pipeline's newest.
            let from = if reads { told.len().saturating_sub(1) } else { 0 };
            let goes_on =
                |told: &SenderInfo| off_line(track, told, &report).abs() <= 1 && told.packets <= report.packets;
            assert!(told[from..].iter().any(goes_on), "client {name}: {report:?} of track {track} is on no line");
            let after = seen.newest.is_none_or(|before| is_after(report.ntp, before));
            assert!(after, "client {name}: {report:?} of track {track} in an outage after {:?}", seen.newest);
            seen.of_outage = Some(report.ntp);
            self.reports += 1;
        }
        if seen.newest.is_none_or(|newest| is_after(report.ntp, newest)) {
            seen.newest = Some(report.ntp);
        }
    }
}
