//! From a stream's pipeline to the inboxes of all shards.

use std::sync::Arc;

use super::inbox::{ShardSender, ToShard};
use crate::source::pipeline::{Publish, Published};
use crate::stream::chunk::{Chunk, ChunkKind};
use crate::stream::{StreamId, TrackId};

/// Passes what one stream's pipeline makes to every shard.
#[derive(Debug)]
pub struct Fanout {
    stream: StreamId,
    shards: Vec<Outlet>,
}

#[derive(Debug)]
struct Outlet {
    sender: ShardSender,
    /// Frames refused by the overfull inbox and not told yet.
    refused: u64,
    /// The frame of the last chunk refused: a frame counts once, however many parts of it are refused.
    last_refused: Option<(TrackId, u64)>,
}

impl Fanout {
    /// To those shards.
    pub fn new(stream: StreamId, shards: &[ShardSender]) -> Self {
        let outlet = |sender: &ShardSender| Outlet { sender: sender.clone(), refused: 0, last_refused: None };
        Fanout { stream, shards: shards.iter().map(outlet).collect() }
    }
}

impl Outlet {
    fn chunk(&mut self, stream: StreamId, chunk: &Arc<Chunk>) {
        match self.sender.chunk(stream, Arc::clone(chunk)) {
            Ok(()) => {
                if self.refused > 0 {
                    self.sender.tell(ToShard::Refused(stream, std::mem::take(&mut self.refused)));
                }
            }
            Err(_) => {
                // The gap in the numbers makes the shard's log begin anew, so no client goes on with a frame that lacks a part.
                let frame = Some((chunk.track, chunk.frame));
                if chunk.kind == ChunkKind::Media && self.last_refused != frame {
                    self.last_refused = frame;
                    self.refused += 1;
                }
            }
        }
    }
}

impl Publish for Fanout {
    fn publish(&mut self, message: Published) {
        for shard in &mut self.shards {
            match &message {
                Published::Chunk(chunk) => shard.chunk(self.stream, chunk),
                Published::Described(description) => {
                    shard.sender.tell(ToShard::Described(self.stream, Arc::clone(description)));
                }
                Published::State(state) => shard.sender.tell(ToShard::Source(self.stream, *state)),
            }
        }
    }
}
