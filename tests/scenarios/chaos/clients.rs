//! Clients that misbehave in every way, and some that only come and go. None of them fails a scenario: the relay may disconnect any of them.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ports that stay reserved: those of all clients within several session timeouts.
const TAKEN_MAX: usize = 128;

/// Where the clients connect.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The relay.
    pub rtsp: SocketAddr,
    /// Its pages.
    pub http: SocketAddr,
}

/// A kind of behaviour.
pub type Behaviour = fn(Target, &mut Rng) -> Option<()>;

/// All of them, by name. The first few are what most clients do.
pub const ALL: &[(&str, Behaviour)] = &[
    ("plays and tears down", plays_and_tears_down),
    ("plays and closes", plays_and_closes),
    ("plays and resets", plays_and_resets),
    ("plays over UDP", plays_over_udp),
    ("pauses and resumes", pauses_and_resumes),
    ("reads nothing", reads_nothing),
    ("says nothing", says_nothing),
    ("drips a request", drips_a_request),
    ("floods with requests", floods_with_requests),
    ("sends rubbish", sends_rubbish),
    ("mangles a request", mangles_a_request),
    ("sends rubbish frames", sends_rubbish_frames),
    ("resets in mid-request", resets_in_mid_request),
    ("half-closes", half_closes),
    ("flaps", flaps),
    ("names a session from elsewhere", names_a_session_from_elsewhere),
    ("sets up and never plays", sets_up_and_never_plays),
    ("publishes and dies", publishes_and_dies),
    ("pesters the pages", pesters_the_pages),
];

/// A connection that gives up instead of panicking.
struct Peer {
    stream: TcpStream,
    url: String,
    cseq: u32,
    session: Option<String>,
    /// What was read and not parsed yet.
    buffer: Vec<u8>,
}

impl Peer {
    fn connect(target: Target, path: &str) -> Option<Peer> {
        let stream = TcpStream::connect_timeout(&target.rtsp, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Peer { stream, url: format!("rtsp://{}{path}", target.rtsp), cseq: 0, session: None, buffer: Vec::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    fn compose(&mut self, method: &str, track: &str, headers: &str) -> String {
        self.cseq += 1;
        let session = self.session.as_ref().map(|id| format!("Session: {id}\r\n")).unwrap_or_default();
        format!("{method} {}{track} RTSP/1.0\r\nCSeq: {}\r\n{session}{headers}\r\n", self.url, self.cseq)
    }

    /// Sends a request and returns the head of its answer. Media before it are skipped.
    fn ask(&mut self, method: &str, track: &str, headers: &str) -> Option<String> {
        let request = self.compose(method, track, headers);
        self.write(request.as_bytes())?;
        let end = Instant::now() + PATIENCE;
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(head) = self.take_answer() {
                return Some(head);
            }
            match self.stream.read(&mut chunk).ok()? {
                0 => return None,
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
            if Instant::now() > end {
                return None;
            }
        }
    }

    fn take_answer(&mut self) -> Option<String> {
        loop {
            match *self.buffer.as_slice() {
                [b'$', _, high, low, ..] => {
                    let whole = 4 + usize::from(u16::from_be_bytes([high, low]));
                    if self.buffer.len() < whole {
                        return None;
                    }
                    self.buffer.drain(..whole);
                }
                [b'$', ..] | [] => return None,
                _ => break,
            }
        }
        let head = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        let length = header(&text, "Content-Length").and_then(|value| value.parse().ok()).unwrap_or(0);
        if self.buffer.len() < head + length {
            return None;
        }
        self.buffer.drain(..head + length);
        Some(text)
    }

    /// Sets a track up; remembers the session.
    fn set_up(&mut self, track: usize, transport: &str) -> Option<()> {
        let answer = self.ask("SETUP", &format!("/trackID={track}"), &format!("Transport: {transport}\r\n"))?;
        let session = header(&answer, "Session")?;
        self.session = Some(session.split(';').next()?.to_owned());
        Some(())
    }

    fn play(&mut self) -> Option<()> {
        self.ask("DESCRIBE", "", "Accept: application/sdp\r\n")?;
        self.set_up(0, "RTP/AVP/TCP;unicast;interleaved=0-1")?;
        self.ask("PLAY", "", "").map(drop)
    }

    /// Reads whatever arrives, for this long or until the end.
    fn read_for(&mut self, time: Duration) -> Option<()> {
        let end = Instant::now() + time;
        let mut chunk = [0; 64 * 1024];
        self.stream.set_read_timeout(Some(Duration::from_millis(50))).ok()?;
        while Instant::now() < end {
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock) => return None,
                _ => {}
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE)).ok()
    }

    /// Closes with a reset.
    fn reset(self) -> Option<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).ok()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (is, value) = line.split_once(':')?;
        is.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn path(rng: &mut Rng) -> &'static str {
    ["/steady", "/steady", "/rough", "/live", "/nothing"][rng.usize(..5)]
}

fn millis(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from..to))
}

/// How long a client behaves like this. Nothing waits for it.
fn pause(rng: &mut Rng, from: u64, to: u64) {
    std::thread::sleep(millis(rng, from, to));
}

/// A port for datagrams. It stays reserved for a while after the client has left: the relay sends to it until the session times out,
/// and another scenario's player on the same port must not receive these.
fn take_port(target: Target) -> Option<UdpSocket> {
    static TAKEN: Mutex<VecDeque<UdpSocket>> = Mutex::new(VecDeque::new());
    let socket = UdpSocket::bind((target.rtsp.ip(), 0)).ok()?;
    let mut taken = TAKEN.lock().unwrap();
    taken.push_back(socket.try_clone().ok()?);
    if taken.len() > TAKEN_MAX {
        taken.pop_front();
    }
    Some(socket)
}

fn plays_and_tears_down(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    peer.play()?;
    peer.read_for(millis(rng, 10, 1_000))?;
    peer.ask("TEARDOWN", "", "").map(drop)
}

fn plays_and_closes(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    peer.play()?;
    peer.read_for(millis(rng, 10, 1_000))
}

fn plays_and_resets(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    peer.play()?;
    // A frame may be on its way.
    peer.read_for(millis(rng, 1, 300))?;
    peer.reset()
}

fn plays_over_udp(target: Target, rng: &mut Rng) -> Option<()> {
    let (rtp, rtcp) = (take_port(target)?, take_port(target)?);
    let (rtp_port, rtcp_port) = (rtp.local_addr().ok()?.port(), rtcp.local_addr().ok()?.port());
    let mut peer = Peer::connect(target, path(rng))?;
    peer.set_up(0, &format!("RTP/AVP;unicast;client_port={rtp_port}-{rtcp_port}"))?;
    peer.ask("PLAY", "", "")?;
    rtp.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
    let end = Instant::now() + millis(rng, 10, 1_000);
    let mut packet = [0; 2_048];
    while Instant::now() < end {
        let _ = rtp.recv(&mut packet);
        if rng.u8(..) < 8 {
            // RTCP to the sender's own ports, valid or not.
            let report: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            let _ = rtcp.send_to(&report, target.rtsp);
        }
    }
    // Half of them leave without TEARDOWN; their sessions time out.
    if rng.bool() { peer.ask("TEARDOWN", "", "").map(drop) } else { Some(()) }
}

fn pauses_and_resumes(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    peer.play()?;
    for _ in 0..rng.usize(1..8) {
        peer.read_for(millis(rng, 1, 100))?;
        peer.ask("PAUSE", "", "")?;
        peer.ask("PLAY", "", "")?;
    }
    Some(())
}

fn reads_nothing(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, "/steady")?;
    let _ = socket2::SockRef::from(&peer.stream).set_recv_buffer_size(4_096);
    peer.play()?;
    pause(rng, 100, 4_000);
    Some(())
}

fn says_nothing(target: Target, rng: &mut Rng) -> Option<()> {
    let _peer = Peer::connect(target, "/")?;
    pause(rng, 10, 3_000);
    Some(())
}

fn drips_a_request(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    let request = peer.compose("DESCRIBE", "", "Accept: application/sdp\r\n");
    let pause = millis(rng, 1, 100);
    let end = Instant::now() + Duration::from_secs(3);
    for byte in request.bytes().take_while(|_| Instant::now() < end) {
        peer.write(&[byte])?;
        // The pause is part of dripping.
        std::thread::sleep(pause);
    }
    Some(())
}

fn floods_with_requests(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    if rng.bool() {
        peer.play()?;
    }
    let method = ["OPTIONS", "DESCRIBE", "GET_PARAMETER", "SETUP", "PLAY", "PAUSE", "WHAT"][rng.usize(..7)];
    let many: String = (0..200).map(|_| peer.compose(method, "", "Transport: RTP/AVP/TCP\r\n")).collect();
    let reads = rng.bool();
    for _ in 0..rng.usize(1..10) {
        peer.write(many.as_bytes())?;
        if reads {
            peer.read_for(Duration::from_millis(20))?;
        }
    }
    Some(())
}

fn sends_rubbish(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, "/")?;
    for _ in 0..rng.usize(1..20) {
        let bytes: Vec<u8> = (0..rng.usize(1..4_096)).map(|_| rng.u8(..)).collect();
        peer.write(&bytes)?;
    }
    peer.read_for(Duration::from_millis(50))
}

fn mangles_a_request(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    let playing = rng.bool();
    if playing {
        peer.play()?;
    }
    for _ in 0..rng.usize(1..10) {
        let method = ["SETUP", "PLAY", "ANNOUNCE", "RECORD", "TEARDOWN"][rng.usize(..5)];
        let mut request = peer
            .compose(method, "/trackID=0", "Transport: RTP/AVP/TCP;interleaved=4-5\r\nRange: npt=now-\r\n")
            .into_bytes();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..request.len());
            match rng.u8(..3) {
                0 => request[at] = rng.u8(..),
                1 => request.insert(at, rng.u8(..)),
                _ => drop(request.remove(at)),
            }
        }
        peer.write(&request)?;
        peer.read_for(Duration::from_millis(10))?;
    }
    Some(())
}

fn sends_rubbish_frames(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, "/steady")?;
    if rng.bool() {
        peer.play()?;
    }
    for _ in 0..rng.usize(1..50) {
        let length = rng.u16(..2_000);
        let mut frame = vec![b'$', rng.u8(..4)];
        frame.extend(length.to_be_bytes());
        frame.extend((0..length).map(|_| rng.u8(..)));
        // Some are longer in their length field than in fact, and swallow what follows.
        frame.truncate(if rng.u8(..) < 16 { rng.usize(4..=frame.len()) } else { frame.len() });
        peer.write(&frame)?;
    }
    peer.ask("GET_PARAMETER", "", "").map(drop)
}

fn resets_in_mid_request(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    let request = peer.compose("DESCRIBE", "", "Accept: application/sdp\r\n");
    let part = rng.usize(1..=request.len());
    peer.write(&request.as_bytes()[..part])?;
    peer.reset()
}

fn half_closes(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    if rng.bool() {
        peer.play()?;
    } else {
        let request = peer.compose("DESCRIBE", "", "");
        peer.write(request.as_bytes())?;
    }
    peer.stream.shutdown(Shutdown::Write).ok()?;
    peer.read_for(PATIENCE)
}

fn flaps(target: Target, rng: &mut Rng) -> Option<()> {
    for _ in 0..rng.usize(5..50) {
        let peer = Peer::connect(target, "/")?;
        if rng.bool() {
            peer.reset()?;
        }
    }
    Some(())
}

fn names_a_session_from_elsewhere(target: Target, rng: &mut Rng) -> Option<()> {
    let mut first = Peer::connect(target, "/steady")?;
    let (rtp, rtcp) = (take_port(target)?, take_port(target)?);
    let ports = (rtp.local_addr().ok()?.port(), rtcp.local_addr().ok()?.port());
    if rng.bool() {
        first.set_up(0, "RTP/AVP/TCP;unicast;interleaved=0-1")?;
    } else {
        first.set_up(0, &format!("RTP/AVP;unicast;client_port={}-{}", ports.0, ports.1))?;
    }
    let mut second = Peer::connect(target, "/steady")?;
    second.session = first.session.clone();
    if rng.bool() {
        drop(first);
    }
    let both = second.compose("PLAY", "", "") + &second.compose("GET_PARAMETER", "", "");
    second.write(both.as_bytes())?;
    second.read_for(millis(rng, 1, 200))?;
    second.ask("TEARDOWN", "", "").map(drop)
}

fn sets_up_and_never_plays(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, path(rng))?;
    for track in 0..rng.usize(1..20) {
        peer.session = None;
        let port = rng.u16(20_000..60_000) & !1;
        peer.set_up(track % 2, &format!("RTP/AVP;unicast;client_port={port}-{}", port + 1))?;
    }
    if rng.bool() {
        pause(rng, 10, 1_000);
    }
    Some(())
}

fn publishes_and_dies(target: Target, rng: &mut Rng) -> Option<()> {
    let mut peer = Peer::connect(target, "/live")?;
    let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n\
               a=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n";
    let head =
        peer.compose("ANNOUNCE", "", &format!("Content-Type: application/sdp\r\nContent-Length: {}\r\n", sdp.len()));
    peer.write((head + sdp).as_bytes())?;
    peer.set_up(0, "RTP/AVP/TCP;unicast;interleaved=0-1;mode=record")?;
    peer.ask("RECORD", "", "")?;
    let (mut seq, ssrc) = (rng.u16(..), rng.u32(..));
    for frame in 0..rng.u32(1..30) {
        let mut payload = vec![if frame == 0 { 0x65 } else { 0x41 }, 0x88];
        payload.extend((0..rng.usize(1..1_300)).map(|_| rng.u8(1..)));
        let mut packet = vec![b'$', 0];
        packet.extend((12 + payload.len() as u16).to_be_bytes());
        packet.extend([0x80, 0x80 | 96]);
        packet.extend(seq.to_be_bytes());
        packet.extend((frame * 3_000).to_be_bytes());
        packet.extend(ssrc.to_be_bytes());
        packet.extend(payload);
        seq = seq.wrapping_add(1);
        peer.write(&packet)?;
        pause(rng, 1, 20);
    }
    match rng.u8(..3) {
        0 => peer.ask("TEARDOWN", "", "").map(drop),
        1 => peer.write(b"$\0\xff").and_then(|()| peer.reset()),
        _ => Some(()),
    }
}

fn pesters_the_pages(target: Target, rng: &mut Rng) -> Option<()> {
    let mut stream = TcpStream::connect_timeout(&target.http, PATIENCE).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(100))).ok()?;
    let request = [
        "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nx",
        "\0\u{1}\u{2}rubbish\r\n\r\n",
        "OPTIONS rtsp://x RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    ][rng.usize(..5)];
    stream.write_all(request.as_bytes()).ok()?;
    let _ = stream.read(&mut [0; 1_024]);
    Some(())
}
