//! Several shards with their streams and clients, on a virtual clock: messages between them take time, and some shards are
//! slower than others. [`homes`](crate::homes) and [`names`](crate::names) say what happens.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rtsprelay::egress::sim::SimEgress;
use rtsprelay::egress::{Conn, Token};
use rtsprelay::media::chunk::ChunkKind;
use rtsprelay::media::{SourceState, StreamEvent, StreamId, StreamSink};
use rtsprelay::session::{EndReason, Loads, ServerConfig, SessionIds, SessionKey, SessionLimit};
use rtsprelay::shard::core::{Core, CoreConfig, Mail, Start, StreamSetup};
use rtsprelay::shard::inbox::{ToControl, ToShard};
use rtsprelay::source::news::SourceNews;
use rtsprelay::source::pipeline::Pipeline;
use rtsprelay::source::publishing::{PublisherVerdict, Publishing};

use crate::names::{Names, Pull};

pub const SHARDS: usize = 3;

/// The time from one frame to the next.
pub const FRAME_EVERY: Duration = Duration::from_millis(40);

/// Of ten messages, how many the control thread handles per step.
const CONTROL_PACE: u8 = 8;

/// The start of a frame's packets: what the relay recognizes keyframes by, then the stream's number and the frame's.
const LABEL: usize = 2 + 8 + 8;

/// A message in transit to a shard.
pub enum Note {
    Shard(ToShard),
    /// The stream's source starts.
    Host(StreamId),
}

/// A message in transit to the control thread.
pub enum Told {
    Shard(u16, ToControl),
    Source(StreamId, SourceNews),
}

/// A pipeline's output.
#[derive(Default)]
pub struct Made(pub Vec<StreamEvent>);

impl StreamSink for Made {
    fn accept(&mut self, event: StreamEvent) {
        self.0.push(event);
    }
}

/// A stream with its source.
pub struct Stream {
    pub setup: StreamSetup,
    /// A number that no other stream has, not even one with the same id.
    pub number: u64,
    pub removed: bool,
    /// Shards that have released it.
    pub released: usize,
    /// `None` before its home knows it.
    pub pipeline: Option<Pipeline>,
    publisher: Option<(u16, SessionKey)>,
    /// For one that is pulled.
    pub pull: Option<Pull>,
    /// The newest frame that its source has made, and the newest keyframe.
    newest: Option<u64>,
    keyframe: Option<u64>,
    pub frames_sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    SetsUp,
    Announces,
    AsksToPlay,
    AsksToRecord,
    Plays,
    Publishes,
}

/// A player or a publisher.
#[derive(Debug)]
pub struct Client {
    name: u64,
    pub shard: usize,
    token: Token,
    peer: SocketAddr,
    /// The name of the requested stream.
    pub path: String,
    /// The number of the stream that it gets, once that is known.
    pub number: Option<u64>,
    pub doing: Doing,
    /// When it sent its last request.
    pub asked: Instant,
    session: String,
    buffer: Vec<u8>,
    cseq: u32,
    /// For a player: the next sequence number, and the newest frame that it received.
    next_seq: Option<u16>,
    frame: Option<u64>,
    /// The stream's newest frame when its PLAY was answered.
    begun_at: Option<u64>,
    /// For a publisher: its own numbers, and when it sends next.
    seq: u16,
    sent: u64,
    due: Instant,
}

pub struct World {
    pub rng: fastrand::Rng,
    pub now: Instant,
    pub shards: Vec<Core<SimEgress>>,
    loads: Loads,
    /// By shard.
    pub inboxes: Vec<VecDeque<Note>>,
    /// The control thread's.
    pub control: VecDeque<Told>,
    /// Of ten messages, how many each shard handles per step.
    pub paces: Vec<u8>,
    /// By index.
    pub streams: Vec<Stream>,
    /// The names of all streams so far, by their number.
    named: Vec<String>,
    /// Creates streams by name; `None` if they are configured.
    pub names: Option<Names>,
    pub clients: Vec<Client>,
    come: u64,
    pub chunks_crossed: u64,
    pub played: u64,
    pub moved: u64,
    pub taken_over: u64,
    pub replaced: u64,
    pub digest: u64,
}

impl World {
    /// With this many configured streams that are published.
    pub fn new(seed: u64, streams: usize) -> World {
        let (now, loads) = (Instant::now(), Loads::new(SHARDS));
        let core = |shard: usize| {
            let server = ServerConfig {
                shard: shard as u16,
                shards: SHARDS as u16,
                session_timeout: Duration::from_secs(60),
                handshake_timeout: Duration::from_secs(10),
                limit: SessionLimit::new(100_000),
                udp_ports: None,
                all_ports: None,
                ids: SessionIds::Seeded(seed ^ shard as u64),
                // In every second round no connection moves, and everything that is watched or published crosses threads.
                loads: seed.is_multiple_of(2).then(|| loads.clone()),
            };
            let (age, stall_timeout) = (Duration::from_secs(5), Duration::from_secs(10));
            let config = CoreConfig { age, log_bytes: 1 << 28, stall_timeout, streams: Vec::new(), server };
            Core::new(now, config, SimEgress::new(), None)
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World {
            now,
            shards: (0..SHARDS).map(core).collect(),
            loads: loads.clone(),
            inboxes: (0..SHARDS).map(|_| VecDeque::new()).collect(),
            control: VecDeque::new(),
            paces: (0..SHARDS).map(|_| rng.u8(3..=10)).collect(),
            rng,
            streams: Vec::new(),
            named: Vec::new(),
            names: None,
            clients: Vec::new(),
            come: 0,
            chunks_crossed: 0,
            played: 0,
            moved: 0,
            taken_over: 0,
            replaced: 0,
            digest: 0,
        };
        for place in 0..streams {
            world.start_published(StreamId::first(place as u16));
        }
        world
    }

    fn start_published(&mut self, id: StreamId) {
        let setup = StreamSetup {
            id,
            home: self.rng.usize(..SHARDS) as u16,
            name: format!("s{}", self.named.len()),
            start: Start::Cached,
            published: true,
            made: false,
            on_demand: None,
            first_wait: None,
        };
        self.start_stream(setup, None);
    }

    /// The control thread announces a stream, to its home first, and makes it host the source.
    pub fn start_stream(&mut self, setup: StreamSetup, pull: Option<Pull>) {
        let (id, home) = (setup.id, usize::from(setup.home));
        let others = (0..SHARDS).filter(|shard| *shard != home);
        for shard in [home].into_iter().chain(others) {
            self.inboxes[shard].push_back(Note::Shard(ToShard::Stream(setup.clone())));
        }
        self.inboxes[home].push_back(Note::Host(id));
        let number = self.named.len() as u64;
        self.named.push(setup.name.clone());
        let stream = Stream {
            setup,
            number,
            removed: false,
            released: 0,
            pipeline: None,
            publisher: None,
            pull,
            newest: None,
            keyframe: None,
            frames_sent: 0,
        };
        if id.index() < self.streams.len() {
            self.streams[id.index()] = stream;
        } else {
            self.streams.push(stream);
        }
    }

    /// The stream with this name, if it exists.
    pub fn stream_of(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| !stream.removed && stream.setup.name == name)
    }

    /// The stream that a client gets, if it is known and exists.
    fn stream_for(&self, client: &Client) -> Option<&Stream> {
        self.streams.iter().find(|stream| !stream.removed && Some(stream.number) == client.number)
    }

    pub fn remove_stream(&mut self, place: usize) {
        let stream = &mut self.streams[place];
        if !std::mem::replace(&mut stream.removed, true) {
            let id = stream.setup.id;
            self.inboxes.iter_mut().for_each(|inbox| inbox.push_back(Note::Shard(ToShard::RemoveStream(id))));
        }
    }

    /// Puts the shards' messages to others in transit.
    pub fn post(&mut self) {
        for shard in 0..SHARDS {
            for Mail { to, what } in self.shards[shard].take_mail() {
                self.chunks_crossed += u64::from(matches!(what, ToShard::Chunk(..)));
                match what {
                    ToShard::Publishing { stream, shard: from, session, what } if usize::from(to) == shard => {
                        self.publishing(stream, (from, session), what);
                    }
                    what => self.inboxes[usize::from(to)].push_back(Note::Shard(what)),
                }
            }
            for handover in self.shards[shard].take_handovers() {
                self.move_client(shard, handover.token, usize::from(handover.shard), &handover.unread, handover.moves);
            }
            let told = self.shards[shard].take_outbox().into_iter().map(|message| Told::Shard(shard as u16, message));
            self.control.extend(told);
            let gone = self.shards[shard].take_gone().len() + self.shards[shard].take_lingering().len();
            (0..gone).for_each(|_| self.loads.gone(shard as u16));
        }
    }

    /// The control thread handles the next message.
    fn deliver_to_control(&mut self) -> bool {
        let Some(told) = self.control.pop_front() else { return false };
        match told {
            Told::Shard(_, ToControl::Released { stream: id }) => {
                let stream = &mut self.streams[id.index()];
                assert!(stream.setup.id == id && stream.removed);
                stream.released += 1;
                if stream.released == SHARDS {
                    self.replaced += 1;
                    match &mut self.names {
                        Some(names) => names.free.push(id.next_generation()),
                        None => self.start_published(id.next_generation()),
                    }
                }
            }
            told => {
                if self.names.is_some() {
                    self.told(told);
                }
            }
        }
        true
    }

    fn move_client(&mut self, from: usize, token: Token, to: usize, unread: &[u8], moves: u8) {
        self.moved += 1;
        self.shards[from].egress_mut().renew(token.slot);
        self.loads.gone(from as u16);
        self.loads.come(to as u16);
        let at =
            self.clients.iter().position(|client| (client.shard, client.token) == (from, token)).expect("it is known");
        let local = SocketAddr::from(([127, 0, 0, 1], 8554));
        let peer = self.clients[at].peer;
        let token = self.shards[to].accept(self.now, Conn::Scripted, (peer, local), unread, moves).expect("it runs");
        (self.clients[at].shard, self.clients[at].token) = (to, token);
    }

    /// A shard handles the next message.
    fn deliver(&mut self, shard: usize) -> bool {
        let Some(note) = self.inboxes[shard].pop_front() else { return false };
        let (now, core) = (self.now, &mut self.shards[shard]);
        match note {
            Note::Host(id) => self.hosts(id),
            Note::Shard(message) => match message {
                ToShard::Chunk(stream, epoch, chunk) => core.chunk_came(now, stream, epoch, chunk),
                ToShard::Subscribe { stream, shard, epoch } => core.subscribed(stream, shard, epoch),
                ToShard::Unsubscribe { stream, shard, epoch } => core.unsubscribed(stream, shard, epoch),
                ToShard::Snapshot { stream, epoch, snapshot } => core.snapshot_came(now, stream, epoch, *snapshot),
                ToShard::Described(stream, description) => core.described(now, stream, description),
                ToShard::Source(stream, state) => core.source(now, stream, state),
                ToShard::Stream(setup) => core.set_stream(now, &setup),
                ToShard::RemoveStream(stream) => core.remove_stream(now, stream),
                ToShard::Publisher(session, verdict) => core.publisher(now, session, verdict),
                ToShard::Publishing { stream, shard, session, what } => {
                    self.publishing(stream, (shard, session), what);
                }
                ToShard::Names(names) => core.set_names(names),
                ToShard::NotMade { name, from, why } => core.not_made(now, &name, from, &why),
                ToShard::NotUp(stream, why) => core.not_up(now, stream, &why),
                _ => panic!("nothing else is said here"),
            },
        }
        self.post();
        true
    }

    /// A stream's home starts its source, unless the stream has been removed meanwhile.
    fn hosts(&mut self, id: StreamId) {
        let seed = self.rng.u64(..);
        let stream = &mut self.streams[id.index()];
        if stream.setup.id != id || stream.removed {
            return;
        }
        stream.pipeline = Some(Pipeline::new(seed));
        if stream.pull.is_some() {
            self.hosted(id.index(), StreamEvent::State(SourceState::Idle));
        }
    }

    fn tell(&mut self, (shard, session): (u16, SessionKey), verdict: PublisherVerdict) {
        self.inboxes[usize::from(shard)].push_back(Note::Shard(ToShard::Publisher(session, verdict)));
    }

    /// What a stream's source does with its publishers: the newest replaces the others.
    fn publishing(&mut self, id: StreamId, whose: (u16, SessionKey), what: Publishing) {
        let place = id.index();
        let stream = &mut self.streams[place];
        let is_current = stream.publisher == Some(whose);
        if stream.setup.id != id || stream.removed || stream.pipeline.is_none() {
            if let Publishing::Record { .. } = what {
                self.tell(whose, PublisherVerdict::Refuse(503));
            }
            return;
        }
        let (mut made, now) = (Made::default(), self.now);
        let pipeline = stream.pipeline.as_mut().expect("looked at");
        match what {
            Publishing::Record { tracks, .. } => {
                let before = stream.publisher.replace(whose).filter(|before| *before != whose);
                pipeline.connected(now, tracks, &mut made);
                made.0.push(StreamEvent::State(SourceState::Live));
                if let Some(before) = before {
                    self.taken_over += 1;
                    self.tell(before, PublisherVerdict::End(EndReason::TakenOver));
                }
                self.control.push_back(Told::Source(id, SourceNews::Publisher(true)));
                self.tell(whose, PublisherVerdict::Go);
            }
            Publishing::Packet { track, rtcp: false, received, packet, .. } if is_current => {
                pipeline.packet(track, received, &packet, &mut made);
                pipeline.drained(now, &mut made);
            }
            Publishing::Ended(_) if is_current => {
                stream.publisher = None;
                pipeline.disconnected(&mut made);
                made.0.push(StreamEvent::State(SourceState::Down));
                self.control.push_back(Told::Source(id, SourceNews::Publisher(false)));
            }
            _ => {}
        }
        for event in made.0 {
            self.hosted(place, event);
        }
    }

    /// The source of the stream with this index has something.
    pub fn hosted(&mut self, place: usize, event: StreamEvent) {
        let stream = &mut self.streams[place];
        if let StreamEvent::State(state) = event {
            self.control.push_back(Told::Source(stream.setup.id, SourceNews::State(state)));
        }
        if let StreamEvent::Chunk(chunk) = &event
            && chunk.kind == ChunkKind::Media
        {
            let frame = frame_of(&chunk.bytes[4 + 12..]).1;
            stream.newest = Some(frame);
            stream.keyframe = if chunk.starts_keyframe() { Some(frame) } else { stream.keyframe };
        }
        let (home, id) = (stream.setup.home, stream.setup.id);
        self.shards[usize::from(home)].hosted(self.now, id, event);
    }

    /// Does everything that can be done now, except for messages in transit.
    fn drive(&mut self) {
        for shard in 0..SHARDS {
            let core = &mut self.shards[shard];
            if core.next_timeout(self.now) <= self.now {
                core.timeout(self.now);
            }
            if self.rng.u16(0..500) == 0 {
                core.renew_logs(self.rng.u32(1..));
            }
            while core.reap(self.now) | core.drive(self.now) {}
        }
        self.post();
        let names: Vec<u64> = self.clients.iter().map(|client| client.name).collect();
        for name in names {
            self.receive(name);
        }
        self.post();
    }

    fn receive(&mut self, name: u64) {
        let Some(at) = self.clients.iter().position(|client| client.name == name) else { return };
        let client = &mut self.clients[at];
        let core = &mut self.shards[client.shard];
        client.buffer.extend(core.egress_mut().take_received(client.token.slot));
        let gone = !core.is_there(client.token);
        while let Some(answer) = self.take_piece(at) {
            self.answered(at, &answer);
            if self.clients.get(at).is_none_or(|client| client.name != name) {
                // It has left.
                return;
            }
        }
        let client = &self.clients[at];
        if gone {
            let ended = self.stream_for(client).is_none() && client.doing != Doing::SetsUp;
            assert!(ended || client.doing == Doing::Publishes, "client {} was closed: {client:?}", client.name);
            let client = self.clients.swap_remove(at);
            self.shards[client.shard].egress_mut().renew(client.token.slot);
        }
    }

    /// Takes the next response, and the packets before it.
    fn take_piece(&mut self, at: usize) -> Option<String> {
        loop {
            let client = &mut self.clients[at];
            if client.buffer.first() == Some(&b'$') {
                let len = usize::from(u16::from_be_bytes([*client.buffer.get(2)?, *client.buffer.get(3)?]));
                if client.buffer.len() < 4 + len {
                    return None;
                }
                let packet: Vec<u8> = client.buffer.drain(..4 + len).collect();
                if packet[1] == 0 {
                    self.packet(at, &packet[4..]);
                }
                continue;
            }
            let end = client.buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            return Some(String::from_utf8(client.buffer.drain(..end).collect()).expect("an answer"));
        }
    }

    /// A player receives a packet: the one that its `RTP-Info` named, then each following one, all of its own stream.
    fn packet(&mut self, at: usize, packet: &[u8]) {
        let client = &mut self.clients[at];
        let seq = u16::from_be_bytes([packet[2], packet[3]]);
        assert_eq!(Some(seq), client.next_seq, "client {}: {client:?}", client.name);
        client.next_seq = Some(seq.wrapping_add(1));
        let (number, frame) = frame_of(&packet[12..]);
        assert_eq!(number, *client.number.get_or_insert(number), "another stream's packet");
        assert_eq!(self.named[number as usize], client.path, "a packet of a stream of another name");
        assert!(client.frame.is_some() || packet[13] == 0, "client {} begins without a keyframe", client.name);
        assert!(client.frame.is_none_or(|before| frame >= before));
        client.frame = Some(frame);
        self.digest = self.digest.rotate_left(7) ^ (client.name << 32) ^ u64::from(seq);
    }

    fn request(&mut self, at: usize, method: &str, path: &str, headers: &str, body: &str) {
        let client = &mut self.clients[at];
        client.cseq += 1;
        client.asked = self.now;
        let session =
            if client.session.is_empty() { String::new() } else { format!("Session: {}\r\n", client.session) };
        let text = format!(
            "{method} rtsp://127.0.0.1/{}{path} RTSP/1.0\r\nCSeq: {}\r\n{session}{headers}\r\n{body}",
            client.path, client.cseq
        );
        let (shard, token) = (client.shard, client.token);
        self.shards[shard].input(self.now, token, text.as_bytes());
        self.post();
    }

    fn answered(&mut self, at: usize, answer: &str) {
        let client = &mut self.clients[at];
        if !answer.starts_with("RTSP/1.0 200") {
            // Its stream is gone, or has no media yet, or the shard knows of no stream with a publisher.
            let refused =
                ["404", "405", "454", "503"].iter().any(|status| answer.starts_with(&format!("RTSP/1.0 {status}")));
            assert!(refused, "{answer} to {client:?}");
            if let Some(names) = &mut self.names {
                names.refused(answer, client);
            }
            return self.leave(at);
        }
        if let Some(id) = answer.split_once("Session: ").and_then(|(_, rest)| rest.split(';').next()) {
            client.session = id.to_owned();
        }
        match client.doing {
            Doing::Announces => {
                client.doing = Doing::AsksToRecord;
                let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;mode=record\r\n";
                self.request(at, "SETUP", "/trackID=0", transport, "");
            }
            Doing::AsksToRecord => {
                if answer.contains("Transport: ") {
                    return self.request(at, "RECORD", "", "", "");
                }
                client.doing = Doing::Publishes;
            }
            Doing::SetsUp => {
                client.doing = Doing::AsksToPlay;
                self.request(at, "PLAY", "", "", "");
            }
            Doing::AsksToPlay => {
                client.doing = Doing::Plays;
                let seq = answer.split_once("seq=").and_then(|(_, rest)| rest.split(';').next()?.parse().ok());
                client.next_seq = Some(seq.unwrap_or_else(|| panic!("no RTP-Info in {answer}")));
                let client = &self.clients[at];
                self.clients[at].begun_at = self.stream_for(client).and_then(|stream| stream.newest);
                self.played += 1;
            }
            Doing::Plays | Doing::Publishes => {}
        }
    }

    /// A client connects to a shard and requests a stream: the one with this number, if that is known.
    pub fn join(&mut self, publishes: bool, path: String, number: Option<u64>) {
        let shard = self.rng.usize(..SHARDS);
        self.come += 1;
        let peer = SocketAddr::from(([127, 0, 0, 1 + (self.come % 7) as u8], 1_024 + (self.come % 60_000) as u16));
        let local = SocketAddr::from(([127, 0, 0, 1], 8554));
        let token = self.shards[shard].connected(self.now, Conn::Scripted, peer, local, &[]).expect("it runs");
        self.loads.come(shard as u16);
        self.clients.push(Client {
            name: self.come,
            shard,
            token,
            peer,
            path,
            number,
            asked: self.now,
            doing: if publishes { Doing::Announces } else { Doing::SetsUp },
            session: String::new(),
            buffer: Vec::new(),
            cseq: 0,
            next_seq: None,
            frame: None,
            begun_at: None,
            seq: self.rng.u16(..),
            sent: 0,
            due: self.now,
        });
        let at = self.clients.len() - 1;
        if publishes {
            let sdp = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n\
                       a=rtpmap:96 VP8/90000\r\na=control:trackID=0\r\n";
            let headers = format!("Content-Type: application/sdp\r\nContent-Length: {}\r\n", sdp.len());
            self.request(at, "ANNOUNCE", "", &headers, sdp);
        } else {
            self.request(at, "SETUP", "/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", "");
        }
    }

    pub fn leave(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        let core = &mut self.shards[client.shard];
        core.disconnected(self.now, client.token);
        core.egress_mut().renew(client.token.slot);
        self.post();
    }

    /// Publishers send what is due.
    fn publish(&mut self) {
        for at in 0..self.clients.len() {
            let client = &mut self.clients[at];
            if client.doing != Doing::Publishes || client.due > self.now {
                continue;
            }
            client.due += FRAME_EVERY;
            let of_name = |stream: &&mut Stream| !stream.removed && stream.setup.name == client.path;
            let Some(stream) = self.streams.iter_mut().find(of_name) else { continue };
            stream.frames_sent += 1;
            let label = (stream.number, stream.frames_sent);
            let bytes: Vec<u8> = frame(&mut self.rng, &mut client.seq, &mut client.sent, label)
                .into_iter()
                .flat_map(|rtp| [[b'$', 0].to_vec(), (rtp.len() as u16).to_be_bytes().to_vec(), rtp].concat())
                .collect();
            let (shard, token) = (client.shard, client.token);
            self.shards[shard].input(self.now, token, &bytes);
        }
        self.post();
    }

    /// A moment passes.
    pub fn step(&mut self, elapsed_max_ms: u64) {
        let elapsed = Duration::from_millis(self.rng.u64(1..elapsed_max_ms));
        self.now += elapsed;
        self.shards.iter_mut().for_each(|core| core.egress_mut().advance(elapsed));
        self.publish();
        if self.names.is_some() {
            self.names_step();
        }
        for shard in 0..SHARDS {
            // A busy one falls behind, and then catches up.
            while self.rng.u8(0..10) < self.paces[shard] && self.deliver(shard) {}
        }
        while self.rng.u8(0..10) < CONTROL_PACE && self.deliver_to_control() {}
        self.drive();
    }

    /// Delivers all messages in transit.
    pub fn settle(&mut self) {
        loop {
            let mut any = false;
            while self.deliver_to_control() {
                any = true;
            }
            for shard in 0..SHARDS {
                while self.deliver(shard) {
                    any = true;
                }
            }
            self.drive();
            if !any && self.control.is_empty() && self.inboxes.iter().all(VecDeque::is_empty) {
                break;
            }
        }
        for client in self.clients.iter().filter(|client| client.doing == Doing::Plays) {
            let Some(stream) = self.stream_for(client) else { continue };
            let owed = stream.keyframe.is_some_and(|keyframe| client.begun_at.is_none_or(|begun| keyframe > begun));
            assert!(client.frame.is_some() || !owed, "client {} has missed a keyframe: {client:?}", client.name);
            assert!(client.frame.is_none() || client.frame == stream.newest, "client {} lacks frames", client.name);
        }
    }
}

/// The packets of a frame, one to three; every twelfth frame and the first are keyframes. `seq` and `sent` belong to its sender; the label
/// has the stream's number and the frame's.
pub fn frame(rng: &mut fastrand::Rng, seq: &mut u16, sent: &mut u64, label: (u64, u64)) -> Vec<Vec<u8>> {
    let (packets, keyframe) = (rng.u64(1..=3), sent.is_multiple_of(12));
    let made = (0..packets).map(|packet| {
        let mut rtp = vec![0x80, 96 | if packet + 1 == packets { 0x80 } else { 0 }];
        rtp.extend(seq.to_be_bytes());
        rtp.extend((*sent as u32 * 3_600).to_be_bytes());
        rtp.extend([0, 0, 0, 7]);
        // VP8 (RFC 7741): the start of a partition only in the first packet.
        rtp.extend([if packet == 0 { 0x10 } else { 0 }, u8::from(!keyframe)]);
        rtp.extend(label.0.to_be_bytes());
        rtp.extend(label.1.to_be_bytes());
        *seq = seq.wrapping_add(1);
        rtp
    });
    let made = made.collect();
    *sent += 1;
    made
}

/// The stream's number and the frame's in a payload.
fn frame_of(payload: &[u8]) -> (u64, u64) {
    assert!(payload.len() >= LABEL);
    let number = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
    (number(2), number(10))
}
