//! H.264 payloads (RFC 6184 section 5).

use super::bits::{Bits, unescape};
use super::{ParameterSet, Sight, annex_b, has_recovery_point};

const SEI: u8 = 6;
const SPS: u8 = 7;
const PPS: u8 = 8;
const AUD: u8 = 9;

/// Whether a unit of this type may contain several NAL units, separated by start codes: cameras that do this start with a short one.
pub(super) fn may_hide_others(nal_type: u8) -> bool {
    matches!(nal_type, SEI | SPS | PPS | AUD)
}

pub(super) fn inspect(payload: &[u8], sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    let Some(&first) = payload.first() else { return };
    match first & 0x1f {
        // STAP-A
        24 => aggregated(&payload[1..], 0, sight, on_set),
        // STAP-B: a decoding order number before the first unit.
        25 => aggregated(payload.get(3..).unwrap_or_default(), 0, sight, on_set),
        // MTAP16 and MTAP24: the same, and before each unit a decoding order number difference and a timestamp offset.
        26 => aggregated(payload.get(3..).unwrap_or_default(), 3, sight, on_set),
        27 => aggregated(payload.get(3..).unwrap_or_default(), 4, sight, on_set),
        kind @ (28 | 29) => {
            let Some(&header) = payload.get(1) else { return };
            let nal_type = header & 0x1f;
            if header & 0x80 == 0 {
                later_fragment(nal_type, sight);
                return;
            }
            let body = payload.get(if kind == 28 { 2 } else { 4 }..).unwrap_or_default();
            if may_hide_others(nal_type) && annex_b::within(body) {
                let mut units = annex_b::nal_units(body);
                if let Some(head) = units.next() {
                    unit(nal_type, head, sight);
                }
                for other in units {
                    unit(other[0] & 0x1f, &other[1..], sight);
                }
            } else {
                unit(nal_type, body, sight);
            }
        }
        _ => whole(payload, sight, on_set),
    }
}

fn aggregated(mut rest: &[u8], extra: usize, sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    while let Some(size) = rest.first_chunk::<2>() {
        // MTAP sizes also count only the unit.
        let end = 2 + extra + usize::from(u16::from_be_bytes(*size));
        let Some(nal) = rest.get(2 + extra..end) else { return };
        whole(nal, sight, on_set);
        rest = &rest[end..];
    }
}

/// This should be one whole NAL unit, and may be several with start codes.
fn whole(nal: &[u8], sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    let Some(&first) = nal.first() else { return };
    if annex_b::begins(nal) || may_hide_others(first & 0x1f) {
        for nal in annex_b::nal_units(nal) {
            let nal_type = nal[0] & 0x1f;
            if matches!(nal_type, SPS | PPS) {
                on_set(nal);
            }
            unit(nal_type, &nal[1..], sight);
        }
    } else {
        unit(first & 0x1f, &nal[1..], sight);
    }
}

/// A fragment of a unit that started in an earlier packet.
fn later_fragment(nal_type: u8, sight: &mut Sight) {
    if !matches!(nal_type, 6..=18) {
        sight.add_picture(Some(false));
    }
}

/// The start of a NAL unit; `body` follows its header and may be truncated.
fn unit(nal_type: u8, body: &[u8], sight: &mut Sight) {
    // A slice header starts with first_mb_in_slice; zero is the single bit 1 (H.264 section 7.3.3).
    let first = body.first().map(|byte| byte & 0x80 != 0);
    match nal_type {
        1 | 2 => {
            if first == Some(true) && !is_intra_slice(body) {
                sight.inter = true;
            }
            sight.add_picture(first);
        }
        5 => {
            sight.random_access = true;
            sight.add_picture(first);
        }
        SEI => sight.random_access |= has_recovery_point(body),
        SPS => sight.add(ParameterSet::Sequence),
        PPS => sight.add(ParameterSet::Picture),
        AUD..=18 => {}
        _ => sight.add_picture(None),
    }
}

/// Whether the slice_type of a slice with first_mb_in_slice 0 is I or SI (H.264 table 7-6).
fn is_intra_slice(body: &[u8]) -> bool {
    let bits = u16::from_be_bytes([body[0], body.get(1).copied().unwrap_or(0)]) << 1;
    let zeros = bits.leading_zeros();
    // The types go up to 9, which is 0001010 as ue(v).
    zeros <= 3 && matches!((bits >> (15 - 2 * zeros)) - 1, 2 | 4 | 7 | 9)
}

/// Whether a NAL unit is a B slice (section 7.3.3, table 7-6); `false` if it is truncated.
pub(super) fn is_b_slice(nal: &[u8]) -> bool {
    // IDR pictures have none. Two numbers, which take less than eight bytes.
    let Some((1, head)) = nal.split_first().map(|(first, rest)| (first & 0x1f, &rest[..rest.len().min(8)])) else {
        return false;
    };
    let head = unescape(head);
    let mut bits = Bits::new(&head);
    bits.ue().and_then(|_| bits.ue()).is_some_and(|slice_type| slice_type % 5 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first bytes of a 320x240 test picture encoded by x264.
    const SPS_NAL: &[u8] =
        &[0x67, 0x64, 0x00, 0x0d, 0xac, 0xd9, 0x41, 0x41, 0xfb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10];
    const PPS_NAL: &[u8] = &[0x68, 0xeb, 0xe3, 0xcb, 0x22, 0xc0];
    const IDR: &[u8] = &[0x65, 0x88, 0x84, 0x00, 0x33, 0xff];
    const P_SLICE: &[u8] = &[0x41, 0x9a, 0x24, 0x6c, 0x43, 0x7f];
    const I_SLICE: &[u8] = &[0x41, 0x88, 0x84, 0x00, 0x33, 0xff];
    const RECOVERY: &[u8] = &[0x06, 0x06, 0x01, 0xc4, 0x80];

    fn look(payloads: &[&[u8]]) -> (Sight, Vec<Vec<u8>>) {
        let mut sight = Sight::default();
        let mut sets = Vec::new();
        for payload in payloads {
            inspect(payload, &mut sight, &mut |set| sets.push(set.to_vec()));
        }
        (sight, sets)
    }

    fn aggregate(first: &[u8], before: &[u8], nals: &[&[u8]]) -> Vec<u8> {
        let mut out = first.to_vec();
        for nal in nals {
            out.extend_from_slice(&(nal.len() as u16).to_be_bytes());
            out.extend_from_slice(before);
            out.extend_from_slice(nal);
        }
        out
    }

    #[test]
    fn single_units_tell_what_they_are() {
        assert!(look(&[IDR]).0.starts());
        assert!(look(&[SPS_NAL, PPS_NAL, IDR]).0.starts());
        assert!(!look(&[P_SLICE]).0.starts());
        // Parameter sets alone are not a picture.
        assert!(!look(&[SPS_NAL, PPS_NAL]).0.starts());
        assert!(!look(&[SPS_NAL, PPS_NAL]).0.picture);
        assert_eq!(look(&[SPS_NAL, PPS_NAL]).1, [SPS_NAL, PPS_NAL]);
    }

    #[test]
    fn a_recovery_point_is_a_start() {
        assert!(look(&[RECOVERY, P_SLICE]).0.starts());
        assert!(!look(&[&[0x06, 0x05, 0x01, 0xc4, 0x80], P_SLICE]).0.starts());
    }

    #[test]
    fn a_sequence_parameter_set_is_a_start_but_before_an_inter_picture() {
        assert!(look(&[SPS_NAL, PPS_NAL, I_SLICE]).0.starts());
        assert!(!look(&[SPS_NAL, PPS_NAL, P_SLICE]).0.starts());
        assert!(!look(&[PPS_NAL, I_SLICE]).0.starts());
    }

    #[test]
    fn aggregates_are_looked_into() {
        for (first, before) in
            [(&[0x78][..], &[][..]), (&[0x79, 0, 1], &[]), (&[0x7a, 0, 1], &[0, 0, 0]), (&[0x7b, 0, 1], &[0, 0, 0, 0])]
        {
            let payload = aggregate(first, before, &[SPS_NAL, PPS_NAL, IDR]);
            let (sight, sets) = look(&[&payload]);
            assert!(sight.starts() && sight.has(ParameterSet::Picture), "{first:x?}");
            assert_eq!(sets, [SPS_NAL, PPS_NAL], "{first:x?}");
            assert!(!look(&[&aggregate(first, before, &[P_SLICE])]).0.starts());
        }
    }

    #[test]
    fn fragments_count_by_their_first() {
        assert!(look(&[&[0x7c, 0x85, 0x88, 0x84]]).0.starts());
        assert!(look(&[&[0x7d, 0x85, 0, 1, 0x88, 0x84]]).0.starts());
        assert!(!look(&[&[0x5c, 0x81, 0x9a, 0x24]]).0.starts());
        // The first fragment was lost.
        let (sight, _) = look(&[&[0x7c, 0x05, 1, 2], &[0x7c, 0x45, 1, 2]]);
        assert!(sight.picture && !sight.starts());
        // The first slice was lost, the second came.
        assert!(!look(&[&[0x65, 0x10, 0x84], &[0x65, 0x08, 0x84]]).0.starts());
        // An empty first fragment proves nothing.
        assert!(look(&[&[0x7c, 0x85], &[0x7c, 0x05, 0x88]]).0.starts());
    }

    #[test]
    fn byte_streams_are_looked_into() {
        let stream = |nals: &[&[u8]], lead: &[u8]| {
            let mut out = lead.to_vec();
            for nal in nals {
                out.extend_from_slice(nal);
                out.extend_from_slice(&[0, 0, 0, 1]);
            }
            out
        };
        let (sight, sets) = look(&[&stream(&[SPS_NAL, PPS_NAL, IDR], &[0, 0, 0, 1])]);
        assert!(sight.starts());
        assert_eq!(sets, [SPS_NAL, PPS_NAL]);
        assert!(look(&[&stream(&[SPS_NAL, PPS_NAL, IDR], &[])]).0.starts());
        // Everything as one unit in fragments; the first fragment contains the parameter sets.
        let mut fragment = vec![0x7c, 0x87];
        fragment.extend_from_slice(&stream(&[&SPS_NAL[1..], PPS_NAL, IDR], &[]));
        assert!(look(&[&fragment, &[0x7c, 0x07, 1, 2, 3]]).0.starts());
    }

    #[test]
    fn slice_types_are_read() {
        for slice_type in 0..10u16 {
            let value = slice_type + 1;
            let len = 16 - value.leading_zeros();
            // first_mb_in_slice 0 is one bit 1; then len - 1 zeros and the value.
            let bits = 1 << 15 | value << (16 - 1 - (2 * len - 1));
            assert_eq!(is_intra_slice(&bits.to_be_bytes()), matches!(slice_type % 5, 2 | 4), "{slice_type}");
            let [high, low] = bits.to_be_bytes();
            assert_eq!(is_b_slice(&[0x01, high, low]), matches!(slice_type, 1 | 6), "{slice_type}");
            assert!(!is_b_slice(&[0x65, high, low]), "an IDR picture");
        }
        assert!(!is_intra_slice(&[0x80]));
        // Of a later slice: 300 is 00000000100101101, 1 is 010, and 0 is 1.
        assert!(is_b_slice(&[0x41, 0x00, 0x96, 0xa0]) && !is_b_slice(&[0x41, 0x00, 0x96, 0xc0]));
        assert!(!is_b_slice(&[0x41]) && !is_b_slice(&[]));
    }
}
