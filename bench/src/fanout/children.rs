//! The processes of the experiment. Each ends with this one, however this one ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Handshake, Step, Transport};
use crate::load::report::Report;
use crate::rtsp::{Message, Url};

/// Time that a child may take to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(3);

/// Time that a server may take until it answers DESCRIBE.
const READY_MAX: Duration = Duration::from_secs(15);

/// A process that is terminated when this is dropped: with SIGTERM, then with SIGKILL.
pub struct Process {
    /// What it is, for messages.
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// This program with other arguments, on one CPU if given.
    pub fn own(name: &str, cpu: Option<usize>, arguments: &[String], log: &Path) -> Result<Process, String> {
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut command = Command::new(program);
        command.arg("--parent").arg(std::process::id().to_string());
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(|e| format!("cannot write the log of {name}: {e}"))?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        Ok(Process { name: name.into(), child, log: log.into() })
    }

    /// Another program. This program starts, ties itself to its parent and to the CPU, and becomes the other one.
    pub fn other(
        name: &str,
        cpu: Option<usize>,
        program: &Path,
        args: &[String],
        log: &Path,
    ) -> Result<Process, String> {
        let mut all = vec!["exec".to_string(), "--output".into(), log.display().to_string(), "--".into()];
        all.push(program.display().to_string());
        all.extend_from_slice(args);
        Process::own(name, cpu, &all, log)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The first line that it prints.
    pub fn first_line(&mut self) -> Result<String, String> {
        let Some(output) = self.child.stdout.take() else { return Err(format!("{} has no output", self.name)) };
        let mut line = String::new();
        let mut reader = BufReader::new(output);
        reader.read_line(&mut line).map_err(|e| format!("cannot read from {}: {e}", self.name))?;
        if line.is_empty() {
            return Err(format!("{} ended at once: {}", self.name, last_words(&self.log, true)));
        }
        // Kept open, because the process would die when it writes more.
        self.child.stdout = Some(reader.into_inner());
        Ok(line.trim_end().to_string())
    }

    /// Waits for its end and returns its output; gives up if `stop` is set.
    pub fn output(&mut self, stop: &AtomicBool) -> Result<String, String> {
        let Some(mut pipe) = self.child.stdout.take() else { return Err(format!("{} has no output", self.name)) };
        // One line at the end of its run: it fits in the pipe, so reading can wait for the end.
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err("stopped".into());
            }
            match self.child.try_wait() {
                Ok(Some(_)) => break,
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(e) => return Err(format!("cannot wait for {}: {e}", self.name)),
            }
        }
        let mut text = String::new();
        pipe.read_to_string(&mut text).map_err(|e| format!("cannot read from {}: {e}", self.name))?;
        Ok(text)
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // Not waited for yet, so its process id is still valid.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid());
        if self.ended() {
            return;
        }
        // It has not been waited for, so its process id is still valid.
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            if self.ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of a log, where a failed process says why. All processes write to it, so for one of this program it is the last line
/// that starts with its name.
fn last_words(log: &Path, own: bool) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let is_its = |line: &&str| !line.trim().is_empty() && (!own || line.starts_with("rtsprelay-bench: "));
    match text.lines().rev().find(is_its) {
        Some(line) => line.to_string(),
        None => format!("it gave no reason in {}", log.display()),
    }
}

/// A run of the load generator, in its own process.
pub struct Load<'a> {
    /// The CPU that it runs on; any, if none.
    pub cpu: Option<usize>,
    /// What it plays; several URLs are assigned to players in turn.
    pub urls: &'a [String],
    /// The server's process, whose CPU time is counted.
    pub pid: i32,
    /// Number of players.
    pub clients: usize,
    /// How long is measured.
    pub seconds: Duration,
    /// How long not, before it.
    pub warmup: Duration,
    /// Further arguments.
    pub more: Vec<String>,
    /// Where it logs to.
    pub log: &'a Path,
}

impl Load<'_> {
    /// Runs it to its end; gives its report.
    pub fn run(self, stop: &AtomicBool) -> Result<Report, String> {
        let mut arguments = vec![
            "load".into(),
            "--json".into(),
            "--quiet".into(),
            format!("--pid={}", self.pid),
            format!("--clients={}", self.clients),
            format!("--seconds={}us", self.seconds.as_micros()),
            format!("--warmup={}us", self.warmup.as_micros()),
        ];
        arguments.extend(self.urls.iter().map(|url| format!("--url={url}")));
        arguments.extend(self.more);
        let output = Process::own("load", self.cpu, &arguments, self.log)?.output(stop)?;
        let none = |_| format!("load gave no report: {}", last_words(self.log, true));
        serde_json::from_str(output.trim()).map_err(none)
    }
}

/// A port of the loopback that was free a moment ago.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    listener.local_addr().map(|a| a.port()).map_err(|e| e.to_string())
}

/// Waits until a server describes its stream.
pub fn wait_ready(server: &mut Process, url: &str, stop: &AtomicBool) -> Result<(), String> {
    let (name, log) = (server.name.clone(), server.log.clone());
    let ended = || server.ended().then(|| last_words(&log, false));
    wait_described(&name, url, ended, stop)
}

/// The same for a server that was started elsewhere; `ended` returns why waiting is pointless, if it is.
pub fn wait_described(
    name: &str,
    url: &str,
    mut ended: impl FnMut() -> Option<String>,
    stop: &AtomicBool,
) -> Result<(), String> {
    let deadline = Instant::now() + READY_MAX;
    loop {
        let error = match describe(url) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if stop.load(Ordering::Relaxed) {
            return Err("stopped".into());
        }
        if let Some(why) = ended() {
            return Err(format!("{name} ended before it served: {why}"));
        }
        if Instant::now() > deadline {
            return Err(format!("{name} does not serve {url} after {READY_MAX:?}: {error}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn describe(url: &str) -> Result<(), String> {
    use std::io::Write as _;
    let url = Url::parse(url)?;
    let address: SocketAddr = url.host_port.parse().map_err(|e| format!("{}: {e}", url.host_port))?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?;
    let mut handshake = Handshake::new(url, Transport::Tcp, true);
    stream.write_all(&handshake.begin()).map_err(|e| e.to_string())?;
    let mut input = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        match stream.read(&mut buffer).map_err(|e| e.to_string())? {
            0 => return Err("it closed the connection".into()),
            count => input.extend_from_slice(&buffer[..count]),
        }
        if let Some((answer, _)) = Message::parse(&input)? {
            return match handshake.answer(&answer)? {
                Step::Send(_) => Ok(()),
                other => Err(format!("unexpected: {other:?}")),
            };
        }
    }
}
