//! SIGUSR2 with browsers: their WebSockets, what they have been told and what they have said go on in another process.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mp4_atom::Any;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::browser::{atoms, publisher};
use crate::harness::browser::Browser;
use crate::harness::chromium::{self, Chromium};
use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{beside_others, cannot_run};
use crate::harness::websocket::{Said, Watcher, watch, watch_with};
use crate::harness::{DEADLINE, wait_until};
use crate::upgrade::{AHEAD_MAX, PATIENT, REFUSED, STREAMS, Upgraded};

/// A relay with pages, the test pattern, and a stream to be published.
fn with_pages(more: &str) -> (Upgraded, SocketAddr) {
    let relay = Upgraded::start(&format!("http = \"127.0.0.1:0\"\n{PATIENT}{STREAMS}\n{more}"));
    let http = http_address(&relay.relay);
    (relay, http)
}

fn shows(http: SocketAddr, stream: &str) {
    wait_until(&format!("{stream} has a picture"), DEADLINE, || {
        let mut asked = TcpStream::connect(http).unwrap();
        asked.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(asked, "GET /+keyframe/{stream} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        asked.read_to_end(&mut answer).unwrap();
        answer.starts_with(b"HTTP/1.0 200")
    });
}

/// A fragment's contents.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    sequence: u32,
    /// When the relay received its frame, in seconds.
    arrived: f64,
    /// When it is decoded and how long it lasts, in ticks.
    decoded: u64,
    lasts: u64,
}

impl Facts {
    pub fn of(fragment: &[u8]) -> Facts {
        let mut facts = Facts { sequence: 0, arrived: 0.0, decoded: 0, lasts: 0 };
        for atom in atoms(fragment) {
            match atom {
                Any::Prft(prft) => facts.arrived = prft.ntp_timestamp as f64 / 2f64.powi(32),
                Any::Moof(moof) => {
                    let traf = &moof.traf[0];
                    facts.sequence = moof.mfhd.sequence_number;
                    facts.decoded = traf.tfdt.as_ref().unwrap().base_media_decode_time;
                    let entries = traf.trun.iter().flat_map(|trun| &trun.samples);
                    facts.lasts = entries.map(|entry| u64::from(entry.duration.unwrap())).sum();
                }
                _ => {}
            }
        }
        facts
    }
}

/// What all watchers of a stream have received: by track and number, the hash of the fragment.
type Fragments = Mutex<HashMap<(u8, u32), u64>>;

#[derive(Default)]
struct Counts {
    fragments: AtomicU64,
    inits: AtomicU64,
}

/// A browser that checks everything it gets.
struct Viewer {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: JoinHandle<Duration>,
}

impl Viewer {
    fn start(http: SocketAddr, stream: &str, all: Arc<Fragments>) -> Viewer {
        let mut watcher = watch(http, &format!("/+live/{stream}?sound=1"));
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::spawn(move || views(&mut watcher, &stopped, &all, &counted));
        Viewer { stop, counts, thread }
    }

    /// Waits until it has received so many fragments from now on.
    fn goes_on(&self, fragments: u64) {
        let before = self.counts.fragments.load(Ordering::Relaxed);
        wait_until("the watcher receives more", DEADLINE, || {
            assert!(!self.thread.is_finished(), "the watcher has failed");
            self.counts.fragments.load(Ordering::Relaxed) >= before + fragments
        });
    }

    fn inits(&self) -> u64 {
        self.counts.inits.load(Ordering::Relaxed)
    }

    /// Ends it; gives the longest time without a fragment.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a watcher that saw no fault")
    }
}

/// The ticks of a track in a second, from what the relay has told.
fn rate(watcher: &Watcher, track: u8) -> f64 {
    let told = watcher.texts.iter().rfind(|text| text["type"] == "track" && text["track"] == track);
    told.and_then(|told| told["rate"].as_f64()).expect("the track was told before its first fragment")
}

fn views(watcher: &mut Watcher, stop: &AtomicBool, all: &Fragments, counts: &Counts) -> Duration {
    let mut last: HashMap<u8, Facts> = HashMap::new();
    let (mut longest, mut before, mut asked) = (Duration::ZERO, Instant::now(), Instant::now());
    let (mut questions, mut answers, mut clock) = (0, 0, 0.0);
    // At its end it waits for the answers.
    while !stop.load(Ordering::Relaxed) || answers < questions {
        match watcher.next() {
            Said::Fragment(track, _, bytes) => {
                longest = longest.max(before.elapsed());
                before = Instant::now();
                counts.fragments.fetch_add(1, Ordering::Relaxed);
                let facts = Facts::of(&bytes);
                follows(last.insert(track, facts), facts, track, rate(watcher, track));
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                let hash = hasher.finish();
                let same = *all.lock().unwrap().entry((track, facts.sequence)).or_insert(hash);
                assert_eq!(same, hash, "two watchers got different fragments {} of track {track}", facts.sequence);
            }
            Said::Init(..) => {
                counts.inits.fetch_add(1, Ordering::Relaxed);
            }
            Said::Text(text) if text["type"] == "clock" => {
                let relay = text["relay"].as_f64().unwrap();
                assert!(relay >= clock, "the clock went back from {clock} to {relay}");
                (clock, answers) = (relay, answers + 1);
            }
            Said::Text(text) => assert!(["hello", "track"].contains(&text["type"].as_str().unwrap()), "{text}"),
            Said::Picture(_) => {}
            Said::Closed(code, reason) => panic!("closed: {code} {reason}"),
        }
        if asked.elapsed() > Duration::from_millis(200) && !stop.load(Ordering::Relaxed) {
            watcher.say("{\"type\":\"clock\",\"sent\":1}");
            (asked, questions) = (Instant::now(), questions + 1);
        }
    }
    let hellos = watcher.texts.iter().filter(|text| text["type"] == "hello").count();
    assert!(hellos == 1 && questions > 0, "{hellos} {questions}");
    longest
}

/// Checks that a fragment follows the one before on its track.
pub fn follows(last: Option<Facts>, facts: Facts, track: u8, rate: f64) {
    let Some(last) = last else { return };
    assert_eq!(facts.sequence, last.sequence + 1, "a frame of track {track} is missing");
    assert!(facts.arrived >= last.arrived, "{last:?} {facts:?}");
    let paused = facts.arrived - last.arrived;
    let ticks = if track == 1 {
        // Sound has no gaps, unless its source has paused for longer than silence is made for.
        let end = last.decoded + last.lasts;
        let is_gap = facts.decoded > end && paused > 1.5;
        assert!(facts.decoded == end || is_gap, "there is a gap in the sound: {last:?} {facts:?}");
        facts.decoded + facts.lasts - end
    } else {
        assert!(facts.decoded > last.decoded, "{last:?} {facts:?}");
        facts.decoded - last.decoded
    };
    let step = ticks as f64 / rate;
    assert!(step < paused + AHEAD_MAX.as_secs_f64(), "time steps by {step} s on track {track}: {last:?} {facts:?}");
}

#[test]
fn browsers_notice_nothing_of_two_upgrades_in_a_row() {
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    let b_frames = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-c:a", "aac"];
    let _publisher = publisher(&relay.relay, "live", &b_frames);
    let streams = ["pattern", "live"];
    streams.iter().for_each(|stream| shows(http, stream));
    let fragments = Arc::<Fragments>::default();
    // Each shard relates the sound of a publisher to the picture by itself, to within some ticks.
    let of = |stream| if stream == "pattern" { Arc::clone(&fragments) } else { Arc::default() };
    let mut viewers: Vec<Viewer> =
        (0..6).map(|number| Viewer::start(http, streams[number % 2], of(streams[number % 2]))).collect();
    // Until it is known that no frame is shown before an earlier one, which is told once.
    viewers.iter().for_each(|viewer| viewer.goes_on(400));
    let inits: Vec<_> = viewers.iter().map(Viewer::inits).collect();
    for _ in 0..2 {
        viewers.iter().for_each(|viewer| viewer.goes_on(50));
        relay.upgrade();
        // Who comes now starts at a keyframe that the process before has rendered.
        for stream in streams {
            viewers.push(Viewer::start(http, stream, of(stream)));
        }
        viewers.iter().for_each(|viewer| viewer.goes_on(50));
    }
    let now: Vec<_> = viewers.iter().map(Viewer::inits).take(inits.len()).collect();
    assert_eq!(now, inits, "initialization segments were sent again");
    assert_eq!((relay.count(" started playing "), relay.count(" stopped playing ")), (10, 0));
    let longest = viewers.into_iter().map(Viewer::end).max();
    println!("the longest time without a fragment: {longest:?}");
}

#[test]
fn browsers_notice_nothing_of_a_successor_that_dies() {
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    shows(http, "pattern");
    let fragments = Arc::<Fragments>::default();
    let viewers: Vec<Viewer> = (0..3).map(|_| Viewer::start(http, "pattern", Arc::clone(&fragments))).collect();
    viewers.iter().for_each(|viewer| viewer.goes_on(20));
    let pid = relay.pid();
    for step in ["ready", "told", "frozen", "restored"] {
        std::fs::write(&relay.step, step).unwrap();
        relay.ask_until(REFUSED);
        assert_eq!(relay.pid(), pid);
        viewers.iter().for_each(|viewer| viewer.goes_on(50));
    }
    std::fs::remove_file(&relay.step).unwrap();
    // And then one that does not.
    relay.upgrade();
    viewers.iter().for_each(|viewer| viewer.goes_on(50));
    assert_eq!((relay.count(" started playing "), relay.count(" stopped playing ")), (3, 0));
    let longest = viewers.into_iter().map(Viewer::end).max();
    println!("the longest time without a fragment: {longest:?}");
}

/// A text message as a browser sends it.
fn frame(text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let head = [0x81, 0x80 | text.len() as u8];
    let payload = text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    head.into_iter().chain(mask).chain(payload).collect()
}

#[test]
fn what_browsers_have_said_is_known_to_the_successor() {
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    shows(http, "pattern");
    let [mut talks, mut pauses, mut silent] = ["", "", "?sound=1"].map(|query| {
        let mut watcher = watch(http, &format!("/+live/pattern{query}"));
        watcher.fragment(0);
        watcher
    });
    // A message of which the first part has come, a pause, and sound that was turned off and on.
    let (message, rest) = (frame("{\"type\":\"clock\",\"sent\":7}"), 11);
    talks.send_raw(&message[..rest]);
    talks.fragment(0);
    pauses.say("{\"type\":\"pause\"}");
    pauses.say("{\"type\":\"clock\",\"sent\":1}");
    pauses.text("clock");
    silent.say("{\"type\":\"sound\",\"on\":false}");
    silent.say("{\"type\":\"clock\",\"sent\":1}");
    silent.text("clock");
    relay.upgrade();
    let last = Facts::of(&silent.fragment(0).1);
    for _ in 0..40 {
        match silent.next() {
            Said::Fragment(0, _, bytes) => assert!(Facts::of(&bytes).sequence > last.sequence),
            Said::Init(0, _) | Said::Text(_) => {}
            said => panic!("a muted track comes, or else: {said:?}"),
        }
    }
    talks.send_raw(&message[rest..]);
    assert_eq!(talks.text("clock")["sent"], 7.0);
    // Nothing has come but the answer.
    pauses.say("{\"type\":\"clock\",\"sent\":2}");
    assert!(matches!(pauses.next(), Said::Text(text) if text["sent"] == 2.0));
    pauses.say("{\"type\":\"play\"}");
    pauses.fragment(0);
    silent.say("{\"type\":\"sound\",\"on\":true}");
    silent.fragment(1);
}

#[test]
fn a_browser_that_does_not_read_misses_no_frame() {
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    shows(http, "pattern");
    let mut slow = watch(http, "/+live/pattern");
    let mut last = Facts::of(&slow.fragment(0).1);
    socket2::SockRef::from(slow.stream()).set_recv_buffer_size(4_096).unwrap();
    // Enough that an operation is in flight, and stops within a frame.
    let (mut before, mut same) = (0, 0);
    wait_until("the browser blocks the relay", DEADLINE, || {
        let unread = rtsprelay::sys::unread_bytes(slow.stream()).unwrap();
        same = if unread == before && unread > 0 { same + 1 } else { 0 };
        before = unread;
        same > 20
    });
    relay.upgrade();
    for _ in 0..300 {
        let facts = Facts::of(&slow.fragment(0).1);
        assert_eq!(facts.sequence, last.sequence + 1);
        last = facts;
    }
    assert!(slow.texts.iter().all(|text| text["type"] != "skipped"));
}

/// The cookie of a user who logs in.
fn cookie(http: SocketAddr) -> String {
    let mut stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = "user=viewer&password=secret";
    write!(
        stream,
        "POST /+login HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let cookie = answer.split("rtsprelay=").nth(1).and_then(|rest| rest.split(';').next()).expect("a cookie");
    format!("rtsprelay={cookie}")
}

#[test]
fn a_browser_keeps_its_user_and_loses_it_as_before() {
    let _turn = beside_others();
    let user = "[[user]]\nname = \"viewer\"\npassword = \"secret\"\nmay = [\"read\"]\nstreams = [\"pattern\"]\n";
    let (relay, http) = with_pages(user);
    let cookie = cookie(http);
    let watches = || watch_with(http, "/+live/pattern", &[("cookie", &cookie)]);
    let mut found = None;
    wait_until("the user may watch", DEADLINE, || {
        let mut watcher = watches().expect("the user may watch");
        // It closes while the stream is not up.
        let plays = loop {
            match watcher.next() {
                Said::Fragment(..) => break true,
                Said::Closed(..) => break false,
                _ => {}
            }
        };
        found = plays.then_some(watcher);
        found.is_some()
    });
    let mut watcher = found.unwrap();
    relay.upgrade();
    watcher.fragment(0);
    // The login is good there, too.
    let mut other = watches().expect("the user may watch");
    other.fragment(0);
    // A reload takes the right away.
    let config = std::fs::read_to_string(&relay.files[0]).unwrap();
    std::fs::write(&relay.files[0], config.replace("streams = [\"pattern\"]", "streams = [\"live\"]")).unwrap();
    kill(Pid::from_raw(relay.pid()), Signal::SIGHUP).unwrap();
    watcher.end();
    other.end();
    wait_until("it was closed for that", DEADLINE, || relay.count("reason=\"unauthorized\"") == 2);
}

#[test]
fn browsers_count_for_the_limits_of_the_successor() {
    let _turn = beside_others();
    let (relay, http) = with_pages("[limits]\nclients_per_address = 3\n");
    shows(http, "pattern");
    let is_refused = || match watch_with(http, "/+live/pattern", &[]) {
        Err(status) => status == 503,
        Ok(mut watcher) => loop {
            match watcher.next() {
                Said::Fragment(..) => return false,
                Said::Closed(code, _) => return code == 1013,
                _ => {}
            }
        },
    };
    let mut watchers: Vec<Watcher> = (0..3).map(|_| watch(http, "/+live/pattern")).collect();
    watchers.iter_mut().for_each(|watcher| drop(watcher.fragment(0)));
    assert!(is_refused(), "a fourth watches");
    relay.upgrade();
    watchers.iter_mut().for_each(|watcher| drop(watcher.fragment(0)));
    assert!(is_refused(), "a fourth watches after the upgrade");
    wait_until("three connections are counted", DEADLINE, || {
        let metrics = get(http, "/metrics").1;
        value(&metrics, "rtsprelay_connections ") == 3.0 && value(&metrics, "rtsprelay_sessions ") == 3.0
    });
    let clients = "rtsprelay_clients{stream=\"pattern\",transport=\"websocket\"} ";
    assert_eq!(value(&get(http, "/metrics").1, clients), 3.0);
    drop(watchers);
    wait_until("there is room again", DEADLINE, || !is_refused());
}

#[test]
fn a_page_that_the_configuration_has_no_more_is_closed() {
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    let config = std::fs::read_to_string(&relay.files[0]).unwrap();
    std::fs::write(&relay.files[0], config.replace("http = \"127.0.0.1:0\"\n", "")).unwrap();
    relay.upgrade();
    assert_eq!(relay.count("the configuration does not have this address for http any more; its socket is closed"), 1);
    let refused = TcpStream::connect(http).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn chromium_plays_on_by_media_source_and_by_web_codecs() {
    if !chromium::is_there() {
        return cannot_run("chromium and chromedriver are not installed (tests/run installs them)");
    }
    let _turn = beside_others();
    let (relay, http) = with_pages("");
    shows(http, "pattern");
    let browsers = [("mse", true), ("codecs", false)].map(|(mode, sound)| {
        let browser = Chromium::start(1280, 900);
        browser.open(&format!("http://{http}/pattern/?mode={mode}"));
        let plays = format!("view.frames > 30 && view.state === 'playing' && view.mode === '{mode}'");
        browser.wait("it plays", &plays);
        if sound {
            browser.run("document.getElementById('sound').click(); view.frames = 0;");
            browser.wait("it plays with sound", &format!("{plays} && !document.getElementById('video').muted"));
        }
        (mode, browser, plays)
    });
    let started = relay.count(" started playing ");
    for _ in 0..2 {
        relay.upgrade();
        for (mode, browser, plays) in &browsers {
            browser.run("view.frames = 0;");
            browser.wait(&format!("{mode} goes on"), &format!("{plays} && view.age !== null && view.age < 3000"));
        }
    }
    for (mode, browser, _) in &browsers {
        println!("{mode}: {}", browser.run("return [view.age, view.skips, Math.round(Math.max(...view.ages))];"));
        assert_eq!(browser.run("return view.skips;"), 0, "{mode} was skipped");
    }
    assert_eq!(relay.count(" started playing "), started, "a browser has connected again");
}
