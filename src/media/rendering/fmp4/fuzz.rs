//! The body of the fuzz target: any packets, as frames of any codec, become valid fragments.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Clock, Fragments};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::rendering::Rendering;
use crate::media::{Description, Track, TrackId};
use crate::wire::rtp;

/// Encodings, their media, clock rates, channels and format parameters.
const TRACKS: [(&str, &str, u32, u16, &str); 11] = [
    ("H264", "video", 90_000, 0, "packetization-mode=1;sprop-parameter-sets=Z0LAHtkDxWhAAAADAEAAAAwDxYuS,aMuMsg=="),
    ("H265", "video", 90_000, 0, ""),
    ("H265", "video", 90_000, 0, "sprop-max-don-diff=1"),
    ("AV1", "video", 90_000, 0, ""),
    ("VP9", "video", 90_000, 0, ""),
    ("JPEG", "video", 90_000, 0, ""),
    ("mpeg4-generic", "audio", 48_000, 2, "config=1190;sizelength=13;indexlength=3;indexdeltalength=3"),
    ("opus", "audio", 48_000, 2, ""),
    ("PCMU", "audio", 8_000, 1, ""),
    ("PCMA", "audio", 8_000, 2, ""),
    ("L16", "audio", 44_100, 2, ""),
];

/// A chunk of these payloads.
pub(super) fn chunk(frame: u64, keyframe: bool, arrival: Instant, rtp_time: u32, payloads: &[&[u8]]) -> Chunk {
    let mut bytes = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        let head = rtp::Header::write(index + 1 == payloads.len(), 96, index as u16, rtp_time, 1);
        bytes.extend_from_slice(&[b'$', 0]);
        bytes.extend_from_slice(&((head.len() + payload.len()) as u16).to_be_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(payload);
    }
    Chunk {
        number: frame,
        track: TrackId(0),
        kind: ChunkKind::Media,
        frame,
        frame_start: true,
        frame_end: true,
        keyframe,
        arrival,
        first_seq: 0,
        rtp_time,
        bytes: Bytes::from(bytes),
        packets: payloads.len() as u16,
    }
}

/// A description of one track.
pub(super) fn description(which: usize, now: Instant) -> Arc<Description> {
    let (encoding, media, clock_rate, channels, fmtp) = TRACKS[which % TRACKS.len()];
    Arc::new(Description {
        tracks: vec![Track {
            media: media.into(),
            encoding: encoding.into(),
            payload_type: 96,
            clock_rate,
            channels: (channels > 0).then_some(channels),
            fmtp: (!fmtp.is_empty()).then(|| fmtp.to_owned()),
            attributes: Vec::new(),
            ssrc: 1,
            first_seq: 0,
            clock: (now, 0),
        }],
    })
}

/// Parses the output: complete WebSocket frames, and in binary ones complete boxes.
fn look(mut message: &[u8]) {
    while !message.is_empty() {
        let (start, len) = match message[1] {
            127 => (10, u64::from_be_bytes(message[2..10].try_into().expect("8 bytes")) as usize),
            126 => (4, usize::from(u16::from_be_bytes([message[2], message[3]]))),
            short => (2, usize::from(short)),
        };
        let payload = &message[start..start + len];
        match message[0] {
            0x81 => assert!(std::str::from_utf8(payload).is_ok()),
            0x82 if payload[1] == 3 => assert!(payload[10..].starts_with(&[0xff, 0xd8])),
            0x82 => boxes(&payload[2..]),
            other => panic!("an opcode of {other:#x}"),
        }
        message = &message[start + len..];
    }
}

fn boxes(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let size = u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
        assert!(size >= 8 && size <= bytes.len(), "a box of {size} in {}", bytes.len());
        if [b"moof", b"moov", b"traf", b"trak", b"mdia", b"minf", b"stbl"].iter().any(|kind| bytes[4..8] == **kind) {
            boxes(&bytes[8..size]);
        }
        bytes = &bytes[size..];
    }
}

/// The first byte chooses a codec. Then frames follow: the number of packets, whether it is a keyframe, the time passed, and the sizes
/// of the packets.
pub fn fragments(data: &[u8]) {
    let Some((&which, mut rest)) = data.split_first() else { return };
    let now = Instant::now();
    let description = description(usize::from(which), now);
    let mut fragments = Fragments::new(now, Clock::new(now, Duration::from_secs(1_700_000_000)), description);
    let mut before = None;
    for frame in 0..64 {
        let Some((head, more)) = rest.split_first_chunk::<3>() else { return };
        rest = more;
        let mut payloads = Vec::new();
        for _ in 0..=head[0] % 8 {
            let Some((&len, more)) = rest.split_first() else { break };
            let (payload, more) = more.split_at(usize::from(len).min(more.len()));
            payloads.push(payload);
            rest = more;
        }
        let passed = u32::from(u16::from_be_bytes([head[1], head[2]]));
        let arrival = now + Duration::from_millis(40 * frame);
        let chunk = chunk(frame, head[0] & 0x80 != 0, arrival, passed.wrapping_mul(16), &payloads);
        let rendered = fragments.render(&[&chunk]);
        for piece in rendered.head.iter().chain(&rendered.body) {
            look(piece.as_slice());
        }
        let body = rendered.body.map(|body| body.len());
        let bytes: usize = payloads.iter().map(|payload| payload.len()).sum();
        // Apart from silence, the output is not larger than the input, except for G.711, which may double if it is noise.
        assert!(body.is_none_or(|body| body <= 40_000 + 8 * bytes), "{body:?} bytes of {bytes}");
        before = before.max(body);
    }
}

#[test]
fn any_packets_become_whole_fragments() {
    let mut random = fastrand::Rng::with_seed(20);
    for which in 0..TRACKS.len() as u8 {
        for _ in 0..200 {
            let mut data = vec![which];
            data.extend((0..random.usize(..2_000)).map(|_| if random.bool() { random.u8(..) } else { random.u8(..4) }));
            fragments(&data);
        }
    }
}
