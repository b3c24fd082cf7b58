//! A source's end of its pipeline, with what the supervisor has to tell beside the packets.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use retina::client::SessionGroup;
use tracing::{debug, info, warn};

use super::camera::Report;
use super::fault::Fault;
use super::pipeline::{Publish, Published, SourceTrack};
use super::supervisor::{DroppedDatagrams, Source};
use crate::limits::TEARDOWNS_OWED_MAX;
use crate::shard::inbox::SourceState;
use crate::stream::TrackId;
use crate::sys::Connection;

/// The least time between two lines of the log that say that the source is silent.
const TELL_SILENT_EVERY: Duration = Duration::from_secs(60);

/// A source's end of its pipeline: adds what the supervisor has to tell.
pub(super) struct Feed<'a, P> {
    pub(super) name: &'a str,
    source: &'a Source,
    publisher: P,
    /// When the present session's first packet came.
    live: Option<Instant>,
    /// Whether the log is to say when the first packet comes.
    pub(super) tell_live: bool,
    /// The source has been told of as silent, and nothing has come since.
    silent: bool,
    /// When the log said so last.
    told_silent: Option<Instant>,
    /// Tracks, by their place in the description, whose SETUP ended a session although another track's had not, since the
    /// last session that went live. Twice is enough to do without a track.
    pub(super) suspects: Vec<usize>,
    /// Whether the last session that played had a picture.
    pub(super) had_video: bool,
    /// Tracks whose leaving out has been told.
    left_out: Vec<(String, String)>,
}

impl<'a, P: Publish> Feed<'a, P> {
    pub(super) fn new(name: &'a str, source: &'a Source, publisher: P) -> Self {
        Feed {
            name,
            source,
            publisher,
            live: None,
            tell_live: true,
            silent: false,
            told_silent: None,
            suspects: Vec::new(),
            had_video: false,
            left_out: Vec::new(),
        }
    }

    /// Tells everybody of a new state.
    pub(super) fn state(&mut self, state: SourceState) {
        let mut status = self.source.status.borrow_mut();
        if status.state != state || status.since.is_none() {
            status.state = state;
            status.since = Some(SystemTime::now());
            drop(status);
            self.publisher.publish(Published::State(state));
        }
    }

    /// A try to connect begins. After one that failed the source stays down until packets come: the state tells since when.
    pub(super) fn connecting(&mut self) {
        if !self.has_failed() {
            self.state(SourceState::Connecting);
        }
    }

    /// Whether nothing has come since the last try failed.
    fn has_failed(&self) -> bool {
        let status = self.source.status.borrow();
        status.state == SourceState::Down && status.since.is_some()
    }

    /// The connections by which the session's media come, as far as they are known.
    pub(super) fn comes_by(&self, connections: Vec<Connection>) {
        self.source.connections.replace(connections);
    }

    /// Where datagrams that are not passed on are counted.
    pub(super) fn dropped_datagrams(&self) -> Arc<DroppedDatagrams> {
        self.source.datagrams.clone()
    }

    /// Whether the session of this group, which begins, may say TEARDOWN at its end: not if too many before it still try to.
    pub(super) fn may_owe(&self, group: &Arc<SessionGroup>) -> bool {
        let mut owed = self.source.owed.borrow_mut();
        // What still tries to holds its group.
        owed.retain(|group| group.strong_count() > 0);
        let may = owed.len() < TEARDOWNS_OWED_MAX;
        owed.push(Arc::downgrade(group));
        may
    }

    /// The source plays these tracks.
    pub(super) fn connected(&mut self, tracks: Vec<SourceTrack>) {
        for (index, track) in tracks.iter().enumerate() {
            debug!(stream = %self.name, track = index, media = track.media, encoding = track.encoding, "track");
        }
        self.had_video = tracks.iter().any(|track| track.media == "video");
        self.source.pipeline.borrow_mut().connected(Instant::now(), tracks, &mut self.publisher);
        self.tell_notices();
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

    /// A sender report that was read just now.
    pub(super) fn sender_report(&mut self, track: TrackId, received: Instant, report: Report) {
        let Report { ntp, rtp_time } = report;
        let wall = SystemTime::now();
        self.source.pipeline.borrow_mut().sender_report(track, received, wall, ntp, rtp_time, &mut self.publisher);
        self.tell_notices();
    }

    /// Nothing more to read.
    pub(super) fn drained(&mut self, now: Instant) {
        self.source.pipeline.borrow_mut().drained(now, &mut self.publisher);
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

    /// The source is connected, but nothing has come for `quiet`.
    pub(super) fn silent(&mut self, now: Instant, quiet: Duration) {
        self.silent = true;
        if !self.has_failed() {
            self.state(SourceState::Silent);
        }
        if self.told_silent.is_none_or(|told| now.saturating_duration_since(told) >= TELL_SILENT_EVERY) {
            self.told_silent = Some(now);
            info!(stream = %self.name, "silent: no media for {} s, though the connection stands", quiet.as_secs_f32());
        }
    }

    /// Whether nothing has come since [`Feed::silent`].
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// The source is gone. When the session's first packet had come, if one had.
    pub(super) fn disconnected(&mut self) -> Option<Instant> {
        self.silent = false;
        self.comes_by(Vec::new());
        self.source.pipeline.borrow_mut().disconnected(&mut self.publisher);
        self.live.take()
    }

    /// A track of the camera is not set up; told once.
    pub(super) fn track_left_out(&mut self, track: &str, reason: &str) {
        let told = (track.to_owned(), reason.to_owned());
        if !self.left_out.contains(&told) {
            warn!(stream = %self.name, track, "track left out: {reason}");
            // A camera that names its tracks anew each time must not make this grow.
            self.left_out.truncate(31);
            self.left_out.insert(0, told);
        }
    }

    /// The session failed.
    pub(super) fn failed(&mut self, fault: &Fault) {
        let mut status = self.source.status.borrow_mut();
        status.failures += 1;
        status.fault = Some(fault.to_string());
        drop(status);
        self.state(SourceState::Down);
    }

    fn went_live(&mut self, now: Instant) {
        self.live = Some(now);
        self.suspects.clear();
        let mut status = self.source.status.borrow_mut();
        status.sessions += 1;
        let (sessions, failures) = (status.sessions, status.failures);
        let down = (status.state == SourceState::Down).then_some(status.since).flatten();
        let down_s = down.and_then(|since| since.elapsed().ok()).map(|down| down.as_secs());
        status.fault = None;
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
