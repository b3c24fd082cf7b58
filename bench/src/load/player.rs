//! One player's sockets, and its states from connecting to playing.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use super::receive::Receiver;
use crate::client::{Handshake, Step, Transport};
use crate::os;
use crate::rtsp::{Message, Url};
use crate::tls::Tls;

/// How a player behaves once it plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads the available data.
    Normal,
    /// Reads this many bytes per second.
    Slow,
    /// Reads nothing.
    Stalled,
}

/// Where a player stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Not yet connected.
    Connecting,
    /// In the handshake.
    Asking,
    /// Media may come.
    Playing,
    /// Over, for this reason.
    Over(String),
}

impl Phase {
    /// Whether it is on its way from connecting to playing.
    pub fn is_joining(&self) -> bool {
        matches!(self, Phase::Connecting | Phase::Asking)
    }
}

/// One player.
pub struct Player {
    /// How it behaves.
    pub role: Role,
    /// Where it stands.
    pub phase: Phase,
    /// Its connection.
    pub stream: TcpStream,
    tls: Option<Tls>,
    /// Its UDP sockets: RTP and RTCP of each track.
    pub sockets: Vec<UdpSocket>,
    /// What it has received, once it plays.
    pub receiver: Receiver,
    /// Whether it has been playing since before the measurement started and has not left by itself.
    pub steady: bool,
    /// When it began to connect.
    pub begun: Instant,
    /// When it last sent something.
    pub last_sent: Instant,
    /// The handshake.
    pub handshake: Handshake,
    input: Vec<u8>,
    /// Media that arrived before the answer to PLAY, because some servers send it first.
    early: Vec<u8>,
    verify: bool,
    url_index: u16,
    transport: Transport,
}

/// What reading brought.
pub enum Progress {
    /// Nothing: it waits for more.
    None,
    /// Something, and nothing to do for it.
    Some,
    /// UDP sockets have been bound and want watching.
    Bound,
    /// It plays; these bytes of media arrived with the answer.
    Plays(Vec<u8>),
}

impl Player {
    /// Starts to connect.
    pub fn connect(
        url: &Url,
        url_index: u16,
        address: SocketAddr,
        transport: Transport,
        all_tracks: bool,
        verify: bool,
        role: Role,
    ) -> std::io::Result<Player> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if role != Role::Normal {
            // A player with a receive window of fixed size: what it does not read must not hide in a growing buffer.
            socket.set_recv_buffer_size(128 * 1024)?;
        }
        match socket.connect(&address.into()) {
            Ok(()) => {}
            // EINPROGRESS: epoll reports when it is connected.
            Err(e) if e.raw_os_error() == Some(nix::Error::EINPROGRESS as i32) => {}
            Err(e) => return Err(e),
        }
        let host = url.host_port.rsplit_once(':').map_or("", |(host, _)| host);
        let tls = url.tls.then(|| Tls::new(host)).transpose().map_err(std::io::Error::other)?;
        let now = Instant::now();
        Ok(Player {
            role,
            phase: Phase::Connecting,
            stream: socket.into(),
            tls,
            sockets: Vec::new(),
            receiver: Receiver::default(),
            steady: false,
            begun: now,
            last_sent: now,
            handshake: Handshake::new(url.clone(), transport, all_tracks),
            input: Vec::new(),
            early: Vec::new(),
            verify,
            url_index,
            transport,
        })
    }

    /// The connection is established, or has failed: sends the first request.
    pub fn connected(&mut self, address: SocketAddr) -> Result<(), String> {
        if let Ok(Some(error)) = self.stream.take_error() {
            return Err(cannot_connect(address, &error));
        }
        self.phase = Phase::Asking;
        if self.transport == Transport::Ws {
            self.receiver = Receiver::by_websocket(self.url_index, self.verify, os::wall_ns());
        }
        let request = self.handshake.begin();
        self.write(&request)
    }

    /// Sends a request, which a socket always accepts completely before media flows the other way.
    pub fn write(&mut self, request: &[u8]) -> Result<(), String> {
        self.last_sent = Instant::now();
        if let Some(tls) = &mut self.tls {
            return tls.send(&mut self.stream, request).map_err(|e| format!("cannot send: {e}"));
        }
        match self.stream.write(request) {
            Ok(count) if count == request.len() => Ok(()),
            Ok(_) => Err("the server does not read".into()),
            Err(e) => Err(format!("cannot send: {e}")),
        }
    }

    /// Reads what is available, up to `into`'s length; 0 bytes at the end of the connection.
    pub fn receive(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.receive(&mut self.stream, into),
            None => self.stream.read(into),
        }
    }

    /// Whether it uses TLS, which may have buffered bytes that the socket does not report.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads, and continues the handshake.
    pub fn ask(&mut self) -> Result<Progress, String> {
        let mut progress = self.ask_once()?;
        // The socket does not report what TLS has already read.
        while let (Progress::Some, true) = (&progress, self.is_secure()) {
            progress = self.ask_once()?;
        }
        Ok(progress)
    }

    fn ask_once(&mut self) -> Result<Progress, String> {
        let mut buffer = [0u8; 4096];
        match self.receive(&mut buffer) {
            Ok(0) => return Err("the server closed the connection during the handshake".into()),
            Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(Progress::None),
            Err(e) => return Err(format!("cannot read: {e}")),
        }
        let mut progress = Progress::Some;
        loop {
            if self.input.first() == Some(&b'$') {
                let Some(total) = packet_bytes(&self.input) else { return Ok(progress) };
                self.early.extend(self.input.drain(..total));
                continue;
            }
            let Some((answer, used)) = Message::parse(&self.input)? else { return Ok(progress) };
            self.input.drain(..used);
            if answer.request().is_some() {
                continue;
            }
            let mut step = self.handshake.answer(&answer)?;
            if step == Step::BindPorts {
                self.bind_ports()?;
                progress = Progress::Bound;
                step = self.handshake.resume();
            }
            match step {
                Step::Send(request) => {
                    if request.starts_with(b"PLAY") {
                        let streams = self.url_index;
                        self.receiver = Receiver::new(streams, &self.handshake.tracks, self.verify, os::wall_ns());
                    }
                    self.write(&request)?;
                }
                Step::Playing => {
                    self.phase = Phase::Playing;
                    // The answer to PLAY has no channels: those of SETUP are already in the receiver.
                    let mut media = std::mem::take(&mut self.early);
                    media.append(&mut self.input);
                    return Ok(Progress::Plays(media));
                }
                Step::BindPorts => return Err("UDP ports were requested twice".into()),
            }
        }
    }

    fn bind_ports(&mut self) -> Result<(), String> {
        let ip: IpAddr = self.stream.local_addr().map_err(|e| e.to_string())?.ip();
        for index in 0..self.handshake.tracks.len() {
            let pair = crate::server::UdpPair::bind(ip)?;
            for socket in [&pair.rtp, &pair.rtcp] {
                socket.set_nonblocking(true).map_err(|e| e.to_string())?;
            }
            // A burst of a whole keyframe must fit; force needs a privilege, without which the system's limit applies.
            let wanted = 2 << 20;
            if nix::sys::socket::setsockopt(&pair.rtp, nix::sys::socket::sockopt::RcvBufForce, &wanted).is_err() {
                let _ = socket2::SockRef::from(&pair.rtp).set_recv_buffer_size(wanted);
            }
            let port = |socket: &UdpSocket| socket.local_addr().map_or(0, |a| a.port());
            self.handshake.tracks[index].client_ports = (port(&pair.rtp), port(&pair.rtcp));
            self.sockets.extend([pair.rtp, pair.rtcp]);
        }
        Ok(())
    }

    /// Whether media comes in datagrams.
    pub fn is_udp(&self) -> bool {
        self.transport == Transport::Udp
    }
}

/// Why there is no connection, and what to do.
pub fn cannot_connect(address: SocketAddr, error: &std::io::Error) -> String {
    let cure = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "; nothing listens there: start the server, or check --url",
        std::io::ErrorKind::AddrNotAvailable => "; every local port is in use: use fewer players",
        _ => "",
    };
    format!("cannot connect to {address}: {error}{cure}")
}

/// Size of the interleaved packet that `input` starts with, including its header; `None` if it is incomplete.
fn packet_bytes(input: &[u8]) -> Option<usize> {
    let length = input.get(2..4)?;
    let total = 4 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    (total <= input.len()).then_some(total)
}
