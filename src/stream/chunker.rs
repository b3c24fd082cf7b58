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

    /// Whether a frame of the track is under way.
    pub fn in_frame(&self, track: TrackId) -> bool {
        self.tracks[usize::from(track.0)].frame.is_some()
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
    /// tells.
    pub fn end_frame(&mut self, track: TrackId, out: &mut impl FnMut(Arc<Chunk>)) {
        let this = &mut self.tracks[usize::from(track.0)];
        if this.open.is_some() {
            out(this.close(true, &mut self.next_number));
        }
        if this.frame.take().is_some() {
            this.next_frame += 1;
        }
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
