//! MPEG-4 part 2 payloads (RFC 6416 section 5): the elementary stream (ISO/IEC 14496-2), split wherever a packet was full.

use super::{ParameterSet, Sight, annex_b};

const VOP: u8 = 0xb6;

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    if !payload.starts_with(&[0, 0, 1]) {
        // The rest of a picture, or a video packet of it: those start with a resync marker.
        sight.add_picture(Some(false));
        return;
    }
    let mut rest = payload;
    while let Some(at) = annex_b::start_code(rest) {
        rest = &rest[at + 3..];
        match rest.first() {
            Some(&VOP) => {
                // vop_coding_type: I, P, B, or a sprite.
                match rest.get(1).map(|byte| byte >> 6) {
                    Some(0) => sight.random_access = true,
                    Some(_) => sight.inter = true,
                    None => {}
                }
                sight.add_picture(Some(true));
                return;
            }
            // A video object layer: what a decoder needs first.
            Some(0x20..=0x2f) => sight.add(ParameterSet::Sequence),
            Some(_) => {}
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first bytes of packets as ffmpeg sends them.
    const HEADERS: &[u8] =
        &[0, 0, 1, 0xb0, 1, 0, 0, 1, 0xb5, 0x89, 0x13, 0, 0, 1, 0, 0, 0, 1, 0x20, 0, 0xc4, 0x8d, 0x88];
    const I: &[u8] = &[0, 0, 1, 0xb6, 0x10, 0xf0, 0x22];
    const P: &[u8] = &[0, 0, 1, 0xb6, 0x50, 0xf0, 0x22];
    const B: &[u8] = &[0, 0, 1, 0xb6, 0x90, 0xe0, 0x64];
    const REST: &[u8] = &[0xe5, 0x19, 0x9b];

    fn look(payloads: &[&[u8]]) -> Sight {
        Sight::of(inspect, payloads)
    }

    #[test]
    fn the_pictures_type_tells() {
        assert!(look(&[I, REST]).starts());
        assert!(look(&[&[HEADERS, I].concat(), REST]).starts());
        for inter in [P, B] {
            assert!(!look(&[inter, REST]).starts());
            assert!(!look(&[&[HEADERS, inter].concat()]).starts());
        }
    }

    #[test]
    fn headers_alone_are_no_picture_and_its_rest_is_no_start() {
        assert!(!look(&[HEADERS]).picture);
        assert!(look(&[HEADERS, I]).starts());
        assert!(!look(&[REST, I]).starts());
        assert!(!look(&[&[0, 0, 1]]).picture);
        assert!(!look(&[&[]]).starts());
    }
}
