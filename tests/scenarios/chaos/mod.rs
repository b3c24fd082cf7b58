//! Random failures in an order that a seed reproduces; afterwards the relay must be in the same state as before.
//!
//! Cameras die, hang, flap, send slowly and send garbage; clients misbehave; the relay itself is stopped and resumed. Meanwhile some
//! well-behaved players must not be closed or receive a torn frame. When all clients have left, connections, sessions, sends
//! in flight and descriptors must be back at their first values.
//!
//! The usual test run takes seconds. `tests/soak` runs it for minutes and, if it runs long enough, checks memory too.

mod clients;
mod joins;
mod partition;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;

use self::clients::{ALL, Target};
use crate::harness::camera::{Camera, Place};
use crate::harness::http::http_address;
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::vitals::{Memory, Vitals};
use crate::harness::{DEADLINE, h264};

/// Time between two frames of a camera.
const FRAME: Duration = Duration::from_millis(40);

/// Frames from one keyframe to the next.
const GOP: u64 = 25;

/// Longer than all timeouts of [`CONFIG`] together.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// In a shorter run the memory proves nothing: logs and allocator vary by more than a leak would add.
const JUDGED_FROM: Duration = Duration::from_secs(15 * 60);

/// By then everything has happened often; the memory at the end is compared with that at this time.
const SETTLED: Duration = Duration::from_secs(3 * 60);

/// By how many percent the memory may have grown since then.
const GROWTH_MAX: f64 = 5.0;

/// The memory at a time is the mean over this interval before and after it: single values vary by 400 KiB.
const MOMENT: Duration = Duration::from_secs(15);

const CONFIG: &str = "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n\n\
    [queue]\nstall_timeout = \"2s\"\n\n[limits]\nhandshake_timeout = \"2s\"\nsession_timeout = \"3s\"\n\n\
    [report]\nevery = \"1s\"\nformat = \"logfmt\"\n";

/// The numbers of everything.
struct Plan {
    seed: u64,
    lasts: Duration,
    /// Well-behaved players.
    witnesses: usize,
    /// Threads that each cause one failure after another.
    clumsy: usize,
    /// The time between two failures of the steady camera.
    camera_every: Duration,
    /// The time between two stops of the relay.
    stop_every: Duration,
}

impl Plan {
    /// From the environment: `RTSPRELAY_SOAK_MINUTES` and `RTSPRELAY_CHAOS_SEED`, which `tests/soak` sets.
    fn new() -> Plan {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<f64>().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
        };
        let seed = number("RTSPRELAY_CHAOS_SEED").map_or_else(|| fastrand::u64(..1 << 32), |seed| seed as u64);
        let seconds = Duration::from_secs;
        match number("RTSPRELAY_SOAK_MINUTES") {
            None => Plan {
                seed,
                lasts: seconds(8),
                witnesses: 3,
                clumsy: 12,
                camera_every: seconds(2),
                stop_every: seconds(4),
            },
            Some(minutes) => Plan {
                seed,
                lasts: Duration::from_secs_f64(minutes * 60.0),
                witnesses: 40,
                clumsy: 20,
                camera_every: seconds(20),
                stop_every: seconds(45),
            },
        }
    }

    fn is_soak(&self) -> bool {
        self.lasts >= Duration::from_secs(60)
    }
}

/// A camera that may be away.
struct Unsteady {
    camera: Mutex<Option<Camera>>,
    place: Place,
}

impl Unsteady {
    fn start() -> Unsteady {
        let place = Place::reserve();
        Unsteady { camera: Mutex::new(Some(Camera::start_at(place.address()))), place }
    }

    /// Nobody sends frames to it while this is held.
    fn hold(&self) -> MutexGuard<'_, Option<Camera>> {
        self.camera.lock().unwrap()
    }

    fn wait_playing(&self) {
        self.hold().as_ref().expect("not away yet").wait_playing();
    }

    fn with(&self, work: impl FnOnce(&Camera)) {
        if let Some(camera) = &*self.hold() {
            work(camera);
        }
    }

    /// Switched off for a while.
    fn die(&self, lasts: Duration) {
        let mut place = self.hold();
        *place = None;
        // The time away is the failure itself.
        std::thread::sleep(lasts);
        *place = Some(Camera::start_at(self.place.address()));
    }
}

/// A random failure of a camera; returns its name.
fn strike_camera(unsteady: &Unsteady, rng: &mut Rng, patient: bool) -> &'static str {
    let millis = |rng: &mut Rng, from, to| Duration::from_millis(rng.u64(from..to));
    match rng.u8(..if patient { 8 } else { 7 }) {
        0 | 1 => {
            unsteady.die(millis(rng, 300, 1_500));
            "camera dies"
        }
        2 => {
            let lasts = millis(rng, 300, 1_500);
            // A camera that hangs sends nothing for this long.
            unsteady.with(|_| std::thread::sleep(lasts));
            "camera hangs"
        }
        3 => {
            for _ in 0..rng.usize(2..5) {
                unsteady.with(Camera::hang_up);
                // A flapping camera is back for a moment.
                std::thread::sleep(millis(rng, 10, 300));
            }
            "camera flaps"
        }
        4 => {
            // So that it is no valid frame by chance.
            let bytes: Vec<u8> = (0..rng.usize(1..2_000)).map(|_| rng.u8(b'%'..)).collect();
            unsteady.with(|camera| camera.send_rubbish(&bytes));
            "camera sends rubbish"
        }
        5 => {
            unsteady.with(Camera::reset_in_mid_frame);
            "camera resets in mid-frame"
        }
        6 => {
            if rng.bool() {
                unsteady.with(Camera::half_close);
                "camera half-closes"
            } else {
                unsteady.with(|camera| camera.drip(1_000, Duration::from_micros(500)));
                "camera drips"
            }
        }
        _ => {
            unsteady.with(|camera| {
                camera.set_deaf(true);
                camera.hang_up();
            });
            // It hears nothing for this long.
            std::thread::sleep(millis(rng, 500, 3_000));
            unsteady.with(|camera| camera.set_deaf(false));
            "camera is deaf"
        }
    }
}

/// One more frame for the steady camera, and something similar for the rough one.
fn feed(steady: &Unsteady, rough: &Unsteady, number: u64, rng: &mut Rng) {
    // Held: it hangs.
    if let Ok(place) = steady.camera.try_lock()
        && let Some(camera) = &*place
    {
        if number.is_multiple_of(GOP) {
            camera.keyframe(15_000)
        } else {
            camera.delta_frame(4_000)
        };
    }
    let Ok(place) = rough.camera.try_lock() else { return };
    let Some(camera) = &*place else { return };
    match rng.u8(..) {
        // Its log reaches from one keyframe to the next.
        _ if number.is_multiple_of(2 * GOP) => drop(camera.keyframe(200_000)),
        0..16 => {
            // A well-formed interleaved frame with random content, on a random channel.
            let length = rng.u16(..2_000);
            let mut frame = vec![b'$', rng.u8(..5)];
            frame.extend(length.to_be_bytes());
            frame.extend((0..length).map(|_| rng.u8(..)));
            camera.send_rubbish(&frame);
        }
        16..32 => drop(camera.keyframe(rng.usize(1..200_000))),
        _ => drop(camera.delta_frame(rng.usize(1..20_000))),
    }
}

/// A well-behaved player; panics if it is disconnected or sees something invalid. Returns the number of its frames and skips.
fn witness(relay: SocketAddr, path: &str, stop: &AtomicBool, frames: &AtomicU64) -> (u64, u64) {
    let url = format!("rtsp://{relay}{path}");
    let mut client = Client::connect(relay);
    client.play_everything(&url);
    let (mut seen, mut skips, mut next) = (0, 0, None);
    while !stop.load(Ordering::Relaxed) {
        let frame = client.frame_on(0);
        for pair in frame.windows(2) {
            assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1), "a hole within a frame");
        }
        if next.is_none_or(|next| next != frame[0].seq()) {
            assert!(h264::is_complete_keyframe(&frame), "begins or goes on elsewhere than at a keyframe");
            skips += u64::from(next.is_some());
        }
        next = Some(frame.last().unwrap().seq().wrapping_add(1));
        seen += 1;
        frames.fetch_add(1, Ordering::Relaxed);
    }
    client.request("TEARDOWN", &url, &[]).expect(200);
    (seen, skips)
}

/// Calls a function when dropped.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The relay's memory over time.
#[derive(Default)]
pub(crate) struct Course(pub Vec<(Duration, Memory)>);

impl Course {
    /// The means around a time, of resident and private memory, in KiB.
    fn around(&self, moment: Duration) -> (f64, f64) {
        let near = |at: Duration| at.abs_diff(moment) <= MOMENT;
        let values: Vec<Memory> = self.0.iter().filter(|(at, _)| near(*at)).map(|(_, memory)| *memory).collect();
        assert!(!values.is_empty(), "no value around {moment:?}");
        let mean = |of: fn(&Memory) -> u64| values.iter().map(of).sum::<u64>() as f64 / 1_024.0 / values.len() as f64;
        (mean(|memory| memory.resident), mean(|memory| memory.anonymous))
    }
}

#[test]
fn disasters_leave_nothing_behind() {
    let _turn = beside_others();
    let plan = Plan::new();
    println!("RTSPRELAY_CHAOS_SEED={} repeats this order of disasters", plan.seed);
    let (steady, rough) = (Unsteady::start(), Unsteady::start());
    let stream = |name: &str, source: &str| {
        format!("\n[[stream]]\nname = \"{name}\"\nsource = \"{source}\"\nsource_timeout = \"1s\"\n")
    };
    let streams =
        stream("steady", &steady.place.url()) + &stream("rough", &rough.place.url()) + &stream("live", "publish");
    let relay = Relay::configured(&format!("{CONFIG}{streams}"));
    steady.wait_playing();
    rough.wait_playing();
    let mut rng = Rng::with_seed(plan.seed);
    feed(&steady, &rough, 0, &mut rng);
    let relay = relay.serving("/steady");
    let target = Target { rtsp: relay.address(), http: http_address(&relay) };

    let (stop, fed, frames) = (AtomicBool::new(false), AtomicBool::new(true), AtomicU64::new(0));
    let struck: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let count = |name| *struck.lock().unwrap().entry(name).or_default() += 1;
    let (before, course) = std::thread::scope(|scope| {
        // A failure ends the other threads too, or nobody would hear of it.
        let _end = AtEnd(|| {
            stop.store(true, Ordering::Relaxed);
            fed.store(false, Ordering::Relaxed);
        });
        let feeder = scope.spawn(|| {
            let mut rng = Rng::with_seed(plan.seed ^ 1);
            for number in 1.. {
                if !fed.load(Ordering::Relaxed) {
                    return;
                }
                // The pace of the cameras.
                std::thread::sleep(FRAME);
                feed(&steady, &rough, number, &mut rng);
            }
        });
        // What is allocated once, for the first client, is not a leak.
        let (at_once, unused) = (AtomicBool::new(true), AtomicU64::new(0));
        witness(target.rtsp, "/steady", &at_once, &unused);
        let mut before = Vitals::of(&relay, target.http);
        crate::harness::wait_until("nobody is there", DEADLINE, || {
            before = Vitals::of(&relay, target.http);
            (before.connections, before.sessions, before.clients) == (0, 0, 0)
        });

        let witnesses: Vec<_> =
            (0..plan.witnesses).map(|_| scope.spawn(|| witness(target.rtsp, "/steady", &stop, &frames))).collect();
        let clumsy: Vec<_> = (0..plan.clumsy as u64)
            .map(|number| {
                let (stop, count) = (&stop, &count);
                let mut rng = Rng::with_seed(plan.seed ^ ((number + 2) << 8));
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let (name, behave) = ALL[rng.usize(..ALL.len())];
                        // It got as far as the relay let it.
                        let _ = behave(target, &mut rng);
                        count(name);
                        // The interval between clients is part of the test.
                        std::thread::sleep(Duration::from_millis(rng.u64(..500)));
                    }
                })
            })
            .collect();
        let course = direct(&plan, &relay, (&steady, &rough), &mut rng, &count);
        // In whatever state it was left, the picture comes back.
        let seen = frames.load(Ordering::Relaxed);
        let wanted = seen + 2 * GOP * plan.witnesses as u64;
        crate::harness::wait_until("the picture is back", DEADLINE, || frames.load(Ordering::Relaxed) >= wanted);
        stop.store(true, Ordering::Relaxed);
        for clumsy in clumsy {
            clumsy.join().expect("no disaster panics");
        }
        for witness in witnesses {
            let (frames, skips) = witness.join().unwrap();
            println!("a witness saw {frames} frames and {skips} skips");
        }
        // Frames continue, and everything that is done for each of them.
        before.come_back(&relay, target.http, QUIET_MAX);
        fed.store(false, Ordering::Relaxed);
        feeder.join().unwrap();
        (before, course)
    });
    println!("{:#?}", struck.lock().unwrap());
    println!("before {before:?}\nafter  {:?}", Vitals::of(&relay, target.http));
    println!("memory afterwards: {} KiB", Memory::of(&relay).resident >> 10);
    if plan.is_soak() {
        judge(&course, plan.lasts);
    }
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
}

/// Causes failures of the cameras and the relay until the time is over. Returns the memory over that time.
fn direct(
    plan: &Plan,
    relay: &Relay,
    (steady, rough): (&Unsteady, &Unsteady),
    rng: &mut Rng,
    count: &impl Fn(&'static str),
) -> Course {
    let begun = Instant::now();
    let mut course = Course::default();
    let (mut camera_at, mut stop_at, mut rough_at) = (plan.camera_every, plan.stop_every / 2, Duration::from_secs(1));
    let mut told = Duration::ZERO;
    while begun.elapsed() < plan.lasts {
        let now = begun.elapsed();
        if now >= camera_at {
            camera_at += plan.camera_every;
            if plan.is_soak() {
                // One thing stays the same throughout, so that the memory at two times can be compared.
                steady.die(Duration::from_millis(rng.u64(500..1_500)));
                count("camera dies");
            } else {
                count(strike_camera(steady, rng, false));
            }
        }
        if now >= rough_at {
            rough_at = now + Duration::from_millis(rng.u64(500..3_000));
            count(strike_camera(rough, rng, true));
        }
        if now >= stop_at {
            stop_at += plan.stop_every;
            relay.signal(Signal::SIGSTOP);
            // Sometimes longer than `queue.stall_timeout`: a client that has read everything is not to blame.
            std::thread::sleep(Duration::from_millis(rng.u64(100..2_500)));
            relay.signal(Signal::SIGCONT);
            count("relay stops and goes on");
        }
        let memory = Memory::of(relay);
        course.0.push((begun.elapsed(), memory));
        if plan.is_soak() && now >= told {
            told += Duration::from_secs(60);
            let [resident, own] = [memory.resident, memory.anonymous].map(|bytes| bytes >> 10);
            println!("{:>5} min  {resident:>8} KiB resident, {own:>8} KiB its own", now.as_secs() / 60);
        }
        // The interval at which the memory is read.
        std::thread::sleep(Duration::from_millis(if plan.is_soak() { 500 } else { 50 }));
    }
    course
}

/// Checks that the memory at the end is within [`GROWTH_MAX`] of that at [`SETTLED`], if the run was long enough to tell.
pub(crate) fn judge(course: &Course, lasts: Duration) {
    if lasts < JUDGED_FROM {
        let [lasts, least] = [lasts, JUDGED_FROM].map(|time| time.as_secs_f64() / 60.0);
        println!("MEMORY NOT JUDGED: {lasts:.1} minutes are too short to tell a leak; {least:.0} are needed");
        return;
    }
    let (early, late) = (course.around(SETTLED), course.around(lasts));
    let grown = |early: f64, late: f64| (late / early - 1.0) * 100.0;
    let (resident, own) = (grown(early.0, late.0), grown(early.1, late.1));
    println!("resident after 3 minutes {:.0} KiB, at the end {:.0} KiB: {resident:+.1} %", early.0, late.0);
    println!("its own after 3 minutes {:.0} KiB, at the end {:.0} KiB: {own:+.1} %", early.1, late.1);
    assert!(resident <= GROWTH_MAX, "the memory has grown by {resident:.1} %, more than {GROWTH_MAX:.0} %");
}
