//! Where io_uring is refused, the relay uses epoll and says why in one warning; or it refuses to start, if so configured.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::harness::machine::{alone, beside_others, cannot_run};
use crate::harness::program::Program;
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, scratch_file};

/// The machine's setting (`io_uring_setup(2)`).
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// The relay serves, and has logged why it does not use io_uring.
fn serves_with_one_warning(relay: Relay, cause: &[&str]) {
    let relay = relay.serving("/");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    assert!(h264::is_complete_keyframe(&client.frame_on(0)));
    for _ in 0..30 {
        client.frame_on(0);
    }
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    let warnings: Vec<&str> = printed.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{printed}");
    assert!(warnings[0].contains("io_uring"), "{printed}");
    for word in cause {
        assert!(warnings[0].contains(word), "{word} is not in {}", warnings[0]);
    }
}

fn io_uring_is_here() -> bool {
    std::fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "0")
        && std::env::var_os("RTSPRELAY_TEST_IO").is_none()
}

#[test]
fn by_a_filter_it_serves_through_epoll() {
    let _turn = beside_others();
    serves_with_one_warning(Relay::start(command(Uring::Refused, &["demo", "--listen", "127.0.0.1:0"])), &["epoll"]);
}

#[test]
fn by_a_filter_and_asked_for_uring_it_refuses_to_start() {
    let _turn = beside_others();
    let config = scratch_file("uring.toml");
    std::fs::write(
        &config,
        "listen = [\"127.0.0.1:0\"]\nio = \"uring\"\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n",
    )
    .unwrap();
    let command = command(Uring::Refused, &["run", "--config", config.to_str().unwrap()]);
    let finished = Program::start(command).finish(DEADLINE);
    std::fs::remove_file(&config).unwrap();
    let printed = finished.stdout + &finished.stderr;
    assert_eq!(finished.status.code(), Some(1), "{printed}");
    assert!(printed.contains("io_uring") && printed.contains("epoll"), "the cause and the cure: {printed}");
}

#[test]
fn nothing_warns_where_it_is_allowed() {
    let _turn = beside_others();
    if !io_uring_is_here() {
        eprintln!("io_uring is refused here; the other scenarios of this file show that");
        return;
    }
    let relay = Relay::demo();
    assert!(!relay.printed().contains("WARN"), "{}", relay.printed());
}

#[test]
fn asked_for_epoll_it_serves_through_epoll_without_a_warning() {
    let _turn = beside_others();
    let relay = Relay::configured_with(
        Uring::Unused,
        "listen = [\"127.0.0.1:0\"]\nio = \"epoll\"\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n",
    )
    .serving("/t");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/t"));
    for _ in 0..30 {
        client.frame_on(0);
    }
    assert!(!relay.printed().contains("WARN"), "{}", relay.printed());
}

/// Restores the machine's setting, even if this process is killed: a child waits for the pipe to close.
struct Switched {
    before: String,
    guard: Program,
    pipe: Option<std::process::ChildStdin>,
}

impl Switched {
    fn off() -> std::io::Result<Switched> {
        let before = std::fs::read_to_string(SWITCH)?.trim().to_string();
        let mut command = Command::new("sh");
        // In its own process group, so that Ctrl-C reaches the scenario and not the guard.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(["-c", &format!("cat > /dev/null; echo {before} > {SWITCH}")]).stdin(Stdio::piped());
        let mut guard = Program::start_fed(command);
        let pipe = guard.stdin();
        std::fs::File::options().write(true).open(SWITCH)?.write_all(b"2")?;
        Ok(Switched { before, guard, pipe })
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let put_back = || std::fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == self.before);
        for _ in 0..500 {
            if put_back() && self.guard.ended().is_some() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("{SWITCH} was not put back to {}", self.before);
    }
}

#[test]
#[ignore = "switches io_uring off for the whole machine for some seconds; tests/run runs it by itself"]
fn by_the_machines_switch_it_serves_through_epoll() {
    let _turn = alone();
    let switched = match Switched::off() {
        Ok(switched) => switched,
        Err(error) => return cannot_run(&format!("{SWITCH} cannot be set: {error}")),
    };
    let relay = Relay::start({
        let mut command = Command::new(BINARY);
        command.args(["demo", "--listen", "127.0.0.1:0"]);
        command
    });
    serves_with_one_warning(relay, &["epoll", "kernel.io_uring_disabled"]);
    drop(switched);
}
