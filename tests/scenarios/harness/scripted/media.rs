//! The media of a scripted camera: decodable H.264 and PCMU. Each frame and each audio packet contains its number, so
//! a player can tell whether all of them arrived.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use base64::Engine as _;

use crate::harness::program::run;
use crate::harness::rtsp::Packet;
use crate::harness::{DEADLINE, scratch_file, test_file};

/// Bytes of an RTP payload.
const PAYLOAD_BYTES: usize = 1_400;

/// The start of the SEI message (H.264 section D.1.6, `user_data_unregistered`) that contains a frame's number.
const MARK: &[u8; 16] = b"scripted camera!";

/// Digits of a frame's number.
const DIGITS: usize = 16;

/// Bytes of an audio packet: 20 ms.
pub const SOUND_BYTES: usize = 160;

/// Frames that can be sent in a loop.
pub struct Clip {
    frames: Vec<ClipFrame>,
    /// The sequence parameter set.
    pub sps: Vec<u8>,
    /// The picture parameter set.
    pub pps: Vec<u8>,
}

struct ClipFrame {
    /// Its parameter sets, as they precede a keyframe.
    sets: Vec<Vec<u8>>,
    slices: Vec<Vec<u8>>,
    key: bool,
}

impl Clip {
    /// The clip of the relay's test pattern.
    pub fn pattern() -> Clip {
        Clip::parse(&std::fs::read(test_file("../assets/pattern.h264")).expect("the pattern"))
    }

    /// A clip of this size with its own parameter sets, made by ffmpeg.
    pub fn made(width: u32, height: u32) -> Clip {
        Clip::encoded(width, height, 50, &["-preset", "ultrafast", "-g", "25", "-bf", "0"])
    }

    /// This many frames of ffmpeg's test picture, encoded by x264 with these options.
    pub fn encoded(width: u32, height: u32, frames: u32, options: &[&str]) -> Clip {
        let file = scratch_file("clip.h264");
        let (picture, frames) = (format!("testsrc2=size={width}x{height}:rate=25"), frames.to_string());
        let from = ["-v", "error", "-f", "lavfi", "-i", &picture, "-frames:v", &frames];
        let codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p"];
        let to = ["-f", "h264", "-y", file.to_str().unwrap()];
        assert!(run(DEADLINE, "ffmpeg", &[&from[..], &codec, options, &to].concat()).status.success());
        let clip = Clip::parse(&std::fs::read(&file).unwrap());
        // A scratch file; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_file(&file);
        clip
    }

    /// This clip, then another with its own parameter sets, and so on alternately. The description has this clip's.
    pub fn then(mut self, other: Clip) -> Clip {
        self.frames.extend(other.frames);
        self
    }

    /// With its sequence parameter sets changed by `change`.
    pub fn with_sps(mut self, change: impl Fn(&[u8]) -> Vec<u8>) -> Clip {
        self.sps = change(&self.sps);
        for set in self.frames.iter_mut().flat_map(|frame| &mut frame.sets).filter(|set| set[0] & 0x1F == 7) {
            *set = change(set);
        }
        self
    }

    /// Its frames.
    pub fn len(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Whether the `at`th frame since the clip began is referred to by no other frame, as x264's B frames are.
    pub fn is_b(&self, at: u64) -> bool {
        self.frames[(at % self.len()) as usize].slices[0][0] == 0x01
    }

    fn parse(annex_b: &[u8]) -> Clip {
        let mut clip = Clip { frames: Vec::new(), sps: Vec::new(), pps: Vec::new() };
        for unit in units(annex_b) {
            match unit[0] & 0x1F {
                // first_mb_in_slice is 0 in a frame's first slice, which is encoded as a one bit.
                kind @ (1 | 5) if unit[1] & 0x80 != 0 => {
                    let key = kind == 5;
                    let sets = if key { vec![clip.sps.clone(), clip.pps.clone()] } else { Vec::new() };
                    clip.frames.push(ClipFrame { sets, slices: vec![unit.to_vec()], key });
                }
                1 | 5 => clip.frames.last_mut().expect("a first slice").slices.push(unit.to_vec()),
                7 => clip.sps = unit.to_vec(),
                8 => clip.pps = unit.to_vec(),
                _ => {}
            }
        }
        assert!(clip.frames[0].key && !clip.sps.is_empty() && !clip.pps.is_empty());
        clip
    }

    /// The parameters of its `a=fmtp` line (RFC 6184 section 8.1).
    pub fn fmtp(&self) -> String {
        let base64 = base64::engine::general_purpose::STANDARD;
        let (sps, pps) = (base64.encode(&self.sps), base64.encode(&self.pps));
        let [_, profile, constraints, level, ..] = self.sps[..] else { panic!("a short SPS") };
        format!(
            "packetization-mode=1;profile-level-id={profile:02X}{constraints:02X}{level:02X};sprop-parameter-sets={sps},{pps}"
        )
    }

    /// The `at`th frame since the clip began, numbered `number`.
    pub fn frame(&self, at: u64, number: u64) -> Frame {
        let frame = &self.frames[(at % self.len()) as usize];
        let mut units = frame.sets.clone();
        units.push(marked(number));
        units.extend(frame.slices.iter().cloned());
        let payloads = units.iter().flat_map(|unit| payloads(unit)).collect();
        Frame { key: frame.key, hash: hash(&frame.slices), payloads }
    }
}

/// A frame, ready to be sent.
pub struct Frame {
    /// Whether decoding can start here.
    pub key: bool,
    /// A hash of its slices.
    pub hash: u64,
    /// Of its packets.
    pub payloads: Vec<Vec<u8>>,
}

/// The NAL units of a stream in Annex B format.
fn units(annex_b: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (0..annex_b.len() - 3).filter(|at| annex_b[*at..*at + 3] == [0, 0, 1]).collect();
    let ends = starts.iter().skip(1).copied().chain([annex_b.len()]);
    let unit = |(start, end): (&usize, usize)| {
        let unit = &annex_b[start + 3..end];
        // Trailing zero bytes belong to the next start code, or to nothing.
        &unit[..unit.iter().rposition(|byte| *byte != 0).expect("a unit") + 1]
    };
    starts.iter().zip(ends).map(unit).collect()
}

/// The SEI unit with a frame's number.
fn marked(number: u64) -> Vec<u8> {
    let digits = format!("{number:0width$}", width = DIGITS);
    [&[0x06, 0x05, (MARK.len() + DIGITS) as u8][..], MARK, digits.as_bytes(), &[0x80]].concat()
}

fn number_in(unit: &[u8]) -> Option<u64> {
    let digits = unit.get(3..)?.strip_prefix(MARK)?.get(..DIGITS)?;
    (unit[0] & 0x1F == 6).then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

fn hash(slices: &[Vec<u8>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    slices.hash(&mut hasher);
    hasher.finish()
}

/// The payloads for a unit: one, or fragments (RFC 6184 section 5.8).
fn payloads(unit: &[u8]) -> Vec<Vec<u8>> {
    if unit.len() <= PAYLOAD_BYTES {
        return vec![unit.to_vec()];
    }
    let pieces = unit[1..].chunks(PAYLOAD_BYTES - 2);
    let last = pieces.len() - 1;
    let fragment = |(at, piece): (usize, &[u8])| {
        let flags = if at == 0 { 0x80 } else { u8::from(at == last) << 6 };
        [&[unit[0] & 0xE0 | 28, unit[0] & 0x1F | flags], piece].concat()
    };
    pieces.enumerate().map(fragment).collect()
}

/// An audio packet with its number.
pub fn sound(number: u32) -> Vec<u8> {
    let mut payload = vec![0xFF; SOUND_BYTES];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    payload
}

/// The number in an audio packet that a player received.
pub fn sound_number(packet: &Packet) -> u32 {
    u32::from_be_bytes(packet.payload()[..4].try_into().expect("sound"))
}

/// A frame as received by a player.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number, if it contains one.
    pub number: Option<u64>,
    /// A hash of its slices, as far as they arrived.
    pub hash: u64,
    /// Whether it has an IDR picture.
    pub key: bool,
}

/// Reassembles the contents of a frame's packets, complete or not.
pub fn received(packets: &[Packet]) -> Received {
    let mut units: Vec<Vec<u8>> = Vec::new();
    for packet in packets {
        match packet.payload() {
            [first, rest @ ..] if first & 0x1F == 24 => units.extend(aggregated(rest)),
            [first, flags, rest @ ..] if first & 0x1F == 28 => {
                if flags & 0x80 != 0 {
                    units.push(vec![first & 0xE0 | flags & 0x1F]);
                }
                // The first fragment may be missing.
                if let Some(unit) = units.last_mut() {
                    unit.extend_from_slice(rest);
                }
            }
            [] => {}
            unit => units.push(unit.to_vec()),
        }
    }
    let number = units.iter().find_map(|unit| number_in(unit));
    let slices: Vec<Vec<u8>> = units.into_iter().filter(|unit| matches!(unit[0] & 0x1F, 1 | 5)).collect();
    Received { number, hash: hash(&slices), key: slices.iter().any(|slice| slice[0] & 0x1F == 5) }
}

/// The units of a STAP-A (RFC 6184 section 5.7.1).
fn aggregated(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut units = Vec::new();
    while let [a, b, tail @ ..] = rest {
        let Some((unit, after)) = tail.split_at_checked(usize::from(u16::from_be_bytes([*a, *b]))) else { break };
        units.push(unit.to_vec());
        rest = after;
    }
    units
}
