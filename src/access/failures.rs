//! Addresses that fail too often, in a table of a fixed size that all threads share without a lock.
//!
//! A place of the table is one atomic number: whose it is (16 bits of a hash), how often it has failed (8 bits), and when last (40
//! bits, in seconds). The hash is keyed with a secret, so that nobody can choose whose place to share; where two addresses meet
//! all the same, the later one takes the place.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::crowd::origin;
use crate::limits::{AUTH_FAILURES_MAX, AUTH_REFUSED_S};

/// Places, a power of two: 64 KiB of them.
const PLACES: usize = 8 * 1024;

pub(super) struct Failures {
    epoch: Instant,
    hasher: RandomState,
    places: Box<[AtomicU64]>,
}

#[derive(Clone, Copy)]
struct Place {
    owner: u16,
    count: u8,
    last_s: u64,
}

impl Place {
    fn unpack(packed: u64) -> Place {
        Place { owner: packed as u16, count: (packed >> 16) as u8, last_s: packed >> 24 }
    }

    fn pack(self) -> u64 {
        u64::from(self.owner) | u64::from(self.count) << 16 | self.last_s << 24
    }

    /// Whether what it counts is over and done with.
    fn is_past(self, now_s: u64) -> bool {
        now_s >= self.last_s + AUTH_REFUSED_S
    }
}

impl Failures {
    pub(super) fn new(epoch: Instant) -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Failures { epoch, hasher: RandomState::new(), places }
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    /// The place of an address, or of its network, and its owner's mark.
    fn find(&self, peer: IpAddr) -> (&AtomicU64, u16) {
        let hash = self.hasher.hash_one(origin(peer));
        (&self.places[(hash >> 16) as usize % PLACES], hash as u16)
    }

    /// Whether an address has failed so often of late that it is not heard.
    pub(super) fn is_refused(&self, now: Instant, peer: IpAddr) -> bool {
        let (place, owner) = self.find(peer);
        let place = Place::unpack(place.load(Ordering::Relaxed));
        place.owner == owner && place.count >= AUTH_FAILURES_MAX && !place.is_past(self.seconds(now))
    }

    /// Counts a failure; whether it was the one too many.
    pub(super) fn record(&self, now: Instant, peer: IpAddr) -> bool {
        let now_s = self.seconds(now);
        let (place, owner) = self.find(peer);
        let next = |packed| {
            let before = Place::unpack(packed);
            let same = before.owner == owner && !before.is_past(now_s);
            let count = if same { before.count.saturating_add(1) } else { 1 };
            Place { owner, count, last_s: now_s }
        };
        // The closure never refuses.
        let update = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| Some(next(packed).pack()));
        update.is_ok_and(|packed| next(packed).count == AUTH_FAILURES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_fails_often_is_refused_for_a_while() {
        let now = Instant::now();
        let failures = Failures::new(now);
        let (bad, good): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for count in 1..=AUTH_FAILURES_MAX {
            assert!(!failures.is_refused(now, bad));
            assert_eq!(failures.record(now, bad), count == AUTH_FAILURES_MAX);
        }
        assert!(failures.is_refused(now, bad) && !failures.is_refused(now, good));
        assert!(!failures.record(now, bad), "told once");
        let almost = now + Duration::from_secs(AUTH_REFUSED_S - 1);
        assert!(failures.is_refused(almost, bad));
        let later = now + Duration::from_secs(AUTH_REFUSED_S);
        assert!(!failures.is_refused(later, bad));
        // It begins again from nothing.
        assert!(!failures.record(later, bad));
        assert!(!failures.is_refused(later, bad));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let now = Instant::now();
        let failures = Failures::new(now);
        for host in 0..AUTH_FAILURES_MAX {
            failures.record(now, format!("2001:db8::{host:x}").parse().unwrap());
        }
        assert!(failures.is_refused(now, "2001:db8::ffff".parse().unwrap()));
        assert!(!failures.is_refused(now, "2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn any_number_of_addresses_takes_the_same_room() {
        let now = Instant::now();
        let failures = Failures::new(now);
        for address in 0..100_000_u32 {
            failures.record(now, IpAddr::from(address.to_be_bytes()));
        }
        assert_eq!(failures.places.len(), PLACES);
        let place = Place { owner: 0xabcd, count: 255, last_s: (1 << 40) - 1 };
        let again = Place::unpack(place.pack());
        assert_eq!((again.owner, again.count, again.last_s), (place.owner, place.count, place.last_s));
    }
}
