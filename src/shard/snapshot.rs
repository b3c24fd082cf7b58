//! The state of a stream: what a shard that subscribes to it starts with.

use std::sync::Arc;
use std::time::Instant;

use crate::media::chunk::Chunk;

/// The state of a track, for clients that have no chunk of it yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub(super) next_seq: u16,
    pub(super) clock: (Instant, u32),
}

/// What has been sent of a track.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// The source's last sender report.
    pub(super) report: Option<Arc<Chunk>>,
    /// Packets and payload bytes, counted as in that report, up to now.
    pub(super) packets: u32,
    pub(super) octets: u32,
}

/// What a subscription starts with.
pub struct Snapshot {
    /// The chunks from the newest keyframe on, if there is one at which new clients start.
    pub(super) chunks: Vec<Arc<Chunk>>,
    /// The number of the next chunk.
    pub(super) head: u64,
    pub(super) tails: Vec<Option<Tail>>,
    pub(super) reports: Vec<Option<Arc<Chunk>>>,
    pub(super) sent: Vec<Sent>,
}
