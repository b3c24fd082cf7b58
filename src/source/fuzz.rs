//! The bodies of the fuzz targets of the pipeline, the reordering and cameras' answers, and the checker that the pipeline's tests
//! share. Panics are findings.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use super::camera::fuzz as answers;
use super::pipeline::Pipeline;
use super::reorder::{Reorder, WAIT_MAX};
use super::stats::{Notice, SourceStats};
use crate::limits::{CHUNK_BYTES_MAX, REORDER_PACKETS_MAX, RTP_PACKET_BYTES_MAX};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::log::Log;
use crate::media::{Description, SourceTrack, StreamEvent, StreamSink, TrackId};
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

impl StreamSink for Checker {
    fn accept(&mut self, msg: StreamEvent) {
        match msg {
            StreamEvent::Described(new) => {
                if self.description.as_ref().is_none_or(|old| !old.continues_as(&new)) {
                    // Sequence numbers of new tracks start again; frame numbers do not.
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
            StreamEvent::Chunk(chunk) => {
                assert_eq!(chunk.number, self.chunks.len() as u64, "numbers are dense");
                self.check(&chunk);
                self.chunks.push(chunk);
            }
            StreamEvent::State(state) => panic!("a pipeline publishes no {state:?}"),
        }
    }
}

impl Checker {
    fn check(&mut self, chunk: &Chunk) {
        let description = self.description.as_ref().expect("a description comes first");
        let track = &description.tracks[usize::from(chunk.track.0)];
        let mut at = 0;
        for span in chunk.spans() {
            let len = usize::from(span.len);
            assert_eq!(span.offset as usize, at + 4);
            assert_eq!(chunk.bytes[at..at + 4], [b'$', chunk.channel(), (len >> 8) as u8, len as u8]);
            at += 4 + len;
        }
        assert_eq!(at, chunk.bytes.len());
        assert!(chunk.packets > 0);
        assert_eq!(chunk.spans().count(), usize::from(chunk.packets));
        assert!(chunk.bytes.len() <= CHUNK_BYTES_MAX || chunk.packets == 1);
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
    chunk.spans().map(|span| &chunk.bytes[span.offset as usize..][..usize::from(span.len)]).collect()
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
    drive(data, Instant::now(), &mut |_, _| {});
}

/// The same, twice: a pipeline that is saved and restored now and then makes what the other makes, and a log keeps the same.
pub fn saved(data: &[u8]) {
    let begin = Instant::now();
    let every = data.first().map_or(1, |first| u32::from(first % 5) + 1);
    let mut turn = 0u32;
    let one = drive(data, begin, &mut |_, _| {});
    let other = drive(data, begin, &mut |pipeline, now| {
        turn += 1;
        if turn.is_multiple_of(every) {
            *pipeline = Pipeline::restore(now, written_and_read(&pipeline.save(now)));
        }
    });
    let plain = |run: &Run| run.out.chunks.iter().map(|chunk| chunk.save(begin)).collect::<Vec<_>>();
    assert!(plain(&one) == plain(&other), "other chunks");
    assert!(one.out.chunks.iter().zip(&other.out.chunks).all(|(one, other)| one.packets == other.packets));
    assert_eq!((one.out.descriptions, &one.out.description), (other.out.descriptions, &other.out.description));
    assert_eq!((one.stats, one.notices, one.due), (other.stats, other.notices, other.due));
    let (age, bytes_max) = (Duration::from_millis(50), 100_000);
    let [mut log, mut again] = [Log::new(age, bytes_max, 1), Log::new(age, bytes_max, 1)];
    for (turn, chunk) in (0u32..).zip(one.out.chunks) {
        let now = chunk.arrival;
        if turn.is_multiple_of(7) {
            one.out.description.iter().for_each(|is| {
                log.describe(is);
                again.describe(is);
            });
        }
        for log in [&mut log, &mut again] {
            log.append(Arc::clone(&chunk));
            log.trim(now, drop);
        }
        if turn.is_multiple_of(every) {
            let state = written_and_read(&again.save(now));
            again.restore(now, state).expect("all of its chunks");
        }
        assert!(log.save(now) == again.save(now), "another log");
        assert_eq!((log.bytes(), log.head(), log.cached_start()), (again.bytes(), again.head(), again.cached_start()));
    }
}

/// State as another process reads it.
fn written_and_read<T: Serialize + DeserializeOwned>(state: &T) -> T {
    let written = serde_json::to_string(state).expect("plain data");
    serde_json::from_str(&written).expect("what was written")
}

/// What came of a run.
struct Run {
    out: Checker,
    stats: SourceStats,
    notices: Vec<Notice>,
    due: Vec<Option<Instant>>,
}

fn drive(data: &[u8], begin: Instant, between: &mut dyn FnMut(&mut Pipeline, Instant)) -> Run {
    const ENCODINGS: [&str; 12] =
        ["H264", "H265", "AV1", "VP8", "VP9", "JPEG", "H264", "H265", "MP4V-ES", "MPV", "H263", "H263-1998"];
    let mut data = data.iter().copied();
    let mut next = || data.next();
    let mut now = begin;
    let mut wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut pipeline = Pipeline::new(u64::from(next().unwrap_or_default()));
    let mut out = Checker::default();
    let (mut notices, mut due) = (Vec::new(), Vec::new());
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
                    track("video", ENCODINGS[usize::from(a) % ENCODINGS.len()], fmtp),
                    track("audio", "PCMU", None),
                    track("video", ENCODINGS[usize::from(c >> 1) % ENCODINGS.len()], None),
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
            notices.push(notice);
        }
        due.push(pipeline.deadline());
        between(&mut pipeline, now);
    }
    pipeline.disconnected(&mut out);
    Run { out, stats: pipeline.stats(), notices, due }
}

/// Packets in any order through the reordering: each comes out once, soon, and those near each other in their order.
pub fn reorder(data: &[u8]) {
    let mut now = Instant::now();
    let mut reorder = Reorder::<Instant>::default();
    let mut sequence = 0u16;
    let (mut pushed, mut out) = (0u32, Vec::new());
    let number = |packet: &[u8]| u32::from_be_bytes(packet[packet.len() - 4..].try_into().expect("4 bytes"));
    for step in data.chunks_exact(3) {
        let [op, a, b] = [step[0], step[1], step[2]];
        match op % 16 {
            0 => sequence = u16::from_be_bytes([a, b]),
            1 => now += Duration::from_micros(u64::from(a) * 200),
            2 => sequence = sequence.wrapping_add(u16::from(a)).wrapping_sub(u16::from(b)),
            3 => {
                // No RTP at all.
                let came = now;
                reorder.push(now, &vec![0x80; usize::from(a % 3)], &mut |at, _| assert_eq!(at, came));
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
        if op & 0x10 != 0 {
            reorder = Reorder::restore(now, &written_and_read(&reorder.save(now)));
        }
        reorder.push(now, &packet, &mut |at, packet| out.push((at, number(packet))));
        reorder.tick(now, &mut |at, packet| out.push((at, number(packet))));
        assert!(pushed as usize - out.len() <= REORDER_PACKETS_MAX, "more is kept than may be");
        assert!(reorder.deadline().is_none_or(|due| due > now && due <= now + WAIT_MAX));
        assert_eq!(reorder.deadline().is_none(), out.len() == pushed as usize);
    }
    reorder.tick(now + WAIT_MAX, &mut |at, packet| out.push((at, number(packet))));
    let mut numbers: Vec<u32> = out.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..pushed).collect::<Vec<_>>(), "each comes out once");
    assert!(out.iter().all(|(at, _)| *at <= now));
}
