//! Published streams: players and publishers connect to any shard and leave, publishers replace one another, streams are
//! removed and others reuse their ids, and some shards are slower than others. Everything follows from a seed.

use crate::world::{Doing, SHARDS, World};

const STREAMS: usize = 5;

impl World {
    fn join_any(&mut self, publishes: bool) {
        let stream = &self.streams[self.rng.usize(..STREAMS)];
        let (path, number) = (stream.setup.name.clone(), stream.number);
        self.join(publishes, path, Some(number));
    }

    fn disturb(&mut self) {
        let players = self.clients.iter().filter(|client| client.doing == Doing::Plays).count();
        match self.rng.u8(0..100) {
            0..=34 if players < 40 => self.join_any(false),
            35..=44 => self.join_any(true),
            45..=74 if !self.clients.is_empty() => {
                let at = self.rng.usize(..self.clients.len());
                self.leave(at);
            }
            75 => {
                let place = self.rng.usize(..STREAMS);
                self.remove_stream(place);
            }
            76..=79 => {
                let shard = self.rng.usize(..SHARDS);
                self.paces[shard] = self.rng.u8(2..=10);
            }
            _ => {}
        }
    }
}

/// The results of one round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    played: u64,
    crossed: u64,
    moved: u64,
    taken_over: u64,
    replaced: u64,
    digest: u64,
}

fn play(seed: u64) -> Outcome {
    let mut world = World::new(seed, STREAMS);
    for step in 0..3_000 {
        if world.rng.u8(0..5) == 0 {
            world.disturb();
        }
        world.step(10);
        if step % 100 == 99 {
            world.settle();
        }
    }
    world.settle();
    // Nobody watches any more: after a while nothing crosses threads, however much is published.
    for at in (0..world.clients.len()).rev() {
        if world.clients[at].doing != Doing::Publishes {
            world.leave(at);
        }
    }
    for _ in 0..1_000 {
        world.step(10);
    }
    world.settle();
    let (crossed, home) =
        (world.chunks_crossed, |world: &World| world.streams.iter().map(|s| s.frames_sent).sum::<u64>());
    let sent = home(&world);
    for _ in 0..200 {
        world.step(10);
    }
    world.settle();
    assert_eq!(world.chunks_crossed, crossed, "nobody watches");
    // A publisher whose stream has been removed sends nothing any more, even before its connection is closed.
    let there = |path: &str| world.streams.iter().any(|stream| !stream.removed && stream.setup.name == path);
    let publishes = world.clients.iter().any(|client| client.doing == Doing::Publishes && there(&client.path));
    assert!(!publishes || home(&world) > sent, "something is published");
    Outcome {
        played: world.played,
        crossed,
        moved: world.moved,
        taken_over: world.taken_over,
        replaced: world.replaced,
        digest: world.digest,
    }
}

#[test]
fn players_on_any_shard_miss_nothing_of_streams_that_live_on_others() {
    let mut rng = fastrand::Rng::with_seed(super::seed());
    let mut all = Outcome::default();
    for round in 0..12 {
        let seed = rng.u64(..);
        println!("round {round}: seed {seed}");
        let outcome = play(seed);
        if round == 0 {
            assert_eq!(outcome, play(seed), "a round is not determined by its seed");
        }
        all.played += outcome.played;
        all.crossed += outcome.crossed;
        all.moved += outcome.moved;
        all.taken_over += outcome.taken_over;
        all.replaced += outcome.replaced;
    }
    println!("{all:?}");
    // That all of it happens. How much depends on the seed: in a hundred runs 168 to 1,458 moved, and the more move the less has to cross.
    assert!(all.played > 500 && all.crossed > 500 && all.moved > 20, "{all:?}");
    assert!(all.taken_over > 50 && all.replaced > 20, "{all:?}");
}
