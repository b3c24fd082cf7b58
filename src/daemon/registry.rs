//! Decides which streams are created by name, and when they are removed. It has no socket, clock or task: requests, news and the time
//! go in, and actions come out.
//!
//! All state here is about existing streams, current lookups, or a limited number of cached names: nothing grows with the number of
//! requests.

#![cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "the simulation reaches it"))]

#[path = "registry_saved.rs"]
mod saved;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{PatternConfig, StreamConfig};
use crate::crowd::origin;
use crate::limits::{
    ANNOUNCED_WAIT_S, LOOKUP_WAIT_MS, LOOKUPS_OF_PATTERN_MAX, LOOKUPS_PER_ADDRESS_MAX, LOOKUPS_WAITING_MAX,
    NOT_FOUND_KEPT_MAX, NOT_FOUND_KEPT_MS, STREAMS_MAX,
};
use crate::media::name::longest;
use crate::media::{SourceState, StreamId};
use crate::source::news::SourceNews;

/// Why a created stream was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Its origins have no stream of that name.
    NotFound,
    /// Nobody has requested it for `on_demand_stop`.
    Unwanted,
    /// Its publisher has been away for `linger`.
    Unpublished,
    /// The relays pull it from one another in a loop.
    Loop,
    /// No origin played it within `on_demand_start`, or before everyone who requested it gave up.
    NotUp,
    /// It is no longer configured, or was removed.
    Removed,
}

impl Gone {
    /// Its name in events; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Gone::NotFound => "not_found",
            Gone::Unwanted => "unwanted",
            Gone::Unpublished => "unpublished",
            Gone::Loop => "loop",
            Gone::NotUp => "not_up",
            Gone::Removed => "removed",
        }
    }

    /// The one with that name; for an unknown one, [`Gone::Unwanted`].
    fn named(name: &str) -> Gone {
        let known = [Gone::NotFound, Gone::Unpublished, Gone::Loop, Gone::NotUp, Gone::Removed];
        known.into_iter().find(|gone| gone.name() == name).unwrap_or(Gone::Unwanted)
    }
}

/// A request for a name that no stream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name.
    pub name: Arc<str>,
    /// The client's address.
    pub peer: IpAddr,
    /// Whether to publish it.
    pub publish: bool,
    /// The relays that the request has passed through.
    pub via: Arc<str>,
    /// The shard that has its connection.
    pub shard: u16,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Create this stream, then call [`Registry::made`].
    Make {
        /// Its configuration.
        config: Box<StreamConfig>,
        /// The relays that the request for it has passed through.
        via: Arc<str>,
        /// The shard that must be its home: the one with its publisher's connection; `None` for the least busy one.
        home: Option<u16>,
    },
    /// A client waits for a publisher of this name.
    Wait(Arc<str>),
    /// Answer the requests that wait for the name, or those from one origin, with this status.
    Refuse {
        /// The name.
        name: Arc<str>,
        /// The origin.
        from: Option<IpAddr>,
        /// The status.
        status: u16,
    },
    /// Answer the requests that wait for the stream with this status; with 503, name the relays.
    NotUp {
        /// The stream.
        id: StreamId,
        /// The status.
        status: u16,
        /// The relays.
        path: Option<Arc<str>>,
    },
    /// Remove the stream.
    Remove {
        /// The stream.
        id: StreamId,
        /// Its name.
        name: Arc<str>,
        /// Why.
        why: Gone,
    },
}

/// A stream that was created.
#[derive(Debug)]
struct Made {
    /// `None` until [`Registry::made`].
    id: Option<StreamId>,
    /// The pattern as text.
    under: String,
    linger: Duration,
    published: bool,
    /// The address that requested the lookup, while it is in progress.
    lookup: Option<IpAddr>,
    was_live: bool,
    /// When it will be removed, and why.
    due: Option<(Instant, Gone)>,
}

/// A lookup that waits for its turn.
#[derive(Debug)]
struct Waiting {
    wanted: Wanted,
    until: Instant,
}

/// Counts per pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Under {
    streams: usize,
    lookups: usize,
}

/// The streams created by name.
#[derive(Debug, Default)]
pub struct Registry {
    patterns: Vec<PatternConfig>,
    streams: HashMap<Arc<str>, Made>,
    names: HashMap<StreamId, Arc<str>>,
    under: HashMap<String, Under>,
    lookups: HashMap<IpAddr, usize>,
    waiting: VecDeque<Waiting>,
    due: BTreeSet<(Instant, Arc<str>)>,
    missing: HashMap<Arc<str>, Instant>,
    /// In the order in which they were found missing.
    missing_order: VecDeque<(Instant, Arc<str>)>,
    acts: VecDeque<Act>,
}

impl Registry {
    /// The next action.
    pub fn next_act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// The number of created streams.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// The configuration of the stream with this name, if a pattern creates it.
    pub fn config(&self, name: &str) -> Option<StreamConfig> {
        longest(&self.patterns, |one| &one.pattern, name)?.stream(name)
    }

    /// The names of the created streams, in no order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.streams.keys()
    }

    /// A name that no stream has is requested. `others` is the number of other streams.
    pub fn wanted(&mut self, now: Instant, wanted: Wanted, others: usize) {
        self.forget_missing(now);
        if self.streams.contains_key(&wanted.name) {
            // The shard will get the stream, or has got it meanwhile.
            return;
        }
        let Some(pattern) = longest(&self.patterns, |one| &one.pattern, &wanted.name) else {
            return self.refuse(&wanted, None, 404);
        };
        if pattern.is_published() && !wanted.publish {
            return self.acts.push_back(Act::Wait(wanted.name));
        }
        if !pattern.is_published() && wanted.publish {
            return self.refuse(&wanted, None, 405);
        }
        if !wanted.publish && self.missing.contains_key(&wanted.name) {
            return self.refuse(&wanted, None, 404);
        }
        if self.is_full(pattern, others) {
            return self.refuse(&wanted, None, 503);
        }
        if pattern.is_published() || self.has_turn(pattern, origin(wanted.peer)) {
            return self.make(now, wanted);
        }
        let from = origin(wanted.peer);
        let of_origin = self.waiting.iter().filter(|waiting| origin(waiting.wanted.peer) == from).count();
        if self.waiting.len() >= LOOKUPS_WAITING_MAX || of_origin >= LOOKUPS_WAITING_MAX / 8 {
            return self.refuse(&wanted, Some(from), 503);
        }
        self.waiting.push_back(Waiting { wanted, until: now + Duration::from_millis(LOOKUP_WAIT_MS) });
    }

    /// The stream with this name was created.
    pub fn made(&mut self, name: &str, id: StreamId) {
        let Some((name, _)) = self.streams.get_key_value(name) else { return };
        let name = Arc::clone(name);
        if let Some(made) = self.streams.get_mut(&name) {
            made.id = Some(id);
        }
        self.names.insert(id, name);
    }

    /// The stream with this name could not be created.
    pub fn not_made(&mut self, now: Instant, name: &Arc<str>) {
        self.acts.push_back(Act::Refuse { name: Arc::clone(name), from: None, status: 503 });
        self.forget(now, name);
    }

    /// A source's news. News about streams that were not created by name are ignored.
    pub fn news(&mut self, now: Instant, id: StreamId, news: &SourceNews) {
        let Some(name) = self.names.get(&id).cloned() else { return };
        let Some(made) = self.streams.get_mut(&name) else { return };
        let linger = made.linger;
        match news {
            SourceNews::State(SourceState::Live) => {
                made.was_live = true;
                self.end_lookup(now, &name);
                self.set_due(&name, None);
            }
            SourceNews::NotFound if made.was_live => {
                if made.due.is_none() {
                    self.set_due(&name, Some((now + linger, Gone::NotFound)));
                }
            }
            SourceNews::NotFound => {
                self.note_missing(now, Arc::clone(&name));
                self.acts.push_back(Act::NotUp { id, status: 404, path: None });
                self.remove(now, &name, Gone::NotFound);
            }
            SourceNews::Loop(path) if !made.was_live => {
                self.acts.push_back(Act::NotUp { id, status: 503, path: Some(Arc::clone(path)) });
                self.remove(now, &name, Gone::Loop);
            }
            SourceNews::Unwanted => {
                let why = if made.was_live { Gone::Unwanted } else { Gone::NotUp };
                self.remove(now, &name, why);
            }
            SourceNews::Publisher(true) => self.set_due(&name, None),
            SourceNews::Publisher(false) => self.set_due(&name, Some((now + linger, Gone::Unpublished))),
            SourceNews::State(_) | SourceNews::Loop(_) | SourceNews::Path(_) => {}
        }
    }

    /// When [`Registry::tick`] is due.
    pub fn next_due(&self) -> Option<Instant> {
        let due = self.due.first().map(|(due, _)| *due);
        due.into_iter().chain(self.waiting.front().map(|waiting| waiting.until)).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        while let Some((due, name)) = self.due.first().cloned() {
            if due > now {
                break;
            }
            let Some(Made { id, due: Some((_, why)), .. }) = self.streams.get(&name) else { break };
            let why = *why;
            if let (Some(id), Gone::NotUp) = (*id, why) {
                self.acts.push_back(Act::NotUp { id, status: 503, path: None });
            }
            self.remove(now, &name, why);
        }
        while self.waiting.front().is_some_and(|waiting| waiting.until <= now) {
            let Some(Waiting { wanted, .. }) = self.waiting.pop_front() else { break };
            self.refuse(&wanted, Some(origin(wanted.peer)), 503);
        }
        self.forget_missing(now);
    }

    /// Sets the patterns. Streams under a changed or different pattern continue with the new one. The caller decides which are kept, with
    /// [`Registry::config`].
    pub fn set_patterns(&mut self, patterns: Vec<PatternConfig>) {
        self.patterns = patterns;
        self.missing.clear();
        self.missing_order.clear();
        self.under.clear();
        for (name, made) in &mut self.streams {
            let Some(pattern) = longest(&self.patterns, |one| &one.pattern, name) else { continue };
            (made.under, made.linger) = (pattern.pattern.to_string(), pattern.linger);
            made.published = pattern.is_published();
            let under = self.under.entry(made.under.clone()).or_default();
            under.streams += 1;
            under.lookups += usize::from(made.lookup.is_some());
        }
    }

    /// A stream was removed, or is configured from now on: requests for its name start over.
    pub fn forget(&mut self, now: Instant, name: &str) {
        self.end_lookup(now, name);
        self.set_due(name, None);
        let Some(made) = self.streams.remove(name) else { return };
        if let Some(id) = made.id {
            self.names.remove(&id);
        }
        if let Some(under) = self.under.get_mut(&made.under) {
            under.streams -= 1;
            if *under == Under::default() {
                self.under.remove(&made.under);
            }
        }
    }

    fn refuse(&mut self, wanted: &Wanted, from: Option<IpAddr>, status: u16) {
        self.acts.push_back(Act::Refuse { name: Arc::clone(&wanted.name), from, status });
    }

    fn is_full(&self, pattern: &PatternConfig, others: usize) -> bool {
        self.under(pattern).streams >= pattern.streams_max || self.streams.len() + others >= STREAMS_MAX
    }

    fn under(&self, pattern: &PatternConfig) -> Under {
        self.under.get(&pattern.pattern.to_string()).copied().unwrap_or_default()
    }

    /// Whether one more name may be looked up for this origin.
    fn has_turn(&self, pattern: &PatternConfig, from: IpAddr) -> bool {
        self.under(pattern).lookups < LOOKUPS_OF_PATTERN_MAX
            && self.lookups.get(&from).copied().unwrap_or(0) < LOOKUPS_PER_ADDRESS_MAX
    }

    fn make(&mut self, now: Instant, wanted: Wanted) {
        let Wanted { name, peer, via, shard, .. } = wanted;
        let Some(pattern) = longest(&self.patterns, |one| &one.pattern, &name) else { return };
        let Some(config) = pattern.stream(&name) else { return };
        let (published, under, linger) = (pattern.is_published(), pattern.pattern.to_string(), pattern.linger);
        let wait = pattern.wait();
        let lookup = (!published).then(|| origin(peer));
        let counted = self.under.entry(under.clone()).or_default();
        counted.streams += 1;
        if let Some(from) = lookup {
            counted.lookups += 1;
            *self.lookups.entry(from).or_default() += 1;
        }
        self.waiting.retain(|waiting| waiting.wanted.name != name);
        let made = Made { id: None, under, linger, published, lookup, was_live: false, due: None };
        self.streams.insert(Arc::clone(&name), made);
        // A publisher gets time between ANNOUNCE and RECORD, however short `linger` is. And a lookup ends however often the stream is
        // requested meanwhile: behind servers that drop the ids of a loop, the relay itself may be requesting it.
        let due = if published {
            (now + Duration::from_secs(ANNOUNCED_WAIT_S), Gone::Unpublished)
        } else {
            (now + wait, Gone::NotUp)
        };
        self.set_due(&name, Some(due));
        self.acts.push_back(Act::Make { config: Box::new(config), via, home: published.then_some(shard) });
    }

    fn remove(&mut self, now: Instant, name: &Arc<str>, why: Gone) {
        if let Some(id) = self.streams.get(name).and_then(|made| made.id) {
            self.acts.push_back(Act::Remove { id, name: Arc::clone(name), why });
        }
        self.forget(now, name);
    }

    /// A lookup has ended: others get their turn.
    fn end_lookup(&mut self, now: Instant, name: &str) {
        let Some(made) = self.streams.get_mut(name) else { return };
        let Some(from) = made.lookup.take() else { return };
        if let Some(under) = self.under.get_mut(&made.under) {
            under.lookups -= 1;
        }
        if let Some(lookups) = self.lookups.get_mut(&from) {
            *lookups -= 1;
            if *lookups == 0 {
                self.lookups.remove(&from);
            }
        }
        self.next_turns(now);
    }

    fn next_turns(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(Waiting { wanted, .. }) = self.waiting.get(at) {
            let pattern = longest(&self.patterns, |one| &one.pattern, &wanted.name);
            match pattern {
                Some(pattern) if self.is_full(pattern, 0) || !self.has_turn(pattern, origin(wanted.peer)) => at += 1,
                Some(_) => {
                    if let Some(Waiting { wanted, .. }) = self.waiting.remove(at) {
                        self.make(now, wanted);
                    }
                    // Others that waited for the same name are already gone.
                    at = 0;
                }
                None => at += 1,
            }
        }
    }

    fn set_due(&mut self, name: &str, due: Option<(Instant, Gone)>) {
        let Some((key, _)) = self.streams.get_key_value(name) else { return };
        let key = Arc::clone(key);
        let Some(made) = self.streams.get_mut(name) else { return };
        if let Some((at, _)) = std::mem::replace(&mut made.due, due) {
            self.due.remove(&(at, Arc::clone(&key)));
        }
        if let Some((at, _)) = due {
            self.due.insert((at, key));
        }
    }

    fn note_missing(&mut self, now: Instant, name: Arc<str>) {
        while self.missing_order.len() >= NOT_FOUND_KEPT_MAX {
            self.forget_oldest_missing();
        }
        let until = now + Duration::from_millis(NOT_FOUND_KEPT_MS);
        self.missing.insert(Arc::clone(&name), until);
        self.missing_order.push_back((until, name));
    }

    fn forget_missing(&mut self, now: Instant) {
        while self.missing_order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest_missing();
        }
    }

    fn forget_oldest_missing(&mut self) {
        if let Some((until, name)) = self.missing_order.pop_front()
            && self.missing.get(&name) == Some(&until)
        {
            self.missing.remove(&name);
        }
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
