//! A camera whose every answer and packet a scenario can change: RTSP over TCP or TLS, media interleaved or over UDP. It plays
//! at its own pace, and records the requests and what it sent.
//!
//! Use [`camera`](super::camera) if the scenario decides when each frame is sent.

pub mod auth;
mod connection;
pub mod media;
mod stage;

use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use self::auth::{Door, Login};
use self::media::Clip;
use super::camera::{Acceptor, Place};
use super::{DEADLINE, wait_until};

/// A kind of track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// H.264, payload type 96.
    Video,
    /// PCMU, payload type 0.
    Audio,
}

/// A camera's self-signed certificate.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    /// In the format of `tls_fingerprint`.
    pub fingerprint: String,
}

impl Identity {
    /// A new one for 127.0.0.1.
    pub fn new() -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let digest = ring::digest::digest(&ring::digest::SHA256, &certificate);
        let fingerprint = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let config = ServerConfig::builder_with_provider(rtsprelay::trust::provider());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()));
        Identity { config: Arc::new(config.unwrap()), fingerprint }
    }
}

/// A request as read by the camera.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it was read.
    pub at: Instant,
    /// The connection, counted from 0.
    pub connection: usize,
    /// Whether media were being sent on this connection.
    pub playing: bool,
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// Names and values of its headers.
    pub headers: Vec<(String, String)>,
    /// Whether it was admitted.
    pub authorized: bool,
}

impl Request {
    /// The first value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// A response before it is sent.
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub reason: String,
    /// Names and values of its header fields, without `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// The line ending.
    pub newline: &'static str,
    /// A request of the camera's own that precedes it.
    pub ask: Option<String>,
    /// Changes its text.
    pub edit: Option<Box<dyn FnOnce(String) -> String>>,
    /// The camera's response time.
    pub delay: Duration,
    /// Whether nothing is sent.
    pub silent: bool,
    /// Whether the connection ends after it.
    pub then_close: bool,
}

impl Reply {
    /// Replaces a header field.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.headers.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.headers.push((name.to_owned(), value)),
        }
    }

    /// Removes a header field.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    /// Turns it into another status without a body.
    pub fn refuse(&mut self, status: u16, reason: &str) {
        (self.status, self.reason) = (status, reason.to_owned());
        self.headers.retain(|(name, _)| name == "CSeq");
        self.body.clear();
    }
}

/// A packet before it is sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Its track.
    pub kind: Kind,
    /// Whether it is a sender report; then the fields below describe the track's newest packet.
    pub rtcp: bool,
    /// The channel, if it is interleaved.
    pub channel: u8,
    /// Number of packets of its track before it in this session.
    pub count: u64,
    /// Number of frames (or audio packets) of its track before it in this session.
    pub frame: u64,
    /// For video: whether decoding can start at its frame.
    pub key: bool,
    /// Whether it is its frame's first.
    pub first: bool,
    /// Whether it is its frame's last.
    pub last: bool,
    /// The RTP or RTCP packet.
    pub bytes: Vec<u8>,
}

impl Outgoing {
    /// With `$`, channel and length in front (RFC 2326 section 10.12).
    pub fn framed(&self) -> Vec<u8> {
        framed(self.channel, &self.bytes)
    }

    /// Changes the SSRC of an RTP packet.
    pub fn set_ssrc(&mut self, ssrc: u32) {
        let at = if self.rtcp { 4 } else { 8 };
        self.bytes[at..at + 4].copy_from_slice(&ssrc.to_be_bytes());
    }

    /// The sequence number of an RTP packet.
    pub fn seq(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// Changes the sequence number of an RTP packet.
    pub fn set_seq(&mut self, seq: u16) {
        self.bytes[2..4].copy_from_slice(&seq.to_be_bytes());
    }

    /// Sends it unchanged.
    pub fn whole(&self) -> Vec<Piece> {
        vec![Piece::Packet(self.bytes.clone())]
    }
}

/// A packet, framed for a channel.
pub fn framed(channel: u8, bytes: &[u8]) -> Vec<u8> {
    [&[b'$', channel][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// What the camera sends instead of a packet.
pub enum Piece {
    /// A packet on the same path.
    Packet(Vec<u8>),
    /// A packet on the track's RTCP path.
    Report(Vec<u8>),
    /// Bytes on the connection, unchanged.
    Raw(Vec<u8>),
    /// A request of the camera's own, with the `CSeq` in it.
    Ask(String),
}

/// What counts as a sign of life.
pub enum Sign<'a> {
    /// A request.
    Request(&'a Request),
    /// RTCP.
    Report(&'a [u8]),
}

/// An RTCP packet received by the camera.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its track, by the path on which it arrived.
    pub kind: Kind,
    /// The compound packet.
    pub bytes: Vec<u8>,
}

/// Of a [`Script`].
pub type OnRequest = Arc<dyn Fn(&Request, &mut Reply) + Send + Sync>;
/// Of a [`Script`].
pub type OnPacket = Arc<Mutex<dyn FnMut(&mut Outgoing) -> Vec<Piece> + Send>>;
/// Of a [`Script`].
pub type OnSign = Arc<dyn Fn(&Sign) -> bool + Send + Sync>;

/// The behaviour of a camera. Without changes it has no faults.
#[derive(Clone)]
pub struct Script {
    /// The certificate, for TLS.
    pub identity: Option<Identity>,
    /// Whom it admits; `None` for everyone.
    pub login: Option<Login>,
    /// Its tracks, in the order of its description.
    pub tracks: Vec<Kind>,
    /// Its video.
    pub clip: Arc<Clip>,
    /// Frames per second.
    pub fps: u32,
    /// By how many seconds its clock is ahead of ours.
    pub clock_ahead_s: i64,
    /// The session timeout that it announces, in seconds.
    pub session_timeout_s: u64,
    /// What counts as a sign of life; a session without one is closed. `None`: it needs none.
    pub life: Option<OnSign>,
    /// It serves one connection at a time, and the next one only this long after its end.
    pub one_at_a_time: Option<Duration>,
    /// How long its own requests may remain unanswered before it closes.
    pub patience: Option<Duration>,
    /// The source address of its datagrams, if not that of the connection.
    pub datagrams_from: Option<IpAddr>,
    /// The first sequence numbers, if not random.
    pub first_seq: Option<u16>,
    /// Sent repeatedly while it plays, as fast as it is read.
    pub flood: Option<Arc<Vec<u8>>>,
    /// See [`Script::answers`].
    pub on_request: Option<OnRequest>,
    /// See [`Script::packets`].
    pub on_packet: Option<OnPacket>,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            identity: None,
            login: None,
            tracks: vec![Kind::Video, Kind::Audio],
            clip: Arc::new(Clip::pattern()),
            fps: 50,
            clock_ahead_s: 0,
            session_timeout_s: 60,
            life: None,
            one_at_a_time: None,
            patience: None,
            datagrams_from: None,
            first_seq: None,
            flood: None,
            on_request: None,
            on_packet: None,
        }
    }
}

impl Script {
    /// Changes answers: called for each request with the answer of a camera without faults.
    pub fn answers(mut self, change: impl Fn(&Request, &mut Reply) + Send + Sync + 'static) -> Script {
        self.on_request = Some(Arc::new(change));
        self
    }

    /// Changes packets: called for each before it is sent; returns what is sent instead.
    pub fn packets(mut self, change: impl FnMut(&mut Outgoing) -> Vec<Piece> + Send + 'static) -> Script {
        self.on_packet = Some(Arc::new(Mutex::new(change)));
        self
    }

    /// Closes a session's connection after `seconds` without a sign of life.
    pub fn lives_by(mut self, seconds: u64, is_sign: impl Fn(&Sign) -> bool + Send + Sync + 'static) -> Script {
        self.session_timeout_s = seconds;
        self.life = Some(Arc::new(is_sign));
        self
    }

    /// With TLS.
    pub fn by_tls(mut self) -> Script {
        self.identity = Some(Identity::new());
        self
    }

    /// Admits only this login.
    pub fn for_user(mut self, login: Login) -> Script {
        self.login = Some(login);
        self
    }
}

/// A frame that the camera sent.
#[derive(Clone, Copy, Debug)]
pub struct SentFrame {
    /// Shortly before it was sent.
    pub at: Instant,
    /// Its number; numbers continue over all sessions.
    pub number: u64,
    /// A hash of its slices.
    pub hash: u64,
}

/// An RTP packet that the camera made.
#[derive(Clone, Copy, Debug)]
pub struct SentPacket {
    /// Its track.
    pub kind: Kind,
    /// Its SSRC, unless the script changes it.
    pub ssrc: u32,
    /// Its sequence number, extended over wraps (RFC 3550 appendix A.1).
    pub extended_seq: u32,
    /// Whether it was not sent.
    pub left_out: bool,
}

/// A record of what happened, in order.
#[derive(Default)]
pub struct Record {
    /// Connections: when, and from which address.
    pub opened: Vec<(Instant, SocketAddr)>,
    /// All requests.
    pub requests: Vec<Request>,
    /// The heads of the responses to its own requests.
    pub answers: Vec<String>,
    /// RTCP received.
    pub reports: Vec<Report>,
    /// Data received where TLS was expected.
    pub in_the_clear: Vec<String>,
    /// Why it closed connections.
    pub closed: Vec<&'static str>,
    /// The frames sent.
    pub frames: Vec<SentFrame>,
    /// The packets sent.
    pub packets: Vec<SentPacket>,
}

struct Shared {
    script: Mutex<Script>,
    record: Mutex<Record>,
    door: Mutex<Door>,
    sockets: Mutex<Vec<(usize, TcpStream)>>,
    last_end: Mutex<Option<Instant>>,
    /// Connections are closed as soon as they are accepted.
    away: AtomicBool,
    frames: AtomicU64,
    sounds: AtomicU64,
}

impl Shared {
    fn script(&self) -> Script {
        self.script.lock().unwrap().clone()
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The camera. All its sockets close when it is dropped.
pub struct Camera {
    shared: Arc<Shared>,
    place: Place,
    /// While it is switched on.
    listening: Option<Acceptor>,
}

impl Camera {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start(script: Script) -> Camera {
        Camera::start_at("127.0.0.1:0".parse().unwrap(), script)
    }

    /// Starts one at an address.
    pub fn start_at(address: SocketAddr, script: Script) -> Camera {
        let shared = Shared {
            script: Mutex::new(script),
            record: Mutex::default(),
            door: Mutex::default(),
            sockets: Mutex::default(),
            last_end: Mutex::default(),
            away: AtomicBool::new(false),
            frames: AtomicU64::new(0),
            sounds: AtomicU64::new(0),
        };
        let mut camera = Camera { shared: Arc::new(shared), place: Place::reserve_at(address), listening: None };
        camera.on();
        camera
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.place.address()
    }

    /// Its URL, with user and password if required.
    pub fn url(&self) -> String {
        let script = self.shared.script();
        let scheme = if script.identity.is_some() { "rtsps" } else { "rtsp" };
        let userinfo = script.login.map_or(String::new(), |login| login.userinfo());
        format!("{scheme}://{userinfo}{}/cam", self.address())
    }

    /// Changes its behaviour, from the next request and session on.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    /// The record so far; the camera blocks while this is held.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record()
    }

    /// The number of requests with this method.
    pub fn count(&self, method: &str) -> usize {
        self.record().requests.iter().filter(|request| request.method == method).count()
    }

    /// Requests with a wrong password.
    pub fn wrong_passwords(&self) -> usize {
        let door = self.shared.door.lock().unwrap();
        door.wrong + door.while_locked
    }

    /// Waits until it plays for the `times`th time.
    pub fn wait_played(&self, times: usize) {
        wait_until("the relay plays the camera", DEADLINE, || self.count("PLAY") >= times);
    }

    /// Closes all connections.
    pub fn hang_up(&self) {
        for (_, socket) in self.shared.sockets.lock().unwrap().drain(..) {
            // It may already be closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Closes all connections, and each new one at once until this is called with `false`.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.hang_up();
        }
    }

    /// Switches it off: nothing listens any more.
    pub fn off(&mut self) {
        self.listening = None;
        self.hang_up();
    }

    /// Switches it on.
    pub fn on(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.listening = Some(Acceptor::start(self.address(), move |stream, peer| accepted(stream, peer, &shared)));
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.off();
    }
}

fn accepted(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    let number = {
        let mut record = shared.record();
        record.opened.push((Instant::now(), peer));
        record.opened.len() - 1
    };
    let one_at_a_time = shared.script().one_at_a_time;
    let mut sockets = shared.sockets.lock().unwrap();
    let ended = *shared.last_end.lock().unwrap();
    let busy = one_at_a_time
        .is_some_and(|free_after| !sockets.is_empty() || ended.is_some_and(|at| at.elapsed() < free_after));
    if busy || shared.away.load(Ordering::SeqCst) {
        return;
    }
    stream.set_nodelay(true).unwrap();
    sockets.push((number, stream.try_clone().unwrap()));
    drop(sockets);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        connection::serve(stream, &shared, number);
        *shared.last_end.lock().unwrap() = Some(Instant::now());
        shared.sockets.lock().unwrap().retain(|(of, _)| *of != number);
    });
}
