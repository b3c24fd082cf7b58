//! The `user_data` of a ring's operations.

use crate::egress::Token;

/// Maximum number of slots in a [`UserData`].
pub(super) const SLOTS_MAX: u32 = 1 << 24;

/// The kind of operation that a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// A send on a TCP connection.
    Stream = 1,
    /// One message of an operation of datagrams.
    Message = 2,
    /// The request to cancel a send.
    Cancel = 3,
    /// A zero-copy send on a TCP connection; its token is the index of its held pieces.
    ZeroCopy = 4,
    /// A failed read of the clock; its token has no meaning.
    Clock = 5,
}

/// Tag, slot and generation in 8, 24 and 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UserData {
    pub tag: Tag,
    pub token: Token,
}

impl UserData {
    pub(super) fn pack(self) -> u64 {
        debug_assert!(self.token.slot < SLOTS_MAX);
        u64::from(self.tag as u8) << 56 | u64::from(self.token.slot) << 32 | u64::from(self.token.generation)
    }

    /// `None` for values that [`UserData::pack`] never produces.
    pub(super) fn unpack(bits: u64) -> Option<UserData> {
        let tag = match (bits >> 56) as u8 {
            1 => Tag::Stream,
            2 => Tag::Message,
            3 => Tag::Cancel,
            4 => Tag::ZeroCopy,
            5 => Tag::Clock,
            _ => return None,
        };
        let slot = (bits >> 32) as u32 & (SLOTS_MAX - 1);
        Some(UserData { tag, token: Token { slot, generation: bits as u32 } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_survives_the_round_trip() {
        for tag in [Tag::Stream, Tag::Message, Tag::Cancel, Tag::ZeroCopy, Tag::Clock] {
            for slot in [0, 1, 0x00AB_CDEF, SLOTS_MAX - 1] {
                for generation in [0, 1, 0x1234_5678, u32::MAX] {
                    let id = UserData { tag, token: Token { slot, generation } };
                    assert_eq!(UserData::unpack(id.pack()), Some(id));
                }
            }
        }
    }

    #[test]
    fn other_bits_are_refused() {
        for bits in [0, 1, u64::MAX, 6 << 56] {
            assert_eq!(UserData::unpack(bits), None);
        }
    }
}
