//! Counts wrong credentials, in tables of a fixed size that all threads share without a lock.
//!
//! Failures are counted per user and address, so that other users at the same address are not affected. They are also counted for the
//! address as a whole, with a higher limit, so that nobody can try all names. It is also remembered which user has shown a right
//! password from which address: if someone else fails there with that user's name, the user's credentials are delayed instead of
//! refused.
//!
//! An entry of a table is one atomic number: an owner mark (16 bits of a hash), and the counts. The hash is keyed with a secret, so
//! that collisions cannot be chosen. If two owners collide, the later one replaces the earlier.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::crowd::origin;
use crate::limits::{
    AUTH_DELAY_MS, AUTH_FAILURES_MAX, AUTH_FAILURES_OF_ADDRESS_MAX, AUTH_REFUSED_S, AUTH_SEEN_S, AUTH_TURN_MS,
    AUTH_TURN_WAIT_MAX_MS,
};

/// Entries of each table, a power of two: 64 KiB.
const PLACES: usize = 8 * 1024;

/// The name under which failures of unknown users are counted.
const UNKNOWN: &str = "\0unknown";

/// The name under which an address as a whole is counted. No user name contains this character.
const ANY: &str = "\0any";

pub(super) struct Failures {
    epoch: Instant,
    hasher: RandomState,
    counts: Box<[AtomicU64]>,
    seen: Box<[AtomicU64]>,
    turns: Box<[AtomicU64]>,
}

/// A counter entry: 16 bits owner, 8 bits count, 40 bits time of the last failure in seconds.
#[derive(Clone, Copy)]
struct Count {
    owner: u16,
    count: u8,
    last_s: u64,
}

impl Count {
    fn unpack(packed: u64) -> Count {
        Count { owner: packed as u16, count: (packed >> 16) as u8, last_s: packed >> 24 }
    }

    fn pack(self) -> u64 {
        u64::from(self.owner) | u64::from(self.count) << 16 | self.last_s << 24
    }

    /// Whether what it counts has expired.
    fn is_past(self, now_s: u64) -> bool {
        now_s >= self.last_s + AUTH_REFUSED_S
    }
}

/// A time entry: 16 bits owner, 48 bits time.
fn moment(packed: u64, owner: u16) -> Option<u64> {
    (packed as u16 == owner && packed != 0).then_some(packed >> 16)
}

fn pack_moment(owner: u16, at: u64) -> u64 {
    u64::from(owner) | at << 16
}

impl Failures {
    pub(super) fn new(epoch: Instant) -> Self {
        let places = || (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Failures { epoch, hasher: RandomState::new(), counts: places(), seen: places(), turns: places() }
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    /// The entry of a user at an address or network, and the owner mark.
    fn find<'p>(&self, places: &'p [AtomicU64], peer: IpAddr, user: &str) -> (&'p AtomicU64, u16) {
        let hash = self.hasher.hash_one((origin(peer), user));
        (&places[(hash >> 16) as usize % PLACES], hash as u16)
    }

    fn count(&self, now: Instant, peer: IpAddr, user: &str) -> u8 {
        let (place, owner) = self.find(&self.counts, peer, user);
        let count = Count::unpack(place.load(Ordering::Relaxed));
        if count.owner == owner && !count.is_past(self.seconds(now)) { count.count } else { 0 }
    }

    /// Whether there were so many recent failures, for this user at this address or for all users there, that credentials are refused.
    /// `user` is an existing user.
    pub(super) fn is_refused(&self, now: Instant, peer: IpAddr, user: Option<&str>) -> bool {
        self.count(now, peer, user.unwrap_or(UNKNOWN)) >= AUTH_FAILURES_MAX
            || self.count(now, peer, ANY) >= AUTH_FAILURES_OF_ADDRESS_MAX
    }

    /// Counts a failure; returns whether it reached the limit.
    pub(super) fn record(&self, now: Instant, peer: IpAddr, user: Option<&str>) -> bool {
        let of_address = self.add(now, peer, ANY) == AUTH_FAILURES_OF_ADDRESS_MAX;
        self.add(now, peer, user.unwrap_or(UNKNOWN)) == AUTH_FAILURES_MAX || of_address
    }

    fn add(&self, now: Instant, peer: IpAddr, user: &str) -> u8 {
        let now_s = self.seconds(now);
        let (place, owner) = self.find(&self.counts, peer, user);
        let next = |packed| {
            let before = Count::unpack(packed);
            let same = before.owner == owner && !before.is_past(now_s);
            let count = if same { before.count.saturating_add(1) } else { 1 };
            Count { owner, count, last_s: now_s }
        };
        // The closure never refuses.
        let update = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| Some(next(packed).pack()));
        update.map_or(0, |packed| next(packed).count)
    }

    /// A user has shown the right password from this address.
    pub(super) fn saw(&self, now: Instant, peer: IpAddr, user: &str) {
        let (place, owner) = self.find(&self.seen, peer, user);
        place.store(pack_moment(owner, self.seconds(now) + 1), Ordering::Relaxed);
    }

    /// When to check credentials of this user from this address in spite of the failures there: only if that user was there recently,
    /// one attempt after another, and not if too many wait.
    pub(super) fn turn(&self, now: Instant, peer: IpAddr, user: &str) -> Option<Instant> {
        let (place, owner) = self.find(&self.seen, peer, user);
        let seen_s = moment(place.load(Ordering::Relaxed), owner)?;
        if self.seconds(now) >= seen_s + AUTH_SEEN_S {
            return None;
        }
        let now_ms = now.saturating_duration_since(self.epoch).as_millis() as u64;
        let (place, owner) = self.find(&self.turns, peer, user);
        let next = |packed| {
            let at = moment(packed, owner).unwrap_or(0).max(now_ms) + AUTH_TURN_MS;
            (at <= now_ms + AUTH_TURN_WAIT_MAX_MS).then_some(at)
        };
        let update = place
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| next(packed).map(|at| pack_moment(owner, at)));
        let at = update.ok().and_then(next)?;
        Some(self.epoch + Duration::from_millis(at.max(now_ms + AUTH_DELAY_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Option<&str> = Some("viewer");

    fn peers() -> (IpAddr, IpAddr) {
        ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap())
    }

    #[test]
    fn who_fails_often_is_refused_for_a_while() {
        let now = Instant::now();
        let failures = Failures::new(now);
        let (bad, good) = peers();
        for count in 1..=AUTH_FAILURES_MAX {
            assert!(!failures.is_refused(now, bad, USER));
            assert_eq!(failures.record(now, bad, USER), count == AUTH_FAILURES_MAX);
        }
        assert!(failures.is_refused(now, bad, USER) && !failures.is_refused(now, good, USER));
        assert!(!failures.is_refused(now, bad, Some("other")), "another user at the same address is heard");
        assert!(!failures.is_refused(now, bad, None));
        assert!(!failures.record(now, bad, USER), "told once");
        let almost = now + Duration::from_secs(AUTH_REFUSED_S - 1);
        assert!(failures.is_refused(almost, bad, USER));
        let later = now + Duration::from_secs(AUTH_REFUSED_S);
        assert!(!failures.is_refused(later, bad, USER));
        // Restarts from zero.
        assert!(!failures.record(later, bad, USER));
        assert!(!failures.is_refused(later, bad, USER));
    }

    #[test]
    fn who_tries_many_names_is_refused_as_well() {
        let now = Instant::now();
        let failures = Failures::new(now);
        let (bad, good) = peers();
        let told = (0..AUTH_FAILURES_OF_ADDRESS_MAX).filter(|n| failures.record(now, bad, Some(&format!("user{n}"))));
        assert_eq!(told.collect::<Vec<_>>(), [AUTH_FAILURES_OF_ADDRESS_MAX - 1]);
        assert!(failures.is_refused(now, bad, USER) && !failures.is_refused(now, good, USER));
    }

    #[test]
    fn a_user_who_was_there_lately_waits_for_a_turn() {
        let now = Instant::now();
        let failures = Failures::new(now);
        let (here, elsewhere) = peers();
        assert_eq!(failures.turn(now, here, "viewer"), None, "nobody was seen");
        failures.saw(now, here, "viewer");
        assert_eq!((failures.turn(now, elsewhere, "viewer"), failures.turn(now, here, "other")), (None, None));
        let turns: Vec<_> = std::iter::from_fn(|| failures.turn(now, here, "viewer")).collect();
        assert_eq!(turns.len() as u64, AUTH_TURN_WAIT_MAX_MS / AUTH_TURN_MS, "then no more may wait");
        assert!(turns.is_sorted() && turns[0] >= now + Duration::from_millis(AUTH_DELAY_MS));
        let most = now + Duration::from_millis(AUTH_TURN_WAIT_MAX_MS);
        assert!(turns.iter().all(|turn| *turn <= most));
        // A limited number of attempts per second, over all connections.
        assert!(failures.turn(now + Duration::from_millis(AUTH_TURN_MS), here, "viewer").is_some());
        assert!(failures.turn(now + Duration::from_millis(AUTH_TURN_MS), here, "viewer").is_none());
        let long_ago = now + Duration::from_secs(AUTH_SEEN_S + 1);
        assert_eq!(failures.turn(long_ago, here, "viewer"), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let now = Instant::now();
        let failures = Failures::new(now);
        for host in 0..AUTH_FAILURES_MAX {
            failures.record(now, format!("2001:db8::{host:x}").parse().unwrap(), USER);
        }
        assert!(failures.is_refused(now, "2001:db8::ffff".parse().unwrap(), USER));
        assert!(!failures.is_refused(now, "2001:db8:0:1::1".parse().unwrap(), USER));
    }

    #[test]
    fn any_number_of_addresses_takes_the_same_room() {
        let now = Instant::now();
        let failures = Failures::new(now);
        for address in 0..100_000_u32 {
            failures.record(now, IpAddr::from(address.to_be_bytes()), USER);
        }
        assert_eq!(failures.counts.len(), PLACES);
        let count = Count { owner: 0xabcd, count: 255, last_s: (1 << 40) - 1 };
        let again = Count::unpack(count.pack());
        assert_eq!((again.owner, again.count, again.last_s), (count.owner, count.count, count.last_s));
        assert_eq!(moment(pack_moment(7, 1 << 40), 7), Some(1 << 40));
    }
}
