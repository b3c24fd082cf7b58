//! A camera of which a scenario may change every answer and packet: RTSP over TCP or TLS, media interleaved or over UDP. It plays
//! at its own pace, and records its requests and what it sent.
//!
//! Use [`camera`](super::camera) where a scenario decides when each frame is sent.

pub mod auth;
mod connection;
pub mod media;
mod stage;

use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use self::auth::{Door, Login};
use self::media::Clip;
use super::camera::{Place, bound};
use super::{DEADLINE, wait_until};

/// What a track is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// H.264, payload type 96.
    Video,
    /// PCMU, payload type 0.
    Audio,
}

/// A camera's certificate, which it signed itself.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    /// As `tls_fingerprint` takes it.
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

/// A request as the camera read it.
#[derive(Clone, Debug)]
pub struct Request {
    /// When.
    pub at: Instant,
    /// By which connection, counted from 0.
    pub connection: usize,
    /// Whether media flowed by this connection then.
    pub playing: bool,
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// Names and values of its headers.
    pub headers: Vec<(String, String)>,
    /// Whether it was let in.
    pub authorized: bool,
}

impl Request {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// An answer before it is sent.
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// What follows it.
    pub reason: String,
    /// Names and values of its headers, without `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// What ends a line.
    pub newline: &'static str,
    /// A request of the camera's own that goes before it.
    pub ask: Option<String>,
    /// Changes its text.
    pub edit: Option<Box<dyn FnOnce(String) -> String>>,
    /// How long the camera thinks.
    pub delay: Duration,
    /// Nothing is sent at all.
    pub silent: bool,
    /// The connection ends behind it.
    pub then_close: bool,
}

impl Reply {
    /// Puts a header in the place of what has this name.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        match self.headers.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.headers.push((name.to_owned(), value)),
        }
    }

    /// Takes a header away.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    /// Makes it another status without a body.
    pub fn refuse(&mut self, status: u16, reason: &str) {
        (self.status, self.reason) = (status, reason.to_owned());
        self.headers.retain(|(name, _)| name == "CSeq");
        self.body.clear();
    }
}

/// A packet before it is sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Of which track.
    pub kind: Kind,
    /// Whether it is a sender report; then the fields below tell of the track's newest packet.
    pub rtcp: bool,
    /// The channel that it goes by, if it is interleaved.
    pub channel: u8,
    /// The packets of its track before it, in this session.
    pub count: u64,
    /// The frames (or packets of sound) of its track before it, in this session.
    pub frame: u64,
    /// Of a frame: whether decoding can begin at it.
    pub key: bool,
    /// Whether it is its frame's first.
    pub first: bool,
    /// Whether it is its frame's last.
    pub last: bool,
    /// RTP, or RTCP.
    pub bytes: Vec<u8>,
}

impl Outgoing {
    /// With `$`, channel and length in front (RFC 2326 section 10.12).
    pub fn framed(&self) -> Vec<u8> {
        framed(self.channel, &self.bytes)
    }

    /// Gives an RTP packet another SSRC.
    pub fn set_ssrc(&mut self, ssrc: u32) {
        let at = if self.rtcp { 4 } else { 8 };
        self.bytes[at..at + 4].copy_from_slice(&ssrc.to_be_bytes());
    }

    /// The sequence number of an RTP packet.
    pub fn seq(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// Gives an RTP packet another sequence number.
    pub fn set_seq(&mut self, seq: u16) {
        self.bytes[2..4].copy_from_slice(&seq.to_be_bytes());
    }

    /// Sends it as it is.
    pub fn whole(&self) -> Vec<Piece> {
        vec![Piece::Packet(self.bytes.clone())]
    }
}

/// A packet as it goes by a channel.
pub fn framed(channel: u8, bytes: &[u8]) -> Vec<u8> {
    [&[b'$', channel][..], &(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// What the camera sends in a packet's place.
pub enum Piece {
    /// A packet by the same way.
    Packet(Vec<u8>),
    /// One by the track's way for RTCP.
    Report(Vec<u8>),
    /// Bytes in the connection, as they are.
    Raw(Vec<u8>),
    /// A request of the camera's own, with the `CSeq` that it has in it.
    Ask(String),
}

/// A sign of life.
pub enum Sign<'a> {
    /// A request.
    Request(&'a Request),
    /// RTCP.
    Report(&'a [u8]),
}

/// RTCP as the camera got it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of which track, by the way that it came.
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

/// What a camera is like. Without changes it has no faults.
#[derive(Clone)]
pub struct Script {
    /// For TLS.
    pub identity: Option<Identity>,
    /// Whom it lets in; else anybody.
    pub login: Option<Login>,
    /// Its tracks, in the order of its description.
    pub tracks: Vec<Kind>,
    /// Its picture.
    pub clip: Arc<Clip>,
    /// Frames per second.
    pub fps: u32,
    /// How far its clock is before ours, in seconds.
    pub clock_ahead_s: i64,
    /// What a session is said to last without a sign of life, in seconds.
    pub session_timeout_s: u64,
    /// What is a sign of life; the connection of a session without one is closed. None: it needs none.
    pub life: Option<OnSign>,
    /// It serves one connection at a time, and the next one so long after its end.
    pub one_at_a_time: Option<Duration>,
    /// How long its own requests may go unanswered before it closes.
    pub patience: Option<Duration>,
    /// Where its datagrams come from, if not from the address of the connection.
    pub datagrams_from: Option<IpAddr>,
    /// The first sequence numbers, if not random.
    pub first_seq: Option<u16>,
    /// Sent again and again while it plays, as fast as it is taken.
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

    /// Changes packets: called for each with nothing sent of it yet; gives what is sent.
    pub fn packets(mut self, change: impl FnMut(&mut Outgoing) -> Vec<Piece> + Send + 'static) -> Script {
        self.on_packet = Some(Arc::new(Mutex::new(change)));
        self
    }

    /// Closes the connection of a session that gives no sign of life for `seconds`.
    pub fn lives_by(mut self, seconds: u64, is_sign: impl Fn(&Sign) -> bool + Send + Sync + 'static) -> Script {
        self.session_timeout_s = seconds;
        self.life = Some(Arc::new(is_sign));
        self
    }

    /// By TLS.
    pub fn by_tls(mut self) -> Script {
        self.identity = Some(Identity::new());
        self
    }

    /// Lets in whom `login` says.
    pub fn for_user(mut self, login: Login) -> Script {
        self.login = Some(login);
        self
    }
}

/// A frame that the camera sent.
#[derive(Clone, Copy, Debug)]
pub struct SentFrame {
    /// When, to a moment before.
    pub at: Instant,
    /// Its number; the numbers of all sessions go on.
    pub number: u64,
    /// Of its slices.
    pub hash: u64,
}

/// An RTP packet that the camera made.
#[derive(Clone, Copy, Debug)]
pub struct SentPacket {
    /// Of which track.
    pub kind: Kind,
    /// Its SSRC, unless the script changes it.
    pub ssrc: u32,
    /// Its sequence number, with the turns over 65,535 before it counted (RFC 3550 appendix A.1).
    pub extended_seq: u32,
    /// Whether nothing was sent of it.
    pub left_out: bool,
}

/// What happened, in order.
#[derive(Default)]
pub struct Record {
    /// Connections: when, and from where.
    pub opened: Vec<(Instant, SocketAddr)>,
    /// All requests.
    pub requests: Vec<Request>,
    /// Heads of the answers to its own requests.
    pub answers: Vec<String>,
    /// RTCP that came.
    pub reports: Vec<Report>,
    /// What came where TLS was to come.
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
    /// Connections are closed as soon as they are made.
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

/// The camera. Everything closes when it is dropped.
pub struct Camera {
    shared: Arc<Shared>,
    place: Place,
    /// The listener, and the thread that accepts.
    listening: Option<(TcpListener, JoinHandle<()>)>,
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

    /// Its URL, with user and password if it wants them.
    pub fn url(&self) -> String {
        let script = self.shared.script();
        let scheme = if script.identity.is_some() { "rtsps" } else { "rtsp" };
        let userinfo = script.login.map_or(String::new(), |login| login.userinfo());
        format!("{scheme}://{userinfo}{}/cam", self.address())
    }

    /// Changes what it is like, from the next request and session on.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    /// What happened so far; the camera stands still as long as this is held.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record()
    }

    /// How many requests with this method it has read.
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

    /// Breaks all connections off.
    pub fn hang_up(&self) {
        for (_, socket) in self.shared.sockets.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Breaks all connections off, and closes each new one at once until it is called with `false`.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
        if away {
            self.hang_up();
        }
    }

    /// Switches it off: nothing listens there any more.
    pub fn off(&mut self) {
        if let Some((listener, thread)) = self.listening.take() {
            // Wakes the thread; it cannot fail with a listener.
            let _ = socket2::SockRef::from(&listener).shutdown(Shutdown::Both);
            thread.join().expect("the acceptor");
        }
        self.hang_up();
    }

    /// Switches it on.
    pub fn on(&mut self) {
        let socket = bound(self.address());
        socket.listen(64).unwrap();
        let listener: TcpListener = socket.into();
        let (accepting, shared) = (listener.try_clone().unwrap(), Arc::clone(&self.shared));
        let thread = std::thread::spawn(move || accept(&accepting, &shared));
        self.listening = Some((listener, thread));
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.off();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, peer)) = listener.accept() {
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
            continue;
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
}
