//! The local syslog, behind a thread of its own. The C library connects anew whenever syslogd was restarted; what is said
//! while there is none is lost, and nothing waits for it.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use nix::syslog::{Facility, LogFlags, Severity, openlog};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where a syslogd takes lines (syslog(3)).
const PATH_LOG: &str = "/dev/log";

/// Lines that wait at most; a syslogd that hangs loses what comes after them.
const QUEUE_MAX: usize = 1_024;

static QUEUE: OnceLock<SyncSender<(Severity, String)>> = OnceLock::new();

/// Starts to speak to the local syslog as `rtsprelay`, facility daemon.
///
/// # Errors
/// If the thread cannot be made.
pub fn start() -> io::Result<()> {
    let (queue, lines) = sync_channel::<(Severity, String)>(QUEUE_MAX);
    openlog(Some(c"rtsprelay"), LogFlags::LOG_PID, Facility::LOG_DAEMON)?;
    std::thread::Builder::new().name("syslog".into()).spawn(move || {
        for (severity, line) in lines {
            // Without a syslogd there is nobody to tell, not even of this.
            let _ = nix::syslog::syslog(severity, &line);
        }
    })?;
    // A second start finds the first one's queue.
    let _ = QUEUE.set(queue);
    Ok(())
}

/// Why nothing of what is said now arrives; nothing is wrong where a syslogd takes lines.
pub fn fault() -> Option<io::Error> {
    let reached = UnixDatagram::unbound().and_then(|socket| socket.connect(PATH_LOG));
    // One that listens for streams is a syslogd, too.
    reached.err().filter(|error| error.raw_os_error() != Some(libc::EPROTOTYPE))
}

/// Says lines of a report, if [`start`] was called.
pub fn say_with(lines: impl FnOnce() -> String) {
    if let Some(queue) = QUEUE.get() {
        for line in lines().lines() {
            let _ = queue.try_send((Severity::LOG_INFO, line.to_owned()));
        }
    }
}

/// The syslog severity of a level, which is the journal's priority as well.
pub fn severity(level: &Level) -> Severity {
    match *level {
        Level::ERROR => Severity::LOG_ERR,
        Level::WARN => Severity::LOG_WARNING,
        Level::INFO => Severity::LOG_INFO,
        _ => Severity::LOG_DEBUG,
    }
}

/// Lets `tracing` write to the syslog.
#[derive(Clone, Copy, Debug)]
pub struct SyslogWriter;

/// Writes at one severity.
pub struct Line(Severity);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            // What does not fit is lost, as it would be without a syslogd.
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
