//! Asks the shards once an interval and tells what they counted.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::console::Console;
use super::syslog;
use crate::config::{ReportConfig, ReportFormat};
use crate::limits::COLLECT_EVERY_MAX_MS;
use crate::metrics::report::{Report, Scope};
use crate::metrics::table::{Frame, table};
use crate::metrics::{
    ClientSnapshot, Collector, ReportRequest, ShardSnapshot, SourceDrop, SourceGauge, lines, prometheus, status,
};
use crate::shard::fanout::Fanout;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::source::pipeline::{Publish, Published};
use crate::source::supervisor::Source;
use crate::stream::{Description, StreamId};
use crate::sys;
use crate::tls::TlsCounts;

/// How long a shard may take to answer before its last counts stand in for it.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The interval of gauges where nothing is printed.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// What a stream consists of, once that is known.
pub type Described = Rc<RefCell<Option<Arc<Description>>>>;

/// Passes on what a pipeline publishes, and remembers the description, which tells which track's frames are counted as FPS.
pub struct Tap {
    way: Way,
    described: Described,
}

enum Way {
    Direct(Fanout),
    /// To a thread that passes each thing on when it is due.
    HeldBack(mpsc::Sender<(Instant, Published)>, Duration),
}

impl Tap {
    /// In front of a stream's fanout, which is reached after `delay`: none, but in tests of what is measured.
    pub fn new(mut fanout: Fanout, described: Described, delay: Duration) -> Tap {
        if delay.is_zero() {
            return Tap { way: Way::Direct(fanout), described };
        }
        let (queue, held) = mpsc::channel::<(Instant, Published)>();
        std::thread::spawn(move || {
            for (due, message) in held {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                fanout.publish(message);
            }
        });
        Tap { way: Way::HeldBack(queue, delay), described }
    }
}

impl Publish for Tap {
    fn publish(&mut self, message: Published) {
        if let Published::Described(description) = &message {
            *self.described.borrow_mut() = Some(Arc::clone(description));
        }
        match &mut self.way {
            Way::Direct(fanout) => fanout.publish(message),
            // The thread ends with this tap and no sooner.
            Way::HeldBack(queue, delay) => drop(queue.send((Instant::now() + *delay, message))),
        }
    }
}

/// A stream's source as the reporter looks at it.
pub struct Watched {
    /// The stream's number.
    pub id: StreamId,
    /// The stream's name.
    pub name: String,
    /// The source.
    pub source: Rc<Source>,
    /// What it consists of, once that is known.
    pub described: Described,
}

impl Watched {
    fn gauge(&self) -> SourceGauge {
        let stats = self.source.pipeline.borrow().stats();
        let status = self.source.status.borrow();
        let described = self.described.borrow();
        let datagrams = &self.source.datagrams;
        let mut dropped = [0; SourceDrop::COUNT];
        for (reason, packets) in [
            (SourceDrop::Late, stats.late + datagrams.late()),
            (SourceDrop::Malformed, stats.malformed),
            (SourceDrop::Empty, stats.empty),
            (SourceDrop::PayloadType, stats.foreign),
            (SourceDrop::Oversize, stats.oversize),
            (SourceDrop::Stranger, datagrams.strangers()),
        ] {
            dropped[reason.index()] = packets;
        }
        let video = described.as_ref().and_then(|is| is.tracks.iter().position(crate::stream::Track::is_video));
        SourceGauge {
            state: status.state,
            since: status.since,
            fault: status.fault.clone(),
            frames: stats.tracks.get(video.unwrap_or(0)).map_or(0, |track| track.frames),
            bytes: stats.bytes,
            lost: stats.lost,
            reconnects: status.reconnects(),
            failures: status.failures,
            torn: stats.torn,
            unreferenced: stats.unreferenced,
            dropped,
            unread: self.source.unread_bytes(),
        }
    }
}

/// What reports look like here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// A table that is redrawn in place.
    Live,
    /// One table after another.
    Table,
    Logfmt,
    Json,
}

impl Look {
    fn of(format: ReportFormat, terminal: bool) -> Look {
        match (format, terminal) {
            (ReportFormat::Auto | ReportFormat::Table, true) => Look::Live,
            (ReportFormat::Table, false) => Look::Table,
            (ReportFormat::Auto | ReportFormat::Logfmt, _) => Look::Logfmt,
            (ReportFormat::Json, _) => Look::Json,
        }
    }
}

/// Collects and tells.
pub struct Reporter {
    every: Duration,
    look: Look,
    frame: Frame,
    shards: Rc<[ShardSender]>,
    watched: Vec<Watched>,
    collector: Collector,
    /// The last interval's report.
    last: Option<Report>,
    tls: Option<Arc<TlsCounts>>,
}

impl Reporter {
    /// For those shards; `title` and `play` stand above a table.
    pub fn new(config: &ReportConfig, shards: Rc<[ShardSender]>, title: String, play: Vec<String>) -> Self {
        Reporter {
            every: config.every,
            look: Look::of(config.format, std::io::stdout().is_terminal()),
            frame: Frame { title, play, columns: 80, rows: None },
            collector: Collector::new(Instant::now(), shards.len()),
            shards,
            watched: Vec::new(),
            last: None,
            tls: None,
        }
    }

    /// Tells of RTSPS as well from now on.
    pub fn watch_tls(&mut self, counts: Arc<TlsCounts>) {
        self.tls = Some(counts);
    }

    /// Reports on a stream from now on.
    pub fn add_stream(&mut self, watched: Watched) {
        self.collector.add_stream(watched.id, &watched.name);
        self.watched.push(watched);
    }

    /// Forgets a stream.
    pub fn remove_stream(&mut self, id: StreamId) {
        self.collector.remove_stream(id);
        self.watched.retain(|watched| watched.id != id);
    }

    /// The last interval's report.
    pub fn last(&self) -> Option<&Report> {
        self.last.as_ref()
    }

    /// What `/metrics` answers.
    pub async fn metrics(&mut self) -> String {
        self.collect().await;
        let scrape = self.collector.scrape(Instant::now(), SystemTime::now());
        prometheus::text(&scrape, self.last.as_ref(), self.tls.as_deref())
    }

    /// What `/status` answers: the last interval's report, and the clients as they are now.
    pub async fn status(&mut self) -> String {
        let clients = self.ask(true).await;
        let report = match &self.last {
            Some(report) => report.clone(),
            None => self.collector.summary(Instant::now(), SystemTime::now()),
        };
        let name = |client: &ClientSnapshot| {
            let watched = self.watched.iter().find(|watched| watched.id == client.stream);
            watched.map(|watched| watched.name.clone()).unwrap_or_default()
        };
        let mut object = status::status(&report, &clients, name);
        if let Some(tls) = &self.tls {
            object.insert("tls".into(), status::tls(tls));
        }
        object.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        object.insert("title".into(), self.frame.title.as_str().into());
        format!("{}\n", serde_json::Value::Object(object))
    }

    /// Whether the commands that play the streams are part of every report.
    pub fn shows_commands(&self) -> bool {
        matches!(self.look, Look::Live | Look::Table)
    }

    /// Reports every interval, until the task is dropped.
    pub async fn run(reporter: Rc<tokio::sync::Mutex<Reporter>>) {
        let every = reporter.lock().await.every;
        // Gauges of the last interval are wanted even where nothing is printed.
        let interval = if every.is_zero() { GAUGES_EVERY } else { every };
        let collect_every = interval.min(Duration::from_millis(COLLECT_EVERY_MAX_MS));
        let mut tick = tokio::time::interval(collect_every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // The first tick is at once.
        tick.tick().await;
        let mut reported = Instant::now();
        {
            // A newcomer is not to look at an empty screen for an interval.
            let mut reporter = reporter.lock().await;
            if reporter.look == Look::Live && !every.is_zero() {
                let report = reporter.collector.interval(reported, SystemTime::now());
                reporter.tell(&report);
            }
        }
        loop {
            tick.tick().await;
            let mut reporter = reporter.lock().await;
            reporter.collect().await;
            // A tick that comes a little early must not put the report off by a whole interval.
            if reported.elapsed() + collect_every / 2 >= interval {
                reported = Instant::now();
                let report = reporter.collector.interval(reported, SystemTime::now());
                if !every.is_zero() {
                    reporter.tell(&report);
                }
                reporter.last = Some(report);
            }
        }
    }

    /// Prints the summary of the whole run, as far as it has been collected.
    pub fn tell_summary(&mut self) {
        let report = self.collector.summary(Instant::now(), SystemTime::now());
        self.tell(&report);
    }

    /// Asks every shard and source.
    pub async fn collect(&mut self) {
        self.ask(false).await;
    }

    /// Asks every shard and source; gives the clients if they are wanted.
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
        let mut found = Vec::new();
        for answer in answers {
            let mut snapshot = tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok);
            if let Some(snapshot) = &mut snapshot {
                found.append(&mut snapshot.clients);
            }
            snapshots.push(snapshot);
        }
        let gauges = self.watched.iter().map(|watched| (watched.id, watched.gauge())).collect();
        self.collector.absorb(snapshots, gauges);
        found
    }

    fn tell(&mut self, report: &Report) {
        let console = Console::get();
        syslog::say_with(|| lines::logfmt(report));
        match self.look {
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
    fn auto_is_a_live_table_on_a_terminal_alone() {
        assert_eq!(Look::of(ReportFormat::Auto, true), Look::Live);
        assert_eq!(Look::of(ReportFormat::Auto, false), Look::Logfmt);
        assert_eq!(Look::of(ReportFormat::Table, false), Look::Table);
        assert_eq!(Look::of(ReportFormat::Json, true), Look::Json);
    }
}
