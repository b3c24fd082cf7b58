//! The command line of the real binary: exit codes, error messages that say how to fix the problem, reports, signals.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything here takes on the slowest machine; a test that takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn relay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rtsprelay"));
    command.args(arguments).env_remove("RTSPRELAY_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    relay(arguments).output().expect("the binary starts")
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(arguments);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A configuration file, removed with its test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("rtsprelay-cli-{}-{name}.toml", std::process::id()));
        fs::write(&path, text).expect("a file in the temporary directory");
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // If it remains, the next cleaning of the temporary directory removes it.
        let _ = fs::remove_file(&self.0);
    }
}

/// A running relay, killed when dropped.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child =
            relay(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Running { child, stdout }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the relay runs");
    }

    /// The next line on standard output that contains `part`.
    fn line(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).expect("UTF-8");
            assert!(read > 0, "{part:?} was never printed");
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits for its end. Returns the exit code, the rest of standard output, and standard error.
    fn finish(mut self) -> (Option<i32>, String, String) {
        let (done, is_done) = mpsc::channel();
        let pid = Pid::from_raw(self.child.id() as i32);
        let guard = std::thread::spawn(move || {
            if is_done.recv_timeout(DEADLINE).is_err() {
                // It may just have ended.
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let mut out = String::new();
        self.stdout.read_to_string(&mut out).expect("UTF-8");
        let mut err = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("UTF-8");
        let status = self.child.wait().expect("a child");
        done.send(()).expect("the guard waits");
        guard.join().expect("the guard");
        (status.code(), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `finish` nothing is left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn version_and_help_exit_with_0() {
    let (code, out, _) = outcome(&["--version"]);
    assert_eq!((code, out.trim()), (Some(0), concat!("rtsprelay ", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = outcome(&["run", "--help"]);
    assert_eq!(code, Some(0));
    for option in ["--config", "--source", "--listen", "--io", "--workers", "--report-format", "--report-every"] {
        assert!(out.contains(option), "{option} is not in {out}");
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["run", "--source"],
        &["run", "--source", "rtsp://h/", "--config", "x.toml"],
        &["run", "--source", "http://h/"],
        &["run", "--config", "/nonexistent.toml"],
        &["check", "--config", "/nonexistent.toml"],
        &["demo", "--listen", "127.0.0.1"],
        &["demo", "--io", "kqueue"],
        &["demo", "--workers", "257"],
        &["demo", "--report-every", "1ms"],
        &["top", "--http", "nowhere"],
        &["streams", "--http", "nowhere"],
        &["top", "--http", "a:b@127.0.0.1:1", "--password-file", "/nonexistent"],
        &["hash-password", "a:b"],
    ] {
        let (code, _, err) = outcome(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
        assert!(!err.is_empty(), "{arguments:?} gets no message");
    }
}

#[test]
fn no_complaint_shows_a_password() {
    for arguments in [
        &["run", "--source", "rtsp://u:hunter2@h:x/"][..],
        &["run", "--source", "http://u:hunter2@h/"],
        &["run", "--sauce", "rtsp://u:hunter2@h/"],
        &["run", "rtsp://u:hunter2@h/"],
        &["demo", "rtsp://u:hunter2@h/"],
        &["rtsp://u:hunter2@h/"],
        &["demo", "--listen", "rtsp://u:hunter2@h/"],
        &["demo", "--sauce=rtsp://u:hunter2@h/"],
    ] {
        let (code, out, err) = outcome(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(!out.contains("hunter2") && !err.contains("hunter2"), "{arguments:?}: {out}{err}");
    }
}

#[test]
fn check_tells_every_fault_with_file_and_line() {
    let bad = File::new("bad", "listne = \"x\"\n[queue]\nage = 1\n[[stream]]\nname = \"a\"\nsource = \"test\"\n");
    let (code, out, err) = outcome(&["check", "--config", bad.path()]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines.len(), 2, "{err}");
    assert!(lines[0].starts_with(&format!("{}:1: unknown key listne; did you mean listen?", bad.path())), "{err}");
    assert!(lines[1].starts_with(&format!("{}:3: queue.age: ", bad.path())), "{err}");
    let (code, _, run_err) = outcome(&["run", "--config", bad.path()]);
    assert_eq!((code, run_err), (Some(2), err), "a start says the same");

    let good = File::new("good", "[[stream]]\nname = \"a\"\nsource = \"rtsp://u:hunter2@192.0.2.1/\"\n");
    let permit = |mode| fs::set_permissions(good.path(), PermissionsExt::from_mode(mode)).expect("it is ours");
    permit(0o640);
    let (code, out, err) = outcome(&["check", "--config", good.path()]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out, format!("{}: ok, 1 stream (a) at 0.0.0.0:8554\n", good.path()));
    // A password in a world-readable file causes a warning, but no error.
    permit(0o644);
    let (code, _, err) = outcome(&["check", "--config", good.path()]);
    assert_eq!(code, Some(0));
    assert!(err.contains("warning: line 3: contains a password or") && !err.contains("hunter2"), "{err}");
}

#[test]
fn a_port_in_use_exits_with_1_and_names_address_and_cure() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let (code, _, err) = outcome(&["demo", "--listen", &address]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&address) && err.contains("--listen"), "{err}");
}

#[test]
fn a_signal_stops_it_with_0_and_a_summary() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut running =
            Running::start(&["demo", "--listen", "127.0.0.1:0", "--report-format", "json", "--report-every", "100ms"]);
        running.line("\"report\":\"interval\"");
        running.signal(signal);
        let (code, out, err) = running.finish();
        assert_eq!(code, Some(0), "{err}");
        let last: serde_json::Value = serde_json::from_str(out.lines().last().expect("a summary")).expect("JSON");
        assert_eq!(last["report"], "summary");
        assert_eq!(last["streams"][0]["stream"], "test");
        assert!(err.contains("stopping"), "{err}");
    }
}

#[test]
fn sigusr1_prints_the_summary_and_it_goes_on() {
    let mut running = Running::start(&[
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--report-format",
        "logfmt",
        "--report-every",
        "100ms",
        "--workers",
        "1",
    ]);
    running.line("report=interval");
    running.signal(Signal::SIGUSR1);
    running.line("report=summary");
    // It keeps reporting, and the pattern's frames arrive.
    loop {
        let line = running.line("report=interval");
        if line.contains("stream=test") && line.contains("state=live") && !line.contains(" fps=0.0 ") {
            break;
        }
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().0, Some(0));
}

#[test]
fn options_go_before_the_file() {
    let file = File::new(
        "override",
        // Few clients: otherwise the relay warns if the limit on open files is too low for the default.
        "listen = \"127.0.0.1:1\"\nworkers = 2\nreport.format = \"logfmt\"\nlimits.clients = 100\n[[stream]]\nname = \"a\"\nsource = \"test\"\n",
    );
    let mut running = Running::start(&[
        "run",
        "--config",
        file.path(),
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.2:0",
        "--workers",
        "1",
        "--io",
        "epoll",
        "--report-format",
        "json",
        "--report-every",
        "100ms",
    ]);
    running.line("{");
    running.signal(Signal::SIGTERM);
    let (code, _, err) = running.finish();
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(err.matches("listening address=").count(), 2, "{err}");
    assert!(err.contains("address=127.0.0.2:") && err.contains("shards=1") && err.contains("io=\"epoll\""), "{err}");
    assert!(!err.contains("WARN"), "{err}");
}
