//! VP8 payloads (RFC 7741 section 4).

use super::Sight;

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    let Some(&first) = payload.first() else { return };
    let begins = first & 0x10 != 0 && first & 0x07 == 0;
    sight.add_picture(Some(begins));
    if !begins {
        return;
    }
    let mut at = 1;
    if first & 0x80 != 0 {
        let Some(&extension) = payload.get(at) else { return };
        at += 1;
        if extension & 0x80 != 0 {
            let Some(&picture_id) = payload.get(at) else { return };
            at += if picture_id & 0x80 != 0 { 2 } else { 1 };
        }
        at += usize::from(extension & 0x40 != 0) + usize::from(extension & 0x30 != 0);
    }
    // The frame tag's lowest bit is 0 for a key frame (RFC 6386 section 9.1).
    match payload.get(at) {
        Some(tag) if tag & 1 == 0 => sight.random_access = true,
        _ => sight.inter = true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(payloads: &[&[u8]]) -> bool {
        Sight::of(inspect, payloads).starts()
    }

    #[test]
    fn the_frame_tag_tells_behind_every_descriptor() {
        assert!(starts(&[&[0x10, 0x50, 0x02, 0x00, 0x9d, 0x01, 0x2a]]));
        assert!(!starts(&[&[0x10, 0x51, 0x02, 0x00]]));
        // Picture ids of 7 and 15 bits, TL0PICIDX and TID.
        assert!(starts(&[&[0x90, 0x80, 0x11, 0x50]]));
        assert!(starts(&[&[0x90, 0x80, 0x91, 0x11, 0x50]]));
        assert!(!starts(&[&[0x90, 0x80, 0x90, 0x10, 0x51]]));
        assert!(starts(&[&[0x90, 0xf0, 0x91, 0x11, 0x01, 0x01, 0x50]]));
        assert!(!starts(&[&[0x90, 0xf0, 0x91, 0x11, 0x00, 0x00, 0x51]]));
    }

    #[test]
    fn only_the_first_partition_counts() {
        assert!(!starts(&[&[0x00, 0x50]]));
        assert!(!starts(&[&[0x11, 0x50]]));
        assert!(starts(&[&[0x10, 0x50], &[0x00, 0x51], &[0x11, 0x51]]));
        assert!(!starts(&[&[0x90], &[0x90, 0x80]]));
    }
}
