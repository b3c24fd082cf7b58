//! Other programs, with a hard deadline and their captured output.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Everything that a program has printed so far to one of its outputs.
#[derive(Clone, Default)]
pub struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn follow(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let into = self.0.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        })
    }

    /// Its text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A running program; killed when dropped, and its output is shown if the scenario failed.
pub struct Program {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    followers: Vec<JoinHandle<()>>,
    /// Its standard output so far.
    pub stdout: Printed,
    /// Its standard error so far.
    pub stderr: Printed,
}

impl Program {
    /// Starts it. Its standard input is closed; see [`Program::start_fed`] for the alternative.
    pub fn start(mut command: Command) -> Program {
        command.stdin(Stdio::null());
        Program::start_fed(command)
    }

    /// Starts it with the standard input set in the command.
    pub fn start_fed(mut command: Command) -> Program {
        let name = format!("{command:?}");
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
                panic!("cannot start {name}: {error}; tests/run installs what the scenarios need")
            });
        let (stdout, stderr) = (Printed::default(), Printed::default());
        let followers = vec![stdout.follow(child.stdout.take().unwrap()), stderr.follow(child.stderr.take().unwrap())];
        Program { name, child, status: None, followers, stdout, stderr }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Its standard input, if that is a pipe.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("kill");
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait");
        }
        self.status
    }

    /// Waits for its end; after the deadline it is killed and the scenario fails.
    pub fn finish(mut self, deadline: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if start.elapsed() > deadline {
                self.kill();
                panic!("did not end within {deadline:?}: {}\n{}{}", self.name, self.stdout.text(), self.stderr.text());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = start.elapsed();
        for follower in self.followers.drain(..) {
            follower.join().expect("a reader of its output");
        }
        Finished { status, took, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    fn kill(&mut self) {
        if self.ended().is_none() {
            // It may have ended meanwhile.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // If its end was waited for, the scenario has reported on it.
        let untold = std::thread::panicking() && self.status.is_none();
        let ended = self.ended();
        self.kill();
        if untold {
            let how = ended.map_or("was still running".to_owned(), |status| format!("had ended ({status})"));
            eprintln!("--- {} {how}; it printed:\n{}{}---", self.name, self.stdout.text(), self.stderr.text());
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// How long it took.
    pub took: Duration,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Panics unless it succeeded and printed no complaints.
    pub fn expect_silent_success(self) -> Finished {
        assert!(self.status.success() && self.stderr.trim().is_empty(), "{self:#?}");
        self
    }
}

/// Runs a program to its end.
pub fn run(deadline: Duration, program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    Program::start(command).finish(deadline)
}
