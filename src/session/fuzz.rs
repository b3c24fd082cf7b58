//! Bodies of fuzz targets: each takes any bytes and panics where a promise of the server is broken.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ConnId, EndReason, Event, FirstPacket, Server, ServerConfig, SessionIds, SessionKey, SessionLimit};
use crate::media::{Description, StreamId, Track, TrackId};
use crate::wire::interleaved;

const TIMEOUT: Duration = Duration::from_secs(60);

fn track(media: &str, encoding: &str, ssrc: u32, clock: Instant) -> Track {
    Track {
        media: media.to_owned(),
        encoding: encoding.to_owned(),
        payload_type: 96,
        clock_rate: 90_000,
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
        ssrc,
        first_seq: 1,
        clock: (clock, 0),
    }
}

/// A stream of a video and an audio track.
pub fn description(encoding: &str, clock: Instant) -> Arc<Description> {
    let tracks = vec![track("video", encoding, 0xa, clock), track("audio", "PCMU", 0xb, clock)];
    Arc::new(Description { tracks })
}

fn server(start: Instant, clients_max: usize) -> Server {
    let mut server = Server::new(ServerConfig {
        shard: 1,
        shards: 3,
        session_timeout: TIMEOUT,
        handshake_timeout: Duration::from_secs(10),
        limit: SessionLimit::new(clients_max),
        udp_ports: Some((7000, 7001)),
        all_ports: None,
        ids: SessionIds::Seeded(1),
        loads: None,
    });
    server.set_stream(StreamId::first(0), "a");
    server.set_stream(StreamId::first(1), "b");
    server.set_description(StreamId::first(0), Some(description("H264", start)));
    server
}

fn address(conn: u32) -> SocketAddr {
    // Two addresses, so that sessions meet strangers.
    SocketAddr::from(([192, 0, 2, (conn % 2) as u8], 40_000 + conn as u16))
}

/// A receiver's report on one source.
pub fn receiver_report(ssrc: u32) -> Vec<u8> {
    let mut out = vec![0x81, 201, 0, 7];
    for word in [1, ssrc, 0x4000_0002, 3, 4, 5, 6] {
        out.extend_from_slice(&u32::to_be_bytes(word));
    }
    out
}

/// All that comes of a connection's bytes in pieces of `step`, every PLAY answered at once.
pub fn conversation(start: Instant, bytes: &[u8], step: usize) -> Vec<Event> {
    let mut server = server(start, 4);
    server.connected(start, ConnId(0), address(0), address(1));
    let mut events = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        server.input(start, ConnId(0), piece);
        while let Some(event) = server.poll_event() {
            if let Event::Play { session, .. } = &event {
                server.start(start, *session, &[FirstPacket { track: TrackId(0), seq: 7, rtp_time: 8 }]);
            }
            events.push(event);
        }
        server.check();
    }
    events
}

/// The same comes of a conversation whatever pieces it comes in.
pub fn split(start: Instant, bytes: &[u8], step: usize) {
    // What was unread at a move depends on what had been read by then.
    let cut = |events: Vec<Event>| {
        let is_move = |event: &Event| matches!(event, Event::Move { .. });
        let end = events.iter().position(is_move).unwrap_or(events.len());
        events.into_iter().take(end).collect::<Vec<_>>()
    };
    assert_eq!(cut(conversation(start, bytes, bytes.len())), cut(conversation(start, bytes, step)));
}

/// A server and what its shard must be able to rely on.
struct Driver {
    server: Server,
    now: Instant,
    requests: u32,
    /// Open connections, with the requests that each has not had an answer to.
    conns: Asked,
    /// Sessions that the shard knows, and whether their PLAY waits for it.
    known: BTreeMap<SessionKey, bool>,
    gone: BTreeSet<SessionKey>,
    seen: Seen,
}

/// How often each kind of event came.
pub type Seen = BTreeMap<&'static str, u32>;

impl Driver {
    fn new(now: Instant) -> Self {
        let (conns, known, gone, seen) = Default::default();
        Driver { server: server(now, 5), now, requests: 0, conns, known, gone, seen }
    }

    /// One of the sessions there are.
    fn session(&self, arg: u8) -> Option<SessionKey> {
        let mut keys: Vec<_> = self.server.session_keys().collect();
        keys.sort();
        keys.get(usize::from(arg) % keys.len().max(1)).copied()
    }

    fn request(&mut self, conn: u32, op: u8, arg: u8) {
        let methods =
            ["PLAY", "SETUP", "PAUSE", "PLAY", "SETUP", "GET_PARAMETER", "TEARDOWN", "DESCRIBE", "OPTIONS", "RECORD"];
        let method = methods[usize::from(op) % methods.len()];
        let track = ["a", "a", "a/trackID=0", "a/trackID=1", "b/trackID=0", "a/trackID=2"][usize::from(arg) % 6];
        let path =
            if method == "SETUP" && arg > 30 { ["a/trackID=0", "a/trackID=1"][usize::from(arg) % 2] } else { track };
        let port = 5000 + u16::from(arg / 2 % 4);
        let transport = match arg / 8 % 8 {
            0 => format!("RTP/AVP/TCP;interleaved={}-{}", arg, arg.wrapping_add(3)),
            1 => "RTP/AVP/TCP;interleaved=0-1".to_owned(),
            2 => "RTP/AVP;multicast, RAW/RAW/TCP".to_owned(),
            3..6 => format!("RTP/AVP;unicast;client_port={port}-{}", port + 1),
            _ => "RTP/AVP/TCP".to_owned(),
        };
        self.requests += 1;
        let cseq = self.requests.to_string();
        let mut text = format!("{method} rtsp://h/{path} RTSP/1.0\r\nCSeq: {cseq}\r\nTransport: {transport}\r\n");
        match self.session(arg / 2) {
            Some(key) if method != "SETUP" || op > 100 => text += &format!("Session: {key};timeout=60\r\n"),
            _ if arg == 255 => text += "Session: 0000000000000003\r\n",
            _ => {}
        }
        text += "\r\n";
        if let Some(waiting) = self.conns.get_mut(&conn) {
            waiting.push_back(cseq);
        }
        self.server.input(self.now, ConnId(conn), text.as_bytes());
    }

    fn step(&mut self, kind: u8, op: u8, arg: u8) {
        let conn = u32::from(kind / 32);
        let waiting = self.known.iter().find(|(_, waits)| **waits).map(|(key, _)| *key);
        match kind % 32 {
            0 => {
                self.conns.remove(&conn);
                self.server.disconnected(self.now, ConnId(conn));
            }
            1 => {
                self.now += Duration::from_secs(u64::from(arg) / 8);
                self.server.timeout(self.now);
                assert!(self.server.next_timeout().is_none_or(|due| due > self.now));
            }
            2..8 => {
                if let Some(key) = waiting {
                    self.known.insert(key, false);
                    match arg % 16 {
                        0 => self.server.refuse(self.now, key, 503),
                        1 => self.end(key),
                        _ => self.server.start(self.now, key, &[]),
                    }
                }
            }
            8 if op > 200 => {
                if let Some(key) = self.session(arg) {
                    self.end(key);
                }
            }
            9 => {
                let packet = receiver_report(0xa);
                if op.is_multiple_of(2) {
                    self.server.rtcp(self.now, SocketAddr::new(address(conn).ip(), 5001 + u16::from(arg % 4)), &packet);
                } else {
                    self.server.input(self.now, ConnId(conn), &interleaved::frame(arg % 4, &packet));
                }
            }
            10 if op > 200 => {
                let encoding = if arg.is_multiple_of(2) { "H264" } else { "H265" };
                self.server
                    .set_description(StreamId::first(u16::from(arg / 2 % 2)), Some(description(encoding, self.now)));
            }
            _ => {
                // Numbers are used again, now and then while the shard has not said that the old connection is gone.
                if !self.conns.contains_key(&conn) || op == 255 {
                    self.conns.insert(conn, VecDeque::new());
                    self.server.connected(self.now, ConnId(conn), address(conn), address(9));
                }
                self.request(conn, op, arg);
            }
        }
        self.drain();
        self.server.check();
    }

    fn end(&mut self, key: SessionKey) {
        self.known.remove(&key);
        self.gone.insert(key);
        self.server.end_session(self.now, key, EndReason::Stalled);
    }

    fn drain(&mut self) {
        while let Some(event) = self.server.poll_event() {
            *self.seen.entry(kind(&event)).or_default() += 1;
            match event {
                Event::Answer { conn, bytes } => answered(&mut self.conns, conn, &bytes),
                Event::Play { session, conn, tracks, .. } => {
                    assert!(self.conns.contains_key(&conn.0) && !tracks.is_empty());
                    assert!(!self.gone.contains(&session) && self.known.insert(session, true) != Some(true));
                }
                Event::Pause { session } => assert_eq!(self.known.get(&session), Some(&false)),
                Event::End { session, .. } => {
                    assert!(self.known.remove(&session).is_some(), "an end of what was not known");
                    assert!(self.gone.insert(session));
                }
                Event::Asked { .. }
                | Event::Wanted(_)
                | Event::Demand { .. }
                | Event::Record { .. }
                | Event::Published { .. } => {}
                Event::ReceiverReport { session, .. } => assert!(!self.gone.contains(&session)),
                Event::Move { conn, .. } | Event::Close { conn, .. } => {
                    assert!(self.conns.remove(&conn.0).is_some(), "a connection closed twice");
                }
            }
        }
    }
}

/// What each open connection has asked and has had no answer to, by its `CSeq`.
pub(super) type Asked = BTreeMap<u32, VecDeque<String>>;

/// Every request is answered once, in order.
pub(super) fn answered(asked: &mut Asked, conn: ConnId, answer: &[u8]) {
    let text = std::str::from_utf8(answer).expect("answers are text");
    let expected = asked.get_mut(&conn.0).expect("an answer to an open connection").pop_front();
    let expected = expected.expect("an answer to a request");
    assert!(text.contains(&format!("\r\nCSeq: {expected}\r\n")), "{text} instead of {expected}");
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Answer { .. } => "answer",
        Event::Play { resumed: false, .. } => "play",
        Event::Play { resumed: true, .. } => "resume",
        Event::Pause { .. } => "pause",
        Event::End { .. } => "end",
        Event::Asked { .. } => "asked",
        Event::Wanted(_) => "wanted",
        Event::Demand { .. } => "demand",
        Event::Record { .. } => "record",
        Event::Published { .. } => "published",
        Event::ReceiverReport { .. } => "report",
        Event::Move { .. } => "move",
        Event::Close { .. } => "close",
    }
}

/// Whatever happens in whatever order, the server's state is consistent, and its shard is told everything once, in
/// order.
pub fn operations(start: Instant, bytes: &[u8]) -> Seen {
    let mut driver = Driver::new(start);
    for step in bytes.chunks_exact(3) {
        driver.step(step[0], step[1], step[2]);
    }
    for conn in std::mem::take(&mut driver.conns).into_keys() {
        driver.server.disconnected(driver.now, ConnId(conn));
    }
    for key in std::mem::take(&mut driver.known).into_keys() {
        driver.server.start(driver.now, key, &[]);
        driver.known.insert(key, false);
    }
    // A client that is not heard of any more is forgotten.
    driver.now += TIMEOUT * 2;
    driver.server.timeout(driver.now);
    driver.drain();
    driver.server.check();
    assert_eq!((driver.server.sessions(), driver.server.next_timeout()), (0, None));
    assert!(driver.known.is_empty(), "{:?} never ended", driver.known);
    driver.seen
}
