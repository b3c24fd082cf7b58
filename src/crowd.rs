//! Groups connections by origin, and chooses which one to evict: the oldest of the origin that has most; if several have equally many,
//! of a random one of these. Evicting the oldest of all would let many addresses with one connection each push out everyone who takes
//! more than a moment.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::burst::ShrinkIfSparse;
use crate::limits::ADDRESS_BITS_V6;

/// The unit for limits per address: an IPv4 address, or the network of an IPv6 address ([`ADDRESS_BITS_V6`]), because a client can use
/// any address in it.
pub(crate) fn origin(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << (128 - ADDRESS_BITS_V6))).into()),
        v4 => v4,
    }
}

/// The position of an entry in a [`Crowd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    origin: IpAddr,
    number: u64,
}

/// The entries of one origin, in order of arrival.
#[derive(Debug)]
struct Origin<T> {
    have: BTreeMap<u64, T>,
    /// Its index among the origins with equally many.
    at: usize,
}

/// Entries by origin.
#[derive(Debug)]
pub(crate) struct Crowd<T> {
    origins: HashMap<IpAddr, Origin<T>>,
    /// The origins with this many entries, in no order.
    by_count: BTreeMap<usize, Vec<IpAddr>>,
    count: usize,
    /// Numbers given out.
    numbers: u64,
}

impl<T> Default for Crowd<T> {
    fn default() -> Self {
        Crowd { origins: HashMap::new(), by_count: BTreeMap::new(), count: 0, numbers: 0 }
    }
}

impl<T> Crowd<T> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds an entry with this `origin` ([`origin`]).
    pub(crate) fn add(&mut self, who: T, origin: IpAddr) -> Place {
        let place = Place { origin, number: self.numbers };
        self.numbers += 1;
        self.change(origin, |have| have.insert(place.number, who));
        self.count += 1;
        place
    }

    /// Removes an entry; does nothing if it is already gone.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let removed = self.change(place.origin, |have| have.remove(&place.number));
        self.count -= usize::from(removed.is_some());
        self.origins.shrink_if_sparse();
        removed
    }

    fn change(&mut self, origin: IpAddr, how: impl FnOnce(&mut BTreeMap<u64, T>) -> Option<T>) -> Option<T> {
        let mut this = self.origins.remove(&origin).unwrap_or(Origin { have: BTreeMap::new(), at: 0 });
        self.take_off(this.have.len(), this.at);
        let changed = how(&mut this.have);
        if !this.have.is_empty() {
            let as_many = self.by_count.entry(this.have.len()).or_default();
            this.at = as_many.len();
            as_many.push(origin);
            self.origins.insert(origin, this);
        }
        changed
    }

    /// Removes an origin from those with this many entries; the last one takes its index.
    fn take_off(&mut self, count: usize, at: usize) {
        let Some(as_many) = self.by_count.get_mut(&count) else { return };
        as_many.swap_remove(at);
        as_many.shrink_if_sparse();
        if let Some(moved) = as_many.get(at).and_then(|origin| self.origins.get_mut(origin)) {
            moved.at = at;
        }
        if as_many.is_empty() {
            self.by_count.remove(&count);
        }
    }

    /// The oldest entry of the origin with most entries; `lot`, any number, chooses among origins with equally many.
    pub(crate) fn first_to_go(&self, lot: u64) -> Option<(Place, &T)> {
        let (_, most) = self.by_count.last_key_value()?;
        let origin = most[(lot % most.len() as u64) as usize];
        let (number, who) = self.origins.get(&origin)?.have.first_key_value()?;
        Some((Place { origin, number: *number }, who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_whoever_has_most_makes_room() {
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut crowd = Crowd::default();
        let first = crowd.add("first of one", one);
        crowd.add("first of two", two);
        crowd.add("second of two", two);
        let gone = crowd.first_to_go(7).map(|(place, who)| (place, *who));
        let Some((place, "first of two")) = gone else { panic!("{gone:?}") };
        assert_eq!((crowd.remove(place), crowd.remove(place), crowd.len()), (Some("first of two"), None, 2));
        let mut equals = [0, 1].map(|lot| *crowd.first_to_go(lot).unwrap().1);
        equals.sort();
        assert_eq!(equals, ["first of one", "second of two"], "a lot decides among equals");
        crowd.remove(first);
        assert!((0..9).all(|lot| crowd.first_to_go(lot).is_some_and(|(_, who)| *who == "second of two")));
    }

    #[test]
    fn whoever_comes_and_goes_the_books_agree() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut crowd = Crowd::default();
        let mut there = Vec::new();
        for number in 0..20_000 {
            if rng.u8(..100) < 52 {
                let origin = IpAddr::from([192, 0, 2, rng.u8(..20)]);
                there.push((crowd.add(number, origin), number, origin));
            } else if !there.is_empty() {
                let (place, number, _) = there.swap_remove(rng.usize(..there.len()));
                assert_eq!(crowd.remove(place), Some(number));
            }
            assert_eq!(crowd.len(), there.len());
            let Some((place, who)) = crowd.first_to_go(rng.u64(..)) else { continue };
            let of = |origin: IpAddr| there.iter().filter(move |(_, _, have)| *have == origin);
            let most = there.iter().map(|(_, _, origin)| of(*origin).count()).max().unwrap();
            assert_eq!(of(place.origin).count(), most);
            assert_eq!(of(place.origin).map(|(_, number, _)| number).min(), Some(who));
            if number % 1_000 == 999 {
                for (place, ..) in there.drain(..) {
                    crowd.remove(place);
                }
                assert!(crowd.first_to_go(0).is_none() && crowd.by_count.is_empty());
            }
        }
    }
}
