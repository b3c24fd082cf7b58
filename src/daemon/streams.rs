//! The running streams: started, and changed by a reload.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tracing::field::display;
use tracing::info;

use super::dispatch::{Outlet, Outlets};
use super::failure::Failure;
use super::passed::HomesByName;
use super::reporter::{Reporter, Watched};
use super::stream_ids::StreamIds;
use crate::config::{SourceKind, StreamConfig};
use crate::media::StreamId;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::shard::types::{Hosting, StreamSetup};
use crate::source::camera::Timeouts;
use crate::source::news::{NewsSender, Relaying, SourceNews};
use crate::source::publisher::PublisherRules;
use crate::source::spec::{Demand, OnDemand, SourceSpec};
use crate::testing::Testing;
use crate::wire::relay_path;

/// A stream with its source.
struct Running {
    id: StreamId,
    config: StreamConfig,
    /// The shard that runs the source.
    home: u16,
    rules: watch::Sender<PublisherRules>,
    stop: watch::Sender<bool>,
    /// Closes when the source has ended.
    ended: oneshot::Receiver<()>,
    /// The relays that the request for it has passed through.
    via: Option<Arc<str>>,
}

/// How publishers of the stream are treated, if it is published.
fn rules(config: &StreamConfig) -> PublisherRules {
    let takeover = matches!(config.source, SourceKind::Publisher { takeover: true });
    PublisherRules { takeover, quiet: Timeouts::default().quiet, silence: config.source_timeout }
}

/// Whether both configurations have the same source, so that it keeps running: other differences are passed to the shards, or to a
/// publisher's rules.
fn same_source(one: &StreamConfig, other: &StreamConfig) -> bool {
    // What only the shards have to know of leaves the source alone.
    let (start, on_demand_start, tile) = (other.start, other.on_demand_start, other.tile.clone());
    let (made, added) = (other.made, other.added);
    let mut one = StreamConfig { start, on_demand_start, made, added, tile, ..one.clone() };
    if let (SourceKind::Publisher { .. }, SourceKind::Publisher { .. }) = (&one.source, &other.source) {
        one.source.clone_from(&other.source);
        one.source_timeout = other.source_timeout;
    }
    one == *other
}

/// All streams.
pub(super) struct Streams {
    running: Vec<Running>,
    /// Sources of removed streams that are sending TEARDOWN to their cameras.
    leaving: Vec<oneshot::Receiver<()>>,
    ids: Rc<RefCell<StreamIds>>,
    shards: Rc<[ShardSender]>,
    reporter: Rc<Mutex<Reporter>>,
    /// Where the shards' messages to the sources go.
    outlets: Outlets,
    /// Changes on a reload.
    reloaded: watch::Sender<u64>,
    testing: Testing,
    telling: Telling,
}

/// News from sources, and this relay's identity for other relays.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// The relay's own id.
    pub relay: Arc<str>,
    /// Where sources' news go.
    pub news: mpsc::UnboundedSender<(StreamId, SourceNews)>,
}

/// Interval between the first connections to two cameras, so that hundreds of them are not contacted at the same moment.
const START_SPACING: Duration = Duration::from_millis(10);

/// What a reload did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Streams that are new.
    pub added: usize,
    /// Removed streams.
    pub removed: usize,
    /// Streams with another source or `start`.
    pub changed: usize,
}

/// The home of a stream at startup: the shards take turns.
pub(super) fn home_at(id: StreamId, shards: usize) -> u16 {
    (id.index() % shards) as u16
}

/// The home of a configured stream at startup: that of another process, from which this one takes over, or else in turns.
pub(super) fn first_home(id: StreamId, name: &str, shards: usize, before: Option<&HomesByName>) -> u16 {
    let known = before.and_then(|before| before.get(name)).copied();
    known.filter(|home| usize::from(*home) < shards).unwrap_or_else(|| home_at(id, shards))
}

/// The description of a stream for the shards.
pub(super) fn setup(id: StreamId, home: u16, stream: &StreamConfig) -> StreamSetup {
    let published = matches!(stream.source, SourceKind::Publisher { .. });
    // A request for a stream whose publisher is just starting waits for the publisher as it waited for the stream.
    let waits = !published || stream.made;
    StreamSetup {
        id,
        home,
        name: stream.name.clone(),
        start: stream.start,
        published,
        made: stream.made || stream.added,
        on_demand: stream.on_demand.map(|_| stream.on_demand_start),
        first_wait: waits.then_some(stream.on_demand_start),
    }
}

impl Streams {
    /// None yet.
    pub(super) fn new(
        shards: Rc<[ShardSender]>,
        reporter: Rc<Mutex<Reporter>>,
        (outlets, ids): (Outlets, Rc<RefCell<StreamIds>>),
        testing: Testing,
        telling: Telling,
    ) -> Self {
        let (running, leaving, reloaded) = (Vec::new(), Vec::new(), watch::Sender::new(0));
        Streams { running, leaving, ids, shards, reporter, outlets, reloaded, testing, telling }
    }

    /// Makes a stream's home run its source, in place of its previous one. Returns what stops it, and what closes when it has ended.
    fn host(
        &self,
        (id, home, setup): (StreamId, u16, Option<StreamSetup>),
        config: &StreamConfig,
        (rules, via): (watch::Receiver<PublisherRules>, Option<Arc<str>>),
        start_after: Duration,
    ) -> (watch::Sender<bool>, oneshot::Receiver<()>) {
        let mut spec = SourceSpec::new(config.name.clone(), config.source.clone());
        spec.camera = config.camera.clone();
        spec.camera.timeouts.silence = config.source_timeout;
        let news = NewsSender::new(id, self.telling.news.clone());
        let own = Arc::clone(&self.telling.relay);
        let through = |via: &Arc<str>| -> Arc<str> { relay_path::joined(relay_path::ids(via).chain([&*own])).into() };
        spec.camera.relaying = Some(Relaying { via: via.as_ref().map(through), own: Arc::clone(&own) });
        (spec.news, spec.made) = (Some(news), config.made);
        spec.waits = config.waits;
        spec.reloaded = Some(self.reloaded.subscribe());
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
        if !matches!(config.source, SourceKind::Publisher { .. }) {
            let (asked, seen) = watch::channel(0);
            outlet.asked = Some(asked);
            spec.asked = Some(seen);
        }
        self.outlets.borrow_mut().entry(id).or_default().replace(outlet);
        let ((stop, stopped), (ended, has_ended)) = (watch::channel(false), oneshot::channel());
        let hosting = Hosting { stream: id, setup, spec, rules, stop: stopped, ended, testing: self.testing };
        self.shards[usize::from(home)].tell(ToShard::Host(Box::new(hosting)));
        (stop, has_ended)
    }

    /// The shard with the fewest sources; among equal ones the one with the fewest connections.
    fn least_loaded(&self) -> u16 {
        let load = |shard: &u16| {
            let sources = self.running.iter().filter(|running| running.home == *shard).count();
            (sources, self.shards[usize::from(*shard)].connections())
        };
        (0..self.shards.len() as u16).min_by_key(load).unwrap_or(0)
    }

    /// Starts the configured streams. The shards were started with them, at the indices from 0 on.
    pub(super) async fn start_all(&mut self, streams: &[StreamConfig], before: Option<&HomesByName>) {
        for stream in streams {
            let id = self.ids.borrow_mut().take();
            if let Some(id) = id {
                let home = first_home(id, &stream.name, self.shards.len(), before);
                self.start((id, home, None), stream, None);
                self.watch(id, home, stream).await;
            }
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// The stream with that name.
    pub(super) fn find(&self, name: &str) -> Option<(StreamId, &StreamConfig)> {
        let running = self.running.iter().find(|running| running.config.name == name)?;
        Some((running.id, &running.config))
    }

    /// All of them.
    pub(super) fn configs(&self) -> impl Iterator<Item = &StreamConfig> {
        self.running.iter().map(|running| &running.config)
    }

    /// All of them, with the shards that run their sources, and the relays that the requests for them have passed through.
    pub(super) fn with_homes(&self) -> impl Iterator<Item = (&StreamConfig, u16, Option<&str>)> {
        self.running.iter().map(|running| (&running.config, running.home, running.via.as_deref()))
    }

    /// The name of a stream.
    pub(super) fn name(&self, id: StreamId) -> Option<&str> {
        self.running.iter().find(|running| running.id == id).map(|running| running.config.name.as_str())
    }

    /// Adds a stream now, on the shard `home` or the least loaded one; `via` lists the relays that the request has passed through, if
    /// it is created by name. `None` if there is no id left.
    pub(super) async fn add(
        &mut self,
        config: &StreamConfig,
        via: Option<Arc<str>>,
        home: Option<u16>,
    ) -> Option<StreamId> {
        let id = self.ids.borrow_mut().take()?;
        let home = home.unwrap_or_else(|| self.least_loaded());
        let new = setup(id, home, config);
        // The home is told first: what other shards send it, once they know the stream, must not arrive earlier.
        self.start((id, home, Some(new.clone())), config, via);
        for (_, shard) in self.shards.iter().enumerate().filter(|(shard, _)| *shard != usize::from(home)) {
            shard.tell(ToShard::Stream(new.clone()));
        }
        self.watch(id, home, config).await;
        Some(id)
    }

    /// Removes a stream now; returns whether it existed.
    pub(super) async fn remove_now(&mut self, id: StreamId) -> bool {
        let Some(at) = self.running.iter().position(|running| running.id == id) else { return false };
        let running = self.running.swap_remove(at);
        self.leaving.retain_mut(|ended| ended.try_recv() == Err(TryRecvError::Empty));
        self.remove(running).await;
        true
    }

    /// Starts a stream. Announces it to its home if that has not happened yet.
    fn start(
        &mut self,
        (id, home, setup): (StreamId, u16, Option<StreamSetup>),
        config: &StreamConfig,
        via: Option<Arc<str>>,
    ) {
        let start_after = START_SPACING * u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let (rules, seen) = watch::channel(rules(config));
        let (stop, ended) = self.host((id, home, setup), config, (seen, via.clone()), start_after);
        self.running.push(Running { id, config: config.clone(), home, rules, stop, ended, via });
    }

    /// Adds a stream to the reports. Last, because it may take a moment, and what the shards report meanwhile is matched to its source.
    async fn watch(&self, id: StreamId, home: u16, config: &StreamConfig) {
        self.reporter.lock().await.add_stream(Watched { id, name: config.name.clone(), home, state: None });
    }

    /// Changes the streams to those of the configuration, except for their groups. Unchanged streams are not affected.
    ///
    /// # Errors
    /// There are no ids left for new streams; nothing has been changed then.
    pub(super) async fn become_those(&mut self, wanted: &[StreamConfig]) -> Result<Changes, Failure> {
        let mut changes = Changes::default();
        let is_new = |stream: &&StreamConfig| !self.running.iter().any(|running| running.config.name == stream.name);
        let new: Vec<&StreamConfig> = wanted.iter().filter(is_new).collect();
        if new.len() > self.ids.borrow().left() {
            return Err(
                "too many removed streams still have clients, so new streams cannot get ids; reload again later".into(),
            );
        }
        self.leaving.retain_mut(|ended| ended.try_recv() == Err(TryRecvError::Empty));
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
        self.reloaded.send_modify(|times| *times += 1);
        for stream in new {
            changes.added += 1;
            let url = self.reporter.lock().await.url(&stream.name).map(display);
            info!(stream = %stream.name, url, "added");
            if self.add(stream, None, None).await.is_none() {
                break;
            }
        }
        Ok(changes)
    }

    /// Gives a stream another source or `start`. Its clients stay connected, like when a camera reboots, unless the new source has
    /// other tracks or codecs.
    fn change(&self, running: &mut Running, to: &StreamConfig) {
        for shard in self.shards.iter() {
            shard.tell(ToShard::Stream(setup(running.id, running.home, to)));
        }
        running.rules.send_replace(rules(to));
        if !same_source(&running.config, to) {
            info!(stream = %to.name, "source changed");
            // The receiver is gone only if the source has already ended.
            let _ = running.stop.send(true);
            let at = (running.id, running.home, None);
            let seen = (running.rules.subscribe(), running.via.clone());
            (running.stop, running.ended) = self.host(at, to, seen, Duration::ZERO);
        }
        running.config = to.clone();
    }

    async fn remove(&mut self, running: Running) {
        let _ = running.stop.send(true);
        self.ids.borrow_mut().removed(running.id);
        for shard in self.shards.iter() {
            shard.tell(ToShard::RemoveStream(running.id));
        }
        self.reporter.lock().await.remove_stream(running.id);
        self.leaving.push(running.ended);
    }

    /// Tells every source to stop; returns what closes when each has ended.
    pub(super) fn stop(self) -> Vec<oneshot::Receiver<()>> {
        let stopped = self.running.into_iter().map(|running| {
            let _ = running.stop.send(true);
            running.ended
        });
        stopped.chain(self.leaving).collect()
    }
}
