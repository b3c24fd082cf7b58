//! The streams that run: started, and changed by a reload.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use super::dispatch::{Outlet, Outlets};
use super::reporter::{Described, Reporter, Tap, Watched};
use crate::config::{SourceKind, StreamConfig};
use crate::metrics::{Panicked, process};
use crate::shard::core::StreamSetup;
use crate::shard::fanout::Fanout;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::source::camera::Timeouts;
use crate::source::on_demand::{Demand, OnDemand};
use crate::source::pipeline::Pipeline;
use crate::source::publisher::{self, PublisherSpec};
use crate::source::supervisor::{self, Source, SourceSpec};
use crate::stream::StreamId;

/// A stream with its source's supervisor.
struct Running {
    id: StreamId,
    config: StreamConfig,
    source: Rc<Source>,
    described: Described,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// All streams.
pub struct Streams {
    running: Vec<Running>,
    /// Sources of removed streams that say farewell to their cameras.
    leaving: Vec<JoinHandle<()>>,
    /// Numbers are not used again, so that nothing late is taken for another stream's.
    next: Option<u16>,
    shards: Rc<[ShardSender]>,
    reporter: Rc<Mutex<Reporter>>,
    /// Where the shards' messages to the sources go.
    outlets: Outlets,
    tests: TestFaults,
}

/// What tests do to sources.
#[derive(Clone, Copy, Debug)]
pub struct TestFaults {
    /// Chunks are held back so long on their way to the shards.
    pub delay: Duration,
    /// A source's code fails so long after its start.
    pub panic_after: Option<Duration>,
}

/// Time between the first connections to two cameras, so that hundreds of them are not asked in the same instant.
const START_SPACING: Duration = Duration::from_millis(10);

/// What a reload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Streams that are new.
    pub added: usize,
    /// Streams that are no more.
    pub removed: usize,
    /// Streams with another source or start.
    pub changed: usize,
}

/// A stream as the shards are told of it.
pub fn setup(id: StreamId, stream: &StreamConfig) -> StreamSetup {
    StreamSetup {
        id,
        name: stream.name.clone(),
        start: stream.start,
        published: matches!(stream.source, SourceKind::Publisher { .. }),
        on_demand: stream.on_demand.map(|on_demand| on_demand.start),
    }
}

/// Makes a stream's source, as often as it takes.
struct Maker {
    id: StreamId,
    config: StreamConfig,
    source: Rc<Source>,
    described: Described,
    shards: Rc<[ShardSender]>,
    outlets: Outlets,
    tests: TestFaults,
}

/// The wait before a source whose code has failed is started again, at first and at most; it doubles each time.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A source that has run so long before its code failed is started again after the first wait.
const RAN_WELL: Duration = Duration::from_secs(60);

impl Maker {
    /// One source; the shards' messages go to it from now on.
    fn make(&self, start_after: Duration, stop: watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()>>> {
        let config = &self.config;
        let source = Rc::clone(&self.source);
        let tap = Tap::new(Fanout::new(self.id, &self.shards), Rc::clone(&self.described), self.tests.delay);
        let mut spec = SourceSpec::new(config.name.clone(), config.source.clone());
        spec.timeouts.silence = config.source_timeout;
        spec.transport = config.transport;
        spec.tls = config.tls.clone();
        if let SourceKind::Cameras(_) = config.source {
            spec.start_after = start_after;
        }
        let mut outlet = Outlet::default();
        if let Some(on_demand) = config.on_demand {
            let (wanted, demand) = watch::channel(Demand::default());
            outlet.demand = Some(wanted);
            spec.start_after = Duration::ZERO;
            spec.on_demand = Some(OnDemand { stop: on_demand.stop, demand });
        }
        let task: Pin<Box<dyn Future<Output = ()>>> = if let SourceKind::Publisher { takeover } = config.source {
            let (publishing, messages) = mpsc::unbounded_channel();
            outlet.publishing = Some(publishing);
            let Timeouts { quiet, silence, .. } = spec.timeouts;
            let spec = PublisherSpec { name: spec.name, takeover, quiet, silence };
            Box::pin(publisher::run(spec, source, tap, messages, self.shards.to_vec(), stop))
        } else {
            Box::pin(supervisor::run(spec, source, tap, stop))
        };
        let mut outlets = self.outlets.borrow_mut();
        let index = usize::from(self.id.0);
        if outlets.len() <= index {
            outlets.resize_with(index + 1, Outlet::default);
        }
        outlets[index].replace(outlet);
        let Some(after) = self.tests.panic_after else { return task };
        Box::pin(async move {
            if timeout(after, task).await.is_err() {
                panic!("a test wants it so");
            }
        })
    }

    /// Keeps the source going until it ends as it should: one whose code fails is started again. The other streams do not notice.
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
            let name = &self.config.name;
            let retry_in_ms = wait.as_millis() as u64;
            error!(stream = %name, retry_in_ms, "the source's code failed; it is started again, its clients stay");
            let fault = "a fault of rtsprelay itself; the log says where".to_owned();
            let mut publisher = Fanout::new(self.id, &self.shards);
            self.source.failed(fault, &mut publisher);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(RESTART_WAIT.1);
            task = self.make(Duration::ZERO, stop.clone());
        }
    }
}

/// A task that ends with who waits for it.
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

impl Streams {
    /// None yet.
    pub fn new(shards: Rc<[ShardSender]>, reporter: Rc<Mutex<Reporter>>, outlets: Outlets, tests: TestFaults) -> Self {
        Streams { running: Vec::new(), leaving: Vec::new(), next: Some(0), shards, reporter, outlets, tests }
    }

    /// What keeps a stream's source going, again after a fault of its own code.
    fn source(
        &self,
        id: StreamId,
        config: &StreamConfig,
        source: Rc<Source>,
        described: Described,
        start_after: Duration,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let (shards, outlets, tests) = (Rc::clone(&self.shards), Rc::clone(&self.outlets), self.tests);
        let maker = Maker { id, config: config.clone(), source, described, shards, outlets, tests };
        // Where the shards' messages go is set at once.
        let first = maker.make(start_after, stop.clone());
        maker.keep(first, stop)
    }

    /// Starts a stream. The shards have been told of it as the one with the next number.
    pub async fn start(&mut self, config: &StreamConfig) {
        let Some(id) = self.next.map(StreamId) else { return };
        self.next = id.0.checked_add(1);
        let source = Source::new(Pipeline::new(fastrand::u64(..)));
        let described = Described::default();
        let (stop, stopped) = watch::channel(false);
        let watched =
            Watched { id, name: config.name.clone(), source: Rc::clone(&source), described: Rc::clone(&described) };
        self.reporter.lock().await.add_stream(watched);
        let start_after = START_SPACING * u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let task = self.source(id, config, Rc::clone(&source), Rc::clone(&described), start_after, stopped);
        let task = spawn_local(task);
        self.running.push(Running { id, config: config.clone(), source, described, stop, task });
    }

    /// Makes the streams those of the configuration, but for their groups. What is the same in both goes on untouched.
    ///
    /// # Errors
    /// If there are no numbers left for new streams; nothing has been changed then.
    pub async fn become_those(&mut self, wanted: &[StreamConfig]) -> Result<Changes, String> {
        let mut changes = Changes::default();
        let is_new = |stream: &&StreamConfig| !self.running.iter().any(|running| running.config.name == stream.name);
        let new: Vec<&StreamConfig> = wanted.iter().filter(is_new).collect();
        let left = self.next.map_or(0, |next| usize::from(u16::MAX - next));
        if new.len() > left {
            return Err("so many streams came and went that their numbers are used up; restart the relay".into());
        }
        self.leaving.retain(|task| !task.is_finished());
        let mut kept = Vec::new();
        for mut running in std::mem::take(&mut self.running) {
            match wanted.iter().find(|stream| stream.name == running.config.name) {
                Some(stream) if *stream == running.config => {}
                Some(stream) => {
                    changes.changed += 1;
                    self.change(&mut running, stream);
                }
                None => {
                    changes.removed += 1;
                    info!(stream = %running.config.name, "removed");
                    self.remove(running).await;
                    continue;
                }
            }
            kept.push(running);
        }
        self.running = kept;
        for stream in new {
            changes.added += 1;
            let Some(id) = self.next.map(StreamId) else { break };
            for shard in self.shards.iter() {
                shard.tell(ToShard::Stream(setup(id, stream)));
            }
            info!(stream = %stream.name, "added");
            self.start(stream).await;
        }
        Ok(changes)
    }

    /// Gives a stream another source, or another start. Its clients stay, as they do when a camera reboots, unless the new
    /// source's tracks or codecs are others.
    fn change(&self, running: &mut Running, to: &StreamConfig) {
        for shard in self.shards.iter() {
            shard.tell(ToShard::Stream(setup(running.id, to)));
        }
        if running.config != (StreamConfig { start: running.config.start, ..to.clone() }) {
            info!(stream = %to.name, "has another source");
            // The receiver is gone only if the source has ended already.
            let _ = running.stop.send(true);
            let (stop, stopped) = watch::channel(false);
            running.stop = stop;
            let (source, described) = (Rc::clone(&running.source), Rc::clone(&running.described));
            let next = self.source(running.id, to, source, described, Duration::ZERO, stopped);
            let before = std::mem::replace(&mut running.task, spawn_local(async {}));
            running.task = spawn_local(async move {
                // One that panicked has told so.
                let _ = before.await;
                next.await;
            });
        }
        running.config = to.clone();
    }

    async fn remove(&mut self, running: Running) {
        let _ = running.stop.send(true);
        for shard in self.shards.iter() {
            shard.tell(ToShard::RemoveStream(running.id));
        }
        self.reporter.lock().await.remove_stream(running.id);
        self.leaving.push(running.task);
    }

    /// Asks every source to stop; gives what ends with it.
    pub fn stop(self) -> Vec<JoinHandle<()>> {
        let stopped = self.running.into_iter().map(|running| {
            let _ = running.stop.send(true);
            running.task
        });
        stopped.chain(self.leaving).collect()
    }
}
