//! A stream: its description, its chunks and the log that keeps them.

pub mod chunk;
pub mod chunker;
pub mod keyframe;
pub mod log;

use std::time::Instant;

/// Number of a configured stream, dense from 0 in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u16);

/// Number of a track within its stream, dense from 0 in the order of the SDP; below
/// [`TRACKS_MAX`](crate::limits::TRACKS_MAX).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackId(pub u8);

impl TrackId {
    /// The interleaved channel that the track's RTP has inside a [`chunk::Chunk`].
    pub const fn rtp_channel(self) -> u8 {
        self.0 * 2
    }

    /// The interleaved channel that the track's RTCP has inside a [`chunk::Chunk`].
    pub const fn rtcp_channel(self) -> u8 {
        self.0 * 2 + 1
    }
}

/// What DESCRIBE, SETUP and PLAY need to know of a stream. Replaced as a whole when the source's SDP changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The tracks; a [`TrackId`] is an index into them.
    pub tracks: Vec<Track>,
}

impl Description {
    /// Whether players of `self` can go on with `other`: the same tracks with the same codecs.
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

/// One media of a stream, as the relay serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// The media of the SDP's `m=` line: `video`, `audio`, `application`, …
    pub media: String,
    /// The encoding name of `a=rtpmap`, as the camera spells it (`H264`); for static payload types without one, the name
    /// of RFC 3551 section 6.
    pub encoding: String,
    /// The RTP payload type.
    pub payload_type: u8,
    /// Ticks of the RTP timestamp a second; never 0.
    pub clock_rate: u32,
    /// Channels of an audio track, when the SDP tells.
    pub channels: Option<u16>,
    /// The value of `a=fmtp` without the payload type, with `sprop-…` filled in from the stream where the camera's lacks them.
    pub fmtp: Option<String>,
    /// Further `a=` lines that are passed on, without the `a=` (`framerate:25`).
    pub attributes: Vec<String>,
    /// The SSRC that the relay sends this track under.
    pub ssrc: u32,
    /// The sequence number of the first packet that the relay ever sends of this track.
    pub first_seq: u16,
    /// A moment and the track's RTP timestamp at that moment, for tracks that have sent nothing yet.
    pub clock: (Instant, u32),
}

impl Track {
    /// Whether the track is video, so that a client may begin it on a keyframe alone.
    pub fn is_video(&self) -> bool {
        self.media == "video"
    }

    /// Whether the track is sound.
    pub fn is_audio(&self) -> bool {
        self.media == "audio"
    }

    /// The track's RTP timestamp at `now`, from a known pair, by the clock rate.
    pub fn rtp_time_at(&self, known: (Instant, u32), now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(known.0).as_nanos();
        let ticks = elapsed * u128::from(self.clock_rate) / 1_000_000_000;
        // Wraps as RTP timestamps do (RFC 3550 section 5.1).
        known.1.wrapping_add(ticks as u32)
    }
}
