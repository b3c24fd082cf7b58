//! One stream's way from the source's packets to the shards.
//!
//! The pipeline has no sockets and no clock: the source hands it packets with the moment they were read, and it hands chunks to
//! a [`Publish`]. It lives on the control thread.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::shard::inbox::SourceState;
use crate::stream::chunk::Chunk;
use crate::stream::{Description, TrackId};

/// Takes what a pipeline makes, in order.
pub trait Publish {
    /// Passes `msg` on to whoever plays the stream.
    fn publish(&mut self, msg: Published);
}

/// What the shards are told of a stream.
#[derive(Clone, Debug)]
pub enum Published {
    /// The stream's description, before its first chunk and after every change.
    Described(Arc<Description>),
    /// The next chunk; numbers are dense.
    Chunk(Arc<Chunk>),
    /// How the source is doing. The supervisor publishes it; a pipeline never does.
    State(SourceState),
}

/// What the source tells of a track before its first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTrack {
    /// The media of the SDP's `m=` line: `video`, `audio`, `application`, …
    pub media: String,
    /// The encoding name of `a=rtpmap`, as the camera spells it, or that of RFC 3551 section 6.
    pub encoding: String,
    /// The RTP payload type.
    pub payload_type: u8,
    /// Ticks of the RTP timestamp a second; 0 is taken as 90,000.
    pub clock_rate: u32,
    /// Channels of an audio track, when the SDP tells.
    pub channels: Option<u16>,
    /// The value of `a=fmtp` without the payload type.
    pub fmtp: Option<String>,
    /// Further `a=` lines to pass on, without the `a=`.
    pub attributes: Vec<String>,
}

/// Counts since the pipeline was made; all of them only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Packets that the source handed in, the discarded ones too.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Packets that were no RTP, or on a track that does not exist: discarded.
    pub malformed: u64,
    /// Packets without a payload: discarded.
    pub empty: u64,
    /// Packets of another payload type than the track's: discarded.
    pub foreign: u64,
    /// Packets that came twice or too late to be put in their place: discarded.
    pub late: u64,
    /// Packets that never came, by the gaps between sequence numbers.
    pub lost: u64,
    /// Oversize H.264 and H.265 packets that could not be cut: discarded.
    pub oversize: u64,
    /// Oversize H.264 and H.265 packets that were cut.
    pub fragmented: u64,
    /// Packets with parameter sets that were put before keyframes.
    pub inserted: u64,
    /// Frames discarded because the source went away in the middle of them.
    pub torn: u64,
    /// Times that sequence numbers began again in mid-session.
    pub restarts: u64,
    /// Times that timestamps jumped in mid-session.
    pub jumps: u64,
    /// Sender reports of the source whose timestamp was nowhere near the track's: discarded.
    pub bad_reports: u64,
    /// The tracks of the present description.
    pub tracks: Vec<TrackStats>,
}

/// Counts of one track since the pipeline was made; all of them only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackStats {
    /// Frames ended; of a video track only those with a picture in them.
    pub frames: u64,
    /// Video frames published that decoding can start at.
    pub keyframes: u64,
    /// Packets sent on.
    pub packets: u64,
    /// Bytes of those packets, RTP headers included.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
}

/// Something about the source that its operator should know. Each is told once a session at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The camera's clock is wrong; its sender reports carry the relay's time instead.
    ClockWrong {
        /// How far the camera's clock is from ours.
        by: Duration,
        /// Whether it is ahead of ours.
        ahead: bool,
    },
    /// A video track had no keyframe for so long that every frame of it is now taken for one.
    NoKeyframes {
        /// The track.
        track: TrackId,
        /// How long there was none.
        waited: Duration,
    },
    /// A track's marker bits do not say where frames end; its frames end at the next timestamp, a frame later.
    MarkerWrong {
        /// The track.
        track: TrackId,
    },
    /// Packets of a payload type that the SDP does not announce are discarded.
    ForeignPayload {
        /// The track.
        track: TrackId,
        /// The payload type that came.
        payload_type: u8,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Notice::ClockWrong { by, ahead } => write!(
                f,
                "the camera's clock is {} s {} ours; its sender reports are passed on with our time (set the camera's NTP \
                 server to keep its own)",
                by.as_secs(),
                if ahead { "ahead of" } else { "behind" }
            ),
            Notice::NoKeyframes { track, waited } => write!(
                f,
                "no keyframe on track {} for {} s; players now start at any frame of it (shorten the camera's keyframe \
                 interval)",
                track.0,
                waited.as_secs()
            ),
            Notice::MarkerWrong { track } => write!(
                f,
                "the camera's marker bits on track {} do not end frames; each frame waits for the next one's first packet",
                track.0
            ),
            Notice::ForeignPayload { track, payload_type } => write!(
                f,
                "track {} brings packets of payload type {payload_type}, which the camera's SDP does not announce for it; \
                 they are discarded",
                track.0
            ),
        }
    }
}

/// One stream's way from packets to shards.
pub struct Pipeline {
    stats: SourceStats,
}

impl Pipeline {
    /// A pipeline that has seen nothing. SSRCs, first sequence numbers and first timestamps derive from `seed`.
    pub fn new(seed: u64) -> Self {
        let _ = seed;
        Pipeline { stats: SourceStats::default() }
    }

    /// The source plays, for the first time or again; these are its tracks. Publishes the description if it is new or changed.
    ///
    /// `tracks` beyond [`TRACKS_MAX`](crate::limits::TRACKS_MAX) are left out.
    pub fn connected(&mut self, now: Instant, wall: SystemTime, tracks: Vec<SourceTrack>, out: &mut impl Publish) {
        let _ = (now, wall, tracks, out);
    }

    /// One RTP packet as read from the source at `received`.
    pub fn packet(&mut self, track: TrackId, received: Instant, rtp: &[u8], out: &mut impl Publish) {
        let _ = (track, received, rtp, out);
    }

    /// A sender report of the source (RFC 3550 section 6.4.1), read at `received`, when our clock said `wall`.
    #[allow(clippy::too_many_arguments)]
    pub fn sender_report(
        &mut self,
        track: TrackId,
        received: Instant,
        wall: SystemTime,
        ntp: u64,
        rtp_time: u32,
        packets: u32,
        octets: u32,
        out: &mut impl Publish,
    ) {
        let _ = (track, received, wall, ntp, rtp_time, packets, octets, out);
    }

    /// There is nothing more to read from the source now.
    pub fn drained(&mut self, now: Instant, out: &mut impl Publish) {
        let _ = (now, out);
    }

    /// When [`Self::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what is due at `now`, when our clock says `wall`.
    pub fn tick(&mut self, now: Instant, wall: SystemTime, out: &mut impl Publish) {
        let _ = (now, wall, out);
    }

    /// The source is gone: the frame it was in the middle of is ended, or discarded if none of it has been published.
    pub fn disconnected(&mut self, now: Instant, out: &mut impl Publish) {
        let _ = (now, out);
    }

    /// The next thing that the operator should know.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        None
    }

    /// Counts since the start.
    pub fn stats(&self) -> SourceStats {
        self.stats.clone()
    }
}
