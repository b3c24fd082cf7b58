//! A chunk's bytes with another interleaved channel (RFC 2326 section 10.12).

use super::Piece;
use super::{Form, Rendered, Rendering};
use crate::media::chunk::Chunk;

/// Renders under this channel.
#[derive(Clone, Copy, Debug)]
pub struct Interleaved(pub u8);

impl Rendering for Interleaved {
    const WHOLE_FRAMES: bool = false;

    fn form(&self) -> Form {
        Form::Interleaved(self.0)
    }

    fn render(&mut self, chunks: &[&Chunk]) -> Rendered {
        Rendered { head: None, body: chunks.first().map(|chunk| Piece::from(chunk.render(self.0))) }
    }
}
