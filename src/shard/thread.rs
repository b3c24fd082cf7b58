//! The shard's thread: waits for whatever comes first, takes it in, and drives the core.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::core::{Core, CoreConfig, Group, Handover, UdpSockets};
use super::inbox::{ControlSender, ShardReceiver, ShardSender, ToControl, ToShard};
use crate::egress::runtime::Runtime;
use crate::egress::{Conn, Datagram, Egress, EpollEgress, IoKind, Token, UringEgress, ZeroCopy};
use crate::limits::{PUBLISHER_READ_BYTES_MAX, READ_BYTES_MAX, READS_PASS_MAX_US, USER_TIMEOUT_AFTER_STALL_S};
use crate::stream::StreamId;

/// What a shard's thread is started with.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The shard itself; its `server.udp_ports` are filled in here.
    pub core: CoreConfig,
    /// How it does its input and output.
    pub io: IoKind,
    /// Submission entries of its ring.
    pub ring_entries: u32,
    /// The address that its UDP sockets are bound to; `None` for a relay without UDP.
    pub udp: Option<IpAddr>,
    /// The differentiated services code point (RFC 2474) of all that it sends.
    pub dscp: u8,
    /// Which of its sends lend their pages to the kernel.
    pub zero_copy: ZeroCopy,
    /// The streams' multicast groups.
    pub multicast: Vec<MulticastSetup>,
    /// For tests of what it costs: sends are not counted.
    pub unmeasured: bool,
    /// The processor that the thread is pinned to.
    pub cpu: Option<usize>,
    /// Clients may ask for a fault of the shard's own code, for tests.
    pub test_panics: bool,
}

/// A stream's multicast group, as a shard is told of it.
#[derive(Clone, Debug)]
pub struct MulticastSetup {
    /// The stream.
    pub stream: StreamId,
    /// The group, with the port of the first track's RTP.
    pub address: SocketAddr,
    /// Routers that a packet may pass.
    pub ttl: u8,
    /// The interface that it is sent by; `None` for what the routes say.
    pub interface: Option<String>,
    /// The shard that sends.
    pub sender: u16,
    /// Sessions of all shards that receive it.
    pub receivers: Arc<AtomicUsize>,
}

fn open_groups(config: &ShardConfig) -> io::Result<Vec<(StreamId, Group)>> {
    let open = |setup: &MulticastSetup| {
        let socket = (setup.sender == config.core.server.shard)
            .then(|| {
                let interface = setup.interface.as_deref();
                let socket = Datagram::multicast(setup.address.ip(), setup.ttl, interface, config.io)?;
                socket.set_dscp(config.dscp)?;
                Ok::<_, io::Error>(socket)
            })
            .transpose()?;
        let receivers = Arc::clone(&setup.receivers);
        Ok((setup.stream, Group { address: setup.address, ttl: setup.ttl, receivers, socket }))
    };
    config.multicast.iter().map(open).collect()
}

/// A running shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its inbox.
    pub sender: ShardSender,
    /// Its thread, which ends after [`ToShard::Stop`].
    pub thread: JoinHandle<()>,
}

/// Messages that one pass takes in at most, of each kind. The runtime lets a task take 128 things in a turn: an inbox that is
/// full must leave some of them to the reads and to the egress.
const ABSORB_MAX: usize = 40;

/// Datagrams read and not taken in yet at most.
const DATAGRAMS_WAITING_MAX: usize = 256;

/// Errors in a row after which the next datagram is waited for more patiently.
const DATAGRAM_ERRORS_MAX: u32 = 64;

/// The wait after each error from then on.
const DATAGRAM_ERRORS_PAUSE: Duration = Duration::from_millis(10);

/// How long a pass takes in what connections have sent.
const READS_PASS_MAX: Duration = Duration::from_micros(READS_PASS_MAX_US);

/// Bytes of the largest datagram that is taken in.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// What was read from a connection; nothing more is read from it until this has been taken in.
struct Read {
    token: Token,
    conn: Conn,
    result: io::Result<usize>,
    buffer: Vec<u8>,
}

/// Starts a shard's thread and waits until it is ready to serve.
///
/// # Errors
/// If the ring, the runtime, the sockets or the thread cannot be made.
pub fn spawn(
    config: ShardConfig,
    sender: ShardSender,
    inbox: ShardReceiver,
    shards: Vec<ShardSender>,
    control: ControlSender,
) -> io::Result<ShardHandle> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let name = format!("shard-{}", config.core.server.shard);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = serve(config, inbox, shards, control, &ready) {
            // If nobody waits any more, the thread was ready once and the error is logged already.
            let _ = ready.send(Err(error));
        }
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(ShardHandle { sender, thread }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the shard's thread ended before it was ready")),
    }
}

fn serve(
    mut config: ShardConfig,
    inbox: ShardReceiver,
    shards: Vec<ShardSender>,
    control: ControlSender,
    ready: &std::sync::mpsc::Sender<io::Result<()>>,
) -> io::Result<()> {
    if let Some(cpu) = config.cpu {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    }
    let runtime = Runtime::new(config.io)?;
    runtime.block_on(async move {
        let udp = match config.udp {
            Some(address) => {
                let (rtp, rtcp) = Datagram::bind_pair(address, None, config.io)?;
                rtp.set_dscp(config.dscp)?;
                rtcp.set_dscp(config.dscp)?;
                let ports = (rtp.local_addr()?.port(), rtcp.local_addr()?.port());
                config.core.server.udp_ports = Some(ports);
                Some(UdpSockets { rtp, rtcp })
            }
            None => None,
        };
        let groups = open_groups(&config)?;
        match config.io {
            IoKind::Uring => {
                let mut egress = UringEgress::new(config.ring_entries)?;
                if !egress.set_zero_copy(config.zero_copy) && config.zero_copy == ZeroCopy::On {
                    tracing::warn!(
                        "zero_copy = \"on\", but this kernel has no zero-copy sends (Linux 6.1); sending with a copy"
                    );
                }
                Thread::new(&config, egress, udp, groups, inbox, shards, control).run(ready).await;
            }
            IoKind::Epoll => {
                let egress = EpollEgress::new();
                Thread::new(&config, egress, udp, groups, inbox, shards, control).run(ready).await;
            }
        }
        Ok(())
    })
}

struct Thread<E: Egress> {
    core: Core<E>,
    io: IoKind,
    dscp: u8,
    user_timeout: Duration,
    inbox: ShardReceiver,
    shards: Vec<ShardSender>,
    control: ControlSender,
    reads: mpsc::UnboundedReceiver<Read>,
    /// Bounded: what comes faster than it is taken in waits, and is lost, in the sockets' own buffers.
    datagrams: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
    read: mpsc::UnboundedSender<Read>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

impl<E: Egress> Thread<E> {
    fn new(
        config: &ShardConfig,
        egress: E,
        udp: Option<UdpSockets>,
        groups: Vec<(StreamId, Group)>,
        inbox: ShardReceiver,
        shards: Vec<ShardSender>,
        control: ControlSender,
    ) -> Self {
        let (read, reads) = mpsc::unbounded_channel();
        let (arrived, datagrams) = mpsc::channel(DATAGRAMS_WAITING_MAX);
        if let Some(udp) = &udp {
            // Publishers send here, and players open their paths with datagrams to the RTP port as well.
            for socket in [&udp.rtcp, &udp.rtp] {
                tokio::task::spawn_local(read_datagrams(socket.clone(), arrived.clone()));
            }
        }
        let now = Instant::now();
        let mut core = Core::new(now, config.core.clone(), egress, udp);
        if config.unmeasured {
            core.stop_measuring();
        }
        for (stream, group) in groups {
            core.set_group(stream, group);
        }
        if config.test_panics {
            core.set_test_panics();
        }
        Thread {
            core,
            io: config.io,
            dscp: config.dscp,
            user_timeout: config.core.stall_timeout + Duration::from_secs(USER_TIMEOUT_AFTER_STALL_S),
            inbox,
            shards,
            control,
            reads,
            datagrams,
            read,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            timer_at: now,
        }
    }

    async fn run(mut self, ready: &std::sync::mpsc::Sender<io::Result<()>>) {
        // The spawner waits for this; if it has given up, the inbox closes and ends the loop.
        let _ = ready.send(Ok(()));
        let mut more = false;
        while !self.core.is_stopped() {
            if more {
                // Lets the reads and the runtime itself have their turn between two passes.
                tokio::task::yield_now().await;
            }
            more = poll_fn(|cx| self.absorb_guarded(cx, more)).await;
            more |= self.guarded(|thread| {
                let now = Instant::now();
                thread.core.reap(now);
                let more = thread.core.drive(now);
                // Most sends complete while they are submitted.
                thread.core.reap(Instant::now()) | more
            });
            for peer in self.core.take_gone() {
                self.gone(peer);
            }
            self.hand_over();
            for message in self.core.take_outbox() {
                self.control.tell(message);
            }
        }
    }

    /// Does a part of a pass. A fault in the code that works for one client ends that client, and the pass goes on with its next
    /// part (true); of any other the thread ends, for nobody knows what it has left half done.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> bool) -> bool {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(more) => more,
            Err(payload) => {
                if !self.core.panicked(Instant::now()) {
                    resume_unwind(payload);
                }
                true
            }
        }
    }

    /// [`Thread::absorb`], guarded; whether the pass was cut off.
    fn absorb_guarded(&mut self, cx: &mut Context<'_>, more: bool) -> Poll<bool> {
        let mut polled = Poll::Pending;
        let cut_off = self.guarded(|thread| {
            polled = thread.absorb(cx, more);
            false
        });
        if cut_off { Poll::Ready(true) } else { polled.map(|()| false) }
    }

    /// A connection is gone.
    fn gone(&self, peer: SocketAddr) {
        self.inbox.connection_gone();
        self.control.tell(ToControl::Gone { peer });
    }

    /// Takes in what is there; pending if that is nothing.
    fn absorb(&mut self, cx: &mut Context<'_>, more: bool) -> Poll<()> {
        let mut any = more;
        let now = Instant::now();
        for _ in 0..ABSORB_MAX {
            match self.inbox.poll_recv(cx) {
                Poll::Ready(Some(message)) => self.message(now, message),
                Poll::Ready(None) => self.core.stop(now),
                Poll::Pending => break,
            }
            any = true;
        }
        for _ in 0..ABSORB_MAX {
            let Poll::Ready(Some(read)) = self.reads.poll_recv(cx) else { break };
            self.taken_in(now, read);
            any = true;
            // However many ask at once, the media goes on.
            if now.elapsed() > READS_PASS_MAX {
                break;
            }
        }
        for _ in 0..ABSORB_MAX / 4 {
            let Poll::Ready(Some((from, bytes))) = self.datagrams.poll_recv(cx) else { break };
            self.core.rtcp(now, from, &bytes);
            any = true;
        }
        any |= self.core.egress_mut().poll_ready(cx).is_ready();
        let due = self.core.next_timeout(now);
        if due <= now {
            self.core.timeout(now);
            any = true;
        } else if due != self.timer_at {
            self.timer_at = due;
            self.timer.as_mut().reset(due.into());
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            self.core.timeout(now);
            any = true;
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    fn message(&mut self, now: Instant, message: ToShard) {
        match message {
            ToShard::Chunk(stream, chunk) => self.core.chunk(now, stream, chunk),
            ToShard::Refused(stream, frames) => self.core.chunk_refused(stream, frames),
            ToShard::Described(stream, description) => self.core.described(now, stream, description),
            ToShard::Source(stream, state) => self.core.source(now, stream, state),
            ToShard::Publisher(session, verdict) => self.core.publisher(now, session, verdict),
            ToShard::Stream(setup) => self.core.set_stream(now, &setup),
            ToShard::RemoveStream(stream) => self.core.remove_stream(now, stream),
            ToShard::Limits(limits) => {
                self.user_timeout = limits.stall_timeout + Duration::from_secs(USER_TIMEOUT_AFTER_STALL_S);
                self.core.set_limits(limits);
            }
            ToShard::Access(access) => self.core.set_access(now, access),
            ToShard::Report(request) => self.core.report(now, request),
            // Whoever asked may have given up.
            ToShard::Ping(reply) => drop(reply.send(())),
            ToShard::Stop => self.core.stop(now),
            ToShard::Connection { stream, peer, unread, secured, moves } => {
                let conn = Conn::from_std(stream, self.io).map(|conn| conn.with_tls(secured));
                if let Err(error) = conn.and_then(|conn| self.connection(now, conn, peer, &unread, moves)) {
                    tracing::warn!(client = %peer, %error, "the connection could not be taken over: closed");
                    self.gone(peer);
                }
            }
        }
    }

    fn connection(&mut self, now: Instant, conn: Conn, peer: SocketAddr, unread: &[u8], moves: u8) -> io::Result<()> {
        let local = conn.local_addr()?;
        conn.set_options()?;
        conn.set_path(self.dscp, self.user_timeout)?;
        match self.core.moved_in(now, conn.clone(), (peer, local), unread, moves) {
            Some(token) => self.read_on(token, conn, Vec::with_capacity(READ_BYTES_MAX)),
            None => self.gone(peer),
        }
        Ok(())
    }

    fn taken_in(&mut self, now: Instant, read: Read) {
        let Read { token, conn, result, mut buffer } = read;
        match result {
            Ok(0) => self.core.disconnected(now, token),
            Ok(count) => self.core.input(now, token, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.core.disconnected(now, token),
        }
        if self.core.is_open(token) {
            buffer.clear();
            if buffer.capacity() < PUBLISHER_READ_BYTES_MAX && self.core.publishes(token) {
                buffer.reserve_exact(PUBLISHER_READ_BYTES_MAX);
            }
            self.read_on(token, conn, buffer);
        }
    }

    /// Reads once more from a connection. There is never more than one read under way, and none while its bytes are being
    /// looked at, so that the connection can be handed over whole.
    fn read_on(&self, token: Token, conn: Conn, buffer: Vec<u8>) {
        let read = self.read.clone();
        tokio::task::spawn_local(async move {
            let (result, buffer) = conn.read(buffer).await;
            // The shard has ended: nobody is left to read for.
            let _ = read.send(Read { token, conn, result, buffer });
        });
    }

    fn hand_over(&mut self) {
        for handover in self.core.take_handovers() {
            let Handover { conn, peer, shard, unread, moves, .. } = handover;
            let Some(shard) = self.shards.get(usize::from(shard)) else {
                self.gone(peer);
                continue;
            };
            match conn.to_std() {
                Ok(stream) => {
                    self.inbox.connection_gone();
                    let secured = conn.tls().cloned();
                    shard.tell(ToShard::Connection { stream, peer, unread, secured, moves });
                }
                Err(error) => {
                    self.gone(peer);
                    tracing::warn!(client = %peer, %error, "the connection could not be handed over: closed");
                }
            }
        }
    }
}

async fn read_datagrams(socket: Datagram, read: mpsc::Sender<(SocketAddr, Vec<u8>)>) {
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
    let mut errors = 0;
    loop {
        let (result, returned) = socket.recv_from(buffer).await;
        buffer = returned;
        match result {
            Ok((count, from)) => {
                errors = 0;
                let bytes = buffer[..count].to_vec();
                if read.send((from, bytes)).await.is_err() {
                    return;
                }
            }
            // ICMP answers to our own datagrams arrive as errors of the next read; they concern no read.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return,
            Err(_) if errors < DATAGRAM_ERRORS_MAX => {
                errors += 1;
                tokio::task::yield_now().await;
            }
            // The system is short of memory, or whatever else does not pass by itself at once.
            Err(_) => tokio::time::sleep(DATAGRAM_ERRORS_PAUSE).await,
        }
        buffer.clear();
    }
}
