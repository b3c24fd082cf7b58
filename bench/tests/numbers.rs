//! The generator's numbers are right: the report shows exactly what the camera did to the stream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Held while a test runs, because the tests measure and would disturb each other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program under test.
fn bench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rtsprelay-bench"));
    command.stdin(Stdio::null());
    command
}

/// A running camera or floor, killed when dropped.
struct Serving {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The URL that it printed.
    url: String,
}

impl Serving {
    /// Starts it and waits for its URL.
    fn start(arguments: &[&str]) -> Serving {
        let mut child = bench().args(arguments).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut url = String::new();
        output.read_line(&mut url).expect("its first line");
        assert!(url.starts_with("rtsp://"), "{arguments:?} printed {url:?}");
        Serving { child, output, url: url.trim_end().to_string() }
    }

    /// Its process id.
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Starts the clock of an armed camera's faults.
    fn go(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGUSR1).expect("it runs");
    }

    /// Ends it as Ctrl-C does, checks that it succeeds, and returns the rest of its output.
    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.pid()), Signal::SIGINT).expect("it runs");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("its output");
        assert!(self.child.wait().expect("it ends").success());
        rest
    }
}

/// A child that ends with its test, even if it is stopped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `load` to its end and returns its report. Calls `begun` when its measurement begins.
fn load_with(url: &str, arguments: &[&str], begun: impl FnOnce()) -> Value {
    let mut command = bench();
    command.args(["load", "--json", "--announce", "--url", url]).args(arguments);
    let mut child = Ended(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("load runs"));
    let mut output = BufReader::new(child.0.stdout.take().expect("piped"));
    let mut first = String::new();
    output.read_line(&mut first).expect("text");
    if first == "measuring\n" {
        begun();
    }
    let (mut text, mut error) = (String::new(), String::new());
    output.read_to_string(&mut text).expect("text");
    child.0.stderr.take().expect("piped").read_to_string(&mut error).expect("text");
    child.0.wait().expect("it ends");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {first:?} and {text:?}, on standard error {error:?}"))
}

/// Runs `load` to its end and returns its report.
fn load(url: &str, arguments: &[&str]) -> Value {
    load_with(url, arguments, || ())
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).unwrap_or_else(|| panic!("no {path} in {value}"));
    found.as_f64().unwrap_or_else(|| panic!("{path} is {found}"))
}

/// The camera's own account of what it did to its only stream.
fn tally(camera: Serving) -> Value {
    let text = camera.stop();
    let all: Value = serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    all[0].clone()
}

#[test]
fn a_stall_is_reported_to_the_frame() {
    let _turn = turn();
    // Within the measurement, and long over before it ends.
    let camera = Serving::start(&["camera", "--audio", "--json", "--armed", "--fault", "stall=1s@500ms"]);
    let floor = Serving::start(&["floor", "--source", &camera.url]);
    let arguments = ["--clients", "4", "--warmup", "200ms", "--seconds", "5", "--verify"];
    let report = load_with(&floor.url, &arguments, || camera.go());
    let normal = &report["normal"];
    drop(floor);
    let truth = tally(camera);
    assert!(number(&truth, "/frames_missing") >= 29.0, "{truth}");
    assert_eq!(number(normal, "/frames_missing"), 4.0 * number(&truth, "/frames_missing"), "{report}");
    assert_eq!(number(normal, "/frames_damaged"), 0.0, "{report}");
    // These frames were never made, so no packet is missing between those that arrived.
    assert_eq!(number(normal, "/packets_missing"), 0.0, "{report}");
    let back = number(normal, "/resumed_on_keyframe") + number(normal, "/resumed_elsewhere");
    assert_eq!(back, 4.0, "{report}");
    assert_eq!(number(normal, "/longest_wait_us/count"), 4.0, "{report}");
    // A second, and the time of a frame, less what the last frame before it may have been late.
    assert!(number(normal, "/longest_wait_us/p50") > 950_000.0, "{report}");
    assert_eq!(number(&report, "/verified/different"), 0.0, "{report}");
}

#[test]
fn lost_packets_are_reported_to_the_packet() {
    let _turn = turn();
    for transport in ["tcp", "udp"] {
        let camera = Serving::start(&["camera", "--json", "--armed", "--fault", "loss=2%@500ms-2500ms"]);
        let floor = Serving::start(&["floor", "--source", &camera.url]);
        let arguments = ["--clients", "3", "--warmup", "200ms", "--seconds", "6", "--verify", "--transport", transport];
        let report = load_with(&floor.url, &arguments, || camera.go());
        drop(floor);
        let truth = tally(camera);
        let normal = &report["normal"];
        assert!(number(&truth, "/packets_lost") > 0.0, "{truth}");
        assert_eq!(number(normal, "/packets_missing"), 3.0 * number(&truth, "/packets_lost"), "{report}");
        assert_eq!(number(normal, "/frames_damaged"), 3.0 * number(&truth, "/frames_damaged"), "{report}");
        assert_eq!(number(normal, "/frames_missing"), 3.0 * number(&truth, "/frames_missing"), "{report}");
        assert_eq!(number(&report, "/verified/different"), 0.0, "{report}");
        assert!(number(&report, "/verified/compared") > 100.0, "{report}");
    }
}

#[test]
fn datagrams_that_the_generator_lets_overflow_are_its_own_fault() {
    let _turn = turn();
    let camera = Serving::start(&["camera", "--bitrate", "100M"]);
    let arguments = ["load", "--json", "--transport", "udp", "--clients", "1", "--warmup", "0", "--seconds", "2"];
    let load = bench().args(arguments).args(["--url", &camera.url]).stdout(Stdio::piped()).spawn();
    let mut load = Ended(load.expect("it starts"));
    let pid = Pid::from_raw(load.0.id() as i32);
    while load.0.try_wait().expect("it is ours").is_none() {
        kill(pid, Signal::SIGSTOP).expect("it is there");
        // This tests time itself: for a while it reads nothing, longer than its sockets have room for what arrives.
        std::thread::sleep(Duration::from_millis(500));
        kill(pid, Signal::SIGCONT).expect("it is there");
        // Repeated, because nobody outside knows when it measures; in between it needs time to make progress.
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut text = String::new();
    load.0.stdout.take().expect("piped").read_to_string(&mut text).expect("its report");
    let report: Value = serde_json::from_str(&text).expect("a report");
    let dropped = number(&report, "/generator/datagrams_dropped");
    assert!(dropped > 0.0 && number(&report, "/normal/packets_missing") > 0.0, "{report}");
    assert!(
        report["generator"]["bottleneck"].as_str().is_some_and(|why| why.contains("sockets were full")),
        "{report}"
    );
}

/// A delay shifts the whole distribution by its length. The lower bound is exact. The upper one adds the p90 of the run without
/// delay, and stays below twice the delay, so a busy machine passes, but a delay that counts twice does not. Both runs are
/// concurrent, so that other load affects both.
#[test]
fn a_delay_of_20_ms_reads_as_20_ms() {
    let _turn = turn();
    let p50 = |fault: &[&str]| {
        let camera = Serving::start(&[&["camera"], fault].concat());
        let report = load(&camera.url, &["--clients", "2", "--warmup", "200ms", "--seconds", "3"]);
        (number(&report, "/normal/latency_us/p50"), number(&report, "/normal/latency_us/p90"))
    };
    let ((_, without), (with, _)) = std::thread::scope(|scope| {
        let without = scope.spawn(|| p50(&[]));
        let with = p50(&["--fault", "delay=20ms"]);
        (without.join().expect("its own run"), with)
    });
    assert!(with >= 20_000.0, "{with}");
    assert!(with < 2.0 * 20_000.0 + without, "{with}, and {without} without the delay");
}

#[test]
fn corruption_is_no_loss() {
    let _turn = turn();
    let camera = Serving::start(&["camera", "--json", "--armed", "--fault", "corrupt=5%@500ms-2500ms"]);
    let arguments = ["--clients", "2", "--warmup", "200ms", "--seconds", "4", "--verify"];
    let report = load_with(&camera.url, &arguments, || camera.go());
    let truth = tally(camera);
    assert!(number(&truth, "/frames_corrupted") > 0.0, "{truth}");
    assert_eq!(number(&report, "/normal/packets_missing"), 0.0, "{report}");
    // Both got the same corrupted bytes.
    assert_eq!(number(&report, "/verified/different"), 0.0, "{report}");
}

#[test]
fn a_camera_that_dies_ends_its_players_and_comes_back() {
    let _turn = turn();
    let camera = Serving::start(&["camera", "--armed", "--fault", "die=300ms@500ms"]);
    let report = load_with(&camera.url, &["--clients", "2", "--warmup", "0", "--seconds", "4"], || camera.go());
    assert_eq!(number(&report, "/normal/closed"), 2.0, "{report}");
    assert_eq!(report["failures"][0][0], "the server closed the connection", "{report}");
    let report = load(&camera.url, &["--clients", "2", "--warmup", "0", "--seconds", "1"]);
    assert_eq!(number(&report, "/normal/playing"), 2.0, "{report}");
}

#[test]
fn slow_stalled_and_restless_players_are_kept_apart() {
    let _turn = turn();
    let camera = Serving::start(&["camera"]);
    let floor = Serving::start(&["floor", "--source", &camera.url]);
    let pid = floor.pid().to_string();
    let arguments = ["--clients", "20", "--slow", "2", "--slow-rate", "50k", "--stalled", "1", "--churn", "5"];
    let more = ["--warmup", "200ms", "--seconds", "2", "--pid", &pid];
    let report = load(&floor.url, &[&arguments[..], &more[..]].concat());
    assert_eq!(number(&report, "/normal/clients"), 17.0, "{report}");
    assert_eq!(number(&report, "/stalled/frames"), 0.0, "{report}");
    let slow_rate = number(&report, "/slow/bytes") / number(&report, "/seconds");
    assert!(slow_rate > 0.0 && slow_rate <= 2.0 * 50_000.0 * 1.1, "{slow_rate}");
    let left = number(&report, "/left");
    // At most five a second; fewer on a machine that cannot keep up.
    assert!(left >= 1.0 && left <= 5.0 * number(&report, "/seconds") + 1.0, "{report}");
    assert!(number(&report, "/joined") > 20.0, "{report}");
    assert!(number(&report, "/server/cpu_us_per_client_frame") > 0.0, "{report}");
    assert!(number(&report, "/server/rss_after") > 100_000.0, "{report}");
}

#[test]
fn the_csv_file_gets_one_header_and_a_line_a_run() {
    let _turn = turn();
    let camera = Serving::start(&["camera"]);
    let path = std::env::temp_dir().join(format!("rtsprelay-bench-{}.csv", std::process::id()));
    let name = path.display().to_string();
    for _ in 0..2 {
        load(&camera.url, &["--clients", "1", "--warmup", "0", "--seconds", "300ms", "--csv", &name]);
    }
    let text = std::fs::read_to_string(&path).expect("the file");
    std::fs::remove_file(&path).expect("it is ours");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("url,transport,clients,"), "{text}");
    assert!(lines.iter().all(|l| l.split(',').count() == lines[0].split(',').count()), "{text}");
    // Without --pid nothing is known about the server.
    let at = lines[0].split(',').position(|name| name == "server_cpu_percent").expect("a column");
    assert_eq!(lines[1].split(',').nth(at), Some(""), "{text}");
}

#[test]
fn wrong_arguments_are_2_and_failures_are_1() {
    let _turn = turn();
    let code = |arguments: &[&str]| bench().args(arguments).output().expect("it runs").status.code();
    assert_eq!(code(&["load"]), Some(2));
    assert_eq!(code(&["camera", "--fault", "explode"]), Some(2));
    // Nothing listens on the discard port.
    assert_eq!(code(&["load", "--url", "rtsp://127.0.0.1:9/", "--seconds", "1"]), Some(1));
    for wrong in [["--ramp", "nan"], ["--ramp", "inf"], ["--churn", "1e18"], ["--seconds", "0"]] {
        assert_eq!(code(&["load", "--url", "rtsp://127.0.0.1:9/", wrong[0], wrong[1]]), Some(2), "{wrong:?}");
    }
    for wrong in [["--fps", "nan"], ["--fps", "inf"], ["--keyframe-factor", "nan"], ["--fault", "loss=1%@2s-1s"]] {
        assert_eq!(code(&["camera", "--seconds", "100ms", wrong[0], wrong[1]]), Some(2), "{wrong:?}");
    }
    assert_eq!(code(&["camera", "--seconds", "100ms", "--path", "a", "--path", "a"]), Some(1));
}

#[test]
fn what_load_cannot_do_is_told_with_its_cure() {
    let _turn = turn();
    let camera = Serving::start(&["camera"]);
    let nowhere = format!("{}-nowhere", camera.url);
    let file = std::env::temp_dir().join(format!("rtsprelay-bench-other-{}.csv", std::process::id()));
    std::fs::write(&file, "url,clients\n").expect("it can be written");
    let other = file.display().to_string();
    for (arguments, said) in [
        (&["--url", "rtsp://127.0.0.1:9/"][..], "cannot connect to 127.0.0.1:9: Connection refused"),
        (&["--url", "rtsp://127.0.0.1:9/"], "start the server"),
        (&["--url", &nowhere], "check the URL's path"),
        (&["--url", &camera.url, "--pid", "999999999"], "`pgrep`"),
        (&["--url", &camera.url, "--clients", "0"], "without a player"),
        (&["--url", &camera.url, "--clients", "1", "--slow", "2"], "raise --clients"),
        (&["--url", &camera.url, "--transport", "udp", "--slow", "1"], "use --transport tcp"),
        // Both are reported before anything is measured.
        (&["--url", &camera.url, "--seconds", "1000", "--csv", "/nowhere/at.csv"], "cannot write /nowhere/at.csv"),
        (&["--url", &camera.url, "--seconds", "1000", "--csv", &other], "has other columns"),
    ] {
        let output = bench().arg("load").args(arguments).output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(said), "{arguments:?}: {error}");
    }
    std::fs::remove_file(&file).expect("it is ours");
}

#[test]
fn a_signal_that_comes_twice_at_once_does_not_cut_off_the_end() {
    let _turn = turn();
    for _ in 0..5 {
        let mut camera = Serving::start(&["camera", "--json"]);
        let pid = Pid::from_raw(camera.pid());
        // As from `timeout`, or from a terminal whose parent passes the signal on.
        kill(pid, Signal::SIGTERM).expect("it runs");
        let _ = kill(pid, Signal::SIGINT);
        let mut rest = String::new();
        camera.output.read_to_string(&mut rest).expect("its output");
        assert!(camera.child.wait().expect("it ends").success() && rest.contains("\"frames\""), "{rest:?}");
    }
}

#[test]
fn an_attack_is_what_was_asked_for() {
    let _turn = turn();
    let camera = Serving::start(&["camera"]);
    let arguments = ["attack", "--url", &camera.url, "--half-open", "7", "--dripping", "5", "--flooding", "2"];
    let output = bench().args(arguments).args(["--seconds", "2500ms"]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (ready, tally) = text.trim_end().split_once('\n').expect("two lines");
    let tally: Value = serde_json::from_str(tally).expect("JSON");
    assert_eq!((ready, tally["connected"].as_u64(), tally["failed"].as_u64()), ("ready", Some(14), Some(0)), "{text}");
    // Some bytes were dripped, and many more flooded and answered.
    assert!(tally["bytes_sent"].as_u64() > Some(10_000) && tally["bytes_received"].as_u64() > Some(10_000), "{text}");
}

/// A hand-written player of one video track: what it requests and what it receives, in order.
struct ByHand {
    stream: TcpStream,
    cseq: u32,
    url: String,
    session: String,
}

impl ByHand {
    fn connect(url: &str) -> ByHand {
        let address = url.trim_start_matches("rtsp://").split('/').next().expect("a host");
        let stream = TcpStream::connect(address).expect("the camera listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time above zero");
        let mut player = ByHand { stream, cseq: 0, url: url.into(), session: String::new() };
        let (_, answer) = player.ask("SETUP", "/track0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n");
        let session = answer.lines().find_map(|line| line.strip_prefix("Session: ")).expect("a session");
        player.session = format!("Session: {}\r\n", session.split(';').next().expect("its name"));
        player
    }

    /// Sends a request and reads up to the answer: the packets before it, and its head.
    fn ask(&mut self, method: &str, more: &str, headers: &str) -> (usize, String) {
        self.cseq += 1;
        let (url, cseq, session) = (&self.url, self.cseq, &self.session);
        let request = format!("{method} {url}{more} RTSP/1.0\r\nCSeq: {cseq}\r\n{session}{headers}\r\n");
        self.stream.write_all(request.as_bytes()).expect("the camera reads");
        let mut packets = 0;
        let mut head = Vec::new();
        loop {
            let mut byte = [0u8];
            self.stream.read_exact(&mut byte).expect("the camera answers");
            if head.is_empty() && byte[0] == b'$' {
                self.rest_of_packet();
                packets += 1;
                continue;
            }
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8(head).expect("text");
                assert!(head.starts_with("RTSP/1.0 200 OK"), "{request} got {head}");
                return (packets, head);
            }
        }
    }

    /// Reads this many packets.
    fn packets(&mut self, count: usize) {
        for _ in 0..count {
            let mut byte = [0u8];
            self.stream.read_exact(&mut byte).expect("media comes");
            assert_eq!(byte[0], b'$');
            self.rest_of_packet();
        }
    }

    fn rest_of_packet(&mut self) {
        let mut head = [0u8; 3];
        self.stream.read_exact(&mut head).expect("a packet's head");
        let mut packet = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        self.stream.read_exact(&mut packet).expect("a packet");
    }
}

/// A relay that pauses its camera while it has no players (as live555's does, over one connection) must get nothing meanwhile,
/// and media again after the next PLAY.
#[test]
fn a_paused_player_gets_nothing_until_it_plays_again() {
    let _turn = turn();
    let camera = Serving::start(&["camera"]);
    let floor = Serving::start(&["floor", "--source", &camera.url]);
    for server in [&camera, &floor] {
        let mut paused = ByHand::connect(&server.url);
        let mut other = ByHand::connect(&server.url);
        paused.ask("PLAY", "", "");
        paused.packets(20);
        paused.ask("PAUSE", "", "");
        // Long enough that the paused one would have had several frames, too.
        other.ask("PLAY", "", "");
        other.packets(60);
        let (packets, _) = paused.ask("GET_PARAMETER", "", "");
        assert_eq!(packets, 0, "of {}", server.url);
        let (_, answer) = paused.ask("PLAY", "", "");
        assert!(answer.contains("RTP-Info: "), "{answer}");
        paused.packets(20);
    }
}

/// One packet of a whole keyframe, on channel 0.
fn keyframe_packet(number: u16) -> Vec<u8> {
    let mut packet = vec![b'$', 0, 0, 14, 0x80, 0x80 | 96, 0, 0, 0, 0, 0, number as u8, 0, 0, 0, 1, 0x65, 1];
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Some servers send their first packets, or requests, before the answer to PLAY.
#[test]
fn what_comes_before_the_answer_to_play_is_taken_in() {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("rtsp://{}/", listener.local_addr().expect("it listens"));
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a player");
        let mut requests = BufReader::new(stream.try_clone().expect("a copy"));
        let send = |bytes: &[u8]| (&stream).write_all(bytes).expect("the player reads");
        let sdp = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n";
        let mut ask = |headers: &str, body: &str| {
            let mut cseq = String::new();
            let mut line = String::new();
            while requests.read_line(&mut line).expect("a request") > 0 && line != "\r\n" {
                cseq = if line.starts_with("CSeq") { line.clone() } else { cseq };
                line.clear();
            }
            format!("RTSP/1.0 200 OK\r\n{cseq}Session: 1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
        };
        send(ask("", sdp).as_bytes());
        send(ask("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", "").as_bytes());
        let answer = ask("", "");
        send(&keyframe_packet(0));
        send(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
        send(&keyframe_packet(1));
        send(answer.as_bytes());
        for number in 2..10 {
            send(&keyframe_packet(number));
        }
        // Until the player sends TEARDOWN.
        ask("", "");
    });
    let report = load(&url, &["--clients", "1", "--warmup", "0", "--seconds", "300ms"]);
    server.join().expect("the player asked what it should");
    assert_eq!(report["failures"].as_array().map(Vec::len), Some(0), "{report}");
    assert_eq!((number(&report, "/joined"), number(&report, "/normal/began_elsewhere")), (1.0, 0.0), "{report}");
    assert_eq!(number(&report, "/normal/first_keyframe_us/count"), 1.0, "{report}");
}

/// Starts a server of `bench/peers`. Returns it and the process that it names.
fn peer(script: &str, camera: &str) -> (Serving, String) {
    let script = format!("{}/peers/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("/usr/bin/python3");
    let mut child = command.args([&script, camera]).stdout(Stdio::piped()).spawn().expect("Python starts");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("its line");
    let (_, place) = line.trim_end().split_once('=').unwrap_or_else(|| panic!("{script} printed {line:?}"));
    let (url, pid) = place.rsplit_once(',').expect("a process behind the URL");
    (Serving { child, output, url: url.into() }, pid.into())
}

/// The measurements of other servers match what they served, also in the second turn, after all players had left. Servers
/// that are not installed are skipped.
#[test]
fn other_servers_are_measured_as_long_as_they_run() {
    let _turn = turn();
    let there = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let gst = "import gi; gi.require_version('GstRtspServer', '1.0')";
    let compiled = "test -x \"${XDG_CACHE_HOME:-$HOME/.cache}/rtsprelay-bench/live555/live555_proxy\"";
    let peers = [
        ("gst_relay.py", "tcp", there("/usr/bin/python3", &["-c", gst])),
        ("vlc_relay.py", "udp", there("sh", &["-c", "command -v vlc && command -v ffmpeg"])),
        ("live555_proxy.py", "tcp", there("sh", &["-c", compiled])),
    ];
    for (script, transport, installed) in peers {
        if !installed {
            eprintln!("{script} is left out: what it needs is not installed");
            continue;
        }
        let camera = Serving::start(&["camera"]);
        let (peer, pid) = peer(script, &camera.url);
        let arguments =
            ["load", "--json", "--url", &peer.url, "--transport", transport, "--pid", &pid, "--clients", "2"];
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut turns = 0;
        while turns < 2 {
            let output = bench().args(arguments).args(["--warmup", "0", "--seconds", "1"]).output().expect("it runs");
            // Without a report it is not serving yet.
            if let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) {
                assert!(number(&report, "/normal/frames_whole") > 0.0, "{script}: {report}");
                assert!(number(&report, "/normal/latency_us/count") > 0.0, "{script}: {report}");
                assert!(number(&report, "/server/cpu_us_per_client_frame") > 0.0, "{script}: {report}");
                turns += 1;
            }
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(Instant::now() < deadline, "{script} failed after {turns} measurements: {why}");
        }
    }
}
