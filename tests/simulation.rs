//! Thousands of simulated clients that join, leave, stall, crawl, pause and recover, on a virtual clock, against the real shard:
//! its RTSP server, log, cursors and operations, with a scripted egress in the place of the kernel.
//!
//! Every run prints its seed; `RTSPRELAY_SIM_SEED=… cargo test --test simulation` plays it again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rtsprelay::egress::sim::{Reading, SimEgress};
use rtsprelay::egress::{Conn, Datagram, Token};
use rtsprelay::limits::{OP_BYTES_MAX, SKIP_KEPT_S};
use rtsprelay::metrics::ReportRequest;
use rtsprelay::session::{ServerConfig, SessionIds, SessionLimit};
use rtsprelay::shard::core::{Core, CoreConfig, Start, StreamSetup, UdpSockets};
use rtsprelay::stream::chunk::{Chunk, ChunkKind, Span, cut_runs};
use rtsprelay::stream::{Description, StreamId, Track, TrackId};

const STREAM: StreamId = StreamId(0);
const AGE: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(10);
/// What a log holds in most rounds: more than there ever is to hold.
const LOG_BYTES: usize = 32 * 1024 * 1024;
/// Magic, frame number, packet number, packets of the frame, keyframe: what each simulated packet says of itself.
const LABEL_BYTES: usize = 8 + 4 + 4 + 1;
const RTP_HEADER_BYTES: usize = 12;

/// A camera that makes video frames of one to many chunks, and audio.
struct Camera {
    rng: fastrand::Rng,
    number: u64,
    video_frame: u64,
    audio_frame: u64,
    /// When each frame of the sound was sent.
    audio_at: Vec<Instant>,
    seqs: [u16; 2],
    gop: u64,
    bitrate_scale: usize,
    /// Chunks of the frame that is being sent, with the moments they are due.
    pending: Vec<(Instant, Arc<Chunk>)>,
    next_video: Instant,
    next_audio: Instant,
    silent_until: Instant,
}

impl Camera {
    fn new(seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Camera {
            number: 0,
            video_frame: 0,
            audio_frame: 0,
            audio_at: Vec::new(),
            seqs: [rng.u16(..), rng.u16(..)],
            gop: rng.u64(1..90),
            bitrate_scale: rng.usize(1..4),
            pending: Vec::new(),
            next_video: now,
            next_audio: now,
            silent_until: now,
            rng,
        }
    }

    fn packets(&mut self, track: TrackId, frame: u64, keyframe: bool, sizes: &[usize]) -> Vec<Vec<u8>> {
        let total = sizes.len() as u32;
        let mut packets = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let seq = &mut self.seqs[usize::from(track.0)];
            let mut packet = vec![0x80, 96 + track.0];
            packet.extend_from_slice(&seq.to_be_bytes());
            packet.extend_from_slice(&(frame as u32).wrapping_mul(3000).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0, track.0]);
            packet.extend_from_slice(&frame.to_be_bytes());
            packet.extend_from_slice(&(index as u32).to_be_bytes());
            packet.extend_from_slice(&total.to_be_bytes());
            packet.push(u8::from(keyframe));
            packet.resize(packet.len().max(*size), 0xA5);
            *seq = seq.wrapping_add(1);
            packets.push(packet);
        }
        packets
    }

    fn chunk(
        track: TrackId,
        frame: u64,
        [keyframe, start, end]: [bool; 3],
        arrival: Instant,
        packets: &[Vec<u8>],
    ) -> Arc<Chunk> {
        let mut bytes = Vec::new();
        let mut spans = Vec::new();
        for packet in packets {
            bytes.extend_from_slice(&[b'$', track.rtp_channel()]);
            bytes.extend_from_slice(&(packet.len() as u16).to_be_bytes());
            spans.push(Span { offset: bytes.len() as u32, len: packet.len() as u16 });
            bytes.extend_from_slice(packet);
        }
        let first_seq = u16::from_be_bytes([packets[0][2], packets[0][3]]);
        let chunk = Chunk {
            number: u64::MAX,
            track,
            kind: ChunkKind::Media,
            frame,
            frame_start: start,
            frame_end: end,
            keyframe,
            arrival,
            first_seq,
            rtp_time: (frame as u32).wrapping_mul(3000),
            bytes: Bytes::from(bytes),
            runs: cut_runs(&spans),
            packets: spans.into_boxed_slice(),
        };
        Arc::new(chunk)
    }

    /// The chunks that are due by `now`.
    fn due(&mut self, now: Instant) -> Vec<Arc<Chunk>> {
        // A camera that falls silent does so between two frames, or the rest arrives late: its arrival is then late as well.
        if now < self.silent_until && self.pending.is_empty() {
            return Vec::new();
        }
        if now >= self.next_video && self.pending.is_empty() {
            self.next_video = now + Duration::from_millis(33);
            let frame = self.video_frame;
            self.video_frame += 1;
            let keyframe = frame.is_multiple_of(self.gop);
            let count = if keyframe { self.rng.usize(20..160) } else { self.rng.usize(1..16) } * self.bitrate_scale;
            let sizes: Vec<usize> =
                (0..count).map(|index| if index + 1 == count { self.rng.usize(40..1400) } else { 1400 }).collect();
            let packets = self.packets(TrackId(0), frame, keyframe, &sizes);
            let part = if self.rng.bool() { packets.len() } else { self.rng.usize(12..46) };
            let mut at = now;
            let parts: Vec<&[Vec<u8>]> = packets.chunks(part.min(46)).collect();
            for (index, part) in parts.iter().enumerate() {
                let (start, end) = (index == 0, index + 1 == parts.len());
                let chunk = Self::chunk(TrackId(0), frame, [keyframe, start, end], at, part);
                self.pending.push((at, chunk));
                at += Duration::from_millis(self.rng.u64(0..4));
            }
        }
        let mut due = Vec::new();
        while self.pending.first().is_some_and(|(at, _)| *at <= now) {
            due.push(self.pending.remove(0).1);
        }
        if now >= self.next_audio {
            self.next_audio = now + Duration::from_millis(20);
            let frame = self.audio_frame;
            self.audio_frame += 1;
            self.audio_at.push(now);
            let packets = self.packets(TrackId(1), frame, false, &[172]);
            due.push(Self::chunk(TrackId(1), frame, [false, true, true], now, &packets));
        }
        for chunk in &mut due {
            Arc::get_mut(chunk).expect("not shared yet").number = self.number;
            self.number += 1;
        }
        due
    }
}

fn track(media: &str, encoding: &str, payload_type: u8, now: Instant) -> Track {
    Track {
        media: media.into(),
        encoding: encoding.into(),
        payload_type,
        clock_rate: 90_000,
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
        ssrc: u32::from(payload_type) - 96,
        first_seq: 0,
        clock: (now, 0),
    }
}

/// What one client has seen of one track.
#[derive(Default, Debug)]
struct Seen {
    /// The frame that packets are missing of, and the packet that comes next.
    open: Option<(u64, u32)>,
    last: Option<u64>,
    frames: u64,
    gaps: u64,
    /// The newest frame that it has missed before one that it got.
    missed: Option<u64>,
    last_seq: Option<u16>,
}

/// A simulated player: it checks every byte that it gets.
#[derive(Debug)]
struct Client {
    name: u64,
    token: Token,
    reading: Reading,
    since: Instant,
    buffer: Vec<u8>,
    channels: HashMap<u8, usize>,
    wants: [bool; 2],
    seen: [Seen; 2],
    session: Option<String>,
    setups: Vec<usize>,
    playing: bool,
    paused: bool,
    /// It has paused, so that it may miss sound that is new.
    has_paused: bool,
    cseq: u32,
    udp: Option<SocketAddr>,
}

impl Client {
    fn request(&mut self, method: &str, path: &str, headers: &str) -> String {
        self.cseq += 1;
        let session = self.session.as_ref().map(|id| format!("Session: {id}\r\n")).unwrap_or_default();
        format!("{method} rtsp://127.0.0.1/cam{path} RTSP/1.0\r\nCSeq: {}\r\n{session}{headers}\r\n", self.cseq)
    }

    /// Takes bytes in and checks them; returns how many RTSP answers were among them.
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut answers = Vec::new();
        let mut at = 0;
        loop {
            let rest = &self.buffer[at..];
            if rest.is_empty() {
                break;
            }
            if rest[0] == b'$' {
                if rest.len() < 4 {
                    break;
                }
                let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                if rest.len() < 4 + len {
                    break;
                }
                let track = *self.channels.get(&rest[1]).unwrap_or_else(|| {
                    panic!("client {}: channel {} was never set up", self.name, rest[1]);
                });
                assert!(self.playing, "client {}: media before the answer to PLAY", self.name);
                let packet = rest[4..4 + len].to_vec();
                at += 4 + len;
                self.packet(track, &packet);
            } else {
                let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { break };
                let head = String::from_utf8(rest[..end + 4].to_vec()).expect("an answer is text");
                assert!(head.starts_with("RTSP/1.0 200"), "client {}: {head}", self.name);
                assert!(!head.contains("Content-Length"), "no answer here has a body");
                at += end + 4;
                if head.contains("RTP-Info") {
                    self.playing = true;
                }
                answers.push(head);
            }
        }
        self.buffer.drain(..at);
        answers
    }

    fn packet(&mut self, track: usize, packet: &[u8]) {
        if packet[1] & 0x7f >= 64 && packet[1] >= 200 {
            return; // RTCP: a BYE at the end.
        }
        let name = self.name;
        assert!(packet.len() >= RTP_HEADER_BYTES + LABEL_BYTES, "client {name}: a short packet");
        assert_eq!(usize::from(packet[1] - 96), track, "client {name}: a packet on the wrong channel");
        let seq = u16::from_be_bytes([packet[2], packet[3]]);
        let label = &packet[RTP_HEADER_BYTES..];
        let frame = u64::from_be_bytes(label[..8].try_into().expect("8 bytes"));
        let index = u32::from_be_bytes(label[8..12].try_into().expect("4 bytes"));
        let total = u32::from_be_bytes(label[12..16].try_into().expect("4 bytes"));
        let keyframe = label[16] == 1;
        let seen = &mut self.seen[track];
        match seen.open {
            Some((open, next)) => {
                assert_eq!((frame, index), (open, next), "client {name}: a torn frame on track {track}");
            }
            None => {
                assert_eq!(index, 0, "client {name}: frame {frame} of track {track} begins in its middle");
                if let Some(last) = seen.last {
                    assert!(frame > last, "client {name}: frame {frame} after {last} on track {track}");
                }
                let follows = seen.last.is_some_and(|last| frame == last + 1);
                if !follows {
                    seen.gaps += u64::from(seen.last.is_some());
                    seen.missed = seen.last.map(|_| frame - 1);
                    assert!(track == 1 || keyframe, "client {name}: came back on frame {frame}, no keyframe");
                } else if let Some(last_seq) = seen.last_seq {
                    assert_eq!(seq, last_seq.wrapping_add(1), "client {name}: a sequence gap without a missing frame");
                }
            }
        }
        seen.last_seq = Some(seq);
        if index + 1 == total {
            seen.open = None;
            seen.last = Some(frame);
            seen.frames += 1;
        } else {
            seen.open = Some((frame, index + 1));
        }
    }
}

struct Simulation {
    core: Core<SimEgress>,
    camera: Camera,
    rng: fastrand::Rng,
    now: Instant,
    clients: HashMap<u32, Client>,
    joined: u64,
    left: u64,
    skips_seen: u64,
    stalled_closed: u64,
    log_bytes: usize,
    log_bytes_most: u64,
    stopping: bool,
    steps: u64,
}

impl Simulation {
    fn new(seed: u64, start: Start, log_bytes: usize) -> Self {
        let now = Instant::now();
        let config = CoreConfig {
            age: AGE,
            log_bytes,
            stall_timeout: STALL,
            streams: vec![StreamSetup { id: STREAM, name: "cam".into(), start, published: false, on_demand: None }],
            server: ServerConfig {
                shard: 0,
                shards: 1,
                session_timeout: Duration::from_secs(60),
                handshake_timeout: Duration::from_secs(10),
                limit: SessionLimit::new(100_000),
                udp_ports: Some((9000, 9001)),
                own_ports: None,
                ids: SessionIds::Seeded(seed),
            },
        };
        let udp = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
        let mut core = Core::new(now, config, SimEgress::new(), Some(udp));
        let tracks = vec![track("video", "H264", 96, now), track("audio", "L16", 97, now)];
        core.described(now, STREAM, Arc::new(Description { tracks }));
        Simulation {
            core,
            camera: Camera::new(seed ^ 0x5151, now),
            rng: fastrand::Rng::with_seed(seed),
            now,
            clients: HashMap::new(),
            joined: 0,
            left: 0,
            skips_seen: 0,
            stalled_closed: 0,
            log_bytes,
            log_bytes_most: 0,
            stopping: false,
            steps: 0,
        }
    }

    /// Everything that can be done at this moment is done.
    fn settle(&mut self) {
        loop {
            let reaped = self.core.reap(self.now);
            let more = self.core.drive(self.now);
            let again = self.core.reap(self.now);
            if !(reaped || more || again) {
                break;
            }
        }
        let sent = std::mem::take(&mut self.core.egress_mut().datagrams);
        for (_, to, packet) in sent {
            let Some(client) =
                self.clients.values_mut().find(|client| client.udp.is_some_and(|udp| udp.ip() == to.ip()))
            else {
                continue;
            };
            let track = usize::from(to.port() - 6000) / 2;
            client.packet(track, &packet);
        }
        let slots: Vec<u32> = self.clients.keys().copied().collect();
        for client in self.clients.values_mut() {
            Self::check_sound(&self.camera, self.now, self.log_bytes, client);
        }
        for slot in slots {
            let bytes = self.core.egress_mut().take_received(slot);
            let client = self.clients.get_mut(&slot).expect("listed");
            let answers = client.take(&bytes);
            Self::check_sound(&self.camera, self.now, self.log_bytes, client);
            for answer in answers {
                self.answered(slot, &answer);
            }
        }
        // Whoever the shard has closed is gone, and must have had a reason.
        let core = &self.core;
        let mut closed = Vec::new();
        for (slot, client) in &self.clients {
            if !core.is_there(client.token) {
                closed.push(*slot);
            }
        }
        for slot in closed {
            let client = self.clients.remove(&slot).expect("listed");
            assert!(
                self.stopping || client.reading != Reading::AtOnce || client.since + STALL >= self.now,
                "client {}: a healthy client was closed: {client:?}",
                client.name
            );
            self.stalled_closed += 1;
            self.retire(slot, client);
        }
    }

    /// However slow a client is, a skip of video leaves out no sound that is not too old to be kept.
    fn check_sound(camera: &Camera, now: Instant, log_bytes: usize, client: &mut Client) {
        let Some(missed) = client.seen[1].missed.take() else { return };
        // Who has no video skips to now, and a log that is too small keeps nothing.
        if !client.wants[0] || client.has_paused || log_bytes < LOG_BYTES {
            return;
        }
        let age = now - camera.audio_at[missed as usize];
        let kept = Duration::from_secs(SKIP_KEPT_S);
        assert!(age >= kept, "client {}: frame {missed} of the sound was left out at {age:?}", client.name);
    }

    fn retire(&mut self, slot: u32, client: Client) {
        self.skips_seen += client.seen[0].gaps;
        self.left += 1;
        self.core.egress_mut().renew(slot);
    }

    fn answered(&mut self, slot: u32, answer: &str) {
        let client = self.clients.get_mut(&slot).expect("it was answered");
        if let Some(line) = answer.lines().find(|line| line.starts_with("Session:")) {
            let id = line["Session:".len()..].trim().split(';').next().expect("split gives one");
            client.session = Some(id.to_string());
        }
        if let Some(line) = answer.lines().find(|line| line.contains("interleaved=")) {
            let pair = line.split("interleaved=").nth(1).expect("found").split(';').next().expect("split gives one");
            let channel: u8 = pair.split('-').next().expect("split gives one").parse().expect("a channel");
            let track = client.setups[0];
            client.channels.insert(channel, track);
            client.channels.insert(channel + 1, track);
        }
        if answer.contains("Transport:") {
            client.setups.remove(0);
            let request = match client.setups.first() {
                Some(track) => Self::setup(client, *track),
                None => client.request("PLAY", "", ""),
            };
            let token = client.token;
            self.core.input(self.now, token, request.as_bytes());
        }
    }

    fn setup(client: &mut Client, track: usize) -> String {
        let transport = match client.udp {
            Some(to) => {
                let port = to.port() + track as u16 * 2;
                format!("RTP/AVP;unicast;client_port={port}-{}", port + 1)
            }
            // Most take what is natural; some have wishes of their own.
            None if client.name.is_multiple_of(4) => {
                let channel = (client.name % 7) * 4 + track as u64 * 2;
                format!("RTP/AVP/TCP;unicast;interleaved={}-{}", channel, channel + 1)
            }
            None => "RTP/AVP/TCP;unicast".to_string(),
        };
        client.request("SETUP", &format!("/trackID={track}"), &format!("Transport: {transport}\r\n"))
    }

    fn join(&mut self, udp: bool) {
        let name = self.joined;
        self.joined += 1;
        let peer = SocketAddr::from(([127, 1, (name >> 8) as u8, name as u8], 5000));
        let local = SocketAddr::from(([127, 0, 0, 1], 8554));
        let token = self.core.connected(self.now, Conn::Scripted, peer, local, &[]).expect("it does not stop");
        let wants = match self.rng.u8(0..10) {
            0 => [true, false],
            1 => [false, true],
            _ => [true, true],
        };
        let mut client = Client {
            name,
            token,
            reading: Reading::AtOnce,
            since: self.now,
            buffer: Vec::new(),
            channels: HashMap::new(),
            wants,
            seen: Default::default(),
            session: None,
            setups: (0..2).filter(|track| wants[*track]).collect(),
            playing: udp,
            paused: false,
            has_paused: false,
            cseq: 0,
            udp: udp.then(|| SocketAddr::new(peer.ip(), 6000)),
        };
        let first = client.setups[0];
        let request = Self::setup(&mut client, first);
        self.clients.insert(token.slot, client);
        self.core.input(self.now, token, request.as_bytes());
    }

    fn any_client(&mut self) -> Option<u32> {
        let mut slots: Vec<u32> = self.clients.keys().copied().collect();
        slots.sort_unstable();
        self.rng.choice(slots)
    }

    /// One random thing that a client does.
    fn disturb(&mut self) {
        let Some(slot) = self.any_client() else { return };
        let action = self.rng.u8(0..100);
        let rate = self.rng.u64(10_000..400_000);
        let client = self.clients.get_mut(&slot).expect("chosen");
        if client.udp.is_some() && action < 80 {
            return;
        }
        match action {
            0..=24 => self.read(slot, Reading::Rate(rate)),
            25..=39 => self.read(slot, Reading::Stalled),
            40..=69 => self.read(slot, Reading::AtOnce),
            70..=74 => self.read(slot, Reading::Broken),
            75..=79 if client.playing && client.reading == Reading::AtOnce => {
                let method = if client.paused { "PLAY" } else { "PAUSE" };
                client.paused = !client.paused;
                client.has_paused = true;
                client.since = self.now;
                let request = client.request(method, "", "");
                let token = client.token;
                self.core.input(self.now, token, request.as_bytes());
            }
            80..=89 => {
                let client = self.clients.remove(&slot).expect("chosen");
                self.core.disconnected(self.now, client.token);
                if client.udp.is_some() {
                    // Its session lives on until it times out; nobody listens there any more.
                }
                self.retire(slot, client);
            }
            // The system is short of memory for a moment: it is sent the rest a little later.
            90..=95 => {
                let bytes = self.rng.usize(0..20_000);
                self.core.egress_mut().refuse(slot, bytes, libc::ENOBUFS);
            }
            _ => {}
        }
    }

    fn read(&mut self, slot: u32, reading: Reading) {
        let client = self.clients.get_mut(&slot).expect("chosen");
        client.reading = reading;
        client.since = self.now;
        self.core.egress_mut().set_reading(slot, reading);
    }

    fn step(&mut self, elapsed: Duration) {
        self.now += elapsed;
        self.core.egress_mut().advance(elapsed);
        for chunk in self.camera.due(self.now) {
            self.core.chunk(self.now, STREAM, chunk);
        }
        if self.core.next_timeout(self.now) <= self.now {
            self.core.timeout(self.now);
        }
        self.settle();
        self.check();
    }

    /// The log is bounded. Looked at now and then alone: a report costs more than a step.
    fn check_log(&mut self) {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        self.core.report(self.now, ReportRequest { reply, clients: false });
        let snapshot = answer.try_recv().expect("it answers at once");
        let log_bytes = snapshot.streams[0].log_bytes;
        self.log_bytes_most = self.log_bytes_most.max(log_bytes);
        assert!(log_bytes as usize <= self.log_bytes + 2 * 64 * 1024, "the log holds {log_bytes} bytes");
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let blocked = self.core.egress_mut().blocked_bytes();
        assert!(blocked <= self.core.links() * OP_BYTES_MAX, "{blocked} bytes are in flight");
        self.steps += 1;
        if self.steps.is_multiple_of(50) {
            self.check_log();
        }
        // A client that reads has everything: it never waits for one that does not.
        let newest = self.camera.video_frame;
        for client in self.clients.values() {
            // After a skip it may have to wait for the next keyframe.
            let settled = client.since + Duration::from_millis(40 * self.camera.gop + 3_500) < self.now;
            if client.reading == Reading::AtOnce && client.playing && !client.paused && settled {
                for (track, newest) in [(0, newest), (1, self.camera.audio_frame)] {
                    let seen = &client.seen[track];
                    let (true, Some(last)) = (client.wants[track], seen.last) else { continue };
                    let missing = newest - 1 - last;
                    // The frame that is being sent may still be on its way; a large keyframe is paced over UDP.
                    let most = if client.udp.is_some() { 4 } else { 1 };
                    assert!(missing <= most, "client {}: {missing} frames behind on track {track}", client.name);
                }
            }
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("RTSPRELAY_SIM_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("RTSPRELAY_SIM_SEED={seed}");
    seed
}

#[test]
fn clients_that_stall_join_leave_and_crawl_see_whole_frames_and_come_back_on_keyframes() {
    if std::env::var_os("RTSPRELAY_SIM_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::INFO).init();
    }
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut joined = 0;
    let mut skips = 0;
    for round in 0..16 {
        let seed = rng.u64(..);
        println!("round {round}: seed {seed}");
        let start = if seed.is_multiple_of(3) { Start::Live } else { Start::Cached };
        let log_bytes = if seed.is_multiple_of(4) { 1024 * 1024 } else { LOG_BYTES };
        let mut simulation = Simulation::new(seed, start, log_bytes);
        for step in 0..3_000 {
            if simulation.clients.len() < 120 && simulation.rng.u8(0..10) < 2 {
                let udp = simulation.rng.u8(0..8) == 0;
                simulation.join(udp);
            }
            if simulation.rng.u8(0..4) == 0 {
                simulation.disturb();
            }
            if step % 1_000 == 999 {
                let silence = Duration::from_millis(simulation.rng.u64(0..1_500));
                simulation.camera.silent_until = simulation.now + silence;
            }
            let elapsed = Duration::from_millis(simulation.rng.u64(1..12));
            simulation.step(elapsed);
        }
        simulation.stopping = true;
        simulation.core.stop(simulation.now);
        for _ in 0..200 {
            simulation.step(Duration::from_millis(10));
            if simulation.core.is_stopped() {
                break;
            }
        }
        assert!(simulation.core.is_stopped(), "{} links are left after a stop", simulation.core.links());
        joined += simulation.joined;
        skips += simulation.skips_seen + simulation.clients.values().map(|client| client.seen[0].gaps).sum::<u64>();
    }
    println!("{joined} clients, {skips} returns on a keyframe");
    assert!(joined > 2_000, "only {joined} clients took part");
    assert!(skips > 300, "only {skips} skips: the rule was hardly tried");
}
