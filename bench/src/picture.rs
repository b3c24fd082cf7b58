//! H.264 frames of any size that real decoders accept: flat grey with a moving bar of noise, whose macroblocks are sent as raw samples
//! (I_PCM, 384 bytes each). The bar's length determines the frame's size; everything else is skipped or predicted.
//!
//! Constrained baseline profile, CAVLC, one slice per picture (ITU-T H.264 sections 7.3 and 9).

use std::sync::Arc;

use rtsprelay::media::codec::bits::escape;

/// Bytes of one I_PCM macroblock's samples (256 luma, 2 × 64 chroma).
const PCM_BYTES: usize = 384;

/// Macroblocks across and down of the sizes to choose from: 640x360, 1280x720, 1920x1080, 3840x2160.
const SIZES: [(u32, u32, u32, u32); 4] =
    [(640, 360, 40, 23), (1280, 720, 80, 45), (1920, 1080, 120, 68), (3840, 2160, 240, 135)];

/// Writes bits, most significant first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Bits of the last byte that are in use, 0 to 7; 0: it is full, or there is none.
    used: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("pushed above");
            *last |= ((value >> bit & 1) as u8) << (7 - self.used);
            self.used = (self.used + 1) % 8;
        }
    }

    /// Unsigned Exp-Golomb code (section 9.1).
    fn ue(&mut self, value: u32) {
        let code = value + 1;
        let length = 32 - code.leading_zeros();
        self.put(0, length - 1);
        self.put(code, length);
    }

    /// Zero bits up to the next byte.
    fn align(&mut self) {
        self.used = 0;
    }

    /// The stop bit (section 7.3.2.11).
    fn trailing(mut self) -> Vec<u8> {
        self.put(1, 1);
        self.bytes
    }
}

/// A NAL unit from its header and RBSP, with emulation prevention (section 7.4.1).
fn nal(header: u8, rbsp: &[u8]) -> Vec<u8> {
    [&[header], &escape(rbsp)[..]].concat()
}

/// Makes pictures of one stream.
#[derive(Clone)]
pub struct Picture {
    width: u32,
    height: u32,
    mbs_wide: usize,
    mbs: usize,
    /// Random bytes without a zero, from which the bar's samples are taken.
    noise: Arc<[u8]>,
    frame_num: u32,
    idr_id: u32,
}

/// The configured frames do not fit into the largest picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes is too large; lower the bit rate or --keyframe-factor")]
pub struct FrameTooLarge {
    bytes: usize,
}

impl From<FrameTooLarge> for String {
    fn from(error: FrameTooLarge) -> String {
        error.to_string()
    }
}

impl Picture {
    /// Pictures just large enough that one can have `frame_bytes_max`.
    pub fn new(frame_bytes_max: usize, seed: u64) -> Result<Picture, FrameTooLarge> {
        let fits = |&(_, _, wide, high): &(u32, u32, u32, u32)| (wide * high) as usize * PCM_BYTES >= frame_bytes_max;
        let Some((width, height, wide, high)) = SIZES.into_iter().find(fits) else {
            return Err(FrameTooLarge { bytes: frame_bytes_max });
        };
        let mut random = fastrand::Rng::with_seed(seed);
        let noise = std::iter::repeat_with(|| random.u8(16..=235)).take(64 * 1024 + PCM_BYTES).collect();
        let mbs = (wide * high) as usize;
        Ok(Picture { width, height, mbs_wide: wide as usize, mbs, noise, frame_num: 0, idr_id: 0 })
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The sequence parameter set (section 7.3.2.1.1).
    pub fn sps(&self) -> Vec<u8> {
        let level = if self.width > 1920 { 51 } else { 40 };
        let mut bits = Bits { bytes: vec![66, 0xC0, level], used: 0 };
        bits.ue(0); // seq_parameter_set_id
        bits.ue(4); // log2_max_frame_num_minus4
        bits.ue(2); // pic_order_cnt_type: output order is decoding order
        bits.ue(1); // max_num_ref_frames
        bits.put(0, 1); // gaps_in_frame_num_value_allowed_flag
        bits.ue(self.mbs_wide as u32 - 1);
        bits.ue((self.mbs / self.mbs_wide) as u32 - 1);
        bits.put(0b11, 2); // frame_mbs_only_flag, direct_8x8_inference_flag
        let crop = ((self.mbs / self.mbs_wide) as u32 * 16 - self.height) / 2;
        bits.put(u32::from(crop > 0), 1);
        if crop > 0 {
            for side in [0, 0, 0, crop] {
                bits.ue(side);
            }
        }
        bits.put(0, 1); // vui_parameters_present_flag
        nal(0x67, &bits.trailing())
    }

    /// The picture parameter set (section 7.3.2.2).
    pub fn pps(&self) -> Vec<u8> {
        let mut bits = Bits::default();
        bits.ue(0); // pic_parameter_set_id
        bits.ue(0); // seq_parameter_set_id
        bits.put(0b00, 2); // CAVLC, no bottom-field order
        bits.ue(0); // one slice group
        bits.ue(0); // one reference, list 0
        bits.ue(0); // list 1
        bits.put(0b000, 3); // no weighted prediction
        bits.ue(0); // pic_init_qp
        bits.ue(0); // pic_init_qs
        bits.ue(0); // chroma_qp_index_offset
        bits.put(0b100, 3); // deblocking control present; not constrained intra; no redundant pictures
        nal(0x68, &bits.trailing())
    }

    /// The slice of picture `number`, of `bytes` or up to 400 fewer, but no less than an empty one takes.
    pub fn slice(&mut self, number: u64, keyframe: bool, bytes: usize) -> Vec<u8> {
        let mut bits = Bits { bytes: Vec::with_capacity(bytes + 64), used: 0 };
        if keyframe {
            self.frame_num = 0;
            self.idr_id ^= 1;
        } else {
            self.frame_num = (self.frame_num + 1) % 256;
        }
        bits.ue(0); // first_mb_in_slice
        bits.ue(if keyframe { 7 } else { 5 });
        bits.ue(0); // pic_parameter_set_id
        bits.put(self.frame_num, 8);
        if keyframe {
            bits.ue(self.idr_id);
            bits.put(0b00, 2); // dec_ref_pic_marking of an IDR picture
        } else {
            bits.put(0b00, 2); // as many references as the PPS says, in their order
            bits.put(0, 1); // adaptive_ref_pic_marking_mode_flag
        }
        bits.ue(0); // slice_qp_delta
        bits.ue(1); // disable_deblocking_filter_idc
        // What the flat macroblocks of a keyframe take at most, and what all of a raw one takes.
        let flat = if keyframe { self.mbs + 16 } else { 16 };
        let bar = (bytes.saturating_sub(flat) / (PCM_BYTES + 2)).min(self.mbs);
        let first = (number as usize * 5) % self.mbs;
        let raw = |mb: usize| (mb + self.mbs - first) % self.mbs < bar;
        let mut skipped = 0;
        for mb in 0..self.mbs {
            if raw(mb) {
                if keyframe {
                    bits.ue(25); // I_PCM
                } else {
                    bits.ue(skipped);
                    bits.ue(30); // I_PCM in a P slice
                    skipped = 0;
                }
                bits.align();
                let at = (number as usize * 7919 + mb * 389) % (self.noise.len() - PCM_BYTES);
                bits.bytes.extend_from_slice(&self.noise[at..at + PCM_BYTES]);
            } else if keyframe {
                bits.ue(3); // I_16x16, DC prediction, nothing coded but the DC levels
                bits.ue(0); // intra_chroma_pred_mode
                bits.ue(0); // mb_qp_delta
                // No DC level; the code of "none" depends on the neighbours' counts: 16 for a raw one, else 0 (section 9.2.1).
                let left = mb % self.mbs_wide > 0 && raw(mb - 1);
                let above = mb >= self.mbs_wide && raw(mb - self.mbs_wide);
                if left || above { bits.put(0b000011, 6) } else { bits.put(1, 1) }
            } else {
                skipped += 1;
            }
        }
        if !keyframe && skipped > 0 {
            bits.ue(skipped);
        }
        nal(if keyframe { 0x65 } else { 0x41 }, &bits.trailing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_has_the_size_asked_for_and_no_start_code() {
        let mut picture = Picture::new(100_000, 1).unwrap();
        for (number, bytes) in [(0, 50_000), (1, 16_000), (2, 5_000), (3, 0)] {
            let slice = picture.slice(number, number == 0, bytes);
            assert!(slice.len() <= bytes.max(200) && slice.len() + 900 > bytes, "{} for {bytes}", slice.len());
            assert!(!slice.windows(3).any(|w| w[0] == 0 && w[1] == 0 && w[2] <= 2));
        }
    }

    #[test]
    fn a_larger_frame_takes_a_larger_picture() {
        assert_eq!(Picture::new(10_000, 1).unwrap().size(), (640, 360));
        assert_eq!(Picture::new(1_000_000, 1).unwrap().size(), (1280, 720));
        assert!(Picture::new(100_000_000, 1).is_err());
    }
}
