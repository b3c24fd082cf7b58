use super::*;

const PUBLIC: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

#[test]
fn options_lists_the_methods_for_any_url() {
    let mut rig = rig();
    for url in ["*", "rtsp://h/front", "rtsp://h/nothing"] {
        let reply = rig.ask(0, &format!("OPTIONS {url}"), &[]);
        assert_eq!((reply.status, reply.header("Public"), reply.get("Session")), (200, PUBLIC, None));
    }
}

#[test]
fn the_sequence_number_is_echoed_and_must_be_there() {
    let mut rig = rig();
    let replies = rig.send(
        0,
        b"OPTIONS * RTSP/1.0\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: x\r\n\r\nOPTIONS * RTSP/1.0\r\ncseq:007\r\n\r\n",
    );
    let got: Vec<_> = replies.iter().map(|reply| (reply.status, reply.get("CSeq"))).collect();
    assert_eq!(got, [(400, None), (400, None), (200, Some("007"))]);
    assert!(rig.take_events().is_empty(), "the connection stays open");
}

#[test]
fn requests_are_answered_in_order_in_any_pieces() {
    let text: String = (0..50).map(|n| format!("OPTIONS * RTSP/1.0\r\nCSeq: {n}\r\n\r\n")).collect();
    for step in [1, 2, 7, text.len()] {
        let mut rig = rig();
        let replies: Vec<_> = text.as_bytes().chunks(step).flat_map(|piece| rig.send(0, piece)).collect();
        let order: Vec<_> = replies.iter().map(|reply| reply.header("CSeq").parse::<u32>().unwrap()).collect();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}

#[test]
fn describe_tells_the_base_the_tracks_and_no_address() {
    let mut rig = rig();
    for (url, base) in [
        ("rtsp://h:8554/front", "rtsp://h:8554/front/"),
        ("rtsp://h:8554/front/", "rtsp://h:8554/front/"),
        ("rtsp://h:8554//front//", "rtsp://h:8554/front/"),
        ("rtsp://h:8554/front?token=1", "rtsp://h:8554/front/"),
        ("rtsp://u:p@h/fr%6Fnt", "rtsp://h/fr%6Fnt/"),
        ("/front", "rtsp://198.51.100.1:8554/front/"),
    ] {
        let reply = rig.ask(0, &format!("DESCRIBE {url}"), &["Accept: application/rtsl, application/sdp;level=2"]);
        assert_eq!((reply.status, reply.header("Content-Base")), (200, base), "{url}");
        assert_eq!(reply.header("Content-Type"), "application/sdp");
        assert!(reply.body.contains("c=IN IP4 0.0.0.0\r\n") && reply.body.contains("\r\na=control:*\r\n"));
        assert!(reply.body.contains("a=control:trackID=0\r\n") && reply.body.contains("a=control:trackID=1\r\n"));
    }
    assert_eq!(rig.status(0, "DESCRIBE rtsp://h/front", &["Accept: text/plain"]), 406);
    // It ignores a session that no longer exists.
    assert_eq!(rig.status(0, "DESCRIBE rtsp://h/front", &["Session: 0123456789abcdef"]), 200);
}

#[test]
fn the_description_is_of_the_connections_kind_of_address() {
    let mut rig = rig();
    for (from, kind) in [
        ("192.0.2.7:50000", "IP4 0.0.0.0"),
        ("[::ffff:192.0.2.7]:50000", "IP4 0.0.0.0"),
        ("[2001:db8::7]:50000", "IP6 ::"),
    ] {
        rig.connect_from(1, from.parse().unwrap());
        let body = rig.ask(1, "DESCRIBE rtsp://h/front", &[]).body;
        assert!(body.contains(&format!("\r\nc=IN {kind}\r\n")), "{from}: {body}");
        assert!(body.lines().any(|line| line.starts_with("o=") && line.ends_with(kind)), "{from}: {body}");
    }
}

#[test]
fn a_url_without_a_host_is_completed_as_its_player_would_write_it() {
    let mut rig = rig();
    for (local, base) in [
        ("[::ffff:198.51.100.2]:554", "rtsp://198.51.100.2:554/front/"),
        ("[2001:db8::2]:554", "rtsp://[2001:db8::2]:554/front/"),
    ] {
        rig.server.connected(rig.now, ConnId(1), peer(1), local.parse().unwrap());
        assert_eq!(rig.ask(1, "DESCRIBE /front", &[]).header("Content-Base"), base);
    }
}

#[test]
fn what_is_not_there_is_not_found_and_what_was_never_up_may_come() {
    let mut rig = rig();
    for url in ["rtsp://h/nothing", "rtsp://h/", "*", "http://h/front", "rtsp://h/front/trackID=0", "rtsp://h/front/x"]
    {
        assert_eq!(rig.status(0, &format!("DESCRIBE {url}"), &[]), 404, "{url}");
    }
    let reply = rig.ask(0, "DESCRIBE rtsp://h/back", &[]);
    assert_eq!(reply.status, 503);
    assert!(reply.header("Retry-After").parse::<u32>().unwrap() > 0);
    let reply = rig.ask(0, "SETUP rtsp://h/back/trackID=0", &["Transport: RTP/AVP/TCP;interleaved=0-1"]);
    assert_eq!((reply.status, reply.get("Retry-After").is_some()), (503, true));
    assert_eq!(rig.status(0, "SETUP rtsp://h/front/trackID=2", &["Transport: RTP/AVP/TCP"]), 404);
}

#[test]
fn a_single_stream_is_served_at_the_root_too() {
    let mut rig = rig();
    rig.server = Server::new(config());
    rig.server.set_stream(StreamId::first(0), "front");
    rig.server.set_description(StreamId::first(0), Some(fuzz::description("H264", rig.now)));
    rig.connect(0);
    let reply = rig.ask(0, "DESCRIBE rtsp://h:1", &[]);
    assert_eq!((reply.status, reply.header("Content-Base")), (200, "rtsp://h:1/"));
    let reply = rig.ask(0, "SETUP rtsp://h:1/trackID=0", &["Transport: RTP/AVP/TCP;interleaved=0-1"]);
    assert_eq!(reply.status, 200);
    let session = format!("Session: {}", reply.session());
    assert_eq!(rig.status(0, "PLAY rtsp://h:1/", &[&session]), 200);
    assert_eq!(rig.status(0, "PAUSE rtsp://h:1/front", &[&session]), 200);
    assert_eq!(rig.status(0, "DESCRIBE rtsp://h:1/other", &[]), 404);
}

#[test]
fn play_answers_before_media_and_tells_where_they_begin() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.server.input(
        rig.now,
        ConnId(0),
        format!("PLAY rtsp://h/front/ RTSP/1.0\r\nCSeq: 9\r\nSession: {key}\r\nRange: npt=now-\r\nScale: 2\r\nSpeed: 4\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 10\r\n\r\n").as_bytes(),
    );
    let tracks = [(0, 0, 1), (1, 2, 3)].map(|(track, rtp_channel, rtcp_channel)| PlayTrack {
        track: TrackId(track),
        delivery: Delivery::Interleaved { rtp_channel, rtcp_channel },
    });
    let (conn, stream, tracks) = (ConnId(0), StreamId::first(0), tracks.to_vec());
    assert_eq!(rig.server.poll_event(), Some(Event::Play { session: key, conn, stream, tracks, resumed: false }));
    assert_eq!(rig.server.poll_event(), None, "nothing behind a PLAY goes before its answer");
    assert!(!rig.server.session_info(key).unwrap().playing);
    // One track has sent already, the other has not: its first sequence number and its clock are named.
    let later = rig.now + seconds(2);
    rig.server.start(later, key, &[FirstPacket { track: TrackId(0), seq: 65_535, rtp_time: u32::MAX }]);
    let replies = rig.drain(0);
    assert_eq!(replies.len(), 2);
    let reply = &replies[0];
    assert_eq!((reply.status, reply.header("CSeq"), reply.session()), (200, "9", key));
    assert_eq!((reply.header("Range"), reply.header("Scale"), reply.header("Speed")), ("npt=0-", "1.0", "1.0"));
    assert_eq!(
        reply.header("RTP-Info"),
        "url=rtsp://h/front/trackID=0;seq=65535;rtptime=4294967295,\
         url=rtsp://h/front/trackID=1;seq=1;rtptime=180000"
    );
    assert_eq!(replies[1].header("CSeq"), "10");
    assert!(rig.server.session_info(key).unwrap().playing);
    // The shard's answer counts once.
    rig.server.start(later, key, &[]);
    rig.server.refuse(later, key, 503);
    assert!(rig.drain(0).is_empty());
}

#[test]
fn rtp_info_names_the_tracks_as_their_player_does() {
    let mut rig = rig();
    for (url, told) in [
        ("rtsp://u:p@h:8554/front?x=y/trackID=1", "rtsp://h:8554/front?x=y/trackID=1"),
        ("rtsp://h//front/trackID=1/", "rtsp://h//front/trackID=1/"),
    ] {
        rig.connect(0);
        let reply = rig.ask(0, &format!("SETUP {url}"), &["Transport: RTP/AVP/TCP;interleaved=0-1"]);
        let key = reply.session();
        assert_eq!(rig.play(0, key).header("RTP-Info"), format!("url={told};seq=101;rtptime=9"));
    }
}

#[test]
fn some_tracks_only_is_fine() {
    let mut rig = rig();
    let reply = rig.ask(0, "SETUP rtsp://h/front/trackID=1", &["Transport: RTP/AVP/TCP;interleaved=0-1"]);
    let key = reply.session();
    rig.play(0, key);
    let Event::Play { tracks, .. } = &rig.plays[0] else { panic!() };
    let delivery = Delivery::Interleaved { rtp_channel: 0, rtcp_channel: 1 };
    assert_eq!(tracks, &[PlayTrack { track: TrackId(1), delivery }]);
}

#[test]
fn a_track_that_is_not_the_sessions_is_misuse() {
    let mut rig = rig();
    let reply = rig.ask(0, "SETUP rtsp://h/front/trackID=1", &["Transport: RTP/AVP/TCP"]);
    let session = format!("Session: {}", reply.session());
    for (line, status) in [
        ("SETUP rtsp://h/front", 459),
        ("SETUP *", 459),
        ("SETUP rtsp://h/audio/trackID=0", 459),
        ("PLAY rtsp://h/front/trackID=0", 459),
        ("PLAY rtsp://h/front/trackID=7", 404),
        ("PLAY rtsp://h/audio", 459),
        ("PLAY rtsp://h/nothing", 404),
        ("TEARDOWN rtsp://h/front/trackID=0", 459),
        ("PLAY rtsp://h/front/trackID=1", 200),
        ("PAUSE *", 200),
    ] {
        let reply = rig.ask(0, line, &[&session, "Transport: RTP/AVP/TCP"]);
        assert_eq!(reply.status, status, "{line}");
        assert_eq!(format!("Session: {}", reply.session()), session);
    }
}

#[test]
fn pause_and_play_again_resumes() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    let session = format!("Session: {key};timeout=60");
    let reply = rig.ask(0, "PAUSE rtsp://h/front", &[&session]);
    assert_eq!(reply.status, 455);
    assert!(reply.header("Allow").contains("PLAY") && !reply.header("Allow").contains("PAUSE"));
    rig.play(0, key);
    let info = rig.play(0, key).header("RTP-Info").to_owned();
    assert!(info.contains("seq=100"), "a PLAY while playing is answered, and starts nothing: {info}");
    assert_eq!(rig.plays.len(), 1);
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front/trackID=1", &[&session]), 460);
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front/", &[&session]), 200);
    assert_eq!(rig.take_events(), [Event::Pause { session: key }]);
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front/", &[&session]), 200);
    assert!(rig.take_events().is_empty());
    rig.play(0, key);
    assert!(matches!(&rig.plays[1], Event::Play { resumed: true, .. }));
}

#[test]
fn teardown_ends_the_session_and_leaves_the_connection() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    let session = format!("Session: {key}");
    rig.play(0, key);
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front/trackID=0", &[&session]), 460);
    let reply = rig.ask(0, "TEARDOWN rtsp://h/front/", &[&session]);
    assert_eq!((reply.status, reply.get("Session")), (200, None));
    assert_eq!(rig.take_events(), [Event::End { session: key, reason: EndReason::Teardown }]);
    assert_eq!(rig.server.sessions(), 0);
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front/", &[&session]), 454);
    // The same channels are free again on the same connection.
    let again = rig.set_up_tcp(0);
    assert_ne!(again, key);
    // Before they play, a single track can be removed; the last one ends the session.
    let session = format!("Session: {again}");
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front/trackID=0", &[&session]), 200);
    assert_eq!(rig.server.session_info(again).unwrap().tracks.len(), 1);
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front/trackID=1", &[&session]), 200);
    assert_eq!(rig.server.sessions(), 0);
    assert!(rig.take_events().is_empty(), "the shard never heard of it");
}

#[test]
fn parameters_are_signs_of_life_and_nothing_else() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    let session = format!("Session: {key}");
    for method in ["GET_PARAMETER", "SET_PARAMETER"] {
        for url in ["*", "rtsp://h/front/", "rtsp://h/nothing"] {
            let reply = rig.ask(0, &format!("{method} {url}"), &[&session]);
            assert_eq!((reply.status, reply.session()), (200, key));
            assert_eq!(rig.status(0, &format!("{method} {url}"), &["Content-Length: 0"]), 200);
        }
        let body = format!("{method} * RTSP/1.0\r\nCSeq: 5\r\nContent-Length: 8\r\n\r\nvolume\r\n");
        assert_eq!(rig.send(0, body.as_bytes())[0].status, 451);
        let body = format!("{method} * RTSP/1.0\r\nCSeq: 6\r\nContent-Length: 2\r\n\r\n\r\n");
        assert_eq!(rig.send(0, body.as_bytes())[0].status, 200);
    }
}

#[test]
fn what_cannot_be_done_says_what_can() {
    let mut rig = rig();
    for method in ["ANNOUNCE", "RECORD", "REDIRECT"] {
        let reply = rig.ask(0, &format!("{method} rtsp://h/front"), &[]);
        assert_eq!((reply.status, reply.header("Allow")), (405, PUBLIC));
    }
    for method in ["FOO", "options", "GET"] {
        assert_eq!(rig.status(0, &format!("{method} rtsp://h/front"), &[]), 501);
    }
    let replies = rig.send(0, b"OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\nPLAY_NOTIFY * RTSP/1.1\r\nCSeq: 2\r\n\r\n");
    assert_eq!(
        replies.iter().map(|reply| (reply.status, reply.header("CSeq"))).collect::<Vec<_>>(),
        [(505, "1"), (505, "2")]
    );
    assert!(rig.take_events().is_empty(), "the connection stays open");
}

#[test]
fn required_options_are_refused_by_name() {
    let mut rig = rig();
    for method in ["DESCRIBE", "SETUP", "PLAY", "OPTIONS"] {
        let reply = rig.ask(0, &format!("{method} rtsp://h/front"), &["Require: www.onvif.org/ver20/backchannel"]);
        assert_eq!((reply.status, reply.header("Unsupported")), (551, "www.onvif.org/ver20/backchannel"));
    }
    let reply = rig.ask(0, "OPTIONS *", &["Require: a , b", "Require: c", "Proxy-Require: d"]);
    assert_eq!((reply.status, reply.header("Unsupported")), (551, "a, b, c, d"));
    assert_eq!(rig.status(0, "OPTIONS *", &["Require:"]), 200);
}

#[test]
fn a_session_must_be_known_and_in_the_right_shape() {
    let mut rig = rig();
    for method in ["PLAY", "PAUSE", "TEARDOWN"] {
        assert_eq!(rig.status(0, &format!("{method} rtsp://h/front"), &[]), 454);
    }
    for method in ["OPTIONS", "SETUP", "PLAY", "PAUSE", "TEARDOWN", "GET_PARAMETER", "SET_PARAMETER"] {
        for id in ["0123456789abcdef", "12345678", "", "+123456789abcdef", "zzzzzzzzzzzzzzzz;timeout=60"] {
            let reply = rig.ask(0, &format!("{method} rtsp://h/front"), &[&format!("Session: {id}")]);
            assert_eq!((reply.status, reply.get("Session")), (454, None), "{method} {id}");
        }
    }
}

#[test]
fn a_session_is_its_makers_alone() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.connect_from(1, "192.0.2.2:40000".parse().unwrap());
    for method in ["PLAY", "TEARDOWN", "GET_PARAMETER"] {
        assert_eq!(rig.status(1, &format!("{method} rtsp://h/front"), &[&format!("Session: {key}")]), 454);
    }
    // From another connection of the same address it is, also with the address in its other notation.
    rig.connect_from(2, "[::ffff:192.0.2.1]:50000".parse().unwrap());
    rig.play(2, key);
}

#[test]
fn a_refused_play_leaves_the_session_as_it_was() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    let text = format!("PLAY rtsp://h/front/ RTSP/1.0\r\nCSeq: 9\r\nSession: {key}\r\n\r\n");
    rig.server.input(rig.now, ConnId(0), text.as_bytes());
    assert!(matches!(rig.server.poll_event(), Some(Event::Play { .. })));
    rig.server.refuse(rig.now, key, 503);
    let replies = rig.drain(0);
    assert_eq!((replies[0].status, replies[0].header("CSeq"), replies[0].session()), (503, "9", key));
    assert!(replies[0].get("Retry-After").is_some() && replies[0].get("RTP-Info").is_none());
    rig.play(0, key);
}

#[test]
fn timestamps_come_back() {
    let mut rig = rig();
    assert_eq!(rig.ask(0, "OPTIONS *", &["Timestamp: 1.5 x"]).header("Timestamp"), "1.5 x");
    assert_eq!(rig.ask(0, "FOO *", &["Timestamp: 2"]).header("Timestamp"), "2");
}

#[test]
fn who_names_no_session_means_the_only_one_of_the_connection() {
    let mut rig = rig();
    let udp = |port: u16| format!("Transport: RTP/AVP;unicast;client_port={port}-{}", port + 1);
    let tcp = |channel: u16| format!("Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1);
    for (conn, first, second) in [(0, udp(5000), udp(5002)), (1, tcp(0), tcp(2))] {
        rig.connect(conn);
        // In one go: neither request names a session yet.
        let setup = |track: u8, cseq: u8, transport: &str| {
            format!("SETUP rtsp://h/front/trackID={track} RTSP/1.0\r\nCSeq: {cseq}\r\n{transport}\r\n\r\n")
        };
        let both = setup(0, 71, &first) + &setup(1, 72, &second);
        let replies = rig.send(conn, both.as_bytes());
        assert_eq!(replies[0].session(), replies[1].session());
        let play = rig.ask(conn, "PLAY rtsp://h/front/", &[]);
        assert_eq!((play.status, play.session()), (200, replies[0].session()));
        assert_eq!(play.header("RTP-Info").matches("url=").count(), 2);
        assert_eq!(rig.status(conn, "PAUSE rtsp://h/front/", &[]), 200);
        assert_eq!(rig.status(conn, "TEARDOWN rtsp://h/front/", &[]), 200);
        assert_eq!((rig.server.sessions(), rig.status(conn, "PLAY rtsp://h/front/", &[])), (0, 454));
    }
}

#[test]
fn who_names_none_of_several_sessions_is_asked_which() {
    let mut rig = rig();
    let setup = |rig: &mut Rig, port: u16| {
        let transport = format!("Transport: RTP/AVP;unicast;client_port={port}-{}", port + 1);
        rig.ask(0, "SETUP rtsp://h/front/trackID=0", &[&transport]).session()
    };
    // The same track once more is another session.
    let (first, second) = (setup(&mut rig, 5000), setup(&mut rig, 5002));
    assert_ne!(first, second);
    for method in ["PLAY", "PAUSE", "TEARDOWN"] {
        assert_eq!(rig.status(0, &format!("{method} rtsp://h/front/"), &[]), 454, "{method}");
    }
    // Nor is another connection's session meant.
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/front/", &[&format!("Session: {first}")]), 200);
    rig.connect(1);
    assert_eq!(rig.status(1, "PLAY rtsp://h/front/", &[]), 454);
    assert_eq!(rig.status(0, "PLAY rtsp://h/front/", &[]), 200);
}

#[test]
fn a_url_in_rtp_info_cannot_be_taken_for_its_end() {
    let mut rig = rig();
    let tcp = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1";
    let session = rig.ask(0, "SETUP rtsp://h/front?a=1,2;b=3/trackID=0", &[tcp]).session();
    let info = rig.play(0, session).header("RTP-Info").to_owned();
    assert_eq!(info, "url=rtsp://h/front?a=1%2C2%3Bb=3/trackID=0;seq=100;rtptime=9");
}
