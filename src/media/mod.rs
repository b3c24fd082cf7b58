//! The data of a stream: its description, state and chunks, the log that keeps them, the codecs, and the renderings for clients.

pub mod chunk;
pub mod chunker;
pub mod codec;
pub mod copied;
mod description;
pub mod log;
pub mod name;
pub mod rendering;
pub mod saved;
pub mod sdp;
mod sink;
mod state;

pub use description::{Description, SourceTrack, StreamId, Track, TrackId};
pub use sink::{StreamEvent, StreamSink};
pub use state::SourceState;
