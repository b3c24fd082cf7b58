//! The contents of a sequence parameter set of H.264 (section 7.3.2.1.1) or H.265 (section 7.3.2.2).

use super::bits::{Bits, Writer, escape, unescape};

/// Of either codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sps {
    /// `profile_idc`, or `general_profile_idc`.
    pub profile: u8,
    /// Width in pixels after cropping.
    pub width: u16,
    /// Height in pixels after cropping.
    pub height: u16,
    /// Both before cropping: what a decoder must store.
    pub coded: (u32, u32),
    /// `chroma_format_idc`.
    pub chroma: u8,
    /// Bits of a luma sample.
    pub luma_bits: u8,
    /// Bits of a chroma sample.
    pub chroma_bits: u8,
    /// H.264: pictures are shown in decoding order (`pic_order_cnt_type` 2, or the Baseline profile).
    pub in_order: bool,
}

/// The contents of H.264 VUI parameters (annex E.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vui {
    /// Samples go from 0 to 255.
    pub full_range: bool,
    /// `matrix_coefficients`.
    pub matrix: Option<u8>,
    /// `max_num_reorder_frames`: pictures that can be shown later than ones decoded after them.
    pub reorder: Option<u32>,
}

fn pixels(coded: u32, cropped: u32) -> Option<u16> {
    u16::try_from(coded.checked_sub(cropped)?).ok().filter(|pixels| *pixels > 0)
}

/// The size of a coded picture after cropping, whose units follow from `chroma_format_idc`; `fields`: how many fields a frame has.
fn cropped(bits: &mut Bits<'_>, coded: (u32, u32), chroma: u32, fields: u32) -> Option<(u16, u16)> {
    let mut crop = [0u32; 4];
    if bits.bit()? {
        for side in &mut crop {
            *side = bits.ue()?;
        }
    }
    let (unit_x, unit_y) = match chroma {
        1 => (2, 2),
        2 => (2, 1),
        _ => (1, 1),
    };
    let across = crop[0].checked_add(crop[1])?.checked_mul(unit_x)?;
    let down = crop[2].checked_add(crop[3])?.checked_mul(unit_y * fields)?;
    Some((pixels(coded.0, across)?, pixels(coded.1, down)?))
}

impl Sps {
    /// Parses a NAL unit of H.264; `None` if it is truncated or invalid.
    pub fn h264(nal: &[u8]) -> Option<Sps> {
        let rbsp = unescape(nal.get(1..)?);
        Sps::up_to_vui(&mut Bits::new(&rbsp)).map(|(sps, _)| sps)
    }

    /// The same with the VUI parameters. If these are damaged, what precedes the error is used.
    pub fn h264_with_vui(nal: &[u8]) -> Option<(Sps, Vui)> {
        let rbsp = unescape(nal.get(1..)?);
        let mut bits = Bits::new(&rbsp);
        let (sps, _) = Sps::up_to_vui(&mut bits)?;
        let mut vui = Vui::default();
        if bits.bit()? {
            let _ = vui.read(&mut bits);
        }
        Some((sps, vui))
    }

    /// The same NAL unit of H.264 with `bitstream_restriction` in it (annex E.2.1), which says that no picture is shown later than one that
    /// is decoded after it. A decoder that is not told so holds pictures back. `None` where it says something of that already, or where
    /// it is not certain: pictures are in order by `pic_order_cnt_type` 2 and in the Baseline profile, and where the stream has `shown` it.
    pub fn without_reordering(nal: &[u8], shown: bool) -> Option<Vec<u8>> {
        let rbsp = unescape(nal.get(1..)?);
        let mut bits = Bits::new(&rbsp);
        let (sps, references) = Sps::up_to_vui(&mut bits)?;
        if !sps.in_order && !shown {
            return None;
        }
        let has_vui = bits.position();
        let restriction = if bits.bit()? {
            Vui::default().up_to_restriction(&mut bits)?;
            Some(bits.position())
        } else {
            None
        };
        if restriction.is_some() && bits.bit()? {
            return None;
        }
        let mut out = Writer::default();
        let mut before = Bits::new(&rbsp);
        for _ in 0..restriction.unwrap_or(has_vui) {
            out.bit(before.bit()?);
        }
        if restriction.is_none() {
            out.bit(true);
            // No aspect ratio, overscan, signal type, chroma location, timing, two HRDs, picture structure.
            (0..8).for_each(|_| out.bit(false));
        }
        // The flag itself; motion vectors over the edges; then the values that are inferred without it.
        out.bit(true);
        out.bit(true);
        for value in [2, 1, 16, 16, 0, references] {
            out.ue(value);
        }
        // The stop bit.
        out.bit(true);
        Some([&nal[..1], &escape(&out.finish())].concat())
    }

    /// The same NAL unit of H.264 without `bitstream_restriction`, as cameras send it; `None` if it has none.
    #[cfg(feature = "testing")]
    pub fn without_restriction(nal: &[u8]) -> Option<Vec<u8>> {
        let rbsp = unescape(nal.get(1..)?);
        let mut bits = Bits::new(&rbsp);
        Sps::up_to_vui(&mut bits)?;
        bits.bit().filter(|has_vui| *has_vui)?;
        Vui::default().up_to_restriction(&mut bits)?;
        let restriction = bits.position();
        bits.bit().filter(|has_restriction| *has_restriction)?;
        let mut out = Writer::default();
        let mut before = Bits::new(&rbsp);
        for _ in 0..restriction {
            out.bit(before.bit()?);
        }
        // The flag, and the stop bit.
        out.bit(false);
        out.bit(true);
        Some([&nal[..1], &escape(&out.finish())].concat())
    }

    /// Reads a sequence parameter set of H.264 up to `vui_parameters_present_flag`, with `max_num_ref_frames`.
    fn up_to_vui(bits: &mut Bits<'_>) -> Option<(Sps, u32)> {
        let profile = bits.bits(8)? as u8;
        bits.skip(16)?;
        bits.ue()?;
        let (mut chroma, mut luma_bits, mut chroma_bits) = (1, 8, 8);
        if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            chroma = bits.ue()?;
            if chroma > 3 {
                return None;
            }
            if chroma == 3 {
                bits.bit()?;
            }
            (luma_bits, chroma_bits) = (8 + bits.ue()?, 8 + bits.ue()?);
            bits.bit()?;
            if bits.bit()? {
                for list in 0..if chroma == 3 { 12 } else { 8 } {
                    if bits.bit()? {
                        scaling_list(bits, if list < 6 { 16 } else { 64 })?;
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
                for _ in 0..bits.ue()?.min(255) {
                    bits.ue()?;
                }
            }
            _ => {}
        }
        let references = bits.ue()?;
        bits.bit()?;
        let width = bits.ue()?.checked_add(1)?.checked_mul(16)?;
        let map_units = bits.ue()?.checked_add(1)?;
        let frames_only = bits.bit()?;
        if !frames_only {
            bits.bit()?;
        }
        let fields = if frames_only { 1 } else { 2 };
        let height = map_units.checked_mul(16 * fields)?;
        bits.bit()?;
        let (across, down) = cropped(bits, (width, height), chroma, fields)?;
        let sps = Sps {
            profile,
            width: across,
            height: down,
            coded: (width, height),
            chroma: chroma as u8,
            luma_bits: u8::try_from(luma_bits).ok()?,
            chroma_bits: u8::try_from(chroma_bits).ok()?,
            in_order: order_type == 2 || profile == 66,
        };
        Some((sps, references))
    }

    /// Parses a NAL unit of H.265; `None` if it is truncated or invalid.
    pub fn h265(nal: &[u8]) -> Option<Sps> {
        let rbsp = unescape(nal.get(2..)?);
        let mut bits = Bits::new(&rbsp);
        bits.skip(4)?;
        let sub_layers = bits.bits(3)?;
        bits.bit()?;
        bits.skip(3)?;
        let profile = bits.bits(5)? as u8;
        bits.skip(32 + 48 + 8)?;
        let flags: Vec<(bool, bool)> =
            (0..sub_layers).map(|_| Some((bits.bit()?, bits.bit()?))).collect::<Option<_>>()?;
        if sub_layers > 0 {
            bits.skip(2 * (8 - sub_layers as usize))?;
        }
        for (has_profile, has_level) in flags {
            bits.skip(if has_profile { 88 } else { 0 } + if has_level { 8 } else { 0 })?;
        }
        bits.ue()?;
        let chroma = bits.ue()?;
        if chroma > 3 {
            return None;
        }
        if chroma == 3 {
            bits.bit()?;
        }
        let coded = (bits.ue()?, bits.ue()?);
        let (width, height) = cropped(&mut bits, coded, chroma, 1)?;
        Some(Sps {
            profile,
            width,
            height,
            coded,
            chroma: chroma as u8,
            luma_bits: u8::try_from(bits.ue()?.checked_add(8)?).ok()?,
            chroma_bits: u8::try_from(bits.ue()?.checked_add(8)?).ok()?,
            in_order: false,
        })
    }
}

impl Vui {
    /// Parses VUI parameters as far as needed.
    fn read(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        self.up_to_restriction(bits)?;
        if bits.bit()? {
            bits.bit()?;
            for _ in 0..4 {
                bits.ue()?;
            }
            self.reorder = Some(bits.ue()?);
        }
        Some(())
    }

    /// Reads them up to `bitstream_restriction_flag`.
    fn up_to_restriction(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        if bits.bit()? && bits.bits(8)? == 255 {
            bits.skip(32)?;
        }
        if bits.bit()? {
            bits.bit()?;
        }
        if bits.bit()? {
            bits.skip(3)?;
            self.full_range = bits.bit()?;
            if bits.bit()? {
                bits.skip(16)?;
                self.matrix = Some(bits.bits(8)? as u8);
            }
        }
        if bits.bit()? {
            bits.ue()?;
            bits.ue()?;
        }
        if bits.bit()? {
            bits.skip(65)?;
        }
        let mut has_hrd = false;
        for _ in 0..2 {
            if bits.bit()? {
                has_hrd = true;
                let count = bits.ue()?.min(31);
                bits.skip(8)?;
                for _ in 0..=count {
                    bits.ue()?;
                    bits.ue()?;
                    bits.bit()?;
                }
                bits.skip(20)?;
            }
        }
        if has_hrd {
            bits.bit()?;
        }
        bits.bit()?;
        Some(())
    }
}

/// Skips a scaling list of H.264 (section 7.3.2.1.1.1) with this many entries; `None` past the end.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_of_a_camera_is_known_by_its_parameter_set() {
        // 1920x1080 High, written by x264.
        let nal = [
            0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04,
            0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
        ];
        // It tells of two frames of reordering, and of no colours.
        let (sps, vui) = Sps::h264_with_vui(&nal).expect("sound");
        assert_eq!((sps.profile, sps.width, sps.height, sps.chroma, sps.luma_bits), (100, 1920, 1080, 1, 8));
        assert_eq!((sps.coded, vui), ((1920, 1088), Vui { full_range: false, matrix: None, reorder: Some(2) }));
        // 320x240 Main, written by x265.
        let nal = [
            0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3c,
            0xa0, 0x0a, 0x08, 0x0f, 0x16, 0x59, 0x59, 0xa4, 0x93, 0x2b, 0xc0, 0x5a,
        ];
        let sps = Sps::h265(&nal).expect("sound");
        assert_eq!((sps.profile, sps.width, sps.height, sps.chroma, sps.luma_bits), (1, 320, 240, 1, 8));
    }

    #[test]
    fn a_decoder_is_told_that_pictures_come_in_order_where_that_is_certain() {
        // 640x480 without VUI: ids and lengths 0, pic_order_cnt_type 2, one reference; no gaps; the size; frames only, no cropping.
        let mut plain = Writer::default();
        [0, 0, 2, 1].iter().for_each(|value| plain.ue(*value));
        plain.bit(false);
        [39, 29].iter().for_each(|value| plain.ue(*value));
        [true, true, false, false, true].iter().for_each(|bit| plain.bit(*bit));
        let plain = [&[0x67, 77, 0, 30][..], &escape(&plain.finish())].concat();
        assert_eq!(Sps::h264(&plain).map(|sps| (sps.width, sps.height, sps.in_order)), Some((640, 480, true)));
        assert!(Sps::without_reordering(&plain, false).is_some());
        let high = [
            0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04,
            0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
        ];
        assert_eq!(Sps::without_reordering(&high, false), None, "B frames are possible");
        let clip = crate::source::clip::Clip::built_in();
        let sps = clip.frames[0].nals.iter().find(|nal| nal[0] & 0x1f == 7).unwrap();
        for nal in [&plain[..], sps] {
            let Some(told) = Sps::without_reordering(nal, false) else { continue };
            assert_eq!(Sps::h264(&told), Sps::h264(nal), "nothing else has changed");
            assert_eq!(Sps::without_reordering(&told, true), None, "it says so now");
            let rbsp = unescape(&told[1..]);
            let mut bits = Bits::new(&rbsp);
            let (_, references) = Sps::up_to_vui(&mut bits).unwrap();
            assert!(bits.bit().unwrap());
            Vui::default().up_to_restriction(&mut bits).unwrap();
            assert!(bits.bit().unwrap() && bits.bit().unwrap());
            let values: Vec<_> = (0..6).map(|_| bits.ue().unwrap()).collect();
            assert_eq!(values, [2, 1, 16, 16, 0, references]);
            assert!(bits.bit().unwrap(), "the stop bit");
        }
        let mut made = Writer::default();
        [0, 1, 2, 7, 1_000, u32::MAX - 1].iter().for_each(|value| made.ue(*value));
        let bytes = made.finish();
        let mut bits = Bits::new(&bytes);
        assert!([0, 1, 2, 7, 1_000, u32::MAX - 1].iter().all(|value| bits.ue() == Some(*value)));
        assert_eq!(unescape(&escape(&[0, 0, 0, 0, 0, 1, 0, 0, 3])), [0, 0, 0, 0, 0, 1, 0, 0, 3]);
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let nal: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(..)).collect();
            let _ = (Sps::h264_with_vui(&nal), Sps::h265(&nal), Sps::without_reordering(&nal, true));
        }
    }
}
