//! Cameras that may send any wrong byte: the relay keeps running, and its other streams are not affected.
//!
//! `RTSPRELAY_HOSTILE_CONNECTIONS=20000` makes the run longer, `RTSPRELAY_HOSTILE_SEED=…` repeats a run's damage.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::machine::beside_others;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::wait_until;

/// Streams from a camera behind the damage.
const STREAMS: usize = 16;

/// By how much the relay's memory may grow.
const GROWTH_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Which part of a connection is damaged.
#[derive(Clone, Copy)]
enum Where {
    /// The start: the camera's answers.
    Answers,
    /// Only digits, so the rest is understood.
    Numbers,
    /// What follows after this many bytes: packets, and answers between them.
    Behind(usize),
}

/// Sits between the relay and a good camera, and damages what the camera sends.
struct Spoiler {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Spoiler {
    fn start(camera: SocketAddr, seed: u64) -> Spoiler {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        std::thread::spawn(move || {
            for relay in listener.incoming() {
                let number = count.fetch_add(1, Ordering::SeqCst) as u64;
                let Ok(relay) = relay else { continue };
                // The camera is gone at the end.
                let Ok(camera) = TcpStream::connect(camera) else { return };
                let (mut from, mut to) = (relay.try_clone().unwrap(), camera.try_clone().unwrap());
                std::thread::spawn(move || {
                    // Either end may be closed by now.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                std::thread::spawn(move || {
                    spoil(&camera, &relay, fastrand::Rng::with_seed(seed.wrapping_add(number)));
                    let _ = camera.shutdown(Shutdown::Both);
                    let _ = relay.shutdown(Shutdown::Both);
                });
            }
        });
        Spoiler { address, connections }
    }
}

/// Forwards the camera's data, with damage, until either end closes or it disconnects them.
fn spoil(mut camera: &TcpStream, mut relay: &TcpStream, mut rng: fastrand::Rng) {
    let place = match rng.u8(..3) {
        0 => Where::Answers,
        1 => Where::Numbers,
        _ => Where::Behind(rng.usize(2_000..20_000)),
    };
    // Most are damaged now and then, some in every piece.
    let odds = [1, 2, 10][rng.usize(..3)];
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    while let Ok(len @ 1..) = camera.read(&mut buffer) {
        let mut bytes = buffer[..len].to_vec();
        let here = match place {
            Where::Answers | Where::Numbers => passed < 4_000 || rng.u8(..10) == 0,
            Where::Behind(start) => passed >= start,
        };
        passed += len;
        if here && rng.u8(..odds) == 0 {
            for _ in 0..rng.u8(1..4) {
                match place {
                    Where::Numbers => spoil_number(&mut bytes, &mut rng),
                    _ => spoil_bytes(&mut bytes, &mut rng),
                }
            }
        }
        if relay.write_all(&bytes).is_err() || (here && rng.u8(..200) == 0) {
            return;
        }
    }
}

fn spoil_number(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    const NUMBERS: [&[u8]; 9] =
        [b"0", b"-1", b"1", b"65535", b"65536", b"4294967296", b"99999999999999999999", b"", b"1e9"];
    let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    let Some(&at) = rng.choice(&digits) else { return };
    let len = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = NUMBERS[rng.usize(..NUMBERS.len())];
    bytes.splice(at..at + len, number.iter().copied());
}

fn spoil_bytes(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(..bytes.len());
    let end = (at + rng.usize(1..40)).min(bytes.len());
    match rng.u8(..8) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = *rng.choice(b"\0\xff$\r\n:;,=-9 ").unwrap(),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        4 => {
            let random: Vec<u8> = (0..end - at).map(|_| rng.u8(..)).collect();
            bytes.splice(at..at, random);
        }
        5 => bytes[at..end].fill(rng.u8(..)),
        6 => {
            // A plausible header in front of something else.
            let header = [b'$', rng.u8(..6), rng.u8(..), rng.u8(..), 0x80 | rng.u8(..64), rng.u8(..), rng.u8(..), 0];
            bytes.splice(at..at, header);
        }
        _ => bytes.truncate(at),
    }
}

/// Plays a stream until the relay ends it.
fn watch(relay: SocketAddr, name: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(relay)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 16 * 1024];
    let url = format!("rtsp://{relay}/{name}");
    let mut session = String::new();
    for (method, track, header) in
        [("SETUP", "/trackID=0", "Transport: RTP/AVP/TCP;unicast\r\n"), ("PLAY", "", "Range: npt=0-\r\n")]
    {
        write!(stream, "{method} {url}{track} RTSP/1.0\r\nCSeq: 1\r\n{header}{session}\r\n")?;
        let len = stream.read(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let id = answer.split("Session: ").nth(1).and_then(|rest| rest.split([';', '\r']).next()).unwrap_or_default();
        session = format!("Session: {id}\r\n");
    }
    for _ in 0..1_000 {
        if stream.read(&mut buffer)? == 0 {
            break;
        }
    }
    Ok(())
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Bytes of memory that a process has.
fn resident_bytes(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("the relay runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn cameras_that_send_rubbish_end_nothing_but_themselves() {
    let _turn = beside_others();
    let seed = from_environment("RTSPRELAY_HOSTILE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let wanted = from_environment("RTSPRELAY_HOSTILE_CONNECTIONS").unwrap_or(120) as usize;
    println!("RTSPRELAY_HOSTILE_SEED={seed}");
    let camera = Relay::start(command(Uring::AsAsked, &["demo", "--listen", "127.0.0.1:0"])).serving("/");
    let spoiler = Spoiler::start(camera.address(), seed);
    let mut config = "listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n".to_owned();
    config += &format!("[[stream]]\nname = \"good\"\nsource = \"{}\"\n", camera.url("/test"));
    for number in 0..STREAMS {
        let url = format!("rtsp://{}/test", spoiler.address);
        // Several, in turn, so there is always a new connection.
        let sources = vec![format!("\"{url}\""); 8].join(", ");
        let transport = if number % 8 == 7 { "udp" } else { "tcp" };
        config += &format!("[[stream]]\nname = \"bad{number}\"\nsource = [{sources}]\ntransport = \"{transport}\"\n");
    }
    let relay = Relay::configured(&config).serving("/good");
    let mut good = Client::connect(relay.address());
    good.play_everything(&relay.url("/good"));
    let before = resident_bytes(&relay);
    let mut frames = 0u64;
    let patience = Duration::from_secs(60 + wanted as u64);
    wait_until("enough connections have been damaged", patience, || {
        // The good stream continues all the time.
        good.frame_on(0);
        frames += 1;
        // Somebody watches the others.
        if frames.is_multiple_of(15) {
            let (address, name) = (relay.address(), format!("bad{}", fastrand::usize(..STREAMS)));
            // It may be disconnected at any time.
            std::thread::spawn(move || watch(address, &name));
        }
        spoiler.connections.load(Ordering::SeqCst) >= wanted
    });
    let grown = resident_bytes(&relay).saturating_sub(before);
    println!("{} connections, {frames} good frames, {} KiB more memory", wanted, grown / 1024);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more than at the start");
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(Duration::from_secs(10));
    assert!(status.success(), "{status}");
    assert!(!printed.contains("panicked"), "{printed}");
}
