//! Body of the egress' fuzz target: a shard whose operations complete in any order, whole, short, failed or cancelled.
#![allow(missing_docs)]

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::core::{Core, CoreConfig, ShardLimits, Start, StreamSetup, UdpSockets};
use crate::egress::{Completion, Conn, Datagram, Datagrams, Egress, EgressStats, Piece, Route, Token, is_shortage};
use crate::limits::{OP_BYTES_MAX, OP_IOVECS_MAX, REQUEST_BODY_BYTES_MAX};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::{Description, SourceState, StreamId, Track, TrackId};
use crate::metrics::ReportRequest;
use crate::session::{ServerConfig, SessionIds, SessionLimit};
use crate::wire::{interleaved, rtcp, rtp};

const STREAM: StreamId = StreamId::first(0);
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Frame, packet, packets of the frame, keyframe: what each packet says of itself.
const LABEL_BYTES: usize = 4 + 3;

/// An operation under way.
struct Operation {
    token: Token,
    what: What,
    cancelled: bool,
}

enum What {
    Stream(Vec<Piece>),
    Datagrams { to: SocketAddr, chunk: Rc<Datagrams>, plain: bool },
}

impl Operation {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Stream(pieces) => pieces.iter().map(Piece::len).sum(),
            What::Datagrams { chunk, .. } => chunk.bytes().len(),
        }
    }
}

fn is_rtcp(packet: &[u8]) -> bool {
    (200..=204).contains(&packet[1])
}

/// What reached a client.
enum Reached {
    Stream(Token, Vec<u8>),
    Datagram(Token, SocketAddr, Vec<u8>),
    /// The rest of a frame's datagrams did not.
    Lost(Token),
}

/// An egress that does with its operations what it is told to, when it is told to.
#[derive(Default)]
struct Hostile {
    operations: Vec<Operation>,
    completions: VecDeque<Completion>,
    reached: Vec<Reached>,
    /// Connections of which a part of an operation is missing: nothing may follow.
    broken: HashSet<Token>,
    /// What is missing because of a shortage. Whoever takes it may send it, and then more.
    unsent: BTreeMap<u32, Vec<Piece>>,
    /// What is said of every client's pages.
    holds: bool,
}

impl Hostile {
    /// Ends an operation as `how` says, `part` 256ths of it done if it does not go well.
    fn complete(&mut self, index: usize, how: u8, part: u8) {
        const STREAM_ERRORS: [i32; 5] = [libc::EPIPE, libc::ECONNRESET, libc::ENOBUFS, libc::ENOMEM, libc::EIO];
        const DATAGRAM_ERRORS: [i32; 5] =
            [libc::EAGAIN, libc::EMSGSIZE, libc::ENOBUFS, libc::ECONNREFUSED, libc::ENETUNREACH];
        let operation = self.operations.remove(index);
        let token = operation.token;
        // A cancelled one may nevertheless have just completed.
        let errors = if let What::Stream(_) = operation.what { STREAM_ERRORS } else { DATAGRAM_ERRORS };
        let errno = match how % 8 {
            5.. if operation.cancelled => Some(libc::ECANCELED),
            6.. => Some(errors[usize::from(how / 8) % errors.len()]),
            _ => None,
        };
        let error = errno.map(io::Error::from_raw_os_error);
        // A path that takes no runs was sent the packets one by one.
        let unsegmented = how & 0x40 != 0 && matches!(operation.what, What::Datagrams { plain: false, .. });
        let bytes = match operation.what {
            What::Stream(pieces) => {
                let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.as_slice()).copied().collect();
                if let Some(error) = &error {
                    let rest = bytes.split_off(bytes.len() * usize::from(part) / 256);
                    self.broken.insert(token);
                    if is_shortage(error) {
                        self.unsent.insert(token.slot, vec![Bytes::from(rest).into()]);
                    }
                }
                let len = bytes.len();
                self.reached.push(Reached::Stream(token, bytes));
                len
            }
            What::Datagrams { to, chunk, plain } => {
                let mut messages = chunk.messages_count(plain);
                if error.is_some() {
                    messages = messages * usize::from(part) / 256;
                }
                let mut bytes = 0;
                for span in (0..messages).flat_map(|index| &chunk.packets[chunk.message(index, plain).0]) {
                    bytes += usize::from(span.len);
                    self.reached.push(Reached::Datagram(token, to, chunk.packet(span).to_vec()));
                }
                if error.is_some() && !is_rtcp(chunk.packet(&chunk.packets[0])) {
                    self.reached.push(Reached::Lost(token));
                }
                bytes
            }
        };
        self.completions.push_back(Completion { token, bytes, error, at: None, unsegmented });
    }

    fn begin(&mut self, token: Token, what: What) {
        let busy = self.operations.iter().any(|operation| operation.token.slot == token.slot);
        let joined = !self.completions.iter().any(|completion| completion.token.slot == token.slot);
        assert!(!busy && joined, "one operation in flight per client");
        self.operations.push(Operation { token, what, cancelled: false });
    }
}

impl Egress for Hostile {
    fn send(&mut self, token: Token, _conn: &Conn, pieces: &mut Vec<Piece>, _apart: bool) {
        assert!(!pieces.is_empty() && pieces.len() <= OP_IOVECS_MAX && pieces.iter().all(|piece| !piece.is_empty()));
        assert!(!self.broken.contains(&token), "more follows where a part is missing");
        self.begin(token, What::Stream(std::mem::take(pieces)));
        let bytes = self.operations.last().map_or(0, Operation::bytes);
        assert!(bytes <= OP_BYTES_MAX + REQUEST_BODY_BYTES_MAX, "an operation of {bytes} bytes");
    }

    fn send_datagrams(&mut self, token: Token, _: &Datagram, route: Route, chunk: &Rc<Datagrams>, plain: bool) {
        self.begin(token, What::Datagrams { to: route.to, chunk: chunk.clone(), plain });
    }

    fn flush(&mut self) {}

    fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        let count = self.completions.len().min(max);
        out.extend(self.completions.drain(..count));
    }

    fn cancel(&mut self, token: Token) {
        if let Some(operation) = self.operations.iter_mut().find(|operation| operation.token == token) {
            operation.cancelled = true;
        }
    }

    fn take_unsent(&mut self, token: Token) -> Vec<Piece> {
        self.broken.remove(&token);
        self.unsent.remove(&token.slot).unwrap_or_default()
    }

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        if self.completions.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn is_busy(&self, token: Token) -> bool {
        self.operations.iter().any(|operation| operation.token == token)
            || self.completions.iter().any(|completion| completion.token == token)
    }

    fn holds(&self, _token: Token) -> bool {
        self.holds
    }

    fn in_flight(&self) -> usize {
        self.operations.len() + self.completions.len()
    }

    fn stats(&self) -> EgressStats {
        EgressStats::default()
    }
}

/// What a client has seen of a track.
#[derive(Default)]
struct Seen {
    /// The frame that packets are missing of, and the packet that comes next.
    open: Option<(u32, u8)>,
    last: Option<u32>,
}

#[derive(Default)]
struct Viewer {
    buffer: Vec<u8>,
    session: Option<String>,
    seen: [Seen; 2],
    /// A part of what was sent to it never came: a frame may be missing, and the next one is no keyframe.
    lossy: bool,
}

impl Viewer {
    fn packet(&mut self, packet: &[u8], torn: bool) {
        if is_rtcp(packet) {
            assert!(rtcp::parse(packet).all(|part| part.is_ok()), "a report in pieces");
            return;
        }
        let header = rtp::Header::parse(packet).expect("media is RTP");
        let label = &packet[header.payload];
        let frame = u32::from_be_bytes(label[..4].try_into().expect("4 bytes"));
        let [index, total, keyframe]: [u8; 3] = label[4..LABEL_BYTES].try_into().expect("3 bytes");
        let video = header.payload_type == 96;
        let seen = &mut self.seen[usize::from(header.payload_type - 96)];
        if !torn {
            match seen.open {
                Some(next) => assert_eq!((frame, index), next, "a torn frame"),
                None => {
                    assert_eq!(index, 0, "frame {frame} begins in its middle");
                    assert!(seen.last.is_none_or(|last| frame > last), "frame {frame} comes again");
                    let follows = seen.last.is_some_and(|last| frame == last + 1);
                    assert!(follows || self.lossy || !video || keyframe == 1, "frame {frame} cannot be decoded");
                }
            }
        }
        seen.last = Some(frame);
        seen.open = (index + 1 < total).then_some((frame, index + 1));
    }

    /// Takes complete messages from the start of the data received.
    fn stream(&mut self, bytes: &[u8], torn: bool) {
        self.buffer.extend_from_slice(bytes);
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        while let Some(&first) = rest.first() {
            if first == interleaved::MAGIC {
                let Some((_, len)) = interleaved::parse(rest) else { break };
                let Some(packet) = rest.get(4..4 + len) else { break };
                self.packet(packet, torn);
                rest = &rest[4 + len..];
                continue;
            }
            let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { break };
            let head = std::str::from_utf8(&rest[..end + 4]).expect("an answer is text");
            assert!(head.starts_with("RTSP/1.0 "), "{head}");
            let value = |name: &str| Some(head.split(name).nth(1)?.split(['\r', ';']).next()?.trim().to_owned());
            let body = value("Content-Length:").map_or(0, |len| len.parse::<usize>().expect("a length"));
            if rest.len() < end + 4 + body {
                break;
            }
            let good = head.starts_with("RTSP/1.0 200");
            if good && head.contains("RTP-Info") {
                // PLAY.
            } else if good {
                self.session = value("Session:").or(self.session.take());
                if head.contains("interleaved=") {
                    // What this connection carries has not played yet.
                    self.seen = Default::default();
                }
            } else if head.contains("Session Not Found") {
                self.session = None;
            }
            rest = &rest[end + 4 + body..];
        }
        self.buffer = rest.to_vec();
    }
}

struct Driver<'a> {
    data: &'a [u8],
    core: Core<Hostile>,
    now: Instant,
    viewers: BTreeMap<(u32, u32), Viewer>,
    connections: Vec<Token>,
    requests: u32,
    number: u64,
    /// Of each track.
    sequence: [u16; 2],
    frame: [u32; 2],
    /// Of the video frame under way: packets made, packets in all, whether it is a keyframe.
    open: Option<(u8, u8, bool)>,
    /// Chunks have gone missing on their way to the shard, and with them parts of frames.
    torn: bool,
}

fn track(media: &str, encoding: &str, payload_type: u8, now: Instant) -> Track {
    Track {
        media: media.to_owned(),
        encoding: encoding.to_owned(),
        payload_type,
        clock_rate: 90_000,
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
        ssrc: u32::from(payload_type),
        first_seq: 0,
        clock: (now, 0),
    }
}

impl Driver<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.data.split_first().unwrap_or((&0, &[]));
        self.data = rest;
        *first
    }

    fn described(&mut self, encoding: &str) {
        let tracks = vec![track("video", encoding, 96, self.now), track("audio", "PCMU", 97, self.now)];
        self.core.described(self.now, STREAM, Arc::new(Description { tracks }));
    }

    fn chunk(&mut self, track: TrackId, kind: ChunkKind, arg: u8, large: bool) {
        let index = usize::from(track.0);
        let frame = self.frame[index];
        let video = track.0 == 0;
        let mut packets: Vec<Vec<u8>> = Vec::new();
        let first_seq = self.sequence[index];
        let (mut start, mut end, mut keyframe) = (true, true, false);
        if kind == ChunkKind::Report {
            packets.push(rtcp::sender_report(96 + u32::from(track.0), 1, frame * 3_000, 2, 3, "rtsprelay"));
        } else {
            let (made, total, key) = if video {
                self.open.unwrap_or((0, 1 + arg / 2 % 32, arg & 1 == 1 || frame == 0))
            } else {
                (0, 1, false)
            };
            let count = (1 + arg / 8).min(total - made);
            for place in made..made + count {
                let sequence = &mut self.sequence[index];
                let marker = place + 1 == total;
                let mut packet = rtp::Header::write(marker, 96 + track.0, *sequence, frame * 3_000, 7).to_vec();
                *sequence = sequence.wrapping_add(1);
                packet.extend_from_slice(&frame.to_be_bytes());
                packet.extend_from_slice(&[place, total, u8::from(key)]);
                packet.resize(packet.len() + if large { 1_400 } else { usize::from(arg & 7) }, 0xa5);
                packets.push(packet);
            }
            (start, end, keyframe) = (made == 0, made + count == total, key);
            if video {
                self.open = (!end).then_some((made + count, total, key));
            }
            self.frame[index] += u32::from(end);
        }
        let channel = if kind == ChunkKind::Media { track.rtp_channel() } else { track.rtcp_channel() };
        let mut bytes = Vec::new();
        for packet in &packets {
            bytes.extend_from_slice(&interleaved::frame(channel, packet));
        }
        let chunk = Chunk {
            number: self.number,
            track,
            kind,
            frame: u64::from(frame),
            frame_start: start,
            frame_end: end,
            keyframe,
            arrival: self.now,
            first_seq,
            rtp_time: frame * 3_000,
            bytes: Bytes::from(bytes),
            packets: packets.len() as u16,
        };
        self.number += 1;
        self.core.chunk(self.now, STREAM, Arc::new(chunk));
    }

    fn connection(&self, arg: u8) -> Option<Token> {
        self.connections.get(usize::from(arg) % self.connections.len().max(1)).copied()
    }

    fn connect(&mut self, arg: u8) {
        let peer = SocketAddr::from(([192, 0, 2, arg % 3], 40_000));
        let local = SocketAddr::from(([192, 0, 2, 9], 554));
        let token = self.core.connected(self.now, Conn::Scripted, peer, local, &[]).expect("it does not stop");
        self.connections.push(token);
        self.viewers.insert((token.slot, token.generation), Viewer::default());
    }

    fn request(&mut self, token: Token, op: u8, arg: u8) {
        const METHODS: [&str; 8] =
            ["SETUP", "PLAY", "PLAY", "PAUSE", "TEARDOWN", "DESCRIBE", "OPTIONS", "GET_PARAMETER"];
        let method = METHODS[usize::from(op) % METHODS.len()];
        let port = 5_000 + u16::from(arg >> 4) * 2;
        let (path, transport) = match (method, arg & 7) {
            ("SETUP", kind) => {
                let transport = match kind {
                    0..3 => "RTP/AVP/TCP;unicast".to_owned(),
                    3 => format!("RTP/AVP/TCP;unicast;interleaved={}-{}", arg, arg ^ 1),
                    _ => format!("RTP/AVP;unicast;client_port={port}-{}", port + 1),
                };
                (["a/trackID=0", "a/trackID=1"][usize::from(arg >> 3 & 1)], format!("Transport: {transport}\r\n"))
            }
            _ => ("a", String::new()),
        };
        let viewer = self.viewers.get(&(token.slot, token.generation));
        let session = match viewer.and_then(|viewer| viewer.session.as_ref()) {
            // Of the other shard.
            _ if arg == 255 => "Session: 0000000000000003\r\n".to_owned(),
            Some(id) if method != "OPTIONS" => format!("Session: {id}\r\n"),
            _ => String::new(),
        };
        self.requests += 1;
        let text = format!("{method} rtsp://h/{path} RTSP/1.0\r\nCSeq: {}\r\n{transport}{session}\r\n", self.requests);
        self.core.input(self.now, token, text.as_bytes());
    }

    fn step(&mut self) {
        let [op, arg] = [self.byte(), self.byte()];
        match op & 31 {
            0 | 1 => {
                if self.connections.len() < 12 {
                    self.connect(arg);
                }
            }
            2..8 => {
                if self.connections.is_empty() {
                    self.connect(op);
                }
                let what = self.byte();
                if let Some(token) = self.connection(op >> 5) {
                    self.request(token, what, arg);
                }
            }
            8 => {
                if let Some(token) = self.connection(arg) {
                    self.core.disconnected(self.now, token);
                }
            }
            9 => {
                let (garbage, rest) = self.data.split_at(usize::from(arg & 31).min(self.data.len()));
                self.data = rest;
                if let Some(token) = self.connection(op >> 5) {
                    self.core.input(self.now, token, garbage);
                }
            }
            10..16 => self.chunk(TrackId(0), ChunkKind::Media, arg, op & 32 != 0),
            16 => self.chunk(TrackId(1), ChunkKind::Media, arg, false),
            17 => self.chunk(TrackId(arg & 1), ChunkKind::Report, arg, false),
            18 if op & 0xe0 == 0xe0 => {
                // The inbox was full.
                self.number += u64::from(arg);
                self.torn |= arg > 0;
                self.core.chunk_refused(STREAM, u64::from(arg));
            }
            19 if op & 0xe0 == 0xe0 => self.described(["H264", "H265"][usize::from(arg & 1)]),
            20 => {
                const STATES: [SourceState; 5] = [
                    SourceState::Live,
                    SourceState::Silent,
                    SourceState::Connecting,
                    SourceState::Down,
                    SourceState::Idle,
                ];
                let state = STATES[usize::from(arg) % 5];
                self.core.source(self.now, STREAM, state);
            }
            21 => {
                self.core.set_limits(ShardLimits {
                    age: Duration::from_millis(20 + u64::from(arg) * 4),
                    log_bytes: if op & 32 == 0 { 1024 * 1024 } else { 4096 },
                    stall_timeout: Duration::from_secs(1 + u64::from(op >> 6)),
                    session_timeout: SESSION_TIMEOUT,
                    handshake_timeout: Duration::from_secs(10),
                    clients_max: 6,
                    clients_per_address: (arg & 1 == 1).then_some(4),
                });
            }
            22 => {
                let packet = [0x80, 201, 0, 1, 0, 0, 0, arg];
                let from = SocketAddr::from(([192, 0, 2, arg % 3], 5_001 + u16::from(op >> 5) * 2));
                self.core.rtcp(self.now, from, &packet);
            }
            23 => self.core.egress_mut().holds = arg & 1 == 1,
            24..26 => self.pass(Duration::from_millis(u64::from(arg) * if op & 32 == 0 { 1 } else { 60 })),
            _ => {
                let how = self.byte();
                let egress = self.core.egress_mut();
                if !egress.operations.is_empty() {
                    let index = usize::from(op >> 5) % egress.operations.len();
                    egress.complete(index, how, arg);
                }
            }
        }
        // Now and then completions wait, while other things happen.
        if op & 0x40 == 0 || arg & 1 == 0 {
            self.settle();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.core.next_timeout(self.now) <= self.now {
            self.core.timeout(self.now);
        }
    }

    /// Everything that can be done at this moment is done, and what came of it is looked at.
    fn settle(&mut self) {
        let mut rounds = 0;
        loop {
            let reaped = self.core.reap(self.now);
            let more = self.core.drive(self.now);
            if !(reaped || more) {
                break;
            }
            rounds += 1;
            assert!(rounds < 1_000, "it turns without end");
        }
        for reached in std::mem::take(&mut self.core.egress_mut().reached) {
            match reached {
                Reached::Stream(token, bytes) => {
                    self.viewers.entry((token.slot, token.generation)).or_default().stream(&bytes, self.torn);
                }
                Reached::Datagram(token, to, packet) => {
                    assert!((5_000..5_040).contains(&to.port()), "nobody asked for datagrams to {to}");
                    self.viewers.entry((token.slot, token.generation)).or_default().packet(&packet, self.torn);
                }
                Reached::Lost(token) => {
                    let viewer = self.viewers.entry((token.slot, token.generation)).or_default();
                    viewer.lossy = true;
                    for seen in &mut viewer.seen {
                        seen.open = None;
                    }
                }
            }
        }
        // Numbers of slots are used again, but never with the same generation.
        for handover in self.core.take_handovers() {
            assert!(!self.core.is_there(handover.token) && handover.shard == 1);
        }
        let core = &self.core;
        self.connections.retain(|token| core.is_open(*token));
        self.core.take_outbox();
        let in_flight = self.core.egress_mut().operations.len();
        assert!(in_flight <= self.core.links());
    }
}

/// Whatever becomes of a shard's operations, in whatever order: no client is sent half a frame or anything behind a gap, and
/// in the end nothing is left.
pub fn completions(start: Instant, data: &[u8]) {
    let config = CoreConfig {
        age: Duration::from_secs(1),
        log_bytes: 1024 * 1024,
        stall_timeout: Duration::from_secs(10),
        streams: vec![StreamSetup::plain(
            STREAM,
            "a",
            if data.first().is_some_and(|first| first & 1 == 1) { Start::Live } else { Start::Cached },
        )],
        server: ServerConfig {
            shard: 0,
            shards: 2,
            session_timeout: SESSION_TIMEOUT,
            handshake_timeout: Duration::from_secs(10),
            limit: SessionLimit::new(6),
            udp_ports: Some((7000, 7001)),
            all_ports: None,
            ids: SessionIds::Seeded(1),
            loads: None,
        },
    };
    let udp = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
    let core = Core::new(start, config, Hostile::default(), Some(udp));
    let (viewers, connections, sequence, frame) = Default::default();
    let mut driver = Driver {
        data: data.get(1..).unwrap_or_default(),
        core,
        now: start,
        viewers,
        connections,
        requests: 0,
        number: 0,
        sequence,
        frame,
        open: None,
        torn: false,
    };
    driver.described("H264");
    while !driver.data.is_empty() {
        driver.step();
    }
    driver.settle();
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    driver.core.report(driver.now, ReportRequest { reply, clients: true });
    let snapshot = answer.try_recv().expect("it answers at once");
    assert!(snapshot.streams.first().is_none_or(|stream| stream.log_bytes <= 1024 * 1024 + 2 * 64 * 1024));
    // Everybody goes, or is not heard of any more.
    for token in std::mem::take(&mut driver.connections) {
        driver.core.disconnected(driver.now, token);
    }
    let finish = |driver: &mut Driver<'_>| {
        while !driver.core.egress_mut().operations.is_empty() {
            driver.core.egress_mut().complete(0, 0, 0);
        }
        driver.settle();
        driver.pass(SESSION_TIMEOUT);
        driver.settle();
    };
    for _ in 0..4 {
        finish(&mut driver);
    }
    assert_eq!((driver.core.links(), driver.core.egress_mut().in_flight()), (0, 0), "something is left of them");
    driver.core.stop(driver.now);
    driver.settle();
    assert!(driver.core.is_stopped());
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    #[test]
    fn random_completions_keep_the_promises() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..400 {
            let data: Vec<u8> = (0..random.usize(..1_500)).map(|_| random.u8(..)).collect();
            super::completions(Instant::now(), &data);
        }
    }
}
