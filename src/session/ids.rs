//! Session ids: knowing some must not allow predicting others.

use super::types::{SessionIds, SessionKey};
use crate::wire::rtsp::Status;

/// A shard's source of session ids: 64 random bits, except for the remainder that identifies the shard.
#[derive(Debug)]
pub(super) struct Ids {
    from: SessionIds,
    shard: u16,
    shards: u16,
    /// Ids drawn so far.
    drawn: u64,
}

impl Ids {
    pub(super) fn new(from: SessionIds, shard: u16, shards: u16) -> Ids {
        Ids { from, shard, shards, drawn: 0 }
    }

    /// An id; `None` if this draw yields none.
    ///
    /// # Errors
    /// 503, if the system provides no random numbers.
    pub(super) fn draw(&mut self) -> Result<Option<SessionKey>, Status> {
        let shards = u64::from(self.shards);
        let drawn = match self.from {
            SessionIds::Random => getrandom::u64().map_err(|_| Status::UNAVAILABLE)?,
            SessionIds::Seeded(seed) => mix(seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        };
        self.drawn += 1;
        Ok((drawn - drawn % shards).checked_add(u64::from(self.shard)).map(SessionKey))
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64); this keeps no secret.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
