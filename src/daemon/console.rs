//! Standard output and standard error, behind their own thread: a stopped terminal (Ctrl-S) or a pipe that is not read delays neither
//! media nor logging. What does not fit into the queue is dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::stat::fstat;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::fields::Fields;
use super::fold::Fold;
use super::redraw::Redraw;
use super::syslog;
use crate::metrics::process;
use crate::sys;

/// Maximum number of queued items.
const QUEUE_MAX: usize = 1_024;

enum Item {
    /// A live table, which replaces the previous one.
    Table(String),
    /// Lines on standard output.
    Out(String),
    /// A line of the log.
    Log(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where reports and log lines go.
#[derive(Clone, Debug)]
pub struct Console {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

static CONSOLE: OnceLock<Console> = OnceLock::new();

impl Console {
    /// The process's console; the first call starts its thread.
    pub fn get() -> &'static Console {
        CONSOLE.get_or_init(|| {
            let (queue, items) = sync_channel(QUEUE_MAX);
            let dropped = Arc::new(AtomicU64::new(0));
            let thread_dropped = Arc::clone(&dropped);
            let spawned =
                std::thread::Builder::new().name("console".into()).spawn(move || write(&items, &thread_dropped));
            if let Err(error) = spawned {
                // Without the thread every line is counted as dropped; the relay works without them.
                let _ =
                    writeln!(io::stderr(), "reports and logs are not shown: their thread cannot be started ({error})");
            }
            Console { queue, dropped }
        })
    }

    /// Shows a live table in place of the previous one.
    pub fn table(&self, text: String) {
        self.put(Item::Table(text));
    }

    /// Prints whole lines to standard output.
    pub fn print(&self, text: String) {
        self.put(Item::Out(text));
    }

    /// Waits until everything queued so far has been written, for at most `max`.
    pub fn flush(&self, max: Duration) {
        let (done, is_done) = sync_channel(1);
        // If the queue is full, nothing drains it, so waiting is pointless.
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(max);
        }
    }

    fn put(&self, item: Item) {
        if self.queue.try_send(item).is_err() {
            process::lines_dropped(1);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread.
fn write(items: &Receiver<Item>, dropped: &AtomicU64) {
    let mut untold = 0;
    let mut screen = Screen { shared: one_terminal(), shown: Redraw::default() };
    while let Ok(item) = items.recv() {
        let written = match item {
            Item::Table(text) => screen.table(text),
            Item::Out(text) => screen.out(&text),
            Item::Log(line) => screen.log(&line),
            Item::Flush(done) => {
                // The waiter may have given up.
                let _ = done.send(());
                Ok(())
            }
        };
        // A pipe without a reader, or a full disk: the relay continues, and reports it when it can write again.
        if written.is_err() {
            process::lines_dropped(1);
            untold += 1;
            continue;
        }
        untold += dropped.swap(0, Ordering::Relaxed);
        if untold > 0 {
            let lines = if untold == 1 { "line of reports or log was" } else { "lines of reports and log were" };
            let line = format!("{untold} {lines} dropped: the terminal, pipe or disk did not accept them\n");
            if screen.log(line.as_bytes()).is_ok() {
                untold = 0;
            }
        }
    }
}

/// Whether standard output and standard error are the same terminal.
fn one_terminal() -> bool {
    let (out, err) = (io::stdout(), io::stderr());
    let same = || Some(fstat(&out).ok()?.st_rdev == fstat(&err).ok()?.st_rdev);
    out.is_terminal() && err.is_terminal() && same() == Some(true)
}

struct Screen {
    /// Log lines appear on the table's terminal.
    shared: bool,
    shown: Redraw,
}

/// Columns and rows of the terminal behind standard output.
fn size() -> (usize, usize) {
    sys::terminal_size(&io::stdout()).unwrap_or((80, 24))
}

impl Screen {
    fn table(&mut self, text: String) -> io::Result<()> {
        let bytes = self.shown.table(text, size());
        emit(&mut io::stdout().lock(), bytes.as_bytes())
    }

    fn out(&mut self, text: &str) -> io::Result<()> {
        let bytes = self.shown.take_off(size()) + text;
        emit(&mut io::stdout().lock(), bytes.as_bytes())
    }

    fn log(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.shared || !self.shown.is_shown() {
            return emit(&mut io::stderr().lock(), line);
        }
        // In one write, so that the screen is never seen without the table.
        let bytes = self.shown.above(&String::from_utf8_lossy(line), size());
        emit(&mut io::stdout().lock(), bytes.as_bytes())
    }
}

fn emit(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Lets `tracing` write through the console.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        Console::get().put(Item::Log(line.to_vec()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        LogWriter
    }
}

/// Whether a descriptor is the journal's stream, according to `JOURNAL_STREAM` (systemd.exec(5)).
pub(super) fn is_journal(output: &impl AsFd) -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(output).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Prefixes a line with its priority, for the journal (sd-daemon(3)).
struct WithPriority<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        write!(writer, "<{}>", syslog::severity(event.metadata().level()) as u8)?;
        self.0.format_event(context, writer, event)
    }
}

/// The default log level.
const LEVEL: &str = "info";

/// Why `RTSPRELAY_LOG` is invalid.
#[derive(Debug, thiserror::Error)]
enum BadLevels {
    /// A word that is not a level.
    #[error("{0:?} is no level")]
    Unknown(String),
    /// Not a list of levels.
    #[error(transparent)]
    Syntax(#[from] ParseError),
}

/// Parses `RTSPRELAY_LOG`: levels, for everything or for a module (`rtsprelay::source=debug`).
///
/// # Errors
/// Why it is invalid.
fn levels(wanted: &str) -> Result<EnvFilter, BadLevels> {
    // A word that is not a level would be taken as a module, and everything else would be silent.
    let is_odd = |part: &&str| !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err();
    match wanted.split(',').find(is_odd) {
        Some(odd) => Err(BadLevels::Unknown(odd.to_owned())),
        None => Ok(EnvFilter::try_new(wanted)?),
    }
}

/// Starts the log: on standard error, and if configured to the local syslog, at the levels in `RTSPRELAY_LOG` (default `info`).
pub fn start_log(syslog: bool) {
    let wanted = std::env::var("RTSPRELAY_LOG").ok().filter(|wanted| !wanted.is_empty());
    let (filter, wrong) = match wanted.as_deref().map(levels) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(LEVEL), Some(error)),
        None => (EnvFilter::new(LEVEL), None),
    };
    let journal = is_journal(&io::stderr());
    let journal_lines = journal.then(|| {
        let format = fmt::format().without_time().with_level(false).with_target(false).with_ansi(false);
        fmt::layer().with_ansi(false).with_writer(LogWriter).fmt_fields(Fields).event_format(WithPriority(format))
    });
    let lines = (!journal).then(|| {
        let layer = fmt::layer().with_ansi(io::stderr().is_terminal()).with_target(false);
        layer.fmt_fields(Fields).with_writer(LogWriter)
    });
    let syslog_started = if syslog { Some(syslog::start()) } else { None };
    let syslog_lines = matches!(syslog_started, Some(Ok(()))).then(|| {
        let layer = fmt::layer().with_ansi(false).without_time().with_level(false).with_target(false);
        layer.fmt_fields(Fields).with_writer(syslog::SyslogWriter)
    });
    // It fails if a log has already been started, which then stays.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(Fold)
        .with(journal_lines)
        .with(lines)
        .with(syslog_lines)
        .try_init();
    match syslog_started {
        Some(Ok(())) => {
            if let Some(error) = syslog::fault() {
                tracing::warn!(
                    "logging to syslog is disabled: no daemon serves /dev/log ({error}); start one, mount its /dev/log where the relay runs, or set report.syslog = false"
                );
            }
        }
        Some(Err(error)) => tracing::warn!("logging to syslog is disabled: its thread cannot be started ({error})"),
        None => {}
    }
    if let Some(error) = wrong {
        tracing::warn!("RTSPRELAY_LOG is invalid ({error}); write a level, such as debug, or rtsprelay=debug");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_not_taken_for_one() {
        for wanted in ["debug", "WARN", "off", "rtsprelay=debug", "info,rtsprelay::source=trace"] {
            assert!(levels(wanted).is_ok(), "{wanted}");
        }
        for wanted in ["verbose", "inof", "rtsprelay=loud", "info,everything", "=x"] {
            assert!(levels(wanted).is_err(), "{wanted}");
        }
    }
}
