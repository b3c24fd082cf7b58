//! VP9 payloads (RFC 9628 section 4.2), in flexible and non-flexible mode.

use super::Sight;

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    // I P L F B E V Z
    let Some(&first) = payload.first() else { return };
    let (inter, layers, begins) = (first & 0x40 != 0, first & 0x20 != 0, first & 0x08 != 0);
    let mut at = 1;
    if first & 0x80 != 0 {
        let Some(&picture_id) = payload.get(at) else { return };
        at += if picture_id & 0x80 != 0 { 2 } else { 1 };
    }
    // TID (3 bits), U, SID (3 bits), D: the lowest spatial layer begins the picture.
    let spatial = if layers { payload.get(at).map_or(0, |layer| layer >> 1 & 7) } else { 0 };
    sight.add_picture(Some(begins && spatial == 0));
    if begins && spatial == 0 {
        if inter {
            sight.inter = true;
        } else {
            sight.random_access = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(payloads: &[&[u8]]) -> bool {
        let mut sight = Sight::default();
        for payload in payloads {
            inspect(payload, &mut sight);
        }
        sight.starts()
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
    fn only_the_beginning_of_the_lowest_layer_counts() {
        assert!(!starts(&[&[0x80, 0x11, 0x82]]));
        // Spatial layer 1 alone refers to layer 0 of its picture, which was lost.
        assert!(!starts(&[&[0xa8, 0x11, 0x03, 0x01, 0x82]]));
        assert!(starts(&[&[0xa8, 0x11, 0x00, 0x01, 0x82], &[0xe8, 0x11, 0x03, 0x01, 0x86]]));
    }
}
