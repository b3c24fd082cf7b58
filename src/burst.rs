//! Gives back the memory of lists and maps that a burst of connections has left too large: by themselves they keep it forever.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// Entries for which there is always room.
const KEPT: usize = 32;

/// How much larger than its contents a list or map may be.
const TIMES_MAX: usize = 4;

/// Room that an empty list or map may have.
#[cfg(test)]
pub(crate) const ROOM_MAX: usize = TIMES_MAX * KEPT;

/// For lists and maps of connections and what belongs to them.
pub(crate) trait ShrinkIfSparse {
    /// Reduces its memory if most of it is unused. To be called after each removal: it moves the contents only if there is room for more than
    /// four times as many, so that the cost of a removal is constant on average.
    fn shrink_if_sparse(&mut self);
}

/// The room that is left to something with so many entries, if it has much more.
fn room(capacity: usize, entries: usize) -> Option<usize> {
    let entries = entries.max(KEPT);
    (capacity > TIMES_MAX * entries).then_some(2 * entries)
}

impl<T> ShrinkIfSparse for Vec<T> {
    fn shrink_if_sparse(&mut self) {
        if let Some(room) = room(self.capacity(), self.len()) {
            self.shrink_to(room);
        }
    }
}

impl<T> ShrinkIfSparse for VecDeque<T> {
    fn shrink_if_sparse(&mut self) {
        if let Some(room) = room(self.capacity(), self.len()) {
            self.shrink_to(room);
        }
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> ShrinkIfSparse for HashMap<K, V, S> {
    fn shrink_if_sparse(&mut self) {
        if let Some(room) = room(self.capacity(), self.len()) {
            self.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_took_is_given_back_and_a_few_entries_keep_their_room() {
        let (mut list, mut map): (Vec<usize>, HashMap<usize, usize>) = Default::default();
        for number in 0..1_000 {
            list.push(number);
            map.insert(number, number);
        }
        let (most, mut moves) = (map.capacity(), 0);
        for number in (4..1_000).rev() {
            let before = map.capacity();
            list.pop();
            list.shrink_if_sparse();
            map.remove(&number);
            map.shrink_if_sparse();
            // A removal alone may cost a map the room of one entry.
            moves += usize::from(map.capacity() < before * 2 / 3);
        }
        assert!(list.capacity() <= ROOM_MAX && map.capacity() <= ROOM_MAX && most > 1_000);
        assert!((1..=5).contains(&moves), "{moves} moves, each of which halves it");
        assert!(list.iter().copied().eq(0..4) && (0..4).all(|number| map[&number] == number));
        let (room, rooms) = (list.capacity(), map.capacity());
        list.clear();
        map.clear();
        list.shrink_if_sparse();
        map.shrink_if_sparse();
        assert!(list.capacity() == room && map.capacity() >= rooms);
    }
}
