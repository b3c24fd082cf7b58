//! Access to the streams' logs from outside: missing chunks, saving and restoring, and copying while all runs on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::state::Core;
use crate::egress::Egress;
use crate::limits::{COPIED_BYTES_PASS_MAX, COPIED_CHUNKS_PASS_MAX};
use crate::media::StreamId;
use crate::media::chunk::Chunk;
use crate::media::copied::{Kept, Numbers};
use crate::media::log::LogState;
use crate::metrics::DropReason;

/// Chunks that have been sent to another process, by stream.
pub type SentLogs = HashMap<String, SentLog>;

/// Chunks of a stream that have been sent to another process.
#[derive(Debug, Default)]
pub struct SentLog {
    of: Option<StreamId>,
    numbers: Numbers,
}

impl SentLog {
    /// Those of the stream with that id, and whether others were sent before: those of a stream of the same name that is gone, which do
    /// not count any more.
    pub fn of(&mut self, id: StreamId) -> (&mut Numbers, bool) {
        let is_other = self.of.replace(id).is_some_and(|before| before != id);
        if is_other {
            self.numbers = Numbers::default();
        }
        (&mut self.numbers, is_other)
    }
}

/// Chunks from another process, by stream.
pub type KeptLogs = HashMap<String, Kept>;

/// Chunks of a stream, for a copy elsewhere.
#[derive(Debug)]
pub struct CopiedLog {
    /// The stream.
    pub id: StreamId,
    /// Its name.
    pub stream: String,
    /// The number of the log's oldest chunk: others have left it.
    pub oldest: u64,
    /// The chunks.
    pub chunks: Vec<Arc<Chunk>>,
}

/// Chunks of a shard's streams, for a copy elsewhere.
#[derive(Debug, Default)]
pub struct CopiedLogs {
    /// By stream.
    pub logs: Vec<CopiedLog>,
    /// Whether there are more already.
    pub more: bool,
}

impl<E: Egress> Core<E> {
    /// The shard's inbox refused a chunk of the stream.
    pub fn chunk_refused(&mut self, id: StreamId, frames: u64) {
        if self.streams.find(id).is_some() {
            self.metrics.dropped(id, DropReason::InboxFull, frames);
        }
    }

    /// The contents of a stream's log, as plain data.
    pub fn save_log(&self, now: Instant, id: StreamId) -> LogState {
        self.streams[id.index()].log.save(now)
    }

    /// Replaces a stream's log by a saved one. Clients keep their positions.
    pub fn restore_log(&mut self, now: Instant, id: StreamId, state: LogState) {
        let restored = self.streams[id.index()].log.restore(now, state);
        restored.expect("a saved log has all of its chunks");
    }

    /// The next chunks of the streams whose home is here, for a copy elsewhere: `next` has the number up to which each stream has been
    /// copied. Takes little time, however much there is.
    pub fn copy_logs(&self, next: &mut HashMap<StreamId, u64>) -> CopiedLogs {
        let mut copied = CopiedLogs::default();
        let (mut chunks, mut bytes) = (0, 0);
        for stream in self.streams.iter().filter(|stream| stream.home == self.shard) {
            let from = next.entry(stream.id).or_default();
            if stream.log.chunks_from(*from).next().is_none() {
                continue;
            }
            let (id, name, oldest) = (stream.id, stream.name.clone(), stream.log.oldest());
            let mut part = CopiedLog { id, stream: name, oldest, chunks: Vec::new() };
            for chunk in stream.log.chunks_from(*from) {
                if chunks >= COPIED_CHUNKS_PASS_MAX || bytes >= COPIED_BYTES_PASS_MAX {
                    copied.more = true;
                    break;
                }
                (chunks, bytes) = (chunks + 1, bytes + chunk.bytes.len());
                *from = chunk.number + 1;
                part.chunks.push(Arc::clone(chunk));
            }
            if copied.more && part.chunks.is_empty() {
                break;
            }
            copied.logs.push(part);
        }
        copied
    }
}
