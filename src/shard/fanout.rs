//! From a stream's pipeline to the inboxes of all shards.

use std::sync::Arc;

use super::inbox::{ShardSender, ToShard};
use crate::source::pipeline::{Publish, Published};
use crate::stream::StreamId;
use crate::stream::chunk::{Chunk, ChunkKind};

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
    /// After a refusal nothing goes out before the next frame begins, so that no frame arrives without its start.
    mid_frame: bool,
}

impl Fanout {
    /// To those shards.
    pub fn new(stream: StreamId, shards: &[ShardSender]) -> Self {
        let outlet = |sender: &ShardSender| Outlet { sender: sender.clone(), refused: 0, mid_frame: false };
        Fanout { stream, shards: shards.iter().map(outlet).collect() }
    }
}

impl Outlet {
    fn chunk(&mut self, stream: StreamId, chunk: &Arc<Chunk>) {
        let media = chunk.kind == ChunkKind::Media;
        if self.mid_frame && media && !chunk.frame_start {
            return;
        }
        match self.sender.chunk(stream, Arc::clone(chunk)) {
            Ok(()) => {
                self.mid_frame &= !media;
                if self.refused > 0 {
                    self.sender.tell(ToShard::Refused(stream, std::mem::take(&mut self.refused)));
                }
            }
            Err(_) => {
                self.refused += u64::from(media && chunk.frame_start);
                self.mid_frame = true;
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
