//! Who gets sockets of its own, when, and for how long.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::egress::Token;
use crate::egress::sim::SimEgress;
use crate::session::{ServerConfig, SessionIds, SessionLimit};
use crate::shard::core::{Closing, CoreConfig};

const VIDEO: TrackId = TrackId(0);

pub fn core(now: Instant) -> Core<SimEgress> {
    let config = CoreConfig {
        age: Duration::from_secs(1),
        log_bytes: 1 << 20,
        stall_timeout: Duration::from_secs(10),
        streams: Vec::new(),
        server: ServerConfig {
            shard: 0,
            shards: 1,
            session_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            limit: SessionLimit::new(1_000),
            udp_ports: Some((9000, 9001)),
            own_ports: None,
            ids: SessionIds::Seeded(1),
        },
    };
    let sockets = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
    Core::new(now, config, SimEgress::new(), Some(sockets))
}

fn client(core: &mut Core<SimEgress>, now: Instant, own_sockets: Option<Box<OwnSockets>>) -> Token {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    core.add_link(Kind::Udp {
        targets: [Target { track: VIDEO, rtp: at(6000), rtcp_port: 6001 }].into_iter().collect(),
        own: VecDeque::new(),
        own_sockets,
        plain: false,
        burst_bytes: 0,
        burst_from: now,
        paced: false,
    })
}

/// Clients with sockets of their own; the core's count is the same.
fn owners(core: &Core<SimEgress>) -> usize {
    let own = |kind: &Kind| matches!(kind, Kind::Udp { own_sockets: Some(own), .. } if own.rtcp.is_none());
    let count = core.links.iter().filter(|(_, link)| own(&link.kind)).count();
    assert_eq!(count, core.own_paths);
    count
}

#[test]
fn a_refusal_gives_clients_sockets_of_their_own_some_at_a_time() {
    let now = Instant::now();
    let mut core = core(now);
    for _ in 0..DATAGRAM_MOVES_MAX + 8 {
        client(&mut core, now, None);
    }
    core.check_paths(now);
    assert_eq!(owners(&core), 0, "nothing is held, nothing was refused");
    core.path_refused = true;
    core.check_paths(now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX);
    core.check_paths(now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX, "one refusal is one round");
    core.path_refused = true;
    core.check_paths(now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX + 8);
}

#[test]
fn what_is_not_needed_for_a_while_is_taken_back() {
    let now = Instant::now();
    let mut core = core(now);
    let clients = [0; 3].map(|_| client(&mut core, now, None));
    core.path_refused = true;
    core.check_paths(now);
    assert_eq!(owners(&core), 3);
    let almost = now + Duration::from_secs(DATAGRAM_OWN_S) - Duration::from_millis(1);
    core.check_paths(almost);
    assert_eq!(owners(&core), 3);
    // Not under an operation.
    let over = now + Duration::from_secs(DATAGRAM_OWN_S);
    core.links[clients[0].slot as usize].busy = Some(over);
    core.check_paths(over);
    assert_eq!(owners(&core), 1);
    core.links[clients[0].slot as usize].busy = None;
    core.close(clients[0].slot, Closing::Join);
    assert_eq!((owners(&core), core.links()), (0, 2), "who leaves takes its sockets along");
}

#[test]
fn a_multicast_group_keeps_its_sockets_and_is_not_counted() {
    let now = Instant::now();
    let mut core = core(now);
    let group = OwnSockets {
        rtp: SmallVec::from_iter([(VIDEO, Datagram::Scripted)]),
        rtcp: Some(Datagram::Scripted),
        backed_up: now,
    };
    let group = client(&mut core, now, Some(Box::new(group)));
    client(&mut core, now, None);
    core.path_refused = true;
    core.check_paths(now);
    assert_eq!(owners(&core), 1);
    core.check_paths(now + Duration::from_secs(DATAGRAM_OWN_S));
    assert_eq!(owners(&core), 0);
    let Kind::Udp { own_sockets, .. } = &core.links[group.slot as usize].kind else { unreachable!("a UDP link") };
    assert!(own_sockets.is_some());
    core.close(group.slot, Closing::Join);
    assert_eq!(owners(&core), 0);
}
