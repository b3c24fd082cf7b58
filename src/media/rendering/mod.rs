//! Renderings: the forms in which clients are sent the contents of a log.
//!
//! A chunk's bytes are those for an interleaved client with the track's own channels. Every other form is made from them once per
//! shard, when the first client needs it, and kept beside the chunk. A new form implements [`Rendering`].

mod datagrams;
pub mod fmp4;
mod interleaved;
mod piece;

pub use datagrams::Datagrams;
pub use interleaved::Interleaved;
pub use piece::Piece;

use super::chunk::Chunk;

/// The form; there is one rendering of a chunk in each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Interleaved in RTSP, with this channel.
    Interleaved(u8),
    /// A WebSocket message with an MP4 fragment or a JPEG picture.
    Fragment,
}

/// A chunk in one form.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// What a client needs before the body unless it was already sent exactly this: an initialization segment.
    pub head: Option<Piece>,
    /// The bytes; `None` if the frame cannot be converted to this form.
    pub body: Option<Piece>,
}

/// Converts chunks to one form.
pub trait Rendering {
    /// Whether it is made of a whole frame, at the frame's last chunk, instead of each chunk.
    const WHOLE_FRAMES: bool;

    /// Which form it makes.
    fn form(&self) -> Form;

    /// Converts a chunk; if [`Rendering::WHOLE_FRAMES`], all chunks of a frame, in order.
    fn render(&mut self, chunks: &[&Chunk]) -> Rendered;
}
