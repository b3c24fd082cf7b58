//! Shortages of memory: which operations wait for how long, and what remains afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::egress::sim::{Reading, SimEgress};
use crate::limits::SHORTAGE_PAUSE_MS;
use crate::media::{Description, StreamId, Track};
use crate::metrics::ReportRequest;
use crate::shard::core::paths::tests::{chunk, core};
use crate::shard::core::{Start, StreamSetup};

const PAUSE: Duration = Duration::from_millis(SHORTAGE_PAUSE_MS);
const OPTIONS: &[u8] = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";

fn connect(core: &mut Core<SimEgress>, now: Instant) -> Token {
    use crate::egress::Conn;
    let at = |ip: [u8; 4]| SocketAddr::from((ip, 5_000));
    core.connected(now, Conn::Scripted, at([192, 0, 2, 1]), at([192, 0, 2, 9]), &[]).expect("it does not stop")
}

/// Does everything that can be done at this time; returns what the client received.
fn settle(core: &mut Core<SimEgress>, now: Instant, token: Token) -> Vec<u8> {
    if core.next_timeout(now) <= now {
        core.timeout(now);
    }
    while core.drive(now) | core.reap(now) {}
    core.egress_mut().take_received(token.slot)
}

fn put_off(core: &mut Core<SimEgress>, now: Instant) -> u64 {
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    core.report(now, ReportRequest { reply, clients: false });
    answer.try_recv().expect("it answers at once").counters[Counter::SendsPutOff.index()]
}

#[test]
fn what_there_is_no_memory_for_is_sent_later_byte_for_byte() {
    let mut now = Instant::now();
    let mut core = core(now);
    let token = connect(&mut core, now);
    core.input(now, token, OPTIONS);
    let whole = settle(&mut core, now, token);
    assert!(whole.starts_with(b"RTSP/1.0 200"));
    core.input(now, token, OPTIONS);
    let mut got = Vec::new();
    for (count, errno) in [libc::ENOBUFS, libc::ENOMEM, libc::EAGAIN].into_iter().enumerate() {
        core.egress_mut().refuse(token.slot, 7, errno);
        got.extend(settle(&mut core, now, token));
        assert_eq!(got, whole[..7 * (count + 1)]);
        assert_eq!(put_off(&mut core, now), count as u64 + 1);
        // Until then nothing is tried, whatever else must be sent.
        core.input(now, token, OPTIONS);
        let operations = core.egress_mut().stats().operations;
        assert_eq!(settle(&mut core, now + PAUSE / 2, token), b"");
        assert_eq!(core.egress_mut().stats().operations, operations);
        assert_eq!(core.next_timeout(now), now + PAUSE);
        now += PAUSE;
    }
    got.extend(settle(&mut core, now, token));
    assert_eq!(got, whole.repeat(4));
    assert!(core.next_timeout(now) > now);
}

#[test]
fn who_waits_for_memory_is_not_closed_for_it() {
    let mut now = Instant::now();
    let mut core = core(now);
    let token = connect(&mut core, now);
    core.input(now, token, OPTIONS);
    for _ in 0..2_000 {
        core.egress_mut().refuse(token.slot, 0, libc::ENOMEM);
        assert_eq!(settle(&mut core, now, token), b"");
        now += PAUSE;
    }
    assert_eq!(put_off(&mut core, now), 2_000);
    core.egress_mut().set_reading(token.slot, Reading::AtOnce);
    core.egress_mut().refuse(token.slot, usize::MAX, 0);
    assert!(settle(&mut core, now, token).starts_with(b"RTSP/1.0 200"));
}

#[test]
fn who_goes_meanwhile_leaves_nothing() {
    let now = Instant::now();
    let mut core = core(now);
    let token = connect(&mut core, now);
    core.input(now, token, OPTIONS);
    core.egress_mut().refuse(token.slot, 5, libc::ENOBUFS);
    settle(&mut core, now, token);
    core.disconnected(now, token);
    assert_eq!((core.links(), core.put_off.due()), (0, None));
    core.egress_mut().renew(token.slot);
    let next = connect(&mut core, now);
    assert_eq!(next.slot, token.slot);
    assert_eq!(settle(&mut core, now + PAUSE, next), b"");
    // A stop does not wait for memory forever either.
    core.input(now, next, OPTIONS);
    core.egress_mut().refuse(next.slot, 5, libc::ENOBUFS);
    settle(&mut core, now, next);
    core.stop(now);
    settle(&mut core, now, next);
    assert!(!core.is_stopped());
    settle(&mut core, now + PAUSE, next);
    assert!(core.is_stopped());
}

#[test]
fn any_other_error_closes_the_connection() {
    let now = Instant::now();
    let mut core = core(now);
    let token = connect(&mut core, now);
    core.input(now, token, OPTIONS);
    core.egress_mut().refuse(token.slot, 5, libc::EIO);
    settle(&mut core, now, token);
    assert_eq!((core.links(), put_off(&mut core, now)), (0, 0));
}

/// A client that plays the stream, of sound alone.
fn player(core: &mut Core<SimEgress>, now: Instant) -> Token {
    let (id, start) = (StreamId::first(0), Start::Live);
    core.set_stream(now, &StreamSetup::plain(id, "a", start));
    let track = Track {
        media: "audio".into(),
        encoding: "PCMU".into(),
        payload_type: 0,
        clock_rate: 8_000,
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
        ssrc: 1,
        first_seq: 0,
        clock: (now, 0),
    };
    core.described(now, id, Arc::new(Description { tracks: vec![track] }));
    let token = connect(core, now);
    let asks = [
        "SETUP rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\n",
        "PLAY rtsp://h/a RTSP/1.0\r\nCSeq: 2\r\nSession: SESSION\r\n\r\n",
    ];
    let mut session = String::new();
    for ask in asks {
        core.input(now, token, ask.replace("SESSION", &session).as_bytes());
        let answer = String::from_utf8(settle(core, now, token)).expect("answers alone");
        if let Some((_, rest)) = answer.split_once("Session: ") {
            session = rest.chars().take(16).collect();
        }
    }
    token
}

#[test]
fn who_plays_leaves_by_an_error_with_its_reason() {
    use crate::metrics::LeaveReason;
    let now = Instant::now();
    for (errno, reason) in [(libc::EIO, LeaveReason::SendFailed), (libc::EPIPE, LeaveReason::Disconnected)] {
        let mut core = core(now);
        let token = player(&mut core, now);
        core.egress_mut().refuse(token.slot, 5, errno);
        core.input(now, token, OPTIONS);
        settle(&mut core, now, token);
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        core.report(now, ReportRequest { reply, clients: false });
        let left = answer.try_recv().expect("it answers at once").streams[0].counts.left;
        assert_eq!(left.iter().sum::<u64>(), 1, "{left:?}");
        assert_eq!(left[reason.index()], 1, "{left:?}");
    }
}

#[test]
fn the_time_in_which_nothing_is_sent_for_an_upgrade_is_not_the_clients() {
    let mut now = Instant::now();
    let mut core = core(now);
    core.stall_timeout = Duration::from_secs(3);
    let token = player(&mut core, now);
    core.egress_mut().set_reading(token.slot, Reading::Stalled);
    core.egress_mut().fill(token.slot);
    for number in 0..4 {
        core.chunk(now, StreamId::first(0), chunk(number, now));
        assert_eq!(settle(&mut core, now, token), b"");
    }
    let other = connect(&mut core, now);
    core.freeze();
    while core.reap(now) {}
    assert!(core.is_frozen());
    core.egress_mut().set_reading(token.slot, Reading::AtOnce);
    // Longer than any of them may take for anything.
    now += Duration::from_secs(12);
    core.thaw(now);
    core.chunk(now, StreamId::first(0), chunk(4, now));
    assert_eq!(settle(&mut core, now, token).len(), 5 * chunk(0, now).bytes.len());
    // What it sent meanwhile is read only now.
    core.input(now, other, OPTIONS);
    assert!(settle(&mut core, now, other).starts_with(b"RTSP/1.0 200"));
}

#[test]
fn the_time_in_which_the_system_takes_no_sends_is_not_the_clients() {
    let mut now = Instant::now();
    let mut core = core(now);
    let token = connect(&mut core, now);
    core.egress_mut().set_reading(token.slot, Reading::Rate(0));
    while core.egress_mut().blocked_bytes() == 0 {
        // No faster than a client may send requests.
        now += Duration::from_secs(1);
        core.input(now, token, OPTIONS);
        settle(&mut core, now, token);
    }
    core.egress_mut().refused = true;
    for _ in 0..20 {
        now += Duration::from_secs(1);
        settle(&mut core, now, token);
        assert_eq!(core.links(), 1);
    }
    // Its history is not forgotten.
    for second in 1.. {
        assert!(second < 25, "it is closed some time");
        core.egress_mut().refused = second % 2 == 0;
        now += Duration::from_secs(1);
        settle(&mut core, now, token);
        if core.links() == 0 {
            assert!(second > 15, "half of the time is its own, closed after {second} s");
            break;
        }
    }
}
