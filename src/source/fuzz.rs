//! The bodies of the fuzz targets of the pipeline, the reordering and cameras' answers, and the checker that the pipeline's tests
//! share. Panics are findings.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};

use super::loopback::{Bridge, Ends, Way};
use super::mend;
use super::pipeline::{Pipeline, Publish, Published, SourceTrack};
use super::reorder::{Reorder, WAIT_MAX};
use crate::limits::{CAMERA_ANSWER_BYTES_MAX, CHUNK_BYTES_MAX, REORDER_PACKETS_MAX, RTP_PACKET_BYTES_MAX};
use crate::stream::chunk::{Chunk, ChunkKind, cut_runs};
use crate::stream::{Description, TrackId};
use crate::wire::rtcp;
use crate::wire::rtp::Header;

/// The newest chunk of a track.
#[derive(Clone, Copy)]
struct Newest {
    frame: u64,
    ended: bool,
    keyframe: bool,
    rtp_time: u32,
    next_seq: u16,
}

/// Asserts of every chunk what shards rely on, and keeps all of them.
#[derive(Default)]
pub struct Checker {
    /// The newest description.
    pub description: Option<std::sync::Arc<Description>>,
    /// Descriptions published.
    pub descriptions: usize,
    /// The chunks, in order.
    pub chunks: Vec<std::sync::Arc<Chunk>>,
    newest: Vec<Option<Newest>>,
}

impl Publish for Checker {
    fn publish(&mut self, msg: Published) {
        match msg {
            Published::Described(new) => {
                if self.description.as_ref().is_none_or(|old| !old.continues_as(&new)) {
                    // Sequence numbers of new tracks begin anew; frame numbers do not.
                    for (newest, _) in self.newest.iter_mut().zip(&new.tracks) {
                        if let Some(newest) = newest {
                            newest.ended = true;
                        }
                    }
                    self.newest.resize(new.tracks.len().max(self.newest.len()), None);
                    for (newest, track) in self.newest.iter_mut().zip(&new.tracks) {
                        if let Some(newest) = newest {
                            newest.next_seq = track.first_seq;
                        }
                    }
                }
                self.descriptions += 1;
                self.description = Some(new);
            }
            Published::Chunk(chunk) => {
                assert_eq!(chunk.number, self.chunks.len() as u64, "numbers are dense");
                self.check(&chunk);
                self.chunks.push(chunk);
            }
            Published::State(state) => panic!("a pipeline publishes no {state:?}"),
        }
    }
}

impl Checker {
    fn check(&mut self, chunk: &Chunk) {
        let description = self.description.as_ref().expect("a description comes first");
        let track = &description.tracks[usize::from(chunk.track.0)];
        let mut at = 0;
        for span in &chunk.packets {
            let len = usize::from(span.len);
            assert_eq!(span.offset as usize, at + 4);
            assert_eq!(chunk.bytes[at..at + 4], [b'$', chunk.channel(), (len >> 8) as u8, len as u8]);
            at += 4 + len;
        }
        assert_eq!(at, chunk.bytes.len());
        assert!(!chunk.packets.is_empty());
        assert!(chunk.bytes.len() <= CHUNK_BYTES_MAX || chunk.packets.len() == 1);
        assert_eq!(chunk.runs, cut_runs(&chunk.packets));
        let packets = packets(chunk);
        if chunk.kind == ChunkKind::Report {
            let mut parts = rtcp::parse(packets[0]).map(Result::unwrap);
            assert!(matches!(parts.next(), Some(rtcp::Packet::SenderReport { ssrc, rtp_time, .. })
                if ssrc == track.ssrc && rtp_time == chunk.rtp_time));
            assert_eq!(parts.next(), Some(rtcp::Packet::SourceDescription));
            assert!(chunk.frame_end && !chunk.keyframe);
            return;
        }
        for (index, packet) in packets.iter().enumerate() {
            let header = Header::parse(packet).expect("what is sent is RTP");
            assert_eq!(header.sequence, chunk.first_seq.wrapping_add(index as u16));
            assert_eq!((header.timestamp, header.ssrc), (chunk.rtp_time, track.ssrc));
            assert_eq!(header.payload_type, track.payload_type);
            if track.is_video() {
                assert!(!header.marker || (chunk.frame_end && index + 1 == packets.len()));
            }
            if matches!(track.encoding.as_str(), "H264" | "H265") {
                assert!(packet.len() <= RTP_PACKET_BYTES_MAX, "{} bytes", packet.len());
                assert!(!header.payload.is_empty());
            }
        }
        assert!(track.is_video() || !chunk.keyframe);
        let newest = &mut self.newest[usize::from(chunk.track.0)];
        match newest {
            None => {
                assert_eq!((chunk.frame, chunk.frame_start, chunk.first_seq), (0, true, track.first_seq));
            }
            Some(newest) => {
                let gap = chunk.first_seq.wrapping_sub(newest.next_seq);
                assert!(gap < 0x8000, "sequence numbers never go back");
                if chunk.frame_start {
                    assert_eq!(chunk.frame, newest.frame + 1);
                } else {
                    assert!(!newest.ended);
                    assert_eq!((chunk.frame, chunk.keyframe), (newest.frame, newest.keyframe));
                    assert_eq!(chunk.rtp_time, newest.rtp_time);
                }
            }
        }
        *newest = Some(Newest {
            frame: chunk.frame,
            ended: chunk.frame_end,
            keyframe: chunk.keyframe,
            rtp_time: chunk.rtp_time,
            next_seq: chunk.first_seq.wrapping_add(packets.len() as u16),
        });
    }

    /// The chunks of a track that carry media.
    pub fn media(&self, track: u8) -> impl Iterator<Item = &Chunk> {
        let wanted = move |chunk: &&Chunk| chunk.track == TrackId(track) && chunk.kind == ChunkKind::Media;
        self.chunks.iter().map(|chunk| &**chunk).filter(wanted)
    }

    /// The sender reports of a track: NTP time, RTP timestamp, packets, octets.
    pub fn reports(&self, track: u8) -> Vec<(u64, u32, u32, u32)> {
        let wanted =
            move |chunk: &&std::sync::Arc<Chunk>| chunk.track == TrackId(track) && chunk.kind == ChunkKind::Report;
        let read = |chunk: &std::sync::Arc<Chunk>| match rtcp::parse(packets(chunk)[0]).next() {
            Some(Ok(rtcp::Packet::SenderReport { ntp, rtp_time, packets, octets, .. })) => {
                (ntp, rtp_time, packets, octets)
            }
            other => panic!("{other:?} instead of a sender report"),
        };
        self.chunks.iter().filter(wanted).map(read).collect()
    }
}

/// The packets of a chunk.
pub fn packets(chunk: &Chunk) -> Vec<&[u8]> {
    chunk.packets.iter().map(|span| &chunk.bytes[span.offset as usize..][..usize::from(span.len)]).collect()
}

/// A track as a source would tell of it.
pub fn track(media: &str, encoding: &str, fmtp: Option<&str>) -> SourceTrack {
    SourceTrack {
        media: media.to_owned(),
        encoding: encoding.to_owned(),
        payload_type: if media == "video" { 96 } else { 97 },
        clock_rate: if media == "audio" { 8_000 } else { 90_000 },
        channels: None,
        fmtp: fmtp.map(str::to_owned),
        attributes: Vec::new(),
    }
}

/// Runs a pipeline through what `data` says: every kind of call, in any order, with any packets.
pub fn pipeline(data: &[u8]) {
    const ENCODINGS: [&str; 8] = ["H264", "H265", "AV1", "VP8", "VP9", "JPEG", "H264", "H265"];
    let mut data = data.iter().copied();
    let mut next = || data.next();
    let mut now = Instant::now();
    let mut wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let Some(seed) = next() else { return };
    let mut pipeline = Pipeline::new(u64::from(seed));
    let mut out = Checker::default();
    let mut clocks = [(0u16, 0u32); 3];
    while let Some(op) = next() {
        let [a, b, c] = [next(), next(), next()].map(Option::unwrap_or_default);
        let passed = Duration::from_micros(u64::from(b) * 40);
        now += passed;
        wall += passed;
        let id = usize::from(a) % 3;
        match op % 16 {
            0 => {
                let fmtp =
                    if c & 1 == 0 { None } else { Some("sprop-max-don-diff=1;sprop-parameter-sets=Z2QADQ==,aO4=") };
                let tracks = vec![
                    track("video", ENCODINGS[usize::from(a & 7)], fmtp),
                    track("audio", "PCMU", None),
                    track("video", ENCODINGS[usize::from(c >> 1 & 7)], None),
                ];
                pipeline.connected(now, tracks, &mut out);
            }
            1 => pipeline.disconnected(&mut out),
            2 => pipeline.drained(now, &mut out),
            3 => {
                let pause = Duration::from_millis(u64::from(c) * 100);
                now += pause;
                wall += pause;
                pipeline.tick(now, wall, &mut out);
            }
            4 => {
                let rtp_time = clocks[id].1.wrapping_add(u32::from(c) * 9_000);
                let ntp = u64::from(c) << 56;
                pipeline.sender_report(TrackId(id as u8), now, wall, ntp, rtp_time, &mut out);
            }
            5 => clocks[id].0 = clocks[id].0.wrapping_add(u16::from(b) << 8 | u16::from(c)),
            6 => clocks[id].1 = clocks[id].1.wrapping_add(u32::from(b) << 24 | u32::from(c) << 10),
            _ => {
                let (sequence, timestamp) = &mut clocks[id];
                if op & 0x10 != 0 {
                    *timestamp = timestamp.wrapping_add(3_000);
                }
                let mut packet = Header::write(op & 0x20 != 0, 96 + (id == 1) as u8, *sequence, *timestamp, 7).to_vec();
                *sequence = sequence.wrapping_add(1);
                if op & 0x40 != 0 {
                    packet[0] ^= c;
                }
                let len = usize::from(b) & 0x1f;
                packet.extend((0..len).map_while(|_| next()));
                if op & 0x80 != 0 {
                    packet.resize(packet.len() + usize::from(c) * 128, c);
                }
                pipeline.packet(TrackId(a % 4), now, &packet, &mut out);
            }
        }
        while let Some(notice) = pipeline.poll_notice() {
            assert!(!notice.to_string().is_empty());
        }
        pipeline.deadline();
    }
    pipeline.disconnected(&mut out);
}

/// Packets in any order through the reordering: each comes out once, soon, and those near each other in their order.
pub fn reorder(data: &[u8]) {
    let mut now = Instant::now();
    let mut reorder = Reorder::default();
    let mut sequence = 0u16;
    let (mut pushed, mut out) = (0u32, Vec::new());
    let number = |packet: &Bytes| u32::from_be_bytes(packet[packet.len() - 4..].try_into().expect("4 bytes"));
    for step in data.chunks_exact(3) {
        let [op, a, b] = [step[0], step[1], step[2]];
        match op % 16 {
            0 => sequence = u16::from_be_bytes([a, b]),
            1 => now += Duration::from_micros(u64::from(a) * 200),
            2 => sequence = sequence.wrapping_add(u16::from(a)).wrapping_sub(u16::from(b)),
            3 => {
                // No RTP at all.
                let came = now;
                reorder.push(now, Bytes::from(vec![0x80; usize::from(a % 3)]), &mut |at, _| assert_eq!(at, came));
                continue;
            }
            _ => {}
        }
        let at = sequence.wrapping_add(u16::from(a % 8));
        sequence = sequence.wrapping_add(1);
        let mut packet = vec![0x80, 96];
        packet.extend(at.to_be_bytes());
        packet.extend(u32::to_be_bytes(pushed));
        pushed += 1;
        reorder.push(now, Bytes::from(packet), &mut |at, packet| out.push((at, number(&packet))));
        reorder.tick(now, &mut |at, packet| out.push((at, number(&packet))));
        assert!(pushed as usize - out.len() <= REORDER_PACKETS_MAX, "more is kept than may be");
        assert!(reorder.deadline().is_none_or(|due| due > now && due <= now + WAIT_MAX));
        assert_eq!(reorder.deadline().is_none(), out.len() == pushed as usize);
    }
    reorder.tick(now + WAIT_MAX, &mut |at, packet| out.push((at, number(&packet))));
    let mut numbers: Vec<u32> = out.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..pushed).collect::<Vec<_>>(), "each comes out once");
    assert!(out.iter().all(|(at, _)| *at <= now));
}

/// What the RTSP library asks a camera before its media.
const ASKED: &[u8] = b"OPTIONS rtsp://c/ RTSP/1.0\r\nCSeq: 1\r\n\r\nDESCRIBE rtsp://c/ RTSP/1.0\r\nCSeq: 2\r\n\r\n\
    SETUP rtsp://c/0 RTSP/1.0\r\nCSeq: 3\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n\
    SETUP rtsp://c/1 RTSP/1.0\r\nCSeq: 4\r\nTransport: RTP/AVP/TCP;unicast;interleaved=2-3\r\n\r\n\
    PLAY rtsp://c/ RTSP/1.0\r\nCSeq: 5\r\n\r\n";

/// Whatever a camera says, in pieces: the first byte has their length, and what the camera needs done to its answers. One that
/// needs nothing is heard as it is, and one that is put in order has a head of one form.
pub fn answers(data: &[u8]) {
    let Some((&first, said)) = data.split_first() else { return };
    let way = Way { udp: false, without_ssrc: first & 1 != 0, mended: first & 2 != 0 };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut bridge = Bridge::new(Ends { local: here, camera: here }, way, Arc::default());
    bridge.asked(&mut ASKED.into(), &mut Vec::new()).expect("no sockets are made");
    let (mut answered, mut out) = (BytesMut::new(), Vec::new());
    for piece in said.chunks(usize::from(first >> 2) + 1) {
        answered.extend_from_slice(piece);
        bridge.answered(&mut answered, &mut out);
        assert!(answered.len() <= CAMERA_ANSWER_BYTES_MAX, "what is not whole is not kept for ever");
    }
    if way == Way::default() {
        out.extend_from_slice(&answered);
        assert_eq!(out, said);
    }
    if let Some(end) = mend::head_end(said) {
        let (out, head) = mend::answer(&said[..end], &said[end..], "1", true);
        let text = std::str::from_utf8(&out[..head]).expect("text");
        assert!(text.starts_with("RTSP/1.0 ") && text.ends_with("\r\n\r\n"), "{text:?}");
        assert_eq!((text.matches("\r\n\r\n").count(), text.matches("\nCSeq: 1\r\n").count()), (1, 1), "{text:?}");
    }
}
