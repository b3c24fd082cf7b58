//! The server: its parts, what involves several of them, and how connections and sessions end.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::Authentication;
use super::config::ServerConfig;
use super::connections::{Connection, Connections, Waiting};
use super::ids::Ids;
use super::ports::{Ports, UdpPorts};
use super::sessions::{NewSession, Session, Sessions, SetUp, State};
use super::streams::{KnownStreams, Multicast};
use super::timers::{Timer, Timers};
use super::types::{CloseReason, ConnId, Counters, Delivery, EndReason, Event, FirstPacket, SessionInfo, SessionKey};
use crate::media::name::NameRules;
use crate::media::{Description, StreamId, TrackId};
use crate::metrics::Limited;
use crate::wire::rtsp::{Message, Request, Response, Status};
use crate::wire::transport::Lower;

/// Seconds after which a client may retry a source that has never been up.
pub(super) const RETRY_AFTER_S: &str = "5";

/// The RTSP server of one shard. Each part owns its state; what concerns two parts is here.
pub struct Server {
    pub(super) config: ServerConfig,
    pub(super) connections: Connections,
    pub(super) sessions: Sessions,
    /// The ports of all shards and their clients, including this one's.
    pub(super) ports: Ports,
    pub(super) auth: Authentication,
    pub(super) streams: KnownStreams,
    /// The rules for names that no stream has.
    pub(super) names: Arc<NameRules>,
    /// The streams that accept publishers.
    pub(super) published: HashSet<StreamId>,
    pub(super) timers: Timers,
    /// The time limit of the waiting request that is being processed again.
    pub(super) held_until: Option<Instant>,
    /// Bytes from a connection are being processed: nothing more is read from it meanwhile.
    reading: bool,
    events: VecDeque<Event>,
    /// Messages, of requests and packets, since it started; wraps.
    processed: usize,
    pub(super) counters: Counters,
}

impl Server {
    /// A server without streams.
    ///
    /// # Panics
    /// If `config.shard` is not below `config.shards`.
    pub fn new(config: ServerConfig) -> Self {
        assert!(config.shard < config.shards, "shard {} of {}", config.shard, config.shards);
        let all_ports = config.all_ports.clone();
        let all_ports = all_ports.unwrap_or_else(|| UdpPorts::new(config.shards.into(), |_| false));
        let ids = Ids::new(config.ids, config.shard, config.shards);
        Server {
            connections: Connections::new(config.ids.lots()),
            sessions: Sessions::new(ids, Arc::clone(&config.limit)),
            ports: Ports::new(all_ports, config.shard, config.udp_ports),
            auth: Authentication::default(),
            streams: KnownStreams::default(),
            names: Arc::default(),
            published: HashSet::new(),
            timers: Timers::default(),
            held_until: None,
            reading: false,
            events: VecDeque::new(),
            processed: 0,
            counters: Counters::default(),
            config,
        }
    }

    /// Also offers a stream to a multicast group: `group` has the port of the first track's RTP; each track takes two.
    pub fn set_multicast(&mut self, id: StreamId, group: SocketAddr, ttl: u8) {
        self.streams.set_multicast(id, Multicast { group, ttl });
    }

    /// Adds a stream with its name. A single stream is also served at the root.
    pub fn set_stream(&mut self, id: StreamId, name: &str) {
        self.streams.set_name(id, name);
    }

    /// Sets whether a stream was created by name; such a stream is not served at the root.
    pub fn set_made(&mut self, id: StreamId, made: bool) {
        self.streams.set_made(id, made);
    }

    /// Removes a stream: requests for it are answered 404, and its sessions that do not play end. Those that play must first be ended
    /// by the shard, with [`Server::end_session`].
    pub fn remove_stream(&mut self, id: StreamId) {
        self.set_description(id, None);
        self.streams.remove(id);
        self.published.remove(&id);
    }

    /// Sets other timeouts and limits. They apply from now on; timers that are already running are not brought forward.
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

    /// Sets the description of a stream; `None` for one that has never been up, for which requests wait or are answered 503.
    ///
    /// Sessions that cannot continue with it ([`Description::continues_as`]) and do not play end; those that play must be ended by the
    /// shard, with a BYE and [`Server::end_session`].
    pub fn set_description(&mut self, id: StreamId, description: Option<Arc<Description>>) {
        let broken = self.sessions.matching(|session| {
            let goes_on = description.as_ref().is_some_and(|new| session.description.continues_as(new));
            session.stream == id && session.state() == State::Ready && !session.publishes && !goes_on
        });
        self.streams.set_description(id, description);
        for key in broken {
            self.end(key, EndReason::SourceChanged, true);
        }
    }

    /// A connection was accepted, or handed over by another shard.
    pub fn connected(&mut self, now: Instant, conn: ConnId, peer: SocketAddr, local: SocketAddr) {
        self.disconnected(now, conn);
        self.connections.insert(now, conn, peer, local);
        self.arm_conn(conn);
        self.make_room();
        self.process_released(now);
    }

    /// Bytes were read from a connection.
    ///
    /// Returns how many messages were processed.
    pub fn input(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) -> usize {
        let before = self.processed;
        if self.connections.feed(now, conn, bytes) {
            self.close(conn, CloseReason::Flood);
        }
        self.reading = true;
        self.process(now, conn);
        self.reading = false;
        self.process_released(now);
        self.processed.wrapping_sub(before)
    }

    /// A connection is gone. Its interleaved session ends; its UDP sessions continue.
    pub fn disconnected(&mut self, now: Instant, conn: ConnId) {
        self.orphan(now, conn);
        self.forget(conn, EndReason::Disconnected);
        self.process_released(now);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Answers an [`Event::Play`]: the media starts with these packets.
    ///
    /// A track that is not in `first` is announced with its first sequence number and its current time. A session that has ended
    /// meanwhile is ignored.
    pub fn start(&mut self, now: Instant, session: SessionKey, first: &[FirstPacket]) {
        let Some(playing) = self.sessions.get_mut(session).filter(|session| session.state() == State::Starting) else {
            return;
        };
        playing.start();
        playing.set_rtp_info(now, first);
        let info = playing.rtp_info().to_owned();
        self.arm_session(session);
        if let Some((conn, waiting)) = self.take_waiting(session) {
            self.answer(conn, waiting.answer.header("Range", "npt=0-").header("RTP-Info", &info));
        }
        self.process_released(now);
    }

    /// Answers an [`Event::Play`] with an error, 400 to 599. The session's state does not change.
    pub fn refuse(&mut self, now: Instant, session: SessionKey, status: u16) {
        if !self.sessions.get_mut(session).is_some_and(Session::refuse) {
            return;
        }
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
        self.end(session, reason, false);
        self.process_released(now);
    }

    /// The same for a session that the shard does not play; the shard is notified of the end if it knows it.
    pub fn end_told(&mut self, now: Instant, session: SessionKey, reason: EndReason) {
        self.end(session, reason, true);
        self.process_released(now);
    }

    /// The sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Their keys, in no order.
    pub fn session_keys(&self) -> impl Iterator<Item = SessionKey> + '_ {
        self.sessions.keys()
    }

    /// A session, for the status page.
    pub fn session_info(&self, session: SessionKey) -> Option<SessionInfo> {
        self.sessions.get(session).map(Session::info)
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    // The following functions are also for the methods.

    /// Whether bytes from a connection are being processed.
    pub(super) fn is_reading(&self) -> bool {
        self.reading
    }

    /// Whether an answer for a connection is on its way to the shard.
    pub(super) fn is_answered(&self, conn: ConnId) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Answer { conn: of, .. } if *of == conn))
    }

    pub(super) fn count(&mut self, limited: Limited) {
        self.counters.limited[limited.index()] += 1;
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn answer(&mut self, conn: ConnId, response: Response) {
        *self.counters.answers.entry(response.status().0).or_default() += 1;
        if self.connections.contains(conn) {
            self.push(Event::Answer { conn, bytes: response.finish() });
        }
    }

    pub(super) fn with_session(&self, answer: Response, key: SessionKey) -> Response {
        let seconds = self.config.session_timeout.as_secs().max(1);
        answer.header("Session", &format!("{key};timeout={seconds}"))
    }

    pub(super) fn insert_session(&mut self, key: SessionKey, new: &NewSession, now: Instant) {
        let user = self.connections.get(new.conn).and_then(|connection| connection.user.clone());
        if new.lower == Lower::Udp {
            self.ports.begin(key, new.peer, new.publishes);
        }
        self.sessions.insert(key, Session::new(now, new, user));
        self.counters.sessions += 1;
        if !new.publishes {
            self.want(new.stream, true);
        }
        self.bind(key, new.conn);
        // Also over UDP, a publisher ends with its connection.
        if (new.lower == Lower::Tcp || new.publishes)
            && let Some(connection) = self.connections.get_mut(new.conn)
        {
            connection.carry(key);
        }
        self.arm_session(key);
    }

    /// A request that names no session is a sign of life for all sessions last used on its connection.
    pub(super) fn heard_unnamed(&mut self, now: Instant, conn: ConnId) {
        let Some(connection) = self.connections.get(conn) else { return };
        for key in connection.sessions() {
            if let Some(session) = self.sessions.get_mut(*key) {
                session.heard = now;
            }
        }
    }

    /// A session was used on a connection.
    pub(super) fn heard(&mut self, now: Instant, key: SessionKey, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.heard = now;
        // A publisher ends with the connection that announced it, whichever connection names its session.
        if session.lower == Lower::Udp && !session.publishes && session.conn() != Some(conn) {
            self.bind(key, conn);
        }
    }

    fn bind(&mut self, key: SessionKey, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(old) = session.bind(conn) {
            self.connections.unbind(old, key);
            self.arm_conn(old);
        }
        self.connections.bind(conn, key);
    }

    /// Adds a new track to a session; its ports have been claimed.
    pub(super) fn add_track(&mut self, key: SessionKey, set_up: SetUp) {
        let session = self.sessions.get_mut(key).expect("a session that is being set up");
        session.add_track(set_up);
        self.ports.set_up(key, session.publishes, session.tracks().iter().map(|set_up| set_up.delivery));
    }

    /// Removes a track from a session, if it is there; the session keeps those of its ports that it has claimed again.
    pub(super) fn drop_track(&mut self, key: SessionKey, track: TrackId, kept: &[SocketAddr]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let stream = session.stream;
        if let Some(set_up) = session.drop_track(track) {
            self.release(key, stream, &set_up, kept);
        }
    }

    fn release(&mut self, key: SessionKey, stream: StreamId, set_up: &SetUp, kept: &[SocketAddr]) {
        match set_up.delivery {
            Delivery::Interleaved { rtp_channel, rtcp_channel } => {
                self.streams.release_channels(stream, set_up.track, (rtp_channel, rtcp_channel));
            }
            Delivery::Multicast { .. } => {}
            Delivery::Udp { rtp, rtcp } => self.ports.release(key, [rtp, rtcp], kept),
        }
    }

    /// Ends a session, and closes its connection. `tell`: the shard is notified of the session's end, if it knows it.
    pub(super) fn end(&mut self, key: SessionKey, reason: EndReason, tell: bool) {
        // A session that shared a connection may be gone already.
        let Some(conn) = self.sessions.get(key).map(Session::conn) else { return };
        self.remove_session(key, reason, tell);
        if let Some(conn) = conn {
            self.close(conn, CloseReason::SessionEnded(reason));
        }
    }

    pub(super) fn remove_session(&mut self, key: SessionKey, reason: EndReason, tell: bool) {
        let Some(mut session) = self.sessions.remove(key) else { return };
        *self.counters.ended.entry(reason).or_default() += 1;
        if !session.publishes {
            self.want(session.stream, false);
        }
        self.timers.set(Timer::Session(key), &mut session.timer, None);
        if session.publishes {
            self.ports.release_publisher(key);
        } else {
            for set_up in session.tracks() {
                self.release(key, session.stream, set_up, &[]);
            }
        }
        if session.lower == Lower::Udp {
            self.ports.end(key, session.peer);
        }
        if tell && session.is_announced() {
            self.push(Event::End { session: key, reason });
        }
        if session.state() == State::Starting {
            // A client that waits for its start is told that there will be none.
            if let Some((conn, waiting)) = self.connections.take_waiting(key, None) {
                self.answer(conn, Response::new(Status::SESSION_NOT_FOUND, Some(&waiting.cseq)));
            }
        }
        if let Some(conn) = session.conn() {
            self.connections.unbind(conn, key);
            self.arm_conn(conn);
        }
    }

    /// Closes a connection and ends the session that it carries.
    pub(super) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if self.forget(conn, EndReason::Closed).is_some() {
            *self.counters.closed.entry(reason).or_default() += 1;
            self.push(Event::Close { conn, reason });
        }
    }

    /// Hands a connection over to another shard, with a request and everything that was read after it.
    pub(super) fn hand_over(&mut self, conn: ConnId, shard: u16, request: &Request) {
        let Some(connection) = self.forget(conn, EndReason::Closed) else { return };
        self.counters.moved += 1;
        self.push(Event::Move { conn, shard, unread: connection.unread_from(request).freeze() });
    }

    fn forget(&mut self, conn: ConnId, reason: EndReason) -> Option<Connection> {
        self.take_held(conn);
        let mut connection = self.connections.remove(conn)?;
        self.timers.set(Timer::Conn(conn), &mut connection.timer, None);
        for key in connection.sessions() {
            if connection.interleaved() == Some(*key) {
                self.remove_session(*key, reason, true);
            } else if let Some(session) = self.sessions.get_mut(*key) {
                session.unbind();
                // During an outage, the open connection was the only sign of life from its client.
                self.arm_session(*key);
            }
        }
        Some(connection)
    }

    /// Delays a connection's further requests until the shard has answered.
    pub(super) fn wait(&mut self, conn: ConnId, waiting: Waiting) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.wait(waiting);
        }
    }

    /// Takes the PLAY of a session that waits for the shard, so that its connection continues.
    pub(super) fn take_waiting(&mut self, key: SessionKey) -> Option<(ConnId, Box<Waiting>)> {
        let bound = self.sessions.get(key).and_then(Session::conn);
        self.connections.take_waiting(key, bound)
    }

    pub(super) fn process_released(&mut self, now: Instant) {
        while let Some(conn) = self.connections.next_released() {
            self.process(now, conn);
        }
    }

    /// Processes a connection's messages until there are no more, or one must wait.
    pub(super) fn process(&mut self, now: Instant, conn: ConnId) {
        while let Some(connection) = self.connections.get_mut(conn) {
            if connection.is_put_off() {
                break;
            }
            if connection.delay(now) {
                self.count(Limited::RequestDelayed);
                break;
            }
            let message = connection.next_message(now);
            self.processed = self.processed.wrapping_add(1);
            match message {
                Ok(Some(Message::Request(request))) => {
                    self.counters.requests += 1;
                    self.request(now, conn, request);
                }
                Ok(Some(Message::Frame { channel, packet })) => self.frame(now, conn, channel, packet),
                Ok(Some(Message::Response)) => {}
                Ok(None) => break,
                Err(invalid) => self.invalid(conn, invalid),
            }
        }
        self.arm_conn(conn);
        self.judge_holding(conn);
    }
}
