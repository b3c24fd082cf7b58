//! A shard without its thread: the RTSP server, the streams' logs, the clients and the egress, put together.
//!
//! It is told of bytes, chunks, completions and the time, and never asks for any of them, so the tests run thousands of clients
//! of it on a virtual clock. The rule is *absorb, then drive*: everything that has happened is taken in first, then
//! [`Core::drive`] acts on it once.

mod clients;
mod drive;
mod group;
mod link;
mod links;
#[cfg(test)]
mod log_tests;
mod panics;
mod paths;
mod put_off;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use link::{Closing, Kind};
use links::Links;

use super::inbox::{Backlog, SourceState, ToControl};
use crate::access::Access;
use crate::egress::{Completion, Conn, Datagram, Egress, Piece, Token};
use crate::metrics::{Counter, DropReason, LeaveReason, ReportRequest, ShardMetrics};
use crate::session::{CloseReason, ConnId, EndReason, Server, ServerConfig, SessionKey};
use crate::stream::chunk::{Chunk, ChunkKind};
use crate::stream::log::{Appended, Log};
use crate::stream::{Description, StreamId};

/// Where a new client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the last keyframe in the log: a picture at once.
    Cached,
    /// At the next keyframe: the least latency.
    Live,
}

/// A stream as a shard needs to know it.
#[derive(Clone, Debug)]
pub struct StreamSetup {
    /// Its number.
    pub id: StreamId,
    /// The name it is served under.
    pub name: String,
    /// Where new clients begin.
    pub start: Start,
    /// Whether it is published to the relay.
    pub published: bool,
    /// For a stream that is pulled on demand: how long clients wait for it to come up.
    pub on_demand: Option<Duration>,
}

/// What may be changed while a shard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// Lag at which a client skips to a keyframe.
    pub age: Duration,
    /// Bytes of each stream's log at most.
    pub log_bytes: usize,
    /// Time within which an operation must be complete.
    pub stall_timeout: Duration,
    /// Silence after which a session ends.
    pub session_timeout: Duration,
    /// Time in which a connection must send its first whole request.
    pub handshake_timeout: Duration,
    /// Sessions at most, over all shards.
    pub clients_max: usize,
    /// Sessions of one address at most; `None` for no limit.
    pub clients_per_address: Option<usize>,
}

/// What a shard's core is started with.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Lag at which a client skips to a keyframe.
    pub age: Duration,
    /// Bytes of each stream's log at most.
    pub log_bytes: usize,
    /// Time within which an operation must be complete.
    pub stall_timeout: Duration,
    /// The streams, in the order of their numbers.
    pub streams: Vec<StreamSetup>,
    /// The RTSP server's part.
    pub server: ServerConfig,
}

/// The shard's UDP sockets.
#[derive(Clone)]
pub struct UdpSockets {
    /// Sends RTP.
    pub rtp: Datagram,
    /// Sends and receives RTCP.
    pub rtcp: Datagram,
}

/// A stream's multicast group, as one of the shards knows it. One shard sends, all count who receives.
#[derive(Clone)]
pub struct Group {
    /// The group, with the port of the first track's RTP; each track takes two.
    pub address: SocketAddr,
    /// Routers that a packet may pass.
    pub ttl: u8,
    /// Sessions of all shards that receive it.
    pub receivers: Arc<AtomicUsize>,
    /// The socket, in the shard that sends.
    pub socket: Option<Datagram>,
}

/// A connection that belongs to another shard's session.
pub struct Handover {
    /// Its place here, which is free from now on.
    pub token: Token,
    /// The connection.
    pub conn: Conn,
    /// The client.
    pub peer: SocketAddr,
    /// The shard that owns the session.
    pub shard: u16,
    /// What was read of it and not yet answered.
    pub unread: Bytes,
    /// Shards that it has been handed to after its first, this one among them.
    pub moves: u8,
}

/// Where a track stands, for clients that have nothing to get of it yet.
#[derive(Clone, Copy, Debug)]
struct Tail {
    next_seq: u16,
    clock: (Instant, u32),
}

struct Stream {
    /// It is no more; its number is not used again.
    removed: bool,
    start: Start,
    name: String,
    description: Option<Arc<Description>>,
    state: SourceState,
    log: Log,
    members: Vec<u32>,
    /// Where the next walk over the members starts, so that nobody is always last.
    rotate: usize,
    /// There are chunks that the members have not been offered yet.
    dirty: bool,
    tails: Vec<Option<Tail>>,
    /// The last sender report of each track.
    reports: Vec<Option<Arc<Chunk>>>,
    told_no_cached_start: bool,
    group: Option<Group>,
    /// The link that sends to the group.
    group_link: Option<u32>,
}

impl Stream {
    fn new(setup: &StreamSetup, age: Duration, log_bytes: usize) -> Stream {
        Stream {
            removed: false,
            start: setup.start,
            name: setup.name.clone(),
            description: None,
            state: SourceState::Connecting,
            log: Log::new(age, log_bytes),
            members: Vec::new(),
            rotate: 0,
            dirty: false,
            tails: Vec::new(),
            reports: Vec::new(),
            told_no_cached_start: false,
            group: None,
            group_link: None,
        }
    }
}

/// A shard without its thread.
pub struct Core<E: Egress> {
    age: Duration,
    log_bytes: usize,
    stall_timeout: Duration,
    egress: E,
    server: Server,
    udp: Option<UdpSockets>,
    links: Links,
    sessions: HashMap<SessionKey, u32>,
    streams: Vec<Stream>,
    /// Links that may have something to send, besides the members of dirty streams.
    ready: VecDeque<u32>,
    /// UDP links that wait for their next burst, and when that is due.
    paced: Vec<u32>,
    paced_until: Instant,
    put_off: put_off::PutOff,
    /// UDP clients that have sockets of their own.
    own_paths: usize,
    /// The shared UDP socket has refused a datagram since the last check.
    path_refused: bool,
    handovers: Vec<Handover>,
    /// What the control thread is to be told.
    outbox: Vec<ToControl>,
    /// Publishers' sessions that the control thread knows of.
    publishers: HashMap<SessionKey, (StreamId, Backlog)>,
    /// Whose connections were removed since the thread last asked.
    gone: Vec<SocketAddr>,
    /// The link that is being worked for.
    at: Option<u32>,
    /// Clients may ask for a fault, for tests.
    test_panics: bool,
    metrics: ShardMetrics,
    stopping: Option<Instant>,
    next_check: Option<Instant>,
    pieces: Vec<Piece>,
    completions: Vec<Completion>,
}

/// How often operations are looked at for `stall_timeout`.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// Time that clients get at a stop to take what is in flight.
const STOP_FLUSH: Duration = Duration::from_millis(500);

impl<E: Egress> Core<E> {
    /// A shard that serves the configured streams through `egress`, and UDP clients through `udp`.
    pub fn new(now: Instant, config: CoreConfig, egress: E, udp: Option<UdpSockets>) -> Self {
        let mut server = Server::new(config.server);
        let mut streams = Vec::new();
        for setup in &config.streams {
            assert_eq!(usize::from(setup.id.0), streams.len(), "streams come in the order of their numbers");
            server.set_stream(setup.id, &setup.name);
            server.set_published(setup.id, setup.published);
            server.set_on_demand(setup.id, setup.on_demand);
            streams.push(Stream::new(setup, config.age, config.log_bytes));
        }
        Core {
            age: config.age,
            log_bytes: config.log_bytes,
            stall_timeout: config.stall_timeout,
            egress,
            server,
            udp,
            links: Links::default(),
            sessions: HashMap::new(),
            streams,
            ready: VecDeque::new(),
            paced: Vec::new(),
            paced_until: now,
            put_off: put_off::PutOff::new(now),
            own_paths: 0,
            path_refused: false,
            handovers: Vec::new(),
            outbox: Vec::new(),
            publishers: HashMap::new(),
            gone: Vec::new(),
            at: None,
            test_panics: false,
            metrics: ShardMetrics::new(),
            stopping: None,
            next_check: None,
            pieces: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Offers a stream to a multicast group as well.
    pub fn set_group(&mut self, id: StreamId, group: Group) {
        self.server.set_multicast(id, group.address, group.ttl);
        self.streams[usize::from(id.0)].group = Some(group);
    }

    /// Counts no sends any more, for tests of what counting costs.
    pub fn stop_measuring(&mut self) {
        self.metrics.stop_measuring();
    }

    /// The egress, for the thread to wait on and for the tests to script.
    pub fn egress_mut(&mut self) -> &mut E {
        &mut self.egress
    }

    /// The counts.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// Connections and UDP clients there are.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Whether a stop was asked for and everything has been closed and joined.
    pub fn is_stopped(&self) -> bool {
        self.stopping.is_some() && self.links.is_empty() && self.egress.in_flight() == 0
    }

    /// Takes a connection in. `unread` is what another shard has read of it.
    pub fn connected(
        &mut self,
        now: Instant,
        conn: Conn,
        peer: SocketAddr,
        local: SocketAddr,
        unread: &[u8],
    ) -> Option<Token> {
        self.moved_in(now, conn, (peer, local), unread, 0)
    }

    /// Takes a connection in that has been handed to `moves` shards after its first, of the addresses given (its peer's and
    /// ours).
    pub fn moved_in(
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
        let kind = Kind::Tcp { conn, peer, answers: VecDeque::new(), answer_bytes: 0, moves };
        let token = self.add_link(kind);
        self.at = Some(token.slot);
        self.server.connected(now, ConnId(token.slot), peer, local);
        if is_secure {
            self.server.set_secure(ConnId(token.slot));
        }
        if !unread.is_empty() {
            self.server.input(now, ConnId(token.slot), unread);
        }
        self.process_events(now);
        Some(token)
    }

    /// Bytes were read from a connection.
    pub fn input(&mut self, now: Instant, token: Token, bytes: &[u8]) {
        if self.is_open(token) {
            self.at = Some(token.slot);
            if self.test_panics {
                self.panic_if_asked(now, token.slot, bytes);
            }
            self.server.input(now, ConnId(token.slot), bytes);
            self.process_events(now);
        }
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

    /// Whether the connection is one that requests are still read from.
    pub fn is_open(&self, token: Token) -> bool {
        self.link(token).is_some_and(|link| link.closing == Closing::No)
    }

    /// Whether the connection is a publisher's, which is worth large reads.
    pub fn publishes(&self, token: Token) -> bool {
        self.server.publishes(ConnId(token.slot))
    }

    /// Whether the link is still there, open or on its way to being closed.
    pub fn is_there(&self, token: Token) -> bool {
        self.link(token).is_some()
    }

    /// A datagram came to the RTCP socket.
    pub fn rtcp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let sender = self.server.sender_at(from);
        self.at = sender.and_then(|(key, conn)| self.sessions.get(&key).copied().or(conn.map(|conn| conn.0)));
        if let (true, Some(slot)) = (self.test_panics, self.at) {
            self.panic_if_asked(now, slot, bytes);
        }
        self.server.rtcp(now, from, bytes);
        self.process_events(now);
    }

    /// Connections that other shards are to have.
    pub fn take_handovers(&mut self) -> Vec<Handover> {
        std::mem::take(&mut self.handovers)
    }

    /// What the control thread is to be told, in order.
    pub fn take_outbox(&mut self) -> Vec<ToControl> {
        std::mem::take(&mut self.outbox)
    }

    /// Whose connections were closed since the last call, the ones handed over not among them.
    pub fn take_gone(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.gone)
    }

    /// A stream is new, or begins otherwise from now on.
    ///
    /// # Panics
    /// If a new one has not the next number.
    pub fn set_stream(&mut self, now: Instant, setup: &StreamSetup) {
        if let Some(stream) = self.streams.get_mut(usize::from(setup.id.0)) {
            stream.start = setup.start;
        } else {
            assert_eq!(usize::from(setup.id.0), self.streams.len(), "streams come in the order of their numbers");
            self.server.set_stream(setup.id, &setup.name);
            self.streams.push(Stream::new(setup, self.age, self.log_bytes));
        }
        self.server.set_published(setup.id, setup.published);
        self.server.set_on_demand(setup.id, setup.on_demand);
        if setup.on_demand.is_none() {
            self.server.set_asleep(now, setup.id, false);
        }
        self.process_events(now);
    }

    /// A stream is no more: its clients are ended, and whatever still comes for it is passed over.
    pub fn remove_stream(&mut self, now: Instant, id: StreamId) {
        let stream = &mut self.streams[usize::from(id.0)];
        stream.removed = true;
        for slot in stream.members.clone() {
            self.end_client(now, slot, EndReason::StreamRemoved);
        }
        self.end_receivers(now, id, EndReason::StreamRemoved);
        self.server.remove_stream(id);
        let stream = &mut self.streams[usize::from(id.0)];
        stream.group = None;
        stream.log.clear();
        self.process_events(now);
        self.metrics.remove_stream(id);
    }

    /// Other limits hold from now on.
    pub fn set_limits(&mut self, limits: ShardLimits) {
        (self.age, self.log_bytes, self.stall_timeout) = (limits.age, limits.log_bytes, limits.stall_timeout);
        for stream in &mut self.streams {
            stream.log.set_bounds(limits.age, limits.log_bytes);
        }
        let ShardLimits { session_timeout, handshake_timeout, clients_max, clients_per_address, .. } = limits;
        self.server.set_limits(session_timeout, handshake_timeout, clients_max, clients_per_address);
    }

    /// Who may do what from now on; sessions that their users may not have any more end.
    pub fn set_access(&mut self, now: Instant, access: Option<Arc<Access>>) {
        self.server.set_access(now, access);
        self.process_events(now);
    }

    /// Whether what comes for the stream is passed over.
    fn is_removed(&self, id: StreamId) -> bool {
        self.streams[usize::from(id.0)].removed
    }

    /// The next chunk of a stream.
    pub fn chunk(&mut self, now: Instant, id: StreamId, chunk: Arc<Chunk>) {
        if self.is_removed(id) {
            return;
        }
        let stream = &mut self.streams[usize::from(id.0)];
        let track = usize::from(chunk.track.0);
        if stream.tails.len() <= track {
            stream.tails.resize(track + 1, None);
            stream.reports.resize(track + 1, None);
        }
        match chunk.kind {
            ChunkKind::Report => stream.reports[track] = Some(Arc::clone(&chunk)),
            ChunkKind::Media => {
                let next_seq = chunk.first_seq.wrapping_add(chunk.packets.len() as u16);
                stream.tails[track] = Some(Tail { next_seq, clock: (chunk.arrival, chunk.rtp_time) });
            }
        }
        stream.dirty = true;
        if stream.log.append(chunk) == Appended::AfterGap {
            tracing::error!(stream = %stream.name, "the shard could not keep up: chunks were dropped before its log");
            for member in &stream.members {
                if let Some(playing) = &mut self.links[*member as usize].playing {
                    playing.player.restart(&stream.log, now);
                }
            }
        }
    }

    /// A chunk of the stream was refused by the shard's inbox.
    pub fn chunk_refused(&mut self, id: StreamId, frames: u64) {
        if !self.is_removed(id) {
            self.metrics.dropped(id, DropReason::InboxFull, frames);
        }
    }

    /// The stream's description, for the first time or changed.
    pub fn described(&mut self, now: Instant, id: StreamId, description: Arc<Description>) {
        if self.is_removed(id) {
            return;
        }
        let stream = &mut self.streams[usize::from(id.0)];
        let continues = stream.description.as_ref().is_none_or(|old| old.continues_as(&description));
        if !continues {
            stream.tails.clear();
            stream.reports.clear();
            let members = stream.members.clone();
            if !members.is_empty() {
                tracing::warn!(stream = %stream.name, clients = members.len(), "the source's tracks or codecs changed: its clients are ended");
            }
            for slot in members {
                self.end_client(now, slot, EndReason::SourceChanged);
            }
            self.end_receivers(now, id, EndReason::SourceChanged);
            let stream = &mut self.streams[usize::from(id.0)];
            stream.log.clear();
        }
        self.streams[usize::from(id.0)].log.describe(&description);
        self.streams[usize::from(id.0)].description = Some(Arc::clone(&description));
        self.open_group(now, id);
        self.server.set_description(id, Some(description));
        self.process_events(now);
    }

    /// The stream's source changed its state.
    pub fn source(&mut self, now: Instant, id: StreamId, state: SourceState) {
        self.streams[usize::from(id.0)].state = state;
        if !matches!(state, SourceState::Live | SourceState::Silent) {
            // Who comes now is not shown the last picture of a camera that has gone as if it were of now.
            self.streams[usize::from(id.0)].log.forget_keyframes();
            // A report of the session that is gone says nothing about the next one.
            self.streams[usize::from(id.0)].reports.fill(None);
        }
        match state {
            SourceState::Live => self.server.set_asleep(now, id, false),
            SourceState::Idle => {
                self.server.set_asleep(now, id, true);
                let stream = &mut self.streams[usize::from(id.0)];
                if stream.members.is_empty() {
                    // Who comes next is not to begin with a picture of long ago.
                    stream.log.clear();
                }
            }
            _ => {}
        }
        self.process_events(now);
    }

    /// Answers the reporter.
    pub fn report(&mut self, now: Instant, request: ReportRequest) {
        self.count_requests();
        let mut snapshot = self.metrics.snapshot();
        self.add_limited(&mut snapshot.limited);
        snapshot.egress = self.egress.stats();
        snapshot.sessions = self.server.sessions() as u64;
        snapshot.in_flight = self.egress.in_flight() as u64;
        for (slot, link) in self.links.iter() {
            if let Kind::Tcp { conn, .. } = &link.kind {
                snapshot.connections += 1;
                let published = (!self.publishers.is_empty()).then(|| self.server.published_in(ConnId(slot as u32)));
                if let Some(Some(stream)) = published {
                    let unread = conn.fd().and_then(|fd| crate::sys::unread_bytes(&fd).ok());
                    snapshot.stream_mut(stream).unread = unread.map(|bytes| bytes as u64);
                }
            }
            if let Some(playing) = &link.playing {
                let log = &self.streams[usize::from(playing.stream.0)].log;
                // Who has paused, or a group that nobody has joined, is not behind.
                let lag = if playing.paused { Duration::ZERO } else { playing.player.lag(log, now) };
                let stream = snapshot.stream_mut(playing.stream);
                stream.worst_lag = stream.worst_lag.max(lag);
                if request.clients {
                    snapshot.clients.push(self.client_snapshot(now, link, playing, lag));
                }
            }
        }
        for (id, stream) in (0u16..).zip(&self.streams).filter(|(_, stream)| !stream.removed) {
            snapshot.stream_mut(StreamId(id)).log_bytes = stream.log.bytes() as u64;
        }
        // A reporter that has gone meanwhile needs no answer.
        let _ = request.reply.send(snapshot);
    }

    /// Takes over what the RTSP server counts.
    fn count_requests(&mut self) {
        let counters = self.server.counters();
        let answers = |statuses: std::ops::Range<u16>| counters.answers.range(statuses).map(|(_, count)| count).sum();
        let closed = |wanted: fn(&CloseReason) -> bool| {
            counters.closed.iter().filter(|(reason, _)| wanted(reason)).map(|(_, count)| count).sum()
        };
        self.metrics.set(Counter::Requests, answers(100..600));
        self.metrics.set(Counter::RequestsFailed, answers(400..600));
        self.metrics.set(Counter::ClientsRefused, answers(453..454));
        self.metrics.set(Counter::AuthFailed, counters.auth_failed);
        self.metrics.set(Counter::AuthRefused, counters.auth_refused);
        self.metrics.set(Counter::HandshakeTimeouts, closed(|reason| *reason == CloseReason::Handshake));
        let malformed = |reason: &CloseReason| {
            matches!(reason, CloseReason::NotRtsp(_) | CloseReason::Malformed(_) | CloseReason::TooLarge(_))
        };
        self.metrics.set(Counter::Malformed, closed(malformed));
    }

    /// Finishes what is in flight and closes every client.
    pub fn stop(&mut self, now: Instant) {
        self.stopping = Some(now);
        for index in 0..self.streams.len() {
            self.end_receivers(now, StreamId(index as u16), EndReason::Stopping);
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

    /// Does what is due by `now`.
    pub fn timeout(&mut self, now: Instant) {
        if self.server.next_timeout().is_some_and(|at| at <= now) {
            self.server.timeout(now);
            self.process_events(now);
        }
        if self.paced_until <= now {
            for slot in std::mem::take(&mut self.paced) {
                if let Some(Kind::Udp { paced, .. }) = self.links.get_mut(slot as usize).map(|link| &mut link.kind) {
                    *paced = false;
                }
                self.wake(slot);
            }
        }
        self.send_again(now);
        if self.next_check.is_none_or(|at| at <= now) {
            let late = self.next_check.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
            self.next_check = Some(now + CHECK_EVERY);
            self.check_stalled(now, CHECK_EVERY + late);
            self.check_paths(now);
        }
    }

    /// When [`Core::timeout`] wants to be called; it may be called earlier.
    pub fn next_timeout(&self, now: Instant) -> Instant {
        let check = self.next_check.unwrap_or(now);
        let server = self.server.next_timeout().unwrap_or(check);
        let paced = if self.paced.is_empty() { check } else { self.paced_until };
        check.min(server).min(paced).min(self.put_off.due().unwrap_or(check))
    }

    /// Closes clients that have taken nothing for `stall_timeout`; `elapsed` is the time since the last look.
    fn check_stalled(&mut self, now: Instant, elapsed: Duration) {
        if self.stopping.is_none() && self.egress.is_refused() {
            // The time in which they could not be sent to is not theirs.
            for busy in self.links.iter_mut().filter_map(|(_, link)| link.busy.as_mut()) {
                *busy = now.min(*busy + elapsed);
            }
        }
        let flush_over = self.stopping.is_some_and(|since| now >= since + STOP_FLUSH);
        let mut late: SmallVec<[u32; 8]> = SmallVec::new();
        for (slot, link) in self.links.iter() {
            let Some(since) = link.busy else { continue };
            let stalled = now.saturating_duration_since(since) >= self.stall_timeout && !link.stalled;
            if stalled || (flush_over && link.closing != Closing::Join) {
                late.push(slot as u32);
            }
        }
        for slot in late {
            self.links[slot as usize].stalled = true;
            let link = &self.links[slot as usize];
            if self.stopping.is_none() {
                if let Some(playing) = &link.playing {
                    tracing::info!(
                        stream = %self.streams[usize::from(playing.stream.0)].name,
                        client = %playing.peer,
                        session = %playing.session,
                        next_seq = self.next_seq(now, slot),
                        bytes = link.op_bytes,
                        "the client took nothing for queue.stall_timeout: closed"
                    );
                }
                self.end_client(now, slot, EndReason::Stalled);
            }
            // The connection may have had answers under way alone, and its slot is about to be somebody else's.
            if let Some(Kind::Tcp { .. }) = self.links.get(slot as usize).map(|link| &link.kind) {
                self.server.disconnected(now, ConnId(slot));
            }
            self.close(slot, Closing::Join);
        }
        self.process_events(now);
    }
}

/// The reason that the counts know a session's end by.
fn leave_reason(reason: EndReason) -> LeaveReason {
    match reason {
        EndReason::Teardown => LeaveReason::Teardown,
        EndReason::Timeout => LeaveReason::SessionTimeout,
        EndReason::Disconnected => LeaveReason::Disconnected,
        EndReason::Closed | EndReason::TakenOver | EndReason::Silent => LeaveReason::Protocol,
        EndReason::Stalled => LeaveReason::Stalled,
        EndReason::SendFailed => LeaveReason::SendFailed,
        EndReason::SourceChanged | EndReason::Reconfigured => LeaveReason::SourceChanged,
        EndReason::StreamRemoved => LeaveReason::StreamRemoved,
        EndReason::Panicked => LeaveReason::Panicked,
        EndReason::Unauthorized => LeaveReason::Unauthorized,
        EndReason::Stopping => LeaveReason::Stopping,
        EndReason::Replaced => LeaveReason::Replaced,
    }
}
