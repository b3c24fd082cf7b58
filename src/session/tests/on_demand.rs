use super::*;
use crate::media::SourceState;

const FRONT: StreamId = StreamId::first(0);
const BACK: StreamId = StreamId::first(1);
const WAIT: Duration = Duration::from_secs(5);

/// `back` is pulled on demand and has never been up.
fn sleeping() -> Rig {
    let mut rig = rig();
    rig.server.set_on_demand(BACK, Some(WAIT));
    rig
}

impl Rig {
    /// A request that is not answered yet.
    fn ask_in_vain(&mut self, conn: u32, line: &str) {
        self.cseq += 1;
        let text = format!("{line} RTSP/1.0\r\nCSeq: {}\r\nAccept: application/sdp\r\n\r\n", self.cseq);
        assert!(self.send(conn, text.as_bytes()).is_empty());
    }

    fn wake(&mut self, conn: u32) -> Vec<Reply> {
        self.server.set_description(BACK, Some(fuzz::description("H264", self.now)));
        self.server.set_asleep(self.now, BACK, false);
        self.drain(conn)
    }

    fn demands(&mut self) -> Vec<bool> {
        let demand = |event| match event {
            Event::Demand { stream: BACK, wanted } => wanted,
            other => panic!("{other:?}"),
        };
        self.take_events().into_iter().map(demand).collect()
    }
}

#[test]
fn a_request_waits_for_the_stream_and_nobody_else_does() {
    let mut rig = sleeping();
    rig.connect(1);
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    assert_eq!(rig.demands(), [true]);
    // Requests after it wait as well, and are answered in their turn.
    rig.ask_in_vain(0, "OPTIONS *");
    assert_eq!(rig.status(1, "DESCRIBE rtsp://h/front", &[]), 200);
    let replies = rig.wake(0);
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200, 200]);
    assert!(replies[0].body.contains("m=video") && replies[1].get("Public").is_some());
    assert_eq!(rig.demands(), [false], "it was answered, and has no session yet");
}

#[test]
fn after_the_wait_the_answer_is_503_and_the_connection_goes_on() {
    let mut rig = sleeping();
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    rig.wait(WAIT - Duration::from_millis(1));
    assert_eq!(rig.demands(), [true]);
    rig.now += Duration::from_millis(1);
    rig.server.timeout(rig.now);
    let replies = rig.drain(0);
    assert_eq!((replies[0].status, replies[0].header("Retry-After")), (503, "5"));
    assert_eq!(rig.demands(), [false]);
    assert_eq!(rig.status(0, "OPTIONS *", &[]), 200);
}

#[test]
fn a_session_keeps_the_stream_wanted_until_it_ends() {
    let mut rig = sleeping();
    rig.wake(0);
    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1";
    let key = rig.ask(0, "SETUP rtsp://h/back/trackID=0", &[transport]).session();
    assert_eq!(rig.demands(), [true]);
    rig.server.set_asleep(rig.now, BACK, false);
    assert_eq!(rig.status(0, "TEARDOWN rtsp://h/back", &[&format!("Session: {key}")]), 200);
    assert_eq!(rig.demands(), [false]);
}

#[test]
fn a_client_that_goes_while_it_waits_wants_nothing_any_more() {
    let mut rig = sleeping();
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    rig.server.disconnected(rig.now, ConnId(0));
    rig.drain(0);
    assert_eq!(rig.demands(), [true, false]);
    assert_eq!(rig.server.next_timeout(), None);
}

#[test]
fn a_stream_that_was_up_and_sleeps_again_is_waited_for_too() {
    let mut rig = sleeping();
    rig.wake(0);
    rig.server.set_asleep(rig.now, BACK, true);
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    assert_eq!(rig.wake(0).len(), 1);
    // Streams that are always pulled have no demand.
    rig.server.set_asleep(rig.now, FRONT, true);
    assert_eq!(rig.status(0, "DESCRIBE rtsp://h/front", &[]), 200);
}

/// `back` is always pulled, and has never been up.
fn starting() -> Rig {
    let mut rig = rig();
    rig.server.set_first_wait(BACK, Some(WAIT));
    rig.server.set_first_wait(FRONT, Some(WAIT));
    rig
}

#[test]
fn a_stream_that_has_never_been_up_is_waited_for_until_it_is_described() {
    let mut rig = starting();
    rig.connect(1);
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    assert_eq!(rig.status(1, "DESCRIBE rtsp://h/front", &[]), 200);
    rig.server.set_description(BACK, Some(fuzz::description("H264", rig.now)));
    rig.server.answer_held(rig.now, BACK);
    let replies = rig.drain(0);
    assert!(matches!(&replies[..], [reply] if reply.status == 200), "{replies:?}");
    // From then on it counts as having been up, whatever its source does.
    rig.server.set_source(rig.now, BACK, SourceState::Down);
    assert_eq!(rig.status(1, "DESCRIBE rtsp://h/back", &[]), 200);
    rig.take_events();
}

#[test]
fn who_has_waited_long_enough_for_a_first_time_gets_503_and_of_a_removed_stream_404_at_once() {
    let mut rig = starting();
    rig.ask_in_vain(0, "SETUP rtsp://h/back/trackID=0");
    rig.now += WAIT;
    rig.server.timeout(rig.now);
    let replies = rig.drain(0);
    assert_eq!((replies[0].status, replies[0].header("Retry-After")), (503, "5"));
    rig.ask_in_vain(0, "DESCRIBE rtsp://h/back");
    rig.server.remove_stream(BACK);
    rig.server.answer_held(rig.now, BACK);
    let statuses: Vec<_> = rig.drain(0).iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [404]);
    assert_eq!(rig.take_events(), [], "nobody is told of a demand for what is always pulled");
}

#[test]
fn the_shard_is_told_once_a_second_that_somebody_asks_for_what_is_down() {
    let mut rig = starting();
    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1";
    let key = rig.ask(0, "SETUP rtsp://h/front/trackID=0", &[transport]).session();
    let session = format!("Session: {key}");
    assert_eq!(rig.take_events(), [], "it is not down");
    rig.server.set_source(rig.now, FRONT, SourceState::Down);
    let asked = [Event::Asked { stream: FRONT }];
    assert_eq!(rig.status(0, "OPTIONS rtsp://h/front", &[]), 200);
    assert_eq!(rig.take_events(), [], "that is a keep-alive");
    rig.connect(1);
    for line in ["DESCRIBE rtsp://h/front", "DESCRIBE rtsp://h/front"] {
        assert_eq!(rig.status(1, line, &[]), 200);
    }
    assert_eq!(rig.take_events(), asked);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.status(1, "SETUP rtsp://h/front/trackID=0", &[transport]), 200);
    assert_eq!(rig.take_events(), asked);
    rig.wait(Duration::from_secs(1));
    rig.ask(0, "PLAY rtsp://h/front", &[&session]);
    assert_eq!(rig.take_events(), asked);
    rig.server.set_source(rig.now, FRONT, SourceState::Silent);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.status(1, "DESCRIBE rtsp://h/front", &[]), 200);
    assert_eq!(rig.take_events(), []);
}

#[test]
fn a_player_of_datagrams_that_is_silent_without_media_lives_through_an_outage_unless_its_connection_is_gone() {
    let mut rig = rig();
    rig.connect(1);
    rig.connect(2);
    let (stays, leaves, later) = (rig.set_up_udp(0, 5_000), rig.set_up_udp(1, 5_100), rig.set_up_udp(2, 5_200));
    for (conn, key) in [(0, stays), (1, leaves), (2, later)] {
        rig.play(conn, key);
    }
    rig.server.set_source(rig.now, FRONT, SourceState::Silent);
    rig.server.disconnected(rig.now, ConnId(1));
    let ended =
        |rig: &mut Rig| rig.take_events().into_iter().filter(|event| matches!(event, Event::End { .. })).count();
    for _ in 0..5 {
        rig.wait(seconds(59));
    }
    assert_eq!((rig.server.session_info(leaves), ended(&mut rig)), (None, 1));
    // It has been silent for long.
    rig.server.disconnected(rig.now, ConnId(2));
    rig.wait(Duration::ZERO);
    assert_eq!((rig.server.session_info(later), ended(&mut rig)), (None, 1));
    // Its time for signs of life starts with the media.
    rig.server.set_source(rig.now, FRONT, SourceState::Live);
    rig.wait(seconds(59));
    assert!(rig.server.session_info(stays).is_some());
    rig.wait(seconds(1));
    assert_eq!((rig.server.session_info(stays), ended(&mut rig)), (None, 1));
}
