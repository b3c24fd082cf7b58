//! Cameras that disconnect and return, unchanged or changed, and cameras that should not be retried.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{FRAMES, HEAD, PATIENCE, Viewer, metric, status_of, stream, wait_told, warnings};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::scripted::auth::Login;
use crate::harness::scripted::{Camera, Script};
use crate::harness::{DEADLINE, wait_until};

/// The shortest time that the relay may wait after the second refusal of a password: a minute, minus jitter.
const MINUTE_S: f64 = 45.0;

fn relay_of(camera: &Camera, script: &Script) -> Relay {
    Relay::configured(&format!("{HEAD}{}", stream("cam", camera, script, "")))
}

/// The longest wait until the next try that the log mentions, in seconds.
fn longest_wait_told(relay: &Relay) -> f64 {
    let lines = warnings(relay, "cam");
    let waits = lines.iter().filter_map(|line| {
        let (_, rest) = line.split_once("retry_in_ms=")?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    waits.fold(0.0, f64::max) / 1_000.0
}

#[test]
fn row_16_a_refused_password_is_not_shown_again_for_a_minute_whatever_players_ask() {
    let _turn = beside_others();
    let login = Login { locks: Some((5, Duration::from_secs(60))), ..Login::digest() };
    let script = Script::default().for_user(login.clone());
    let camera = Camera::start(script.clone());
    let wrong = stream("cam", &camera, &script, "").replace(login.password, "mistaken");
    let relay = Relay::configured(&format!("{HEAD}{wrong}"));
    wait_told(&relay, "cam", &["401"]);
    wait_until("the log says that the next try is a minute away", PATIENCE, || longest_wait_told(&relay) >= MINUTE_S);
    assert!(longest_wait_told(&relay) <= 75.0, "{:#?}", warnings(&relay, "cam"));
    assert_eq!(camera.wrong_passwords(), 2, "after the second refusal it waits");
    let next = status_of(&relay, "cam")["next_try_in_s"].as_f64();
    assert!(next.is_some_and(|next| (MINUTE_S - 15.0..=75.0).contains(&next)), "/status: {next:?}");
    // Players keep requesting the stream.
    let (asked, connections) = (Instant::now(), camera.record().opened.len());
    while asked.elapsed() < Duration::from_secs(4) {
        let status = Client::connect(relay.address()).describe(&relay.url("/cam")).status;
        assert_eq!(status, 503);
        // The interval between two requests.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((camera.wrong_passwords(), camera.record().opened.len()), (2, connections));
    // The configuration has been corrected.
    relay.signal(Signal::SIGHUP);
    wait_until("a reload tries at once", PATIENCE, || camera.wrong_passwords() >= 3);
    // It waits again: the camera has not locked the relay out yet.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(camera.wrong_passwords() <= 4, "{} wrong passwords", camera.wrong_passwords());
        // The interval between two checks.
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn row_16_a_reload_with_the_right_password_plays() {
    let _turn = beside_others();
    let script = Script::default().for_user(Login::digest());
    let camera = Camera::start(script.clone());
    let right = format!("{HEAD}{}", stream("cam", &camera, &script, ""));
    let file = crate::harness::scratch_file("password.toml");
    std::fs::write(&file, right.replace("hunter2secret", "mistaken")).unwrap();
    let arguments = ["run", "--config", file.to_str().unwrap()];
    let relay = Relay::start(crate::harness::relay::command(crate::harness::relay::Uring::AsAsked, &arguments));
    wait_until("the log says that the next try is a minute away", PATIENCE, || longest_wait_told(&relay) >= MINUTE_S);
    std::fs::write(&file, right).unwrap();
    relay.signal(Signal::SIGHUP);
    let viewer = Viewer::start(&relay, "cam").unwrap();
    viewer.gets(FRAMES, PATIENCE).unwrap();
    // A scratch file; cleaning the build directory removes it if it stays.
    let _ = std::fs::remove_file(&file);
}

#[test]
fn row_22_tracks_that_come_back_in_another_order_are_matched_by_what_they_are() {
    let _turn = beside_others();
    let script = Script::default();
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    let viewer = Viewer::start(&relay, "cam").unwrap();
    viewer.gets(30, PATIENCE).unwrap();
    for times in 2..=3 {
        camera.change(|script| script.tracks.reverse());
        camera.hang_up();
        camera.wait_played(times);
        viewer.gets(60, PATIENCE).unwrap();
    }
    let seen = viewer.finish();
    assert_eq!(seen.over, None);
    // Video is always video and audio always audio; what the camera sent while it was disconnected is missing.
    let faults = seen.faults(&camera, FRAMES);
    assert!(faults.is_empty() && seen.holes == 0, "{faults:?}, {} holes", seen.holes);
    let numbered = seen.frames.iter().filter(|frame| frame.number.is_some()).count();
    assert_eq!(numbered, seen.frames.len());
    assert!(seen.sounds.is_sorted() && seen.sounds.len() > 60, "{:?}", seen.sounds);
    assert_eq!(metric(&relay, "rtsprelay_clients_left_total", "stream=\"cam\",reason=\"source_changed\""), 0.0);
}

#[test]
fn row_23_a_404_of_another_relay_is_an_absence_and_asked_again_soon() {
    /// How long the other relay has no camera: longer than a source that was live is retried at the highest rate.
    const AWAY: Duration = Duration::from_secs(25);
    /// The longest wait between two tries, 5 s, plus a margin for a busy machine.
    const GAP_MAX: Duration = Duration::from_secs(7);
    let _turn = beside_others();
    let away = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&away);
    let script = Script::default().answers(move |request, reply| {
        if request.method == "DESCRIBE" && gone.load(Ordering::SeqCst) {
            reply.refuse(404, "Not Found");
        }
    });
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    let viewer = Viewer::start(&relay, "cam").unwrap();
    viewer.gets(30, PATIENCE).unwrap();
    away.store(true, Ordering::SeqCst);
    camera.hang_up();
    let before = camera.count("DESCRIBE");
    let tries = || -> Vec<Instant> {
        let record = camera.record();
        record.requests.iter().filter(|it| it.method == "DESCRIBE").skip(before).map(|it| it.at).collect()
    };
    let begun = Instant::now();
    while begun.elapsed() < AWAY {
        let tries = tries();
        let gaps: Vec<Duration> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap < GAP_MAX), "{gaps:?}");
        let last = tries.last().unwrap_or(&begun).elapsed();
        assert!(last < GAP_MAX, "not asked for {last:?} after {gaps:?}");
        let next = status_of(&relay, "cam")["next_try_in_s"].as_f64();
        assert!(next.is_none_or(|next| next <= 5.0), "/status: the next try is in {next:?} s");
        // The interval between two checks.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(longest_wait_told(&relay) <= 5.0, "{:#?}", warnings(&relay, "cam"));
    away.store(false, Ordering::SeqCst);
    viewer.gets(FRAMES, PATIENCE).unwrap();
    assert_eq!(viewer.finish().over, None);
}

#[test]
fn row_24_a_source_that_was_live_is_tried_as_often_at_the_end_of_ten_seconds_as_at_their_beginning() {
    let _turn = beside_others();
    let script = Script::default();
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    let viewer = Viewer::start(&relay, "cam").unwrap();
    viewer.gets(30, PATIENCE).unwrap();
    let before = camera.record().opened.len();
    camera.set_away(true);
    let left = Instant::now();
    let tries = || -> Vec<Duration> {
        camera.record().opened.iter().skip(before).map(|(at, _)| at.duration_since(left)).collect()
    };
    // The time that it is away.
    std::thread::sleep(Duration::from_millis(9_500));
    let tries = tries();
    let within = |from, to| tries.iter().filter(|at| (from..to).contains(&at.as_millis())).count();
    let (early, late) = (within(500, 4_500), within(5_500, 9_500));
    // At intervals of 0.25 s there would be 16; a busy machine loses some.
    assert!(early >= 8 && late * 2 >= early, "{early} tries in 4 s, then {late} in 4 s: {tries:?}");
    camera.set_away(false);
    viewer.gets(FRAMES, PATIENCE).unwrap();
    assert_eq!(viewer.finish().over, None);
}

#[test]
fn a_player_that_asks_for_a_stream_that_is_down_has_it_tried_at_once() {
    let _turn = beside_others();
    let script = Script::default();
    let camera = Camera::start(script.clone());
    camera.set_away(true);
    let relay = relay_of(&camera, &script);
    let tries = || camera.record().opened.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    // The waits have become longer.
    let mut gap = Duration::ZERO;
    wait_until("two tries that are seconds apart", DEADLINE, || {
        if let [.., one, next] = tries()[..] {
            gap = next - one;
        }
        gap >= Duration::from_secs(4)
    });
    for _ in 0..2 {
        let before = tries();
        wait_until("the last try is over a second old", DEADLINE, || {
            tries().last().unwrap().elapsed() > Duration::from_millis(1_200)
        });
        let asked = Instant::now();
        let mut client = Client::connect(relay.address());
        let text = client.compose("DESCRIBE", &relay.url("/cam"), &[("Accept", "application/sdp")]);
        client.send_raw(text.as_bytes());
        wait_until("it is tried", DEADLINE, || tries().len() > before.len());
        let took = tries().last().unwrap().duration_since(asked);
        assert!(took < gap / 4, "tried after {took:?}, with waits of {gap:?}");
    }
}

#[test]
fn a_player_that_asks_in_the_first_moments_waits_for_the_camera() {
    let _turn = beside_others();
    let script = Script::default().answers(|request, reply| {
        if request.method == "DESCRIBE" {
            reply.delay = Duration::from_millis(1_500);
        }
    });
    let camera = Camera::start(script.clone());
    let relay = relay_of(&camera, &script);
    Client::connect(relay.address()).describe(&relay.url("/cam")).expect(200);
}
