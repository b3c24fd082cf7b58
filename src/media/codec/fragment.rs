//! Splits H.264 and H.265 payloads into smaller ones (RFC 6184 section 5.8, RFC 7798 section 4.4.3).
//!
//! Over TCP, cameras send whole NAL units as one packet, which would be too large for UDP. Each resulting payload is passed as a prefix
//! and a body, so that the media itself is copied only into its chunk.

use crate::media::codec::{Codec, annex_b};

/// Receives a payload: its prefix and its body.
type Emit<'a> = &'a mut dyn FnMut(&[u8], &[u8]);

/// Bytes of payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A payload or NAL unit of up to this many bytes is not split.
    pub whole: usize,
    /// A larger one is split into parts of at most this many bytes; at least 64, and at most `whole`.
    pub part: usize,
}

/// Passes `payload` on as payloads of at most `max.whole` bytes: unchanged if it fits and is not a byte stream.
///
/// Returns whether that was possible; if not, nothing has been passed on. A malformed aggregate ends at the error.
pub fn fragment(codec: Codec, payload: &[u8], max: Sizes, emit: Emit<'_>) -> bool {
    debug_assert!(max.part >= 64 && max.part <= max.whole);
    if payload.is_empty() {
        return false;
    }
    match codec {
        Codec::H264 => h264(payload, max, emit),
        Codec::H265 { donl } => h265(payload, donl, max, emit),
        _ => false,
    }
}

/// The start flag of a fragment's header.
pub const START: u8 = 0x80;

/// The end flag.
pub const END: u8 = 0x40;

/// A fragment of a NAL unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Offset of the fragment header in the payload.
    pub header: usize,
    /// Whether it is a unit's first fragment.
    pub start: bool,
    /// Whether it is a unit's last fragment.
    pub end: bool,
    /// Whether it is empty.
    pub empty: bool,
}

/// The payload as a fragment, if it is one.
pub fn unit(codec: Codec, payload: &[u8]) -> Option<Unit> {
    let first = *payload.first()?;
    let (header, number) = match codec {
        Codec::H264 if first & 0x1f == 28 => (1, 0),
        Codec::H264 if first & 0x1f == 29 => (1, 2),
        Codec::H265 { donl } if first >> 1 & 0x3f == 49 => (2, if donl { 2 } else { 0 }),
        _ => return None,
    };
    let flags = *payload.get(header)?;
    // In H.265, only the first fragment has a decoding order number.
    let number = if header == 2 && flags & START == 0 { 0 } else { number };
    let empty = payload.len() <= header + 1 + number;
    Some(Unit { header, start: flags & START != 0, end: flags & END != 0, empty })
}

/// A NAL unit's fragments: each has a prefix, in which the fragment header is the byte at `header`, and a body.
struct Fragments<'a> {
    /// The prefix of the first fragment, and of the others, which may be shorter.
    first: &'a [u8],
    later: usize,
    header: usize,
    start: bool,
    end: bool,
}

impl Fragments<'_> {
    fn emit(&self, mut data: &[u8], max: usize, emit: Emit<'_>) {
        let mut prefix = [0u8; 5];
        let mut len = self.first.len();
        prefix[..len].copy_from_slice(self.first);
        let mut flags = if self.start { START } else { 0 };
        loop {
            let (body, rest) = data.split_at(data.len().min(max - len));
            if rest.is_empty() && self.end {
                flags |= END;
            }
            prefix[self.header] = self.first[self.header] & !(START | END) | flags;
            emit(&prefix[..len], body);
            if rest.is_empty() {
                return;
            }
            data = rest;
            len = self.later;
            flags = 0;
        }
    }
}

fn h264(payload: &[u8], max: Sizes, emit: Emit<'_>) -> bool {
    let first = payload[0];
    match first & 0x1f {
        _ if annex_b::begins(payload) || hides_others(payload) => {
            annex_b::nal_units(payload).for_each(|nal| h264_unit(nal, max, emit));
        }
        kind @ 24..=31 if payload.len() > max.whole => match kind {
            24 => aggregated(&payload[1..], 0, |nal| h264_unit(nal, max, emit)),
            // Decoding order numbers and timestamp offsets of interleaved aggregates are lost. No sender is known to use them.
            25 => aggregated(&payload[3..], 0, |nal| h264_unit(nal, max, emit)),
            26 => aggregated(&payload[3..], 3, |nal| h264_unit(nal, max, emit)),
            27 => aggregated(&payload[3..], 4, |nal| h264_unit(nal, max, emit)),
            28 | 29 => {
                let header = payload[1];
                if kind == 29 {
                    // Only the first fragment has a decoding order number; the others are FU-A.
                    let (body, rest) = payload[4..].split_at(max.part - 4);
                    emit(&[first, header & !0x40, payload[2], payload[3]], body);
                    let first = [first & 0xe0 | 28, header];
                    Fragments { first: &first, later: 2, header: 1, start: false, end: header & 0x40 != 0 }
                        .emit(rest, max.part, emit);
                } else {
                    Fragments {
                        first: &payload[..2],
                        later: 2,
                        header: 1,
                        start: header & 0x80 != 0,
                        end: header & 0x40 != 0,
                    }
                    .emit(&payload[2..], max.part, emit);
                }
            }
            _ => return false,
        },
        24..=31 => emit(&[], payload),
        _ => h264_unit(payload, max, emit),
    }
    true
}

/// Whether a payload is a short NAL unit followed by others.
fn hides_others(payload: &[u8]) -> bool {
    matches!(payload[0] & 0x1f, 6..=9) && annex_b::within(payload)
}

fn h264_unit(nal: &[u8], max: Sizes, emit: Emit<'_>) {
    if nal.len() <= max.whole {
        emit(&[], nal);
    } else {
        let first = [nal[0] & 0xe0 | 28, nal[0] & 0x1f];
        Fragments { first: &first, later: 2, header: 1, start: true, end: true }.emit(&nal[1..], max.part, emit);
    }
}

/// The NAL units of an aggregate: repeatedly a 16-bit size, `extra` bytes, and the unit.
fn aggregated(mut rest: &[u8], extra: usize, mut each: impl FnMut(&[u8])) {
    while let Some(size) = rest.first_chunk::<2>() {
        let end = 2 + extra + usize::from(u16::from_be_bytes(*size));
        let Some(nal) = rest.get(2 + extra..end) else { return };
        if !nal.is_empty() {
            each(nal);
        }
        rest = &rest[end..];
    }
}

fn h265(payload: &[u8], donl: bool, max: Sizes, emit: Emit<'_>) -> bool {
    let kind = payload[0] >> 1 & 0x3f;
    if !donl && (annex_b::begins(payload) || (matches!(kind, 32..=35 | 39) && annex_b::within(payload))) {
        annex_b::nal_units(payload).for_each(|nal| h265_unit(nal, None, max, emit));
        return true;
    }
    if payload.len() <= max.whole {
        emit(&[], payload);
        return true;
    }
    match kind {
        48 if donl => {
            let mut number = u16::from_be_bytes([payload[2], payload[3]]);
            let mut rest = &payload[4..];
            while let Some(size) = rest.first_chunk::<2>() {
                let end = 2 + usize::from(u16::from_be_bytes(*size));
                let Some(nal) = rest.get(2..end) else { break };
                h265_unit(nal, Some(number), max, emit);
                let Some(&difference) = rest.get(end) else { break };
                number = number.wrapping_add(u16::from(difference)).wrapping_add(1);
                rest = &rest[end + 1..];
            }
        }
        48 => aggregated(&payload[2..], 0, |nal| h265_unit(nal, None, max, emit)),
        49 => {
            let header = payload[2];
            // Only the first fragment has a decoding order number.
            let len = if donl && header & 0x80 != 0 { 5 } else { 3 };
            Fragments {
                first: &payload[..len],
                later: 3,
                header: 2,
                start: header & 0x80 != 0,
                end: header & 0x40 != 0,
            }
            .emit(&payload[len..], max.part, emit);
        }
        // The content of a PACI cannot be split without interpreting its header.
        50 => return false,
        _ if donl => {
            let number = u16::from_be_bytes([payload[2], payload[3]]);
            h265_fragments([payload[0], payload[1]], Some(number), &payload[4..], max.part, emit);
        }
        _ => h265_unit(payload, None, max, emit),
    }
    true
}

/// A single NAL unit, with its decoding order number if there is one.
fn h265_unit(nal: &[u8], number: Option<u16>, max: Sizes, emit: Emit<'_>) {
    let Some((&[a, b], body)) = nal.split_first_chunk::<2>() else { return };
    match number {
        None if nal.len() <= max.whole => emit(&[], nal),
        Some(number) if nal.len() + 2 <= max.whole => {
            let [high, low] = number.to_be_bytes();
            emit(&[a, b, high, low], body);
        }
        _ => h265_fragments([a, b], number, body, max.part, emit),
    }
}

fn h265_fragments([a, b]: [u8; 2], number: Option<u16>, body: &[u8], max: usize, emit: Emit<'_>) {
    let [high, low] = number.unwrap_or_default().to_be_bytes();
    let first = [a & 0x81 | 49 << 1, b, a >> 1 & 0x3f, high, low];
    let len = if number.is_some() { 5 } else { 3 };
    Fragments { first: &first[..len], later: 3, header: 2, start: true, end: true }.emit(body, max, emit);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const H265: Codec = Codec::H265 { donl: false };
    const NUMBERED: Codec = Codec::H265 { donl: true };

    fn alike(max: usize) -> Sizes {
        Sizes { whole: max, part: max }
    }

    fn cut(codec: Codec, payload: &[u8], max: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        assert!(fragment(codec, payload, alike(max), &mut |prefix, body| out.push([prefix, body].concat())));
        out
    }

    /// Reassembles NAL units as a receiver does, each with its decoding order number if there is one.
    fn join(codec: Codec, payloads: &[Vec<u8>]) -> Vec<(Option<[u8; 2]>, Vec<u8>)> {
        let mut out: Vec<(Option<[u8; 2]>, Vec<u8>)> = Vec::new();
        let mut open = false;
        for payload in payloads {
            let Some(unit) = unit(codec, payload) else {
                assert!(!open);
                match codec {
                    Codec::H265 { donl: true } => {
                        let number = payload[2..4].try_into().unwrap();
                        out.push((Some(number), [&payload[..2], &payload[4..]].concat()));
                    }
                    _ => out.push((None, payload.clone())),
                }
                continue;
            };
            assert_eq!(unit.start, !open);
            open = !unit.end;
            let mut at = unit.header + 1;
            if unit.start {
                let kind = payload[unit.header] & 0x3f;
                let (number, head) = match codec {
                    Codec::H264 => (None, vec![payload[0] & 0xe0 | kind & 0x1f]),
                    Codec::H265 { donl } => {
                        let number = donl.then(|| payload[3..5].try_into().unwrap());
                        at += if donl { 2 } else { 0 };
                        (number, vec![payload[0] & 0x81 | kind << 1, payload[1]])
                    }
                    _ => unreachable!(),
                };
                out.push((number, head));
            }
            out.last_mut().unwrap().1.extend_from_slice(&payload[at..]);
        }
        assert!(!open);
        out
    }

    #[test]
    fn what_fits_is_left_alone() {
        for payload in [&[0x65, 1, 2][..], &[0x7c, 0x85, 1], &[0x78, 0, 1, 9, 0, 1, 9], &[0x00, 1, 2], &[0x1f]] {
            assert_eq!(cut(Codec::H264, payload, 64), [payload]);
        }
        for payload in [&[0x28, 1, 2][..], &[0x62, 1, 0x94, 1], &[0x64, 1], &[0x60, 1, 0, 1, 9], &[0x28]] {
            assert_eq!(cut(H265, payload, 64), [payload]);
        }
        assert!(!fragment(Codec::Vp8, &[1; 100], alike(64), &mut |_, _| panic!()));
        assert!(!fragment(H265, &[0x64; 100], alike(64), &mut |_, _| panic!()));
        assert!(!fragment(Codec::H264, &[], alike(64), &mut |_, _| panic!()));
    }

    #[test]
    fn what_is_a_little_larger_than_a_part_passes_whole() {
        let max = Sizes { whole: 84, part: 64 };
        let sizes = |codec, payload: &[u8]| {
            let mut sizes = Vec::new();
            assert!(fragment(codec, payload, max, &mut |prefix, body| sizes.push(prefix.len() + body.len())));
            sizes
        };
        for (codec, head) in [
            (Codec::H264, &[0x65][..]),
            (Codec::H264, &[0x7c, 0x85]),
            (Codec::H264, &[0x7d, 0x85, 0, 1]),
            (H265, &[0x28, 1]),
            (H265, &[0x62, 1, 0x94]),
            (NUMBERED, &[0x28, 1, 0, 1]),
        ] {
            let payload = |len| [head, &vec![7; len - head.len()]].concat();
            assert_eq!(sizes(codec, &payload(84)), [84]);
            let cut = sizes(codec, &payload(85));
            assert_eq!((cut[0], cut.len()), (64, 2), "{head:?}");
        }
        // So do the units of a byte stream and of an aggregate.
        let stream = [&[0, 0, 1, 0x67][..], &[7; 83], &[0, 0, 1, 0x65], &[7; 84]].concat();
        assert_eq!(sizes(Codec::H264, &stream), [84, 64, 24]);
        let aggregate = [&[0x78, 0, 84, 0x67][..], &[7; 83], &[0, 85, 0x65], &[7; 84]].concat();
        assert_eq!(sizes(Codec::H264, &aggregate), [84, 64, 24]);
    }

    #[test]
    fn fragments_are_cut_further_with_their_flags_in_place() {
        for (flags, first, middle, last) in
            [(0xc0, 0x80, 0, 0x40), (0x80, 0x80, 0, 0), (0x40, 0, 0, 0x40), (0, 0, 0, 0)]
        {
            let payload = [&[0x7c, flags | 5][..], &[7; 150]].concat();
            let got = cut(Codec::H264, &payload, 64);
            assert_eq!(got.iter().map(|p| p[1]).collect::<Vec<_>>(), [first | 5, middle | 5, last | 5]);
            let payload = [&[0x62, 1, flags | 20][..], &[7; 150]].concat();
            let got = cut(H265, &payload, 64);
            assert_eq!(got.iter().map(|p| p[2]).collect::<Vec<_>>(), [first | 20, middle | 20, last | 20]);
        }
        // FU-B keeps its decoding order number, which only a first fragment has.
        let payload = [&[0x7d, 0xc5, 3, 4][..], &[7; 100]].concat();
        let got = cut(Codec::H264, &payload, 64);
        assert_eq!((&got[0][..5], &got[1][..3]), (&[0x7d, 0x85, 3, 4, 7][..], &[0x7c, 0x45, 7][..]));
        let payload = [&[0x62, 1, 0x80 | 20, 3, 4][..], &[7; 100]].concat();
        let got = cut(NUMBERED, &payload, 64);
        assert_eq!((&got[0][..6], &got[1][..4]), (&[0x62, 1, 0x94, 3, 4, 7][..], &[0x62, 1, 20, 7][..]));
    }

    #[test]
    fn aggregates_fall_apart() {
        let nals: [Vec<u8>; 3] = [vec![0x67, 1, 2], [vec![0x65], vec![9; 100]].concat(), vec![0x41, 5]];
        for (first, between) in [(&[0x78][..], 0), (&[0x79, 0, 1], 0), (&[0x7a, 0, 1], 3), (&[0x7b, 0, 1], 4)] {
            let mut payload = first.to_vec();
            for nal in &nals {
                payload.extend_from_slice(&(nal.len() as u16).to_be_bytes());
                payload.extend(std::iter::repeat_n(0, between));
                payload.extend_from_slice(nal);
            }
            let joined: Vec<_> = join(Codec::H264, &cut(Codec::H264, &payload, 64)).into_iter().map(|n| n.1).collect();
            assert_eq!(joined, nals);
            // A size that passes the end ends it.
            payload.extend_from_slice(&[0xff, 0xff, 0]);
            assert_eq!(cut(Codec::H264, &payload, 64).len(), 4);
        }
        let nals: [Vec<u8>; 3] = [vec![0x42, 1, 2], [vec![0x28, 1], vec![9; 100]].concat(), vec![0x02, 1, 5]];
        let (mut plain, mut numbered) = (vec![0x60, 1], vec![0x60, 1, 0xff, 0xfe]);
        for (index, nal) in nals.iter().enumerate() {
            if index > 0 {
                numbered.push(index as u8 - 1);
            }
            for out in [&mut plain, &mut numbered] {
                out.extend_from_slice(&(nal.len() as u16).to_be_bytes());
                out.extend_from_slice(nal);
            }
        }
        let joined: Vec<_> = join(H265, &cut(H265, &plain, 64)).into_iter().map(|n| n.1).collect();
        assert_eq!(joined, nals);
        let joined = join(NUMBERED, &cut(NUMBERED, &numbered, 64));
        let numbers: Vec<_> = joined.iter().map(|n| n.0.unwrap()).collect();
        assert_eq!(numbers, [[0xff, 0xfe], [0xff, 0xff], [0, 1]]);
        assert_eq!(joined.into_iter().map(|n| n.1).collect::<Vec<_>>(), nals);
    }

    proptest! {
        #[test]
        fn units_come_out_as_they_went_in(
            kind in 1u8..24, body in proptest::collection::vec(1u8.., 0..600), max in 64usize..200,
        ) {
            let nal = [&[0x60 | kind][..], &body].concat();
            prop_assert_eq!(join(Codec::H264, &cut(Codec::H264, &nal, max)), [(None, nal)]);
            let nal = [&[kind << 1, 1][..], &body].concat();
            prop_assert_eq!(join(H265, &cut(H265, &nal, max)), [(None, nal)]);
            let payload = [&[kind << 1, 1, 8, 9][..], &body].concat();
            let nal = [&[kind << 1, 1][..], &body].concat();
            prop_assert_eq!(join(NUMBERED, &cut(NUMBERED, &payload, max)), [(Some([8, 9]), nal)]);
        }

        #[test]
        fn nothing_is_larger_than_asked_for(
            first: u8, rest in proptest::collection::vec(0u8..4, 0..2_000), part in 64usize..200, more in 0usize..20,
        ) {
            let max = Sizes { whole: part + more, part };
            let payload = [&[first][..], &rest].concat();
            for codec in [Codec::H264, H265, NUMBERED] {
                fragment(codec, &payload, max, &mut |prefix, body| {
                    assert!((1..=max.whole).contains(&(prefix.len() + body.len())));
                });
            }
        }
    }
}
