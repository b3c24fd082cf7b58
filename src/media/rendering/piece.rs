//! Bytes that the clients of a shard share.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::media::chunk::Chunk;

/// Bytes to send over TCP: part of a chunk that the shard's clients share, or data for one client. Cloning touches no counter that
/// another shard touches.
#[derive(Clone, Debug)]
pub struct Piece(Rc<Held>);

/// What keeps bytes in memory.
#[derive(Debug)]
enum Held {
    /// The chunk itself. A clone of its bytes would need an allocation for their reference count (`Bytes::from(Vec<u8>)`).
    Chunk(Arc<Chunk>),
    Bytes(Bytes),
}

impl Held {
    fn bytes(&self) -> &Bytes {
        match self {
            Held::Chunk(chunk) => &chunk.bytes,
            Held::Bytes(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Piece(Rc::new(Held::Bytes(bytes)))
    }
}

impl From<Arc<Chunk>> for Piece {
    /// The bytes of a chunk with the track's own channels.
    fn from(chunk: Arc<Chunk>) -> Self {
        Piece(Rc::new(Held::Chunk(chunk)))
    }
}

impl Piece {
    /// Memory that it takes besides the bytes and the counters.
    pub(in crate::media) const OWN_BYTES: usize = size_of::<Held>();

    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The same bytes for another thread; not copied.
    pub fn shared(&self) -> Bytes {
        self.0.bytes().clone()
    }

    /// Bytes in the piece.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// The rest after the first `bytes`.
    pub(crate) fn without_first(&self, bytes: usize) -> Piece {
        self.0.bytes().slice(bytes..).into()
    }

    /// A piece with other bytes that are made of these.
    pub(in crate::media) fn map(&self, make: impl FnOnce(&Bytes) -> Bytes) -> Piece {
        make(self.0.bytes()).into()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Number of clones, including this one.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        Rc::strong_count(&self.0)
    }

    /// Whether both are clones of the same piece.
    pub fn is_same(&self, other: &Piece) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}
