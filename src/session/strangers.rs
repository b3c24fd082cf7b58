//! Connections without a session: whoever connects may make them, so there are only so many; and what room there is for
//! sessions.

use super::server::Server;
use super::types::{CloseReason, ConnId};
use crate::crowd::origin;
use crate::limits::{SESSIONS_PER_CONNECTION_MAX, strangers_beside};
use crate::metrics::Limited;
use crate::wire::rtsp::Status;

impl Server {
    /// Notes whether a connection has a session.
    pub(super) fn judge_stranger(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        match (connection.sessions.is_empty(), connection.stranger) {
            (true, None) => {
                connection.stranger = Some(self.strangers.add(conn, origin(connection.peer.ip())));
            }
            (false, Some(place)) => {
                connection.stranger = None;
                self.strangers.remove(place);
            }
            _ => {}
        }
    }

    /// Closes connections without a session until there are no more of them than this shard's share.
    pub(super) fn make_room(&mut self) {
        let limit = &self.config.limit;
        let max = strangers_beside(limit.max(), limit.open(), usize::from(self.config.shards));
        while self.strangers.len() > max {
            let Some((_, conn)) = self.strangers.first_to_go() else { return };
            self.close(*conn, CloseReason::Crowded);
        }
    }

    /// Whether one more session may begin on this connection, of a publisher or of a player.
    pub(super) fn room_for_session(&mut self, conn: ConnId, publishes: bool) -> Result<(), Status> {
        let Some(connection) = self.conns.get(&conn) else { return Err(Status::NOT_FOUND) };
        let reached = if connection.sessions.len() >= SESSIONS_PER_CONNECTION_MAX {
            Some(Limited::SessionsPerConnection)
        } else {
            self.config.limit.reached(connection.peer.ip(), publishes)
        };
        let Some(limited) = reached else { return Ok(()) };
        let client = connection.peer;
        self.count(limited);
        let cure = match limited {
            Limited::Sessions => "limits.clients is reached; raise it for more to play",
            Limited::SessionsPerAddress => {
                "its address has limits.clients_per_address; raise that where players share an address"
            }
            _ => "its connection has as many sessions as one may have; let it open another",
        };
        tracing::warn!(%client, "a session is refused (453): {cure}");
        Err(Status::NOT_ENOUGH_BANDWIDTH)
    }
}
