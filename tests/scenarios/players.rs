//! Real players get the right codec, size and 30 frames a second, and decode without an error.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::machine::{alone, beside_others};
use crate::harness::program::{Finished, Program, run};
use crate::harness::relay::Relay;
use crate::harness::{SYSTEM_PYTHON, servers, test_file};

/// Frames that each player receives: four seconds.
const FRAMES: usize = 120;

/// Frames a second of every source here.
const FPS: usize = 30;

/// How long a player may take for them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The known properties of a stream.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    video: &'static str,
    audio: &'static str,
    size: (u64, u64),
}

pub(crate) const DEMO: Expected = Expected { video: "h264", audio: "pcm_mulaw", size: (640, 360) };
const X264: Expected = Expected { video: "h264", audio: "aac", size: (640, 360) };
// Smaller, because its encoder takes three times as long.
const X265: Expected = Expected { video: "hevc", audio: "aac", size: (320, 240) };

/// Every player by name, a test each, for a relayed source.
macro_rules! every_player {
    ($source:ident, $relay:expr, $expected:expr) => {
        mod $source {
            use super::*;

            #[test]
            fn ffprobe_over_tcp() {
                let _turn = beside_others();
                ffprobe(&$relay.url("/"), "tcp", $expected);
            }

            #[test]
            fn ffprobe_over_udp() {
                let _turn = beside_others();
                ffprobe(&$relay.url("/"), "udp", $expected);
            }

            #[test]
            fn ffmpeg_over_tcp() {
                let _turn = beside_others();
                ffmpeg(&$relay.url("/"), "tcp");
            }

            #[test]
            fn ffmpeg_over_udp() {
                let _turn = beside_others();
                ffmpeg(&$relay.url("/"), "udp");
            }

            #[test]
            fn gstreamer_over_tcp() {
                let _turn = beside_others();
                gstreamer(&$relay.url("/"), "tcp", $expected);
            }

            #[test]
            fn gstreamer_over_udp() {
                let _turn = beside_others();
                gstreamer(&$relay.url("/"), "udp", $expected);
            }

            #[test]
            fn opencv_by_default() {
                let _turn = beside_others();
                opencv(&$relay.url("/"), $expected);
            }

            #[test]
            fn retina_over_tcp() {
                let _turn = beside_others();
                retina(&$relay.url("/"), $expected);
            }
        }
    };
}

every_player!(demo, Relay::demo(), DEMO);
every_player!(x264_with_aac, servers::relayed(&["x264"]), X264);
every_player!(x265_with_aac, servers::relayed(&["x265", "--size", "320x240"]), X265);

/// Other codecs: a player that joins at any time decodes from the first frame on.
fn joins_decode(codec: &str) {
    let relay = servers::relayed(&[codec, "--no-audio"]);
    for transport in ["tcp", "udp", "tcp"] {
        ffmpeg(&relay.url("/"), transport);
    }
}

#[test]
fn vp8_decodes_from_the_first_frame() {
    let _turn = beside_others();
    joins_decode("vp8");
}

#[test]
fn vp9_decodes_from_the_first_frame() {
    let _turn = beside_others();
    joins_decode("vp9");
}

#[test]
fn mjpeg_decodes_from_the_first_frame() {
    let _turn = beside_others();
    joins_decode("mjpeg");
}

#[test]
fn the_players_work_without_the_relay() {
    // If this fails, the other scenarios of this file prove nothing about the relay. One player after another, because the encoder's
    // server lets a second one start between two keyframes. And alone, because on a busy machine the first frames come later than the audio,
    // and players shift their timestamps when the first report tells them. Players of the relay are told before they start.
    let _turn = alone();
    let expected = Expected { size: (320, 240), ..X264 };
    let encoder = servers::Encoder::start(&["x264", "--size", "320x240"]);
    ffprobe(&encoder.url(), "tcp", expected);
    ffmpeg(&encoder.url(), "udp");
    gstreamer(&encoder.url(), "tcp", expected);
    gstreamer(&encoder.url(), "udp", expected);
    opencv(&encoder.url(), expected);
    retina(&encoder.url(), expected);
    assert_eq!(encoder.complaints(), "");
}

#[test]
fn twenty_players_at_once() {
    let _turn = alone();
    // Twenty programs that start at once on a small machine may not read for a while, which is not what is tested here.
    let relay = Relay::configured(
        "listen = [\"127.0.0.1:0\"]\n\n[queue]\nage = \"10s\"\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n",
    )
    .serving("/");
    let players: Vec<Program> = (0..20)
        .map(|number| match number {
            0..10 => Program::start(ffmpeg_command(&relay.url("/"), "tcp", FRAMES)),
            10..16 => Program::start(ffmpeg_command(&relay.url("/"), "udp", FRAMES)),
            _ => Program::start(gstreamer_command(&relay.url("/"), if number < 18 { "tcp" } else { "udp" }, FRAMES)),
        })
        .collect();
    for (number, player) in players.into_iter().enumerate() {
        let finished = player.finish(PATIENCE).expect_silent_success();
        if number < 16 {
            assert_ffmpeg_decoded(&finished, FRAMES);
        } else {
            assert_gstreamer_decoded(&finished, DEMO, FRAMES);
        }
    }
}

/// Panics unless presentation times (in seconds) are those of 30 frames a second, with none missing.
#[track_caller]
fn assert_30_fps(mut times: Vec<f64>, frames: usize) {
    times.sort_by(f64::total_cmp);
    assert!(times.len() >= frames - 5, "only {} frames", times.len());
    let fps = (times.len() - 1) as f64 / (times.last().unwrap() - times[0]);
    assert!((29.5..30.5).contains(&fps), "{fps} frames a second: {times:?}");
    let widest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!(widest < 1.9 / 30.0, "{widest} s between two frames: {times:?}");
}

fn ffprobe(url: &str, transport: &str, expected: Expected) {
    // Each by itself: an interval ends when the first of the selected tracks reaches its end, and on a busy machine
    // an encoder's video may be behind its audio.
    let seen = |track: &str, interval: &str| -> Value {
        let of = ["-v", "error", "-rtsp_transport", transport, "-select_streams", track, "-read_intervals", interval];
        let entries = "stream=codec_name,width,height:frame=pts_time,best_effort_timestamp_time";
        let show = ["-show_entries", entries, "-of", "json", url];
        let finished = run(PATIENCE, "ffprobe", &[&of[..], &show[..]].concat()).expect_silent_success();
        serde_json::from_str(&finished.stdout).expect("JSON")
    };
    let video = seen("v", "%+5");
    let stream = &video["streams"][0];
    assert_eq!(stream["codec_name"], expected.video, "{stream}");
    assert_eq!((stream["width"].as_u64(), stream["height"].as_u64()), (Some(expected.size.0), Some(expected.size.1)));
    let time = |frame: &Value| {
        frame["best_effort_timestamp_time"].as_str().or(frame["pts_time"].as_str())?.parse::<f64>().ok()
    };
    assert_30_fps(video["frames"].as_array().unwrap().iter().filter_map(time).collect(), FRAMES);
    let audio = seen("a", "%+1");
    assert_eq!(audio["streams"][0]["codec_name"], expected.audio, "{audio}");
    assert!(!audio["frames"].as_array().unwrap().is_empty(), "no audio");
}

pub(crate) fn ffmpeg_command(url: &str, transport: &str, frames: usize) -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-xerror", "-rtsp_transport", transport, "-i", url]);
    command.args(["-t", &(frames / FPS).to_string()]);
    // Decodes everything, and reports on standard output.
    command.args(["-progress", "-", "-f", "null", "-"]);
    command
}

/// Decodes video and audio to the end of four seconds.
fn ffmpeg(url: &str, transport: &str) {
    let finished = Program::start(ffmpeg_command(url, transport, FRAMES)).finish(PATIENCE).expect_silent_success();
    assert_ffmpeg_decoded(&finished, FRAMES);
}

#[track_caller]
pub(crate) fn assert_ffmpeg_decoded(finished: &Finished, frames: usize) {
    let last = |key: &str| -> f64 {
        let values = finished.stdout.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.filter_map(|value| value.trim().parse().ok()).next_back().unwrap_or_else(|| panic!("{finished:#?}"))
    };
    // Its null output adds or drops nothing that matters at the input's rate.
    assert!((last("frame") - frames as f64).abs() <= 5.0, "{finished:#?}");
}

pub(crate) fn gstreamer_command(url: &str, transport: &str, frames: usize) -> Command {
    let mut command = Command::new(SYSTEM_PYTHON);
    command.arg(test_file("players/gst_player.py")).args([url, transport, &frames.to_string()]);
    command
}

fn gstreamer(url: &str, transport: &str, expected: Expected) {
    let finished = Program::start(gstreamer_command(url, transport, FRAMES)).finish(PATIENCE).expect_silent_success();
    assert_gstreamer_decoded(&finished, expected, FRAMES);
}

#[track_caller]
pub(crate) fn assert_gstreamer_decoded(finished: &Finished, expected: Expected, frames: usize) {
    let seen: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(seen["problems"].as_array().map(Vec::len), Some(0), "{seen}");
    assert_eq!(seen["corrupt"], 0, "{seen}");
    let codecs: Vec<&str> = seen["codecs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let (video, audio) = (
        if expected.video == "hevc" { "H265" } else { "H264" },
        if expected.audio == "aac" { "MPEG4-GENERIC" } else { "PCMU" },
    );
    assert!(codecs.contains(&video) && codecs.contains(&audio), "{codecs:?}");
    assert_eq!((seen["width"].as_u64(), seen["height"].as_u64()), (Some(expected.size.0), Some(expected.size.1)));
    assert!(seen["audio_buffers"].as_u64() > Some(0), "{seen}");
    assert_30_fps(seen["times"].as_array().unwrap().iter().filter_map(Value::as_f64).collect(), frames);
}

pub(crate) fn opencv_command(url: &str, frames: usize) -> Command {
    let mut command = Command::new(test_file("../.venv/bin/python"));
    command.arg(test_file("players/opencv_player.py")).args([url, &frames.to_string()]);
    command
}

fn opencv(url: &str, expected: Expected) {
    let finished = Program::start(opencv_command(url, FRAMES)).finish(PATIENCE).expect_silent_success();
    assert_opencv_decoded(&finished, expected, FRAMES);
}

#[track_caller]
pub(crate) fn assert_opencv_decoded(finished: &Finished, expected: Expected, frames: usize) {
    let seen: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!((&seen["opened"], seen["problems"].as_array().map(Vec::len)), (&Value::Bool(true), Some(0)), "{seen}");
    assert_eq!((seen["width"].as_u64(), seen["height"].as_u64()), (Some(expected.size.0), Some(expected.size.1)));
    let codec = seen["codecs"][0].as_str().unwrap().to_lowercase();
    assert!(codec == expected.video || (codec == "hev1" && expected.video == "hevc"), "{codec}");
    assert_30_fps(seen["times"].as_array().unwrap().iter().filter_map(Value::as_f64).collect(), frames);
}

/// retina in its strict defaults, up to whole frames.
fn retina(url: &str, expected: Expected) {
    use futures::StreamExt as _;
    use retina::client::{PlayOptions, Session, SessionOptions, SetupOptions};
    use retina::codec::{CodecItem, ParametersRef};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = url::Url::parse(url).unwrap();
    let play = async {
        let mut session = Session::describe(url, SessionOptions::default()).await.expect("DESCRIBE");
        let names: Vec<String> = session.streams().iter().map(|s| s.encoding_name().to_string()).collect();
        for index in 0..names.len() {
            session.setup(index, SetupOptions::default()).await.expect("SETUP");
        }
        let video = session.streams().iter().position(|s| s.media() == "video").expect("a video track");
        assert_eq!(names[video], if expected.video == "hevc" { "h265" } else { "h264" });
        let mut session = session.play(PlayOptions::default()).await.expect("PLAY").demuxed().expect("demuxed");
        let (mut times, mut audio_frames) = (Vec::new(), 0);
        while times.len() < FRAMES {
            match session.next().await.expect("more").expect("no error") {
                CodecItem::VideoFrame(frame) => {
                    assert_eq!(frame.loss(), 0);
                    assert!(!times.is_empty() || frame.is_random_access_point(), "the first frame is not a keyframe");
                    times.push(frame.timestamp().elapsed_secs());
                }
                CodecItem::AudioFrame(frame) => {
                    assert_eq!(frame.loss(), 0);
                    audio_frames += 1;
                }
                _ => {}
            }
        }
        assert!(audio_frames > 0);
        let Some(ParametersRef::Video(parameters)) = session.streams()[video].parameters() else {
            panic!("parameters")
        };
        let (width, height) = parameters.pixel_dimensions();
        assert_eq!((u64::from(width), u64::from(height)), expected.size);
        assert_30_fps(times, FRAMES);
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, play).await }).expect("in time");
}
