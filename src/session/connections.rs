//! The connections of a server: their peers, what their requests wait for, and which of them have no session.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::announced::Announced;
use super::holding::Holding;
use super::incoming::Incoming;
use super::ports::canonical;
use super::rate::{Flooders, Rate};
use super::timers::Armed;
use super::types::{CloseReason, ConnId, SessionKey};
use crate::access::User;
use crate::burst::ShrinkIfSparse;
use crate::crowd::{Crowd, Place, origin};
use crate::limits::{
    FIRST_BODY_BYTES_MAX, REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX, SESSIONS_PER_CONNECTION_MAX,
    STRANGER_FREE_BYTES,
};
use crate::media::StreamId;
use crate::media::saved::Moment;
use crate::wire::rtsp::{Invalid, Message, Request, Response};

/// A PLAY or RECORD that the shard has not answered yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) session: SessionKey,
    /// The start of the answer, if it succeeds.
    pub(super) answer: Response,
    /// The request's CSeq, if it fails.
    pub(super) cseq: String,
}

/// A request that waits for a stream to come up: one that is pulled on demand, or has never been up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: Request,
    pub(super) waits: Waits,
    /// When it is answered 503.
    pub(super) until: Instant,
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// For the stream to come up.
    Stream(StreamId),
    /// For a stream of that name to be created under a pattern.
    Name(Arc<str>),
}

/// A delayed answer to wrong credentials, or a request whose credentials are checked later.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) until: Instant,
    pub(super) then: Then,
}

#[derive(Debug)]
pub(super) enum Then {
    Answer(Response),
    Look(Request),
}

/// Why no further request of a connection is processed. There is one reason at a time, because requests are answered in order.
#[derive(Debug)]
enum Blocked {
    Waiting(Box<Waiting>),
    Held(Box<Held>),
    Denied(Box<Denied>),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    /// Whether it is encrypted; then media must not be sent unencrypted.
    pub(super) secure: bool,
    /// Whether it comes through a load balancer.
    pub(super) proxied: bool,
    /// It no longer moves to a stream's home.
    pub(super) settled: bool,
    /// Whether its next request has waited for its credentials to be checked.
    pub(super) waited: bool,
    /// The user of its last right credentials.
    pub(super) user: Option<Arc<User>>,
    /// The announcement of a publisher on it.
    pub(super) announced: Option<Box<Announced>>,
    pub(super) timer: Armed,
    incoming: Incoming,
    blocked: Option<Blocked>,
    /// The session whose media it carries; for a publisher always its session.
    interleaved: Option<SessionKey>,
    /// All sessions that were last used on it.
    sessions: SmallVec<[SessionKey; 1]>,
    /// Its entry among the connections without a session, while it has none.
    stranger: Option<Place>,
    /// Bytes of unread answers, as far as they count.
    unread: u32,
    /// The bytes that are counted for it in [`Holding`].
    holds: u32,
}

/// A connection as plain data, without its addresses, its user and its unread bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ConnectionState {
    secure: bool,
    proxied: bool,
    settled: bool,
    since: Moment,
    heard: Option<Moment>,
    whole_at: Moment,
}

// There is one for each client, and their table may have twice as many entries, so this must be small.
const _: () = assert!(size_of::<Connection>() <= 416);

impl Connection {
    /// Whether it has no session, and has shown no password.
    pub(super) fn is_strange(&self) -> bool {
        self.sessions.is_empty() && self.user.is_none()
    }

    /// Whether media for this client may be sent as datagrams.
    pub(super) fn may_use_udp(&self) -> bool {
        !self.secure && !self.proxied
    }

    /// The sessions that were last used on it.
    pub(super) fn sessions(&self) -> &[SessionKey] {
        &self.sessions
    }

    /// Whether it has the maximum number of sessions.
    pub(super) fn is_full(&self) -> bool {
        self.sessions.len() >= SESSIONS_PER_CONNECTION_MAX
    }

    /// The session whose media it carries; for a publisher always its session.
    pub(super) fn interleaved(&self) -> Option<SessionKey> {
        self.interleaved
    }

    /// Makes it carry the media of a session that is bound to it.
    pub(super) fn carry(&mut self, session: SessionKey) {
        debug_assert!(self.sessions.contains(&session), "a session is carried by the connection that it is bound to");
        self.interleaved = Some(session);
    }

    /// Whether it has unread answers.
    pub(super) fn has_unread(&self) -> bool {
        self.unread > 0
    }

    /// When its client was last heard from: its last complete request, or its connecting.
    pub(super) fn last_heard(&self) -> Instant {
        self.incoming.last_heard()
    }

    /// A request arrived in another way.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.incoming.note_heard(now);
    }

    /// Delays its further requests until the shard has answered.
    pub(super) fn wait(&mut self, waiting: Waiting) {
        self.put_off(Blocked::Waiting(Box::new(waiting)));
    }

    /// Delays its further requests until credentials are checked, or the answer to wrong ones is sent.
    pub(super) fn deny(&mut self, denied: Denied) {
        self.put_off(Blocked::Denied(Box::new(denied)));
    }

    fn put_off(&mut self, why: Blocked) {
        debug_assert!(self.blocked.is_none(), "a request was looked at before the one before it was answered");
        self.blocked = Some(why);
    }

    /// Takes the delayed request or answer.
    pub(super) fn take_denied(&mut self) -> Option<Box<Denied>> {
        match self.blocked.take_if(|blocked| matches!(blocked, Blocked::Denied(_)))? {
            Blocked::Denied(denied) => Some(denied),
            _ => None,
        }
    }

    /// Whether one of its requests waits for a stream.
    pub(super) fn is_held(&self) -> bool {
        self.held().is_some()
    }

    /// Whether a request is delayed because of its credentials.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self.blocked, Some(Blocked::Denied(_)))
    }

    /// The session for whose start it waits.
    pub(super) fn waits_for(&self) -> Option<SessionKey> {
        match &self.blocked {
            Some(Blocked::Waiting(waiting)) => Some(waiting.session),
            _ => None,
        }
    }

    fn held(&self) -> Option<&Held> {
        match &self.blocked {
            Some(Blocked::Held(held)) => Some(held),
            _ => None,
        }
    }

    fn take_waiting(&mut self) -> Option<Box<Waiting>> {
        match self.blocked.take_if(|blocked| matches!(blocked, Blocked::Waiting(_)))? {
            Blocked::Waiting(waiting) => Some(waiting),
            _ => None,
        }
    }

    /// Ends a delay that is over; returns whether there was one.
    pub(super) fn end_delay(&mut self, now: Instant) -> bool {
        self.incoming.end_delay(now)
    }

    /// Whether its further requests must wait.
    pub(super) fn is_put_off(&self) -> bool {
        self.blocked.is_some() || self.incoming.is_delayed()
    }

    /// Delays the requests that are there if there were too many before them; returns whether it did.
    pub(super) fn delay(&mut self, now: Instant) -> bool {
        self.incoming.delay(now)
    }

    /// The next complete message.
    pub(super) fn next_message(&mut self, now: Instant) -> Result<Option<Message>, Invalid> {
        self.incoming.next_message(now, self.body_max(), self.announced.is_some())
    }

    /// A request, and everything that was read after it.
    pub(super) fn unread_from(mut self, request: &Request) -> BytesMut {
        let mut unread = BytesMut::from(&request.raw[..]);
        unread.extend_from_slice(&self.incoming.take_unread());
        unread
    }

    /// What was read from it and not answered, from the start of a request that waits; and an answer whose time has not come. `None`
    /// while it waits for the shard.
    pub(super) fn unanswered(&self) -> Option<(Bytes, Bytes)> {
        let (request, answer) = match &self.blocked {
            None => (None, None),
            Some(Blocked::Waiting(_)) => return None,
            Some(Blocked::Held(held)) => (Some(&held.request), None),
            Some(Blocked::Denied(denied)) => match &denied.then {
                Then::Answer(answer) => (None, Some(answer)),
                Then::Look(request) => (Some(request), None),
            },
        };
        let mut unread = BytesMut::from(request.map_or(&[][..], |request| &request.raw[..]));
        unread.extend_from_slice(self.incoming.unread());
        Some((unread.freeze(), answer.map_or_else(Bytes::new, |answer| answer.clone().finish())))
    }

    /// It as plain data; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant) -> ConnectionState {
        let (since, heard, whole_at) = self.incoming.times();
        let moment = |at| Moment::of(at, reference);
        ConnectionState {
            secure: self.secure,
            proxied: self.proxied,
            settled: self.settled,
            since: moment(since),
            heard: heard.map(moment),
            whole_at: moment(whole_at),
        }
    }

    /// Restores a saved one that has just been inserted, with its unread bytes.
    pub(super) fn restore(&mut self, reference: Instant, state: &ConnectionState, unread: &[u8]) {
        (self.secure, self.proxied, self.settled) = (state.secure, state.proxied, state.settled);
        let at = |moment: Moment| moment.at(reference);
        self.incoming.set_times((at(state.since), state.heard.map(at), at(state.whole_at)));
        self.incoming.feed(unread);
    }

    /// The maximum size of its requests' bodies.
    fn body_max(&self) -> usize {
        if self.is_strange() { FIRST_BODY_BYTES_MAX } else { REQUEST_BODY_BYTES_MAX }
    }

    /// When it is closed, or its current wait ends.
    pub(super) fn deadline(
        &self,
        handshake_timeout: Duration,
        session_timeout: Duration,
    ) -> Option<(Instant, CloseReason)> {
        match &self.blocked {
            Some(Blocked::Waiting(_)) => None,
            Some(Blocked::Denied(denied)) => Some((denied.until, CloseReason::Idle)),
            Some(Blocked::Held(held)) => Some((held.until, CloseReason::Idle)),
            None => self.incoming.deadline(handshake_timeout, session_timeout, !self.sessions.is_empty()),
        }
    }
}

/// The connections of a server. Those without a session are counted separately, including the memory that the shard holds for them.
#[derive(Debug)]
pub(super) struct Connections {
    conns: HashMap<ConnId, Connection>,
    /// Those whose requests wait for a name to become a stream.
    named: HashMap<Arc<str>, Vec<ConnId>>,
    /// Those that no longer wait, and may have unprocessed bytes.
    released: Vec<ConnId>,
    /// Those without a session.
    strangers: Crowd<ConnId>,
    /// What strangers hold.
    holding: Holding,
    /// Addresses of connections that sent too many requests.
    flooders: Flooders,
    /// Random numbers for choosing among equals.
    lots: fastrand::Rng,
}

impl Connections {
    pub(super) fn new(lots: fastrand::Rng) -> Connections {
        Connections {
            conns: HashMap::new(),
            named: HashMap::new(),
            released: Vec::new(),
            strangers: Crowd::default(),
            holding: Holding::default(),
            flooders: Flooders::default(),
            lots,
        }
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.conns.get(&conn)
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.conns.get_mut(&conn)
    }

    pub(super) fn contains(&self, conn: ConnId) -> bool {
        self.conns.contains_key(&conn)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnId, &Connection)> {
        self.conns.iter().map(|(conn, connection)| (*conn, connection))
    }

    /// The users that connections have authenticated as.
    pub(super) fn users_mut(&mut self) -> impl Iterator<Item = &mut Option<Arc<User>>> {
        self.conns.values_mut().map(|connection| &mut connection.user)
    }

    /// A connection was accepted.
    pub(super) fn insert(&mut self, now: Instant, conn: ConnId, peer: SocketAddr, local: SocketAddr) {
        let floods = self.flooders.has(now, origin(peer.ip()));
        let rate = if floods { Rate::spent(now) } else { Rate::new(now) };
        let connection = Connection {
            peer,
            // Players see it, and few of them understand IPv4-mapped IPv6 addresses.
            local: canonical(local),
            secure: false,
            proxied: false,
            settled: false,
            waited: false,
            user: None,
            announced: None,
            timer: Armed::default(),
            incoming: Incoming::new(now, rate),
            blocked: None,
            interleaved: None,
            sessions: SmallVec::new(),
            stranger: None,
            unread: 0,
            holds: 0,
        };
        self.conns.insert(conn, connection);
        self.judge_stranger(conn);
    }

    /// Removes a connection. If one of its requests is waiting, take that first ([`Connections::take_held`]).
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let connection = self.conns.remove(&conn)?;
        self.conns.shrink_if_sparse();
        debug_assert!(!connection.is_held(), "a request that waits is wanted by nobody");
        if let Some(place) = connection.stranger {
            self.strangers.remove(place);
        }
        self.holding.change(conn, connection.holds as usize, 0);
        Some(connection)
    }

    /// A session is used on this connection from now on.
    pub(super) fn bind(&mut self, conn: ConnId, session: SessionKey) {
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.sessions.push(session);
            self.judge_stranger(conn);
        }
    }

    /// A session is no longer used on this connection.
    pub(super) fn unbind(&mut self, conn: ConnId, session: SessionKey) {
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.sessions.retain(|have| *have != session);
            connection.interleaved.take_if(|carried| *carried == session);
            self.judge_stranger(conn);
        }
    }

    /// Records whether a connection has a session.
    fn judge_stranger(&mut self, conn: ConnId) {
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

    /// The connection without a session to evict next, if there are more than `max`.
    pub(super) fn next_to_go(&mut self, max: usize) -> Option<ConnId> {
        if self.strangers.len() <= max {
            return None;
        }
        let lot = self.lots.u64(..);
        self.strangers.first_to_go(lot).map(|(_, conn)| *conn)
    }

    /// Sets the size of unread answers of a connection. Returns whether that may exceed the limit without a session.
    pub(super) fn set_unread(&mut self, conn: ConnId, bytes: usize) -> bool {
        let Some(connection) = self.conns.get_mut(&conn) else { return false };
        connection.unread = u32::try_from(bytes).unwrap_or(u32::MAX);
        connection.holds > 0 || bytes > STRANGER_FREE_BYTES
    }

    /// Records what the shard holds for a connection without a session. Returns whether the number changed.
    pub(super) fn judge_holding(&mut self, conn: ConnId) -> bool {
        let Some(connection) = self.conns.get_mut(&conn) else { return false };
        let bytes = connection.incoming.held() + connection.unread as usize;
        let counted = if connection.is_strange() && bytes > STRANGER_FREE_BYTES { bytes } else { 0 };
        let before = connection.holds as usize;
        if counted == before {
            return false;
        }
        connection.holds = u32::try_from(counted).unwrap_or(u32::MAX);
        self.holding.change(conn, before, connection.holds as usize);
        true
    }

    /// The connection without a session that holds most, if all together hold more than `max` bytes.
    pub(super) fn holds_most(&self, max: usize) -> Option<ConnId> {
        if self.holding.total() > max { self.holding.most() } else { None }
    }

    /// Bytes were read. Returns whether more are waiting than allowed.
    pub(super) fn feed(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) -> bool {
        let Some(connection) = self.conns.get_mut(&conn) else { return false };
        connection.incoming.feed(bytes);
        let pending = connection.incoming.pending();
        if !connection.is_put_off() || pending <= REQUEST_HEADER_BYTES_MAX {
            return false;
        }
        let (delayed, origin) = (connection.incoming.is_delayed(), origin(connection.peer.ip()));
        let waiting_bytes_max = 2 * (REQUEST_HEADER_BYTES_MAX + connection.body_max());
        // Reading more of a known flood would only cost time.
        let floods = pending > waiting_bytes_max || (delayed && self.flooders.has(now, origin));
        if floods && delayed {
            self.flooders.add(now, origin);
        }
        floods
    }

    /// Delays a request until its stream comes up, and the connection's further requests with it.
    pub(super) fn hold(&mut self, conn: ConnId, held: Held) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        if let Waits::Name(name) = &held.waits {
            self.named.entry(Arc::clone(name)).or_default().push(conn);
        }
        connection.put_off(Blocked::Held(Box::new(held)));
    }

    /// Takes the request of a connection that waits for a stream.
    pub(super) fn take_held(&mut self, conn: ConnId) -> Option<Box<Held>> {
        let blocked = &mut self.conns.get_mut(&conn)?.blocked;
        let Blocked::Held(held) = blocked.take_if(|blocked| matches!(blocked, Blocked::Held(_)))? else { return None };
        if let Waits::Name(name) = &held.waits
            && let Some(conns) = self.named.get_mut(name)
        {
            conns.retain(|have| *have != conn);
            if conns.is_empty() {
                self.named.remove(name);
                self.named.shrink_if_sparse();
            }
        }
        Some(held)
    }

    /// The connections whose requests wait for a stream.
    pub(super) fn held_for(&self, id: StreamId) -> Vec<ConnId> {
        let waits = |connection: &Connection| connection.held().is_some_and(|held| held.waits == Waits::Stream(id));
        let mut held: Vec<_> = self.iter().filter(|(_, connection)| waits(connection)).map(|(conn, _)| conn).collect();
        // The same order for the same seed.
        held.sort();
        held
    }

    /// The connections whose requests wait for a name: all, or those from one [`origin`].
    pub(super) fn waiting_for(&self, name: &str, from: Option<IpAddr>) -> Vec<ConnId> {
        let of = |conn: &ConnId| {
            let peer = self.conns.get(conn).map(|connection| origin(connection.peer.ip()));
            from.is_none() || peer == from
        };
        let mut waiting: Vec<_> = self.named.get(name).into_iter().flatten().copied().filter(of).collect();
        // The same order for the same seed.
        waiting.sort();
        waiting
    }

    /// Takes the PLAY or RECORD of a session that waits for the shard, so that its connection continues. The session is bound to the
    /// connection that sent it, unless another one has named the session since.
    pub(super) fn take_waiting(
        &mut self,
        session: SessionKey,
        bound: Option<ConnId>,
    ) -> Option<(ConnId, Box<Waiting>)> {
        let waits = |connection: &Connection| connection.waits_for() == Some(session);
        let conn = match bound.filter(|conn| self.conns.get(conn).is_some_and(waits)) {
            Some(conn) => conn,
            None => self.iter().find(|(_, connection)| waits(connection))?.0,
        };
        self.released.push(conn);
        Some((conn, self.conns.get_mut(&conn)?.take_waiting()?))
    }

    /// Marks a connection to be processed again, because it no longer waits.
    pub(super) fn release(&mut self, conn: ConnId) {
        self.released.push(conn);
    }

    /// The next connection to process again.
    pub(super) fn next_released(&mut self) -> Option<ConnId> {
        self.released.pop()
    }

    /// Panics if its state is inconsistent.
    #[cfg(feature = "testing")]
    pub(super) fn check(&self) {
        let strangers = self.conns.values().filter(|connection| connection.stranger.is_some()).count();
        assert_eq!(strangers, self.strangers.len());
        let holds: usize = self.conns.values().map(|connection| connection.holds as usize).sum();
        assert_eq!(holds, self.holding.total());
        let named: usize = self.named.values().map(Vec::len).sum();
        let by_name = self.conns.values().filter_map(Connection::held);
        assert_eq!(named, by_name.filter(|held| matches!(held.waits, Waits::Name(_))).count());
        assert!(self.named.values().all(|conns| !conns.is_empty()));
        assert!(self.released.is_empty());
        for connection in self.conns.values() {
            assert_eq!(connection.stranger.is_some(), connection.sessions.is_empty());
            assert!(connection.interleaved.is_none_or(|key| connection.sessions.contains(&key)));
        }
    }
}
