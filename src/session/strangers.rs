//! Limits on connections without a session, which anyone can open, and on sessions.

use super::server::Server;
use super::types::{CloseReason, ConnId};
use crate::limits::{STRANGERS_BYTES_MAX, strangers_beside};
use crate::metrics::Limited;
use crate::wire::rtsp::Status;

impl Server {
    /// Whether the client is unauthenticated: it has no session, and has shown no user's password.
    pub fn is_stranger(&self, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.is_strange())
    }

    /// Sets the size of unread answers of a connection.
    pub fn set_unread(&mut self, conn: ConnId, bytes: usize) {
        if self.connections.set_unread(conn, bytes) {
            self.judge_holding(conn);
        }
    }

    /// Records what the shard holds for an unauthenticated client, and closes those that hold most until they are within the limit.
    pub(super) fn judge_holding(&mut self, conn: ConnId) {
        if !self.connections.judge_holding(conn) {
            return;
        }
        let max = STRANGERS_BYTES_MAX / usize::from(self.config.shards);
        while let Some(most) = self.connections.holds_most(max) {
            self.close(most, CloseReason::Crowded);
        }
    }

    /// Closes connections without a session until they are within this shard's share.
    pub(super) fn make_room(&mut self) {
        let limit = &self.config.limit;
        let max = strangers_beside(limit.max(), limit.open(), usize::from(self.config.shards));
        while let Some(conn) = self.connections.next_to_go(max) {
            self.close(conn, CloseReason::Crowded);
        }
    }

    /// Whether one more session may start on this connection, for a publisher or a player.
    pub(super) fn room_for_session(&mut self, conn: ConnId, publishes: bool) -> Result<(), Status> {
        let Some(connection) = self.connections.get(conn) else { return Err(Status::NOT_FOUND) };
        let reached = if connection.is_full() {
            Some(Limited::SessionsPerConnection)
        } else {
            self.config.limit.reached(connection.peer.ip(), publishes)
        };
        let Some(limited) = reached else { return Ok(()) };
        let client = connection.peer;
        self.count(limited);
        let cure = match limited {
            Limited::Sessions => "limits.clients is reached; raise it to allow more",
            Limited::SessionsPerAddress => {
                "limits.clients_per_address is reached for this address; raise it if players share an address"
            }
            _ => "the connection has the maximum number of sessions; use another connection",
        };
        tracing::warn!(%client, "a session is refused (453): {cure}");
        Err(Status::NOT_ENOUGH_BANDWIDTH)
    }
}
