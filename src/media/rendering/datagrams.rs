//! A chunk as packets for UDP.

use std::cell::OnceCell;
use std::ops::Range;

use smallvec::SmallVec;

use super::Piece;
use crate::media::chunk::{Chunk, Run, Span, cut_runs};

/// A chunk as sent to UDP clients; made once per shard and chunk, shared by the clients.
#[derive(Debug)]
pub struct Datagrams {
    /// The chunk's bytes. Private, because the vectors point into them, so they must never be replaced.
    bytes: Piece,
    /// Where each packet lies.
    pub packets: SmallVec<[Span; 2]>,
    /// The packets grouped into runs.
    pub runs: SmallVec<[Run; 2]>,
    vectors: OnceCell<Box<[libc::iovec]>>,
}

impl Datagrams {
    /// Packets that lie in `bytes` at the positions in `packets`, grouped into `runs`.
    pub fn new(bytes: Piece, packets: SmallVec<[Span; 2]>, runs: SmallVec<[Run; 2]>) -> Self {
        Datagrams { bytes, packets, runs, vectors: OnceCell::new() }
    }

    /// The packets of `chunk`, which lie in these bytes as in its own.
    pub fn of(chunk: &Chunk, bytes: Piece) -> Self {
        let mut packets = SmallVec::with_capacity(usize::from(chunk.packets));
        packets.extend(chunk.spans());
        let runs = cut_runs(&packets);
        Datagrams::new(bytes, packets, runs)
    }

    /// The chunk's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The bytes of one packet.
    pub fn packet(&self, span: &Span) -> &[u8] {
        &self.bytes()[span.offset as usize..][..usize::from(span.len)]
    }

    /// One I/O vector per packet, made when the first client needs them. They are valid as long as these datagrams exist.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        self.vectors.get_or_init(|| {
            let vector =
                |packet: &[u8]| libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            self.packets.iter().map(|span| vector(self.packet(span))).collect()
        })
    }

    /// Number of messages needed to send them: one per run, or one per packet if `plain`.
    pub(crate) fn messages_count(&self, plain: bool) -> usize {
        if plain { self.packets.len() } else { self.runs.len() }
    }

    /// The packets of one message by index, and the segment size if `UDP_SEGMENT` must split them.
    pub(crate) fn message(&self, index: usize, plain: bool) -> (Range<usize>, Option<u16>) {
        if plain {
            return (index..index + 1, None);
        }
        let run = self.runs[index];
        let first = usize::from(run.first);
        (first..first + usize::from(run.count), (run.count > 1).then_some(run.segment))
    }
}
