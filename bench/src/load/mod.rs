//! `load`: many RTSP players in one thread, on epoll.

mod player;
mod receive;
pub mod report;
mod websocket;

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};
use rtsprelay::sys::unread_bytes;

use crate::client::Transport;
use crate::metrics::Told;
use crate::os;
use crate::proc::{Activity, CpuSample, datagrams_dropped, machine_busy_ns, resident_bytes};
use crate::rtsp::Url;
use player::{Phase, Player, Progress, Role, cannot_connect};
use receive::{Env, Totals, Verify};
use report::{Csv, Report};

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 256 * 1024;

/// Time that is waited for every player's first keyframe at most.
const FIRST_PICTURE_MAX: Duration = Duration::from_secs(12);

/// The epoll events at the end of a connection.
const ENDS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

/// Time between reads of slow players.
const SLOW_TICK: Duration = Duration::from_millis(20);

/// Arguments of `load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// URL to play; several URLs are assigned to the players in turn.
    #[arg(long = "url", required = true)]
    pub urls: Vec<String>,
    /// Number of players.
    #[arg(long, default_value_t = 10)]
    pub clients: usize,
    /// Transport of the media.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    pub transport: Transport,
    /// Time to measure, once all players play.
    #[arg(long, default_value = "10", value_parser = os::some_time)]
    pub seconds: Duration,
    /// Time between the last player's start and the measurement.
    #[arg(long, default_value = "2", value_parser = os::duration)]
    pub warmup: Duration,
    /// Players to start per second.
    #[arg(long, default_value = "500", value_parser = os::positive)]
    pub ramp: f64,
    /// Maximum time from connecting to the answer to PLAY.
    #[arg(long, default_value = "20", value_parser = os::duration)]
    pub join_timeout: Duration,
    /// The server's process id; its CPU time and memory are reported.
    #[arg(long)]
    pub pid: Option<i32>,
    /// Another process of the experiment, such as the camera, whose CPU time does not count as other work. Can be repeated.
    #[arg(long)]
    pub beside: Vec<i32>,
    /// Address of the relay's HTTP server; its own counts of reads and copies are reported.
    #[arg(long)]
    pub metrics: Option<SocketAddr>,
    /// Number of players that read slowly (see --slow-rate).
    #[arg(long, default_value_t = 0)]
    pub slow: usize,
    /// Bytes per second that a slow player reads.
    #[arg(long, default_value = "100k", value_parser = os::quantity)]
    pub slow_rate: u64,
    /// Number of players that read nothing once they play.
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// Players per second that leave during the measurement, each replaced by a new one.
    #[arg(long, default_value = "0", value_parser = os::rate)]
    pub churn: f64,
    /// Set up the video tracks only.
    #[arg(long)]
    pub video_only: bool,
    /// Hash every frame of every player and compare them.
    #[arg(long)]
    pub verify: bool,
    /// Print the report as one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Append the report to this CSV file, with a header line if the file is new.
    #[arg(long)]
    pub csv: Option<PathBuf>,
    /// Play rtsps:// URLs and accept any certificate.
    #[arg(long)]
    pub tls_insecure: bool,
    /// For tests: print a line `measuring` when the measurement starts.
    #[arg(long, hide = true)]
    pub announce: bool,
    /// Show no progress bar.
    #[arg(long)]
    pub quiet: bool,
}

/// Runs the load and prints its report.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    // Before the measurement, which may be long.
    let mut csv = args.csv.as_deref().map(Csv::open).transpose()?;
    let report = measure(args, &stop)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
    } else {
        print!("{}", report.table());
    }
    if let Some(csv) = &mut csv {
        csv.append(&report)?;
    }
    report.verdict()
}

/// Runs the load until its time is over or `stop` is set.
pub fn measure(args: &Args, stop: &Arc<AtomicBool>) -> Result<Report, String> {
    let files = os::raise_open_files();
    let per_client = if args.transport == Transport::Udp { 5 } else { 1 };
    if (args.clients * per_client + 50) as u64 > files {
        return Err(format!(
            "{} players need more than the {files} open files allowed; raise `ulimit -n`",
            args.clients
        ));
    }
    if args.clients == 0 {
        return Err("--clients 0: there is nothing to measure without a player".into());
    }
    if args.slow + args.stalled > args.clients {
        return Err(format!(
            "--slow {} and --stalled {} are of the players, of which there are {}; raise --clients",
            args.slow, args.stalled, args.clients
        ));
    }
    if args.slow > 0 && args.transport == Transport::Udp {
        return Err("--slow has no effect with UDP, where unread datagrams are lost; use --transport tcp".into());
    }
    let mut load = Load::new(args)?;
    let report = load.whole_run(stop);
    load.progress_end();
    let report = report?;
    load.leave();
    Ok(report)
}

/// A moment with the CPU time used up to it.
pub(crate) struct Mark {
    at: Instant,
    own: CpuSample,
    server: Option<CpuSample>,
    activity: Activity,
    told: Option<Told>,
    /// CPU time used by the processes of `--beside`.
    beside: Vec<CpuSample>,
    /// CPU time used by all processes.
    machine_ns: u64,
    /// Bytes that have arrived and are unread, as the mean over the normal TCP players.
    unread: f64,
    /// Datagrams for the current normal players that were dropped because the socket was full.
    dropped: u64,
}

impl Mark {
    fn take(args: &Args, unread: f64, dropped: u64) -> Result<Mark, String> {
        let own = CpuSample::of(std::process::id() as i32)?;
        let beside = args.beside.iter().map(|&pid| CpuSample::of(pid)).collect::<Result<_, _>>()?;
        Ok(Mark {
            server: args.pid.map(CpuSample::of).transpose()?,
            activity: args.pid.map(Activity::of).unwrap_or_default(),
            told: None,
            own,
            beside,
            unread,
            dropped,
            machine_ns: machine_busy_ns(),
            at: Instant::now(),
        })
    }

    /// The relay's own counts. Reporting them costs it time, so they are read before the first mark and after the last.
    fn told(args: &Args) -> Result<Option<Told>, String> {
        args.metrics.map(Told::by).transpose()
    }
}

/// All players.
pub(crate) struct Load<'a> {
    args: &'a Args,
    urls: Vec<(Url, SocketAddr)>,
    epoll: Epoll,
    players: Vec<Option<Player>>,
    /// How often each slot has been reused, to recognize late events of a former player.
    generations: Vec<u16>,
    buffer: Vec<u8>,
    /// Counts of normal, slow and stalled players.
    totals: [Totals; 3],
    verify: Option<Verify>,
    /// Reasons why players ended, with counts.
    failures: BTreeMap<String, u64>,
    /// Players of each role that the server closed.
    closed: [u64; 3],
    joined: u64,
    /// Players that are connecting and do not play yet.
    joining: usize,
    left: u64,
    measuring: bool,
    next_slow: Instant,
    next_churn: Instant,
    next_second: Instant,
    random: fastrand::Rng,
    progress: bool,
}

/// What an epoll event is about: the player's place, its generation, and 0 for its connection or 1 + n for UDP socket n.
fn event_data(place: usize, generation: u16, socket: usize) -> u64 {
    (place as u64) << 32 | u64::from(generation) << 16 | socket as u64
}

impl<'a> Load<'a> {
    fn new(args: &'a Args) -> Result<Load<'a>, String> {
        let mut urls = Vec::new();
        for text in &args.urls {
            let url = Url::parse(text)?;
            if url.tls && !args.tls_insecure {
                return Err(format!("{text}: this tool does not check certificates; accept any with --tls-insecure"));
            }
            if text.starts_with("ws://") != (args.transport == Transport::Ws) {
                return Err(format!("{text}: --transport ws needs ws:// URLs, and they need it"));
            }
            if url.tls && args.transport == Transport::Udp {
                return Err(format!("{text}: with TLS, media comes in the connection; use --transport tcp"));
            }
            let address = url.host_port.to_socket_addrs().ok().and_then(|mut all| all.next());
            let address = address.ok_or_else(|| format!("{} has no address; check the name", url.host_port))?;
            urls.push((url, address));
        }
        let now = Instant::now();
        Ok(Load {
            args,
            urls,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| format!("epoll: {e}"))?,
            players: (0..args.clients).map(|_| None).collect(),
            generations: vec![0; args.clients],
            buffer: vec![0; READ_BYTES_MAX],
            totals: [Totals::new(), Totals::new(), Totals::new()],
            verify: args.verify.then(Verify::default),
            failures: BTreeMap::new(),
            closed: [0; 3],
            joined: 0,
            joining: 0,
            left: 0,
            measuring: false,
            next_slow: now,
            next_churn: now,
            next_second: now,
            random: fastrand::Rng::new(),
            progress: !args.quiet && std::io::IsTerminal::is_terminal(&std::io::stderr()),
        })
    }

    /// Starts all players, then measures.
    fn whole_run(&mut self, stop: &AtomicBool) -> Result<Report, String> {
        let args = self.args;
        let memory_before = args.pid.map(resident_bytes).transpose()?;
        self.join(stop)?;
        self.first_pictures(stop)?;
        self.until(Instant::now() + args.warmup, stop, "warming up")?;
        let told = Mark::told(args)?;
        let start = Mark { told, ..Mark::take(args, self.unread(), self.dropped())? };
        self.begin_measurement();
        if args.announce {
            println!("measuring");
        }
        self.until(start.at + args.seconds, stop, "measuring")?;
        let end = Mark::take(args, self.unread(), self.dropped())?;
        let end = Mark { told: Mark::told(args)?, ..end };
        let memory_after = args.pid.map(resident_bytes).transpose()?;
        Ok(report::make(args, self, &start, &end, memory_before.zip(memory_after)))
    }

    /// The first players are the normal ones, then come the slow, then the stalled.
    fn role(&self, place: usize) -> Role {
        let normal = self.args.clients - self.args.slow - self.args.stalled;
        if place < normal {
            Role::Normal
        } else if place < normal + self.args.slow {
            Role::Slow
        } else {
            Role::Stalled
        }
    }

    fn start_player(&mut self, place: usize) {
        self.generations[place] = self.generations[place].wrapping_add(1);
        let index = place % self.urls.len();
        let (url, address) = &self.urls[index];
        let (args, role) = (self.args, self.role(place));
        let made = Player::connect(url, index as u16, *address, args.transport, !args.video_only, args.verify, role);
        let player = match made {
            Ok(player) => player,
            Err(error) => return *self.failures.entry(cannot_connect(*address, &error)).or_default() += 1,
        };
        let data = event_data(place, self.generations[place], 0);
        let watched = self.epoll.add(&player.stream, EpollEvent::new(EpollFlags::EPOLLOUT, data));
        match watched {
            Ok(()) => {
                self.players[place] = Some(player);
                self.joining += 1;
            }
            Err(error) => *self.failures.entry(format!("epoll: {error}")).or_default() += 1,
        }
    }

    /// Starts all players at the given rate and waits until each plays or has failed.
    fn join(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let begun = Instant::now();
        let mut started = 0;
        loop {
            let now = Instant::now();
            let due = ((now - begun).as_secs_f64() * self.args.ramp) as usize + 1;
            while started < due.min(self.args.clients) {
                self.start_player(started);
                started += 1;
            }
            if started == self.args.clients && self.joining == 0 {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                return Err("stopped while the players were joining".into());
            }
            self.step(now + Duration::from_millis(2))?;
            self.progress_line("joining", (started - self.joining) as f64 / self.args.clients as f64);
        }
        if self.joined == 0 {
            let reasons: Vec<&str> = self.failures.keys().map(String::as_str).collect();
            return Err(format!("no player could join: {}", reasons.join("; ")));
        }
        Ok(())
    }

    /// Fails players whose handshake takes too long.
    fn overdue(&mut self) {
        for place in 0..self.players.len() {
            let late = self.players[place]
                .as_ref()
                .is_some_and(|p| p.phase.is_joining() && p.begun.elapsed() > self.args.join_timeout);
            if late {
                self.over(place, "the handshake took too long".into());
            }
        }
    }

    /// Waits until every normal player has received its first keyframe, so that the measurement starts with all of them, but at most
    /// [`FIRST_PICTURE_MAX`], for servers whose keyframes are far apart.
    fn first_pictures(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let end = Instant::now() + FIRST_PICTURE_MAX;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            let lacks = |p: &&Player| p.role == Role::Normal && p.phase == Phase::Playing && !p.receiver.has_picture();
            let lacking = self.players.iter().flatten().filter(lacks).count();
            if lacking == 0 {
                break;
            }
            self.step(Instant::now() + Duration::from_millis(20))?;
            self.progress_line("pictures", 1.0 - lacking as f64 / self.args.clients as f64);
        }
        Ok(())
    }

    fn until(&mut self, end: Instant, stop: &AtomicBool, what: &str) -> Result<(), String> {
        let begun = Instant::now();
        let whole = end.saturating_duration_since(begun).as_secs_f64().max(1e-3);
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            self.step(end)?;
            self.progress_line(what, begun.elapsed().as_secs_f64() / whole);
        }
        Ok(())
    }

    fn begin_measurement(&mut self) {
        self.measuring = true;
        for totals in &mut self.totals {
            totals.measuring = true;
        }
        for player in self.players.iter_mut().flatten() {
            player.steady = player.phase == Phase::Playing;
        }
        self.next_churn = Instant::now();
    }

    /// Unread bytes that have arrived for a normal TCP player, on average.
    fn unread(&self) -> f64 {
        let normal = |p: &&Player| p.role == Role::Normal && p.phase == Phase::Playing && !p.is_udp();
        let sizes = self.players.iter().flatten().filter(normal).filter_map(|p| unread_bytes(&p.stream).ok());
        let (count, sum) = sizes.fold((0u64, 0u64), |(count, sum), size| (count + 1, sum + size as u64));
        if count == 0 { 0.0 } else { sum as f64 / count as f64 }
    }

    /// Datagrams for normal players that were dropped at their sockets.
    fn dropped(&self) -> u64 {
        let normal = self.players.iter().flatten().filter(|p| p.role == Role::Normal && p.is_udp());
        let ports = normal.flat_map(|p| &p.sockets).filter_map(|s| s.local_addr().ok()).map(|a| a.port());
        let ports: HashSet<u16> = ports.collect();
        if ports.is_empty() { 0 } else { datagrams_dropped(&ports) }
    }

    /// Waits for events until `end` or the next timer, and handles them.
    fn step(&mut self, end: Instant) -> Result<(), String> {
        let now = Instant::now();
        let mut wake = end.min(now + Duration::from_millis(100));
        if self.args.slow > 0 {
            wake = wake.min(self.next_slow);
        }
        if self.measuring && self.args.churn > 0.0 {
            wake = wake.min(self.next_churn);
        }
        // Rounded up to whole milliseconds, so that waiting never turns into spinning.
        let wait = wake.saturating_duration_since(now).as_micros().div_ceil(1000) as u16;
        let mut ready = [EpollEvent::empty(); 1024];
        let count = match self.epoll.wait(&mut ready, EpollTimeout::from(wait)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(format!("epoll: {error}")),
        };
        for event in &ready[..count] {
            let data = event.data();
            let (place, generation, socket) = ((data >> 32) as usize, (data >> 16) as u16, (data & 0xFFFF) as usize);
            if self.generations[place] == generation && self.players[place].is_some() {
                self.event(place, socket, event.events());
            }
        }
        self.timers();
        Ok(())
    }

    fn event(&mut self, place: usize, socket: usize, flags: EpollFlags) {
        let Some(player) = &mut self.players[place] else { return };
        let result = match (&player.phase, socket) {
            (Phase::Connecting, _) => {
                let data = event_data(place, self.generations[place], 0);
                let mut watch = EpollEvent::new(EpollFlags::EPOLLIN, data);
                player
                    .connected(self.urls[place % self.urls.len()].1)
                    .and_then(|()| self.epoll.modify(&player.stream, &mut watch).map_err(|e| format!("epoll: {e}")))
            }
            (Phase::Asking, 0) => self.ask(place),
            (Phase::Playing, 0) => match player.role {
                Role::Normal => self.read_all(place, flags.intersects(ENDS)),
                // They are watched for the end of the connection alone.
                _ if flags.intersects(ENDS) => Err("the server closed the connection".into()),
                _ => Ok(()),
            },
            (Phase::Over(_), _) => Ok(()),
            (_, socket) => {
                self.read_datagrams(place, socket - 1);
                Ok(())
            }
        };
        if let Err(reason) = result {
            self.over(place, reason);
        }
    }

    fn ask(&mut self, place: usize) -> Result<(), String> {
        let fail = |e: nix::Error| format!("epoll: {e}");
        let Some(player) = &mut self.players[place] else { return Ok(()) };
        match player.ask()? {
            Progress::None | Progress::Some => {}
            Progress::Bound => {
                for (index, socket) in player.sockets.iter().enumerate() {
                    let data = event_data(place, self.generations[place], index + 1);
                    self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, data)).map_err(fail)?;
                }
            }
            Progress::Plays(media) => {
                self.joined += 1;
                self.joining -= 1;
                // Edge-triggered, so that one wait and one read per frame are enough; the change reports data that has already arrived.
                let normal = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                let flags = if player.role == Role::Normal { normal } else { EpollFlags::EPOLLRDHUP };
                let mut watch = EpollEvent::new(flags, event_data(place, self.generations[place], 0));
                self.epoll.modify(&player.stream, &mut watch).map_err(fail)?;
                let secure = player.is_secure();
                self.take(place, &media)?;
                if secure {
                    self.read_all(place, false)?;
                }
            }
        }
        Ok(())
    }

    /// Feeds bytes that were not read through the shared buffer.
    fn take(&mut self, place: usize, bytes: &[u8]) -> Result<(), String> {
        let Some(player) = &mut self.players[place] else { return Ok(()) };
        let totals = &mut self.totals[player.role as usize];
        let mut env = Env { totals, verify: self.verify.as_mut(), now_ns: os::wall_ns() };
        Ok(player.receiver.interleaved(bytes, &mut env)?)
    }

    /// Reads everything that waits in a player's connection. A read that does not fill the buffer has emptied it, except for the end
    /// of the connection, which is read too if it has arrived.
    fn read_all(&mut self, place: usize, ends: bool) -> Result<(), String> {
        loop {
            let count = self.read(place, usize::MAX)?;
            let secure = self.players[place].as_ref().is_some_and(Player::is_secure);
            if count == 0 || (count < self.buffer.len() && !ends && !secure) {
                return Ok(());
            }
        }
    }

    /// One read of at most `max` bytes from a player's connection; returns the number of bytes.
    fn read(&mut self, place: usize, max: usize) -> Result<usize, String> {
        let Some(player) = &mut self.players[place] else { return Ok(0) };
        let max = max.min(self.buffer.len());
        match player.receive(&mut self.buffer[..max]) {
            Ok(0) => Err("the server closed the connection".into()),
            Ok(count) => {
                let totals = &mut self.totals[player.role as usize];
                let mut env = Env { totals, verify: self.verify.as_mut(), now_ns: os::wall_ns() };
                player.receiver.interleaved(&self.buffer[..count], &mut env)?;
                Ok(count)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(format!("the connection broke: {error}")),
        }
    }

    /// Reads everything that waits in a UDP socket. A stalled player's socket is left to overflow.
    fn read_datagrams(&mut self, place: usize, index: usize) {
        let Some(player) = &mut self.players[place] else { return };
        if player.role == Role::Stalled {
            let _ = self.epoll.delete(&player.sockets[index]);
            return;
        }
        let totals = &mut self.totals[player.role as usize];
        let mut env = Env { totals, verify: self.verify.as_mut(), now_ns: 0 };
        loop {
            match recv(player.sockets[index].as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(count) if index.is_multiple_of(2) => {
                    env.now_ns = os::wall_ns();
                    player.receiver.datagram(index / 2, &self.buffer[..count], &mut env);
                }
                // Sender reports.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.args.slow > 0 && now >= self.next_slow {
            self.next_slow = now + SLOW_TICK;
            let quota = (self.args.slow_rate as f64 * SLOW_TICK.as_secs_f64()).max(1.0) as usize;
            for place in 0..self.players.len() {
                let plays = self.players[place]
                    .as_ref()
                    .is_some_and(|p| p.role == Role::Slow && p.phase == Phase::Playing && !p.is_udp());
                if plays && let Err(reason) = self.read(place, quota) {
                    self.over(place, reason);
                }
            }
        }
        if self.measuring && self.args.churn > 0.0 {
            while now >= self.next_churn {
                self.next_churn += Duration::from_secs_f64(1.0 / self.args.churn);
                self.replace_one();
            }
        }
        if now >= self.next_second {
            self.next_second = now + Duration::from_secs(1);
            self.overdue();
            self.keep_alive();
        }
    }

    /// A random normal player leaves, and another takes its place.
    fn replace_one(&mut self) {
        let normal = self.args.clients - self.args.slow - self.args.stalled;
        if normal == 0 {
            return;
        }
        let place = self.random.usize(..normal);
        // Dropping it closes its sockets, and with them its places in epoll.
        if let Some(mut player) = self.players[place].take() {
            self.joining -= usize::from(player.phase.is_joining());
            if player.phase == Phase::Playing {
                let request = player.handshake.extra("TEARDOWN");
                let _ = player.write(&request);
                self.left += 1;
            }
        }
        self.start_player(place);
    }

    /// A player sends a keep-alive when half of the session timeout has passed since its last request.
    fn keep_alive(&mut self) {
        for place in 0..self.players.len() {
            let Some(player) = &mut self.players[place] else { continue };
            let half = Duration::from_secs((player.handshake.timeout_s / 2).max(1));
            if player.phase == Phase::Playing && player.last_sent.elapsed() > half {
                let request = player.handshake.extra("GET_PARAMETER");
                if let Err(reason) = player.write(&request) {
                    self.over(place, reason);
                }
            }
        }
    }

    fn over(&mut self, place: usize, reason: String) {
        let Some(player) = &mut self.players[place] else { return };
        let _ = self.epoll.delete(&player.stream);
        for socket in &player.sockets {
            let _ = self.epoll.delete(socket);
        }
        self.joining -= usize::from(player.phase.is_joining());
        if player.phase == Phase::Playing {
            self.closed[player.role as usize] += 1;
        }
        *self.failures.entry(reason.clone()).or_default() += 1;
        player.phase = Phase::Over(reason);
        let _ = player.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends TEARDOWN.
    fn leave(&mut self) {
        for player in self.players.iter_mut().flatten().filter(|p| p.phase == Phase::Playing) {
            let request = player.handshake.extra("TEARDOWN");
            let _ = player.write(&request);
        }
        self.players.clear();
    }

    fn progress_line(&self, what: &str, share: f64) {
        if !self.progress {
            return;
        }
        let width = 30;
        let full = (share.clamp(0.0, 1.0) * width as f64) as usize;
        let bar: String = (0..width).map(|i| if i < full { '#' } else { '.' }).collect();
        let _ = write!(std::io::stderr(), "\r{what:<12} [{bar}] {} playing ", self.joined);
    }

    fn progress_end(&self) {
        if self.progress {
            let _ = write!(std::io::stderr(), "\r{:70}\r", "");
        }
    }
}
