//! The interface through which a source delivers its output.

use std::sync::Arc;

use super::chunk::Chunk;
use super::{Description, SourceState};

/// Receives a source's output for a stream, in order, and delivers it to its clients.
pub trait StreamSink {
    /// Passes `event` on.
    fn accept(&mut self, event: StreamEvent);
}

/// What shards are told about a stream.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// The stream's description, before its first chunk and after every change.
    Described(Arc<Description>),
    /// The next chunk; numbers are contiguous.
    Chunk(Arc<Chunk>),
    /// The source's state. Published by the supervisor, never by a pipeline.
    State(SourceState),
}
