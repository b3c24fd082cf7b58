//! UDP ports: those of the relay itself, and those that clients have media or a stream by, as all shards know them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::server::{Server, canonical};
use super::types::{ConnId, SessionKey};
use crate::access::User;

/// What all shards know of UDP ports: no client may have media sent to the relay's own, and of the clients' each has one
/// session. Locked when a session over UDP is set up or ends, never for media.
#[derive(Debug)]
pub struct OwnPorts {
    own: Box<[OnceLock<(u16, u16)>]>,
    is_own_address: fn(IpAddr) -> bool,
    /// By their addresses in canonical form.
    held: Mutex<HashMap<SocketAddr, Holder>>,
    replaced: Box<[Replaced]>,
}

/// The sessions of a shard whose ports another shard's have taken over.
#[derive(Debug, Default)]
struct Replaced {
    any: AtomicBool,
    /// With the moment at which it happened.
    sessions: Mutex<Vec<(Instant, SessionKey)>>,
}

/// Who has a client's port.
#[derive(Clone, Debug)]
struct Holder {
    session: SessionKey,
    user: Option<Arc<User>>,
    /// Whether a stream comes from there.
    publishes: bool,
}

/// What may be locked here is whole after every change.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnPorts {
    /// For so many shards, none of which has ports yet. `is_own_address` tells whether an address is one of this machine's.
    pub fn new(shards: usize, is_own_address: fn(IpAddr) -> bool) -> Arc<OwnPorts> {
        Arc::new(OwnPorts {
            own: (0..shards).map(|_| OnceLock::new()).collect(),
            is_own_address,
            held: Mutex::default(),
            replaced: (0..shards).map(|_| Replaced::default()).collect(),
        })
    }

    /// Notes a shard's ports for RTP and RTCP; the first ones stay.
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

    /// Gives these ports, of addresses in canonical form, to a session: both, or none if another shard's session that has one
    /// `keeps` it. Else that session is replaced, which its shard sees to. No other shard comes between the look and the change.
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
            let replaced = &self.replaced[self.shard(other.session)];
            let mut sessions = lock(&replaced.sessions);
            sessions.push((now, other.session));
            // Under the lock, so that it says what the list does.
            replaced.any.store(true, Ordering::Release);
        }
        true
    }

    /// A session has its port no more.
    pub(super) fn release(&self, port: SocketAddr, session: SessionKey) {
        let (mut held, port) = (lock(&self.held), canonical(port));
        if held.get(&port).is_some_and(|holder| holder.session == session) {
            held.remove(&port);
        }
    }

    /// When the first of a shard's sessions was replaced that it has not seen to.
    pub(super) fn replaced_at(&self, shard: u16) -> Option<Instant> {
        let replaced = self.replaced.get(usize::from(shard)).filter(|replaced| replaced.any.load(Ordering::Acquire))?;
        lock(&replaced.sessions).first().map(|(at, _)| *at)
    }

    /// The sessions of a shard that were replaced since it last asked.
    pub(super) fn take_replaced(&self, shard: u16) -> Vec<SessionKey> {
        let Some(replaced) = self.replaced.get(usize::from(shard)) else { return Vec::new() };
        if !replaced.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut sessions = lock(&replaced.sessions);
        replaced.any.store(false, Ordering::Release);
        sessions.drain(..).map(|(_, session)| session).collect()
    }

    /// The sessions of a shard that have ports, as often as they have some.
    pub(super) fn held_by(&self, shard: u16) -> Vec<SessionKey> {
        let of_shard = |session: &SessionKey| self.shard(*session) == usize::from(shard);
        lock(&self.held).values().map(|holder| holder.session).filter(of_shard).collect()
    }
}

impl Server {
    /// Whether datagrams to one of these ports of a connection's client would come back to the relay.
    pub(super) fn leads_back(&self, conn: ConnId, ports: [u16; 2]) -> bool {
        // Elsewhere a client may well have a port of the same number.
        ports.iter().any(|port| self.own_ports.contains(*port))
            && self.conns.get(&conn).is_some_and(|connection| {
                let (peer, local) = (connection.peer.ip().to_canonical(), connection.local.ip());
                peer == local || peer.is_loopback() || (self.own_ports.is_own_address)(peer)
            })
    }

    /// Claims ports, of addresses in canonical form, for a session that is or will be a connection's; whether it has them now. A
    /// session of another shard keeps its own if it is another user's, or if it publishes and this one plays: it is not to be ended
    /// for them, and what is sent there is not for both.
    pub(super) fn claim_of_all_shards(
        &self,
        now: Instant,
        conn: ConnId,
        session: SessionKey,
        ports: [SocketAddr; 2],
        publishes: bool,
    ) -> bool {
        let user = match self.sessions.get(&session) {
            Some(session) => session.user.clone(),
            None => self.conns.get(&conn).and_then(|connection| connection.user.clone()),
        };
        let keeps = |other: &Holder| other.publishes && !publishes || !self.is_user(other.user.as_ref(), conn);
        self.own_ports.claim(now, ports, &Holder { session, user, publishes }, keeps)
    }
}
