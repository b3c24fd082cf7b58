//! The relay itself, as a child process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::camera::Camera;
use super::program::Program;
use super::rtsp::Client;
use super::{DEADLINE, SYSTEM_PYTHON, scratch_file, test_file, wait_until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_rtsprelay");

/// A running relay; killed when dropped.
pub struct Relay {
    program: Option<Program>,
    config: Option<PathBuf>,
    address: SocketAddr,
}

/// How the relay is kept from using io_uring.
#[derive(Clone, Copy, PartialEq)]
pub enum Uring {
    /// As in the environment (`RTSPRELAY_TEST_IO=seccomp`).
    AsAsked,
    /// Refused by a seccomp filter.
    Refused,
    /// The arguments or the configuration say not to use it.
    Unused,
}

/// The command that runs the relay with `arguments`. `RTSPRELAY_TEST_BINARY` names another binary than the one under test, and
/// `RTSPRELAY_TEST_ZERO_COPY` says which sends are zero-copy.
pub fn command(uring: Uring, arguments: &[&str]) -> Command {
    let binary = std::env::var_os("RTSPRELAY_TEST_BINARY").unwrap_or_else(|| BINARY.into());
    let filtered = uring == Uring::Refused || std::env::var("RTSPRELAY_TEST_IO").is_ok_and(|io| io == "seccomp");
    let mut command = if filtered {
        let mut command = Command::new(SYSTEM_PYTHON);
        command.arg(test_file("servers/no_uring.py")).arg(binary);
        command
    } else {
        Command::new(binary)
    };
    command.args(arguments);
    // Without io_uring there is no zero copy, and the relay would log that.
    if let (Ok(zero_copy), Some(&("run" | "demo")), Uring::AsAsked, false) =
        (std::env::var("RTSPRELAY_TEST_ZERO_COPY"), arguments.first(), uring, filtered)
    {
        command.args(["--zero-copy", &zero_copy]);
    }
    command.env_remove("RUST_LOG");
    command
}

impl Relay {
    /// The built-in test pattern.
    pub fn demo() -> Relay {
        Relay::start(command(Uring::AsAsked, &["demo", "--listen", "127.0.0.1:0"])).serving("/")
    }

    /// One camera, no file; returns once the camera is being served.
    pub fn of(source: &str) -> Relay {
        Relay::connecting_to(source).serving("/")
    }

    /// One camera, no file; returns as soon as the relay listens.
    pub fn connecting_to(source: &str) -> Relay {
        Relay::start(command(Uring::AsAsked, &["run", "--source", source, "--listen", "127.0.0.1:0"]))
    }

    /// One camera, no file; returns once the camera has sent a keyframe of `bytes` and is being served.
    pub fn of_camera(camera: &Camera, bytes: usize) -> Relay {
        let relay = Relay::connecting_to(&camera.url());
        camera.wait_playing();
        camera.keyframe(bytes);
        relay.serving("/")
    }

    /// With a configuration file (that must listen at `127.0.0.1:0`); returns as soon as the relay listens.
    pub fn configured(config: &str) -> Relay {
        Relay::configured_with(Uring::AsAsked, config)
    }

    /// The same; `uring` says how the relay is kept from using io_uring.
    pub fn configured_with(uring: Uring, config: &str) -> Relay {
        let path = scratch_file("rtsprelay.toml");
        std::fs::write(&path, config).expect("write the configuration");
        let mut relay = Relay::start(command(uring, &["run", "--config", path.to_str().unwrap()]));
        relay.config = Some(path);
        relay
    }

    /// Any command line that serves; returns as soon as the relay listens.
    pub fn start(command: Command) -> Relay {
        let mut program = Program::start(command);
        let start = Instant::now();
        let address = loop {
            if let Some(address) = listening_address(&(program.stdout.text() + &program.stderr.text())) {
                break address;
            }
            let printed = || program.stdout.text() + &program.stderr.text();
            assert!(start.elapsed() < DEADLINE, "the relay does not say where it listens:\n{}", printed());
            if program.ended().is_some() {
                panic!("the relay ended: {:#?}", program.finish(DEADLINE));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Relay { program: Some(program), config: None, address }
    }

    /// Waits until the stream at `path` can be described.
    pub fn serving(self, path: &str) -> Relay {
        let mut last = String::new();
        wait_until(&format!("DESCRIBE of {path} answers 200"), DEADLINE, || {
            let answer = Client::connect(self.address).describe(&self.url(path));
            last = format!("{answer:?}");
            answer.status == 200
        });
        self
    }

    /// Plays the stream at `path` until this many video frames have arrived. Then every shard has them before it gets a new
    /// connection, which arrives by the same path.
    pub fn has_sent(&self, path: &str, frames: usize) {
        let mut client = Client::connect(self.address);
        client.play_everything(&self.url(path));
        for _ in 0..frames {
            client.frame_on(0);
        }
    }

    /// Connects a player to the stream at `path`, and returns it after its first video frame.
    pub fn player(&self, path: &str) -> Client {
        let mut client = Client::connect(self.address);
        client.play_everything(&self.url(path));
        client.frame_on(0);
        client
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path` (`/`, `/front`).
    pub fn url(&self, path: &str) -> String {
        format!("rtsp://{}{path}", self.address)
    }

    /// Where it listens for RTSPS.
    pub fn tls_address(&self) -> SocketAddr {
        let mut found = None;
        wait_until("the relay says where it listens for rtsps", DEADLINE, || {
            found = address_after(&self.printed(), |line| line.contains("listening for rtsps"));
            found.is_some()
        });
        found.unwrap()
    }

    /// Everything it has printed so far.
    pub fn printed(&self) -> String {
        let program = self.program.as_ref().expect("running");
        program.stdout.text() + &program.stderr.text()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.program.as_ref().expect("running").pid().as_raw()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.program.as_ref().expect("running").signal(signal);
    }

    /// Waits for its end. Returns the exit status, how long it took, and everything it printed.
    pub fn finish(mut self, deadline: Duration) -> (ExitStatus, Duration, String) {
        let finished = self.program.take().expect("running").finish(deadline);
        (finished.status, finished.took, finished.stdout + &finished.stderr)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(path) = &self.config {
            // A scratch file; cleaning the build directory removes it if it stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Finds `listening … address=127.0.0.1:PORT` in the relay's output.
fn listening_address(printed: &str) -> Option<SocketAddr> {
    address_after(printed, |line| line.contains("listening") && !line.contains("http"))
}

/// Finds `address=127.0.0.1:PORT` in a line of the relay's output; the last line may be incomplete.
pub fn address_after(printed: &str, wanted: impl Fn(&str) -> bool) -> Option<SocketAddr> {
    let (whole_lines, _) = printed.rsplit_once('\n')?;
    whole_lines.lines().filter(|line| wanted(line)).find_map(|line| {
        let (_, value) = line.split_once("address=")?;
        value.split_whitespace().next()?.trim_matches('"').parse().ok()
    })
}
