//! A camera that repeatedly dies and returns with other parameter sets, another clock and swapped tracks: players lose only
//! what it did not send, and recordings continue.
//!
//! The usual test run takes seconds. `tests/soak` runs it for minutes and, if it runs long enough, checks memory too.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{HEAD, PATIENCE, Viewer, stream};
use crate::chaos::{Course, judge};
use crate::harness::machine::beside_others;
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::scripted::media::Clip;
use crate::harness::scripted::{Camera, Script};
use crate::harness::vitals::Memory;
use crate::harness::{DEADLINE, scratch_file};

/// By how much its clock is off, in either direction.
const CLOCK_OFF_S: i64 = 30;

/// Well-behaved players.
const VIEWERS: usize = 3;

/// The duration, and the time between two deaths of the camera.
fn plan() -> (Duration, Duration) {
    match std::env::var("RTSPRELAY_SOAK_MINUTES") {
        Err(_) => (Duration::from_secs(12), Duration::from_secs(3)),
        Ok(minutes) => {
            let minutes: f64 = minutes.parse().expect("RTSPRELAY_SOAK_MINUTES is a number");
            (Duration::from_secs_f64(minutes * 60.0), Duration::from_secs(20))
        }
    }
}

/// A recording by ffmpeg, without decoding.
struct Recorder {
    program: Program,
    file: std::path::PathBuf,
}

impl Recorder {
    fn start(relay: &Relay) -> Recorder {
        let file = scratch_file("reboots.mkv");
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-rtsp_transport", "tcp", "-i", &relay.url("/cam"), "-c", "copy"]);
        command.args(["-y", file.to_str().unwrap()]).stdin(Stdio::piped());
        Recorder { program: Program::start_fed(command), file }
    }

    /// Ends the recording. Returns the times of its packets, by kind.
    fn finish(mut self) -> [Vec<f64>; 2] {
        self.program.stdin().unwrap().write_all(b"q").unwrap();
        let finished = self.program.finish(DEADLINE);
        assert!(finished.status.success() && !finished.stderr.contains("monoton"), "{finished:#?}");
        let name = self.file.to_str().unwrap();
        let show = ["-v", "error", "-show_entries", "packet=codec_type,dts_time,pts_time", "-of", "json", name];
        let packets: Value = serde_json::from_str(&run(2 * DEADLINE, "ffprobe", &show).stdout).unwrap();
        let times = ["video", "audio"].map(|kind| {
            let of_kind = packets["packets"].as_array().unwrap().iter().filter(|packet| packet["codec_type"] == kind);
            let time = |packet: &Value| packet["dts_time"].as_str().or(packet["pts_time"].as_str())?.parse().ok();
            of_kind.filter_map(time).collect()
        });
        // A scratch file; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_file(&self.file);
        times
    }
}

/// What the camera is like after its `number`th death.
fn reborn(script: &mut Script, number: usize, clips: &[Arc<Clip>]) {
    script.clip = Arc::clone(&clips[number % clips.len()]);
    script.tracks.reverse();
    script.clock_ahead_s = [0, CLOCK_OFF_S, -CLOCK_OFF_S][number % 3];
}

#[test]
fn a_camera_that_dies_and_comes_back_otherwise_costs_no_client_no_number_and_no_recording() {
    let _turn = beside_others();
    let (lasts, every) = plan();
    let clips = [Arc::new(Clip::pattern()), Arc::new(Clip::made(320, 240)), Arc::new(Clip::made(480, 272))];
    let script = Script { fps: 25, ..Script::default() };
    let mut camera = Camera::start(script.clone());
    let relay = Relay::configured(&format!("{HEAD}{}", stream("cam", &camera, &script, "")));
    let viewers: Vec<Viewer> = (0..VIEWERS).map(|_| Viewer::start(&relay, "cam").unwrap()).collect();
    let recorder = Recorder::start(&relay);
    viewers[0].gets(50, PATIENCE).unwrap();

    let (begun, mut course) = (Instant::now(), Course::default());
    let (mut dies_at, mut deaths) = (every, 0);
    while begun.elapsed() < lasts {
        course.0.push((begun.elapsed(), Memory::of(&relay)));
        if begun.elapsed() >= dies_at {
            deaths += 1;
            dies_at += every;
            camera.off();
            // A reboot takes some time.
            std::thread::sleep(Duration::from_millis(fastrand::u64(500..1_500)));
            camera.change(|script| reborn(script, deaths, &clips));
            camera.on();
        }
        // The interval at which the memory is read.
        std::thread::sleep(Duration::from_millis(200));
    }
    viewers[0].gets(50, PATIENCE).unwrap();
    assert!(deaths >= 3, "{deaths} deaths");

    let sessions = camera.count("PLAY");
    for viewer in viewers {
        let seen = viewer.finish();
        // The end of each session may not have reached a player when the camera dies.
        let faults = seen.faults(&camera, 3 * sessions);
        assert!(faults.is_empty() && seen.holes == 0, "after {deaths} deaths: {faults:?}, {} holes", seen.holes);
        assert!(seen.sounds.is_sorted() && seen.sounds.len() * 4 > seen.frames.len(), "{} sounds", seen.sounds.len());
    }
    for times in recorder.finish() {
        assert!(times.len() > 100 && times.is_sorted_by(|one, next| one < next), "a recording goes back: {times:?}");
        let span = times.last().unwrap() - times[0];
        // A clock that is off by 30 s does not shift a recording.
        assert!((span - lasts.as_secs_f64()).abs() < CLOCK_OFF_S as f64 / 2.0, "{span} s of {lasts:?}");
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        assert!(longest < CLOCK_OFF_S as f64 / 2.0, "a gap of {longest} s");
    }
    if std::env::var_os("RTSPRELAY_SOAK_MINUTES").is_some() {
        judge(&course, lasts);
    }
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert!(status.success() && !printed.contains("panicked"), "{status}");
}
