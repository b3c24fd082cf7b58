//! The chunker: copies each packet once, into the buffer that every client is sent from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::TrackId;
use super::chunk::{Chunk, ChunkKind, Run, Span, cut_runs};
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_OPEN_MAX_US, CHUNK_PART_BYTES_MIN, INTERLEAVED_HEADER_BYTES, PACKET_BYTES_MAX,
};
use crate::wire::rtp::HEADER_BYTES;

/// Bytes of the smallest and the largest block that chunks are cut from.
const BLOCK_BYTES: (usize, usize) = (16 * 1024, 512 * 1024);

/// A packet to append: header, then `prefix`, then `body`.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The fixed RTP header.
    pub header: [u8; HEADER_BYTES],
    /// The header's sequence number.
    pub sequence: u16,
    /// The header's timestamp.
    pub rtp_time: u32,
    /// What stands before the body, such as the header of a fragment.
    pub prefix: &'a [u8],
    /// The rest.
    pub body: &'a [u8],
}

/// What of a track has been put into chunks that are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// Their bytes, RTP headers included.
    pub bytes: u64,
    /// Frames that decoding can start at.
    pub keyframes: u64,
}

/// The chunk being filled.
#[derive(Debug)]
struct Open {
    first_seq: u16,
    rtp_time: u32,
    started: Instant,
    arrival: Instant,
}

/// The frame under way.
#[derive(Debug, Default)]
struct Frame {
    /// What the track's owner says of it so far.
    key: bool,
    /// What was told when its first chunk was published, and so for good.
    published: Option<bool>,
}

#[derive(Debug)]
struct Track {
    id: TrackId,
    /// The open chunk's bytes, at the front of what is left of a block.
    buffer: BytesMut,
    spans: Vec<Span>,
    open: Option<Open>,
    frame: Option<Frame>,
    next_frame: u64,
    /// Bytes that a chunk is likely to need at most.
    likely: usize,
    sent: Sent,
}

/// Fills chunks, one open for each track, and numbers them in the order in which they are closed.
///
/// A frame begins with the first packet after the end of the frame before.
#[derive(Debug, Default)]
pub struct Chunker {
    next_number: u64,
    tracks: Vec<Track>,
}

impl Chunker {
    /// Makes room for tracks 0 to `count` - 1. Tracks there are already go on with their frame numbers.
    pub fn set_tracks(&mut self, count: usize) {
        for index in self.tracks.len()..count {
            self.tracks.push(Track {
                id: TrackId(index as u8),
                buffer: BytesMut::new(),
                spans: Vec::new(),
                open: None,
                frame: None,
                next_frame: 0,
                likely: 0,
                sent: Sent::default(),
            });
        }
    }

    /// Appends a packet read at `arrival` to the track's frame, and publishes what must be closed before it.
    ///
    /// `key` is whether decoding can start at the frame, by what is known now; what was last said when the frame's first chunk
    /// is published holds for the whole frame. `packet` must follow the one before without a gap unless [`Self::cut`] was
    /// called. Packets over [`PACKET_BYTES_MAX`] must not come here.
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
        let room = if this.open.is_none() { framed.max(this.likely) } else { framed };
        if this.buffer.capacity() - this.buffer.len() < room {
            this.grow(room);
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

    /// The last packet of the track that is not published yet.
    pub fn last_packet(&mut self, track: TrackId) -> Option<&mut [u8]> {
        let this = &mut self.tracks[usize::from(track.0)];
        let span = this.spans.last()?;
        this.buffer.get_mut(span.offset as usize..)
    }

    /// Publishes what the track has open; its frame goes on.
    pub fn cut(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.open.is_some() {
            out(this.close(false, &mut self.next_number));
        }
    }

    /// Ends the track's frame, if one is under way, and publishes what is open of it.
    ///
    /// If nothing is open, all of the frame has been published without the word that it ends there; the next frame's beginning
    /// tells. Returns whether the frame was published as one that decoding can start at.
    pub fn end_frame(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) -> bool {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.open.is_some() {
            out(this.close(true, &mut self.next_number));
        }
        let ended = this.frame.take();
        this.next_frame += u64::from(ended.is_some());
        ended.and_then(|frame| frame.published).unwrap_or(false)
    }

    /// Ends a frame that the rest of will never come: published is the rest of what has been begun to be published, discarded a
    /// frame that nothing is published of. Of the latter, returns the sequence number of its first packet.
    pub fn abandon_frame(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) -> Option<u16> {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.frame.as_ref().is_none_or(|frame| frame.published.is_some()) {
            self.end_frame(track, out);
            return None;
        }
        this.frame = None;
        this.buffer.clear();
        this.spans.clear();
        this.open.take().map(|open| open.first_seq)
    }

    /// Closes, when there is nothing more to read, the chunks that are large enough and have been open long enough to go out in
    /// the middle of their frame.
    pub fn close_parts(&mut self, now: Instant, out: &mut impl FnMut(Arc<Chunk>)) {
        for this in &mut self.tracks {
            if this.part_due().is_some_and(|due| due <= now) {
                out(this.close(false, &mut self.next_number));
            }
        }
    }

    /// When [`Self::close_parts`] will have something to close, if nothing is appended.
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
        let len = compound.len() as u16;
        let mut bytes = Vec::with_capacity(INTERLEAVED_HEADER_BYTES + compound.len());
        bytes.extend_from_slice(&[b'$', track.rtcp_channel()]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(compound);
        let number = self.next_number;
        self.next_number += 1;
        out(Arc::new(Chunk {
            number,
            track,
            kind: ChunkKind::Report,
            frame: self.tracks[usize::from(track.0)].next_frame,
            frame_start: false,
            frame_end: true,
            keyframe: false,
            arrival,
            first_seq: sequence,
            rtp_time,
            bytes: Bytes::from(bytes),
            packets: Box::new([Span { offset: INTERLEAVED_HEADER_BYTES as u32, len }]),
            runs: Box::new([Run { first: 0, count: 1, segment: len }]),
        }));
    }

    /// What of the track has been published.
    pub fn sent(&self, track: TrackId) -> Sent {
        self.tracks[usize::from(track.0)].sent
    }
}

impl Track {
    /// When the open chunk may be closed in the middle of its frame.
    fn part_due(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        (self.buffer.len() >= CHUNK_PART_BYTES_MIN).then(|| open.started + Duration::from_micros(CHUNK_OPEN_MAX_US))
    }

    /// Makes room for `room` more bytes. What is open is copied again if it does not fit where it is, which is rare, because a
    /// chunk is begun only where as much is left as a chunk has lately needed.
    fn grow(&mut self, room: usize) {
        let block = (self.likely * 8).clamp(BLOCK_BYTES.0, BLOCK_BYTES.1);
        let mut buffer = BytesMut::with_capacity(block.max(self.buffer.len() + room));
        buffer.extend_from_slice(&self.buffer);
        self.buffer = buffer;
    }

    fn close(&mut self, frame_end: bool, next_number: &mut u64) -> Arc<Chunk> {
        let open = self.open.take().expect("only an open chunk is closed");
        let frame = self.frame.as_mut().expect("an open chunk belongs to a frame");
        let frame_start = frame.published.is_none();
        let keyframe = *frame.published.get_or_insert(frame.key);
        let bytes = self.buffer.split().freeze();
        let packets: Box<[Span]> = self.spans.as_slice().into();
        let runs = cut_runs(&packets);
        self.spans.clear();
        // Follows the largest chunks, which are those of keyframes, and forgets them slowly.
        self.likely = bytes.len().max(self.likely - self.likely / 256);
        self.sent.packets += packets.len() as u64;
        self.sent.bytes += (bytes.len() - packets.len() * INTERLEAVED_HEADER_BYTES) as u64;
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
            packets,
            runs,
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
                for span in &chunk.packets {
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
