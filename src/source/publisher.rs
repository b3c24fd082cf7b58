//! A source that publishes to the relay, instead of being pulled.

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
    let mut host = Host { feed: Feed::new(&spec.name, &source, publisher), spec: &spec, shards, current: None };
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
}

impl<P: Publish> Host<'_, P> {
    fn tell(&self, shard: u16, session: SessionKey, verdict: Verdict) {
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
            // Of one that the source knew before it was started again: it has to begin anew, too.
            Publishing::Packet { .. } if self.current.is_none() => {
                self.tell(shard, session, Verdict::End(EndReason::Panicked));
            }
            // Of one that has been ended here already.
            Publishing::Packet { .. } | Publishing::Ended(_) => {}
        }
    }

    fn record(&mut self, shard: u16, session: SessionKey, peer: SocketAddr, tracks: Vec<SourceTrack>) {
        if let Some(current) = &self.current {
            let name = self.feed.name;
            if !self.spec.takeover {
                warn!(stream = name, publisher = %peer, sending = %current.peer,
                    "refused: another publisher sends (takeover = true lets the newest one send)");
                return self.tell(shard, session, Verdict::Refuse(BUSY));
            }
            info!(stream = name, publisher = %peer, from = %current.peer, "takes the stream over");
            self.tell(current.shard, current.session, Verdict::End(EndReason::TakenOver));
            self.feed.disconnected();
        }
        info!(stream = self.feed.name, publisher = %peer, "publishes");
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
        warn!(stream = self.feed.name, publisher = %current.peer, "{fault}");
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

    use super::*;
    use crate::shard::inbox;
    use crate::source::pipeline::Pipeline;
    use crate::source::tests::Collector;

    #[test]
    fn a_publisher_is_ended_when_its_stream_is_received_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (shard, mut told) = inbox::channel();
        let (tell, messages) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let second = Duration::from_secs(1);
        let spec = PublisherSpec { name: "live".to_owned(), takeover: false, quiet: second, silence: 10 * second };
        let session = SessionKey(7);
        let run = run(spec, Source::new(Pipeline::new(7)), Collector::default(), messages, vec![shard], stopped);
        let test = async {
            let record = Publishing::Record { peer: "127.0.0.1:9".parse().expect("an address"), tracks: Vec::new() };
            tell.send((0, session, record)).expect("somebody listens");
            let verdict = poll_fn(|cx| told.poll_recv(cx)).await;
            assert!(matches!(verdict, Some(ToShard::Publisher(key, Verdict::Go)) if key == session));
            stop.send(true).expect("somebody listens");
            let verdict = poll_fn(|cx| told.poll_recv(cx)).await;
            assert!(
                matches!(verdict, Some(ToShard::Publisher(key, Verdict::End(EndReason::Reconfigured))) if key == session)
            );
        };
        let both = async { tokio::join!(run, test) };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), both).await }).expect("in time");
    }
}
