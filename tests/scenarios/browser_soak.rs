//! Browsers over a long time, many tiles, and slow browsers beside others. In the suite for seconds; `tests/soak --browser` runs them for
//! minutes, and also checks what only an otherwise idle machine can show.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mp4_atom::Any;

use crate::browser::{atoms, relay_of};
use crate::harness::browser::Browser;
use crate::harness::chromium::{self, Chromium};
use crate::harness::http::http_address;
use crate::harness::machine::{alone, cannot_run};
use crate::harness::websocket::{Said, Watcher, watch};
use crate::harness::{DEADLINE, wait_until};

const NO_BROWSER: &str = "chromium and chromedriver are not installed (tests/run installs them)";

/// Seconds from 1900 to 1970.
const NTP_TO_UNIX_S: f64 = 2_208_988_800.0;

/// The value of `RTSPRELAY_SOAK_MINUTES`, which `tests/soak` sets.
fn soak() -> Option<Duration> {
    let minutes: f64 = std::env::var("RTSPRELAY_SOAK_MINUTES").ok()?.parse().expect("a number of minutes");
    Some(Duration::from_secs_f64(minutes * 60.0))
}

/// A gap between pictures that counts as a freeze, in milliseconds.
const FREEZE_MS: f64 = 100.0;

/// Records each freeze, and the longest gap.
const NOTES_GAPS: &str = "window.gaps = { last: 0, freezes: [], worst: 0 };
    const before = window.shown;
    window.shown = () => {
        const now = performance.now(), gap = gaps.last ? now - gaps.last : 0;
        if (gap > 100) gaps.freezes.push(Math.round(gap));
        gaps.worst = Math.max(gaps.worst, gap);
        gaps.last = now;
        before();
    };";

/// Median and 99th percentile of the age of the most recently shown pictures, in milliseconds.
fn ages(browser: &Chromium, last: usize) -> (f64, f64) {
    let ages = browser.run(&format!(
        "const ages = view.ages.slice(-{last}).sort((a, b) => a - b); return [ages[ages.length >> 1], ages[Math.floor(ages.length * 0.99)]];"
    ));
    (ages[0].as_f64().expect("ages"), ages[1].as_f64().expect("ages"))
}

#[test]
fn the_picture_gets_no_older_by_web_codecs() {
    gets_no_older("codecs", false, 40.0);
}

#[test]
fn the_picture_gets_no_older_by_media_source() {
    gets_no_older("mse", false, 100.0);
}

#[test]
fn the_picture_gets_no_older_with_sound() {
    gets_no_older("mse", true, 300.0);
}

/// Plays in this mode of the page's address; the picture's age (p50) after it has settled and at the end is about the same, and on an
/// otherwise idle machine at most so many milliseconds.
fn gets_no_older(mode: &str, sound: bool, age_max: f64) {
    if !chromium::is_there() {
        return cannot_run(NO_BROWSER);
    }
    // Also of other browsers: each decodes and paints by itself.
    let _turn = alone();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let http = http_address(&relay);
    // The first reading once everything has settled.
    let (settles, lasts) = match soak() {
        Some(lasts) => (Duration::from_secs(60).min(lasts / 2), lasts),
        None => (Duration::from_secs(2), Duration::from_secs(5)),
    };
    let browser = Chromium::start(1280, 900);
    browser.open(&format!("http://{http}/test/?mode={mode}"));
    browser.wait("it plays", "view.frames > 10 && view.state === 'playing'");
    if sound {
        browser.run("document.getElementById('sound').click();");
    }
    browser.run("view.frames = 0;");
    browser.wait("it plays so", &format!("view.frames > 30 && view.state === 'playing' && view.mode === '{mode}'"));
    let started = Instant::now();
    // The times themselves matter: the age at this time after the start, and later.
    std::thread::sleep(settles);
    browser.run(NOTES_GAPS);
    let frames = if soak().is_some() { 900 } else { 60 };
    let (early, _) = ages(&browser, frames);
    // As above: it must have played for so long.
    std::thread::sleep(lasts.saturating_sub(started.elapsed()));
    let (late, p99) = ages(&browser, frames);
    let gaps = browser.run("return [gaps.freezes, gaps.worst, view.skips, view.frames];");
    println!(
        "{mode}{}: age p50 {early:.1} ms after {settles:?}, {late:.1} ms after {lasts:?} (p99 {p99:.1}); longest gap {:.0} ms, freezes over {FREEZE_MS} ms: {}",
        if sound { " with sound" } else { "" },
        gaps[1].as_f64().unwrap(),
        gaps[0]
    );
    assert_eq!(gaps[2], 0, "it was skipped");
    if soak().is_some() {
        assert!((late - early).abs() < 5.0 + early / 10.0, "{mode}: {early} ms, then {late} ms");
        assert!(late < age_max, "{mode}: {late} ms");
        assert_eq!(gaps[0].as_array().unwrap().len(), 0, "{mode}: {gaps}");
    } else {
        assert!(gaps[3].as_u64().unwrap() > 60, "{gaps}");
        assert!(late < early + 500.0, "{mode}: {early} ms, then {late} ms");
    }
}

#[test]
fn a_muted_picture_is_brought_all_the_way_back_to_its_distance() {
    if !chromium::is_there() {
        return cannot_run(NO_BROWSER);
    }
    let _turn = alone();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let browser = Chromium::start(1280, 900);
    browser.open(&format!("http://{}/test/?mode=mse", http_address(&relay)));
    browser.wait("it plays", "view.frames > 30 && view.state === 'playing' && view.mode === 'mse'");
    // Further behind. (The other way, a seek takes the time that it gains.)
    browser.run(
        "window.worst = 0; window.offs = [];
        setInterval(() => { worst = Math.max(worst, view.off); offs.push(Math.abs(view.off)); if (offs.length > 60) offs.shift(); }, 50);
        document.getElementById('video').currentTime -= 0.1;",
    );
    // And stays there for three seconds. It would drift on from anything further away, as no two clocks agree.
    browser.wait("it was off, and is back", "worst > 0.05 && offs.filter(off => off < 0.008).length > 50");
}

#[test]
fn the_first_picture_comes_soon() {
    if !chromium::is_there() {
        return cannot_run(NO_BROWSER);
    }
    let _turn = alone();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let http = http_address(&relay);
    let browser = Chromium::start(1280, 900);
    for mode in ["codecs", "mse"] {
        let mut took = Vec::new();
        for _ in 0..if soak().is_some() { 20 } else { 2 } {
            browser.open(&format!("http://{http}/test/?mode={mode}"));
            browser.wait("the first picture", &format!("view.first !== undefined && view.mode === '{mode}'"));
            took.push(browser.run("return view.first;").as_f64().expect("milliseconds since the navigation"));
        }
        took.sort_by(f64::total_cmp);
        let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
        println!(
            "{mode}: first picture {median:.0} ms after navigation (median of {}), {most:.0} ms at most",
            took.len()
        );
        if soak().is_some() {
            assert!(median < 300.0, "{took:?}");
        }
    }
}

#[test]
fn fifty_tiles_have_their_pictures() {
    if !chromium::is_there() {
        return cannot_run(NO_BROWSER);
    }
    let _turn = alone();
    let names: Vec<String> = (0..50).map(|number| format!("cam/{number}")).collect();
    let streams: Vec<_> = names.iter().map(|name| (name.as_str(), "test")).collect();
    let relay = relay_of(&streams, "").serving("/cam/49");
    let http = http_address(&relay);
    // All of them visible.
    let browser = Chromium::start(2800, 1800);
    let mut took = Vec::new();
    for _ in 0..if soak().is_some() { 9 } else { 1 } {
        browser.open(&format!("http://{http}/"));
        wait_until("all tiles have pictures", DEADLINE, || {
            // Each question takes time from the page.
            std::thread::sleep(Duration::from_millis(250));
            browser.run("return document.querySelectorAll('.tile canvas:not([hidden])').length;") == 50
        });
        took.push(browser.run("return window.pictured;").as_f64().expect("when the newest came"));
    }
    took.sort_by(f64::total_cmp);
    let median = took[took.len() / 2];
    println!("50 tiles: {median:.0} ms (median of {}), {:.0} ms at most", took.len(), took[took.len() - 1]);
    if soak().is_some() {
        assert!(median < 2_000.0, "{took:?}");
    }
}

/// What the well-behaved players have seen.
#[derive(Default)]
struct Seen {
    frames: AtomicUsize,
    /// The age of the frames on arrival, in microseconds.
    ages: std::sync::Mutex<Vec<u32>>,
}

impl Seen {
    /// The 99th percentile since the last call, in microseconds.
    fn p99(&self) -> u32 {
        let mut ages = std::mem::take(&mut *self.ages.lock().unwrap());
        ages.sort_unstable();
        ages.get(ages.len() * 99 / 100).copied().unwrap_or(0)
    }
}

/// When a frame arrived at the relay, and its decoding time in ticks.
fn moments(fragment: &[u8]) -> (f64, u64) {
    let (mut arrived, mut decoded) = (0.0, 0);
    for atom in atoms(fragment) {
        match atom {
            Any::Prft(prft) => arrived = prft.ntp_timestamp as f64 / 2f64.powi(32) - NTP_TO_UNIX_S,
            Any::Moof(moof) => decoded = moof.traf[0].tfdt.as_ref().unwrap().base_media_decode_time,
            _ => {}
        }
    }
    (arrived, decoded)
}

/// Watches until told to stop, and checks that no frame is missing.
fn watches_on(mut watcher: Watcher, seen: &Seen, over: &AtomicBool) {
    let mut last = None;
    while !over.load(Ordering::Relaxed) {
        match watcher.next() {
            Said::Fragment(0, _, fragment) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
                let (arrived, decoded) = moments(&fragment);
                assert!(last.is_none_or(|last| decoded > last && decoded - last <= 3_003), "a frame is missing");
                last = Some(decoded);
                seen.frames.fetch_add(1, Ordering::Relaxed);
                seen.ages.lock().unwrap().push(((now - arrived).max(0.0) * 1e6) as u32);
            }
            Said::Text(text) => assert_ne!(text["type"], "skipped", "{text}"),
            Said::Closed(code, reason) => panic!("closed: {code} {reason}"),
            _ => {}
        }
    }
}

/// Reads two kilobytes ten times a second, or nothing.
fn barely_reads(http: SocketAddr, reads: bool, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let watcher = watch(http, "/+live/test");
        let mut stream = watcher.stream();
        socket2::SockRef::from(stream).set_recv_buffer_size(4_096).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let connected = Instant::now();
        // One that reads nothing is closed eventually, and reconnects.
        while !over.load(Ordering::Relaxed) && (reads || connected.elapsed() < Duration::from_secs(15)) {
            std::thread::sleep(Duration::from_millis(100));
            if reads && matches!(std::io::Read::read(&mut stream, &mut [0; 2_048]), Ok(0)) {
                break;
            }
        }
    }
}

/// Ends the watchers, also if the scenario fails.
struct EndsThem<'a>(&'a AtomicBool);

impl Drop for EndsThem<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn slow_browsers_cost_others_nothing() {
    if !chromium::is_there() {
        return cannot_run(NO_BROWSER);
    }
    let _turn = alone();
    let relay = relay_of(&[("test", "test")], "").serving("/test");
    let http = http_address(&relay);
    let (good, lasts) = match soak() {
        Some(lasts) => (100, lasts),
        None => (10, Duration::from_secs(10)),
    };
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _ends = EndsThem(&over);
        for _ in 0..good {
            let watcher = watch(http, "/+live/test");
            scope.spawn(|| watches_on(watcher, &seen, &over));
        }
        std::thread::sleep(lasts / 10);
        seen.p99();
        std::thread::sleep(lasts / 5);
        let calm = seen.p99();
        for number in 0..20 {
            let (over, reads) = (&over, number < 10);
            scope.spawn(move || barely_reads(http, reads, over));
        }
        let browser = Chromium::start(1280, 900);
        browser.open(&format!("http://{http}/test/?mode=mse"));
        browser.slow_down(4);
        browser.wait("the slowed browser plays", "view.frames > 30 && view.state === 'playing'");
        seen.p99();
        std::thread::sleep(lasts / 2);
        let beside = seen.p99();
        browser.wait("its picture is not old", "view.frames > 60 && view.age !== null && view.age < 3000");
        let (age, age_p99) = ages(&browser, 300);
        over.store(true, Ordering::Relaxed);
        println!(
            "{good} watched, {} frames: p99 {calm} us, {beside} us beside the slow ones; the slowed browser's age {age:.0} ms (p99 {age_p99:.0})",
            seen.frames.load(Ordering::Relaxed)
        );
        if soak().is_some() {
            assert!(f64::from(beside) <= 3.0 * f64::from(calm), "p99 {calm} us, then {beside} us");
        }
    });
    assert!(!relay.printed().contains("panicked"), "{}", relay.printed());
}
