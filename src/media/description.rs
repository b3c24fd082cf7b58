//! The data that DESCRIBE, SETUP and PLAY need about a stream.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Identifies a stream: an index, and a generation that counts how often the index was reused.
///
/// Indices are contiguous from 0. The index of a removed stream is reused with the next generation, so the removed stream's id no
/// longer matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    index: u16,
    generation: u32,
}

impl StreamId {
    /// The first stream at an index.
    pub const fn first(index: u16) -> Self {
        StreamId { index, generation: 0 }
    }

    /// The next stream at the same index. After 2³² reuses, an id repeats.
    pub const fn next_generation(self) -> Self {
        StreamId { index: self.index, generation: self.generation.wrapping_add(1) }
    }

    /// The index.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// Number of a track within its stream, contiguous from 0 in the order of the SDP; below [`TRACKS_MAX`](crate::limits::TRACKS_MAX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrackId(pub u8);

impl TrackId {
    /// The interleaved channel of the track's RTP in a [`super::chunk::Chunk`].
    pub const fn rtp_channel(self) -> u8 {
        self.0 * 2
    }

    /// The interleaved channel of the track's RTCP in a [`super::chunk::Chunk`].
    pub const fn rtcp_channel(self) -> u8 {
        self.0 * 2 + 1
    }
}

/// The data that DESCRIBE, SETUP and PLAY need about a stream. It is replaced as a whole when the source's SDP changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description<T = Instant> {
    /// The tracks; a [`TrackId`] is an index into them.
    pub tracks: Vec<Track<T>>,
}

impl<T: Copy> Description<T> {
    /// The same with times converted.
    pub fn with_moments<U>(&self, to: impl Fn(T) -> U) -> Description<U> {
        let track = |track: &Track<T>| Track {
            media: track.media.clone(),
            encoding: track.encoding.clone(),
            payload_type: track.payload_type,
            clock_rate: track.clock_rate,
            channels: track.channels,
            fmtp: track.fmtp.clone(),
            attributes: track.attributes.clone(),
            ssrc: track.ssrc,
            first_seq: track.first_seq,
            clock: (to(track.clock.0), track.clock.1),
        };
        Description { tracks: self.tracks.iter().map(track).collect() }
    }
}

impl Description {
    /// Whether players of `self` can continue with `other`: the same tracks with the same codecs.
    pub fn continues_as(&self, other: &Description) -> bool {
        self.tracks.len() == other.tracks.len()
            && self.tracks.iter().zip(&other.tracks).all(|(a, b)| {
                a.media == b.media
                    && a.encoding.eq_ignore_ascii_case(&b.encoding)
                    && a.clock_rate == b.clock_rate
                    && a.channels == b.channels
                    && a.payload_type == b.payload_type
            })
    }
}

/// One media of a stream, as served by the relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Track<T = Instant> {
    /// The media of the SDP's `m=` line: `video`, `audio`, `application`, …
    pub media: String,
    /// The encoding name of `a=rtpmap`, in the camera's spelling (`H264`); for static payload types without one, the name in RFC 3551
    /// section 6.
    pub encoding: String,
    /// The RTP payload type.
    pub payload_type: u8,
    /// Ticks of the RTP timestamp per second; never 0.
    pub clock_rate: u32,
    /// Channels of an audio track, if the SDP has them.
    pub channels: Option<u16>,
    /// The value of `a=fmtp` without the payload type. Missing `sprop-…` are filled in from the stream.
    pub fmtp: Option<String>,
    /// Further `a=` lines to relay, without the `a=` (`framerate:25`).
    pub attributes: Vec<String>,
    /// The SSRC with which the relay sends this track.
    pub ssrc: u32,
    /// The sequence number of the first packet of this track that the relay ever sends.
    pub first_seq: u16,
    /// A time and the track's RTP timestamp at that time, for tracks that have sent nothing yet.
    pub clock: (T, u32),
}

impl Track {
    /// Whether the track is video, so that clients should start it at a keyframe.
    pub fn is_video(&self) -> bool {
        self.media == "video"
    }

    /// Whether the track is audio.
    pub fn is_audio(&self) -> bool {
        self.media == "audio"
    }

    /// The track's RTP timestamp at `now`, extrapolated from a known pair by the clock rate.
    pub fn rtp_time_at(&self, known: (Instant, u32), now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(known.0).as_nanos();
        let ticks = elapsed * u128::from(self.clock_rate) / 1_000_000_000;
        // Wraps as RTP timestamps do (RFC 3550 section 5.1).
        known.1.wrapping_add(ticks as u32)
    }
}

/// What the source says about a track before its first packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTrack {
    /// The media of the SDP's `m=` line: `video`, `audio`, `application`, …
    pub media: String,
    /// The encoding name of `a=rtpmap`, in the camera's spelling, or that of RFC 3551 section 6.
    pub encoding: String,
    /// The RTP payload type.
    pub payload_type: u8,
    /// Ticks of the RTP timestamp per second; 0 is treated as 90,000.
    pub clock_rate: u32,
    /// Channels of an audio track, if the SDP has them.
    pub channels: Option<u16>,
    /// The value of `a=fmtp` without the payload type.
    pub fmtp: Option<String>,
    /// Further `a=` lines to relay, without the `a=`.
    pub attributes: Vec<String>,
}
