//! Assembles and runs the relay: the control thread, from the configuration to the exit code.

mod acceptor;
mod access;
mod admission;
mod answers;
mod ask;
mod ask_upgrade;
mod attempt;
mod carriers;
mod carrying;
pub mod console;
mod copying;
mod descriptors;
mod dispatch;
mod events;
mod failure;
mod fd_store;
mod fields;
mod fold;
#[cfg(feature = "testing")]
pub mod fuzz;
mod hand_over;
mod health;
mod heir;
mod http;
mod inherited;
mod leaving;
mod list;
mod listeners;
mod manage;
mod named;
mod notify;
mod outside;
mod panics;
mod passed;
mod places;
mod proxied;
mod redraw;
#[cfg(not(feature = "testing"))]
mod registry;
#[cfg(feature = "testing")]
pub mod registry;
mod reporter;
mod reread;
mod secure;
mod shards;
mod signals;
mod state;
mod stream_ids;
mod streams;
mod syslog;
mod take_over;
mod top;
mod urls;
mod watch;
mod web;
mod web_events;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{error, info, warn};

use crate::config::added::Added;
use crate::config::{Config, ConfigError, IoChoice, PerAddress, StreamConfig};
use crate::egress::runtime::Runtime;
use crate::egress::{IoKind, Listener, ZeroCopy, probe};
use crate::limits::STOP_MAX_MS;
use crate::media::StreamId;
use crate::media::rendering::fmp4::Clock;
use crate::memory;
use crate::shard::core::ShardLimits;
use crate::shard::inbox::{ControlSender, ShardSender, ToControl, ToShard};
use crate::shard::thread::ShardHandle;
use crate::source::news::SourceNews;
use crate::tls::Tls;
use crate::upgrade::{Purpose, own_program};
use acceptor::Entrance;
use access::Doors;
use admission::{Admission, SharedAdmission};
pub use ask_upgrade::upgrade;
use carrying::Carrying;
use console::Console;
use dispatch::{Desk, Outlets};
use events::Events;
pub use failure::Failure;
use fd_store::FdStore;
use heir::Heir;
use inherited::Inherited;
pub use list::{add_stream, end_client, list_streams, remove_stream};
use manage::{Ask, Asks, Manage, Reply};
use notify::Notifier;
use passed::{Finished, Passing};
use proxied::Balancers;
use registry::{Registry, Wanted};
use reporter::Reporter;
use shards::{start_shards, stop_all};
use signals::Asked;
use stream_ids::StreamIds;
use streams::{Streams, Telling};
pub use top::{Target, top};
use urls::Urls;
use watch::Watch;
use web::Site;

/// Exit code of a runtime failure.
const EXIT_FAILURE: u8 = 1;

/// How often threads, and the configuration's files, are checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the console may take for the last lines.
const FLUSH_MAX: Duration = Duration::from_millis(150);

/// Reads the configuration again.
pub type Load = Box<dyn Fn() -> Result<Config, ConfigError>>;

/// Serves until it is asked to stop; `load` reads the configuration again for a reload, if there is a file. Exit code 0: stopped on
/// request; 1: something failed, and the log says what.
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

fn start(mut config: Config, load: Option<Load>) -> Result<(), Failure> {
    // Before anything else, because a relative path depends on the working directory.
    let program = own_program();
    let heir = Heir::find(config.testing)?;
    panics::tell();
    if let Err(error) = memory::watch() {
        warn!("cannot start the thread that returns free memory to the system ({error})");
    }
    let mut asked = signals::listen().map_err(|error| format!("signals cannot be handled ({error})"))?;
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
            warn!("{error}; using epoll, at a higher CPU cost per client");
            (IoKind::Epoll, Runtime::new(IoKind::Epoll))
        }
        Err(error) => (io, Err(error)),
    };
    let runtime = runtime.map_err(|error| format!("cannot create the control thread's runtime ({error})"))?;
    let carrying = runtime.block_on(control(config, load, (io, program), &mut asked, heir))?;
    runtime.abandon();
    carrying.map_or(Ok(()), |carrying| carrying.run(&mut asked))
}

/// How sockets send: as configured, as far as this machine allows.
fn choose_io(choice: IoChoice) -> Result<IoKind, Failure> {
    if choice == IoChoice::Epoll {
        return Ok(IoKind::Epoll);
    }
    match (probe::probe(), choice) {
        (Ok(()), _) => Ok(IoKind::Uring),
        (Err(why), IoChoice::Auto) => {
            warn!("{why} to avoid this warning; using epoll, at a higher CPU cost per client");
            Ok(IoKind::Epoll)
        }
        (Err(why), _) => Err(format!("io = \"uring\", but {why}").into()),
    }
}

/// Serves until it is asked to stop, or has handed everything over; returns what it has to carry on after that.
async fn control(
    config: Config,
    load: Option<Load>,
    (io, program): (IoKind, Option<PathBuf>),
    asked: &mut mpsc::UnboundedReceiver<Asked>,
    mut heir: Option<Heir>,
) -> Result<Option<Carrying>, Failure> {
    // A relay from which this one takes over has read them already.
    let state = config.state.as_deref().filter(|_| heir.is_none());
    let added = state.map_or(Ok(Vec::new()), state::read)?;
    let started = start_streams(config, load, io, heir.as_mut()).await;
    if let (Err(why), Some(heir)) = (&started, &mut heir) {
        heir.refuse(why);
    }
    let (mut relay, handles, mut opening) = started?;
    relay.passing.program = program;
    let is_heir = heir.is_some();
    if let Some(heir) = heir {
        relay.take_over(heir, &mut opening).await?;
    }
    let (mut tasks, acceptors) = relay.open(opening).await;
    if !is_heir {
        relay.start_added(added).await;
    }
    let outcome = relay.serve(&handles, &mut tasks, asked).await;
    relay.abandon_upgrade("the relay is stopping");
    let outcome = match outcome {
        Ok(Some(successor)) => return Ok(relay.leave_all_to(successor, handles, tasks).await),
        Ok(None) => relay.leave(&handles, &mut tasks, &acceptors, asked).await,
        Err(why) => Err(why),
    };
    relay.stop(handles, tasks).await;
    outcome.map(|()| None)
}

/// What the relay needs to open its ports to clients, once its streams run.
struct Opening {
    /// For RTSP; the flag is true for RTSPS.
    listeners: Vec<(Listener, bool)>,
    /// For HTTP, and whether by TLS.
    web: Vec<(Listener, bool)>,
    /// The shards' messages.
    messages: mpsc::UnboundedReceiver<(u16, ToControl)>,
    /// Where they go.
    desk: Desk,
    asks: Asks,
}

/// Takes the addresses, starts the shards and the streams of the configuration.
async fn start_streams(
    config: Config,
    load: Option<Load>,
    io: IoKind,
    mut heir: Option<&mut Heir>,
) -> Result<(Relay, Vec<ShardHandle>, Opening), Failure> {
    let notifier = Rc::new(Notifier::from_env());
    let Inherited { plain, secured: for_tls, mut store } =
        listeners::inherited(&config, &notifier, heir.as_deref_mut());
    let (listeners, addresses) = listen(plain, &mut store, Purpose::Rtsp, &config.listen)?;
    let (control, messages) = mpsc::unbounded_channel();
    let before = heir.as_deref().map(|heir| heir.before(&config, io)).transpose()?;
    let (io, handles) = start_shards(&config, io, &control, before.as_ref()).await?;
    let shards: Rc<[ShardSender]> = handles.iter().map(|handle| handle.sender.clone()).collect();
    let secured =
        secure::Secured::start(&config, (for_tls, &mut store), &shards, &ControlSender::new(0, control.clone()))?;
    let (doors, id, clock) = identity(heir.as_deref(), &config, io)?;
    doors.set(&config, &shards);
    tell_warnings(&config);
    let all: Vec<SocketAddr> = addresses.iter().chain(&secured.addresses).copied().collect();
    access::warn_if_open(&config, &all, config.http);
    let web = listeners::listen_for_pages(&config, &mut store, heir)?;
    // Without a file there is at most one configured stream.
    let single = config.streams.first().filter(|_| load.is_none()).map(|stream| stream.name.clone());
    let urls = Urls::new(&addresses, &secured.addresses, single);
    let reporter = Rc::new(Mutex::new(reporter(&config, io, &shards, &addresses, &secured, &urls)));
    let outlets = Outlets::default();
    let ids = Rc::new(RefCell::new(StreamIds::new(shards.len())));
    let told = (Rc::clone(&outlets), Rc::clone(&ids));
    let (news, from_sources) = mpsc::unbounded_channel();
    let (wanting, wanted) = mpsc::unbounded_channel();
    let (asks, asked_for) = mpsc::unbounded_channel();
    let telling = Telling { relay: Arc::clone(&id), news };
    let mut streams = Streams::new(Rc::clone(&shards), Rc::clone(&reporter), told, config.testing, telling);
    let registry = registry(&config);
    named::tell_rules(&id, &config, &shards);
    streams.start_all(&config.streams, before.as_ref().map(|before| &before.homes)).await;
    tell_listening(&config, io, handles.len(), &addresses, &secured.addresses);
    urls.tell(&config);
    let admission = admission(&config, handles.len());
    let events = Events::new();
    let watched = reporter.lock().await.watched();
    let site = Site::new(&config, doors.clone(), watched, Rc::clone(&admission), events.clone(), clock);
    let (listeners, listening) = listeners::all(listeners, secured.listeners, &web)?;
    let desk = Desk { outlets, ids, admission: Rc::clone(&admission), wanted: wanting, events: events.clone() };
    let relay = Relay {
        passing: Passing::new(io, listening, Rc::clone(&shards)),
        log_bytes: config.log_bytes(config.streams.len()),
        config,
        addresses: all,
        load,
        notifier,
        store,
        shards,
        reporter,
        streams,
        admission,
        doors,
        tls: secured.threads,
        site,
        id,
        registry,
        wanted,
        news: from_sources,
        events,
        asked_for,
        added: Vec::new(),
    };
    Ok((relay, handles, Opening { listeners, web, messages, desk, asks }))
}

fn registry(config: &Config) -> Registry {
    let mut registry = Registry::default();
    registry.set_patterns(config.patterns.clone());
    registry
}

/// What clients and other relays know the relay by, and the clock for browsers: those of the relay before, or new.
///
/// # Errors
/// This process cannot take over from the relay before.
fn identity(heir: Option<&Heir>, config: &Config, io: IoKind) -> Result<(Doors, Arc<str>, Clock), Failure> {
    match heir {
        Some(heir) => {
            heir.check(config, io)?;
            Ok((Doors::with(heir.nonces()), heir.id(), heir.clock().unwrap_or_else(web::clock)))
        }
        None => Ok((Doors::new()?, named::relay_id()?, web::clock())),
    }
}

/// What reports are made by.
fn reporter(
    config: &Config,
    io: IoKind,
    shards: &Rc<[ShardSender]>,
    addresses: &[SocketAddr],
    secured: &secure::Secured,
    urls: &Urls,
) -> Reporter {
    let served = addresses.iter().map(|address| format!("rtsp://{address}"));
    let served: Vec<String> =
        served.chain(secured.addresses.iter().map(|address| format!("rtsps://{address}"))).collect();
    let title = format!("{}, {} shards, {}", io_name(io), shards.len(), served.join(" "));
    let play = urls.play_commands(config);
    let mut reporter = Reporter::new(&config.report, Rc::clone(shards), title, play, urls.clone());
    if let Some(tls) = &secured.threads {
        reporter.watch_tls(Arc::clone(tls.sender().counts()));
    }
    reporter
}

/// Logs the addresses that the relay listens on, and the number of clients per address.
fn tell_listening(config: &Config, io: IoKind, shards: usize, plain: &[SocketAddr], secured: &[SocketAddr]) {
    for address in plain {
        info!(%address, io = io_name(io), shards, streams = config.streams.len(), "listening");
    }
    for address in secured {
        info!(%address, "listening for rtsps");
    }
    if let (PerAddress::Share, Some(share)) = (config.limits.clients_per_address, config.clients_per_address()) {
        info!(
            clients = config.limits.clients,
            clients_per_address = share,
            "one address may have a quarter of all clients; set limits.clients_per_address to change that, 0 for no limit"
        );
    }
}

/// The sockets of a socket unit for RTSP or RTSPS, or else those at the addresses of the configuration; with their addresses.
fn listen(
    inherited: Vec<std::net::TcpListener>,
    store: &mut FdStore,
    purpose: Purpose,
    addresses: &[SocketAddr],
) -> Result<(Vec<Listener>, Vec<SocketAddr>), Failure> {
    let listeners = if inherited.is_empty() {
        acceptor::bind(store, purpose, addresses)?
    } else {
        let key = if purpose == Purpose::Rtsps { "listen_tls" } else { "listen" };
        info!("the sockets come from the service manager or from the relay before; `{key}` is ignored");
        let take = |listener| {
            Listener::from_std(listener).map_err(|error| format!("an inherited socket cannot be used ({error})"))
        };
        inherited.into_iter().map(take).collect::<Result<_, String>>()?
    };
    let address =
        |listener: &Listener| listener.local_addr().map_err(|error| format!("a listener has no address ({error})"));
    let addresses = listeners.iter().map(address).collect::<Result<_, String>>()?;
    Ok((listeners, addresses))
}

/// Lets connections in, as configured.
fn admission(config: &Config, shards: usize) -> SharedAdmission {
    let mut admission = Admission::new(config.limits.clients, config.clients_per_address(), shards);
    admission.set_balancers(Balancers::of(config));
    Rc::new(RefCell::new(admission))
}

/// Waits until one of the tasks has failed, because a relay that no longer accepts or reports would appear to work.
async fn failed(tasks: &mut JoinSet<()>) -> Failure {
    loop {
        match tasks.join_next().await {
            Some(Ok(())) => {}
            // An acceptor that was ended to stop accepting.
            Some(Err(error)) if error.is_cancelled() => {}
            Some(Err(error)) => {
                return format!("a part of the relay failed ({error}); the log has the location").into();
            }
            None => std::future::pending().await,
        }
    }
}

/// The running parts that may change.
struct Relay {
    config: Config,
    /// Addresses of RTSP and RTSPS.
    addresses: Vec<SocketAddr>,
    load: Option<Load>,
    notifier: Rc<Notifier>,
    store: FdStore,
    shards: Rc<[ShardSender]>,
    reporter: Rc<Mutex<Reporter>>,
    streams: Streams,
    admission: SharedAdmission,
    doors: Doors,
    tls: Option<Tls>,
    site: Site,
    /// How other relays identify it.
    id: Arc<str>,
    /// The streams created by name.
    registry: Registry,
    /// Requests for names that no stream has.
    wanted: mpsc::UnboundedReceiver<Wanted>,
    /// What sources tell.
    news: mpsc::UnboundedReceiver<(StreamId, SourceNews)>,
    events: Events,
    /// Requests from users with the right to administer.
    asked_for: mpsc::UnboundedReceiver<(Ask, oneshot::Sender<Reply>)>,
    /// The streams that they have added.
    added: Vec<Added>,
    /// Size of each stream's log, as the shards know it.
    log_bytes: u64,
    /// What an upgrade needs.
    passing: Passing,
}

impl Relay {
    /// Starts accepting clients, and all tasks besides the relay itself. Returns the tasks, and those that accept.
    async fn open(&mut self, opening: Opening) -> (JoinSet<()>, Vec<AbortHandle>) {
        let Opening { listeners, web, messages, desk, asks } = opening;
        let mut tasks = JoinSet::new();
        let mut acceptors = Vec::new();
        for (listener, secured) in listeners {
            let tls = self.tls.as_ref().map(|tls| tls.sender().clone());
            let (shards, admission) = (Rc::clone(&self.shards), Rc::clone(&self.admission));
            let entrance = Entrance { secured, shards, tls, admission, valve: self.passing.valve.clone() };
            acceptors.push(tasks.spawn_local(acceptor::accept(listener, entrance)));
        }
        if !self.config.testing.is_unmeasured() {
            tasks.spawn_local(Reporter::run(Rc::clone(&self.reporter)));
        }
        outside::set(self.config.site.auth.as_ref(), &self.shards);
        tasks.spawn_local(dispatch::dispatch(messages, desk));
        for (web, by_tls) in web {
            self.open_http(&mut tasks, web, by_tls, &asks);
        }
        tasks.spawn_local(notify::status(Rc::clone(&self.notifier), Rc::clone(&self.reporter)));
        if let Some(within) = notify::watchdog() {
            tasks.spawn_local(notify::feed(Rc::clone(&self.notifier), within, Rc::clone(&self.shards)));
        }
        self.store.keep();
        self.notifier.tell("READY=1");
        if self.config.report.events {
            tasks.spawn_local(self.events.clone().print());
        }
        (tasks, acceptors)
    }

    /// Serves pages.
    fn open_http(&self, tasks: &mut JoinSet<()>, web: Listener, by_tls: bool, asks: &Asks) {
        let at = web.local_addr();
        if let Ok(address) = at {
            info!(%address, "listening for {}", if by_tls { "https" } else { "http" });
        }
        let on_loopback = at.is_ok_and(|address| address.ip().to_canonical().is_loopback());
        let manage = Manage { doors: self.doors.clone(), on_loopback, events: self.events.clone(), asks: asks.clone() };
        let pages = http::Pages {
            manage,
            site: self.site.clone(),
            reporter: Rc::clone(&self.reporter),
            shards: Rc::clone(&self.shards),
            admission: Rc::clone(&self.admission),
            on_loopback,
            testing: self.config.testing,
            valve: self.passing.valve.clone(),
            ending: Rc::clone(&self.passing.ending),
        };
        match self.tls.as_ref().filter(|_| by_tls) {
            Some(tls) => tasks.spawn_local(http::serve_tls(web, tls.sender().clone(), pages)),
            None => tasks.spawn_local(http::serve(web, pages)),
        };
    }

    /// Ends everything, with the summary last.
    async fn stop(mut self, handles: Vec<ShardHandle>, mut tasks: JoinSet<()>) {
        self.passing.listening.clear();
        self.notifier.tell("STOPPING=1\nSTATUS=stopping");
        let deadline = Instant::now() + Duration::from_millis(STOP_MAX_MS);
        tasks.abort_all();
        // The summary should show how the sources were, not that they have been stopped.
        let mut reporter = self.reporter.lock().await;
        reporter.collect().await;
        stop_all(self.streams.stop(), handles, &self.shards, deadline).await;
        // They have the last bytes for the shards' clients.
        if let Some(tls) = self.tls {
            secure::stop(tls, deadline).await;
        }
        reporter.tell_summary();
    }

    /// Waits for the request to stop, or for a failure. Returns what leads to the process that has taken over, if this one has to carry
    /// TLS connections on for it.
    async fn serve(
        &mut self,
        handles: &[ShardHandle],
        tasks: &mut JoinSet<()>,
        asked: &mut mpsc::UnboundedReceiver<Asked>,
    ) -> Result<Option<UnixStream>, Failure> {
        let mut watch = Watch::new(&self.config.files);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.registry.next_due();
            tokio::select! {
                next = asked.recv() => {
                    if self.on_asked(next.unwrap_or(Asked::Stop), &mut watch).await {
                        return Ok(None);
                    }
                }
                prepared = attempt::prepared(&mut self.passing.attempt) => {
                    let later = match self.finish_upgrade(prepared, asked).await {
                        Finished::Carrying(successor) => return Ok(Some(successor)),
                        Finished::GoesOn(later) => later,
                    };
                    for next in later {
                        if self.on_asked(next, &mut watch).await {
                            return Ok(None);
                        }
                    }
                }
                why = failed(tasks) => return Err(why),
                // Its ends of both queues are used elsewhere while it runs.
                Some(wanted) = self.wanted.recv() => self.on_wanted(wanted).await,
                Some((id, news)) = self.news.recv() => self.on_news(id, news).await,
                Some((ask, reply)) = self.asked_for.recv() => self.on_ask(ask, reply).await,
                () = until(due) => self.on_due().await,
                _ = look.tick() => {
                    self.look_after(handles)?;
                    if self.config.site.reload_on_change && watch.is_due(Instant::now()) {
                        self.read_again(&mut watch, false).await;
                    }
                }
            }
        }
    }

    /// Does what a signal asks for. Returns whether that is to stop.
    async fn on_asked(&mut self, asked: Asked, watch: &mut Watch) -> bool {
        match asked {
            Asked::Summary => self.tell_summary().await,
            Asked::Reload => self.read_again(watch, true).await,
            Asked::Upgrade => self.begin_upgrade(),
            Asked::Restart | Asked::Stop => {
                info!("stopping");
                if asked != Asked::Restart {
                    self.store.release();
                }
                return true;
            }
        }
        false
    }

    /// Applies a reloaded configuration; one with errors changes nothing.
    async fn reload(&mut self, read: Result<Config, ConfigError>) {
        let mut config = match read {
            Ok(config) => config,
            Err(faults) => {
                for fault in faults.to_string().lines() {
                    error!("{fault}");
                }
                error!("the configuration is invalid; the relay keeps the current one");
                return;
            }
        };
        // The other process may have read the configuration before.
        self.abandon_upgrade("the configuration was reloaded meanwhile; try again");
        // Keys that need a restart keep their values; everything else is applied.
        let regrouped = keep_multicast(&mut config.streams, &self.config.streams);
        let wanted = self.with_made(&config);
        let changes = match self.become_those(&wanted).await {
            Ok(changes) => changes,
            Err(why) => {
                self.registry.set_patterns(self.config.patterns.clone());
                error!("the configuration was not applied: {why}");
                return;
            }
        };
        named::tell_rules(&self.id, &config, &self.shards);
        tell_warnings(&config);
        self.site.set(&config);
        if (&config.users, config.basic) != (&self.config.users, self.config.basic) {
            // After the streams, so that a user's first request finds a new stream.
            self.doors.set(&config, &self.shards);
            info!(users = config.users.len(), "users changed");
            access::warn_if_open(&config, &self.addresses, self.config.http);
        }
        if config.site.auth != self.config.site.auth {
            outside::set(config.site.auth.as_ref(), &self.shards);
            info!(asked = config.site.auth.is_some(), "auth_url changed");
        }
        if let Some(warning) = descriptors::raise(&config)
            && config.limits != self.config.limits
        {
            warn!("{warning}");
        }
        config.limits.clients = descriptors::served(&config);
        self.admission.borrow_mut().set_balancers(Balancers::of(&config));
        self.set_limits(&config);
        if let (Some(tls), Some(wanted), Some(running)) = (&self.tls, &config.tls, &mut self.config.tls)
            && wanted.identity != running.identity
        {
            tls.sender().set_identity(&wanted.identity);
            info!(expires = secure::expires(&wanted.identity), "the certificate for rtsps changed");
            running.identity = wanted.identity.clone();
        }
        self.keep_what_takes_a_restart(&mut config, regrouped);
        self.config = config;
        self.share_logs();
        let streams::Changes { added, removed, changed } = changes;
        info!(added, removed, changed, streams = self.config.streams.len(), "configuration reloaded");
    }

    /// Has other limits hold from now on, if they are others.
    fn set_limits(&mut self, config: &Config) {
        if (config.queue, config.limits) == (self.config.queue, self.config.limits) {
            return;
        }
        self.admission.borrow_mut().set_limits(config.limits.clients, config.clients_per_address());
        self.log_bytes = config.log_bytes(self.streams.len());
        for shard in self.shards.iter() {
            shard.tell(ToShard::Limits(shard_limits(config, self.log_bytes)));
        }
        if let Some(tls) = &self.tls {
            tls.sender().set_limits(secure::limits(config));
        }
    }

    /// Keeps the running values of keys that need a restart, and returns which of them have changed; `regrouped`: whether a multicast
    /// group has.
    fn keep_what_takes_a_restart(&self, config: &mut Config, regrouped: bool) {
        for (key, is_other) in [
            ("listen", config.listen != self.config.listen),
            ("listen_tls", config.tls != self.config.tls),
            ("http", config.http != self.config.http),
            ("http_tls", config.http_tls != self.config.http_tls),
            ("workers", config.workers != self.config.workers),
            ("io", config.io != self.config.io),
            ("report", config.report != self.config.report),
            ("dscp", config.dscp != self.config.dscp),
            ("udp_ports", config.udp_ports != self.config.udp_ports),
            ("zero_copy", config.zero_copy != self.config.zero_copy),
            ("state", config.state != self.config.state),
            ("stream.multicast", regrouped),
        ] {
            if is_other {
                warn!("{key} changed in the configuration; restart the relay to apply it");
            }
        }
        // Compared with what is running, not with the previous file.
        config.listen.clone_from(&self.config.listen);
        config.tls.clone_from(&self.config.tls);
        (config.http, config.http_tls) = (self.config.http, self.config.http_tls);
        config.workers = self.config.workers;
        (config.io, config.report) = (self.config.io, self.config.report);
        (config.dscp, config.zero_copy) = (self.config.dscp, self.config.zero_copy);
        config.udp_ports = self.config.udp_ports;
        config.state.clone_from(&self.config.state);
    }
}

/// Resolves at that time; never for `None`.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Keeps each stream's multicast group unchanged; returns whether one should have changed.
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

/// Logs the configuration's warnings.
fn tell_warnings(config: &Config) {
    for warning in &config.warnings {
        warn!("the configuration, {warning}");
    }
}

/// The limits for shards.
fn shard_limits(config: &Config, log_bytes: u64) -> ShardLimits {
    ShardLimits {
        age: config.queue.age,
        log_bytes: usize::try_from(log_bytes).unwrap_or(usize::MAX),
        stall_timeout: config.queue.stall_timeout,
        session_timeout: config.limits.session_timeout,
        handshake_timeout: config.limits.handshake_timeout,
        clients_max: config.limits.clients,
        clients_per_address: config.clients_per_address(),
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
            assert!(failed(&mut tasks).await.to_string().contains("a test wants it so"));
        });
    }
}
