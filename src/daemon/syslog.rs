//! The local syslog, behind its own thread. The C library reconnects whenever syslogd is restarted; lines in between are lost, and
//! nothing waits.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use nix::syslog::{Facility, LogFlags, Severity, openlog};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The socket of syslogd (syslog(3)).
const PATH_LOG: &str = "/dev/log";

/// Maximum number of waiting lines; if syslogd hangs, further lines are lost.
const QUEUE_MAX: usize = 1_024;

static QUEUE: OnceLock<SyncSender<(Severity, String)>> = OnceLock::new();

/// Starts logging to the local syslog as `rtsprelay`, facility daemon.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start() -> io::Result<()> {
    let (queue, lines) = sync_channel::<(Severity, String)>(QUEUE_MAX);
    openlog(Some(c"rtsprelay"), LogFlags::LOG_PID, Facility::LOG_DAEMON)?;
    std::thread::Builder::new().name("syslog".into()).spawn(move || {
        for (severity, line) in lines {
            // Without a syslogd nothing is logged there, not even this.
            let _ = nix::syslog::syslog(severity, &line);
        }
    })?;
    // A second start finds the first one's queue.
    let _ = QUEUE.set(queue);
    Ok(())
}

/// Why lines do not arrive at present; `None` if a syslogd is listening.
pub(super) fn fault() -> Option<io::Error> {
    let reached = UnixDatagram::unbound().and_then(|socket| socket.connect(PATH_LOG));
    // A syslogd may also listen on a stream socket.
    reached.err().filter(|error| error.raw_os_error() != Some(libc::EPROTOTYPE))
}

/// Logs lines of a report, if [`start`] was called.
pub(super) fn say_with(lines: impl FnOnce() -> String) {
    if let Some(queue) = QUEUE.get() {
        for line in lines().lines() {
            let _ = queue.try_send((Severity::LOG_INFO, line.to_owned()));
        }
    }
}

/// The syslog severity of a level, which is also the journal's priority.
pub(super) fn severity(level: &Level) -> Severity {
    match *level {
        Level::ERROR => Severity::LOG_ERR,
        Level::WARN => Severity::LOG_WARNING,
        Level::INFO => Severity::LOG_INFO,
        _ => Severity::LOG_DEBUG,
    }
}

/// Lets `tracing` write to the syslog.
#[derive(Clone, Copy, Debug)]
pub(super) struct SyslogWriter;

/// Writes at one severity.
pub(super) struct Line(Severity);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            // What does not fit is lost, as without a syslogd.
            let _ = queue.try_send((self.0, String::from_utf8_lossy(line).trim_end().to_owned()));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SyslogWriter {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Severity::LOG_INFO)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line(severity(meta.level()))
    }
}
