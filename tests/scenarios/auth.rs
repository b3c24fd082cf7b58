//! Users: real players and encoders with right, wrong and missing credentials, nonces that expire during playback, and what
//! the log and the HTTP server report.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use rtsprelay::limits::AUTH_FAILURES_MAX;
use rtsprelay::wire::auth;

use crate::harness::http::{http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::program::{Finished, Program, run};
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::{Answer, Client};
use crate::harness::websocket::watch_with;
use crate::harness::{DEADLINE, SYSTEM_PYTHON, scratch_file, test_file, wait_until};

const USERS: &str = "listen = [\"127.0.0.1:0\"]\nworkers = 2\n\n\
    [[stream]]\nname = \"front\"\nsource = \"test\"\n\n\
    [[stream]]\nname = \"live\"\nsource = \"publish\"\n\n\
    [[user]]\nname = \"viewer\"\npassword = \"se:c ret\"\nstreams = [\"front\"]\n\n\
    [[user]]\nname = \"encoder\"\npassword = \"secret\"\nstreams = [\"live\"]\nmay = [\"publish\"]\n\n";

/// The viewer's credentials as in a URL.
const VIEWER: &str = "viewer:se%3Ac%20ret";

/// A relay with its configuration, which a scenario may rewrite.
struct Configured {
    relay: Relay,
    path: PathBuf,
}

impl Drop for Configured {
    fn drop(&mut self) {
        // A scratch file; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Configured {
    fn start(config: &str, arguments: &[&str]) -> Configured {
        let path = scratch_file("auth.toml");
        std::fs::write(&path, config).unwrap();
        let arguments = [&["run", "--config", path.to_str().unwrap()], arguments].concat();
        Configured { relay: Relay::start(command(Uring::AsAsked, &arguments)), path }
    }

    /// Waits until the test pattern is up.
    fn serving(self) -> Configured {
        let relay = &self.relay;
        wait_until("the viewer is answered 200", DEADLINE, || {
            asked(&mut Client::connect(relay.address()), "DESCRIBE", &relay.url("/front"), "viewer", "se:c ret").status
                == 200
        });
        self
    }

    fn url(&self, user: &str, path: &str) -> String {
        format!("rtsp://{user}@{}{path}", self.relay.address())
    }
}

fn users(arguments: &[&str]) -> Configured {
    Configured::start(USERS, arguments).serving()
}

/// A request with credentials, after the challenge to one without.
fn asked(client: &mut Client, method: &str, url: &str, user: &str, password: &str) -> Answer {
    let challenge = client.request(method, url, &[]).expect(401);
    let value = auth::answer(challenge.header("WWW-Authenticate").unwrap(), user, password, method, url).unwrap();
    client.request(method, url, &[("Authorization", &value)])
}

fn ffmpeg(url: &str, transport: &str, seconds: &str) -> Finished {
    let input = ["-nostdin", "-v", "error", "-rtsp_transport", transport, "-i", url];
    run(DEADLINE, "ffmpeg", &[&input[..], &["-map", "0:v", "-c", "copy", "-t", seconds, "-f", "null", "-"]].concat())
}

fn gstreamer(url: &str, transport: &str, frames: &str) -> Finished {
    let mut command = Command::new(SYSTEM_PYTHON);
    command.arg(test_file("players/gst_player.py")).args([url, transport, frames]);
    Program::start(command).finish(DEADLINE)
}

/// Receives this many frames with retina, or returns why not.
fn retina(relay: &Relay, user: Option<(&str, &str)>, wanted: usize) -> Result<usize, String> {
    use futures::StreamExt as _;
    use retina::client::{Credentials, PlayOptions, Session, SessionOptions, SetupOptions};

    let credentials =
        user.map(|(name, password)| Credentials { username: name.to_owned(), password: password.to_owned() });
    let url = url::Url::parse(&relay.url("/front")).unwrap();
    let play = async {
        let options = SessionOptions::default().creds(credentials);
        let mut session = Session::describe(url, options).await.map_err(|error| error.to_string())?;
        session.setup(0, SetupOptions::default()).await.map_err(|error| error.to_string())?;
        let session = session.play(PlayOptions::default()).await.map_err(|error| error.to_string())?;
        let mut session = session.demuxed().map_err(|error| error.to_string())?;
        let mut frames = 0;
        while frames < wanted {
            session.next().await.ok_or("the end")?.map_err(|error| error.to_string())?;
            frames += 1;
        }
        Ok(frames)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, play).await }).expect("in time")
}

#[test]
fn players_with_the_right_password_play() {
    let _turn = beside_others();
    let relay = users(&[]);
    let url = relay.url(VIEWER, "/front");
    let probed = run(DEADLINE, "ffprobe", &["-v", "error", "-show_entries", "stream=codec_name", "-of", "csv", &url]);
    assert!(probed.expect_silent_success().stdout.contains("h264"));
    ffmpeg(&url, "tcp", "1").expect_silent_success();
    ffmpeg(&url, "udp", "1").expect_silent_success();
    for transport in ["tcp", "udp"] {
        let seen = gstreamer(&url, transport, "30").expect_silent_success();
        let seen: Value = serde_json::from_str(&seen.stdout).unwrap();
        assert!(seen["problems"].as_array().unwrap().is_empty() && seen["times"].as_array().unwrap().len() >= 30);
    }
    assert_eq!(retina(&relay.relay, Some(("viewer", "se:c ret")), 30), Ok(30));
    assert!(!relay.relay.printed().contains("authentication failed"), "{}", relay.relay.printed());
}

#[test]
fn players_without_a_password_or_with_a_wrong_one_do_not() {
    let _turn = beside_others();
    let relay = users(&[]);
    let (none, wrong) = (relay.relay.url("/front"), relay.url("viewer:guess", "/front"));
    for url in [&none, &wrong] {
        let probed = ffmpeg(url, "tcp", "1");
        assert!(!probed.status.success() && probed.stderr.contains("401"), "{probed:#?}");
        let seen = gstreamer(url, "tcp", "30");
        let seen: Value = serde_json::from_str(&seen.stdout).unwrap();
        let why = seen["problems"].to_string();
        assert!(why.contains("Unauthorized") && seen["times"].as_array().unwrap().is_empty(), "{seen}");
    }
    for user in [None, Some(("viewer", "guess")), Some(("nobody", "se:c ret"))] {
        let refused = retina(&relay.relay, user, 30).unwrap_err();
        assert!(refused.contains("401") || refused.contains("nauthorized"), "{refused}");
    }
    // A known user without the right is told so.
    let refused = ffmpeg(&relay.url(VIEWER, "/live"), "tcp", "1");
    assert!(!refused.status.success() && refused.stderr.contains("403"), "{refused:#?}");
    let printed = relay.relay.printed();
    assert!(!printed.contains("guess") && !printed.contains("se:c") && !printed.contains("nobody"), "{printed}");
}

#[test]
fn players_play_on_when_their_nonces_grow_old() {
    let _turn = beside_others();
    // Players are told to send keep-alives every two seconds; by then every nonce is stale. It must not be stale yet when they answer
    // the challenge.
    let config =
        USERS.replace("workers = 2\n", "workers = 2\nhttp = \"127.0.0.1:0\"\nlimits.session_timeout = \"4s\"\n");
    let relay = Configured::start(&config, &["--test-nonce-lifetime", "1500ms"]).serving();
    let refused = || {
        let (status, metrics) = get(http_address(&relay.relay), "/metrics", "");
        assert_eq!(status, 200);
        value(&metrics, "rtsprelay_requests_failed_total")
    };
    // This player reuses its first nonce, and stays connected. It plays alone, because only the sum of all players' refusals is reported.
    let before = refused();
    assert_eq!(retina(&relay.relay, Some(("viewer", "se:c ret")), 150), Ok(150));
    let alone = refused() - before;
    assert!(alone >= 2.0, "{alone} requests were answered 401");
    let before = refused();
    let url = relay.url(VIEWER, "/front");
    let players: Vec<_> = ["tcp", "udp"]
        .map(|transport| {
            let url = url.clone();
            [
                std::thread::spawn({
                    let url = url.clone();
                    move || ffmpeg(&url, transport, "8").expect_silent_success()
                }),
                std::thread::spawn(move || gstreamer(&url, transport, "240").expect_silent_success()),
            ]
        })
        .into_iter()
        .flatten()
        .collect();
    let count = players.len();
    for (number, player) in players.into_iter().enumerate() {
        let finished = player.join().unwrap();
        if number % 2 == 1 {
            let seen: Value = serde_json::from_str(&finished.stdout).unwrap();
            assert!(seen["problems"].as_array().unwrap().is_empty(), "{seen}");
        }
    }
    // One refusal at the start, and at least one later: so the players did present old nonces.
    let refused = refused() - before;
    assert!(refused >= 2.0 * count as f64, "{refused} requests of {count} players were answered 401");
    let printed = relay.relay.printed();
    assert!(!printed.contains("session_timeout") && !printed.contains("authentication failed"), "{printed}");
}

#[test]
fn encoders_publish_with_the_right_to() {
    let _turn = beside_others();
    let relay = users(&[]);
    let publish = |user: &str| {
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"]);
        command.args(["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p"]);
        command.args(["-f", "rtsp", "-rtsp_transport", "tcp", &relay.url(user, "/live")]);
        Program::start(command)
    };
    for (user, status) in [("encoder:guess", "401"), (VIEWER, "403")] {
        let refused = publish(user).finish(DEADLINE);
        assert!(!refused.status.success() && refused.stderr.contains(status), "{refused:#?}");
    }
    let _encoder = publish("encoder:secret");
    wait_until("it publishes", DEADLINE, || relay.relay.printed().contains("publishes"));
}

#[test]
fn the_log_is_read_by_fail2ban() {
    let _turn = beside_others();
    let relay = users(&[]);
    let mut client = Client::connect(relay.relay.address());
    let url = relay.relay.url("/front");
    // A name made up to make the log line look like another client's.
    for name in ["viewer", "x authentication failed client=198.51.100.9 user="] {
        asked(&mut client, "DESCRIBE", &url, name, "guess").expect(401);
    }
    let lines = || relay.relay.printed().matches("authentication failed").count();
    wait_until("both are reported", DEADLINE, || lines() == 2);
    // The exact expression from the documentation.
    let document = std::fs::read_to_string(test_file("../docs/USERS.md")).unwrap();
    let expression =
        document.lines().find_map(|line| line.strip_prefix("failregex = ")).expect("failregex in the document");
    let python = "import re, sys\n\
        host = r'(?P<host>[0-9a-fA-F.:]+)'\n\
        found = [re.search(sys.argv[1].replace('<HOST>', host), line) for line in sys.stdin]\n\
        print([hit['host'] for hit in found if hit])";
    let mut command = Command::new(SYSTEM_PYTHON);
    let printed = scratch_file("auth.log");
    // In the journal the line has neither time nor level.
    let journal = "host rtsprelay[7]: authentication failed client=2001:db8::1 user=\"-\" reason=\"unknown user\"\n";
    // Text from a camera, within another kind of line.
    let others = "host rtsprelay[7]: the camera says: authentication failed client=198.51.100.9 user=\"-\"\n\
        2026-11-29T01:02:03.000000Z  WARN down: 404 authentication failed client=198.51.100.9 user= stream=\"front\"\n";
    std::fs::write(&printed, relay.relay.printed() + journal + others).unwrap();
    command.args(["-c", python, expression]).stdin(std::fs::File::open(&printed).unwrap());
    let finished = Program::start_fed(command).finish(DEADLINE).expect_silent_success();
    std::fs::remove_file(&printed).unwrap();
    assert_eq!(finished.stdout.trim(), "['127.0.0.1', '127.0.0.1', '2001:db8::1']", "{}", relay.relay.printed());
}

#[test]
fn a_reload_changes_the_users() {
    let _turn = beside_others();
    let config = format!("basic = true\n{USERS}");
    let relay = Configured::start(&config, &["--http", "127.0.0.1:0"]).serving();
    let url = relay.url(VIEWER, "/front");
    let player = std::thread::spawn(move || ffmpeg(&url, "tcp", "60"));
    // viewer:se:c ret.
    let basic = [("authorization", "Basic dmlld2VyOnNlOmMgcmV0")];
    let mut browser = watch_with(http_address(&relay.relay), "/+live/front", &basic).expect("it may");
    browser.fragment(0);
    wait_until("both play", DEADLINE, || relay.relay.printed().matches(" started playing ").count() == 2);
    std::fs::write(&relay.path, config.replace("se:c ret", "another")).unwrap();
    relay.relay.signal(Signal::SIGHUP);
    player.join().unwrap();
    assert_eq!(browser.end(), (1008, "its user lost the right to the stream".to_owned()));
    let ends = || relay.relay.printed().matches("reason=\"unauthorized\"").count();
    wait_until("their ends are reported", DEADLINE, || ends() == 2);
    let url = relay.relay.url("/front");
    let mut client = Client::connect(relay.relay.address());
    asked(&mut client, "DESCRIBE", &url, "viewer", "se:c ret").expect(401);
    asked(&mut client, "DESCRIBE", &url, "viewer", "another").expect(200);
}

/// Status and head of `GET path`.
fn get(address: SocketAddr, path: &str, header: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[test]
fn pages_beyond_loopback_are_for_users() {
    let _turn = beside_others();
    let all = "[[user]]\nname = \"admin\"\npassword = \"secret\"\n\n";
    // Listening on all addresses of this machine, and requested over loopback only.
    let relay = Configured::start(&format!("basic = true\n{USERS}{all}"), &["--http", "0.0.0.0:0"]);
    let http = SocketAddr::from(([127, 0, 0, 1], http_address(&relay.relay).port()));
    assert_eq!(get(http, "/healthz", "").0, 200);
    for path in ["/metrics", "/status"] {
        let (status, head) = get(http, path, "");
        assert_eq!((status, head.to_lowercase().matches("www-authenticate: ").count()), (401, 3), "{head}");
    }
    // admin:secret, viewer:se:c ret, admin:guess.
    for (basic, status) in [("YWRtaW46c2VjcmV0", 200), ("dmlld2VyOnNlOmMgcmV0", 403), ("YWRtaW46Z3Vlc3M=", 401)] {
        assert_eq!(get(http, "/metrics", &format!("Authorization: Basic {basic}\r\n")).0, status);
    }
    let top = |http: &str| run(Duration::from_secs(20), BINARY, &["top", "--http", http]);
    assert!(top(&format!("admin:secret@{http}")).expect_silent_success().stdout.contains("front"));
    let file = scratch_file("top-password");
    std::fs::write(&file, "secret\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file_shown = file.to_str().unwrap();
    let with_file = ["top", "--http", &format!("admin@{http}"), "--password-file", file_shown];
    assert!(run(Duration::from_secs(20), BINARY, &with_file).expect_silent_success().stdout.contains("front"));
    std::fs::remove_file(&file).unwrap();
    let gone = run(Duration::from_secs(20), BINARY, &with_file);
    assert!(!gone.status.success() && gone.stderr.contains("--password-file: "), "{gone:#?}");
    for (target, said) in [(format!("admin:guess@{http}"), "rejects"), (http.to_string(), "USER:PASSWORD@")] {
        let refused = top(&target);
        assert!(!refused.status.success() && refused.stderr.contains(said), "{refused:#?}");
        assert!(!refused.stderr.contains("guess"), "{refused:#?}");
    }
    let admin = "Authorization: Basic YWRtaW46c2VjcmV0\r\n";
    // The one from the page, and the one from `top` with the wrong password.
    assert_eq!(value(&get(http, "/metrics", admin).1, "rtsprelay_auth_failed_total"), 2.0);
    for _ in 2..AUTH_FAILURES_MAX {
        assert_eq!(get(http, "/metrics", "Authorization: Basic YWRtaW46Z3Vlc3M=\r\n").0, 401);
    }
    // A client that was here before is let in after a delay. One that keeps using the wrong password is not.
    assert_eq!(get(http, "/metrics", admin).0, 200);
    assert_eq!(get(http, "/metrics", "Authorization: Basic YWRtaW46Z3Vlc3M=\r\n").0, 401);
}

#[test]
fn the_last_user_does_not_go_without_a_word() {
    let _turn = beside_others();
    let open = "listen = [\"0.0.0.0:0\"]\nhttp = \"0.0.0.0:0\"\n\n[[stream]]\nname = \"front\"\nsource = \"test\"\n\n";
    let user = "[[user]]\nname = \"viewer\"\npassword = \"secret\"\n";
    let relay = Configured::start(&format!("{open}{user}"), &[]);
    let said = ["anyone who can connect to 0.0.0.0:", "shows clients' addresses to anyone"];
    assert!(!said.iter().any(|said| relay.relay.printed().contains(said)), "{}", relay.relay.printed());
    std::fs::write(&relay.path, open).unwrap();
    relay.relay.signal(Signal::SIGHUP);
    for said in said {
        wait_until(said, DEADLINE, || relay.relay.printed().contains(said));
    }
}

#[test]
fn no_password_need_be_stored() {
    let _turn = beside_others();
    let input = scratch_file("password");
    std::fs::write(&input, "se:c ret\n").unwrap();
    let mut command = Command::new(BINARY);
    command.args(["hash-password", "viewer"]).stdin(std::fs::File::open(&input).unwrap());
    let hashes = Program::start_fed(command).finish(DEADLINE).expect_silent_success().stdout;
    std::fs::remove_file(&input).unwrap();
    let config = USERS.replace("password = \"se:c ret\"\n", &hashes);
    assert!(config.contains("ha1_sha256 = ") && config.contains("ha1_md5 = ") && !config.contains("se:c"));
    let relay = Configured::start(&config, &[]).serving();
    ffmpeg(&relay.url(VIEWER, "/front"), "tcp", "1").expect_silent_success();
}

#[test]
fn a_player_that_repeats_its_last_credentials_plays_and_is_never_refused() {
    let _turn = beside_others();
    let relay = users(&[]);
    let player = test_file("players/repeats_credentials.py");
    let (host, port) = (relay.relay.address().ip().to_string(), relay.relay.address().port().to_string());
    let played = run(DEADLINE, SYSTEM_PYTHON, &[player.to_str().unwrap(), &host, &port, "viewer", "se:c ret"]);
    assert_eq!(played.expect_silent_success().stdout, "played\n");
    assert!(!relay.relay.printed().contains("authentication failed"), "{}", relay.relay.printed());
}
