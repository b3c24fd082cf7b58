//! The cameras of a stream: which one is tried next, and when.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tracing::field::display;
use tracing::{debug, info, warn};

use super::backoff::{Backoff, Refusals};
use super::camera::address::CameraAddress;
use super::camera::fault::{Fault, Retry, Step};
use super::camera::{Camera, CameraAgain, CameraOptions, CameraSession, Learned, Outcome, PullTransport};
use super::fault_log::{FaultLog, STEADY};
use super::feed::Feed;
use super::news::SourceNews;
use super::shared::stopped;
use super::spec::{SourceKind, SourceSpec};
use crate::media::StreamSink;
use crate::metrics::lines::rfc3339;

/// Maximum time for connecting and DESCRIBE if there is another camera to try.
const DESCRIBE_WITH_OTHERS_MAX: Duration = Duration::from_secs(4);

/// Maximum interval of checks whether a camera earlier in the list is back.
const LOOK_BACK_MAX: Duration = Duration::from_secs(300);

/// Minimum age of the last failure for a camera to be retried at once because a client requests the stream.
const ASKED_RETRY: Duration = Duration::from_secs(1);

/// One camera, and what is known about it.
struct Known<'a> {
    address: &'a CameraAddress,
    learned: Learned,
    refusals: Refusals,
    /// The other transport is tried at once, but only once until one has worked.
    switched: bool,
    log: FaultLog<Fault>,
    /// It answered that it has no such stream, and has not played since.
    absent: bool,
}

/// The cameras of a stream. This state survives while an on-demand stream is not pulled.
pub(super) struct Cameras<'a> {
    known: Vec<Known<'a>>,
    at: usize,
    look_back: Duration,
    describe: Duration,
    backoff: Backoff,
    /// Whether the stream was created by name, which an origin may not have.
    made: bool,
    /// Another process's session, to be continued.
    resumed: Option<Resumed>,
}

/// Another process's session, its sockets, and what its times are relative to.
type Resumed = (CameraSession, Vec<OwnedFd>, Instant);

/// Why a session was ended.
enum Left {
    /// The relay no longer needs it.
    Stop,
    /// A camera earlier in the list answers again.
    Back(usize),
}

impl<'a> Cameras<'a> {
    /// The cameras of a source; none for other kinds of source.
    pub(super) fn of(spec: &'a SourceSpec) -> Cameras<'a> {
        let addresses = if let SourceKind::Cameras(addresses) = &spec.kind { &addresses[..] } else { &[] };
        let known = addresses.iter().map(|address| Known {
            address,
            learned: Learned::new(spec.camera.transport == PullTransport::Udp),
            refusals: Refusals::new(spec.waits),
            switched: false,
            log: FaultLog::default(),
            absent: false,
        });
        let describe = spec.camera.timeouts.describe;
        Cameras {
            known: known.collect(),
            at: 0,
            look_back: spec.camera.timeouts.look_back,
            describe: if addresses.len() > 1 { describe.min(DESCRIBE_WITH_OTHERS_MAX) } else { describe },
            backoff: Backoff::new(spec.waits),
            made: spec.made,
            resumed: None,
        }
    }

    /// Runs session after session, until the stop.
    pub(super) async fn supervise<P: StreamSink>(
        &mut self,
        spec: &SourceSpec,
        feed: &mut Feed<'_, P>,
        stop: &mut watch::Receiver<bool>,
        random: &mut impl FnMut() -> f64,
    ) {
        let mut asked = spec.asked.clone();
        self.resumed = self.resumable(feed);
        let goes_on = self.resumed.is_some();
        let camera = self.known[self.at].address;
        if self.made || goes_on {
            debug!(stream = %feed.name, %camera, "connecting");
        } else {
            info!(stream = %feed.name, %camera, "connecting");
        }
        // A camera that has refused the password is not contacted, whoever requests the stream.
        let (at, wait) = self.plan(Instant::now(), self.at, Duration::ZERO);
        self.at = if goes_on { self.at } else { at };
        if wait > Duration::ZERO {
            feed.waits(SystemTime::now() + wait);
            if self.pause(wait, spec, feed.name, &mut asked, stop).await.is_none() {
                return;
            }
        }
        loop {
            let fault = match self.session(spec, feed, stop).await {
                Ok(Left::Stop) => return,
                Ok(Left::Back(back)) => {
                    self.at = back;
                    continue;
                }
                Err(fault) => fault,
            };
            let live = feed.disconnected();
            if self.switch_transport(spec.camera.transport, &fault, live.is_some(), feed.name) {
                continue;
            }
            let wait = self.failed(&fault, live, spec.camera.timeouts.look_back, random(), feed);
            if self.pause(wait, spec, feed.name, &mut asked, stop).await.is_none() {
                return;
            }
        }
    }

    /// Takes another process's session with one of these cameras, which becomes the current one. A session with another camera is not
    /// continued, and one whose connection cannot be is closed, like after a failure.
    fn resumable<P: StreamSink>(&mut self, feed: &mut Feed<'_, P>) -> Option<Resumed> {
        let resume = feed.source().resume.take()?;
        let at = |url: &str| self.known.iter().position(|known| known.address.url().as_str() == url);
        if let Some(CameraAgain { again, feed: saved }) = resume.read() {
            if let Some(at) = at(&again) {
                self.at = at;
                info!(stream = %feed.name, camera = %self.known[at].address, "reconnecting: a connection over TLS cannot be handed over");
            }
            for socket in resume.sockets {
                // It may be closed already.
                let _ = std::net::TcpStream::from(socket).shutdown(Shutdown::Both);
            }
            feed.restore(resume.reference, saved);
            feed.disconnected();
            feed.tell_live = true;
            return None;
        }
        let (session, sockets, reference) = resume.of::<CameraSession>()?;
        self.at = at(&session.camera)?;
        Some((session, sockets, reference))
    }

    /// Runs one session with the current camera.
    async fn session<P: StreamSink>(
        &mut self,
        spec: &SourceSpec,
        feed: &mut Feed<'_, P>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Left, Fault> {
        let resumed = self.resumed.take();
        if resumed.is_none() {
            feed.connecting();
        }
        let (options, describe, look_back) = (&spec.camera, self.describe, self.look_back);
        let (before, from) = self.known.split_at_mut(self.at);
        let Known { address, learned, .. } = &mut from[0];
        let address = *address;
        let until = async {
            tokio::select! {
                biased;
                () = stopped(stop) => Left::Stop,
                back = one_is_back(before, options, describe, look_back) => Left::Back(back),
            }
        };
        let mut camera = Camera { address, options, describe, learned };
        let outcome = match resumed {
            Some(resumed) => camera.resume(resumed, feed, until).await,
            None => camera.session(feed, until).await,
        };
        match outcome {
            Outcome::Failed(fault) => Err(fault),
            Outcome::Left(left) => {
                feed.disconnected();
                if let Left::Back(back) = left {
                    let camera = self.known[back].address;
                    info!(stream = %feed.name, %camera, "the camera answers again: switching back to it from {address}");
                    // A camera that answers and does not play is not switched back to again and again.
                    self.look_back = (look_back * 2).min(LOOK_BACK_MAX);
                    feed.tell_live = true;
                }
                Ok(left)
            }
        }
    }

    /// The current camera's session failed; `live` is since when it had been live. Chooses the next camera and the delay.
    fn failed<P: StreamSink>(
        &mut self,
        fault: &Fault,
        live: Option<Instant>,
        look_back: Duration,
        random: f64,
        feed: &mut Feed<'_, P>,
    ) -> Duration {
        let (now, at) = (Instant::now(), self.at);
        let known = &mut self.known[at];
        if let Some(since) = live {
            known.switched = false;
            known.learned.suspects.clear();
            known.log.live(since);
            if now.saturating_duration_since(since) >= STEADY {
                self.look_back = look_back;
            }
            self.backoff.lost(now);
        }
        let refused = fault.retry() == Retry::Refused;
        known.refusals.judge(now, refused);
        known.absent = self.made && matches!(fault, Fault::Status(404, Step::Describe));
        // A camera that has just played is retried first; then the next in the list, with a delay after each round.
        let next = if live.is_some() { at } else { (at + 1) % self.known.len() };
        let wait = if next > at { Duration::ZERO } else { self.backoff.wait(now, fault.retry(), random) };
        let (next, wait) = self.plan(now, next, wait);
        feed.failed(fault, Some(SystemTime::now() + wait));
        if let Fault::Loop(path) = fault {
            feed.tell_news(SourceNews::Loop(path.as_str().into()));
        } else if self.known.iter().all(|known| known.absent) {
            feed.tell_news(SourceNews::NotFound);
        }
        self.at = next;
        self.tell(fault, at, wait, refused, feed);
        wait
    }

    /// The camera to try after `wait`, from `next` on in the list, and the resulting delay: those that have refused the password are
    /// avoided for longer.
    fn plan(&self, now: Instant, next: usize, wait: Duration) -> (usize, Duration) {
        let order = (0..self.known.len()).map(|step| (next + step) % self.known.len());
        let waits = order.map(|at| (at, self.known[at].refusals.left(now).max(wait)));
        waits.min_by_key(|(_, wait)| *wait).unwrap_or((next, wait))
    }

    /// Waits for the next attempt; `None` when the source is to stop.
    async fn pause(
        &mut self,
        wait: Duration,
        spec: &SourceSpec,
        stream: &str,
        asked: &mut Option<watch::Receiver<u64>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<()> {
        let begun = Instant::now();
        let refused = self.known[self.at].refusals.left(begun) > Duration::ZERO;
        tokio::select! {
            biased;
            () = stopped(stop) => return None,
            () = reloaded(spec.reloaded.clone()) => {
                info!(%stream, "retrying at once: the configuration was reloaded");
                self.known.iter_mut().for_each(|known| known.refusals.forget_wait());
            }
            () = sleep(wait) => {}
            () = asked_for(asked, begun + ASKED_RETRY), if !refused => {
                debug!(%stream, "a client requested it: retrying at once");
            }
        }
        Some(())
    }

    /// Whether to retry the camera at once with the other transport. Datagrams that never arrive count as a refusal: something blocks
    /// them.
    fn switch_transport(&mut self, transport: PullTransport, fault: &Fault, live: bool, stream: &str) -> bool {
        let Known { address, learned, switched, .. } = &mut self.known[self.at];
        let other = transport == PullTransport::Auto
            && !address.is_secure()
            && match fault {
                Fault::NoTransport { .. } => true,
                Fault::Silent { .. } => learned.udp && !live,
                _ => false,
            };
        if !other {
            return false;
        }
        learned.udp = !learned.udp;
        let first = !std::mem::replace(switched, true);
        if first {
            let transport = if learned.udp { "udp" } else { "tcp" };
            info!(%stream, camera = %address, transport, "{fault}; trying the other transport");
        }
        first
    }

    /// Logs what failed at the camera `at`, and what comes next. The delays after a refused password are so long that each is logged.
    fn tell<P: StreamSink>(&mut self, fault: &Fault, at: usize, wait: Duration, refused: bool, feed: &mut Feed<'_, P>) {
        let next = self.known[self.at].address;
        let Known { address, log, absent, .. } = &mut self.known[at];
        if *absent && !feed.source().was_live() {
            return debug!(stream = %feed.name, camera = %address, "{fault}");
        }
        let Some(outage) = log.failed(Instant::now(), SystemTime::now(), fault, refused) else { return };
        feed.tell_live = true;
        if self.made && !feed.source().was_live() {
            // Any client may request names, so this is not logged per stream: of many names the log mentions the first few.
            return warn!(name = %feed.name, camera = %address, "{fault}");
        }
        let tries = outage.tries;
        let since = (tries > 1).then(|| display(rfc3339(outage.since)));
        let retry_in_ms = wait.as_millis() as u64;
        if at == self.at {
            warn!(stream = %feed.name, camera = %address, since, tries, retry_in_ms, "{fault}");
        } else {
            warn!(stream = %feed.name, camera = %address, %next, since, tries, retry_in_ms, "{fault}");
        }
    }
}

/// Resolves on a reload.
async fn reloaded(reloaded: Option<watch::Receiver<u64>>) {
    match reloaded {
        Some(mut reloaded) => {
            reloaded.mark_unchanged();
            // Without a sender there are no reloads.
            if reloaded.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

/// Resolves when a client requests the stream from now on, but not before `earliest`.
async fn asked_for(asked: &mut Option<watch::Receiver<u64>>, earliest: Instant) {
    if let Some(asked) = asked {
        asked.mark_unchanged();
        if asked.changed().await.is_ok() {
            return sleep_until(earliest.into()).await;
        }
    }
    // Nobody can request it.
    std::future::pending().await
}

/// Checks periodically whether one of the cameras before the one that plays answers, and returns its index. Never resolves if there are
/// none.
async fn one_is_back(before: &mut [Known<'_>], options: &CameraOptions, describe: Duration, every: Duration) -> usize {
    if before.is_empty() {
        std::future::pending::<()>().await;
    }
    loop {
        sleep(every).await;
        for (index, known) in before.iter_mut().enumerate() {
            // A camera without such a stream is not asked again while another one plays.
            if known.absent || known.refusals.left(Instant::now()) > Duration::ZERO {
                continue;
            }
            let mut camera = Camera { address: known.address, options, describe, learned: &mut known.learned };
            // In memory of its own, because the task of each stream would have room for it all the time.
            match Box::pin(camera.answers()).await {
                Ok(()) => return index,
                Err(fault) => known.refusals.judge(Instant::now(), fault.retry() == Retry::Refused),
            }
        }
    }
}
