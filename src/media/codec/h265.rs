//! H.265 payloads (RFC 7798 section 4.4).

use super::{ParameterSet, Sight, annex_b, has_recovery_point};

/// The type of the NAL unit that starts with this byte.
pub(super) fn nal_type(first: u8) -> u8 {
    first >> 1 & 0x3f
}

/// As for H.264: short units with which cameras start a byte stream.
pub(super) fn may_hide_others(nal_type: u8) -> bool {
    matches!(nal_type, 32..=35 | 39)
}

pub(super) fn inspect(payload: &[u8], donl: bool, sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    let Some(&first) = payload.first() else { return };
    match nal_type(first) {
        // Aggregation packet
        48 => {
            let mut rest = payload.get(if donl { 4 } else { 2 }..).unwrap_or_default();
            while let Some(size) = rest.first_chunk::<2>() {
                let end = 2 + usize::from(u16::from_be_bytes(*size));
                let Some(nal) = rest.get(2..end) else { return };
                whole(nal, false, sight, on_set);
                // Each further unit is preceded by the difference of decoding order numbers.
                rest = rest.get(end + usize::from(donl)..).unwrap_or_default();
            }
        }
        // Fragmentation unit
        49 => {
            let Some(&header) = payload.get(2) else { return };
            let fragment_type = header & 0x3f;
            if header & 0x80 == 0 {
                if fragment_type < 32 {
                    sight.add_picture(Some(false));
                }
                return;
            }
            let body = payload.get(if donl { 5 } else { 3 }..).unwrap_or_default();
            if may_hide_others(fragment_type) && annex_b::within(body) {
                let mut units = annex_b::nal_units(body);
                if let Some(head) = units.next() {
                    unit(fragment_type, head, sight);
                }
                for other in units {
                    unit(nal_type(other[0]), other.get(2..).unwrap_or_default(), sight);
                }
            } else {
                unit(fragment_type, body, sight);
            }
        }
        // PACI, whose own header has the type of its content.
        50 => {
            let Some(&header) = payload.get(2) else { return };
            unit(header >> 1 & 0x3f, &[], sight);
        }
        _ => whole(payload, donl, sight, on_set),
    }
}

/// This should be one whole NAL unit, and may be several with start codes.
fn whole(nal: &[u8], donl: bool, sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    let Some(&first) = nal.first() else { return };
    if donl {
        // The number between header and body means that it is not a plain unit to keep.
        unit(nal_type(first), nal.get(4..).unwrap_or_default(), sight);
    } else if annex_b::begins(nal) || may_hide_others(nal_type(first)) {
        for nal in annex_b::nal_units(nal) {
            let kind = nal_type(nal[0]);
            if matches!(kind, 32..=34) {
                on_set(nal);
            }
            unit(kind, nal.get(2..).unwrap_or_default(), sight);
        }
    } else {
        unit(nal_type(first), nal.get(2..).unwrap_or_default(), sight);
    }
}

/// The start of a NAL unit; `body` follows its header and may be truncated.
fn unit(nal_type: u8, body: &[u8], sight: &mut Sight) {
    match nal_type {
        0..=31 => {
            if matches!(nal_type, 16..=23) {
                sight.random_access = true;
            } else {
                sight.inter = true;
            }
            // The slice header starts with first_slice_segment_in_pic_flag (H.265 section 7.3.6.1).
            sight.add_picture(body.first().map(|byte| byte & 0x80 != 0));
        }
        32 => sight.add(ParameterSet::Video),
        33 => sight.add(ParameterSet::Sequence),
        34 => sight.add(ParameterSet::Picture),
        39 => sight.random_access |= has_recovery_point(body),
        35..=47 => {}
        _ => sight.add_picture(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first bytes of a 320x240 test picture encoded by x265.
    const VPS: &[u8] = &[0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01, 0x60];
    const SPS: &[u8] = &[0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90];
    const PPS: &[u8] = &[0x44, 0x01, 0xc1, 0x72, 0xb4, 0x62, 0x40];
    const IDR: &[u8] = &[0x28, 0x01, 0xaf, 0x1d, 0x80];
    const CRA: &[u8] = &[0x2a, 0x01, 0xaf, 0x1d, 0x80];
    const TRAIL: &[u8] = &[0x02, 0x01, 0xd0, 0x09, 0x7e];
    const RECOVERY: &[u8] = &[0x4e, 0x01, 0x06, 0x01, 0xc4, 0x80];

    fn look(donl: bool, payloads: &[&[u8]]) -> (Sight, Vec<Vec<u8>>) {
        let mut sight = Sight::default();
        let mut sets = Vec::new();
        for payload in payloads {
            inspect(payload, donl, &mut sight, &mut |set| sets.push(set.to_vec()));
        }
        (sight, sets)
    }

    #[test]
    fn single_units_tell_what_they_are() {
        for irap in [IDR, CRA] {
            let (sight, sets) = look(false, &[VPS, SPS, PPS, irap]);
            assert!(sight.starts());
            assert_eq!(sets, [VPS, SPS, PPS]);
            assert!(look(false, &[irap]).0.starts());
        }
        assert!(!look(false, &[TRAIL]).0.starts());
        assert!(!look(false, &[VPS, SPS, PPS]).0.picture);
        assert!(!look(false, &[VPS, SPS, PPS, TRAIL]).0.starts());
        assert!(look(false, &[RECOVERY, TRAIL]).0.starts());
        // Not the first slice segment of its picture.
        assert!(!look(false, &[&[0x28, 0x01, 0x2f]]).0.starts());
    }

    #[test]
    fn aggregates_are_looked_into() {
        let mut plain = vec![0x60, 0x01];
        let mut numbered = vec![0x60, 0x01, 0, 7];
        for (index, nal) in [VPS, SPS, PPS, IDR].into_iter().enumerate() {
            if index > 0 {
                numbered.push(0);
            }
            for out in [&mut plain, &mut numbered] {
                out.extend_from_slice(&(nal.len() as u16).to_be_bytes());
                out.extend_from_slice(nal);
            }
        }
        for (donl, payload) in [(false, plain), (true, numbered)] {
            let (sight, sets) = look(donl, &[&payload]);
            assert!(sight.starts() && sight.has(ParameterSet::Video));
            assert_eq!(sets, [VPS, SPS, PPS]);
        }
    }

    #[test]
    fn fragments_count_by_their_first() {
        assert!(look(false, &[&[0x62, 0x01, 0x93, 0xaf, 0x1d]]).0.starts());
        assert!(look(true, &[&[0x62, 0x01, 0x93, 0, 1, 0xaf, 0x1d]]).0.starts());
        assert!(!look(false, &[&[0x62, 0x01, 0x81, 0xd0, 0x09]]).0.starts());
        assert!(!look(false, &[&[0x62, 0x01, 0x13, 0xaf, 0x1d]]).0.starts());
        // PACI carrying an IDR.
        assert!(look(false, &[&[0x64, 0x01, 0x26, 0, 0xaf]]).0.starts());
    }

    #[test]
    fn byte_streams_are_looked_into() {
        let mut stream = Vec::new();
        for nal in [VPS, SPS, PPS, IDR] {
            stream.extend_from_slice(&[0, 0, 0, 1]);
            stream.extend_from_slice(nal);
        }
        assert!(look(false, &[&stream]).0.starts());
        assert!(look(false, &[&stream[4..]]).0.starts());
        let mut fragment = vec![0x62, 0x01, 0x80 | 32];
        fragment.extend_from_slice(&stream[6..]);
        assert!(look(false, &[&fragment]).0.starts());
    }
}
