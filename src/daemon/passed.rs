//! What passes from one process to another in an upgrade, as both sides see it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::watch;

use super::carriers::Carriers;
use crate::config::{SourceKind, StreamConfig};
use crate::egress::{IoKind, Valve};
use crate::shard::inbox::ShardSender;
use crate::upgrade::Purpose;

/// The home shards of streams, by name.
pub(super) type HomesByName = HashMap<String, u16>;

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
    /// The processes that carry TLS connections for this one.
    pub carriers: Carriers,
}

impl Passing {
    /// Everything is open; the program is not known yet.
    pub(super) fn new(io: IoKind, listening: Vec<Listening>, shards: Rc<[ShardSender]>) -> Passing {
        let carriers = Carriers::new(shards);
        Passing { io, program: None, listening, valve: Valve::default(), ending: Rc::default(), carriers }
    }
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
