//! Where clients start while a camera is silent.

use std::time::Instant;

use super::log_tests::client;
use super::paths::tests::{chunk, core};
use super::{Core, Start, StreamSetup};
use crate::egress::sim::SimEgress;
use crate::media::{SourceState, StreamId};
use crate::session::fuzz;

const STREAM: StreamId = StreamId::first(0);

/// A new client plays; returns the first sequence number that it is told.
fn begins_with(core: &mut Core<SimEgress>, now: Instant) -> String {
    let token = client(core, now);
    let mut ask = |line: &str, header: &str| {
        core.input(now, token, format!("{line} RTSP/1.0\r\nCSeq: 1\r\n{header}\r\n\r\n").as_bytes());
        while core.drive(now) | core.reap(now) {}
        String::from_utf8_lossy(&core.egress_mut().take_received(token.slot)).into_owned()
    };
    let between = |text: &str, from: &str| {
        let rest = text.split_once(from).unwrap_or_else(|| panic!("no {from} in {text}")).1;
        rest.split([';', '\r']).next().unwrap_or_default().to_owned()
    };
    let set_up = ask("SETUP rtsp://h/front/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1");
    let played = ask("PLAY rtsp://h/front", &format!("Session: {}", between(&set_up, "Session: ")));
    between(&played, ";seq=")
}

#[test]
fn who_joins_while_the_camera_is_silent_is_not_sent_the_last_picture_once_more() {
    let now = Instant::now();
    let mut core = core(now);
    let setup = StreamSetup::plain(STREAM, "front", Start::Cached);
    core.set_stream(now, &setup);
    core.described(now, STREAM, fuzz::description("H264", now));
    core.source(now, STREAM, SourceState::Live);
    for number in 0..3 {
        core.chunk(now, STREAM, chunk(number, now));
    }
    assert_eq!(begins_with(&mut core, now), "2", "the newest keyframe");
    core.source(now, STREAM, SourceState::Silent);
    for _ in 0..2 {
        assert_eq!(begins_with(&mut core, now), "3", "what comes next");
    }
    // It continues within the same GOP: new clients can decode it.
    core.source(now, STREAM, SourceState::Live);
    assert_eq!(begins_with(&mut core, now), "2");
}
