//! Limits on what unauthenticated clients can consume.

use std::sync::Arc;

use super::*;
use crate::limits::{
    FLOOD_REMEMBERED_S, REQUESTS_AT_ONCE_MAX, REQUESTS_PER_S_MAX, SESSIONS_PER_CONNECTION_MAX, STRANGERS_MIN,
    answered_beyond, connections_many, strangers_beside, strangers_max,
};

const OPTIONS: &[u8] = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";

#[test]
fn whoever_has_most_connections_without_a_session_makes_room() {
    let mut rig = rig();
    let honest = "192.0.2.7:5".parse().unwrap();
    rig.connect_from(1_000, honest);
    let player = rig.set_up_tcp(0);
    rig.play(0, player);
    let most = strangers_beside(100, 1, 1) as u32;
    for conn in 1..=2 * most {
        rig.connect_from(conn, peer(conn));
        rig.drain(conn);
    }
    let closed: Vec<u32> = rig
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Close { conn, reason: CloseReason::Crowded } => Some(conn.0),
            _ => None,
        })
        .collect();
    let expected: Vec<u32> = (1..=most + 1).collect();
    assert_eq!(closed, expected, "the oldest ones of the flood, and neither the honest one nor the player");
    assert_eq!(rig.status(1_000, "OPTIONS *", &[]), 200);
    // A connection from another address also gets a place.
    rig.connect_from(2_000, "192.0.2.8:5".parse().unwrap());
    assert_eq!(rig.status(2_000, "OPTIONS *", &[]), 200);
    assert_eq!(rig.server.sessions(), 1);
}

#[test]
fn all_players_of_a_small_relay_may_be_there_without_a_session() {
    for clients in [1, 2, 11, 40, 64, 100, 127, STRANGERS_MIN] {
        for shards in [1, 3] {
            let mut rig = rig_with(ServerConfig { shards, limit: SessionLimit::new(clients), ..config() });
            // One exists already. The acceptor gives each shard the same number.
            let share = clients.div_ceil(shards.into()) as u32;
            for conn in 1..share {
                rig.connect(conn);
                rig.drain(conn);
            }
            assert_eq!(rig.take_events(), [], "{clients}, {shards}");
        }
    }
}

#[test]
fn connections_without_a_session_leave_places_however_many_sessions_there_are() {
    for (clients, players) in [(1, 0), (10, 0), (10, 9), (100, 60), (10_000, 8_000)] {
        let limit = SessionLimit::new(clients);
        let mut rig = rig_with(ServerConfig { limit: limit.clone(), ..config() });
        // Sessions of other shards.
        (0..players).for_each(|_| limit.begun("192.0.2.9".parse().unwrap()));
        let all = clients + answered_beyond(clients);
        let mut open = 1;
        for conn in 1..=2 * all as u32 {
            rig.connect(conn);
            rig.drain(conn);
            let closed = rig.take_events().into_iter().filter(|event| matches!(event, Event::Close { .. })).count();
            open = open + 1 - closed;
        }
        assert!(players + open < all, "{clients}: {players} and {open}");
        assert!(open >= strangers_max(clients).min(clients - players), "{clients}: {open}");
    }
}

#[test]
fn they_leave_places_however_many_shards_there_are() {
    for (clients, shards, players) in [(1, 8, 0), (1, 8, 1), (40, 64, 0), (40, 64, 40), (100, 3, 60)] {
        let limit = SessionLimit::new(clients);
        let rig = |shard| rig_with(ServerConfig { shard, shards, limit: limit.clone(), ..config() });
        let mut rigs: Vec<Rig> = (0..shards).map(rig).collect();
        (0..players).for_each(|_| limit.begun("192.0.2.9".parse().unwrap()));
        let all = connections_many(clients, shards.into());
        let mut open = rigs.len();
        for rig in &mut rigs {
            // One exists already in each.
            for conn in 1..=all as u32 {
                rig.connect(conn);
                rig.drain(conn);
            }
            let is_close = |event: &Event| matches!(event, Event::Close { .. });
            let closed = rig.take_events().iter().filter(|event| is_close(event)).count();
            assert!(closed <= all, "{clients}, {shards}: a shard keeps nobody");
            open = open + all - closed;
        }
        assert!(players + open < all, "{clients}, {shards}: {players} and {open}");
    }
}

#[test]
fn many_requests_are_answered_later_and_too_many_close_the_connection() {
    let mut rig = rig();
    let burst = OPTIONS.repeat(REQUESTS_AT_ONCE_MAX as usize + 10);
    assert_eq!(rig.send(0, &burst).len(), REQUESTS_AT_ONCE_MAX as usize);
    assert_eq!(rig.limited(Limited::RequestDelayed), 1);
    let mut answered = 0;
    for _ in 0..20 {
        rig.now += seconds(1) / REQUESTS_PER_S_MAX;
        rig.server.timeout(rig.now);
        answered += rig.drain(0).len();
    }
    assert_eq!(answered, 10, "none is lost");
    rig.connect(1);
    for _ in 0..200 {
        rig.server.input(rig.now, ConnId(1), &OPTIONS.repeat(100));
        rig.drain(1);
    }
    let closed = Event::Close { conn: ConnId(1), reason: CloseReason::Flood };
    assert!(rig.take_events().contains(&closed));
    // A new connection from there has only the allowance that has grown back, and others have theirs.
    rig.connect(2);
    assert_eq!(rig.send(2, &burst).len(), 0);
    rig.now += seconds(1) / REQUESTS_PER_S_MAX;
    rig.server.timeout(rig.now);
    assert_eq!(rig.drain(2).len(), 1);
    rig.connect_from(3, "192.0.2.9:5".parse().unwrap());
    assert_eq!(rig.send(3, &burst).len(), REQUESTS_AT_ONCE_MAX as usize);
    rig.wait(seconds(FLOOD_REMEMBERED_S));
    rig.connect(4);
    assert_eq!(rig.send(4, &burst).len(), REQUESTS_AT_ONCE_MAX as usize, "it is forgotten");
}

#[test]
fn a_connection_and_an_address_get_only_so_many_sessions() {
    let mut rig = rig();
    for index in 0..SESSIONS_PER_CONNECTION_MAX as u16 {
        rig.set_up_udp(0, 5_000 + 4 * index);
    }
    let one_more = ["Transport: RTP/AVP;unicast;client_port=6000-6001"];
    assert_eq!(rig.status(0, "SETUP rtsp://h/front/trackID=0", &one_more), 453);
    assert_eq!(rig.limited(Limited::SessionsPerConnection), 1);
    rig.server.set_limits(seconds(60), seconds(10), 100, Some(SESSIONS_PER_CONNECTION_MAX));
    rig.connect(1);
    assert_eq!(rig.status(1, "SETUP rtsp://h/front/trackID=0", &one_more), 453);
    assert_eq!(rig.limited(Limited::SessionsPerAddress), 1);
    rig.connect_from(2, "192.0.2.9:5".parse().unwrap());
    assert_eq!(rig.status(2, "SETUP rtsp://h/front/trackID=0", &one_more), 200);
    // A session that has ended makes room.
    rig.wait(seconds(61));
    rig.connect(3);
    assert_eq!(rig.status(3, "SETUP rtsp://h/front/trackID=0", &one_more), 200);
}

#[test]
fn ports_of_other_services_are_not_sent_to() {
    let shared = UdpPorts::new(2, |_| false);
    let mut rig = rig_with(ServerConfig { shards: 2, all_ports: Some(Arc::clone(&shared)), ..config() });
    for ports in ["53-54", "1022-1023", "5000-1", "0-1"] {
        let transport = format!("Transport: RTP/AVP;unicast;client_port={ports}");
        assert_eq!(rig.status(0, "SETUP rtsp://h/front/trackID=0", &[&transport]), 461, "{ports}");
    }
    // The relay's own ports, for a client on its machine, on any of its loopback addresses.
    rig.connect_from(3, "127.0.0.9:5".parse().unwrap());
    assert_eq!(
        rig.status(3, "SETUP rtsp://h/front/trackID=0", &["Transport: RTP/AVP;unicast;client_port=7000-7001"]),
        461
    );
    rig.connect_from(1, "198.51.100.1:5".parse().unwrap());
    let own = ["Transport: RTP/AVP;unicast;client_port=7000-7001"];
    assert_eq!(rig.status(1, "SETUP rtsp://h/front/trackID=0", &own), 461);
    assert_eq!(rig.status(0, "SETUP rtsp://h/front/trackID=0", &own), 200);
    // Nor those of another of its shards, which have been announced since.
    shared.set(1, (7010, 7011));
    for (pair, status) in
        [("7010-7011", 461), ("7009-7010", 461), ("7011-7012", 461), ("7000-7001", 461), ("7012-7013", 200)]
    {
        let transport = format!("Transport: RTP/AVP;unicast;client_port={pair}");
        rig.connect_from(2, "198.51.100.1:6".parse().unwrap());
        assert_eq!(rig.status(2, "SETUP rtsp://h/front/trackID=0", &[&transport]), status, "{pair}");
        rig.server.disconnected(rig.now, ConnId(2));
    }
    assert_eq!(
        rig.status(0, "SETUP rtsp://h/front/trackID=0", &["Transport: RTP/AVP;unicast;client_port=7010-7011"]),
        200
    );
}

#[test]
fn what_is_not_there_is_counted_and_leaves_nothing() {
    let mut rig = rig();
    for index in 0..100 {
        assert_eq!(rig.status(0, &format!("DESCRIBE rtsp://h/stream{index}"), &[]), 404);
    }
    assert_eq!(rig.limited(Limited::UnknownStream), 100);
    assert_eq!(rig.server.sessions(), 0);
}

#[test]
fn random_ids_tell_their_shard_and_nothing_else() {
    let draw = |shard| {
        let limit = SessionLimit::new(1_000);
        let mut rig = rig_with(ServerConfig { shard, shards: 3, ids: SessionIds::Random, limit, ..config() });
        (0..10).map(|index| rig.set_up_udp(0, 5_000 + 4 * index)).collect::<Vec<_>>()
    };
    let mut all: Vec<SessionKey> = Vec::new();
    for shard in 0..3 {
        let keys = draw(shard);
        assert!(keys.iter().all(|key| key.0 % 3 == u64::from(shard)));
        all.extend(keys);
    }
    // Another server with the same seed repeats nothing.
    all.extend(draw(0));
    let bits = all.iter().fold((0, u64::MAX), |(or, and), key| (or | key.0, and & key.0));
    assert_eq!((bits.0 >> 3, bits.1 >> 3), (u64::MAX >> 3, 0), "every bit varies");
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 40);
}
