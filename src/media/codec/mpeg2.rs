//! MPEG-1 and MPEG-2 payloads (RFC 2250 section 3): a header of four or eight bytes, then the elementary stream (ISO/IEC 13818-2),
//! split between slices.
//!
//! The header describes the picture too, but some senders leave those fields at zero.

use super::{ParameterSet, Sight, annex_b};

const PICTURE: u8 = 0x00;
const SEQUENCE: u8 = 0xb3;

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    let Some(&first) = payload.first() else { return };
    // T: the MPEG-2 extension follows.
    let header = if first & 0x04 == 0 { 4 } else { 8 };
    let Some(mut rest) = payload.get(header..) else { return };
    if !rest.starts_with(&[0, 0, 1]) {
        sight.add_picture(Some(false));
        return;
    }
    while let Some(at) = annex_b::start_code(rest) {
        rest = &rest[at + 3..];
        match rest.first() {
            Some(&PICTURE) => {
                // temporal_reference has 10 bits, then comes picture_coding_type: I, P, B.
                match rest.get(2).map(|byte| byte >> 3 & 7) {
                    // Without a sequence header before it, a decoder does not know the picture's size.
                    Some(1) => sight.random_access |= sight.has(ParameterSet::Sequence),
                    Some(_) => sight.inter = true,
                    None => {}
                }
                sight.add_picture(Some(true));
                return;
            }
            // A slice of a picture whose header was in an earlier packet.
            Some(0x01..=0xaf) => {
                sight.add_picture(Some(false));
                return;
            }
            Some(&SEQUENCE) => sight.add(ParameterSet::Sequence),
            Some(_) => {}
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first bytes of packets sent by ffmpeg, after the header.
    const SEQUENCE: &[u8] =
        &[0, 0, 1, 0xb3, 0x16, 0x01, 0x20, 0x13, 0xff, 0xff, 0xe0, 0x38, 0, 0, 1, 0xb5, 0x14, 0x8a, 0, 1, 0, 0];
    const GROUP: &[u8] = &[0, 0, 1, 0xb8, 0, 0x08, 0, 0x40];
    const I: &[u8] = &[0, 0, 1, 0, 0, 0x0f, 0xff, 0xf8];
    const P: &[u8] = &[0, 0, 1, 0, 0, 0xd7, 0xff, 0xfb, 0x80];
    const B: &[u8] = &[0, 0, 1, 0, 0, 0x5f, 0xff, 0xfb, 0xb8];
    const SLICE: &[u8] = &[0, 0, 1, 0x02, 0x12, 0xa4];

    fn look(parts: &[&[&[u8]]]) -> Sight {
        let mut sight = Sight::default();
        for part in parts {
            inspect(&[&[0, 0, 0, 0][..], &part.concat()].concat(), &mut sight);
        }
        sight
    }

    #[test]
    fn an_intra_picture_behind_a_sequence_header_is_a_start() {
        assert!(look(&[&[SEQUENCE, GROUP, I, SLICE], &[SLICE]]).starts());
        assert!(look(&[&[SEQUENCE, GROUP], &[I]]).starts());
        // The picture size is unknown.
        assert!(!look(&[&[GROUP, I, SLICE]]).starts());
        for inter in [P, B] {
            assert!(!look(&[&[inter, SLICE], &[SLICE]]).starts());
            assert!(!look(&[&[SEQUENCE, GROUP, inter]]).starts());
        }
    }

    #[test]
    fn the_extension_is_passed_over_and_a_slice_is_no_start() {
        let mut sight = Sight::default();
        inspect(&[&[4, 0, 0, 0, 0, 0, 0, 0][..], SEQUENCE, I].concat(), &mut sight);
        assert!(sight.starts());
        assert!(!look(&[&[SLICE], &[SEQUENCE, I]]).starts());
        assert!(!look(&[&[SEQUENCE]]).picture);
        for short in [&[][..], &[0], &[0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 1]] {
            let mut sight = Sight::default();
            inspect(short, &mut sight);
            assert!(!sight.starts());
        }
    }
}
