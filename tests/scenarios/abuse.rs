//! Attempts to exhaust the relay or to abuse it against others: the cost of each is limited, and other clients are not affected.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rtsprelay::limits::{
    ANNOUNCE_BYTES_MAX, AUTH_FAILURES_MAX, LOG_CLIENT_BYTES_MAX, STRANGERS_BYTES_MAX, clients_per_address_share,
};
use rtsprelay::wire::auth;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{alone, beside_others};
use crate::harness::program::Program;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Answer, Client, stream_from};
use crate::harness::vitals::Memory;
use crate::harness::{DEADLINE, SYSTEM_PYTHON, scratch_file, test_file, wait_until};

const MIB: u64 = 1 << 20;

/// The test pattern at `/t`, a published stream at `/live`, and pages.
fn relay(keys: &str) -> Relay {
    let streams = "[[stream]]\nname = \"t\"\nsource = \"test\"\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n";
    Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n\n{keys}\n\n{streams}"
    ))
    .serving("/t")
}

/// ANNOUNCE of these media lines for a path.
fn announce(client: &mut Client, relay: &Relay, path: &str, media: &str) -> Answer {
    let sdp = format!("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n{media}");
    let length = sdp.len().to_string();
    let headers = [("Content-Type", "application/sdp"), ("Content-Length", length.as_str())];
    let request = client.compose("ANNOUNCE", &relay.url(path), &headers) + &sdp;
    client.send_raw(request.as_bytes());
    client.answer()
}

/// A publisher of these media lines at `/live`, with one track interleaved in its connection.
fn publisher(relay: &Relay, media: &str) -> Client {
    publisher_at(relay, "/live", media).expect("it may publish")
}

/// The same for any path; `None` if it is taken.
pub fn publisher_at(relay: &Relay, path: &str, media: &str) -> Option<Client> {
    let mut client = Client::connect(relay.address());
    announce(&mut client, relay, path, media).expect(200);
    let url = relay.url(path);
    let transport = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1;mode=record")];
    let answer = client.request("SETUP", &format!("{url}/trackID=0"), &transport).expect(200);
    client.session = answer.session().map(str::to_owned);
    (client.request("RECORD", &url, &[]).status == 200).then_some(client)
}

#[test]
fn frames_of_one_byte_take_no_more_memory_than_the_log_may() {
    const LOG: u64 = 4 * MIB;
    const FRAMES: u32 = 400_000;
    let _turn = alone();
    let relay = relay(&format!("[queue]\nlog_bytes = \"{}MiB\"\nage = \"15s\"\nstall_timeout = \"60s\"\n", LOG / MIB));
    let before = Memory::of(&relay).anonymous;
    let mut publisher = publisher(&relay, "m=audio 0 RTP/AVP 0\r\na=control:trackID=0\r\n");
    let mut batch = Vec::new();
    let mut most = 0;
    for number in 0..FRAMES {
        batch.extend_from_slice(&[b'$', 0, 0, 13, 0x80, 0x80]);
        batch.extend_from_slice(&(number as u16).to_be_bytes());
        batch.extend_from_slice(&(number * 8).to_be_bytes());
        batch.extend_from_slice(&[0, 0, 0, 7, 0xD5]);
        if number % 1_000 == 999 {
            publisher.send_raw(&batch);
            batch.clear();
            // What arrives faster than it can be processed is dropped on the way.
            std::thread::sleep(Duration::from_millis(10));
        }
        if number % 20_000 == 19_999 {
            most = most.max(Memory::of(&relay).anonymous);
        }
    }
    // What is on its way is processed.
    let mut last = 0;
    wait_until("all of it has come", DEADLINE, || {
        // The time between two checks: memory that did not grow in between has stopped growing.
        std::thread::sleep(Duration::from_millis(300));
        let metrics = get(http_address(&relay), "/metrics").1;
        let now = value(&metrics, "rtsprelay_source_bytes_total{stream=\"live\"") as u64;
        std::mem::replace(&mut last, now) == now
    });
    most = most.max(Memory::of(&relay).anonymous);
    let grown = most.saturating_sub(before);
    println!("{last} bytes of frames; memory {} MiB before, {} MiB at most", before / MIB, most / MIB);
    assert!(grown <= 8 * LOG, "{} MiB for a log of {} MiB", grown / MIB, LOG / MIB);
    assert!(last > u64::from(FRAMES) * 13 / 4, "too few bytes for a meaningful test: {last} bytes");
    drop(publisher);
    wait_until("the log is freed", DEADLINE, || {
        let metrics = get(http_address(&relay), "/metrics").1;
        value(&metrics, "rtsprelay_log_bytes{stream=\"live\"") == 0.0
    });
    println!("{} MiB after", Memory::of(&relay).anonymous / MIB);
}

/// A camera that gives the same answer to everything.
pub fn insolent_camera(reason: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut cseq = String::new();
            while let Some(Ok(line)) = lines.next() {
                if let Some(number) = line.strip_prefix("CSeq:") {
                    cseq = number.trim().to_owned();
                }
                if line.is_empty() && write!(stream, "RTSP/1.0 404 {reason}\r\nCSeq: {cseq}\r\n\r\n").is_err() {
                    break;
                }
            }
        }
    });
    address
}

#[test]
fn what_cameras_and_players_say_bans_nobody_and_turns_no_line_around() {
    let _turn = beside_others();
    let reason = "authentication failed client=203.0.113.9 user=\"-\" \u{202e}\u{2028}back";
    let camera = insolent_camera(reason);
    for format in ["logfmt", "json"] {
        let relay = Relay::configured(&format!(
            "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\n[report]\nevery = \"200ms\"\nformat = \"{format}\"\n\n\
             [[stream]]\nname = \"cam\"\nsource = \"rtsp://{camera}/x\"\n\n\
             [[stream]]\nname = \"t\"\nsource = \"test\"\n"
        ))
        .serving("/t");
        let mut player = Client::connect(relay.address());
        let named = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1"), ("User-Agent", "x\u{202e}\u{2028}y")];
        let answer = player.request("SETUP", &relay.url("/t/trackID=0"), &named).expect(200);
        player.session = answer.session().map(str::to_owned);
        player.play(&relay.url("/t")).expect(200);
        wait_until("the camera's fault is reported", DEADLINE, || {
            let status = get(http_address(&relay), "/status").1;
            relay.printed().contains("cam") && status.contains("fault\":\"")
        });
        let printed = relay.printed();
        let mut status = get(http_address(&relay), "/status").1;
        println!("{}", printed.lines().find(|line| line.contains("WARN")).unwrap_or_default());
        wait_until("the player is reported", DEADLINE, || {
            status = get(http_address(&relay), "/status").1;
            status.contains("user_agent\":\"x")
        });
        for text in [&printed, &status] {
            assert!(!text.contains(['\u{202e}', '\u{2028}']), "{text}");
        }
        let document = std::fs::read_to_string(test_file("../docs/USERS.md")).unwrap();
        let expression = document.lines().find_map(|line| line.strip_prefix("failregex = ")).unwrap();
        let python = "import re, sys\n\
            print([line for line in sys.stdin if re.search(sys.argv[1].replace('<HOST>', r'[0-9a-fA-F.:]+'), line)])";
        let file = scratch_file("said.log");
        std::fs::write(&file, &printed).unwrap();
        let mut command = Command::new(SYSTEM_PYTHON);
        command.args(["-c", python, expression]).stdin(std::fs::File::open(&file).unwrap());
        let matched = Program::start_fed(command).finish(DEADLINE).expect_silent_success().stdout;
        std::fs::remove_file(&file).unwrap();
        assert_eq!(matched.trim(), "[]");
    }
}

#[test]
fn refusals_fill_no_log() {
    let _turn = beside_others();
    let relay = relay("");
    let before = relay.printed().len();
    let transport = format!("RTP/AVP;multicast;destination={}", "x".repeat(400));
    for _ in 0..16 {
        let mut client = Client::connect(relay.address());
        let url = relay.url("/t/trackID=0");
        let flood: String = (0..200).map(|_| client.compose("SETUP", &url, &[("Transport", &transport)])).collect();
        client.send_raw(flood.as_bytes());
        for _ in 0..200 {
            client.answer().expect(461);
        }
    }
    wait_until("what was left out is reported", DEADLINE, || relay.printed().contains("more lines like this one"));
    let printed = relay.printed();
    let told = printed.len() - before;
    println!("3,200 refusals, {told} bytes of log");
    // The log has no colours here, and few lines that are not about clients.
    assert!(told <= LOG_CLIENT_BYTES_MAX as usize + 64 * 1024, "{told} bytes");
    assert!(printed.contains("refused (461)"));
}

/// By how much the relay's memory grows, at most, while this many clients each send the same and read nothing. They stay connected as
/// long as the returned value exists. Frames of the test pattern are the clock.
fn grown_by_strangers(relay: &Relay, player: &mut Client, strangers: usize, part: &[u8]) -> (u64, Vec<TcpStream>) {
    let before = Memory::of(relay).anonymous;
    let mut crowd = Vec::new();
    let mut most = 0;
    for number in 0..strangers {
        let mut stream = stream_from([127, 0, 1, (number % 200) as u8].into(), relay.address());
        // No waiting for what the relay has stopped reading.
        stream.set_nonblocking(true).unwrap();
        // It may have to make room for another one, and this one may be next.
        let _ = stream.write_all(part);
        crowd.push(stream);
        if number % 100 == 99 {
            player.frame_on(0);
            most = most.max(Memory::of(relay).anonymous);
        }
    }
    // What the kernel still holds for the relay is read.
    let mut last = 0;
    wait_until("all of it has been read", DEADLINE, || {
        for _ in 0..10 {
            player.frame_on(0);
        }
        let now = Memory::of(relay).anonymous;
        most = most.max(now);
        std::mem::replace(&mut last, now).abs_diff(now) < MIB / 4
    });
    let grown = most.saturating_sub(before);
    println!("{} MiB were sent, {} MiB are held", (strangers * part.len()) as u64 / MIB, grown / MIB);
    (grown, crowd)
}

/// Memory that this many clients may take: besides their data, there are the connections, and what the allocator keeps.
fn strangers_may_take(strangers: usize) -> u64 {
    STRANGERS_BYTES_MAX as u64 + strangers as u64 * 2 * 1024 + 12 * MIB
}

#[test]
fn strangers_together_hold_no_more_than_they_may() {
    const STRANGERS: usize = 1_800;
    let _turn = alone();
    let relay = relay("[limits]\nhandshake_timeout = \"60s\"\n");
    let mut player = relay.player("/t");
    // As much as each of them may send without being refused: an incomplete header block and an incomplete body.
    let head = format!("SET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nX: {}\r\n", "x".repeat(14_000));
    let part = format!("{head}Content-Length: 16000\r\n\r\n{}", "y".repeat(15_900));
    let (grown, crowd) = grown_by_strangers(&relay, &mut player, STRANGERS, part.as_bytes());
    assert!(grown <= strangers_may_take(STRANGERS), "{} MiB", grown / MIB);
    // A well-behaved client gets in meanwhile.
    let _another = relay.player("/t");
    player.frame_on(0);
    drop(crowd);
    // A body is not large before anybody is known.
    let mut large = Client::connect(relay.address());
    let url = relay.url("/t");
    let request = large.compose("SET_PARAMETER", &url, &[("Content-Length", "60000")]);
    large.send_raw(request.as_bytes());
    large.answer().expect(413);
}

#[test]
fn answers_that_strangers_do_not_read_take_no_more_than_they_may() {
    const STRANGERS: usize = 600;
    let _turn = alone();
    let relay = relay("[limits]\nhandshake_timeout = \"60s\"\n");
    let mut player = relay.player("/t");
    // They are refused, with the reason.
    let request = format!("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nRequire: {}\r\n\r\n", "y".repeat(12_000));
    let (grown, crowd) = grown_by_strangers(&relay, &mut player, STRANGERS, request.repeat(60).as_bytes());
    assert!(grown <= strangers_may_take(STRANGERS), "{} MiB", grown / MIB);
    player.frame_on(0);
    drop(crowd);
}

/// A request with credentials, after the challenge to one without.
fn asked(client: &mut Client, url: &str, user: &str, password: &str) -> u16 {
    let challenge = client.request("DESCRIBE", url, &[]).expect(401);
    let header = challenge.header("WWW-Authenticate").unwrap();
    let value = auth::answer(header, user, password, "DESCRIBE", url).unwrap();
    client.request("DESCRIBE", url, &[("Authorization", &value)]).status
}

#[test]
fn wrong_passwords_of_one_user_keep_no_other_out_behind_the_same_address() {
    let _turn = beside_others();
    let user = |name: &str| format!("[[user]]\nname = \"{name}\"\npassword = \"secret\"\n\n");
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n\n{}{}{}",
        user("viewer"),
        user("guest"),
        user("stranger")
    ));
    let (address, url) = (relay.address(), relay.url("/t"));
    wait_until("the stream is up", DEADLINE, || asked(&mut Client::connect(address), &url, "viewer", "secret") == 200);
    for name in ["viewer", "stranger"] {
        let guesses: Vec<_> = (0..AUTH_FAILURES_MAX)
            .map(|_| {
                let url = url.clone();
                std::thread::spawn(move || asked(&mut Client::connect(address), &url, name, "guess"))
            })
            .collect();
        guesses.into_iter().for_each(|guess| assert!([401, 403].contains(&guess.join().unwrap())));
    }
    // A user who is unknown at this address is refused, …
    assert_eq!(asked(&mut Client::connect(address), &url, "stranger", "secret"), 403);
    // … other users are not affected, and a user who was here before is only delayed.
    assert_eq!(asked(&mut Client::connect(address), &url, "guest", "secret"), 200);
    assert_eq!(asked(&mut Client::connect(address), &url, "viewer", "secret"), 200);
}

#[test]
fn pages_are_for_this_machine_and_a_connection_asks_only_so_much() {
    let _turn = beside_others();
    let relay = relay("");
    let http = http_address(&relay);
    let ask = |text: &str| {
        let mut stream = TcpStream::connect(http).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A reset connection has said what it had to say.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let status = |host: &str| {
        let answer = ask(&format!("GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or(0)
    };
    for host in ["attacker.example", "attacker.example:80", "127.0.0.1.attacker.example"] {
        assert_eq!(status(host), 421, "a page from elsewhere that calls the relay {host}");
    }
    for host in [http.to_string(), "localhost".into(), "[::1]:80".into()] {
        assert_eq!(status(&host), 200, "{host}");
    }
    let answers = ask(&"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(500));
    let count = answers.matches("HTTP/1.1 200").count();
    assert!((1..=64).contains(&count), "{count} answers in one connection");
}

#[test]
fn a_publishers_description_is_short_and_says_what_players_need() {
    let _turn = beside_others();
    let relay = relay("");
    let track = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n";
    let long = format!("{track}a=fmtp:96 sprop-parameter-sets={}\r\n", "A".repeat(ANNOUNCE_BYTES_MAX));
    announce(&mut Client::connect(relay.address()), &relay, "/live", &long).expect(413);

    let attributes = "a=fmtp:96 packetization-mode=1; host=127.1; x=\u{ff11}\u{ff12}\u{ff17}.\u{ff11}\r\n\
        a=framerate:25\r\na=x-host:127.1\r\na=x-url://camera/\r\na=x-note:\u{202e}moc.live\r\n\
        a=x-wide:\u{ff11}\u{ff10}.\u{ff10}.\u{ff10}.\u{ff11}\r\na=tool:camera at 10.1\r\na=control:trackID=0\r\n";
    let mut publisher = publisher(&relay, &format!("{track}{attributes}"));
    // A keyframe, so the stream becomes live.
    let mut packet = vec![b'$', 0, 0, 16, 0x80, 0xE0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0x65, 0x88, 0x84, 0];
    publisher.send_raw(&packet);
    packet[7] = 2;
    publisher.send_raw(&packet);
    let mut described = Answer::default();
    wait_until("it can be described", DEADLINE, || {
        described = Client::connect(relay.address()).describe(&relay.url("/live"));
        described.status == 200
    });
    let sdp = &described.body;
    assert!(sdp.is_ascii() && sdp.contains("packetization-mode=1") && sdp.contains("a=framerate:25"), "{sdp}");
    for passed in ["127.1", "10.1", "camera", "x-host", "x-url", "x-note", "x-wide", "host", "tool"] {
        assert!(!sdp.contains(passed), "{passed}: {sdp}");
    }
}

#[test]
fn one_address_leaves_room_for_others_without_being_told_to() {
    const CLIENTS: usize = 100;
    let _turn = beside_others();
    let relay = Relay::configured(&format!(
        "listen = [\"0.0.0.0:0\"]\nhttp = \"127.0.0.1:0\"\n\n[limits]\nclients = {CLIENTS}\n\n\
         [[stream]]\nname = \"t\"\nsource = \"test\"\n"
    ));
    let at = SocketAddr::from(([127, 0, 0, 1], relay.address().port()));
    let url = format!("rtsp://{at}/t");
    wait_until("it is up", DEADLINE, || Client::connect(at).describe(&url).status == 200);
    let share = clients_per_address_share(CLIENTS);
    assert!(relay.printed().contains(&format!("clients_per_address={share}")), "{}", relay.printed());
    let greedy = IpAddr::from([127, 0, 0, 66]);
    let mut had = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::connect_from(greedy, at);
        if !client.is_served("DESCRIBE", &url) {
            continue;
        }
        let transport = [("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1")];
        if client.request("SETUP", &format!("{url}/trackID=0"), &transport).status == 200 {
            had.push(client);
        }
    }
    assert_eq!(had.len(), share);
    let mut other = Client::connect_from([127, 0, 0, 67].into(), at);
    other.play_everything(&url);
    other.frame_on(0);
}

#[test]
fn parameter_sets_that_change_all_the_time_delay_nobody() {
    let _turn = beside_others();
    let relay = relay("");
    let mut watcher = Client::connect(relay.address());
    watcher.play_everything(&relay.url("/t"));
    let mut publisher = publisher(&relay, "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n");
    // Aggregates of 64 KiB of parameter sets, each different from the one before, and a picture of one byte.
    let started = Instant::now();
    let mut number = 0_u32;
    while started.elapsed() < Duration::from_secs(2) {
        let mut payload = vec![0x78];
        while payload.len() < 60_000 {
            number += 1;
            payload.extend_from_slice(&[0, 6, 0x68, 0xeb]);
            payload.extend_from_slice(&number.to_be_bytes());
        }
        payload.extend_from_slice(&[0, 2, 0x65, 0x88]);
        let mut frame = vec![b'$', 0];
        frame.extend_from_slice(&((payload.len() + 12) as u16).to_be_bytes());
        frame.extend_from_slice(&[0x80, 0xE0]);
        frame.extend_from_slice(&(number as u16 / 7_500).to_be_bytes());
        frame.extend_from_slice(&number.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 7]);
        frame.extend_from_slice(&payload);
        publisher.send_raw(&frame);
        if number.is_multiple_of(10) {
            watcher.frame_on(0);
        }
    }
    watcher.frame_on(0);
    let described = Client::connect(relay.address()).describe(&relay.url("/live"));
    assert!([200, 503].contains(&described.status), "{described:?}");
}
