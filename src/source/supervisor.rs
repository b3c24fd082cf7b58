//! Keeps one source going for ever, and tells how it is doing.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use retina::client::SessionGroup;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::address::{AddressError, CameraAddress};
use super::backoff::Backoff;
use super::camera::{Camera, Report, Timeouts};
use super::fault::Fault;
use super::packetizer::TrackReport;
use super::pattern::{Emitted, Pattern};
use super::pipeline::{Pipeline, Publish, Published, SourceTrack};
use crate::shard::inbox::SourceState;
use crate::stream::TrackId;

/// How long a reconnect waits for the TEARDOWN of the session before. A camera with room for one session refuses the next
/// until then; one that is dead must not hold the next try up for long.
const TEARDOWN_BEFORE_RETRY: Duration = Duration::from_millis(500);

/// A session that played so long has earned another reconnect without a wait.
const STEADY: Duration = Duration::from_secs(10);

/// Where a stream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A camera, pulled over RTSP.
    Camera(CameraAddress),
    /// The built-in test pattern.
    Test,
}

impl SourceKind {
    /// The source that a configuration means: `test`, or the URL of a camera.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.trim() == "test" { Ok(SourceKind::Test) } else { CameraAddress::parse(text).map(SourceKind::Camera) }
    }
}

/// What a supervisor is to keep going.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The stream's name, for the log.
    pub name: String,
    /// Where the stream comes from.
    pub kind: SourceKind,
    /// The limits of a camera session's steps.
    pub timeouts: Timeouts,
}

impl SourceSpec {
    /// A source with the usual limits.
    pub fn new(name: impl Into<String>, kind: SourceKind) -> Self {
        SourceSpec { name: name.into(), kind, timeouts: Timeouts::default() }
    }
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the shards were told last.
    pub state: SourceState,
    /// Since when it is so; none before the supervisor runs.
    pub since: Option<Instant>,
    /// Sessions that brought packets, but for the first.
    pub reconnects: u64,
    /// Sessions that failed, before their first packet or after it.
    pub failures: u64,
    /// Why the last session failed, without secrets; none while the source is live.
    pub fault: Option<String>,
}

/// A source as the control thread's tasks share it. No borrow is ever held across an `await`.
pub struct Source {
    /// The stream's way to the shards; others than the supervisor read its counts.
    pub pipeline: RefCell<Pipeline>,
    /// How the source is doing.
    pub status: RefCell<Status>,
}

impl Source {
    /// A source that has not begun.
    pub fn new(pipeline: Pipeline) -> Rc<Self> {
        let status = Status { state: SourceState::Down, since: None, reconnects: 0, failures: 0, fault: None };
        Rc::new(Source { pipeline: RefCell::new(pipeline), status: RefCell::new(status) })
    }
}

/// Keeps the source of `spec` going until `stop` is true or its sender is gone; then says TEARDOWN to the camera, waits for the
/// answer within [`Timeouts::teardown`], and returns. Must run in a tokio runtime with timers and I/O (tokio-uring's has both).
///
/// Chunks, descriptions and states go to `publisher`.
pub async fn run<P: Publish>(spec: SourceSpec, source: Rc<Source>, publisher: P, stop: watch::Receiver<bool>) {
    run_with(spec, source, publisher, stop, fastrand::f64).await;
}

/// [`run`] with the backoff's randomness (numbers from 0 to 1) given.
pub async fn run_with<P: Publish>(
    spec: SourceSpec,
    source: Rc<Source>,
    publisher: P,
    mut stop: watch::Receiver<bool>,
    random: impl FnMut() -> f64,
) {
    let mut feed = Feed {
        name: &spec.name,
        source: &source,
        publisher,
        live: None,
        sessions: 0,
        tell_live: true,
        suspects: Vec::new(),
        had_video: false,
        left_out: Vec::new(),
    };
    match &spec.kind {
        SourceKind::Camera(address) => supervise(address, spec.timeouts, &mut feed, &mut stop, random).await,
        SourceKind::Test => {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {}
                () = play_pattern(&mut feed) => {}
            }
        }
    }
    feed.disconnected();
    feed.state(SourceState::Down);
}

/// Resolves when the source is to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone can't ask for anything any more: that is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Session after session with a camera, until the stop.
async fn supervise<P: Publish>(
    address: &CameraAddress,
    timeouts: Timeouts,
    feed: &mut Feed<'_, P>,
    stop: &mut watch::Receiver<bool>,
    mut random: impl FnMut() -> f64,
) {
    let mut backoff = Backoff::default();
    let mut log = FaultLog::default();
    let mut at_once = true;
    info!(stream = feed.name, camera = %address, "connecting");
    loop {
        feed.state(SourceState::Connecting);
        let group = Arc::new(SessionGroup::default());
        let camera = Camera { address, timeouts, group: group.clone() };
        let fault = tokio::select! {
            biased;
            () = stopped(stop) => None,
            fault = camera.session(feed) => Some(fault),
        };
        // The session is dropped by now, and its TEARDOWN on its way.
        let live = feed.disconnected();
        let name = feed.name;
        let torn_down = async {
            if !matches!(timeout(timeouts.teardown, group.await_teardown()).await, Ok(Ok(()))) {
                debug!(stream = name, camera = %address, "the camera did not answer TEARDOWN");
            }
        };
        let Some(fault) = fault else { return torn_down.await };
        if let Some(since) = live {
            backoff.reset();
            // A camera that comes and goes all the time is told of once, too.
            if since.elapsed() >= STEADY {
                log.clear();
                at_once = true;
            }
        }
        let wait = if fault.cured_by_reconnect() && at_once {
            at_once = false;
            Duration::ZERO
        } else {
            backoff.wait(random())
        };
        feed.failed(&fault);
        if log.is_new(&fault) {
            feed.tell_live = true;
            warn!(stream = feed.name, camera = %address, retry_in_ms = wait.as_millis() as u64, "{fault}");
        }
        let pause = async {
            let _ = tokio::join!(timeout(TEARDOWN_BEFORE_RETRY, group.await_teardown()), sleep(wait));
        };
        tokio::select! {
            biased;
            () = stopped(stop) => return torn_down.await,
            () = pause => {}
        }
    }
}

/// Plays the test pattern for ever.
async fn play_pattern<P: Publish>(feed: &mut Feed<'_, P>) {
    let mut pattern = Pattern::new(Instant::now());
    feed.state(SourceState::Connecting);
    feed.connected(pattern.tracks());
    loop {
        let due = pattern.deadline();
        sleep_until(feed.deadline().map_or(due, |deadline| deadline.min(due)).into()).await;
        let (now, wall) = (Instant::now(), SystemTime::now());
        pattern.emit(now, wall, |track, emitted| match emitted {
            Emitted::Packet(packet) => feed.packet(track, now, packet),
            Emitted::Report(TrackReport { rtp_time, packets, octets }) => {
                feed.sender_report(track, now, Report { ntp: ntp(wall), rtp_time, packets, octets });
            }
        });
        feed.drained(now);
        if feed.deadline().is_some_and(|deadline| deadline <= now) {
            feed.tick(now, wall);
        }
    }
}

/// A moment in NTP format: seconds since 1900, and their fraction in units of 2^-32 (RFC 3550 section 4).
fn ntp(wall: SystemTime) -> u64 {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The upper half wraps in 2036, as the format has it.
    let seconds = since.as_secs().wrapping_add(2_208_988_800);
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    seconds << 32 | fraction
}

/// Tells a fault once; the same one again is only counted.
#[derive(Debug, Default)]
struct FaultLog {
    told: Option<Fault>,
}

impl FaultLog {
    fn is_new(&mut self, fault: &Fault) -> bool {
        let new = self.told.as_ref() != Some(fault);
        self.told = Some(fault.clone());
        new
    }

    fn clear(&mut self) {
        self.told = None;
    }
}

/// A source's end of its pipeline: adds what the supervisor has to tell.
pub(super) struct Feed<'a, P> {
    name: &'a str,
    source: &'a Source,
    publisher: P,
    /// When the present session's first packet came.
    live: Option<Instant>,
    /// Sessions that brought packets.
    sessions: u64,
    /// Whether the log is to say when the first packet comes.
    tell_live: bool,
    /// Tracks, by their place in the description, whose SETUP ended a session although another track's had not, since the
    /// last session that went live. Twice is enough to do without a track.
    pub(super) suspects: Vec<usize>,
    /// Whether the last session that played had a picture.
    pub(super) had_video: bool,
    /// Tracks whose leaving out has been told.
    left_out: Vec<(String, String)>,
}

impl<P: Publish> Feed<'_, P> {
    /// Tells everybody of a new state.
    fn state(&mut self, state: SourceState) {
        let mut status = self.source.status.borrow_mut();
        if status.state != state || status.since.is_none() {
            status.state = state;
            status.since = Some(Instant::now());
            drop(status);
            self.publisher.publish(Published::State(state));
        }
    }

    /// The source plays these tracks.
    pub(super) fn connected(&mut self, tracks: Vec<SourceTrack>) {
        for (index, track) in tracks.iter().enumerate() {
            debug!(stream = self.name, track = index, media = track.media, encoding = track.encoding, "track");
        }
        self.had_video = tracks.iter().any(|track| track.media == "video");
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.source.pipeline.borrow_mut().connected(now, wall, tracks, &mut self.publisher);
        self.tell_notices();
    }

    /// An RTP packet.
    pub(super) fn packet(&mut self, track: TrackId, received: Instant, rtp: &[u8]) {
        if self.live.is_none() {
            self.went_live(received);
        }
        self.source.pipeline.borrow_mut().packet(track, received, rtp, &mut self.publisher);
        self.tell_notices();
    }

    /// A sender report that was read just now.
    pub(super) fn sender_report(&mut self, track: TrackId, received: Instant, report: Report) {
        let Report { ntp, rtp_time, packets, octets } = report;
        let mut pipeline = self.source.pipeline.borrow_mut();
        let wall = SystemTime::now();
        pipeline.sender_report(track, received, wall, ntp, rtp_time, packets, octets, &mut self.publisher);
        drop(pipeline);
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

    /// The source is gone. When the session's first packet had come, if one had.
    fn disconnected(&mut self) -> Option<Instant> {
        self.source.pipeline.borrow_mut().disconnected(Instant::now(), &mut self.publisher);
        self.live.take()
    }

    /// A track of the camera is not set up; told once.
    pub(super) fn track_left_out(&mut self, track: &str, reason: &str) {
        let told = (track.to_owned(), reason.to_owned());
        if !self.left_out.contains(&told) {
            warn!(stream = self.name, track, "track left out: {reason}");
            // A camera that names its tracks anew each time must not make this grow.
            self.left_out.truncate(31);
            self.left_out.insert(0, told);
        }
    }

    /// The session failed.
    fn failed(&mut self, fault: &Fault) {
        let mut status = self.source.status.borrow_mut();
        status.failures += 1;
        status.fault = Some(fault.to_string());
        drop(status);
        self.state(SourceState::Down);
    }

    fn went_live(&mut self, now: Instant) {
        self.live = Some(now);
        self.suspects.clear();
        self.sessions += 1;
        let mut status = self.source.status.borrow_mut();
        let failures = status.failures;
        status.fault = None;
        status.reconnects = self.sessions - 1;
        drop(status);
        if std::mem::take(&mut self.tell_live) {
            info!(stream = self.name, sessions = self.sessions, failures, "live");
        }
        self.state(SourceState::Live);
    }

    fn tell_notices(&mut self) {
        let mut pipeline = self.source.pipeline.borrow_mut();
        while let Some(notice) = pipeline.poll_notice() {
            warn!(stream = self.name, "{notice}");
        }
    }
}
