//! A client that is too slow skips to a keyframe, at a frame boundary, and delays no other; one that stops reading is disconnected.

use std::time::{Duration, Instant};

use crate::harness::camera::Camera;
use crate::harness::machine::alone;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet};
use crate::harness::{DEADLINE, h264, wait_until};

/// More than the kernel buffers for a client that does not read.
const BLOCKING_FRAME_BYTES: usize = 3_000_000;

/// Long enough that a busy machine does not make the healthy client lag.
const QUEUE_AGE: Duration = Duration::from_secs(1);

fn relay(camera: &Camera, queue: &str) -> Relay {
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n\n[queue]\n{queue}\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\n",
        camera.url()
    ));
    camera.wait_playing();
    camera.keyframe(2_000);
    relay.serving("/cam")
}

/// The number of fragments of the frame's picture, by which the scenarios identify frames.
fn fragments(frame: &[Packet]) -> usize {
    frame.iter().filter(|packet| packet.payload()[0] & 0x1F == 28).count()
}

fn assert_unbroken(packets: &[Packet]) {
    for pair in packets.windows(2) {
        assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1));
    }
}

#[test]
fn skips_to_the_newest_keyframe_and_delays_nobody() {
    let _turn = alone();
    let camera = Camera::start();
    let relay = relay(&camera, "age = \"1s\"");
    let mut slow = Client::connect_narrow(relay.address(), 8 * 1024);
    slow.play_everything(&relay.url("/cam"));
    slow.frame_on(0);
    let mut healthy = Client::connect(relay.address());
    healthy.play_everything(&relay.url("/cam"));
    let mut all = healthy.frame_on(0);

    camera.keyframe(BLOCKING_FRAME_BYTES);
    let begun = slow.packet_on(0);
    // The healthy one gets each frame while the slow one is still in the first: only then does the camera send the next.
    all.extend(healthy.frame_on(0));
    let blocked = Instant::now();
    let mut picture = 0;
    while blocked.elapsed() < QUEUE_AGE * 2 || picture % 10 != 5 {
        if picture % 10 == 0 {
            camera.keyframe(2_000 + picture * 1_400)
        } else {
            camera.delta_frame(100)
        };
        all.extend(healthy.frame_on(0));
        picture += 1;
    }
    assert_unbroken(&all);
    let newest = 2_000 + (picture - 5) * 1_400;

    // The frame that was started is completed, then follow the newest keyframe and the frames after it.
    let mut rest = vec![begun];
    rest.extend(slow.frame_on(0));
    assert_unbroken(&rest);
    assert_eq!(fragments(&rest), BLOCKING_FRAME_BYTES.div_ceil(1_400));
    let mut after = slow.frame_on(0);
    assert!(h264::is_complete_keyframe(&after), "a skip lands on a keyframe: {:?}", h264::types(&after));
    assert_eq!(fragments(&after), newest.div_ceil(1_400), "on the newest");
    for _ in 0..4 {
        after.extend(slow.frame_on(0));
    }
    camera.delta_frame(100);
    after.extend(slow.frame_on(0));
    assert_unbroken(&after);
}

#[test]
fn is_closed_when_it_stands_still() {
    let _turn = alone();
    let camera = Camera::start();
    let relay = relay(&camera, "stall_timeout = \"3s\"");
    let mut standing = Client::connect_narrow(relay.address(), 8 * 1024);
    standing.play_everything(&relay.url("/cam"));
    standing.frame_on(0);
    let mut healthy = Client::connect(relay.address());
    healthy.play_everything(&relay.url("/cam"));
    let mut all = healthy.frame_on(0);
    camera.keyframe(BLOCKING_FRAME_BYTES);
    all.extend(healthy.frame_on(0));
    // The server has closed its end when the client's address is gone from its connection table.
    let local = standing.stream().local_addr().unwrap();
    wait_until("the connection is closed", DEADLINE, || {
        camera.delta_frame(100);
        all.extend(healthy.frame_on(0));
        !is_established(relay.address().port(), local.port())
    });
    assert_unbroken(&all);
}

/// Whether the kernel has a connection from `local` to `remote` open at `local`'s end (`proc_net_tcp`, state 01).
fn is_established(local: u16, remote: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{local:04X}"))
            && fields[2].ends_with(&format!(":{remote:04X}"))
            && fields[3] == "01"
    })
}
