//! SIGTERM and SIGINT: the relay completes the frames in flight, ends the camera's session, closes the clients, and exits with 0 within 2 s.
//!
//! These tests run alone, because they measure how fast the relay stops, which other load would distort.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::camera::{Camera, Place};
use crate::harness::machine::alone;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};

/// What the documentation promises.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// Stops a relay with `stop`, which returns how long that took and what was printed, until one stop was in time. A machine may be
/// too busy for one of them; if three in a row are late, the relay is at fault.
fn in_time(stop: impl Fn() -> (Duration, String)) {
    let mut late = Vec::new();
    while late.len() < 3 {
        let (took, printed) = stop();
        if took < STOPS_WITHIN {
            return;
        }
        late.push((took, printed));
    }
    panic!("late each time: {late:#?}");
}

fn stops_cleanly(signal: Signal) -> (Duration, String) {
    let relay = Relay::demo();
    let mut clients: Vec<Client> = (0..5).map(|_| relay.player("/")).collect();
    // One that is connected and sends nothing.
    let mut idle = Client::connect(relay.address());
    relay.signal(signal);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
    for client in &mut clients {
        // `packet_or_end` panics at an end within a packet.
        let mut last = None;
        while let Some(packet) = client.packet_or_end() {
            if packet.channel == 0 {
                last = Some(packet);
            }
        }
        assert!(last.is_none_or(|packet| packet.marker()), "the last frame is whole");
    }
    assert!(idle.is_closed());
    (took, printed)
}

#[test]
fn on_sigterm() {
    let _turn = alone();
    in_time(|| stops_cleanly(Signal::SIGTERM));
}

#[test]
fn on_sigint() {
    let _turn = alone();
    in_time(|| stops_cleanly(Signal::SIGINT));
}

#[test]
fn the_camera_is_told() {
    let _turn = alone();
    in_time(|| {
        let camera = Camera::start();
        let relay = Relay::connecting_to(&camera.url());
        camera.wait_playing();
        relay.signal(Signal::SIGTERM);
        let (status, took, printed) = relay.finish(DEADLINE);
        assert_eq!(status.code(), Some(0), "{printed}");
        wait_until("TEARDOWN", DEADLINE, || camera.requests().iter().any(|method| method == "TEARDOWN"));
        (took, printed)
    });
}

#[test]
fn with_a_client_that_does_not_read() {
    let _turn = alone();
    in_time(|| {
        let camera = Camera::start();
        let relay = Relay::of_camera(&camera, 2_000);
        let mut client = Client::connect_narrow(relay.address(), 8 * 1024);
        client.play_everything(&relay.url("/"));
        client.frame_on(0);
        camera.keyframe(3_000_000);
        client.read_some(10_000);
        relay.signal(Signal::SIGTERM);
        let (status, took, printed) = relay.finish(DEADLINE);
        assert_eq!(status.code(), Some(0), "{printed}");
        (took, printed)
    });
}

#[test]
fn while_the_camera_cannot_be_reached() {
    let _turn = alone();
    in_time(|| {
        let place = Place::reserve();
        let relay = Relay::connecting_to(&place.url());
        relay.signal(Signal::SIGTERM);
        let (status, took, printed) = relay.finish(DEADLINE);
        assert_eq!(status.code(), Some(0), "{printed}");
        (took, printed)
    });
}
