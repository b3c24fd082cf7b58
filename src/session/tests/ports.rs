use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::access::{Access, Guard, User};
use crate::wire::auth;

const SET_UP: &str = "SETUP rtsp://h/front/trackID=0";

fn udp(ports: &str) -> String {
    format!("Transport: RTP/AVP;unicast;client_port={ports}")
}

/// A machine with two addresses.
fn is_own_address(ip: IpAddr) -> bool {
    ["192.0.2.1", "198.51.100.1"].iter().any(|own| own.parse() == Ok(ip))
}

/// Two shards of one relay, with the ports 7000, 7001 and 7010, 7011.
fn shards() -> [Rig; 2] {
    let ports = UdpPorts::new(2, is_own_address);
    [0, 1].map(|shard| {
        let own = (7000 + 10 * shard, 7001 + 10 * shard);
        let ids = SessionIds::Seeded(42);
        let all_ports = Some(Arc::clone(&ports));
        rig_with(ServerConfig { shard, shards: 2, udp_ports: Some(own), all_ports, ids, ..config() })
    })
}

#[test]
fn no_address_of_the_machine_leads_back_to_the_relay() {
    let [mut rig, _] = shards();
    // Connection 0 is from the first of the machine's addresses to the second.
    for (pair, status) in [("7000-7001", 461), ("7010-7011", 461), ("6999-7000", 461), ("7002-7003", 200)] {
        assert_eq!(rig.status(0, SET_UP, &[&udp(pair)]), status, "{pair}");
    }
    rig.connect_from(1, "203.0.113.1:5".parse().unwrap());
    assert_eq!(rig.status(1, SET_UP, &[&udp("7000-7001")]), 200, "another machine may have those ports too");
    assert_eq!(rig.limited(Limited::UdpPorts), 3);
}

#[test]
fn a_publisher_has_no_port_of_the_relay() {
    let [mut rig, _] = shards();
    rig.server.set_published(StreamId::first(1), true);
    rig.connect_from(1, "127.0.0.1:5".parse().unwrap());
    announce(&mut rig, 1);
    let line = "SETUP rtsp://h/back/streamid=0";
    assert_eq!(rig.status(1, line, &[&udp("7010-7011")]), 461);
    assert_eq!(rig.status(1, line, &[&udp("7012-7013")]), 200);
}

#[test]
fn a_player_that_starts_again_at_another_shard_gets_its_media_once() {
    let [mut here, mut there] = shards();
    let before = here.set_up_udp(0, 5000);
    here.play(0, before);
    let other = here.set_up_udp(0, 5100);
    // Its ports belong to one address; the same numbers at another are different ports.
    there.connect_from(1, "192.0.2.9:5".parse().unwrap());
    there.set_up_udp(1, 5000);
    let due = here.server.next_timeout();
    there.now = here.now + seconds(1);
    let after = there.set_up_udp(0, 5000);
    here.now = there.now;
    assert_eq!(here.server.next_timeout(), Some(here.now), "the shard has something to do");
    here.wait(seconds(0));
    assert_eq!(here.take_events(), [Event::End { session: before, reason: EndReason::Replaced }]);
    assert!(here.server.session_info(other).is_some());
    assert_eq!(here.server.next_timeout(), due);
    // A later session keeps its ports, and gives them up in its turn.
    assert!(there.server.session_info(after).is_some());
    there.wait(seconds(0));
    let again = here.set_up_udp(0, 5000);
    there.wait(seconds(0));
    assert!(there.server.session_info(after).is_none() && here.server.session_info(again).is_some());
    there.set_up_udp(0, 5100);
    here.wait(seconds(0));
    assert!(here.server.session_info(other).is_none());
}

#[test]
fn a_port_is_free_once_its_session_has_ended() {
    let [mut here, mut there] = shards();
    let key = here.set_up_udp(0, 5000);
    assert_eq!(here.status(0, "TEARDOWN rtsp://h/front", &[&format!("Session: {key}")]), 200);
    let due = here.server.next_timeout();
    there.set_up_udp(0, 5000);
    assert_eq!(here.server.next_timeout(), due);
}

#[test]
fn a_port_of_another_shards_publisher_is_no_players() {
    let [mut here, mut there] = shards();
    here.server.set_published(StreamId::first(1), true);
    here.connect_from(1, "127.0.0.1:5".parse().unwrap());
    announce(&mut here, 1);
    let publish = |rig: &mut Rig| rig.status(1, "SETUP rtsp://h/back/streamid=0", &[&udp("6000-6001")]);
    assert_eq!(publish(&mut here), 200);
    there.connect_from(1, "127.0.0.1:6".parse().unwrap());
    assert_eq!(there.status(1, SET_UP, &[&udp("6001-6002")]), 461);
    // The restarted encoder has them.
    there.server.set_published(StreamId::first(1), true);
    announce(&mut there, 1);
    assert_eq!(publish(&mut there), 200);
    here.wait(seconds(0));
    assert_eq!((here.server.sessions(), there.server.sessions()), (0, 1));
}

#[test]
fn who_sends_a_stream_from_a_port_does_not_play_at_it() {
    let mut rig = rig();
    rig.server.set_published(StreamId::first(1), true);
    rig.connect_from(1, "127.0.0.1:5".parse().unwrap());
    rig.connect_from(2, "127.0.0.1:6".parse().unwrap());
    let player = rig.set_up_udp(1, 6000);
    rig.play(1, player);
    announce(&mut rig, 2);
    assert_eq!(rig.status(2, "SETUP rtsp://h/back/streamid=0", &[&udp("6002-6004")]), 200);
    assert_eq!(rig.take_events(), [Event::End { session: player, reason: EndReason::Replaced }]);
    assert_eq!(rig.server.sessions(), 1);
}

/// The users `viewer` and `other`, with the password `secret`.
fn set_users(rigs: [&mut Rig; 2], basic: bool) {
    let guard = Guard::new(&[3; 32], rigs[0].now);
    let user = |name| Arc::new(User::viewer(name, "secret"));
    let users = vec![user("viewer"), user("other")];
    for rig in rigs {
        rig.server.set_access(rig.now, Some(Access::new(users.clone(), basic, seconds(30), Arc::clone(&guard))));
    }
}

#[test]
fn ports_of_another_user_are_kept_in_every_shard() {
    let [mut here, mut there] = shards();
    set_users([&mut here, &mut there], false);
    let set_up = |rig: &mut Rig, conn: u32, name: &str| {
        let challenge = rig.ask(conn, "DESCRIBE rtsp://h/front", &[]);
        let challenges = challenge.headers.iter().filter(|(name, _)| name == "WWW-Authenticate");
        let (method, url) = SET_UP.split_once(' ').unwrap();
        let answered = |(_, value): &(String, String)| auth::answer(value, name, "secret", method, url);
        let credentials = format!("Authorization: {}", challenges.into_iter().find_map(answered).unwrap());
        rig.status(conn, SET_UP, &[&credentials, &udp("5000-5001")])
    };
    assert_eq!(set_up(&mut here, 0, "viewer"), 200);
    assert_eq!(set_up(&mut there, 0, "other"), 461);
    assert_eq!(there.limited(Limited::UdpPorts), 1);
    here.wait(seconds(0));
    assert_eq!(here.server.sessions(), 1);
    there.connect(1);
    assert_eq!(set_up(&mut there, 1, "viewer"), 200);
    here.wait(seconds(0));
    assert_eq!(here.server.sessions(), 0);
}

#[test]
fn of_two_users_who_ask_two_shards_at_once_for_a_port_one_gets_it() {
    const ROUNDS: usize = 300;
    let [mut here, mut there] = shards();
    set_users([&mut here, &mut there], true);
    let arrived = AtomicUsize::new(0);
    // Both threads arrive at the same count; a barrier that sleeps would wake one long before the other.
    let meet = |times: usize| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while arrived.load(Ordering::SeqCst) < 2 * times {
            assert!(since.elapsed() < seconds(20), "the other shard does not come");
            std::thread::yield_now();
        }
    };
    let ask = |mut rig: Rig, credentials: &str, ports: &str| {
        let credentials = format!("Authorization: Basic {credentials}");
        let round = |round: usize| {
            // No faster than a client may send requests.
            rig.now += Duration::from_millis(100);
            meet(2 * round + 1);
            let reply = rig.ask(0, SET_UP, &[&credentials, &udp(ports)]);
            meet(2 * round + 2);
            if reply.status == 200 {
                let session = format!("Session: {}", reply.session());
                assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front", &[&credentials, &session]), 200);
            }
            reply.status
        };
        (0..ROUNDS).map(round).collect::<Vec<_>>()
    };
    let [one, other] = std::thread::scope(|scope| {
        let one = scope.spawn(|| ask(here, "dmlld2VyOnNlY3JldA==", "5000-5001"));
        let other = scope.spawn(|| ask(there, "b3RoZXI6c2VjcmV0", "5001-5002"));
        [one, other].map(|asked| asked.join().unwrap())
    });
    for (round, both) in one.into_iter().zip(other).enumerate() {
        assert!(matches!(both, (200, 461) | (461, 200)), "{both:?} in round {round}");
    }
}

#[test]
fn a_track_that_is_set_up_anew_keeps_the_port_that_it_had() {
    let [mut here, mut there] = shards();
    set_users([&mut here, &mut there], true);
    let (viewer, other) = ("Authorization: Basic dmlld2VyOnNlY3JldA==", "Authorization: Basic b3RoZXI6c2VjcmV0");
    let session = format!("Session: {}", here.ask(0, SET_UP, &[viewer, &udp("5000-5001")]).session());
    assert_eq!(here.status(0, SET_UP, &[viewer, &session, &udp("5001-5002")]), 200);
    for (pair, status) in [("5001-5003", 461), ("5002-5003", 461), ("4999-5000", 200)] {
        assert_eq!(there.status(0, SET_UP, &[other, &udp(pair)]), status, "{pair}");
    }
}

/// Announces `back` with one track.
fn announce(rig: &mut Rig, conn: u32) {
    let sdp = "v=0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n";
    let head = format!("ANNOUNCE rtsp://h/back RTSP/1.0\r\nCSeq: 1\r\nContent-Length: {}\r\n\r\n", sdp.len());
    assert_eq!(rig.send(conn, format!("{head}{sdp}").as_bytes())[0].status, 200);
}
