//! The picture of the test source: an H.264 clip split into frames, and the built-in clip.

use base64::Engine as _;

/// The clip that `assets/make-pattern.sh` makes, Annex B.
static PATTERN: &[u8] = include_bytes!("../../assets/pattern.h264");

/// One frame (access unit) of a [`Clip`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClipFrame<'a> {
    /// Its NAL units without start codes, never empty.
    pub nals: Vec<&'a [u8]>,
    /// Index in [`ClipFrame::nals`] of the first slice; what the slices depend on precedes it.
    pub first_slice: usize,
    /// Whether it is an IDR picture.
    pub keyframe: bool,
}

/// Frames of H.264 that can be repeated in a loop.
#[derive(Clone, Debug)]
pub struct Clip<'a> {
    /// The frames in decoding order; the first is a keyframe.
    pub frames: Vec<ClipFrame<'a>>,
    sps: &'a [u8],
    pps: &'a [u8],
}

impl Clip<'static> {
    /// The built-in clip: 640x360, [`Clip::RATE`] frames per second, a keyframe every second.
    pub fn built_in() -> Clip<'static> {
        Clip::parse(PATTERN).expect("the built-in clip is sound: a test parses it")
    }
}

impl<'a> Clip<'a> {
    /// Frame rate of the built-in clip.
    pub const RATE: u32 = 30;

    /// Splits an Annex B stream (H.264 annex B) into frames. `None` if it does not start with a keyframe and its parameter sets.
    pub fn parse(annex_b: &'a [u8]) -> Option<Clip<'a>> {
        let mut frames: Vec<ClipFrame<'a>> = Vec::new();
        let (mut sps, mut pps) = (None, None);
        let mut before: Vec<&'a [u8]> = Vec::new();
        for nal in nals(annex_b) {
            match nal[0] & 0x1f {
                1 | 5 => {
                    // first_mb_in_slice is the first field; 0 is coded as a single 1 bit.
                    let begins = nal.get(1).is_some_and(|byte| byte & 0x80 != 0);
                    if begins || !before.is_empty() {
                        let first_slice = before.len();
                        before.push(nal);
                        let nals = std::mem::take(&mut before);
                        frames.push(ClipFrame { nals, first_slice, keyframe: nal[0] & 0x1f == 5 });
                    } else {
                        frames.last_mut()?.nals.push(nal);
                    }
                }
                unit => {
                    match unit {
                        7 => sps = sps.or(Some(nal)),
                        8 => pps = pps.or(Some(nal)),
                        _ => {}
                    }
                    before.push(nal);
                }
            }
        }
        frames.first().filter(|frame| frame.keyframe)?;
        Some(Clip { frames, sps: sps.filter(|sps| sps.len() >= 4)?, pps: pps? })
    }

    /// The value of `a=fmtp` without the payload type (RFC 6184 section 8.1).
    pub fn fmtp(&self) -> String {
        let base64 = base64::engine::general_purpose::STANDARD;
        format!(
            "packetization-mode=1;profile-level-id={:02X}{:02X}{:02X};sprop-parameter-sets={},{}",
            self.sps[1],
            self.sps[2],
            self.sps[3],
            base64.encode(self.sps),
            base64.encode(self.pps)
        )
    }
}

/// The NAL units between start codes, without trailing zeros; empty ones are omitted.
fn nals(annex_b: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = start_code(annex_b).map(|at| &annex_b[at + 3..]);
    std::iter::from_fn(move || {
        loop {
            let here = rest?;
            let end = start_code(here);
            rest = end.map(|at| &here[at + 3..]);
            let unit = &here[..end.unwrap_or(here.len())];
            let len = unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            if len > 0 {
                return Some(&unit[..len]);
            }
        }
    })
}

/// Offset of the first `00 00 01`.
fn start_code(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|window| window == [0, 0, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_clip_is_as_promised() {
        assert!(PATTERN.len() <= 500_000);
        let clip = Clip::built_in();
        assert_eq!(clip.frames.len(), 120);
        for (index, frame) in clip.frames.iter().enumerate() {
            let types: Vec<_> = frame.nals.iter().map(|nal| nal[0] & 0x1f).collect();
            let keyframe = index % 30 == 0;
            assert_eq!(frame.keyframe, keyframe, "frame {index}");
            assert_eq!(types, if keyframe { vec![7, 8, 5] } else { vec![1] }, "frame {index}");
            assert_eq!(frame.first_slice, types.len() - 1);
        }
        // The same parameter sets throughout, so that the SDP applies to every keyframe.
        for frame in clip.frames.iter().filter(|frame| frame.keyframe) {
            assert_eq!((frame.nals[0], frame.nals[1]), (clip.sps, clip.pps));
        }
        let fmtp = clip.fmtp();
        assert!(fmtp.starts_with("packetization-mode=1;profile-level-id=4D40"), "{fmtp}");
    }

    #[test]
    fn no_byte_of_the_clip_is_lost() {
        let clip = Clip::built_in();
        let mut again = Vec::new();
        for nal in clip.frames.iter().flat_map(|frame| &frame.nals) {
            again.extend_from_slice(&[0, 0, 1]);
            again.extend_from_slice(nal);
        }
        let mut at = 0;
        // Start codes of three and four bytes are equivalent.
        for byte in &again {
            while PATTERN[at] != *byte {
                assert_eq!(PATTERN[at], 0, "at {at}");
                at += 1;
            }
            at += 1;
        }
        assert_eq!(at, PATTERN.len());
    }

    #[test]
    fn broken_clips_are_refused() {
        assert!(Clip::parse(&[]).is_none());
        assert!(Clip::parse(&[1, 2, 3]).is_none());
        assert!(Clip::parse(&[0, 0, 1, 0x41, 0x80, 0, 0, 1]).is_none());
        assert!(Clip::parse(&[0, 0, 1, 0x65, 0x80, 1]).is_none());
    }

    #[test]
    fn slices_of_one_picture_stay_together() {
        let stream = [
            &[0, 0, 0, 1, 0x67, 1, 2, 3][..],
            &[0, 0, 0, 1, 0x68, 1],
            &[0, 0, 1, 0x65, 0x80, 1],
            &[0, 0, 1, 0x65, 0x40, 1],
            &[0, 0, 1, 0x41, 0x80, 1],
        ]
        .concat();
        let clip = Clip::parse(&stream).expect("sound");
        let shape: Vec<_> = clip.frames.iter().map(|frame| (frame.nals.len(), frame.first_slice)).collect();
        assert_eq!(shape, [(4, 2), (1, 0)]);
    }
}
