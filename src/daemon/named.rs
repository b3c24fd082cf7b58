//! Creates and removes streams as the [`Registry`] decides, and notifies the shards and the readers of events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::events::Event;
use super::failure::Failure;
use super::registry::{Act, Gone, Wanted};
use super::streams::Changes;
use super::{Relay, shard_limits};
use crate::config::{Config, SourceKind, StreamConfig};
use crate::media::name::{NamePattern, NameRules};
use crate::media::{SourceState, StreamId};
use crate::metrics::{Counter, process};
use crate::session::NotMade;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::source::news::SourceNews;

/// Sends the shards the rules for names that no stream has.
pub(super) fn tell_rules(relay: &Arc<str>, config: &Config, shards: &[ShardSender]) {
    let patterns = config.patterns.iter().map(|pattern| NamePattern {
        pattern: pattern.pattern.clone(),
        published: pattern.is_published(),
        wait: pattern.wait(),
    });
    let rules = Arc::new(NameRules { relay: Arc::clone(relay), patterns: patterns.collect() });
    for shard in shards {
        shard.tell(ToShard::Names(Arc::clone(&rules)));
    }
}

/// A unique id of the relay, as long as the first half of a UUID.
///
/// # Errors
/// The system provides no random numbers.
pub(super) fn relay_id() -> Result<Arc<str>, Failure> {
    let id = getrandom::u64().map_err(|error| format!("cannot get random numbers from the system ({error})"))?;
    Ok(format!("{id:016x}").into())
}

impl Relay {
    /// A client requests a name that no stream has.
    pub(super) async fn on_wanted(&mut self, wanted: Wanted) {
        let now = Instant::now();
        if self.streams.find(&wanted.name).is_none() {
            let others = self.streams.len().saturating_sub(self.registry.count());
            self.registry.wanted(now, wanted, others);
        }
        self.act().await;
    }

    /// A source's news.
    pub(super) async fn on_news(&mut self, id: StreamId, news: SourceNews) {
        self.note_news(id, &news);
        self.act().await;
    }

    /// Takes note of a source's news, without doing what the registry decides then.
    pub(super) fn note_news(&mut self, id: StreamId, news: &SourceNews) {
        let event = match news {
            SourceNews::State(SourceState::Live) => Some(Event::Live),
            SourceNews::State(SourceState::Down) => Some(Event::Down),
            SourceNews::Path(path) => {
                for shard in self.shards.iter() {
                    shard.tell(ToShard::Path(id, Arc::clone(path)));
                }
                None
            }
            _ => None,
        };
        if let SourceNews::State(state) = news {
            self.site.set_state(id, *state);
        }
        if let (Some(event), Some(name)) = (event, self.streams.name(id)) {
            self.events.tell(name, &event);
        }
        self.registry.news(Instant::now(), id, news);
    }

    /// Time has passed.
    pub(super) async fn on_due(&mut self) {
        self.registry.tick(Instant::now());
        self.act().await;
    }

    /// Does what the registry has decided.
    pub(super) async fn act(&mut self) {
        while let Some(act) = self.registry.next_act() {
            match act {
                Act::Make { config, via, home } => self.make(&config, via, home).await,
                Act::Wait(name) => self.events.tell(&name, &Event::Wanted),
                Act::Refuse { name, from, status } => {
                    for shard in self.shards.iter() {
                        let (name, why) = (Arc::clone(&name), NotMade { status, path: None });
                        shard.tell(ToShard::NotMade { name, from, why });
                    }
                }
                Act::NotUp { id, status, path } => {
                    if let (503, None, Some(name)) = (status, &path, self.streams.name(id)) {
                        // Without the log's stream field: of many such names only the first few are logged.
                        warn!(
                            %name,
                            "no origin has played it within on_demand_start: given up; see that one can be reached, and that relays \
                             do not pull it from one another"
                        );
                    }
                    for shard in self.shards.iter() {
                        shard.tell(ToShard::NotUp(id, NotMade { status, path: path.clone() }));
                    }
                }
                Act::Remove { id, name, why } => self.unmake(id, &name, why).await,
            }
        }
    }

    /// Divides the memory for logs among the current streams. Ignores small differences.
    pub(super) fn share_logs(&mut self) {
        let share = self.config.log_bytes(self.streams.len());
        let full = share == self.config.queue.log_bytes && self.log_bytes != share;
        if full || share.abs_diff(self.log_bytes) > self.log_bytes / 8 {
            self.log_bytes = share;
            for shard in self.shards.iter() {
                shard.tell(ToShard::Limits(shard_limits(&self.config, share)));
            }
        }
    }

    async fn make(&mut self, config: &StreamConfig, via: Arc<str>, home: Option<u16>) {
        if self.streams.find(&config.name).is_some() {
            // It was added while its request waited.
            return self.registry.forget(Instant::now(), &config.name);
        }
        match self.streams.add(config, Some(via), home).await {
            Some(id) => {
                self.registry.made(&config.name, id);
                self.share_logs();
                process::count(Counter::StreamsMade);
                match config.source {
                    SourceKind::Publisher { .. } => info!(stream = %config.name, "made"),
                    // It is not known yet whether the stream exists.
                    _ => debug!(stream = %config.name, "made"),
                }
                self.events.tell(&config.name, &Event::Made);
            }
            None => {
                warn!(stream = %config.name, "not created: too many removed streams still have clients, so a new stream cannot get an id");
                self.registry.not_made(Instant::now(), &config.name.as_str().into());
            }
        }
    }

    /// Changes the streams to those of a configuration, and reports those that are added and removed.
    ///
    /// # Errors
    /// As [`Streams::become_those`](super::streams::Streams::become_those).
    pub(super) async fn become_those(&mut self, wanted: &[StreamConfig]) -> Result<Changes, Failure> {
        let before: HashMap<_, _> = self.streams.configs().map(|stream| (stream.name.clone(), stream.made)).collect();
        let changes = self.streams.become_those(wanted).await?;
        let after: HashSet<_> = self.streams.configs().map(|stream| stream.name.as_str()).collect();
        for (name, made) in before.iter().filter(|(name, _)| !after.contains(name.as_str())) {
            if *made {
                process::count(Counter::StreamsGone);
            }
            self.events.tell(name, &Event::Gone(Gone::Removed.name()));
        }
        after.iter().filter(|name| !before.contains_key(**name)).for_each(|name| self.events.tell(name, &Event::Made));
        Ok(changes)
    }

    pub(super) async fn unmake(&mut self, id: StreamId, name: &str, why: Gone) {
        if self.streams.remove_now(id).await {
            self.share_logs();
            process::count(Counter::StreamsGone);
            match why {
                Gone::NotFound | Gone::NotUp => debug!(stream = %name, reason = why.name(), "gone"),
                _ => info!(stream = %name, reason = why.name(), "gone"),
            }
            self.events.tell(name, &Event::Gone(why.name()));
        }
    }

    /// The streams of a reloaded configuration, with those created by name that may remain.
    pub(super) fn with_made(&mut self, config: &Config) -> Vec<StreamConfig> {
        let now = Instant::now();
        self.registry.set_patterns(config.patterns.clone());
        self.drop_written(config);
        let mut streams = config.streams.clone();
        streams.extend(self.added.iter().map(|added| added.config.clone()));
        let written = streams.clone();
        let written: HashSet<&str> = written.iter().map(|stream| stream.name.as_str()).collect();
        for name in self.registry.names().cloned().collect::<Vec<_>>() {
            match self.registry.config(&name).filter(|_| !written.contains(&*name)) {
                Some(made) => streams.push(made),
                None => self.registry.forget(now, &name),
            }
        }
        streams
    }
}
