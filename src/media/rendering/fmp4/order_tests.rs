//! Streams by x264. Initialization segments state that pictures are in order when that is certain, and stop when it is not; and another
//! process makes the same of a stream.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fuzz::{chunk, description};
use super::{Clock, Fragments, FragmentsState};
use crate::media::chunk::Chunk;
use crate::media::codec::sps::Sps;
use crate::media::rendering::{Piece, Rendering};
use crate::source::clip::{Clip, ClipFrame};

const FRAME_TICKS: u32 = 3_600;

/// A stream of x264 in Annex B format.
fn encoded(frames: u32, parameters: &str) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25", "-frames:v", &frames.to_string()])
        .args(["-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", parameters, "-f", "h264", "-"])
        .stderr(Stdio::inherit())
        .output()
        .expect("ffmpeg, which tests/run installs");
    assert!(output.status.success() && !output.stdout.is_empty());
    output.stdout
}

/// The sequence parameter set in an initialization segment.
fn sps_in(segment: &[u8]) -> Vec<u8> {
    let at = segment.windows(4).position(|kind| kind == b"avcC").expect("avcC") + 4 + 6;
    let len = usize::from(u16::from_be_bytes([segment[at], segment[at + 1]]));
    segment[at + 2..at + 2 + len].to_vec()
}

/// Whether x264 encoded it as a B frame, to which no other frame refers.
fn is_b(frame: &ClipFrame<'_>) -> bool {
    frame.nals.iter().any(|nal| nal[0] == 0x01)
}

/// The sequence parameter sets that browsers are sent, each with the frame before which it comes. `camera` changes the ones of x264.
fn told<'a>(frames: impl Iterator<Item = &'a ClipFrame<'a>>, camera: fn(&[u8]) -> Vec<u8>) -> Vec<(usize, Vec<u8>)> {
    let now = Instant::now();
    let description = description(0, now);
    let mut fragments = Fragments::new(now, Clock::new(now, Duration::ZERO), description);
    let (mut told, mut sequence) = (Vec::new(), 0u16);
    let frames: Vec<_> = frames.collect();
    for (number, frame) in frames.iter().enumerate() {
        // A B frame arrives after the frame that is shown after it.
        let is_before_b = frames.get(number + 1).is_some_and(|next| is_b(next));
        let shown = number as u32 + u32::from(is_before_b) - u32::from(is_b(frame));
        let nals: Vec<Vec<u8>> =
            frame.nals.iter().map(|nal| if nal[0] & 0x1f == 7 { camera(nal) } else { nal.to_vec() }).collect();
        let payloads: Vec<&[u8]> = nals.iter().map(Vec::as_slice).collect();
        let arrival = now + Duration::from_millis(40) * number as u32;
        let mut chunk = chunk(number as u64, frame.keyframe, arrival, shown * FRAME_TICKS, &payloads);
        chunk.first_seq = sequence;
        sequence = sequence.wrapping_add(payloads.len() as u16);
        let rendered = fragments.render(&[&chunk]);
        assert!(rendered.body.is_some());
        if let Some(head) = rendered.head {
            let sps = sps_in(head.as_slice());
            if told.last().is_none_or(|(_, last)| *last != sps) {
                told.push((number, sps));
            }
        }
    }
    told
}

fn stripped(sps: &[u8]) -> Vec<u8> {
    Sps::without_restriction(sps).expect("x264 says it")
}

#[test]
fn a_gop_without_b_slices_is_told_and_a_later_b_slice_too() {
    // The same parameter sets: there is no room for a B frame in two frames.
    let common = "scenecut=0:bframes=1:b-adapt=0:b-pyramid=0:ref=1:open-gop=0";
    let (plain, reordered) = (
        encoded(12, &format!("keyint=2:min-keyint=2:{common}")),
        encoded(20, &format!("keyint=10:min-keyint=10:{common}")),
    );
    let (plain, reordered) = (Clip::parse(&plain).unwrap(), Clip::parse(&reordered).unwrap());
    let sps = |clip: &Clip<'_>| clip.frames[0].nals.iter().find(|nal| nal[0] & 0x1f == 7).unwrap().to_vec();
    let has_b = |clip: &Clip<'_>| clip.frames.iter().any(is_b);
    assert_eq!((sps(&plain), has_b(&plain), has_b(&reordered)), (sps(&reordered), false, true));

    let camera = stripped(&sps(&plain));
    let certain = Sps::without_reordering(&camera, true).unwrap();
    assert_eq!(Sps::h264(&camera), Sps::h264(&certain));
    assert_ne!(camera, certain);
    let all = plain.frames.iter().chain(&reordered.frames).chain(&plain.frames);
    // With the second keyframe it is certain; with the first one after a B frame it is not, and never will be again.
    let expected = [(0, camera.clone()), (2, certain), (22, camera)];
    assert_eq!(told(all, stripped), expected);
    // What x264 states itself remains.
    let all = plain.frames.iter().chain(&reordered.frames);
    assert_eq!(told(all, <[u8]>::to_vec), [(0, sps(&plain))]);
}

#[test]
fn without_b_frames_it_is_told_at_once() {
    // Then x264 writes pic_order_cnt_type 2.
    let stream = encoded(40, "keyint=10:min-keyint=10:scenecut=0:bframes=0");
    let clip = Clip::parse(&stream).unwrap();
    let sps = clip.frames[0].nals.iter().find(|nal| nal[0] & 0x1f == 7).unwrap();
    let expected = Sps::without_reordering(&stripped(sps), false).expect("certain by itself");
    assert_eq!(told(clip.frames.iter(), stripped), [(0, expected)]);
}

/// Renders frames with one state, and with one that is saved and restored before each of them.
fn is_the_same_in_another_process(of: usize, now: Instant, chunks: &[Chunk]) {
    let reference = now + Duration::from_secs(5);
    let description = description(of, now);
    let mut whole = Fragments::new(now, Clock::new(now, Duration::from_secs(1_000)), Arc::clone(&description));
    let mut carried = Fragments::new(now, Clock::new(now, Duration::from_secs(1_000)), Arc::clone(&description));
    let mut heads = 0;
    for chunk in chunks {
        let text = serde_json::to_string(&carried.save(reference)).unwrap();
        let state: FragmentsState = serde_json::from_str(&text).unwrap();
        carried = Fragments::restore(reference, state, Arc::clone(&description));
        let (one, other) = (whole.render(&[chunk]), carried.render(&[chunk]));
        let bytes = |piece: &Option<Piece>| piece.as_ref().map(|piece| piece.as_slice().to_vec());
        assert!(one.body.is_some());
        assert_eq!((bytes(&one.head), bytes(&one.body)), (bytes(&other.head), bytes(&other.body)), "{}", chunk.frame);
        heads += usize::from(one.head.is_some());
    }
    assert!(heads > 1);
    assert_eq!(whole.hello(now, "front"), carried.hello(now, "front"));
}

#[test]
fn another_process_makes_the_same_fragments() {
    let now = Instant::now();
    let stream = encoded(30, "keyint=10:min-keyint=10:scenecut=0:bframes=2:b-adapt=0:b-pyramid=0:ref=1:open-gop=0");
    let clip = Clip::parse(&stream).unwrap();
    assert!(clip.frames.iter().any(is_b));
    let video: Vec<_> = (0u64..)
        .zip(&clip.frames)
        .map(|(number, frame)| {
            // Decoding times depend on the frames before, because these are out of order.
            let shown = number as u32 + if is_b(frame) { 0 } else { 2 };
            chunk(
                number,
                frame.keyframe,
                now + Duration::from_millis(40) * number as u32,
                shown * FRAME_TICKS,
                &frame.nals,
            )
        })
        .collect();
    is_the_same_in_another_process(0, now, &video);
    // Sound with timestamps that are not exact, which come out without gaps.
    let sound: Vec<_> = (0u64..60)
        .map(|number| {
            let time = number as u32 * 160 + 50 * (number % 3) as u32;
            chunk(number, true, now + Duration::from_millis(20) * number as u32, time, &[&[0x55; 160]])
        })
        .collect();
    is_the_same_in_another_process(8, now, &sound);
}
