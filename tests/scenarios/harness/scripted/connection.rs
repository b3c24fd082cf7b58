//! One connection of a scripted camera, from the first byte to the last.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{ServerConnection, StreamOwned};

use super::auth::Verdict;
use super::stage::{Output, Stage, Track, Way};
use super::{Identity, Kind, Reply, Report, Request, Script, Shared, Sign};
use crate::harness::datagrams::Ports;

/// How long a connection waits for data when nothing is due.
const IDLE: Duration = Duration::from_millis(20);

/// How long a write may take before the other end counts as dead.
const STUCK: Duration = Duration::from_secs(20);

/// The first byte of a TLS connection.
const HANDSHAKE: u8 = 22;

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Wire {
    /// `None` if it should have been TLS and was not, which is recorded.
    fn open(stream: TcpStream, identity: Option<&Identity>, shared: &Shared) -> Option<Wire> {
        stream.set_write_timeout(Some(STUCK)).ok()?;
        let Some(identity) = identity else { return Some(Wire::Plain(stream)) };
        let mut first = [0; 1];
        if stream.peek(&mut first).ok()? == 1 && first[0] != HANDSHAKE {
            let mut bytes = [0; 4_096];
            let len = (&stream).read(&mut bytes).ok()?;
            shared.record().in_the_clear.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
            return None;
        }
        let tls = ServerConnection::new(Arc::clone(&identity.config)).expect("a configuration");
        Some(Wire::Tls(Box::new(StreamOwned::new(tls, stream))))
    }

    fn stream(&self) -> &TcpStream {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(tls) => &tls.sock,
        }
    }

    /// Some bytes; `None` if nothing arrived within `patience`.
    fn read(&mut self, patience: Duration, into: &mut [u8]) -> std::io::Result<Option<usize>> {
        self.stream().set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let read = match self {
            Wire::Plain(stream) => stream.read(into),
            Wire::Tls(tls) => tls.read(into),
        };
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(Some(len)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.write_all(bytes),
            Wire::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }
}

/// Why a connection ends.
enum End {
    /// The other end closed it.
    Gone,
    /// The camera closes it.
    Closed(&'static str),
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> End {
        End::Gone
    }
}

/// Serves a connection until it ends.
pub(super) fn serve(stream: TcpStream, shared: &Shared, number: usize) {
    let Some(wire) = Wire::open(stream, shared.script().identity.as_ref(), shared) else { return };
    let mut connection = Connection {
        wire,
        shared,
        number,
        buffer: Vec::new(),
        stage: Stage::default(),
        last_sign: Instant::now(),
        unanswered: 0,
        asked: Instant::now(),
    };
    if let Err(End::Closed(why)) = connection.run() {
        shared.record().closed.push(why);
    }
}

struct Connection<'a> {
    wire: Wire,
    shared: &'a Shared,
    number: usize,
    buffer: Vec<u8>,
    stage: Stage,
    last_sign: Instant,
    /// The camera's own requests that were not answered yet.
    unanswered: usize,
    asked: Instant,
}

impl Connection<'_> {
    fn run(&mut self) -> Result<(), End> {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            let script = self.shared.script();
            self.play(&script)?;
            self.judge_silence(&script)?;
            let now = Instant::now();
            let due = self.stage.next(&script).map_or(IDLE, |at| at.saturating_duration_since(now).min(IDLE));
            if let Some(len) = self.wire.read(due, &mut chunk)? {
                self.buffer.extend_from_slice(&chunk[..len]);
            }
            for report in self.stage.reports() {
                self.take_report(report, &script);
            }
            while self.take_message()? {}
        }
    }

    fn play(&mut self, script: &Script) -> Result<(), End> {
        let mut output = Output::default();
        self.stage.advance(self.shared, script, Instant::now(), &mut output);
        if self.stage.begun.is_some()
            && let Some(flood) = &script.flood
        {
            output.bytes.extend_from_slice(flood);
        }
        self.has_asked(output.asks);
        if !output.bytes.is_empty() {
            self.wire.write(&output.bytes)?;
        }
        Ok(())
    }

    fn has_asked(&mut self, times: usize) {
        if times > 0 && self.unanswered == 0 {
            self.asked = Instant::now();
        }
        self.unanswered += times;
    }

    fn judge_silence(&mut self, script: &Script) -> Result<(), End> {
        if script.patience.is_some_and(|patience| self.unanswered > 0 && self.asked.elapsed() > patience) {
            return Err(End::Closed("my request was not answered"));
        }
        let lasts = Duration::from_secs(script.session_timeout_s);
        if self.stage.begun.is_some() && script.life.is_some() && self.last_sign.elapsed() > lasts {
            return Err(End::Closed("no sign of life"));
        }
        Ok(())
    }

    fn take_report(&mut self, report: Report, script: &Script) {
        if script.life.as_ref().is_some_and(|is_sign| is_sign(&Sign::Report(&report.bytes))) {
            self.last_sign = Instant::now();
        }
        self.shared.record().reports.push(report);
    }

    /// Takes one message from the data read; `false` if it is incomplete.
    fn take_message(&mut self) -> Result<bool, End> {
        if self.buffer.first() == Some(&b'$') {
            let Some(&[_, channel, high, low]) = self.buffer.first_chunk() else { return Ok(false) };
            let end = 4 + usize::from(u16::from_be_bytes([high, low]));
            if self.buffer.len() < end {
                return Ok(false);
            }
            let bytes = self.buffer.drain(..end).skip(4).collect();
            let of = |track: &&Track| matches!(track.way, Way::Channels(_, rtcp) if rtcp == channel);
            if let Some(kind) = self.stage.tracks.iter().find(of).map(|track| track.kind) {
                let script = self.shared.script();
                self.take_report(Report { kind, bytes }, &script);
            }
            return Ok(true);
        }
        let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
        let body: usize = head.lines().find_map(length).unwrap_or(0);
        if self.buffer.len() < end + 4 + body {
            return Ok(false);
        }
        self.buffer.drain(..end + 4 + body);
        if head.starts_with("RTSP/") {
            self.unanswered = self.unanswered.saturating_sub(1);
            self.shared.record().answers.push(head);
        } else {
            self.answer(&head)?;
        }
        Ok(true)
    }

    fn answer(&mut self, head: &str) -> Result<(), End> {
        let script = self.shared.script();
        let mut request = self.read_request(head);
        let challenges = self.challenges(&script, &request);
        request.authorized = challenges.is_empty();
        if script.life.as_ref().is_some_and(|is_sign| is_sign(&Sign::Request(&request))) {
            self.last_sign = Instant::now();
        }
        let mut reply = reply_to(&request);
        if request.authorized {
            self.fill(&mut reply, &request, &script);
        } else {
            reply.refuse(401, "Unauthorized");
            reply.headers.extend(challenges.into_iter().map(|challenge| ("WWW-Authenticate".to_owned(), challenge)));
        }
        if let Some(change) = &script.on_request {
            change(&request, &mut reply);
        }
        // It is recorded before it is answered.
        self.shared.record().requests.push(request.clone());
        let played = request.method == "PLAY" && reply.status == 200;
        let then_close = reply.then_close;
        self.send(reply)?;
        if played && self.stage.begun.is_none() {
            (self.stage.begun, self.last_sign) = (Some(Instant::now()), Instant::now());
        }
        if request.method == "TEARDOWN" && request.authorized {
            self.stage = Stage::default();
        }
        if then_close { Err(End::Closed("as the script says")) } else { Ok(()) }
    }

    fn read_request(&self, head: &str) -> Request {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, url) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let (connection, playing) = (self.number, self.stage.begun.is_some());
        Request { at: Instant::now(), connection, playing, method, url, headers, authorized: false }
    }

    /// `None` if the request is admitted.
    fn challenges(&self, script: &Script, request: &Request) -> Vec<String> {
        let Some(login) = &script.login else { return Vec::new() };
        // Requests within a session are not checked.
        if request.method == "OPTIONS" && !request.playing && request.header("Authorization").is_none() {
            return Vec::new();
        }
        let mut door = self.shared.door.lock().unwrap();
        let header = request.header("Authorization");
        match door.judge(login, &request.method, &request.url, header, request.at) {
            Verdict::In => Vec::new(),
            Verdict::Out(challenges) => challenges,
        }
    }

    /// The answer of a camera without faults.
    fn fill(&mut self, reply: &mut Reply, request: &Request, script: &Script) {
        let base = request.url.trim_end_matches('/').to_owned();
        let session = format!("{}", 4_711 + self.number);
        match request.method.as_str() {
            "OPTIONS" => reply.set("Public", "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"),
            "DESCRIBE" => {
                reply.set("Content-Base", format!("{base}/"));
                reply.set("Content-Type", "application/sdp");
                reply.body = description(script);
            }
            "SETUP" => match self.set_up(request, script) {
                Some(transport) => {
                    reply.set("Transport", transport);
                    reply.set("Session", format!("{session};timeout={}", script.session_timeout_s));
                }
                None => reply.refuse(461, "Unsupported Transport"),
            },
            "PLAY" => {
                let infos: Vec<String> = self.stage.tracks.iter().map(|track| track.rtp_info(&base)).collect();
                reply.set("Session", session);
                reply.set("RTP-Info", infos.join(","));
            }
            "GET_PARAMETER" | "SET_PARAMETER" | "PAUSE" | "TEARDOWN" => reply.set("Session", session),
            _ => reply.refuse(501, "Not Implemented"),
        }
    }

    /// Sets a track up; returns the `Transport` of the answer.
    fn set_up(&mut self, request: &Request, script: &Script) -> Option<String> {
        let place: usize = request.url.rsplit("track").next()?.parse().ok()?;
        let kind = *script.tracks.get(place.checked_sub(1)?)?;
        let asked = request.header("Transport")?;
        let parameter = |name: &str| asked.split([';', ',']).find_map(|part| part.trim().strip_prefix(name));
        let pair = |text: &str| {
            let mut numbers = text.split('-').map(|number| number.parse::<u16>().ok());
            let first = numbers.next()??;
            Some((first, numbers.next().flatten().unwrap_or(first + 1)))
        };
        if let Some((rtp, rtcp)) = parameter("interleaved=").and_then(pair) {
            self.stage.tracks.push(Track::new(kind, place, Way::Channels(rtp as u8, rtcp as u8), script));
            return Some(format!("RTP/AVP/TCP;unicast;interleaved={rtp}-{rtcp}"));
        }
        let (rtp_to, rtcp_to) = parameter("client_port=").and_then(pair)?;
        let (local, there) = (self.wire.stream().local_addr().ok()?, self.wire.stream().peer_addr().ok()?);
        let here = local.ip();
        let ports = script.datagrams_from.map_or_else(|| Ports::bind_beside(local), Ports::bind_at);
        let (text, from) = (ports.pair(), ports.rtp.local_addr().ok()?.ip());
        ports.rtcp.set_nonblocking(true).ok()?;
        let to = [rtp_to, rtcp_to].map(|port| {
            let mut to = there;
            to.set_port(port);
            to
        });
        self.stage.tracks.push(Track::new(kind, place, Way::Ports { rtp: ports.rtp, rtcp: ports.rtcp, to }, script));
        let source = if from == here { String::new() } else { format!("source={from};") };
        Some(format!("RTP/AVP;unicast;{source}client_port={rtp_to}-{rtcp_to};server_port={text}"))
    }

    fn send(&mut self, reply: Reply) -> Result<(), End> {
        // The camera's response time.
        std::thread::sleep(reply.delay);
        let mut bytes = Vec::new();
        if let Some(ask) = &reply.ask {
            bytes.extend(ask.as_bytes());
            self.has_asked(1);
        }
        if !reply.silent {
            bytes.extend(text_of(reply).into_bytes());
        }
        Ok(self.wire.write(&bytes)?)
    }
}

fn reply_to(request: &Request) -> Reply {
    let cseq = request.header("CSeq").unwrap_or_default().to_owned();
    Reply {
        status: 200,
        reason: "OK".to_owned(),
        headers: vec![("CSeq".to_owned(), cseq)],
        body: String::new(),
        newline: "\r\n",
        ask: None,
        edit: None,
        delay: Duration::ZERO,
        silent: false,
        then_close: false,
    }
}

fn text_of(reply: Reply) -> String {
    let newline = reply.newline;
    let mut text = format!("RTSP/1.0 {} {}{newline}", reply.status, reply.reason);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}{newline}");
    }
    if !reply.body.is_empty() {
        text += &format!("Content-Length: {}{newline}", reply.body.len());
    }
    text += newline;
    text += &reply.body;
    match reply.edit {
        Some(edit) => edit(text),
        None => text,
    }
}

/// The answer to DESCRIBE.
fn description(script: &Script) -> String {
    let mut text =
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n".to_owned();
    for (at, kind) in script.tracks.iter().enumerate() {
        text += &match kind {
            Kind::Video => {
                let fmtp = script.clip.fmtp();
                format!("m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 {fmtp}\r\n")
            }
            Kind::Audio => "m=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n".to_owned(),
        };
        text += &format!("a=control:track{}\r\n", at + 1);
    }
    text
}
