//! Names that are requested, found, not found, published and unused; the last test uses random operations from a seed.

use super::*;
use crate::config::SourceKind;
use crate::media::name::Pattern;

const LINGER: Duration = Duration::from_secs(60);

fn pattern(text: &str, published: bool, streams_max: usize) -> PatternConfig {
    let source = if published { SourceKind::Publisher { takeover: false } } else { SourceKind::Test };
    let pattern = Pattern::parse(text).expect("a star").expect("a pattern");
    let mut config = PatternConfig::new(pattern, source);
    config.streams_max = streams_max;
    config
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.set_patterns(vec![pattern("edge/*", false, 100), pattern("live/*", true, 3), pattern("edge/x*", true, 5)]);
    registry
}

fn wanted(name: &str, peer: [u8; 4], publish: bool) -> Wanted {
    Wanted { name: name.into(), peer: IpAddr::from(peer), publish, via: "".into(), shard: 0 }
}

const PEER: [u8; 4] = [192, 0, 2, 1];

/// The actions, in short words; streams are created with ids from `next` on.
fn act(registry: &mut Registry, next: &mut u16) -> Vec<String> {
    let mut said = Vec::new();
    while let Some(act) = registry.next_act() {
        said.push(match act {
            Act::Make { config, .. } => {
                registry.made(&config.name, StreamId::first(*next));
                *next += 1;
                format!("make {}", config.name)
            }
            Act::Wait(name) => format!("wait {name}"),
            Act::Refuse { name, from, status } => {
                format!("{status} {name}{}", if from.is_some() { " here" } else { "" })
            }
            Act::NotUp { status, .. } => format!("not up {status}"),
            Act::Remove { name, why, .. } => format!("remove {name} {}", why.name()),
        });
    }
    said
}

#[test]
fn a_pulled_name_is_made_once_and_goes_when_nobody_wants_it() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    registry.wanted(now, wanted("edge/a", PEER, false), 0);
    registry.wanted(now, wanted("edge/a", [192, 0, 2, 2], false), 0);
    assert_eq!(act(&mut registry, &mut next), ["make edge/a"]);
    registry.news(now, StreamId::first(0), &SourceNews::State(SourceState::Live));
    registry.news(now, StreamId::first(0), &SourceNews::Unwanted);
    assert_eq!(act(&mut registry, &mut next), ["remove edge/a unwanted"]);
    registry.wanted(now, wanted("edge/", PEER, false), 0);
    registry.wanted(now, wanted("else", PEER, false), 0);
    registry.wanted(now, wanted("edge/b", PEER, true), 0);
    assert_eq!(act(&mut registry, &mut next), ["404 edge/", "404 else", "405 edge/b"]);
    assert_eq!((registry.count(), registry.lookups.len(), registry.under.len()), (0, 0, 0));
}

#[test]
fn a_name_that_is_not_found_is_answered_from_memory_for_a_second() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    registry.wanted(now, wanted("edge/a", PEER, false), 0);
    act(&mut registry, &mut next);
    registry.news(now, StreamId::first(0), &SourceNews::NotFound);
    assert_eq!(act(&mut registry, &mut next), ["not up 404", "remove edge/a not_found"]);
    registry.wanted(now + Duration::from_millis(999), wanted("edge/a", PEER, false), 0);
    assert_eq!(act(&mut registry, &mut next), ["404 edge/a"]);
    registry.wanted(now + Duration::from_millis(1_000), wanted("edge/a", PEER, false), 0);
    assert_eq!(act(&mut registry, &mut next), ["make edge/a"]);
    // A stream that was live remains for its players.
    registry.news(now, StreamId::first(1), &SourceNews::State(SourceState::Live));
    registry.news(now, StreamId::first(1), &SourceNews::NotFound);
    registry.news(now + LINGER / 2, StreamId::first(1), &SourceNews::NotFound);
    assert_eq!(registry.next_due(), Some(now + LINGER));
    registry.tick(now + LINGER - Duration::from_millis(1));
    assert_eq!(act(&mut registry, &mut next), [""; 0]);
    registry.tick(now + LINGER);
    assert_eq!(act(&mut registry, &mut next), ["remove edge/a not_found"]);
    // And one that comes back remains.
    registry.wanted(now, wanted("edge/b", PEER, false), 0);
    act(&mut registry, &mut next);
    for news in [SourceState::Live, SourceState::Down] {
        registry.news(now, StreamId::first(2), &SourceNews::State(news));
    }
    registry.news(now, StreamId::first(2), &SourceNews::NotFound);
    registry.news(now, StreamId::first(2), &SourceNews::State(SourceState::Live));
    assert_eq!(registry.next_due(), None);
    let many = NOT_FOUND_KEPT_MAX + 10;
    for number in 0..many {
        registry.note_missing(now, format!("edge/{number}").into());
    }
    assert_eq!((registry.missing.len(), registry.missing_order.len()), (NOT_FOUND_KEPT_MAX, NOT_FOUND_KEPT_MAX));
}

#[test]
fn a_published_name_is_made_by_its_publisher_and_lingers() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    registry.wanted(now, wanted("live/a", PEER, false), 0);
    registry.wanted(now, wanted("live/a", PEER, true), 0);
    assert_eq!(act(&mut registry, &mut next), ["wait live/a", "make live/a"]);
    assert_eq!(registry.next_due(), Some(now + Duration::from_secs(ANNOUNCED_WAIT_S)));
    registry.news(now, StreamId::first(0), &SourceNews::Publisher(true));
    assert_eq!(registry.next_due(), None);
    registry.news(now, StreamId::first(0), &SourceNews::Publisher(false));
    registry.news(now + LINGER / 2, StreamId::first(0), &SourceNews::Publisher(true));
    registry.tick(now + LINGER);
    assert_eq!(act(&mut registry, &mut next), [""; 0]);
    registry.news(now, StreamId::first(0), &SourceNews::Publisher(false));
    registry.tick(now + LINGER);
    assert_eq!(act(&mut registry, &mut next), ["remove live/a unpublished"]);
}

#[test]
fn lookups_and_streams_are_bounded() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    for number in 0..LOOKUPS_PER_ADDRESS_MAX + 2 {
        registry.wanted(now, wanted(&format!("edge/{number}"), PEER, false), 0);
    }
    assert_eq!(act(&mut registry, &mut next).len(), LOOKUPS_PER_ADDRESS_MAX);
    registry.wanted(now, wanted("edge/other", [192, 0, 2, 9], false), 0);
    assert_eq!(act(&mut registry, &mut next), ["make edge/other"], "another address has its own");
    registry.news(now, StreamId::first(0), &SourceNews::State(SourceState::Live));
    assert_eq!(act(&mut registry, &mut next), ["make edge/4"]);
    registry.tick(now + Duration::from_millis(LOOKUP_WAIT_MS));
    assert_eq!(act(&mut registry, &mut next), ["503 edge/5 here"]);
    for number in 0..200u8 {
        registry.wanted(now, wanted(&format!("edge/n{number}"), [192, 0, 3, number], false), 0);
    }
    let made = act(&mut registry, &mut next).len();
    assert_eq!(made, LOOKUPS_OF_PATTERN_MAX - LOOKUPS_PER_ADDRESS_MAX - 1);
    for number in 0..5 {
        registry.wanted(now, wanted(&format!("live/{number}"), PEER, true), 0);
    }
    let said = act(&mut registry, &mut next);
    assert_eq!(said, ["make live/0", "make live/1", "make live/2", "503 live/3", "503 live/4"]);
    registry.wanted(now, wanted("edge/x1", PEER, true), STREAMS_MAX);
    assert_eq!(act(&mut registry, &mut next), ["503 edge/x1"], "all streams together are bounded too");
}

#[test]
fn a_loop_is_told_to_those_who_wait() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    registry.wanted(now, wanted("edge/a", PEER, false), 0);
    act(&mut registry, &mut next);
    registry.news(now, StreamId::first(0), &SourceNews::Loop("A, B".into()));
    let first = registry.next_act();
    assert_eq!(first, Some(Act::NotUp { id: StreamId::first(0), status: 503, path: Some("A, B".into()) }));
    assert_eq!(act(&mut registry, &mut next), ["remove edge/a loop"]);
}

#[test]
fn a_lookup_ends_however_often_the_stream_is_asked_for() {
    let (mut registry, mut next, now) = (registry(), 0, Instant::now());
    let wait = pattern("edge/*", false, 1).wait();
    for name in ["edge/a", "edge/b"] {
        registry.wanted(now, wanted(name, PEER, false), 0);
    }
    act(&mut registry, &mut next);
    registry.news(now, StreamId::first(1), &SourceNews::State(SourceState::Live));
    let later = now + wait - Duration::from_millis(1);
    registry.news(later, StreamId::first(0), &SourceNews::State(SourceState::Down));
    registry.wanted(later, wanted("edge/a", PEER, false), 0);
    registry.tick(later);
    assert_eq!((act(&mut registry, &mut next), registry.next_due()), (vec![], Some(now + wait)));
    registry.tick(now + wait);
    assert_eq!(act(&mut registry, &mut next), ["not up 503", "remove edge/a not_up"]);
    // One that was live remains as long as it is requested.
    assert_eq!((registry.count(), registry.lookups.len(), registry.next_due()), (1, 0, None));
}

#[test]
fn a_million_streams_come_and_go_and_nothing_is_left() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut registry, mut now) = (registry(), Instant::now());
    let mut there: Vec<(StreamId, String)> = Vec::new();
    let (mut ids, mut made) = (crate::daemon::stream_ids::StreamIds::new(1), 0u64);
    let mut largest = 0;
    while made < 1_000_000 {
        now += Duration::from_millis(random.u64(0..50));
        let name = format!("{}{}", random.choice(["edge/", "edge/x", "live/", "none/"]).unwrap(), random.u32(0..5_000));
        let peer = [10, 0, random.u8(0..4), random.u8(..)];
        match random.u8(0..10) {
            0..7 => registry.wanted(now, wanted(&name, peer, random.bool()), 10),
            7 if !there.is_empty() => {
                let (id, name) = there.swap_remove(random.usize(0..there.len()));
                registry.forget(now, &name);
                ids.removed(id);
                ids.released(id);
            }
            8 => registry.tick(now),
            _ => {}
        }
        if let Some((id, _)) = random.choice(&there) {
            let news = match random.u8(0..8) {
                0 | 1 => SourceNews::State(SourceState::Live),
                2 => SourceNews::NotFound,
                3 => SourceNews::Loop("A".into()),
                4 => SourceNews::Publisher(true),
                5 => SourceNews::Publisher(false),
                _ => SourceNews::Unwanted,
            };
            registry.news(now, *id, &news);
        }
        while let Some(act) = registry.next_act() {
            match act {
                Act::Make { config, .. } => {
                    made += 1;
                    let id = ids.take().expect("an id");
                    registry.made(&config.name, id);
                    there.push((id, config.name.clone()));
                }
                Act::Remove { id, .. } => {
                    there.retain(|(have, _)| *have != id);
                    ids.removed(id);
                    ids.released(id);
                }
                _ => {}
            }
        }
        assert_eq!(registry.count(), there.len());
        largest = largest.max(registry.missing.len() + registry.waiting.len() + registry.lookups.len());
    }
    assert!(largest < NOT_FOUND_KEPT_MAX + LOOKUPS_WAITING_MAX + 1_024, "{largest}");
    now += 2 * LINGER;
    registry.tick(now);
    while registry.next_act().is_some() {}
    for name in registry.names().cloned().collect::<Vec<_>>() {
        registry.forget(now, &name);
    }
    registry.tick(now + LINGER);
    let left =
        (registry.count(), registry.names.len(), registry.lookups.len(), registry.due.len(), registry.missing.len());
    assert_eq!(left, (0, 0, 0, 0, 0));
    let busy: Vec<_> = registry.under.values().filter(|under| **under != Under::default()).collect();
    assert!(busy.is_empty(), "{busy:?}");
}
