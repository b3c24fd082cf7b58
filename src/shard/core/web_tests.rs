//! Browsers that are handed over to another process while they wait for their stream.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::paths::tests::core;
use super::{Core, CoreState, Start, StreamSetup, WebClient};
use crate::egress::sim::SimEgress;
use crate::egress::{Conn, Token};
use crate::limits::THAWED_MS;
use crate::media::rendering::fmp4::Clock;
use crate::media::{SourceState, StreamId};
use crate::session::fuzz;

const STREAM: StreamId = StreamId::first(0);
const WAITS: Duration = Duration::from_secs(8);

fn serving(now: Instant) -> Core<SimEgress> {
    let mut core = core(now);
    core.set_stream(
        now,
        &StreamSetup { first_wait: Some(WAITS), ..StreamSetup::plain(STREAM, "front", Start::Cached) },
    );
    core
}

fn sent(core: &mut Core<SimEgress>, now: Instant, token: Token) -> String {
    while core.drive(now) | core.reap(now) {}
    String::from_utf8_lossy(&core.egress_mut().take_received(token.slot)).into_owned()
}

/// The state as another process reads it, with the bytes beside it.
fn carried(mut state: CoreState) -> CoreState {
    let mut blocks = VecDeque::new();
    state.each_bytes(&mut |bytes| blocks.push_back(std::mem::take(bytes)));
    let mut state: CoreState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    state.each_bytes(&mut |bytes| *bytes = blocks.pop_front().expect("as many as were taken"));
    state
}

/// A browser waits, and has sent the first half of a ping; then it is in another process.
fn handed_over(now: Instant) -> (Core<SimEgress>, Token) {
    let mut before = serving(now);
    let at = |ip: [u8; 4]| SocketAddr::from((ip, 5_000));
    let clock = Clock::new(now, Duration::from_secs(1_000));
    let client = WebClient { stream: STREAM, sound: true, user: None, user_agent: None, clock, expires: None };
    let addresses = (at([192, 0, 2, 1]), at([192, 0, 2, 9]));
    let token = before.web_connected(now, Conn::Scripted, addresses, &[0x89, 0x82, 0, 0], client).expect("it serves");
    assert!(sent(&mut before, now, token).contains("waiting"));
    before.freeze();
    let state = before.save(now).expect("nothing is in between");
    let mut after = serving(now);
    after.freeze();
    let restored = after.restore(now, now, carried(state), vec![Conn::Scripted]).expect("the same streams");
    after.go_on(now);
    let token = restored[0].0;
    assert_eq!(sent(&mut after, now, token), "");
    (after, token)
}

#[test]
fn a_browser_that_waits_is_shown_the_stream_by_the_next_process() {
    let start = Instant::now();
    let (mut core, token) = handed_over(start);
    let now = start + WAITS / 2;
    core.timeout(now);
    core.input(now, token, &[0, 0, b'h', b'i']);
    assert_eq!(sent(&mut core, now, token), "\u{fffd}\u{2}hi");
    core.described(now, STREAM, fuzz::description("H264", now));
    core.source(now, STREAM, SourceState::Live);
    let hello = sent(&mut core, now, token);
    assert!(hello.contains("hello") && core.is_open(token), "{hello}");
    // Its clock is that of the process before.
    assert!(hello.contains("\"clock\":1004000"), "{hello}");
}

#[test]
fn it_does_not_wait_longer_because_of_that() {
    let start = Instant::now();
    let (mut core, token) = handed_over(start);
    core.timeout(start + WAITS - Duration::from_secs(1));
    assert!(core.is_open(token));
    core.timeout(start + WAITS + Duration::from_secs(1));
    assert!(sent(&mut core, start + WAITS, token).contains("did not come up in time"));
    assert!(!core.is_open(token));
}

#[test]
fn a_browser_that_waits_is_spared_after_a_freeze() {
    let start = Instant::now();
    let (mut core, token) = handed_over(start);
    core.freeze();
    // The stream may have come up meanwhile; that is seen first.
    let thawed = start + 2 * WAITS;
    core.thaw(thawed);
    core.timeout(thawed);
    assert!(core.is_open(token));
    core.timeout(thawed + Duration::from_millis(2 * THAWED_MS));
    assert!(sent(&mut core, thawed, token).contains("did not come up in time"));
}

#[test]
fn a_shard_without_the_stream_refuses_it() {
    let now = Instant::now();
    let mut before = serving(now);
    let at = SocketAddr::from(([192, 0, 2, 1], 5_000));
    let clock = Clock::new(now, Duration::ZERO);
    let client = WebClient { stream: STREAM, sound: false, user: None, user_agent: None, clock, expires: None };
    before.web_connected(now, Conn::Scripted, (at, at), &[], client).expect("it serves");
    sent(&mut before, now, Token { slot: 0, generation: 0 });
    before.freeze();
    let state = carried(before.save(now).expect("nothing is in between"));
    let mut other = core(now);
    other.freeze();
    let refused = other.restore(now, now, state, vec![Conn::Scripted]).map(|restored| restored.len());
    assert!(refused.as_ref().is_err_and(|why| why.contains("front")), "{refused:?}");
}
