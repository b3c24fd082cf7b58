use super::*;

const FRONT: StreamId = StreamId(0);
const BACK: StreamId = StreamId(1);
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
    // What comes behind it waits as well, to be answered in its turn.
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
    // Others never sleep.
    rig.server.set_asleep(rig.now, FRONT, true);
    assert_eq!(rig.status(0, "DESCRIBE rtsp://h/front", &[]), 200);
}
