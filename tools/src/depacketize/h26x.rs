//! H.264 (RFC 6184, packetization modes 0 and 1) and H.265 (RFC 7798 without DONs).

use rtsprelay::source::stamp;

use super::{FRAME_BYTES_MAX, PacketInfo};
use crate::frame::{Codec, Frame};

const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// What a NAL unit is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A slice of a picture.
    Slice,
    /// A slice of a picture at which decoding can start.
    KeySlice,
    /// A parameter set; its number says which kind.
    ParameterSet(u8),
    /// An SEI message before the picture.
    Sei,
    /// An access unit delimiter.
    Delimiter,
    /// Several NAL units in one packet (STAP-A, AP).
    Aggregate,
    /// A piece of a NAL unit (FU-A, FU).
    Fragment,
    /// Something of no interest.
    Other,
    /// Nothing that this payload format allows.
    Bad,
}

/// Puts access units together.
pub struct H26x {
    codec: Codec,
    /// The newest parameter sets, in the order of their kinds; put before keyframes that come without.
    parameter_sets: Vec<(u8, Vec<u8>)>,
    open: Option<Open>,
    /// References may be missing: set by loss, passed on with the next frame.
    after_loss: bool,
    pub(super) malformed: u64,
}

/// The access unit in the making.
struct Open {
    data: Vec<u8>,
    info: PacketInfo,
    slices: bool,
    keyframe: bool,
    damaged: bool,
    after_loss: bool,
    /// The position in `data` of the NAL unit whose fragments are arriving.
    fragment: Option<usize>,
    /// Where parameter sets are in `data`, without start codes.
    sets: Vec<(u8, std::ops::Range<usize>)>,
    stamp: Option<stamp::Stamp>,
}

impl Open {
    fn new(info: PacketInfo, after_loss: bool) -> Self {
        Open {
            data: Vec::new(),
            info,
            slices: false,
            keyframe: false,
            damaged: false,
            after_loss,
            fragment: None,
            sets: Vec::new(),
            stamp: None,
        }
    }

    /// A NAL unit whose fragments stopped coming is not worth decoding.
    fn drop_fragment(&mut self) {
        if let Some(start) = self.fragment.take() {
            self.data.truncate(start - START_CODE.len());
            self.damaged = true;
        }
    }
}

impl H26x {
    /// A depacketizer for H.264 or H.265 with these initial parameter sets.
    pub fn new(codec: Codec, parameter_sets: Vec<Vec<u8>>) -> Self {
        let mut it = H26x { codec, parameter_sets: Vec::new(), open: None, after_loss: false, malformed: 0 };
        for set in parameter_sets {
            if let Kind::ParameterSet(kind) = it.kind(&set) {
                it.parameter_sets.push((kind, set));
            }
        }
        it.parameter_sets.sort_by_key(|(kind, _)| *kind);
        it
    }

    /// Bytes of a NAL unit's header.
    fn header_bytes(&self) -> usize {
        if self.codec == Codec::H264 { 1 } else { 2 }
    }

    fn kind(&self, nal: &[u8]) -> Kind {
        if nal.len() < self.header_bytes() || nal[0] & 0x80 != 0 {
            return Kind::Bad;
        }
        match self.codec {
            Codec::H264 => match nal[0] & 0x1f {
                1..=4 => Kind::Slice,
                5 => Kind::KeySlice,
                6 => Kind::Sei,
                number @ (7 | 8) => Kind::ParameterSet(number),
                9 => Kind::Delimiter,
                10..=23 => Kind::Other,
                24 => Kind::Aggregate,
                28 => Kind::Fragment,
                _ => Kind::Bad,
            },
            _ => match nal[0] >> 1 & 0x3f {
                0..=15 => Kind::Slice,
                16..=23 => Kind::KeySlice,
                24..=31 => Kind::Slice,
                number @ 32..=34 => Kind::ParameterSet(number),
                35 => Kind::Delimiter,
                39 => Kind::Sei,
                36..=47 => Kind::Other,
                48 => Kind::Aggregate,
                49 => Kind::Fragment,
                _ => Kind::Bad,
            },
        }
    }

    /// Processes one payload.
    pub fn push(&mut self, info: PacketInfo, payload: &[u8], out: &mut dyn FnMut(Frame)) {
        // Some cameras put Annex B into RTP.
        let payload =
            [&START_CODE[..], &START_CODE[1..]].iter().find_map(|code| payload.strip_prefix(*code)).unwrap_or(payload);
        let same = self.open.as_ref().is_some_and(|open| open.info.timestamp == info.timestamp);
        if info.lost > 0 {
            self.after_loss = true;
            if let Some(open) = &mut self.open {
                open.drop_fragment();
                // What is lost may be its end.
                open.damaged = true;
            }
        }
        if !same {
            self.close(out);
        }
        let begins = matches!(self.kind(payload), Kind::ParameterSet(_) | Kind::Sei | Kind::Delimiter)
            || self.kind(payload) == Kind::Aggregate;
        let after_loss = self.after_loss;
        let open = self.open.get_or_insert_with(|| {
            let mut open = Open::new(info, after_loss);
            // A frame that starts like one is complete, whatever was lost before.
            open.damaged = info.lost > 0 && !begins;
            open
        });
        open.info = info;
        open.after_loss |= after_loss;
        if open.stamp.is_none() {
            open.stamp = stamp::find(payload);
        }
        if open.data.len() + payload.len() > FRAME_BYTES_MAX {
            self.open = None;
            self.after_loss = true;
            self.malformed += 1;
            return;
        }
        if !self.payload(payload) {
            self.malformed += 1;
            if let Some(open) = &mut self.open {
                open.damaged = true;
            }
        }
        // Cameras set the marker on parameter sets and SEI too.
        if info.marker && self.open.as_ref().is_some_and(|open| open.slices && open.fragment.is_none()) {
            self.close(out);
        }
    }

    /// Takes a payload apart; false if it breaks the rules.
    fn payload(&mut self, payload: &[u8]) -> bool {
        let header = self.header_bytes();
        match self.kind(payload) {
            Kind::Bad => false,
            Kind::Aggregate => {
                self.drop_fragment();
                let mut rest = &payload[header..];
                while !rest.is_empty() {
                    let Some((size, more)) = rest.split_at_checked(2) else { return false };
                    let size = usize::from(u16::from_be_bytes([size[0], size[1]]));
                    let Some((nal, more)) = more.split_at_checked(size) else { return false };
                    if matches!(self.kind(nal), Kind::Bad | Kind::Aggregate | Kind::Fragment) {
                        return false;
                    }
                    self.nal(nal);
                    rest = more;
                }
                true
            }
            Kind::Fragment => self.fragment(payload),
            _ => {
                let whole = self.drop_fragment();
                self.nal(payload);
                whole
            }
        }
    }

    /// Drops the fragments of a NAL unit that has not ended; false if there are any.
    fn drop_fragment(&mut self) -> bool {
        let Some(open) = &mut self.open else { return true };
        let whole = open.fragment.is_none();
        open.drop_fragment();
        whole
    }

    fn fragment(&mut self, payload: &[u8]) -> bool {
        let header = self.header_bytes();
        let Some(&flags) = payload.get(header) else { return false };
        let piece = &payload[header + 1..];
        if flags & 0x80 != 0 {
            let whole = self.drop_fragment();
            let nal_header = match self.codec {
                Codec::H264 => vec![payload[0] & 0xe0 | flags & 0x1f],
                _ => vec![payload[0] & 0x81 | (flags & 0x3f) << 1, payload[1]],
            };
            if matches!(self.kind(&nal_header), Kind::Bad | Kind::Aggregate | Kind::Fragment) {
                return false;
            }
            if let Some(open) = &mut self.open {
                open.data.extend_from_slice(&START_CODE);
                open.fragment = Some(open.data.len());
                open.data.extend_from_slice(&nal_header);
                open.data.extend_from_slice(piece);
            }
            if !whole {
                return false;
            }
        } else {
            let Some(open) = &mut self.open else { return false };
            if open.fragment.is_none() {
                // Its start is lost; the sequence numbers have already shown it.
                open.damaged = true;
                return open.after_loss;
            }
            open.data.extend_from_slice(piece);
        }
        if flags & 0x40 != 0
            && let Some(open) = &mut self.open
            && let Some(start) = open.fragment.take()
        {
            self.note(start);
        }
        true
    }

    /// Adds a whole NAL unit.
    fn nal(&mut self, nal: &[u8]) {
        let Some(open) = &mut self.open else { return };
        open.data.extend_from_slice(&START_CODE);
        let start = open.data.len();
        open.data.extend_from_slice(nal);
        self.note(start);
    }

    /// Remembers what the NAL unit from `start` to the end of the open frame's data is.
    fn note(&mut self, start: usize) {
        let Some(open) = &self.open else { return };
        let nal = &open.data[start..];
        let kind = self.kind(nal);
        let recovery = self.codec == Codec::H264 && kind == Kind::Sei && has_recovery_point(&nal[1..]);
        let end = open.data.len();
        let Some(open) = &mut self.open else { return };
        match kind {
            Kind::Slice => open.slices = true,
            Kind::KeySlice => (open.slices, open.keyframe) = (true, true),
            Kind::ParameterSet(kind) => open.sets.push((kind, start..end)),
            _ => open.keyframe |= recovery,
        }
    }

    /// Ends the frame in the making.
    fn close(&mut self, out: &mut dyn FnMut(Frame)) {
        let Some(mut open) = self.open.take() else { return };
        open.drop_fragment();
        self.remember_sets(&open);
        if !open.slices && !open.damaged {
            // Parameter sets alone are kept for the next keyframe, all else is of no use.
            return;
        }
        let mut data = open.data;
        if open.keyframe && open.sets.is_empty() {
            let mut with_sets = Vec::new();
            for (_, set) in &self.parameter_sets {
                with_sets.extend_from_slice(&START_CODE);
                with_sets.extend_from_slice(set);
            }
            with_sets.append(&mut data);
            data = with_sets;
        }
        self.after_loss = false;
        out(Frame {
            data,
            timestamp: open.info.timestamp,
            arrived: open.info.arrived,
            arrived_wall: open.info.arrived_wall,
            stamp: open.stamp,
            age: None,
            keyframe: open.keyframe,
            damaged: open.damaged,
            after_loss: open.after_loss,
            catching_up: false,
        });
    }

    /// Keeps the parameter sets of a frame instead of those of the same kinds.
    fn remember_sets(&mut self, open: &Open) {
        if open.sets.is_empty() || open.damaged {
            return;
        }
        self.parameter_sets.retain(|(kind, _)| open.sets.iter().all(|(new, _)| new != kind));
        for (kind, range) in &open.sets {
            self.parameter_sets.push((*kind, open.data[range.clone()].to_vec()));
        }
        self.parameter_sets.sort_by_key(|(kind, _)| *kind);
    }
}

/// Whether an SEI NAL unit of H.264 has a recovery point message (annex D.1.8): decoding may start with its picture, as in
/// streams that refresh their picture bit by bit and never send an IDR picture.
fn has_recovery_point(mut sei: &[u8]) -> bool {
    let number = |sei: &mut &[u8]| {
        let mut sum = 0usize;
        loop {
            let (&byte, rest) = sei.split_first()?;
            *sei = rest;
            sum += usize::from(byte);
            if byte != 255 {
                return Some(sum);
            }
        }
    };
    while sei.len() > 2 {
        let (Some(kind), Some(size)) = (number(&mut sei), number(&mut sei)) else { return false };
        if kind == 6 {
            return true;
        }
        let Some(rest) = sei.get(size..) else { return false };
        sei = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;

    struct Feeder {
        it: H26x,
        frames: Vec<Frame>,
    }

    impl Feeder {
        fn new(codec: Codec, sets: Vec<Vec<u8>>) -> Self {
            Feeder { it: H26x::new(codec, sets), frames: Vec::new() }
        }

        fn push(&mut self, timestamp: i64, marker: bool, lost: u32, payload: &[u8]) {
            let info = PacketInfo { timestamp, marker, lost, arrived: Instant::now(), arrived_wall: SystemTime::now() };
            self.it.push(info, payload, &mut |frame| self.frames.push(frame));
        }
    }

    #[test]
    fn fragments_become_one_nal_unit() {
        let mut it = Feeder::new(Codec::H264, vec![vec![0x67, 1], vec![0x68, 2]]);
        it.push(1, false, 0, &[0x7c, 0x85, 10, 11]);
        it.push(1, false, 0, &[0x7c, 0x05, 12]);
        it.push(1, true, 0, &[0x7c, 0x45, 13]);
        let frame = &it.frames[0];
        assert!(frame.keyframe && !frame.damaged && !frame.after_loss);
        assert_eq!(frame.data, [0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 10, 11, 12, 13]);
    }

    #[test]
    fn a_lost_fragment_spoils_its_frame_and_is_told_with_it() {
        let mut it = Feeder::new(Codec::H264, Vec::new());
        it.push(1, false, 0, &[0x7c, 0x81, 10]);
        it.push(1, true, 1, &[0x7c, 0x41, 13]);
        it.push(2, true, 0, &[0x41, 1]);
        assert!(it.frames[0].damaged && it.frames[0].after_loss);
        assert!(!it.frames[1].damaged && !it.frames[1].after_loss);
        assert_eq!(it.it.malformed, 0);
    }

    #[test]
    fn a_marker_on_a_parameter_set_ends_nothing() {
        let mut it = Feeder::new(Codec::H264, Vec::new());
        for payload in [&[0x67, 1][..], &[0x68, 2], &[0x65, 3]] {
            it.push(1, true, 0, payload);
        }
        assert_eq!(it.frames.len(), 1);
        assert_eq!(it.frames[0].data, [0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 3]);
        // The next keyframe comes without: it gets them.
        it.push(2, true, 0, &[0x65, 4]);
        assert_eq!(it.frames[1].data, [0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 4]);
    }

    #[test]
    fn h265_fragments_and_aggregates() {
        let mut it = Feeder::new(Codec::H265, Vec::new());
        it.push(1, false, 0, &[0x60, 1, 0, 3, 0x40, 1, 9, 0, 3, 0x42, 1, 8]);
        it.push(1, false, 0, &[0x62, 1, 0x93, 7]);
        it.push(1, true, 0, &[0x62, 1, 0x53, 6]);
        let frame = &it.frames[0];
        assert!(frame.keyframe && !frame.damaged);
        assert_eq!(frame.data, [0, 0, 0, 1, 0x40, 1, 9, 0, 0, 0, 1, 0x42, 1, 8, 0, 0, 0, 1, 0x26, 1, 7, 6]);
    }

    #[test]
    fn a_recovery_point_is_a_start() {
        let mut it = Feeder::new(Codec::H264, Vec::new());
        it.push(1, false, 0, &[0x06, 5, 1, 0, 6, 1, 0xc4, 0x80]);
        it.push(1, true, 0, &[0x41, 1]);
        assert!(it.frames[0].keyframe);
    }

    #[test]
    fn any_bytes_are_survived() {
        for codec in [Codec::H264, Codec::H265] {
            let mut it = Feeder::new(codec, Vec::new());
            let mut random = fastrand::Rng::with_seed(7);
            for _ in 0..50_000 {
                let payload: Vec<u8> = (0..random.usize(0..30)).map(|_| random.u8(..)).collect();
                it.push(random.i64(0..4), random.bool(), random.u32(0..2), &payload);
            }
        }
    }
}
