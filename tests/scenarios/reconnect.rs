//! A camera that disconnects and returns interrupts its players; it does not end their sessions.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use crate::harness::camera::{Camera, Place};
use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, scratch_file, wait_until};

#[test]
fn clients_stay_and_go_on_with_the_next_keyframe() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    camera.keyframe(5_000);
    camera.delta_frame(100);
    let relay = relay.serving("/");
    let mut client = relay.player("/");
    let before = client.frame_on(0);

    camera.hang_up();
    camera.wait_playing();
    // After a break there is nothing to start with until the next keyframe.
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
    let relay = Relay::of_camera(&camera, 5_000);
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
fn a_stream_that_has_never_been_up_is_waited_for_or_answers_503_after_the_wait() {
    let _turn = beside_others();
    let place = Place::reserve();
    let stream = |name: &str, wait: &str| {
        format!("[[stream]]\nname = \"{name}\"\nsource = \"{}\"\non_demand_start = \"{wait}\"\n", place.url())
    };
    let (patient, hasty) = (stream("patient", "60s"), stream("hasty", "100ms"));
    let relay = Relay::configured(&format!("listen = [\"127.0.0.1:0\"]\n\n{patient}{hasty}"));
    let mut client = Client::connect(relay.address());
    let text = client.compose("DESCRIBE", &relay.url("/patient"), &[("Accept", "application/sdp")]);
    client.send_raw(text.as_bytes());
    let answer = Client::connect(relay.address()).describe(&relay.url("/hasty")).expect(503);
    assert!(answer.header("Retry-After").is_some(), "{answer:#?}");
    let _camera = Camera::start_at(place.address());
    assert_eq!(client.answer().status, 200);
    relay.serving("/hasty");
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

/// The current time by a clock that is off by this many seconds, in NTP format.
fn ntp_now(off: i64) -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seconds = (since.as_secs() + 2_208_988_800).wrapping_add_signed(off);
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    seconds << 32 | fraction
}

/// Sends video and audio at their pace, with reports of a clock that is off by this many seconds, until `enough`.
fn film(camera: &Camera, off: i64, mut enough: impl FnMut() -> bool) {
    let begin = Instant::now();
    let mut frames = 0;
    for round in 0u32.. {
        assert!(begin.elapsed() < DEADLINE, "not enough has come");
        camera.sound();
        if frames * 100 <= round * 60 {
            if frames % 15 == 0 {
                camera.keyframe(4_000)
            } else {
                camera.delta_frame(1_000)
            };
            frames += 1;
        }
        if round % 10 == 9 {
            camera.sender_report(ntp_now(off));
            camera.sound_report(ntp_now(off));
        }
        if round % 50 == 49 && enough() {
            return;
        }
        let due = begin + Duration::from_millis(20) * (round + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn a_recording_goes_on_in_time_when_the_camera_comes_back_with_its_clock_off() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    let url = relay.url("/");
    film(&camera, 0, || Client::connect(relay.address()).describe(&url).status == 200);
    let file = scratch_file("recording.mkv");
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "warning", "-rtsp_transport", "tcp", "-analyzeduration", "300000", "-i", &url]);
    command.args(["-map", "0", "-c", "copy", "-flush_packets", "1", "-f", "matroska"]).arg(&file);
    let mut recorder = Program::start(command);
    let recorded = || std::fs::metadata(&file).map_or(0, |file| file.len());
    for off in [0, 30, -30] {
        let before = recorded();
        film(&camera, off, || recorded() > before + 40_000);
        camera.hang_up();
        camera.wait_playing();
    }
    // It handles signals after it has read something.
    recorder.signal(Signal::SIGINT);
    film(&camera, -30, || recorder.ended().is_some());
    let finished = recorder.finish(DEADLINE);
    assert!(!finished.stderr.contains("onoton"), "{}", finished.stderr);
    let show = ["-v", "error", "-show_entries", "packet=stream_index,pts_time", "-of", "csv=p=0"];
    let shown = run(DEADLINE, "ffprobe", &[&show[..], &[file.to_str().unwrap()]].concat());
    for stream in ["0", "1"] {
        let times: Vec<f64> = shown
            .stdout
            .lines()
            .filter_map(|line| line.split_once(','))
            .filter_map(|(of, time)| (of == stream).then(|| time.trim_end_matches(',').parse().ok()).flatten())
            .collect();
        assert!(times.len() > 60, "{shown:?}");
        for pair in times.windows(2) {
            // The camera was away for a moment, and its clock is off by half a minute.
            assert!(pair[0] < pair[1] && pair[1] - pair[0] < 10.0, "stream {stream}: {pair:?}");
        }
    }
}
