//! All attacks at once, beside well-behaved players: these lose nothing, and after the attack the relay is back in its previous state.
//! `tests/soak --attacks` runs it for minutes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::abuse::{insolent_camera, publisher_at};
use crate::harness::datagrams::Ports;
use crate::harness::http::http_address;
use crate::harness::machine::{alone, only_when_idle};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, stream_from};
use crate::harness::vitals::{Memory, Vitals};
use crate::harness::{DEADLINE, wait_until};
use crate::tls_flood::{Rsa, connection};

const MIB: f64 = (1 << 20) as f64;

/// Players that play from before the attack until after it. As many others play before the attack, and as many again during it: the
/// latencies of these two groups are compared.
const HONEST: usize = 6;

/// How long the attackers continue, unless configured.
const SHORT: Duration = Duration::from_secs(6);

/// The interval between an attacker's attempts: in the suite, where a few seconds and a test build must suffice, and in a soak.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(5)];

/// The part of the time before the attack, as the basis of comparison.
const CALM_PART: u32 = 4;

/// By what factor the 99th percentile of an honest player's latency may grow during the attack. On a machine with other load a few
/// seconds prove nothing, so only a soak checks it.
const P99_FACTOR: f64 = 3.0;

/// By how many percent the memory may exceed its previous value, in a soak.
const MEMORY_PERCENT: u64 = 10;

/// The value of `RTSPRELAY_SOAK_MINUTES`, which `tests/soak` sets.
fn soak() -> Option<Duration> {
    let minutes: f64 = std::env::var("RTSPRELAY_SOAK_MINUTES").ok()?.parse().expect("a number of minutes");
    Some(Duration::from_secs_f64(minutes * 60.0))
}

/// What the attackers are given.
struct Siege<'a> {
    relay: &'a Relay,
    http: SocketAddr,
    hello: Vec<u8>,
    over: AtomicBool,
    /// How often each has attacked, to check that all took part.
    done: [AtomicU64; ATTACKERS.len()],
}

type Attack = fn(&Siege<'_>) -> std::io::Result<()>;

/// Each attacks once, and is then called again.
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
        // Others may be evicted for it, and it for others.
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
    // The rate of the attack, not a wait for a condition.
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
    // So that it plays for a moment before it leaves; nothing depends on the time.
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

/// Plays until told to stop, and checks that no packet is missing. Tells its session's id, and returns the number of frames received.
fn plays_on(relay: &Relay, over: &AtomicBool, sessions: &Mutex<Vec<String>>) -> usize {
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/t"));
    sessions.lock().unwrap().push(client.session.clone().expect("a session"));
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

/// The median of these players' 99th percentiles of the latency, each since it joined, in microseconds; `None` if this connection was
/// evicted for another. The stream's would include those attackers who are its players: ten vanished ones for each honest.
fn p99_us(http: SocketAddr, players: &[String]) -> Option<f64> {
    let mut stream = TcpStream::connect(http).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let clients = status["clients"].as_array()?.iter();
    let of_players = clients.filter(|client| players.iter().any(|session| client["session"] == *session));
    let mut p99s: Vec<f64> = of_players.filter_map(|client| client["p99_us"].as_f64()).collect();
    println!("p99 of honest players, in us: {p99s:?}");
    p99s.sort_by(f64::total_cmp);
    p99s.get(players.len() / 2).copied().filter(|_| p99s.len() == players.len())
}

/// Ends the players and attackers, also if the scenario fails.
struct EndsThem<'a>(&'a AtomicBool);

impl Drop for EndsThem<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Siege<'_> {
    /// Runs all attacks until `meanwhile` ends, and waits until the relay has cleaned up after them and only `honest` clients are left.
    fn with_attackers<T>(&self, honest: usize, meanwhile: impl FnOnce() -> T) -> T {
        self.over.store(false, Ordering::Relaxed);
        self.done.iter().for_each(|done| done.store(0, Ordering::Relaxed));
        let pause = PAUSES[usize::from(soak().is_some())];
        let seen = std::thread::scope(|scope| {
            let _ends = EndsThem(&self.over);
            for ((_, attack), done) in ATTACKERS.iter().zip(&self.done) {
                scope.spawn(move || {
                    only_when_idle();
                    while !self.over.load(Ordering::Relaxed) {
                        // An attacker whose connection the relay closes, perhaps within an answer, starts again.
                        let _ = catch_unwind(AssertUnwindSafe(|| attack(self)));
                        done.fetch_add(1, Ordering::Relaxed);
                        // The number of attacks.
                        std::thread::sleep(pause);
                    }
                });
            }
            meanwhile()
        });
        wait_until("the attackers are forgotten", DEADLINE, || {
            Vitals::of(self.relay, self.http).clients <= honest as u64
        });
        seen
    }
}

fn all_joined(players: &Mutex<Vec<String>>) {
    wait_until("all have joined", DEADLINE, || players.lock().unwrap().len() == HONEST);
}

/// What [`p99_us`] is for these players after this time, which begins once all have joined.
fn measured(http: SocketAddr, lasts: Duration, players: &Mutex<Vec<String>>) -> f64 {
    all_joined(players);
    // Not a wait for a condition: the percentile is that of this much time.
    std::thread::sleep(lasts);
    let players = players.lock().unwrap();
    let mut p99 = None;
    wait_until("the report is there", DEADLINE, || {
        p99 = p99_us(http, &players);
        p99.is_some()
    });
    p99.unwrap()
}

#[test]
fn all_attackers_at_once_cost_honest_players_nothing() {
    let _turn = alone();
    let lasts = soak().unwrap_or(SHORT);
    let certificate = Rsa::new();
    let camera = insolent_camera("authentication failed client=203.0.113.9 user=\"-\" \u{202e}");
    let stream = |name: &str, source: &str| format!("[[stream]]\nname = \"{name}\"\nsource = \"{source}\"\n\n");
    // The shards get streams in turn: what is published by attackers comes to that of the honest players, where it costs most.
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n{}\n\
         [queue]\nage = \"5s\"\nlog_bytes = \"8MiB\"\n\n[limits]\nhandshake_timeout = \"3s\"\nsession_timeout = \"5s\"\n\n\
         [report]\nevery = \"1s\"\nformat = \"logfmt\"\n\n{}{}{}{}{}",
        certificate.keys(),
        stream("t", "test"),
        stream("cam", &format!("rtsp://{camera}/x")),
        stream("sets", "publish"),
        stream("unused", "publish"),
        stream("tiny", "publish"),
    ))
    .serving("/t");
    let http = http_address(&relay);
    let mut hello = Vec::new();
    connection(&certificate.trusted()).write_tls(&mut hello).unwrap();
    let before = Vitals::of(&relay, http);
    let siege = Siege { relay: &relay, http, hello, over: AtomicBool::new(false), done: Default::default() };
    let relay = &relay;
    let [over, calm_over, siege_over] = &[const { AtomicBool::new(false) }; 3];
    let [from_before, in_calm, in_siege] = [const { Mutex::new(Vec::new()) }; 3];
    std::thread::scope(|scope| {
        let _ends = [over, calm_over, siege_over].map(EndsThem);
        if soak().is_some() {
            // The logs of two published streams remain, whether there was one publisher or half an hour of them. The sleep is how long the
            // attackers attack, and not a wait for a condition.
            siege.with_attackers(0, || std::thread::sleep(SHORT));
        }
        let play = |over, sessions| (0..HONEST).map(move |_| scope.spawn(move || plays_on(relay, over, sessions)));
        let left_alone =
            || wait_until("the others have left", DEADLINE, || Vitals::of(relay, http).clients <= HONEST as u64);
        let mut honest: Vec<_> = play(over, &from_before).collect();
        all_joined(&from_before);
        honest.extend(play(calm_over, &in_calm));
        let calm = measured(http, lasts / CALM_PART, &in_calm);
        calm_over.store(true, Ordering::Relaxed);
        left_alone();
        // As after the attack, it includes what those who have just left leave behind.
        let memory = Memory::of(relay).anonymous;
        let (besieged, most) = siege.with_attackers(2 * HONEST, || {
            honest.extend(play(siege_over, &in_siege));
            (measured(http, lasts - lasts / CALM_PART, &in_siege), Memory::of(relay).anonymous)
        });
        println!("p99 {calm:.0} us before, {besieged:.0} us besieged");
        for ((what, _), done) in ATTACKERS.iter().zip(&siege.done) {
            println!("{what}: {} times", done.load(Ordering::Relaxed));
            assert!(done.load(Ordering::Relaxed) > 0, "{what} was never there");
        }
        siege_over.store(true, Ordering::Relaxed);
        left_alone();
        let (bound, since) = (memory + memory * MEMORY_PERCENT / 100, Instant::now());
        let mut after = Memory::of(relay).anonymous;
        while soak().is_some() && after > bound && since.elapsed() < DEADLINE {
            // The pause between two looks. Not `wait_until`, because what it has come to is printed, and judged below, also if it is too much.
            std::thread::sleep(Duration::from_millis(100));
            after = Memory::of(relay).anonymous;
        }
        over.store(true, Ordering::Relaxed);
        let frames: Vec<usize> =
            honest.into_iter().map(|player| player.join().expect("a player lost something")).collect();
        println!("frames of the honest: {frames:?}");
        let [before, most, after] = [memory, most, after].map(|bytes| bytes as f64 / MIB);
        println!("memory {before:.1} MiB before, {most:.1} MiB besieged, {after:.1} MiB after");
        if soak().is_some() {
            assert!(after <= bound as f64 / MIB, "memory {before:.1} MiB before, {after:.1} MiB after");
            assert!(besieged <= P99_FACTOR * calm, "p99 {calm:.0} us before, {besieged:.0} us besieged");
        }
    });
    before.come_back(relay, http, DEADLINE);
    let printed = relay.printed();
    assert!(!printed.contains("panicked") && !printed.contains("a bug in rtsprelay"), "{printed}");
}
