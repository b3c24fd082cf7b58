//! A pipeline's counters and messages.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::TrackId;

/// Counts since the pipeline was created; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStats {
    /// Packets from the source, including discarded ones.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Packets that were not RTP, or on an unknown track: discarded.
    pub malformed: u64,
    /// Packets without a payload: discarded.
    pub empty: u64,
    /// Packets with another payload type than the track's: discarded.
    pub foreign: u64,
    /// Duplicate packets, and packets too late to be reordered: discarded.
    pub late: u64,
    /// Packets that never arrived, according to gaps in the sequence numbers.
    pub lost: u64,
    /// Oversize H.264 and H.265 packets that could not be split: discarded; of one with too many NAL units, the part that was too much.
    pub oversize: u64,
    /// Oversize H.264 and H.265 packets that were split.
    pub fragmented: u64,
    /// Packets with parameter sets that were inserted before keyframes.
    pub inserted: u64,
    /// Frames discarded because the source stopped within them.
    pub torn: u64,
    /// Frames withheld after an interruption because what they refer to is gone: all up to the next keyframe.
    pub unreferenced: u64,
    /// Times that sequence numbers restarted within a session.
    pub restarts: u64,
    /// Times that timestamps jumped within a session.
    pub jumps: u64,
    /// Times that the camera's NTP clock stepped by more than 100 ms against its timestamps, within a session or between two.
    pub clock_steps: u64,
    /// Sender reports of the source whose timestamp was far from the track's: discarded.
    pub bad_reports: u64,
    /// The tracks of the current description.
    pub tracks: Vec<TrackStats>,
}

/// Counts for one track since the pipeline was created; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackStats {
    /// Frames ended; for a video track only those with a picture.
    pub frames: u64,
    /// Published video frames at which decoding can start.
    pub keyframes: u64,
    /// Packets sent on.
    pub packets: u64,
    /// Bytes of those packets, RTP headers included.
    pub bytes: u64,
    /// Packets that never came.
    pub lost: u64,
}

/// Something about the source that the operator should know. Each is reported at most once per session, loss once per minute
/// ([`TOLD_EVERY_S`](crate::limits::TOLD_EVERY_S)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The camera's clock is wrong; its sender reports are relayed with the relay's time instead.
    ClockWrong {
        /// Difference between the camera's clock and the relay's.
        by: Duration,
        /// Whether it is ahead.
        ahead: bool,
    },
    /// The camera's clock has stepped; its sender reports continue as if it had not.
    ClockStepped {
        /// By how much.
        by: Duration,
        /// Whether it stepped forward.
        forward: bool,
    },
    /// A video track had no keyframe for so long that every frame is now treated as one.
    NoKeyframes {
        /// The track.
        track: TrackId,
        /// How long there was none.
        waited: Duration,
    },
    /// A track's marker bits do not mark the ends of frames; its frames end at the next timestamp, one frame later.
    MarkerWrong {
        /// The track.
        track: TrackId,
    },
    /// Packets with a payload type that the SDP does not announce are discarded.
    ForeignPayload {
        /// The track.
        track: TrackId,
        /// The payload type that arrived.
        payload_type: u8,
        /// The first such packet's sequence number, from the camera.
        seq: u16,
    },
    /// Packets never came.
    Lost {
        /// How many since the last notice.
        packets: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Notice::ClockWrong { by, ahead } => write!(
                f,
                "the camera's clock is {} s {} the relay's; its sender reports are relayed with the relay's time (set the camera's NTP \
                 server to keep its own)",
                by.as_secs(),
                if ahead { "ahead of" } else { "behind" }
            ),
            Notice::ClockStepped { by, forward } => write!(
                f,
                "the camera's clock has stepped {} by {}.{:01} s; its sender reports are relayed without the step, \
                 so that recordings have none",
                if forward { "forward" } else { "back" },
                by.as_secs(),
                by.subsec_millis() / 100
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
            Notice::ForeignPayload { track, payload_type, seq } => write!(
                f,
                "track {} has packets of payload type {payload_type} (first with seq {seq}), which the camera's SDP does not announce for it; \
                 they are discarded",
                track.0
            ),
            Notice::Lost { packets } => write!(
                f,
                "packets lost before they reached the relay: {packets}; the network or the source is overloaded \
                 (for UDP: transport = \"tcp\" avoids losses in the network)"
            ),
        }
    }
}
