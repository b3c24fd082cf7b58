//! Collects the shards' counts once per interval, and reports them.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::console::{self, Console};
use super::syslog;
use super::urls::Urls;
use crate::config::{ReportConfig, ReportFormat};
use crate::escape;
use crate::limits::COLLECT_EVERY_MAX_MS;
use crate::media::{SourceState, StreamId};
use crate::metrics::report::{Report, Scope};
use crate::metrics::table::{Frame, table};
use crate::metrics::{
    ClientSnapshot, Collector, CountsState, ReportRequest, ShardSnapshot, TlsCounts, lines, process, prometheus, status,
};
use crate::shard::inbox::{ShardSender, ToShard};
use crate::sys;

/// How long a shard may take to answer before its last counts are used.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The interval of gauges if nothing is printed.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// The interval of short lines.
const DIGEST_EVERY: Duration = Duration::from_secs(60);

/// Minimum interval between two collections for `/metrics`. More frequent requests wait, and share the result.
const METRICS_EVERY: Duration = Duration::from_millis(50);

/// The same for `/status`, for which the shards list every client.
const STATUS_EVERY: Duration = Duration::from_millis(400);

/// A page that is made from the shards' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `/metrics`.
    Metrics,
    /// `/status`.
    Status,
}

/// A cached page, and when its collection was started.
#[derive(Debug, Default)]
struct Made(Option<(Instant, Bytes)>);

impl Made {
    /// Its text, if it was started after `asked`, so that it includes everything up to then.
    fn since(&self, asked: Instant) -> Option<Bytes> {
        self.0.as_ref().filter(|(begun, _)| *begun >= asked).map(|(_, text)| text.clone())
    }

    /// When it may be made again.
    fn due(&self, every: Duration) -> Option<Instant> {
        self.0.as_ref().map(|(begun, _)| *begun + every)
    }
}

/// A stream as known to the reporter.
pub(super) struct Watched {
    /// The stream's number.
    pub id: StreamId,
    /// The stream's name.
    pub name: String,
    /// The shard that runs its source.
    pub home: u16,
    /// The state of its source, once it is known.
    pub state: Option<SourceState>,
}

/// All streams, also used by the HTTP server. No borrow is held across an `await`.
pub(super) type SharedWatched = Rc<RefCell<Vec<Watched>>>;

/// The format of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// A table that is redrawn in place.
    Live,
    /// One table after another.
    Table,
    /// A short line.
    Line,
    Logfmt,
    Json,
}

impl Look {
    fn of(format: ReportFormat, terminal: bool) -> Look {
        match (format, terminal) {
            (ReportFormat::Auto | ReportFormat::Table, true) => Look::Live,
            (ReportFormat::Table, false) => Look::Table,
            (ReportFormat::Auto, false) | (ReportFormat::Line, _) => Look::Line,
            (ReportFormat::Logfmt, _) => Look::Logfmt,
            (ReportFormat::Json, _) => Look::Json,
        }
    }
}

/// The intervals of the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    /// The interval of rates and latencies for `/status` and the others.
    gauges: Duration,
    /// Whether each interval is reported on standard output.
    reports: bool,
    /// The interval of short lines, if there are any.
    digests: Option<Duration>,
}

impl Pace {
    fn of(config: &ReportConfig, look: Look) -> Pace {
        let none = config.every == Some(Duration::ZERO);
        let gauges = config.every.filter(|every| !every.is_zero()).unwrap_or(GAUGES_EVERY);
        let digests = match look {
            Look::Line => Some(config.every.unwrap_or(DIGEST_EVERY)),
            // Syslog gets a suitable format, whatever a terminal shows.
            Look::Live | Look::Table => config.syslog.then_some(DIGEST_EVERY),
            Look::Logfmt | Look::Json => None,
        };
        Pace { gauges, reports: !none && look != Look::Line, digests: digests.filter(|_| !none) }
    }
}

/// Collects and tells.
pub(super) struct Reporter {
    pace: Pace,
    look: Look,
    frame: Frame,
    urls: Urls,
    /// Lines on standard output start with the time, except for the journal, which adds its own.
    with_time: bool,
    shards: Rc<[ShardSender]>,
    watched: SharedWatched,
    collector: Collector,
    /// The last interval's report.
    last: Option<Report>,
    tls: Option<Arc<TlsCounts>>,
    metrics_page: Made,
    status_page: Made,
}

impl Reporter {
    /// For those shards; `title` and `play` are shown above a table.
    pub(super) fn new(
        config: &ReportConfig,
        shards: Rc<[ShardSender]>,
        title: String,
        play: Vec<String>,
        urls: Urls,
    ) -> Self {
        let look = Look::of(config.format, std::io::stdout().is_terminal());
        Reporter {
            pace: Pace::of(config, look),
            look,
            urls,
            with_time: !console::is_journal(&std::io::stdout()),
            frame: Frame { title, play, columns: 80, rows: None },
            collector: Collector::new(Instant::now(), shards.len()),
            shards,
            watched: SharedWatched::default(),
            last: None,
            tls: None,
            metrics_page: Made::default(),
            status_page: Made::default(),
        }
    }

    /// Also reports on TLS from now on.
    pub(super) fn watch_tls(&mut self, counts: Arc<TlsCounts>) {
        self.tls = Some(counts);
    }

    /// Reports on a stream from now on.
    pub(super) fn add_stream(&mut self, watched: Watched) {
        self.collector.add_stream(watched.id, &watched.name);
        self.watched.borrow_mut().push(watched);
    }

    /// All streams.
    pub(super) fn watched(&self) -> SharedWatched {
        Rc::clone(&self.watched)
    }

    /// Forgets a stream.
    pub(super) fn remove_stream(&mut self, id: StreamId) {
        self.collector.remove_stream(id);
        self.watched.borrow_mut().retain(|watched| watched.id != id);
    }

    /// The URLs of a stream.
    pub(super) fn url(&self, stream: &str) -> Option<String> {
        self.urls.of(stream).into_iter().next()
    }

    /// The last interval's report.
    pub(super) fn last(&self) -> Option<&Report> {
        self.last.as_ref()
    }

    /// The answer to a page request that has just arrived. It includes everything up to then; however many requests there are, the
    /// shards are queried at limited intervals.
    pub(super) async fn page(reporter: &tokio::sync::Mutex<Reporter>, page: Page) -> Bytes {
        let asked = Instant::now();
        loop {
            let due = {
                let mut reporter = reporter.lock().await;
                let (made, every) = match page {
                    Page::Metrics => (&reporter.metrics_page, METRICS_EVERY),
                    Page::Status => (&reporter.status_page, STATUS_EVERY),
                };
                if let Some(text) = made.since(asked) {
                    return text;
                }
                match made.due(every).filter(|due| *due > Instant::now()) {
                    Some(due) => due,
                    None => return reporter.make(page).await,
                }
            };
            tokio::time::sleep_until(due.into()).await;
        }
    }

    async fn make(&mut self, page: Page) -> Bytes {
        let begun = Instant::now();
        let text = Bytes::from(match page {
            Page::Metrics => self.metrics().await,
            Page::Status => self.status().await,
        });
        let made = Made(Some((begun, text.clone())));
        match page {
            Page::Metrics => self.metrics_page = made,
            Page::Status => self.status_page = made,
        }
        text
    }

    /// What `/metrics` answers.
    async fn metrics(&mut self) -> String {
        self.collect().await;
        let scrape = self.collector.scrape(Instant::now(), SystemTime::now());
        prometheus::text(&scrape, self.last.as_ref(), self.tls.as_deref())
    }

    /// The contents of `/status`: the last interval's report, and the current clients.
    async fn status(&mut self) -> String {
        let clients = self.ask(true).await;
        let report = match &self.last {
            Some(report) => report.clone(),
            None => self.collector.summary(Instant::now(), SystemTime::now()),
        };
        let name = |client: &ClientSnapshot| {
            let all = self.watched.borrow();
            let watched = all.iter().find(|watched| watched.id == client.stream);
            watched.map(|watched| watched.name.clone()).unwrap_or_default()
        };
        let mut object = status::status(&report, &clients, name);
        let streams = object.get_mut("streams").and_then(serde_json::Value::as_array_mut);
        for (stream, about) in report.streams.iter().zip(streams.into_iter().flatten()) {
            about["urls"] = self.urls.of(&stream.name).into();
        }
        if let Some(tls) = &self.tls {
            object.insert("tls".into(), status::tls(tls));
        }
        let (carriers, connections) = process::carriers();
        object.insert("tls_carriers".into(), status::carriers(carriers, connections));
        let leaves = process::leaves_until().map(lines::rfc3339);
        object.insert("leaving".into(), leaves.is_some().into());
        object.insert("leaves_until".into(), leaves.into());
        object.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        object.insert("title".into(), self.frame.title.as_str().into());
        escape::json(format!("{}\n", serde_json::Value::Object(object)))
    }

    /// Reports every interval, until the task is dropped.
    pub(super) async fn run(reporter: Rc<tokio::sync::Mutex<Reporter>>) {
        let Pace { gauges, reports, digests } = reporter.lock().await.pace;
        let collect_every = gauges.min(Duration::from_millis(COLLECT_EVERY_MAX_MS));
        let mut tick = tokio::time::interval(collect_every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // The first tick is immediate.
        tick.tick().await;
        let mut measured = Instant::now();
        let mut digested = measured;
        // A tick that is slightly early must not delay what is due by a whole interval.
        let is_due = |last: Instant, interval: Duration| last.elapsed() + collect_every / 2 >= interval;
        {
            // The screen should not be empty for the first interval.
            let mut reporter = reporter.lock().await;
            if reporter.look == Look::Live && reports {
                let report = reporter.collector.interval(measured, SystemTime::now());
                reporter.tell(&report);
            }
        }
        loop {
            tick.tick().await;
            let mut reporter = reporter.lock().await;
            reporter.collect().await;
            if is_due(measured, gauges) {
                measured = Instant::now();
                let report = reporter.collector.interval(measured, SystemTime::now());
                if reports {
                    reporter.tell(&report);
                }
                reporter.last = Some(report);
            }
            if digests.is_some_and(|every| is_due(digested, every)) {
                digested = Instant::now();
                reporter.tell_digest(Scope::Interval);
            }
        }
    }

    /// Prints the summary of the whole run, as far as it has been collected.
    pub(super) fn tell_summary(&mut self) {
        let report = self.collector.summary(Instant::now(), SystemTime::now());
        self.tell(&report);
        if !matches!(self.look, Look::Logfmt | Look::Json) {
            self.tell_digest(Scope::Summary);
        }
    }

    /// A short line: on standard output if that is the format, and to syslog.
    fn tell_digest(&mut self, scope: Scope) {
        let at = SystemTime::now();
        let digest = self.collector.digest(Instant::now(), at, scope);
        if self.look == Look::Line {
            let time = if self.with_time { lines::rfc3339(at) + " " } else { String::new() };
            Console::get().print(format!("{time}{digest}\n"));
        }
        syslog::say_with(|| digest.to_string());
    }

    /// Queries every shard and source.
    pub(super) async fn collect(&mut self) {
        self.ask(false).await;
    }

    /// Queries every shard and source; returns the clients if requested.
    async fn ask(&mut self, clients: bool) -> Vec<ClientSnapshot> {
        let answers: Vec<oneshot::Receiver<ShardSnapshot>> = self
            .shards
            .iter()
            .map(|shard| {
                let (reply, answer) = oneshot::channel();
                shard.tell(ToShard::Report(ReportRequest { reply, clients }));
                answer
            })
            .collect();
        let deadline = tokio::time::Instant::now() + ANSWER_MAX;
        let mut snapshots = Vec::with_capacity(answers.len());
        let (mut found, mut sources) = (Vec::new(), Vec::new());
        for answer in answers {
            let mut snapshot = tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok);
            if let Some(snapshot) = &mut snapshot {
                found.append(&mut snapshot.clients);
                sources.append(&mut snapshot.sources);
            }
            snapshots.push(snapshot);
        }
        self.collector.absorb(snapshots, sources);
        found
    }

    /// All counts up to now, for another process.
    pub(super) async fn save(&mut self) -> CountsState {
        self.collect().await;
        let mut counts = self.collector.save();
        if let Some(tls) = &self.tls {
            counts.add_tls(tls);
        }
        counts
    }

    /// Continues the counts of another process.
    pub(super) fn restore(&mut self, counts: CountsState) {
        if let Some(tls) = &self.tls {
            counts.restore_tls(tls);
        }
        self.collector.restore(counts);
    }

    fn tell(&mut self, report: &Report) {
        let console = Console::get();
        if matches!(self.look, Look::Logfmt | Look::Json) {
            syslog::say_with(|| lines::logfmt(report));
        }
        match self.look {
            // Syslog gets a digest instead.
            Look::Line => {}
            Look::Logfmt => console.print(lines::logfmt(report)),
            Look::Json => console.print(lines::json(report)),
            Look::Table => console.print(table(report, &self.frame)),
            Look::Live => {
                let (columns, rows) = sys::terminal_size(&std::io::stdout()).unwrap_or((80, 24));
                self.frame.columns = columns;
                self.frame.rows = (report.scope == Scope::Interval).then_some(rows);
                let text = table(report, &self.frame);
                match report.scope {
                    Scope::Interval => console.table(text),
                    Scope::Summary => console.print(text),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_for_those_who_asked_before_it_was_begun() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!((Made::default().since(now), Made::default().due(second)), (None, None));
        let made = Made(Some((now, "text".into())));
        assert_eq!(made.since(now).unwrap(), "text");
        assert_eq!(made.since(now + second), None);
        assert_eq!(made.due(second), Some(now + second));
    }

    #[test]
    fn auto_is_a_live_table_on_a_terminal_alone() {
        assert_eq!(Look::of(ReportFormat::Auto, true), Look::Live);
        assert_eq!(Look::of(ReportFormat::Auto, false), Look::Line);
        assert_eq!(Look::of(ReportFormat::Table, false), Look::Table);
        assert_eq!(Look::of(ReportFormat::Json, true), Look::Json);
    }

    #[test]
    fn without_a_terminal_there_is_a_line_a_minute_unless_more_is_asked_for() {
        let pace = |every: Option<u64>, look| {
            let every = every.map(Duration::from_secs);
            Pace::of(&ReportConfig { syslog: false, every, format: ReportFormat::Auto, events: false }, look)
        };
        let seconds = Duration::from_secs;
        let told = |reports, digests: Option<u64>, gauges| Pace {
            gauges: seconds(gauges),
            reports,
            digests: digests.map(seconds),
        };
        assert_eq!(pace(None, Look::Line), told(false, Some(60), 1));
        assert_eq!(pace(Some(5), Look::Line), told(false, Some(5), 5));
        assert_eq!(pace(Some(0), Look::Line), told(false, None, 1));
        assert_eq!(pace(None, Look::Logfmt), told(true, None, 1));
        assert_eq!(pace(Some(0), Look::Json), told(false, None, 1));
        assert_eq!(pace(None, Look::Live), told(true, None, 1));
        let syslog = ReportConfig { syslog: true, every: None, format: ReportFormat::Auto, events: false };
        assert_eq!(Pace::of(&syslog, Look::Live), told(true, Some(60), 1));
    }
}
