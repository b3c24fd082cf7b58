//! What the viewer's tests share: relays and other servers to play from, the viewer itself, and ffmpeg for comparison.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest wait for anything that must happen.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Held while a test runs, because the tests play in real time and would disturb each other.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `condition` is true; panics with `what` otherwise.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < WAIT_MAX, "{what}: not within {WAIT_MAX:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The path of a program that the tests need; the test fails with the package to install.
pub fn need(program: &str, package: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    assert!(found, "`{program}` is needed for this test; install the package {package}");
}

/// The relay's binary, next to the viewer's, built from the current sources.
fn relay_binary() -> PathBuf {
    static BUILD: Once = Once::new();
    let binary = Path::new(env!("CARGO_BIN_EXE_rtsprelay-view")).with_file_name("rtsprelay");
    BUILD.call_once(|| {
        // A test run of the whole workspace builds it, too, with other features of its dependencies than alone: cargo
        // would compile them all again.
        if is_up_to_date(&binary) {
            return;
        }
        let folder = binary.parent().and_then(Path::file_name).expect("the profile's folder").to_string_lossy();
        // The folder of the profiles `dev` and `test` has another name.
        let profile = if folder == "debug" { "dev" } else { &*folder };
        let build =
            ["build", "--quiet", "--locked", "--package", "rtsprelay", "--bin", "rtsprelay", "--profile", profile];
        let status = Command::new(env!("CARGO")).args(build).status().expect("cargo runs");
        assert!(status.success(), "the relay does not build");
    });
    binary
}

/// Whether the relay's binary exists and is newer than its sources. (A source that was saved during the
/// build counts as older.)
fn is_up_to_date(binary: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let Ok(made) = changed(binary) else { return false };
    let mut open: Vec<PathBuf> = ["Cargo.toml", "Cargo.lock", "src", "assets/pattern.h264"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(name))
        .into();
    while let Some(path) = open.pop() {
        if changed(&path).is_ok_and(|changed| changed > made) {
            return false;
        }
        open.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    true
}

/// A relay with its test pattern.
pub struct Demo {
    /// Its process.
    pub process: Running,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Demo {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    /// Starts one at this address, and waits until its stream can be played.
    pub fn start_at(address: &str) -> Self {
        let mut process = Command::new(relay_binary())
            .args(["demo", "--listen", address])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the relay starts");
        let stderr = process.stderr.take().expect("it is piped");
        let process = Running(process);
        let mut lines = BufReader::new(stderr).lines();
        let (mut address, mut live, mut said) = (None, false, String::new());
        while address.is_none() || !live {
            let line = lines.next().unwrap_or_else(|| panic!("the relay ended: {said}")).expect("it can be read");
            if let Some((_, listens)) = line.split_once("listening address=") {
                address = listens.split_whitespace().next().map(str::to_owned);
            }
            // Until then it answers 503, which the viewer would report.
            live |= line.contains(" live stream=");
            said.extend([&line, "\n"]);
        }
        let address = address.expect("seen");
        // It must not block on output that nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Demo { process, address }
    }
}

/// An RTSP server of GStreamer, with these `name=launch line` mounts.
pub struct GstServer {
    process: Running,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl GstServer {
    /// Starts one on a free port; with a login `USER:PASSWORD` if it must require one.
    pub fn start(login: Option<&str>, mounts: &[(&str, &str)]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gst_server.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(login.unwrap_or("-"));
        command.args(mounts.iter().map(|(name, launch)| format!("{name}={launch}")));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3 starts");
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let process = Running(process);
        stdout.read_line(&mut line).expect("it can be read");
        let port: u16 = line.trim().parse().unwrap_or_else(|_| {
            panic!(
                "no GStreamer RTSP server; install python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-ugly"
            )
        });
        GstServer { process, address: format!("127.0.0.1:{port}") }
    }
}

/// The viewer, run in an empty folder, without display and terminal.
pub fn viewer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rtsprelay-view"));
    command.args(arguments).stdin(Stdio::null()).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command
}

/// The JSON lines that the viewer printed, and its exit code.
pub fn play(arguments: &[&str]) -> (Vec<Value>, i32) {
    let output = viewer(arguments).arg("--json").output().expect("the viewer runs");
    // Shown if the test fails.
    print!("{}", String::from_utf8_lossy(&output.stderr));
    let code = output.status.code().unwrap_or_else(|| panic!("the viewer died: {output:?}"));
    (json_lines(&output), code)
}

/// The JSON lines in an output.
pub fn json_lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
        .collect()
}

/// The last line, the summary.
pub fn summary(lines: &[Value]) -> &Value {
    let last = lines.last().expect("at least the summary");
    assert_eq!(last["summary"], true, "{last}");
    last
}

/// ffmpeg's standard output with these arguments.
pub fn ffmpeg(arguments: &[&str]) -> Vec<u8> {
    need("ffmpeg", "ffmpeg");
    let output =
        Command::new("ffmpeg").args(["-v", "error", "-nostdin"]).args(arguments).output().expect("ffmpeg runs");
    assert!(output.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Peak signal-to-noise ratio of two pictures, in dB.
pub fn psnr(one: &[u8], other: &[u8]) -> f64 {
    assert_eq!(one.len(), other.len(), "pictures of one size");
    let squares: u64 = one.iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    if squares == 0 {
        return f64::INFINITY;
    }
    10.0 * (255.0 * 255.0 * one.len() as f64 / squares as f64).log10()
}

/// A PNG file's pixels, three bytes each, and its width.
pub fn read_png(path: &Path) -> (Vec<u8>, u32) {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().expect("a PNG file");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
    let info = reader.next_frame(&mut pixels).expect("a picture");
    assert_eq!(info.color_type, png::ColorType::Rgb);
    pixels.truncate(info.buffer_size());
    (pixels, info.width)
}

/// A new folder for a test's files, removed when dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A folder named after the test.
    pub fn new(name: &str) -> Self {
        // Tests of one program run in parallel, some of them with the same name.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
