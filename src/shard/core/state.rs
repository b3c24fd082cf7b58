//! The core's parts, and its interface for connections and streams.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::early::Early;
use super::link::{Closing, Kind};
use super::links::Links;
use super::out::Out;
use super::pacing::Pacing;
use super::paths::Paths;
use super::put_off::PutOff;
use super::renewal::Renewal;
use super::streams::ShardStreams;
use crate::access::Access;
use crate::egress::{Completion, Conn, Egress, Piece, Token};
use crate::limits::MOVES_MAX;
use crate::media::chunk::Chunk;
use crate::media::log::Appended;
use crate::media::{Description, SourceState, StreamId};
use crate::metrics::{Counter, ShardMetrics};
use crate::session::{ConnId, EndReason, PlayTrack, Server, SessionKey};
use crate::shard::inbox::ToControl;
use crate::shard::types::{CoreConfig, Group, Handover, Lingering, ShardLimits, StreamSetup, UdpSockets};
use crate::source::publishing::Backlog;

/// A session that will play as soon as its stream's snapshot has arrived.
pub(super) struct Awaiting {
    pub(super) session: SessionKey,
    pub(super) conn: ConnId,
    pub(super) stream: StreamId,
    pub(super) tracks: Vec<PlayTrack>,
    pub(super) resumed: bool,
}

/// A shard without its thread.
pub struct Core<E: Egress> {
    /// Its own number.
    pub(super) shard: u16,
    pub(super) shards: usize,
    pub(super) stall_timeout: Duration,
    pub(super) egress: E,
    pub(super) server: Server,
    pub(super) links: Links,
    pub(super) streams: ShardStreams,
    pub(super) paths: Paths,
    pub(super) pacing: Pacing,
    pub(super) put_off: PutOff,
    pub(super) out: Out,
    /// Sessions that wait for their streams' snapshots.
    pub(super) awaiting: Vec<Awaiting>,
    /// Publishers' sessions that their streams' sources know.
    pub(super) publishers: HashMap<SessionKey, (StreamId, Backlog)>,
    /// The link that the core is currently working for.
    pub(super) at: Option<u32>,
    /// Clients may make the code panic, for tests.
    #[cfg(feature = "testing")]
    pub(super) testing: crate::testing::Testing,
    pub(super) metrics: ShardMetrics,
    /// Nothing is sent, because the clients are handed over to another process.
    pub(super) frozen: bool,
    /// Until then no connection or session times out.
    pub(super) spares_until: Option<Instant>,
    /// Since when clients are being disconnected, and how many played then.
    pub(super) leaving: Option<(Instant, usize)>,
    pub(super) stopping: Option<Instant>,
    pub(super) next_check: Option<Instant>,
    pub(super) renewal: Renewal,
    pub(super) early: Early,
    pub(super) pieces: Vec<Piece>,
    pub(super) completions: Vec<Completion>,
    /// The egress had no more completions when it was last asked.
    pub(super) reaped_all: bool,
}

/// How often a connection is moved to its stream's home: the rest of [`MOVES_MAX`] is for its sessions.
const STREAM_MOVES_MAX: u8 = MOVES_MAX / 2;

impl<E: Egress> Core<E> {
    /// A shard that serves the configured streams through `egress`, and UDP clients through `udp`.
    pub fn new(now: Instant, config: CoreConfig, egress: E, udp: Option<UdpSockets>) -> Self {
        let (shard, shards) = (config.server.shard, usize::from(config.server.shards));
        let mut server = Server::new(config.server);
        let mut streams = ShardStreams::new(config.age, config.log_bytes, shards);
        for setup in &config.streams {
            assert!(streams.set(setup), "a stream has one place");
            server.set_stream(setup.id, &setup.name);
            server.set_home(setup.id, setup.home);
            server.set_published(setup.id, setup.published);
            server.set_on_demand(setup.id, setup.on_demand);
            server.set_first_wait(setup.id, setup.first_wait);
        }
        Core {
            shard,
            shards,
            stall_timeout: config.stall_timeout,
            egress,
            server,
            links: Links::default(),
            streams,
            paths: Paths::new(udp),
            pacing: Pacing::new(now),
            put_off: PutOff::new(now),
            out: Out::default(),
            awaiting: Vec::new(),
            publishers: HashMap::new(),
            at: None,
            #[cfg(feature = "testing")]
            testing: crate::testing::Testing::default(),
            metrics: ShardMetrics::new(),
            frozen: false,
            spares_until: None,
            leaving: None,
            stopping: None,
            next_check: None,
            renewal: Renewal::default(),
            early: Early::default(),
            pieces: Vec::new(),
            completions: Vec::new(),
            reaped_all: true,
        }
    }

    /// Also offers a stream to a multicast group.
    pub fn set_group(&mut self, id: StreamId, group: Group) {
        self.server.set_multicast(id, group.address, group.ttl);
        if let Some(index) = self.streams.find(id) {
            self.streams[index].group = Some(group);
        }
    }

    /// Sets the maximum number of UDP clients' own sockets; existing ones stay.
    pub fn set_own_sockets_max(&mut self, sockets: usize) {
        self.paths.set_own_sockets_max(sockets);
    }

    /// The egress, for the thread to wait on and for the tests to script.
    pub fn egress_mut(&mut self) -> &mut E {
        &mut self.egress
    }

    /// The counts.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// Number of connections and UDP clients.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// The name of a stream.
    pub fn stream_name(&self, id: StreamId) -> Option<&str> {
        self.streams.find(id).map(|index| self.streams[index].name.as_str())
    }

    /// The stream with that name.
    pub fn stream_named(&self, name: &str) -> Option<StreamId> {
        self.streams.iter().find(|stream| stream.name == name).map(|stream| stream.id)
    }

    /// Whether a stop was requested and everything has been closed.
    pub fn is_stopped(&self) -> bool {
        self.stopping.is_some() && self.links.is_empty() && self.egress.in_flight() == 0
    }

    /// Accepts a new connection. `unread` are the bytes already read from it.
    pub fn connected(
        &mut self,
        now: Instant,
        conn: Conn,
        peer: SocketAddr,
        local: SocketAddr,
        unread: &[u8],
    ) -> Option<Token> {
        self.accept(now, conn, (peer, local), unread, 0)
    }

    /// Accepts a connection that has been moved `moves` times, with its peer's and its local address.
    pub fn accept(
        &mut self,
        now: Instant,
        conn: Conn,
        (peer, local): (SocketAddr, SocketAddr),
        unread: &[u8],
        moves: u8,
    ) -> Option<Token> {
        if self.stopping.is_some() {
            return None;
        }
        self.metrics.count(Counter::Connections, 1);
        let is_secure = conn.tls().is_some();
        let is_proxied = conn.peer_addr().is_ok_and(|address| address != peer);
        let kind = Kind::Tcp { conn, peer, answers: VecDeque::new(), answer_bytes: 0, moves, web: None };
        let token = self.links.insert(kind);
        self.at = Some(token.slot);
        self.server.connected(now, ConnId(token.slot), peer, local);
        if is_secure {
            self.server.set_secure(ConnId(token.slot));
        }
        if moves >= STREAM_MOVES_MAX {
            self.server.set_settled(ConnId(token.slot));
        }
        if is_proxied {
            self.server.set_proxied(ConnId(token.slot));
        }
        if !unread.is_empty() {
            self.server.input(now, ConnId(token.slot), unread);
        }
        self.process_events(now);
        Some(token)
    }

    /// Bytes were read from a connection. Returns how many messages of RTSP, or packets, were complete with them.
    pub fn input(&mut self, now: Instant, token: Token, bytes: &[u8]) -> usize {
        let mut messages = 0;
        if self.is_open(token) {
            self.at = Some(token.slot);
            #[cfg(feature = "testing")]
            self.panic_if_asked(now, token.slot, bytes);
            if self.is_web(token.slot) {
                self.web_input(now, token.slot, bytes);
            } else {
                messages = self.server.input(now, ConnId(token.slot), bytes);
            }
            self.process_events(now);
        }
        messages
    }

    /// A connection was closed by its client, or reading from it failed.
    pub fn disconnected(&mut self, now: Instant, token: Token) {
        if self.is_open(token) {
            self.at = Some(token.slot);
            self.server.disconnected(now, ConnId(token.slot));
            self.process_events(now);
            self.close(token.slot, Closing::Join);
        }
    }

    /// Whether requests are still read from the connection.
    pub fn is_open(&self, token: Token) -> bool {
        self.links.of_token(token).is_some_and(|link| link.closing == Closing::No)
    }

    /// Whether the connection is a publisher's, for which large reads pay off.
    pub fn publishes(&self, token: Token) -> bool {
        self.server.publishes(ConnId(token.slot))
    }

    /// Whether the connection is a publisher's whose source has a large backlog: it is read again when that has shrunk.
    pub fn is_backlogged(&self, token: Token) -> bool {
        let session = self.server.publisher_of(ConnId(token.slot)).filter(|_| self.is_open(token));
        let publisher = session.and_then(|session| self.publishers.get(&session));
        publisher.is_some_and(|(_, backlog)| backlog.is_long())
    }

    /// Whether the link still exists, open or being closed.
    pub fn is_there(&self, token: Token) -> bool {
        self.links.of_token(token).is_some()
    }

    /// A datagram arrived on the RTCP socket.
    pub fn rtcp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.datagram(now, from, bytes, Server::rtcp);
    }

    /// A datagram arrived on the RTP socket.
    pub fn rtp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        self.datagram(now, from, bytes, Server::rtp);
    }

    fn datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        take: fn(&mut Server, Instant, SocketAddr, &[u8]),
    ) {
        let sender = self.server.sender_at(from);
        self.at = sender.and_then(|(key, conn)| self.links.of_session(key).or(conn.map(|conn| conn.0)));
        #[cfg(feature = "testing")]
        if let Some(slot) = self.at {
            self.panic_if_asked(now, slot, bytes);
        }
        take(&mut self.server, now, from, bytes);
        self.process_events(now);
    }

    /// Connections to hand over to other shards.
    pub fn take_handovers(&mut self) -> Vec<Handover> {
        self.out.take_handovers()
    }

    /// Messages for the control thread, in order.
    pub fn take_outbox(&mut self) -> Vec<ToControl> {
        self.out.take_control()
    }

    /// Connections to linger since the last call. They are not reported as gone.
    pub fn take_lingering(&mut self) -> Vec<Lingering> {
        self.out.take_lingering()
    }

    /// The peers of connections closed since the last call, without those handed over.
    pub fn take_gone(&mut self) -> Vec<SocketAddr> {
        self.out.take_gone()
    }

    /// A stream is new, or has other settings from now on.
    ///
    /// # Panics
    /// If a new stream does not have the next number.
    pub fn set_stream(&mut self, now: Instant, setup: &StreamSetup) {
        if self.streams.set(setup) {
            self.server.set_stream(setup.id, &setup.name);
            self.server.set_home(setup.id, setup.home);
        }
        self.server.set_published(setup.id, setup.published);
        self.server.set_on_demand(setup.id, setup.on_demand);
        self.server.set_first_wait(setup.id, setup.first_wait);
        self.server.set_made(setup.id, setup.made);
        if setup.on_demand.is_none() {
            self.server.set_asleep(now, setup.id, false);
        }
        self.hear_early(now, setup.id);
        self.server.answer_named(now, &setup.name);
        self.process_events(now);
    }

    /// A stream was removed: its clients are ended, and whatever still arrives for it is ignored. When the last of them is gone its
    /// index is released ([`ToControl::Released`]).
    pub fn remove_stream(&mut self, now: Instant, id: StreamId) {
        let Some(index) = self.streams.find(id) else { return };
        let stream = &mut self.streams[index];
        stream.set_removed();
        for slot in stream.members().to_vec() {
            self.end_client(now, slot, EndReason::StreamRemoved);
        }
        self.end_receivers(now, id, EndReason::StreamRemoved);
        self.end_awaiting(now, id, EndReason::StreamRemoved);
        self.end_web_waiting(now, id);
        self.server.remove_stream(id);
        self.server.answer_held(now, id);
        let stream = &mut self.streams[id.index()];
        stream.group = None;
        stream.description = None;
        stream.log.clear();
        self.process_events(now);
        self.metrics.remove_stream(id);
        self.give_back(index);
    }

    /// Releases a removed stream's index if nothing refers to it any more.
    pub(super) fn give_back(&mut self, index: usize) {
        if self.streams.give_back(index) {
            self.out.tell(ToControl::Released { stream: self.streams[index].id });
        }
    }

    /// Applies other limits from now on.
    pub fn set_limits(&mut self, limits: ShardLimits) {
        self.stall_timeout = limits.stall_timeout;
        self.streams.set_bounds(limits.age, limits.log_bytes);
        let ShardLimits { session_timeout, handshake_timeout, clients_max, clients_per_address, .. } = limits;
        self.server.set_limits(session_timeout, handshake_timeout, clients_max, clients_per_address);
    }

    /// Sets users and rights from now on; sessions whose users lost their rights end.
    pub fn set_access(&mut self, now: Instant, access: Option<Arc<Access>>) {
        self.server.set_access(now, access);
        self.process_events(now);
    }

    /// The next chunk of a stream.
    pub fn chunk(&mut self, now: Instant, id: StreamId, chunk: Arc<Chunk>) {
        let Some(index) = self.streams.find(id) else { return };
        if self.streams.append(index, chunk) == Appended::AfterGap {
            let stream = &self.streams[index];
            tracing::error!(stream = %stream.name, "the shard could not keep up: its inbox dropped chunks");
            for member in stream.members() {
                if let Some(playing) = &mut self.links[*member as usize].playing {
                    playing.player.restart(&stream.log, now);
                }
            }
        }
    }

    /// The stream's description, for the first time or changed.
    pub fn described(&mut self, now: Instant, id: StreamId, description: Arc<Description>) {
        let Some(index) = self.streams.find(id) else { return self.described_early(id, description) };
        let stream = &mut self.streams[index];
        let continues = stream.description.as_ref().is_none_or(|old| old.continues_as(&description));
        if !continues {
            stream.forget_tracks();
            let members = stream.members().to_vec();
            if !members.is_empty() {
                tracing::warn!(stream = %stream.name, clients = members.len(), "the source's tracks or codecs changed: its clients are disconnected");
            }
            for slot in members {
                self.end_client(now, slot, EndReason::SourceChanged);
            }
            self.end_receivers(now, id, EndReason::SourceChanged);
            self.end_awaiting(now, id, EndReason::SourceChanged);
            self.streams[index].log.clear();
        }
        self.streams[index].describe(&description, continues);
        self.open_group(now, id);
        self.server.set_description(id, Some(description));
        self.server.answer_held(now, id);
        self.web_up(now, id);
        self.process_events(now);
    }

    /// The state of the stream's source has changed.
    pub fn source(&mut self, now: Instant, id: StreamId, state: SourceState) {
        let Some(index) = self.streams.find(id) else { return self.source_early(id, state) };
        self.streams.set_state(now, index, state);
        self.server.set_source(now, id, state);
        match state {
            SourceState::Live => {
                self.server.set_asleep(now, id, false);
                self.web_up(now, id);
            }
            SourceState::Idle => {
                self.server.set_asleep(now, id, true);
                let stream = &mut self.streams[index];
                if stream.members().is_empty() {
                    // The next client must not start with an old picture.
                    stream.log.clear();
                }
            }
            _ => {}
        }
        self.process_events(now);
    }

    /// Finishes what is in flight and closes every client.
    pub fn stop(&mut self, now: Instant) {
        self.stopping = Some(now);
        let ids: Vec<StreamId> = self.streams.iter().map(|stream| stream.id).collect();
        for id in ids {
            self.end_receivers(now, id, EndReason::Stopping);
        }
        let slots: Vec<u32> = self.links.iter().map(|(slot, _)| slot as u32).collect();
        for slot in slots {
            if self.links.get(slot as usize).is_some_and(|link| link.playing.is_some()) {
                self.end_client(now, slot, EndReason::Stopping);
            }
            self.close(slot, Closing::Flush);
        }
        self.process_events(now);
    }
}
