//! Moves connections to the home shards of their streams.

use super::methods::{Refusal, move_to};
use super::server::Server;
use super::types::ConnId;
use crate::media::StreamId;

impl Server {
    /// Sets the home shard of a stream.
    pub fn set_home(&mut self, id: StreamId, home: u16) {
        self.streams.set_home(id, home);
    }

    /// A new connection has already been moved often enough.
    pub fn set_settled(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.settled = true;
        }
    }

    /// The next stream whose demand has changed: clients want it (with sessions, or requests that wait for it), or no longer do.
    pub fn poll_wanted(&mut self) -> Option<(StreamId, bool)> {
        self.streams.poll_turned()
    }

    /// Moves a connection to the home of the requested stream: a publisher's, so that its packets cross no thread; a player's if that
    /// shard is not too busy. A connection with sessions or unsent answers stays and is served from here.
    ///
    /// # Errors
    /// If it is to move.
    pub(super) fn move_home(&self, conn: ConnId, stream: StreamId, publishes: bool) -> Result<(), Refusal> {
        let (Some(loads), Some(home), Some(connection)) =
            (&self.config.loads, self.streams.home(stream), self.connections.get(conn))
        else {
            return Ok(());
        };
        // A request that has waited is processed while the next read is in progress, and that read would take bytes that belong to
        // another shard.
        if !self.is_reading() {
            return Ok(());
        }
        let here = self.config.shard;
        let stays = home == here
            // Its request has waited: the thread keeps reading meanwhile, and further bytes would be read here.
            || self.held_until.is_some()
            || connection.settled
            || !connection.sessions().is_empty()
            || connection.interleaved().is_some()
            || connection.has_unread()
            || self.is_answered(conn);
        if stays || !(publishes || loads.may_move(here, home, !self.streams.is_wanted(stream))) {
            return Ok(());
        }
        Err(move_to(home))
    }
}
