//! What zero-copy sends have lent to the kernel, which reads the bytes until its notification, long after the send's own completion.

use slab::Slab;

use super::id::SLOTS_MAX;
use crate::egress::{Piece, Token};

/// The pieces of zero-copy sends whose last completion has not arrived.
#[derive(Default)]
pub(super) struct Holds {
    held: Slab<Hold>,
    drawn: u32,
}

struct Hold {
    generation: u32,
    client: Token,
    /// Never read: they are here to stay alive.
    _pieces: Vec<Piece>,
}

impl Holds {
    /// Holds the pieces of a send that is about to be queued. The number goes into its user data.
    pub(super) fn keep(&mut self, client: Token, pieces: &[Piece]) -> Token {
        self.drawn = self.drawn.wrapping_add(1);
        let slot = self.held.insert(Hold { generation: self.drawn, client, _pieces: pieces.to_vec() });
        assert!((slot as u64) < u64::from(SLOTS_MAX), "a few for each client at most");
        Token { slot: slot as u32, generation: self.drawn }
    }

    /// Whose send it is.
    pub(super) fn client(&self, id: Token) -> Token {
        let hold = &self.held[id.slot as usize];
        assert_eq!(hold.generation, id.generation, "pieces are kept until the last completion of their send");
        hold.client
    }

    /// The last completion has arrived.
    pub(super) fn release(&mut self, id: Token) -> Token {
        let client = self.client(id);
        self.held.remove(id.slot as usize);
        client
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}
