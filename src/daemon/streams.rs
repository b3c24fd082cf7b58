//! The streams that run: started, and changed by a reload.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, spawn_local};
use tracing::info;

use super::reporter::{Described, Reporter, Tap, Watched};
use crate::config::StreamConfig;
use crate::shard::core::StreamSetup;
use crate::shard::fanout::Fanout;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::source::pipeline::Pipeline;
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
    delay: Duration,
}

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
    StreamSetup { id, name: stream.name.clone(), start: stream.start }
}

impl Streams {
    /// None yet; chunks are held back by `delay` on their way to the shards.
    pub fn new(shards: Rc<[ShardSender]>, reporter: Rc<Mutex<Reporter>>, delay: Duration) -> Self {
        Streams { running: Vec::new(), leaving: Vec::new(), next: Some(0), shards, reporter, delay }
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
        let tap = Tap::new(Fanout::new(id, &self.shards), Rc::clone(&described), self.delay);
        let spec = SourceSpec::new(config.name.clone(), config.source.clone());
        let task = spawn_local(supervisor::run(spec, Rc::clone(&source), tap, stopped));
        self.running.push(Running { id, config: config.clone(), source, described, stop, task });
    }

    /// Makes the streams those of the configuration. What is the same in both goes on untouched.
    ///
    /// # Errors
    /// If there are no numbers left for new streams, or a group would have to change; nothing has been changed then.
    pub async fn become_those(&mut self, wanted: &[StreamConfig]) -> Result<Changes, String> {
        let mut changes = Changes::default();
        for stream in wanted {
            let running = self.running.iter().find(|running| running.config.name == stream.name);
            if running.map_or(stream.multicast.is_some(), |running| running.config.multicast != stream.multicast) {
                let name = &stream.name;
                return Err(format!("stream {name}: multicast takes effect at a start alone; restart the relay"));
            }
        }
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
                    info!(stream = running.config.name, "removed");
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
            info!(stream = stream.name, "added");
            self.start(stream).await;
        }
        Ok(changes)
    }

    /// Gives a stream another source, or another start. Its clients stay, as they do when a camera reboots, unless the new
    /// source's tracks or codecs are others.
    fn change(&self, running: &mut Running, to: &StreamConfig) {
        if running.config.start != to.start {
            for shard in self.shards.iter() {
                shard.tell(ToShard::Stream(setup(running.id, to)));
            }
        }
        if running.config.source != to.source {
            info!(stream = to.name, "has another source");
            // The receiver is gone only if the source has ended already.
            let _ = running.stop.send(true);
            let (stop, stopped) = watch::channel(false);
            running.stop = stop;
            let spec = SourceSpec::new(to.name.clone(), to.source.clone());
            let tap = Tap::new(Fanout::new(running.id, &self.shards), Rc::clone(&running.described), self.delay);
            let source = Rc::clone(&running.source);
            let next = async move { supervisor::run(spec, source, tap, stopped).await };
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
