//! The RTSP server's side of the handshake, shared by `camera` and `floor`: one thread that accepts connections and answers requests
//! until a client plays. From then on the thread that sends media owns the connection's writing side, and receives answers to write as
//! events, so that an answer never lands inside a packet.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};

use rtsprelay::sys::set_max_pacing_rate;

use crate::rtsp::{Message, path_of};

/// A stream that is served.
#[derive(Clone, Debug)]
pub struct Presentation {
    /// Its path, without slashes around it; empty for the root.
    pub path: String,
    /// Its SDP; track n has `a=control:trackn`.
    pub sdp: String,
    /// Tracks in the SDP.
    pub tracks: usize,
}

/// Where a client wants a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// On these channels of its connection (RTP, RTCP).
    Interleaved(u8, u8),
    /// At these addresses (RTP, RTCP).
    Udp(SocketAddr, SocketAddr),
}

/// A client that wants to play.
#[derive(Debug)]
pub struct Play {
    /// The connection's number.
    pub conn: u64,
    /// Which presentation.
    pub path: usize,
    /// The tracks set up, by their numbers.
    pub tracks: Vec<(usize, Delivery)>,
    /// The connection, in blocking mode.
    pub stream: Arc<TcpStream>,
    url: String,
    cseq: String,
}

impl Play {
    /// The answer to PLAY. `first` gives sequence number and RTP timestamp of each track's first packet, where known.
    pub fn answer(&self, first: &[Option<(u16, u32)>]) -> Vec<u8> {
        let infos: Vec<String> = self
            .tracks
            .iter()
            .map(|&(track, _)| {
                let url = format!("url={}/track{track}", self.url.trim_end_matches('/'));
                match first.get(track).copied().flatten() {
                    Some((seq, time)) => format!("{url};seq={seq};rtptime={time}"),
                    None => url,
                }
            })
            .collect();
        let headers =
            format!("Session: {}\r\nRange: npt=0-\r\nRTP-Info: {}\r\n", session_of(self.conn), infos.join(","));
        response("200 OK", &self.cseq, &headers, "")
    }
}

/// What the media thread learns from the server thread.
#[derive(Debug)]
pub enum Event {
    /// A client wants to play; the media thread answers and begins.
    Play(Play),
    /// Bytes for a client that plays.
    Answer {
        /// The connection's number.
        conn: u64,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// A client that plays pauses.
    Pause {
        /// The connection's number.
        conn: u64,
        /// The answer to write.
        bytes: Vec<u8>,
    },
    /// A client that played is gone.
    Gone {
        /// The connection's number.
        conn: u64,
    },
}

/// The UDP sockets that media is sent from.
#[derive(Debug)]
pub struct UdpPair {
    /// RTP.
    pub rtp: UdpSocket,
    /// RTCP.
    pub rtcp: UdpSocket,
}

impl UdpPair {
    /// Binds two adjacent ports, the lower one even, with a send buffer as large as possible.
    pub fn bind(ip: IpAddr) -> Result<UdpPair, String> {
        for _ in 0..200 {
            let rtp = UdpSocket::bind((ip, 0)).map_err(|e| format!("no UDP port on {ip}: {e}"))?;
            let port = rtp.local_addr().map_err(|e| e.to_string())?.port();
            if !port.is_multiple_of(2) {
                continue;
            }
            let Ok(rtcp) = UdpSocket::bind((ip, port + 1)) else { continue };
            // Force needs a privilege; without it the system's bound applies.
            let wanted = 8 << 20;
            if nix::sys::socket::setsockopt(&rtp, nix::sys::socket::sockopt::SndBufForce, &wanted).is_err() {
                let _ = socket2::SockRef::from(&rtp).set_send_buffer_size(wanted);
            }
            return Ok(UdpPair { rtp, rtcp });
        }
        Err(format!("no pair of neighbouring UDP ports free on {ip}"))
    }

    fn ports(&self) -> (u16, u16) {
        let port = |socket: &UdpSocket| socket.local_addr().map_or(0, |a| a.port());
        (port(&self.rtp), port(&self.rtcp))
    }
}

/// What a server offers to clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conduct {
    /// Bit rate of the simulated link for each connection, paced by the kernel.
    pub link: Option<u64>,
    /// Whether its power may be cut ([`Server::cut_power`]), for which it looks 50 times a second.
    pub mortal: bool,
}

/// A running server thread; it lives as long as the process.
pub struct Server {
    /// What clients want.
    pub events: Receiver<Event>,
    /// The address that it listens at.
    pub address: SocketAddr,
    /// The sockets for UDP clients.
    pub udp: Arc<UdpPair>,
    power: Arc<AtomicU64>,
}

impl Server {
    /// Listens and serves the handshake of these presentations.
    pub fn start(listen: SocketAddr, presentations: Vec<Presentation>, conduct: Conduct) -> Result<Server, String> {
        let listener = listen_at(listen)?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let udp = Arc::new(UdpPair::bind(address.ip())?);
        let power = Arc::new(AtomicU64::new(0));
        let (sender, events) = channel();
        let mut acceptor = Acceptor {
            presentations,
            conduct,
            address,
            events: sender,
            power: power.clone(),
            power_seen: 0,
            ports: udp.ports(),
            conns: HashMap::new(),
            next: 1,
        };
        std::thread::Builder::new()
            .name("rtsp".into())
            .spawn(move || {
                if let Err(error) = acceptor.run(listener) {
                    eprintln!("the RTSP thread ended: {error}");
                    std::process::exit(1);
                }
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Server { events, address, udp, power })
    }

    /// As if the power were cut: no listener, all connections closed.
    pub fn cut_power(&self) {
        self.power.fetch_or(CUT, Ordering::Relaxed);
    }

    /// The power is back. All connections are closed even if the other thread had no time to notice that it was away.
    pub fn restore_power(&self) {
        self.power.fetch_add(CUT, Ordering::Relaxed);
    }
}

fn listen_at(address: SocketAddr) -> Result<TcpListener, String> {
    let domain = if address.is_ipv6() { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
    let fail = |e: std::io::Error| format!("cannot listen at {address}: {e}");
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(fail)?;
    socket.set_reuse_address(true).map_err(fail)?;
    socket.bind(&address.into()).map_err(fail)?;
    socket.listen(4096).map_err(fail)?;
    socket.set_nonblocking(true).map_err(fail)?;
    Ok(socket.into())
}

/// Makes the kernel send a connection's bytes at the rate of a link. Each piece is sent separately only if the sender ends a record
/// after it (`MSG_EOR`): on loopback, where acknowledgements take no time, the kernel would put 64 KB into one segment.
fn slow_down(stream: &TcpStream, bits_per_second: u64) -> Result<(), String> {
    let paced = set_max_pacing_rate(stream, bits_per_second / 8);
    paced.map_err(|e| format!("the kernel does not pace connections: {e}"))?;
    // Some congestion control algorithms have a pacing rate of their own, from their estimate of the path.
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpCongestion, &"reno".into())
        .map_err(|e| format!("the kernel lacks the congestion control reno: {e}"))?;
    // A whole keyframe waits in the socket, as it would in the camera's.
    socket2::SockRef::from(stream).set_send_buffer_size(1 << 20).map_err(|e| format!("no buffer: {e}"))
}

struct Conn {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    input: Vec<u8>,
    path: Option<usize>,
    tracks: Vec<(usize, Delivery)>,
    /// It has played, so that the media thread owns its writing side.
    playing: bool,
    paused: bool,
}

struct Acceptor {
    presentations: Vec<Presentation>,
    conduct: Conduct,
    address: SocketAddr,
    events: Sender<Event>,
    power: Arc<AtomicU64>,
    /// How it was when it was last looked at.
    power_seen: u64,
    ports: (u16, u16),
    conns: HashMap<u64, Conn>,
    next: u64,
}

/// The bit of [`Server`]'s power that says that there is none; the bits above it count how often it came back.
const CUT: u64 = 1;

/// epoll's name for the listener; connections count from 1.
const LISTENER: u64 = 0;

impl Acceptor {
    fn run(&mut self, first: TcpListener) -> Result<(), String> {
        let fail = |e: nix::Error| format!("epoll: {e}");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(fail)?;
        let mut listener = Some(first);
        if let Some(listener) = &listener {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).map_err(fail)?;
        }
        let mut ready = [EpollEvent::empty(); 256];
        loop {
            let power = self.power.load(Ordering::Relaxed);
            if power != std::mem::replace(&mut self.power_seen, power) {
                listener = None;
                let all: Vec<u64> = self.conns.keys().copied().collect();
                all.into_iter().for_each(|conn| self.close(conn));
            }
            if power & CUT == 0 && listener.is_none() {
                let again = listen_at(self.address)?;
                epoll.add(&again, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).map_err(fail)?;
                listener = Some(again);
            }
            let patience = if self.conduct.mortal { EpollTimeout::from(20u8) } else { EpollTimeout::NONE };
            let count = match epoll.wait(&mut ready, patience) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(fail(error)),
            };
            for event in &ready[..count] {
                if event.data() != LISTENER {
                    self.read(event.data());
                    continue;
                }
                let Some(listener) = &listener else { continue };
                while let Ok((stream, peer)) = listener.accept() {
                    let _ = stream.set_nodelay(true);
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_write_timeout(Some(Duration::from_secs(10)));
                    if let Some(bits) = self.conduct.link {
                        slow_down(&stream, bits)?;
                    }
                    let number = self.next;
                    self.next += 1;
                    if epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number)).is_err() {
                        continue;
                    }
                    let stream = Arc::new(stream);
                    let conn =
                        Conn { stream, peer, input: vec![], path: None, tracks: vec![], playing: false, paused: false };
                    self.conns.insert(number, conn);
                }
            }
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(conn) = self.conns.remove(&number) {
            // The media thread may hold the stream still: end it for both.
            let _ = conn.stream.shutdown(std::net::Shutdown::Both);
            if conn.playing {
                let _ = self.events.send(Event::Gone { conn: number });
            }
        }
    }

    fn read(&mut self, number: u64) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let mut buffer = [0u8; 4096];
        match recv(conn.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return self.close(number),
            Ok(count) => conn.input.extend_from_slice(&buffer[..count]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return,
            Err(_) => return self.close(number),
        }
        loop {
            let Some(conn) = self.conns.get_mut(&number) else { return };
            // The client's own RTCP: ignored.
            if conn.input.first() == Some(&b'$') {
                let Some(head) = conn.input.get(2..4) else { return };
                let total = 4 + usize::from(u16::from_be_bytes([head[0], head[1]]));
                if conn.input.len() < total {
                    return;
                }
                conn.input.drain(..total);
                continue;
            }
            match Message::parse(&conn.input) {
                Ok(Some((request, used))) => {
                    conn.input.drain(..used);
                    self.request(number, &request);
                }
                Ok(None) => return,
                Err(_) => return self.close(number),
            }
        }
    }

    fn request(&mut self, number: u64, request: &Message) {
        let Some((method, url)) = request.request() else { return self.close(number) };
        let cseq = request.header("CSeq").unwrap_or("0").to_string();
        let path = path_of(url);
        let session = format!("Session: {}\r\n", session_of(number));
        let answer = match method {
            "OPTIONS" => response(
                "200 OK",
                &cseq,
                "Public: OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER\r\n",
                "",
            ),
            "DESCRIBE" => match self.find(path) {
                Some((index, _)) => {
                    let base = url.trim_end_matches('/');
                    let headers = format!("Content-Base: {base}/\r\nContent-Type: application/sdp\r\n");
                    response("200 OK", &cseq, &headers, &self.presentations[index].sdp)
                }
                None => response("404 Not Found", &cseq, "", ""),
            },
            "SETUP" => self.set_up(number, path, request.header("Transport").unwrap_or_default(), &cseq),
            "PLAY" => {
                let Some(conn) = self.conns.get_mut(&number) else { return };
                if let (Some(path), true) = (conn.path, !conn.playing || conn.paused) {
                    (conn.playing, conn.paused) = (true, false);
                    let play = Play {
                        conn: number,
                        path,
                        tracks: conn.tracks.clone(),
                        stream: conn.stream.clone(),
                        url: url.to_string(),
                        cseq,
                    };
                    let _ = self.events.send(Event::Play(play));
                    return;
                }
                response("455 Method Not Valid in This State", &cseq, "", "")
            }
            "PAUSE" => {
                let Some(conn) = self.conns.get_mut(&number) else { return };
                if conn.playing {
                    conn.paused = true;
                    let bytes = response("200 OK", &cseq, &session, "");
                    let _ = self.events.send(Event::Pause { conn: number, bytes });
                    return;
                }
                response("455 Method Not Valid in This State", &cseq, "", "")
            }
            "GET_PARAMETER" | "SET_PARAMETER" => response("200 OK", &cseq, &session, ""),
            "TEARDOWN" => {
                self.answer(number, response("200 OK", &cseq, &session, ""));
                return self.close(number);
            }
            _ => response("501 Not Implemented", &cseq, "", ""),
        };
        self.answer(number, answer);
    }

    /// The presentation of a path, and what of the path is left (`track0`).
    fn find<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let exact = self.presentations.iter().enumerate().find_map(|(index, p)| {
            let rest = path.strip_prefix(p.path.as_str())?;
            (rest.is_empty() || rest.starts_with('/') || p.path.is_empty()).then(|| (index, rest.trim_matches('/')))
        });
        exact.or_else(|| (path.is_empty() || path.starts_with("track")).then_some((0, path)))
    }

    fn set_up(&mut self, number: u64, path: &str, transport: &str, cseq: &str) -> Vec<u8> {
        let found = self.find(path).and_then(|(index, rest)| {
            let track: usize = rest.strip_prefix("track")?.parse().ok()?;
            (track < self.presentations[index].tracks).then_some((index, track))
        });
        let Some((index, track)) = found else { return response("404 Not Found", cseq, "", "") };
        let Some(conn) = self.conns.get_mut(&number) else { return Vec::new() };
        let parameter = |option: &str, key: &str| -> Option<(u16, u16)> {
            let value = option.split(';').find_map(|p| p.trim().strip_prefix(key))?;
            let (a, b) = value.split_once('-').unwrap_or((value, value));
            Some((a.parse().ok()?, b.parse().ok()?))
        };
        for option in transport.split(',').map(str::trim).filter(|o| !o.contains("multicast")) {
            let (delivery, echoed) = if option.starts_with("RTP/AVP/TCP") {
                let count = conn.tracks.len() as u16;
                let (a, b) = parameter(option, "interleaved=").unwrap_or((count * 2, count * 2 + 1));
                let (Ok(rtp), Ok(rtcp)) = (u8::try_from(a), u8::try_from(b)) else { continue };
                (Delivery::Interleaved(rtp, rtcp), format!("RTP/AVP/TCP;unicast;interleaved={a}-{b}"))
            } else if let Some((a, b)) = parameter(option, "client_port=") {
                let at = |port| SocketAddr::new(conn.peer.ip(), port);
                let (rtp, rtcp) = self.ports;
                let echoed = format!("RTP/AVP;unicast;client_port={a}-{b};server_port={rtp}-{rtcp}");
                (Delivery::Udp(at(a), at(b)), echoed)
            } else {
                continue;
            };
            conn.path = Some(index);
            conn.tracks.push((track, delivery));
            let headers = format!("Transport: {echoed}\r\nSession: {};timeout=60\r\n", session_of(number));
            return response("200 OK", cseq, &headers, "");
        }
        response("461 Unsupported Transport", cseq, "", "")
    }

    fn answer(&mut self, number: u64, bytes: Vec<u8>) {
        let Some(conn) = self.conns.get(&number) else { return };
        if conn.playing {
            let _ = self.events.send(Event::Answer { conn: number, bytes });
        } else if (&*conn.stream).write_all(&bytes).is_err() {
            self.close(number);
        }
    }
}

fn session_of(conn: u64) -> String {
    format!("{:08x}", conn.wrapping_mul(0x9E37_79B9) & 0xFFFF_FFFF)
}

fn response(status: &str, cseq: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("RTSP/1.0 {status}\r\nCSeq: {cseq}\r\nServer: rtsprelay-bench\r\n{headers}{length}\r\n{body}").into_bytes()
}
