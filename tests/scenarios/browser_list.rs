//! The home page's list: which events it gets, and that a crowd of browsers does not block monitoring.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use serde_json::Value;

use crate::browser::relay_of;
use crate::harness::browser::Browser;
use crate::harness::chromium::{self, Chromium};
use crate::harness::http::http_address;
use crate::harness::machine::{beside_others, cannot_run};
use crate::harness::program::Program;
use crate::harness::publisher::Publisher;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, stream_from};
use crate::harness::websocket::{Said, Watcher, watch, watch_with};
use crate::harness::{DEADLINE, wait_until};

/// Streams that exist while they are published.
const PUBLISHED: &str = "[[stream]]\nname = \"live/*\"\nsource = \"publish\"\nlinger = \"300ms\"\n\
    [[stream]]\nname = \"other/*\"\nsource = \"publish\"\nlinger = \"300ms\"\n";

/// The next event that a browser receives.
fn event(watcher: &mut Watcher) -> Value {
    loop {
        match watcher.next() {
            Said::Text(event) => return event,
            Said::Closed(code, reason) => panic!("closed: {code} {reason}"),
            _ => {}
        }
    }
}

#[test]
fn browsers_are_told_of_the_streams_that_they_may_see() {
    let _turn = beside_others();
    let users = "[[user]]\nname = \"ann\"\npassword = \"secret\"\nstreams = [\"live/*\"]\nmay = [\"read\"]\n\
        [[user]]\nname = \"all\"\npassword = \"secret\"\nmay = [\"read\", \"publish\"]\n";
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nbasic = true\n{PUBLISHED}{users}"
    ));
    let http = http_address(&relay);
    // base64 of "ann:secret" and "all:secret".
    let authorized = |text: &str| watch_with(http, "/+events", &[("authorization", text)]);
    let mut ann = authorized("Basic YW5uOnNlY3JldA==").unwrap_or_else(|status| panic!("{status}"));
    let mut all = authorized("Basic YWxsOnNlY3JldA==").unwrap_or_else(|status| panic!("{status}"));
    assert_eq!(watch_with(http, "/+events", &[("origin", &format!("http://{http}"))]).err(), Some(401));
    assert_eq!(watch_with(http, "/+events", &[("origin", "http://attacker.example")]).err(), Some(403));
    let with_user = |path: &str| relay.url(path).replace("rtsp://", "rtsp://all:secret@");
    let start = |path: &str| {
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=64x64:rate=5", "-g", "5"]);
        command.args([
            "-c:v",
            "libx264",
            "-tune",
            "zerolatency",
            "-f",
            "rtsp",
            "-rtsp_transport",
            "tcp",
            &with_user(path),
        ]);
        Program::start(command)
    };
    let other = start("/other/x");
    let mut seen = Vec::new();
    while !seen.contains(&("live".to_owned(), "other/x".to_owned())) {
        let event = event(&mut all);
        seen.push((event["event"].as_str().unwrap().to_owned(), event["stream"].as_str().unwrap().to_owned()));
    }
    drop(other);
    let live = start("/live/x");
    // Events about the other stream and about clients are not sent to her.
    let mut seen = Vec::new();
    while seen.last().is_none_or(|kind| kind != "live") {
        let event = event(&mut ann);
        assert_eq!(event["stream"], "live/x", "{event}");
        seen.push(event["event"].as_str().unwrap().to_owned());
    }
    assert!(seen[0] == "made" && seen.iter().all(|kind| !kind.starts_with("client")), "{seen:?}");
    drop(live);
    let last = loop {
        let event = event(&mut ann);
        assert_eq!(event["stream"], "live/x", "{event}");
        if event["event"] == "gone" {
            break event;
        }
    };
    assert_eq!(last["reason"], "unpublished");
    ann.say("{\"type\":\"of a newer page\"}");
    ann.send_raw(&[0x81, 0x01, b'x']);
    assert_eq!(ann.end().0, 1002, "no WebSocket");
}

#[test]
fn the_page_follows_streams_that_come_and_go() {
    if !chromium::is_there() {
        return cannot_run("chromium and chromedriver are not installed (tests/run installs them)");
    }
    let _turn = beside_others();
    let relay = relay_of(&[("front", "test")], PUBLISHED);
    let http = http_address(&relay);
    let browser = Chromium::start(1000, 700);
    browser.open(&format!("http://{http}/"));
    browser
        .wait("the list is there", "document.querySelectorAll('.tile').length === 1 && listen.bell.readyState === 1");
    // From here on only events trigger requests for the list.
    browser.run("for (let timer = 1; timer < 1000; timer++) clearInterval(timer);");
    let named =
        |name: &str| format!("[...document.querySelectorAll('.tile .name')].some(one => one.textContent === '{name}')");
    let publisher = Publisher::start(relay.address(), &relay.url("/live/a"));
    browser.wait("it has come", &named("live/a"));
    drop(publisher);
    browser.wait("it has gone", &format!("!{} && {}", named("live/a"), named("front")));
}

/// Requests a page over a connection that is kept open, and reads the answer's status.
fn ask(connection: &mut BufReader<TcpStream>, path: &str) -> std::io::Result<u16> {
    connection.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    answered(connection)
}

fn answered(connection: &mut BufReader<TcpStream>) -> std::io::Result<u16> {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        } else if line.trim().is_empty() {
            connection.read_exact(&mut vec![0; length])?;
            return Ok(status);
        }
    }
}

fn connection_from(last: u8, address: SocketAddr) -> BufReader<TcpStream> {
    let stream = stream_from(IpAddr::from([127, 0, 7, last]), address);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    BufReader::new(stream)
}

#[test]
fn a_crowd_of_browsers_keeps_no_scrape_out() {
    let _turn = beside_others();
    let relay = relay_of(&[("front", "test")], "").serving("/front");
    let http = http_address(&relay);
    let mut probes: Vec<_> = ["/metrics", "/status", "/healthz", "/livez"]
        .iter()
        .zip(1..)
        .map(|(path, last)| (*path, connection_from(last, http)))
        .collect();
    for (path, probe) in &mut probes {
        assert_eq!(ask(probe, path).unwrap(), 200, "{path}");
    }
    // One has sent part of a request, and continues later.
    let mut late = connection_from(9, http);
    late.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nHost: local").unwrap();
    // Several times as many browsers as there are places, each from its own address; those that are left stay.
    let mut crowd = Vec::new();
    for last in 20..120 {
        let mut browser = connection_from(last, http);
        assert_eq!(ask(&mut browser, "/+tiles").unwrap(), 200);
        crowd.push(browser);
    }
    for (path, probe) in &mut probes {
        assert_eq!(ask(probe, path).expect("the connection is still open"), 200, "{path}");
    }
    late.get_mut().write_all(b"host\r\n\r\n").unwrap();
    assert_eq!(answered(&mut late).expect("the connection is still open"), 200);
    assert_eq!(ask(&mut connection_from(10, http), "/healthz").unwrap(), 200, "there is a place for a new one");
    let left = crowd.iter_mut().filter_map(|browser| ask(browser, "/+tiles").ok()).count();
    assert!((1..=32).contains(&left), "{left} browsers have kept theirs");
    // Live pictures and events take none of these places.
    let watchers: Vec<_> = (0..40).map(|_| watch(http, "/+events")).collect();
    wait_until("pages are served meanwhile", DEADLINE, || {
        ask(&mut connection_from(11, http), "/+tiles").is_ok_and(|status| status == 200)
    });
    assert_eq!(watchers.len(), 40);
    assert_eq!(Client::connect(relay.address()).describe(&relay.url("/front")).status, 200);
}
