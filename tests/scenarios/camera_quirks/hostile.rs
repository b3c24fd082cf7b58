//! Cameras that try to make the relay do something that it must not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;

use super::{FRAMES, HEAD, PATIENCE, Viewer, status_of, stream};
use crate::harness::machine::beside_others;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::scripted::auth::{Login, Scheme};
use crate::harness::scripted::{Camera, Reply, Request, Script};
use crate::harness::{scratch_file, wait_until};

/// Points clients to another host, by its base URL or by the URLs of its tracks.
fn pointing_to(place: String, by_tracks: bool) -> impl Fn(&Request, &mut Reply) + Send + Sync {
    move |request, reply| {
        if request.method != "DESCRIBE" || reply.status != 200 {
            return;
        }
        if by_tracks {
            reply.body = reply.body.replace("a=control:track", &format!("a=control:{place}/track"));
        } else {
            reply.set("Content-Base", format!("{place}/"));
        }
    }
}

/// Requests Basic authentication, to get the password itself.
fn basic() -> Login {
    Login { offers: &[Scheme::Basic], takes: Scheme::Basic, ..Login::digest() }
}

#[test]
fn a_camera_whose_description_names_a_third_host_has_nobody_dialled() {
    let _turn = beside_others();
    // The third host accepts anything.
    let third = Camera::start_at("127.0.0.3:0".parse().unwrap(), Script::default());
    let place = format!("rtsp://{}/cam", third.address());
    let hostile = |by_tracks| {
        let script = Script::default().for_user(basic()).answers(pointing_to(place.clone(), by_tracks));
        (Camera::start(script.clone()), script)
    };
    let (by_base, by_tracks) = (hostile(false), hostile(true));
    let file = scratch_file("hostile.toml");
    let both = stream("base", &by_base.0, &by_base.1, "") + &stream("tracks", &by_tracks.0, &by_tracks.1, "");
    let other = "\n[[stream]]\nname = \"other\"\nsource = \"test\"\n";
    std::fs::write(&file, format!("{HEAD}{other}{both}")).unwrap();
    let relay = Relay::start(command(Uring::AsAsked, &["run", "--config", file.to_str().unwrap()]));
    // It plays nevertheless, over the existing connection; after each disconnection the relay reconnects.
    for round in 1..=3 {
        for camera in [&by_base.0, &by_tracks.0] {
            camera.wait_played(round);
            wait_until("frames", PATIENCE, || camera.record().frames.len() >= 20 * round);
            camera.hang_up();
        }
    }
    for name in ["base", "tracks"] {
        let viewer = Viewer::start(&relay, name).unwrap();
        viewer.gets(FRAMES, PATIENCE).unwrap();
    }
    std::fs::write(&file, format!("{HEAD}{other}")).unwrap();
    relay.signal(Signal::SIGHUP);
    wait_until("the streams are gone", PATIENCE, || relay.printed().matches("removed").count() >= 2);
    let asked = [&by_base.0, &by_tracks.0].map(|camera| camera.record().opened.len());
    // Any further connection would be made within this time, at the previous rate.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(
        [&by_base.0, &by_tracks.0].map(|camera| camera.record().opened.len()),
        asked,
        "requests after the end of the stream"
    );
    let record = third.record();
    assert!(record.opened.is_empty(), "{} connections to the third host: {:?}", record.opened.len(), record.requests);
    // A scratch file; cleaning the build directory removes it if it stays.
    let _ = std::fs::remove_file(&file);
}

#[test]
fn a_tls_camera_whose_base_is_in_the_clear_is_never_asked_in_the_clear() {
    let _turn = beside_others();
    let plain = Camera::start(Script::default());
    // The same port, and another port of the same host.
    let own = Script::default().by_tls().for_user(basic()).answers(|request, reply| {
        if request.method == "DESCRIBE" && reply.status == 200 {
            reply.set("Content-Base", format!("{}/", request.url.replacen("rtsps://", "rtsp://", 1)));
        }
    });
    let elsewhere = Script::default().by_tls().for_user(basic()).answers(pointing_to(plain.url(), false));
    let cameras = [Camera::start(own.clone()), Camera::start(elsewhere.clone())];
    let streams = stream("own", &cameras[0], &own, "") + &stream("elsewhere", &cameras[1], &elsewhere, "");
    let relay = Relay::configured(&format!("{HEAD}{streams}"));
    for round in 1..=3 {
        for camera in &cameras {
            camera.wait_played(round);
            wait_until("frames", PATIENCE, || camera.record().frames.len() >= 20 * round);
            camera.hang_up();
        }
    }
    for name in ["own", "elsewhere"] {
        let viewer = Viewer::start(&relay, name).unwrap();
        viewer.gets(FRAMES, PATIENCE).unwrap();
    }
    // By now a connection without TLS would have been made: the camera plays again.
    for camera in &cameras {
        let record = camera.record();
        assert!(record.in_the_clear.is_empty(), "{:?}", record.in_the_clear);
    }
    assert!(plain.record().opened.is_empty(), "{:?}", plain.record().requests);
}

/// A line of `/proc/PID/net/tcp` or `tcp6`.
struct Socket {
    local: String,
    remote: String,
    listens: bool,
}

/// The TCP sockets that a process has open.
fn tcp_sockets(pid: i32) -> Vec<Socket> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc of the relay");
    let own: Vec<String> = descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| inode(&target))
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if own.iter().any(|inode| inode == fields[9]) {
                let listens = fields[3] == "0A";
                found.push(Socket { local: fields[1].to_owned(), remote: fields[2].to_owned(), listens });
            }
        }
    }
    found
}

fn inode(target: &Path) -> Option<String> {
    Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
}

/// An IPv4 address and port as in the table.
fn as_in_table(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("IPv4") };
    format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port())
}

#[test]
fn no_part_of_the_relay_reaches_another_by_a_socket_that_others_could_bind() {
    let _turn = beside_others();
    let (secure, udp) = (Script::default().by_tls().for_user(basic()), Script::default());
    let cameras = [Camera::start(secure.clone()), Camera::start(udp.clone())];
    let streams = stream("secure", &cameras[0], &secure, "") + &stream("udp", &cameras[1], &udp, "transport = \"udp\"");
    let relay = Relay::configured(&format!("{HEAD}{streams}"));
    let http = crate::harness::http::http_address(&relay);
    let expected = [relay.address(), http].map(as_in_table);
    let mut wrong = HashMap::<String, &str>::new();
    for round in 1..=4 {
        wait_until("both play", PATIENCE, || {
            // While it connects, and while it plays.
            let sockets = tcp_sockets(relay.pid());
            for socket in &sockets {
                if socket.listens && !expected.contains(&socket.local) {
                    wrong.insert(socket.local.clone(), "listens");
                }
                if !socket.listens && sockets.iter().any(|other| other.local == socket.remote && !other.listens) {
                    wrong.insert(socket.local.clone(), "is connected to another socket of the relay");
                }
            }
            cameras.iter().all(|camera| camera.count("PLAY") >= round && camera.record().frames.len() >= 30 * round)
        });
        cameras.iter().for_each(Camera::hang_up);
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// What fail2ban finds in the log, with the expression of docs/USERS.md: `^[^"=]*\bauthentication failed client=<HOST> user=`.
fn bans(line: &str) -> bool {
    let (before, _) = line.split_once("authentication failed client=").unwrap_or(("\"", ""));
    !before.contains(['"', '='])
}

/// A line without the quoted parts.
fn unquoted(line: &str) -> String {
    let mut out = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if !quoted => out.push(c),
            _ => {}
        }
    }
    out
}

/// Text that a camera may send: a line that would get an address banned, and characters that change a terminal's output.
const FORGED: &str =
    "authentication failed client=203.0.113.9 user=\"x\" reason=\u{202E}dnammoc\u{2028}\u{1b}[2J\u{7}\u{85}forged";

#[test]
fn what_a_camera_writes_stands_in_quotes_alone() {
    let _turn = beside_others();
    let answer = |method: &'static str, change: fn(&mut Reply)| {
        Script::default().answers(move |request, reply| {
            if request.method == method {
                change(reply);
            }
        })
    };
    let cameras = [
        ("describe", answer("DESCRIBE", |reply| reply.refuse(500, FORGED))),
        ("odd", answer("DESCRIBE", |reply| reply.refuse(299, FORGED))),
        ("refused", answer("DESCRIBE", |reply| reply.refuse(403, FORGED))),
        ("setup", answer("SETUP", |reply| reply.refuse(500, FORGED))),
        ("play", answer("PLAY", |reply| reply.refuse(299, FORGED))),
        ("play-refused", answer("PLAY", |reply| reply.refuse(455, FORGED))),
        ("transport", answer("SETUP", |reply| reply.set("Transport", FORGED))),
        ("session", answer("SETUP", |reply| reply.set("Session", FORGED))),
        ("body", answer("DESCRIBE", |reply| reply.body = format!("{FORGED}\r\n"))),
        ("control", answer("DESCRIBE", |reply| reply.body = reply.body.replace("track", FORGED))),
        ("encoding", answer("DESCRIBE", |reply| reply.body = reply.body.replace("H264", FORGED))),
        ("info", answer("PLAY", |reply| reply.set("RTP-Info", FORGED))),
        (
            "redirect",
            answer("DESCRIBE", |reply| {
                reply.refuse(302, FORGED);
                reply.set("Location", FORGED);
            }),
        ),
        (
            "unasked",
            answer("DESCRIBE", |reply| {
                reply.refuse(401, FORGED);
                reply.set("WWW-Authenticate", FORGED);
            }),
        ),
        (
            "number",
            answer("DESCRIBE", |reply| {
                reply.reason = FORGED.to_owned();
                reply.set("CSeq", "99");
            }),
        ),
        ("no-rtsp", answer("DESCRIBE", |reply| reply.edit = Some(Box::new(|_| format!("{FORGED}\r\n\r\n"))))),
        (
            "status-line",
            answer("DESCRIBE", |reply| reply.edit = Some(Box::new(|_| format!("RTSP/1.0 {FORGED}\r\n\r\n")))),
        ),
    ];
    let mut config = HEAD.to_owned();
    let mut running = Vec::new();
    for (name, script) in &cameras {
        let camera = Camera::start(script.clone());
        config += &stream(name, &camera, script, "source_timeout = \"2s\"");
        running.push(camera);
    }
    let relay = Relay::configured(&config);
    for ((name, _), camera) in cameras.iter().zip(&running) {
        wait_until(&format!("{name} is tried twice, or plays"), PATIENCE, || {
            // Without its video it plays its audio.
            camera.count("DESCRIBE") >= 2
                || camera.record().frames.len() > 20
                || *name == "encoding" && camera.count("PLAY") > 0
        });
    }
    let faults: Vec<String> = cameras.iter().map(|(name, _)| status_of(&relay, name)["fault"].to_string()).collect();
    relay.signal(Signal::SIGTERM);
    let (_, _, printed) = relay.finish(PATIENCE);
    let mut wrong = Vec::new();
    for line in printed.lines() {
        if bans(line) {
            wrong.push(format!("bans: {line:?}"));
        }
        if unquoted(line).contains("forged") || unquoted(line).contains("203.0.113.9") {
            wrong.push(format!("out of quotes: {line:?}"));
        }
        if line.contains(|c: char| c.is_control() && c != '\t' || matches!(c, '\u{202E}' | '\u{2028}')) {
            wrong.push(format!("as it is: {line:?}"));
        }
    }
    // A web page can be deceived by it as easily as a terminal.
    let deceiving = |text: &&String| text.contains(['\u{202E}', '\u{2028}', '\u{85}']);
    wrong.extend(faults.iter().filter(deceiving).map(|fault| format!("/status: {fault:?}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
