//! Where those who come are from, and who makes room where anybody may come: the oldest one of the address that has most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::limits::ADDRESS_BITS_V6;

/// What the limits of an address count a client under: its IPv4 address, or the network of its IPv6 address
/// ([`ADDRESS_BITS_V6`]), of which it can have any address.
pub(crate) fn origin(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (u128::MAX << (128 - ADDRESS_BITS_V6))).into()),
        v4 => v4,
    }
}

/// Where somebody stands in a [`Crowd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    origin: IpAddr,
    number: u64,
}

/// How many an origin has, and its oldest: the last of the order is the one to make room.
type Rank = (usize, Reverse<u64>, IpAddr);

/// Those who are there, by where they come from.
#[derive(Debug)]
pub(crate) struct Crowd<T> {
    by_origin: HashMap<IpAddr, BTreeMap<u64, T>>,
    ranks: BTreeSet<Rank>,
    count: usize,
    /// Numbers given out.
    numbers: u64,
}

impl<T> Default for Crowd<T> {
    fn default() -> Self {
        Crowd { by_origin: HashMap::new(), ranks: BTreeSet::new(), count: 0, numbers: 0 }
    }
}

fn rank<T>(origin: IpAddr, have: &BTreeMap<u64, T>) -> Option<Rank> {
    have.keys().next().map(|oldest| (have.len(), Reverse(*oldest), origin))
}

impl<T> Crowd<T> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Takes somebody in who comes from `origin` ([`origin`]).
    pub(crate) fn add(&mut self, who: T, origin: IpAddr) -> Place {
        let place = Place { origin, number: self.numbers };
        self.numbers += 1;
        self.change(origin, |have| have.insert(place.number, who));
        self.count += 1;
        place
    }

    /// Somebody has gone; nothing, if that is known already.
    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let removed = self.change(place.origin, |have| have.remove(&place.number));
        self.count -= usize::from(removed.is_some());
        removed
    }

    fn change(&mut self, origin: IpAddr, how: impl FnOnce(&mut BTreeMap<u64, T>) -> Option<T>) -> Option<T> {
        let have = self.by_origin.entry(origin).or_default();
        if let Some(rank) = rank(origin, have) {
            self.ranks.remove(&rank);
        }
        let changed = how(have);
        match rank(origin, have) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.by_origin.remove(&origin)),
        }
        changed
    }

    /// The oldest one of the origin that has most of them; of the oldest one among origins that have as many.
    pub(crate) fn first_to_go(&self) -> Option<(Place, &T)> {
        let (_, Reverse(number), origin) = *self.ranks.last()?;
        Some((Place { origin, number }, self.by_origin.get(&origin)?.get(&number)?))
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
        let gone = crowd.first_to_go().map(|(place, who)| (place, *who));
        let Some((place, "first of two")) = gone else { panic!("{gone:?}") };
        assert_eq!((crowd.remove(place), crowd.remove(place), crowd.len()), (Some("first of two"), None, 2));
        assert_eq!(crowd.first_to_go(), Some((first, &"first of one")), "the oldest of equals");
        crowd.remove(first);
        assert!(crowd.first_to_go().is_some_and(|(_, who)| *who == "second of two"));
    }
}
