use super::fuzz::receiver_report;
use super::*;
use crate::limits::UDP_ORPHANED_S;
use crate::wire::rtcp::ReportBlock;
use crate::wire::rtsp::Fault;
use crate::wire::{interleaved, rtcp};

fn closed(conn: u32, reason: CloseReason) -> Event {
    Event::Close { conn: ConnId(conn), reason }
}

fn ended(session: SessionKey, reason: EndReason) -> Event {
    Event::End { session, reason }
}

#[test]
fn a_connection_that_sends_no_whole_request_is_closed() {
    let mut rig = rig();
    rig.connect(1);
    rig.connect(2);
    rig.wait(seconds(9));
    // Incomplete requests do not count.
    rig.send(0, b"OPTIONS * RTSP");
    assert_eq!(rig.status(1, "OPTIONS *", &[]), 200);
    rig.wait(seconds(1));
    rig.events.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(rig.take_events(), [closed(0, CloseReason::Handshake), closed(2, CloseReason::Handshake)]);
    // A connection that started with a request must complete the next one within that time, too.
    rig.send(1, b"OPTIONS * RTSP");
    rig.wait(seconds(9));
    rig.send(1, b"/1.0\r\n");
    rig.wait(seconds(1));
    assert_eq!(rig.take_events(), [closed(1, CloseReason::Handshake)]);
    assert!(rig.send(1, b"\r\n").is_empty(), "a closed connection is forgotten");
}

#[test]
fn a_connection_without_session_is_closed_when_silent() {
    let mut rig = rig();
    rig.ask(0, "OPTIONS *", &[]);
    rig.wait(seconds(50));
    rig.ask(0, "OPTIONS *", &[]);
    rig.wait(seconds(59));
    assert!(rig.take_events().is_empty());
    rig.wait(seconds(1));
    assert_eq!(rig.take_events(), [closed(0, CloseReason::Idle)]);
}

#[test]
fn any_request_and_any_rtcp_keep_a_udp_session_alive() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    let session = format!("Session: {key}");
    for line in ["OPTIONS *", "GET_PARAMETER *", "SET_PARAMETER rtsp://h/front", "PLAY rtsp://h/front"] {
        rig.wait(seconds(50));
        assert_eq!(rig.status(0, line, &[&session]), 200);
    }
    for from in ["192.0.2.1:5001", "192.0.2.1:5003", "192.0.2.1:9999", "[::ffff:192.0.2.1]:5001"] {
        rig.wait(seconds(50));
        rig.server.rtcp(rig.now, from.parse().unwrap(), &receiver_report(0xa));
    }
    // Invalid RTCP, or a stranger's, is no sign of life.
    rig.wait(seconds(50));
    rig.server.rtcp(rig.now, "192.0.2.1:5001".parse().unwrap(), b"nonsense");
    rig.server.rtcp(rig.now, "192.0.2.9:5001".parse().unwrap(), &receiver_report(0xa));
    assert_eq!((rig.limited(Limited::RtcpMalformed), rig.limited(Limited::RtcpUnasked)), (1, 1));
    rig.take_events();
    rig.wait(seconds(10));
    assert_eq!(rig.take_events(), [ended(key, EndReason::Timeout), closed(0, CloseReason::Idle)]);
    assert_eq!(rig.server.next_timeout(), None);
}

#[test]
fn a_request_that_names_no_session_speaks_for_those_of_its_connection() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    rig.connect(1);
    for _ in 0..3 {
        rig.wait(seconds(50));
        rig.ask(0, "OPTIONS *", &[]);
    }
    assert_eq!(rig.take_events(), [closed(1, CloseReason::Handshake)]);
    rig.connect(1);
    rig.wait(seconds(9));
    // Activity of another connection does not count.
    rig.ask(1, "OPTIONS *", &[]);
    rig.wait(seconds(51));
    assert_eq!(rig.take_events()[0], ended(key, EndReason::Timeout));
}

#[test]
fn a_player_over_tcp_that_never_sends_anything_is_not_cut() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    for _ in 0..100 {
        rig.wait(seconds(60));
    }
    assert!(rig.take_events().is_empty());
    // A paused session takes no data, and must show signs of life like any other.
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front", &[&format!("Session: {key}")]), 200);
    rig.wait(seconds(59));
    assert_eq!(rig.take_events(), [Event::Pause { session: key }]);
    rig.wait(seconds(1));
    let reason = CloseReason::SessionEnded(EndReason::Timeout);
    assert_eq!(rig.take_events(), [ended(key, EndReason::Timeout), closed(0, reason)]);
}

#[test]
fn a_tcp_session_ends_with_its_connection_and_a_udp_session_lives_on() {
    let mut rig = rig();
    let tcp = rig.set_up_tcp(0);
    rig.play(0, tcp);
    rig.connect(1);
    let udp = rig.set_up_udp(1, 5000);
    rig.play(1, udp);
    rig.server.disconnected(rig.now, ConnId(0));
    rig.server.disconnected(rig.now, ConnId(1));
    rig.drain(0);
    assert_eq!(rig.take_events(), [ended(tcp, EndReason::Disconnected)]);
    assert_eq!(rig.server.session_info(udp).unwrap().conn, None);
    // From a new connection it is controlled as before.
    rig.connect(2);
    assert_eq!(rig.status(2, "PAUSE rtsp://h/front", &[&format!("Session: {udp}")]), 200);
    assert_eq!(rig.server.session_info(udp).unwrap().conn, Some(ConnId(2)));
    rig.take_events();
    rig.server.disconnected(rig.now, ConnId(2));
    rig.wait(seconds(60));
    assert_eq!(rig.take_events(), [ended(udp, EndReason::Timeout)]);
    assert_eq!(rig.server.sessions(), 0);
}

#[test]
fn interleaved_media_are_controlled_by_their_own_connection() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    let session = format!("Session: {key}");
    rig.connect(1);
    assert_eq!(rig.status(1, "PLAY rtsp://h/front", &[&session]), 455);
    assert_eq!(rig.status(1, "SETUP rtsp://h/front/trackID=0", &[&session, "Transport: RTP/AVP/TCP"]), 455);
    rig.play(0, key);
    assert_eq!(rig.status(1, "GET_PARAMETER *", &[&session]), 200);
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/front", &[&session]), 200);
    assert_eq!(rig.take_events(), [ended(key, EndReason::Teardown)]);
}

#[test]
fn reports_are_taken_in_from_their_channel_between_requests() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    let mut bytes = interleaved::frame(3, &receiver_report(0xb));
    bytes.extend_from_slice(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    // A player that sends all reports on one channel is understood by the SSRC in them.
    bytes.extend_from_slice(&interleaved::frame(1, &receiver_report(0xb)));
    // On a channel that is not a track's RTCP channel nothing is expected.
    bytes.extend_from_slice(&interleaved::frame(0, b"media"));
    bytes.extend_from_slice(&interleaved::frame(9, &receiver_report(0xa)));
    for piece in bytes.chunks(5) {
        rig.send(0, piece);
    }
    let report = ReportBlock {
        ssrc: 0xb,
        fraction_lost: 64,
        lost: 2,
        highest_sequence: 3,
        jitter: 4,
        last_sender_report: 5,
        delay: 6,
    };
    let event = Event::ReceiverReport { session: key, track: TrackId(1), report };
    assert_eq!(rig.take_events(), [event.clone(), event]);
    assert_eq!(rig.limited(Limited::FrameUnasked), 2);
}

#[test]
fn reports_over_udp_are_told_apart_by_port_where_the_source_is_unknown() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    rig.server.rtcp(rig.now, "192.0.2.1:5003".parse().unwrap(), &receiver_report(0xfff));
    rig.drain(0);
    assert!(matches!(rig.take_events()[..], [Event::ReceiverReport { track: TrackId(1), .. }]));
    // With a second session at that address, data from an unknown port belong to neither.
    rig.connect(1);
    rig.set_up_udp(1, 6000);
    rig.server.rtcp(rig.now, "192.0.2.1:9999".parse().unwrap(), &rtcp::bye(1, "x"));
    assert_eq!(rig.limited(Limited::RtcpUnasked), 1);
}

#[test]
fn what_is_not_rtsp_is_closed_and_what_is_wrong_is_told_first() {
    for (bytes, statuses, reason) in [
        (&b"\x16\x03\x01\x00"[..], &[][..], CloseReason::NotRtsp(Fault::Tls)),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n\x00", &[200], CloseReason::NotRtsp(Fault::NotRtsp)),
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nbad\r\n\r\n", &[400], CloseReason::Malformed(Fault::HeaderLine)),
        (
            b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 70000\r\n\r\n",
            &[413],
            CloseReason::TooLarge(Fault::BodyTooLarge),
        ),
        (&[b'A'; 20_000], &[413], CloseReason::TooLarge(Fault::HeaderTooLarge)),
    ] {
        let mut rig = rig();
        let replies = rig.send(0, bytes);
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), statuses);
        assert_eq!(rig.take_events(), [closed(0, reason)]);
        assert_eq!(rig.server.counters().closed[&reason], 1);
        assert!(!reason.to_string().is_empty());
        assert!(rig.send(0, b"OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n").is_empty());
    }
}

#[test]
fn rubbish_ends_the_session_that_its_connection_carries() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    rig.send(0, b"\x00");
    let reason = CloseReason::NotRtsp(Fault::NotRtsp);
    assert_eq!(rig.take_events(), [ended(key, EndReason::Closed), closed(0, reason)]);
}

#[test]
fn another_shards_session_moves_the_connection_with_all_unread_bytes() {
    let mut first = rig_with(ServerConfig { shard: 0, shards: 2, ..config() });
    let mut second = rig_with(ServerConfig { shard: 1, shards: 2, ..config() });
    let key = second.set_up_udp(0, 5000);
    assert_eq!(key.0 % 2, 1);
    let unread = format!(
        "PLAY rtsp://h/front/ RTSP/1.0\r\nCSeq: 2\r\nSession: {key}\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 3\r\n\r\nOPT"
    );
    let replies = first.send(0, format!("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n{unread}").as_bytes());
    assert_eq!(replies.len(), 1);
    let moved = first.take_events();
    let [Event::Move { conn: ConnId(0), shard: 1, unread: bytes }] = &moved[..] else { panic!("{moved:?}") };
    assert_eq!(bytes, unread.as_bytes());
    assert_eq!((first.server.counters().moved, first.server.next_timeout()), (1, None));
    second.connect(7);
    let replies = second.send(7, bytes);
    assert_eq!(replies.iter().map(|reply| reply.header("CSeq")).collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(replies[0].status, 200);
    // A connection with interleaved media stays where it is.
    first.connect(1);
    let own = first.set_up_tcp(1);
    assert_eq!(first.status(1, "PAUSE rtsp://h/front", &[&format!("Session: {key}")]), 454);
    first.play(1, own);
}

#[test]
fn session_ids_are_the_shards_own_and_never_the_same() {
    let mut seen = std::collections::HashSet::new();
    for shard in [0, 2] {
        let mut rig = rig_with(ServerConfig { shard, shards: 3, limit: SessionLimit::new(1000), ..config() });
        for conn in 0..500 {
            rig.connect(conn);
            let key = rig.set_up(conn, &["RTP/AVP/TCP"]);
            assert_eq!(key.0 % 3, u64::from(shard));
            assert!(seen.insert(key));
        }
    }
}

#[test]
fn what_the_shard_ends_is_closed_and_not_told_again() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    rig.play(0, key);
    rig.server.end_session(rig.now, key, EndReason::Stalled);
    rig.drain(0);
    assert_eq!(rig.take_events(), [closed(0, CloseReason::SessionEnded(EndReason::Stalled))]);
    rig.server.disconnected(rig.now, ConnId(0));
    rig.server.end_session(rig.now, key, EndReason::Stalled);
    assert_eq!(rig.drain(0).len() + rig.take_events().len(), 0);
    assert_eq!(rig.server.counters().ended, [(EndReason::Stalled, 1)].into());
}

#[test]
fn a_changed_source_ends_what_does_not_play() {
    let mut rig = rig();
    let playing = rig.set_up_tcp(0);
    rig.play(0, playing);
    rig.connect(1);
    let paused = rig.set_up_udp(1, 5000);
    rig.play(1, paused);
    assert_eq!(rig.status(1, "PAUSE rtsp://h/front", &[&format!("Session: {paused}")]), 200);
    rig.take_events();
    // Repeating the same tracks changes nothing.
    rig.server.set_description(StreamId::first(0), Some(fuzz::description("h264", rig.now)));
    assert_eq!(rig.server.sessions(), 2);
    rig.server.set_description(StreamId::first(0), Some(fuzz::description("H265", rig.now)));
    rig.drain(0);
    let reason = EndReason::SourceChanged;
    assert_eq!(rig.take_events(), [ended(paused, reason), closed(1, CloseReason::SessionEnded(reason))]);
    // The shard ends the session that plays; if it pauses before that, it cannot resume.
    let session = format!("Session: {playing}");
    assert_eq!(rig.status(0, "PAUSE rtsp://h/front", &[&session]), 200);
    assert_eq!(rig.status(0, "PLAY rtsp://h/front", &[&session]), 454);
    assert_eq!(rig.take_events(), [Event::Pause { session: playing }, ended(playing, reason)]);
}

#[test]
fn requests_behind_an_unanswered_play_wait_within_bounds() {
    let mut rig = rig();
    let key = rig.set_up_tcp(0);
    let play = format!("PLAY rtsp://h/front RTSP/1.0\r\nCSeq: 1\r\nSession: {key}\r\n\r\n");
    rig.server.input(rig.now, ConnId(0), play.as_bytes());
    assert!(matches!(rig.server.poll_event(), Some(Event::Play { .. })));
    let request = b"OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n".repeat(1000);
    let mut sent = 0;
    let close = loop {
        rig.server.input(rig.now, ConnId(0), &request);
        sent += request.len();
        assert!(sent < 1_000_000);
        if let Some(event) = rig.server.poll_event() {
            break event;
        }
    };
    assert_eq!(close, ended(key, EndReason::Closed));
    assert_eq!(rig.server.poll_event(), Some(closed(0, CloseReason::Flood)));
    rig.server.start(rig.now, key, &[]);
    assert_eq!(rig.server.poll_event(), None);
}

#[test]
fn an_end_while_play_waits_answers_it() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    let play = format!(
        "PLAY rtsp://h/front RTSP/1.0\r\nCSeq: 8\r\nSession: {key}\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n"
    );
    rig.server.input(rig.now, ConnId(0), play.as_bytes());
    assert!(matches!(rig.server.poll_event(), Some(Event::Play { .. })));
    rig.connect(1);
    assert_eq!(rig.server.poll_event(), None);
    let teardown = format!("TEARDOWN rtsp://h/front RTSP/1.0\r\nCSeq: 1\r\nSession: {key}\r\n\r\n");
    rig.server.input(rig.now, ConnId(1), teardown.as_bytes());
    let mut got = Vec::new();
    while let Some(event) = rig.server.poll_event() {
        got.push(match event {
            Event::Answer { conn, bytes } => format!("{} {}", conn.0, Reply::read(&bytes).status),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(got, [format!("{:?}", ended(key, EndReason::Teardown)), "0 454".into(), "1 200".into(), "0 200".into()]);
}

#[test]
fn who_speaks_http_is_told_in_http_what_is_served_here() {
    for line in ["GET / HTTP/1.1", "POST /front HTTP/1.0", "PRI * HTTP/2.0"] {
        let mut rig = rig();
        rig.server.input(rig.now, ConnId(0), format!("{line}\r\nHost: h\r\n\r\n").as_bytes());
        let Some(Event::Answer { bytes, .. }) = rig.server.poll_event() else { panic!("{line}: no answer") };
        let text = std::str::from_utf8(&bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 501 Not Implemented\r\n"), "{head}");
        let length: usize =
            head.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        assert_eq!(length, body.len());
        assert!(body.contains("rtsp://198.51.100.1:8554/") && body.contains("`http`"), "{body}");
        assert!(rig.send(0, b"").is_empty());
        assert_eq!(rig.take_events(), [closed(0, CloseReason::NotRtsp(Fault::Http))]);
    }
}

#[test]
fn what_opens_a_path_is_neither_a_report_nor_a_fault() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    // Two sessions: packets from another port cannot be attributed.
    rig.connect(1);
    let other = rig.set_up_udp(1, 6000);
    let rtp_header = b"\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    // Packets of ffmpeg and retina, of live555 (and so VLC) in both byte orders, an empty one, zeros.
    let openings: [&[u8]; 5] = [rtp_header, b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xce", b"", b"\0\0\0\0\0\0\0\0"];
    for (port, opening) in [5000, 5001, 6002, 6003, 9999].into_iter().flat_map(|port| openings.map(|is| (port, is))) {
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        rig.server.rtcp(rig.now, from, opening);
        rig.server.rtp(rig.now, from, opening);
    }
    // GStreamer sends 200 random bytes, from its RTP port and to the relay's.
    rig.server.rtp(rig.now, "192.0.2.1:5000".parse().unwrap(), &[0xd1; 200]);
    rig.server.rtp(rig.now, "192.0.2.1:9999".parse().unwrap(), &[0x53; 200]);
    // One in a hundred of them starts like a report.
    rig.server.rtp(rig.now, "192.0.2.1:5000".parse().unwrap(), &[&[0x81, 201][..], &[0xd1; 198]].concat());
    assert_eq!((rig.limited(Limited::RtcpMalformed), rig.limited(Limited::RtcpUnasked)), (0, 0));
    // A report is one wherever it is sent; what is neither is still counted.
    rig.server.rtp(rig.now, "192.0.2.1:5003".parse().unwrap(), &receiver_report(0xb));
    rig.drain(0);
    assert!(matches!(rig.take_events()[..], [Event::ReceiverReport { track: TrackId(1), .. }]));
    rig.server.rtcp(rig.now, "192.0.2.1:5001".parse().unwrap(), &[0x53; 200]);
    rig.server.rtcp(rig.now, "203.0.113.5:5001".parse().unwrap(), rtp_header);
    rig.server.rtp(rig.now, "203.0.113.5:5000".parse().unwrap(), rtp_header);
    assert_eq!((rig.limited(Limited::RtcpMalformed), rig.limited(Limited::RtcpUnasked)), (1, 2));
    assert!(rig.server.session_info(other).is_some());
}

#[test]
fn a_player_that_was_killed_is_sent_datagrams_for_a_short_while_only() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    rig.wait(seconds(30));
    rig.server.disconnected(rig.now, ConnId(0));
    rig.wait(seconds(UDP_ORPHANED_S - 1));
    assert!(rig.take_events().is_empty());
    rig.wait(seconds(1));
    assert_eq!(rig.take_events(), [ended(key, EndReason::Disconnected)]);
    assert_eq!(rig.server.next_timeout(), None);
}

#[test]
fn a_player_whose_connection_broke_plays_on_while_it_reports() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    rig.wait(seconds(30));
    rig.server.disconnected(rig.now, ConnId(0));
    rig.wait(seconds(5));
    rig.server.rtcp(rig.now, "192.0.2.1:5001".parse().unwrap(), &receiver_report(0xa));
    rig.drain(0);
    rig.take_events();
    rig.wait(seconds(59));
    assert!(rig.take_events().is_empty());
    rig.wait(seconds(1));
    assert_eq!(rig.take_events(), [ended(key, EndReason::Timeout)]);
}

#[test]
fn a_player_with_a_connection_for_each_request_has_its_whole_time() {
    let mut rig = rig();
    let key = rig.set_up_udp(0, 5000);
    rig.play(0, key);
    rig.wait(seconds(1));
    rig.server.disconnected(rig.now, ConnId(0));
    rig.wait(seconds(50));
    // And so does one that has returned on another connection once.
    rig.connect(1);
    assert_eq!(rig.status(1, "GET_PARAMETER rtsp://h/front", &[&format!("Session: {key}")]), 200);
    rig.wait(seconds(30));
    rig.server.disconnected(rig.now, ConnId(1));
    rig.wait(seconds(29));
    assert!(rig.take_events().is_empty());
    rig.wait(seconds(1));
    assert_eq!(rig.take_events(), [ended(key, EndReason::Timeout)]);
}
