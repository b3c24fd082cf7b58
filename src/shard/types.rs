//! A shard's parameters, inputs and outputs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::access::User;
use crate::egress::{Conn, Datagram, Token};
use crate::media::StreamId;
use crate::media::rendering::fmp4::Clock;
use crate::session::ServerConfig;
use crate::source::publisher::PublisherRules;
use crate::source::spec::SourceSpec;
use crate::testing::Testing;

/// Where a new client starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the last keyframe in the log: a picture at once.
    Cached,
    /// At the next keyframe: the least latency.
    Live,
}

/// A stream, for a shard.
#[derive(Clone, Debug)]
pub struct StreamSetup {
    /// Its number.
    pub id: StreamId,
    /// The shard that runs its source.
    pub home: u16,
    /// The name it is served under.
    pub name: String,
    /// Where new clients begin.
    pub start: Start,
    /// Whether it is published to the relay.
    pub published: bool,
    /// Whether it was made by name or added, and is not written down.
    pub made: bool,
    /// For a stream that is pulled on demand: how long requests wait for it to come up.
    pub on_demand: Option<Duration>,
    /// For a pulled stream: how long requests wait for it while it has never been up.
    pub first_wait: Option<Duration>,
}

#[cfg(feature = "testing")]
impl StreamSetup {
    /// A configured stream of the first shard, for tests.
    pub fn plain(id: StreamId, name: impl Into<String>, start: Start) -> StreamSetup {
        let (name, home) = (name.into(), 0);
        StreamSetup { id, home, name, start, published: false, made: false, on_demand: None, first_wait: None }
    }
}

/// Settings that may change while a shard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// Lag at which a client skips to a keyframe.
    pub age: Duration,
    /// Maximum size of each stream's log in bytes.
    pub log_bytes: usize,
    /// Maximum time for an operation.
    pub stall_timeout: Duration,
    /// Silence after which a session ends.
    pub session_timeout: Duration,
    /// Time within which a connection must send its first complete request.
    pub handshake_timeout: Duration,
    /// Maximum number of sessions, over all shards.
    pub clients_max: usize,
    /// Maximum number of sessions per address; `None` for no limit.
    pub clients_per_address: Option<usize>,
}

/// The parameters of a shard's core.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Lag at which a client skips to a keyframe.
    pub age: Duration,
    /// Maximum size of each stream's log in bytes.
    pub log_bytes: usize,
    /// Maximum time for an operation.
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

/// A shard's UDP sockets as descriptors: for another process, or from one.
#[derive(Debug, Default)]
pub struct SocketFds {
    /// For RTP and for RTCP.
    pub pair: Option<(OwnedFd, OwnedFd)>,
    /// The multicast groups that the shard sends to: the streams' names, the groups and the sockets.
    pub groups: Vec<(String, SocketAddr, OwnedFd)>,
}

impl SocketFds {
    /// Further descriptors of the same sockets.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn try_clone(&self) -> io::Result<SocketFds> {
        let pair = self.pair.as_ref().map(|(rtp, rtcp)| Ok::<_, io::Error>((rtp.try_clone()?, rtcp.try_clone()?)));
        let groups = self.groups.iter().map(|(name, group, socket)| Ok((name.clone(), *group, socket.try_clone()?)));
        Ok(SocketFds { pair: pair.transpose()?, groups: groups.collect::<io::Result<_>>()? })
    }
}

/// A stream's multicast group, for one of the shards. One shard sends, all count receivers.
#[derive(Clone)]
pub struct Group {
    /// The group, with the port of the first track's RTP; each track takes two.
    pub address: SocketAddr,
    /// The number of routers that a packet may pass.
    pub ttl: u8,
    /// Receivers, over all shards.
    pub receivers: Arc<AtomicUsize>,
    /// The socket, on the shard that sends.
    pub socket: Option<Datagram>,
}

/// A connection that belongs to another shard's session.
pub struct Handover {
    /// Its slot here, which is free from now on.
    pub token: Token,
    /// The connection.
    pub conn: Conn,
    /// The client.
    pub peer: SocketAddr,
    /// The shard that owns the session.
    pub shard: u16,
    /// What was read from it and not answered.
    pub unread: Bytes,
    /// How often it has been moved, including this time.
    pub moves: u8,
}

/// A connection that is closed only on this side: what its client still sends is read for a short time and discarded. If it were closed
/// with unread data, it would be reset, and the client would lose the last data sent to it (RFC 9112 section 9.6 describes the same for
/// HTTP).
pub struct Lingering {
    /// Its former slot; the next connection there has another generation.
    pub token: Token,
    /// The connection.
    pub conn: Conn,
    /// The client.
    pub peer: SocketAddr,
}

/// A client that the HTTP server has answered with 101.
#[derive(Clone, Debug)]
pub struct WebClient {
    /// What it watches.
    pub stream: StreamId,
    /// Whether it wants sound.
    pub sound: bool,
    /// Its user, if users are configured.
    pub user: Option<Arc<User>>,
    /// The browser's `User-Agent`.
    pub user_agent: Option<String>,
    /// The relay's clock, the same for all.
    pub clock: Clock,
    /// When its login or link expires, if it does.
    pub expires: Option<Instant>,
}

/// A keyframe as a separate file.
#[derive(Clone, Debug)]
pub struct Still {
    /// Its number in the stream.
    pub number: u64,
    /// The MIME type.
    pub mime: String,
    /// The file.
    pub bytes: Bytes,
}

/// A source to run, for the first time or in place of the stream's previous one.
#[derive(Debug)]
pub struct Hosting {
    /// The stream.
    pub stream: StreamId,
    /// The stream, if the shard does not know it yet, so that a publisher that uses it immediately finds its source.
    pub setup: Option<StreamSetup>,
    /// The source.
    pub spec: SourceSpec,
    /// How publishers of the stream are treated, if it is published.
    pub rules: watch::Receiver<PublisherRules>,
    /// Tells it when to end.
    pub stop: watch::Receiver<bool>,
    /// Dropped when it has ended.
    pub ended: oneshot::Sender<()>,
    /// What tests ask for.
    pub testing: Testing,
}
