//! UDP ports: those of the relay itself, and those that clients receive media on or publish from, over all shards.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use smallvec::SmallVec;

use super::types::{Delivery, SessionKey};
use crate::access::User;
use crate::burst::ShrinkIfSparse;

/// The canonical form of an address for lookups: IPv4-mapped addresses become IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The UDP ports over all shards: no client may direct media to the relay's own ports, and each client port belongs to one session.
/// Locked when a UDP session is set up or ends, never for media.
#[derive(Debug)]
pub struct UdpPorts {
    own: Box<[OnceLock<(u16, u16)>]>,
    is_own_address: fn(IpAddr) -> bool,
    /// By canonical address.
    held: Mutex<HashMap<SocketAddr, Holder>>,
    replaced: Box<[Replaced]>,
}

/// A shard's sessions whose ports were taken over by another shard's.
#[derive(Debug, Default)]
struct Replaced {
    any: AtomicBool,
    /// With the time at which it happened.
    sessions: Mutex<Vec<(Instant, SessionKey)>>,
}

/// The owner of a client's port.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) session: SessionKey,
    pub(super) user: Option<Arc<User>>,
    /// Whether a stream is published from there.
    pub(super) publishes: bool,
}

/// The data behind the lock is consistent after every change.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UdpPorts {
    /// For this many shards, which have no ports yet. `is_own_address` says whether an address belongs to this machine.
    pub fn new(shards: usize, is_own_address: fn(IpAddr) -> bool) -> Arc<UdpPorts> {
        Arc::new(UdpPorts {
            own: (0..shards).map(|_| OnceLock::new()).collect(),
            is_own_address,
            held: Mutex::default(),
            replaced: (0..shards).map(|_| Replaced::default()).collect(),
        })
    }

    /// Records a shard's ports for RTP and RTCP; the first ones stay.
    pub fn set(&self, shard: u16, ports: (u16, u16)) {
        if let Some(place) = self.own.get(usize::from(shard)) {
            let _ = place.set(ports);
        }
    }

    /// Whether a shard has that port.
    fn contains(&self, port: u16) -> bool {
        self.own.iter().filter_map(OnceLock::get).any(|ports| ports.0 == port || ports.1 == port)
    }

    fn shard(&self, session: SessionKey) -> usize {
        (session.0 % self.replaced.len() as u64) as usize
    }

    /// Assigns these ports, of canonical addresses, to a session: both, or none if another shard's session that has one `keeps` it.
    /// Otherwise that session is replaced, and its shard is notified. No other shard can act between check and change.
    fn claim(&self, now: Instant, ports: [SocketAddr; 2], holder: &Holder, keeps: impl Fn(&Holder) -> bool) -> bool {
        let shard = self.shard(holder.session);
        let elsewhere = |other: &Holder| self.shard(other.session) != shard;
        let mut held = lock(&self.held);
        if ports.iter().filter_map(|port| held.get(port)).any(|other| elsewhere(other) && keeps(other)) {
            return false;
        }
        let before = ports.map(|port| held.insert(port, holder.clone()));
        drop(held);
        for other in before.into_iter().flatten().filter(elsewhere) {
            self.replace(now, other.session);
        }
        true
    }

    /// A session no longer has its port.
    fn release(&self, port: SocketAddr, session: SessionKey) {
        let (mut held, port) = (lock(&self.held), canonical(port));
        if held.get(&port).is_some_and(|holder| holder.session == session) {
            held.remove(&port);
            held.shrink_if_sparse();
        }
    }

    /// When the first of a shard's sessions was replaced that it has not handled.
    fn replaced_at(&self, shard: u16) -> Option<Instant> {
        let replaced = self.replaced.get(usize::from(shard)).filter(|replaced| replaced.any.load(Ordering::Acquire))?;
        lock(&replaced.sessions).first().map(|(at, _)| *at)
    }

    /// The sessions of a shard that were replaced since it last asked.
    fn take_replaced(&self, shard: u16) -> Vec<SessionKey> {
        let Some(replaced) = self.replaced.get(usize::from(shard)) else { return Vec::new() };
        if !replaced.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut sessions = lock(&replaced.sessions);
        replaced.any.store(false, Ordering::Release);
        sessions.drain(..).map(|(_, session)| session).collect()
    }

    /// Assigns ports, of canonical addresses, to a session that had them in another process.
    fn restore(&self, ports: [SocketAddr; 2], holder: &Holder) {
        let mut held = lock(&self.held);
        for port in ports {
            held.insert(port, holder.clone());
        }
    }

    /// Whether a session was replaced and is still there.
    fn is_replaced(&self, session: SessionKey) -> bool {
        lock(&self.replaced[self.shard(session)].sessions).iter().any(|(_, replaced)| *replaced == session)
    }

    /// A session was replaced, by another shard's.
    fn replace(&self, now: Instant, session: SessionKey) {
        let replaced = &self.replaced[self.shard(session)];
        let mut sessions = lock(&replaced.sessions);
        sessions.push((now, session));
        // Under the lock, so that it matches the list.
        replaced.any.store(true, Ordering::Release);
    }

    /// The sessions of a shard that have ports, once for each port.
    #[cfg(feature = "testing")]
    fn held_by(&self, shard: u16) -> Vec<SessionKey> {
        let of_shard = |session: &SessionKey| self.shard(*session) == usize::from(shard);
        lock(&self.held).values().map(|holder| holder.session).filter(of_shard).collect()
    }
}

/// The UDP ports on which this shard's sessions receive media or publish. Addresses are canonical.
#[derive(Debug)]
pub(super) struct Ports {
    all: Arc<UdpPorts>,
    shard: u16,
    /// Players' sessions by their ports, and whether it is the RTCP port.
    players: HashMap<SocketAddr, (SessionKey, bool)>,
    /// Publishers' sessions by the addresses that their datagrams come from, with the track's index, and whether it is RTCP.
    publishers: HashMap<SocketAddr, (SessionKey, usize, bool)>,
    /// The UDP sessions of an address, and whether they publish, for those whose RTCP comes from a translated port.
    by_address: HashMap<IpAddr, SmallVec<[(SessionKey, bool); 1]>>,
}

impl Ports {
    /// For a shard with these `own` ports.
    pub(super) fn new(all: Arc<UdpPorts>, shard: u16, own: Option<(u16, u16)>) -> Ports {
        if let Some(ports) = own {
            all.set(shard, ports);
        }
        let (players, publishers) = (HashMap::new(), HashMap::new());
        Ports { all, shard, players, publishers, by_address: HashMap::new() }
    }

    /// A UDP session starts.
    pub(super) fn begin(&mut self, session: SessionKey, peer: SocketAddr, publishes: bool) {
        self.by_address.entry(canonical(peer).ip()).or_default().push((session, publishes));
    }

    /// A UDP session has ended. Its tracks' ports are released separately ([`Ports::release`], [`Ports::release_publisher`]).
    pub(super) fn end(&mut self, session: SessionKey, peer: SocketAddr) {
        let address = canonical(peer).ip();
        if let Some(sessions) = self.by_address.get_mut(&address) {
            sessions.retain(|(have, _)| *have != session);
            if sessions.is_empty() {
                self.by_address.remove(&address);
                self.by_address.shrink_if_sparse();
            }
        }
    }

    /// A session has these tracks now; their ports have been claimed.
    pub(super) fn set_up(&mut self, session: SessionKey, publishes: bool, deliveries: impl Iterator<Item = Delivery>) {
        for (place, delivery) in deliveries.enumerate() {
            let Delivery::Udp { rtp, rtcp } = delivery else { continue };
            let (rtp, rtcp) = (canonical(rtp), canonical(rtcp));
            if publishes {
                self.publishers.insert(rtp, (session, place, false));
                self.publishers.insert(rtcp, (session, place, true));
            } else {
                self.players.insert(rtp, (session, false));
                self.players.insert(rtcp, (session, true));
            }
        }
    }

    /// Restores another process's session with its tracks. `replaced`: its ports belong to
    /// another shard's, and it ends as soon as its shard looks.
    pub(super) fn restore(
        &mut self,
        now: Instant,
        holder: &Holder,
        peer: SocketAddr,
        deliveries: impl Iterator<Item = Delivery> + Clone,
        replaced: bool,
    ) {
        self.begin(holder.session, peer, holder.publishes);
        if replaced {
            self.all.replace(now, holder.session);
        } else {
            for delivery in deliveries.clone() {
                let Delivery::Udp { rtp, rtcp } = delivery else { continue };
                self.all.restore([rtp, rtcp].map(canonical), holder);
            }
        }
        self.set_up(holder.session, holder.publishes, deliveries);
    }

    /// Whether another shard's session has taken a session's ports, and its shard has not looked yet.
    pub(super) fn is_replaced(&self, session: SessionKey) -> bool {
        self.all.is_replaced(session)
    }

    /// A player's session releases ports, except those that it has claimed again.
    pub(super) fn release(&mut self, session: SessionKey, ports: [SocketAddr; 2], kept: &[SocketAddr]) {
        for port in ports.map(canonical).into_iter().filter(|port| !kept.contains(port)) {
            self.all.release(port, session);
            if self.session_at(port) == Some(session) {
                self.players.remove(&port);
                self.players.shrink_if_sparse();
            }
        }
    }

    /// A publisher's session releases its ports.
    pub(super) fn release_publisher(&mut self, session: SessionKey) {
        for (port, _) in self.publishers.extract_if(|_, (owner, ..)| *owner == session) {
            self.all.release(port, session);
        }
        self.publishers.shrink_if_sparse();
    }

    /// The player's session that was set up for this client port, for RTP or RTCP.
    pub(super) fn session_at(&self, port: SocketAddr) -> Option<SessionKey> {
        self.players.get(&canonical(port)).map(|(key, _)| *key)
    }

    /// The publisher's session and track for a datagram's source address, and whether it is RTCP.
    pub(super) fn publisher_at(&self, from: SocketAddr) -> Option<(SessionKey, usize, bool)> {
        self.publishers.get(&canonical(from)).copied()
    }

    /// The player that sends RTCP from a canonical address. If its port was translated, it must be the only one there.
    pub(super) fn player_at(&self, from: SocketAddr) -> Option<SessionKey> {
        let known = self.players.get(&from).filter(|(_, rtcp)| *rtcp).map(|(key, _)| *key);
        known.or_else(|| {
            let mut players = self.at_address(from.ip(), false);
            players.next().filter(|_| players.next().is_none())
        })
    }

    /// Whether a player has that port, or one that a router may have translated to it.
    pub(super) fn has_player_at(&self, from: SocketAddr) -> bool {
        self.players.contains_key(&from) || self.at_address(from.ip(), false).next().is_some()
    }

    /// The UDP sessions of a canonical address: those that publish, or those that play.
    pub(super) fn at_address(&self, address: IpAddr, publishing: bool) -> impl Iterator<Item = SessionKey> + '_ {
        let sessions = self.by_address.get(&address).into_iter().flatten();
        sessions.filter(move |(_, publishes)| *publishes == publishing).map(|(key, _)| *key)
    }

    /// Whether datagrams to one of these client ports would come back to the relay.
    pub(super) fn leads_back(&self, peer: IpAddr, local: IpAddr, ports: [u16; 2]) -> bool {
        // On another machine a client may use the same port number.
        let peer = peer.to_canonical();
        ports.iter().any(|port| self.all.contains(*port))
            && (peer == local || peer.is_loopback() || (self.all.is_own_address)(peer))
    }

    /// Claims ports, of canonical addresses, over all shards; returns whether `holder` has them now. Another shard's session keeps its
    /// ports if it belongs to another user, which `is_same_user` decides, or if it publishes and this one plays: a publisher must not be
    /// ended for a player, and datagrams from these ports could belong to either.
    pub(super) fn claim(
        &self,
        now: Instant,
        ports: [SocketAddr; 2],
        holder: &Holder,
        is_same_user: impl Fn(Option<&Arc<User>>) -> bool,
    ) -> bool {
        let keeps = |other: &Holder| other.publishes && !holder.publishes || !is_same_user(other.user.as_ref());
        self.all.claim(now, ports, holder, keeps)
    }

    /// When the first session was replaced, by another shard's, that was not handled.
    pub(super) fn replaced_at(&self) -> Option<Instant> {
        self.all.replaced_at(self.shard)
    }

    /// The sessions whose ports were taken by another shard's since the last call.
    pub(super) fn take_replaced(&self) -> Vec<SessionKey> {
        self.all.take_replaced(self.shard)
    }

    /// Panics unless this is true for every session that has ports, with whether it publishes if that is known.
    #[cfg(feature = "testing")]
    pub(super) fn check(&self, is: impl Fn(SessionKey, Option<bool>) -> bool) {
        assert!(self.publishers.values().all(|(key, ..)| is(*key, Some(true))));
        assert!(self.players.values().all(|(key, _)| is(*key, Some(false))));
        assert!(self.by_address.values().flatten().all(|(key, publishes)| is(*key, Some(*publishes))));
        assert!(self.all.held_by(self.shard).into_iter().all(|key| is(key, None)));
    }
}
