//! `auth_url`: the relay asks an external user database once per session, and refuses clients if it does not answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::program::run;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, wait_until};

/// Answers each query as told: with a status, or not at all.
struct Platform {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Platform {
    fn start(answer: impl Fn(&Value) -> Option<u16> + Send + Sync + 'static) -> Platform {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, answer, seen) = (stream.unwrap(), Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut text = Vec::new();
                    let body = loop {
                        let mut chunk = [0; 4096];
                        let count = stream.read(&mut chunk).unwrap_or(0);
                        if count == 0 {
                            return;
                        }
                        text.extend_from_slice(&chunk[..count]);
                        let whole = String::from_utf8_lossy(&text).into_owned();
                        let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
                        assert!(head.starts_with("POST /auth?key=k HTTP/1.1\r\n"), "{head}");
                        if let Ok(body) = serde_json::from_str::<Value>(body) {
                            break body;
                        }
                    };
                    seen.lock().unwrap().push(body.clone());
                    match answer(&body) {
                        Some(status) => {
                            let said = format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\nno");
                            let _ = stream.write_all(said.as_bytes());
                        }
                        // Until the relay gives up.
                        None => drop(stream.read(&mut [0])),
                    }
                });
            }
        });
        Platform { address, asked }
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    fn relay(&self, more: &str) -> Relay {
        let streams =
            "[[stream]]\nname = \"front\"\nsource = \"test\"\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n";
        let keys = format!("auth_url = \"http://{}/auth?key=k\"\nauth_timeout = \"500ms\"\n", self.address);
        Relay::configured(&format!("listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n{keys}{more}\n{streams}"))
    }
}

#[test]
fn a_token_opens_a_session_and_costs_one_question() {
    let _turn = beside_others();
    let platform = Platform::start(|asked| Some(if asked["query"] == "token=good" { 200 } else { 403 }));
    let relay = platform.relay("");
    let url = relay.url("/front?token=good");
    wait_until("its stream is up", DEADLINE, || Client::connect(relay.address()).describe(&url).status == 200);
    let before = platform.asked().len();
    let mut client = Client::connect(relay.address());
    // The tracks' URLs contain no token.
    client.play_everything(&url);
    client.frame_on(0);
    assert_eq!(platform.asked().len(), before, "a recent answer is used again");
    let last = platform.asked().pop().unwrap();
    assert_eq!(
        (&last["address"], &last["stream"], &last["action"]),
        (&"127.0.0.1".into(), &"front".into(), &"read".into())
    );
    assert_eq!((&last["user"], &last["password"]), (&Value::Null, &Value::Null));

    let mut stranger = Client::connect(relay.address());
    stranger.describe(&relay.url("/front?token=bad")).expect(403);
    stranger.describe(&relay.url("/front")).expect(403);
    let metrics = get(http_address(&relay), "/metrics").1;
    assert_eq!(value(&metrics, "rtsprelay_auth_url_refused_total"), 2.0);
    assert!(!relay.printed().contains("token="), "a token is in the log");
}

#[test]
fn players_with_a_name_and_password_of_the_platform_play_and_encoders_publish() {
    let _turn = beside_others();
    let platform = Platform::start(|asked| {
        let known = asked["user"] == "ann" && asked["password"] == "se:cret";
        Some(if known { 200 } else { 401 })
    });
    let relay = platform.relay("");
    let url = |user: &str| format!("rtsp://{user}@{}/front", relay.address());
    let shown = ["-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_type", "-of", "csv"];
    let seen = run(DEADLINE, "ffprobe", &[&shown[..], &[&url("ann:se%3Acret")]].concat()).expect_silent_success();
    assert!(seen.stdout.contains("video"), "{seen:#?}");
    let refused = run(DEADLINE, "ffprobe", &[&shown[..], &[&url("ann:wrong")]].concat());
    assert!(!refused.status.success() && refused.stderr.contains("401"), "{refused:#?}");
    let encoder = ["-v", "error", "-f", "lavfi", "-i", "testsrc2=duration=1:size=160x120:rate=25", "-c:v", "libx264"];
    let to = format!("rtsp://ann:se%3Acret@{}/live", relay.address());
    let sends = ["-f", "rtsp", "-rtsp_transport", "tcp", &to];
    let sent = run(DEADLINE, "ffmpeg", &[&encoder[..], &sends].concat());
    assert!(sent.status.success(), "{sent:#?}");
    assert!(platform.asked().iter().any(|asked| asked["action"] == "publish" && asked["stream"] == "live"));
    assert!(!relay.printed().contains("cret"));
}

#[test]
fn who_does_not_answer_refuses_and_is_not_asked_for_each_request() {
    let _turn = beside_others();
    let platform = Platform::start(|_| None);
    let relay = platform.relay("");
    let mut playing = Vec::new();
    let start = Instant::now();
    for _ in 0..10 {
        let mut client = Client::connect(relay.address());
        let text = client.compose("DESCRIBE", &relay.url("/front"), &[]);
        client.send_raw(text.as_bytes());
        playing.push(client);
    }
    for client in &mut playing {
        client.answer().expect(503);
    }
    assert!(start.elapsed() >= Duration::from_millis(500), "the timeout was respected");
    assert_eq!(platform.asked().len(), 1, "one query for equal requests");
    wait_until("it is reported", DEADLINE, || {
        relay.printed().contains("auth_url does not answer (nothing within 500ms)")
    });
    assert_eq!(value(&get(http_address(&relay), "/metrics").1, "rtsprelay_auth_url_unanswered_total"), 10.0);
}

#[test]
fn the_relays_own_users_come_first_and_their_passwords_stay_here() {
    let _turn = beside_others();
    let platform = Platform::start(|asked| Some(if asked["user"] == "a" { 200 } else { 403 }));
    let users = "basic = true\n[[user]]\nname = \"a\"\npassword = \"b\"\n[[user]]\nname = \"c\"\npassword = \"d\"\n";
    let relay = platform.relay(users);
    let url = relay.url("/front");
    let describe = |credentials: &[(&str, &str)]| {
        let mut client = Client::connect(relay.address());
        client.request("DESCRIBE", &url, credentials)
    };
    describe(&[]).expect(401);
    assert_eq!(platform.asked().len(), 0, "no query for clients that the relay itself refuses");
    let a = [("Authorization", "Basic YTpi")];
    wait_until("its stream is up", DEADLINE, || describe(&a).status == 200);
    describe(&[("Authorization", "Basic Yzpk")]).expect(403);
    assert!(platform.asked().iter().all(|asked| asked["password"].is_null()), "{:?}", platform.asked());
    let track = tracks(&describe(&a)).remove(0);
    let mut client = Client::connect(relay.address());
    let transport = ("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1");
    client.request("SETUP", &track.url, &[a[0], transport]).expect(200);
}

#[test]
fn what_a_refused_url_has_in_its_query_is_not_logged() {
    let _turn = beside_others();
    let relay = Relay::demo();
    let mut client = Client::connect(relay.address());
    client.describe(&relay.url("/nothing?jwt=hunter2&hunter2")).expect(404);
    client.request("ANNOUNCE", &relay.url("/test?token=hunter2"), &[]).expect(405);
    wait_until("both are reported", DEADLINE, || {
        let printed = relay.printed();
        printed.contains("/nothing?jwt=***&***") && printed.contains("/test?token=***")
    });
    assert!(!relay.printed().contains("hunter2"));
}
