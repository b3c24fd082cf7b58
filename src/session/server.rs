//! The server: its connections and sessions, their bytes, and their ends.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use smallvec::SmallVec;

use super::auth::Denied;
use super::methods::RETRY_AFTER_S;
use super::ports::OwnPorts;
use super::publish::Announced;
use super::rate::{Flooders, Rate};
use super::streams::{Multicast, Streams};
use super::timers::Timer;
use super::types::{
    CloseReason, ConnId, Counters, Delivery, EndReason, Event, FirstPacket, PlayTrack, ServerConfig, SessionInfo,
    SessionKey,
};
use crate::access::{Access, User};
use crate::crowd::{Crowd, Place, origin};
use crate::limits::{REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX};
use crate::metrics::Limited;
use crate::stream::{Description, StreamId, TrackId};
use crate::wire::rtsp::{Decoder, Invalid, Message, Request, Response, Status};
use crate::wire::transport::Lower;

/// Bytes that may wait behind a PLAY that the shard has not answered yet.
const WAITING_BYTES_MAX: usize = 2 * (REQUEST_HEADER_BYTES_MAX + REQUEST_BODY_BYTES_MAX);

/// A PLAY that the shard has not answered yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) session: SessionKey,
    /// The answer's beginning, for when it is a good one.
    pub(super) answer: Response,
    /// The request's number, for when it is not.
    pub(super) cseq: String,
}

/// A request that waits for an on-demand stream to come up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: Request,
    pub(super) stream: StreamId,
    /// When it is answered 503.
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    /// Whether it is encrypted: then media does not leave it in the clear.
    pub(super) secure: bool,
    decoder: Decoder,
    /// When it was made.
    pub(super) since: Instant,
    /// When its last whole request came, if any did.
    pub(super) heard: Option<Instant>,
    /// When the first piece of the message that is not whole yet came.
    pub(super) partial_since: Option<Instant>,
    pub(super) waiting: Option<Box<Waiting>>,
    pub(super) held: Option<Box<Held>>,
    /// How much it may ask at once.
    rate: Rate,
    /// Until when its further requests wait, because of too many before them.
    pub(super) delayed: Option<Instant>,
    /// Its place among those without a session, while it has none.
    pub(super) stranger: Option<Place>,
    /// The answer to wrong credentials, which is put off.
    pub(super) denied: Option<Box<Denied>>,
    /// Who its last right credentials were of.
    pub(super) user: Option<Arc<User>>,
    /// What a publisher on it has announced.
    pub(super) announced: Option<Box<Announced>>,
    /// The session whose media it carries; of a publisher, in any case its session.
    pub(super) interleaved: Option<SessionKey>,
    /// All sessions that were last heard on it.
    pub(super) sessions: SmallVec<[SessionKey; 1]>,
    pub(super) timer: Option<Instant>,
}

// There is one for each client, and their table has room for up to twice as many.
const _: () = assert!(size_of::<Connection>() <= 400);

/// A track of a session.
#[derive(Debug)]
pub(super) struct SetUp {
    pub(super) track: TrackId,
    pub(super) delivery: Delivery,
    /// The URL that the client set it up by, for `RTP-Info`: players compare it with theirs.
    pub(super) url: String,
}

impl Connection {
    /// Has the requests that are there wait.
    fn delay(&mut self, until: Instant, counters: &mut Counters) {
        self.delayed = Some(until);
        // What lies here unread is no sign of a client that dawdles.
        self.partial_since = None;
        counters.limited[Limited::RequestDelayed.index()] += 1;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Set up, or paused.
    Ready,
    /// PLAY was asked for, the shard has not answered yet.
    Starting,
    Playing,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: SocketAddr,
    /// Whose it is, where users are configured.
    pub(super) user: Option<Arc<User>>,
    pub(super) stream: StreamId,
    /// The stream as it was when last looked at.
    pub(super) description: Arc<Description>,
    pub(super) lower: Lower,
    pub(super) state: State,
    /// Whether it has played before.
    pub(super) played: bool,
    /// Whether it is a publisher's.
    pub(super) publishes: bool,
    /// Whether the shard has heard of it.
    pub(super) announced: bool,
    /// In the order of their numbers.
    pub(super) tracks: Vec<SetUp>,
    /// The connection that it was last heard on, while open. For interleaved media always the one that carries it.
    pub(super) conn: Option<ConnId>,
    pub(super) heard: Instant,
    /// `RTP-Info` of the last start.
    pub(super) rtp_info: String,
    pub(super) user_agent: Option<String>,
    pub(super) timer: Option<Instant>,
}

impl Connection {
    /// Whether its further requests have to wait.
    fn is_put_off(&self) -> bool {
        self.waiting.is_some() || self.held.is_some() || self.denied.is_some() || self.delayed.is_some()
    }
}

impl Session {
    pub(super) fn play_tracks(&self) -> Vec<PlayTrack> {
        self.tracks.iter().map(|set_up| PlayTrack { track: set_up.track, delivery: set_up.delivery }).collect()
    }
}

/// The RTSP server of one shard.
pub struct Server {
    pub(super) config: ServerConfig,
    /// The ports of all shards and their clients, this one's among them.
    pub(super) own_ports: Arc<OwnPorts>,
    /// Who may do what; `None` where no users are configured.
    pub(super) access: Option<Arc<Access>>,
    pub(super) streams: Streams,
    pub(super) conns: HashMap<ConnId, Connection>,
    pub(super) sessions: HashMap<SessionKey, Session>,
    /// Players' sessions by their ports, and whether it is the one for RTCP. Addresses are in their canonical form.
    pub(super) by_port: HashMap<SocketAddr, (SessionKey, bool)>,
    /// The streams that are published to the relay.
    pub(super) published: HashSet<StreamId>,
    /// Publishers' sessions by the addresses that their datagrams come from, with the track's place, and whether it is RTCP.
    pub(super) by_publisher: HashMap<SocketAddr, (SessionKey, usize, bool)>,
    /// The UDP sessions of an address, for those whose RTCP comes through a translated port.
    pub(super) by_address: HashMap<IpAddr, SmallVec<[SessionKey; 1]>>,
    /// Moments at which something may have timed out. They are only brought forward at once; one that turns out too
    /// early is put off when it comes, so that hearing of a client costs nothing.
    pub(super) timers: BTreeSet<(Instant, Timer)>,
    /// Connections whose PLAY was answered, with bytes left to look at.
    pub(super) released: Vec<ConnId>,
    /// The connections without a session.
    pub(super) strangers: Crowd<ConnId>,
    /// Where connections came from that asked too much.
    flooders: Flooders,
    events: VecDeque<Event>,
    pub(super) counters: Counters,
    /// Session ids drawn so far.
    pub(super) keys_drawn: u64,
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Server {
    /// A server without streams.
    ///
    /// # Panics
    /// If `config.shard` is not below `config.shards`.
    pub fn new(config: ServerConfig) -> Self {
        assert!(config.shard < config.shards, "shard {} of {}", config.shard, config.shards);
        let own_ports = config.own_ports.clone();
        let own_ports = own_ports.unwrap_or_else(|| OwnPorts::new(config.shards.into(), |_| false));
        if let Some(ports) = config.udp_ports {
            own_ports.set(config.shard, ports);
        }
        Server {
            config,
            own_ports,
            access: None,
            streams: Streams::default(),
            conns: HashMap::new(),
            sessions: HashMap::new(),
            by_port: HashMap::new(),
            published: HashSet::new(),
            by_publisher: HashMap::new(),
            by_address: HashMap::new(),
            timers: BTreeSet::new(),
            released: Vec::new(),
            strangers: Crowd::default(),
            flooders: Flooders::default(),
            events: VecDeque::new(),
            counters: Counters::default(),
            keys_drawn: 0,
        }
    }

    /// Offers a stream to a multicast group as well: `group` has the port of the first track's RTP, each track takes two.
    pub fn set_multicast(&mut self, id: StreamId, group: SocketAddr, ttl: u8) {
        self.streams.set_multicast(id, Multicast { group, ttl });
    }

    /// Makes a stream known by its name. A single stream is served at the root as well.
    pub fn set_stream(&mut self, id: StreamId, name: &str) {
        self.streams.set_name(id, name);
    }

    /// Makes a stream unknown: requests for it are answered 404, and its sessions that do not play end. Those that play are
    /// for the shard to end first, with [`Server::end_session`].
    pub fn remove_stream(&mut self, id: StreamId) {
        self.set_description(id, None);
        self.streams.remove(id);
    }

    /// Sets other timeouts, and other limits of sessions, also for one address. They hold for what happens from now on; a timer that runs already
    /// is not brought forward.
    pub fn set_limits(
        &mut self,
        session_timeout: Duration,
        handshake_timeout: Duration,
        clients_max: usize,
        clients_per_address_max: Option<usize>,
    ) {
        self.config.session_timeout = session_timeout;
        self.config.handshake_timeout = handshake_timeout;
        self.config.limit.set_max(clients_max, clients_per_address_max);
    }

    /// Sets what a stream consists of; `None` for one that has never been up, which is answered 503.
    ///
    /// Sessions that cannot go on with it ([`Description::continues_as`]) and do not play end; those that play are for
    /// the shard to end, with a BYE and [`Server::end_session`].
    pub fn set_description(&mut self, id: StreamId, description: Option<Arc<Description>>) {
        let mut broken: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                let goes_on = description.as_ref().is_some_and(|new| session.description.continues_as(new));
                session.stream == id && session.state == State::Ready && !session.publishes && !goes_on
            })
            .map(|(key, _)| *key)
            .collect();
        // The same order for the same seed.
        broken.sort();
        self.streams.set_description(id, description);
        for key in broken {
            // One that shared a connection may be gone already.
            let Some(conn) = self.sessions.get(&key).map(|session| session.conn) else { continue };
            self.remove_session(key, EndReason::SourceChanged, true);
            if let Some(conn) = conn {
                self.close(conn, CloseReason::SessionEnded(EndReason::SourceChanged));
            }
        }
    }

    /// Makes a stream one that is pulled on demand, or with `None` one that is not: requests for it wait so long while it
    /// sleeps, which it does until [`Server::set_asleep`] says otherwise.
    pub fn set_on_demand(&mut self, id: StreamId, wait: Option<Duration>) {
        if self.streams.set_on_demand(id, wait) {
            self.push(Event::Demand { stream: id, wanted: true });
        }
    }

    /// An on-demand stream has come up, or is pulled no more. In the first case the requests that wait for it are answered.
    pub fn set_asleep(&mut self, now: Instant, id: StreamId, asleep: bool) {
        self.streams.set_asleep(id, asleep);
        if asleep {
            return;
        }
        let waits = |connection: &Connection| connection.held.as_ref().is_some_and(|held| held.stream == id);
        let mut awake: Vec<_> =
            self.conns.iter().filter(|(_, connection)| waits(connection)).map(|(conn, _)| *conn).collect();
        // The same order for the same seed.
        awake.sort();
        for conn in awake {
            let Some(held) = self.take_held(conn) else { continue };
            self.request(now, conn, held.request);
            self.process(now, conn);
        }
        self.process_released(now);
    }

    /// A connection was accepted, or handed over by another shard.
    pub fn connected(&mut self, now: Instant, conn: ConnId, peer: SocketAddr, local: SocketAddr) {
        self.disconnected(now, conn);
        let floods = self.flooders.has(now, origin(peer.ip()));
        let connection = Connection {
            peer,
            // Players get it to see, and few know an IPv4 address that is written as an IPv6 one.
            local: canonical(local),
            secure: false,
            decoder: Decoder::new(),
            since: now,
            heard: None,
            partial_since: None,
            waiting: None,
            held: None,
            rate: if floods { Rate::spent(now) } else { Rate::new(now) },
            delayed: None,
            stranger: None,
            denied: None,
            user: None,
            announced: None,
            interleaved: None,
            sessions: SmallVec::new(),
            timer: None,
        };
        self.conns.insert(conn, connection);
        self.arm_conn(conn);
        self.judge_stranger(conn);
        self.make_room();
        self.process_released(now);
    }

    /// Bytes were read from a connection.
    pub fn input(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        connection.decoder.feed(bytes);
        if connection.is_put_off() && connection.decoder.pending() > REQUEST_HEADER_BYTES_MAX {
            let origin = origin(connection.peer.ip());
            let whole = connection.decoder.pending() > WAITING_BYTES_MAX;
            // Reading more of a known flood would only cost.
            if whole || (connection.delayed.is_some() && self.flooders.has(now, origin)) {
                if connection.delayed.is_some() {
                    self.flooders.add(now, origin);
                }
                self.close(conn, CloseReason::Flood);
            }
        }
        self.process(now, conn);
        self.process_released(now);
    }

    /// A connection is gone. Its interleaved session ends, its UDP sessions live on.
    pub fn disconnected(&mut self, now: Instant, conn: ConnId) {
        self.forget(conn, EndReason::Disconnected);
        self.process_released(now);
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Answers an [`Event::Play`]: the media goes, beginning with these packets.
    ///
    /// A track that is not in `first` is told with its first sequence number and its time of now. A session that has
    /// ended meanwhile is passed over.
    pub fn start(&mut self, now: Instant, session: SessionKey, first: &[FirstPacket]) {
        let Some(playing) = self.sessions.get_mut(&session).filter(|s| s.state == State::Starting) else { return };
        playing.state = State::Playing;
        playing.played = true;
        playing.rtp_info = rtp_info(now, playing, first);
        let info = playing.rtp_info.clone();
        self.arm_session(session);
        if let Some((conn, waiting)) = self.take_waiting(session) {
            self.answer(conn, waiting.answer.header("Range", "npt=0-").header("RTP-Info", &info));
        }
        self.process_released(now);
    }

    /// Answers an [`Event::Play`] with an error, 400 to 599. The session stays as it was.
    pub fn refuse(&mut self, now: Instant, session: SessionKey, status: u16) {
        let Some(refused) = self.sessions.get_mut(&session).filter(|s| s.state == State::Starting) else { return };
        refused.state = State::Ready;
        self.arm_session(session);
        if let Some((conn, waiting)) = self.take_waiting(session) {
            let mut answer = Response::new(Status(status), Some(&waiting.cseq));
            answer = self.with_session(answer, session);
            if status == Status::UNAVAILABLE.0 {
                answer = answer.header("Retry-After", RETRY_AFTER_S);
            }
            self.answer(conn, answer);
        }
        self.process_released(now);
    }

    /// The shard ends a session. If its connection is open, an [`Event::Close`] follows.
    pub fn end_session(&mut self, now: Instant, session: SessionKey, reason: EndReason) {
        let Some(conn) = self.sessions.get(&session).map(|session| session.conn) else { return };
        self.remove_session(session, reason, false);
        if let Some(conn) = conn {
            self.close(conn, CloseReason::SessionEnded(reason));
        }
        self.process_released(now);
    }

    /// The sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Their keys, in no order.
    pub fn session_keys(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.sessions.keys().copied()
    }

    /// A session, for the status page.
    pub fn session_info(&self, session: SessionKey) -> Option<SessionInfo> {
        let session = self.sessions.get(&session)?;
        Some(SessionInfo {
            peer: session.peer,
            conn: session.conn,
            stream: session.stream,
            tracks: session.play_tracks(),
            playing: session.state == State::Playing,
            user_agent: session.user_agent.clone(),
        })
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    // What follows is for the methods as well.

    pub(super) fn count(&mut self, limited: Limited) {
        self.counters.limited[limited.index()] += 1;
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn answer(&mut self, conn: ConnId, response: Response) {
        *self.counters.answers.entry(response.status().0).or_default() += 1;
        if self.conns.contains_key(&conn) {
            self.push(Event::Answer { conn, bytes: response.finish() });
        }
    }

    pub(super) fn with_session(&self, answer: Response, key: SessionKey) -> Response {
        let seconds = self.config.session_timeout.as_secs().max(1);
        answer.header("Session", &format!("{key};timeout={seconds}"))
    }

    /// Puts a connection's further requests off until the shard has answered.
    pub(super) fn wait(&mut self, conn: ConnId, waiting: Waiting) {
        if let Some(connection) = self.conns.get_mut(&conn) {
            debug_assert!(connection.waiting.is_none(), "a request was looked at before the PLAY was answered");
            connection.waiting = Some(Box::new(waiting));
        }
    }

    /// Puts a request off until its on-demand stream has come up, and the connection's further ones with it.
    pub(super) fn hold(&mut self, conn: ConnId, held: Held) {
        let stream = held.stream;
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        debug_assert!(connection.held.is_none(), "a request was looked at before the one before it was answered");
        connection.held = Some(Box::new(held));
        self.want(stream, true);
    }

    /// Takes the request that a connection waits for out of it.
    pub(super) fn take_held(&mut self, conn: ConnId) -> Option<Box<Held>> {
        let held = self.conns.get_mut(&conn)?.held.take()?;
        self.want(held.stream, false);
        Some(held)
    }

    fn want(&mut self, stream: StreamId, wanted: bool) {
        if let Some(wanted) = self.streams.want(stream, wanted) {
            self.push(Event::Demand { stream, wanted });
        }
    }

    pub(super) fn insert_session(&mut self, key: SessionKey, session: NewSession, now: Instant) {
        let NewSession { peer, stream, description, lower, conn } = session;
        let user = self.conns.get(&conn).and_then(|connection| connection.user.clone());
        let session = Session {
            peer,
            user,
            stream,
            description,
            lower,
            state: State::Ready,
            played: false,
            publishes: false,
            announced: false,
            tracks: Vec::new(),
            conn: None,
            heard: now,
            rtp_info: String::new(),
            user_agent: None,
            timer: None,
        };
        if lower == Lower::Udp {
            self.by_address.entry(canonical(peer).ip()).or_default().push(key);
        }
        self.sessions.insert(key, session);
        self.config.limit.begun(peer.ip());
        self.counters.sessions += 1;
        self.want(stream, true);
        self.bind(key, conn);
        if let (Lower::Tcp, Some(connection)) = (lower, self.conns.get_mut(&conn)) {
            connection.interleaved = Some(key);
        }
        self.arm_session(key);
    }

    /// Notes that a connection was heard by a request that names no session: it speaks for all that were last heard on
    /// it.
    pub(super) fn heard_unnamed(&mut self, now: Instant, conn: ConnId) {
        let Some(connection) = self.conns.get(&conn) else { return };
        for key in &connection.sessions {
            if let Some(session) = self.sessions.get_mut(key) {
                session.heard = now;
            }
        }
    }

    /// Notes that a session was heard on a connection.
    pub(super) fn heard(&mut self, now: Instant, key: SessionKey, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.heard = now;
        // A publisher goes with the connection that announced it, whoever else names its session.
        if session.lower == Lower::Udp && !session.publishes && session.conn != Some(conn) {
            self.bind(key, conn);
        }
    }

    fn bind(&mut self, key: SessionKey, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let old = session.conn.replace(conn);
        if let Some(new) = self.conns.get_mut(&conn) {
            new.sessions.push(key);
        }
        if let Some(old) = old {
            if let Some(connection) = self.conns.get_mut(&old) {
                connection.sessions.retain(|have| *have != key);
            }
            self.arm_conn(old);
            self.judge_stranger(old);
        }
        self.judge_stranger(conn);
    }

    /// Adds a track to a session that does not have it; ports have been claimed for it.
    pub(super) fn add_track(&mut self, key: SessionKey, set_up: SetUp) {
        let session = self.sessions.get_mut(&key).expect("a session that is being set up");
        let at = session.tracks.partition_point(|have| have.track < set_up.track);
        debug_assert!(session.tracks.get(at).is_none_or(|have| have.track != set_up.track));
        // Most have one or two, and a vector makes room for four.
        session.tracks.reserve_exact(1);
        session.tracks.insert(at, set_up);
        for (place, have) in session.tracks.iter().enumerate() {
            let Delivery::Udp { rtp, rtcp } = have.delivery else { continue };
            if session.publishes {
                self.by_publisher.insert(canonical(rtp), (key, place, false));
                self.by_publisher.insert(canonical(rtcp), (key, place, true));
            } else {
                self.by_port.insert(canonical(rtp), (key, false));
                self.by_port.insert(canonical(rtcp), (key, true));
            }
        }
    }

    /// Takes a track out of a session, if it is there; of its ports the session keeps those that it has claimed anew.
    pub(super) fn drop_track(&mut self, key: SessionKey, track: TrackId, kept: &[SocketAddr]) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let Some(at) = session.tracks.iter().position(|have| have.track == track) else { return };
        let (set_up, stream) = (session.tracks.remove(at), session.stream);
        self.release(key, stream, &set_up, kept);
    }

    fn release(&mut self, key: SessionKey, stream: StreamId, set_up: &SetUp, kept: &[SocketAddr]) {
        match set_up.delivery {
            Delivery::Interleaved { rtp_channel, rtcp_channel } => {
                self.streams.release_channels(stream, set_up.track, (rtp_channel, rtcp_channel));
            }
            Delivery::Multicast { .. } => {}
            Delivery::Udp { rtp, rtcp } => {
                for port in [canonical(rtp), canonical(rtcp)].into_iter().filter(|port| !kept.contains(port)) {
                    self.own_ports.release(port, key);
                    if self.session_at(port) == Some(key) {
                        self.by_port.remove(&port);
                    }
                }
            }
        }
    }

    /// The player's session that was set up for this client port, be it the one for RTP or for RTCP.
    pub(super) fn session_at(&self, port: SocketAddr) -> Option<SessionKey> {
        self.by_port.get(&canonical(port)).map(|(key, _)| *key)
    }

    pub(super) fn remove_session(&mut self, key: SessionKey, reason: EndReason, tell: bool) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.config.limit.ended(session.peer.ip());
        *self.counters.ended.entry(reason).or_default() += 1;
        self.want(session.stream, false);
        if let Some(due) = session.timer {
            self.timers.remove(&(due, Timer::Session(key)));
        }
        if session.publishes {
            for (port, _) in self.by_publisher.extract_if(|_, (owner, ..)| *owner == key) {
                self.own_ports.release(port, key);
            }
        } else {
            for set_up in &session.tracks {
                self.release(key, session.stream, set_up, &[]);
            }
        }
        if session.lower == Lower::Udp {
            let address = canonical(session.peer).ip();
            if let Some(keys) = self.by_address.get_mut(&address) {
                keys.retain(|have| *have != key);
                if keys.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        if tell && session.announced {
            self.push(Event::End { session: key, reason });
        }
        if session.state == State::Starting {
            // Whoever waits for its start is told now that there will be none.
            if let Some((conn, waiting)) = self.take_waiting(key) {
                self.answer(conn, Response::new(Status::SESSION_NOT_FOUND, Some(&waiting.cseq)));
            }
        }
        if let Some(connection) = session.conn.and_then(|conn| self.conns.get_mut(&conn)) {
            connection.sessions.retain(|have| *have != key);
            if connection.interleaved == Some(key) {
                connection.interleaved = None;
            }
        }
        if let Some(conn) = session.conn {
            self.arm_conn(conn);
            self.judge_stranger(conn);
        }
    }

    /// Closes a connection and ends the session that it carries.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if self.forget(conn, EndReason::Closed).is_some() {
            *self.counters.closed.entry(reason).or_default() += 1;
            self.push(Event::Close { conn, reason });
        }
    }

    /// Hands a connection over to another shard, with a request and all that was read behind it.
    pub(super) fn hand_over(&mut self, conn: ConnId, shard: u16, request: &Request) {
        let Some(mut connection) = self.forget(conn, EndReason::Closed) else { return };
        let mut unread = BytesMut::from(&request.raw[..]);
        unread.extend_from_slice(&connection.decoder.take_unread());
        self.counters.moved += 1;
        self.push(Event::Move { conn, shard, unread: unread.freeze() });
    }

    fn forget(&mut self, conn: ConnId, reason: EndReason) -> Option<Connection> {
        self.take_held(conn);
        let connection = self.conns.remove(&conn)?;
        if let Some(place) = connection.stranger {
            self.strangers.remove(place);
        }
        if let Some(due) = connection.timer {
            self.timers.remove(&(due, Timer::Conn(conn)));
        }
        for key in &connection.sessions {
            if connection.interleaved == Some(*key) {
                self.remove_session(*key, reason, true);
            } else if let Some(session) = self.sessions.get_mut(key) {
                session.conn = None;
            }
        }
        Some(connection)
    }

    /// Takes the PLAY of a session that waits for the shard, so that its connection goes on.
    pub(super) fn take_waiting(&mut self, key: SessionKey) -> Option<(ConnId, Box<Waiting>)> {
        // The session is bound to the connection that asked, unless another one has named it since.
        let bound = self.sessions.get(&key).and_then(|session| session.conn);
        let waits = |connection: &Connection| connection.waiting.as_ref().is_some_and(|w| w.session == key);
        let conn = match bound.filter(|conn| self.conns.get(conn).is_some_and(waits)) {
            Some(conn) => conn,
            None => *self.conns.iter().find(|(_, connection)| waits(connection))?.0,
        };
        self.released.push(conn);
        Some((conn, self.conns.get_mut(&conn)?.waiting.take()?))
    }

    pub(super) fn process_released(&mut self, now: Instant) {
        while let Some(conn) = self.released.pop() {
            self.process(now, conn);
        }
    }

    /// Looks at the messages of a connection until they are used up, or one has to wait.
    fn process(&mut self, now: Instant, conn: ConnId) {
        while let Some(connection) = self.conns.get_mut(&conn) {
            if connection.is_put_off() {
                break;
            }
            if connection.decoder.pending() > 0
                && let Some(until) = connection.rate.wait(now)
            {
                connection.delay(until, &mut self.counters);
                break;
            }
            let before = connection.decoder.consumed();
            let message = connection.decoder.next_message();
            if connection.decoder.pending() == 0 {
                connection.partial_since = None;
            } else if connection.partial_since.is_none() || connection.decoder.consumed() > before {
                connection.partial_since = Some(now);
            }
            match message {
                Ok(Some(Message::Request(request))) => {
                    connection.rate.spend(now);
                    connection.heard = Some(now);
                    self.counters.requests += 1;
                    self.request(now, conn, request);
                }
                Ok(Some(Message::Frame { channel, packet })) => {
                    // A publisher may send as much as it has.
                    if connection.announced.is_none() {
                        connection.rate.spend_frame(now);
                    }
                    self.frame(now, conn, channel, packet);
                }
                Ok(Some(Message::Response)) => connection.rate.spend(now),
                Ok(None) => break,
                Err(invalid) => self.invalid(conn, invalid),
            }
        }
        self.arm_conn(conn);
    }

    fn invalid(&mut self, conn: ConnId, invalid: Invalid) {
        let Invalid { fault, cseq, .. } = invalid;
        let (status, reason) = if fault.is_foreign() {
            (None, CloseReason::NotRtsp(fault))
        } else if fault.is_too_large() {
            (Some(Status::TOO_LARGE), CloseReason::TooLarge(fault))
        } else {
            (Some(Status::BAD_REQUEST), CloseReason::Malformed(fault))
        };
        if let Some(status) = status {
            self.answer(conn, Response::new(status, cseq.as_deref()).header("Connection", "close"));
        }
        self.close(conn, reason);
    }
}

/// What a session is made from.
pub(super) struct NewSession {
    pub(super) peer: SocketAddr,
    pub(super) stream: StreamId,
    pub(super) description: Arc<Description>,
    pub(super) lower: Lower,
    pub(super) conn: ConnId,
}

/// `RTP-Info` of a start (RFC 2326 section 12.33).
fn rtp_info(now: Instant, session: &Session, first: &[FirstPacket]) -> String {
    let entry = |set_up: &SetUp| {
        let known =
            first.iter().find(|packet| packet.track == set_up.track).map(|packet| (packet.seq, packet.rtp_time));
        let estimate = || {
            let track = session.description.tracks.get(usize::from(set_up.track.0))?;
            Some((track.first_seq, track.rtp_time_at(track.clock, now)))
        };
        let (seq, rtp_time) = known.or_else(estimate).unwrap_or((0, 0));
        format!("url={};seq={seq};rtptime={rtp_time}", set_up.url)
    };
    session.tracks.iter().map(entry).collect::<Vec<_>>().join(",")
}
