//! Connects a source to its pipeline, and adds what the supervisor reports besides packets.

use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, info, warn};

use super::camera::fault::Fault;
use super::camera::pace::Drained;
use super::held::FeedState;
use super::news::{NewsSender, SourceNews};
use super::shared::Source;
use super::timeline::SenderReport;
use crate::media::saved::Moment;
use crate::media::{SourceState, SourceTrack, StreamEvent, StreamSink, TrackId};
use crate::metrics::SourceDrop;
use crate::sys::Connection;

/// Minimum time between two log lines that say that the source is silent.
const TELL_SILENT_EVERY: Duration = Duration::from_secs(60);

/// Connects a source to its pipeline, and adds what the supervisor reports.
pub(super) struct Feed<'a, P> {
    pub(super) name: &'a str,
    source: &'a Source,
    publisher: P,
    /// When the current session's first packet arrived.
    live: Option<Instant>,
    /// Whether to log the arrival of the first packet.
    pub(super) tell_live: bool,
    /// The source was reported as silent, and nothing has arrived since.
    silent: bool,
    /// When this was last logged.
    told_silent: Option<Instant>,
    /// Whether the last session that played had video.
    pub(super) had_video: bool,
    /// Tracks whose omission was logged.
    left_out: Vec<(String, String)>,
    /// Where news for the control thread goes.
    news: Option<NewsSender>,
}

impl<'a, P: StreamSink> Feed<'a, P> {
    pub(super) fn new(name: &'a str, source: &'a Source, publisher: P) -> Self {
        Feed {
            name,
            source,
            publisher,
            live: None,
            tell_live: true,
            silent: false,
            told_silent: None,
            had_video: false,
            left_out: Vec::new(),
            news: None,
        }
    }

    /// News for the control thread goes there.
    pub(super) fn with_news(mut self, news: Option<NewsSender>) -> Self {
        self.news = news;
        self
    }

    /// Tells the control thread.
    pub(super) fn tell_news(&self, news: SourceNews) {
        if let Some(queue) = &self.news {
            queue.tell(news);
        }
    }

    /// The source that it belongs to.
    pub(super) fn source(&self) -> &'a Source {
        self.source
    }

    /// What it knows beside the pipeline, as plain data; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant) -> FeedState {
        let live = self.live.map(|live| Moment::of(live, reference));
        FeedState { live, silent: self.silent, had_video: self.had_video }
    }

    /// Continues a saved session.
    pub(super) fn restore(&mut self, reference: Instant, state: FeedState) {
        self.live = state.live.map(|live| live.at(reference));
        (self.silent, self.had_video) = (state.silent, state.had_video);
        self.tell_live = self.live.is_none();
    }

    /// Tells the control thread the state of a restored source, which the shards know.
    pub(super) fn tell_restored(&self) {
        if self.source.restored.take() {
            let state = self.source.status.borrow().state;
            self.tell_news(SourceNews::State(state));
        }
    }

    /// Publishes a new state.
    pub(super) fn state(&mut self, state: SourceState) {
        let mut status = self.source.status.borrow_mut();
        if status.state != state || status.since.is_none() {
            status.state = state;
            status.since = Some(SystemTime::now());
            status.next_try = status.next_try.filter(|_| state == SourceState::Down);
            drop(status);
            self.publisher.accept(StreamEvent::State(state));
            self.tell_news(SourceNews::State(state));
        }
    }

    /// An attempt to connect starts. After a failed one the source stays down until packets arrive, so that the state says since when.
    pub(super) fn connecting(&mut self) {
        self.source.status.borrow_mut().next_try = None;
        if !self.has_failed() {
            self.state(SourceState::Connecting);
        }
    }

    /// Whether nothing has arrived since the last attempt failed.
    fn has_failed(&self) -> bool {
        let status = self.source.status.borrow();
        status.state == SourceState::Down && status.since.is_some()
    }

    /// The connections on which the session's media arrive, as far as known.
    pub(super) fn comes_by(&self, connections: Vec<Connection>) {
        self.source.connections.replace(connections);
    }

    /// When the next attempt will be.
    pub(super) fn waits(&self, next_try: SystemTime) {
        self.source.status.borrow_mut().next_try = Some(next_try);
    }

    /// Counts a packet that does not reach the pipeline.
    pub(super) fn dropped(&self, why: SourceDrop, count: u64) {
        self.source.dropped.borrow_mut()[why.index()] += count;
    }

    /// The source plays these tracks. Returns for each the stream's track that its packets belong to ([`Pipeline::connected`]).
    ///
    /// [`Pipeline::connected`]: super::pipeline::Pipeline::connected
    pub(super) fn connected(&mut self, tracks: Vec<SourceTrack>) -> Vec<TrackId> {
        for (index, track) in tracks.iter().enumerate() {
            debug!(stream = %self.name, track = index, media = track.media, encoding = track.encoding, "track");
        }
        self.had_video = tracks.iter().any(|track| track.media == "video");
        let places = self.source.pipeline.borrow_mut().connected(Instant::now(), tracks, &mut self.publisher);
        self.tell_notices();
        places
    }

    /// An RTP packet.
    pub(super) fn packet(&mut self, track: TrackId, received: Instant, rtp: &[u8]) {
        if self.live.is_none() {
            self.went_live(received);
        } else if self.silent {
            self.state(SourceState::Live);
        }
        self.silent = false;
        self.source.pipeline.borrow_mut().packet(track, received, rtp, &mut self.publisher);
        self.tell_notices();
    }

    /// A sender report that was just read.
    pub(super) fn sender_report(&mut self, track: TrackId, received: Instant, report: SenderReport) {
        let SenderReport { ntp, rtp_time } = report;
        let wall = SystemTime::now();
        self.source.pipeline.borrow_mut().sender_report(track, received, wall, ntp, rtp_time, &mut self.publisher);
        self.tell_notices();
    }

    /// Nothing more to read.
    pub(super) fn drained(&mut self, now: Instant) {
        self.source.pipeline.borrow_mut().drained(now, &mut self.publisher);
    }

    /// What the packets so far show of frames.
    pub(super) fn seen(&self) -> Drained {
        let pipeline = self.source.pipeline.borrow();
        Drained { in_frame: pipeline.is_in_frame(), pictures: pipeline.pictures() }
    }

    /// The camera was read; this many bytes were copied because the rest of their packet had not arrived.
    pub(super) fn was_read(&self, copied: u64) {
        self.source.reads.set(self.source.reads.get() + 1);
        self.source.copied.set(self.source.copied.get() + copied);
    }

    /// When [`Feed::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.source.pipeline.borrow().deadline()
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant, wall: SystemTime) {
        self.source.pipeline.borrow_mut().tick(now, wall, &mut self.publisher);
        self.tell_notices();
    }

    /// The source is connected, but nothing has arrived for `quiet`.
    pub(super) fn silent(&mut self, now: Instant, quiet: Duration) {
        self.silent = true;
        if !self.has_failed() {
            self.state(SourceState::Silent);
        }
        if self.told_silent.is_none_or(|told| now.saturating_duration_since(told) >= TELL_SILENT_EVERY) {
            self.told_silent = Some(now);
            info!(stream = %self.name, "silent: no media for {} s, although the connection is open", quiet.as_secs_f32());
        }
    }

    /// Whether nothing has arrived since [`Feed::silent`].
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// The source is gone. Returns when the session's first packet arrived, if any did.
    pub(super) fn disconnected(&mut self) -> Option<Instant> {
        self.silent = false;
        self.comes_by(Vec::new());
        self.source.pipeline.borrow_mut().disconnected(&mut self.publisher);
        self.live.take()
    }

    /// A track of the camera is not used; logged once.
    pub(super) fn track_left_out(&mut self, track: &str, reason: &str) {
        let told = (track.to_owned(), reason.to_owned());
        if !self.left_out.contains(&told) {
            warn!(stream = %self.name, track, "track omitted: {reason}");
            // Limits memory for a camera that names its tracks differently each time.
            self.left_out.truncate(31);
            self.left_out.insert(0, told);
        }
    }

    /// Sets what the source waits for, in place of the last fault.
    pub(super) fn waits_for(&self, what: &str) {
        self.source.status.borrow_mut().fault = Some(what.to_owned());
    }

    /// It no longer waits for that.
    pub(super) fn has_waited_for(&self, what: &str) {
        let mut status = self.source.status.borrow_mut();
        status.fault = status.fault.take().filter(|fault| fault != what);
    }

    /// The session failed; `next_try` is when the next one starts, if the relay starts it.
    pub(super) fn failed(&mut self, fault: &Fault, next_try: Option<SystemTime>) {
        let mut status = self.source.status.borrow_mut();
        status.failures += 1;
        status.fault = Some(fault.to_string());
        status.next_try = next_try;
        drop(status);
        self.state(SourceState::Down);
    }

    fn went_live(&mut self, now: Instant) {
        self.live = Some(now);
        let mut status = self.source.status.borrow_mut();
        status.sessions += 1;
        let (sessions, failures) = (status.sessions, status.failures);
        let down = (status.state == SourceState::Down).then_some(status.since).flatten();
        let down_s = down.and_then(|since| since.elapsed().ok()).map(|down| down.as_secs());
        status.fault = None;
        status.next_try = None;
        drop(status);
        if std::mem::take(&mut self.tell_live) {
            info!(stream = %self.name, sessions, failures, down_s, "live");
        }
        self.state(SourceState::Live);
    }

    fn tell_notices(&mut self) {
        let mut pipeline = self.source.pipeline.borrow_mut();
        while let Some(notice) = pipeline.poll_notice() {
            warn!(stream = %self.name, "{notice}");
        }
    }
}
