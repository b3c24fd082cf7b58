//! A camera for tests: a few lines of RTSP on a thread, with the faults that a test asks for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use md5::{Digest as _, Md5};

use super::packetizer::Packetizer;

/// What the camera does after its answer to PLAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Play {
    /// Sends a packet on every track each few milliseconds until the client leaves.
    Stream,
    /// Sends nothing at all.
    Stall,
    /// Sends nothing more after this many packets per track.
    StallAfter(u32),
    /// Sends nothing for a second after this many packets per track.
    PauseAfter(u32),
    /// Closes the connection after this many packets per track.
    CloseAfter(u32),
    /// Changes its SSRC after this many packets per track.
    ChangeSsrcAfter(u32),
    /// Restarts its sequence numbers after this many packets per track.
    RenumberAfter(u32),
    /// Sends something that is not an RTP packet after this many packets.
    GarbleAfter(u32),
    /// Starts an unsolicited response after this many packets per track, and never completes it.
    RambleAfter(u32),
    /// Sends one packet of [`DRIBBLED_BYTES`] in this many pieces, with pauses between them, and then continues.
    Dribble(u32),
}

/// Size of the packet that is sent in pieces.
pub(super) const DRIBBLED_BYTES: usize = 60_000;

/// What the camera is like.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) credentials: Option<(&'static str, &'static str)>,
    /// What each session does; the last is repeated.
    pub(super) plays: Vec<Play>,
    /// The start of the description.
    pub(super) head: &'static str,
    /// The sections of the description; `trackID=N` is their control.
    pub(super) medias: Vec<&'static str>,
    /// The status of the answer to each SETUP, by track; 200 beyond its end.
    pub(super) setups: Vec<u16>,
    /// Media go out as datagrams, and SETUP for TCP is answered 461.
    pub(super) udp_only: bool,
    /// Every fourth datagram of a track is overtaken by the next one.
    pub(super) scramble: bool,
    /// The SSRC that answers to SETUP announce.
    pub(super) announced_ssrc: Option<&'static str>,
    /// The connection is closed instead of an answer to this track's SETUP.
    pub(super) hang_up_on: Option<usize>,
    /// A method that is never answered.
    pub(super) mute: Option<&'static str>,
    /// A method that is answered 400.
    pub(super) refuses: Option<&'static str>,
    /// A method whose response is never completed.
    pub(super) rambles: Option<&'static str>,
    /// What follows the session's number.
    pub(super) lifetime: &'static str,
    /// Bytes that a connection is greeted with instead of RTSP.
    pub(super) greeting: Option<&'static [u8]>,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            credentials: None,
            plays: vec![Play::Stream],
            head: "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=cam\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n",
            medias: vec![VIDEO],
            setups: Vec::new(),
            udp_only: false,
            scramble: false,
            announced_ssrc: None,
            hang_up_on: None,
            mute: None,
            refuses: None,
            rambles: None,
            lifetime: ";timeout=60",
            greeting: None,
        }
    }
}

pub(super) const VIDEO: &str = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n";
pub(super) const AUDIO: &str = "m=audio 0 RTP/AVP 0\r\n";
pub(super) const BACK_CHANNEL: &str = "m=audio 0 RTP/AVP 8\r\na=sendonly\r\n";

const REALM: &str = "cam";
const NONCE: &str = "4c0ffee";

/// A running camera; stops with its last clone's drop at the latest when the test process ends.
pub(super) struct FakeCamera {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeCamera {
    pub(super) fn start(script: Script) -> FakeCamera {
        FakeCamera::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    pub(super) fn start_at(address: SocketAddr, script: Script) -> FakeCamera {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopping) = (requests.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut sessions = 0;
            for stream in listener.incoming() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { break };
                // An error is the client's leaving.
                let _ = serve(&script, stream, &log, &mut sessions, &stopping);
            }
        });
        FakeCamera { address, requests, stop, thread: Some(thread) }
    }

    /// The requests so far: method and path.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }

    /// How many requests had this method.
    pub(super) fn count(&self, method: &str) -> usize {
        self.requests().iter().filter(|request| request.starts_with(method)).count()
    }
}

impl Drop for FakeCamera {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept; refused means that the thread is gone already.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Request {
    method: String,
    url: String,
    cseq: String,
    authorization: Option<String>,
    transport: String,
}

/// Takes an interleaved packet away.
fn read_report(reader: &mut impl BufRead) -> std::io::Result<()> {
    let mut head = [0; 4];
    reader.read_exact(&mut head)?;
    reader.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))])
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Request> {
    let mut lines = Vec::new();
    loop {
        // Reports of what was received are passed over.
        while lines.is_empty() && reader.fill_buf()?.first() == Some(&b'$') {
            read_report(reader)?;
        }
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut words = lines[0].split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    Ok(Request {
        method: word(),
        url: word(),
        cseq: header("CSeq").unwrap_or_default(),
        authorization: header("Authorization"),
        transport: header("Transport").unwrap_or_default(),
    })
}

fn serve(
    script: &Script,
    stream: TcpStream,
    log: &Mutex<Vec<String>>,
    sessions: &mut usize,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(2)))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(Patient { stream, stop });
    if let Some(greeting) = script.greeting {
        return writer.write_all(greeting);
    }
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut ports: Vec<(usize, u16)> = Vec::new();
    loop {
        let request = read_request(&mut reader)?;
        log.lock().expect("not poisoned").push(format!("{} {}", request.method, path(&request.url)));
        let reply = |status: &str, headers: &str, body: &str| {
            let cseq = &request.cseq;
            let length = body.len();
            format!("RTSP/1.0 {status}\r\nCSeq: {cseq}\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
        };
        if script.mute == Some(request.method.as_str()) {
            continue;
        }
        if script.refuses == Some(request.method.as_str()) {
            writer.write_all(reply("400 Bad Request", "", "").as_bytes())?;
            continue;
        }
        if script.rambles == Some(request.method.as_str()) {
            let begin = format!("RTSP/1.0 200 OK\r\nCSeq: {}\r\n", request.cseq);
            writer.write_all(begin.as_bytes())?;
            return ramble(&mut writer);
        }
        if !authorized(script, &request) {
            let challenge = format!("WWW-Authenticate: Digest realm=\"{REALM}\", nonce=\"{NONCE}\"\r\n");
            writer.write_all(reply("401 Unauthorized", &challenge, "").as_bytes())?;
            continue;
        }
        let session = &format!("Session: 1234{}\r\n", script.lifetime);
        match request.method.as_str() {
            "DESCRIBE" => {
                let headers = format!("Content-Type: application/sdp\r\nContent-Base: {}/\r\n", request.url);
                writer.write_all(reply("200 OK", &headers, &sdp(script)).as_bytes())?;
            }
            "SETUP" => {
                let track: usize = request.url.rsplit('=').next().and_then(|it| it.parse().ok()).unwrap_or(0);
                if script.hang_up_on == Some(track) {
                    return Ok(());
                }
                let (status, transport) = transport(script, &request, track, &socket, &mut ports)?;
                let headers = if status == 200 { format!("{session}{transport}") } else { String::new() };
                writer.write_all(reply(&format!("{status} Whatever"), &headers, "").as_bytes())?;
            }
            "PLAY" => {
                let headers = format!("{session}RTP-Info: {}\r\n", rtp_info(script, &request.url));
                writer.write_all(reply("200 OK", &headers, "").as_bytes())?;
                let play = script.plays[(*sessions).min(script.plays.len() - 1)];
                *sessions += 1;
                let udp = script.udp_only.then_some((&socket, &ports[..]));
                if !play_tracks(play, script, udp, &mut writer, &mut reader, log, stop)? {
                    return Ok(());
                }
            }
            _ => writer.write_all(reply("200 OK", session, "").as_bytes())?,
        }
    }
}

/// The description of what it sends.
fn sdp(script: &Script) -> String {
    let medias = script.medias.iter().enumerate();
    medias.fold(script.head.to_owned(), |sdp, (index, media)| format!("{sdp}{media}a=control:trackID={index}\r\n"))
}

fn rtp_info(script: &Script, url: &str) -> String {
    let tracks = (0..script.medias.len()).map(|track| format!("url={url}trackID={track}"));
    tracks.collect::<Vec<_>>().join(",")
}

/// The status of the answer to a SETUP, and its transport.
fn transport(
    script: &Script,
    request: &Request,
    track: usize,
    socket: &UdpSocket,
    ports: &mut Vec<(usize, u16)>,
) -> std::io::Result<(u16, String)> {
    let status = script.setups.get(track).copied().unwrap_or(200);
    if !script.udp_only {
        let (channel, next) = (track * 2, track * 2 + 1);
        let ssrc = script.announced_ssrc.map(|ssrc| format!(";ssrc={ssrc}")).unwrap_or_default();
        return Ok((status, format!("Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{next}{ssrc}\r\n")));
    }
    let port = request.transport.split("client_port=").nth(1).and_then(|it| it.split('-').next());
    let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) else { return Ok((461, String::new())) };
    ports.push((track, port));
    let (server, next) = (socket.local_addr()?.port(), port + 1);
    let transport =
        format!("Transport: RTP/AVP;unicast;client_port={port}-{next};server_port={server}-{}\r\n", server + 1);
    Ok((status, transport))
}

/// Sends a packet of an interleaved track in this many pieces.
fn dribble(writer: &mut TcpStream, packetizer: &mut Packetizer, count: u32, pieces: usize) -> std::io::Result<()> {
    let mut body = vec![1; DRIBBLED_BYTES - 12];
    body[..3].copy_from_slice(&[0x65, 0x88, 1]);
    let packet = packetizer.packet(&body, count * 3000, true).to_vec();
    let mut framed = vec![b'$', 0];
    framed.extend((packet.len() as u16).to_be_bytes());
    framed.extend(packet);
    for piece in framed.chunks(framed.len().div_ceil(pieces)) {
        writer.write_all(piece)?;
        // The link that the pieces come by: each takes its time.
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Answers a request that arrives while media are sent; returns whether it was TEARDOWN.
fn answer_while_playing(
    script: &Script,
    writer: &mut TcpStream,
    reader: &mut BufReader<Patient<'_>>,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<bool> {
    let request = read_request(reader)?;
    log.lock().expect("not poisoned").push(format!("{} {}", request.method, path(&request.url)));
    let refused = script.refuses == Some(request.method.as_str());
    let status = if refused { "400 Bad Request" } else { "200 OK" };
    let answer = format!("RTSP/1.0 {status}\r\nCSeq: {}\r\nSession: 1234\r\n\r\n", request.cseq);
    writer.write_all(answer.as_bytes())?;
    Ok(request.method == "TEARDOWN" && !refused)
}

/// Sends media until the client sends something, which is then answered (true), or until the script says close (false).
fn play_tracks(
    play: Play,
    script: &Script,
    udp: Option<(&UdpSocket, &[(usize, u16)])>,
    writer: &mut TcpStream,
    reader: &mut BufReader<Patient<'_>>,
    log: &Mutex<Vec<String>>,
    stop: &AtomicBool,
) -> std::io::Result<bool> {
    let tracks = script.medias.len();
    let mut overtaken = vec![None; tracks];
    let numbered = |salt: u32, first_seq: u16| -> Vec<Packetizer> {
        (0..tracks).map(|track| Packetizer::new(96, 0x1000_0000 + salt + track as u32, first_seq)).collect()
    };
    let mut packetizers = numbered(0, 7);
    for count in 0u32.. {
        match play {
            Play::CloseAfter(packets) if count == packets => return Ok(false),
            Play::ChangeSsrcAfter(packets) if count == packets => {
                packetizers = numbered(0x100, 700);
            }
            Play::RenumberAfter(packets) if count == packets => packetizers = numbered(0, 7),
            // The client must see the pause, which it can distinguish from the packets' pace only by its length.
            Play::PauseAfter(packets) if count == packets => std::thread::sleep(Duration::from_secs(1)),
            Play::RambleAfter(packets) if count == packets => {
                writer.write_all(b"RTSP/1.0 200 OK\r\n")?;
                ramble(writer)?;
            }
            Play::Dribble(pieces) if count == 3 => dribble(writer, &mut packetizers[0], count, pieces as usize)?,
            Play::GarbleAfter(packets) if count == packets => writer.write_all(b"$\x00\x00\x04junk")?,
            _ => {}
        }
        let stalled = play == Play::Stall || matches!(play, Play::StallAfter(packets) if count >= packets);
        for (track, packetizer) in packetizers.iter_mut().enumerate().filter(|_| !stalled) {
            let audio = track > 0;
            let mut packet = packetizer.packet(&[0x65, 0x88, 1, 2, 3], count * 3000, true).to_vec();
            packet[1] = if audio { 0 } else { packet[1] };
            if let Some((socket, ports)) = udp {
                if script.scramble && count % 4 == 1 {
                    overtaken[track] = Some(packet);
                    continue;
                }
                for (_, port) in ports.iter().filter(|(of, _)| *of == track) {
                    for packet in std::iter::once(&packet).chain(&overtaken[track]) {
                        socket.send_to(packet, ("127.0.0.1", *port))?;
                    }
                }
                overtaken[track] = None;
                continue;
            }
            writer.write_all(&[b'$', track as u8 * 2, 0, packet.len() as u8])?;
            writer.write_all(&packet)?;
        }
        // The read's timeout is the pace.
        let mut byte = [0];
        match reader.get_ref().stream.peek(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) if byte == [b'$'] => read_report(reader)?,
            Ok(_) if answer_while_playing(script, writer, reader, log)? => return Ok(true),
            Ok(_) => {}
            Err(error) if is_timeout(&error) && !stop.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Sends a body of which there is always more, until the client leaves.
fn ramble(writer: &mut TcpStream) -> std::io::Result<()> {
    writer.write_all(b"Content-Length: 1099511627776\r\n\r\n")?;
    loop {
        writer.write_all(&[b'x'; 64 * 1024])?;
    }
}

fn path(url: &str) -> &str {
    url.splitn(4, '/').nth(3).unwrap_or_default()
}

/// RFC 2617 section 3.2.2, without qop.
fn authorized(script: &Script, request: &Request) -> bool {
    let Some((user, password)) = script.credentials else { return true };
    let hash = |text: String| Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let secret = hash(format!("{user}:{REALM}:{password}"));
    let what = hash(format!("{}:{}", request.method, request.url));
    let response = hash(format!("{secret}:{NONCE}:{what}"));
    request.authorization.as_ref().is_some_and(|header| {
        header.contains(&format!("response=\"{response}\"")) && header.contains(&format!("username=\"{user}\""))
    })
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Reads on after a timeout, until the camera is stopped.
struct Patient<'a> {
    stream: TcpStream,
    stop: &'a AtomicBool,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.stream.read(buf) {
                Err(error) if is_timeout(&error) && !self.stop.load(Ordering::Relaxed) => {}
                result => return result,
            }
        }
    }
}
