//! Both implementations of [`Egress`] and of the ingress, on real sockets, through the same tests.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use socket2::SockRef;

use super::probe::probe;
use super::runtime::Runtime;
use super::*;
use crate::limits::OP_IOVECS_MAX;
use crate::media::chunk::{Run, Span, cut_runs};

/// The kinds that work on this machine.
pub(super) fn kinds() -> Vec<IoKind> {
    match probe() {
        Ok(()) => vec![IoKind::Uring, IoKind::Epoll],
        Err(why) => {
            eprintln!("tested without io_uring: {why}");
            vec![IoKind::Epoll]
        }
    }
}

/// An egress and the connections that it sends on.
pub(super) struct Rig {
    pub(super) kind: IoKind,
    pub(super) egress: Box<dyn Egress>,
    pub(super) done: HashMap<u32, Completion>,
}

pub(super) const ENTRIES: u32 = 256;

pub(super) fn on_both(test: impl AsyncFn(&mut Rig)) {
    for kind in kinds() {
        let modes = if kind == IoKind::Uring { &[ZeroCopy::Off, ZeroCopy::On][..] } else { &[ZeroCopy::Off] };
        for mode in modes {
            let runtime = Runtime::new(kind).unwrap();
            runtime.block_on(async {
                let egress: Box<dyn Egress> = match kind {
                    IoKind::Uring => {
                        let mut egress = UringEgress::new(ENTRIES).unwrap();
                        egress.set_zero_copy(*mode);
                        Box::new(egress)
                    }
                    IoKind::Epoll => Box::new(EpollEgress::new()),
                };
                let mut rig = Rig { kind, egress, done: HashMap::new() };
                test(&mut rig).await;
            });
        }
    }
}

impl Rig {
    /// A connection as in a shard, and the client's end.
    pub(super) fn connect(&self) -> (Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        let conn = Conn::from_std(near, self.kind).unwrap();
        conn.set_options().unwrap();
        (conn, far)
    }

    pub(super) fn send(&mut self, slot: u32, conn: &Conn, parts: &[&[u8]]) {
        let mut pieces: Vec<Piece> = parts.iter().map(|part| Bytes::copy_from_slice(part).into()).collect();
        self.egress.send(token(slot), conn, &mut pieces, false);
        assert!(pieces.is_empty());
    }

    /// Moves completions to `done`.
    pub(super) fn reap(&mut self) -> usize {
        let mut out = Vec::new();
        self.egress.reap(usize::MAX, &mut out);
        let count = out.len();
        for completion in out {
            let slot = completion.token.slot;
            assert!(self.done.insert(slot, completion).is_none(), "two completions for one operation");
        }
        count
    }

    /// Waits for the completion of the slot's operation.
    pub(super) async fn wait(&mut self, slot: u32) -> Completion {
        self.egress.flush();
        let all = async {
            loop {
                self.reap();
                if let Some(completion) = self.done.remove(&slot) {
                    return completion;
                }
                poll_fn(|cx| self.egress.poll_ready(cx)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("the operation completes")
    }

    pub(super) async fn wait_ok(&mut self, slot: u32, bytes: usize) {
        let completion = self.wait(slot).await;
        assert_eq!((completion.bytes, completion.error.map(|e| e.to_string())), (bytes, None));
    }

    /// Sends until the socket takes no more; the last operation, of `step` bytes, remains in flight. Returns all bytes sent.
    fn block(&mut self, slot: u32, conn: &Conn, step: usize) -> usize {
        let part = vec![b'x'; step];
        let mut sent = 0;
        loop {
            self.send(slot, conn, &[&part]);
            self.egress.flush();
            sent += step;
            // An operation that is not complete after its submission waits for the client.
            self.reap();
            if self.done.remove(&slot).is_none() {
                assert_eq!(self.egress.in_flight(), 1);
                return sent;
            }
        }
    }
}

pub(super) fn token(slot: u32) -> Token {
    Token { slot, generation: 7 }
}

/// Reads on another thread until `len` bytes have arrived.
pub(super) fn read_on_thread(mut far: TcpStream, len: usize) -> std::thread::JoinHandle<(TcpStream, Vec<u8>)> {
    std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        far.read_exact(&mut bytes).unwrap();
        (far, bytes)
    })
}

pub(super) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| ((index + seed * 7919) % 251) as u8).collect()
}

#[test]
fn pieces_arrive_whole_and_in_order() {
    on_both(async |rig| {
        let (conn, mut far) = rig.connect();
        for count in [1, 2, 300, OP_IOVECS_MAX, 1] {
            let parts: Vec<Vec<u8>> = (0..count).map(|index| pattern(1 + index % 150, index)).collect();
            let whole = parts.concat();
            let reader = read_on_thread(far, whole.len());
            rig.send(0, &conn, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            assert_eq!(rig.egress.in_flight(), 1);
            rig.wait_ok(0, whole.len()).await;
            assert_eq!(rig.egress.in_flight(), 0);
            let (back, bytes) = reader.join().unwrap();
            assert!(bytes == whole, "{count} pieces");
            far = back;
        }
        assert_eq!(rig.egress.stats().operations, 5);
    });
}

#[test]
fn an_operation_larger_than_the_socket_is_sent_whole() {
    on_both(async |rig| {
        for count in [1, 40] {
            let (conn, far) = rig.connect();
            let parts: Vec<Vec<u8>> = (0..count).map(|index| pattern(8_000_000 / count, index)).collect();
            let whole = parts.concat();
            let reader = read_on_thread(far, whole.len());
            rig.send(0, &conn, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            rig.wait_ok(0, whole.len()).await;
            assert!(reader.join().unwrap().1 == whole);
        }
    });
}

#[test]
fn a_client_that_does_not_read_blocks_only_itself() {
    on_both(async |rig| {
        let (slow, slow_far) = rig.connect();
        let sent = rig.block(1, &slow, 100_000);
        let (fast, mut fast_far) = rig.connect();
        for _ in 0..100 {
            rig.send(0, &fast, &[b"frame"]);
            rig.wait_ok(0, 5).await;
            fast_far.read_exact(&mut [0; 5]).unwrap();
        }
        assert_eq!(rig.egress.in_flight(), 1);
        let reader = read_on_thread(slow_far, sent);
        rig.wait_ok(1, 100_000).await;
        assert!(reader.join().unwrap().1.iter().all(|&byte| byte == b'x'));
    });
}

#[test]
fn many_blocked_clients_wake_one_by_one() {
    on_both(async |rig| {
        let mut clients = Vec::new();
        for slot in 0..20 {
            let (conn, far) = rig.connect();
            let step = 100_000 + slot as usize;
            let mut sent = 0;
            loop {
                rig.send(slot, &conn, &[&vec![slot as u8; step]]);
                rig.egress.flush();
                sent += step;
                rig.reap();
                if rig.done.remove(&slot).is_none() {
                    break;
                }
            }
            clients.push((slot, conn, far, sent, step));
        }
        assert_eq!(rig.egress.in_flight(), 20);
        for (slot, _conn, far, sent, step) in clients.into_iter().rev() {
            let reader = read_on_thread(far, sent);
            rig.wait_ok(slot, step).await;
            assert!(reader.join().unwrap().1.iter().all(|&byte| byte == slot as u8));
            assert_eq!(rig.egress.in_flight(), slot as usize);
        }
    });
}

#[test]
fn a_cancelled_operation_tells_what_it_sent() {
    on_both(async |rig| {
        let (conn, far) = rig.connect();
        let sent = rig.block(3, &conn, 100_000);
        rig.egress.cancel(Token { slot: 3, generation: 6 });
        rig.egress.cancel(Token { slot: 4, generation: 0 });
        rig.reap();
        assert_eq!(rig.egress.in_flight(), 1, "the cancel of another client's token does nothing");
        rig.egress.cancel(token(3));
        rig.egress.cancel(token(3));
        let completion = rig.wait(3).await;
        assert_eq!(completion.token, token(3));
        assert_eq!(completion.error.unwrap().raw_os_error(), Some(libc::ECANCELED));
        assert!(completion.bytes < 100_000);
        assert_eq!(rig.egress.in_flight(), 0);
        rig.egress.cancel(token(3));
        // Exactly what the completion reports arrives.
        let before = sent - 100_000 + completion.bytes;
        conn.shutdown();
        drop(conn);
        let mut bytes = Vec::new();
        { far }.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), before);
    });
}

#[test]
fn a_cancel_right_after_the_send_finds_it() {
    on_both(async |rig| {
        let (conn, _far) = rig.connect();
        rig.send(0, &conn, &[&vec![0; 20_000_000]]);
        rig.egress.cancel(token(0));
        let completion = rig.wait(0).await;
        assert_eq!(completion.error.unwrap().raw_os_error(), Some(libc::ECANCELED));
    });
}

#[test]
fn a_slot_goes_to_the_next_generation() {
    on_both(async |rig| {
        for generation in [0, 1, u32::MAX] {
            let (conn, mut far) = rig.connect();
            let token = Token { slot: 5, generation };
            rig.egress.send(token, &conn, &mut vec![Bytes::from_static(b"hello").into()], false);
            let completion = rig.wait(5).await;
            assert_eq!((completion.token, completion.bytes), (token, 5));
            far.read_exact(&mut [0; 5]).unwrap();
        }
    });
}

#[test]
fn a_closed_client_ends_its_operation_with_an_error() {
    on_both(async |rig| {
        // Reset while blocked.
        let (conn, far) = rig.connect();
        rig.block(0, &conn, 100_000);
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        let completion = rig.wait(0).await;
        let errno = completion.error.unwrap().raw_os_error().unwrap();
        assert!([libc::ECONNRESET, libc::EPIPE].contains(&errno), "{errno}");
        // A send after that.
        rig.send(0, &conn, &[b"late"]);
        assert_eq!(rig.wait(0).await.error.unwrap().raw_os_error(), Some(libc::EPIPE));
        // Our end is shut down while a send is blocked.
        let (conn, _far) = rig.connect();
        rig.block(1, &conn, 100_000);
        conn.shutdown();
        assert!(rig.wait(1).await.error.is_some());
        assert_eq!(rig.egress.in_flight(), 0);
    });
}

#[test]
fn two_thousand_operations_go_in_one_flush() {
    on_both(async |rig| {
        let mut ends: Vec<(Conn, TcpStream)> = (0..100).map(|_| rig.connect()).collect();
        for slot in 0..2000u32 {
            let conn = ends[slot as usize % 100].0.clone();
            rig.send(slot, &conn, &[&slot.to_be_bytes()]);
        }
        assert_eq!(rig.egress.in_flight(), 2000);
        rig.egress.flush();
        let mut few = Vec::new();
        rig.egress.reap(10, &mut few);
        assert_eq!(few.len(), 10);
        for completion in few {
            rig.done.insert(completion.token.slot, completion);
        }
        while rig.done.len() < 2000 {
            poll_fn(|cx| rig.egress.poll_ready(cx)).await;
            rig.reap();
        }
        assert_eq!(rig.egress.in_flight(), 0);
        for (index, (_, far)) in ends.iter_mut().enumerate() {
            for round in 0..20 {
                let mut bytes = [0; 4];
                far.read_exact(&mut bytes).unwrap();
                assert_eq!(u32::from_be_bytes(bytes) as usize, round * 100 + index, "in the order of queueing");
            }
        }
        let stats = rig.egress.stats();
        assert_eq!(stats.operations, 2000);
        if rig.kind == IoKind::Uring {
            // With zero-copy sends there are twice as many completions, which take more calls to fetch.
            let calls = if stats.zero_copy_copied > 0 { 2 } else { 1 } * 2000 / u64::from(ENTRIES) + 4;
            assert!(stats.submits <= calls, "{} submissions", stats.submits);
        }
    });
}

#[test]
fn an_egress_dropped_with_a_blocked_operation_ends() {
    on_both(async |rig| {
        let (conn, far) = rig.connect();
        rig.block(0, &conn, 100_000);
        rig.egress = Box::new(EpollEgress::new());
        drop(conn);
        // The descriptor was closed with the operation, so the client sees the end.
        { far }.read_to_end(&mut Vec::new()).unwrap();
    });
}

#[test]
fn random_operations_keep_every_stream_whole() {
    for seed in [1, 2, 3, fastrand::u64(..)] {
        on_both(async |rig| {
            println!("seed {seed}, {:?}", rig.kind);
            Storm::new(rig, seed).run(rig).await;
        });
    }
}

/// Clients that are sent to, read, are cancelled and leave at random.
struct Storm {
    random: fastrand::Rng,
    clients: Vec<StormClient>,
}

/// Byte n of every stream is `n % PERIOD`.
const PERIOD: usize = 251;

fn stream_bytes(at: usize, len: usize) -> Bytes {
    static ALL: LazyLock<Bytes> = LazyLock::new(|| (0..1_000_000).map(|n| (n % PERIOD) as u8).collect());
    ALL.slice(at % PERIOD..at % PERIOD + len)
}

struct StormClient {
    conn: Conn,
    far: TcpStream,
    generation: u32,
    /// Bytes completed, bytes of the operation in flight, bytes read.
    sent: usize,
    asked: Option<usize>,
    read: usize,
    cancelled: bool,
}

impl Storm {
    fn new(rig: &Rig, seed: u64) -> Storm {
        let clients = (0..30).map(|_| StormClient::new(rig, 0)).collect();
        Storm { random: fastrand::Rng::with_seed(seed), clients }
    }

    async fn run(mut self, rig: &mut Rig) {
        for _ in 0..3000 {
            let slot = self.random.usize(..self.clients.len());
            match self.random.u32(..100) {
                0..40 => self.send(rig, slot),
                40..60 => rig.egress.flush(),
                60..62 => {
                    self.clients[slot].cancelled |= self.clients[slot].asked.is_some();
                    rig.egress.cancel(self.clients[slot].token(slot));
                }
                62..66 => {
                    let most = self.random.usize(1..400_000);
                    self.clients[slot].read(most);
                }
                _ => self.reap(rig),
            }
            let under_way = self.clients.iter().filter(|client| client.asked.is_some()).count();
            assert_eq!(rig.egress.in_flight(), under_way);
            if self.random.u32(..10) == 0 {
                tokio::task::yield_now().await;
            }
        }
        rig.egress.flush();
        self.reap(rig);
        assert!(rig.egress.in_flight() > 0, "the clients read too well to be a test");
        while rig.egress.in_flight() > 0 {
            self.clients.iter_mut().for_each(|client| client.read(usize::MAX));
            let ready = poll_fn(|cx| rig.egress.poll_ready(cx));
            let _ = tokio::time::timeout(Duration::from_millis(1), ready).await;
            self.reap(rig);
        }
        for client in self.clients {
            client.end();
        }
    }

    fn send(&mut self, rig: &mut Rig, slot: usize) {
        let client = &mut self.clients[slot];
        if client.asked.is_some() {
            return;
        }
        let mut at = client.sent;
        let count = if self.random.bool() { 1 } else { self.random.usize(1..40) };
        let mut pieces = Vec::new();
        for _ in 0..count {
            let len = self.random.usize(1..100_000 / count);
            pieces.push(stream_bytes(at, len).into());
            at += len;
        }
        client.asked = Some(at - client.sent);
        rig.egress.send(client.token(slot), &client.conn, &mut pieces, self.random.bool());
    }

    fn reap(&mut self, rig: &mut Rig) {
        let mut out = Vec::new();
        let max = self.random.usize(1..50);
        rig.egress.reap(max, &mut out);
        assert!(out.len() <= max);
        for completion in out {
            let slot = completion.token.slot as usize;
            let client = &mut self.clients[slot];
            assert_eq!(completion.token, client.token(slot));
            let asked = client.asked.take().expect("an operation was under way");
            client.sent += completion.bytes;
            match completion.error {
                None => assert_eq!(completion.bytes, asked),
                Some(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
                    assert!(client.cancelled && completion.bytes < asked);
                }
            }
            if std::mem::take(&mut client.cancelled) {
                let next = StormClient::new(rig, client.generation + 1);
                std::mem::replace(client, next).end();
            }
        }
    }
}

impl StormClient {
    fn new(rig: &Rig, generation: u32) -> StormClient {
        let (conn, far) = rig.connect();
        far.set_nonblocking(true).unwrap();
        // So that it blocks soon; a smaller buffer than a few loopback segments would make each wait for a window probe.
        SockRef::from(&far).set_recv_buffer_size(256 * 1024).unwrap();
        StormClient { conn, far, generation, sent: 0, asked: None, read: 0, cancelled: false }
    }

    fn token(&self, slot: usize) -> Token {
        Token { slot: slot as u32, generation: self.generation }
    }

    fn check(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(500_000) {
            assert!(part == stream_bytes(self.read, part.len()), "after byte {}", self.read);
            self.read += part.len();
        }
    }

    fn read(&mut self, most: usize) {
        let mut buf = vec![0; 65_536];
        let end = self.read.saturating_add(most);
        while self.read < end {
            let len = buf.len().min(end - self.read);
            match self.far.read(&mut buf[..len]) {
                Ok(len) => self.check(&buf[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Closes it; exactly what completions have reported arrives.
    fn end(mut self) {
        self.conn.shutdown();
        self.far.set_nonblocking(false).unwrap();
        let mut rest = Vec::new();
        (&self.far).read_to_end(&mut rest).unwrap();
        self.check(&rest);
        assert_eq!(self.read, self.sent);
    }
}

#[test]
fn refusals_of_the_segmentation_are_told_apart() {
    assert_eq!(datagram_errno(libc::EINVAL, Some(1400)), libc::EMSGSIZE);
    assert_eq!(datagram_errno(libc::EIO, Some(1400)), libc::EMSGSIZE);
    assert_eq!(datagram_errno(libc::EINVAL, None), libc::EINVAL);
    assert_eq!(datagram_errno(libc::EAGAIN, Some(1400)), libc::EAGAIN);
}

/// Packets of these sizes, each filled with one byte value, as in a chunk.
pub(super) fn datagrams(sizes: &[u16]) -> Rc<Datagrams> {
    let mut bytes = Vec::new();
    let mut packets = Vec::new();
    for (index, &len) in sizes.iter().enumerate() {
        bytes.extend([b'$', 0]);
        bytes.extend(len.to_be_bytes());
        packets.push(Span { offset: bytes.len() as u32, len });
        bytes.resize(bytes.len() + usize::from(len), index as u8);
    }
    let runs = cut_runs(&packets);
    Rc::new(Datagrams::new(Bytes::from(bytes).into(), packets.into(), runs))
}

/// Receives datagrams until there are `count`, and any beyond them. The kernel of a busy machine delivers them a moment after
/// accepting them.
fn receive(socket: &UdpSocket, count: usize) -> Vec<(usize, u8)> {
    let mut all = Vec::new();
    let mut buf = vec![0; 70_000];
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    loop {
        socket.set_nonblocking(all.len() >= count).unwrap();
        let Ok(len) = socket.recv(&mut buf) else { return all };
        assert!(buf[..len].iter().all(|&byte| byte == buf[0]));
        all.push((len, buf[0]));
    }
}

fn expected(sizes: &[u16]) -> Vec<(usize, u8)> {
    sizes.iter().enumerate().map(|(index, &len)| (usize::from(len), index as u8)).collect()
}

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[test]
fn runs_arrive_as_datagrams_of_their_packets() {
    on_both(async |rig| {
        for address in LOOPBACKS {
            let (rtp, _rtcp) = Datagram::bind_pair(address, None, rig.kind).unwrap();
            let far = UdpSocket::bind((address, 0)).unwrap();
            SockRef::from(&far).set_recv_buffer_size(1 << 20).unwrap();
            let to = far.local_addr().unwrap();
            // One run; one packet; several runs; more runs than are queued at a time; more packets than a run has.
            let many: Vec<u16> = (0..40).map(|index| 100 + index).collect();
            let long = vec![50; 150];
            let cases: [&[u16]; 5] =
                [&[1400, 1400, 1400, 200], &[33], &[40, 1400, 1400, 900, 1452, 1452, 7], &many, &long];
            for sizes in cases {
                let chunk = datagrams(sizes);
                let total = sizes.iter().map(|&len| usize::from(len)).sum();
                for plain in [false, true] {
                    rig.egress.send_datagrams(token(0), &rtp, to.into(), &chunk, plain);
                    rig.wait_ok(0, total).await;
                    assert_eq!(receive(&far, sizes.len()), expected(sizes), "{address} {sizes:?} plain {plain}");
                }
            }
            assert_eq!(rig.egress.in_flight(), 0);
        }
    });
}

#[test]
fn the_clients_of_a_chunk_share_its_datagrams() {
    on_both(async |rig| {
        let (rtp, _rtcp) = Datagram::bind_pair(LOOPBACKS[0], None, rig.kind).unwrap();
        let clients: Vec<UdpSocket> = (0..100).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let sizes = [60, 1400, 1400, 300];
        let chunks: Vec<Rc<Datagrams>> = (0..12).map(|_| datagrams(&sizes)).collect();
        for chunk in &chunks {
            for (slot, far) in clients.iter().enumerate() {
                rig.egress.send_datagrams(token(slot as u32), &rtp, far.local_addr().unwrap().into(), chunk, false);
            }
            rig.egress.flush();
            while rig.done.len() < clients.len() {
                rig.reap();
            }
            assert!(rig.done.drain().all(|(_, done)| done.bytes == 3160 && done.error.is_none()));
            assert!(clients.iter().all(|far| receive(far, sizes.len()) == expected(&sizes)));
        }
        assert!(chunks.iter().all(|chunk| Rc::strong_count(chunk) == 1), "a completed operation releases its chunk");
    });
}

#[test]
fn no_run_is_sent_after_one_that_failed() {
    on_both(async |rig| {
        let (rtp, _rtcp) = Datagram::bind_pair(LOOPBACKS[0], None, rig.kind).unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = far.local_addr().unwrap();
        // The third run is one packet that is too large for a datagram.
        let chunk = datagrams(&[10, 20, 65_530, 65_533, 5]);
        for plain in [false, true] {
            rig.egress.send_datagrams(token(0), &rtp, to.into(), &chunk, plain);
            let completion = rig.wait(0).await;
            assert_eq!(completion.error.unwrap().raw_os_error(), Some(libc::EMSGSIZE));
            assert_eq!(completion.bytes, 30);
            assert_eq!(receive(&far, 2), [(10, 0), (20, 1)]);
        }
        // A later operation is not affected.
        rig.egress.send_datagrams(token(0), &rtp, to.into(), &datagrams(&[10]), false);
        rig.wait_ok(0, 10).await;
        // A failure in the first group of runs keeps the second from being sent.
        let mut sizes = vec![65_533];
        sizes.extend((0..40).map(|index| 100 + index));
        rig.egress.send_datagrams(token(0), &rtp, to.into(), &datagrams(&sizes), false);
        let completion = rig.wait(0).await;
        assert_eq!((completion.error.unwrap().raw_os_error(), completion.bytes), (Some(libc::EMSGSIZE), 0));
        assert_eq!(receive(&far, 1), [(10, 0)]);
    });
}

#[test]
fn the_packets_of_a_run_that_is_refused_go_one_by_one() {
    on_both(async |rig| {
        let (rtp, _rtcp) = Datagram::bind_pair(LOOPBACKS[0], None, rig.kind).unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        SockRef::from(&far).set_recv_buffer_size(1 << 20).unwrap();
        let to = far.local_addr().unwrap();
        let sizes = [10, 30_000, 30_000, 30_000, 700];
        let whole = datagrams(&sizes);
        // The middle run is too large for a datagram; the kernel reports a path's MTU with the same error.
        let run = |first, count, segment| Run { first, count, segment };
        let runs = smallvec![run(0, 1, 10), run(1, 3, 30_000), run(4, 1, 700)];
        let chunk = Rc::new(Datagrams::new(Bytes::copy_from_slice(whole.bytes()).into(), whole.packets.clone(), runs));
        rig.egress.send_datagrams(token(0), &rtp, to.into(), &chunk, false);
        let completion = rig.wait(0).await;
        assert!(completion.error.is_none() && completion.unsegmented, "{completion:?}");
        assert_eq!(completion.bytes, 90_710);
        assert_eq!(receive(&far, sizes.len()), expected(&sizes));
        rig.egress.send_datagrams(token(0), &rtp, to.into(), &datagrams(&[10, 10]), false);
        let completion = rig.wait(0).await;
        assert!(completion.error.is_none() && !completion.unsegmented, "a later operation is not affected");
    });
}

#[test]
fn datagrams_to_the_other_family_fail() {
    on_both(async |rig| {
        let (rtp, _rtcp) = Datagram::bind_pair(LOOPBACKS[1], None, rig.kind).unwrap();
        let to: SocketAddr = "127.0.0.1:9".parse().unwrap();
        rig.egress.send_datagrams(token(0), &rtp, to.into(), &datagrams(&[10, 20, 20]), false);
        let completion = rig.wait(0).await;
        assert_eq!(completion.bytes, 0);
        assert!(completion.error.is_some_and(|error| error.raw_os_error() != Some(libc::ECANCELED)));
    });
}

#[test]
fn a_connection_is_read_and_sent_on_at_once() {
    on_both(async |rig| {
        let (conn, far) = rig.connect();
        assert_eq!(conn.peer_addr().unwrap(), far.local_addr().unwrap());
        assert_eq!(conn.local_addr().unwrap(), far.peer_addr().unwrap());
        let reading = conn.clone();
        let reader = tokio::task::spawn_local(async move {
            let mut all = Vec::new();
            let mut buf = Vec::with_capacity(1024);
            loop {
                let result;
                (result, buf) = reading.read(buf).await;
                match result.unwrap() {
                    0 => return all,
                    len => assert_eq!(len, buf.len()),
                }
                all.extend_from_slice(&buf);
            }
        });
        tokio::task::yield_now().await;
        // The read waits; the send blocks and completes; the read gets all of it.
        let sent = rig.block(0, &conn, 100_000);
        let asked = pattern(5000, 3);
        io::Write::write_all(&mut &far, &asked).unwrap();
        let far = read_on_thread(far, sent);
        rig.wait_ok(0, 100_000).await;
        let (far, _) = far.join().unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        assert!(reader.await.unwrap() == asked);
    });
}

#[test]
fn a_shutdown_ends_a_read_and_then_closes() {
    on_both(async |rig| {
        let (conn, mut far) = rig.connect();
        let reading = conn.clone();
        let reader = tokio::task::spawn_local(async move { reading.read(Vec::new()).await.0 });
        tokio::task::yield_now().await;
        conn.shutdown();
        assert_eq!(reader.await.unwrap().unwrap(), 0);
        drop(conn);
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn a_connection_moves_to_another_thread() {
    on_both(async |rig| {
        let (conn, mut far) = rig.connect();
        let kind = rig.kind;
        let moved = conn.to_std().unwrap();
        drop(conn);
        std::thread::spawn(move || {
            let runtime = Runtime::new(kind).unwrap();
            runtime.block_on(async {
                let conn = Conn::from_std(moved, kind).unwrap();
                let (result, buf) = conn.read(Vec::with_capacity(10)).await;
                assert_eq!((result.unwrap(), &buf[..]), (4, &b"ping"[..]));
            });
        });
        io::Write::write_all(&mut far, b"ping").unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn a_pair_has_an_even_port_and_the_next() {
    on_both(async |rig| {
        for address in LOOPBACKS {
            let (rtp, rtcp) = Datagram::bind_pair(address, None, rig.kind).unwrap();
            let port = rtp.local_addr().unwrap().port();
            assert_eq!((port % 2, rtcp.local_addr().unwrap()), (0, SocketAddr::new(address, port + 1)));
            // The range is used up by that pair; then it is free again.
            let taken = Datagram::bind_pair(address, Some((port - 1, port + 1)), rig.kind);
            assert_eq!(taken.err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
            drop((rtp, rtcp));
            let (rtp, _rtcp) = Datagram::bind_pair(address, Some((port - 1, port + 1)), rig.kind).unwrap();
            assert_eq!(rtp.local_addr().unwrap().port(), port);
        }
    });
}

#[test]
fn datagrams_are_received_with_their_sender() {
    on_both(async |rig| {
        for address in LOOPBACKS {
            let (_rtp, rtcp) = Datagram::bind_pair(address, None, rig.kind).unwrap();
            let far = UdpSocket::bind((address, 0)).unwrap();
            let to = rtcp.local_addr().unwrap();
            let receiving = rtcp.clone();
            let receiver = tokio::task::spawn_local(async move {
                let (result, buf) = receiving.recv_from(Vec::with_capacity(100)).await;
                let (len, from) = result.unwrap();
                assert_eq!(&buf[..], b"report");
                assert_eq!(len, 6);
                let (result, buf) = receiving.recv_from(buf).await;
                assert_eq!((result.unwrap().0, &buf[..]), (3, &b"bye"[..]));
                from
            });
            tokio::task::yield_now().await;
            far.send_to(b"report", to).unwrap();
            far.send_to(b"bye", to).unwrap();
            assert_eq!(receiver.await.unwrap(), far.local_addr().unwrap());
        }
    });
}

#[test]
fn a_listener_accepts_in_both_runtimes() {
    on_both(async |rig| {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let listener = Listener::bind(address.parse().unwrap()).unwrap();
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
            let mut far = TcpStream::connect(to).unwrap();
            let (near, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.ip().to_canonical(), to.ip());
            let conn = Conn::from_std(near, rig.kind).unwrap();
            rig.send(0, &conn, &[b"hi"]);
            rig.wait_ok(0, 2).await;
            far.read_exact(&mut [0; 2]).unwrap();
        }
    });
}
