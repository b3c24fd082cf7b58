//! Session ids: whoever knows some must not be able to tell another.

use super::server::Server;
use super::types::{SessionIds, SessionKey};
use crate::wire::rtsp::Status;

impl Server {
    /// A session id that nobody has, of this shard: 64 random bits but for the remainder that tells the shard.
    ///
    /// # Errors
    /// 503, if the system gives no random numbers.
    pub(super) fn draw_key(&mut self) -> Result<SessionKey, Status> {
        let shards = u64::from(self.config.shards);
        loop {
            let drawn = match self.config.ids {
                SessionIds::Random => getrandom::u64().map_err(|_| Status::UNAVAILABLE)?,
                SessionIds::Seeded(seed) => mix(seed.wrapping_add(self.keys_drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
            };
            self.keys_drawn += 1;
            let key = (drawn - drawn % shards).checked_add(u64::from(self.config.shard)).map(SessionKey);
            if let Some(key) = key.filter(|key| !self.sessions.contains_key(key)) {
                return Ok(key);
            }
        }
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64); no secret survives it.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
