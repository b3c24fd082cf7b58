//! H.263 payloads in both formats: RFC 4629 (`H263-1998`, `H263-2000`) and RFC 2190 (`H263`).

use super::Sight;

/// The format of RFC 4629 section 5.1: two header bytes, in which P says that the two zero bytes of a start code are omitted.
pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    let Some((&[first, second], rest)) = payload.split_first_chunk::<2>() else { return };
    let redundancy = usize::from(first & 0x02 != 0);
    let extra = usize::from(first & 0x01) << 5 | usize::from(second >> 3);
    let body = rest.get(redundancy + extra..).unwrap_or_default();
    note(if first & 0x04 == 0 { None } else { picture(body) }, sight);
}

/// The format of RFC 2190 section 5: pictures start only in mode A, whose header has four bytes.
pub(super) fn inspect_rfc2190(payload: &[u8], sight: &mut Sight) {
    let Some(&first) = payload.first() else { return };
    let body = payload.get(4..).and_then(|body| body.strip_prefix(&[0, 0]));
    note(body.filter(|_| first & 0x80 == 0).and_then(picture), sight);
}

fn note(intra: Option<bool>, sight: &mut Sight) {
    match intra {
        Some(true) => sight.random_access = true,
        Some(false) => sight.inter = true,
        None => {}
    }
    sight.add_picture(Some(intra.is_some()));
}

/// Whether the picture that starts here, without the first two bytes of its start code, is intra-coded (H.263 section 5.1). `None` if
/// no picture starts here, but possibly a group of blocks or a slice.
fn picture(bytes: &[u8]) -> Option<bool> {
    let mut first = [0; 8];
    let len = bytes.len().min(8);
    first[..len].copy_from_slice(&bytes[..len]);
    let word = u64::from_be_bytes(first);
    let bits = |at: u32, count: u32| word << at >> (64 - count);
    // The start code's last six bits; for a group of blocks the last five are its number, not zero.
    if bits(0, 6) != 0b10_0000 {
        return None;
    }
    // TR has eight bits. PTYPE starts with 1 and 0, and has the source format in bits 6 to 8.
    const PTYPE: u32 = 14;
    if bits(PTYPE + 5, 3) != 7 {
        return Some(bits(PTYPE + 8, 1) == 0);
    }
    // PLUSPTYPE: UFEP, then OPPTYPE if that is 1, then the picture's type in MPPTYPE.
    let plus = PTYPE + 8;
    let mpptype = plus + 3 + if bits(plus, 3) == 1 { 18 } else { 0 };
    Some(bits(mpptype, 3) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first bytes of packets as ffmpeg sends them.
    #[test]
    fn the_pictures_type_tells_in_the_newer_format() {
        let starts = |payloads: &[&[u8]]| Sight::of(inspect, payloads).starts();
        assert!(starts(&[&[4, 0, 0x80, 0x02, 0x0c, 0x04, 0x1e], &[0, 0, 0x0f, 0x54]]));
        assert!(!starts(&[&[4, 0, 0x80, 0x06, 0x0e, 0x02, 0x02], &[0, 0, 0x55, 0xea]]));
        // With PLUSPTYPE.
        assert!(starts(&[&[4, 0, 0x80, 0x02, 0x1c, 0xb8, 0x21, 0x00, 0x12, 0x40]]));
        assert!(!starts(&[&[4, 0, 0x80, 0x06, 0x1c, 0xb8, 0x21, 0x04, 0x92, 0x40]]));
        // A slice begins in the second packet.
        assert!(starts(&[&[4, 0, 0x80, 0x02, 0x0c, 4], &[4, 0, 0xd0, 0x84, 0x9f]]));
        assert!(!starts(&[&[4, 0, 0xd0, 0x84, 0x9f], &[4, 0, 0x80, 0x02, 0x0c, 4]]));
        // Two bytes that repeat a picture's header, and a byte of redundancy coding.
        assert!(starts(&[&[6, 0x10, 0xaa, 0x80, 0x02, 0x80, 0x02, 0x0c, 4]]));
        assert!(!starts(&[&[0, 0, 0x80, 0x02, 0x0c, 4]]));
        assert!(!starts(&[&[], &[4], &[4, 0], &[7, 0xff, 0x80]]));
    }

    #[test]
    fn the_pictures_type_tells_in_the_older_format() {
        let starts = |payloads: &[&[u8]]| Sight::of(inspect_rfc2190, payloads).starts();
        let key: &[u8] = &[0, 0x60, 0, 0, 0, 0, 0x80, 0x02, 0x0c, 0x04];
        assert!(starts(&[key, &[0x80, 0x60, 0, 0, 0, 0, 0, 0, 3, 0xf2]]));
        assert!(!starts(&[&[0, 0x70, 0, 1, 0, 0, 0x80, 0x06, 0x0e, 0x02], &[0x80, 0x60, 0, 0, 0x80, 0, 0, 0, 0x1b]]));
        assert!(!starts(&[&[0x80, 0x60, 0, 0, 0, 0, 0, 0, 3], key]));
        assert!(!starts(&[&[], &[0], &[0, 0x60, 0, 0, 0]]));
    }
}
