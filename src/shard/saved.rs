//! A shard as plain data, and the messages of a hand-over to another process.
//!
//! A shard is frozen ([`Freezing`]), then either saved ([`Saving`]) or thawed. In the other process a shard is started frozen, and is
//! given the state of the shard with the same number ([`Restoring`]) before it serves.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::core::{CopiedLog, CopiedLogs, CoreState, KeptLogs, SentLogs};
use super::turn::Turn;
use super::types::SocketFds;
use crate::media::chunk::ChunkState;
use crate::media::copied::Kept;
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
        self.sources.iter_mut().for_each(|(_, source)| source.each_bytes(&mut each));
    }

    /// Puts the logs' chunks with those that came before; times are relative to `reference`.
    pub fn keep(&mut self, reference: Instant, kept: &mut KeptLogs) {
        self.core.keep(reference, kept);
    }

    /// How many descriptors belong to it: first its clients', then its sources'.
    pub fn descriptors(&self) -> usize {
        self.core.descriptors() + self.sources.iter().map(|(_, source)| source.descriptors()).sum::<usize>()
    }

    /// The addresses of its connections' clients.
    pub fn peers(&self) -> impl Iterator<Item = std::net::SocketAddr> + '_ {
        self.core.peers()
    }
}

/// Chunks of a stream's log, which are copied before the freeze.
#[derive(Clone, Serialize, Deserialize)]
pub struct LogPart {
    stream: String,
    /// The chunks before belong to a stream of the same name that is gone.
    anew: bool,
    oldest: u64,
    chunks: Vec<ChunkState>,
}

impl LogPart {
    /// The chunks as plain data, with times relative to `reference`. From then on `sent` has them.
    pub fn save(reference: Instant, copied: CopiedLog, sent: &mut SentLogs) -> LogPart {
        let CopiedLog { id, stream, oldest, chunks } = copied;
        let (numbers, anew) = sent.entry(stream.clone()).or_default().of(id);
        for chunk in &chunks {
            numbers.insert(chunk.number);
        }
        // The other process drops these. The log of another shard may still have some, and sends them again.
        numbers.forget_before(oldest);
        let chunks = chunks.iter().map(|chunk| chunk.save(reference)).collect();
        LogPart { stream, anew, oldest, chunks }
    }

    /// Keeps the chunks until the logs come, and drops those that have left theirs meanwhile.
    pub fn keep(self, reference: Instant, kept: &mut KeptLogs) {
        let kept = kept.entry(self.stream).or_default();
        if self.anew {
            *kept = Kept::default();
        }
        self.chunks.into_iter().for_each(|chunk| kept.add(reference, chunk));
        kept.drop_before(self.oldest);
    }

    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, mut each: impl FnMut(&mut Bytes)) {
        self.chunks.iter_mut().for_each(|chunk| each(chunk.bytes_mut()));
    }
}

/// A step of a hand-over.
pub enum HandOver {
    /// Which streams have a camera that the other process connects to anew, because its connection cannot be handed over, and why?
    Survey(oneshot::Sender<Vec<(String, &'static str)>>),
    /// The next chunks of the logs, while all runs on.
    Copy(Copying),
    /// Further descriptors of the UDP sockets are wanted.
    Sockets(oneshot::Sender<io::Result<SocketFds>>),
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

/// The next chunks of a shard's logs are wanted.
pub struct Copying {
    /// Whether this is the first time in an attempt, so that it starts with the oldest ones.
    pub anew: bool,
    /// Where they go.
    pub reply: oneshot::Sender<CopiedLogs>,
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
    /// The chunks that were copied before, and those that are saved now.
    pub sent: Arc<Mutex<SentLogs>>,
    /// When its streams are to be saved.
    pub turn: Turn,
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
    /// The chunks that came before, with this shard, and with those before it.
    pub kept: Arc<RwLock<KeptLogs>>,
    /// Answered when it is restored, or why it cannot be.
    pub reply: oneshot::Sender<Result<(), String>>,
}
