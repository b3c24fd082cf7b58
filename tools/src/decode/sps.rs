//! What the H.264 decoder does not report: the colours in a sequence parameter set, and B slices.

use rtsprelay::media::codec::bits::{Bits, unescape};
use rtsprelay::media::codec::sps::{Sps, Vui};

use crate::picture::{Colour, Matrix};

/// How the samples represent colours.
pub fn colour(sps: &Sps, vui: &Vui) -> Colour {
    let matrix = match vui.matrix {
        Some(1) => Some(Matrix::Bt709),
        Some(4..=6) => Some(Matrix::Bt601),
        Some(9 | 10) => Some(Matrix::Bt2020),
        _ => None,
    };
    let usual = Colour::unspecified(usize::from(sps.height));
    Colour { matrix: matrix.unwrap_or(usual.matrix), full_range: vui.full_range }
}

/// Whether a NAL unit is a slice of a B picture (section 7.3.3): such streams are shown in another order than decoded.
pub fn is_b_slice(nal: &[u8]) -> bool {
    if nal.first().is_none_or(|header| header & 0x1f != 1) {
        return false;
    }
    let head = unescape(&nal[1..nal.len().min(16)]);
    let mut bits = Bits::new(&head);
    bits.ue().and_then(|_| bits.ue()).is_some_and(|kind| kind % 5 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_colours_are_those_told_or_else_the_usual_ones_of_the_size() {
        // 1920x1080 High, written by x264, without colours.
        let nal = [
            0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04,
            0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
        ];
        let (sps, vui) = Sps::h264_with_vui(&nal).expect("sound");
        assert_eq!(colour(&sps, &vui), Colour { matrix: Matrix::Bt709, full_range: false });
        let told = Vui { matrix: Some(6), full_range: true, ..vui };
        assert_eq!(colour(&sps, &told), Colour { matrix: Matrix::Bt601, full_range: true });
        let nobody_knows = Vui { matrix: Some(2), ..vui };
        assert_eq!(colour(&sps, &nobody_knows), Colour::unspecified(1080));
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..50_000 {
            let nal: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(..)).collect();
            let _ = is_b_slice(&nal);
        }
    }
}
