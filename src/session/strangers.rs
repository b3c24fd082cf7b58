//! Connections without a session: whoever connects may make them, so there are only so many; and what room there is for
//! sessions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::server::Server;
use super::types::{CloseReason, ConnId, origin};
use crate::limits::{SESSIONS_PER_CONNECTION_MAX, strangers_max};
use crate::metrics::Limited;
use crate::wire::rtsp::Status;

/// Where a connection stands among those without a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    origin: IpAddr,
    number: u64,
}

/// How many an origin has, and its oldest: the last of the order is the one to make room.
type Rank = (usize, Reverse<u64>, IpAddr);

/// The connections without a session.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_origin: HashMap<IpAddr, BTreeMap<u64, ConnId>>,
    ranks: BTreeSet<Rank>,
    count: usize,
    /// Numbers given out.
    numbers: u64,
}

fn rank(origin: IpAddr, have: &BTreeMap<u64, ConnId>) -> Option<Rank> {
    have.keys().next().map(|oldest| (have.len(), Reverse(*oldest), origin))
}

impl Strangers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn add(&mut self, conn: ConnId, peer: IpAddr) -> Place {
        let place = Place { origin: origin(peer), number: self.numbers };
        self.numbers += 1;
        self.change(place.origin, |have| have.insert(place.number, conn));
        self.count += 1;
        place
    }

    pub(super) fn remove(&mut self, place: Place) {
        self.change(place.origin, |have| have.remove(&place.number));
        self.count -= 1;
    }

    fn change(&mut self, origin: IpAddr, how: impl FnOnce(&mut BTreeMap<u64, ConnId>) -> Option<ConnId>) {
        let have = self.by_origin.entry(origin).or_default();
        if let Some(rank) = rank(origin, have) {
            self.ranks.remove(&rank);
        }
        how(have);
        match rank(origin, have) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.by_origin.remove(&origin)),
        }
    }

    /// The oldest one of the address that has most of them; of the oldest one among addresses that have as many.
    fn first_to_go(&self) -> Option<ConnId> {
        let (_, Reverse(number), origin) = self.ranks.last()?;
        self.by_origin.get(origin)?.get(number).copied()
    }
}

impl Server {
    /// Notes whether a connection has a session.
    pub(super) fn judge_stranger(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        match (connection.sessions.is_empty(), connection.stranger) {
            (true, None) => connection.stranger = Some(self.strangers.add(conn, connection.peer.ip())),
            (false, Some(place)) => {
                connection.stranger = None;
                self.strangers.remove(place);
            }
            _ => {}
        }
    }

    /// Closes connections without a session until there are no more of them than this shard's share.
    pub(super) fn make_room(&mut self) {
        let max = strangers_max(self.config.limit.max()).div_ceil(usize::from(self.config.shards));
        while self.strangers.len() > max {
            let Some(conn) = self.strangers.first_to_go() else { return };
            self.close(conn, CloseReason::Crowded);
        }
    }

    /// Whether one more session may begin on this connection.
    pub(super) fn room_for_session(&mut self, conn: ConnId) -> Result<(), Status> {
        let Some(connection) = self.conns.get(&conn) else { return Err(Status::NOT_FOUND) };
        let reached = if connection.sessions.len() >= SESSIONS_PER_CONNECTION_MAX {
            Some(Limited::SessionsPerConnection)
        } else {
            self.config.limit.reached(connection.peer.ip())
        };
        let Some(limited) = reached else { return Ok(()) };
        self.count(limited);
        Err(Status::NOT_ENOUGH_BANDWIDTH)
    }
}
