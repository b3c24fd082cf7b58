//! A client that stops reading in the middle of a frame gets the rest when it reads again, even if the source is silent.

use std::time::Duration;

use crate::harness::camera::Camera;
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;

/// More than the kernel buffers for a client that does not read.
const FRAME_BYTES: usize = 3_000_000;

fn blocked_then_reading_on(pause: Duration) {
    let camera = Camera::start();
    let relay = Relay::of_camera(&camera, 2_000);
    let mut client = Client::connect_narrow(relay.address(), 8 * 1024);
    client.play_everything(&relay.url("/"));
    let mut before = client.frame_on(0);
    assert_eq!(before.len(), 4);

    camera.keyframe(FRAME_BYTES);
    // The frame starts, and the client's receive buffer fills up.
    client.read_some(20_000);
    client.wait_blocking();
    // The client reads nothing for this long, to test its lag.
    std::thread::sleep(pause);

    // The camera sends no more bytes; the rest of the frame arrives nevertheless.
    let frame = client.frame_on(0);
    assert_eq!(frame.len(), 2 + FRAME_BYTES.div_ceil(1_400));
    before.extend(frame);
    for pair in before.windows(2) {
        assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1));
    }
    // The client continues like any other, with the next keyframe.
    camera.keyframe(2_000);
    assert_eq!(client.frame_on(0)[0].seq(), before.last().unwrap().seq().wrapping_add(1));
}

#[test]
fn gets_the_rest_as_it_reads_on() {
    let _turn = beside_others();
    blocked_then_reading_on(Duration::ZERO);
}

#[test]
fn gets_the_rest_after_its_lag_has_passed_the_queue_age() {
    let _turn = beside_others();
    // Longer than `queue.age`: the frame is completed nevertheless.
    blocked_then_reading_on(Duration::from_millis(1_500));
}
