//! Names that match patterns: which requests wait, for how long, and how they are answered.

use super::*;
use crate::media::name::{NamePattern, NameRules, Pattern};

const WAIT: Duration = Duration::from_secs(5);
const MADE: StreamId = StreamId::first(3);

/// `edge/*` is pulled, `live/*` published.
fn patterned() -> Rig {
    let mut rig = rig();
    let pattern =
        |text: &str, published| NamePattern { pattern: Pattern::parse(text).unwrap().unwrap(), published, wait: WAIT };
    let patterns = vec![pattern("edge/*", false), pattern("live/*", true)];
    rig.server.set_names(Arc::new(NameRules { relay: "own".into(), patterns }));
    rig
}

impl Rig {
    fn in_vain(&mut self, conn: u32, line: &str, headers: &str) {
        self.cseq += 1;
        let text = format!("{line} RTSP/1.0\r\nCSeq: {}\r\n{headers}\r\n", self.cseq);
        assert!(self.send(conn, text.as_bytes()).is_empty());
    }

    fn wanted(&mut self) -> Vec<(String, bool, String)> {
        let wanted = |event| match event {
            Event::Wanted(NameWanted { name, publish, via, .. }) => (name.to_string(), publish, via.to_string()),
            other => panic!("{other:?}"),
        };
        self.take_events().into_iter().map(wanted).collect()
    }

    fn make(&mut self, conn: u32, name: &str) -> Vec<Reply> {
        self.server.set_stream(MADE, name);
        self.server.set_made(MADE, true);
        self.server.set_description(MADE, Some(fuzz::description("H264", self.now)));
        self.server.answer_named(self.now, name);
        self.drain(conn)
    }
}

#[test]
fn a_request_for_a_name_waits_for_its_stream() {
    let mut rig = patterned();
    rig.in_vain(0, "DESCRIBE rtsp://h/edge/a", "Via: RTSP/1.0 one, RTSP/1.0 two\r\n");
    assert_eq!(rig.wanted(), [("edge/a".into(), false, "one, two".into())]);
    rig.server.check();
    let replies = rig.make(0, "edge/a");
    assert_eq!(replies[0].status, 200);
    assert!(replies[0].body.contains("a=x-rtsprelay-path:own\r\n"), "{replies:?}");
    rig.server.set_path(MADE, "up, upper".into());
    let described = rig.ask(0, "DESCRIBE rtsp://h/edge/a", &[]);
    assert!(described.body.contains("a=x-rtsprelay-path:up, upper, own\r\n"), "{described:?}");
    // No other name of the pattern waits for less, and none outside it waits.
    for url in ["edge/", "edge", "edgy/a", "edge/trackID=0", "edge/a+b", "edge/../a"] {
        assert_eq!(rig.status(0, &format!("DESCRIBE rtsp://h/{url}"), &[]), 404, "{url}");
    }
    rig.server.check();
}

#[test]
fn after_the_wait_a_pulled_name_is_503_and_a_published_one_404() {
    let mut rig = patterned();
    rig.connect(1);
    rig.in_vain(0, "DESCRIBE rtsp://h/edge/a", "");
    rig.in_vain(1, "DESCRIBE rtsp://h/live/a", "");
    assert_eq!(rig.wanted().len(), 2);
    rig.now += WAIT;
    rig.server.timeout(rig.now);
    let mut statuses = Vec::new();
    while let Some(event) = rig.server.poll_event() {
        if let Event::Answer { conn, bytes } = event {
            statuses.push((conn.0, Reply::read(&bytes).status));
        }
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [(0, 503), (1, 404)]);
    rig.server.check();
}

#[test]
fn a_refusal_is_for_those_who_were_meant() {
    let mut rig = patterned();
    rig.connect_from(1, "198.51.100.7:5000".parse().unwrap());
    rig.in_vain(0, "DESCRIBE rtsp://h/edge/a", "");
    rig.in_vain(1, "DESCRIBE rtsp://h/edge/a", "");
    let here = crate::crowd::origin(peer(0).ip());
    rig.wanted();
    rig.server.refuse_named(rig.now, "edge/a", Some(here), &NotMade { status: 503, path: None });
    assert_eq!(rig.drain(0)[0].status, 503);
    rig.server.refuse_named(rig.now, "edge/a", None, &NotMade { status: 404, path: None });
    assert_eq!(rig.drain(1)[0].status, 404);
    rig.server.check();
    // A client that disconnected no longer waits.
    rig.in_vain(0, "DESCRIBE rtsp://h/edge/a", "");
    rig.wanted();
    rig.server.disconnected(rig.now, ConnId(0));
    rig.server.answer_named(rig.now, "edge/a");
    assert!(rig.server.poll_event().is_none());
    rig.server.check();
}

#[test]
fn a_stream_that_does_not_come_up_is_told_with_its_relays() {
    let mut rig = patterned();
    rig.server.set_stream(MADE, "edge/a");
    rig.server.set_on_demand(MADE, Some(WAIT));
    rig.in_vain(0, "DESCRIBE rtsp://h/edge/a", "");
    rig.take_events();
    rig.server.refuse_stream(rig.now, MADE, &NotMade { status: 503, path: Some("a, b".into()) });
    let reply = rig.drain(0).remove(0);
    assert_eq!((reply.status, reply.header("x-rtsprelay-path")), (503, "a, b, own"));
    rig.server.check();
}

#[test]
fn a_request_that_comes_around_is_a_loop() {
    let mut rig = patterned();
    for url in ["edge/a", "front"] {
        let reply = rig.ask(0, &format!("DESCRIBE rtsp://h/{url}"), &["Via: RTSP/1.0 own, RTSP/1.0 b"]);
        assert_eq!((reply.status, reply.header("x-rtsprelay-path")), (503, "own, b"), "{url}");
    }
}

#[test]
fn a_publisher_makes_its_stream_if_what_it_announces_can_be_taken() {
    let mut rig = patterned();
    rig.connect_from(1, "127.0.0.1:5000".parse().unwrap());
    let announce = |url: &str, body: &str| {
        let length = body.len();
        format!(
            "ANNOUNCE {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Type: application/sdp\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let good = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n";
    let bad = "v=0\r\nm=video 0 RTP/AVP 96\r\n";
    assert_eq!(rig.send(1, announce("rtsp://h/live/a", bad).as_bytes())[0].status, 415);
    assert_eq!(rig.send(1, announce("rtsp://h/live/a", "").as_bytes())[0].status, 400);
    assert_eq!(rig.send(0, announce("rtsp://h/live/a", good).as_bytes())[0].status, 403);
    assert_eq!(rig.send(1, announce("rtsp://h/edge/a", good).as_bytes())[0].status, 405);
    assert_eq!(rig.send(1, announce("rtsp://h/else", good).as_bytes())[0].status, 404);
    assert!(rig.wanted().is_empty());
    assert!(rig.send(1, announce("rtsp://h/live/a", good).as_bytes()).is_empty());
    assert_eq!(rig.wanted(), [("live/a".into(), true, String::new())]);
    rig.server.set_published(MADE, true);
    assert_eq!(rig.make(1, "live/a")[0].status, 200);
    assert!(rig.ask(0, "OPTIONS *", &[]).header("Public").contains("ANNOUNCE"));
    rig.server.check();
}
