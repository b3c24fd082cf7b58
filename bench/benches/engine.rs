//! Measures the engine's own work without the kernel: the chunker, keyframe detection, the request parser, and the shard for each
//! client and chunk. Absolute times are valid for one machine only; the output at the end are ratios to a baseline in the same process.

use std::hint::black_box;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use rtsprelay::egress::{Completion, Conn, Datagram, Datagrams, Egress, EgressStats, Piece, Route, Token};
use rtsprelay::media::chunk::Chunk;
use rtsprelay::media::chunker::{Chunker, Packet};
use rtsprelay::media::codec::{Codec, Sight, inspect};
use rtsprelay::media::{Description, SourceTrack, StreamEvent, StreamId, StreamSink, TrackId};
use rtsprelay::metrics::{ClientLatency, ShardMetrics};
use rtsprelay::session::{ServerConfig, SessionIds, SessionLimit};
use rtsprelay::shard::core::{Core, CoreConfig, Start, StreamSetup};
use rtsprelay::source::packetizer::Packetizer;
use rtsprelay::source::pipeline::Pipeline;
use rtsprelay::wire::rtsp::Decoder;

/// Bytes of a frame at 4 Mbit/s and 30 frames a second.
const FRAME_BYTES: usize = 16_700;

/// Clients of the shard.
const CLIENTS: usize = 1000;

/// An egress whose every operation completes at the next flush, and that copies nothing.
#[derive(Default)]
struct Instantly {
    queued: Vec<Completion>,
    done: Vec<Completion>,
    /// Answers of the handshake, which tell the session.
    answers: Vec<u8>,
    operations: u64,
}

impl Egress for Instantly {
    fn send(&mut self, token: Token, _conn: &Conn, pieces: &mut Vec<Piece>, _apart: bool) {
        let mut bytes = 0;
        for piece in pieces.drain(..) {
            bytes += piece.len();
            // Media begins with a dollar sign.
            if !piece.as_slice().starts_with(b"$") {
                self.answers.extend_from_slice(piece.as_slice());
            }
        }
        self.queued.push(Completion { token, bytes, error: None, at: None, unsegmented: false });
    }

    fn send_datagrams(&mut self, _: Token, _: &Datagram, _: Route, _: &Rc<Datagrams>, _: bool) {
        unreachable!("the clients are interleaved");
    }

    fn flush(&mut self) {
        self.done.append(&mut self.queued);
    }

    fn reap(&mut self, max: usize, out: &mut Vec<Completion>) {
        let count = self.done.len().min(max);
        self.operations += count as u64;
        out.extend(self.done.drain(..count));
    }

    fn cancel(&mut self, _: Token) {}

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn is_busy(&self, token: Token) -> bool {
        self.queued.iter().chain(&self.done).any(|completion| completion.token == token)
    }

    fn in_flight(&self) -> usize {
        self.queued.len() + self.done.len()
    }

    fn stats(&self) -> EgressStats {
        EgressStats { operations: self.operations, ..EgressStats::default() }
    }
}

/// What a pipeline publishes.
#[derive(Default)]
struct Collected {
    description: Option<Arc<Description>>,
    chunks: Vec<Arc<Chunk>>,
}

impl StreamSink for Collected {
    fn accept(&mut self, published: StreamEvent) {
        match published {
            StreamEvent::Described(description) => self.description = Some(description),
            StreamEvent::Chunk(chunk) => self.chunks.push(chunk),
            StreamEvent::State(_) => {}
        }
    }
}

/// RTP packets of one frame.
fn packets(packetizer: &mut Packetizer, number: u32, keyframe: bool) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut nals: Vec<Vec<u8>> = Vec::new();
    if keyframe {
        nals.extend([vec![0x67, 66, 0xC0, 30, 0xDA, 2, 0x80, 0xBF, 0xE5, 0x84], vec![0x68, 0xCE, 0x3C, 0x80]]);
    }
    let mut slice = vec![0x55; FRAME_BYTES];
    // The slice's NAL header, then first_mb_in_slice 0 and a slice type.
    slice[..2].copy_from_slice(if keyframe { &[0x65, 0x88] } else { &[0x41, 0x9A] });
    nals.push(slice);
    let count = nals.len();
    for (index, nal) in nals.iter().enumerate() {
        packetizer.nal(nal, number * 3000, index + 1 == count, |packet| out.push(packet.to_vec()));
    }
    out
}

fn pipeline() -> (Pipeline, Collected) {
    let mut pipeline = Pipeline::new(1);
    let mut out = Collected::default();
    let track = SourceTrack {
        media: "video".into(),
        encoding: "H264".into(),
        payload_type: 96,
        clock_rate: 90_000,
        channels: None,
        fmtp: Some("packetization-mode=1".into()),
        attributes: Vec::new(),
    };
    pipeline.connected(Instant::now(), vec![track], &mut out);
    (pipeline, out)
}

/// A frame's way into a chunk: the chunker alone, and with everything before it.
fn chunking(criterion: &mut Criterion) {
    let mut packetizer = Packetizer::new(96, 1, 0);
    let frame = packets(&mut packetizer, 1, false);
    let bytes: usize = frame.iter().map(|p| p.len() + 4).sum();
    let flat = vec![0x55u8; bytes];
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut target = vec![0u8; bytes];
    group.bench_function("memcpy", |b| b.iter(|| black_box(&mut target).copy_from_slice(black_box(&flat))));
    let now = Instant::now();
    group.bench_function("chunker", |b| {
        let mut chunker = Chunker::default();
        chunker.set_tracks(1);
        b.iter(|| {
            let mut out = |chunk: Arc<Chunk>| drop(black_box(chunk));
            for (sequence, packet) in (0..).zip(&frame) {
                let (header, body) = packet.split_first_chunk().expect("an RTP packet has a header");
                let packet = Packet { header: *header, sequence, rtp_time: 1, prefix: &[], body };
                chunker.append(TrackId(0), now, false, packet, &mut out);
            }
            chunker.end_frame(TrackId(0), &mut out);
        });
    });
    group.bench_function("pipeline", |b| {
        let (mut pipeline, mut out) = pipeline();
        let mut packetizer = Packetizer::new(96, 1, 0);
        for packet in packets(&mut packetizer, 0, true) {
            pipeline.packet(TrackId(0), now, &packet, &mut out);
        }
        let mut number = 0u32;
        let mut sequence = packetizer.next_seq();
        let mut frame = packets(&mut packetizer, 1, false);
        b.iter(|| {
            number += 1;
            for packet in &mut frame {
                packet[2..4].copy_from_slice(&sequence.to_be_bytes());
                packet[4..8].copy_from_slice(&(number.wrapping_mul(3000)).to_be_bytes());
                sequence = sequence.wrapping_add(1);
                pipeline.packet(TrackId(0), now, packet, &mut out);
            }
            out.chunks.clear();
        });
    });
    group.bench_function("keyframe", |b| {
        b.iter(|| {
            let mut sight = Sight::default();
            for packet in &frame {
                inspect(Codec::H264, black_box(&packet[12..]), &mut sight, &mut |_| {});
            }
            sight.starts()
        });
    });
    group.finish();
}

/// A SETUP as ffmpeg sends it.
const REQUEST: &[u8] = b"SETUP rtsp://127.0.0.1:8554/front/track0 RTSP/1.0\r\n\
    Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nCSeq: 3\r\nUser-Agent: Lavf61.7.100\r\n\
    Session: 0123456789abcdef\r\n\r\n";

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    let end = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"\r\n\r\n");
    group.bench_function("scan", |b| b.iter(|| end(black_box(REQUEST))));
    group.bench_function("parser", |b| {
        let mut decoder = Decoder::new();
        b.iter(|| {
            decoder.feed(black_box(REQUEST));
            decoder.next_message().expect("valid").expect("whole")
        });
    });
    group.finish();
}

/// A shard with clients that play, and frames to give them.
struct Shard {
    core: Core<Instantly>,
    pipeline: Pipeline,
    packetizer: Packetizer,
    now: Instant,
    number: u32,
}

impl Shard {
    fn new(clients: usize) -> Shard {
        let now = Instant::now();
        let config = CoreConfig {
            age: Duration::from_secs(1),
            log_bytes: 32 << 20,
            stall_timeout: Duration::from_secs(10),
            streams: vec![StreamSetup::plain(StreamId::first(0), "cam", Start::Cached)],
            server: ServerConfig {
                shard: 0,
                shards: 1,
                session_timeout: Duration::from_secs(60),
                handshake_timeout: Duration::from_secs(10),
                limit: SessionLimit::new(clients),
                udp_ports: None,
                all_ports: None,
                ids: SessionIds::Seeded(1),
                loads: None,
            },
        };
        let mut core = Core::new(now, config, Instantly::default(), None);
        let (pipeline, out) = pipeline();
        core.described(now, StreamId::first(0), out.description.expect("connected describes"));
        let mut shard = Shard { core, pipeline, packetizer: Packetizer::new(96, 1, 0), now, number: 0 };
        shard.give(1);
        for client in 0..clients {
            shard.join(client);
        }
        shard
    }

    fn join(&mut self, client: usize) {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1024 + client as u16));
        let local = SocketAddr::from(([127, 0, 0, 1], 8554));
        let token = self.core.connected(self.now, Conn::Scripted, peer, local, &[]).expect("not stopping");
        let url = "rtsp://127.0.0.1:8554/cam";
        let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
        let answer = self.ask(token, &format!("SETUP {url}/trackID=0 RTSP/1.0\r\nCSeq: 1\r\n{transport}\r\n"));
        let session = answer.lines().find_map(|l| l.strip_prefix("Session: ")).unwrap_or_else(|| panic!("{answer}"));
        let session = session.split(';').next().expect("split gives one at least");
        let answer = self.ask(token, &format!("PLAY {url} RTSP/1.0\r\nCSeq: 2\r\nSession: {session}\r\n\r\n"));
        assert!(answer.starts_with("RTSP/1.0 200"), "{answer}");
    }

    fn ask(&mut self, token: Token, request: &str) -> String {
        self.core.egress_mut().answers.clear();
        self.core.input(self.now, token, request.as_bytes());
        self.turn();
        String::from_utf8_lossy(&self.core.egress_mut().answers).into_owned()
    }

    fn turn(&mut self) {
        while self.core.drive(self.now) || self.core.reap(self.now) {}
    }

    /// `count` frames, each to every client, at 30 frames a second of the shard's own time.
    fn give(&mut self, count: usize) {
        for _ in 0..count {
            let mut out = Collected::default();
            // A keyframe a second, so that the log stays as short as in life.
            for packet in packets(&mut self.packetizer, self.number, self.number.is_multiple_of(30)) {
                self.pipeline.packet(TrackId(0), self.now, &packet, &mut out);
            }
            for chunk in out.chunks {
                self.core.chunk(self.now, StreamId::first(0), chunk);
            }
            self.number += 1;
            self.now += Duration::from_nanos(33_333_333);
            self.turn();
        }
    }
}

/// One chunk to each of the shard's clients: log, walk, operation, completion, metrics.
fn sharding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    let flat = vec![0x55u8; FRAME_BYTES];
    let mut target = vec![0u8; FRAME_BYTES];
    group.bench_function("memcpy for each client", |b| {
        b.iter(|| {
            for _ in 0..CLIENTS {
                black_box(&mut target).copy_from_slice(black_box(&flat));
            }
        });
    });
    group.bench_function("chunk to each client", |b| {
        let mut shard = Shard::new(CLIENTS);
        shard.give(30);
        let before = shard.core.egress_mut().operations;
        shard.give(1);
        assert_eq!(shard.core.egress_mut().operations - before, CLIENTS as u64, "every client gets every frame");
        b.iter(|| shard.give(1));
    });
    group.finish();
}

/// What counting a send costs, beside the send itself: the bare `write` of a frame to a loopback connection.
fn counting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("metrics");
    let mut metrics = ShardMetrics::new();
    let mut clients: Vec<ClientLatency> = vec![ClientLatency::default(); CLIENTS];
    let mut turn = 0;
    group.bench_function("count a send", |b| {
        b.iter(|| {
            turn = (turn + 1) % CLIENTS;
            // From 50 µs to 20 ms, so that the histograms' memory is walked as it is at work.
            let latency = black_box(Duration::from_micros(50 + (turn * turn) as u64 / 50));
            clients[turn].record(latency);
            metrics.sent(StreamId::first(0), latency, FRAME_BYTES as u64);
        });
    });
    group.bench_function("write a frame", |b| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let mut near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (mut far, _) = listener.accept().expect("accept");
        let reader = std::thread::spawn(move || std::io::copy(&mut far, &mut std::io::sink()));
        let frame = vec![0x55u8; FRAME_BYTES];
        b.iter(|| near.write_all(black_box(&frame)).expect("the reader reads"));
        drop(near);
        reader.join().expect("the reader").expect("reads to the end");
    });
    group.finish();
}

/// The mean time of one benchmark, in ns, from what criterion has stored.
fn stored_ns(group: &str, name: &str) -> Option<f64> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    let path = target.join("criterion").join(group).join(name).join("new/estimates.json");
    let text = std::fs::read_to_string(path).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    value.pointer("/median/point_estimate")?.as_f64()
}

fn ratios() {
    println!("\nratios to the baseline of the same run:");
    for (group, name, baseline, what) in [
        ("frame", "chunker", "memcpy", "memcpy of the frame"),
        ("frame", "pipeline", "memcpy", "memcpy of the frame"),
        ("frame", "keyframe", "memcpy", "memcpy of the frame"),
        ("request", "parser", "scan", "finding the request's end"),
        ("metrics", "count a send", "write a frame", "the bare write of a frame over loopback"),
        ("shard", "chunk to each client", "memcpy for each client", "memcpy of the frame for each client"),
    ] {
        if let (Some(value), Some(base)) = (stored_ns(group, name), stored_ns(group, baseline)) {
            println!("  {group}/{name}: {:.3} × {what}", value / base);
        }
    }
    if let Some(value) = stored_ns("shard", "chunk to each client") {
        println!("  shard: {:.0} ns per client and chunk", value / CLIENTS as f64);
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    chunking(&mut criterion);
    parsing(&mut criterion);
    sharding(&mut criterion);
    counting(&mut criterion);
    criterion.final_summary();
    // Listed or tried as a test, it has measured nothing.
    if std::env::args().any(|argument| argument == "--bench") {
        ratios();
    }
}
