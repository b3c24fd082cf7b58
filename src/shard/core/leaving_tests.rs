//! Which clients are disconnected when, and what they are sent.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::paths::tests::{chunk, core};
use super::super::{Start, StreamSetup};
use super::*;
use crate::egress::sim::SimEgress;
use crate::egress::{Conn, Token};
use crate::media::{SourceState, StreamId};
use crate::metrics::{LeaveReason, ReportRequest};
use crate::session::fuzz;

const STREAM: StreamId = StreamId::first(0);
const OVER: Duration = Duration::from_secs(10);

fn serving(now: Instant) -> Core<SimEgress> {
    let mut core = core(now);
    core.set_stream(now, &StreamSetup::plain(STREAM, "front", Start::Cached));
    core.described(now, STREAM, fuzz::description("H264", now));
    core.source(now, STREAM, SourceState::Live);
    core.chunk(now, STREAM, chunk(0, now));
    core
}

fn settle(core: &mut Core<SimEgress>, now: Instant) {
    while core.drive(now) | core.reap(now) {}
}

/// A client that plays over TCP.
fn player(core: &mut Core<SimEgress>, now: Instant) -> Token {
    let at = |ip: [u8; 4]| SocketAddr::from((ip, 5_000));
    let token =
        core.connected(now, Conn::Scripted, at([192, 0, 2, 1]), at([192, 0, 2, 9]), &[]).expect("it does not stop");
    let mut ask = |line: &str, header: &str| {
        core.input(now, token, format!("{line} RTSP/1.0\r\nCSeq: 1\r\n{header}\r\n\r\n").as_bytes());
        settle(core, now);
        String::from_utf8_lossy(&core.egress_mut().take_received(token.slot)).into_owned()
    };
    let set_up = ask("SETUP rtsp://h/front/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1");
    let session = set_up.split_once("Session: ").expect("a session").1.split([';', '\r']).next().unwrap().to_owned();
    assert!(ask("PLAY rtsp://h/front", &format!("Session: {session}")).starts_with("RTSP/1.0 200"));
    token
}

fn playing(core: &Core<SimEgress>) -> usize {
    core.links.iter().filter(|(_, link)| link.playing.as_ref().is_some_and(|playing| !playing.has_left())).count()
}

#[test]
fn clients_go_one_after_the_other_until_the_time_is_up() {
    let start = Instant::now();
    let mut core = serving(start);
    for _ in 0..20 {
        player(&mut core, start);
    }
    let mut left = Vec::new();
    for tenths in 0..=100 {
        let now = start + OVER * tenths / 100;
        core.send_away(now, start + OVER);
        settle(&mut core, now);
        left.push(playing(&core));
        assert!(left.last() <= Some(&20));
    }
    assert_eq!((left[0], left[25], left[50], left[75], left[99], left[100]), (20, 15, 10, 5, 1, 0));
    assert!(left.windows(2).all(|pair| pair[0] - pair[1] <= 1), "{left:?}");
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    core.report(start + OVER, ReportRequest { reply, clients: false });
    let mut snapshot = answer.try_recv().expect("it answers at once");
    assert_eq!(snapshot.stream_mut(STREAM).counts.left[LeaveReason::Drained.index()], 20);
}

#[test]
fn who_comes_meanwhile_goes_in_time_as_well_and_nobody_goes_twice() {
    let start = Instant::now();
    let mut core = serving(start);
    for _ in 0..4 {
        player(&mut core, start);
    }
    core.send_away(start, start + OVER);
    let now = start + OVER / 2;
    for _ in 0..4 {
        player(&mut core, now);
    }
    core.send_away(now, start + OVER);
    settle(&mut core, now);
    assert_eq!(playing(&core), 2, "half of those that there were at first may stay");
    core.send_away(start + OVER, start + OVER);
    settle(&mut core, start + OVER);
    assert_eq!(playing(&core), 0);
    core.send_away(start + OVER * 2, start + OVER);
}

#[test]
fn a_client_is_sent_away_behind_a_whole_frame_with_a_bye() {
    let start = Instant::now();
    let mut core = serving(start);
    let token = player(&mut core, start);
    core.egress_mut().take_received(token.slot);
    core.chunk(start, STREAM, chunk(1, start));
    core.send_away(start, start);
    settle(&mut core, start);
    let got = core.egress_mut().take_received(token.slot);
    let (mut at, mut packets) = (0, Vec::new());
    while at < got.len() {
        assert_eq!(got[at], b'$', "whole packets: {got:?}");
        let len = usize::from(u16::from_be_bytes([got[at + 2], got[at + 3]]));
        packets.push((got[at + 1], got[at + 4..at + 4 + len].to_vec()));
        at += 4 + len;
    }
    let (channel, last) = packets.pop().expect("something came");
    assert_eq!(channel, 1);
    // A compound packet that ends with a BYE (RFC 3550 section 6.6).
    assert!(last.windows(2).any(|two| two[0] & 0xE0 == 0x80 && two[1] == 203), "{last:?}");
    assert!(!core.is_open(token));
}
