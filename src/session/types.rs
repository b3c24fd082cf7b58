//! What goes into a server and comes out of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::ports::OwnPorts;
use crate::crowd::origin;
use crate::limits::{PUBLISHERS_BEYOND_PER_ADDRESS, publishers_beyond};
use crate::metrics::Limited;
use crate::source::pipeline::SourceTrack;
use crate::stream::{StreamId, TrackId};
use crate::wire::rtcp::ReportBlock;
use crate::wire::rtsp::Fault;

/// How many sessions there may be, counted over all shards. Touched when a session begins or ends, never by media.
#[derive(Debug)]
pub struct SessionLimit {
    max: AtomicUsize,
    per_address_max: AtomicUsize,
    open: AtomicUsize,
    /// Sessions by [`origin`].
    by_origin: Mutex<HashMap<IpAddr, usize>>,
}

impl SessionLimit {
    /// At most `max` sessions.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(SessionLimit {
            max: AtomicUsize::new(max),
            per_address_max: AtomicUsize::new(usize::MAX),
            open: AtomicUsize::new(0),
            by_origin: Mutex::default(),
        })
    }

    /// Sets how many there may be from now on, and how many of one address (`None`: as many as there may be); those there are
    /// stay.
    pub fn set_max(&self, max: usize, per_address_max: Option<usize>) {
        self.max.store(max, Ordering::Relaxed);
        self.per_address_max.store(per_address_max.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Sessions there may be.
    pub(super) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Sessions there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// What keeps one more of this address from beginning now; a publisher has places of its own beyond the limits. Two shards that
    /// ask at the same moment may both be told that nothing does for the last place: the bounds are one session a shard soft.
    pub(super) fn reached(&self, ip: IpAddr, publishes: bool) -> Option<Limited> {
        let max = self.max();
        let beyond = if publishes { (publishers_beyond(max), PUBLISHERS_BEYOND_PER_ADDRESS) } else { (0, 0) };
        if self.open() >= max.saturating_add(beyond.0) {
            return Some(Limited::Sessions);
        }
        let has = self.by_origin().get(&origin(ip)).copied().unwrap_or(0);
        let of_address = self.per_address_max.load(Ordering::Relaxed).saturating_add(beyond.1);
        (has >= of_address).then_some(Limited::SessionsPerAddress)
    }

    pub(super) fn begun(&self, ip: IpAddr) {
        self.open.fetch_add(1, Ordering::Relaxed);
        *self.by_origin().entry(origin(ip)).or_default() += 1;
    }

    pub(super) fn ended(&self, ip: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut has) = self.by_origin().entry(origin(ip)) {
            *has.get_mut() -= 1;
            if *has.get() == 0 {
                has.remove();
            }
        }
    }

    fn by_origin(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Every change of it is whole.
        self.by_origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    /// The sessions that all shards may have together; beyond them SETUP is answered 453.
    pub limit: Arc<SessionLimit>,
    /// The shard's UDP ports for RTP and RTCP. `None`: UDP is answered 461.
    pub udp_ports: Option<(u16, u16)>,
    /// What all shards know of UDP ports; with `None` it knows its own alone.
    pub own_ports: Option<Arc<OwnPorts>>,
    /// What the session ids are drawn from.
    pub ids: SessionIds,
}

/// What session ids are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionIds {
    /// The system's random numbers: nobody can guess one.
    Random,
    /// A seed, so that a test can be run again. Whoever knows an id can tell the others.
    Seeded(u64),
}

/// A connection, numbered by the shard. A number may be used again once its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

/// A session; the very number that the client knows it by, in 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// As datagrams to a group that all multicast sessions of the stream share.
    Multicast {
        /// The group with the track's port; RTCP goes to the next one.
        rtp: SocketAddr,
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
    /// The same address and ports were set up anew, as a player does that starts again after a crash.
    Replaced,
    /// An operation was not complete within the stall timeout.
    Stalled,
    /// A send to it failed, and not because its connection broke.
    SendFailed,
    /// The source's tracks or codecs changed.
    SourceChanged,
    /// The stream is no more: it was taken out of the configuration.
    StreamRemoved,
    /// Its user may not have it any more, by a configuration that was read again.
    Unauthorized,
    /// Another publisher took the stream over.
    TakenOver,
    /// A publisher sent nothing for the source timeout.
    Silent,
    /// The relay's own code failed at it.
    Panicked,
    /// The stream that a publisher sends is received no more: it has another source or other settings now, or the relay stops.
    Reconfigured,
    /// The relay stops.
    Stopping,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndReason::Teardown => "the client said TEARDOWN",
            EndReason::Timeout => "nothing was heard of the client for the session timeout",
            EndReason::Disconnected => "the client closed its connection",
            EndReason::Closed => "its connection had to be closed",
            EndReason::Replaced => "the client set up the same ports anew",
            EndReason::Stalled => "the client read too slowly for the stall timeout",
            EndReason::SendFailed => "a send to the client failed",
            EndReason::SourceChanged => "the source's tracks or codecs changed",
            EndReason::StreamRemoved => "the stream was removed",
            EndReason::Unauthorized => "its user may not have it any more",
            EndReason::TakenOver => "another publisher took the stream over",
            EndReason::Silent => "the publisher sent nothing for the source timeout",
            EndReason::Panicked => "a fault of the relay's own; the log says where",
            EndReason::Reconfigured => "the stream's source was changed or stopped",
            EndReason::Stopping => "the relay stops",
        })
    }
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// What it sends is not RTSP (TLS, HTTP, something binary).
    NotRtsp(Fault),
    /// A request that cannot be understood, so that the next one cannot be found.
    Malformed(Fault),
    /// A request over its limits.
    TooLarge(Fault),
    /// More requests than may wait for their turn.
    Flood,
    /// It had no session, and others want to connect.
    Crowded,
    /// No whole request within the handshake timeout.
    Handshake,
    /// It has no session and was silent for the session timeout.
    Idle,
    /// The session that it carried has ended.
    SessionEnded(EndReason),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::NotRtsp(fault) | CloseReason::Malformed(fault) | CloseReason::TooLarge(fault) => fault.fmt(f),
            CloseReason::Flood => f.write_str("too many requests wait for their turn"),
            CloseReason::Crowded => f.write_str("no session, and others want to connect"),
            CloseReason::Handshake => f.write_str("no whole request within the handshake timeout"),
            CloseReason::Idle => f.write_str("no session and no request for the session timeout"),
            CloseReason::SessionEnded(reason) => reason.fmt(f),
        }
    }
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
    /// The client wants media. The shard calls [`Server::start`](super::Server::start) or
    /// [`Server::refuse`](super::Server::refuse), at once: until then no further request of this connection is looked
    /// at. Media follows the answer that comes of it.
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
    /// A publisher wants to send. [`Server::recording`](super::Server::recording) or
    /// [`Server::refuse`](super::Server::refuse) answers it; until then no further request of its connection is looked at.
    Record {
        /// The session.
        session: SessionKey,
        /// Its connection.
        conn: ConnId,
        /// What is published.
        stream: StreamId,
        /// The publisher.
        peer: SocketAddr,
        /// The tracks that are set up, in the order of their numbers.
        tracks: Vec<SourceTrack>,
    },
    /// Something that a publisher sent, after it was allowed to.
    Published {
        /// The session.
        session: SessionKey,
        /// What is published.
        stream: StreamId,
        /// The track's place among those of the [`Event::Record`].
        track: TrackId,
        /// Whether it is RTCP.
        rtcp: bool,
        /// The packet.
        packet: Bytes,
    },
    /// No media until the next [`Event::Play`] of this session.
    Pause {
        /// The session.
        session: SessionKey,
    },
    /// The session is gone. Comes once for every session that an [`Event::Play`] or [`Event::Record`] came for, unless
    /// [`Server::end_session`](super::Server::end_session) ended it.
    End {
        /// The session.
        session: SessionKey,
        /// Why.
        reason: EndReason,
    },
    /// The first client wants an on-demand stream (a session of it, or a request that waits for it), or the last one
    /// does no more.
    Demand {
        /// The stream.
        stream: StreamId,
        /// Whether it is wanted.
        wanted: bool,
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
    /// The connection asked for another shard's session: hand it over, after what was answered has been sent. The
    /// server has forgotten it.
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

impl Event {
    /// The connection that it is about, if it names one.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            Event::Answer { conn, .. }
            | Event::Play { conn, .. }
            | Event::Record { conn, .. }
            | Event::Move { conn, .. }
            | Event::Close { conn, .. } => Some(*conn),
            _ => None,
        }
    }
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
    /// Requests with wrong credentials.
    pub auth_failed: u64,
    /// Requests refused unseen because their address had failed too often.
    pub auth_refused: u64,
    /// Connections handed to other shards.
    pub moved: u64,
    /// What passed a limit or was not asked for, by [`Limited`]; connections closed for it are counted by their reason alone.
    pub limited: [u64; Limited::COUNT],
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
