//! Body of the publishers' fuzz target: what they announce, set up and send, in any order.
#![allow(missing_docs)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::fuzz::{Asked, answered};
use super::{ConnId, EndReason, Event, Server, ServerConfig, SessionIds, SessionKey, SessionLimit};
use crate::limits::TRACKS_MAX;
use crate::media::StreamId;
use crate::wire::interleaved;

const PUBLISHED: StreamId = StreamId::first(1);
const TIMEOUT: Duration = Duration::from_secs(60);

/// Lines that descriptions are made of.
const LINES: [&[u8]; 16] = [
    b"v=0",
    b"m=video 0 RTP/AVP 96",
    b"m=audio 0 RTP/AVP 97",
    b"m=audio 0 RTP/AVP 8",
    b"m=application 0 RTP/AVP 107",
    b"a=rtpmap:96 H264/90000",
    b"a=rtpmap:96 H265/90000",
    b"a=rtpmap:97 MPEG4-GENERIC/44100/2",
    b"a=rtpmap:107 vnd.onvif.metadata/90000",
    b"a=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z2QADQ==,aO4=",
    b"a=control:streamid=0",
    b"a=control:streamid=1",
    b"a=control:*",
    b"a=sendonly",
    b"a=framerate:25",
    b"a=control:rtsp://h/b/streamid=2",
];

/// What the shard relies on of a publisher's session.
struct Publisher {
    /// Of its RECORD.
    tracks: usize,
    /// RECORD has been answered well.
    sends: bool,
}

struct Driver<'a> {
    data: &'a [u8],
    server: Server,
    now: Instant,
    requests: u32,
    conns: Asked,
    publishers: BTreeMap<SessionKey, Publisher>,
    gone: BTreeSet<SessionKey>,
}

fn address(conn: u32) -> SocketAddr {
    // Three on this machine, one from elsewhere.
    let ip = if conn == 3 { [192, 0, 2, 7] } else { [127, 0, 0, 1] };
    SocketAddr::from((ip, 40_000 + conn as u16))
}

impl Driver<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.data.split_first().unwrap_or((&0, &[]));
        self.data = rest;
        *first
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.data.split_at(len.min(self.data.len()));
        self.data = rest;
        bytes.to_vec()
    }

    fn request(&mut self, conn: u32, line: &str, headers: &str, body: &[u8]) {
        if let Entry::Vacant(vacant) = self.conns.entry(conn) {
            vacant.insert(VecDeque::new());
            self.server.connected(self.now, ConnId(conn), address(conn), address(9));
        }
        self.requests += 1;
        let cseq = self.requests.to_string();
        let mut text = format!("{line} RTSP/1.0\r\nCSeq: {cseq}\r\n{headers}").into_bytes();
        if !body.is_empty() {
            text.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        text.extend_from_slice(body);
        self.conns.get_mut(&conn).expect("connected").push_back(cseq);
        self.server.input(self.now, ConnId(conn), &text);
    }

    fn description(&mut self) -> Vec<u8> {
        let mut sdp = Vec::new();
        for _ in 0..self.byte() % 48 {
            let pick = self.byte();
            match LINES.get(usize::from(pick) % 24) {
                Some(line) => sdp.extend_from_slice(line),
                None => {
                    let len = usize::from(self.byte() % 32);
                    sdp.extend(self.bytes(len));
                }
            }
            sdp.extend_from_slice(b"\r\n");
        }
        sdp
    }

    fn session(&self, arg: u8) -> Option<SessionKey> {
        let mut keys: Vec<_> = self.server.session_keys().collect();
        keys.sort();
        keys.get(usize::from(arg) % keys.len().max(1)).copied()
    }

    fn session_header(&self, arg: u8) -> String {
        self.session(arg).map(|key| format!("Session: {key}\r\n")).unwrap_or_default()
    }

    fn step(&mut self) {
        let [op, arg] = [self.byte(), self.byte()];
        let conn = u32::from(op >> 4 & 3);
        match op & 15 {
            0 => {
                self.conns.remove(&conn);
                self.server.disconnected(self.now, ConnId(conn));
            }
            1..4 => {
                let stream = if arg == 7 { "a" } else { "b" };
                let body = self.description();
                let kind = if arg == 9 { "text/plain" } else { "application/sdp" };
                let headers = format!(
                    "Content-Type: {kind}\r\n{}",
                    if arg > 250 { self.session_header(arg) } else { String::new() }
                );
                self.request(conn, &format!("ANNOUNCE rtsp://h/{stream}"), &headers, &body);
            }
            4..7 => {
                let port = 5_000 + u16::from(arg >> 4) * 2;
                let channel = arg >> 3;
                let transport = match arg & 3 {
                    0 => "RTP/AVP/TCP;unicast;mode=record".to_owned(),
                    1 | 2 => format!("RTP/AVP/TCP;unicast;interleaved={channel}-{};mode=record", channel ^ 1),
                    _ => format!("RTP/AVP/UDP;unicast;client_port={port}-{};mode=record", port + 1),
                };
                let session = if arg & 4 == 0 { String::new() } else { self.session_header(arg) };
                let track = self.byte() % 4;
                let headers = format!("Transport: {transport}\r\n{session}");
                self.request(conn, &format!("SETUP rtsp://h/b/streamid={track}"), &headers, &[]);
            }
            7 => {
                let header = self.session_header(arg);
                self.request(conn, "RECORD rtsp://h/b", &header, &[]);
            }
            8 => {
                let method =
                    ["TEARDOWN", "OPTIONS", "PLAY", "PAUSE", "DESCRIBE", "GET_PARAMETER"][usize::from(arg) % 6];
                let header = self.session_header(arg);
                self.request(conn, &format!("{method} rtsp://h/b"), &header, &[]);
            }
            9 | 10 => {
                // What the source says of a RECORD, or of one who sends.
                let of = self.publishers.keys().nth(usize::from(arg >> 4)).copied();
                if let Some(key) = of.or_else(|| self.publishers.keys().next().copied()) {
                    match arg & 7 {
                        // One who sends already is never refused, but ended.
                        0 if !self.publishers[&key].sends => {
                            self.publishers.remove(&key);
                            self.server.refuse(self.now, key, 503);
                        }
                        1 => {
                            self.publishers.remove(&key);
                            self.gone.insert(key);
                            self.server.end_publisher(self.now, key, EndReason::TakenOver);
                        }
                        _ => {
                            self.publishers.get_mut(&key).expect("it is there").sends = true;
                            self.server.recording(self.now, key);
                        }
                    }
                }
            }
            11 | 12 => {
                let packet = self.bytes(usize::from(arg & 31));
                self.server.input(self.now, ConnId(conn), &interleaved::frame(arg >> 3, &packet));
            }
            13 => {
                let packet = self.bytes(usize::from(arg & 15));
                let from = SocketAddr::new(address(conn).ip(), 5_000 + u16::from(arg >> 3));
                match op >> 7 {
                    0 => self.server.rtcp(self.now, from, &packet),
                    _ => self.server.rtp(self.now, from, &packet),
                }
            }
            14 => {
                self.now += Duration::from_secs(u64::from(arg) / 4);
                self.server.timeout(self.now);
            }
            _ => self.server.set_published(PUBLISHED, arg != 255),
        }
        self.drain();
        self.server.check();
    }

    fn drain(&mut self) {
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::Answer { conn, bytes } => answered(&mut self.conns, conn, &bytes),
                Event::Record { session, conn, stream, peer, tracks } => {
                    assert!(self.conns.contains_key(&conn.0) && stream == PUBLISHED);
                    assert!(peer.ip().is_loopback(), "{peer} may not publish");
                    assert!(!tracks.is_empty() && tracks.len() <= TRACKS_MAX);
                    assert!(!self.gone.contains(&session));
                    self.publishers.insert(session, Publisher { tracks: tracks.len(), sends: false });
                }
                Event::Published { session, stream, track, .. } => {
                    let publisher = self.publishers.get(&session).expect("a publisher's media");
                    assert!(publisher.sends && stream == PUBLISHED && usize::from(track.0) < publisher.tracks);
                }
                Event::Pause { session } => {
                    let publisher = self.publishers.get_mut(&session).expect("one that sends pauses");
                    assert!(std::mem::take(&mut publisher.sends));
                }
                Event::End { session, .. } => {
                    self.publishers.remove(&session);
                    assert!(self.gone.insert(session), "a session ends once");
                }
                Event::Move { conn, .. } | Event::Close { conn, .. } => {
                    assert!(self.conns.remove(&conn.0).is_some(), "a connection closed twice");
                }
                Event::Asked { .. } | Event::Wanted(_) | Event::Demand { .. } => {}
                other => panic!("{other:?} of a stream that nobody can play"),
            }
        }
    }
}

/// Publishers, and strangers who would like to be some: only what was announced, set up and allowed comes through.
pub fn publishers(start: Instant, data: &[u8]) {
    let mut server = Server::new(ServerConfig {
        shard: 0,
        shards: 1,
        session_timeout: TIMEOUT,
        handshake_timeout: Duration::from_secs(10),
        limit: SessionLimit::new(3),
        udp_ports: Some((7000, 7001)),
        all_ports: None,
        ids: SessionIds::Seeded(1),
        loads: None,
    });
    server.set_stream(StreamId::first(0), "a");
    server.set_stream(PUBLISHED, "b");
    server.set_published(PUBLISHED, true);
    let (conns, publishers, gone) = Default::default();
    let mut driver = Driver { data, server, now: start, requests: 0, conns, publishers, gone };
    while !driver.data.is_empty() {
        driver.step();
    }
    for conn in std::mem::take(&mut driver.conns).into_keys() {
        driver.server.disconnected(driver.now, ConnId(conn));
    }
    driver.drain();
    driver.server.check();
    assert_eq!((driver.server.sessions(), driver.server.next_timeout()), (0, None));
    assert!(driver.publishers.is_empty(), "publishers go with their connections");
}
