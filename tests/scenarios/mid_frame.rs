//! A client that stops reading in the middle of a frame gets the rest of it when it reads on, from a silent source too.

use std::time::Duration;

use nix::libc;

use crate::harness::camera::Camera;
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};

/// More than the kernel takes for a client that does not read.
const FRAME_BYTES: usize = 3_000_000;

/// Bytes in the socket that have not been read.
fn unread(client: &Client) -> usize {
    let mut buffer = vec![0; 1 << 20];
    client.stream().set_nonblocking(true).unwrap();
    let got = nix::sys::socket::recv(
        std::os::fd::AsRawFd::as_raw_fd(client.stream()),
        &mut buffer,
        nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::from_bits_retain(libc::MSG_DONTWAIT),
    );
    client.stream().set_nonblocking(false).unwrap();
    got.unwrap_or(0)
}

fn blocked_then_reading_on(pause: Duration) {
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    camera.keyframe(2_000);
    let relay = relay.serving("/");
    let mut client = Client::connect_narrow(relay.address(), 8 * 1024);
    client.play_everything(&relay.url("/"));
    let mut before = client.frame_on(0);
    assert_eq!(before.len(), 4);

    camera.keyframe(FRAME_BYTES);
    // The frame begins, and the client's window fills up: what is unread no longer grows.
    client.read_some(20_000);
    let (mut last, mut same) = (0, 0);
    wait_until("the client blocks the relay", DEADLINE, || {
        let now = unread(&client);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        same > 20
    });
    std::thread::sleep(pause);

    // Not a byte comes from the camera any more; the rest of the frame does.
    let frame = client.frame_on(0);
    assert_eq!(frame.len(), 2 + FRAME_BYTES.div_ceil(1_400));
    before.extend(frame);
    for pair in before.windows(2) {
        assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1));
    }
    // And the client is as good as any: it goes on with the next keyframe.
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
    // Longer than `queue.age`: the frame begun is finished all the same.
    blocked_then_reading_on(Duration::from_millis(1_500));
}
