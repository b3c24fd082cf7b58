//! Checks that these cameras are realistic: ffmpeg plays them. Missing here are those that are too much for ffmpeg (rows 15 and 20),
//! those that it plays with long gaps (17 and 18), and those about reconnecting (16, 22 to 24).

use super::{Variant, answers, asks, keepalive, packets, passwords, redirects};
use crate::harness::DEADLINE;
use crate::harness::machine::beside_others;
use crate::harness::program::run;
use crate::harness::scripted::{Camera, Script};

/// Frames that ffmpeg must decode.
const FRAMES: &str = "60";

/// How long it may take, in seconds.
const PATIENCE_S: &str = "40";

/// How many ffmpegs run at once.
const AT_A_TIME: usize = 3;

#[test]
fn ffmpeg_plays_these_cameras() {
    let _turn = beside_others();
    let rows: [Vec<Variant>; 16] = [
        answers::row_1(),
        packets::row_2(),
        answers::row_3(),
        answers::row_4(),
        answers::row_5(),
        answers::row_6(),
        asks::row_7(),
        packets::row_8(),
        keepalive::row_9(),
        redirects::row_10_same_host(),
        packets::row_11(),
        keepalive::row_12(),
        keepalive::row_13(),
        packets::row_19(),
        answers::row_21(),
        passwords::digest_and_basic(),
    ];
    let cameras: Vec<Variant> = rows.into_iter().flatten().collect();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        // A few at a time: decoding costs more than anything tested here.
        let judges = (0..AT_A_TIME).map(|lane| {
            let of_lane = cameras.iter().skip(lane).step_by(AT_A_TIME);
            scope.spawn(move || of_lane.filter_map(|(name, script)| judge(name, script)).collect::<Vec<_>>())
        });
        let judges: Vec<_> = judges.collect();
        judges.into_iter().flat_map(|judge| judge.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with how ffmpeg plays a camera, if anything.
fn judge(name: &str, script: &Script) -> Option<String> {
    let camera = Camera::start(script.clone());
    let from = ["-k", "1", PATIENCE_S, "ffmpeg", "-v", "error", "-rtsp_transport", "tcp", "-i", &camera.url()];
    let what = ["-map", "0:v", "-frames:v", FRAMES, "-progress", "-", "-f", "null", "-"];
    let finished = run(2 * DEADLINE, "timeout", &[&from[..], &what].concat());
    let frames = finished.stdout.lines().rfind(|line| line.starts_with("frame=")).unwrap_or("frame=0");
    let played = finished.status.success() && frames.trim_start_matches("frame=").trim() == FRAMES;
    (!played).then(|| format!("{name}: {frames}, {} {}", finished.status, finished.stderr))
}
