//! Copies the logs to the process that is to take over, while all runs on, so that little is left for the freeze.
//!
//! A shard only hands out references to some chunks at a time; they are written from another thread.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::failure::Failure;
use crate::shard::core::{CopiedLog, CopiedLogs, SentLogs};
use crate::shard::inbox::{ShardSender, ToShard};
use crate::shard::saved::{Copying, HandOver, LogPart};
use crate::upgrade::{self, Channel, Next};

/// How long a copy may take before the rest is left for the freeze: a source may be faster than it.
const COPY_MAX: Duration = Duration::from_secs(20);

/// The same once nobody is let in any more.
const LAST_COPY_MAX: Duration = Duration::from_millis(500);

/// Maximum number of times that what has come meanwhile is copied.
const ROUNDS_MAX: usize = 8;

/// So many bytes are left for the freeze.
const LITTLE_BYTES: usize = 256 * 1024;

/// How long a shard may take to answer; meanwhile all runs on.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long the other process may take for one part.
const PART_MAX: Duration = Duration::from_secs(10);

/// A copy in progress.
pub(super) struct Copier {
    shards: Rc<[ShardSender]>,
    channel: Arc<Mutex<Channel>>,
    /// What has been sent.
    sent: Arc<Mutex<SentLogs>>,
    /// What the times of chunks are relative to.
    reference: Instant,
    begun: bool,
    took: Duration,
    bytes: usize,
}

impl Copier {
    /// Nothing has been copied.
    pub(super) fn new(shards: Rc<[ShardSender]>, channel: Channel) -> Copier {
        let (channel, sent) = (Arc::new(Mutex::new(channel)), Arc::default());
        Copier { shards, channel, sent, reference: Instant::now(), begun: false, took: Duration::ZERO, bytes: 0 }
    }

    /// The channel.
    pub(super) fn channel(&self) -> &Arc<Mutex<Channel>> {
        &self.channel
    }

    /// The chunks that have been sent.
    pub(super) fn sent(&self) -> &Arc<Mutex<SentLogs>> {
        &self.sent
    }

    /// How long it has taken in all.
    pub(super) fn took(&self) -> Duration {
        self.took
    }

    /// How many bytes of media it has copied.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies what there is, until little is left.
    ///
    /// # Errors
    /// A shard does not answer, or the other process has failed.
    pub(super) async fn catch_up(&mut self) -> Result<(), Failure> {
        self.catch_up_within(COPY_MAX).await
    }

    /// The same just before the freeze.
    ///
    /// # Errors
    /// As [`Copier::catch_up`].
    pub(super) async fn catch_up_last(&mut self) -> Result<(), Failure> {
        self.catch_up_within(LAST_COPY_MAX).await
    }

    async fn catch_up_within(&mut self, most: Duration) -> Result<(), Failure> {
        let begun = Instant::now();
        let deadline = begun + most;
        for _ in 0..ROUNDS_MAX {
            if self.round(deadline).await? <= LITTLE_BYTES || Instant::now() >= deadline {
                break;
            }
        }
        self.took += begun.elapsed();
        Ok(())
    }

    /// Copies what there is now. Returns how many bytes that were.
    async fn round(&mut self, deadline: Instant) -> Result<usize, Failure> {
        let mut bytes = 0;
        let first = !std::mem::replace(&mut self.begun, true);
        for shard in Rc::clone(&self.shards).iter() {
            let mut anew = first;
            loop {
                let (reply, answer) = oneshot::channel();
                shard.tell(ToShard::HandOver(Box::new(HandOver::Copy(Copying { anew, reply }))));
                let answer = timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok);
                let CopiedLogs { logs, more } = answer.ok_or("a shard does not answer; try again")?;
                bytes += logs.iter().flat_map(|log| &log.chunks).map(|chunk| chunk.bytes.len()).sum::<usize>();
                self.send(logs).await?;
                if !more || Instant::now() >= deadline {
                    break;
                }
                anew = false;
            }
        }
        self.bytes += bytes;
        Ok(bytes)
    }

    async fn send(&self, logs: Vec<CopiedLog>) -> Result<(), Failure> {
        if logs.is_empty() {
            return Ok(());
        }
        let (channel, sent, reference) = (Arc::clone(&self.channel), Arc::clone(&self.sent), self.reference);
        let sending = spawn_blocking(move || {
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            logs.into_iter().try_for_each(|log| {
                let mut part = LogPart::save(reference, log, &mut sent);
                let mut blocks: Vec<Bytes> = Vec::new();
                part.each_bytes(|bytes| blocks.push(std::mem::take(bytes)));
                let next = Next::Part(upgrade::monotonic_ns(reference), part);
                on(&channel, |channel| {
                    channel.set_deadline(Instant::now() + PART_MAX);
                    channel.send(&next, &blocks, &[])
                })
            })
        });
        let sent = sending.await.map_err(|error| error.to_string())?;
        sent.map_err(|error: io::Error| format!("the new program failed while logs were copied ({error})").into())
    }
}

/// Works with the channel, which one thread uses at a time.
pub(super) fn on<T>(channel: &Mutex<Channel>, work: impl FnOnce(&mut Channel) -> T) -> T {
    work(&mut channel.lock().unwrap_or_else(PoisonError::into_inner))
}
