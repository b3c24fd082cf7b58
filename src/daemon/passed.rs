//! What passes from one process to another in an upgrade, as both sides see it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::watch;

use super::attempt::Attempt;
use super::carriers::Carriers;
use super::failure::Failure;
use super::signals::Asked;
use crate::config::{Config, SourceKind, StreamConfig, added};
use crate::egress::{IoKind, Valve};
use crate::media::name::longest;
use crate::shard::inbox::ShardSender;
use crate::shard::types::SocketFds;
use crate::upgrade::{Origin, Purpose, StreamKnown};

/// The home shards of streams, by name.
pub(super) type HomesByName = HashMap<String, u16>;

/// What the shards of another process are continued with.
pub(super) struct Before {
    /// The homes of its streams.
    pub homes: HomesByName,
    /// Its UDP sockets, by shard.
    pub sockets: Vec<SocketFds>,
}

impl Before {
    /// The shard that sends to a stream's multicast group.
    pub(super) fn group_sender(&self, stream: &str) -> Option<u16> {
        let sends = |sockets: &SocketFds| sockets.groups.iter().any(|(name, ..)| name == stream);
        self.sockets.iter().position(sends).map(|shard| shard as u16)
    }
}

/// A listening socket, for another process.
pub(super) struct Listening {
    pub purpose: Purpose,
    pub address: SocketAddr,
    pub socket: OwnedFd,
}

/// What an upgrade needs of a running relay.
pub(super) struct Passing {
    /// How its shards send.
    pub io: IoKind,
    /// The program to start.
    pub program: Option<PathBuf>,
    /// The listening sockets.
    pub listening: Vec<Listening>,
    /// Stops accepting.
    pub valve: Valve,
    /// Ends HTTP connections, each of which has a receiver.
    pub ending: Rc<watch::Sender<bool>>,
    /// The upgrade that has begun.
    pub attempt: Option<Attempt>,
    /// The processes that carry TLS connections for this one.
    pub carriers: Carriers,
}

impl Passing {
    /// Everything is open; the program is not known yet.
    pub(super) fn new(io: IoKind, listening: Vec<Listening>, shards: Rc<[ShardSender]>) -> Passing {
        let (valve, ending) = (Valve::default(), Rc::default());
        Passing { io, program: None, listening, valve, ending, attempt: None, carriers: Carriers::new(shards) }
    }
}

/// How an upgrade has ended.
pub(super) enum Finished {
    /// The other process serves, at the other end of this; this one carries TLS connections on for it, and does nothing else.
    Carrying(UnixStream),
    /// This process goes on, and was asked for this meanwhile.
    GoesOn(Vec<Asked>),
}

/// A source, as two processes compare it.
pub(super) fn source_text(stream: &StreamConfig) -> String {
    match &stream.source {
        SourceKind::Test => "test".into(),
        SourceKind::Publisher { .. } => "publish".into(),
        SourceKind::Cameras(cameras) => {
            cameras.iter().map(|camera| camera.url().to_string()).collect::<Vec<_>>().join(" ")
        }
    }
}

/// The stream as a relay with this configuration continues it; `None` if its source would be another.
pub(super) fn continued(config: &Config, known: &StreamKnown) -> Option<StreamConfig> {
    let stream = match config.streams.iter().find(|stream| stream.name == known.name) {
        Some(configured) => configured.clone(),
        None => match known.origin.as_ref()? {
            Origin::Added(keys) => added::read(&known.name, keys).ok()?.config,
            Origin::Made(_) => longest(&config.patterns, |one| &one.pattern, &known.name)?.stream(&known.name)?,
        },
    };
    (source_text(&stream) == known.source).then_some(stream)
}

/// Whether a relay with this configuration continues all of these.
///
/// # Errors
/// Which ones it does not, and the cure.
pub(super) fn check_streams(config: &Config, known: &[StreamKnown]) -> Result<(), Failure> {
    let others = known.iter().filter(|known| continued(config, known).is_none());
    let others: Vec<&str> = others.map(|known| known.name.as_str()).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the configuration has other streams than the running relay, or other sources for them ({}); reload it first (SIGHUP)",
        others.join(", ")
    )
    .into())
}
