//! Access rights of browsers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::browser::relay_of;
use crate::harness::http::{http_address, https_address};
use crate::harness::machine::beside_others;
use crate::harness::relay::{BINARY, Relay};
use crate::harness::websocket::{watch, watch_with};
use crate::harness::{DEADLINE, scratch_file};

const USERS: &str = "[[user]]\nname = \"viewer\"\npassword = \"secret\"\nmay = [\"read\"]\nstreams = [\"one\"]\n";

/// Status, head and body of a request.
fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

fn get(address: SocketAddr, path: &str, lines: &str) -> (u16, String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}"), "")
}

fn log_in(address: SocketAddr, password: &str, lines: &str) -> (u16, String, String) {
    let body = format!("user=viewer&password={password}");
    ask(address, &format!("POST /+login HTTP/1.1\r\nHost: localhost\r\n{lines}"), &body)
}

fn with_users() -> Relay {
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nhttp_embed = [\"https://home.example\"]\n\
         [[stream]]\nname = \"one\"\nsource = \"test\"\n[[stream]]\nname = \"two\"\nsource = \"test\"\n{USERS}"
    );
    Relay::configured(&config)
}

#[test]
fn who_logs_in_sees_the_streams_of_that_user() {
    let _turn = beside_others();
    let relay = with_users();
    let http = http_address(&relay);
    // The page itself contains nothing secret; the requests that it makes need rights.
    let (status, head, page) = get(http, "/one/", "");
    assert!(status == 200 && page.contains("id=\"login\""));
    assert!(head.contains("frame-ancestors 'self' https://home.example"), "{head}");
    // A browser must not open its own dialog; a program is told how to authenticate.
    let (status, head, _) = get(http, "/+tiles", "User-Agent: Mozilla/5.0\r\n");
    assert!(status == 401 && !head.contains("www-authenticate"), "{head}");
    let (status, head, _) = get(http, "/+tiles", "User-Agent: curl/8\r\n");
    assert!(status == 401 && head.contains("www-authenticate: digest"), "{head}");
    assert_eq!(watch_with(http, "/+live/one", &[("origin", &format!("http://{http}"))]).err(), Some(401));
    let (status, ..) = log_in(http, "wrong", "");
    assert_eq!(status, 403);
    let (status, head, _) = log_in(http, "secret", "");
    assert_eq!(status, 204, "{head}");
    assert!(head.contains("httponly; samesite=lax") && !head.contains("secure"), "{head}");
}

#[test]
fn a_cookie_opens_what_its_user_may_watch_and_nothing_else() {
    let _turn = beside_others();
    let relay = with_users();
    let http = http_address(&relay);
    let mut stream = TcpStream::connect(http).unwrap();
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
    let shown = format!("rtsprelay={cookie}");
    let (status, _, tiles) = get(http, "/+tiles", &format!("Cookie: {shown}\r\n"));
    assert_eq!(status, 200);
    assert!(tiles.contains("\"one\"") && !tiles.contains("\"two\""), "{tiles}");
    let mut watcher = watch_with(http, "/+live/one", &[("cookie", &shown)]).unwrap_or_else(|status| panic!("{status}"));
    watcher.fragment(0);
    for path in ["/+live/two", "/+live/nowhere"] {
        assert_eq!(watch_with(http, path, &[("cookie", &shown)]).err(), Some(403), "{path}");
    }
    let (status, ..) = get(http, "/+keyframe/two", &format!("Cookie: {shown}\r\n"));
    assert_eq!(status, 403);
    // Another page's script has the cookie too, but another origin.
    let headers = [("cookie", shown.as_str()), ("origin", "http://attacker.example")];
    assert_eq!(watch_with(http, "/+live/one", &headers).err(), Some(403));
    let forged = shown.replacen('=', "=A", 1);
    let (status, ..) = get(http, "/+tiles", &format!("Cookie: {forged}\r\nUser-Agent: Mozilla/5.0\r\n"));
    assert_eq!(status, 401);
}

/// Runs `rtsprelay token`.
fn token(config: &str, arguments: &[&str]) -> (bool, String) {
    let path = scratch_file("token.toml");
    std::fs::write(&path, config).unwrap();
    let output =
        Command::new(BINARY).args(["token", "--config", path.to_str().unwrap()]).args(arguments).output().unwrap();
    std::fs::remove_file(path).unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text.trim().to_owned())
}

#[test]
fn a_link_shows_one_stream_until_it_expires() {
    let _turn = beside_others();
    let streams = "[[stream]]\nname = \"one\"\nsource = \"test\"\n[[stream]]\nname = \"two\"\nsource = \"test\"\n";
    let all = USERS.replace("streams = [\"one\"]\n", "");
    let config = format!("listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{streams}{all}");
    let relay = Relay::configured(&config);
    let http = http_address(&relay);
    let (made, link) = token(&config, &["--user", "viewer", "--stream", "one", "--for", "1h"]);
    assert!(made && link.starts_with("/one/?token="), "{link}");
    let (_, shown) = link.split_once('?').unwrap();
    watch(http, &format!("/+live/one?{shown}")).fragment(0);
    assert_eq!(watch_with(http, &format!("/+live/two?{shown}"), &[]).err(), Some(403), "another stream");
    let (status, _, tiles) = get(http, &format!("/+tiles?{shown}"), "");
    assert!(status == 200 && tiles.contains("\"one\"") && !tiles.contains("\"two\""), "{tiles}");
    let (_, expired) = token(&config, &["--user", "viewer", "--stream", "one", "--for", "0s"]);
    let expired = expired.split_once('?').unwrap().1.to_owned();
    assert_eq!(watch_with(http, &format!("/+live/one?{expired}"), &[]).err(), Some(401), "expired");
    let (_, other) = token(&config.replace("secret", "another"), &["--user", "viewer", "--stream", "one"]);
    let other = other.split_once('?').unwrap().1.to_owned();
    assert_eq!(watch_with(http, &format!("/+live/one?{other}"), &[]).err(), Some(401), "another password");
    for (arguments, said) in [
        (["--user", "nobody", "--stream", "one"], "no such user"),
        (["--user", "viewer", "--stream", "none"], "no such stream"),
    ] {
        let (made, text) = token(&config, &arguments);
        assert!(!made && text.contains(said), "{text}");
    }
}

#[test]
fn pages_and_live_pictures_come_by_https_too() {
    let _turn = beside_others();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (scratch_file("certificate.pem"), scratch_file("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = format!(
        "listen = [\"127.0.0.1:0\"]\nhttp_tls = \"127.0.0.1:0\"\ntls_certificate = \"{}\"\ntls_key = \"{}\"\n\
         [[stream]]\nname = \"one\"\nsource = \"test\"\n{USERS}",
        certificate.display(),
        key.display()
    );
    let relay = Relay::configured(&config);
    let https = https_address(&relay);
    // The requests for OpenSSL's client, which ends with its input.
    let ask = |request: String| {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &https.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        client.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
        let mut answer = vec![0; 4_096];
        let mut got = 0;
        let stdout = client.stdout.as_mut().unwrap();
        while got < 400 {
            let count = stdout.read(&mut answer[got..]).unwrap();
            if count == 0 {
                break;
            }
            got += count;
        }
        client.kill().unwrap();
        client.wait().unwrap();
        String::from_utf8_lossy(&answer[..got]).into_owned()
    };
    let body = "user=viewer&password=secret";
    let head = format!(
        "POST /+login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(head);
    assert!(answer.starts_with("HTTP/1.1 204") && answer.contains("; Secure"), "{answer}");
    let cookie = answer.split("set-cookie: ").nth(1).and_then(|rest| rest.split(';').next()).unwrap().to_owned();
    let answer = ask(format!(
        "GET /+live/one HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ));
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("\"type\":\"hello\""), "{answer}");
    for file in [certificate, key] {
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn names_of_others_and_scripts_of_others_are_refused() {
    let _turn = beside_others();
    let relay = relay_of(&[("test", "test")], "http_hosts = [\"cams.example\"]").serving("/test");
    let http = http_address(&relay);
    for (host, expected) in [("cams.example", 200), ("localhost:1", 200), ("attacker.example", 421)] {
        let (status, ..) = ask(http, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n"), "");
        assert_eq!(status, expected, "{host}");
        let (status, ..) = ask(http, &format!("GET /+tiles HTTP/1.1\r\nHost: {host}\r\n"), "");
        assert_eq!(status, expected, "{host}");
    }
    assert_eq!(watch_with(http, "/+live/test", &[("origin", "http://attacker.example")]).err(), Some(403));
    let own = format!("http://{http}");
    assert!(watch_with(http, "/+live/test", &[("origin", &own)]).is_ok());
    watch(http, "/+live/test").fragment(0);
    let (status, head, _) = get(http, "/test", "");
    assert!(status == 308 && head.contains("location: /test/"), "{head}");
}

#[test]
fn beyond_loopback_a_page_by_a_name_of_its_own_reads_nothing_and_programs_do() {
    let _turn = beside_others();
    let open = "listen = \"127.0.0.1:0\"\nhttp = \"0.0.0.0:0\"\nhttp_hosts = [\"cams.example\"]\n[[stream]]\nname = \"one\"\nsource = \"test\"\n";
    let status = |relay: &Relay, path: &str, lines: &str| {
        // Listening on all addresses of this machine, and requested over loopback only.
        let http = SocketAddr::from(([127, 0, 0, 1], http_address(relay).port()));
        ask(http, &format!("GET {path} HTTP/1.1\r\n{lines}"), "").0
    };
    let relay = Relay::configured(open);
    let firefox = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\n";
    // A script may give its browser another name.
    let disguised = "User-Agent: Prometheus/2.42.0\r\nAccept-Language: en\r\n";
    let prometheus = "User-Agent: Prometheus/2.42.0\r\nAccept-Encoding: gzip\r\n";
    for path in ["/status", "/metrics", "/+streams"] {
        for (host, lines, expected) in [
            ("attacker.example", firefox, 421),
            ("attacker.example", disguised, 421),
            ("attacker.example", prometheus, 200),
            ("cams.example", firefox, 200),
            ("192.0.2.1:8580", firefox, 200),
        ] {
            assert_eq!(status(&relay, path, &format!("Host: {host}\r\n{lines}")), expected, "{path}, {host}, {lines}");
        }
    }
    assert_eq!(status(&relay, "/+events", &format!("Host: attacker.example\r\n{firefox}")), 421);
    // A health check may send any host name.
    assert_eq!(status(&relay, "/healthz", &format!("Host: relay.example\r\n{firefox}")), 200);
    // A browser has no password for a name that is not the relay's.
    let with_users = Relay::configured(&format!("{open}{USERS}"));
    assert_eq!(status(&with_users, "/status", &format!("Host: relay.example\r\n{firefox}")), 401);
}
