//! Attacks on the real binary, one by one: what is sent, and that it does no harm. The table is in
//! `docs/journal/2026-11-22-attacks.md`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rtsprelay::limits::{MOVES_MAX, REQUEST_HEADERS_MAX};
use rtsprelay::wire::auth;

use crate::harness::datagrams::Ports;
use crate::harness::http::{get, http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Answer, Client};
use crate::harness::vitals::Vitals;
use crate::harness::{DEADLINE, wait_until};

/// Not the player's address.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// The test pattern at `/t`, a published stream at `/live`, and pages.
fn relay(keys: &str) -> Relay {
    let streams = "[[stream]]\nname = \"t\"\nsource = \"test\"\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n";
    Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n\n{keys}\n\n{streams}"
    ))
    .serving("/t")
}

/// A connection from another address.
fn from_elsewhere(relay: &Relay) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((STRANGER, 0)).into()).unwrap();
    socket.connect(&relay.address().into()).unwrap();
    Client::over(socket.into())
}

/// The status of the answer to these bytes (0: closed without one), and whether the connection was closed.
fn say(relay: &Relay, bytes: &[u8]) -> (u16, bool) {
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    // The relay may have closed it before everything was written.
    let _ = stream.write_all(bytes);
    let probe = b"OPTIONS * RTSP/1.0\r\nCSeq: 777\r\n\r\n";
    let _ = stream.write_all(probe);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut text, mut chunk, mut closed) = (Vec::new(), [0; 4_096], false);
    while !String::from_utf8_lossy(&text).contains("CSeq: 777") {
        match stream.read(&mut chunk) {
            Ok(0) => closed = true,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => closed = true,
            Err(error) => panic!("{error}: {:?}", String::from_utf8_lossy(&text)),
        }
        if closed {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let first = text.strip_prefix("RTSP/1.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
    (first, closed)
}

/// A request's text with a `CSeq`.
fn request(line: &str, rest: &str) -> Vec<u8> {
    format!("{line} RTSP/1.0\r\nCSeq: 5\r\n{rest}").into_bytes()
}

/// Waits until the relay reports this many playing clients: the counts of a busy shard may be slightly old.
fn has_clients(relay: &Relay, clients: u64) {
    let http = http_address(relay);
    wait_until(&format!("{clients} play"), DEADLINE, || Vitals::of(relay, http).clients == clients);
}

fn still_serves(relay: &Relay) {
    relay.player("/t");
}

fn set_up(client: &mut Client, relay: &Relay, transport: &str) -> Answer {
    client.request("SETUP", &relay.url("/t/trackID=0"), &[("Transport", transport)])
}

#[test]
fn a_session_is_of_no_use_to_another_address_however_its_id_was_found() {
    let _turn = beside_others();
    let relay = relay("");
    let mut owner = Client::connect(relay.address());
    owner.play_everything(&relay.url("/t"));
    let ports = Ports::bind();
    let mut over_udp = Client::connect(relay.address());
    let answer = set_up(&mut over_udp, &relay, &ports.transport()).expect(200);
    over_udp.session = answer.session().map(str::to_owned);
    over_udp.play(&relay.url("/t")).expect(200);

    for id in [owner.session.clone().unwrap(), over_udp.session.clone().unwrap()] {
        for method in ["PLAY", "PAUSE", "GET_PARAMETER", "SET_PARAMETER", "SETUP", "RECORD", "TEARDOWN"] {
            let mut thief = from_elsewhere(&relay);
            let transport = ports.transport();
            let headers = [("Session", id.as_str()), ("Transport", &transport)];
            thief.request(method, &relay.url("/t/trackID=0"), &headers).expect(454);
        }
    }
    // Guessed session ids, close to a real one and far from it, and strings that are no ids.
    let real = u64::from_str_radix(owner.session.as_ref().unwrap(), 16).unwrap();
    for guess in (0..80).map(|step| real.wrapping_add(step)).chain((0..80).map(|_| fastrand::u64(..))) {
        // A client that keeps guessing ids of different shards is disconnected.
        let mut thief = from_elsewhere(&relay);
        thief.request("TEARDOWN", &relay.url("/t"), &[("Session", &format!("{guess:016x}"))]).expect(454);
    }
    let mut thief = from_elsewhere(&relay);
    for nonsense in ["", "0", "-1", "*", "00000000000000000", "ffffffffffffffffff", "../../x", "a b", "é"] {
        thief.request("TEARDOWN", &relay.url("/t"), &[("Session", nonsense)]).expect(454);
    }
    // Nobody has lost anything.
    owner.frame_on(0);
    ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
    ports.rtp.recv(&mut [0; 2_048]).expect("datagrams go on");
    has_clients(&relay, 2);
}

#[test]
fn who_asks_after_sessions_of_ever_other_shards_gets_no_more_than_a_few_allowances() {
    let _turn = beside_others();
    let relay = relay("");
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answered = 0;
    loop {
        // One for each shard in turn: all but perhaps the first move the connection, which then starts over.
        let head =
            format!("TEARDOWN {} RTSP/1.0\r\nCSeq: 1\r\nSession: {:016x}\r\n\r\n", relay.url("/t"), answered % 2);
        let mut chunk = [0; 4_096];
        match stream.write_all(head.as_bytes()).and_then(|()| stream.read(&mut chunk)) {
            Ok(0) => break,
            Ok(_) => answered += 1,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(answered <= usize::from(MOVES_MAX) + 1, "it goes on");
    }
    assert!(answered >= usize::from(MOVES_MAX));
    let counted =
        || value(&get(http_address(&relay), "/metrics").1, "rtsprelay_limited_total{reason=\"moves\"}") == 1.0;
    wait_until("it is counted", DEADLINE, counted);
}

#[test]
fn interleaved_media_cannot_be_taken_over_from_another_connection_of_the_same_address() {
    let _turn = beside_others();
    let relay = relay("");
    let mut owner = Client::connect(relay.address());
    owner.play_everything(&relay.url("/t"));
    // As often as needed to get to the session's shard, too.
    for _ in 0..4 {
        let mut other = Client::connect(relay.address());
        other.session = owner.session.clone();
        other.request("PLAY", &relay.url("/t"), &[]).expect(455);
        set_up(&mut other, &relay, "RTP/AVP/TCP;unicast;interleaved=0-1").expect(455);
        assert!(other.packet_within(Duration::from_millis(200)).is_none(), "media on somebody else's connection");
    }
    owner.frame_on(0);
}

#[test]
fn no_path_leads_anywhere_but_to_the_streams() {
    let _turn = beside_others();
    let relay = relay("");
    let host = relay.address();
    // The log mentions the first, with characters escaped that could affect a terminal, and without the password.
    let asked = format!("rtsp://me:secret@{host}/\u{202e}nothing");
    Client::connect(host).describe(&asked).expect(404);
    // The truncation of a long URL may fall within a password.
    Client::connect(host).describe(&format!("rtsp://me:{}@{host}/nothing", "secret".repeat(200))).expect(404);
    let mut log = String::new();
    wait_until("the log mentions it", DEADLINE, || {
        log = relay.printed();
        log.matches("refused (404): no such stream or track").count() == 2
    });
    assert!(log.contains("\\u{202e}nothing") && !log.contains('\u{202e}') && !log.contains("secret"), "{log}");
    let long = "a".repeat(12_000);
    let mut client = Client::connect(host);
    for (path, status) in [
        ("/t", 200),
        ("/%74", 200),
        ("//t//", 200),
        ("/t?/../../etc/passwd", 200),
        ("/t#/../x", 200),
        ("/../t", 404),
        ("/t/..", 404),
        ("/x/../t", 404),
        ("/%2e%2e/t", 404),
        ("/..%2f..%2fetc%2fpasswd", 404),
        ("/t%00", 404),
        ("/t%00.sdp", 404),
        ("/t%0d%0aX:%20y", 404),
        ("/%2574", 404),
        ("/T", 404),
        ("/t;x=y", 404),
        ("/t/trackID=0", 404),
        ("/t/trackID=99999999999999999999", 404),
        ("/\\t", 404),
        ("/*", 404),
        ("/%", 404),
        ("/\u{202e}t", 404),
        (&format!("/{long}"), 404),
    ] {
        let answer = client.describe(&format!("rtsp://{host}{path}"));
        assert_eq!(answer.status, status, "{path}");
    }
    for (url, status) in [
        ("*", 404),
        ("http://example.org/t", 404),
        ("file:///etc/passwd", 404),
        ("rtsp://example.org/nothing", 404),
        ("rtsp://", 404),
        ("rtsp:/t", 404),
        ("//example.org/t", 404),
    ] {
        assert_eq!(client.describe(url).status, status, "{url}");
    }
    // Another host's name is only echoed to the client that sent it (virtual hosts, translated addresses); its credentials are not.
    let answer = client.describe("rtsp://me:secret@example.org:1/t").expect(200);
    assert_eq!(answer.header("Content-Base"), Some("rtsp://example.org:1/t/"));
    assert!(!format!("{answer:?}").contains("secret"), "{answer:?}");
    assert_eq!(say(&relay, b"DESCRIBE rtsp://x/t\0 RTSP/1.0\r\nCSeq: 1\r\n\r\n"), (0, true));
}

#[test]
fn no_header_hides_a_second_request() {
    let _turn = beside_others();
    let relay = relay("");
    let hidden = "TEARDOWN rtsp://x/t RTSP/1.0\r\nCSeq: 6\r\n\r\n";
    let with = |headers: &str, body: &str| request("SET_PARAMETER rtsp://x/t", &format!("{headers}\r\n{body}"));
    let length = hidden.len();
    // One answer only: the hidden request was the body.
    let mut client = Client::connect(relay.address());
    client.send_raw(&with(&format!("Content-Length: {length}\r\n"), hidden));
    client.answer().expect(451);
    client.request("OPTIONS", "*", &[]).expect(200);

    const CLOSED: (u16, bool) = (400, true);
    for (headers, expected) in [
        // Two equal ones count as one.
        ("Content-Length: 0\r\nContent-Length: 0\r\n", (200, false)),
        ("Content-Length: 0\r\nContent-Length: 5\r\n", CLOSED),
        ("Content-Length: 5\r\ncontent-length : 0\r\n", CLOSED),
        ("Content-Length: -1\r\n", CLOSED),
        ("Content-Length: +0\r\n", CLOSED),
        ("Content-Length: 0x0\r\n", CLOSED),
        ("Content-Length: 0, 0\r\n", CLOSED),
        ("Content-Length: \r\n", CLOSED),
        ("Content-Length: 99999999999999999999999\r\n", (413, true)),
        ("Content-Length: 18446744073709551616\r\n", (413, true)),
        ("Content-Length: 65537\r\n", (413, true)),
        // Folded lines: neither a length that only some parsers see, nor one within another value.
        ("Content-Length:\r\n 0\r\n", CLOSED),
        ("Content-Length: 0\r\n 5\r\n", CLOSED),
        ("X: y\r\n Content-Length: 5\r\n", CLOSED),
        ("X: y\r\n\tContent-Length: 0\r\n", CLOSED),
        // RTSP has no chunked coding; only the length counts.
        ("Transfer-Encoding: chunked\r\n", (200, false)),
        ("X: a\rContent-Length: 5\r\n", CLOSED),
        ("X: a\0b\r\n", CLOSED),
        ("X\r\n", CLOSED),
        (": x\r\n", CLOSED),
        ("X Y: z\r\n", CLOSED),
        ("CSeq: 6\r\n", (200, false)),
    ] {
        assert_eq!(say(&relay, &with(headers, "")), expected, "{headers:?}");
    }
    for (cseq, expected) in [
        ("1", (200, false)),
        ("99999999999999999999", (200, false)),
        ("999999999999999999999", (400, false)),
        ("-1", (400, false)),
        ("1 2", (400, false)),
        ("0x1", (400, false)),
        ("", (400, false)),
    ] {
        let text = format!("OPTIONS * RTSP/1.0\r\nCSeq: {cseq}\r\n\r\n");
        assert_eq!(say(&relay, text.as_bytes()), expected, "CSeq: {cseq}");
    }
    for line in
        ["OPTIONS *", "OPTIONS", "OPTIONS * RTSP/1.0 x", " OPTIONS * RTSP/1.0", "GET / HTTP/1.1", "\u{16}\u{3}\u{1}"]
    {
        assert!(say(&relay, format!("{line}\r\nCSeq: 1\r\n\r\n").as_bytes()).1, "{line:?}");
    }
    assert_eq!(say(&relay, b"OPTIONS * RTSP/9.9\r\nCSeq: 1\r\n\r\n"), (505, false));
    still_serves(&relay);
}

#[test]
fn what_is_oversized_is_refused_and_costs_nothing() {
    let _turn = beside_others();
    let relay = relay("");
    let http = http_address(&relay);
    let before = Vitals::of(&relay, http);
    let big = |bytes: usize| "x".repeat(bytes);
    for (what, bytes, expected) in [
        ("a header block", request("OPTIONS *", &format!("X: {}\r\n\r\n", big(20_000))), (413, true)),
        ("a header block without end", request("OPTIONS *", &format!("X: {}", big(200_000))), (413, true)),
        ("a body", request("SET_PARAMETER *", &format!("Content-Length: 70000\r\n\r\n{}", big(70_000))), (413, true)),
        ("many headers", request("OPTIONS *", &("X: y\r\n".repeat(REQUEST_HEADERS_MAX) + "\r\n")), (413, true)),
        ("as many as fit", request("OPTIONS *", &("X: y\r\n".repeat(REQUEST_HEADERS_MAX - 1) + "\r\n")), (200, false)),
        ("a method", request(&format!("{} *", big(15_000)), "\r\n"), (501, false)),
        ("a URL", request(&format!("DESCRIBE rtsp://x/{}", big(15_000)), "\r\n"), (404, false)),
        ("a session", request("PLAY rtsp://x/t", &format!("Session: {}\r\n\r\n", big(15_000))), (454, false)),
        (
            "a list",
            request("SETUP rtsp://x/t/trackID=0", &format!("Transport: {}\r\n\r\n", "a,".repeat(7_000))),
            (461, false),
        ),
        ("a tag", request("OPTIONS *", &format!("Require: {}\r\n\r\n", big(15_000))), (551, false)),
    ] {
        assert_eq!(say(&relay, &bytes), expected, "{what}");
    }
    let mut client = Client::connect(relay.address());
    let name = big(15_000);
    client
        .request("SETUP", &relay.url("/t/trackID=0"), &[("Transport", "RTP/AVP/TCP"), ("User-Agent", &name)])
        .expect(200);
    drop(client);
    before.come_back(&relay, http, DEADLINE);
    still_serves(&relay);
}

#[test]
fn nobody_has_datagrams_sent_to_somebody_else() {
    let _turn = beside_others();
    let relay = relay("");
    // The same ports of both addresses.
    let (ports, victim) = loop {
        let ports = Ports::bind();
        // Another program may have bound the victim's.
        let Ok(victim) = UdpSocket::bind((STRANGER, ports.rtp.local_addr().unwrap().port())) else { continue };
        break (ports, victim);
    };
    let mut client = Client::connect(relay.address());
    let transport = format!("RTP/AVP;unicast;destination={STRANGER};source={STRANGER};client_port={}", ports.pair());
    let answer = set_up(&mut client, &relay, &transport).expect(200);
    let told = answer.header("Transport").unwrap();
    assert!(!told.contains("destination") && !told.contains("source"), "{told}");
    client.session = answer.session().map(str::to_owned);
    client.play(&relay.url("/t")).expect(200);

    // The session's datagrams go to the address of its connection; reports from elsewhere do not change that.
    let server: u16 = answer.transport("server_port").unwrap().split('-').nth(1).unwrap().parse().unwrap();
    let bye = [0x81, 203, 0, 1, 0, 0, 0, 1];
    for _ in 0..100 {
        victim.send_to(&bye, (Ipv4Addr::LOCALHOST, server)).unwrap();
        victim.send_to(&[0x80, 201, 0, 1, 0, 0, 0, 1], (Ipv4Addr::LOCALHOST, server)).unwrap();
        victim.send_to(&[0; 1_000], (Ipv4Addr::LOCALHOST, server - 1)).unwrap();
    }
    victim.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // Datagrams go to the address of the connection.
    ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
    ports.rtp.recv(&mut [0; 2_048]).expect("a datagram");
    assert!(victim.recv(&mut [0; 2_048]).is_err(), "it was sent something");
    has_clients(&relay, 1);

    for (transport, status) in [
        ("RTP/AVP;unicast;client_port=0-1", 461),
        ("RTP/AVP;unicast;client_port=65536-65537", 461),
        ("RTP/AVP;unicast;client_port=-5", 461),
        ("RTP/AVP;unicast;client_port=65535", 461),
        ("RTP/AVP;unicast", 461),
        ("RTP/AVP;multicast", 461),
        ("RTP/AVP;multicast;destination=239.1.1.1;port=5000-5001", 461),
        ("RTP/SAVP;unicast;client_port=5000-5001", 461),
    ] {
        let mut other = Client::connect(relay.address());
        assert_eq!(set_up(&mut other, &relay, transport).status, status, "{transport}");
    }
    // Ports of other services.
    for ports in ["53-54", "123-6000"] {
        let mut other = Client::connect(relay.address());
        set_up(&mut other, &relay, &format!("RTP/AVP;unicast;client_port={ports}")).expect(461);
    }
    // The relay's own ports, of whichever shard, requested from whichever shard.
    for _ in 0..4 {
        let mut other = Client::connect(relay.address());
        set_up(&mut other, &relay, &format!("RTP/AVP;unicast;client_port={}-{server}", server - 1)).expect(461);
    }
    still_serves(&relay);
}

#[test]
fn odd_channels_and_frames_hurt_nobody() {
    let _turn = beside_others();
    let relay = relay("");
    for transport in [
        "RTP/AVP/TCP;unicast;interleaved=0-0",
        "RTP/AVP/TCP;unicast;interleaved=255-256",
        "RTP/AVP/TCP;unicast;interleaved=255",
        "RTP/AVP/TCP;unicast;interleaved=9-3",
        "RTP/AVP/TCP;unicast;interleaved=-1-0",
        "RTP/AVP/TCP;unicast;interleaved=4294967296-1",
    ] {
        let mut client = Client::connect(relay.address());
        let answer = set_up(&mut client, &relay, transport).expect(200);
        let (rtp, rtcp) = answer.transport("interleaved").unwrap().split_once('-').unwrap();
        let (rtp, rtcp): (u8, u8) = (rtp.parse().unwrap(), rtcp.parse().unwrap());
        assert_ne!(rtp, rtcp, "{transport}");
        client.session = answer.session().map(str::to_owned);
        client.play(&relay.url("/t")).expect(200);
        client.packet_on(rtp);
        // Frames on every channel: empty, random, and reports with wrong lengths.
        for channel in 0..=255 {
            client.send_raw(&[b'$', channel, 0, 0]);
            client.send_raw(&[b'$', channel, 0, 8, 0x9F, 201, 0xFF, 0xFF, 1, 2, 3, 4]);
        }
        client.send_raw(&[&[b'$', rtcp, 0xFF, 0xFF][..], &[0xA5; 0xFFFF]].concat());
        client.request("GET_PARAMETER", &relay.url("/t"), &[]).expect(200);
    }
    // Before any session, and one that swallows what follows: it is a frame, whatever its content looks like.
    let mut client = Client::connect(relay.address());
    client.send_raw(b"$\x00\x00\x04abcd$\x00\x00\x22OPTIONS * RTSP/1.0\r\nCSeq: 66\r\n\r\n\0\0");
    client.request("OPTIONS", "*", &[]).expect(200);
    still_serves(&relay);
}

#[test]
fn a_flood_of_setups_ends_at_the_limit_and_leaves_nothing() {
    let _turn = beside_others();
    let relay = relay("[limits]\nclients = 20\nsession_timeout = \"6s\"");
    let http = http_address(&relay);
    let before = Vitals::of(&relay, http);
    let mut client = Client::connect(relay.address());
    // All at once, so that the first has not timed out when the last is answered.
    let flood: String = (0..200u16)
        .map(|number| {
            let transport = format!("RTP/AVP;unicast;client_port={}-{}", 20_000 + number * 2, 20_001 + number * 2);
            client.compose("SETUP", &relay.url("/t/trackID=0"), &[("Transport", &transport)])
        })
        .collect();
    client.send_raw(flood.as_bytes());
    let mut refused = 0;
    for _ in 0..200 {
        let answer = client.answer();
        assert!([200, 453].contains(&answer.status), "{answer:?}");
        refused += u32::from(answer.status == 453);
    }
    // Sixteen from one connection, and twenty in all; none has timed out yet.
    assert!(refused >= 184, "{refused} of 200 were refused");
    let mut another = Client::connect(relay.address());
    for number in 0..10u16 {
        another.session = None;
        let port = 30_000 + number * 2;
        let answer = set_up(&mut another, &relay, &format!("RTP/AVP;unicast;client_port={port}-{}", port + 1));
        assert_eq!(answer.status, if number < 4 { 200 } else { 453 }, "session {number}");
    }
    drop(another);
    drop(client);
    before.come_back(&relay, http, DEADLINE);
    still_serves(&relay);
}

/// Descriptions that no encoder would write.
fn hostile_descriptions() -> Vec<(&'static str, String)> {
    let head = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n";
    let video = "m=video 0 RTP/AVP 96\r\n";
    let one = |attributes: &str| format!("{head}{video}{attributes}");
    vec![
        ("nothing", String::new()),
        ("no media", head.into()),
        ("rubbish", "\u{1}\u{2}\u{3}=\r\n".repeat(50)),
        ("too many tracks", format!("{head}{}", "m=audio 0 RTP/AVP 0\r\n".repeat(17))),
        ("a thousand tracks", format!("{head}{}", "m=audio 0 RTP/AVP 0\r\n".repeat(1_000))),
        ("a clock of zero", one("a=rtpmap:96 H264/0\r\n")),
        ("a clock of one", one("a=rtpmap:96 H264/1\r\n")),
        ("a clock of 2^32 - 1", one("a=rtpmap:96 H264/4294967295\r\n")),
        ("a clock of 2^64", one("a=rtpmap:96 H264/18446744073709551616\r\n")),
        ("a negative clock", one("a=rtpmap:96 H264/-90000\r\n")),
        ("a payload type of 999", format!("{head}m=video 0 RTP/AVP 999\r\na=rtpmap:999 H264/90000\r\n")),
        ("a codec's name of 30 KB", one(&format!("a=rtpmap:96 {}/90000\r\n", "h".repeat(30_000)))),
        ("parameters of 60 KB", one(&format!("a=rtpmap:96 H264/90000\r\na=fmtp:96 {}\r\n", "x=y;".repeat(15_000)))),
        (
            "invalid parameter sets",
            one("a=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=!!!!,,,,====,Z0I\r\n"),
        ),
        ("an empty parameter set", one("a=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=,\r\n")),
        ("invalid H.265 sets", one("a=rtpmap:96 H265/90000\r\na=fmtp:96 sprop-vps=AA;sprop-sps=;sprop-pps=////\r\n")),
        (
            "AAC without a configuration",
            format!("{head}m=audio 0 RTP/AVP 97\r\na=rtpmap:97 mpeg4-generic/44100/65535\r\n"),
        ),
        ("a control that climbs", one("a=rtpmap:96 H264/90000\r\na=control:../../../../etc/passwd\r\n")),
        ("a control elsewhere", one("a=rtpmap:96 H264/90000\r\na=control:rtsp://example.org/x\r\n")),
        ("lines without end", format!("{head}a={}", "z".repeat(50_000))),
        ("NUL and Latin-1", one("a=rtpmap:96 H264/90000\r\na=x:\0\u{e9}\u{ff}\r\n")),
    ]
}

/// Packets that no encoder would send, for all codecs.
fn hostile_packets(rng: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let with = |first: u8, pt: u8, seq: u16, payload: &[u8]| {
        let mut packet = vec![first, pt];
        packet.extend(seq.to_be_bytes());
        packet.extend([0, 0, 0, 1, 0, 0, 0, 2]);
        packet.extend_from_slice(payload);
        packet
    };
    let mut packets: Vec<Vec<u8>> = (0..13).map(|length| vec![0x80; length]).collect();
    for payload in [
        &b""[..],
        b"\x7c",                         // FU-A without its header
        b"\x7c\x45\x00",                 // its end without a start
        b"\x7c\xc5\x00",                 // start and end in one
        b"\x78\xff\xff\x00",             // STAP-A with a size beyond its end
        b"\x78\x00\x00\x00\x00",         // empty units
        b"\x18\x00\x01",                 // cut within its size
        b"\x62\x01\x93\x00",             // H.265 FU
        b"\x60\x01\xff\xff",             // H.265 AP
        b"\x00\x10\xff\xf8\x00",         // AAC with a length beyond its end
        b"\xff\xff\xff\xff\xff\xff\xff", // anything
    ] {
        for first in [0x80, 0x90, 0xA0, 0x8F, 0xBF, 0x00, 0xC0] {
            packets.push(with(first, 96 | (rng.u8(..2) << 7), rng.u16(..), payload));
        }
    }
    // Header extensions and padding that are longer than the packet, and random data.
    packets.push(with(0x90, 96, 9, &[0, 0, 0xFF, 0xFF]));
    packets.push(with(0xA0, 96, 10, &[0x65, 0x88, 0xFF]));
    packets.extend((0..500).map(|_| {
        let payload: Vec<u8> = (0..rng.usize(..1_500)).map(|_| rng.u8(..)).collect();
        with(0x80, 96 | (rng.u8(..2) << 7), rng.u16(..), &payload)
    }));
    packets.push(with(0x80, 96, 11, &[0x65; 65_000]));
    packets
}

#[test]
fn a_hostile_publisher_ends_nothing_but_its_own_session() {
    let _turn = beside_others();
    let relay = relay("");
    let seed = fastrand::u64(..1 << 32);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut watcher = Client::connect(relay.address());
    watcher.play_everything(&relay.url("/t"));
    let url = relay.url("/live");
    for (what, sdp) in hostile_descriptions() {
        let mut publisher = Client::connect(relay.address());
        let length = sdp.len().to_string();
        let headers = [("Content-Type", "application/sdp"), ("Content-Length", length.as_str())];
        let announced = publisher.compose("ANNOUNCE", &url, &headers) + &sdp;
        publisher.send_raw(announced.as_bytes());
        let status = publisher.answer().status;
        println!("{what}: ANNOUNCE {status}");
        if status != 200 {
            continue;
        }
        let setup = publisher.request(
            "SETUP",
            &format!("{url}/x"),
            &[("Transport", "RTP/AVP/TCP;interleaved=0-1;mode=record")],
        );
        publisher.session = setup.session().map(str::to_owned);
        let recorded = publisher.request("RECORD", &url, &[]).status;
        println!("{what}: SETUP {} RECORD {recorded}", setup.status);
        for packet in hostile_packets(&mut rng) {
            let frame = [&[b'$', rng.u8(..4)][..], &(packet.len() as u16).to_be_bytes(), &packet].concat();
            // It may be disconnected for it.
            if publisher.stream().write_all(&frame).is_err() {
                break;
            }
        }
        // Clients may even ask for it.
        let described = Client::connect(relay.address()).describe(&url);
        assert!([200, 503].contains(&described.status), "{what}: {described:?}");
        drop(publisher);
        watcher.frame_on(0);
    }
    still_serves(&relay);
    assert!(!relay.printed().contains("panicked"), "{}", relay.printed());
}

#[test]
fn the_pages_answer_to_nothing_but_get() {
    let _turn = beside_others();
    let relay = relay("");
    let http = http_address(&relay);
    let ask = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(http).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The relay may have closed it before everything was written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        // A reset connection has said what it had to say.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or(0)
    };
    let one = |line: &str| ask(format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    for (line, status) in [
        ("GET /metrics", 200),
        ("HEAD /healthz", 200),
        ("GET http://example.org/healthz", 421),
        ("GET http://localhost/healthz", 200),
        ("GET /healthz?x=%00", 200),
        ("GET /../../etc/passwd", 404),
        ("GET /metrics/../healthz", 404),
        ("GET /%2e%2e/metrics", 404),
        ("GET //metrics", 404),
        ("POST /metrics", 405),
        ("DELETE /status", 405),
        ("TRACE /", 405),
        ("CONNECT example.org:80", 405),
        ("OPTIONS *", 405),
        ("BREW /", 405),
    ] {
        assert_eq!(one(line), status, "{line}");
    }
    for (what, bytes) in [
        (
            "two lengths",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_vec(),
        ),
        ("a bare CR", b"GET / HTTP/1.1\rX: y\r\n\r\n".to_vec()),
        ("NUL", b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("RTSP", b"DESCRIBE rtsp://x/t RTSP/1.0\r\nCSeq: 1\r\n\r\n".to_vec()),
        ("a head of 1 MB", [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat()),
        ("a thousand headers", [b"GET / HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(1_000), b"\r\n".to_vec()].concat()),
    ] {
        let status = ask(&bytes);
        assert!([0, 400, 414, 431].contains(&status), "{what}: {status}");
    }
    assert_eq!(get(http, "/healthz").0, 200);
}

#[test]
fn a_digest_answer_that_was_overheard_opens_nothing_else() {
    let _turn = beside_others();
    let user = "[[user]]\nname = \"viewer\"\npassword = \"secret\"\nstreams = [\"t\"]\n";
    let streams = "[[stream]]\nname = \"t\"\nsource = \"test\"\n\n[[stream]]\nname = \"other\"\nsource = \"test\"\n\n";
    let relay = Relay::configured(&format!("listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n{streams}{user}"));
    let url = relay.url("/t");
    let mut owner = Client::connect(relay.address());
    let answer = |client: &mut Client, method: &str, url: &str, password: &str| {
        let challenge = client.request(method, url, &[]).expect(401);
        auth::answer(challenge.header("WWW-Authenticate").unwrap(), "viewer", password, method, url).unwrap()
    };
    let overheard = answer(&mut owner, "DESCRIBE", &url, "secret");
    wait_until("the stream is up", DEADLINE, || {
        let mut owner = Client::connect(relay.address());
        let fresh = answer(&mut owner, "DESCRIBE", &url, "secret");
        owner.request("DESCRIBE", &url, &[("Authorization", &fresh)]).status == 200
    });
    let with = |client: &mut Client, method: &str, url: &str, value: &str| {
        let headers = [("Authorization", value), ("Transport", "RTP/AVP/TCP;unicast")];
        client.request(method, url, &headers).status
    };
    // From another address, for another method, for another stream, and with the URL changed in both places.
    assert_eq!(with(&mut from_elsewhere(&relay), "DESCRIBE", &url, &overheard), 401);
    let other = relay.url("/other");
    for (method, url, value) in [
        ("SETUP", format!("{url}/trackID=0"), overheard.clone()),
        ("PLAY", url.clone(), overheard.clone()),
        ("DESCRIBE", other.clone(), overheard.clone()),
        ("DESCRIBE", other.clone(), overheard.replace(&url, &other)),
        ("DESCRIBE", url.clone(), overheard.replace("viewer", "admin")),
        ("DESCRIBE", url.clone(), overheard.replace("Digest", "Basic")),
        ("DESCRIBE", url.clone(), "Basic dmlld2VyOnNlY3JldA==".into()),
        ("DESCRIBE", url.clone(), format!("Digest {}", "x=\"y\",".repeat(1_000))),
    ] {
        let mut thief = Client::connect(relay.address());
        assert_eq!(with(&mut thief, method, &url, &value), 401, "{method} {url} {value}");
    }
    // The same request from the same address: the player itself may send it again.
    let again = with(&mut Client::connect(relay.address()), "DESCRIBE", &url, &overheard);
    println!("the same again: {again}");
    // Nobody else can use the user's session, not even from the same address without the password.
    let mut player = Client::connect(relay.address());
    let track = format!("{url}/trackID=0");
    let value = answer(&mut player, "SETUP", &track, "secret");
    let set_up = player.request("SETUP", &track, &[("Authorization", &value), ("Transport", "RTP/AVP/TCP;unicast")]);
    let id = set_up.expect(200).session().unwrap().to_owned();
    for method in ["PLAY", "PAUSE", "TEARDOWN", "GET_PARAMETER"] {
        let status = Client::connect(relay.address()).request(method, &url, &[("Session", &id)]).status;
        println!("{method} of a user's session without a password, from the same address: {status}");
        assert!([401, 454].contains(&status), "{method}: {status}");
    }
}

#[test]
fn silent_connections_keep_nobody_from_the_pages() {
    let _turn = beside_others();
    let relay = relay("");
    let http = http_address(&relay);
    let before = Vitals::of(&relay, http);
    let silent: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(http).unwrap();
            // Those that are connected may have been closed to make room.
            let _ = stream.write_all(b"GET /metr");
            stream
        })
        .collect();
    assert_eq!(get(http, "/healthz"), (200, "ok\n".into()));
    drop(silent);
    before.come_back(&relay, http, DEADLINE);
}

#[test]
fn dripping_and_silent_connections_are_closed_and_leave_nothing() {
    let _turn = beside_others();
    let relay = relay("[limits]\nhandshake_timeout = \"1s\"");
    let http = http_address(&relay);
    let before = Vitals::of(&relay, http);
    let mut watcher = Client::connect(relay.address());
    watcher.play_everything(&relay.url("/t"));
    let connections: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(relay.address()).unwrap()).collect();
    let request = request("DESCRIBE rtsp://x/t", "Accept: application/sdp\r\n\r\n");
    let begun = Instant::now();
    // Half of them send nothing; the others send a byte at a time, after a whole request or within their first.
    for (number, mut connection) in connections.iter().enumerate().filter(|(number, _)| number % 4 == 1) {
        let _ = (number, connection.write_all(&request));
    }
    let closed = || value(&get(http, "/metrics").1, "rtsprelay_handshake_timeouts_total");
    let mut at = 0;
    wait_until("all of them are closed", DEADLINE, || {
        for mut connection in connections.iter().skip(1).step_by(2) {
            // Those that are already closed cannot.
            let _ = connection.write_all(&request[at % request.len()..][..1]);
        }
        // Not one whole request within any timeout.
        at = (at + 1) % (request.len() / 2);
        watcher.frame_on(0);
        closed() >= 200.0
    });
    println!("200 connections were closed after {:?}", begun.elapsed());
    drop(watcher);
    before.come_back(&relay, http, DEADLINE);
}
