//! The sources that run on a shard. Each is a task of the shard's thread, and is restarted if it panics.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};
use tracing::error;

use super::inbox::{ShardSender, ToShard};
use super::local::{HomeSink, Local};
use super::types::Hosting;
use crate::media::{Description, StreamId, Track};
use crate::metrics::{Panicked, SourceDrop, SourceGauge, process};
use crate::source::held::Running;
use crate::source::pipeline::Pipeline;
use crate::source::publisher::{self, FromShard, PublisherRules, PublisherSpec};
use crate::source::publishing::{PublisherVerdict, Publishing};
use crate::source::saved::SavedSource;
use crate::source::shared::Source;
use crate::source::spec::{SourceKind, SourceSpec};
use crate::source::supervisor;
use crate::testing::Testing;

/// Delay before a panicked source is restarted, initially and at most; it doubles each time.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A source that has run for this long before it panicked is restarted after the initial delay.
const RAN_WELL: Duration = Duration::from_secs(60);

/// The status for a publisher whose stream has no running source at the moment.
const SERVICE_UNAVAILABLE: u16 = 503;

/// A stream's source, with the state that survives restarts.
struct Home {
    source: Rc<Source>,
    publishing: PublishingQueue,
    task: JoinHandle<()>,
    /// The stream was removed; the source may still be sending TEARDOWN.
    removed: bool,
}

/// Where the actions of a stream's publishers go while its source runs.
type PublishingQueue = Rc<RefCell<Option<mpsc::UnboundedSender<FromShard>>>>;

/// All sources of a shard.
pub struct Homes {
    shards: Vec<ShardSender>,
    local: Rc<Local>,
    homes: HashMap<StreamId, Home>,
    /// They are held for a hand-over.
    held: bool,
    /// Another process's sources, for those that come.
    restored: HashMap<StreamId, Rc<Source>>,
}

impl Homes {
    /// Initially empty. The sources' output goes through `local`; `shards` are all shards, for answering publishers.
    pub fn new(shards: Vec<ShardSender>, local: Rc<Local>) -> Self {
        Homes { shards, local, homes: HashMap::new(), held: false, restored: HashMap::new() }
    }

    /// Runs a source from now on; if the stream had one here before, after that has ended. Must be called within the thread's runtime.
    pub fn host(&mut self, hosting: Hosting) {
        let Hosting { stream, spec, rules, stop, ended, testing, .. } = hosting;
        let before = self.homes.remove(&stream);
        let (source, publishing, before) = match before {
            Some(Home { source, publishing, task, .. }) => (source, publishing, Some(task)),
            None => {
                let restored = self.restored.remove(&stream);
                let source = restored.unwrap_or_else(|| Source::new(Pipeline::new(fastrand::u64(..))));
                (source, PublishingQueue::default(), None)
            }
        };
        let (shards, local) = (self.shards.clone(), Rc::clone(&self.local));
        let runner = Runner {
            stream,
            spec,
            rules,
            source: Rc::clone(&source),
            publishing: Rc::clone(&publishing),
            shards,
            local: Rc::clone(&local),
            testing,
        };
        // The channel for publishers' actions is set at once.
        let first = runner.run(runner.spec.start_after, stop.clone());
        let task = spawn_local(async move {
            if let Some(before) = before {
                // A task that panicked has already been reported.
                let _ = before.await;
            }
            runner.keep(first, stop).await;
            drop(ended);
            // The shard may be waiting for it.
            local.wake();
        });
        self.homes.insert(stream, Home { source, publishing, task, removed: false });
    }

    /// A stream was removed; its source was told to stop.
    pub fn remove(&mut self, stream: StreamId) {
        if let Some(home) = self.homes.get_mut(&stream) {
            home.removed = true;
        }
        self.homes.retain(|_, home| !(home.removed && home.task.is_finished()));
    }

    /// Passes on a publisher's action.
    pub fn publishing(&self, stream: StreamId, (shard, session, what): FromShard) {
        let asks = matches!(what, Publishing::Record { .. });
        if let Some(home) = self.homes.get(&stream).filter(|_| self.held) {
            home.source.has_more();
        }
        let outlet = self.homes.get(&stream).map(|home| home.publishing.borrow());
        let sent = outlet.as_ref().and_then(|outlet| outlet.as_ref()?.send((shard, session, what)).ok());
        if let (None, true, Some(shard)) = (sent, asks, self.shards.get(usize::from(shard))) {
            shard.tell(ToShard::Publisher(session, PublisherVerdict::Refuse(SERVICE_UNAVAILABLE)));
        }
    }

    /// All sources stop for a hand-over; times are to be relative to `reference`.
    pub fn hold(&mut self, reference: Instant) {
        self.held = true;
        self.homes.values().for_each(|home| home.source.hold(reference));
    }

    /// All sources continue.
    pub fn release(&mut self) {
        self.held = false;
        self.homes.values().for_each(|home| home.source.release());
    }

    /// Whether all have stopped.
    pub fn are_held(&self) -> bool {
        self.homes.values().all(|home| home.task.is_finished() || home.source.is_held())
    }

    /// The sources whose sessions another process starts anew, and why.
    pub fn reconnecting(&self) -> impl Iterator<Item = (StreamId, &'static str)> + '_ {
        let there = self.homes.iter().filter(|(_, home)| !home.removed);
        let by_tls = there.filter(|(_, home)| home.source.running() == Running::Tls);
        by_tls.map(|(stream, _)| (*stream, "rtsps: keys cannot be handed over"))
    }

    /// The held sources as plain data, with their descriptors.
    pub fn save(&self, reference: Instant) -> Vec<(StreamId, SavedSource, Vec<OwnedFd>)> {
        let there = self.homes.iter().filter(|(_, home)| !home.removed);
        let saved = there.map(|(stream, home)| {
            let (saved, sockets) = home.source.save(reference);
            (*stream, saved, sockets)
        });
        saved.collect()
    }

    /// The stream's source is this one of another process, when it comes.
    pub fn restore(&mut self, stream: StreamId, reference: Instant, saved: SavedSource, sockets: Vec<OwnedFd>) {
        self.restored.insert(stream, Source::restore(reference, saved, sockets));
    }

    /// The state of the sources.
    pub fn gauges(&mut self) -> Vec<(StreamId, SourceGauge)> {
        self.homes.retain(|_, home| !(home.removed && home.task.is_finished()));
        let there = self.homes.iter().filter(|(_, home)| !home.removed);
        there.map(|(stream, home)| (*stream, gauge(&home.source))).collect()
    }

    /// Whether all have ended.
    pub fn have_ended(&self) -> bool {
        self.homes.values().all(|home| home.task.is_finished())
    }
}

/// The counts and state of one source.
fn gauge(source: &Source) -> SourceGauge {
    let pipeline = source.pipeline.borrow();
    let (stats, status) = (pipeline.stats(), source.status.borrow());
    let mut dropped = *source.dropped.borrow();
    for (reason, packets) in [
        (SourceDrop::Late, stats.late),
        (SourceDrop::Malformed, stats.malformed),
        (SourceDrop::Empty, stats.empty),
        (SourceDrop::PayloadType, stats.foreign),
        (SourceDrop::Oversize, stats.oversize),
    ] {
        dropped[reason.index()] += packets;
    }
    let video = pipeline.description().and_then(|is| is.tracks.iter().position(Track::is_video));
    SourceGauge {
        state: status.state,
        since: status.since,
        fault: status.fault.clone(),
        next_try_in: status.next_try.and_then(|at| at.duration_since(SystemTime::now()).ok()),
        frames: stats.tracks.get(video.unwrap_or(0)).map_or(0, |track| track.frames),
        bytes: stats.bytes,
        lost: stats.lost,
        reconnects: status.reconnects(),
        failures: status.failures,
        torn: stats.torn,
        unreferenced: stats.unreferenced,
        clock_steps: stats.clock_steps,
        dropped,
        reads: source.reads.get(),
        // Into the open chunk, and with it into memory of its size.
        copied: source.copied.get() + 2 * stats.tracks.iter().map(|track| track.bytes).sum::<u64>(),
        unread: source.unread_bytes(),
        encodings: ["video", "audio"]
            .map(|media| pipeline.description().and_then(|description| encoding(description, media))),
    }
}

/// The encoding of the first track of a kind.
fn encoding(description: &Description, media: &str) -> Option<String> {
    let track = description.tracks.iter().find(|track| track.media == media)?;
    Some(track.encoding.clone())
}

/// Runs a stream's source, restarting it as often as needed.
struct Runner {
    stream: StreamId,
    spec: SourceSpec,
    rules: watch::Receiver<PublisherRules>,
    source: Rc<Source>,
    publishing: PublishingQueue,
    shards: Vec<ShardSender>,
    local: Rc<Local>,
    testing: Testing,
}

impl Runner {
    /// One run.
    fn run(&self, start_after: Duration, stop: watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()>>> {
        let sink = self.sink();
        let source = Rc::clone(&self.source);
        let spec = SourceSpec { start_after, ..self.spec.clone() };
        let task: Pin<Box<dyn Future<Output = ()>>> = if let SourceKind::Publisher { .. } = spec.kind {
            let (publishing, messages) = mpsc::unbounded_channel();
            *self.publishing.borrow_mut() = Some(publishing);
            let spec = PublisherSpec { name: spec.name, rules: self.rules.clone(), news: spec.news };
            let shards = self.shards.clone();
            let tell = move |shard: u16, session, verdict| {
                if let Some(shard) = shards.get(usize::from(shard)) {
                    shard.tell(ToShard::Publisher(session, verdict));
                }
            };
            Box::pin(publisher::run(spec, source, sink, messages, tell, stop))
        } else {
            *self.publishing.borrow_mut() = None;
            Box::pin(supervisor::run(spec, source, sink, stop))
        };
        let Some(after) = self.testing.source_panics_after() else { return task };
        Box::pin(async move {
            if timeout(after, task).await.is_err() {
                panic!("a test wants it so");
            }
        })
    }

    fn sink(&self) -> HomeSink {
        HomeSink::new(self.stream, Rc::clone(&self.local), self.testing.chunk_delay())
    }

    /// Runs the source until it ends normally, and restarts it after a panic. Other streams are not affected.
    async fn keep(self, first: Pin<Box<dyn Future<Output = ()>>>, mut stop: watch::Receiver<bool>) {
        let mut task = first;
        let mut wait = RESTART_WAIT.0;
        loop {
            let started = Instant::now();
            let Err(failed) = OnDrop(spawn_local(task)).await else { return };
            if !failed.is_panic() {
                return;
            }
            process::panicked(Panicked::Source);
            if started.elapsed() >= RAN_WELL {
                wait = RESTART_WAIT.0;
            }
            let retry_in_ms = wait.as_millis() as u64;
            let name = &self.spec.name;
            error!(stream = %name, retry_in_ms, "the source's code panicked; it will be restarted, and its clients stay connected");
            let fault = "a bug in rtsprelay; the log has the location".to_owned();
            self.source.failed(fault, &mut self.sink());
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(RESTART_WAIT.1);
            task = self.run(Duration::ZERO, stop.clone());
        }
    }
}

/// A task that ends together with the one that waits for it.
struct OnDrop(JoinHandle<()>);

impl Future for OnDrop {
    type Output = Result<(), JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
