//! What the scenarios share: the relay as a child process, other programs with a deadline, a raw RTSP client, and a camera
//! that does exactly what a scenario tells it.

pub mod browser;
pub mod camera;
pub mod chromium;
pub mod datagrams;
pub mod firefox;
pub mod h264;
pub mod http;
pub mod machine;
pub mod net;
pub mod program;
pub mod publisher;
pub mod relay;
pub mod rtsp;
pub mod scripted;
pub mod servers;
pub mod vitals;
pub mod websocket;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a scenario waits for a condition before it fails; generous, because only a failure takes that long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; panics with `what` after `deadline`.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The path of a file in `tests/`.
pub fn test_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// The Python with the distribution's GStreamer bindings.
pub const SYSTEM_PYTHON: &str = "/usr/bin/python3";

/// A new file name in the target directory, for one scenario's output.
pub fn scratch_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{}-{name}", std::process::id(), fastrand::u32(..)))
}
