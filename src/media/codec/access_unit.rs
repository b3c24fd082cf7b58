//! An access unit of H.264 (RFC 6184) or H.265 (RFC 7798), assembled from the payloads of its packets.

use super::{Codec, annex_b, h264};

/// Size of the length field before each NAL unit (ISO/IEC 14496-15 section 5.3.3), in bytes.
const LENGTH_BYTES: usize = 4;

/// The NAL units of a frame.
#[derive(Debug)]
pub struct AccessUnit {
    codec: Codec,
    /// The NAL units, each preceded by its length as in MP4, without parameter sets and delimiters.
    pub data: Vec<u8>,
    /// The parameter sets, in order of arrival.
    pub sets: Vec<Vec<u8>>,
    /// A part is missing or invalid: the NAL unit that it belongs to is omitted.
    pub damaged: bool,
    /// Offset in `data` of the NAL unit whose fragments are being received.
    fragment: Option<usize>,
}

/// How a NAL unit is handled.
enum Use {
    Kept,
    Set,
    LeftOut,
}

impl AccessUnit {
    /// An empty access unit with room for this many bytes. `codec` is H.264 or H.265.
    pub fn new(codec: Codec, bytes: usize) -> AccessUnit {
        AccessUnit { codec, data: Vec::with_capacity(bytes), sets: Vec::new(), damaged: false, fragment: None }
    }

    fn header_bytes(&self) -> usize {
        if self.codec == Codec::H264 { 1 } else { 2 }
    }

    fn nal_type(&self, first: u8) -> u8 {
        if self.codec == Codec::H264 { first & 0x1f } else { first >> 1 & 0x3f }
    }

    fn use_of(&self, nal: &[u8]) -> Use {
        let Some(&first) = nal.first().filter(|_| nal.len() > self.header_bytes()) else { return Use::LeftOut };
        match (self.codec, self.nal_type(first)) {
            (Codec::H264, 7 | 8) | (Codec::H265 { .. }, 32..=34) => Use::Set,
            // Delimiters, end of sequence and of stream, filler data.
            (Codec::H264, 9..=12) | (Codec::H265 { .. }, 35..=38) => Use::LeftOut,
            _ => Use::Kept,
        }
    }

    /// Adds the next packet's payload; `lost` says that packets before it are missing.
    pub fn push(&mut self, payload: &[u8], lost: bool) {
        if lost {
            self.damaged = true;
            self.drop_fragment();
        }
        let header = self.header_bytes();
        let Some(&first) = payload.first().filter(|_| payload.len() > header) else { return };
        let donl = usize::from(self.codec == Codec::H265 { donl: true });
        match (self.codec, self.nal_type(first)) {
            (Codec::H264, 24) => self.aggregate(&payload[1..], 0),
            (Codec::H264, 28) => self.fragment(&payload[1..], &[first & 0xe0]),
            (Codec::H264, 25..=27 | 29..=31) => self.damaged = true,
            (Codec::H265 { .. }, 48) => {
                self.aggregate(payload.get(2 + 2 * donl..).unwrap_or_default(), donl);
            }
            (Codec::H265 { .. }, 49) => {
                let body = &payload[2..];
                let begins = body.first().is_some_and(|flags| flags & 0x80 != 0);
                // Only the first fragment's header is followed by the number.
                if donl == 1 && begins {
                    let rest = body.get(3..).unwrap_or_default();
                    self.fragment(&[&body[..1], rest].concat(), &[first & 0x81, payload[1]]);
                } else {
                    self.fragment(body, &[first & 0x81, payload[1]]);
                }
            }
            (Codec::H265 { .. }, 50) => self.damaged = true,
            _ => {
                self.drop_fragment();
                if donl == 1 {
                    let nal = [&payload[..2], payload.get(4..).unwrap_or_default()].concat();
                    self.whole(&nal);
                } else {
                    self.whole(payload);
                }
            }
        }
    }

    fn aggregate(&mut self, mut rest: &[u8], donl: usize) {
        self.drop_fragment();
        let mut is_first = true;
        while !rest.is_empty() {
            if !std::mem::take(&mut is_first) {
                rest = rest.get(donl..).unwrap_or_default();
            }
            let Some((size, more)) = rest.split_first_chunk::<2>() else { break };
            let Some((nal, more)) = more.split_at_checked(usize::from(u16::from_be_bytes(*size))) else {
                self.damaged = true;
                return;
            };
            self.whole(nal);
            rest = more;
        }
    }

    /// This should be one whole NAL unit, but some cameras put several in, separated by start codes.
    fn whole(&mut self, nal: &[u8]) {
        let Some(&first) = nal.first() else { return };
        let hides = match self.codec {
            Codec::H264 => h264::may_hide_others(self.nal_type(first)),
            _ => self.nal_type(first) >= 32,
        };
        if annex_b::begins(nal) || (hides && annex_b::within(nal)) {
            for nal in annex_b::nal_units(nal) {
                self.add(nal);
            }
        } else {
            self.add(nal);
        }
    }

    fn add(&mut self, nal: &[u8]) {
        match self.use_of(nal) {
            Use::LeftOut => {}
            Use::Set => self.sets.push(nal.to_vec()),
            Use::Kept => {
                self.data.extend_from_slice(&(nal.len() as u32).to_be_bytes());
                self.data.extend_from_slice(nal);
            }
        }
    }

    /// A part of a NAL unit: flags and type, then its bytes. `header` is the NAL unit's header without the type.
    fn fragment(&mut self, fragment: &[u8], header: &[u8]) {
        let Some((&flags, piece)) = fragment.split_first() else { return };
        if flags & 0x80 != 0 {
            self.drop_fragment();
            self.fragment = Some(self.data.len());
            self.data.extend_from_slice(&[0; LENGTH_BYTES]);
            match (self.codec, header) {
                (Codec::H264, [first, ..]) => self.data.push(first | (flags & 0x1f)),
                (_, [first, second]) => self.data.extend_from_slice(&[first | (flags & 0x3f) << 1, *second]),
                _ => {}
            }
        } else if self.fragment.is_none() {
            self.damaged = true;
            return;
        }
        self.data.extend_from_slice(piece);
        if flags & 0x40 != 0
            && let Some(start) = self.fragment.take()
        {
            let nal = self.data.split_off(start);
            self.whole_of_fragments(nal);
        }
    }

    /// All fragments of a NAL unit are there, after room for its length.
    fn whole_of_fragments(&mut self, mut nal: Vec<u8>) {
        let body = nal.len() - LENGTH_BYTES;
        match self.use_of(&nal[LENGTH_BYTES..]) {
            Use::LeftOut => {}
            Use::Set => self.sets.push(nal.split_off(LENGTH_BYTES)),
            Use::Kept => {
                nal[..LENGTH_BYTES].copy_from_slice(&(body as u32).to_be_bytes());
                if self.data.is_empty() {
                    self.data = nal;
                } else {
                    self.data.extend_from_slice(&nal);
                }
            }
        }
    }

    /// Drops the NAL unit whose remaining fragments are missing.
    fn drop_fragment(&mut self) {
        if let Some(start) = self.fragment.take() {
            self.data.truncate(start);
            self.damaged = true;
        }
    }

    /// Whether there is a B slice of H.264 in it.
    pub fn has_b_slice(&self) -> bool {
        let mut rest = self.data.as_slice();
        while let Some((len, more)) = rest.split_first_chunk::<LENGTH_BYTES>() {
            let (nal, behind) = more.split_at((u32::from_be_bytes(*len) as usize).min(more.len()));
            if self.codec == Codec::H264 && h264::is_b_slice(nal) {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// No more packets come.
    pub fn finish(&mut self) {
        self.drop_fragment();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(codec: Codec, payloads: &[&[u8]]) -> AccessUnit {
        let mut unit = AccessUnit::new(codec, 0);
        payloads.iter().for_each(|payload| unit.push(payload, false));
        unit.finish();
        unit
    }

    #[test]
    fn h264_units_come_whole_however_they_are_packed() {
        let payloads: [&[u8]; 5] = [
            &[0x09, 0xf0],
            &[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 2],
            &[0x7c, 0x85, 10, 11],
            &[0x7c, 0x05, 12],
            &[0x7c, 0x45, 13],
        ];
        let unit = of(Codec::H264, &payloads);
        assert_eq!(unit.data, [0, 0, 0, 5, 0x65, 10, 11, 12, 13]);
        assert_eq!(unit.sets, [vec![0x67, 1], vec![0x68, 2]]);
        assert!(!unit.damaged && !unit.has_b_slice());
        // first_mb_in_slice 0, slice_type 0 (P) and 1 (B).
        assert!(of(Codec::H264, &[&[0x41, 0xc0], &[0x01, 0xa0]]).has_b_slice());
        let hidden = of(Codec::H264, &[&[0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x68, 8, 0, 0, 1, 0x65, 7]]);
        assert_eq!((hidden.data.as_slice(), hidden.sets.len()), (&[0, 0, 0, 2, 0x65, 7][..], 2));
    }

    #[test]
    fn h265_units_come_whole_with_and_without_order_numbers() {
        let unit = of(
            Codec::H265 { donl: false },
            &[&[0x60, 1, 0, 3, 0x40, 1, 9, 0, 3, 0x42, 1, 8], &[0x62, 1, 0x93, 7], &[0x62, 1, 0x53, 6]],
        );
        assert_eq!(unit.data, [0, 0, 0, 4, 0x26, 1, 7, 6]);
        assert_eq!(unit.sets, [vec![0x40, 1, 9], vec![0x42, 1, 8]]);
        let unit = of(
            Codec::H265 { donl: true },
            &[&[0x60, 1, 0, 5, 0, 3, 0x40, 1, 9, 0, 0, 3, 0x42, 1, 8], &[0x62, 1, 0x93, 0, 5, 7], &[0x62, 1, 0x53, 6]],
        );
        assert_eq!(unit.data, [0, 0, 0, 4, 0x26, 1, 7, 6]);
    }

    #[test]
    fn a_unit_with_a_part_missing_is_left_out() {
        let mut unit = AccessUnit::new(Codec::H264, 0);
        unit.push(&[0x41, 1, 2], false);
        unit.push(&[0x7c, 0x81, 10], false);
        unit.push(&[0x7c, 0x41, 13], true);
        unit.push(&[0x41, 3], false);
        unit.finish();
        assert_eq!(unit.data, [0, 0, 0, 3, 0x41, 1, 2, 0, 0, 0, 2, 0x41, 3]);
        assert!(unit.damaged);
    }
}
