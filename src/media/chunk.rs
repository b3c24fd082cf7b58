//! The chunk: the reference-counted, immutable buffer that a source writes once and every client is sent from.

use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::TrackId;
use super::saved::Moment;
use crate::limits::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX, INTERLEAVED_HEADER_BYTES};

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkKind {
    /// RTP packets of one frame.
    Media,
    /// One compound RTCP packet of the track (a sender report). Has no frame number and is never held back.
    Report,
}

/// Where one packet lies in [`Chunk::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Offset of the packet itself, after its interleaved header.
    pub offset: u32,
    /// Bytes of the packet.
    pub len: u16,
}

/// Packets that one UDP send with `UDP_SEGMENT` can carry: all of one size, except that the last may be shorter (udp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the run's first packet in the chunk.
    pub first: u16,
    /// Packets in the run, at least 1.
    pub count: u16,
    /// Size of each packet except the last, in bytes.
    pub segment: u16,
}

/// Packets of one frame of one track, stored exactly as an interleaved client receives them.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Number in the stream, contiguous from 0.
    pub number: u64,
    /// The track it belongs to.
    pub track: TrackId,
    /// What it carries.
    pub kind: ChunkKind,
    /// Number of the frame in its track, contiguous from 0. Meaningless for [`ChunkKind::Report`].
    pub frame: u64,
    /// Whether this chunk starts the frame.
    pub frame_start: bool,
    /// Whether this chunk ends the frame. Always true for [`ChunkKind::Report`].
    pub frame_end: bool,
    /// Whether decoding can start at the frame this chunk belongs to. The same for all chunks of a frame.
    pub keyframe: bool,
    /// When the last of its packets was read from the source.
    pub arrival: Instant,
    /// Sequence number of its first packet; the others follow without gaps.
    pub first_seq: u16,
    /// RTP timestamp of its packets.
    pub rtp_time: u32,
    /// For each packet `$`, channel, length and the packet (RFC 2326 section 10.12), with the track's own channel numbers.
    pub bytes: Bytes,
    /// Number of packets. Where they lie follows from the bytes ([`Chunk::spans`]).
    pub packets: u16,
}

/// A chunk as plain data, for saving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkState {
    number: u64,
    track: TrackId,
    kind: ChunkKind,
    frame: u64,
    frame_start: bool,
    frame_end: bool,
    keyframe: bool,
    arrival: Moment,
    first_seq: u16,
    rtp_time: u32,
    /// The packets follow from these.
    #[serde(with = "super::saved::bytes")]
    bytes: Bytes,
}

impl ChunkState {
    /// Its number in the stream.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its media, which may travel apart from the rest.
    pub fn bytes_mut(&mut self) -> &mut Bytes {
        &mut self.bytes
    }
}

impl Chunk {
    /// The chunk as plain data; its bytes are shared, not copied.
    pub fn save(&self, now: Instant) -> ChunkState {
        ChunkState {
            number: self.number,
            track: self.track,
            kind: self.kind,
            frame: self.frame,
            frame_start: self.frame_start,
            frame_end: self.frame_end,
            keyframe: self.keyframe,
            arrival: Moment::of(self.arrival, now),
            first_seq: self.first_seq,
            rtp_time: self.rtp_time,
            bytes: self.bytes.clone(),
        }
    }

    /// Restores a saved chunk.
    pub fn restore(now: Instant, state: ChunkState) -> Chunk {
        Chunk {
            number: state.number,
            track: state.track,
            kind: state.kind,
            frame: state.frame,
            frame_start: state.frame_start,
            frame_end: state.frame_end,
            keyframe: state.keyframe,
            arrival: state.arrival.at(now),
            first_seq: state.first_seq,
            rtp_time: state.rtp_time,
            packets: Spans::of(&state.bytes).count() as u16,
            bytes: state.bytes,
        }
    }

    /// A report of the track: one compound RTCP packet of at most 65,535 bytes, which gives the track's timestamp at `arrival`.
    pub fn report(number: u64, track: TrackId, arrival: Instant, rtp_time: u32, compound: &[u8]) -> Chunk {
        let len = compound.len() as u16;
        let mut bytes = Vec::with_capacity(INTERLEAVED_HEADER_BYTES + compound.len());
        bytes.extend_from_slice(&[b'$', track.rtcp_channel()]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(compound);
        Chunk {
            number,
            track,
            kind: ChunkKind::Report,
            frame: 0,
            frame_start: false,
            frame_end: true,
            keyframe: false,
            arrival,
            first_seq: 0,
            rtp_time,
            bytes: Bytes::from(bytes),
            packets: 1,
        }
    }

    /// The same chunk with other bytes, which must be equal.
    pub(super) fn with_bytes(&self, bytes: Bytes) -> Chunk {
        Chunk { bytes, ..*self }
    }

    /// Whether a client may start its video with this chunk.
    pub fn starts_keyframe(&self) -> bool {
        self.kind == ChunkKind::Media && self.keyframe && self.frame_start
    }

    /// The interleaved channel in its bytes.
    pub fn channel(&self) -> u8 {
        match self.kind {
            ChunkKind::Media => self.track.rtp_channel(),
            ChunkKind::Report => self.track.rtcp_channel(),
        }
    }

    /// Where each packet lies in its bytes, in order.
    pub fn spans(&self) -> Spans<'_> {
        Spans::of(&self.bytes)
    }

    /// A copy of the bytes with another channel number.
    pub fn render(&self, channel: u8) -> Bytes {
        let mut out = self.bytes.to_vec();
        for span in self.spans() {
            // The channel is the second of the four bytes before the packet.
            out[span.offset as usize - 3] = channel;
        }
        Bytes::from(out)
    }
}

/// Where the packets lie in the bytes of a chunk, one after the other; ends before anything that is not a whole packet.
#[derive(Clone, Debug)]
pub struct Spans<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Spans<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Spans { bytes, at: 0 }
    }
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let [b'$', _, high, low] = self.bytes.get(self.at..self.at + INTERLEAVED_HEADER_BYTES)? else { return None };
        let (offset, len) = (self.at + INTERLEAVED_HEADER_BYTES, u16::from_be_bytes([*high, *low]));
        let end = offset + usize::from(len);
        (end <= self.bytes.len()).then(|| {
            self.at = end;
            Span { offset: offset as u32, len }
        })
    }
}

/// Groups packets into GSO runs: equal sizes; a shorter packet ends its run.
pub fn cut_runs(packets: &[Span]) -> SmallVec<[Run; 2]> {
    let mut runs: SmallVec<[Run; 2]> = SmallVec::new();
    let mut bytes = 0usize;
    let mut ended = true;
    for (index, span) in packets.iter().enumerate() {
        let fits = match runs.last() {
            Some(run) if !ended => {
                span.len <= run.segment
                    && usize::from(run.count) < GSO_SEGMENTS_MAX
                    && bytes + usize::from(span.len) <= GSO_BYTES_MAX
            }
            _ => false,
        };
        if fits {
            let run = runs.last_mut().expect("fits only with a run open");
            run.count += 1;
            bytes += usize::from(span.len);
            ended = span.len < run.segment;
        } else {
            runs.push(Run { first: index as u16, count: 1, segment: span.len });
            bytes = usize::from(span.len);
            ended = false;
        }
    }
    runs.shrink_to_fit();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(sizes: &[u16]) -> Vec<Span> {
        let mut offset = 4;
        sizes
            .iter()
            .map(|&len| {
                let span = Span { offset, len };
                offset += u32::from(len) + 4;
                span
            })
            .collect()
    }

    #[test]
    fn a_short_packet_ends_its_run() {
        let runs = cut_runs(&spans(&[40, 1400, 1400, 900, 1400, 1400]));
        let got: Vec<_> = runs.iter().map(|r| (r.first, r.count, r.segment)).collect();
        assert_eq!(got, [(0, 1, 40), (1, 3, 1400), (4, 2, 1400)]);
    }

    #[test]
    fn the_packets_of_a_chunk_follow_from_its_bytes() {
        let sizes = [12, 1400, 0, 65_535];
        let mut bytes = Vec::new();
        for size in sizes {
            bytes.extend_from_slice(&[b'$', 4]);
            bytes.extend_from_slice(&u16::to_be_bytes(size));
            bytes.extend(vec![b'$'; usize::from(size)]);
        }
        assert_eq!(Spans::of(&bytes).collect::<Vec<_>>(), spans(&sizes));
        // Nonsense has none, and what is cut off ends before it.
        assert_eq!(Spans::of(b"rubbish").chain(Spans::of(b"$\0\0\x09")).count(), 0);
        assert_eq!(Spans::of(&bytes[..bytes.len() - 1]).count(), 3);
    }

    #[test]
    fn a_run_stays_within_segments_and_bytes() {
        let runs = cut_runs(&spans(&[1000; 200]));
        assert!(runs.iter().all(|r| usize::from(r.count) <= GSO_SEGMENTS_MAX));
        let runs = cut_runs(&spans(&[1472; 100]));
        assert!(runs.iter().all(|r| usize::from(r.count) * 1472 <= GSO_BYTES_MAX));
        assert_eq!(runs.iter().map(|r| usize::from(r.count)).sum::<usize>(), 100);
    }
}
