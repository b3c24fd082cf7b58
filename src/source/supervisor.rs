//! Keeps one source going for ever, and tells how it is doing.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use retina::client::SessionGroup;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::address::{AddressError, CameraAddress};
use super::backoff::Backoff;
use super::camera::{Camera, PullTransport, Report, Timeouts};
use super::fault::Fault;
use super::feed::Feed;
use super::loopback::Way;
use super::on_demand::{OnDemand, keep_on_demand};
use super::pattern::{Emitted, Pattern};
use super::pipeline::{Pipeline, Publish, Published};
use super::timeline::to_ntp;
use super::tunnel::TlsOptions;
use crate::shard::inbox::SourceState;
use crate::sys::Connection;

/// How long a reconnect waits for the TEARDOWN of the session before. A camera with room for one session refuses the next
/// until then; one that is dead must not hold the next try up for long.
const TEARDOWN_BEFORE_RETRY: Duration = Duration::from_millis(500);

/// A session that played so long has earned another reconnect without a wait.
const STEADY: Duration = Duration::from_secs(10);

/// How long connecting and DESCRIBE may take if there is another camera to try.
const DESCRIBE_WITH_OTHERS_MAX: Duration = Duration::from_secs(4);

/// The longest time between two looks whether a camera that comes first in the list is back.
const LOOK_BACK_MAX: Duration = Duration::from_secs(300);

/// Where a stream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Cameras, pulled over RTSP: the first that works, in this order. Never empty.
    Cameras(Vec<CameraAddress>),
    /// A publisher, which connects to the relay ([`publisher`](super::publisher)).
    Publisher {
        /// Whether a second one takes over from the first; else it is refused.
        takeover: bool,
    },
    /// The built-in test pattern.
    Test,
}

impl SourceKind {
    /// The source that a configuration means: `test`, or the URL of a camera.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.trim() == "test" {
            return Ok(SourceKind::Test);
        }
        CameraAddress::parse(text).map(|address| SourceKind::Cameras(vec![address]))
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
    /// How cameras' media come.
    pub transport: PullTransport,
    /// How the certificates of `rtsps://` cameras are judged.
    pub tls: TlsOptions,
    /// How long the first connection waits, so that many sources do not connect in the same instant.
    pub start_after: Duration,
    /// For a source that is pulled only while somebody asks for it.
    pub on_demand: Option<OnDemand>,
}

impl SourceSpec {
    /// A source with the usual limits.
    pub fn new(name: impl Into<String>, kind: SourceKind) -> Self {
        let (timeouts, start_after) = (Timeouts::default(), Duration::ZERO);
        let (transport, tls) = (PullTransport::default(), TlsOptions::default());
        SourceSpec { name: name.into(), kind, timeouts, transport, tls, start_after, on_demand: None }
    }
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the shards were told last.
    pub state: SourceState,
    /// Since when it is so; none before the supervisor runs.
    pub since: Option<SystemTime>,
    /// Sessions that brought packets.
    pub sessions: u64,
    /// Sessions that failed, before their first packet or after it.
    pub failures: u64,
    /// Why the last session failed, without secrets; none while the source is live.
    pub fault: Option<String>,
}

impl Status {
    /// Sessions that brought packets, but for the first.
    pub fn reconnects(&self) -> u64 {
        self.sessions.saturating_sub(1)
    }
}

/// Datagrams of a camera that are not handed to its pipeline. Counts since the source was made; they only grow.
#[derive(Debug, Default)]
pub struct DroppedDatagrams {
    late: AtomicU64,
    strangers: AtomicU64,
}

impl DroppedDatagrams {
    /// Those that came twice, or too late to be put in their place.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Those that were not the camera's, or nobody's packet.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    pub(super) fn count_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_stranger(&self) {
        self.strangers.fetch_add(1, Ordering::Relaxed);
    }
}

/// A source as the control thread's tasks share it. No borrow is ever held across an `await`.
pub struct Source {
    /// The stream's way to the shards; others than the supervisor read its counts.
    pub pipeline: RefCell<Pipeline>,
    /// How the source is doing.
    pub status: RefCell<Status>,
    /// The connections by which the media of a camera come.
    pub connections: RefCell<Vec<Connection>>,
    /// What its datagrams' way has dropped; the task that carries them counts.
    pub datagrams: Arc<DroppedDatagrams>,
    /// Its camera's sessions whose TEARDOWN is still to be answered. Longer-lived than any run of the source.
    pub(super) owed: RefCell<Vec<Weak<SessionGroup>>>,
}

impl Source {
    /// A source that has not begun.
    pub fn new(pipeline: Pipeline) -> Rc<Self> {
        let status = Status { state: SourceState::Down, since: None, sessions: 0, failures: 0, fault: None };
        Rc::new(Source {
            pipeline: RefCell::new(pipeline),
            status: RefCell::new(status),
            connections: RefCell::default(),
            datagrams: Arc::default(),
            owed: RefCell::default(),
        })
    }

    /// Bytes that a camera has sent and nobody has read yet. `None` if no camera is connected, or its media are datagrams.
    pub fn unread_bytes(&self) -> Option<u64> {
        let connections = self.connections.borrow();
        let unread = connections.iter().filter_map(Connection::unread).map(|bytes| bytes as u64);
        // One that has been closed tells that the session is over.
        unread.reduce(|one, other| one + other)
    }

    /// The code that kept the source going has failed: ends what was half in, and says that it is down, and why.
    pub fn failed<P: Publish>(&self, fault: String, publisher: &mut P) {
        self.pipeline.borrow_mut().disconnected(publisher);
        let mut status = self.status.borrow_mut();
        status.failures += 1;
        (status.state, status.since, status.fault) = (SourceState::Down, Some(SystemTime::now()), Some(fault));
        drop(status);
        publisher.publish(Published::State(SourceState::Down));
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
    mut random: impl FnMut() -> f64,
) {
    let mut feed = Feed::new(&spec.name, &source, publisher);
    tokio::select! {
        biased;
        () = stopped(&mut stop) => {}
        () = sleep(spec.start_after) => {}
    }
    match spec.on_demand.clone() {
        Some(on_demand) => keep_on_demand(on_demand, &spec, &mut feed, &stop, &mut random).await,
        None => keep(&spec, &mut feed, &mut stop, &mut random).await,
    }
    feed.disconnected();
    feed.state(SourceState::Down);
}

/// Keeps the source going until the stop.
pub(super) async fn keep<P: Publish>(
    spec: &SourceSpec,
    feed: &mut Feed<'_, P>,
    stop: &mut watch::Receiver<bool>,
    random: &mut impl FnMut() -> f64,
) {
    match &spec.kind {
        SourceKind::Cameras(addresses) => supervise(addresses, spec, feed, stop, random).await,
        // It comes by itself, if it comes.
        SourceKind::Publisher { .. } => stopped(stop).await,
        SourceKind::Test => {
            tokio::select! {
                biased;
                () = stopped(stop) => {}
                () = play_pattern(feed) => {}
            }
        }
    }
}

/// Resolves when the source is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone can't ask for anything any more: that is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How a session with a camera came to its end.
enum End {
    /// The relay wants no more of it.
    Stop,
    /// It failed.
    Fault(Fault),
    /// A camera that comes before it in the list answers again.
    Back(usize),
}

/// Session after session with the cameras, until the stop.
async fn supervise<P: Publish>(
    addresses: &[CameraAddress],
    spec: &SourceSpec,
    feed: &mut Feed<'_, P>,
    stop: &mut watch::Receiver<bool>,
    random: &mut impl FnMut() -> f64,
) {
    let mut timeouts = spec.timeouts;
    let mut ways = vec![Way { udp: spec.transport == PullTransport::Udp, ..Way::default() }; addresses.len()];
    // The other transport is tried at once, but once only until one has worked.
    let mut switched = vec![false; addresses.len()];
    if addresses.len() > 1 {
        timeouts.describe = timeouts.describe.min(DESCRIBE_WITH_OTHERS_MAX);
    }
    let mut backoff = Backoff::default();
    let mut logs: Vec<FaultLog> = addresses.iter().map(|_| FaultLog::default()).collect();
    let mut at_once = true;
    let mut at = 0;
    let mut look_back = timeouts.look_back;
    info!(stream = %feed.name, camera = %addresses[0], "connecting");
    loop {
        let address = &addresses[at];
        feed.connecting();
        let group = Arc::new(SessionGroup::default());
        let says_goodbye = feed.may_owe(&group);
        let (tls, way, dropped) = (&spec.tls, ways[at], feed.dropped_datagrams());
        let camera = Camera { address, timeouts, tls, way, group: Arc::clone(&group), says_goodbye, dropped };
        let end = tokio::select! {
            biased;
            () = stopped(stop) => End::Stop,
            fault = camera.session(feed) => End::Fault(fault),
            back = one_is_back(&addresses[..at], &ways, timeouts, &spec.tls, look_back) => End::Back(back),
        };
        // The session is dropped by now, and its TEARDOWN on its way.
        let live = feed.disconnected();
        let name = feed.name;
        let torn_down = async {
            if !matches!(timeout(timeouts.teardown, group.await_teardown()).await, Ok(Ok(()))) {
                debug!(stream = %name, camera = %address, "the camera did not answer TEARDOWN");
            }
        };
        let fault = match end {
            End::Stop => return torn_down.await,
            End::Back(back) => {
                info!(stream = %name, camera = %addresses[back], "answers again: going back to it from {address}");
                // One that answers and does not play is not gone back to all the time.
                look_back = (look_back * 2).min(LOOK_BACK_MAX);
                at = back;
                feed.tell_live = true;
                continue;
            }
            End::Fault(fault) => fault,
        };
        // Datagrams that never come are as good as refused: something between drops them.
        let other = spec.transport == PullTransport::Auto
            && !address.is_secure()
            && match fault {
                Fault::NoTransport { .. } => true,
                Fault::Silent(_) => ways[at].udp && live.is_none(),
                _ => false,
            };
        if other {
            ways[at].udp = !ways[at].udp;
            if !std::mem::replace(&mut switched[at], true) {
                let transport = if ways[at].udp { "udp" } else { "tcp" };
                info!(stream = %name, camera = %address, transport, "{fault}; trying the other transport");
                continue;
            }
        }
        if fault == Fault::WrongSsrc && !std::mem::replace(&mut ways[at].without_ssrc, true) {
            warn!(stream = %name, camera = %address, "{fault}; from now on what it announces is not believed");
            continue;
        }
        if fault.is_of_form() && !std::mem::replace(&mut ways[at].mended, true) {
            info!(stream = %name, camera = %address, "{fault}; trying again with its answers put in order");
            continue;
        }
        if let Some(since) = live {
            switched[at] = false;
            backoff.reset();
            // A camera that comes and goes all the time is told of once, too.
            if since.elapsed() >= STEADY {
                logs[at].clear();
                at_once = true;
                look_back = timeouts.look_back;
            }
        }
        // One that has just played is tried again first; then comes the next in the list, and a wait after each round.
        let next = if live.is_some() { at } else { (at + 1) % addresses.len() };
        let wait = if fault.cured_by_reconnect() && at_once {
            at_once = false;
            Duration::ZERO
        } else if next > at {
            Duration::ZERO
        } else {
            backoff.wait(random(), fault.is_absence())
        };
        feed.failed(&fault);
        if logs[at].is_new(&fault) {
            feed.tell_live = true;
            let retry_in_ms = wait.as_millis() as u64;
            if next == at {
                warn!(stream = %feed.name, camera = %address, retry_in_ms, "{fault}");
            } else {
                warn!(stream = %feed.name, camera = %address, next = %addresses[next], retry_in_ms, "{fault}");
            }
        }
        at = next;
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

/// Asks the cameras that come before the one that plays, every now and then, until one of them answers: its number. Never
/// resolves for none.
async fn one_is_back(
    before: &[CameraAddress],
    ways: &[Way],
    timeouts: Timeouts,
    tls: &TlsOptions,
    every: Duration,
) -> usize {
    if before.is_empty() {
        std::future::pending::<()>().await;
    }
    loop {
        sleep(every).await;
        for (index, address) in before.iter().enumerate() {
            let group = Arc::new(SessionGroup::default());
            // To be described it needs no more of its way than that.
            let (way, dropped) = (Way { mended: ways[index].mended, ..Way::default() }, Arc::default());
            let camera = Camera { address, timeouts, tls, way, group, says_goodbye: true, dropped };
            if camera.answers().await {
                return index;
            }
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
            Emitted::Report(rtp_time) => feed.sender_report(track, now, Report { ntp: to_ntp(wall), rtp_time }),
        });
        feed.drained(now);
        if feed.deadline().is_some_and(|deadline| deadline <= now) {
            feed.tick(now, wall);
        }
    }
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
