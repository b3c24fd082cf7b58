use super::*;
use crate::limits::{SESSIONS_PER_CONNECTION_MAX, publishers_beyond};

const SDP: &str = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
                   m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=0\r\n\
                   m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/44100/2\r\na=control:streamid=1\r\n";
const BACK: StreamId = StreamId::first(1);

/// `back` is published; connection 1 is from this machine.
fn publishing() -> Rig {
    let mut rig = rig();
    rig.server.set_published(BACK, true);
    rig.connect_from(1, "127.0.0.1:5000".parse().unwrap());
    rig
}

impl Rig {
    fn announce(&mut self, conn: u32, url: &str) -> u16 {
        self.announce_tracks(conn, url, SDP)
    }

    fn announce_tracks(&mut self, conn: u32, url: &str, sdp: &str) -> u16 {
        self.cseq += 1;
        let (cseq, length) = (self.cseq, sdp.len());
        let head = format!("ANNOUNCE {url} RTSP/1.0\r\nCSeq: {cseq}\r\nContent-Type: application/sdp\r\n");
        let replies = self.send(conn, format!("{head}Content-Length: {length}\r\n\r\n{sdp}").as_bytes());
        assert_eq!(replies.len(), 1);
        replies[0].status
    }

    /// Announces and sets up both tracks.
    fn set_up_publisher(&mut self, conn: u32, transports: [&str; 2]) -> SessionKey {
        assert_eq!(self.announce(conn, "rtsp://h/back"), 200);
        let mut key: Option<SessionKey> = None;
        for (index, transport) in transports.iter().enumerate() {
            let transport = format!("Transport: {transport};mode=record");
            let session = key.map(|key| format!("Session: {key}"));
            let headers: Vec<&str> = [transport.as_str()].into_iter().chain(session.as_deref()).collect();
            let reply = self.ask(conn, &format!("SETUP rtsp://h/back/streamid={index}"), &headers);
            assert_eq!(reply.status, 200, "{reply:?}");
            assert!(reply.header("Transport").ends_with("mode=record"), "{reply:?}");
            key = Some(reply.session());
        }
        key.unwrap()
    }

    /// Sends RECORD, about which the shard is asked; returns the tracks.
    fn record(&mut self, conn: u32, key: SessionKey) -> Vec<String> {
        self.cseq += 1;
        let text = format!("RECORD rtsp://h/back RTSP/1.0\r\nCSeq: {}\r\nSession: {key}\r\n\r\n", self.cseq);
        assert!(self.send(conn, text.as_bytes()).is_empty());
        match &self.take_events()[..] {
            [Event::Record { session, stream: BACK, tracks, .. }] if *session == key => {
                tracks.iter().map(|track| track.encoding.clone()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn packets(&mut self) -> Vec<(u8, bool, Vec<u8>)> {
        let packet = |event| match event {
            Event::Published { track, rtcp, packet, .. } => (track.0, rtcp, packet.to_vec()),
            other => panic!("{other:?}"),
        };
        self.take_events().into_iter().map(packet).collect()
    }
}

/// Connection 1 publishes `back` from the ports 6000 to 6003.
fn publishing_over_udp() -> (Rig, SessionKey) {
    let mut rig = publishing();
    let transports = ["RTP/AVP/UDP;unicast;client_port=6000-6001", "RTP/AVP/UDP;unicast;client_port=6002-6003"];
    let key = rig.set_up_publisher(1, transports);
    rig.record(1, key);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    (rig, key)
}

const TCP: [&str; 2] = ["RTP/AVP/TCP;unicast;interleaved=0-1", "RTP/AVP/TCP;unicast;interleaved=2-3"];

#[test]
fn a_publisher_over_tcp_records_once_it_is_let() {
    let mut rig = publishing();
    assert!(rig.ask(1, "OPTIONS *", &[]).header("Public").contains("ANNOUNCE, SETUP, PLAY, RECORD"));
    let key = rig.set_up_publisher(1, TCP);
    assert_eq!(rig.record(1, key), ["H264", "MPEG4-GENERIC"]);
    // Nothing is accepted before the answer.
    rig.send(1, b"$\x00\x00\x03abc");
    assert!(rig.take_events().is_empty());
    rig.server.recording(rig.now, key);
    assert_eq!(rig.drain(1)[0].status, 200);
    rig.send(1, b"$\x02\x00\x03def$\x01\x00\x01r");
    assert_eq!(rig.packets(), [(0, false, b"abc".to_vec()), (1, false, b"def".to_vec()), (0, true, b"r".to_vec())]);
    assert_eq!(rig.status(1, "PLAY rtsp://h/back", &[&format!("Session: {key}")]), 455);
    rig.server.disconnected(rig.now, ConnId(1));
    rig.drain(1);
    assert_eq!(rig.take_events(), [Event::End { session: key, reason: EndReason::Disconnected }]);
}

#[test]
fn a_publisher_over_udp_is_known_by_its_ports() {
    let (mut rig, key) = publishing_over_udp();
    rig.server.rtcp(rig.now, "127.0.0.1:6002".parse().unwrap(), b"media");
    rig.server.rtcp(rig.now, "127.0.0.1:6001".parse().unwrap(), b"report");
    rig.server.rtcp(rig.now, "127.0.0.1:6004".parse().unwrap(), b"stranger");
    rig.drain(1);
    assert_eq!(rig.packets(), [(1, false, b"media".to_vec()), (0, true, b"report".to_vec())]);
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back", &[&format!("Session: {key}")]), 200);
    assert_eq!(rig.take_events(), [Event::End { session: key, reason: EndReason::Teardown }]);
}

#[test]
fn who_may_not_publish_is_told() {
    let mut rig = publishing();
    assert_eq!(rig.announce(0, "rtsp://h/back"), 403, "from another machine");
    assert_eq!(rig.announce(1, "rtsp://h/front"), 405, "a stream that is pulled");
    assert_eq!(rig.announce(1, "rtsp://h/nothing"), 404);
    let key = rig.set_up_publisher(1, TCP);
    rig.record(1, key);
    rig.server.refuse(rig.now, key, 503);
    let replies = rig.drain(1);
    assert_eq!((replies[0].status, replies[0].header("Retry-After")), (503, "5"));
    assert_eq!(rig.status(1, "OPTIONS *", &[]), 200);
}

#[test]
fn the_shard_ends_a_publisher() {
    let mut rig = publishing();
    let key = rig.set_up_publisher(1, TCP);
    rig.record(1, key);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    rig.server.end_publisher(rig.now, key, EndReason::TakenOver);
    rig.drain(1);
    let reason = CloseReason::SessionEnded(EndReason::TakenOver);
    assert_eq!(rig.take_events(), [Event::Close { conn: ConnId(1), reason }]);
    assert_eq!(rig.server.sessions(), 0);
}

#[test]
fn a_publisher_over_udp_goes_with_its_connection_whoever_names_its_session() {
    let mut rig = publishing();
    rig.connect_from(2, "127.0.0.1:5001".parse().unwrap());
    let key = rig.set_up_publisher(
        1,
        ["RTP/AVP/UDP;unicast;client_port=6000-6001", "RTP/AVP/UDP;unicast;client_port=6002-6003"],
    );
    let session = format!("Session: {key}");
    assert_eq!(rig.status(2, "GET_PARAMETER rtsp://h/back", &[&session]), 200);
    rig.server.check();
    assert_eq!(rig.status(2, "TEARDOWN rtsp://h/back", &[&session]), 200);
    rig.take_events();
    // Its connection can start over.
    let transport = "Transport: RTP/AVP/UDP;unicast;client_port=6000-6001";
    assert_eq!(rig.status(1, "SETUP rtsp://h/back/streamid=0", &[transport]), 200);
    rig.server.disconnected(rig.now, ConnId(1));
    assert_eq!(rig.server.sessions(), 0);
}

#[test]
fn a_publisher_leaves_with_all_of_its_tracks() {
    let mut rig = publishing();
    let elsewhere = ["RTP/AVP/TCP;unicast;interleaved=4-5", "RTP/AVP/TCP;unicast;interleaved=6-7"];
    let key = rig.set_up_publisher(1, elsewhere);
    let session = format!("Session: {key}");
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back/trackID=0", &[&session]), 460);
    assert_eq!(rig.record(1, key), ["H264", "MPEG4-GENERIC"]);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back/trackID=0", &[&session]), 460);
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back", &[&session]), 200);
}

#[test]
fn a_publishers_session_is_not_set_up_as_a_players() {
    const PORTS: [&str; 2] = ["RTP/AVP/UDP;unicast;client_port=6000-6001", "RTP/AVP/UDP;unicast;client_port=6002-6003"];
    let mut rig = publishing();
    // From an earlier publisher with more tracks than this one.
    let mut before = (*fuzz::description("H264", rig.now)).clone();
    before.tracks.push(before.tracks[1].clone());
    rig.server.set_description(BACK, Some(Arc::new(before)));
    let key = rig.set_up_publisher(1, PORTS);
    rig.connect_from(2, "127.0.0.1:5001".parse().unwrap());
    let headers = ["Transport: RTP/AVP;unicast;client_port=6004-6005", &format!("Session: {key}")];
    assert_eq!(rig.status(2, "SETUP rtsp://h/back/trackID=2", &headers), 455);
    assert_eq!(rig.record(1, key).len(), 2);
}

#[test]
fn a_publishers_ports_are_its_own() {
    const PORTS: [&str; 2] = ["RTP/AVP/UDP;unicast;client_port=6000-6001", "RTP/AVP/UDP;unicast;client_port=6002-6003"];
    let mut rig = publishing();
    let key = rig.set_up_publisher(1, PORTS);
    rig.record(1, key);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    // Its packets could not be told from those of the next one.
    let same = "Transport: RTP/AVP/UDP;unicast;client_port=6000-6001";
    rig.connect_from(2, "127.0.0.1:5001".parse().unwrap());
    assert_eq!(rig.announce(2, "rtsp://h/back"), 200);
    let next = rig.ask(2, "SETUP rtsp://h/back/streamid=0", &[same]).session();
    assert_eq!(rig.take_events(), [Event::End { session: key, reason: EndReason::Replaced }]);
    let named = format!("Session: {next}");
    assert_eq!(rig.status(2, "SETUP rtsp://h/back/streamid=1", &[same, &named]), 461, "two tracks at the same ports");
    rig.server.rtcp(rig.now, "127.0.0.1:6002".parse().unwrap(), b"media");
    rig.drain(2);
    assert!(rig.take_events().is_empty());
    assert_eq!(rig.server.sessions(), 1);
}

#[test]
fn who_publishes_from_where_it_has_played_is_sent_nothing_there_any_more() {
    let mut rig = publishing();
    let udp = "Transport: RTP/AVP/UDP;unicast;client_port=6000-6001";
    rig.connect_from(2, "127.0.0.1:5001".parse().unwrap());
    let player = rig.ask(2, "SETUP rtsp://h/front/trackID=0", &[udp]).session();
    assert_eq!(rig.announce(1, "rtsp://h/back"), 200);
    assert_eq!(rig.status(1, "SETUP rtsp://h/back/streamid=0", &[udp]), 200);
    assert!(rig.server.session_info(player).is_none());
    assert_eq!(rig.server.sessions(), 1);
}

#[test]
fn a_publisher_that_there_is_no_room_for_ends_nobody() {
    let udp = |port: u16| format!("Transport: RTP/AVP/UDP;unicast;client_port={port}-{}", port + 1);
    let mut rig = publishing();
    assert_eq!(rig.announce(1, "rtsp://h/back"), 200);
    let encoder = rig.ask(1, "SETUP rtsp://h/back/streamid=0", &[&udp(6000)]).session();
    rig.connect_from(2, "127.0.0.1:5001".parse().unwrap());
    for number in 0..SESSIONS_PER_CONNECTION_MAX as u16 {
        assert_eq!(rig.status(2, "SETUP rtsp://h/front/trackID=0", &[&udp(10_000 + 2 * number)]), 200);
    }
    assert_eq!(rig.announce(2, "rtsp://h/back"), 200);
    assert_eq!(rig.status(2, "SETUP rtsp://h/back/streamid=0", &[&udp(6000)]), 453);
    assert!(rig.server.session_info(encoder).is_some());
}

#[test]
fn an_encoder_that_starts_again_finds_room_beside_its_last_session() {
    let limit = SessionLimit::new(2);
    limit.set_max(2, Some(1));
    let mut rig = rig_with(ServerConfig { limit, ..config() });
    rig.server.set_published(BACK, true);
    let setup = ["SETUP rtsp://h/front/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"];
    assert_eq!(rig.status(0, setup[0], &setup[1..]), 200);
    for conn in [1, 2] {
        rig.connect_from(conn, format!("127.0.0.1:{conn}").parse().unwrap());
        rig.set_up_publisher(conn, TCP);
    }
    let publish = ["SETUP rtsp://h/back/streamid=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record"];
    // A third publisher of one address is not a restarted one, and players have no share of these places.
    rig.connect_from(3, "127.0.0.1:3".parse().unwrap());
    assert_eq!(rig.announce(3, "rtsp://h/back"), 200);
    assert_eq!(rig.status(3, publish[0], &publish[1..]), 453);
    rig.connect_from(4, "192.0.2.7:4".parse().unwrap());
    assert_eq!(rig.status(4, setup[0], &setup[1..]), 453);
    // All of them together have a limit, too.
    rig.server.set_limits(seconds(60), seconds(10), 2, None);
    for conn in 10..20 {
        rig.connect_from(conn, format!("127.0.0.1:{conn}").parse().unwrap());
        assert_eq!(rig.announce(conn, "rtsp://h/back"), 200);
        rig.status(conn, publish[0], &publish[1..]);
    }
    assert_eq!(rig.server.sessions(), 2 + publishers_beyond(2));
}

/// As ffmpeg announces raw audio and data: dynamic payload types without `a=rtpmap`.
const PARTLY_READABLE: &str = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
    m=audio 0 RTP/AVP 97\r\nb=AS:1536\r\na=control:streamid=0\r\n\
    m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:streamid=1\r\n\
    m=application 0 RTP/AVP 98\r\na=control:streamid=2\r\n\
    m=audio 0 RTP/AVP 0\r\na=control:streamid=3\r\n";

#[test]
fn a_track_that_cannot_be_read_is_taken_and_discarded() {
    let mut rig = publishing();
    assert_eq!(rig.announce_tracks(1, "rtsp://h/back", PARTLY_READABLE), 200);
    let mut key = None;
    for index in 0..4 {
        let transport =
            format!("Transport: RTP/AVP/TCP;unicast;interleaved={}-{};mode=record", 2 * index, 2 * index + 1);
        let session = key.map(|key: SessionKey| format!("Session: {key}"));
        let headers: Vec<&str> = [transport.as_str()].into_iter().chain(session.as_deref()).collect();
        let reply = rig.ask(1, &format!("SETUP rtsp://h/back/streamid={index}"), &headers);
        assert_eq!(reply.status, 200, "{index}: {reply:?}");
        key = Some(reply.session());
    }
    let key = key.unwrap();
    assert_eq!(rig.record(1, key), ["H264", "PCMU"]);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    rig.send(1, b"$\x00\x00\x03raw$\x02\x00\x03pic$\x04\x00\x04data$\x06\x00\x05sound$\x05\x00\x01r");
    assert_eq!(rig.packets(), [(0, false, b"pic".to_vec()), (1, false, b"sound".to_vec())]);
    assert_eq!(rig.limited(Limited::TrackUnreadable), 3);
}

#[test]
fn a_publisher_of_nothing_that_can_be_read_is_told_so() {
    let mut rig = publishing();
    let sdp = "v=0\r\ns=x\r\nt=0 0\r\nm=audio 0 RTP/AVP 97\r\na=control:streamid=0\r\n";
    assert_eq!(rig.announce_tracks(1, "rtsp://h/back", sdp), 415);
    assert_eq!(rig.announce_tracks(1, "rtsp://h/back", "v=0\r\ns=x\r\nt=0 0\r\n"), 400);
    // A publisher that sets up only such a track has nothing to record.
    assert_eq!(rig.announce_tracks(1, "rtsp://h/back", PARTLY_READABLE), 200);
    let key = rig.ask(1, "SETUP rtsp://h/back/streamid=2", &[&format!("Transport: {}", TCP[0])]).session();
    assert_eq!(rig.status(1, "RECORD rtsp://h/back", &[&format!("Session: {key}")]), 455);
}

#[test]
fn a_publisher_pauses_and_goes_on() {
    let mut rig = publishing();
    let key = rig.set_up_publisher(1, TCP);
    let session = format!("Session: {key}");
    let early = rig.ask(1, "PAUSE rtsp://h/back", &[&session]);
    assert!(early.status == 455 && !early.header("Allow").contains("PAUSE"), "{early:?}");
    rig.record(1, key);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    for _ in 0..2 {
        assert_eq!(rig.status(1, "PAUSE rtsp://h/back", &[&session]), 200);
    }
    assert_eq!(rig.take_events(), [Event::Pause { session: key }]);
    rig.send(1, b"$\x00\x00\x03abc");
    assert!(rig.take_events().is_empty(), "nothing is published meanwhile");
    let wrong = rig.ask(1, "PLAY rtsp://h/back", &[&session]);
    assert_eq!(wrong.status, 455);
    let allowed = wrong.header("Allow");
    assert!(allowed.contains("RECORD") && allowed.contains("PAUSE") && !allowed.contains("PLAY"), "{allowed}");
    assert_eq!(rig.record(1, key), ["H264", "MPEG4-GENERIC"]);
    rig.server.recording(rig.now, key);
    assert_eq!(rig.drain(1)[0].status, 200);
    rig.send(1, b"$\x00\x00\x03def");
    assert_eq!(rig.packets(), [(0, false, b"def".to_vec())]);
    // The end of rtspclientsink's session.
    assert_eq!(rig.status(1, "PAUSE rtsp://h/back", &[&session]), 200);
    assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back", &[&session]), 200);
    let ended = Event::End { session: key, reason: EndReason::Teardown };
    assert_eq!(rig.take_events(), [Event::Pause { session: key }, ended]);
}

#[test]
fn a_publisher_that_pauses_for_good_is_ended() {
    let mut rig = publishing();
    let key = rig.set_up_publisher(1, TCP);
    rig.record(1, key);
    rig.server.recording(rig.now, key);
    rig.drain(1);
    assert_eq!(rig.status(1, "PAUSE rtsp://h/back", &[&format!("Session: {key}")]), 200);
    rig.take_events();
    rig.wait(seconds(60));
    assert!(rig.take_events().contains(&Event::End { session: key, reason: EndReason::Timeout }));
}

#[test]
fn a_publisher_that_names_no_session_means_its_own() {
    for transports in [TCP, ["RTP/AVP/UDP;unicast;client_port=6000-6001", "RTP/AVP/UDP;unicast;client_port=6002-6003"]]
    {
        let mut rig = publishing();
        assert_eq!(rig.announce(1, "rtsp://h/back"), 200);
        let setups = [0, 1].map(|index| {
            let line = format!("SETUP rtsp://h/back/streamid={index}");
            rig.ask(1, &line, &[&format!("Transport: {}", transports[index])]).session()
        });
        assert_eq!(setups[0], setups[1]);
        let replies = rig.send(1, b"RECORD rtsp://h/back RTSP/1.0\r\nCSeq: 90\r\n\r\n");
        assert!(replies.is_empty(), "{replies:?}");
        rig.server.recording(rig.now, setups[0]);
        assert_eq!(rig.drain(1)[0].session(), setups[0]);
        assert_eq!(rig.status(1, "PAUSE rtsp://h/back", &[]), 200);
        assert_eq!(rig.status(1, "TEARDOWN rtsp://h/back", &[]), 200);
        assert_eq!((rig.server.sessions(), rig.status(1, "TEARDOWN rtsp://h/back", &[])), (0, 454));
    }
}

#[test]
fn media_from_another_port_than_announced_is_no_report() {
    let (mut rig, _) = publishing_over_udp();
    for port in [40_000, 40_002] {
        rig.server.rtp(rig.now, SocketAddr::from(([127, 0, 0, 1], port)), b"\x80\x60media-media");
    }
    assert!(rig.take_events().is_empty());
    assert_eq!((rig.limited(Limited::RtcpMalformed), rig.limited(Limited::RtcpUnasked)), (0, 2));
}
