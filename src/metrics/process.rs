//! What is counted for the whole process rather than for a shard: rare things, by whatever thread they happen on.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counter, Limited, Panicked};

static LIMITED: [AtomicU64; Limited::COUNT] = [const { AtomicU64::new(0) }; Limited::COUNT];
static COUNTED: [AtomicU64; Counter::COUNT] = [const { AtomicU64::new(0) }; Counter::COUNT];
static PANICKED: [AtomicU64; Panicked::COUNT] = [const { AtomicU64::new(0) }; Panicked::COUNT];
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Somebody passed a limit before any shard knew of him.
pub fn limited(limited: Limited) {
    LIMITED[limited.index()].fetch_add(1, Ordering::Relaxed);
}

/// Something happened on no shard that is counted together with the shards' own.
pub fn count(counter: Counter) {
    COUNTED[counter.index()].fetch_add(1, Ordering::Relaxed);
}

/// Code has panicked, and only that which it worked for was ended.
pub fn panicked(what: Panicked) {
    PANICKED[what.index()].fetch_add(1, Ordering::Relaxed);
}

/// Lines of the log and of reports could not be written.
pub fn lines_dropped(lines: u64) {
    LINES_DROPPED.fetch_add(lines, Ordering::Relaxed);
}

/// What [`limited`] counted, by [`Limited`].
pub(super) fn limited_total() -> [u64; Limited::COUNT] {
    std::array::from_fn(|index| LIMITED[index].load(Ordering::Relaxed))
}

/// What [`count`] counted, by [`Counter`].
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
