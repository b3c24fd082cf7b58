//! A camera that plays, and also sends 5-byte frames on a channel that was never set up, as fast as they are read.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{HEAD, PATIENCE, Viewer, stream, warnings};
use crate::harness::http::{get, http_address};
use crate::harness::machine::alone;
use crate::harness::relay::Relay;
use crate::harness::scripted::{Camera, Script};
use crate::harness::wait_until;

/// Number of frames over which the latency is measured.
const FRAMES: usize = 150;

/// By what factor anything may slow down under attack. Without the limit it is hundreds.
const TIMES_MAX: f64 = 20.0;

/// Times below this count as zero; a busy machine may cause them.
const NOTHING: Duration = Duration::from_millis(2);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How long frames take from the honest camera to a player, and `/healthz` to respond; medians.
fn measure(relay: &Relay, honest: &Camera, viewer: &Viewer) -> [Duration; 2] {
    let before = viewer.frames();
    let http = http_address(relay);
    let health = (0..10)
        .map(|_| {
            let asked = Instant::now();
            assert_eq!(get(http, "/healthz").0, 200);
            let took = asked.elapsed();
            // Over some time.
            std::thread::sleep(Duration::from_millis(100));
            took
        })
        .collect();
    viewer.gets((before + FRAMES).saturating_sub(viewer.frames()), PATIENCE).unwrap();
    let record = honest.record();
    let seen = viewer.seen.lock().unwrap();
    let latencies = seen.frames.iter().zip(&seen.times).skip(before).filter_map(|(frame, at)| {
        let sent = record.frames.iter().find(|sent| Some(sent.number) == frame.number)?;
        Some(at.saturating_duration_since(sent.at))
    });
    [median(latencies.collect()), median(health)]
}

/// How long a relay takes to stop.
fn stop(relay: Relay) -> Duration {
    let asked = Instant::now();
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(PATIENCE);
    assert!(status.success(), "{status}: {printed}");
    asked.elapsed()
}

/// The same flood into a socket that is read, so the machine is equally busy in both cases.
fn flood_nowhere(bytes: &Arc<Vec<u8>>) -> impl Drop {
    struct End(std::net::TcpStream);
    impl Drop for End {
        fn drop(&mut self) {
            // It may already be closed.
            let _ = self.0.shutdown(std::net::Shutdown::Both);
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut from = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut to, _) = listener.accept().unwrap();
    let end = End(from.try_clone().unwrap());
    let bytes = Arc::clone(bytes);
    std::thread::spawn(move || while std::io::Write::write_all(&mut from, &bytes).is_ok() {});
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while to.read(&mut buffer).is_ok_and(|len| len > 0) {}
    });
    end
}

#[test]
fn a_flood_of_tiny_frames_holds_up_nobody_and_no_stop() {
    let _turn = alone();
    let bytes = Arc::new([b'$', 77, 0, 1, 0xFF].repeat(400_000));
    let (honest_script, hostile_script) =
        (Script::default(), Script { flood: Some(Arc::clone(&bytes)), ..Script::default() });
    let (honest, hostile) = (Camera::start(honest_script.clone()), Camera::start(hostile_script.clone()));
    let good = stream("good", &honest, &honest_script, "");
    let attacked_config = format!("{HEAD}{good}{}", stream("bad", &hostile, &hostile_script, ""));

    let relay = Relay::configured(&format!("{HEAD}{good}"));
    let viewer = Viewer::start(&relay, "good").unwrap();
    let nowhere = flood_nowhere(&bytes);
    let calm = measure(&relay, &honest, &viewer);
    drop(viewer);
    let calm = [calm[0], calm[1], stop(relay)];
    drop(nowhere);

    let relay = Relay::configured(&attacked_config);
    let viewer = Viewer::start(&relay, "good").unwrap();
    hostile.wait_played(1);
    let attacked = measure(&relay, &honest, &viewer);
    compare("latency", calm[0], attacked[0]);
    compare("/healthz", calm[1], attacked[1]);
    wait_until("the camera is ended, and the log says why", PATIENCE, || !warnings(&relay, "bad").is_empty());
    let faults = viewer.finish().faults(&honest, 0);
    assert!(faults.is_empty(), "{faults:?}");
    // Whenever it plays again.
    let played = hostile.count("PLAY");
    wait_until("it plays again", 2 * PATIENCE, || hostile.count("PLAY") > played);
    compare("stop", calm[2], stop(relay));
}

/// Fails if something took too long under attack.
#[track_caller]
fn compare(what: &str, calm: Duration, attacked: Duration) {
    println!("{what}: {calm:?} without the attack, {attacked:?} under it");
    let times = attacked.as_secs_f64() / calm.max(NOTHING).as_secs_f64();
    assert!(times <= TIMES_MAX, "{what}: {attacked:?} is {times:.0} times {calm:?}");
}
