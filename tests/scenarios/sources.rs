//! Viewers stay connected whatever a camera does; and which camera is pulled, and when.

use std::collections::HashMap;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::camera::{Camera, Place};
use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, scratch_file, wait_until};

/// A configuration with one stream, `front`.
fn one_stream(keys: &str) -> String {
    let report = "[report]\nevery = \"1s\"\nformat = \"logfmt\"";
    format!("listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n{report}\n\n[[stream]]\nname = \"front\"\n{keys}\n")
}

/// A relay with the test pattern, as a camera that can be switched off and on.
fn camera_relay(port: u16) -> Relay {
    Relay::start(command(Uring::AsAsked, &["demo", "--listen", &format!("127.0.0.1:{port}")]))
}

#[test]
fn a_recording_goes_on_over_the_cameras_restarts() {
    let _turn = beside_others();
    let place = Place::reserve();
    let port = place.address().port();
    let camera = camera_relay(port);
    let relay = Relay::configured(&one_stream(&format!("source = \"{}\"", camera.url("/test"))));
    // MP4 cannot hold the pattern's audio; Matroska can.
    let files = [scratch_file("recording.mp4"), scratch_file("recording.mkv")];
    let names = files.each_ref().map(|file| file.to_str().unwrap());
    let mut recorder = std::process::Command::new("ffmpeg");
    let url = relay.url("/");
    recorder.args(["-v", "error", "-progress", "-", "-rtsp_transport", "tcp", "-i", &url]);
    recorder.args(["-c", "copy", "-an", "-y", names[0], "-c", "copy", "-y", names[1]]).stdin(Stdio::piped());
    let mut recorder = Program::start_fed(recorder);
    let mut camera = Some(camera);
    let frames = |recorder: &Program| -> u32 {
        let printed = recorder.stdout.text();
        let mut counts = printed.lines().filter_map(|line| line.strip_prefix("frame=")?.trim().parse().ok());
        counts.next_back().unwrap_or(0)
    };
    wait_until("ffmpeg records", DEADLINE, || frames(&recorder) >= 30);
    for _ in 0..2 {
        drop(camera.take());
        // The break in the recording.
        std::thread::sleep(Duration::from_millis(1_000));
        camera = Some(camera_relay(port).serving("/test"));
        wait_until("the relay is live again", DEADLINE, || live_in_a_row(&relay));
        let recorded = frames(&recorder);
        wait_until("ffmpeg continues recording", DEADLINE, || frames(&recorder) >= recorded + 30);
    }
    recorder.stdin().unwrap().write_all(b"q").unwrap();
    let recorded = recorder.finish(DEADLINE);
    assert!(recorded.status.success(), "{recorded:#?}");
    for (name, kinds) in [(names[0], &["video"][..]), (names[1], &["video", "audio"])] {
        let show = ["-v", "error", "-show_entries", "packet=codec_type,dts_time,pts_time", "-of", "json", name];
        let shown = run(DEADLINE, "ffprobe", &show).expect_silent_success().stdout;
        let packets: Value = serde_json::from_str(&shown).unwrap();
        for kind in kinds {
            let of_kind = packets["packets"].as_array().unwrap().iter().filter(|packet| packet["codec_type"] == *kind);
            let time = |packet: &Value| {
                let time = packet["dts_time"].as_str().or(packet["pts_time"].as_str()).expect("a time");
                time.parse::<f64>().unwrap()
            };
            let times: Vec<f64> = of_kind.map(time).collect();
            assert!(times.len() > 50, "{name}, {kind}: {times:?}");
            assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {kind} goes back: {times:?}");
            // There are gaps, as long as on the wall clock.
            let breaks = times.windows(2).filter(|pair| pair[1] - pair[0] > 0.5).count();
            assert_eq!(breaks, 2, "{name}, {kind}: {times:?}");
        }
        run(DEADLINE, "ffprobe", &["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", name])
            .expect_silent_success();
        std::fs::remove_file(name).unwrap();
    }
}

/// Whether the last log line about the source says that it is live.
fn live_in_a_row(relay: &Relay) -> bool {
    let printed = relay.printed();
    let last = printed.lines().rfind(|line| line.contains("state=")).unwrap_or_default().to_owned();
    last.contains("state=live")
}

#[test]
fn a_camera_that_hangs_is_noticed_told_of_and_connected_anew() {
    let _turn = beside_others();
    let camera = Camera::start();
    let source = format!("source = \"{}\"\nsource_timeout = \"1s\"", camera.url());
    let relay = Relay::configured(&one_stream(&source));
    camera.wait_playing();
    camera.keyframe(5_000);
    let relay = relay.serving("/front");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/front"));
    // On a slow machine the relay may have reconnected already.
    wait_until("the picture", DEADLINE, || {
        camera.keyframe(5_000);
        client.packet_within(Duration::from_millis(100)).is_some()
    });
    // It sends nothing more, and closes nothing.
    wait_until("the relay reconnects", DEADLINE, || {
        camera.requests().iter().filter(|method| *method == "PLAY").count() >= 2
    });
    let silent = "the camera sent no media for 1 s";
    wait_until(silent, DEADLINE, || relay.printed().contains(silent));
    let mut packets = HashMap::<u32, usize>::new();
    wait_until("the new keyframe", DEADLINE, || {
        camera.keyframe(7_000);
        while let Some(packet) = client.packet_within(Duration::from_millis(100)) {
            if packet.channel == 0 {
                *packets.entry(packet.rtp_time()).or_default() += 1;
            }
        }
        // Others have fewer.
        packets.values().any(|count| *count == 2 + 7_000usize.div_ceil(1_400))
    });
}

#[test]
fn the_next_camera_stands_in_for_the_first_until_it_is_back() {
    let _turn = beside_others();
    let (place, second) = (Place::reserve(), Camera::start());
    let relay = Relay::configured(&one_stream(&format!("source = [\"{}\", \"{}\"]", place.url(), second.url())));
    second.wait_playing();
    second.keyframe(5_000);
    let relay = relay.serving("/front");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/front"));
    let before = client.frame_on(0);
    let first = Camera::start_at(place.address());
    first.wait_playing();
    first.keyframe(7_000);
    let after = client.frame_on(0);
    assert!(h264::is_complete_keyframe(&after));
    assert_eq!(after[0].ssrc(), before[0].ssrc());
    assert_eq!(after[0].seq(), before.last().unwrap().seq().wrapping_add(1));
}

#[test]
fn an_on_demand_camera_is_pulled_for_the_first_client_and_left_after_the_last() {
    let _turn = beside_others();
    let camera = Camera::start();
    let source = format!("source = \"{}\"\non_demand = true\non_demand_stop = \"3s\"", camera.url());
    let relay = Relay::configured(&one_stream(&source));
    assert_eq!(camera.requests(), Vec::<String>::new());
    for session in 1..=2 {
        let mut client = Client::connect(relay.address());
        let text = client.compose("DESCRIBE", &relay.url("/front"), &[("Accept", "application/sdp")]);
        client.send_raw(text.as_bytes());
        camera.wait_playing();
        camera.keyframe(5_000);
        assert_eq!(client.answer().status, 200);
        client.play_everything(&relay.url("/front"));
        camera.keyframe(6_000);
        assert!(h264::is_complete_keyframe(&client.frame_on(0)));
        drop(client);
        wait_until("the camera is left", DEADLINE, || {
            camera.requests().iter().filter(|method| *method == "TEARDOWN").count() == session
        });
    }
}

#[test]
fn a_client_of_an_on_demand_camera_that_is_away_gets_503_after_the_wait_and_others_wait_for_nothing() {
    let _turn = beside_others();
    let place = Place::reserve();
    let keys = format!("source = \"{}\"\non_demand = true\non_demand_start = \"1s\"", place.url());
    let other = "\n[[stream]]\nname = \"other\"\nsource = \"test\"\n";
    // One shard, where the waiting client could be in the others' way.
    let config = format!("{}{other}", one_stream(&keys)).replace("workers = 2", "workers = 1");
    let relay = Relay::configured(&config).serving("/other");
    let mut client = Client::connect(relay.address());
    let text = client.compose("DESCRIBE", &relay.url("/front"), &[("Accept", "application/sdp")]);
    let asked = Instant::now();
    client.send_raw(text.as_bytes());
    let mut others = 0;
    while asked.elapsed() < Duration::from_millis(500) {
        Client::connect(relay.address()).describe(&relay.url("/other")).expect(200);
        others += 1;
    }
    assert!(others > 0);
    let answer = client.answer();
    assert_eq!(answer.status, 503);
    assert!(answer.header("Retry-After").is_some() && asked.elapsed() >= Duration::from_secs(1), "{answer:#?}");
    client.describe(&relay.url("/other")).expect(200);
}

#[test]
fn a_stopped_camera_process_is_silent_and_then_goes_on() {
    let _turn = beside_others();
    let camera = camera_relay(0).serving("/test");
    let source = format!("source = \"{}\"\nsource_timeout = \"20s\"", camera.url("/test"));
    let relay = Relay::configured(&one_stream(&source)).serving("/front");
    let mut client = relay.player("/front");
    camera.signal(Signal::SIGSTOP);
    wait_until("the relay says so", DEADLINE, || relay.printed().contains("state=silent"));
    camera.signal(Signal::SIGCONT);
    wait_until("the relay is live again", DEADLINE, || live_in_a_row(&relay));
    client.frame_on(0);
}
