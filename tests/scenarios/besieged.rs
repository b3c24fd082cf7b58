//! All attacks at once, beside well-behaved players: these lose nothing, and when the attack ends the relay is as it was before.
//! `tests/soak --attacks` runs it for minutes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::abuse::{insolent_camera, publisher_at};
use crate::harness::datagrams::Ports;
use crate::harness::http::http_address;
use crate::harness::machine::alone;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, stream_from};
use crate::harness::vitals::{Memory, Vitals};
use crate::harness::{DEADLINE, wait_until};
use crate::tls_flood::{Rsa, connection};

const MIB: u64 = 1 << 20;

/// Players that do nothing wrong.
const HONEST: usize = 6;

/// How long the attackers go on where nobody says otherwise.
const SHORT: Duration = Duration::from_secs(6);

/// How long each waits before it comes again, where a few seconds and a build for tests are to show it, and in a soak.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(5)];

/// The part of the time before the attackers come, by which the time with them is judged.
const CALM_PART: u32 = 4;

/// What may become of the 99th percentile of the latency while they are there. On a machine that does other things as well a few seconds
/// say nothing, so it is judged in a soak alone.
const P99_FACTOR: f64 = 3.0;

/// What the memory may be above that of before, in per cent, in a soak.
const MEMORY_PERCENT: u64 = 10;

/// What `RTSPRELAY_SOAK_MINUTES` says, which `tests/soak` sets.
fn soak() -> Option<Duration> {
    let minutes: f64 = std::env::var("RTSPRELAY_SOAK_MINUTES").ok()?.parse().expect("a number of minutes");
    Some(Duration::from_secs_f64(minutes * 60.0))
}

/// What the attackers are told.
struct Siege<'a> {
    relay: &'a Relay,
    http: SocketAddr,
    hello: Vec<u8>,
    over: AtomicBool,
    /// What each has done, to see that all were there.
    done: [AtomicU64; ATTACKERS.len()],
}

type Attack = fn(&Siege<'_>) -> std::io::Result<()>;

/// Each does its worst once, and is asked again.
const ATTACKERS: [(&str, Attack); 8] = [
    ("frames of one byte", tiny_frames),
    ("parameter sets that change", changing_sets),
    ("half-sent bodies", half_bodies),
    ("refused transports", refusals),
    ("pages that are never read", unread_pages),
    ("handshakes that are never ended", handshakes),
    ("players over UDP that vanish", vanishing_players),
    ("answers that are never read", unread_answers),
];

fn somewhere(net: u8) -> IpAddr {
    IpAddr::from([127, net, fastrand::u8(..), fastrand::u8(1..255)])
}

fn tiny_frames(siege: &Siege<'_>) -> std::io::Result<()> {
    let Some(publisher) = publisher_at(siege.relay, "/tiny", "m=audio 0 RTP/AVP 0\r\na=control:trackID=0\r\n") else {
        return Ok(());
    };
    let mut stream = publisher.stream();
    for number in 0..50_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        stream.write_all(&[b'$', 0, 0, 13, 0x80, 0x80, high, low, 0, 0, high, low, 0, 0, 0, 7, 0xD5])?;
        if siege.over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

fn changing_sets(siege: &Siege<'_>) -> std::io::Result<()> {
    let media = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n";
    let Some(publisher) = publisher_at(siege.relay, "/sets", media) else { return Ok(()) };
    let mut stream = publisher.stream();
    for number in 0..100_u16 {
        let mut payload = vec![0x78];
        for set in 0..7_000_u16 {
            payload.extend_from_slice(&[0, 6, 0x68, 0xeb]);
            payload.extend_from_slice(&number.to_be_bytes());
            payload.extend_from_slice(&set.to_be_bytes());
        }
        payload.extend_from_slice(&[0, 2, 0x65, 0x88]);
        let mut frame = vec![b'$', 0];
        frame.extend_from_slice(&((payload.len() + 12) as u16).to_be_bytes());
        frame.extend_from_slice(&[0x80, 0xE0]);
        frame.extend_from_slice(&number.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&number.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 7]);
        frame.extend_from_slice(&payload);
        stream.write_all(&frame)?;
    }
    Ok(())
}

fn half_bodies(siege: &Siege<'_>) -> std::io::Result<()> {
    let head = format!("SET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nX: {}\r\n", "x".repeat(14_000));
    let part = format!("{head}Content-Length: 16000\r\n\r\n{}", "y".repeat(15_000));
    let mut crowd = Vec::new();
    for _ in 0..300 {
        let mut stream = stream_from(somewhere(20), siege.relay.address());
        // Others may go for it, and it for others.
        let _ = stream.write_all(part.as_bytes());
        crowd.push(stream);
    }
    Ok(())
}

fn refusals(siege: &Siege<'_>) -> std::io::Result<()> {
    let mut stream = stream_from(somewhere(21), siege.relay.address());
    let url = siege.relay.url("/t/trackID=0");
    let setup =
        format!("SETUP {url} RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;multicast;x={}\r\n\r\n", "x".repeat(300));
    stream.write_all(setup.repeat(150).as_bytes())?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    while stream.read(&mut [0; 65_536])? > 0 {}
    Ok(())
}

fn unread_pages(siege: &Siege<'_>) -> std::io::Result<()> {
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut stream = stream_from(somewhere(24), siege.http);
        stream.write_all("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100).as_bytes())?;
        connections.push(stream);
    }
    // The attack's pace, not a wait for something.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn handshakes(siege: &Siege<'_>) -> std::io::Result<()> {
    let address = siege.relay.tls_address();
    let mut open = Vec::new();
    for _ in 0..300 {
        let mut stream = stream_from(somewhere(22), address);
        let _ = stream.write_all(&siege.hello);
        open.push(stream);
    }
    Ok(())
}

fn vanishing_players(siege: &Siege<'_>) -> std::io::Result<()> {
    let ports = Ports::bind();
    let mut client = Client::connect(siege.relay.address());
    let url = siege.relay.url("/t");
    let answer = client.request("SETUP", &format!("{url}/trackID=0"), &[("Transport", &ports.transport())]);
    client.session = answer.session().map(str::to_owned);
    client.request("PLAY", &url, &[]);
    // So that it plays for a moment before it is left; nothing is judged by it.
    std::thread::sleep(Duration::from_millis(100));
    Ok(())
}

fn unread_answers(siege: &Siege<'_>) -> std::io::Result<()> {
    let mut crowd = Vec::new();
    let tag = "y".repeat(12_000);
    for _ in 0..50 {
        let mut stream = stream_from(somewhere(23), siege.relay.address());
        let request = format!("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nRequire: {tag}\r\n\r\n").repeat(20);
        let _ = stream.write_all(request.as_bytes());
        crowd.push(stream);
    }
    Ok(())
}

/// Plays until it is told that it is over, and sees that no packet is missing. How many frames have come.
fn plays_on(relay: &Relay, over: &AtomicBool) -> usize {
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/t"));
    let (mut next, mut frames) = (None, 0);
    while !over.load(Ordering::Relaxed) {
        for packet in client.frame_on(0) {
            assert!(next.is_none_or(|next| packet.seq() == next), "packets are missing");
            next = Some(packet.seq().wrapping_add(1));
        }
        frames += 1;
    }
    frames
}

/// The 99th percentile of the latency of the stream's sends in the last interval, in microseconds; nothing if somebody else's connection
/// has had this one give way.
fn p99_us(http: SocketAddr) -> Option<f64> {
    let mut stream = TcpStream::connect(http).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    status["streams"].as_array()?.iter().find(|stream| stream["stream"] == "t")?["p99_us"].as_f64()
}

/// Ends those who play on, or attack, also if the scenario fails.
struct EndsThem<'a>(&'a AtomicBool);

impl Drop for EndsThem<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Siege<'_> {
    /// Has all attack until `meanwhile` ends, and waits until the relay has forgotten them.
    fn with_attackers<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        self.over.store(false, Ordering::Relaxed);
        self.done.iter().for_each(|done| done.store(0, Ordering::Relaxed));
        let pause = PAUSES[usize::from(soak().is_some())];
        let seen = std::thread::scope(|scope| {
            let _ends = EndsThem(&self.over);
            for ((_, attack), done) in ATTACKERS.iter().zip(&self.done) {
                scope.spawn(move || {
                    while !self.over.load(Ordering::Relaxed) {
                        // One whose connection the relay closes, in the middle of an answer perhaps, comes again.
                        let _ = catch_unwind(AssertUnwindSafe(|| attack(self)));
                        done.fetch_add(1, Ordering::Relaxed);
                        // How often it attacks.
                        std::thread::sleep(pause);
                    }
                });
            }
            meanwhile()
        });
        wait_until("the attackers are forgotten", DEADLINE, || {
            Vitals::of(self.relay, self.http).clients <= HONEST as u64
        });
        seen
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The median of the percentiles while so much time passes.
fn measured(http: SocketAddr, lasts: Duration) -> f64 {
    let (started, mut seen) = (Instant::now(), Vec::new());
    while started.elapsed() < lasts {
        std::thread::sleep(Duration::from_secs(1));
        seen.extend(p99_us(http));
    }
    median(seen)
}

#[test]
fn all_attackers_at_once_cost_honest_players_nothing() {
    let _turn = alone();
    let lasts = soak().unwrap_or(SHORT);
    let certificate = Rsa::new();
    let camera = insolent_camera("authentication failed client=203.0.113.9 user=\"-\" \u{202e}");
    let stream = |name: &str, source: &str| format!("[[stream]]\nname = \"{name}\"\nsource = \"{source}\"\n\n");
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n{}\n\
         [queue]\nage = \"5s\"\nlog_bytes = \"8MiB\"\n\n[limits]\nhandshake_timeout = \"3s\"\nsession_timeout = \"5s\"\n\n\
         [report]\nevery = \"1s\"\nformat = \"logfmt\"\n\n{}{}{}{}",
        certificate.keys(),
        stream("t", "test"),
        stream("tiny", "publish"),
        stream("sets", "publish"),
        stream("cam", &format!("rtsp://{camera}/x")),
    ))
    .serving("/t");
    let http = http_address(&relay);
    let mut hello = Vec::new();
    connection(&certificate.trusted()).write_tls(&mut hello).unwrap();
    let before = Vitals::of(&relay, http);
    let siege = Siege { relay: &relay, http, hello, over: AtomicBool::new(false), done: Default::default() };
    let honest_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = EndsThem(&honest_over);
        let honest: Vec<_> = (0..HONEST).map(|_| scope.spawn(|| plays_on(&relay, &honest_over))).collect();
        if soak().is_some() {
            // What two published streams hold for who comes next is there whether they were published to once or for half an hour.
            // The time is how long they attack.
            siege.with_attackers(|| std::thread::sleep(SHORT));
        }
        let calm = measured(http, lasts / CALM_PART);
        let memory = Memory::of(&relay).anonymous;
        let (besieged, most) =
            siege.with_attackers(|| (measured(http, lasts - lasts / CALM_PART), Memory::of(&relay).anonymous));
        for ((what, _), done) in ATTACKERS.iter().zip(&siege.done) {
            println!("{what}: {} times", done.load(Ordering::Relaxed));
            assert!(done.load(Ordering::Relaxed) > 0, "{what} was never there");
        }
        if soak().is_some() {
            let bound = memory + memory * MEMORY_PERCENT / 100;
            wait_until("the memory is back", DEADLINE, || Memory::of(&relay).anonymous <= bound);
        }
        let after = Memory::of(&relay).anonymous;
        honest_over.store(true, Ordering::Relaxed);
        let frames: Vec<usize> =
            honest.into_iter().map(|player| player.join().expect("a player lost something")).collect();
        println!("frames of the honest: {frames:?}; p99 {calm:.0} us before, {besieged:.0} us besieged");
        println!("memory {} MiB before, {} MiB besieged, {} MiB after", memory / MIB, most / MIB, after / MIB);
        if soak().is_some() {
            assert!(besieged <= P99_FACTOR * calm, "p99 {calm:.0} us before, {besieged:.0} us besieged");
        }
    });
    before.come_back(&relay, http, DEADLINE);
    let printed = relay.printed();
    assert!(!printed.contains("panicked") && !printed.contains("a bug in rtsprelay"), "{printed}");
}
