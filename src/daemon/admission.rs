//! Admission: counts connections by address, before any shard is involved.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::proxied::Balancers;
use crate::burst::ShrinkIfSparse;
use crate::crowd::origin;
use crate::limits::{
    PROXY_HEADERS_AWAITED_MAX, REFUSED_WITH_ANSWER_PER_ADDRESS_MAX, connections_many, connections_max,
};
use crate::metrics::{Limited, process};

/// Why a new connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitReached {
    /// `limits.clients`.
    #[error("{open} connections are open (limits.clients: {clients_max}): {peer} is refused")]
    Clients { open: usize, clients_max: usize, peer: SocketAddr },
    /// `limits.clients_per_address`.
    #[error("{has} connections of its address are open (limits.clients_per_address = {max}): {peer} is refused")]
    PerAddress { has: usize, max: usize, peer: SocketAddr },
    /// Balancers' connections without their header.
    #[error(
        "{PROXY_HEADERS_AWAITED_MAX} connections of balancers wait for their PROXY protocol header: {peer} is refused"
    )]
    ProxyHeaders { peer: SocketAddr },
}

/// The connections, from accept to their end.
#[derive(Debug)]
pub(super) struct Admission {
    clients_max: usize,
    per_address_max: Option<usize>,
    shards: usize,
    open: usize,
    by_origin: HashMap<IpAddr, usize>,
    balancers: Balancers,
}

/// Shared by the control thread's tasks. No borrow is held across an `await`.
pub(super) type SharedAdmission = Rc<RefCell<Admission>>;

impl Admission {
    /// Initially without connections; there is at least one shard.
    pub(super) fn new(clients_max: usize, per_address_max: Option<usize>, shards: usize) -> Admission {
        Admission {
            clients_max,
            per_address_max,
            shards,
            open: 0,
            by_origin: HashMap::new(),
            balancers: Balancers::default(),
        }
    }

    /// Applies other limits to new connections.
    pub(super) fn set_limits(&mut self, clients_max: usize, per_address_max: Option<usize>) {
        (self.clients_max, self.per_address_max) = (clients_max, per_address_max);
    }

    /// Sets the load balancers' addresses.
    pub(super) fn set_balancers(&mut self, balancers: Balancers) {
        self.balancers = balancers;
    }

    /// The load balancers.
    pub(super) fn balancers(&self) -> &Balancers {
        &self.balancers
    }

    /// Admits a connection, whose end must be reported with [`Admission::gone`]. Some are admitted beyond the limits, so that their
    /// SETUP can be answered 453.
    ///
    /// # Errors
    /// The limit; the connection must be closed.
    pub(super) fn enter(&mut self, peer: SocketAddr) -> Result<(), LimitReached> {
        let Admission { clients_max, shards, open, .. } = *self;
        if open >= connections_max(clients_max, shards) {
            process::limited(Limited::Connections);
            return Err(LimitReached::Clients { open, clients_max, peer });
        }
        let has = self.by_origin.get(&origin(peer.ip())).copied().unwrap_or(0);
        if let Some(max) = self.per_address_max.filter(|max| has >= max + REFUSED_WITH_ANSWER_PER_ADDRESS_MAX) {
            process::limited(Limited::ConnectionsPerAddress);
            return Err(LimitReached::PerAddress { has, max, peer });
        }
        *self.by_origin.entry(origin(peer.ip())).or_default() += 1;
        self.open += 1;
        Ok(())
    }

    /// A connection that another process has admitted.
    pub(super) fn restore(&mut self, peer: SocketAddr) {
        *self.by_origin.entry(origin(peer.ip())).or_default() += 1;
        self.open += 1;
    }

    /// Whether each new connection should evict an unfinished TLS handshake, so that there are places for the next ones.
    pub(super) fn is_crowded(&self) -> bool {
        self.open > connections_many(self.clients_max, self.shards)
    }

    /// An admitted connection has ended.
    pub(super) fn gone(&mut self, peer: SocketAddr) {
        let origin = origin(peer.ip());
        let Some(has) = self.by_origin.get_mut(&origin) else { return };
        *has -= 1;
        if *has == 0 {
            self.by_origin.remove(&origin);
            self.by_origin.shrink_if_sparse();
        }
        self.open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_gets_its_share_and_others_theirs() {
        let mut admission = Admission::new(100, Some(2), 1);
        let greedy = address("192.0.2.1:5");
        let had = (0..).take_while(|_| admission.enter(greedy).is_ok()).count();
        assert_eq!(had, 2 + REFUSED_WITH_ANSWER_PER_ADDRESS_MAX);
        assert!(admission.enter(address("[::ffff:192.0.2.1]:6")).is_err(), "the same address in its other form");
        admission.enter(address("192.0.2.2:5")).unwrap();
        admission.gone(greedy);
        admission.enter(greedy).unwrap();
        // All addresses in an IPv6 network count as one.
        let v6 = (0..).take_while(|at| admission.enter(address(&format!("[2001:db8::{at:x}]:1"))).is_ok()).count();
        assert_eq!(v6, had);
        admission.enter(address("[2001:db8:0:1::1]:1")).unwrap();
    }

    #[test]
    fn a_flood_leaves_nothing_behind() {
        let mut admission = Admission::new(10, None, 3);
        let flood: Vec<_> = (0..1_000).map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect();
        let mut many = None;
        let mut entered = Vec::new();
        for peer in flood {
            if admission.enter(peer).is_ok() {
                entered.push(peer);
                many = many.or(admission.is_crowded().then_some(entered.len()));
            }
        }
        assert_eq!((many, entered.len()), (Some(connections_many(10, 3) + 1), connections_max(10, 3)));
        for peer in entered {
            admission.gone(peer);
        }
        assert!(!admission.is_crowded());
        assert_eq!((admission.open, admission.by_origin.len()), (0, 0));
    }
}
