//! A source that publishes to the relay, instead of being pulled.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::camera::Report;
use super::fault::Fault;
use super::feed::Feed;
use super::pipeline::{Publish, SourceTrack};
use super::reorder::Reorder;
use super::supervisor::{Source, stopped};
use crate::session::{EndReason, SessionKey};
use crate::shard::inbox::{Publishing, ShardSender, SourceState, ToShard, Verdict};
use crate::wire::rtcp;

/// The status for a publisher that comes while another one sends.
const BUSY: u16 = 503;

/// Messages that are taken in before others get their turn.
const ABSORB_MAX: usize = 256;

/// Publishers of which it is remembered that they have been ended: what they sent before they heard of it still comes.
const ENDED_KEPT: usize = 16;

/// What a publisher of the stream does: on which shard, in which session.
pub type FromShard = (u16, SessionKey, Publishing);

/// How a published stream is kept.
#[derive(Clone, Debug)]
pub struct PublisherSpec {
    /// The stream's name, for the log.
    pub name: String,
    /// Whether a second publisher takes over from the first; else it is refused.
    pub takeover: bool,
    /// Time without a packet after which a publisher is told of as silent.
    pub quiet: Duration,
    /// Time without a packet after which it is ended.
    pub silence: Duration,
}

/// The publisher that sends now.
struct Current {
    shard: u16,
    session: SessionKey,
    peer: SocketAddr,
    /// When its newest packet came, or it began.
    heard: Instant,
    /// A track's packets are put in order again.
    tracks: Vec<Reorder>,
}

/// Takes in what publishers of the stream send, until `stop`. Never holds a borrow over an `await`.
pub async fn run<P: Publish>(
    spec: PublisherSpec,
    source: std::rc::Rc<Source>,
    publisher: P,
    mut messages: mpsc::UnboundedReceiver<FromShard>,
    shards: Vec<ShardSender>,
    mut stop: watch::Receiver<bool>,
) {
    let mut host = Host {
        feed: Feed::new(&spec.name, &source, publisher),
        spec: &spec,
        shards,
        current: None,
        ended: VecDeque::new(),
    };
    host.feed.state(SourceState::Down);
    loop {
        let due = host.deadline();
        let message = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            message = messages.recv() => match message {
                Some(message) => Some(message),
                None => break,
            },
            () = async { match due { Some(due) => sleep_until(due.into()).await, None => std::future::pending().await } } => None,
        };
        if let Some(message) = message {
            host.message(message);
            for _ in 1..ABSORB_MAX {
                let Ok(message) = messages.try_recv() else { break };
                host.message(message);
            }
        }
        host.tick(Instant::now(), messages.is_empty());
    }
    if let Some(Current { shard, session, .. }) = host.current.take() {
        // Who publishes next is not to find somebody in the place whom nobody listens to.
        host.tell(shard, session, Verdict::End(EndReason::Reconfigured));
    }
    host.feed.disconnected();
    host.feed.state(SourceState::Down);
}

struct Host<'a, P> {
    feed: Feed<'a, P>,
    spec: &'a PublisherSpec,
    shards: Vec<ShardSender>,
    current: Option<Current>,
    /// Who was ended last, at most [`ENDED_KEPT`].
    ended: VecDeque<SessionKey>,
}

impl<P: Publish> Host<'_, P> {
    /// Tells a publisher; of its end only once.
    fn tell(&mut self, shard: u16, session: SessionKey, verdict: Verdict) {
        if let Verdict::End(_) = verdict {
            if self.ended.contains(&session) {
                return;
            }
            self.ended.truncate(ENDED_KEPT - 1);
            self.ended.push_front(session);
        }
        if let Some(shard) = self.shards.get(usize::from(shard)) {
            shard.tell(ToShard::Publisher(session, verdict));
        }
    }

    fn message(&mut self, (shard, session, what): FromShard) {
        let of_current = self.current.as_ref().is_some_and(|current| current.session == session);
        match what {
            Publishing::Record { peer, tracks } => self.record(shard, session, peer, tracks),
            Publishing::Packet { track, rtcp, received, packet, .. } if of_current => {
                let Some(current) = &mut self.current else { return };
                if rtcp {
                    // Its sender reports do not count as media: an encoder can hang while they go on.
                    if let Some(report) = sender_report(&packet) {
                        self.feed.sender_report(track, received, report);
                    }
                    return;
                }
                let Some(reorder) = current.tracks.get_mut(usize::from(track.0)) else { return };
                current.heard = received;
                let feed = &mut self.feed;
                reorder.push(received, packet, &mut |received, packet| feed.packet(track, received, &packet));
            }
            Publishing::Ended(reason) if of_current => self.gone(&reason.to_string()),
            // Of one that has been ended here already, which is not told again; or of one that the source knew before it was
            // started again, who has to begin anew whether another publisher has come meanwhile or not.
            Publishing::Packet { .. } => self.tell(shard, session, Verdict::End(EndReason::Panicked)),
            Publishing::Ended(_) => {}
        }
    }

    fn record(&mut self, shard: u16, session: SessionKey, peer: SocketAddr, tracks: Vec<SourceTrack>) {
        if let Some(current) = &self.current {
            let name = self.feed.name;
            if !self.spec.takeover {
                warn!(stream = %name, publisher = %peer, %session, sending = %current.peer,
                    "refused: another publisher sends (takeover = true lets the newest one send)");
                return self.tell(shard, session, Verdict::Refuse(BUSY));
            }
            info!(stream = %name, publisher = %peer, %session, from = %current.peer, "takes the stream over");
            let (shard, session) = (current.shard, current.session);
            self.tell(shard, session, Verdict::End(EndReason::TakenOver));
            self.feed.disconnected();
        }
        info!(stream = %self.feed.name, publisher = %peer, %session, "publishes");
        self.tell(shard, session, Verdict::Go);
        self.feed.state(SourceState::Connecting);
        self.feed.tell_live = true;
        let reorders = tracks.iter().map(|_| Reorder::default()).collect();
        self.feed.connected(tracks);
        self.current = Some(Current { shard, session, peer, heard: Instant::now(), tracks: reorders });
    }

    fn gone(&mut self, why: &str) {
        let Some(current) = self.current.take() else { return };
        self.feed.disconnected();
        let fault = Fault::PublisherGone(why.to_owned());
        self.feed.failed(&fault);
        warn!(stream = %self.feed.name, publisher = %current.peer, session = %current.session, "{fault}");
    }

    /// When [`Host::tick`] is due.
    fn deadline(&self) -> Option<Instant> {
        let current = self.current.as_ref()?;
        let quiet = self.spec.quiet.min(self.spec.silence / 2);
        let silent = current.heard + if self.feed.is_silent() { self.spec.silence } else { quiet };
        let held = current.tracks.iter().filter_map(Reorder::deadline).min();
        [Some(silent), held, self.feed.deadline()].into_iter().flatten().min()
    }

    /// Time has passed. `drained` is whether all that waited has been taken in.
    fn tick(&mut self, now: Instant, drained: bool) {
        let Some(current) = &mut self.current else { return };
        for (track, reorder) in (0u8..).map(crate::stream::TrackId).zip(&mut current.tracks) {
            let feed = &mut self.feed;
            reorder.tick(now, &mut |received, packet| feed.packet(track, received, &packet));
        }
        if drained {
            self.feed.drained(now);
        }
        self.feed.tick(now, SystemTime::now());
        let (shard, session, heard) = (current.shard, current.session, current.heard);
        let quiet = self.spec.quiet.min(self.spec.silence / 2);
        if now >= heard + self.spec.silence {
            self.tell(shard, session, Verdict::End(EndReason::Silent));
            self.gone(&EndReason::Silent.to_string());
        } else if now >= heard + quiet && !self.feed.is_silent() {
            self.feed.silent(now, quiet);
        }
    }
}

/// The first sender report of a compound packet.
fn sender_report(compound: &[u8]) -> Option<Report> {
    rtcp::parse(compound).flatten().find_map(|packet| match packet {
        rtcp::Packet::SenderReport { ntp, rtp_time, .. } => Some(Report { ntp, rtp_time }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;

    use super::*;
    use crate::shard::inbox::{self, Backlog, ShardReceiver};
    use crate::source::pipeline::Pipeline;
    use crate::source::tests::Collector;
    use crate::stream::TrackId;

    /// A stream without takeover, whose publishers are on one shard.
    struct Rig {
        tell: mpsc::UnboundedSender<FromShard>,
        told: ShardReceiver,
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
        async fn verdict(&mut self) -> (u64, Verdict) {
            match poll_fn(|cx| self.told.poll_recv(cx)).await {
                Some(ToShard::Publisher(SessionKey(session), verdict)) => (session, verdict),
                _ => panic!("no verdict"),
            }
        }
    }

    fn with_stream<T: Future<Output = ()>>(test: impl FnOnce(Rig) -> T) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shard, told) = inbox::channel();
        let (tell, messages) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let second = Duration::from_secs(1);
        let spec = PublisherSpec { name: "live".to_owned(), takeover: false, quiet: second, silence: 10 * second };
        let run = run(spec, Source::new(Pipeline::new(7)), Collector::default(), messages, vec![shard], stopped);
        let test = test(Rig { tell, told, stop });
        let both = async { tokio::join!(run, test) };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), both).await }).expect("in time");
    }

    #[test]
    fn a_publisher_is_ended_when_its_stream_is_received_no_more() {
        with_stream(async |mut rig| {
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, Verdict::Go)));
            rig.stop.send(true).expect("somebody listens");
            assert!(matches!(rig.verdict().await, (7, Verdict::End(EndReason::Reconfigured))));
        });
    }

    #[test]
    fn a_second_publisher_is_refused_and_the_first_sends_on() {
        with_stream(async |mut rig| {
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, Verdict::Go)));
            rig.record(8);
            assert!(matches!(rig.verdict().await, (8, Verdict::Refuse(BUSY))));
            rig.packet(7);
            rig.stop.send(true).expect("somebody listens");
            assert!(matches!(rig.verdict().await, (7, Verdict::End(EndReason::Reconfigured))));
        });
    }

    #[test]
    fn who_sends_without_being_known_is_ended_whether_another_sends_or_not() {
        with_stream(async |mut rig| {
            // Once, whatever it has sent before it hears of it.
            rig.packet(6);
            rig.packet(6);
            assert!(matches!(rig.verdict().await, (6, Verdict::End(EndReason::Panicked))));
            rig.record(7);
            assert!(matches!(rig.verdict().await, (7, Verdict::Go)));
            rig.packet(6);
            rig.packet(8);
            assert!(matches!(rig.verdict().await, (8, Verdict::End(EndReason::Panicked))));
            rig.stop.send(true).expect("somebody listens");
        });
    }
}
