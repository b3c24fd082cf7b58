//! Assembles frames from RTP payloads: sans-IO, and tolerant, because a viewer is used to look at broken streams.

mod h26x;
mod jpeg;

pub use h26x::H26x;
pub use jpeg::Jpeg;

use std::time::{Instant, SystemTime};

use crate::frame::{Codec, Frame};

/// Maximum size of a frame in bytes; a longer one is discarded as damaged.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// What is known of a packet beside its payload.
#[derive(Clone, Copy, Debug)]
pub struct PacketInfo {
    /// RTP timestamp, made to not wrap.
    pub timestamp: i64,
    /// The marker bit.
    pub marker: bool,
    /// Packets lost right before this one.
    pub lost: u32,
    /// When it was read.
    pub arrived: Instant,
    /// The same as wall-clock time.
    pub arrived_wall: SystemTime,
}

/// A depacketizer of either kind.
pub enum Depacketizer {
    /// H.264 and H.265.
    H26x(H26x),
    /// JPEG.
    Jpeg(Jpeg),
}

impl Depacketizer {
    /// One for `codec`; `parameter_sets` are the NAL units in the description.
    pub fn new(codec: Codec, parameter_sets: Vec<Vec<u8>>) -> Self {
        match codec {
            Codec::H264 | Codec::H265 => Depacketizer::H26x(H26x::new(codec, parameter_sets)),
            Codec::Jpeg => Depacketizer::Jpeg(Jpeg::default()),
        }
    }

    /// Processes one packet's payload, and passes complete frames to `out`.
    pub fn push(&mut self, info: PacketInfo, payload: &[u8], out: &mut dyn FnMut(Frame)) {
        match self {
            Depacketizer::H26x(it) => it.push(info, payload, out),
            Depacketizer::Jpeg(it) => it.push(info, payload, out),
        }
    }

    /// Payloads so far that broke the rules of their format.
    pub fn malformed(&self) -> u64 {
        match self {
            Depacketizer::H26x(it) => it.malformed,
            Depacketizer::Jpeg(it) => it.malformed,
        }
    }
}
