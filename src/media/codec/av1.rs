//! AV1 payloads (RTP Payload Format For AV1, section 4).

use super::bits::Bits;
use super::{ParameterSet, Sight};

/// Reads a leb128 number (AV1 specification section 4.10.5) from the front.
fn leb128(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0usize;
    for index in 0..8 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f).checked_shl(7 * index)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    // The aggregation header: Z Y W W N - - -.
    let Some((&header, mut rest)) = payload.split_first() else { return };
    let continues = header & 0x80 != 0;
    let count = usize::from(header >> 4 & 3);
    // The first packet of a coded video sequence, which starts with a key frame.
    sight.random_access |= header & 0x08 != 0;
    sight.add_picture(Some(!continues));
    let mut index = 0usize;
    while !rest.is_empty() {
        index += 1;
        // If there is a count, the last element extends to the end.
        let element = if count > 0 && index >= count {
            std::mem::take(&mut rest)
        } else {
            let Some(len) = leb128(&mut rest) else { return };
            let Some(element) = rest.get(..len) else { return };
            rest = &rest[len..];
            element
        };
        if index > 1 || !continues {
            unit(element, sight);
        }
    }
}

/// The start of an OBU (AV1 specification section 5.3.1).
fn unit(element: &[u8], sight: &mut Sight) {
    let Some((&header, mut body)) = element.split_first() else { return };
    if header & 0x04 != 0 {
        body = body.get(1..).unwrap_or_default();
    }
    if header & 0x02 != 0 && leb128(&mut body).is_none() {
        return;
    }
    match header >> 3 & 0x0f {
        1 => sight.add(ParameterSet::Sequence),
        // Frame header and frame start with show_existing_frame (1 bit) and frame_type (2 bits, 0 for a key frame).
        3 | 6 => match body.first() {
            Some(first) if first & 0x80 == 0 && first & 0x60 == 0 => sight.random_access = true,
            Some(first) if first & 0x80 == 0 => sight.inter = true,
            _ => {}
        },
        _ => {}
    }
}

/// The contents of a sequence header (AV1 specification section 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// `seq_profile`.
    pub profile: u8,
    /// `seq_level_idx` of the first operating point.
    pub level: u8,
    /// Its tier is High.
    pub high_tier: bool,
    /// Bits of a sample.
    pub bits: u8,
    /// As in `av1C`: monochrome, subsampling horizontally and vertically, and two bits of the chroma samples' position.
    pub chroma: u8,
    /// The largest width and height of a frame.
    pub picture: (u16, u16),
}

/// Assembles a temporal unit from the payloads of its packets: OBUs with size fields, as in MP4, without delimiters. `None` if a part
/// is missing.
pub fn temporal_unit<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut begun: Option<Vec<u8>> = None;
    for payload in payloads {
        let (&header, mut rest) = payload.split_first()?;
        let (continues, goes_on, count) = (header & 0x80 != 0, header & 0x40 != 0, usize::from(header >> 4 & 3));
        if continues != begun.is_some() {
            return None;
        }
        let mut index = 0;
        while !rest.is_empty() {
            index += 1;
            let element = if count > 0 && index >= count {
                std::mem::take(&mut rest)
            } else {
                let len = leb128(&mut rest)?;
                let (element, more) = rest.split_at_checked(len)?;
                rest = more;
                element
            };
            let is_last = rest.is_empty();
            let mut whole = begun.take().unwrap_or_default();
            whole.extend_from_slice(element);
            if is_last && goes_on {
                begun = Some(whole);
            } else {
                write_obu(&mut out, &whole)?;
            }
        }
    }
    begun.is_none().then_some(out)
}

/// Appends an OBU with its size; delimiters, tile lists and padding are omitted.
fn write_obu(out: &mut Vec<u8>, obu: &[u8]) -> Option<()> {
    let Some((&header, mut body)) = obu.split_first() else { return Some(()) };
    if matches!(header >> 3 & 0x0f, 2 | 8 | 15) {
        return Some(());
    }
    out.push(header | 0x02);
    if header & 0x04 != 0 {
        let (extension, rest) = body.split_first()?;
        out.push(*extension);
        body = rest;
    }
    if header & 0x02 != 0 {
        let len = leb128(&mut body)?;
        body = body.get(..len)?;
    }
    let mut len = body.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(body);
    Some(())
}

/// The sequence header OBU of a temporal unit made by [`temporal_unit`], and its contents.
pub fn sequence_header(unit: &[u8]) -> Option<(&[u8], Sequence)> {
    let mut rest = unit;
    while let Some((&header, mut body)) = rest.split_first() {
        if header & 0x04 != 0 {
            body = body.get(1..)?;
        }
        let len = leb128(&mut body)?;
        let (content, more) = body.split_at_checked(len)?;
        if header >> 3 & 0x0f == 1 {
            return Some((&rest[..rest.len() - more.len()], sequence(content)?));
        }
        rest = more;
    }
    None
}

fn sequence(content: &[u8]) -> Option<Sequence> {
    let mut bits = Bits::new(content);
    let profile = bits.bits(3)? as u8;
    bits.bit()?;
    let is_reduced = bits.bit()?;
    let (level, high_tier) = if is_reduced { (bits.bits(5)?, false) } else { operating_points(&mut bits)? };
    let (width_bits, height_bits) = (bits.bits(4)? + 1, bits.bits(4)? + 1);
    let picture = (bits.bits(width_bits)?.checked_add(1)?, bits.bits(height_bits)?.checked_add(1)?);
    if !is_reduced && bits.bit()? {
        bits.skip(7)?;
    }
    bits.skip(3)?;
    if !is_reduced {
        bits.skip(4)?;
        let has_order = bits.bit()?;
        if has_order {
            bits.skip(2)?;
        }
        let screen_tools = bits.bit()? || bits.bit()?;
        if screen_tools && !bits.bit()? {
            bits.bit()?;
        }
        if has_order {
            bits.skip(3)?;
        }
    }
    bits.skip(3)?;
    let (sample_bits, chroma) = colour(&mut bits, profile)?;
    let pixels = |value: u32| u16::try_from(value).ok();
    let picture = (pixels(picture.0)?, pixels(picture.1)?);
    Some(Sequence { profile, level: level as u8, high_tier, bits: sample_bits, chroma, picture })
}

/// From `timing_info_present_flag` to the last operating point; the level and tier of the first one.
fn operating_points(bits: &mut Bits<'_>) -> Option<(u32, bool)> {
    let mut delay_bits = None;
    if bits.bit()? {
        bits.skip(64)?;
        if bits.bit()? {
            bits.ue()?;
        }
        if bits.bit()? {
            delay_bits = Some(bits.bits(5)? as usize + 1);
            bits.skip(32 + 5 + 5)?;
        }
    }
    let has_display_delay = bits.bit()?;
    let mut first = None;
    for _ in 0..=bits.bits(5)? {
        bits.skip(12)?;
        let level = bits.bits(5)?;
        let tier = level > 7 && bits.bit()?;
        if let Some(delay_bits) = delay_bits
            && bits.bit()?
        {
            bits.skip(2 * delay_bits + 1)?;
        }
        if has_display_delay && bits.bit()? {
            bits.skip(4)?;
        }
        first.get_or_insert((level, tier));
    }
    first
}

/// `color_config`: bits of a sample, and the chroma bits of `av1C`.
fn colour(bits: &mut Bits<'_>, profile: u8) -> Option<(u8, u8)> {
    let is_high = bits.bit()?;
    let sample_bits = match (is_high, profile) {
        (true, 2) if bits.bit()? => 12,
        (true, _) => 10,
        _ => 8,
    };
    let is_mono = profile != 1 && bits.bit()?;
    let described = if bits.bit()? { bits.bits(24)? } else { 0x02_0202 };
    if is_mono {
        return Some((sample_bits, 0b1_1100));
    }
    // BT.709 primaries, sRGB transfer, identity matrix: RGB.
    if described == 0x01_0d00 {
        return Some((sample_bits, 0));
    }
    bits.bit()?;
    let (horizontal, vertical) = match (profile, sample_bits) {
        (0, _) => (true, true),
        (1, _) => (false, false),
        (_, 12) => match bits.bit()? {
            true => (true, bits.bit()?),
            false => (false, false),
        },
        _ => (true, false),
    };
    let position = if horizontal && vertical { bits.bits(2)? as u8 } else { 0 };
    Some((sample_bits, u8::from(horizontal) << 3 | u8::from(vertical) << 2 | position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(payloads: &[&[u8]]) -> Sight {
        Sight::of(inspect, payloads)
    }

    #[test]
    fn the_first_packet_of_a_sequence_is_a_start() {
        assert!(look(&[&[0x18, 0x0a, 0x0b, 0, 0, 0]]).starts());
    }

    #[test]
    fn a_sequence_header_or_a_key_frame_is_a_start() {
        // W 2: a sequence header of three bytes with its length, then a frame.
        assert!(look(&[&[0x20, 3, 0x08, 0x00, 0x00, 0x30, 0x10, 0]]).starts());
        // W 1: a key frame with its own size field.
        assert!(look(&[&[0x10, 0x32, 2, 0x10, 0]]).starts());
        // W 0: each with its length; the frame OBU has an extension.
        assert!(look(&[&[0x00, 2, 0x12, 0, 4, 0x34, 0x00, 0x10, 0]]).starts());
    }

    #[test]
    fn a_unit_comes_whole_out_of_its_packets() {
        // A delimiter, an OBU of five bytes in three packets, then one whole.
        let packets: [&[u8]; 3] = [&[0x60, 1, 0x10, 0x30, 1], &[0xd0, 2], &[0x80, 2, 3, 4, 2, 0x1a, 0]];
        assert_eq!(temporal_unit(packets.into_iter()).unwrap(), [0x32, 4, 1, 2, 3, 4, 0x1a, 0]);
        assert_eq!(temporal_unit([&[0x90u8, 1, 2][..]].into_iter()), None, "its beginning is missing");
    }

    #[test]
    fn a_sequence_header_of_an_encoder_is_read() {
        // 320x240, 8 bits, 4:2:0, written by SVT-AV1; the beginning of a frame behind it.
        let unit = [0x0a, 0x0b, 0, 0, 0, 0x04, 0x3c, 0xff, 0xbc, 0xfb, 0xf9, 0, 0x40, 0x32, 1, 0x14];
        let (obu, told) = sequence_header(&unit).unwrap();
        assert_eq!(obu, &unit[..13]);
        assert_eq!((told.profile, told.high_tier, told.bits, told.picture), (0, false, 8, (320, 240)));
    }

    #[test]
    fn inter_frames_and_continuations_are_none() {
        assert!(!look(&[&[0x10, 0x30, 0x30, 0]]).starts());
        // A shown existing frame.
        assert!(!look(&[&[0x10, 0x18, 0x80]]).starts());
        // A repeated sequence header before an inter frame.
        assert!(!look(&[&[0x20, 3, 0x08, 0x00, 0x00, 0x30, 0x30, 0]]).starts());
        // The rest of an element that would read as a key frame.
        assert!(!look(&[&[0x90, 0x30, 0x10, 0]]).starts());
        assert!(!look(&[&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]).starts());
    }

    #[test]
    fn a_packet_may_hold_more_elements_than_a_byte_counts() {
        // W 0, starting with the second half of an element: none of the empty elements after it is taken for its rest.
        let mut payload = vec![0x80];
        payload.extend([0; 300]);
        payload.extend([3, 0x30, 0x10, 0]);
        assert!(look(&[&payload]).random_access);
        let mut first_again = vec![0x80];
        first_again.extend([0; 256]);
        first_again.extend([3, 0x30, 0x10, 0]);
        assert!(look(&[&first_again]).random_access);
    }
}
