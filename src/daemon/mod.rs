//! Puts the parts together and runs them: the control thread, from the configuration to the exit code.

mod acceptor;
mod access;
mod admission;
pub mod console;
mod descriptors;
mod dispatch;
mod fold;
mod health;
mod http;
mod notify;
mod panics;
mod redraw;
mod reporter;
mod secure;
mod signals;
mod streams;
mod syslog;
mod top;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout_at};
use tracing::{error, info, warn};

use crate::config::{Config, IoChoice, SourceKind, StreamConfig};
use crate::egress::runtime::Runtime;
use crate::egress::{IoKind, Listener, ZeroCopy, probe};
use crate::limits::{STOP_MAX_MS, answered_beyond};
use crate::session::{OwnPorts, ServerConfig, SessionIds, SessionLimit};
use crate::shard::core::{CoreConfig, ShardLimits, StreamSetup};
use crate::shard::inbox::{self, ControlSender, ShardSender, ToControl, ToShard};
use crate::shard::thread::{self, MulticastSetup, ShardConfig, ShardHandle};
use crate::stream::StreamId;
use crate::tls::Tls;
use access::Doors;
use admission::{Admission, SharedAdmission};
use console::Console;
use dispatch::Outlets;
use notify::Notifier;
use reporter::Reporter;
use signals::Asked;
use streams::{Streams, TestFaults};
pub use top::{Target, top};

/// Exit code of a failure at run time.
const EXIT_FAILURE: u8 = 1;

/// Submission entries of a shard's ring, at least and at most.
const RING_ENTRIES: std::ops::RangeInclusive<u32> = 256..=16_384;

/// How long the shards wait at a stop for the sources to end the frames that are half in.
const LAST_FRAMES_MAX: Duration = Duration::from_millis(50);

/// How often threads are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long the console may take for the last lines.
const FLUSH_MAX: Duration = Duration::from_millis(150);

/// Reads the configuration again.
pub type Load = Box<dyn Fn() -> Result<Config, String>>;

/// Serves until it is asked to stop; `load` reads the configuration anew for a reload, where there is a file to read. Exit code 0:
/// it was asked to stop; 1: something failed, and the log says what.
pub fn run(config: Config, load: Option<Load>) -> ExitCode {
    let code = match start(config, load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            error!("{message}");
            ExitCode::from(EXIT_FAILURE)
        }
    };
    fold::tell_all_left_out();
    Console::get().flush(FLUSH_MAX);
    code
}

fn start(mut config: Config, load: Option<Load>) -> Result<(), String> {
    panics::tell();
    let asked = signals::listen().map_err(|error| format!("signals cannot be handled ({error})"))?;
    if let Some(warning) = descriptors::raise(&config) {
        warn!("{warning}");
    }
    config.limits.clients = descriptors::served(&config);
    let io = choose_io(config.io)?;
    if io == IoKind::Epoll && config.zero_copy == ZeroCopy::On {
        warn!("zero_copy = \"on\" needs io_uring; sending with a copy");
    }
    let (io, runtime) = match Runtime::new(io) {
        Ok(runtime) => (io, Ok(runtime)),
        Err(error) if io == IoKind::Uring && config.io == IoChoice::Auto => {
            warn!("{error}; serving through epoll, at more CPU per client");
            (IoKind::Epoll, Runtime::new(IoKind::Epoll))
        }
        Err(error) => (io, Err(error)),
    };
    let runtime = runtime.map_err(|error| format!("the control thread's runtime cannot be made ({error})"))?;
    runtime.block_on(control(config, load, io, asked))
}

/// What drives the sockets: what was asked for, as far as this machine lets us.
fn choose_io(choice: IoChoice) -> Result<IoKind, String> {
    if choice == IoChoice::Epoll {
        return Ok(IoKind::Epoll);
    }
    match (probe::probe(), choice) {
        (Ok(()), _) => Ok(IoKind::Uring),
        (Err(why), IoChoice::Auto) => {
            warn!("{why} to be spared this warning; serving through epoll, at more CPU per client");
            Ok(IoKind::Epoll)
        }
        (Err(why), _) => Err(format!("io = \"uring\", but {why}")),
    }
}

async fn control(
    config: Config,
    load: Option<Load>,
    io: IoKind,
    mut asked: tokio::sync::mpsc::UnboundedReceiver<Asked>,
) -> Result<(), String> {
    let notifier = Rc::new(Notifier::from_env());
    let (plain, for_tls) = notify::inherited_listeners();
    let listeners = listen(plain, "listen", &config.listen)?;
    let addresses: Vec<SocketAddr> = listeners
        .iter()
        .map(|listener| listener.local_addr().map_err(|error| format!("a listener has no address ({error})")))
        .collect::<Result<_, _>>()?;
    let (control, messages) = mpsc::unbounded_channel();
    let (io, handles) = start_shards(&config, io, &control).await?;
    let shards: Rc<[ShardSender]> = handles.iter().map(|handle| handle.sender.clone()).collect();
    let secured = secure::Secured::start(&config, for_tls, &shards, &ControlSender::new(0, control.clone()))?;
    let doors = Doors::new()?;
    doors.set(&config, &shards);
    tell_warnings(&config);
    let all: Vec<SocketAddr> = addresses.iter().chain(&secured.addresses).copied().collect();
    access::warn_if_open(&config, &all, config.http);
    let web = config.http.map(http::bind).transpose()?;

    let play = play_commands(&config, &addresses);
    let served = addresses.iter().map(|address| format!("rtsp://{address}"));
    let served: Vec<String> =
        served.chain(secured.addresses.iter().map(|address| format!("rtsps://{address}"))).collect();
    let title = format!("{}, {} shards, {}", io_name(io), handles.len(), served.join(" "));
    let mut reporter = Reporter::new(&config.report, Rc::clone(&shards), title, play.clone());
    if let Some(tls) = &secured.threads {
        reporter.watch_tls(Arc::clone(tls.sender().counts()));
    }
    let shows_commands = reporter.shows_commands();
    let reporter = Rc::new(Mutex::new(reporter));
    let outlets = Outlets::default();
    let tests = TestFaults { delay: config.test_delay, panic_after: config.test_panic };
    let mut streams = Streams::new(Rc::clone(&shards), Rc::clone(&reporter), Rc::clone(&outlets), tests);
    for stream in &config.streams {
        streams.start(stream).await;
    }
    for address in &addresses {
        info!(%address, io = io_name(io), shards = handles.len(), streams = config.streams.len(), "listening");
    }
    for address in &secured.addresses {
        info!(%address, "listening for rtsps");
    }
    if !shows_commands {
        for command in &play {
            info!("play it: {command}");
        }
    }
    let limits = config.limits;
    let admission = Rc::new(RefCell::new(Admission::new(limits.clients, limits.clients_per_address, handles.len())));
    let mut tasks = JoinSet::new();
    let plain = listeners.into_iter().map(|listener| (listener, false));
    for (listener, by_tls) in plain.chain(secured.listeners.into_iter().map(|listener| (listener, true))) {
        let tls = secured.threads.as_ref().map(|tls| tls.sender().clone());
        tasks.spawn_local(acceptor::accept(listener, by_tls, Rc::clone(&shards), tls, Rc::clone(&admission)));
    }
    if !config.test_unmeasured {
        tasks.spawn_local(Reporter::run(Rc::clone(&reporter)));
    }
    tasks.spawn_local(dispatch::dispatch(messages, outlets, Rc::clone(&admission)));
    if let Some(web) = web {
        if let Ok(address) = web.local_addr() {
            info!(%address, "listening for http");
        }
        let pages = http::Pages {
            reporter: Rc::clone(&reporter),
            shards: Rc::clone(&shards),
            doors: config.http.filter(|address| !address.ip().to_canonical().is_loopback()).map(|_| doors.clone()),
            test_panics: config.test_panic.is_some(),
        };
        tasks.spawn_local(http::serve(web, pages));
    }
    tasks.spawn_local(notify::status(Rc::clone(&notifier), Rc::clone(&reporter)));
    if let Some(within) = notify::watchdog() {
        tasks.spawn_local(notify::feed(Rc::clone(&notifier), within, Rc::clone(&shards)));
    }
    notifier.tell("READY=1");

    let tls = secured.threads;
    let mut relay = Relay { config, addresses: all, load, notifier, shards, reporter, streams, admission, doors, tls };
    let outcome = relay.serve(&handles, &mut tasks, &mut asked).await;

    relay.notifier.tell("STOPPING=1\nSTATUS=stopping");
    let deadline = Instant::now() + Duration::from_millis(STOP_MAX_MS);
    tasks.abort_all();
    // What the summary says of the sources is how they were, not that they have been ended.
    let mut reporter = relay.reporter.lock().await;
    reporter.collect().await;
    stop_all(relay.streams.stop(), handles, &relay.shards, deadline).await;
    // They have the last bytes of the shards' clients.
    if let Some(tls) = relay.tls {
        secure::stop(tls, deadline).await;
    }
    reporter.tell_summary();
    outcome
}

/// The sockets that the service manager has handed over for RTSP or RTSPS, or else those at the addresses of the configuration.
fn listen(inherited: Vec<std::net::TcpListener>, key: &str, addresses: &[SocketAddr]) -> Result<Vec<Listener>, String> {
    if inherited.is_empty() {
        return acceptor::bind(addresses);
    }
    info!("the sockets come from the service manager; `{key}` is left aside");
    let take =
        |listener| Listener::from_std(listener).map_err(|error| format!("an inherited socket is of no use ({error})"));
    inherited.into_iter().map(take).collect()
}

/// Waits until one of the tasks has failed; a relay that goes on without accepting or reporting would be taken for one that works.
async fn failed(tasks: &mut JoinSet<()>) -> String {
    loop {
        match tasks.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => return format!("a part of the relay has failed ({error}); the log says where"),
            None => std::future::pending().await,
        }
    }
}

/// What runs, and may change while it does.
struct Relay {
    config: Config,
    /// Where RTSP is served, by TLS or without.
    addresses: Vec<SocketAddr>,
    load: Option<Load>,
    notifier: Rc<Notifier>,
    shards: Rc<[ShardSender]>,
    reporter: Rc<Mutex<Reporter>>,
    streams: Streams,
    admission: SharedAdmission,
    doors: Doors,
    tls: Option<Tls>,
}

impl Relay {
    /// Waits for the request to stop, or for a failure.
    async fn serve(
        &mut self,
        handles: &[ShardHandle],
        tasks: &mut JoinSet<()>,
        asked: &mut tokio::sync::mpsc::UnboundedReceiver<Asked>,
    ) -> Result<(), String> {
        loop {
            tokio::select! {
                asked = asked.recv() => match asked {
                    Some(Asked::Summary) => {
                        let mut reporter = self.reporter.lock().await;
                        reporter.collect().await;
                        reporter.tell_summary();
                    }
                    Some(Asked::Reload) => {
                        self.notifier.reloading();
                        self.reload().await;
                        self.notifier.tell("READY=1");
                    }
                    Some(Asked::Stop) | None => {
                        info!("stopping");
                        return Ok(());
                    }
                },
                why = failed(tasks) => return Err(why),
                () = sleep(LOOK_EVERY) => {
                    if self.tls.as_ref().is_some_and(Tls::has_failed) {
                        return Err("a TLS thread has ended by itself, and its clients with it; the log says why".into());
                    }
                    if let Some(index) = handles.iter().position(|handle| handle.thread.is_finished()) {
                        return Err(format!("shard {index} has ended by itself, and its clients with it; the log says why"));
                    }
                }
            }
        }
    }

    /// Reads the configuration again and does what is new in it; a file with a fault changes nothing.
    async fn reload(&mut self) {
        let Some(load) = &self.load else {
            info!("there is no file to read again: the relay was started without one");
            return;
        };
        let mut config = match load() {
            Ok(config) => config,
            Err(faults) => {
                for fault in faults.lines() {
                    error!("{fault}");
                }
                error!("the configuration is not taken over; the relay goes on as it was");
                return;
            }
        };
        // What takes a restart is left as it runs, and all the rest taken over.
        let regrouped = keep_multicast(&mut config.streams, &self.config.streams);
        let changes = match self.streams.become_those(&config.streams).await {
            Ok(changes) => changes,
            Err(why) => {
                error!("the configuration is not taken over: {why}");
                return;
            }
        };
        tell_warnings(&config);
        if (&config.users, config.basic) != (&self.config.users, self.config.basic) {
            // After the streams: what a user may do with one that is new, its first request finds.
            self.doors.set(&config, &self.shards);
            info!(users = config.users.len(), "the users are others now");
            access::warn_if_open(&config, &self.addresses, self.config.http);
        }
        if let Some(warning) = descriptors::raise(&config)
            && config.limits != self.config.limits
        {
            warn!("{warning}");
        }
        config.limits.clients = descriptors::served(&config);
        if (config.queue, config.limits) != (self.config.queue, self.config.limits) {
            let limits = config.limits;
            self.admission.borrow_mut().set_limits(limits.clients, limits.clients_per_address);
            for shard in self.shards.iter() {
                shard.tell(ToShard::Limits(shard_limits(&config)));
            }
            if let Some(tls) = &self.tls {
                tls.sender().set_limits(secure::limits(&config));
            }
        }
        if let (Some(tls), Some(wanted), Some(running)) = (&self.tls, &config.tls, &mut self.config.tls)
            && wanted.identity != running.identity
        {
            tls.sender().set_identity(&wanted.identity);
            info!(expires = secure::expires(&wanted.identity), "the certificate for rtsps has changed");
            running.identity = wanted.identity.clone();
        }
        for (key, is_other) in [
            ("listen", config.listen != self.config.listen),
            ("listen_tls", config.tls != self.config.tls),
            ("http", config.http != self.config.http),
            ("workers", config.workers != self.config.workers),
            ("io", config.io != self.config.io),
            ("report", config.report != self.config.report),
            ("dscp", config.dscp != self.config.dscp),
            ("zero_copy", config.zero_copy != self.config.zero_copy),
            ("stream.multicast", regrouped),
        ] {
            if is_other {
                warn!("{key} has changed in the configuration; that takes effect when the relay is restarted");
            }
        }
        // They are compared with what runs, not with what the file said last.
        config.listen.clone_from(&self.config.listen);
        config.tls.clone_from(&self.config.tls);
        (config.http, config.workers) = (self.config.http, self.config.workers);
        (config.io, config.report) = (self.config.io, self.config.report);
        (config.dscp, config.zero_copy) = (self.config.dscp, self.config.zero_copy);
        self.config = config;
        let streams::Changes { added, removed, changed } = changes;
        info!(added, removed, changed, streams = self.config.streams.len(), "configuration reloaded");
    }
}

/// Leaves every stream the group that it has, or none; whether one was to have another.
fn keep_multicast(wanted: &mut [StreamConfig], running: &[StreamConfig]) -> bool {
    let mut regrouped = false;
    for stream in wanted {
        let running = running.iter().find(|running| running.name == stream.name);
        let has = running.and_then(|running| running.multicast.clone());
        regrouped |= stream.multicast != has;
        stream.multicast = has;
    }
    regrouped
}

/// Tells what the configuration is not wrong in, and yet should be known.
fn tell_warnings(config: &Config) {
    for warning in &config.warnings {
        warn!("the configuration, {warning}");
    }
}

/// What shards are told of the limits.
fn shard_limits(config: &Config) -> ShardLimits {
    ShardLimits {
        age: config.queue.age,
        log_bytes: usize::try_from(config.queue.log_bytes).unwrap_or(usize::MAX),
        stall_timeout: config.queue.stall_timeout,
        session_timeout: config.limits.session_timeout,
        handshake_timeout: config.limits.handshake_timeout,
        clients_max: config.limits.clients,
        clients_per_address: config.limits.clients_per_address,
    }
}

/// Ends sources and shards; nothing takes longer than to the deadline.
async fn stop_all(sources: Vec<JoinHandle<()>>, handles: Vec<ShardHandle>, shards: &[ShardSender], deadline: Instant) {
    let mut sources = std::pin::pin!(async {
        for source in sources {
            // One that panicked has told so.
            let _ = source.await;
        }
    });
    // First the sources: they close the frames that are half in. Their farewell to the camera may take longer than that.
    let mut ended = timeout_at((Instant::now() + LAST_FRAMES_MAX).into(), sources.as_mut()).await.is_ok();
    for shard in shards {
        shard.tell(ToShard::Stop);
    }
    if !ended {
        ended = timeout_at(deadline.into(), sources).await.is_ok();
    }
    if !ended {
        warn!("a camera has not answered TEARDOWN in time");
    }
    while handles.iter().any(|handle| !handle.thread.is_finished()) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    for (index, handle) in handles.into_iter().enumerate() {
        if !handle.thread.is_finished() {
            warn!(shard = index, "a shard did not end in time; it is left behind");
        } else if handle.thread.join().is_err() {
            error!(shard = index, "a shard has panicked");
        }
    }
}

/// Starts the shards; through epoll if that is left to us and io_uring fails for what they need of it (memory, most of all).
async fn start_shards(
    config: &Config,
    io: IoKind,
    control: &mpsc::UnboundedSender<(u16, ToControl)>,
) -> Result<(IoKind, Vec<ShardHandle>), String> {
    let mut handles = Vec::new();
    let why = match start_shards_with(config, io, control, &mut handles) {
        Ok(()) => return Ok((io, handles)),
        Err(why) => why,
    };
    let senders: Vec<ShardSender> = handles.iter().map(|handle| handle.sender.clone()).collect();
    let deadline = Instant::now() + Duration::from_millis(STOP_MAX_MS);
    stop_all(Vec::new(), handles, &senders, deadline).await;
    if config.io != IoChoice::Auto || io == IoKind::Epoll {
        return Err(why);
    }
    warn!("{why}; serving through epoll, at more CPU per client");
    let mut handles = Vec::new();
    start_shards_with(config, IoKind::Epoll, control, &mut handles)?;
    Ok((IoKind::Epoll, handles))
}

fn start_shards_with(
    config: &Config,
    io: IoKind,
    control: &mpsc::UnboundedSender<(u16, ToControl)>,
    handles: &mut Vec<ShardHandle>,
) -> Result<(), String> {
    let count = config.shards();
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| inbox::channel()).unzip();
    let streams: Vec<StreamSetup> =
        (0u16..).zip(&config.streams).map(|(id, stream)| streams::setup(StreamId(id), stream)).collect();
    let multicast: Vec<MulticastSetup> = (0u16..)
        .zip(&config.streams)
        .filter_map(|(id, stream)| {
            let multicast = stream.multicast.as_ref()?;
            Some(MulticastSetup {
                stream: StreamId(id),
                address: multicast.group,
                ttl: multicast.ttl,
                interface: multicast.interface.clone(),
                sender: id % count as u16,
                receivers: Arc::default(),
            })
        })
        .collect();
    let per_shard = config.limits.clients.div_ceil(count) + answered_beyond(config.limits.clients);
    let entries = u32::try_from(per_shard).unwrap_or(u32::MAX).clamp(*RING_ENTRIES.start(), *RING_ENTRIES.end());
    let limit = SessionLimit::new(config.limits.clients);
    limit.set_max(config.limits.clients, config.limits.clients_per_address);
    let own_ports = OwnPorts::new(count, is_own_address);
    for ((shard, inbox), sender) in (0u16..).zip(inboxes).zip(&senders) {
        let server = ServerConfig {
            shard,
            shards: count as u16,
            session_timeout: config.limits.session_timeout,
            handshake_timeout: config.limits.handshake_timeout,
            limit: Arc::clone(&limit),
            udp_ports: None,
            own_ports: Some(Arc::clone(&own_ports)),
            ids: SessionIds::Random,
        };
        let core = CoreConfig {
            age: config.queue.age,
            log_bytes: usize::try_from(config.queue.log_bytes).unwrap_or(usize::MAX),
            stall_timeout: config.queue.stall_timeout,
            streams: streams.clone(),
            server,
        };
        let test_panics = config.test_panic.is_some();
        let test_unmeasured = config.test_unmeasured;
        let config = ShardConfig {
            core,
            io,
            ring_entries: entries.next_power_of_two(),
            udp: Some(udp_address(&config.listen)),
            dscp: config.dscp,
            zero_copy: config.zero_copy,
            multicast: multicast.clone(),
            unmeasured: test_unmeasured,
            cpu: None,
            test_panics,
        };
        let handle =
            thread::spawn(config, sender.clone(), inbox, senders.clone(), ControlSender::new(shard, control.clone()))
                .map_err(|error| format!("shard {shard} cannot start ({error}); {}", shard_cure(&error)))?;
        handles.push(handle);
    }
    Ok(())
}

fn shard_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "raise `ulimit -l` (LimitMEMLOCK= in a unit), or set a lower workers or io = \"epoll\"",
        Some(libc::EMFILE) => "raise `ulimit -n` (LimitNOFILE= in a unit)",
        Some(libc::ENODEV) => "stream.multicast_interface names no interface of this machine (`ip link` lists them)",
        Some(libc::EAGAIN) => "raise the limit of threads (`ulimit -u`, TasksMax= in a unit), or lower workers",
        _ => "try io = \"epoll\"",
    }
}

/// The address that UDP media is sent from: the one that is listened at, or a wildcard that covers all of them.
fn udp_address(listen: &[SocketAddr]) -> IpAddr {
    let first = listen.first().map_or(Ipv4Addr::UNSPECIFIED.into(), SocketAddr::ip);
    if listen.iter().all(|address| address.ip() == first) {
        return first;
    }
    if listen.iter().any(SocketAddr::is_ipv6) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// Whether an address is one of this machine's.
fn is_own_address(ip: IpAddr) -> bool {
    // To be bound it must be there. Where another fault hides that it counts as one: so does a link-local one, whose scope is missing.
    match std::net::UdpSocket::bind((ip, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

/// What to type to see the first stream: shown for the test pattern, which people start in order to look at it.
fn play_commands(config: &Config, addresses: &[SocketAddr]) -> Vec<String> {
    let Some(stream) = config.streams.first() else { return Vec::new() };
    let Some(address) = addresses.first() else { return Vec::new() };
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        // Both wildcards take connections to this.
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let url = format!("rtsp://{}/{}", SocketAddr::new(host, address.port()), stream.name);
    match stream.source {
        SourceKind::Test => {
            vec![format!("ffplay -rtsp_transport tcp {url}"), format!("gst-play-1.0 {url}")]
        }
        SourceKind::Cameras(_) | SourceKind::Publisher { .. } => vec![format!("ffplay -rtsp_transport tcp {url}")],
    }
}

const fn io_name(io: IoKind) -> &'static str {
    match io {
        IoKind::Uring => "io_uring",
        IoKind::Epoll => "epoll",
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_part_that_fails_is_noticed_and_one_that_is_done_is_not() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let mut tasks = JoinSet::new();
            tasks.spawn_local(async {});
            while !tasks.is_empty() {
                let polled = poll_fn(|cx| Poll::Ready(pin!(failed(&mut tasks)).poll(cx))).await;
                assert!(polled.is_pending(), "{polled:?}");
                tokio::task::yield_now().await;
            }
            tasks.spawn_local(async { panic!("a test wants it so") });
            assert!(failed(&mut tasks).await.contains("a test wants it so"));
        });
    }

    #[test]
    fn udp_leaves_from_where_rtsp_is_served() {
        for (listen, udp) in [
            (&["127.0.0.1:1"][..], "127.0.0.1"),
            (&["0.0.0.0:1", "0.0.0.0:2"], "0.0.0.0"),
            (&["127.0.0.1:1", "192.0.2.1:1"], "0.0.0.0"),
            (&["0.0.0.0:1", "[::]:1"], "::"),
        ] {
            let listen: Vec<_> = listen.iter().map(|text| address(text)).collect();
            assert_eq!(udp_address(&listen).to_string(), udp);
        }
    }

    #[test]
    fn the_machine_knows_its_addresses() {
        assert!(is_own_address(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own_address(Ipv4Addr::new(192, 0, 2, 1).into()), "of a network for documentation");
    }

    #[test]
    fn the_commands_can_be_typed_here() {
        let commands = play_commands(&Config::demo(), &[address("0.0.0.0:8554")]);
        assert_eq!(commands[0], "ffplay -rtsp_transport tcp rtsp://127.0.0.1:8554/test");
        let commands = play_commands(&Config::demo(), &[address("[::1]:9")]);
        assert!(commands[1].ends_with(" rtsp://[::1]:9/test"), "{commands:?}");
    }
}
