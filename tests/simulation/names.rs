//! Streams that are created and removed by name: the control thread's registry and whole shards, with clients that come and go, origins
//! that gain and lose streams, administrators who remove them and patterns that change. Everything follows from a seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rtsprelay::config::{PatternConfig, SourceKind};
use rtsprelay::daemon::registry::{Act, Gone, Registry, Wanted};
use rtsprelay::media::name::{NamePattern, NameRules, Pattern};
use rtsprelay::media::{SourceState, StreamEvent, StreamId};
use rtsprelay::session::{NameWanted, NotMade};
use rtsprelay::shard::core::StreamSetup;
use rtsprelay::shard::inbox::{ToControl, ToShard};
use rtsprelay::source::news::SourceNews;

use crate::camera::track;
use crate::world::{Client, Doing, FRAME_EVERY, Made, Note, SHARDS, Told, World, frame};

/// The names that are requested.
const PULLED: [&str; 8] = ["edge/a0", "edge/a1", "edge/a2", "edge/a3", "edge/b0", "edge/b1", "edge/b2", "edge/b3"];
const PUBLISHED: [&str; 5] = ["live/a0", "live/a1", "live/a2", "live/b0", "live/b1"];
const NOBODYS: &str = "none/a0";

/// How long a published stream remains after its publisher left.
const LINGER: Duration = Duration::from_secs(2);

/// A request waits for its lookup's turn, for its stream, and for messages in transit, but never longer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(14);

/// What an origin does with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Has,
    HasNot,
    /// Nothing listens there.
    Away,
    /// It takes longer than any request waits.
    Slow,
}

/// What a pulled source does.
#[derive(Clone, Copy, Debug)]
enum Pulling {
    Idle,
    /// When its origin answers.
    Asks(Instant),
    /// When its next frame is due.
    Plays(Instant),
}

/// A source that is pulled while it is wanted.
pub struct Pull {
    /// How long it is kept when it is not.
    stop: Duration,
    pulling: Pulling,
    /// The shards that want it.
    wanting: [bool; SHARDS],
    /// It is wanted now and was not before.
    asked: bool,
    /// Since when nobody has wanted it.
    unwanted: Option<Instant>,
    was_live: bool,
    seq: u16,
    sent: u64,
}

impl Pull {
    fn is_unwanted(&mut self, now: Instant) -> bool {
        if self.wanting.contains(&true) {
            self.unwanted = None;
            return false;
        }
        if std::mem::take(&mut self.asked) {
            self.unwanted = None;
        }
        let since = *self.unwanted.get_or_insert(now);
        now - since >= if self.was_live { self.stop } else { Duration::ZERO }
    }
}

/// Creates streams by name.
pub struct Names {
    registry: Registry,
    /// Free ids, which are reused before new ones are created.
    pub free: Vec<StreamId>,
    origins: [Origin; PULLED.len()],
    /// The results.
    counts: BTreeMap<&'static str, u64>,
}

impl Names {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn origin(&self, name: &str) -> Origin {
        PULLED.iter().position(|have| *have == name).map_or(Origin::HasNot, |at| self.origins[at])
    }

    /// A request was refused; a publisher's may be refused for other reasons, too.
    pub fn refused(&mut self, answer: &str, client: &Client) {
        if client.doing == Doing::SetsUp {
            let not_found = answer.starts_with("RTSP/1.0 404");
            assert!(not_found || client.path != NOBODYS, "{answer} to {client:?}");
            self.count(if not_found { "answered 404" } else { "answered 503" });
        }
    }
}

/// The patterns: all of them, or fewer, for fewer streams.
fn patterns(all: bool) -> Vec<PatternConfig> {
    let (pulled, published) = if all { ("edge/*", "live/*") } else { ("edge/a*", "live/a*") };
    let pattern = |text, source, streams_max| {
        let mut config = PatternConfig::new(Pattern::parse(text).expect("a star").expect("a pattern"), source);
        (config.streams_max, config.linger) = (streams_max, LINGER);
        config
    };
    vec![pattern(pulled, SourceKind::Test, 6), pattern(published, SourceKind::Publisher { takeover: true }, 4)]
}

fn rules(patterns: &[PatternConfig]) -> Arc<NameRules> {
    let pattern = |config: &PatternConfig| NamePattern {
        pattern: config.pattern.clone(),
        published: config.is_published(),
        wait: config.wait(),
    };
    Arc::new(NameRules { relay: "".into(), patterns: patterns.iter().map(pattern).collect() })
}

impl World {
    fn by_name(seed: u64) -> World {
        let mut world = World::new(seed, 0);
        let (origins, counts) = ([Origin::Has; PULLED.len()], BTreeMap::new());
        world.names = Some(Names { registry: Registry::default(), free: Vec::new(), origins, counts });
        world.read_patterns(true);
        world
    }

    fn names(&mut self) -> &mut Names {
        self.names.as_mut().expect("streams are made by name")
    }

    fn tell_all(&mut self, message: impl Fn() -> ToShard) {
        self.inboxes.iter_mut().for_each(|inbox| inbox.push_back(Note::Shard(message())));
    }

    /// A message to the control thread.
    pub fn told(&mut self, told: Told) {
        let now = self.now;
        match told {
            Told::Shard(shard, ToControl::Wanted(NameWanted { name, peer, publish, via })) => {
                if self.stream_of(&name).is_none() {
                    let wanted = Wanted { name, peer: peer.ip(), publish, via, shard };
                    self.names().registry.wanted(now, wanted, 0);
                }
            }
            Told::Shard(shard, ToControl::Demand { stream: id, wanted }) => {
                let stream = &mut self.streams[id.index()];
                if let Some(pull) = stream.pull.as_mut().filter(|_| stream.setup.id == id) {
                    pull.wanting[usize::from(shard)] = wanted;
                    pull.asked |= wanted;
                }
            }
            Told::Shard(..) => {}
            Told::Source(id, news) => self.names().registry.news(now, id, &news),
        }
        self.act();
    }

    fn act(&mut self) {
        while let Some(act) = self.names().registry.next_act() {
            match act {
                Act::Make { config, home, .. } => {
                    let new = StreamId::first(self.streams.len() as u16);
                    let id = self.names().free.pop().unwrap_or(new);
                    let is_pulled = !matches!(config.source, SourceKind::Publisher { .. });
                    let setup = StreamSetup {
                        id,
                        home: home.unwrap_or_else(|| self.rng.u16(..SHARDS as u16)),
                        name: config.name.clone(),
                        start: config.start,
                        published: !is_pulled,
                        made: true,
                        on_demand: config.on_demand.map(|_| config.on_demand_start),
                        first_wait: Some(config.on_demand_start),
                    };
                    let pull = is_pulled.then(|| Pull {
                        stop: config.on_demand.expect("it is implied").stop,
                        pulling: Pulling::Idle,
                        wanting: [false; SHARDS],
                        asked: false,
                        unwanted: None,
                        was_live: false,
                        seq: self.rng.u16(..),
                        sent: 0,
                    });
                    assert!(self.stream_of(&config.name).is_none(), "{} is created twice", config.name);
                    self.start_stream(setup, pull);
                    self.names().registry.made(&config.name, id);
                    self.names().count("made");
                }
                Act::Wait(name) => {
                    self.names().count("waited for");
                    if self.rng.bool() {
                        // Somebody starts an encoder.
                        self.join(true, name.to_string(), None);
                    }
                }
                Act::Refuse { name, from, status } => {
                    let why = NotMade { status, path: None };
                    self.tell_all(|| ToShard::NotMade { name: Arc::clone(&name), from, why: why.clone() });
                }
                Act::NotUp { id, status, path } => {
                    let why = NotMade { status, path };
                    self.tell_all(|| ToShard::NotUp(id, why.clone()));
                }
                Act::Remove { id, name, why } => {
                    let stream = &self.streams[id.index()];
                    assert!(stream.setup.id == id && stream.setup.name == *name && !stream.removed, "{name}: {why:?}");
                    self.end_stream(id, why);
                }
            }
        }
    }

    fn end_stream(&mut self, id: StreamId, why: Gone) {
        self.names().count(why.name());
        self.remove_stream(id.index());
    }

    /// Somebody removes the stream with this name, if it exists.
    fn remove_named(&mut self, name: &str) {
        let Some(id) = self.stream_of(name).map(|stream| stream.setup.id) else { return };
        let now = self.now;
        self.names().registry.forget(now, name);
        self.end_stream(id, Gone::Removed);
        self.act();
    }

    /// Changes the patterns. Streams that still match continue.
    fn read_patterns(&mut self, all: bool) {
        let (now, patterns) = (self.now, patterns(all));
        let rules = rules(&patterns);
        self.names().registry.set_patterns(patterns);
        let mut names: Vec<_> = self.names().registry.names().cloned().collect();
        // The same order for the same seed.
        names.sort();
        for name in names {
            if self.names().registry.config(&name).is_some() {
                self.names().count("kept");
                continue;
            }
            self.names().registry.forget(now, &name);
            let id = self.stream_of(&name).expect("the registry has it").setup.id;
            self.end_stream(id, Gone::Removed);
        }
        self.tell_all(|| ToShard::Names(Arc::clone(&rules)));
        self.act();
    }

    /// What is due in the registry, and what pulled sources do.
    pub fn names_step(&mut self) {
        let now = self.now;
        if self.names().registry.next_due().is_some_and(|due| due <= now) {
            self.names().registry.tick(now);
            self.act();
        }
        for place in 0..self.streams.len() {
            self.pull(place);
        }
        self.post();
    }

    fn pull(&mut self, place: usize) {
        let (now, rng) = (self.now, &mut self.rng);
        let stream = &mut self.streams[place];
        let (Some(names), false) = (&self.names, stream.removed) else { return };
        let (Some(pull), Some(pipeline)) = (&mut stream.pull, &mut stream.pipeline) else { return };
        let origin = names.origin(&stream.setup.name);
        let (mut made, mut news) = (Made::default(), None);
        let lost = matches!(origin, Origin::HasNot | Origin::Away);
        let is_unwanted = !matches!(pull.pulling, Pulling::Idle) && pull.is_unwanted(now);
        match pull.pulling {
            Pulling::Idle if pull.asked || pull.wanting.contains(&true) => {
                let takes = if origin == Origin::Slow { 15_000 } else { rng.u64(5..200) };
                pull.pulling = Pulling::Asks(now + Duration::from_millis(takes));
                (pull.asked, pull.unwanted) = (false, None);
                made.0.push(StreamEvent::State(SourceState::Connecting));
            }
            Pulling::Idle => {}
            _ if is_unwanted => {
                pull.pulling = Pulling::Idle;
                pipeline.disconnected(&mut made);
                made.0.push(StreamEvent::State(SourceState::Idle));
                news = Some(SourceNews::Unwanted);
            }
            Pulling::Asks(at) if at > now => {}
            Pulling::Asks(_) | Pulling::Plays(_) if lost => {
                pull.pulling = Pulling::Asks(now + Duration::from_millis(rng.u64(200..600)));
                pipeline.disconnected(&mut made);
                made.0.push(StreamEvent::State(SourceState::Down));
                news = (origin == Origin::HasNot).then_some(SourceNews::NotFound);
            }
            Pulling::Asks(_) => {
                (pull.pulling, pull.was_live) = (Pulling::Plays(now), true);
                pipeline.connected(now, vec![track("video", "VP8", 96)], &mut made);
                made.0.push(StreamEvent::State(SourceState::Live));
            }
            Pulling::Plays(due) if due > now => {}
            Pulling::Plays(due) => {
                pull.pulling = Pulling::Plays(due + FRAME_EVERY);
                stream.frames_sent += 1;
                let label = (stream.number, stream.frames_sent);
                for packet in frame(rng, &mut pull.seq, &mut pull.sent, label) {
                    pipeline.packet(rtsprelay::media::TrackId(0), now, &packet, &mut made);
                }
                pipeline.drained(now, &mut made);
            }
        }
        let id = stream.setup.id;
        for event in made.0 {
            self.hosted(place, event);
        }
        self.control.extend(news.map(|news| Told::Source(id, news)));
    }

    fn disturb_names(&mut self) {
        let players = self.clients.iter().filter(|client| client.doing != Doing::Publishes).count();
        let any = |world: &mut World, of: &[&str]| of[world.rng.usize(..of.len())].to_owned();
        match self.rng.u8(0..100) {
            0..=24 if players < 40 => {
                let name = any(self, &PULLED);
                self.join(false, name, None);
            }
            25..=34 if players < 40 => {
                let name = any(self, &PUBLISHED);
                self.join(false, name, None);
            }
            35 => self.join(false, NOBODYS.to_owned(), None),
            36..=40 => {
                let name = any(self, &PUBLISHED);
                self.join(true, name, None);
            }
            41..=66 if !self.clients.is_empty() => {
                let at = self.rng.usize(..self.clients.len());
                self.leave(at);
            }
            67..=72 => {
                let (at, how) = (self.rng.usize(..PULLED.len()), self.rng.u8(0..8));
                let how = [Origin::HasNot, Origin::Away, Origin::Slow].get(usize::from(how));
                self.names().origins[at] = how.copied().unwrap_or(Origin::Has);
            }
            73 => {
                let name = any(self, &[&PULLED[..], &PUBLISHED[..]].concat());
                self.remove_named(&name);
            }
            74 => {
                let all = self.rng.u8(0..3) > 0;
                self.read_patterns(all);
            }
            75..=78 => {
                let shard = self.rng.usize(..SHARDS);
                self.paces[shard] = self.rng.u8(2..=10);
            }
            _ => {}
        }
    }

    fn assert_answered(&self) {
        for client in self.clients.iter().filter(|client| !matches!(client.doing, Doing::Plays | Doing::Publishes)) {
            assert!(self.now - client.asked < ANSWERED_WITHIN, "nobody answers {client:?}");
        }
    }
}

/// The results of one round.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    counts: BTreeMap<&'static str, u64>,
    digest: u64,
}

fn play(seed: u64) -> Outcome {
    let mut world = World::by_name(seed);
    for step in 0..4_000 {
        if world.rng.u8(0..3) == 0 {
            world.disturb_names();
        }
        world.step(40);
        world.assert_answered();
        if step % 100 == 99 {
            world.settle();
        }
    }
    for at in (0..world.clients.len()).rev() {
        world.leave(at);
    }
    for _ in 0..1_500 {
        world.step(40);
    }
    world.settle();
    // Nothing is left: no stream, no id that was not released, no waiting request, no client.
    let there = world.streams.iter().filter(|stream| !stream.removed || stream.released < SHARDS).count();
    let places = world.streams.len();
    let (played, replaced, moved) = (world.played, world.replaced, world.moved);
    assert!(world.clients.is_empty() && world.shards.iter().all(|shard| shard.links() == 0));
    let names = world.names();
    assert_eq!((there, names.registry.count(), names.registry.next_due(), names.free.len()), (0, 0, None, places));
    assert!(places <= 6 + 4 + 40, "{places} places for at most ten streams and those that leave");
    let mut counts = std::mem::take(&mut names.counts);
    counts.extend([("played", played), ("places given back", replaced), ("moved", moved)]);
    Outcome { counts, digest: world.digest }
}

#[test]
fn streams_are_made_and_go_by_name_under_clients_on_all_shards() {
    let mut rng = fastrand::Rng::with_seed(super::seed());
    let mut all: BTreeMap<&'static str, u64> = BTreeMap::new();
    for round in 0..10 {
        let seed = rng.u64(..);
        println!("round {round}: seed {seed}");
        let outcome = play(seed);
        if round == 0 {
            assert_eq!(outcome, play(seed), "a round is not determined by its seed");
        }
        for (what, count) in outcome.counts {
            *all.entry(what).or_default() += count;
        }
    }
    println!("{all:?}");
    for what in
        ["not_found", "unwanted", "unpublished", "not_up", "removed", "waited for", "answered 404", "answered 503"]
    {
        assert!(all.get(what).is_some_and(|count| *count >= 10), "{what} is hardly tested: {all:?}");
    }
    assert!(all["made"] > 500 && all["played"] > 500 && all["kept"] > 50, "{all:?}");
    assert_eq!(all["made"], all["places given back"], "each was removed completely");
}
