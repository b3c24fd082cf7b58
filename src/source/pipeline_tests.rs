//! The pipeline's output for given input.

use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::fuzz::{self, Checker, packets, track};
use super::pipeline::Pipeline;
use super::stats::Notice;
use crate::media::chunk::Chunk;
use crate::media::rendering::Datagrams;
use crate::media::{SourceTrack, TrackId};
use crate::wire::rtp::Header;

mod clocks;

const SPS: &[u8] = &[0x67, 0x64, 0x00, 0x0d, 0xac, 0xd9, 0x41, 0x41];
const PPS: &[u8] = &[0x68, 0xeb, 0xe3, 0xcb];
const IDR: &[u8] = &[0x65, 0x88, 0x84, 0x00, 0x33];
const P: &[u8] = &[0x41, 0x9a, 0x24, 0x6c, 0x43];
const AUD: &[u8] = &[0x09, 0xf0];
const SEI: &[u8] = &[0x06, 0x05, 0x01, 0x00, 0x80];
const SPROP: &str = "packetization-mode=1; sprop-parameter-sets=Z2QADazZQUE=,aOvjyw==";

/// A camera's side of a stream with video on track 0 and possibly audio on track 1.
struct Rig {
    pipeline: Pipeline,
    out: Checker,
    now: Instant,
    wall: SystemTime,
    seq: [u16; 2],
    time: [u32; 2],
    ssrc: u32,
}

impl Rig {
    fn new(tracks: Vec<SourceTrack>) -> Rig {
        let mut rig = Rig {
            pipeline: Pipeline::new(1),
            out: Checker::default(),
            now: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            seq: [65_530, 100],
            time: [u32::MAX - 5_000, 77],
            ssrc: 7,
        };
        rig.connect(tracks);
        rig
    }

    fn h264(fmtp: Option<&str>) -> Rig {
        Rig::new(vec![track("video", "H264", fmtp)])
    }

    fn connect(&mut self, tracks: Vec<SourceTrack>) -> Vec<TrackId> {
        self.pipeline.connected(self.now, tracks, &mut self.out)
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.wall += Duration::from_millis(ms);
    }

    fn send(&mut self, track: u8, marker: bool, payload: &[u8]) {
        let index = usize::from(track);
        let mut packet = Header::write(marker, 96 + track, self.seq[index], self.time[index], self.ssrc).to_vec();
        packet.extend_from_slice(payload);
        self.seq[index] = self.seq[index].wrapping_add(1);
        self.pipeline.packet(TrackId(track), self.now, &packet, &mut self.out);
    }

    /// A video frame, its last packet marked, 40 ms after the previous one.
    fn frame(&mut self, payloads: &[&[u8]]) {
        for (index, payload) in payloads.iter().enumerate() {
            self.send(0, index + 1 == payloads.len(), payload);
        }
        self.wait(40);
        self.time[0] = self.time[0].wrapping_add(3_600);
    }

    fn chunks(&self) -> Vec<&Chunk> {
        self.out.media(0).collect()
    }

    fn notices(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.pipeline.poll_notice()).collect()
    }

    fn fmtp(&self) -> String {
        self.out.description.as_ref().unwrap().tracks[0].fmtp.clone().unwrap_or_default()
    }
}

fn payloads(chunk: &Chunk) -> Vec<&[u8]> {
    packets(chunk).into_iter().map(|packet| &packet[12..]).collect()
}

fn markers(chunk: &Chunk) -> Vec<bool> {
    packets(chunk).into_iter().map(|packet| packet[1] & 0x80 != 0).collect()
}

#[test]
fn a_frame_becomes_a_chunk_with_its_kind() {
    let mut rig = Rig::h264(Some(SPROP));
    rig.frame(&[SPS, PPS, IDR]);
    rig.frame(&[P]);
    rig.frame(&[P, P]);
    let got: Vec<_> = rig.chunks().iter().map(|c| (c.frame, c.frame_start, c.frame_end, c.keyframe)).collect();
    assert_eq!(got, [(0, true, true, true), (1, true, true, false), (2, true, true, false)]);
    assert_eq!(payloads(rig.chunks()[0]), [SPS, PPS, IDR]);
    assert_eq!(markers(rig.chunks()[2]), [false, true]);
    let stats = rig.pipeline.stats();
    assert_eq!((stats.tracks[0].frames, stats.tracks[0].keyframes, stats.tracks[0].packets), (3, 1, 6));
    assert_eq!(rig.out.descriptions, 1);
    // The timestamps keep the camera's increments across its own wrap.
    let steps: Vec<_> = rig.chunks().windows(2).map(|w| w[1].rtp_time.wrapping_sub(w[0].rtp_time)).collect();
    assert_eq!(steps, [3_600, 3_600]);
}

#[test]
fn parameter_sets_that_a_keyframe_lacks_are_put_before_it() {
    let mut rig = Rig::h264(Some(SPROP));
    rig.frame(&[AUD, SEI, IDR]);
    assert_eq!(payloads(rig.chunks()[0]), [AUD, SEI, SPS, PPS, IDR]);
    // Those that are present are not duplicated, and the latest are used.
    let other = [0x68, 0xeb, 0xe3, 0xff];
    rig.frame(&[&other, IDR]);
    assert_eq!(payloads(rig.chunks()[1]), [&other[..], SPS, IDR]);
    rig.frame(&[P]);
    rig.frame(&[IDR, IDR]);
    assert_eq!(payloads(rig.chunks()[3]), [SPS, &other, IDR, IDR]);
    assert_eq!(rig.pipeline.stats().inserted, 5);
    // Also within an aggregate.
    let mut aggregate = vec![0x78];
    for nal in [SPS, PPS, IDR] {
        aggregate.extend_from_slice(&(nal.len() as u16).to_be_bytes());
        aggregate.extend_from_slice(nal);
    }
    rig.frame(&[&aggregate]);
    assert_eq!(payloads(rig.chunks()[4]), [&aggregate]);
}

#[test]
fn a_keyframe_without_any_parameter_sets_is_still_a_start() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    assert!(rig.chunks()[0].starts_keyframe());
    assert_eq!(payloads(rig.chunks()[0]), [IDR]);
}

#[test]
fn parameter_sets_of_the_stream_reach_the_description_before_their_keyframe() {
    let mut rig = Rig::h264(None);
    let before = rig.out.description.clone().unwrap();
    rig.frame(&[SPS, PPS, IDR]);
    assert_eq!(rig.fmtp(), "packetization-mode=1; profile-level-id=64000D; sprop-parameter-sets=Z2QADazZQUE=,aOvjyw==");
    assert!(before.continues_as(rig.out.description.as_ref().unwrap()));
    assert_eq!(rig.out.descriptions, 2);
    rig.frame(&[SPS, PPS, IDR]);
    assert_eq!(rig.out.descriptions, 2);
    rig.frame(&[SPS, &[0x68, 0xeb, 0x00], IDR]);
    assert_eq!(rig.out.descriptions, 3);
    assert!(rig.fmtp().ends_with("Z2QADazZQUE=,aOs="), "{}", rig.fmtp());
}

#[test]
fn a_marker_on_parameter_sets_does_not_end_the_frame() {
    let mut rig = Rig::h264(None);
    for _ in 0..5 {
        for payload in [SPS, PPS, SEI, IDR] {
            rig.send(0, true, payload);
        }
        rig.frame(&[]);
    }
    assert_eq!(rig.chunks().len(), 5);
    for chunk in rig.chunks() {
        assert!(chunk.starts_keyframe() && chunk.frame_end);
        assert_eq!(markers(chunk), [false, false, false, true]);
    }
    assert_eq!(rig.notices(), []);
}

#[test]
fn frames_without_markers_end_at_the_next_timestamp_and_get_one() {
    let mut rig = Rig::h264(None);
    for payload in [IDR, P, P] {
        rig.send(0, false, payload);
        rig.frame(&[]);
    }
    assert_eq!(rig.chunks().len(), 2);
    assert!(rig.chunks().iter().all(|chunk| chunk.frame_end && markers(chunk) == [true]));
}

#[test]
fn markers_on_every_slice_are_found_out() {
    let mut rig = Rig::h264(None);
    let second: &[u8] = &[0x65, 0x10, 0x84];
    for _ in 0..6 {
        rig.send(0, true, IDR);
        rig.send(0, true, second);
        rig.frame(&[]);
    }
    rig.frame(&[IDR]);
    let shape: Vec<_> = rig.chunks().iter().map(|c| (c.packets, c.keyframe)).collect();
    // Three frames are split, and no client may start in their second half; then the pattern is known.
    assert_eq!(shape[..6], [(1, true), (1, false), (1, true), (1, false), (1, true), (1, false)]);
    assert_eq!(shape[6..], [(2, true), (2, true), (2, true)]);
    assert_eq!(rig.notices(), [Notice::MarkerWrong { track: TrackId(0) }]);
}

#[test]
fn oversize_packets_are_cut_and_numbered_on() {
    let mut rig = Rig::h264(Some(SPROP));
    let big: Vec<u8> = IDR.iter().copied().chain((0..4_000).map(|i| i as u8 | 1)).collect();
    rig.frame(&[SPS, PPS, &big]);
    rig.frame(&[P]);
    let chunks = rig.chunks();
    assert_eq!(chunks[0].packets, 5);
    assert_eq!(markers(chunks[0]), [false, false, false, false, true]);
    assert_eq!(chunks[1].first_seq, chunks[0].first_seq.wrapping_add(5));
    let parts = payloads(chunks[0]);
    assert_eq!([parts[2][0], parts[2][1], parts[3][1], parts[4][1]], [0x7c, 0x85, 0x05, 0x45]);
    let whole: Vec<u8> = [0x65].into_iter().chain(parts[2..].iter().flat_map(|part| part[2..].to_vec())).collect();
    assert_eq!(whole, big);
    assert_eq!(rig.pipeline.stats().fragmented, 1);
}

#[test]
fn a_packet_of_thousands_of_units_keeps_nobody_waiting() {
    let mut rig = Rig::h264(Some(SPROP));
    let units = |nal: &[u8]| -> Vec<u8> { [&[0, nal.len() as u8], nal].concat().repeat(6_000) };
    let aggregate = [&[0x78][..], &units(&[0x68, 0xeb, 0xe3, 0xcb])].concat();
    rig.frame(&[SPS, PPS, &aggregate, IDR]);
    rig.frame(&[P]);
    let chunks = rig.chunks();
    assert_eq!(chunks[0].packets, 2 + 512 + 1);
    assert_eq!(rig.pipeline.stats().oversize, 1);
    assert_eq!(chunks[1].first_seq, chunks[0].first_seq.wrapping_add(515));
}

#[test]
fn packets_that_fill_a_datagram_pass_unchanged_and_stay_one_run() {
    let mut rig = Rig::h264(Some(SPROP));
    let full = |first: &[u8]| -> Vec<u8> { first.iter().copied().chain([0x55; 1_472]).take(1_472 - 12).collect() };
    let (start, middle) = (full(&[0x7c, 0x85, 0x88]), full(&[0x7c, 0x05]));
    rig.frame(&[SPS, PPS, &start, &middle, &middle, &[0x7c, 0x45, 9]]);
    let chunk = rig.chunks()[0];
    assert_eq!(payloads(chunk)[2..], [&start[..], &middle, &middle, &[0x7c, 0x45, 9]]);
    let runs = Datagrams::of(chunk, chunk.bytes.clone().into()).runs;
    let runs: Vec<_> = runs.iter().map(|run| (run.count, run.segment)).collect();
    assert_eq!(runs.last(), Some(&(4, 1_472)));
    assert_eq!(rig.pipeline.stats().fragmented, 0);
    // With one more byte, it is split into packets that also fit IPv6.
    let larger: Vec<u8> = full(&[0x41, 0x9a]).into_iter().chain([0x55]).collect();
    rig.frame(&[&larger]);
    let sizes: Vec<_> = packets(rig.chunks()[1]).iter().map(|packet| packet.len()).collect();
    assert_eq!((sizes, rig.pipeline.stats().fragmented), (vec![1_452, 36], 1));
}

#[test]
fn a_byte_stream_in_a_packet_becomes_nal_units() {
    let mut rig = Rig::h264(None);
    let mut stream = Vec::new();
    for nal in [SPS, PPS, IDR] {
        stream.extend_from_slice(&[0, 0, 0, 1]);
        stream.extend_from_slice(nal);
    }
    rig.frame(&[&stream]);
    assert_eq!(payloads(rig.chunks()[0]), [SPS, PPS, IDR]);
    rig.frame(&[&stream[4..]]);
    assert_eq!(payloads(rig.chunks()[1]), [SPS, PPS, IDR]);
    assert!(rig.fmtp().ends_with("Z2QADazZQUE=,aOvjyw=="));
}

#[test]
fn empty_fragments_pass_their_flags_on() {
    let mut rig = Rig::h264(Some(SPROP));
    rig.frame(&[SPS, PPS, &[0x7c, 0x85], &[0x7c, 0x05, 0x88, 1], &[0x7c, 0x05], &[0x7c, 0x05, 2], &[0x7c, 0x45]]);
    rig.frame(&[&[], P]);
    let chunks = rig.chunks();
    assert!(chunks[0].starts_keyframe());
    assert_eq!(payloads(chunks[0])[2..], [&[0x7c, 0x85, 0x88, 1][..], &[0x7c, 0x45, 2]]);
    assert_eq!(markers(chunks[0]), [false, false, false, true]);
    assert_eq!(payloads(chunks[1]), [P]);
    assert_eq!(rig.pipeline.stats().empty, 4);
    assert_eq!(rig.pipeline.stats().lost, 0);
}

#[test]
fn a_gap_is_passed_on_and_parts_chunks() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    rig.send(0, false, P);
    rig.seq[0] = rig.seq[0].wrapping_add(3);
    rig.send(0, true, P);
    rig.frame(&[]);
    let chunks = rig.chunks();
    let got: Vec<_> = chunks.iter().map(|c| (c.frame, c.frame_start, c.frame_end)).collect();
    assert_eq!(got, [(0, true, true), (1, true, false), (1, false, true)]);
    assert_eq!(chunks[2].first_seq, chunks[1].first_seq.wrapping_add(4));
    assert_eq!(rig.pipeline.stats().lost, 3);
    assert_eq!(rig.pipeline.stats().tracks[0].lost, 3);
}

#[test]
fn loss_is_told_at_once_and_then_once_a_minute() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    let mut told = Vec::new();
    for _ in 0..3 {
        rig.seq[0] = rig.seq[0].wrapping_add(2);
        rig.frame(&[P]);
        told.push(rig.notices());
    }
    assert_eq!(told, [vec![Notice::Lost { packets: 2 }], vec![], vec![]]);
    rig.wait(1_000 * crate::limits::TOLD_EVERY_S);
    rig.seq[0] = rig.seq[0].wrapping_add(1);
    rig.frame(&[IDR]);
    assert_eq!(rig.notices(), [Notice::Lost { packets: 5 }]);
}

#[test]
fn duplicates_are_dropped_and_a_sequence_may_begin_again() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    rig.seq[0] = rig.seq[0].wrapping_sub(1);
    rig.frame(&[P]);
    assert_eq!((rig.chunks().len(), rig.pipeline.stats().late), (1, 1));
    // After it, a keyframe must come first.
    rig.seq[0] = 20_000;
    rig.frame(&[IDR]);
    assert_eq!(rig.chunks()[1].first_seq, rig.chunks()[0].first_seq.wrapping_add(1));
    assert_eq!((rig.pipeline.stats().restarts, rig.pipeline.stats().lost), (1, 0));
    // A new beginning shortly after is distinguished from duplicates because it continues.
    rig.seq[0] = 19_990;
    for _ in 0..8 {
        rig.frame(&[IDR]);
    }
    assert_eq!(rig.chunks().len(), 2 + 4);
    assert_eq!((rig.pipeline.stats().restarts, rig.pipeline.stats().late), (2, 5));
}

#[test]
fn a_large_frame_goes_out_in_parts_of_one_kind() {
    let mut rig = Rig::h264(Some(SPROP));
    let slice = |nal: &[u8]| -> Vec<u8> { nal.iter().copied().chain([0x55; 1_300]).collect() };
    rig.send(0, false, SPS);
    for _ in 0..60 {
        rig.send(0, false, &slice(IDR));
    }
    assert_eq!(rig.chunks().len(), 1);
    assert!(rig.chunks()[0].bytes.len() > 60_000);
    // Less than 16 KiB remain open; more is sent after 2 ms without further data.
    rig.pipeline.drained(rig.now + Duration::from_millis(5), &mut rig.out);
    assert!(rig.chunks().len() == 1 || rig.chunks()[1].bytes.len() >= 16 * 1024);
    for _ in 0..20 {
        rig.send(0, false, &slice(IDR));
    }
    rig.pipeline.drained(rig.now, &mut rig.out);
    let deadline = rig.pipeline.deadline().unwrap();
    assert_eq!(deadline, rig.now + Duration::from_millis(2));
    let before = rig.chunks().len();
    rig.pipeline.tick(deadline - Duration::from_micros(1), rig.wall, &mut rig.out);
    assert_eq!(rig.chunks().len(), before);
    rig.pipeline.tick(deadline, rig.wall, &mut rig.out);
    assert_eq!(rig.chunks().len(), before + 1);
    rig.send(0, true, &slice(IDR));
    assert!(rig.chunks().iter().all(|chunk| chunk.keyframe && chunk.frame == 0));
    assert!(rig.chunks().last().unwrap().frame_end);
}

#[test]
fn a_keyframe_recognised_after_its_first_chunk_is_no_start() {
    let mut rig = Rig::h264(None);
    let slice = |nal: &[u8]| -> Vec<u8> { nal.iter().copied().chain([0x55; 1_300]).collect() };
    for _ in 0..60 {
        rig.send(0, false, &slice(P));
    }
    rig.send(0, true, IDR);
    assert_eq!(rig.chunks().len(), 2);
    assert!(rig.chunks().iter().all(|chunk| !chunk.keyframe));
}

#[test]
fn sound_goes_out_packet_by_packet_as_it_is() {
    let mut rig = Rig::new(vec![track("video", "H264", None), track("audio", "PCMU", None)]);
    rig.send(0, false, IDR);
    rig.send(1, true, &[1; 160]);
    rig.time[1] += 160;
    rig.send(1, false, &[2; 160]);
    rig.send(0, true, P);
    let order: Vec<_> = rig.out.chunks.iter().map(|chunk| (chunk.track.0, chunk.frame)).collect();
    assert_eq!(order, [(1, 0), (1, 1), (0, 0)]);
    let sound: Vec<_> =
        rig.out.media(1).map(|chunk| (markers(chunk)[0], chunk.frame_start && chunk.frame_end)).collect();
    assert_eq!(sound, [(true, true), (false, true)]);
}

#[test]
fn other_video_is_passed_on_whole() {
    let mut rig = Rig::new(vec![track("video", "JPEG", None)]);
    let mut packet = Header::write(true, 96, 1, 2, 7).to_vec();
    // A contributing source, an extension and padding remain.
    packet[0] = 0x80 | 0x20 | 0x10 | 1;
    packet.extend_from_slice(&[9, 9, 9, 9, 0xbe, 0xde, 0, 1, 1, 2, 3, 4]);
    packet.extend_from_slice(&[7; 3_000]);
    packet.extend_from_slice(&[0, 2]);
    rig.pipeline.packet(TrackId(0), rig.now, &packet, &mut rig.out);
    let chunk = rig.chunks()[0];
    assert!(chunk.starts_keyframe());
    assert_eq!(packets(chunk)[0][0], packet[0]);
    assert_eq!(packets(chunk)[0][12..], packet[12..]);
}

#[test]
fn a_track_without_keyframes_starts_anywhere_after_ten_seconds() {
    let mut rig = Rig::h264(None);
    for _ in 0..250 {
        rig.frame(&[P]);
    }
    assert!(rig.chunks().iter().all(|chunk| !chunk.keyframe));
    rig.frame(&[P]);
    rig.frame(&[P]);
    assert!(rig.chunks()[250..].iter().all(|chunk| chunk.starts_keyframe()));
    assert_eq!(rig.notices(), [Notice::NoKeyframes { track: TrackId(0), waited: Duration::from_secs(10) }]);
    // A real keyframe ends that.
    rig.frame(&[IDR]);
    rig.frame(&[P]);
    assert!(!rig.chunks().last().unwrap().keyframe);
}

#[test]
fn a_packet_of_another_payload_type_is_dropped_but_a_wrong_announcement_is_put_right() {
    let mut rig = Rig::h264(None);
    let stranger = |rig: &mut Rig, payload_type, sequence| {
        // Its sequence numbers, timestamps and SSRC are its own.
        let time = 1_000_000 + 3_600 * u32::from(sequence);
        let mut packet = Header::write(true, payload_type, sequence, time, 99).to_vec();
        packet.extend_from_slice(P);
        rig.pipeline.packet(TrackId(0), rig.now, &packet, &mut rig.out);
    };
    // It may be the first to arrive.
    stranger(&mut rig, 107, 40);
    for index in 0..30 {
        rig.frame(&[if index == 0 { IDR } else { P }]);
        stranger(&mut rig, 107, 41 + index);
    }
    let stats = rig.pipeline.stats();
    assert_eq!((rig.chunks().len(), stats.foreign, stats.restarts, stats.lost, stats.jumps), (30, 31, 0, 0, 0));
    assert_eq!(rig.notices(), [Notice::ForeignPayload { track: TrackId(0), payload_type: 107, seq: 40 }]);
    // If nothing else arrives, the announced type is the wrong one.
    rig.connect(vec![track("video", "H264", None)]);
    for sequence in 0..25 {
        stranger(&mut rig, 98, sequence);
        rig.wait(40);
    }
    assert_eq!(rig.pipeline.stats().foreign, 31 + 13);
    assert_eq!(rig.notices(), []);
}

#[test]
fn another_ssrc_with_numbers_that_go_on_is_no_break() {
    let mut rig = Rig::h264(None);
    for index in 0u32..40 {
        let keyframe = index.is_multiple_of(10);
        rig.ssrc = 7 + index / 10;
        rig.frame(&[if keyframe { IDR } else { P }]);
    }
    let stats = rig.pipeline.stats();
    assert_eq!((rig.chunks().len(), stats.restarts, stats.lost, stats.unreferenced), (40, 0, 0, 0));
}

#[test]
fn numbers_that_begin_again_keep_no_frame_back_while_timestamps_go_on() {
    let mut rig = Rig::h264(None);
    rig.seq[0] = 20_000;
    rig.frame(&[IDR]);
    rig.frame(&[P]);
    rig.seq[0] = 0;
    rig.frame(&[P]);
    // Also in the middle of a frame.
    rig.send(0, false, P);
    rig.seq[0] = 30_000;
    rig.frame(&[P]);
    rig.frame(&[P]);
    let stats = rig.pipeline.stats();
    assert_eq!((rig.chunks().len(), stats.restarts, stats.lost, stats.unreferenced), (5, 2, 0, 0));
    let numbers: Vec<_> = rig.chunks().iter().map(|c| (c.first_seq, c.packets)).collect();
    assert!(numbers.windows(2).all(|pair| pair[1].0 == pair[0].0.wrapping_add(pair[0].1)), "{numbers:?}");
    assert_eq!(numbers[3].1, 2);
    // If timestamps also jump, another encoder has started.
    rig.seq[0] = 0;
    rig.time[0] = rig.time[0].wrapping_add(1 << 30);
    rig.frame(&[P]);
    assert_eq!((rig.chunks().len(), rig.pipeline.stats().unreferenced), (5, 1));
}

#[test]
fn after_a_break_comes_the_next_keyframe_first_and_no_number_is_missing() {
    let mut rig = Rig::h264(Some(SPROP));
    rig.frame(&[IDR]);
    rig.frame(&[P]);
    let next = |chunk: &Chunk| chunk.first_seq.wrapping_add(chunk.packets);
    let before = next(rig.chunks().last().unwrap());
    let seen = rig.chunks().len();
    rig.pipeline.disconnected(&mut rig.out);
    rig.wait(3_000);
    rig.connect(vec![track("video", "H264", Some(SPROP))]);
    for _ in 0..5 {
        rig.frame(&[AUD, SEI, P, P]);
    }
    assert_eq!(rig.chunks().len(), seen, "what refers to pictures that are gone is kept back");
    rig.frame(&[AUD, IDR]);
    rig.frame(&[P]);
    let chunks = rig.chunks();
    assert!(chunks[seen].starts_keyframe() && chunks[seen].first_seq == before);
    assert_eq!(chunks[seen + 1].first_seq, next(chunks[seen]));
    assert_eq!(rig.pipeline.stats().unreferenced, 5);
    // Frames count as received.
    assert_eq!(rig.pipeline.stats().tracks[0].frames, 9);
}

#[test]
fn the_same_tracks_in_another_order_or_under_other_payload_types_are_the_same_stream() {
    let (main, sub) = (Some(SPROP), Some("sprop-parameter-sets=Z2QADaw=,aOvjyw=="));
    let described = |fmtp| SourceTrack { payload_type: 97, ..track("video", "H264", fmtp) };
    let sound = || track("audio", "PCMU", None);
    let mut rig = Rig::new(vec![track("video", "H264", main), described(sub), sound()]);
    rig.frame(&[IDR]);
    let before = rig.out.description.clone().unwrap();
    // Audio first, the video tracks swapped.
    let places = rig.connect(vec![sound(), track("video", "H264", sub), described(main)]);
    assert_eq!(places, [TrackId(2), TrackId(1), TrackId(0)]);
    // Nothing distinguishes the video tracks but their positions.
    let places = rig.connect(vec![track("video", "H264", None), sound(), track("video", "H264", None)]);
    assert_eq!(places, [TrackId(0), TrackId(2), TrackId(1)]);
    let after = rig.out.description.clone().unwrap();
    assert!(before.continues_as(&after) && before.tracks[0].ssrc == after.tracks[0].ssrc);
    // The relay writes its own payload types.
    let other = vec![
        SourceTrack { payload_type: 0, ..sound() },
        SourceTrack { payload_type: 33, ..track("video", "h264", None) },
        SourceTrack { payload_type: 34, ..track("video", "H264", None) },
    ];
    assert_eq!(rig.connect(other), [TrackId(2), TrackId(1), TrackId(0)]);
    assert!(before.continues_as(rig.out.description.as_ref().unwrap()));
    let mut packet = Header::write(true, 34, 1, 2, 7).to_vec();
    packet.extend_from_slice(IDR);
    rig.pipeline.packet(TrackId(0), rig.now, &packet, &mut rig.out);
    let chunks = rig.chunks();
    assert_eq!(chunks.len(), 2);
    assert_eq!(Header::parse(packets(chunks[1])[0]).unwrap().payload_type, 96);
    assert_eq!(chunks[1].first_seq, chunks[0].first_seq.wrapping_add(chunks[0].packets));
    // A track that did not exist makes it another stream.
    assert_eq!(rig.connect(vec![sound(), sound(), track("video", "H264", None)]).len(), 3);
    assert!(!before.continues_as(rig.out.description.as_ref().unwrap()));
}

#[test]
fn other_tracks_are_a_new_description_with_new_sources() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    let before = rig.out.description.clone().unwrap();
    rig.connect(vec![track("video", "H265", None), track("audio", "PCMU", None)]);
    let after = rig.out.description.clone().unwrap();
    assert!(!before.continues_as(&after));
    assert_ne!(before.tracks[0].ssrc, after.tracks[0].ssrc);
    rig.frame(&[&[0x28, 0x01, 0xaf]]);
    assert_eq!((rig.chunks()[1].frame, rig.chunks()[1].keyframe), (1, true));
}

#[test]
fn h265_gets_its_parameter_sets_and_fragments() {
    let mut rig = Rig::new(vec![track("video", "H265", None)]);
    let vps: &[u8] = &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff];
    let sps: &[u8] = &[0x42, 0x01, 0x01, 0x01, 0x60, 0, 0, 3, 0, 0x90, 0, 0, 3, 0, 0, 3, 0, 0x3c, 0xa0, 0x0a];
    let pps: &[u8] = &[0x44, 0x01, 0xc1, 0x72];
    let idr: Vec<u8> = [0x28, 0x01, 0xaf].into_iter().chain([0x55; 3_000]).collect();
    rig.frame(&[vps, sps, pps, &idr]);
    rig.frame(&[&idr]);
    let chunk = rig.chunks()[1];
    let got = payloads(chunk);
    assert_eq!(got[..3], [vps, sps, pps]);
    assert_eq!(got[3][..3], [0x62, 0x01, 0x94]);
    assert_eq!(got.last().unwrap()[..3], [0x62, 0x01, 0x54]);
    assert!(rig.fmtp().starts_with("sprop-vps=QAEMAf//; sprop-sps=QgEBAWAAAAMAkAAAAwAAAwA8oAo=; sprop-pps=RAHBcg=="));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn anything_at_all_keeps_the_promises_of_chunks(data in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        fuzz::pipeline(&[&[0, 0, 0, 0, 0], &data[..]].concat());
    }

    #[test]
    fn what_was_saved_and_restored_goes_on_as_if_it_had_not_been(data in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        let seed = data.first().copied().unwrap_or_default();
        fuzz::saved(&[&[seed, 0, 0, 0, 0], &data[..]].concat());
    }

    #[test]
    fn any_run_of_units_keeps_them_whole(
        units in proptest::collection::vec((0usize..6, 0usize..5_000, any::<bool>()), 1..40),
    ) {
        let mut rig = Rig::h264(Some(SPROP));
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for (kind, len, marker) in units {
            let head = [SPS, PPS, SEI, IDR, P, AUD][kind];
            let nal: Vec<u8> = head.iter().copied().chain((0..len).map(|i| (i % 251) as u8 | 1)).collect();
            rig.send(0, marker, &nal);
            if marker {
                rig.frame(&[]);
            }
            sent.push(nal);
        }
        // The end of the open frame.
        rig.frame(&[]);
        rig.frame(&[P]);
        let mut got: Vec<Vec<u8>> = Vec::new();
        for chunk in rig.chunks() {
            for payload in payloads(chunk) {
                match payload[0] & 0x1f {
                    28 if payload[1] & 0x80 != 0 => {
                        got.push(vec![payload[0] & 0xe0 | payload[1] & 0x1f]);
                        got.last_mut().unwrap().extend_from_slice(&payload[2..]);
                    }
                    28 => got.last_mut().unwrap().extend_from_slice(&payload[2..]),
                    _ => got.push(payload.to_vec()),
                }
            }
        }
        prop_assert_eq!(got.pop(), Some(P.to_vec()));
        // Inserted parameter sets come in addition; everything that was sent is there in order.
        let mut rest = got.iter();
        for nal in &sent {
            prop_assert!(rest.any(|other| other == nal));
        }
        prop_assert_eq!(got.len() as u64, sent.len() as u64 + rig.pipeline.stats().inserted);
    }
}
