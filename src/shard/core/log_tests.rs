//! Log lines about clients.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::Core;
use super::paths::tests::core;
use crate::egress::sim::SimEgress;
use crate::egress::{Conn, Token};
use crate::media::StreamId;
use crate::session::fuzz;
use crate::shard::types::{Group, Start, StreamSetup};

const STREAM: StreamId = StreamId::first(0);

/// The lines written.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines logged by `work`; each of them contains all of `fields`.
fn said(fields: &[&str], work: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    let writer = lines.clone();
    let format = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
    tracing::subscriber::with_default(format.finish(), work);
    let text = lines.0.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<String> = str::from_utf8(&text).unwrap().lines().map(str::to_owned).collect();
    for line in &lines {
        assert!(fields.iter().all(|field| line.contains(field)), "{fields:?} in {line:?}");
    }
    lines
}

/// A core with the stream `front`.
pub(super) fn serving(now: Instant) -> Core<SimEgress> {
    let mut core = core(now);
    let front = StreamSetup::plain(STREAM, "front", Start::Live);
    core.set_stream(now, &front);
    let (address, receivers) = ("239.77.0.1:5000".parse().unwrap(), Arc::default());
    core.set_group(STREAM, Group { address, ttl: 1, receivers, socket: None });
    core.described(now, STREAM, fuzz::description("H264", now));
    core
}

pub(super) fn client(core: &mut Core<SimEgress>, now: Instant) -> Token {
    let at = |ip: [u8; 4]| SocketAddr::from((ip, 5_000));
    core.connected(now, Conn::Scripted, at([192, 0, 2, 1]), at([192, 0, 2, 9]), &[]).expect("it does not stop")
}

pub(super) fn ask(core: &mut Core<SimEgress>, now: Instant, token: Token, line: &str, header: &str) -> String {
    core.input(now, token, format!("{line} RTSP/1.0\r\nCSeq: 1\r\n{header}\r\n\r\n").as_bytes());
    while core.drive(now) | core.reap(now) {}
    String::from_utf8_lossy(&core.egress_mut().take_received(token.slot)).into_owned()
}

/// Sets the video up; returns the `Session` header.
pub(super) fn set_up(core: &mut Core<SimEgress>, now: Instant, token: Token, transport: &str) -> String {
    let answer = ask(core, now, token, "SETUP rtsp://h/front/trackID=0", &format!("Transport: {transport}"));
    let session = answer.split_once("Session: ").and_then(|(_, rest)| rest.split_once(';')).map(|(session, _)| session);
    format!("Session: {}", session.unwrap_or_else(|| panic!("no session in {answer:?}")))
}

#[test]
fn a_send_that_failed_is_told_with_whose_it_was_and_how_far_they_got() {
    let now = Instant::now();
    let mut core = serving(now);
    let token = client(&mut core, now);
    let session = set_up(&mut core, now, token, "RTP/AVP/TCP;unicast;interleaved=0-1");
    ask(&mut core, now, token, "PLAY rtsp://h/front", &session);
    let id = session.strip_prefix("Session: ").unwrap().to_owned();
    let next = fuzz::description("H264", now).tracks[0].first_seq;
    let whose = ["front", "192.0.2.1:5000", id.as_str()];
    let lines = said(&whose, || {
        core.egress_mut().refuse(token.slot, 0, libc::EIO);
        ask(&mut core, now, token, "OPTIONS *", &session);
    });
    let failed: Vec<_> = lines.iter().filter(|line| line.contains("sending failed")).collect();
    assert!(matches!(failed[..], [line] if line.contains(&format!("next_seq=\"{next}\""))), "{lines:?}");
}

#[test]
fn who_joins_a_group_is_told_like_any_client() {
    let now = Instant::now();
    let mut core = serving(now);
    let token = client(&mut core, now);
    let session = set_up(&mut core, now, token, "RTP/AVP;multicast");
    let id = session.strip_prefix("Session: ").unwrap().to_owned();
    let lines = said(&["front", "192.0.2.1:5000", id.as_str()], || {
        ask(&mut core, now, token, "PLAY rtsp://h/front", &session);
        ask(&mut core, now, token, "TEARDOWN rtsp://h/front", &session);
    });
    let told =
        matches!(&lines[..], [joined, left] if joined.contains("started playing") && left.contains("stopped playing"));
    assert!(told, "{lines:?}");
}
