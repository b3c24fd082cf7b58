//! A shard as plain data, and the messages of a hand-over to another process.
//!
//! A shard is frozen ([`Freezing`]), then either saved ([`Saving`]) or thawed. In the other process a shard is started frozen, and is
//! given the state of the shard with the same number ([`Restoring`]) before it serves.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::core::{CoreState, Uncarried};
use crate::source::saved::SavedSource;

/// A shard as plain data, without its descriptors.
#[derive(Clone, Serialize, Deserialize)]
pub struct ShardState {
    pub(super) core: CoreState,
    /// The sources that it runs, with their streams' names.
    pub(super) sources: Vec<(String, SavedSource)>,
}

impl ShardState {
    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, mut each: impl FnMut(&mut Bytes)) {
        self.core.each_bytes(&mut each);
    }

    /// How many descriptors belong to it: first its clients', then its sources'.
    pub fn descriptors(&self) -> usize {
        self.core.descriptors() + self.sources.iter().filter(|(_, source)| source.is_connected()).count()
    }

    /// The addresses of its connections' clients.
    pub fn peers(&self) -> impl Iterator<Item = std::net::SocketAddr> + '_ {
        self.core.peers()
    }
}

/// A step of a hand-over.
pub enum HandOver {
    /// What cannot be handed over?
    Survey(oneshot::Sender<Uncarried>),
    /// Send and read nothing from now on.
    Freeze(Freezing),
    /// Send and read again.
    Thaw,
    /// Save the frozen shard.
    Save(Saving),
    /// Restore another process's shard into this one, which was started frozen.
    Restore(Restoring),
    /// Serve: the other process has ended.
    GoOn,
    /// End without a word to anybody: the other process serves.
    End,
}

/// A shard is to send and read nothing.
pub struct Freezing {
    /// What saved times are to be relative to.
    pub reference: Instant,
    /// Answered when everything is at rest: how many messages for other shards there were since the last answer.
    pub reply: oneshot::Sender<usize>,
}

/// Where a saved shard goes, with its descriptors.
pub type Carrier = Box<dyn FnOnce(ShardState, &[BorrowedFd<'_>]) -> io::Result<()> + Send>;

/// A frozen shard is to be saved.
pub struct Saving {
    /// What times are relative to.
    pub reference: Instant,
    /// Where it goes.
    pub carrier: Carrier,
    /// How many clients it had, or why it was not saved.
    pub reply: oneshot::Sender<Result<SavedClients, String>>,
}

/// How many clients were saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedClients {
    /// All.
    pub all: usize,
    /// Those over TLS whose keys this process has.
    pub carried: usize,
}

/// A shard's state from another process.
pub struct Restoring {
    /// What its times are relative to.
    pub reference: Instant,
    /// The state.
    pub state: ShardState,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// Answered when it is restored, or why it cannot be.
    pub reply: oneshot::Sender<Result<(), String>>,
}

impl Uncarried {
    /// Adds another shard's.
    pub fn add(&mut self, other: Uncarried) {
        self.udp += other.udp;
        self.web += other.web;
        self.multicast.extend(other.multicast);
        self.multicast.sort();
        self.multicast.dedup();
        self.cameras.extend(other.cameras);
    }

    /// What there is, for a sentence; `None` if there is nothing.
    pub fn told(&self) -> Option<String> {
        let mut told = Vec::new();
        for (count, what) in [(self.udp, "sessions over UDP"), (self.web, "browsers' WebSockets")] {
            if count > 0 {
                told.push(format!("{what}: {count}"));
            }
        }
        if !self.multicast.is_empty() {
            told.push(format!("streams with a multicast group: {}", self.multicast.join(", ")));
        }
        if !self.cameras.is_empty() {
            let cameras: Vec<_> = self.cameras.iter().map(|(stream, how)| format!("{stream} ({how})")).collect();
            told.push(format!("cameras' sessions: {}", cameras.join(", ")));
        }
        (!told.is_empty()).then(|| told.join("; "))
    }
}
