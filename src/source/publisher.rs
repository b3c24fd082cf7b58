//! A source that publishes to the relay instead of being pulled.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::camera::fault::Fault;
use super::feed::Feed;
use super::held::{Deposit, FeedState, Resume, Running};
use super::news::{NewsSender, SourceNews};
use super::publishing::{PublisherVerdict, Publishing};
use super::reorder::{Reorder, ReorderState};
use super::saved::Runs;
use super::shared::{Source, stopped};
use super::timeline::SenderReport;
use crate::media::saved::Moment;
use crate::media::{SourceState, SourceTrack, StreamSink, TrackId};
use crate::session::{EndReason, SessionKey};
use crate::wire::rtcp;

/// The status for a publisher that connects while another one is active.
const BUSY: u16 = 503;

/// Why a stream that was never published is down.
const WAITING: &str = "waiting for a publisher";

/// Messages, and bytes of packets in them, that are processed before other tasks run.
const ABSORB_MAX: usize = 256;
const ABSORB_BYTES_MAX: usize = 256 * 1024;

/// Number of ended publishers that are remembered, because packets that they sent before may still arrive.
const ENDED_KEPT: usize = 16;

/// An action of a publisher: its shard, its session, and what it does.
pub type FromShard = (u16, SessionKey, Publishing);

/// How a published stream is kept.
#[derive(Clone, Debug)]
pub struct PublisherSpec {
    /// The stream's name, for the log.
    pub name: String,
    /// Settings that may change while a publisher is active.
    pub rules: watch::Receiver<PublisherRules>,
    /// Where its news go.
    pub news: Option<NewsSender>,
}

/// How publishers of a stream are treated. Changes apply at once and do not affect the active publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherRules {
    /// Whether a second publisher takes over; otherwise it is refused.
    pub takeover: bool,
    /// Time without a packet after which a publisher is reported as silent.
    pub quiet: Duration,
    /// Time without a packet after which it is ended.
    pub silence: Duration,
}

/// The active publisher.
struct Current {
    shard: u16,
    session: SessionKey,
    peer: SocketAddr,
    /// When its newest packet arrived, or it started.
    heard: Instant,
    /// It has paused.
    paused: bool,
    tracks: Vec<PublishedTrack>,
}

/// A track of the active publisher.
struct PublishedTrack {
    /// The stream's track that its packets belong to.
    id: TrackId,
    reorder: Reorder,
    /// Its sender has sent an RTCP BYE, and no packet since.
    bye: bool,
}

/// The active publisher as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PublisherSession {
    feed: FeedState,
    shard: u16,
    session: u64,
    peer: SocketAddr,
    heard: Moment,
    paused: bool,
    /// The stream's track, what waits for missing packets, and whether its sender has sent BYE.
    tracks: Vec<(TrackId, ReorderState, bool)>,
}

impl Current {
    fn save(&self, reference: Instant, feed: FeedState) -> PublisherSession {
        let track = |track: &PublishedTrack| (track.id, track.reorder.save(reference), track.bye);
        PublisherSession {
            feed,
            shard: self.shard,
            session: self.session.0,
            peer: self.peer,
            heard: Moment::of(self.heard, reference),
            paused: self.paused,
            tracks: self.tracks.iter().map(track).collect(),
        }
    }

    fn restore(reference: Instant, saved: PublisherSession) -> Current {
        let track = |(id, reorder, bye): (TrackId, ReorderState, bool)| {
            let reorder = Reorder::restore(reference, &reorder);
            PublishedTrack { id, reorder, bye }
        };
        Current {
            shard: saved.shard,
            session: SessionKey(saved.session),
            peer: saved.peer,
            heard: saved.heard.at(reference),
            paused: saved.paused,
            tracks: saved.tracks.into_iter().map(track).collect(),
        }
    }

    /// Whether the end of the connection was expected. GStreamer's `rtspclientsink` drops its own TEARDOWN in about one of ten cases:
    /// only an RTCP BYE, and sometimes PAUSE, precedes the close.
    fn has_said_goodbye(&self) -> bool {
        self.paused || (!self.tracks.is_empty() && self.tracks.iter().all(|track| track.bye))
    }
}

/// Processes what publishers of the stream send, until `stop`. Messages for them go to `tell`, with the shard and the session. Never
/// holds a borrow over an `await`.
pub async fn run<P: StreamSink>(
    spec: PublisherSpec,
    source: Rc<Source>,
    publisher: P,
    mut messages: mpsc::UnboundedReceiver<FromShard>,
    tell: impl Fn(u16, SessionKey, PublisherVerdict),
    mut stop: watch::Receiver<bool>,
) {
    let mut host = Host {
        feed: Feed::new(&spec.name, &source, publisher).with_news(spec.news.clone()),
        spec: &spec,
        verdicts: tell,
        current: None,
        ended: VecDeque::new(),
    };
    let _runs = Runs::new(&source, Running::Session);
    host.begin(&source);
    let mut held = source.held.subscribe();
    loop {
        let reference = *held.borrow_and_update();
        if let Some(reference) = reference
            && messages.is_empty()
        {
            source.deposit.replace(Deposit::new(&host.save(reference), Vec::new()));
        }
        let due = host.deadline().filter(|_| reference.is_none());
        let message = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            message = messages.recv() => match message {
                Some(message) => Some(message),
                None => break,
            },
            // Its sender is the source's own.
            _ = held.changed() => {
                host.resume(Instant::now());
                continue;
            }
            () = async { match due { Some(due) => sleep_until(due.into()).await, None => std::future::pending().await } } => None,
        };
        if let Some(message) = message {
            host.absorb(message, &mut messages);
        }
        if reference.is_none() {
            host.tick(Instant::now(), messages.is_empty());
        }
        if !messages.is_empty() {
            // Waiting messages are ready at once, so a publisher that never pauses would monopolize the thread.
            tokio::task::yield_now().await;
        }
    }
    if let Some(Current { shard, session, .. }) = host.current.take() {
        // The next publisher must not find the place taken by one that nobody serves any more.
        host.tell(shard, session, PublisherVerdict::End(EndReason::Reconfigured));
    }
    host.feed.disconnected();
    host.feed.state(SourceState::Down);
}

fn packet_bytes((_, _, what): &FromShard) -> usize {
    if let Publishing::Packet { packet, .. } = what { packet.len() } else { 0 }
}

struct Host<'a, P, T> {
    feed: Feed<'a, P>,
    spec: &'a PublisherSpec,
    /// Where verdicts go.
    verdicts: T,
    current: Option<Current>,
    /// The most recently ended publishers, at most [`ENDED_KEPT`].
    ended: VecDeque<SessionKey>,
}

impl<P: StreamSink, T: Fn(u16, SessionKey, PublisherVerdict)> Host<'_, P, T> {
    /// Waits for the first publisher, or continues with that of another process.
    fn begin(&mut self, source: &Source) {
        self.feed.tell_restored();
        let resumed = source.resume.take().and_then(Resume::of::<Option<PublisherSession>>);
        if let Some((Some(session), _, reference)) = resumed {
            self.feed.restore(reference, session.feed);
            self.feed.tell_news(SourceNews::Publisher(true));
            self.current = Some(Current::restore(reference, session));
            self.resume(Instant::now());
            return;
        }
        self.feed.state(SourceState::Down);
        self.feed.waits_for(WAITING);
        info!(stream = %self.spec.name, "{WAITING}");
    }

    /// Processes a message and those that wait behind it, as many as one turn allows.
    fn absorb(&mut self, message: FromShard, messages: &mut mpsc::UnboundedReceiver<FromShard>) {
        let mut bytes = packet_bytes(&message);
        self.message(message);
        for _ in 1..ABSORB_MAX {
            if bytes >= ABSORB_BYTES_MAX {
                break;
            }
            let Ok(message) = messages.try_recv() else { break };
            bytes += packet_bytes(&message);
            self.message(message);
        }
    }

    /// Nothing was read until `now`, or is from now on: the publisher is not silent for that.
    fn resume(&mut self, now: Instant) {
        if let Some(current) = &mut self.current {
            current.heard = now;
        }
    }

    /// The active publisher, for another process.
    fn save(&self, reference: Instant) -> Option<PublisherSession> {
        let feed = self.feed.save(reference);
        self.current.as_ref().map(|current| current.save(reference, feed))
    }

    /// Notifies a publisher; of its end only once.
    fn tell(&mut self, shard: u16, session: SessionKey, verdict: PublisherVerdict) {
        if let PublisherVerdict::End(_) = verdict {
            if self.ended.contains(&session) {
                return;
            }
            self.ended.truncate(ENDED_KEPT - 1);
            self.ended.push_front(session);
        }
        (self.verdicts)(shard, session, verdict);
    }

    fn message(&mut self, (shard, session, what): FromShard) {
        let of_current = self.current.as_ref().is_some_and(|current| current.session == session);
        match what {
            Publishing::Record { peer, tracks } => self.record(shard, session, peer, tracks),
            Publishing::Packet { track, rtcp, received, packet, .. } if of_current => {
                let Some(current) = self.current.as_mut().filter(|current| !current.paused) else { return };
                let Some(track) = current.tracks.get_mut(usize::from(track.0)) else { return };
                if rtcp {
                    track.bye |= says_bye(&packet);
                    // Sender reports do not count as media: an encoder can hang while they continue.
                    if let Some(report) = sender_report(&packet) {
                        self.feed.sender_report(track.id, received, report);
                    }
                    return;
                }
                current.heard = received;
                let feed = &mut self.feed;
                let PublishedTrack { id, reorder, bye } = track;
                *bye = false;
                reorder.push(received, &packet, &mut |received, packet| feed.packet(*id, received, packet));
            }
            Publishing::Paused if of_current => self.pause(),
            Publishing::Ended(EndReason::Teardown) if of_current => self.finished("it sent TEARDOWN"),
            Publishing::Ended(EndReason::Disconnected) if of_current && self.has_said_goodbye() => {
                self.finished("it closed its connection after PAUSE or RTCP BYE");
            }
            Publishing::Ended(reason) if of_current => self.gone(&reason.to_string()),
            // From one that has been ended already, which is not notified again; or from one that was active before the source was
            // restarted, which has to start again in any case.
            Publishing::Packet { .. } => self.tell(shard, session, PublisherVerdict::End(EndReason::Panicked)),
            Publishing::Paused | Publishing::Ended(_) => {}
        }
    }

    fn record(&mut self, shard: u16, session: SessionKey, peer: SocketAddr, tracks: Vec<SourceTrack>) {
        let goes_on = self.current.as_ref().is_some_and(|current| current.session == session);
        if let Some(current) = self.current.as_ref().filter(|_| !goes_on) {
            let name = self.feed.name;
            if !self.spec.rules.borrow().takeover {
                warn!(stream = %name, publisher = %peer, %session, sending = %current.peer,
                    "refused: another publisher is active (with takeover = true the newest one takes over)");
                return self.tell(shard, session, PublisherVerdict::Refuse(BUSY));
            }
            info!(stream = %name, publisher = %peer, %session, from = %current.peer, "takes the stream over");
            let (shard, session) = (current.shard, current.session);
            self.tell(shard, session, PublisherVerdict::End(EndReason::TakenOver));
            self.feed.disconnected();
        }
        let what = if goes_on { "publishes again" } else { "publishes" };
        info!(stream = %self.feed.name, publisher = %peer, %session, "{what}");
        self.tell(shard, session, PublisherVerdict::Go);
        self.feed.has_waited_for(WAITING);
        self.feed.tell_news(SourceNews::Publisher(true));
        self.feed.state(SourceState::Connecting);
        self.feed.tell_live = true;
        let places = self.feed.connected(tracks);
        let tracks =
            places.into_iter().map(|id| PublishedTrack { id, reorder: Reorder::default(), bye: false }).collect();
        let heard = Instant::now();
        self.current = Some(Current { shard, session, peer, heard, paused: false, tracks });
    }

    /// The publisher sends nothing until it sends RECORD again, limited by its session's own timeout. Like after an interruption, its
    /// tracks then continue at a keyframe.
    fn pause(&mut self) {
        let Some(current) = self.current.as_mut().filter(|current| !current.paused) else { return };
        current.paused = true;
        self.feed.disconnected();
        self.feed.state(SourceState::Down);
        info!(stream = %self.feed.name, publisher = %current.peer, session = %current.session, "pauses");
    }

    /// The publisher has sent BYE, which is not a failure.
    fn finished(&mut self, how: &str) {
        let Some(current) = self.current.take() else { return };
        self.feed.tell_news(SourceNews::Publisher(false));
        self.feed.disconnected();
        self.feed.state(SourceState::Down);
        self.feed.waits_for(WAITING);
        info!(stream = %self.feed.name, publisher = %current.peer, session = %current.session,
            "stopped publishing: {how}; waiting for the next one");
    }

    fn has_said_goodbye(&self) -> bool {
        self.current.as_ref().is_some_and(Current::has_said_goodbye)
    }

    fn gone(&mut self, why: &str) {
        let Some(current) = self.current.take() else { return };
        self.feed.tell_news(SourceNews::Publisher(false));
        self.feed.disconnected();
        let fault = Fault::PublisherGone(why.to_owned());
        self.feed.failed(&fault, None);
        warn!(stream = %self.feed.name, publisher = %current.peer, session = %current.session, "{fault}");
    }

    /// When [`Host::tick`] is due.
    fn deadline(&self) -> Option<Instant> {
        let current = self.current.as_ref().filter(|current| !current.paused)?;
        let PublisherRules { quiet, silence, .. } = *self.spec.rules.borrow();
        let silent = current.heard + if self.feed.is_silent() { silence } else { quiet.min(silence / 2) };
        let held = current.tracks.iter().filter_map(|track| track.reorder.deadline()).min();
        [Some(silent), held, self.feed.deadline()].into_iter().flatten().min()
    }

    /// Time has passed. `drained` is whether all waiting messages have been processed.
    fn tick(&mut self, now: Instant, drained: bool) {
        let Some(current) = self.current.as_mut().filter(|current| !current.paused) else { return };
        for track in &mut current.tracks {
            let feed = &mut self.feed;
            let id = track.id;
            track.reorder.tick(now, &mut |received, packet| feed.packet(id, received, packet));
        }
        if drained {
            self.feed.drained(now);
        }
        self.feed.tick(now, SystemTime::now());
        let (shard, session, heard) = (current.shard, current.session, current.heard);
        let PublisherRules { quiet, silence, .. } = *self.spec.rules.borrow();
        let quiet = quiet.min(silence / 2);
        if now >= heard + silence {
            let goodbye = current.has_said_goodbye();
            self.tell(shard, session, PublisherVerdict::End(EndReason::Silent));
            if goodbye {
                self.finished("it sent RTCP BYE");
            } else {
                self.gone(&EndReason::Silent.to_string());
            }
        } else if now >= heard + quiet && !self.feed.is_silent() {
            self.feed.silent(now, quiet);
        }
    }
}

/// The first sender report of a compound packet.
fn sender_report(compound: &[u8]) -> Option<SenderReport> {
    rtcp::parse(compound).flatten().find_map(|packet| match packet {
        rtcp::Packet::SenderReport { ntp, rtp_time, .. } => Some(SenderReport { ntp, rtp_time }),
        _ => None,
    })
}

/// Whether a compound packet says that its sender leaves (RFC 3550 section 6.6).
fn says_bye(compound: &[u8]) -> bool {
    rtcp::parse(compound).flatten().any(|packet| matches!(packet, rtcp::Packet::Goodbye(_)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::source::pipeline::Pipeline;
    use crate::source::publishing::Backlog;
    use crate::source::tests::Collector;

    /// A stream without takeover, whose publishers are on one shard.
    struct Rig {
        tell: mpsc::UnboundedSender<FromShard>,
        told: mpsc::UnboundedReceiver<(u64, PublisherVerdict)>,
        stop: watch::Sender<bool>,
    }

    impl Rig {
        fn tell(&self, session: u64, what: Publishing) {
            self.tell.send((0, SessionKey(session), what)).expect("somebody listens");
        }

        fn record(&self, session: u64) {
            let peer = "127.0.0.1:9".parse().expect("an address");
            self.tell(session, Publishing::Record { peer, tracks: Vec::new() });
        }

        fn packet(&self, session: u64) {
            let packet = Bytes::from_static(b"packet");
            let held = Backlog::default().hold(&packet).expect("room");
            let (track, received) = (TrackId(0), Instant::now());
            self.tell(session, Publishing::Packet { track, rtcp: false, received, packet, held });
        }

        /// The next verdict, and whose it is.
        async fn verdict(&mut self) -> (u64, PublisherVerdict) {
            self.told.recv().await.expect("a verdict")
        }
    }

    fn with_stream<T: Future<Output = ()>>(test: impl FnOnce(Rig) -> T) {
        with_source(async |rig, _, _| test(rig).await);
    }

    /// The test also gets the stream's source and rules.
    fn with_source(test: impl AsyncFnOnce(Rig, Rc<Source>, watch::Sender<PublisherRules>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (verdicts, told) = mpsc::unbounded_channel();
        let (tell, messages) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let second = Duration::from_secs(1);
        let (rules, seen) = watch::channel(PublisherRules { takeover: false, quiet: second, silence: 10 * second });
        let spec = PublisherSpec { news: None, name: "live".to_owned(), rules: seen };
        let source = Source::new(Pipeline::new(7));
        // Those that come when the test is over are read by nobody.
        let answer = move |_, SessionKey(session), verdict| {
            let _ = verdicts.send((session, verdict));
        };
        let run = run(spec, Rc::clone(&source), Collector::default(), messages, answer, stopped);
        let test = test(Rig { tell, told, stop }, source, rules);
        let both = async { tokio::join!(run, test) };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), both).await }).expect("in time");
    }

    #[test]
    fn a_publisher_is_ended_when_its_stream_is_received_no_more() {
        with_stream(async |mut rig| {
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rig.stop.send(true).expect("somebody listens");
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::End(EndReason::Reconfigured))));
        });
    }

    #[test]
    fn a_second_publisher_is_refused_and_the_first_sends_on() {
        with_stream(async |mut rig| {
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rig.record(8);
            assert!(matches!(rig.verdict().await, (8, PublisherVerdict::Refuse(BUSY))));
            rig.packet(7);
            rig.stop.send(true).expect("somebody listens");
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::End(EndReason::Reconfigured))));
        });
    }

    #[test]
    fn who_sends_without_being_known_is_ended_whether_another_sends_or_not() {
        with_stream(async |mut rig| {
            // Once, whatever it sent before it was notified.
            rig.packet(6);
            rig.packet(6);
            assert!(matches!(rig.verdict().await, (6, PublisherVerdict::End(EndReason::Panicked))));
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rig.packet(6);
            rig.packet(8);
            assert!(matches!(rig.verdict().await, (8, PublisherVerdict::End(EndReason::Panicked))));
            rig.stop.send(true).expect("somebody listens");
        });
    }

    #[test]
    fn a_publisher_that_says_goodbye_has_not_failed() {
        for (reason, failures) in [(EndReason::Teardown, 0), (EndReason::Disconnected, 1)] {
            with_source(async |mut rig, source, _| {
                rig.record(7);
                assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
                rig.tell(7, Publishing::Ended(reason));
                // The next one is accepted: the end has been processed.
                rig.record(8);
                assert!(matches!(rig.verdict().await, (8, PublisherVerdict::Go)));
                let status = source.status.borrow();
                assert_eq!((status.failures, status.fault.is_some()), (failures, failures > 0), "{reason:?}");
                rig.stop.send(true).expect("somebody listens");
            });
        }
    }

    #[test]
    fn a_connection_that_closes_after_bye_or_pause_has_not_failed() {
        let bye = Bytes::from_static(b"\x81\xcb\0\x01\0\0\0\x07");
        let media = Bytes::from_static(b"\x80\xe0\0\x01\0\0\0\0\0\0\0\x07\x65\x88\x80");
        let packet = |rtcp, packet: &Bytes| {
            let held = Backlog::default().hold(packet).expect("room");
            Publishing::Packet { track: TrackId(0), rtcp, received: Instant::now(), packet: packet.clone(), held }
        };
        let goodbye = || packet(true, &bye);
        for (said, failures) in [
            (vec![goodbye()], 0),
            (vec![Publishing::Paused], 0),
            // A sender that changes its SSRC sends BYE for the old one and continues.
            (vec![goodbye(), packet(false, &media)], 1),
        ] {
            with_source(async |mut rig, source, _| {
                let peer = "127.0.0.1:9".parse().expect("an address");
                let tracks = vec![SourceTrack {
                    media: "video".to_owned(),
                    encoding: "H264".to_owned(),
                    payload_type: 96,
                    clock_rate: 90_000,
                    channels: None,
                    fmtp: None,
                    attributes: Vec::new(),
                }];
                rig.tell(7, Publishing::Record { peer, tracks });
                assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
                let case = format!("{said:?}");
                for what in said {
                    rig.tell(7, what);
                }
                rig.tell(7, Publishing::Ended(EndReason::Disconnected));
                rig.record(8);
                assert!(matches!(rig.verdict().await, (8, PublisherVerdict::Go)));
                assert_eq!(source.status.borrow().failures, failures, "{case}");
                rig.stop.send(true).expect("somebody listens");
            });
        }
    }

    #[test]
    fn a_publisher_that_pauses_keeps_its_place_and_is_not_taken_for_silent() {
        with_source(async |mut rig, _, rules| {
            let moment = Duration::from_millis(1);
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rules.send_modify(|rules| (rules.quiet, rules.silence) = (moment, 2 * moment));
            rig.tell(7, Publishing::Paused);
            // If it were considered silent, its end would be reported before the other's refusal.
            tokio::time::sleep(20 * moment).await;
            rig.record(8);
            assert!(matches!(rig.verdict().await, (8, PublisherVerdict::Refuse(BUSY))));
            rules.send_modify(|rules| rules.silence = Duration::from_secs(10));
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rig.stop.send(true).expect("somebody listens");
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::End(EndReason::Reconfigured))));
        });
    }

    #[test]
    fn who_may_take_over_is_decided_by_the_rules_of_now() {
        with_source(async |mut rig, _, rules| {
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::Go)));
            rig.record(8);
            assert!(matches!(rig.verdict().await, (8, PublisherVerdict::Refuse(BUSY))));
            rules.send_modify(|rules| rules.takeover = true);
            rig.record(9);
            assert!(matches!(rig.verdict().await, (7, PublisherVerdict::End(EndReason::TakenOver))));
            assert!(matches!(rig.verdict().await, (9, PublisherVerdict::Go)));
            rig.stop.send(true).expect("somebody listens");
        });
    }
}
