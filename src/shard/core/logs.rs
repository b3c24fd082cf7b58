//! Access to the streams' logs from outside: missing chunks, and saving and restoring.

use std::time::Instant;

use super::state::Core;
use crate::egress::Egress;
use crate::media::StreamId;
use crate::media::log::LogState;
use crate::metrics::DropReason;

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
        self.streams[id.index()].log.restore(now, state);
    }
}
