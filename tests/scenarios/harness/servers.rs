//! Real encoders behind gst-rtsp-server, as cameras.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::program::Program;
use super::{DEADLINE, SYSTEM_PYTHON, test_file, wait_until};

/// A gst-rtsp-server child with an encoder of its own.
pub struct Encoder {
    program: Program,
    port: u16,
    // The server ends when this closes, however the scenario ends.
    _stdin: std::process::ChildStdin,
}

impl Encoder {
    /// Starts one: `arguments` are those of `tests/servers/gst_server.py`.
    pub fn start(arguments: &[&str]) -> Encoder {
        let mut command = Command::new(SYSTEM_PYTHON);
        command.arg(test_file("servers/gst_server.py")).args(arguments).stdin(Stdio::piped());
        let mut program = Program::start_fed(command);
        let stdin = program.stdin().expect("a pipe");
        let mut port = None;
        wait_until("gst-rtsp-server is ready", DEADLINE, || {
            assert!(program.ended().is_none(), "gst-rtsp-server ended: {}", program.stderr.text());
            port = program.stdout.text().split_once('\n').and_then(|(l, _)| l.strip_prefix("ready ")?.parse().ok());
            port.is_some()
        });
        Encoder { program, port: port.unwrap(), _stdin: stdin }
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("rtsp://127.0.0.1:{}/cam", self.port)
    }

    /// What it has complained of.
    pub fn complaints(&self) -> String {
        self.program.stderr.text()
    }
}

/// One x264 encoder (720p, 30 fps, a keyframe a second, AAC) for all scenarios of this process.
pub fn x264() -> &'static Encoder {
    static ENCODER: OnceLock<Encoder> = OnceLock::new();
    ENCODER.get_or_init(|| Encoder::start(&["x264"]))
}

/// One x265 encoder (720p, 30 fps, a keyframe a second, AAC) for all scenarios of this process.
pub fn x265() -> &'static Encoder {
    static ENCODER: OnceLock<Encoder> = OnceLock::new();
    ENCODER.get_or_init(|| Encoder::start(&["x265"]))
}
