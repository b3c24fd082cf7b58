//! A server's connections and sessions as plain data, for another process that also gets the descriptors.
//!
//! Streams and users are named, because another process numbers them in its own way. A request that waits, for its stream or for its
//! credentials, is saved as unread bytes: it is processed again from its start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::announced::AnnouncedState;
use super::connections::{Connection, ConnectionState};
use super::ports::Holder;
use super::server::Server;
use super::sessions::{Session, SessionState};
use super::types::{ConnId, Delivery, Event, SessionKey};
use crate::media::saved::Moment;
use crate::media::{Description, StreamId};
use crate::wire::transport::Lower;

/// What a server knows of a stream beside what its shard does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamState {
    /// The relays that it has passed through.
    path: Option<String>,
    asleep: bool,
}

/// A server's connections and sessions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerState {
    connections: Vec<SavedConnection>,
    sessions: Vec<SavedSession>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedConnection {
    conn: u32,
    peer: SocketAddr,
    local: SocketAddr,
    user: Option<String>,
    announced: Option<(String, AnnouncedState)>,
    #[serde(with = "crate::media::saved::bytes")]
    unread: Bytes,
    /// An answer whose time has not come.
    #[serde(with = "crate::media::saved::bytes")]
    answer: Bytes,
    state: ConnectionState,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedSession {
    key: u64,
    user: Option<String>,
    stream: String,
    /// Unless it is the stream's.
    description: Option<Description<Moment>>,
    conn: Option<u32>,
    state: SessionState,
    /// Another shard's session has taken its ports.
    #[serde(default)]
    replaced: bool,
}

/// Why a server cannot be saved at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSaved {
    /// A client waits for the answer to PLAY or RECORD.
    #[error("a client is just about to start")]
    Starting,
    /// A session's stream was removed a moment ago.
    #[error("clients of a removed stream are still there")]
    Removed,
}

impl ServerState {
    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        for connection in &mut self.connections {
            each(&mut connection.unread);
            each(&mut connection.answer);
        }
    }

    /// The connections are numbered in another way from now on.
    pub fn renumber(&mut self, number: impl Fn(u32) -> Option<u32>) {
        self.connections.retain_mut(|connection| number(connection.conn).map(|new| connection.conn = new).is_some());
        for session in &mut self.sessions {
            session.conn = session.conn.and_then(&number);
        }
    }

    /// The addresses of its connections' clients.
    pub fn peers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.connections.iter().map(|connection| connection.peer)
    }
}

impl Server {
    /// What it knows of a stream.
    pub fn save_stream(&self, id: StreamId) -> StreamState {
        StreamState { path: self.streams.path(id).map(|path| path.to_string()), asleep: self.streams.is_asleep(id) }
    }

    /// Restores that.
    pub fn restore_stream(&mut self, id: StreamId, state: StreamState) {
        if let Some(path) = state.path {
            self.streams.set_path(id, path.into());
        }
        self.streams.set_asleep(id, state.asleep);
    }

    /// The connections for which this is true, and the sessions, as plain data; times are relative to `reference`.
    ///
    /// # Errors
    /// If something is in between; try again a moment later.
    pub fn save(&self, reference: Instant, is_kept: impl Fn(ConnId) -> bool) -> Result<ServerState, NotSaved> {
        let kept = self.connections.iter().filter(|(conn, _)| is_kept(*conn));
        let connections = kept.map(|(conn, connection)| self.save_connection(reference, conn, connection));
        let sessions = self.sessions.keys().filter_map(|key| Some((key, self.sessions.get(key)?)));
        let sessions = sessions.map(|(key, session)| self.save_session(reference, key, session));
        let mut connections = connections.collect::<Result<Vec<_>, _>>()?;
        let mut sessions = sessions.collect::<Result<Vec<_>, _>>()?;
        // The same order for the same seed.
        connections.sort_by_key(|connection| connection.conn);
        sessions.sort_by_key(|session| session.key);
        Ok(ServerState { connections, sessions })
    }

    fn save_connection(
        &self,
        reference: Instant,
        conn: ConnId,
        connection: &Connection,
    ) -> Result<SavedConnection, NotSaved> {
        let (unread, answer) = connection.unanswered().ok_or(NotSaved::Starting)?;
        let announced = connection.announced.as_ref();
        Ok(SavedConnection {
            conn: conn.0,
            peer: connection.peer,
            local: connection.local,
            user: connection.user.as_ref().map(|user| user.name.clone()),
            announced: announced.map(|announced| (self.streams.name(announced.stream).to_owned(), announced.save())),
            unread,
            answer,
            state: connection.save(reference),
        })
    }

    fn save_session(&self, reference: Instant, key: SessionKey, session: &Session) -> Result<SavedSession, NotSaved> {
        let stream = self.streams.name(session.stream);
        if stream.is_empty() {
            return Err(NotSaved::Removed);
        }
        let is_streams = self.streams.description(session.stream) == Some(&session.description);
        Ok(SavedSession {
            key: key.0,
            user: session.user.as_ref().map(|user| user.name.clone()),
            stream: stream.to_owned(),
            description: (!is_streams).then(|| session.description.with_moments(|at| Moment::of(at, reference))),
            conn: session.conn().map(|conn| conn.0),
            state: session.save(reference).ok_or(NotSaved::Starting)?,
            replaced: self.ports.is_replaced(key),
        })
    }

    /// Restores saved connections and sessions of streams that it has, with their descriptions. [`Server::go_on`] then processes what
    /// the clients had sent.
    pub fn restore(&mut self, now: Instant, reference: Instant, state: ServerState) {
        let access = self.auth.access();
        let user = |name: Option<String>| access.as_ref()?.user(&name?).map(Arc::clone);
        for saved in state.connections {
            let conn = ConnId(saved.conn);
            self.connections.insert(now, conn, saved.peer, saved.local);
            let announced = saved.announced.and_then(|(stream, announced)| {
                Some(Box::new(announced.restore(self.streams.find(stream.as_bytes())?)))
            });
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.restore(reference, &saved.state, &saved.unread);
                (connection.user, connection.announced) = (user(saved.user), announced);
            }
            if !saved.answer.is_empty() {
                self.push(Event::Answer { conn, bytes: saved.answer });
            }
        }
        for saved in state.sessions {
            let Some(stream) = self.streams.find(saved.stream.as_bytes()) else { continue };
            let own = saved.description.map(|own| Arc::new(own.with_moments(|at| at.at(reference))));
            let Some(description) = own.or_else(|| self.streams.description(stream).cloned()) else { continue };
            let conn = saved.conn.map(ConnId);
            let session = Session::restore(reference, saved.state, (stream, description), user(saved.user), conn);
            self.adopt(now, SessionKey(saved.key), session, saved.replaced);
        }
        for conn in self.all_connections() {
            self.arm_conn(conn);
        }
    }

    fn all_connections(&self) -> Vec<ConnId> {
        let mut all: Vec<_> = self.connections.iter().map(|(conn, _)| conn).collect();
        all.sort();
        all
    }

    fn adopt(&mut self, now: Instant, key: SessionKey, session: Session, replaced: bool) {
        let (stream, publishes, conn, lower) = (session.stream, session.publishes, session.conn(), session.lower);
        if lower == Lower::Udp {
            let holder = Holder { session: key, user: session.user.clone(), publishes };
            let deliveries = session.tracks().iter().map(|set_up| set_up.delivery);
            self.ports.restore(now, &holder, session.peer, deliveries, replaced);
        }
        if !publishes {
            for set_up in session.tracks() {
                if let Delivery::Interleaved { rtp_channel, rtcp_channel } = set_up.delivery {
                    // They were free in the process before, and each session counts.
                    self.streams.take_channels(stream, set_up.track, Some((rtp_channel, rtcp_channel)), &[]);
                }
            }
        }
        self.sessions.insert(key, session);
        if !publishes {
            self.want(stream, true);
        }
        if let Some(conn) = conn {
            self.connections.bind(conn, key);
            if (lower == Lower::Tcp || publishes)
                && let Some(connection) = self.connections.get_mut(conn)
            {
                connection.carry(key);
            }
        }
        self.arm_session(key);
    }

    /// Processes what restored clients had sent before.
    pub fn go_on(&mut self, now: Instant) {
        for conn in self.all_connections() {
            self.process(now, conn);
        }
        // A user may have been removed from the configuration since.
        let access = self.auth.access();
        if access.is_some() {
            self.set_access(now, access);
        }
        self.process_released(now);
    }
}
