//! The inputs and outputs of a server.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::burst::ShrinkIfSparse;
use crate::crowd::origin;
use crate::limits::{PUBLISHERS_BEYOND_PER_ADDRESS, publishers_beyond};
use crate::media::{SourceTrack, StreamId, TrackId};
use crate::metrics::Limited;
use crate::wire::rtcp::ReportBlock;
use crate::wire::rtsp::Fault;

/// The limit on sessions, over all shards. Updated when a session starts or ends, never by media.
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

    /// Sets the maximum from now on, in total and per address (`None`: no limit); existing sessions stay.
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

    /// What prevents one more session for this address from starting; publishers have places beyond the limits. If two shards ask at
    /// the same moment, both may get the last place, so the limit can be exceeded by one session per shard.
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
        let mut by_origin = self.by_origin();
        if let Entry::Occupied(mut has) = by_origin.entry(origin(ip)) {
            *has.get_mut() -= 1;
            if *has.get() == 0 {
                has.remove();
                by_origin.shrink_if_sparse();
            }
        }
    }

    fn by_origin(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Every change of it is complete.
        self.by_origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source of session ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionIds {
    /// The system's random numbers, which cannot be guessed.
    Random,
    /// A seed, so that a test is repeatable. Anyone who knows an id can compute the others.
    Seeded(u64),
}

impl SessionIds {
    /// Randomness that need not be secret.
    pub(super) fn lots(self) -> fastrand::Rng {
        match self {
            SessionIds::Random => fastrand::Rng::new(),
            SessionIds::Seeded(seed) => fastrand::Rng::with_seed(seed),
        }
    }
}

/// A connection, numbered by the shard. A number may be reused once its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

/// A session; the number that the client knows as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Transport of a track to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// Interleaved in the RTSP connection (RFC 2326 section 10.12).
    Interleaved {
        /// Channel of the RTP packets.
        rtp_channel: u8,
        /// Channel of the RTCP packets.
        rtcp_channel: u8,
    },
    /// As datagrams, to the address of the RTSP connection.
    Udp {
        /// Where RTP goes.
        rtp: SocketAddr,
        /// Where RTCP goes to, and comes from.
        rtcp: SocketAddr,
    },
    /// As datagrams to a group shared by all multicast sessions of the stream.
    Multicast {
        /// The group with the track's port; RTCP uses the next one.
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

/// The first packet that a client will receive of a track, for `RTP-Info`.
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
    /// No sign of life from the client for the session timeout.
    Timeout,
    /// The client closed the connection that carried it, or it failed.
    Disconnected,
    /// The server closed the connection that carried it; the [`CloseReason`] says why.
    Closed,
    /// The same address and ports were set up again, as a player does that restarts after a crash.
    Replaced,
    /// An operation did not complete within the stall timeout.
    Stalled,
    /// A send failed for a reason other than a closed connection.
    SendFailed,
    /// The source's tracks or codecs changed.
    SourceChanged,
    /// The stream was removed.
    StreamRemoved,
    /// A reload took away its user's right to the stream.
    Unauthorized,
    /// Another publisher took the stream over.
    TakenOver,
    /// A publisher sent nothing for the source timeout.
    Silent,
    /// A bug in the relay.
    Panicked,
    /// The stream that a publisher sends is no longer received: it has another source or other settings now, or the relay stops.
    Reconfigured,
    /// The relay is leaving, and disconnects its clients one after the other.
    Leaving,
    /// A user with the right to administer ended it.
    Asked,
    /// The relay stops.
    Stopping,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndReason::Teardown => "the client sent TEARDOWN",
            EndReason::Timeout => "no sign of life from the client for the session timeout",
            EndReason::Disconnected => "the client closed its connection",
            EndReason::Closed => "the relay had to close its connection",
            EndReason::Replaced => "the client set up the same ports again",
            EndReason::Stalled => "the client read too slowly for the stall timeout",
            EndReason::SendFailed => "a send to the client failed",
            EndReason::SourceChanged => "the source's tracks or codecs changed",
            EndReason::StreamRemoved => "the stream was removed",
            EndReason::Unauthorized => "its user lost the right to the stream",
            EndReason::TakenOver => "another publisher took the stream over",
            EndReason::Silent => "the publisher sent nothing for the source timeout",
            EndReason::Panicked => "a bug in the relay; the log has the location",
            EndReason::Reconfigured => "the stream's source was changed or stopped",
            EndReason::Leaving => "the relay is leaving",
            EndReason::Asked => "an administrator ended it",
            EndReason::Stopping => "the relay stops",
        })
    }
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// What it sends is not RTSP (TLS, HTTP, something binary).
    NotRtsp(Fault),
    /// A malformed request, after which the next one cannot be found.
    Malformed(Fault),
    /// A request over its limits.
    TooLarge(Fault),
    /// More requests than may wait.
    Flood,
    /// It had evicted for a new connection because it had no session.
    Crowded,
    /// No complete request within the handshake timeout.
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
            CloseReason::Flood => f.write_str("too many requests are waiting"),
            CloseReason::Crowded => f.write_str("evicted for a new connection because it had no session"),
            CloseReason::Handshake => f.write_str("no complete request within the handshake timeout"),
            CloseReason::Idle => f.write_str("no session and no request for the session timeout"),
            CloseReason::SessionEnded(reason) => reason.fmt(f),
        }
    }
}

/// A request for a name under a pattern that no stream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameWanted {
    /// The name.
    pub name: Arc<str>,
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether to publish it.
    pub publish: bool,
    /// The relays that the request has passed through.
    pub via: Arc<str>,
}

/// What the shard must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send these bytes before anything else on this connection.
    Answer {
        /// Its recipient.
        conn: ConnId,
        /// One whole RTSP response.
        bytes: Bytes,
    },
    /// The client wants media. The shard calls [`Server::start`](super::Server::start) or [`Server::refuse`](super::Server::refuse) at
    /// once; until then no further request of this connection is processed. Media follows the answer.
    Play {
        /// The session.
        session: SessionKey,
        /// The connection with the request, which also carries the media of interleaved tracks.
        conn: ConnId,
        /// What is played.
        stream: StreamId,
        /// Its tracks, in the order of their numbers.
        tracks: Vec<PlayTrack>,
        /// Whether it has played before (PLAY after PAUSE).
        resumed: bool,
    },
    /// A publisher wants to send. [`Server::recording`](super::Server::recording) or [`Server::refuse`](super::Server::refuse) answers
    /// it; until then no further request of its connection is processed.
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
        /// The track's index among those of the [`Event::Record`].
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
    /// The session has ended. Sent once for every session that had an [`Event::Play`] or [`Event::Record`], unless
    /// [`Server::end_session`](super::Server::end_session) ended it.
    End {
        /// The session.
        session: SessionKey,
        /// Why.
        reason: EndReason,
    },
    /// The first client wants an on-demand stream (with a session, or a request that waits for it), or the last one no longer does.
    Demand {
        /// The stream.
        stream: StreamId,
        /// Whether it is wanted.
        wanted: bool,
    },
    /// A request waits for a name under a pattern. [`Server::set_stream`](super::Server::set_stream) with
    /// [`Server::answer_named`](super::Server::answer_named) answers it, or [`Server::refuse_named`](super::Server::refuse_named), or
    /// it times out.
    Wanted(NameWanted),
    /// A stream whose source is down is requested. Sent at most once per [`ASKED_EVERY_S`](crate::limits::ASKED_EVERY_S).
    Asked {
        /// The stream.
        stream: StreamId,
    },
    /// A client's report about a track that it receives.
    ReceiverReport {
        /// The session.
        session: SessionKey,
        /// The track.
        track: TrackId,
        /// What it says.
        report: ReportBlock,
    },
    /// The connection requested another shard's session: hand it over after the pending answers have been sent. The server has already
    /// removed it.
    Move {
        /// Which connection.
        conn: ConnId,
        /// To which shard.
        shard: u16,
        /// Everything that was read and not answered, from the first byte of that request on.
        unread: Bytes,
    },
    /// Close the connection after the pending answers have been sent. The server has already removed it.
    Close {
        /// Which connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

impl Event {
    /// The connection that it concerns, if any.
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

/// Counts since startup.
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
    /// Requests refused without checking the credentials, because of earlier failures.
    pub auth_refused: u64,
    /// Connections handed to other shards.
    pub moved: u64,
    /// What exceeded a limit or was not asked for, by [`Limited`]; connections closed for it are counted only by their reason.
    pub limited: [u64; Limited::COUNT],
}

/// A session for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// The connection on which it was last used, while that is open.
    pub conn: Option<ConnId>,
    /// What it plays.
    pub stream: StreamId,
    /// The tracks that are set up.
    pub tracks: Vec<PlayTrack>,
    /// Whether it is playing now.
    pub playing: bool,
    /// The player's `User-Agent`, truncated to [`USER_AGENT_CHARS_MAX`](crate::limits::USER_AGENT_CHARS_MAX) characters.
    pub user_agent: Option<String>,
}
