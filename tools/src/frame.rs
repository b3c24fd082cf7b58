//! What comes out of the depacketizers and goes into a decoder.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use rtsprelay::source::stamp::Stamp;

/// A video codec that this program decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// H.264 (RFC 6184).
    H264,
    /// H.265 (RFC 7798).
    H265,
    /// JPEG, one still picture after the other (RFC 2435).
    Jpeg,
}

impl Codec {
    /// The codec of an RTP encoding name, in lower case; none if it can't be decoded here.
    pub fn from_encoding(name: &str) -> Option<Self> {
        match name {
            "h264" => Some(Codec::H264),
            "h265" | "hevc" => Some(Codec::H265),
            "jpeg" => Some(Codec::Jpeg),
            _ => None,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::H264 => "H.264",
            Codec::H265 => "H.265",
            Codec::Jpeg => "MJPEG",
        })
    }
}

/// Age of a frame when its last packet had been read, and the basis of that value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Wall-clock time at which the frame left its source.
    pub left: SystemTime,
    /// What that rests on.
    pub clock: AgeClock,
}

/// What the age of frames rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgeClock {
    /// Nothing yet: neither stamps nor sender reports have arrived.
    #[default]
    Unknown,
    /// The timestamp in the frame itself, from the clock of the source's machine.
    Stamp,
    /// The camera's sender reports (RFC 3550 section 6.4.1): right only if its clock agrees with this machine's.
    SenderReport,
}

impl AgeClock {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            AgeClock::Unknown => "unknown",
            AgeClock::Stamp => "stamp",
            AgeClock::SenderReport => "sender-report",
        }
    }
}

/// One access unit.
#[derive(Clone, Debug)]
pub struct Frame {
    /// H.264 and H.265: NAL units with four-byte start codes (Annex B). JPEG: a whole file (JFIF).
    pub data: Vec<u8>,
    /// RTP timestamp, made to not wrap.
    pub timestamp: i64,
    /// When its last packet was read.
    pub arrived: Instant,
    /// The same as wall-clock time.
    pub arrived_wall: SystemTime,
    /// The time stamp that it carries.
    pub stamp: Option<Stamp>,
    /// When it left its source.
    pub age: Option<Age>,
    /// Whether decoding can start here.
    pub keyframe: bool,
    /// Whether parts of it are lost.
    pub damaged: bool,
    /// Whether packets before it are lost, so that pictures that it refers to may be missing.
    pub after_loss: bool,
    /// Whether it came in a burst, as the pictures since the last keyframe do that a server sends at the start.
    pub catching_up: bool,
}

impl Frame {
    /// How old it was when it had been read.
    pub fn received_age(&self) -> Option<Duration> {
        self.age.map(|age| self.arrived_wall.duration_since(age.left).unwrap_or_default())
    }
}
