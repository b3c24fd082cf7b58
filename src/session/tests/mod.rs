mod auth;
mod life;
mod limits;
mod methods;
mod named;
mod on_demand;
mod ports;
mod publish;
mod random;
mod setup;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::media::{Description, StreamId, TrackId};
use crate::metrics::Limited;

/// A parsed response.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Reply {
    fn read(bytes: &[u8]) -> Reply {
        let text = std::str::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().strip_prefix("RTSP/1.0 ").unwrap();
        let (code, reason) = status.split_once(' ').unwrap();
        assert!(reason != "Error" && !reason.is_empty(), "{status}");
        let headers: Vec<_> =
            lines.map(|line| line.split_once(": ").unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let reply = Reply { status: code.parse().unwrap(), headers, body: body.to_owned() };
        assert_eq!(reply.get("Content-Length").map_or(0, |length| length.parse().unwrap()), reply.body.len());
        assert!(reply.header("Server").starts_with("rtsprelay/"));
        reply
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(have, _)| have == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice in {self:?}");
        value
    }

    fn header(&self, name: &str) -> &str {
        self.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    fn session(&self) -> SessionKey {
        let (id, rest) = self.header("Session").split_once(';').unwrap();
        assert_eq!((id.len(), rest), (16, "timeout=60"));
        SessionKey(u64::from_str_radix(id, 16).unwrap())
    }
}

/// A server, its time, and a shard that starts every PLAY at once.
struct Rig {
    server: Server,
    now: Instant,
    cseq: u32,
    /// Events other than answers and plays since the last call.
    events: Vec<Event>,
    plays: Vec<Event>,
}

fn config() -> ServerConfig {
    ServerConfig {
        shard: 0,
        shards: 1,
        session_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(10),
        limit: SessionLimit::new(100),
        udp_ports: Some((7000, 7001)),
        all_ports: None,
        ids: SessionIds::Seeded(42),
        loads: None,
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn peer(conn: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 40_000 + conn as u16))
}

/// `front` has a video and an audio track, `back` has never been up, `audio` has one track.
fn rig_with(config: ServerConfig) -> Rig {
    let now = Instant::now();
    let mut server = Server::new(config);
    server.set_stream(StreamId::first(0), "front");
    server.set_stream(StreamId::first(1), "back");
    server.set_stream(StreamId::first(2), "audio");
    server.set_description(StreamId::first(0), Some(fuzz::description("H264", now)));
    server.set_description(StreamId::first(1), None);
    let audio = fuzz::description("H264", now).tracks[1].clone();
    server.set_description(StreamId::first(2), Some(Arc::new(Description { tracks: vec![audio] })));
    let mut rig = Rig { server, now, cseq: 0, events: Vec::new(), plays: Vec::new() };
    rig.connect(0);
    rig
}

fn rig() -> Rig {
    rig_with(config())
}

impl Rig {
    fn connect(&mut self, conn: u32) {
        self.connect_from(conn, peer(conn));
    }

    fn connect_from(&mut self, conn: u32, from: SocketAddr) {
        self.server.connected(self.now, ConnId(conn), from, "198.51.100.1:8554".parse().unwrap());
    }

    /// Sends bytes and returns the responses on that connection.
    fn send(&mut self, conn: u32, bytes: &[u8]) -> Vec<Reply> {
        self.server.input(self.now, ConnId(conn), bytes);
        self.drain(conn)
    }

    fn drain(&mut self, on: u32) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(event) = self.server.poll_event() {
            match &event {
                Event::Answer { conn, bytes } => {
                    assert_eq!(conn.0, on);
                    replies.push(Reply::read(bytes));
                }
                Event::Play { session, tracks, .. } => {
                    let first: Vec<_> = tracks
                        .iter()
                        .map(|t| FirstPacket { track: t.track, seq: 100 + u16::from(t.track.0), rtp_time: 9 })
                        .collect();
                    let session = *session;
                    self.plays.push(event);
                    self.server.start(self.now, session, &first);
                }
                _ => self.events.push(event),
            }
        }
        self.server.check();
        replies
    }

    /// One request with one response. `line` is method and URL.
    fn ask(&mut self, conn: u32, line: &str, headers: &[&str]) -> Reply {
        self.cseq += 1;
        let mut text = format!("{line} RTSP/1.0\r\nCSeq: {}\r\n", self.cseq);
        for header in headers {
            text += &format!("{header}\r\n");
        }
        text += "\r\n";
        let mut replies = self.send(conn, text.as_bytes());
        assert_eq!(replies.len(), 1, "{line}: {replies:?}");
        let reply = replies.remove(0);
        assert_eq!(reply.header("CSeq"), self.cseq.to_string());
        reply
    }

    fn status(&mut self, conn: u32, line: &str, headers: &[&str]) -> u16 {
        self.ask(conn, line, headers).status
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.server.timeout(self.now);
        while let Some(event) = self.server.poll_event() {
            self.events.push(event);
        }
        self.server.check();
    }

    fn limited(&self, limited: Limited) -> u64 {
        self.server.counters().limited[limited.index()]
    }

    fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Sets up tracks of `front`, each with a transport.
    fn set_up(&mut self, conn: u32, transports: &[&str]) -> SessionKey {
        let mut key = None;
        for (index, transport) in transports.iter().enumerate() {
            let transport = format!("Transport: {transport}");
            let session = key.map(|key: SessionKey| format!("Session: {key}"));
            let headers: Vec<&str> = [transport.as_str()].into_iter().chain(session.as_deref()).collect();
            let reply = self.ask(conn, &format!("SETUP rtsp://h/front/trackID={index}"), &headers);
            assert_eq!(reply.status, 200, "{reply:?}");
            key = Some(reply.session());
        }
        key.unwrap()
    }

    fn set_up_tcp(&mut self, conn: u32) -> SessionKey {
        self.set_up(conn, &["RTP/AVP/TCP;unicast;interleaved=0-1", "RTP/AVP/TCP;unicast;interleaved=2-3"])
    }

    fn set_up_udp(&mut self, conn: u32, port: u16) -> SessionKey {
        let transport = |port: u16| format!("RTP/AVP;unicast;client_port={port}-{}", port + 1);
        self.set_up(conn, &[&transport(port), &transport(port + 2)])
    }

    fn play(&mut self, conn: u32, key: SessionKey) -> Reply {
        let reply = self.ask(conn, "PLAY rtsp://h/front/", &[&format!("Session: {key}")]);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    }
}
