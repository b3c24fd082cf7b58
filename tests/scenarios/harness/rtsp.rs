//! An RTSP client that does exactly what a scenario tells it to, valid or not (RFC 2326).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{ClientConnection, Stream};

use super::{DEADLINE, wait_until};

/// A response of the server.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names and values of the header fields, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The first value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The id in its `Session` header, without the timeout.
    pub fn session(&self) -> Option<&str> {
        Some(self.header("Session")?.split(';').next()?.trim())
    }

    /// A parameter of its `Transport` header (`interleaved`, `server_port`, `ssrc`).
    pub fn transport(&self, name: &str) -> Option<&str> {
        let fields = self.header("Transport")?.split(';');
        fields.filter_map(|field| field.split_once('=')).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// The `url`, `seq` and `rtptime` of each track in its `RTP-Info` header.
    pub fn rtp_info(&self) -> Vec<(String, u16, u32)> {
        let header = self.header("RTP-Info").expect("RTP-Info");
        header
            .split(',')
            .map(|track| {
                let field = |name: &str| {
                    let mut fields = track.split(';').filter_map(|field| field.trim().split_once('='));
                    fields.find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no {name} in {header}")).1
                };
                (field("url").to_string(), field("seq").parse().unwrap(), field("rtptime").parse().unwrap())
            })
            .collect()
    }

    /// Panics unless its status is `status`.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }
}

/// A message from the server.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// A response.
    Answer(Answer),
    /// A packet, framed with `$` (section 10.12).
    Packet(Packet),
}

/// An interleaved packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Its channel.
    pub channel: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// When it was read.
    pub at: Instant,
}

impl Packet {
    /// The RTP marker bit (RFC 3550 section 5.1).
    pub fn marker(&self) -> bool {
        self.bytes[1] & 0x80 != 0
    }

    /// The RTP sequence number.
    pub fn seq(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// The RTP timestamp.
    pub fn rtp_time(&self) -> u32 {
        u32::from_be_bytes(self.bytes[4..8].try_into().unwrap())
    }

    /// The SSRC of an RTP packet.
    pub fn ssrc(&self) -> u32 {
        u32::from_be_bytes(self.bytes[8..12].try_into().unwrap())
    }

    /// What follows the RTP header (without extension and padding).
    pub fn payload(&self) -> &[u8] {
        &self.bytes[12 + 4 * usize::from(self.bytes[0] & 0xF)..]
    }

    /// Whether it is a sender report (RFC 3550 section 6.4.1).
    pub fn is_sender_report(&self) -> bool {
        self.bytes.len() >= 28 && self.bytes[1] == 200
    }
}

/// A track as described by DESCRIBE.
#[derive(Clone, Debug)]
pub struct Track {
    /// `video`, `audio`, …
    pub media: String,
    /// The encoding name.
    pub encoding: String,
    /// The URL for its SETUP.
    pub url: String,
    /// All `a=` lines.
    pub attributes: Vec<String>,
}

/// The tracks of a DESCRIBE answer.
pub fn tracks(answer: &Answer) -> Vec<Track> {
    let base = answer.header("Content-Base").expect("Content-Base");
    let mut tracks: Vec<Track> = Vec::new();
    for line in answer.body.lines() {
        if let Some(media) = line.strip_prefix("m=") {
            let media = media.split(' ').next().unwrap().to_string();
            tracks.push(Track { media, encoding: String::new(), url: String::new(), attributes: Vec::new() });
        } else if let (Some(track), Some(attribute)) = (tracks.last_mut(), line.strip_prefix("a=")) {
            track.attributes.push(attribute.to_string());
            if let Some(control) = attribute.strip_prefix("control:") {
                track.url = if control.contains("://") { control.to_string() } else { format!("{base}{control}") };
            } else if let Some(rtpmap) = attribute.strip_prefix("rtpmap:") {
                track.encoding = rtpmap.split([' ', '/']).nth(1).unwrap().to_string();
            }
        }
    }
    tracks
}

/// A connection from another address of this machine.
pub fn stream_from(ip: IpAddr, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).expect("bind");
    socket.connect(&address.into()).expect("connect");
    socket.into()
}

/// A connection to an RTSP server.
pub struct Client {
    stream: TcpStream,
    /// The TLS layer, with RTSPS.
    tls: Option<Box<ClientConnection>>,
    buffer: Vec<u8>,
    cseq: u32,
    /// Sent in every request once set.
    pub session: Option<String>,
    /// Packets that arrived before a response.
    pub queued: VecDeque<Packet>,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).expect("connect"))
    }

    /// Connects from another address of this machine.
    pub fn connect_from(ip: IpAddr, address: SocketAddr) -> Client {
        Client::over(stream_from(ip, address))
    }

    /// Connects with a receive buffer of about `bytes`, so that the server's sends block soon.
    pub fn connect_narrow(address: SocketAddr, bytes: usize) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&address.into()).expect("connect");
        Client::over(socket.into())
    }

    /// Over an existing connection.
    pub fn over(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        Client { stream, tls: None, buffer: Vec::new(), cseq: 0, session: None, queued: VecDeque::new() }
    }

    /// The same connection with TLS; the handshake happens with the first bytes.
    pub fn by_tls(mut self, tls: ClientConnection) -> Client {
        self.tls = Some(Box::new(tls));
        self
    }

    /// Reads some bytes; none at the end of the connection, which is reported to the TLS layer.
    fn read_bytes(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            Some(tls) => Stream::new(&mut **tls, &mut self.stream).read(into),
            None => self.stream.read(into),
        }
    }

    /// The TCP connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.tls {
            Some(tls) => Stream::new(&mut **tls, &mut self.stream).write_all(bytes),
            None => self.stream.write_all(bytes),
        }
    }

    /// The text of a request, with the next `CSeq` and the session.
    pub fn compose(&mut self, method: &str, url: &str, headers: &[(&str, &str)]) -> String {
        self.cseq += 1;
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\n", self.cseq);
        if let Some(session) = &self.session
            && !headers.iter().any(|(name, _)| *name == "Session")
        {
            text += &format!("Session: {session}\r\n");
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text + "\r\n"
    }

    /// Sends a request and waits for its response; packets before it are queued.
    pub fn request(&mut self, method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
        let text = self.compose(method, url, headers);
        self.send_raw(text.as_bytes());
        let answer = self.answer();
        assert_eq!(answer.header("CSeq"), Some(self.cseq.to_string().as_str()), "{text}{answer:#?}");
        answer
    }

    /// Waits for the next response; packets before it are queued.
    pub fn answer(&mut self) -> Answer {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.read(end).expect("an answer").expect("an answer before the end of the connection") {
                Incoming::Answer(answer) => return answer,
                Incoming::Packet(packet) => self.queued.push_back(packet),
            }
        }
    }

    /// Whether a request gets 200; `false` also if the connection is closed.
    pub fn is_served(&mut self, method: &str, url: &str) -> bool {
        let text = self.compose(method, url, &[]);
        let end = Instant::now() + DEADLINE;
        self.try_send(text.as_bytes()).is_ok()
            && matches!(self.read(end), Ok(Some(Incoming::Answer(Answer { status: 200, .. }))))
    }

    /// DESCRIBE.
    pub fn describe(&mut self, url: &str) -> Answer {
        self.request("DESCRIBE", url, &[("Accept", "application/sdp")])
    }

    /// SETUP over this connection on these channels; remembers the session.
    pub fn setup(&mut self, track: &Track, rtp_channel: u8, rtcp_channel: u8) -> Answer {
        let transport = format!("RTP/AVP/TCP;unicast;interleaved={rtp_channel}-{rtcp_channel}");
        let answer = self.request("SETUP", &track.url, &[("Transport", &transport)]);
        if let Some(session) = answer.session() {
            self.session = Some(session.to_string());
        }
        answer
    }

    /// PLAY.
    pub fn play(&mut self, url: &str) -> Answer {
        self.request("PLAY", url, &[("Range", "npt=0.000-")])
    }

    /// DESCRIBE, SETUP of every track on channels 0-1, 2-3, …, and PLAY. Returns the tracks and the answer to PLAY.
    pub fn play_everything(&mut self, url: &str) -> (Vec<Track>, Answer) {
        let described = self.describe(url).expect(200);
        let tracks = tracks(&described);
        for (number, track) in (0u8..).zip(&tracks) {
            self.setup(track, number * 2, number * 2 + 1).expect(200);
        }
        let played = self.play(described.header("Content-Base").unwrap()).expect(200);
        (tracks, played)
    }

    /// The next packet, queued or new; panics at the end of the connection.
    pub fn packet(&mut self) -> Packet {
        self.packet_or_end().expect("a packet before the end of the connection")
    }

    /// The next packet, or `None` if the server closed the connection.
    pub fn packet_or_end(&mut self) -> Option<Packet> {
        if let Some(packet) = self.queued.pop_front() {
            return Some(packet);
        }
        match self.read(Instant::now() + DEADLINE).expect("a packet")? {
            Incoming::Packet(packet) => Some(packet),
            Incoming::Answer(answer) => panic!("an answer that nobody asked for: {answer:#?}"),
        }
    }

    /// The next packet, if one comes within `patience`.
    pub fn packet_within(&mut self, patience: Duration) -> Option<Packet> {
        if let Some(packet) = self.queued.pop_front() {
            return Some(packet);
        }
        match self.read(Instant::now() + patience) {
            Ok(Some(Incoming::Packet(packet))) => Some(packet),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            other => panic!("not a packet: {other:?}"),
        }
    }

    /// The next RTP packet on `channel`; others are skipped.
    pub fn packet_on(&mut self, channel: u8) -> Packet {
        loop {
            let packet = self.packet();
            if packet.channel == channel {
                return packet;
            }
        }
    }

    /// All packets of the next video frame on `channel`, up to its marker.
    pub fn frame_on(&mut self, channel: u8) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            packets.push(self.packet_on(channel));
            if packets.last().unwrap().marker() {
                return packets;
            }
        }
    }

    /// Whether the server closes (or resets) the connection before the deadline; data before that are skipped.
    pub fn is_closed(&mut self) -> bool {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.read(end) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    /// Reads the next response or packet; `None` at the end of the connection.
    pub fn read(&mut self, end: Instant) -> std::io::Result<Option<Incoming>> {
        loop {
            if let Some((incoming, used)) = parse(&self.buffer) {
                self.buffer.drain(..used);
                return Ok(Some(incoming));
            }
            let patience = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(patience))?;
            let mut chunk = [0; 64 * 1024];
            let n = self.read_bytes(&mut chunk)?;
            if n == 0 {
                assert!(self.buffer.is_empty(), "the connection ended within a message: {} bytes", self.buffer.len());
                return Ok(None);
            }
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }

    /// Waits until the server can send no more because nothing is read: the amount of unread data stops growing.
    pub fn wait_blocking(&self) {
        let unread = || rtsprelay::sys::unread_bytes(&self.stream).unwrap();
        let (mut last, mut same) = (0, 0);
        wait_until("the client blocks the relay", DEADLINE, || {
            let now = unread();
            same = if now == last && now > 0 { same + 1 } else { 0 };
            last = now;
            same > 20
        });
    }

    /// Takes `bytes` from the connection without parsing them.
    pub fn read_some(&mut self, bytes: usize) {
        let wanted = self.buffer.len() + bytes;
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        while self.buffer.len() < wanted {
            let mut chunk = vec![0; wanted - self.buffer.len()];
            let n = self.read_bytes(&mut chunk).expect("more bytes");
            assert!(n > 0, "more bytes before the end of the connection");
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }
}

/// Takes one response or packet from the start of `buffer`, if it is complete.
fn parse(buffer: &[u8]) -> Option<(Incoming, usize)> {
    if *buffer.first()? == b'$' {
        let header = buffer.get(..4)?;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let bytes = buffer.get(4..4 + len)?.to_vec();
        return Some((Incoming::Packet(Packet { channel: header[1], bytes, at: Instant::now() }), 4 + len));
    }
    let head_len = buffer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&buffer[..head_len]).expect("headers are text");
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap();
    let status = status_line.strip_prefix("RTSP/1.0 ").unwrap_or_else(|| panic!("not an answer: {status_line:?}"));
    let mut answer = Answer { status: status[..3].parse().expect("a status code"), ..Answer::default() };
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
        answer.headers.push((name.to_string(), value.trim().to_string()));
    }
    let body_len = answer.header("Content-Length").map_or(0, |v| v.parse().expect("Content-Length"));
    let body = buffer.get(head_len + 4..head_len + 4 + body_len)?;
    answer.body = String::from_utf8(body.to_vec()).expect("the body is text");
    Some((Incoming::Answer(answer), head_len + 4 + body_len))
}
