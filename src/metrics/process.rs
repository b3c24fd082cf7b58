//! Counts for the whole process: rare events on any thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::{Counter, Limited, Panicked};

/// The parts of an upgrade, in their order.
pub const UPGRADE_PARTS: [&str; 5] = ["start", "copy", "freeze", "save", "restore"];

static LIMITED: [AtomicU64; Limited::COUNT] = [const { AtomicU64::new(0) }; Limited::COUNT];
static COUNTED: [AtomicU64; Counter::COUNT] = [const { AtomicU64::new(0) }; Counter::COUNT];
static PANICKED: [AtomicU64; Panicked::COUNT] = [const { AtomicU64::new(0) }; Panicked::COUNT];
static UPGRADE_US: [AtomicU64; UPGRADE_PARTS.len()] = [const { AtomicU64::new(0) }; UPGRADE_PARTS.len()];
static LEAVES_UNTIL_MS: AtomicU64 = AtomicU64::new(0);
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);
static CARRIERS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// A limit was exceeded before any shard was involved.
pub fn limited(limited: Limited) {
    LIMITED[limited.index()].fetch_add(1, Ordering::Relaxed);
}

/// Something happened outside of the shards that is counted together with theirs.
pub fn count(counter: Counter) {
    COUNTED[counter.index()].fetch_add(1, Ordering::Relaxed);
}

/// Code panicked, and only what it was working for was ended.
pub fn panicked(what: Panicked) {
    PANICKED[what.index()].fetch_add(1, Ordering::Relaxed);
}

/// The relay is leaving, and will exit by then.
pub fn leave(until: SystemTime) {
    let ms = until.duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64);
    LEAVES_UNTIL_MS.store(ms.max(1), Ordering::Relaxed);
}

/// When it will exit, if it is leaving.
pub fn leaves_until() -> Option<SystemTime> {
    let ms = LEAVES_UNTIL_MS.load(Ordering::Relaxed);
    (ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

/// This process has taken over from another, which took so long for each of [`UPGRADE_PARTS`].
pub fn took_over(took: [Duration; UPGRADE_PARTS.len()]) {
    for (us, took) in UPGRADE_US.iter().zip(took) {
        us.store(took.as_micros().max(1) as u64, Ordering::Relaxed);
    }
}

/// How long each of [`UPGRADE_PARTS`] took, if this process has taken over from another.
pub(super) fn upgrade_took() -> Option<[Duration; UPGRADE_PARTS.len()]> {
    let took: [u64; UPGRADE_PARTS.len()] = std::array::from_fn(|part| UPGRADE_US[part].load(Ordering::Relaxed));
    (took[0] > 0).then(|| took.map(Duration::from_micros))
}

/// Lines of the log and of reports could not be written.
pub fn lines_dropped(lines: u64) {
    LINES_DROPPED.fetch_add(lines, Ordering::Relaxed);
}

/// Continues the counts of another process, by [`Counter`], [`Limited`] and [`Panicked`].
pub(super) fn restore(
    counted: &[u64; Counter::COUNT],
    limited: &[u64; Limited::COUNT],
    panicked: &[u64; Panicked::COUNT],
    lines: u64,
) {
    let add = |into: &[AtomicU64], counts: &[u64]| {
        for (into, count) in into.iter().zip(counts) {
            into.fetch_add(*count, Ordering::Relaxed);
        }
    };
    add(&COUNTED, counted);
    add(&LIMITED, limited);
    add(&PANICKED, panicked);
    lines_dropped(lines);
}

/// So many processes carry so many TLS connections for this one.
pub fn set_carriers(processes: usize, connections: usize) {
    CARRIERS[0].store(processes, Ordering::Relaxed);
    CARRIERS[1].store(connections, Ordering::Relaxed);
}

/// What [`set_carriers`] was told last: processes, connections.
pub fn carriers() -> (usize, usize) {
    (CARRIERS[0].load(Ordering::Relaxed), CARRIERS[1].load(Ordering::Relaxed))
}

/// The counts of [`limited`], by [`Limited`].
pub(super) fn limited_total() -> [u64; Limited::COUNT] {
    std::array::from_fn(|index| LIMITED[index].load(Ordering::Relaxed))
}

/// The counts of [`count`], by [`Counter`].
pub(super) fn counted_total() -> [u64; Counter::COUNT] {
    std::array::from_fn(|index| COUNTED[index].load(Ordering::Relaxed))
}

/// What [`panicked`] counted.
pub(super) fn panicked_total(what: Panicked) -> u64 {
    PANICKED[what.index()].load(Ordering::Relaxed)
}

/// What [`lines_dropped`] counted.
pub(super) fn lines_dropped_total() -> u64 {
    LINES_DROPPED.load(Ordering::Relaxed)
}
