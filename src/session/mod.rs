//! The RTSP server's sessions: a state machine without sockets or a clock. Bytes and time go in, answers and events come out.
//!
//! A shard has one [`Server`]. It tells the server of connections, of the bytes read from them and of the time, and after each
//! call takes the events with [`Server::poll_event`] until there are none, acting on them in their order.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::stream::{Description, StreamId, TrackId};
use crate::wire::rtcp::ReportBlock;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Number of this shard, below `shards`.
    pub shard: u16,
    /// Shards there are, at least 1. A session belongs to the shard that its id leaves as a remainder.
    pub shards: u16,
    /// Silence after which a session ends (only one over UDP, or one that is not playing).
    pub session_timeout: Duration,
    /// Time in which a connection must send its first whole request.
    pub handshake_timeout: Duration,
    /// Sessions of this shard at most; beyond them SETUP is answered 453.
    pub clients_max: usize,
    /// The shard's UDP ports for RTP and RTCP. `None`: UDP is answered 461.
    pub udp_ports: Option<(u16, u16)>,
    /// What the session ids are drawn from: random in the daemon, fixed in tests.
    pub seed: u64,
}

/// A connection, numbered by the shard. A number may be used again once its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

/// A session; the very number that the client knows it by, in 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

impl std::fmt::Display for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a track gets to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Interleaved in the control connection (RFC 2326 section 10.12).
    Interleaved {
        /// Channel of the RTP packets.
        rtp_channel: u8,
        /// Channel of the RTCP packets.
        rtcp_channel: u8,
    },
    /// As datagrams, to the address of the control connection.
    Udp {
        /// Where RTP goes.
        rtp: SocketAddr,
        /// Where RTCP goes, and comes from.
        rtcp: SocketAddr,
    },
}

/// A track that a session plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlayTrack {
    /// Which.
    pub track: TrackId,
    /// How it is delivered.
    pub delivery: Delivery,
}

/// The first packet that a client will get of a track, for `RTP-Info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstPacket {
    /// Which track.
    pub track: TrackId,
    /// Its sequence number.
    pub seq: u16,
    /// Its RTP timestamp.
    pub rtp_time: u32,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndReason {
    /// The client said TEARDOWN.
    Teardown,
    /// Nothing was heard of the client for the session timeout.
    Timeout,
    /// The connection that carried it was closed by the client, or broke.
    Disconnected,
    /// The server closed the connection that carried it; the [`CloseReason`] tells why.
    Closed,
    /// An operation was not complete within the stall timeout.
    Stalled,
    /// The source's tracks or codecs changed.
    SourceChanged,
    /// The relay stops.
    Stopping,
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// What it sends is not RTSP (TLS, HTTP, something binary).
    NotRtsp,
    /// A request that cannot be understood, so that the next one cannot be found.
    Malformed,
    /// A request over its limits.
    TooLarge,
    /// No whole request within the handshake timeout.
    Handshake,
    /// It has no session and was silent for the session timeout.
    Idle,
    /// The session that it carried has ended.
    SessionEnded(EndReason),
}

/// What the shard has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send these bytes before anything else that this connection is sent from now on.
    Answer {
        /// To whom.
        conn: ConnId,
        /// One whole RTSP response.
        bytes: Bytes,
    },
    /// The client wants media. The shard calls [`Server::start`] or [`Server::refuse`], at once: until then no further request
    /// of this connection is looked at. Media follows the answer that comes of it.
    Play {
        /// The session.
        session: SessionKey,
        /// The connection that asked; the one that carries the media of interleaved tracks.
        conn: ConnId,
        /// What is played.
        stream: StreamId,
        /// Its tracks, in the order of their numbers.
        tracks: Vec<PlayTrack>,
        /// Whether it has played before (PLAY after PAUSE).
        resumed: bool,
    },
    /// No media until the next [`Event::Play`] of this session.
    Pause {
        /// The session.
        session: SessionKey,
    },
    /// The session is gone. Comes once for every session that an [`Event::Play`] came for, unless [`Server::end_session`] ended it.
    End {
        /// The session.
        session: SessionKey,
        /// Why.
        reason: EndReason,
    },
    /// A client's report on a track that it receives.
    ReceiverReport {
        /// The session.
        session: SessionKey,
        /// The track.
        track: TrackId,
        /// What it says.
        report: ReportBlock,
    },
    /// The connection asked for another shard's session: hand it over, after what was answered has been sent. The server has
    /// forgotten it.
    Move {
        /// Which connection.
        conn: ConnId,
        /// To which shard.
        shard: u16,
        /// Everything that was read and not answered, from the first byte of that request.
        unread: Bytes,
    },
    /// Close the connection after what was answered has been sent. The server has forgotten it.
    Close {
        /// Which connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

/// What has been counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Whole requests read.
    pub requests: u64,
    /// Answers by status code.
    pub answers: BTreeMap<u16, u64>,
    /// Sessions made.
    pub sessions: u64,
    /// Sessions ended, by reason.
    pub ended: BTreeMap<EndReason, u64>,
    /// Connections that the server closed, by reason.
    pub closed: BTreeMap<CloseReason, u64>,
    /// Connections handed to other shards.
    pub moved: u64,
    /// Interleaved frames from clients on channels that are no track's RTCP, dropped.
    pub frames_unasked: u64,
    /// RTCP packets that could not be read, dropped.
    pub rtcp_malformed: u64,
    /// RTCP datagrams from addresses that have no session, dropped.
    pub rtcp_unasked: u64,
}

/// A session as the status page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// The connection that it was last heard on, while open.
    pub conn: Option<ConnId>,
    /// What it plays.
    pub stream: StreamId,
    /// The tracks that are set up.
    pub tracks: Vec<PlayTrack>,
    /// Whether it is playing now.
    pub playing: bool,
    /// The player's name for itself, at most 128 characters.
    pub user_agent: Option<String>,
}

/// The RTSP server of one shard.
pub struct Server {
    #[allow(dead_code)] // Until the state machine reads it.
    config: ServerConfig,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Server {
    /// A server without streams.
    ///
    /// # Panics
    /// If `config.shard` is not below `config.shards`.
    pub fn new(config: ServerConfig) -> Self {
        assert!(config.shard < config.shards, "shard {} of {}", config.shard, config.shards);
        Server { config, events: VecDeque::new(), counters: Counters::default() }
    }

    /// Makes a stream known by its name. A single stream is served at the root as well.
    pub fn set_stream(&mut self, _id: StreamId, _name: &str) {}

    /// Sets what a stream consists of; `None` for one that has never been up, which is answered 503.
    ///
    /// Sessions that cannot go on with it ([`Description::continues_as`]) and do not play end; those that play are for the
    /// shard to end, with a BYE and [`Server::end_session`].
    pub fn set_description(&mut self, _id: StreamId, _description: Option<Arc<Description>>) {}

    /// A connection was accepted, or handed over by another shard.
    pub fn connected(&mut self, _now: Instant, _conn: ConnId, _peer: SocketAddr, _local: SocketAddr) {}

    /// Bytes were read from a connection.
    pub fn input(&mut self, _now: Instant, _conn: ConnId, _bytes: &[u8]) {}

    /// A connection is gone. Its interleaved session ends, its UDP sessions live on.
    pub fn disconnected(&mut self, _now: Instant, _conn: ConnId) {}

    /// A datagram came to the shard's RTCP socket.
    pub fn rtcp(&mut self, _now: Instant, _from: SocketAddr, _bytes: &[u8]) {}

    /// Ends what has timed out by `now`.
    pub fn timeout(&mut self, _now: Instant) {}

    /// When [`Server::timeout`] wants to be called; it may be called earlier.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Answers an [`Event::Play`]: the media goes, beginning with these packets.
    ///
    /// A track that is not in `first` is told with its first sequence number and its time of now. A session that has ended
    /// meanwhile is passed over.
    pub fn start(&mut self, _now: Instant, _session: SessionKey, _first: &[FirstPacket]) {}

    /// Answers an [`Event::Play`] with an error, 400 to 599. The session stays as it was.
    pub fn refuse(&mut self, _now: Instant, _session: SessionKey, _status: u16) {}

    /// The shard ends a session. If its connection is open, an [`Event::Close`] follows.
    pub fn end_session(&mut self, _now: Instant, _session: SessionKey, _reason: EndReason) {}

    /// The sessions there are.
    pub fn sessions(&self) -> usize {
        0
    }

    /// A session, for the status page.
    pub fn session_info(&self, _session: SessionKey) -> Option<SessionInfo> {
        None
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
