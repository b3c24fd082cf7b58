//! Damaged streams: nothing crashes, and the picture comes back.

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{Folder, ffmpeg};
use rtsprelay_view::decode::Decoder;
use rtsprelay_view::depacketize::{Depacketizer, PacketInfo};
use rtsprelay_view::frame::Codec;

/// The largest payload of a packet.
const PAYLOAD_BYTES: usize = 400;

/// One packet as received.
struct Packet {
    timestamp: i64,
    marker: bool,
    payload: Vec<u8>,
}

/// A clip of 60 small pictures in RTP packets.
fn packets(codec: Codec, encode: &[&str]) -> Vec<Packet> {
    let folder = Folder::new(&format!("damage-{codec}"));
    let file = folder.file("clip.bin");
    let input = ["-y", "-f", "lavfi", "-i", "testsrc2=size=128x96:rate=30", "-frames:v", "60", "-pix_fmt", "yuv420p"];
    ffmpeg(&[&input[..], encode, &[&file]].concat());
    let clip = std::fs::read(&file).expect("ffmpeg wrote it");
    let mut packets = Vec::new();
    let mut timestamp = 0;
    for nal in nal_units(&clip) {
        let delimiter = if codec == Codec::H264 { nal[0] & 0x1f == 9 } else { nal[0] >> 1 & 0x3f == 35 };
        if delimiter {
            timestamp += 3000;
            if let Some(Packet { marker, .. }) = packets.last_mut() {
                *marker = true;
            }
        }
        for payload in payloads(codec, nal) {
            packets.push(Packet { timestamp, marker: false, payload });
        }
    }
    packets
}

fn nal_units(clip: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (3..clip.len()).filter(|&at| clip[at - 3..at] == [0, 0, 1]).collect();
    let end = |index: usize| starts.get(index + 1).map_or(clip.len(), |&next| next - 3);
    // A start code may have an additional zero before it, and no NAL unit ends with one.
    let without_zero = |nal: &'_ [u8]| nal.len() - usize::from(nal.ends_with(&[0]));
    starts.iter().enumerate().map(|(index, &start)| &clip[start..][..without_zero(&clip[start..end(index)])]).collect()
}

/// A NAL unit, whole or fragmented.
fn payloads(codec: Codec, nal: &[u8]) -> Vec<Vec<u8>> {
    if nal.len() <= PAYLOAD_BYTES {
        return vec![nal.to_vec()];
    }
    let header = if codec == Codec::H264 { 1 } else { 2 };
    let pieces: Vec<&[u8]> = nal[header..].chunks(PAYLOAD_BYTES).collect();
    let last = pieces.len() - 1;
    let fragment = |(index, piece): (usize, &&[u8])| {
        let flags = if index == 0 { 0x80 } else { 0 } | if index == last { 0x40 } else { 0 };
        let mut payload = match codec {
            Codec::H264 => vec![nal[0] & 0xe0 | 28, flags | nal[0] & 0x1f],
            _ => vec![nal[0] & 0x81 | 49 << 1, nal[1], flags | nal[0] >> 1 & 0x3f],
        };
        payload.extend_from_slice(piece);
        payload
    };
    pieces.iter().enumerate().map(fragment).collect()
}

/// Plays the clip repeatedly, `frames` frames in all, with flipped bits, truncated and lost packets, and then without damage.
fn survives(codec: Codec, encode: &[&str], frames: u64) {
    let packets = packets(codec, encode);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut depacketizer, mut decoder) = (Depacketizer::new(codec, Vec::new()), Decoder::new(codec));
    let (mut now, mut wall) = (Instant::now(), SystemTime::now());
    let (mut seen, mut pictures, mut base) = (0, 0u64, 0);
    let mut healthy_rounds = 0;
    while healthy_rounds < 2 {
        let damage = seen < frames;
        healthy_rounds += u64::from(!damage);
        let mut lost = 0;
        pictures = if damage { pictures } else { 0 };
        for packet in &packets {
            let mut payload = packet.payload.clone();
            if damage && random.u8(..) < 8 {
                lost += 1;
                continue;
            }
            if damage && random.u8(..) < 16 {
                for _ in 0..random.usize(1..6) {
                    let at = random.usize(..payload.len());
                    payload[at] ^= 1 << random.u8(..8);
                }
            }
            if damage && random.u8(..) == 0 {
                payload.truncate(random.usize(..payload.len()));
            }
            let info = PacketInfo {
                timestamp: base + packet.timestamp,
                marker: packet.marker,
                lost,
                arrived: now,
                arrived_wall: wall,
            };
            lost = 0;
            depacketizer.push(info, &payload, &mut |mut frame| {
                seen += 1;
                // Half of the time undetected, so that the decoder sees the damage.
                if damage && random.bool() {
                    (frame.damaged, frame.after_loss) = (false, false);
                }
                decoder.decode(&frame, &mut |picture| {
                    pictures += 1;
                    assert!(picture.to_rgb().len() >= 3);
                });
            });
            if packet.marker {
                now += Duration::from_millis(33);
                wall += Duration::from_millis(33);
            }
        }
        base += 60 * 3000;
    }
    println!("{codec}: {seen} frames, {pictures} pictures in the last round, {} malformed", depacketizer.malformed());
    assert!(pictures >= 50, "the picture does not come back: {pictures} of 60");
}

#[test]
fn a_hundred_thousand_damaged_frames_of_h264_crash_nothing() {
    let options = "aud=1:keyint=15:bframes=0:scenecut=0:slices=2";
    survives(Codec::H264, &["-c:v", "libx264", "-x264-params", options, "-f", "h264"], 100_000);
}

#[test]
fn damaged_frames_of_h264_with_b_pictures_crash_nothing() {
    let options = "aud=1:keyint=15:bframes=2:b-adapt=0:scenecut=0:ref=4";
    survives(Codec::H264, &["-c:v", "libx264", "-x264-params", options, "-f", "h264"], 20_000);
}

#[test]
fn damaged_frames_of_h265_crash_nothing() {
    let options = "aud=1:keyint=15:bframes=2:scenecut=0:log-level=none";
    survives(Codec::H265, &["-c:v", "libx265", "-x265-params", options, "-f", "hevc"], 20_000);
}

#[test]
fn damaged_motion_jpeg_crashes_nothing() {
    let mut random = fastrand::Rng::with_seed(5);
    let (mut depacketizer, mut decoder) = (Depacketizer::new(Codec::Jpeg, Vec::new()), Decoder::new(Codec::Jpeg));
    let mut frames = 0;
    for number in 0..20_000 {
        let fragments = random.usize(1..4);
        let mut offset = 0u32;
        for index in 0..fragments {
            let data: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            let mut payload = vec![0, 0, 0, 0, random.u8(..2) | random.u8(..2) << 6, random.u8(..), 8, 8];
            payload[1..4].copy_from_slice(&offset.to_be_bytes()[1..]);
            payload.extend_from_slice(&data);
            offset += data.len() as u32;
            let (arrived, arrived_wall) = (Instant::now(), SystemTime::now());
            let marker = index + 1 == fragments;
            let info = PacketInfo { timestamp: number, marker, lost: 0, arrived, arrived_wall };
            depacketizer.push(info, &payload, &mut |frame| {
                frames += 1;
                decoder.decode(&frame, &mut |_| {});
            });
        }
    }
    assert!(frames > 0);
}
