//! Annex B byte streams, which some cameras send where RFC 6184 and 7798 require a single NAL unit.

/// Offset of the next start code `00 00 01`.
pub(super) fn start_code(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    // The third byte decides how far to skip: a byte above 1 cannot be part of a start code.
    while let Some(&third) = bytes.get(at + 2) {
        match third {
            0 => at += 1,
            1 if bytes[at] == 0 && bytes[at + 1] == 0 => return Some(at),
            _ => at += 3,
        }
    }
    None
}

/// Whether the bytes start with a start code, and so are not a NAL unit.
pub fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0, 0, 1]) || bytes.starts_with(&[0, 0, 0, 1])
}

/// Whether there is a start code anywhere.
pub fn within(bytes: &[u8]) -> bool {
    start_code(bytes).is_some()
}

/// The NAL units between the start codes, including any before the first one, without trailing zeros. None is empty.
pub fn nal_units(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        loop {
            let bytes = rest?;
            let (nal, next) = match start_code(bytes) {
                Some(at) => (&bytes[..at], Some(&bytes[at + 3..])),
                None => (bytes, None),
            };
            rest = next;
            let end = nal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            if end > 0 {
                return Some(&nal[..end]);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_what_is_between_start_codes() {
        let got = |bytes: &'static [u8]| nal_units(bytes).collect::<Vec<_>>();
        assert_eq!(
            got(&[0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x68, 0, 0, 0, 1, 0x65, 7]),
            [&[0x67, 9][..], &[0x68], &[0x65, 7]]
        );
        assert_eq!(got(&[0x67, 9, 0, 0, 0, 1]), [&[0x67, 9]]);
        assert_eq!(got(&[0x67, 0, 0, 3, 1]), [&[0x67, 0, 0, 3, 1]]);
        assert!(got(&[0, 0, 1, 0, 0, 1]).is_empty());
        assert!(got(&[]).is_empty());
    }

    #[test]
    fn start_codes_are_found_at_every_place() {
        for at in 0..8 {
            let mut bytes = vec![0x41; at];
            bytes.extend_from_slice(&[0, 0, 1, 9]);
            assert_eq!(start_code(&bytes), Some(at));
            assert!(within(&bytes));
            assert_eq!(begins(&bytes), at == 0);
        }
        assert!(!within(&[0, 1, 0, 1, 0, 0, 3, 0, 0]));
    }
}
