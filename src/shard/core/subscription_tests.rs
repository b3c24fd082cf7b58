//! Two shards with one stream: what is sent between them, when, and what a client on the other shard gets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log_tests::{ask, client, set_up};
use super::paths::tests::chunk;
use super::streams::{Subscriber, Subscription};
use super::{Core, CoreConfig, Mail, Start, StreamSetup};
use crate::egress::Token;
use crate::egress::sim::SimEgress;
use crate::media::chunk::Chunk;
use crate::media::{SourceState, StreamEvent, StreamId};
use crate::session::{ServerConfig, SessionIds, SessionLimit, fuzz};
use crate::shard::inbox::ToShard;

const STREAM: StreamId = StreamId::first(0);
const HOME: usize = 0;
const OTHER: usize = 1;

/// A home and another shard, with the messages in transit between them.
struct Pair {
    now: Instant,
    shards: [Core<SimEgress>; 2],
    /// By destination shard.
    under_way: [VecDeque<ToShard>; 2],
}

fn core(now: Instant, shard: u16) -> Core<SimEgress> {
    let stream = StreamSetup { home: HOME as u16, ..StreamSetup::plain(STREAM, "front", Start::Cached) };
    let config = CoreConfig {
        age: Duration::from_secs(1),
        log_bytes: 1 << 20,
        stall_timeout: Duration::from_secs(10),
        streams: vec![stream],
        server: ServerConfig {
            shard,
            shards: 2,
            session_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            limit: SessionLimit::new(100),
            udp_ports: None,
            all_ports: None,
            ids: SessionIds::Seeded(u64::from(shard)),
            loads: None,
        },
    };
    Core::new(now, config, SimEgress::new(), None)
}

/// A frame; whether decoding can start at it.
fn frame(number: u64, keyframe: bool, arrival: Instant) -> Arc<Chunk> {
    Arc::new(Chunk { keyframe, rtp_time: number as u32 * 3_600, ..(*chunk(number, arrival)).clone() })
}

impl Pair {
    fn new() -> Pair {
        let now = Instant::now();
        let mut pair = Pair { now, shards: [core(now, 0), core(now, 1)], under_way: Default::default() };
        pair.hosted(StreamEvent::Described(fuzz::description("H264", now)));
        pair.hosted(StreamEvent::State(SourceState::Live));
        pair.settle();
        pair
    }

    /// The source's output.
    fn hosted(&mut self, event: StreamEvent) {
        self.shards[HOME].hosted(self.now, STREAM, event);
        self.post();
    }

    /// Puts the shards' messages to each other in transit.
    fn post(&mut self) {
        for shard in &mut self.shards {
            for Mail { to, what } in shard.take_mail() {
                self.under_way[usize::from(to)].push_back(what);
            }
        }
    }

    /// Delivers one message.
    fn deliver(&mut self, to: usize) -> bool {
        let Some(message) = self.under_way[to].pop_front() else { return false };
        let (now, core) = (self.now, &mut self.shards[to]);
        match message {
            ToShard::Chunk(stream, epoch, chunk) => core.chunk_came(now, stream, epoch, chunk),
            ToShard::Subscribe { stream, shard, epoch } => core.subscribed(stream, shard, epoch),
            ToShard::Unsubscribe { stream, shard, epoch } => core.unsubscribed(stream, shard, epoch),
            ToShard::Snapshot { stream, epoch, snapshot } => core.snapshot_came(now, stream, epoch, *snapshot),
            ToShard::Described(stream, description) => core.described(now, stream, description),
            ToShard::Source(stream, state) => core.source(now, stream, state),
            _ => panic!("unexpected message between shards"),
        }
        self.post();
        true
    }

    /// Delivers all messages in transit.
    fn settle(&mut self) {
        self.post();
        while self.deliver(HOME) || self.deliver(OTHER) {}
    }

    /// Advances the time in which shards run their timers.
    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            self.shards.iter_mut().for_each(|core| core.timeout(self.now));
            self.post();
        }
    }

    /// A client of the other shard sends a request; returns the response once everything has been delivered.
    fn ask(&mut self, token: Token, line: &str, header: &str) -> String {
        let mut answer = ask(&mut self.shards[OTHER], self.now, token, line, header);
        self.settle();
        answer += &self.received(token);
        answer
    }

    fn received(&mut self, token: Token) -> String {
        let core = &mut self.shards[OTHER];
        while core.drive(self.now) | core.reap(self.now) {}
        String::from_utf8_lossy(&core.egress_mut().take_received(token.slot)).into_owned()
    }

    fn subscription(&self) -> Subscription {
        self.shards[OTHER].streams[0].subscription
    }

    /// A client of the other shard with a session.
    fn client(&mut self) -> (Token, String) {
        let token = client(&mut self.shards[OTHER], self.now);
        let session = set_up(&mut self.shards[OTHER], self.now, token, "RTP/AVP/TCP;unicast;interleaved=0-1");
        (token, session)
    }
}

const PLAY: &str = "PLAY rtsp://h/front";

#[test]
fn a_stream_that_nobody_watches_crosses_no_thread() {
    let mut pair = Pair::new();
    for number in 0..100 {
        pair.hosted(StreamEvent::Chunk(frame(number, number % 10 == 0, pair.now)));
    }
    assert!(pair.under_way.iter().all(VecDeque::is_empty));
    assert_eq!((pair.subscription(), pair.shards[OTHER].streams[0].log.bytes()), (Subscription::None, 0));
}

#[test]
fn play_waits_for_the_snapshot_and_begins_at_the_newest_keyframe() {
    let mut pair = Pair::new();
    for number in 0..25 {
        pair.hosted(StreamEvent::Chunk(frame(number, number % 10 == 0, pair.now)));
    }
    let (token, session) = pair.client();
    let before = ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    assert_eq!(before, "", "its stream is not here yet");
    // What the source sends meanwhile follows the snapshot, or is in it.
    pair.post();
    pair.hosted(StreamEvent::Chunk(frame(25, false, pair.now)));
    assert!(pair.deliver(HOME));
    pair.hosted(StreamEvent::Chunk(frame(26, false, pair.now)));
    pair.settle();
    let answer = pair.received(token);
    assert!(answer.contains("seq=20;rtptime=72000"), "{answer}");
    let packets = answer.matches("$\0\0\u{c}").count();
    assert_eq!(packets, 7, "from the keyframe to the newest");
    pair.hosted(StreamEvent::Chunk(frame(27, false, pair.now)));
    pair.settle();
    assert_eq!(pair.received(token).matches("$\0\0\u{c}").count(), 1);
}

#[test]
fn without_a_keyframe_the_answer_names_what_comes_next() {
    let mut pair = Pair::new();
    for number in 0..5 {
        pair.hosted(StreamEvent::Chunk(frame(number, false, pair.now)));
    }
    let (token, session) = pair.client();
    let answer = pair.ask(token, PLAY, &session);
    assert!(answer.contains("seq=5;rtptime=14400"), "{answer}");
}

#[test]
fn what_an_earlier_subscription_left_under_way_is_told_apart() {
    let mut pair = Pair::new();
    pair.hosted(StreamEvent::Chunk(frame(0, true, pair.now)));
    let (token, session) = pair.client();
    pair.ask(token, PLAY, &session);
    let Subscription::Live(first) = pair.subscription() else { panic!("{:?}", pair.subscription()) };
    // Its chunks are in transit while the shard unsubscribes and subscribes again.
    pair.hosted(StreamEvent::Chunk(frame(1, false, pair.now)));
    pair.shards[OTHER].disconnected(pair.now, token);
    let chunk = pair.under_way[OTHER].pop_front();
    pair.wait(1 + crate::limits::SUBSCRIPTION_LINGER_S);
    assert_eq!((pair.subscription(), pair.shards[OTHER].streams[0].log.bytes()), (Subscription::None, 0));
    let (token, session) = pair.client();
    ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    pair.post();
    assert_eq!(pair.subscription(), Subscription::Waiting(first + 1));
    pair.under_way[OTHER].extend(chunk);
    assert!(pair.deliver(OTHER));
    assert_eq!(pair.shards[OTHER].streams[0].log.bytes(), 0);
    pair.settle();
    let answer = pair.received(token);
    assert!(answer.contains("seq=0;") && answer.matches("$\0\0\u{c}").count() == 2, "{answer}");
    // The home has one subscriber, with the newest of its epochs.
    let home = &pair.shards[HOME].streams[0].subscribers;
    assert!(matches!(home[..], [Subscriber { shard: 1, epoch }] if epoch == first + 1), "{home:?}");
}

#[test]
fn who_comes_back_soon_finds_the_stream_still_there() {
    let mut pair = Pair::new();
    pair.hosted(StreamEvent::Chunk(frame(0, true, pair.now)));
    let (token, session) = pair.client();
    pair.ask(token, PLAY, &session);
    let subscription = pair.subscription();
    pair.shards[OTHER].disconnected(pair.now, token);
    pair.wait(crate::limits::SUBSCRIPTION_LINGER_S - 1);
    let (token, session) = pair.client();
    pair.wait(10);
    assert_eq!(pair.subscription(), subscription);
    let answer = ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    assert!(answer.contains("RTP-Info"), "{answer}");
}

#[test]
fn a_session_that_waits_for_its_stream_can_end() {
    let mut pair = Pair::new();
    // It leaves.
    let (token, session) = pair.client();
    ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    pair.shards[OTHER].disconnected(pair.now, token);
    assert!(pair.shards[OTHER].awaiting.is_empty());
    // The stream gets other tracks before its snapshot has arrived.
    let (token, session) = pair.client();
    ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    pair.hosted(StreamEvent::Described(fuzz::description("H265", pair.now)));
    pair.settle();
    assert!(pair.received(token).contains("454") && pair.shards[OTHER].awaiting.is_empty());
    // The stream is removed.
    let (token, session) = pair.client();
    pair.shards[OTHER].streams[0].subscription = Subscription::None;
    ask(&mut pair.shards[OTHER], pair.now, token, PLAY, &session);
    assert_eq!(pair.shards[OTHER].awaiting.len(), 1);
    pair.shards[OTHER].remove_stream(pair.now, STREAM);
    assert!(pair.received(token).contains("454") && pair.shards[OTHER].awaiting.is_empty());
    pair.settle();
}

#[test]
fn what_the_home_says_before_the_stream_is_known_is_not_lost() {
    let Pair { now, shards: [_, mut other], .. } = Pair::new();
    let id = StreamId::first(1);
    other.described(now, id, fuzz::description("H264", now));
    other.source(now, id, SourceState::Live);
    other.set_stream(now, &StreamSetup { home: HOME as u16, ..StreamSetup::plain(id, "new", Start::Cached) });
    let stream = &other.streams[id.index()];
    assert!(stream.description.is_some() && stream.goes_on());
    let client = client(&mut other, now);
    let answer = ask(&mut other, now, client, "DESCRIBE rtsp://h/new", "Accept: application/sdp");
    assert!(answer.starts_with("RTSP/1.0 200"), "{answer}");
    // Nothing is kept of a stream that is gone.
    other.remove_stream(now, id);
    other.source(now, id, SourceState::Down);
    assert!(other.early.is_empty());
}
