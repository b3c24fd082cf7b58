//! SIGTERM and SIGINT: the frames in flight are finished, the camera is told, the clients are closed, exit 0 within 2 s.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::camera::Camera;
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};

/// What the relay promises.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

fn stops_cleanly(signal: Signal) {
    let relay = Relay::demo();
    let mut clients: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = Client::connect(relay.address());
            client.play_everything(&relay.url("/"));
            client.frame_on(0);
            client
        })
        .collect();
    // One that is connected and says nothing.
    let mut idle = Client::connect(relay.address());
    relay.signal(signal);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(took < STOPS_WITHIN, "{took:?}\n{printed}");
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
}

#[test]
fn on_sigterm() {
    let _turn = beside_others();
    stops_cleanly(Signal::SIGTERM);
}

#[test]
fn on_sigint() {
    let _turn = beside_others();
    stops_cleanly(Signal::SIGINT);
}

#[test]
fn the_camera_is_told() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    relay.signal(Signal::SIGTERM);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(took < STOPS_WITHIN, "{took:?}\n{printed}");
    wait_until("TEARDOWN", DEADLINE, || camera.requests().iter().any(|method| method == "TEARDOWN"));
}

#[test]
fn with_a_client_that_does_not_read() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    camera.keyframe(2_000);
    let relay = relay.serving("/");
    let mut client = Client::connect_narrow(relay.address(), 8 * 1024);
    client.play_everything(&relay.url("/"));
    client.frame_on(0);
    camera.keyframe(3_000_000);
    client.read_some(10_000);
    relay.signal(Signal::SIGTERM);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(took < STOPS_WITHIN, "{took:?}\n{printed}");
}

#[test]
fn while_the_camera_cannot_be_reached() {
    let _turn = beside_others();
    // A port that nobody listens at.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let relay = Relay::connecting_to(&format!("rtsp://127.0.0.1:{port}/cam"));
    relay.signal(Signal::SIGTERM);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(took < STOPS_WITHIN, "{took:?}\n{printed}");
}
