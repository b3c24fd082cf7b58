//! VP9 payloads (RFC 9628 section 4.2), in flexible and non-flexible mode.
//!
//! P says whether a picture refers to others, but ffmpeg never sets it. Only the frame's own header is reliable.

use super::Sight;
use super::bits::Bits;

const PICTURE_ID: u8 = 0x80;
const INTER: u8 = 0x40;
const LAYERS: u8 = 0x20;
const FLEXIBLE: u8 = 0x10;
const BEGINS: u8 = 0x08;
const STRUCTURE: u8 = 0x02;

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    // I P L F B E V Z
    let Some(&first) = payload.first() else { return };
    let mut at = 1;
    if first & PICTURE_ID != 0 {
        let Some(&picture_id) = payload.get(at) else { return };
        at += if picture_id & 0x80 != 0 { 2 } else { 1 };
    }
    // TID (3 bits), U, SID (3 bits), D: the lowest spatial layer starts the picture.
    let spatial = if first & LAYERS != 0 { payload.get(at).map_or(0, |layer| layer >> 1 & 7) } else { 0 };
    let begins = first & BEGINS != 0 && spatial == 0;
    sight.add_picture(Some(begins));
    if !begins {
        return;
    }
    let key = frame(first, payload.get(at..).unwrap_or_default()).and_then(is_key);
    if first & INTER != 0 || key == Some(false) {
        sight.inter = true;
    } else {
        sight.random_access = true;
    }
}

/// The frame after the rest of a descriptor that follows the picture id.
fn frame(first: u8, rest: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    if first & LAYERS != 0 {
        // The layers' indices and, in non-flexible mode, TL0PICIDX.
        at += if first & FLEXIBLE == 0 { 2 } else { 1 };
    }
    if first & FLEXIBLE != 0 && first & INTER != 0 {
        // Up to three differences to reference pictures; the lowest bit of each says that another one follows.
        for _ in 0..3 {
            at += 1;
            if rest.get(at - 1)? & 1 == 0 {
                break;
            }
        }
    }
    if first & STRUCTURE != 0 {
        let structure = *rest.get(at)?;
        at += 1;
        if structure & 0x10 != 0 {
            at += 4 * (usize::from(structure >> 5) + 1);
        }
        if structure & 0x08 != 0 {
            let pictures = *rest.get(at)?;
            at += 1;
            for _ in 0..pictures {
                at += 1 + usize::from(rest.get(at)? >> 2 & 3);
            }
        }
    }
    rest.get(at..)
}

/// Whether it is a key frame, by the uncompressed header (VP9 specification section 6.2); `None` if it is not a frame.
fn is_key(frame: &[u8]) -> Option<bool> {
    let first = *frame.first()?;
    // frame_marker is 2. The profile's lower bit comes first; profile 3 is followed by one more bit.
    if first >> 6 != 2 {
        return None;
    }
    let shift = if first >> 4 & 3 == 3 { 1 } else { 2 };
    // show_existing_frame, then frame_type.
    Some(first >> shift & 3 == 0)
}

/// The contents of a key frame's header (VP9 specification section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFrame {
    /// The profile.
    pub profile: u8,
    /// Bits of a sample.
    pub bits: u8,
    /// As in `vpcC`: 1 for 4:2:0, 2 for 4:2:2, 3 for 4:4:4.
    pub chroma: u8,
    /// Width and height.
    pub picture: (u16, u16),
}

/// The frame that these payloads carry; with spatial layers it may be several.
pub fn frames<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut is_first = true;
    for payload in payloads {
        let (&first, mut rest) = payload.split_first()?;
        if std::mem::take(&mut is_first) && first & BEGINS == 0 {
            return None;
        }
        if first & PICTURE_ID != 0 {
            let (id, more) = rest.split_first()?;
            rest = if id & 0x80 != 0 { more.get(1..)? } else { more };
        }
        out.extend_from_slice(frame(first, rest)?);
    }
    (!out.is_empty()).then_some(out)
}

/// The contents of a key frame's uncompressed header.
pub fn key_frame(frame: &[u8]) -> Option<KeyFrame> {
    if is_key(frame) != Some(true) {
        return None;
    }
    let mut bits = Bits::new(frame);
    bits.skip(2)?;
    let profile = u8::from(bits.bit()?) | u8::from(bits.bit()?) << 1;
    bits.skip(if profile == 3 { 1 } else { 0 } + 4)?;
    if bits.bits(24)? != 0x49_8342 {
        return None;
    }
    let sample_bits = if profile >= 2 { 10 + 2 * u8::from(bits.bit()?) } else { 8 };
    let is_odd = profile & 1 == 1;
    let chroma = if bits.bits(3)? == 7 {
        bits.skip(usize::from(is_odd))?;
        3
    } else {
        bits.bit()?;
        match is_odd {
            false => 1,
            true => {
                let (horizontal, _) = (bits.bit()?, bits.bit()?);
                bits.bit()?;
                if horizontal { 2 } else { 3 }
            }
        }
    };
    let pixels = |value: u32| u16::try_from(value + 1).ok();
    let picture = (pixels(bits.bits(16)?)?, pixels(bits.bits(16)?)?);
    Some(KeyFrame { profile, bits: sample_bits, chroma, picture })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(payloads: &[&[u8]]) -> bool {
        Sight::of(inspect, payloads).starts()
    }

    #[test]
    fn a_picture_without_references_is_a_start_in_both_modes() {
        // Non-flexible with layers: picture id of 15 bits, TID 0 SID 0, TL0PICIDX.
        assert!(starts(&[&[0xa8, 0x81, 0x11, 0x00, 0x01, 0x82]]));
        assert!(!starts(&[&[0xe8, 0x81, 0x11, 0x00, 0x01, 0x86]]));
        // Flexible, no layers: picture id of 7 bits.
        assert!(starts(&[&[0x98, 0x11, 0x82]]));
        assert!(!starts(&[&[0xd8, 0x11, 0x03, 0x86]]));
        // Nothing optional at all.
        assert!(starts(&[&[0x08, 0x82]]));
    }

    #[test]
    fn the_frames_header_tells_where_p_is_never_set() {
        // As ffmpeg sends them.
        assert!(starts(&[&[0x08, 0x82, 0x49, 0x83, 0x42], &[0x00, 0xd5], &[0x04, 0x91]]));
        assert!(!starts(&[&[0x08, 0x86, 0x00, 0x40], &[0x00, 0xd9]]));
        // A frame that was decoded before is shown.
        assert!(!starts(&[&[0x0c, 0x88, 0x00]]));
        // After a scalability structure with a size and a picture group, in profile 3, as sent by GStreamer.
        assert!(starts(&[&[0x0a, 0x18, 0x01, 0x60, 0x01, 0x20, 0x01, 0x04, 0x01, 0xb1, 0x24]]));
        assert!(!starts(&[&[0x0a, 0x18, 0x01, 0x60, 0x01, 0x20, 0x01, 0x04, 0x01, 0xb3, 0x24]]));
        assert!(!starts(&[&[0x48, 0xb3, 0x00]]));
        // A payload that ends within its descriptor is judged by the descriptor.
        assert!(starts(&[&[0x0a, 0x18, 0x01]]));
        assert!(!starts(&[&[0x5a, 0x03, 0x03]]));
    }

    #[test]
    fn a_key_frame_tells_its_size() {
        // 320x240, profile 0, as libvpx writes it.
        let told = key_frame(&[0x82, 0x49, 0x83, 0x42, 0x00, 0x13, 0xf0, 0x0e, 0xf6, 0x00]).unwrap();
        assert_eq!(told, KeyFrame { profile: 0, bits: 8, chroma: 1, picture: (320, 240) });
        assert_eq!(key_frame(&[0x86, 0x00, 0x40]), None);
        let packets: [&[u8]; 2] = [&[0x08, 0x82, 1], &[0x04, 2]];
        assert_eq!(frames(packets.into_iter()).unwrap(), [0x82, 1, 2]);
    }

    #[test]
    fn only_the_beginning_of_the_lowest_layer_counts() {
        assert!(!starts(&[&[0x80, 0x11, 0x82]]));
        // Spatial layer 1 alone refers to layer 0 of its picture, which was lost.
        assert!(!starts(&[&[0xa8, 0x11, 0x03, 0x01, 0x82]]));
        assert!(starts(&[&[0xa8, 0x11, 0x00, 0x01, 0x82], &[0xe8, 0x11, 0x03, 0x01, 0x86]]));
    }
}
