//! Tests of the scenarios' own tools against other programs. If these fail, the other scenarios prove nothing about the relay.

use crate::harness::camera::Camera;
use crate::harness::machine::beside_others;
use crate::harness::relay::{Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::{h264, servers};

#[test]
fn the_raw_client_plays_a_real_server() {
    let _turn = beside_others();
    let encoder = servers::Encoder::start(&["x264"]);
    let mut client = Client::connect(encoder.url()[7..].trim_end_matches("/cam").parse().unwrap());
    let (tracks, played) = client.play_everything(&encoder.url());
    assert_eq!(tracks.iter().map(|t| t.encoding.as_str()).collect::<Vec<_>>(), ["H264", "MPEG4-GENERIC"]);
    assert_eq!(played.rtp_info().len(), 2);
    assert!(h264::is_complete_keyframe(&client.frame_on(0)));
    let frames: Vec<_> = (0..30).map(|_| client.frame_on(0)).collect();
    for pair in frames.windows(2) {
        let (last, next) = (pair[0].last().unwrap(), &pair[1][0]);
        assert_eq!(next.seq(), last.seq().wrapping_add(1), "a packet is missing");
        // An encoder that is late drops frames.
        let step = next.rtp_time().wrapping_sub(last.rtp_time());
        assert!(step.is_multiple_of(3_000) && (1..=30).contains(&(step / 3_000)), "{step} ticks to the next frame");
    }
}

#[test]
fn the_raw_client_plays_the_scripted_camera() {
    let _turn = beside_others();
    let camera = Camera::start();
    let mut client = Client::connect(camera.address());
    let (_, played) = client.play_everything(&camera.url());
    camera.wait_playing();
    camera.keyframe(5_000);
    camera.delta_frame(3_000);
    camera.delta_frame(10);
    let frame = client.frame_on(0);
    assert_eq!((frame[0].seq(), frame[0].rtp_time()), (played.rtp_info()[0].1, played.rtp_info()[0].2));
    assert_eq!(h264::types(&frame), [7, 8, 5]);
    assert_eq!(h264::types(&client.frame_on(0)), [1]);
    assert_eq!(h264::types(&client.frame_on(0)), [1]);
    client.request("TEARDOWN", &camera.url(), &[]).expect(200);
    assert_eq!(camera.requests().last().map(String::as_str), Some("TEARDOWN"));
}

#[test]
fn the_filter_refuses_io_uring() {
    let _turn = beside_others();
    let wrapped = command(Uring::Refused, &[]);
    let filter = wrapped.get_args().next().unwrap().to_str().unwrap().to_string();
    let ask = "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall(425, 8, 0); print(ctypes.get_errno())";
    let python = crate::harness::SYSTEM_PYTHON;
    let finished = crate::harness::program::run(crate::harness::DEADLINE, python, &[&filter, python, "-c", ask])
        .expect_silent_success();
    assert_eq!(finished.stdout.trim(), "1", "EPERM");
}
