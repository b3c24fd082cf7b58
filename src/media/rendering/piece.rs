//! Bytes that the clients of a shard share.

use std::rc::Rc;

use bytes::Bytes;

/// Bytes to send over TCP: part of a chunk that the shard's clients share, or data for one client. Cloning touches no counter that
/// another shard touches.
#[derive(Clone, Debug)]
pub struct Piece(Rc<Bytes>);

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Piece(Rc::new(bytes))
    }
}

impl Piece {
    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The same bytes for another thread; not copied.
    pub fn shared(&self) -> Bytes {
        Bytes::clone(&self.0)
    }

    /// Bytes in the piece.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// The rest after the first `bytes`.
    pub(crate) fn without_first(&self, bytes: usize) -> Piece {
        self.0.slice(bytes..).into()
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
