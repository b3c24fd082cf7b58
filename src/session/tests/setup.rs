use super::*;
use crate::limits::RENDERINGS_MAX;

fn setup(rig: &mut Rig, conn: u32, track: u8, transport: &str, session: Option<SessionKey>) -> Reply {
    let transport = format!("Transport: {transport}");
    let session = session.map(|key| format!("Session: {key}"));
    let headers: Vec<&str> = [transport.as_str()].into_iter().chain(session.as_deref()).collect();
    rig.ask(conn, &format!("SETUP rtsp://h/front/trackID={track}"), &headers)
}

#[test]
fn channels_asked_for_are_given_and_chosen_where_they_are_not() {
    let mut rig = rig();
    let reply = setup(&mut rig, 0, 0, "RTP/AVP/TCP;unicast;interleaved=4-5;mode=\"PLAY\"", None);
    assert_eq!(reply.header("Transport"), "RTP/AVP/TCP;unicast;interleaved=4-5;ssrc=0000000A");
    let key = reply.session();
    // Taken by the first track: the default channels are assigned.
    let reply = setup(&mut rig, 0, 1, "RTP/AVP/TCP;interleaved=4-5", Some(key));
    assert_eq!(reply.header("Transport"), "RTP/AVP/TCP;unicast;interleaved=2-3;ssrc=0000000B");
    // Set up again, with one of them taken, with a single number, in upper case, and without channels.
    let again = |rig: &mut Rig, transport: &str| {
        let reply = setup(rig, 0, 0, transport, Some(key));
        reply.header("Transport").split(';').nth(2).unwrap().to_owned()
    };
    assert_eq!(again(&mut rig, "RTP/AVP/TCP;interleaved=3-4"), "interleaved=0-1");
    assert_eq!(again(&mut rig, "RTP/AVP/TCP;interleaved=8"), "interleaved=8-9");
    assert_eq!(again(&mut rig, "RTP/AVP/TCP;INTERLEAVED=11-10"), "interleaved=11-10");
    assert_eq!(again(&mut rig, "RTP/AVP/TCP"), "interleaved=0-1");
    assert_eq!(rig.server.session_info(key).unwrap().tracks.len(), 2);
}

#[test]
fn datagrams_go_to_the_connections_address_alone() {
    let mut rig = rig();
    let reply = setup(&mut rig, 0, 0, "RTP/AVP/UDP;unicast;destination=203.0.113.9;client_port=5000-5001", None);
    assert_eq!(
        reply.header("Transport"),
        "RTP/AVP/UDP;unicast;client_port=5000-5001;server_port=7000-7001;ssrc=0000000A"
    );
    rig.play(0, reply.session());
    let Event::Play { tracks, .. } = &rig.plays[0] else { panic!() };
    let delivery = Delivery::Udp { rtp: "192.0.2.1:5000".parse().unwrap(), rtcp: "192.0.2.1:5001".parse().unwrap() };
    assert_eq!(tracks, &[PlayTrack { track: TrackId(0), delivery }]);
}

#[test]
fn the_first_acceptable_of_a_list_is_taken_and_none_is_461() {
    let mut rig = rig();
    let list = "RTP/SAVP;unicast;client_port=1-2, RTP/AVP;multicast;client_port=3-4,RTP/AVP/TCP;interleaved=6-7,RTP/AVP;client_port=8-9";
    let reply = setup(&mut rig, 0, 0, list, None);
    assert_eq!(reply.header("Transport"), "RTP/AVP/TCP;unicast;interleaved=6-7;ssrc=0000000A");
    rig.connect(1);
    for none in ["RTP/SAVP;unicast", "RTP/AVP;multicast", "RTP/AVP;unicast", "x", "", "RTP/AVP/TCP;mode=RECORD"] {
        let reply = setup(&mut rig, 1, 0, none, None);
        assert_eq!((reply.status, reply.get("Session")), (461, None), "{none}");
    }
    assert_eq!(rig.status(1, "SETUP rtsp://h/front/trackID=0", &[]), 400);
    // A client whose SETUP was refused may retry on the same connection.
    assert_eq!(setup(&mut rig, 1, 0, "RTP/AVP/TCP;interleaved=0-1", None).status, 200);
}

#[test]
fn without_udp_ports_datagrams_are_461() {
    let mut rig = rig_with(ServerConfig { udp_ports: None, ..config() });
    assert_eq!(setup(&mut rig, 0, 0, "RTP/AVP;unicast;client_port=5000-5001", None).status, 461);
    assert_eq!(setup(&mut rig, 0, 0, "RTP/AVP;unicast;client_port=5000-5001, RTP/AVP/TCP", None).status, 200);
}

#[test]
fn what_is_asked_for_by_tls_does_not_leave_in_the_clear() {
    let mut rig = rig();
    rig.server.set_multicast(StreamId::first(0), "239.1.2.3:5000".parse().unwrap(), 1);
    rig.connect(1);
    rig.server.set_secure(ConnId(1));
    for clear in ["RTP/AVP;unicast;client_port=5000-5001", "RTP/AVP;multicast"] {
        assert_eq!(setup(&mut rig, 1, 0, clear, None).status, 461, "{clear}");
        assert_eq!(setup(&mut rig, 0, 0, clear, None).status, 200, "{clear}");
    }
    assert_eq!(setup(&mut rig, 1, 0, "RTP/AVP;unicast;client_port=5000-5001, RTP/AVP/TCP", None).status, 200);
}

#[test]
fn one_session_has_one_kind_of_transport() {
    let mut rig = rig();
    let key = setup(&mut rig, 0, 0, "RTP/AVP/TCP", None).session();
    assert_eq!(setup(&mut rig, 0, 1, "RTP/AVP;client_port=5000-5001", Some(key)).status, 461);
    let reply = setup(&mut rig, 0, 1, "RTP/AVP;client_port=5000-5001,RTP/AVP/TCP", Some(key));
    assert!(reply.header("Transport").contains("interleaved=2-3"));
    rig.connect(1);
    let key = setup(&mut rig, 1, 0, "RTP/AVP;client_port=5000-5001", None).session();
    assert_eq!(setup(&mut rig, 1, 1, "RTP/AVP/TCP;interleaved=0-1", Some(key)).status, 461);
    // Nor may two tracks have the same ports.
    assert_eq!(setup(&mut rig, 1, 1, "RTP/AVP;client_port=5000-5001", Some(key)).status, 461);
    assert_eq!(setup(&mut rig, 1, 1, "RTP/AVP;client_port=5002-5003", Some(key)).status, 200);
}

#[test]
fn while_playing_nothing_is_set_up() {
    let mut rig = rig();
    let key = setup(&mut rig, 0, 0, "RTP/AVP/TCP", None).session();
    rig.play(0, key);
    let reply = setup(&mut rig, 0, 1, "RTP/AVP/TCP", Some(key));
    assert_eq!((reply.status, reply.session()), (455, key));
    assert!(reply.header("Allow").contains("PAUSE") && !reply.header("Allow").contains("SETUP"));
    // Nor is a second session on the same connection.
    assert_eq!(setup(&mut rig, 0, 1, "RTP/AVP/TCP", None).status, 455);
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front", &[&format!("Session: {key}")]), 200);
    // A session that has played continues with the tracks that it has.
    assert_eq!(setup(&mut rig, 0, 1, "RTP/AVP/TCP", Some(key)).status, 455);
}

#[test]
fn a_player_that_sends_its_setups_in_one_go_gets_one_session() {
    let mut rig = rig();
    let mut text = String::new();
    for track in 0..2 {
        text += &format!(
            "SETUP rtsp://h/front/trackID={track} RTSP/1.0\r\nCSeq: {track}\r\nTransport: RTP/AVP/TCP;interleaved={}-{}\r\n\r\n",
            track * 2,
            track * 2 + 1
        );
    }
    let replies = rig.send(0, text.as_bytes());
    assert_eq!((replies.len(), replies[0].session()), (2, replies[1].session()));
    assert_eq!(rig.server.sessions(), 1);
    // Another stream on the same connection is refused.
    assert_eq!(rig.status(0, "SETUP rtsp://h/audio", &["Transport: RTP/AVP/TCP"]), 455);
}

#[test]
fn a_stream_of_one_track_is_set_up_by_its_own_url() {
    let mut rig = rig();
    assert_eq!(rig.status(0, "SETUP rtsp://h/audio", &["Transport: RTP/AVP/TCP"]), 200);
}

#[test]
fn the_limit_of_clients_holds_until_one_leaves() {
    let mut rig = rig_with(ServerConfig { limit: SessionLimit::new(2), ..config() });
    let key = rig.set_up_tcp(0);
    rig.connect(1);
    rig.set_up_tcp(1);
    rig.connect(2);
    let reply = setup(&mut rig, 2, 0, "RTP/AVP/TCP", None);
    assert_eq!((reply.status, reply.get("Session")), (453, None));
    assert_eq!(rig.status(2, "DESCRIBE rtsp://h/front", &[]), 200);
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front", &[&format!("Session: {key}")]), 200);
    rig.set_up_tcp(2);
}

#[test]
fn no_track_is_rendered_for_more_channels_than_the_limit() {
    let mut rig = rig();
    for conn in 0..RENDERINGS_MAX as u32 + 3 {
        rig.connect(conn);
        let (a, b) = (100 + conn * 2, 101 + conn * 2);
        let reply = setup(&mut rig, conn, 0, &format!("RTP/AVP/TCP;interleaved={a}-{b}"), None);
        let own = format!("interleaved={a}-{b}");
        assert_eq!(reply.header("Transport").contains(&own), conn < RENDERINGS_MAX as u32, "{reply:?}");
        if conn >= RENDERINGS_MAX as u32 {
            assert!(reply.header("Transport").contains("interleaved=0-1"));
        }
    }
    // The connection that created one is closed: there is room for another.
    rig.server.disconnected(rig.now, ConnId(0));
    rig.connect(50);
    let reply = setup(&mut rig, 50, 0, "RTP/AVP/TCP;interleaved=200-201", None);
    assert!(reply.header("Transport").contains("interleaved=200-201"));
}

#[test]
fn a_player_that_starts_again_on_the_same_ports_gets_its_media_once() {
    let mut rig = rig();
    let old = rig.set_up_udp(0, 5000);
    rig.play(0, old);
    rig.connect(1);
    let new = rig.set_up_udp(1, 5000);
    assert_eq!(rig.take_events(), [Event::End { session: old, reason: EndReason::Replaced }]);
    assert_eq!(rig.server.session_keys().collect::<Vec<_>>(), [new]);
    // Another address has its own ports.
    rig.connect_from(2, "192.0.2.2:4000".parse().unwrap());
    rig.set_up_udp(2, 5000);
    assert_eq!(rig.server.sessions(), 2);
}

#[test]
fn who_plays_is_told() {
    let mut rig = rig();
    let agent = format!("User-Agent: LibVLC/3 {}", "x".repeat(200));
    let reply = rig.ask(0, "SETUP rtsp://h/front/trackID=0", &["Transport: RTP/AVP/TCP", &agent]);
    let info = rig.server.session_info(reply.session()).unwrap();
    assert!(info.user_agent.as_ref().is_some_and(|name| name.starts_with("LibVLC/3 x") && name.len() == 128));
    assert_eq!(
        (info.peer, info.conn, info.stream, info.playing),
        (peer(0), Some(ConnId(0)), StreamId::first(0), false)
    );
    assert_eq!(rig.server.session_info(SessionKey(1)), None);
}

#[test]
fn multicast_is_the_streams_own_group_for_all() {
    let mut rig = rig();
    rig.server.set_multicast(StreamId::first(0), "239.1.2.3:5000".parse().unwrap(), 4);
    let reply = setup(&mut rig, 0, 0, "RTP/AVP;multicast;destination=224.9.9.9;port=7000-7001", None);
    assert_eq!(reply.header("Transport"), "RTP/AVP;multicast;destination=239.1.2.3;port=5000-5001;ttl=4;ssrc=0000000A");
    let key = reply.session();
    // All tracks of a session use the same kind of transport.
    assert_eq!(setup(&mut rig, 0, 1, "RTP/AVP;unicast;client_port=8000-8001", Some(key)).status, 461);
    let reply = setup(&mut rig, 0, 1, "RTP/AVP;multicast", Some(key));
    assert_eq!(reply.header("Transport"), "RTP/AVP;multicast;destination=239.1.2.3;port=5002-5003;ttl=4;ssrc=0000000B");
    rig.play(0, key);
    let Event::Play { tracks, .. } = &rig.plays[0] else { panic!() };
    let rtp = "239.1.2.3:5002".parse().unwrap();
    assert_eq!(tracks[1], PlayTrack { track: TrackId(1), delivery: Delivery::Multicast { rtp } });
    rig.connect(1);
    assert_eq!(setup(&mut rig, 1, 0, "RTP/AVP/TCP;multicast", None).status, 461);
}
