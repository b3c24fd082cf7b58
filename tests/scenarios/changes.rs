//! Cameras that return with other media: players continue after a change of size, and are disconnected after a change of codec.

use std::process::Command;

use serde_json::Value;

use crate::harness::camera::{Camera, Place};
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Incoming};
use crate::harness::servers::Encoder;
use crate::harness::{DEADLINE, SYSTEM_PYTHON, test_file, wait_until};

/// Frames that each player receives.
const FRAMES: &str = "240";

fn player(program: &str, script: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(program);
    command.arg(test_file(script)).args(arguments);
    Program::start(command)
}

#[test]
fn players_that_are_connected_show_the_new_size() {
    let _turn = beside_others();
    // No other program can take the port in between.
    let place = Place::reserve();
    let port = place.address().port().to_string();
    let small = Encoder::start(&["x264", "--no-audio", "--size", "320x240", "--port", &port]);
    let relay = Relay::of(&small.url());
    let url = relay.url("/");
    let python = test_file("../.venv/bin/python");
    let mut ffprobe = Command::new("ffprobe");
    let interval = format!("%+#{FRAMES}");
    ffprobe.args(["-v", "error", "-rtsp_transport", "tcp", "-read_intervals", &interval]);
    ffprobe.args(["-show_entries", "frame=width", "-of", "csv=p=0", &url]);
    // One after the other, the slowest first: none has received all its frames when the last starts.
    let play = |count| {
        wait_until(&format!("{count} of them play"), DEADLINE, || {
            relay.printed().matches("started playing stream=").count() >= count
        });
    };
    let opencv = player(python.to_str().unwrap(), "players/opencv_player.py", &[&url, FRAMES]);
    play(1);
    let gstreamer = player(SYSTEM_PYTHON, "players/gst_player.py", &[&url, "tcp", FRAMES]);
    play(2);
    let ffprobe = Program::start(ffprobe);
    play(3);
    drop(small);
    let large = Encoder::start(&["x264", "--no-audio", "--size", "640x480", "--port", &port]);

    let probed = ffprobe.finish(DEADLINE);
    let widths: Vec<&str> = probed.stdout.lines().map(|line| line.trim_matches(',')).collect();
    assert!(widths.contains(&"320") && widths.contains(&"640"), "{probed:#?}");
    let seen = |player: Program| -> Value {
        let played = player.finish(DEADLINE);
        let seen: Value = serde_json::from_str(&played.stdout).unwrap_or_else(|error| panic!("{error}: {played:#?}"));
        assert_eq!(seen["problems"].as_array().map(Vec::len), Some(0), "{seen}");
        seen
    };
    let gstreamer = seen(gstreamer);
    assert_eq!((&gstreamer["width"], &gstreamer["height"]), (&640.into(), &480.into()), "{gstreamer}");
    let times: Vec<f64> = gstreamer["times"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    // OpenCV scales every picture to the first one's size; it continues, and no more can be expected of it.
    assert_eq!(
        seen(opencv)["times"].as_array().map(Vec::len).map(|frames| frames.to_string()).as_deref(),
        Some(FRAMES)
    );
    // Nobody was disconnected and came back.
    assert_eq!(relay.printed().matches("started playing stream=").count(), 3, "{}", relay.printed());
    drop(large);
}

#[test]
fn another_codec_ends_sessions_with_a_bye_and_a_reason() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::of_camera(&camera, 5_000);
    let mut client = relay.player("/");
    camera.becomes("H265");
    camera.hang_up();
    // A BYE (RFC 3550 section 6.6) on each track's RTCP channel, and then the end of the connection.
    let mut byes = Vec::new();
    let end = std::time::Instant::now() + DEADLINE;
    while let Some(incoming) = client.read(end).expect("the end of the connection") {
        let Incoming::Packet(packet) = incoming else { panic!("{incoming:?}") };
        if packet.channel % 2 == 1 && has_bye(&packet.bytes) {
            byes.push(packet.channel);
        } else {
            assert!(!byes.contains(&(packet.channel + 1)), "media after the BYE");
        }
    }
    assert_eq!(byes, [1, 3]);
    let told = "the source's tracks or codecs changed";
    // The log takes another path than the media, and may arrive later.
    wait_until(told, DEADLINE, || relay.printed().contains(told));
    // A shard without clients of the stream has nothing to log.
    assert!(relay.printed().lines().filter(|line| line.contains(told)).all(|line| line.contains("clients=1")));
    // New clients get the camera's new media.
    wait_until("the new description", DEADLINE, || {
        Client::connect(relay.address()).describe(&relay.url("/")).body.contains("H265")
    });
}

/// Whether a compound RTCP packet has a BYE in it.
fn has_bye(mut compound: &[u8]) -> bool {
    while let [_, kind, high, low, ..] = compound {
        if *kind == 203 {
            return true;
        }
        let length = (usize::from(u16::from_be_bytes([*high, *low])) + 1) * 4;
        compound = compound.get(length..).unwrap_or_default();
    }
    false
}
