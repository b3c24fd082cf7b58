//! A camera that goes away and comes back is a pause to the players, not an end.

use crate::harness::camera::{Camera, Place};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, wait_until};

#[test]
fn clients_stay_and_go_on_with_the_next_keyframe() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    camera.keyframe(5_000);
    camera.delta_frame(100);
    let relay = relay.serving("/");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    client.frame_on(0);
    let before = client.frame_on(0);

    camera.hang_up();
    camera.wait_playing();
    // Nothing to begin with after a break.
    camera.delta_frame(100);
    camera.keyframe(5_000);
    let after = client.frame_on(0);
    assert!(h264::is_complete_keyframe(&after));
    let (last, first) = (before.last().unwrap(), &after[0]);
    assert_eq!(first.ssrc(), last.ssrc());
    assert_eq!(first.seq(), last.seq().wrapping_add(1), "the sequence goes on");
    let advance = first.rtp_time().wrapping_sub(last.rtp_time());
    assert!((1..90_000 * 30).contains(&advance), "the timestamps advance by {advance}");
}

#[test]
fn a_stream_that_has_been_up_is_described_and_played_while_its_camera_is_away() {
    let _turn = beside_others();
    let place = Place::reserve();
    let camera = Camera::start_at(place.address());
    let relay = Relay::connecting_to(&place.url());
    camera.wait_playing();
    camera.keyframe(5_000);
    let relay = relay.serving("/");
    drop(camera);

    let mut client = Client::connect(relay.address());
    let (_, played) = client.play_everything(&relay.url("/"));
    assert_eq!(played.rtp_info().len(), 2);

    let camera = Camera::start_at(place.address());
    camera.wait_playing();
    camera.keyframe(7_000);
    wait_until("the camera's new keyframe", DEADLINE, || {
        let frame = client.frame_on(0);
        h264::is_complete_keyframe(&frame) && frame.len() == 2 + 7_000usize.div_ceil(1_400)
    });
}

#[test]
fn a_stream_that_has_never_been_up_answers_503_and_comes_up_later() {
    let _turn = beside_others();
    let place = Place::reserve();
    let relay = Relay::connecting_to(&place.url());
    let answer = Client::connect(relay.address()).describe(&relay.url("/")).expect(503);
    assert!(answer.header("Retry-After").is_some(), "{answer:#?}");
    let _camera = Camera::start_at(place.address());
    relay.serving("/");
}

#[test]
fn the_cameras_password_is_never_printed() {
    let _turn = beside_others();
    let camera = Camera::start();
    let url = camera.url().replace("rtsp://", "rtsp://admin:hunter2secret@");
    let relay = Relay::connecting_to(&url);
    camera.wait_playing();
    camera.hang_up();
    camera.wait_playing();
    drop(camera);
    let relay = relay.serving("/");
    let body = Client::connect(relay.address()).describe(&relay.url("/")).body;
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, _, printed) = relay.finish(DEADLINE);
    assert!(!printed.contains("hunter2secret"), "{printed}");
    assert!(!body.contains("hunter2secret"), "{body}");
}
