//! A removed stream's index is reused for another stream, and nobody confuses the two.

use std::time::Instant;

use super::log_tests::{ask, client, serving, set_up};
use super::paths::tests::{chunk, core};
use super::timers::CHECK_EVERY;
use super::{Core, Start, StreamSetup};
use crate::egress::sim::{Reading, SimEgress};
use crate::media::{SourceState, StreamId};
use crate::session::fuzz;
use crate::shard::inbox::ToControl;

const OLD: StreamId = StreamId::first(0);
const NEW: StreamId = OLD.next_generation();

fn setup(id: StreamId, name: &str) -> StreamSetup {
    StreamSetup::plain(id, name, Start::Live)
}

fn released(core: &mut Core<SimEgress>) -> Vec<StreamId> {
    let released = |message| match message {
        ToControl::Released { stream } => Some(stream),
        _ => None,
    };
    core.take_outbox().into_iter().filter_map(released).collect()
}

#[test]
fn a_place_is_given_back_when_the_last_client_has_had_its_farewell() {
    let now = Instant::now();
    let mut core = serving(now);
    let token = client(&mut core, now);
    let session = set_up(&mut core, now, token, "RTP/AVP/TCP;unicast;interleaved=0-1");
    ask(&mut core, now, token, "PLAY rtsp://h/front", &session);
    // It does not read: its BYE waits.
    core.egress_mut().set_reading(token.slot, Reading::Rate(0));
    core.chunk(now, OLD, chunk(0, now));
    core.drive(now);
    core.remove_stream(now, OLD);
    assert_eq!(released(&mut core), []);
    let later = now + core.stall_timeout + 2 * CHECK_EVERY;
    core.timeout(later);
    while core.drive(later) | core.reap(later) {}
    assert_eq!((core.links(), released(&mut core)), (0, vec![OLD]));
}

#[test]
fn what_comes_for_a_removed_stream_is_none_of_the_next_ones() {
    let now = Instant::now();
    let mut core = core(now);
    core.set_stream(now, &setup(OLD, "old"));
    core.described(now, OLD, fuzz::description("H264", now));
    core.chunk(now, OLD, chunk(0, now));
    core.remove_stream(now, OLD);
    assert_eq!(released(&mut core), [OLD]);
    core.set_stream(now, &setup(NEW, "new"));
    assert_eq!(core.streams.len(), 1, "the place is used again");
    core.chunk(now, OLD, chunk(1, now));
    core.described(now, OLD, fuzz::description("H265", now));
    core.source(now, OLD, SourceState::Live);
    core.chunk_refused(OLD, 3);
    core.remove_stream(now, OLD);
    assert_eq!(released(&mut core), [], "once is enough");
    let stream = &core.streams[0];
    assert!(stream.description.is_none() && stream.log.bytes() == 0 && !stream.goes_on());
    let token = client(&mut core, now);
    let found = ask(&mut core, now, token, "DESCRIBE rtsp://h/old", "");
    assert!(found.starts_with("RTSP/1.0 404"), "{found}");
    core.described(now, NEW, fuzz::description("H264", now));
    let found = ask(&mut core, now, token, "DESCRIBE rtsp://h/new", "");
    assert!(found.starts_with("RTSP/1.0 200"), "{found}");
    core.drive(now);
    core.chunk(now, NEW, chunk(0, now));
    assert!(core.streams[0].log.bytes() > 0);
}
