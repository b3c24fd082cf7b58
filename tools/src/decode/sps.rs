//! The few facts in a sequence parameter set of H.264 (section 7.3.2.1.1) that the decoder keeps to itself.

use crate::picture::{Colour, Matrix};

/// What a sequence parameter set tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sps {
    /// `profile_idc`.
    pub profile: u8,
    /// Coded width in pixels.
    pub width: u64,
    /// Coded height in pixels.
    pub height: u64,
    /// Pictures that can be shown later than ones decoded after them (`max_num_reorder_frames`), if told.
    pub reorder: Option<u32>,
    /// Pictures are shown in the order in which they are decoded (`pic_order_cnt_type` 2).
    pub in_order: bool,
    /// The matrix and range, where told.
    pub matrix: Option<Matrix>,
    /// Samples from 0 to 255.
    pub full_range: bool,
}

impl Sps {
    /// Reads a whole NAL unit; none if it is cut short or nonsense.
    pub fn parse(nal: &[u8]) -> Option<Self> {
        let rbsp = unescape(nal.get(1..)?);
        let mut bits = Bits { data: &rbsp, at: 0 };
        let profile = bits.bits(8)? as u8;
        bits.bits(16)?;
        bits.ue()?;
        if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            let chroma_format = bits.ue()?;
            if chroma_format == 3 {
                bits.bit()?;
            }
            bits.ue()?;
            bits.ue()?;
            bits.bit()?;
            if bits.bit()? {
                for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                    if bits.bit()? {
                        scaling_list(&mut bits, if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.ue()?;
        let order_type = bits.ue()?;
        match order_type {
            0 => drop(bits.ue()?),
            1 => {
                bits.bit()?;
                bits.ue()?;
                bits.ue()?;
                let count = bits.ue()?;
                for _ in 0..count.min(255) {
                    bits.ue()?;
                }
            }
            _ => {}
        }
        bits.ue()?;
        bits.bit()?;
        let width = (u64::from(bits.ue()?) + 1) * 16;
        let map_units = u64::from(bits.ue()?) + 1;
        let frames_only = bits.bit()?;
        if !frames_only {
            bits.bit()?;
        }
        let height = map_units * 16 * if frames_only { 1 } else { 2 };
        bits.bit()?;
        if bits.bit()? {
            for _ in 0..4 {
                bits.ue()?;
            }
        }
        let mut sps =
            Sps { profile, width, height, reorder: None, in_order: order_type == 2, matrix: None, full_range: false };
        if bits.bit()? {
            // The facts before the fault in a damaged VUI are good.
            let _ = sps.vui(&mut bits);
        }
        Some(sps)
    }

    /// Annex E.1.1.
    fn vui(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        if bits.bit()? && bits.bits(8)? == 255 {
            bits.bits(32)?;
        }
        if bits.bit()? {
            bits.bit()?;
        }
        if bits.bit()? {
            bits.bits(3)?;
            self.full_range = bits.bit()?;
            if bits.bit()? {
                bits.bits(16)?;
                self.matrix = match bits.bits(8)? {
                    1 => Some(Matrix::Bt709),
                    4..=6 => Some(Matrix::Bt601),
                    9 | 10 => Some(Matrix::Bt2020),
                    _ => None,
                };
            }
        }
        if bits.bit()? {
            bits.ue()?;
            bits.ue()?;
        }
        if bits.bit()? {
            bits.bits(32)?;
            bits.bits(32)?;
            bits.bit()?;
        }
        let nal_hrd = bits.bit()?;
        if nal_hrd {
            hrd(bits)?;
        }
        let vcl_hrd = bits.bit()?;
        if vcl_hrd {
            hrd(bits)?;
        }
        if nal_hrd || vcl_hrd {
            bits.bit()?;
        }
        bits.bit()?;
        if bits.bit()? {
            bits.bit()?;
            for _ in 0..4 {
                bits.ue()?;
            }
            self.reorder = Some(bits.ue()?);
        }
        Some(())
    }

    /// What the samples stand for.
    pub fn colour(&self) -> Colour {
        let usual = Colour::unspecified(self.height as usize);
        Colour { matrix: self.matrix.unwrap_or(usual.matrix), full_range: self.full_range }
    }
}

fn hrd(bits: &mut Bits<'_>) -> Option<()> {
    let count = bits.ue()?;
    bits.bits(8)?;
    for _ in 0..=count.min(31) {
        bits.ue()?;
        bits.ue()?;
        bits.bit()?;
    }
    bits.bits(20).map(drop)
}

fn scaling_list(bits: &mut Bits<'_>, size: usize) -> Option<()> {
    let (mut last, mut next) = (8i64, 8i64);
    for _ in 0..size {
        if next != 0 {
            let code = i64::from(bits.ue()?);
            let delta = if code % 2 == 0 { -(code / 2) } else { (code + 1) / 2 };
            next = (last + delta).rem_euclid(256);
        }
        if next != 0 {
            last = next;
        }
    }
    Some(())
}

/// Whether a NAL unit is a slice of a B picture (section 7.3.3): such streams are shown in another order than decoded.
pub fn is_b_slice(nal: &[u8]) -> bool {
    if nal.first().is_none_or(|header| header & 0x1f != 1) {
        return false;
    }
    let head = unescape(&nal[1..nal.len().min(16)]);
    let mut bits = Bits { data: &head, at: 0 };
    bits.ue().and_then(|_| bits.ue()).is_some_and(|kind| kind % 5 == 1)
}

/// Takes out emulation prevention bytes (section 7.4.1).
fn unescape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut zeros = 0;
    for &byte in data {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = *self.data.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }

    fn bits(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0u32, |value, _| Some(value << 1 | u32::from(self.bit()?)))
    }

    /// Exp-Golomb (section 9.1).
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some(((1u64 << zeros) - 1) as u32 + self.bits(zeros)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_set_of_a_camera_is_read() {
        // 1920x1080 High, written by x264: BT.709 told, two frames of reordering.
        let nal = [
            0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04,
            0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
        ];
        let sps = Sps::parse(&nal).expect("sound");
        assert_eq!((sps.profile, sps.width, sps.height, sps.reorder), (100, 1920, 1088, Some(2)));
        assert_eq!(sps.colour(), Colour { matrix: Matrix::Bt709, full_range: false });
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..50_000 {
            let nal: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(..)).collect();
            let _ = Sps::parse(&nal);
            let _ = is_b_slice(&nal);
        }
    }
}
