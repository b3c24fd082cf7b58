//! Thousands of simulated clients that join, leave, stall, read slowly, pause and recover, on a virtual clock, against the real shard:
//! its RTSP server, log, cursors and operations, with a scripted egress instead of the kernel.
//!
//! Every run prints its seed; `RTSPRELAY_SIM_SEED=… cargo test --test simulation` repeats it.

mod camera;
mod hand_over;
mod homes;
mod names;
mod player;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rtsprelay::egress::sim::{Reading, SimEgress};
use rtsprelay::egress::{Conn, Datagram};
use rtsprelay::limits::{OP_BYTES_MAX, OUTAGE_REPORT_S, SKIP_KEPT_S};
use rtsprelay::media::{StreamEvent, StreamId};
use rtsprelay::metrics::ReportRequest;
use rtsprelay::session::{ServerConfig, SessionIds, SessionLimit};
use rtsprelay::shard::core::{Core, CoreConfig, Start, StreamSetup, UdpSockets};

use camera::{Absence, Camera};
use player::Client;

const STREAM: StreamId = StreamId::first(0);
const AGE: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(10);
/// The size limit of a log in most rounds: more than it ever holds, including its renderings for other channels.
const LOG_BYTES: usize = 512 * 1024 * 1024;
/// The same in the other rounds: a keyframe with all its renderings.
const SMALL_LOG_BYTES: usize = 12 * 1024 * 1024;
/// State as read by another process.
fn written_and_read<T: serde::Serialize + serde::de::DeserializeOwned>(state: &T) -> T {
    let written = serde_json::to_string(state).expect("plain data");
    serde_json::from_str(&written).expect("what was written")
}

/// The parameters of the shard.
fn config(seed: u64, stream: StreamSetup, log_bytes: usize) -> CoreConfig {
    CoreConfig {
        age: AGE,
        log_bytes,
        stall_timeout: STALL,
        streams: vec![stream],
        server: ServerConfig {
            shard: 0,
            shards: 1,
            session_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            limit: SessionLimit::new(100_000),
            udp_ports: Some((9000, 9001)),
            all_ports: None,
            ids: SessionIds::Seeded(seed),
            loads: None,
        },
    }
}

struct Simulation {
    core: Core<SimEgress>,
    seed: u64,
    start: Start,
    camera: Camera,
    rng: fastrand::Rng,
    now: Instant,
    /// By slot.
    clients: BTreeMap<u32, Client>,
    /// The slot of the client that plays over UDP from that address.
    by_address: HashMap<IpAddr, u32>,
    joined: u64,
    left: u64,
    skips_seen: u64,
    stalled_closed: u64,
    log_bytes: usize,
    log_bytes_most: u64,
    stopping: bool,
    steps: u64,
    /// Reports during outages, to clients that have left.
    reports: u64,
    /// How often the shard was handed over to another process.
    handed_over: u64,
    /// A hash that differs if anything sent to a client differs in length or time.
    digest: u64,
}

impl Simulation {
    fn new(seed: u64, start: Start, log_bytes: usize) -> Self {
        let now = Instant::now();
        let config = config(seed, StreamSetup::plain(STREAM, "cam", start), log_bytes);
        let udp = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
        let mut core = Core::new(now, config, SimEgress::new(), Some(udp));
        let mut camera = Camera::new(seed ^ 0x5151, now);
        for event in camera.due(now) {
            tell(&mut core, now, event);
        }
        Simulation {
            core,
            seed,
            start,
            camera,
            rng: fastrand::Rng::with_seed(seed),
            now,
            clients: BTreeMap::new(),
            by_address: HashMap::new(),
            joined: 0,
            left: 0,
            skips_seen: 0,
            stalled_closed: 0,
            log_bytes,
            log_bytes_most: 0,
            stopping: false,
            steps: 0,
            reports: 0,
            handed_over: 0,
            digest: 0,
        }
    }

    /// Does everything that can be done at this time.
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
            let Some(slot) = self.by_address.get(&to.ip()) else { continue };
            let client = self.clients.get_mut(slot).expect("it has not left");
            let track = usize::from(to.port() - 6000) / 2;
            self.digest = self.digest.rotate_left(5) ^ u64::from(*slot) << 32 ^ packet.len() as u64;
            client.packet(track, &packet, self.now, &self.camera);
            Self::check_sound(&self.camera, self.now, self.log_bytes, client);
        }
        let mut answered = Vec::new();
        for (slot, client) in &mut self.clients {
            let bytes = self.core.egress_mut().take_received(*slot);
            if bytes.is_empty() {
                continue;
            }
            self.digest = self.digest.rotate_left(5) ^ u64::from(*slot) << 32 ^ bytes.len() as u64;
            let answers = client.take(bytes, self.now, &self.camera);
            Self::check_sound(&self.camera, self.now, self.log_bytes, client);
            answered.extend(answers.into_iter().map(|answer| (*slot, answer)));
        }
        for (slot, answer) in answered {
            self.answered(slot, &answer);
        }
        // Clients that the shard has disconnected are gone, and there must have been a reason.
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

    /// However slow a client is, a skip of video drops no audio that is recent enough to be kept.
    fn check_sound(camera: &Camera, now: Instant, log_bytes: usize, client: &mut Client) {
        let Some(missed) = client.seen[1].missed.take() else { return };
        // Clients without video skip to the head, and a log that is too small keeps nothing.
        if !client.wants[0] || client.has_paused || log_bytes < LOG_BYTES {
            return;
        }
        let age = now - camera.audio_at[missed as usize];
        let kept = Duration::from_secs(SKIP_KEPT_S);
        assert!(age >= kept, "client {}: audio frame {missed} was dropped at the age of {age:?}", client.name);
    }

    fn retire(&mut self, slot: u32, client: Client) {
        self.skips_seen += client.seen[0].gaps;
        self.reports += client.reports;
        self.left += 1;
        if let Some(udp) = client.udp {
            self.by_address.remove(&udp.ip());
        }
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
            client.channels.extend([(channel, track), (channel + 1, track)]);
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
            // Most use the default channels; some request others.
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
            channels: Vec::new(),
            wants,
            seen: Default::default(),
            session: None,
            setups: (0..2).filter(|track| wants[*track]).collect(),
            playing: udp,
            paused: false,
            has_paused: false,
            cseq: 0,
            udp: udp.then(|| SocketAddr::new(peer.ip(), 6000)),
            reports: 0,
        };
        if udp {
            self.by_address.insert(peer.ip(), token.slot);
        }
        let first = client.setups[0];
        let request = Self::setup(&mut client, first);
        self.clients.insert(token.slot, client);
        self.core.input(self.now, token, request.as_bytes());
    }

    fn any_client(&mut self) -> Option<u32> {
        self.rng.choice(self.clients.keys().copied().collect::<Vec<_>>())
    }

    /// One random action of a client.
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
                    // Its session remains until it times out; nothing receives there any more.
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
        for event in self.camera.due(self.now) {
            tell(&mut self.core, self.now, event);
        }
        if self.rng.u16(0..1_000) == 0 {
            // Conversion to text is slow; large states are plain data, too.
            let state = self.core.save_log(self.now, STREAM);
            let is_small = self.log_bytes < LOG_BYTES;
            let state = if is_small { written_and_read(&state) } else { state };
            self.core.restore_log(self.now, STREAM, state);
        }
        if self.rng.u16(0..100) == 0 {
            self.core.renew_logs(self.rng.u32(1..));
        }
        // A check that is due is made on time if the shard is awake, and otherwise later.
        let checks = self.core.is_check_due(self.now) && self.rng.bool();
        if checks || self.core.next_timeout(self.now) <= self.now {
            self.core.timeout(self.now);
        }
        if !self.stopping && self.rng.u16(0..100) == 0 {
            self.hand_over();
        }
        self.settle();
        self.check();
    }

    /// While the camera is away, clients that read get something on each track all the time.
    fn check_outage(&self) {
        let patience = Duration::from_secs(OUTAGE_REPORT_S) + Duration::from_millis(300);
        if self.stopping || self.camera.away.is_none_or(|(since, _)| since + patience >= self.now) {
            return;
        }
        for client in self.clients.values() {
            let settled = client.since + patience < self.now && client.playing && !client.paused;
            if client.reading != Reading::AtOnce || !settled {
                continue;
            }
            for track in [0, 1].into_iter().filter(|track| client.wants[*track]) {
                let heard = client.seen[track].heard.map(|at| self.now - at);
                let good = heard.is_some_and(|silence| silence <= patience);
                assert!(good, "client {}: nothing of track {track} for {heard:?}", client.name);
            }
        }
    }

    /// The size of the log is limited. Checked only now and then, because a report costs more than a step.
    fn check_log(&mut self) {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        self.core.report(self.now, ReportRequest { reply, clients: false });
        let snapshot = answer.try_recv().expect("it answers at once");
        let log_bytes = snapshot.streams[0].log_bytes;
        self.log_bytes_most = self.log_bytes_most.max(log_bytes);
        assert!(log_bytes as usize <= self.log_bytes + 2 * 64 * 1024, "the log holds {log_bytes} bytes");
    }

    /// The invariants.
    fn check(&mut self) {
        let blocked = self.core.egress_mut().blocked_bytes();
        assert!(blocked <= self.core.links() * OP_BYTES_MAX, "{blocked} bytes are in flight");
        self.check_outage();
        self.steps += 1;
        if self.steps.is_multiple_of(50) {
            self.check_log();
        }
        // A client that reads has everything: it never waits for one that does not.
        let newest = self.camera.video_frame;
        for (slot, client) in &self.clients {
            // After a skip it may have to wait for the next keyframe, which a camera that is away does not send.
            let waited = Duration::from_millis(40 * self.camera.gop + 3_500);
            let settled = client.since.max(self.camera.back) + waited < self.now && self.camera.away.is_none();
            if client.reading == Reading::AtOnce && client.playing && !client.paused && settled {
                for (track, newest) in [(0, newest), (1, self.camera.audio_frame)] {
                    let seen = &client.seen[track];
                    let (true, Some(last)) = (client.wants[track], seen.last) else { continue };
                    let missing = newest - 1 - last;
                    // The current frame may still be in transit; a large keyframe is paced over UDP.
                    let most = if client.udp.is_some() { 4 } else { 1 };
                    // The next one may come while a send waits to be retried.
                    let most = most + u64::from(self.core.egress_mut().is_cut_short(*slot));
                    assert!(missing <= most, "client {}: {missing} frames behind on track {track}", client.name);
                }
            }
        }
    }
}

/// Passes the source's output to the shard.
fn tell(core: &mut Core<SimEgress>, now: Instant, event: StreamEvent) {
    match event {
        StreamEvent::Described(description) => core.described(now, STREAM, description),
        StreamEvent::Chunk(chunk) => core.chunk(now, STREAM, chunk),
        StreamEvent::State(state) => core.source(now, STREAM, state),
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

/// The results of one round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    joined: u64,
    skips: u64,
    saved: u64,
    handed_over: u64,
    /// Reports during outages that clients received.
    reports: u64,
    digest: u64,
}

fn play(seed: u64) -> Outcome {
    let start = if seed.is_multiple_of(3) { Start::Live } else { Start::Cached };
    let log_bytes = if seed.is_multiple_of(4) { SMALL_LOG_BYTES } else { LOG_BYTES };
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
            let long = Duration::from_millis(simulation.rng.u64(0..1_500));
            match simulation.rng.u8(0..3) {
                0 => simulation.camera.leave(Absence::Pause, long),
                // Not so long that two of them can lie in one keyframe interval (90 frames) and extend it to the 10 s after which any frame is
                // treated as a keyframe.
                1 => simulation.camera.leave(Absence::Silence, long * 2),
                _ => simulation.camera.leave(Absence::Loss, long * 4),
            }
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
    Outcome {
        joined: simulation.joined,
        skips: simulation.skips_seen + simulation.clients.values().map(|client| client.seen[0].gaps).sum::<u64>(),
        saved: simulation.camera.saved,
        handed_over: simulation.handed_over,
        reports: simulation.reports + simulation.clients.values().map(|client| client.reports).sum::<u64>(),
        digest: simulation.digest,
    }
}

#[test]
fn clients_that_stall_join_leave_and_crawl_see_whole_frames_and_come_back_on_keyframes() {
    if std::env::var_os("RTSPRELAY_SIM_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::INFO).init();
    }
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut all = Outcome::default();
    for round in 0..16 {
        let seed = rng.u64(..);
        println!("round {round}: seed {seed}");
        let outcome = play(seed);
        if round == 0 {
            assert_eq!(outcome, play(seed), "a round is not determined by its seed");
        }
        all.joined += outcome.joined;
        all.skips += outcome.skips;
        all.saved += outcome.saved;
        all.handed_over += outcome.handed_over;
        all.reports += outcome.reports;
    }
    let Outcome { joined, skips, saved, handed_over, reports, .. } = all;
    println!("{joined} clients, {skips} returns on a keyframe, {reports} reports of outages");
    println!("{saved} times the pipeline was saved and restored");
    println!("{handed_over} times the shard was handed over");
    assert!(handed_over > 50, "the shard was hardly handed over");
    assert!(saved > 100, "the pipeline was hardly saved");
    assert!(joined > 2_000, "only {joined} clients took part");
    assert!(skips > 300, "only {skips} skips: the rule was hardly tested");
    assert!(reports > 500, "only {reports} reports of outages: the rule was hardly tested");
}
