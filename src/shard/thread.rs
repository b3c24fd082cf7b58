//! The shard's thread: waits for events, absorbs them, and drives the core.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::core::{Core, Mail};
use super::fanout::Fanout;
use super::handing::Handing;
use super::home::Homes;
use super::inbox::{ControlSender, ShardReceiver, ShardSender, ToControl, ToShard};
use super::local::Local;
use super::read_size;
use super::types::{CoreConfig, Group, Handover, Hosting, Lingering, SocketFds, UdpSockets, WebClient};
use crate::egress::runtime::Runtime;
use crate::egress::{Conn, Datagram, Egress, EpollEgress, IoKind, Token, UringEgress, Valve, ZeroCopy};
use crate::limits::{
    LINGER_MS, LINGER_READ_BYTES_MAX, READ_BYTES_MAX, READS_PASS_MAX_US, STOP_MAX_MS, USER_TIMEOUT_AFTER_STALL_S,
};
use crate::media::StreamId;
use crate::memory;
use crate::metrics::ReportRequest;
use crate::source::camera::pauses;
use crate::source::turns;
use crate::testing::Testing;

/// The parameters of a shard's thread.
#[derive(Debug)]
pub struct ShardConfig {
    /// The shard itself; its `server.udp_ports` are filled in here.
    pub core: CoreConfig,
    /// How it does its input and output.
    pub io: IoKind,
    /// Submission entries of its ring.
    pub ring_entries: u32,
    /// The address for its UDP sockets; `None` for a relay without UDP.
    pub udp: Option<IpAddr>,
    /// The differentiated services code point (RFC 2474) of everything it sends.
    pub dscp: u8,
    /// The range of ports for its two UDP sockets, inclusive; `None` for any.
    pub udp_ports: Option<(u16, u16)>,
    /// Which of its sends lend their pages to the kernel.
    pub zero_copy: ZeroCopy,
    /// The streams' multicast groups.
    pub multicast: Vec<MulticastSetup>,
    /// Maximum number of UDP clients' own sockets.
    pub own_sockets: usize,
    /// Whether it starts frozen, and is given the state of another process's shard.
    pub frozen: bool,
    /// The UDP sockets of that shard, to be used in place of new ones.
    pub inherited: SocketFds,
    /// What tests ask for.
    pub testing: Testing,
}

/// A stream's multicast group, for a shard.
#[derive(Clone, Debug)]
pub struct MulticastSetup {
    /// The stream.
    pub stream: StreamId,
    /// The group, with the port of the first track's RTP.
    pub address: SocketAddr,
    /// The number of routers that a packet may pass.
    pub ttl: u8,
    /// The network interface to send on; `None` for what routing chooses.
    pub interface: Option<String>,
    /// The shard that sends.
    pub sender: u16,
    /// Receivers, over all shards.
    pub receivers: Arc<AtomicUsize>,
}

fn open_groups(config: &mut ShardConfig) -> io::Result<Vec<(StreamId, Group)>> {
    let mut inherited = std::mem::take(&mut config.inherited.groups);
    let names = &config.core.streams;
    let mut open = |setup: &MulticastSetup| {
        let is_named = |name: &str| names.iter().any(|stream| stream.id == setup.stream && stream.name == name);
        let known = inherited.iter().position(|(name, group, _)| *group == setup.address && is_named(name));
        let socket = (setup.sender == config.core.server.shard)
            .then(|| {
                if let Some(known) = known {
                    return Datagram::inherited(inherited.swap_remove(known).2.into(), config.io);
                }
                let interface = setup.interface.as_deref();
                let socket = Datagram::multicast(setup.address.ip(), setup.ttl, interface, config.io)?;
                socket.set_dscp(config.dscp)?;
                Ok::<_, io::Error>(socket)
            })
            .transpose()?;
        let receivers = Arc::clone(&setup.receivers);
        Ok((setup.stream, Group { address: setup.address, ttl: setup.ttl, receivers, socket }))
    };
    config.multicast.iter().map(&mut open).collect()
}

/// The shard's own UDP sockets: those of the process before, or new ones. Their options stay as that process has set them.
fn open_pair(config: &mut ShardConfig) -> io::Result<Option<UdpSockets>> {
    let udp = match (config.inherited.pair.take(), config.udp) {
        (Some((rtp, rtcp)), _) => UdpSockets {
            rtp: Datagram::inherited(rtp.into(), config.io)?,
            rtcp: Datagram::inherited(rtcp.into(), config.io)?,
        },
        (None, Some(address)) => {
            let (rtp, rtcp) = Datagram::bind_pair(address, config.udp_ports, config.io)
                .map_err(|error| without_ports(error, config.udp_ports))?;
            rtp.set_dscp(config.dscp)?;
            rtcp.set_dscp(config.dscp)?;
            UdpSockets { rtp, rtcp }
        }
        (None, None) => return Ok(None),
    };
    config.core.server.udp_ports = Some((udp.rtp.local_addr()?.port(), udp.rtcp.local_addr()?.port()));
    Ok(Some(udp))
}

/// A running shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its inbox.
    pub sender: ShardSender,
    /// Its thread, which ends after [`ToShard::Stop`].
    pub thread: JoinHandle<()>,
}

/// Maximum number of messages of each kind per pass. The runtime lets a task handle 128 items per turn, and a full inbox must leave
/// some of them for the reads and the egress.
const ABSORB_MAX: usize = 40;

/// Maximum number of datagrams that were read and not absorbed.
const DATAGRAMS_WAITING_MAX: usize = 256;

/// Number of successive errors after which the next read is delayed.
const DATAGRAM_ERRORS_MAX: u32 = 64;

/// The delay after each further error.
const DATAGRAM_ERRORS_PAUSE: Duration = Duration::from_millis(10);

/// How long a pass processes what connections have sent.
const READS_PASS_MAX: Duration = Duration::from_micros(READS_PASS_MAX_US);

/// How long sources may take during a stop for TEARDOWN, so that the thread ends before it is abandoned.
const SOURCES_STOP_MAX: Duration = Duration::from_millis(STOP_MAX_MS - 400);

/// Interval of checks of publishers' backlogs that are too large to read on.
const BACKLOG_LOOK_EVERY: Duration = Duration::from_millis(1);

/// Maximum size of a received datagram.
const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

/// Bytes that were read from a connection; nothing more is read from it until they have been absorbed.
pub(super) struct Read {
    token: Token,
    conn: Conn,
    result: io::Result<usize>,
    buffer: Vec<u8>,
    /// Bytes read and discarded since the connection is being closed.
    dropped: usize,
}

/// A datagram, with the socket that it arrived on and its sender.
pub(super) struct Received {
    by: Port,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// One of the shard's two UDP ports.
#[derive(Clone, Copy)]
enum Port {
    Rtp,
    Rtcp,
}

/// Starts a shard's thread and waits until it is ready to serve.
///
/// # Errors
/// The ring, the runtime, the sockets or the thread cannot be created.
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
            // If nobody waits any more, the thread was ready once and the error has been logged.
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
    let runtime = Runtime::new(config.io)?;
    let served = runtime.block_on(async move {
        let udp = open_pair(&mut config)?;
        let groups = open_groups(&mut config)?;
        pauses::prepare();
        match config.io {
            IoKind::Uring => {
                let mut egress = UringEgress::new(config.ring_entries)?;
                if !egress.set_zero_copy(config.zero_copy) && config.zero_copy == ZeroCopy::On {
                    tracing::warn!(
                        "zero_copy = \"on\", but this kernel has no zero-copy sends (Linux 6.1); sending with a copy"
                    );
                }
                run(Thread::new(&config, egress, udp, groups, inbox, shards, control), ready.clone()).await;
            }
            IoKind::Epoll => {
                let egress = EpollEgress::new();
                run(Thread::new(&config, egress, udp, groups, inbox, shards, control), ready.clone()).await;
            }
        }
        Ok(())
    });
    // Nobody waits for a camera's name to be resolved, least of all with its clients' descriptors.
    runtime.abandon();
    served
}

/// Runs the shard as a task beside its sources: then waking it needs no system call, and it runs in the same pass.
async fn run<E: Egress + 'static>(thread: Thread<E>, ready: std::sync::mpsc::Sender<io::Result<()>>) {
    if let Err(failed) = tokio::task::spawn_local(thread.run(ready)).await
        && let Ok(panic) = failed.try_into_panic()
    {
        resume_unwind(panic);
    }
}

/// An error of binding the UDP ports, with the range if there is one.
fn without_ports(error: io::Error, ports: Option<(u16, u16)>) -> io::Error {
    let Some((first, last)) = ports else { return error };
    let cure = "free some, or widen udp_ports";
    io::Error::new(error.kind(), format!("no two consecutive UDP ports are free in {first}-{last} ({error}); {cure}"))
}

pub(super) struct Thread<E: Egress> {
    shard: u16,
    pub(super) core: Core<E>,
    pub(super) io: IoKind,
    dscp: u8,
    user_timeout: Duration,
    pub(super) inbox: ShardReceiver,
    shards: Vec<ShardSender>,
    control: ControlSender,
    /// The sources that run here, and their output.
    pub(super) homes: Homes,
    pub(super) local: Rc<Local>,
    /// Stops reading.
    pub(super) valve: Valve,
    pub(super) handing: Handing,
    fanout: Fanout,
    /// When it was told to stop.
    stopping: Option<Instant>,
    pub(super) reads: mpsc::UnboundedReceiver<Read>,
    /// Bounded: what arrives faster than it is processed waits, and is lost, in the sockets' own buffers.
    pub(super) datagrams: mpsc::Receiver<Received>,
    read: mpsc::UnboundedSender<Read>,
    /// Publishers' connections that are not read until their sources have processed more.
    backlogged: Vec<(Token, Conn, Vec<u8>)>,
    /// Connections that are closed on this side, and until when they are read, in that order.
    lingering: VecDeque<(Instant, Lingering)>,
    pub(super) timer: Pin<Box<Sleep>>,
    pub(super) timer_at: Instant,
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
        let valve = Valve::default();
        if let Some(udp) = &udp {
            // Publishers send here, and players also open their paths with datagrams to the RTP port.
            for (socket, port) in [(&udp.rtcp, Port::Rtcp), (&udp.rtp, Port::Rtp)] {
                tokio::task::spawn_local(read_datagrams(socket.clone(), port, arrived.clone(), valve.clone()));
            }
        }
        let local = Rc::new(Local::default());
        let homes = Homes::new(shards.clone(), Rc::clone(&local));
        let now = Instant::now();
        let mut core = Core::new(now, config.core.clone(), egress, udp);
        core.set_own_sockets_max(config.own_sockets);
        for (stream, group) in groups {
            core.set_group(stream, group);
        }
        core.set_testing(config.testing);
        if config.frozen {
            valve.close();
            core.freeze();
        }
        Thread {
            shard: config.core.server.shard,
            core,
            io: config.io,
            dscp: config.dscp,
            user_timeout: config.core.stall_timeout + Duration::from_secs(USER_TIMEOUT_AFTER_STALL_S),
            inbox,
            shards,
            control,
            homes,
            local,
            valve,
            handing: Handing::new(config.frozen),
            fanout: Fanout::default(),
            stopping: None,
            reads,
            datagrams,
            read,
            backlogged: Vec::new(),
            lingering: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            timer_at: now,
        }
    }

    async fn run(mut self, ready: std::sync::mpsc::Sender<io::Result<()>>) {
        // The spawner waits for this; if it has given up, the inbox closes and ends the loop.
        let _ = ready.send(Ok(()));
        let mut more = false;
        while !self.is_over() {
            if more {
                // Lets the reads and the runtime itself run between two passes.
                tokio::task::yield_now().await;
            }
            more = poll_fn(|cx| self.absorb_guarded(cx, more)).await;
            // Before its own clients are served, which takes a while if there are many.
            self.deliver();
            more |= self.guarded(|thread| {
                let now = Instant::now();
                thread.core.reap(now);
                thread.core.drive(now);
                // Most sends complete during the submission.
                thread.core.reap(Instant::now());
                thread.core.has_more()
            });
            for peer in self.core.take_gone() {
                self.gone(peer);
            }
            let until = Instant::now() + Duration::from_millis(LINGER_MS);
            self.lingering.extend(self.core.take_lingering().into_iter().map(|lingering| (until, lingering)));
            self.deliver();
            self.hand_over();
            for message in self.core.take_outbox() {
                self.control.tell(message);
            }
            self.answer_frozen();
        }
    }

    /// Whether nothing is left to do here: all clients and sources have ended, or another process has them.
    fn is_over(&self) -> bool {
        self.handing.ended || (self.core.is_stopped() && self.lingering.is_empty() && self.have_sources_ended())
    }

    /// Whether all sources have finished with their cameras, or have used up their time.
    fn have_sources_ended(&self) -> bool {
        let late = self.stopping.is_some_and(|since| since.elapsed() >= SOURCES_STOP_MAX);
        late || self.homes.have_ended()
    }

    /// Passes on the core's messages to other shards, and to the sources here.
    fn deliver(&mut self) {
        for Mail { to, what } in self.core.take_mail() {
            match what {
                ToShard::Publishing { stream, shard, session, what } if to == self.shard => {
                    self.homes.publishing(stream, (shard, session, what));
                }
                what => {
                    let Some(sender) = self.shards.get(usize::from(to)) else { continue };
                    self.handing.told += 1;
                    match what {
                        ToShard::Chunk(stream, epoch, chunk) => self.fanout.chunk(to, sender, stream, epoch, chunk),
                        what => sender.tell(what),
                    }
                }
            }
        }
    }

    /// Runs a part of a pass. A panic in code that works for one client ends that client, and the pass continues with its next part
    /// (true). After any other panic the thread ends, because its state may be inconsistent.
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

    /// [`Thread::absorb`], guarded; returns whether it panicked.
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

    /// Absorbs what is available; pending if there is nothing.
    fn absorb(&mut self, cx: &mut Context<'_>, more: bool) -> Poll<()> {
        let mut any = more;
        let now = Instant::now();
        self.local.register(cx);
        turns::begin(cx);
        while let Some((stream, event)) = self.local.pop() {
            self.core.hosted(now, stream, event);
            any = true;
        }
        self.read_backlogged();
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
            // However many requests arrive at once, media continues.
            if now.elapsed() > READS_PASS_MAX {
                break;
            }
        }
        for _ in 0..ABSORB_MAX / 4 {
            let Poll::Ready(Some(Received { by, from, bytes })) = self.datagrams.poll_recv(cx) else { break };
            match by {
                Port::Rtp => self.core.rtp(now, from, &bytes),
                Port::Rtcp => self.core.rtcp(now, from, &bytes),
            }
            any = true;
        }
        any |= self.core.egress_mut().poll_ready(cx).is_ready();
        while self.lingering.front().is_some_and(|(until, _)| *until <= now) {
            self.lingered(0);
            any = true;
        }
        if self.handing.frozen {
            return self.absorb_frozen(cx, any);
        }
        let linger = self.lingering.front().map(|(until, _)| *until);
        // A source usually produces output when it processes something, which wakes the shard; but not always, and not if its home is
        // another shard.
        let backlog = (!self.backlogged.is_empty()).then(|| now + BACKLOG_LOOK_EVERY);
        let due = linger.into_iter().chain(backlog).chain([self.core.next_timeout(now)]).min().unwrap_or(now);
        if due <= now || self.core.is_check_due(now) {
            self.timeout(now);
            any = true;
        } else if due != self.timer_at {
            self.timer_at = due;
            self.timer.as_mut().reset(due.into());
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            self.timeout(now);
            any = true;
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    fn timeout(&mut self, now: Instant) {
        if self.core.is_check_due(now) {
            self.core.renew_logs(memory::renewals());
        }
        self.core.timeout(now);
    }

    fn message(&mut self, now: Instant, message: ToShard) {
        match message {
            ToShard::Chunk(stream, epoch, chunk) => self.core.chunk_came(now, stream, epoch, chunk),
            ToShard::Subscribe { stream, shard, epoch } => self.core.subscribed(stream, shard, epoch),
            ToShard::Unsubscribe { stream, shard, epoch } => self.core.unsubscribed(stream, shard, epoch),
            ToShard::Snapshot { stream, epoch, snapshot } => {
                self.core.snapshot_came(now, stream, epoch, *snapshot);
            }
            ToShard::Refused(stream, frames) => self.core.chunk_refused(stream, frames),
            ToShard::Described(stream, description) => self.core.described(now, stream, description),
            ToShard::Source(stream, state) => self.core.source(now, stream, state),
            ToShard::Publisher(session, verdict) => self.core.publisher(now, session, verdict),
            ToShard::Stream(setup) => self.core.set_stream(now, &setup),
            ToShard::RemoveStream(stream) => {
                self.homes.remove(stream);
                self.fanout.remove(stream);
                self.core.remove_stream(now, stream);
            }
            ToShard::Host(hosting) => self.host(now, *hosting),
            ToShard::Publishing { stream, shard, session, what } => {
                self.homes.publishing(stream, (shard, session, what));
            }
            ToShard::Names(names) => self.core.set_names(names),
            ToShard::NotMade { name, from, why } => self.core.not_made(now, &name, from, &why),
            ToShard::NotUp(stream, why) => self.core.not_up(now, stream, &why),
            // The requester may have given up.
            ToShard::EndClient(session, reply) => drop(reply.send(self.core.end_by_key(now, session))),
            ToShard::Path(stream, path) => self.core.set_path(stream, path),
            ToShard::Limits(limits) => {
                self.user_timeout = limits.stall_timeout + Duration::from_secs(USER_TIMEOUT_AFTER_STALL_S);
                self.core.set_limits(limits);
            }
            ToShard::Outside(outside) => self.core.set_outside(outside),
            ToShard::Access(access) => self.core.set_access(now, access),
            ToShard::Report(ReportRequest { reply, clients }) => {
                let mut snapshot = self.core.snapshot(now, clients);
                snapshot.sources = self.homes.gauges();
                // If the reporter is gone meanwhile, no answer is needed.
                let _ = reply.send(snapshot);
            }
            // The requester may have given up.
            ToShard::Ping(reply) => drop(reply.send(())),
            // The requester may have given up.
            ToShard::Still { stream, clock, reply } => drop(reply.send(self.core.still(now, stream, clock))),
            ToShard::Web { stream, peer, unread, secured, client } => {
                let conn = Conn::from_std(stream, self.io).map(|conn| conn.with_tls(secured));
                if let Err(error) = conn.and_then(|conn| self.web(now, conn, peer, &unread, client)) {
                    tracing::warn!(client = %peer, %error, "cannot set up the browser's connection: closed");
                    self.gone(peer);
                }
            }
            ToShard::HandOver(step) => self.hand_over_step(now, *step),
            ToShard::SendAway(until) => self.core.send_away(now, until),
            ToShard::SendAwayCarried(carrier) => self.core.send_away_carried(now, carrier),
            ToShard::Stop => {
                self.stopping = Some(now);
                self.core.stop(now);
            }
            ToShard::Connection { stream, peer, unread, secured, moves } => {
                let conn = Conn::from_std(stream, self.io).map(|conn| conn.with_tls(secured));
                if let Err(error) = conn.and_then(|conn| self.connection(now, conn, peer, &unread, moves)) {
                    tracing::warn!(client = %peer, %error, "cannot set up the connection: closed");
                    self.gone(peer);
                }
            }
        }
    }

    /// Keeps a stream's source going; of a new stream, before anybody hears of that.
    pub(super) fn host(&mut self, now: Instant, mut hosting: Hosting) {
        if self.handing.is_heir {
            // Its state comes from another process, and then it runs.
            if let Some(setup) = hosting.setup.take() {
                self.core.set_stream(now, &setup);
            }
            return self.handing.hostings.push(hosting);
        }
        let setup = hosting.setup.take();
        self.homes.host(hosting);
        if let Some(setup) = setup {
            self.core.set_stream(now, &setup);
        }
    }

    fn connection(&mut self, now: Instant, conn: Conn, peer: SocketAddr, unread: &[u8], moves: u8) -> io::Result<()> {
        let local = conn.local_addr()?;
        conn.set_options()?;
        conn.set_path(self.dscp, self.user_timeout)?;
        match self.core.accept(now, conn.clone(), (peer, local), unread, moves) {
            Some(token) if self.core.is_there(token) => {
                self.read_on(token, conn, Vec::with_capacity(READ_BYTES_MAX), 0);
            }
            // It has already been handed over, with what arrived.
            Some(_) => {}
            None => self.gone(peer),
        }
        Ok(())
    }

    fn web(&mut self, now: Instant, conn: Conn, peer: SocketAddr, unread: &[u8], client: WebClient) -> io::Result<()> {
        let local = conn.local_addr()?;
        conn.set_options()?;
        conn.set_path(self.dscp, self.user_timeout)?;
        match self.core.web_connected(now, conn.clone(), (peer, local), unread, client) {
            Some(token) => self.read_on(token, conn, Vec::with_capacity(READ_BYTES_MAX), 0),
            None => self.gone(peer),
        }
        Ok(())
    }

    fn taken_in(&mut self, now: Instant, read: Read) {
        let Read { token, conn, result, mut buffer, mut dropped } = read;
        let ended = match &result {
            Ok(count) => *count == 0,
            Err(error) => error.kind() != io::ErrorKind::Interrupted,
        };
        let mut packets = 0;
        match result {
            Ok(0) => self.core.disconnected(now, token),
            Ok(count) => packets = self.core.input(now, token, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.core.disconnected(now, token),
        }
        if self.core.is_open(token) {
            if self.core.publishes(token) {
                // Its capacity is the size that was asked for.
                let size = read_size::next(buffer.capacity(), buffer.len(), packets);
                if size != buffer.capacity() {
                    buffer = Vec::with_capacity(size);
                }
            }
            buffer.clear();
            if self.core.is_backlogged(token) {
                return self.backlogged.push((token, conn, buffer));
            }
            return self.read_on(token, conn, buffer, 0);
        }
        let lingers = self.lingering.iter().position(|(_, lingering)| lingering.token == token);
        if !self.core.is_there(token) && lingers.is_none() {
            return;
        }
        // It is being closed. What it still sends is read anyway, within limits: see `Lingering`.
        dropped += buffer.len();
        if !ended && dropped <= LINGER_READ_BYTES_MAX {
            buffer.clear();
            self.read_on(token, conn, buffer, dropped);
        } else if let Some(index) = lingers {
            self.lingered(index);
        }
    }

    /// Reads publishers again whose backlog has shrunk.
    fn read_backlogged(&mut self) {
        for (token, conn, buffer) in std::mem::take(&mut self.backlogged) {
            if self.core.is_backlogged(token) {
                self.backlogged.push((token, conn, buffer));
            } else {
                self.read_on(token, conn, buffer, 0);
            }
        }
    }

    /// A connection has lingered long enough.
    fn lingered(&mut self, index: usize) {
        if let Some((_, Lingering { conn, peer, .. })) = self.lingering.remove(index) {
            conn.shutdown();
            self.gone(peer);
        }
    }

    /// Starts the next read of a connection. There is never more than one read in progress, and none while its bytes are being
    /// processed, so that the connection can be handed over completely.
    pub(super) fn read_on(&self, token: Token, conn: Conn, buffer: Vec<u8>, dropped: usize) {
        let (read, valve) = (self.read.clone(), self.valve.clone());
        tokio::task::spawn_local(async move {
            let (result, buffer) = valve.pass(conn.read(buffer)).await;
            // The shard has ended: there is nobody to read for.
            let _ = read.send(Read { token, conn, result, buffer, dropped });
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
                    tracing::warn!(client = %peer, %error, "cannot move the connection to another shard: closed");
                }
            }
        }
    }
}

async fn read_datagrams(socket: Datagram, by: Port, read: mpsc::Sender<Received>, valve: Valve) {
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES_MAX);
    let mut errors = 0;
    loop {
        let (result, returned) = valve.pass(socket.recv_from(buffer)).await;
        buffer = returned;
        match result {
            Ok((count, from)) => {
                errors = 0;
                let bytes = buffer[..count].to_vec();
                if read.send(Received { by, from, bytes }).await.is_err() {
                    return;
                }
            }
            // ICMP answers to our own datagrams arrive as errors of the next read, which they do not concern.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => return,
            Err(_) if errors < DATAGRAM_ERRORS_MAX => {
                errors += 1;
                tokio::task::yield_now().await;
            }
            // The system is short of memory, or has another problem that does not pass at once.
            Err(_) => tokio::time::sleep(DATAGRAM_ERRORS_PAUSE).await,
        }
        buffer.clear();
    }
}
