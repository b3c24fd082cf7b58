//! The chunk: the refcounted, immutable buffer that a source writes once and every client is sent from.

use std::time::Instant;

use bytes::Bytes;

use super::TrackId;
use crate::limits::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

/// What a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// RTP packets of one frame.
    Media,
    /// One compound RTCP packet of the track (a sender report). Has no frame; never held back.
    Report,
}

/// Where one packet lies in [`Chunk::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the packet itself, past its interleaved header.
    pub offset: u32,
    /// Bytes of the packet.
    pub len: u16,
}

/// Packets that one UDP send with `UDP_SEGMENT` can carry: all of one size but for a shorter last one (udp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the run's first packet in [`Chunk::packets`].
    pub first: u16,
    /// Packets in the run, at least 1.
    pub count: u16,
    /// Bytes of each packet but the last.
    pub segment: u16,
}

/// Packets of one frame of one track, stored as the very bytes that an interleaved client receives.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Number in the stream, dense from 0.
    pub number: u64,
    /// The track it belongs to.
    pub track: TrackId,
    /// What it carries.
    pub kind: ChunkKind,
    /// Number of the frame in its track, dense from 0. Meaningless for [`ChunkKind::Report`].
    pub frame: u64,
    /// Whether the frame begins with this chunk.
    pub frame_start: bool,
    /// Whether the frame ends with this chunk. Always true for [`ChunkKind::Report`].
    pub frame_end: bool,
    /// Whether decoding can start at the frame this chunk belongs to. The same for all chunks of a frame.
    pub keyframe: bool,
    /// When the last of its packets was read from the source.
    pub arrival: Instant,
    /// Sequence number of its first packet; the others follow without a gap.
    pub first_seq: u16,
    /// RTP timestamp of its packets.
    pub rtp_time: u32,
    /// `$`, channel, length, packet, again and again (RFC 2326 section 10.12), with the track's own channel numbers.
    pub bytes: Bytes,
    /// Where each packet lies.
    pub packets: Box<[Span]>,
    /// The packets cut into GSO runs, in order.
    pub runs: Box<[Run]>,
}

impl Chunk {
    /// Whether a client may begin its video with this chunk.
    pub fn starts_keyframe(&self) -> bool {
        self.kind == ChunkKind::Media && self.keyframe && self.frame_start
    }

    /// The interleaved channel that its bytes carry.
    pub fn channel(&self) -> u8 {
        match self.kind {
            ChunkKind::Media => self.track.rtp_channel(),
            ChunkKind::Report => self.track.rtcp_channel(),
        }
    }

    /// The bytes again under another channel number.
    pub fn render(&self, channel: u8) -> Bytes {
        let mut out = self.bytes.to_vec();
        for span in &self.packets {
            // The channel is the second byte of the four before the packet.
            out[span.offset as usize - 3] = channel;
        }
        Bytes::from(out)
    }
}

/// Cuts packets into GSO runs: equal sizes, at most one shorter packet, which ends its run.
pub fn cut_runs(packets: &[Span]) -> Box<[Run]> {
    let mut runs: Vec<Run> = Vec::new();
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
    runs.into_boxed_slice()
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
    fn a_run_stays_within_segments_and_bytes() {
        let runs = cut_runs(&spans(&[1000; 200]));
        assert!(runs.iter().all(|r| usize::from(r.count) <= GSO_SEGMENTS_MAX));
        let runs = cut_runs(&spans(&[1452; 100]));
        assert!(runs.iter().all(|r| usize::from(r.count) * 1452 <= GSO_BYTES_MAX));
        assert_eq!(runs.iter().map(|r| usize::from(r.count)).sum::<usize>(), 100);
    }
}
