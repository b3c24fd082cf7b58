//! `attack`: many connections that only cost a server resources, in one thread with epoll.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use crate::os;
use crate::rtsp::Url;

/// Interval between two rounds over the slowly sending connections.
const TICK: Duration = Duration::from_millis(10);

/// Maximum number of connections per round, so that thousands are not opened in one burst.
const CONNECTS_MAX: usize = 20;

/// Delay after which a connection that was refused or closed is opened again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Requests that a flooding connection writes at once.
const FLOOD_REQUESTS: usize = 20;

/// Arguments of `attack`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The server to attack, with an existing stream.
    #[arg(long)]
    pub url: String,
    /// Connections that send nothing.
    #[arg(long, default_value_t = 0)]
    pub half_open: usize,
    /// Connections that send a request at one byte per second.
    #[arg(long, default_value_t = 0)]
    pub dripping: usize,
    /// Connections that send requests as fast as possible, and read the answers.
    #[arg(long, default_value_t = 0)]
    pub flooding: usize,
    /// The source address, if the server is on this machine.
    #[arg(long, default_value = "127.0.0.2")]
    pub from: Ipv4Addr,
    /// Exit after this time; by default on SIGINT or SIGTERM.
    #[arg(long, value_parser = os::duration)]
    pub seconds: Option<Duration>,
}

/// The result of an attack.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Connections made.
    pub connected: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Connections that the server closed.
    pub closed: u64,
    /// Bytes of requests accepted by the server's socket.
    pub bytes_sent: u64,
    /// Bytes of answers.
    pub bytes_received: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    HalfOpen,
    Dripping,
    Flooding,
}

struct Attacker {
    kind: Kind,
    stream: Option<TcpStream>,
    /// When it connects again, or sends the next byte.
    due: Instant,
    /// Bytes of the text sent, repeatedly.
    at: usize,
}

/// Attacks until the time is over; prints `ready` when all connections have been tried once, and a tally as JSON at the end.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let files = os::raise_open_files();
    let all = args.half_open + args.dripping + args.flooding;
    if (all + 50) as u64 > files {
        return Err(format!("{all} connections need more than the {files} open files allowed; raise `ulimit -n`"));
    }
    let url = Url::parse(&args.url)?;
    let address = url.host_port.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address = address.ok_or_else(|| format!("{} has no address", url.host_port))?;
    let mut attack = Attack {
        from: address.ip().is_loopback().then_some(args.from),
        address,
        drip: format!("DESCRIBE {} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: {}\r\n\r\n", url.bare, "x".repeat(200))
            .into_bytes(),
        flood: flood(&url.bare),
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| format!("epoll: {e}"))?,
        attackers: Vec::new(),
        tally: Tally::default(),
    };
    let now = Instant::now();
    for (kind, count) in
        [(Kind::HalfOpen, args.half_open), (Kind::Dripping, args.dripping), (Kind::Flooding, args.flooding)]
    {
        attack.attackers.extend((0..count).map(|_| Attacker { kind, stream: None, due: now, at: 0 }));
    }
    let mut ready = false;
    let mut next_tick = now;
    while !stop.load(Ordering::Relaxed) && args.seconds.is_none_or(|seconds| now.elapsed() < seconds) {
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            attack.tick()?;
            if !ready && attack.tally.connected + attack.tally.failed >= all as u64 {
                ready = true;
                println!("ready");
            }
        }
        attack.wait()?;
    }
    println!("{}", serde_json::to_string(&attack.tally).map_err(|e| e.to_string())?);
    Ok(())
}

/// Requests of the kinds that cost a server the least and the most, again and again.
fn flood(url: &str) -> Vec<u8> {
    let request = |number: usize| {
        let method = ["OPTIONS", "DESCRIBE", "GET_PARAMETER", "SETUP"][number % 4];
        format!("{method} {url} RTSP/1.0\r\nCSeq: {number}\r\nTransport: RTP/AVP/TCP;unicast\r\n\r\n")
    };
    (1..=FLOOD_REQUESTS).map(request).collect::<String>().into_bytes()
}

struct Attack {
    address: SocketAddr,
    from: Option<Ipv4Addr>,
    drip: Vec<u8>,
    flood: Vec<u8>,
    epoll: Epoll,
    attackers: Vec<Attacker>,
    tally: Tally,
}

impl Attack {
    /// Connects and sends what is due.
    fn tick(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let mut connects = 0;
        for place in 0..self.attackers.len() {
            let attacker = &mut self.attackers[place];
            if attacker.due > now {
                continue;
            }
            let Some(stream) = &mut attacker.stream else {
                if connects < CONNECTS_MAX {
                    connects += 1;
                    self.connect(place, now)?;
                }
                continue;
            };
            if attacker.kind == Kind::Dripping {
                attacker.due = now + Duration::from_secs(1);
                let byte = self.drip[attacker.at % self.drip.len()];
                match stream.write(&[byte]) {
                    Ok(_) => {
                        attacker.at += 1;
                        self.tally.bytes_sent += 1;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => self.over(place),
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, place: usize, now: Instant) -> Result<(), String> {
        let stream = match self.open() {
            Ok(stream) => stream,
            Err(_) => {
                self.tally.failed += 1;
                self.attackers[place].due = now + AGAIN_AFTER;
                return Ok(());
            }
        };
        let attacker = &mut self.attackers[place];
        let flooding = attacker.kind == Kind::Flooding;
        let wanted = if flooding { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        self.epoll.add(&stream, EpollEvent::new(wanted, place as u64)).map_err(|e| format!("epoll: {e}"))?;
        self.tally.connected += 1;
        attacker.at = 0;
        // The slow senders do not all send at the same moment.
        attacker.due = now + Duration::from_millis(place as u64 % 1_000);
        attacker.stream = Some(stream);
        Ok(())
    }

    fn open(&self) -> std::io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(self.address), socket2::Type::STREAM, None)?;
        if let Some(from) = self.from.filter(|_| self.address.is_ipv4()) {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        // On the same machine a connection is established at once, or the listener's queue is full.
        socket.connect_timeout(&self.address.into(), Duration::from_millis(200))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    fn wait(&mut self) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 128];
        let count = match self.epoll.wait(&mut events, EpollTimeout::from(TICK.as_millis() as u8)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(format!("epoll: {error}")),
        };
        for event in &events[..count] {
            self.attend(event.data() as usize);
        }
        Ok(())
    }

    /// Reads what has arrived, and keeps sending.
    fn attend(&mut self, place: usize) {
        let attacker = &mut self.attackers[place];
        let Some(stream) = &mut attacker.stream else { return };
        let mut buffer = [0; 64 * 1024];
        match stream.read(&mut buffer) {
            Ok(0) => return self.over(place),
            Ok(count) => self.tally.bytes_received += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return self.over(place),
        }
        if attacker.kind != Kind::Flooding {
            return;
        }
        match stream.write(&self.flood[attacker.at..]) {
            Ok(count) => {
                attacker.at = (attacker.at + count) % self.flood.len();
                self.tally.bytes_sent += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.over(place),
        }
    }

    /// The server has closed it; another takes its place soon.
    fn over(&mut self, place: usize) {
        // Dropping it takes it out of epoll.
        self.attackers[place].stream = None;
        self.attackers[place].due = Instant::now() + AGAIN_AFTER;
        self.tally.closed += 1;
    }
}
