//! Programs that receive events about streams, and that add and remove streams while the relay runs.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::http::{get, http_address};
use crate::harness::machine::{beside_others, has_own_network};
use crate::harness::program::{Finished, Program, run};
use crate::harness::publisher::Publisher;
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::websocket::watch_with;
use crate::harness::{DEADLINE, scratch_file, test_file, wait_until};

/// Events as received by a program.
struct Reader {
    lines: BufReader<TcpStream>,
}

impl Reader {
    fn start(address: SocketAddr) -> Reader {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET /+events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut reader = Reader { lines: BufReader::new(stream) };
        while !reader.line().starts_with(": events") {}
        reader
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).expect("a line") > 0, "the events have ended");
        line.trim_end().to_owned()
    }

    /// The next event of this kind; others before it are skipped.
    fn next(&mut self, kind: &str) -> Value {
        loop {
            let line = self.line();
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let event: Value = serde_json::from_str(data).expect("JSON");
            if event["event"] == kind {
                return event;
            }
        }
    }
}

#[test]
fn programs_are_told_what_is_wanted_and_what_comes_of_it() {
    let _turn = beside_others();
    let relay = Relay::configured(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[report]\nevents = true\nformat = \"json\"\nevery = \"0s\"\n\
         [[stream]]\nname = \"front\"\nsource = \"test\"\n\
         [[stream]]\nname = \"live/*\"\nsource = \"publish\"\nlinger = \"300ms\"\n",
    );
    let mut events = Reader::start(http_address(&relay));
    let mut waiting = Client::connect(relay.address());
    let request = waiting.compose("DESCRIBE", &relay.url("/live/a"), &[("Accept", "application/sdp")]);
    waiting.send_raw(request.as_bytes());
    assert_eq!(events.next("wanted")["stream"], "live/a");
    // What a script would do then.
    let publisher = Publisher::start(relay.address(), &relay.url("/live/a"));
    assert_eq!(events.next("made")["stream"], "live/a");
    waiting.answer().expect(200);
    drop(publisher);
    let gone = events.next("gone");
    assert_eq!((&gone["stream"], &gone["reason"]), (&Value::from("live/a"), &Value::from("unpublished")));
    let relay = relay.serving("/front");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/front"));
    let came = events.next("client_came");
    assert_eq!((&came["stream"], &came["transport"]), (&Value::from("front"), &Value::from("tcp")));
    drop(client);
    let gone = events.next("client_gone");
    assert_eq!((&gone["session"], &gone["reason"]), (&came["session"], &Value::from("disconnected")));
    // The same, as lines on standard output.
    let printed = relay.printed();
    let lines = printed.lines().filter(|line| line.starts_with('{') && line.contains("\"event\":\"wanted\""));
    assert_eq!(lines.count(), 1, "{printed}");
}

/// The script in the documentation: its first shell block that is a program.
fn script() -> String {
    let text = std::fs::read_to_string(test_file("../docs/STREAMS.md")).expect("STREAMS.md");
    let (_, block) = text.split_once("```sh\n#!").expect("a script");
    format!("#!{}", block.split_once("```").expect("its end").0)
}

#[test]
fn the_documents_script_starts_an_encoder_when_somebody_looks() {
    let _turn = beside_others();
    // A network for this thread and its children, in which the script's ports are free.
    if !has_own_network() {
        return;
    }
    let relay = Relay::configured(
        "listen = \"127.0.0.1:8554\"\nhttp = \"127.0.0.1:8580\"\n[report]\nevents = true\nformat = \"json\"\nevery = \"0s\"\n\
         [[stream]]\nname = \"live/*\"\nsource = \"publish\"\non_demand_start = \"5s\"\n",
    );
    let path = scratch_file("script.sh");
    std::fs::write(&path, script()).unwrap();
    let mut sh = Command::new("sh");
    sh.arg(&path);
    // The processes that it started end with the relay.
    let _script = Program::start(sh);
    // It requests events: an established connection to port 8580.
    wait_until("the script listens", DEADLINE, || {
        let connections = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        connections.lines().any(|line| line.contains(":2184 01 "))
    });
    // If it has not requested them yet, the next event reaches it.
    let relay = relay.serving("/live/yard/a");
    relay.has_sent("/live/yard/a", 10);
    let printed = relay.printed();
    for event in ["wanted", "made", "live", "client_came"] {
        assert!(printed.contains(&format!("\"event\":\"{event}\"")), "{event}: {printed}");
    }
    std::fs::remove_file(&path).unwrap();
}

/// A relay with a user who may administer, and one who may not.
struct Administered {
    relay: Relay,
    config: std::path::PathBuf,
    state: std::path::PathBuf,
}

const USERS: &str = "[[user]]\nname = \"ann\"\npassword = \"p\"\nmay = [\"read\", \"administer\"]\n\
    [[user]]\nname = \"bob\"\npassword = \"p\"\n\
    [[user]]\nname = \"eve\"\npassword = \"p\"\nmay = \"administer\"\nstreams = \"eve/*\"\n\
    [[stream]]\nname = \"eve/*\"\nsource = \"publish\"\n";

impl Administered {
    fn start() -> Administered {
        let (config, state) = (scratch_file("administered.toml"), scratch_file("state.toml"));
        let this = |relay| Administered { relay, config: config.clone(), state: state.clone() };
        Administered::write(&config, &state, &["front"]);
        this(Relay::start(command(Uring::AsAsked, &["run", "--config", config.to_str().unwrap()])))
    }

    fn write(config: &std::path::Path, state: &std::path::Path, streams: &[&str]) {
        let streams = streams.iter().map(|name| format!("[[stream]]\nname = \"{name}\"\nsource = \"test\"\n"));
        let head = format!(
            "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nbasic = true\nstate = \"{}\"\n[report]\nevery = \"0s\"\n",
            state.display()
        );
        std::fs::write(config, head + &streams.collect::<String>() + USERS).unwrap();
    }

    /// Runs `rtsprelay streams` as this user.
    fn streams(&self, user: &str, arguments: &[&str]) -> Finished {
        let target = format!("{user}:p@{}", http_address(&self.relay));
        run(DEADLINE, BINARY, &[&["streams", "--http", &target], arguments].concat())
    }

    /// Asserts that it succeeds, or fails with this text.
    #[track_caller]
    fn expect(&self, user: &str, arguments: &[&str], fails_with: Option<&str>) {
        let finished = self.streams(user, arguments);
        match fails_with {
            None => assert!(finished.status.success(), "{arguments:?}: {finished:#?}"),
            Some(why) => {
                assert!(!finished.status.success() && finished.stderr.contains(why), "{arguments:?}: {finished:#?}");
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let (status, text) = get(http_address(&self.relay), "/+streams");
        assert_eq!(status, 200, "{text}");
        let listed: Value = serde_json::from_str(&text).expect("JSON");
        let one =
            |stream: &Value| format!("{} {}", stream["stream"].as_str().unwrap(), stream["from"].as_str().unwrap());
        let mut names: Vec<_> = listed["streams"].as_array().unwrap().iter().map(one).collect();
        names.sort();
        names
    }
}

impl Drop for Administered {
    fn drop(&mut self) {
        // Scratch files; cleaning the build directory removes them if they stay.
        let _ = std::fs::remove_file(&self.config);
        let _ = std::fs::remove_file(&self.state);
    }
}

#[test]
fn streams_are_added_and_removed_and_kept() {
    let _turn = beside_others();
    let mut this = Administered::start();
    this.expect("ann", &["add", "yard/a", "--source", "test"], None);
    this.expect("ann", &["add", "yard/b", "--source", "rtsp://u:hunter2@127.0.0.1:9/x"], None);
    assert_eq!(this.names(), ["front file", "yard/a added", "yard/b added"]);
    // The root is unchanged: the only configured stream.
    let basic = [("Authorization", "Basic YW5uOnA="), ("Accept", "application/sdp")];
    let url = this.relay.url("/");
    wait_until("the root is the file's stream", DEADLINE, || {
        Client::connect(this.relay.address()).request("DESCRIBE", &url, &basic).status == 200
    });
    assert!(std::fs::read_to_string(&this.state).unwrap().contains("name = \"yard/a\"\nsource = \"test\""));
    // What is refused, and why.
    this.expect("ann", &["add", "yard/a", "--source", "test"], Some("added already"));
    this.expect("ann", &["add", "front", "--source", "test"], Some("the configuration has that stream"));
    this.expect("ann", &["remove", "front"], Some("the configuration has that stream"));
    this.expect("ann", &["remove", "nothing"], Some("no stream of that name"));
    this.expect("ann", &["add", "yard/c", "--source", "tset"], Some("stream.source: \"tset\" is not a source"));
    this.expect("ann", &["add", "a b", "--source", "test"], Some("letters, digits"));
    this.expect("bob", &["add", "yard/c", "--source", "test"], Some("may = [\"administer\"]"));
    this.expect("eve", &["add", "yard/c", "--source", "test"], Some("the stream in its streams"));
    this.expect("eve", &["add", "eve/1", "--source", "test"], None);
    this.expect("eve", &["remove", "yard/a"], Some("the stream in its streams"));
    this.expect("ann", &["remove", "yard/b"], None);
    assert_eq!(this.names(), ["eve/1 added", "front file", "yard/a added"]);

    // They are back after a restart, and the configuration takes precedence.
    this.relay.signal(Signal::SIGKILL);
    Administered::write(&this.config, &this.state, &["front", "eve/1"]);
    this.relay = Relay::start(command(Uring::AsAsked, &["run", "--config", this.config.to_str().unwrap()]));
    wait_until("they are there", DEADLINE, || this.names() == ["eve/1 file", "front file", "yard/a added"]);
    Administered::write(&this.config, &this.state, &["front", "yard/a"]);
    this.relay.signal(Signal::SIGHUP);
    wait_until("the file has it", DEADLINE, || this.names() == ["front file", "yard/a file"]);
    assert!(!std::fs::read_to_string(&this.state).unwrap().contains("yard/a"));
    assert!(!this.relay.printed().contains("hunter2"));
}

#[test]
fn a_browser_that_waits_for_a_stream_is_told_when_it_is_removed() {
    let _turn = beside_others();
    let this = Administered::start();
    // Nothing listens there.
    this.expect("ann", &["add", "yard/a", "--source", "rtsp://127.0.0.1:9/x"], None);
    // The user ann with the password p.
    let authorization = [("authorization", "Basic YW5uOnA=")];
    let mut browser = watch_with(http_address(&this.relay), "/+live/yard/a", &authorization).expect("101");
    browser.text("waiting");
    this.expect("ann", &["remove", "yard/a"], None);
    assert_eq!(browser.end(), (1013, "the stream was removed".to_owned()));
}

#[test]
fn a_client_is_ended() {
    let _turn = beside_others();
    let this = Administered::start();
    let url = this.relay.url("/front").replace("rtsp://", "rtsp://ann:p@");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-rtsp_transport", "tcp", "-i", &url, "-c", "copy", "-f", "null", "-"]);
    let player = Program::start(ffmpeg);
    let mut session = String::new();
    wait_until("it plays", DEADLINE, || {
        let status: Value = serde_json::from_str(&get(http_address(&this.relay), "/status").1).expect("JSON");
        let found = status["clients"][0]["session"].as_str().map(str::to_owned);
        session = found.unwrap_or_default();
        !session.is_empty()
    });
    this.expect("bob", &["end", &session], Some("administer"));
    this.expect("ann", &["end", "0123456789abcdef"], Some("no client with that session"));
    this.expect("ann", &["end", &session], None);
    player.finish(DEADLINE);
    assert!(this.relay.printed().contains("reason=\"ended\""), "{}", this.relay.printed());
}
