//! The chunker copies each packet into its chunk, and the chunk, once its size is known, into the memory that every client is sent from.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::TrackId;
use super::chunk::{Chunk, ChunkKind, Span, Spans};
use super::saved::Moment;
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_OPEN_MAX_US, CHUNK_PART_BYTES_MIN, INTERLEAVED_HEADER_BYTES, PACKET_BYTES_MAX,
};
use crate::wire::rtp::HEADER_BYTES;

thread_local! {
    /// The buffer of a closed chunk, for the next chunk that opens on this thread. If frames arrive whole, one chunk is open at a time,
    /// and its memory stays in the cache.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Keeps the buffer of a chunk that is no longer open, unless the one that is kept is larger.
fn keep(mut buffer: Vec<u8>) {
    buffer.clear();
    let spare = SPARE.take();
    SPARE.set(if buffer.capacity() > spare.capacity() { buffer } else { spare });
}

/// A packet to append: header, then `prefix`, then `body`.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The fixed RTP header.
    pub header: [u8; HEADER_BYTES],
    /// The header's sequence number.
    pub sequence: u16,
    /// The header's timestamp.
    pub rtp_time: u32,
    /// Bytes before the body, such as the header of a fragment.
    pub prefix: &'a [u8],
    /// The rest.
    pub body: &'a [u8],
}

/// Counts of what has been published of a track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Their bytes, RTP headers included.
    pub bytes: u64,
    /// Frames at which decoding can start.
    pub keyframes: u64,
}

/// The chunk being filled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Open<T = Instant> {
    first_seq: u16,
    rtp_time: u32,
    started: T,
    arrival: T,
}

impl<T> Open<T> {
    fn with_moments<U>(self, to: impl Fn(T) -> U) -> Open<U> {
        let Open { first_seq, rtp_time, started, arrival } = self;
        Open { first_seq, rtp_time, started: to(started), arrival: to(arrival) }
    }
}

/// Bytes that chunks have lately needed at most.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Likely {
    key: usize,
    other: usize,
}

impl Likely {
    fn of(self, key: bool) -> usize {
        if key { self.key } else { self.other }
    }

    /// Follows the largest chunks, and forgets them slowly.
    fn saw(&mut self, key: bool, bytes: usize) {
        let likely = if key { &mut self.key } else { &mut self.other };
        *likely = bytes.max(*likely - *likely / 256);
    }
}

/// The frame under way.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Frame {
    /// The latest value that the track's owner has given.
    key: bool,
    /// The value when the frame's first chunk was published, which is final.
    published: Option<bool>,
}

#[derive(Debug)]
struct Track {
    id: TrackId,
    /// The open chunk's bytes.
    buffer: Vec<u8>,
    spans: Vec<Span>,
    open: Option<Open>,
    frame: Option<Frame>,
    next_frame: u64,
    /// Bytes that a chunk is likely to need at most: one of a keyframe, and any other.
    likely: Likely,
    sent: Sent,
}

/// Fills chunks, one open chunk per track, and numbers them in the order in which they are closed.
///
/// A frame starts with the first packet after the end of the previous frame.
#[derive(Debug, Default)]
pub struct Chunker {
    next_number: u64,
    tracks: Vec<Track>,
}

/// A chunker as plain data, for saving.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkerState {
    next_number: u64,
    tracks: Vec<TrackState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct TrackState {
    #[serde(with = "super::saved::bytes")]
    buffer: Bytes,
    spans: Vec<Span>,
    open: Option<Open<Moment>>,
    frame: Option<Frame>,
    next_frame: u64,
    likely: Likely,
    sent: Sent,
}

impl ChunkerState {
    /// The bytes of its open chunks, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.tracks.iter_mut().for_each(|track| each(&mut track.buffer));
    }
}

impl Chunker {
    /// Its open chunks and next numbers as plain data.
    pub fn save(&self, now: Instant) -> ChunkerState {
        let track = |track: &Track| TrackState {
            buffer: Bytes::copy_from_slice(&track.buffer),
            spans: track.spans.clone(),
            open: track.open.map(|open| open.with_moments(|at| Moment::of(at, now))),
            frame: track.frame,
            next_frame: track.next_frame,
            likely: track.likely,
            sent: track.sent,
        };
        ChunkerState { next_number: self.next_number, tracks: self.tracks.iter().map(track).collect() }
    }

    /// Restores a saved chunker.
    pub fn restore(now: Instant, state: ChunkerState) -> Chunker {
        let track = |(id, track): (u8, TrackState)| Track {
            id: TrackId(id),
            buffer: track.buffer.into(),
            spans: track.spans,
            open: track.open.map(|open| open.with_moments(|at| at.at(now))),
            frame: track.frame,
            next_frame: track.next_frame,
            likely: track.likely,
            sent: track.sent,
        };
        Chunker { next_number: state.next_number, tracks: (0u8..).zip(state.tracks).map(track).collect() }
    }

    /// Makes room for tracks 0 to `count` - 1. Existing tracks continue their frame numbers.
    pub fn set_tracks(&mut self, count: usize) {
        for index in self.tracks.len()..count {
            self.tracks.push(Track {
                id: TrackId(index as u8),
                buffer: Vec::new(),
                spans: Vec::new(),
                open: None,
                frame: None,
                next_frame: 0,
                likely: Likely::default(),
                sent: Sent::default(),
            });
        }
    }

    /// Appends a packet that was read at `arrival` to the track's frame, and publishes what must be closed before it.
    ///
    /// `key` says whether decoding can start at the frame, as far as is known. The value given last before the frame's first chunk is
    /// published holds for the whole frame. `packet` must follow the previous one without a gap unless [`Self::cut`] was called.
    /// Packets larger than [`PACKET_BYTES_MAX`] must not be passed.
    pub fn append(
        &mut self,
        track: TrackId,
        arrival: Instant,
        key: bool,
        packet: Packet<'_>,
        out: &mut impl FnMut(Arc<Chunk>),
    ) {
        let len = HEADER_BYTES + packet.prefix.len() + packet.body.len();
        assert!(len <= PACKET_BYTES_MAX, "a packet of {len} bytes has no interleaved length");
        let framed = INTERLEAVED_HEADER_BYTES + len;
        let this = &mut self.tracks[usize::from(track.0)];
        this.frame.get_or_insert_default().key = key;
        if this.open.is_some() && this.buffer.len() + framed > CHUNK_BYTES_MAX {
            out(this.close(false, &mut self.next_number));
        }
        if this.open.is_none() {
            let likely = framed.max(this.likely.of(key));
            let spare = SPARE.take();
            this.buffer = if spare.capacity() < likely { Vec::with_capacity(likely) } else { spare };
        }
        let open = this.open.get_or_insert(Open {
            first_seq: packet.sequence,
            rtp_time: packet.rtp_time,
            started: arrival,
            arrival,
        });
        debug_assert_eq!(packet.sequence, open.first_seq.wrapping_add(this.spans.len() as u16));
        debug_assert_eq!(packet.rtp_time, open.rtp_time);
        open.arrival = arrival;
        let offset = (this.buffer.len() + INTERLEAVED_HEADER_BYTES) as u32;
        this.spans.push(Span { offset, len: len as u16 });
        let [high, low] = (len as u16).to_be_bytes();
        this.buffer.extend_from_slice(&[b'$', this.id.rtp_channel(), high, low]);
        this.buffer.extend_from_slice(&packet.header);
        this.buffer.extend_from_slice(packet.prefix);
        this.buffer.extend_from_slice(packet.body);
    }

    /// The last packet of the track that has not been published yet.
    pub fn last_packet(&mut self, track: TrackId) -> Option<&mut [u8]> {
        let this = &mut self.tracks[usize::from(track.0)];
        let span = this.spans.last()?;
        this.buffer.get_mut(span.offset as usize..)
    }

    /// Changes the timestamp of all packets of the track's frame. Returns false, and changes nothing, if part of the frame has been
    /// published.
    pub fn restamp(&mut self, track: TrackId, rtp_time: u32) -> bool {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.frame.as_ref().is_some_and(|frame| frame.published.is_some()) {
            return false;
        }
        if let Some(open) = &mut this.open {
            open.rtp_time = rtp_time;
            for span in &this.spans {
                // The header's second word (RFC 3550 section 5.1).
                this.buffer[span.offset as usize + 4..][..4].copy_from_slice(&rtp_time.to_be_bytes());
            }
        }
        true
    }

    /// Publishes the track's open chunk; its frame continues.
    pub fn cut(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.open.is_some() {
            out(this.close(false, &mut self.next_number));
        }
    }

    /// Ends the track's current frame, if there is one, and publishes its open chunk.
    ///
    /// If nothing is open, the whole frame has been published without a mark that it ends there; the start of the next frame shows it.
    /// Returns whether the frame was published as one at which decoding can start.
    pub fn end_frame(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) -> bool {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.open.is_some() {
            out(this.close(true, &mut self.next_number));
        }
        let ended = this.frame.take();
        this.next_frame += u64::from(ended.is_some());
        ended.and_then(|frame| frame.published).unwrap_or(false)
    }

    /// Ends a frame whose remaining packets will never arrive. If part of it has been published, the rest is published too; otherwise
    /// the frame is discarded, and the sequence number of its first packet is returned.
    pub fn abandon_frame(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) -> Option<u16> {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.frame.as_ref().is_none_or(|frame| frame.published.is_some()) {
            self.end_frame(track, out);
            return None;
        }
        this.frame = None;
        keep(std::mem::take(&mut this.buffer));
        this.spans.clear();
        this.open.take().map(|open| open.first_seq)
    }

    /// When there is nothing more to read, closes chunks that are large enough and have been open long enough to be sent before their
    /// frame ends.
    pub fn close_parts(&mut self, now: Instant, out: &mut impl FnMut(Arc<Chunk>)) {
        for this in &mut self.tracks {
            if this.part_due().is_some_and(|due| due <= now) {
                out(this.close(false, &mut self.next_number));
            }
        }
    }

    /// When [`Self::close_parts`] will have something to close if nothing more is appended.
    pub fn parts_due(&self) -> Option<Instant> {
        self.tracks.iter().filter_map(Track::part_due).min()
    }

    /// Publishes one compound RTCP packet of the track.
    pub fn report(
        &mut self,
        track: TrackId,
        arrival: Instant,
        sequence: u16,
        rtp_time: u32,
        compound: &[u8],
        out: &mut impl FnMut(Arc<Chunk>),
    ) {
        let number = self.next_number;
        self.next_number += 1;
        let frame = self.tracks[usize::from(track.0)].next_frame;
        let report = Chunk::report(number, track, arrival, rtp_time, compound);
        out(Arc::new(Chunk { frame, first_seq: sequence, ..report }));
    }

    /// Counts of what has been published of the track.
    pub fn sent(&self, track: TrackId) -> Sent {
        self.tracks[usize::from(track.0)].sent
    }
}

impl Track {
    /// When the open chunk may be closed before its frame ends.
    fn part_due(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        (self.buffer.len() >= CHUNK_PART_BYTES_MIN).then(|| open.started + Duration::from_micros(CHUNK_OPEN_MAX_US))
    }

    fn close(&mut self, frame_end: bool, next_number: &mut u64) -> Arc<Chunk> {
        let open = self.open.take().expect("only an open chunk is closed");
        let frame = self.frame.as_mut().expect("an open chunk belongs to a frame");
        let frame_start = frame.published.is_none();
        let keyframe = *frame.published.get_or_insert(frame.key);
        // Logs keep many chunks of different sizes for seconds, and in memory of exactly its size each takes least.
        let bytes = Bytes::copy_from_slice(&self.buffer);
        keep(std::mem::take(&mut self.buffer));
        let packets = self.spans.len();
        debug_assert_eq!(Spans::of(&bytes).count(), packets);
        self.spans.clear();
        self.likely.saw(frame.key, bytes.len());
        self.sent.packets += packets as u64;
        self.sent.bytes += (bytes.len() - packets * INTERLEAVED_HEADER_BYTES) as u64;
        self.sent.keyframes += u64::from(frame_start && keyframe);
        let number = *next_number;
        *next_number += 1;
        Arc::new(Chunk {
            number,
            track: self.id,
            kind: ChunkKind::Media,
            frame: self.next_frame,
            frame_start,
            frame_end,
            keyframe,
            arrival: open.arrival,
            first_seq: open.first_seq,
            rtp_time: open.rtp_time,
            bytes,
            packets: packets as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VIDEO: TrackId = TrackId(0);

    struct Rig {
        chunker: Chunker,
        now: Instant,
        seq: u16,
        out: Vec<Arc<Chunk>>,
    }

    impl Rig {
        fn new() -> Rig {
            let mut chunker = Chunker::default();
            chunker.set_tracks(2);
            Rig { chunker, now: Instant::now(), seq: 65_000, out: Vec::new() }
        }

        fn append(&mut self, key: bool, body: &[u8]) {
            let packet = Packet { header: [9; 12], sequence: self.seq, rtp_time: 5, prefix: &[8, 8], body };
            self.chunker.append(VIDEO, self.now, key, packet, &mut |chunk| self.out.push(chunk));
            self.seq = self.seq.wrapping_add(1);
        }

        fn end(&mut self) -> bool {
            self.chunker.end_frame(VIDEO, &mut |chunk| self.out.push(chunk))
        }
    }

    #[test]
    fn the_largest_packet_is_a_chunk_of_its_own() {
        let mut rig = Rig::new();
        rig.append(false, &[1]);
        rig.append(false, &vec![2; PACKET_BYTES_MAX - 14]);
        rig.append(false, &[3]);
        rig.end();
        let sizes: Vec<_> = rig.out.iter().map(|chunk| chunk.bytes.len()).collect();
        assert_eq!(sizes, [19, PACKET_BYTES_MAX + 4, 19]);
        assert_eq!(rig.out[1].bytes[..4], [b'$', 0, 0xff, 0xff]);
    }

    #[test]
    fn the_kind_of_a_frame_is_what_was_last_said_before_its_first_chunk() {
        let mut rig = Rig::new();
        rig.append(false, &[0; 40_000]);
        rig.append(true, &[0; 40_000]);
        rig.append(false, &[0; 40_000]);
        assert!(rig.end());
        assert!(rig.out.iter().all(|chunk| chunk.keyframe));
        rig.append(false, &[0; 40_000]);
        rig.append(false, &[0; 40_000]);
        rig.append(true, &[0; 40_000]);
        assert!(!rig.end());
        assert!(rig.out[3..].iter().all(|chunk| !chunk.keyframe));
        assert_eq!(rig.chunker.sent(VIDEO).keyframes, 1);
    }

    #[test]
    fn an_abandoned_frame_is_ended_or_was_never_there() {
        let mut rig = Rig::new();
        let mut sink = Vec::new();
        rig.append(true, &[0; 10]);
        assert_eq!(rig.chunker.abandon_frame(VIDEO, &mut |chunk| sink.push(chunk)), Some(65_000));
        assert!(sink.is_empty());
        rig.seq = 65_000;
        rig.append(false, &[0; 40_000]);
        rig.append(false, &[0; 40_000]);
        assert_eq!(rig.chunker.abandon_frame(VIDEO, &mut |chunk| sink.push(chunk)), None);
        assert!(sink[0].frame_end && !sink[0].frame_start && rig.out[0].frame_start);
        assert_eq!((rig.out[0].frame, sink[0].frame), (0, 0));
        assert_eq!(rig.chunker.abandon_frame(VIDEO, &mut |_| panic!()), None);
    }

    #[test]
    fn tracks_fill_chunks_side_by_side_and_number_them_together() {
        let mut rig = Rig::new();
        rig.append(true, &[1; 10]);
        let packet = Packet { header: [9; 12], sequence: 1, rtp_time: 2, prefix: &[], body: &[3] };
        rig.chunker.append(TrackId(1), rig.now, false, packet, &mut |_| panic!());
        rig.chunker.end_frame(TrackId(1), &mut |chunk| rig.out.push(chunk));
        rig.chunker.report(VIDEO, rig.now, 3, 4, &[0x80, 200, 0, 0], &mut |chunk| rig.out.push(chunk));
        rig.end();
        let got: Vec<_> = rig.out.iter().map(|c| (c.number, c.track.0, c.kind, c.bytes[1])).collect();
        assert_eq!(got, [(0, 1, ChunkKind::Media, 2), (1, 0, ChunkKind::Report, 1), (2, 0, ChunkKind::Media, 0)]);
        assert_eq!(&rig.out[1].bytes[..], [b'$', 1, 0, 4, 0x80, 200, 0, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn what_goes_in_comes_out(frames in proptest::collection::vec(proptest::collection::vec(0usize..30_000, 1..12), 1..30)) {
            let mut rig = Rig::new();
            let mut sent = Vec::new();
            for (frame, sizes) in frames.iter().enumerate() {
                for &size in sizes {
                    let body: Vec<u8> = (0..size).map(|i| (i + sent.len()) as u8).collect();
                    rig.append(frame % 3 == 0, &body);
                    sent.push(body);
                }
                rig.end();
            }
            let mut got = Vec::new();
            for chunk in &rig.out {
                for span in chunk.spans() {
                    let packet = &chunk.bytes[span.offset as usize..][..usize::from(span.len)];
                    assert_eq!(packet[..14], [[9; 12].as_slice(), &[8, 8]].concat());
                    got.push(packet[14..].to_vec());
                }
            }
            prop_assert_eq!(rig.chunker.sent(VIDEO).packets, sent.len() as u64);
            prop_assert!(got == sent);
        }
    }
}
