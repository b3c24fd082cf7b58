//! A camera that sends what a scenario tells it to, when told: H.264 and PCMU over interleaved RTP.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{DEADLINE, wait_until};

/// Parameter sets of a 640x480 stream, as `sprop-parameter-sets` carries them.
const SPROP: &str = "Z0LAHtkDxWhAAAADAEAAAAwDxYuS,aMuMsg==";

/// Its sequence parameter set.
pub const SPS: &[u8] = &[
    0x67, 0x42, 0xc0, 0x1e, 0xd9, 0x03, 0xc5, 0x68, 0x40, 0x00, 0x00, 0x03, 0x00, 0x40, 0x00, 0x00, 0x0c, 0x03, 0xc5,
    0x8b, 0x92,
];
/// Its picture parameter set.
pub const PPS: &[u8] = &[0x68, 0xcb, 0x8c, 0xb2];

/// RTP ticks from one video frame to the next (30 fps).
const FRAME_TICKS: u32 = 3_000;

/// RTP ticks and bytes of an audio packet (20 ms).
const SOUND_TICKS: u32 = 160;

const VIDEO_SSRC: u32 = 0x1111;
const AUDIO_SSRC: u32 = 0x2222;

/// Bytes of an RTP payload.
const PAYLOAD_BYTES: usize = 1_400;

#[derive(Default)]
struct State {
    requests: Vec<String>,
    connections: Vec<TcpStream>,
    playing: Option<TcpStream>,
    /// `(rtp channel, seq, rtp time)` of the two tracks.
    video: (u8, u16, u32),
    audio: (u8, u16, u32),
    frames: u64,
    /// The encoding name of its video, if not H264.
    encoding: Option<&'static str>,
    /// Requests are read and not answered.
    deaf: bool,
}

/// An address at which nothing listens, and that the system gives to no other program. A camera may be started there, and stopped.
pub struct Place {
    _reserved: socket2::Socket,
    address: SocketAddr,
}

impl Place {
    /// One on 127.0.0.1.
    pub fn reserve() -> Place {
        Place::reserve_at("127.0.0.1:0".parse().unwrap())
    }

    /// One at an address; port 0 stands for a free one.
    pub fn reserve_at(address: SocketAddr) -> Place {
        let socket = bound(address);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Place { _reserved: socket, address }
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a camera there.
    pub fn url(&self) -> String {
        format!("rtsp://{}/cam", self.address)
    }
}

/// A socket that allows others to use its address as long as it does not listen.
fn bound(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket
}

/// A listener whose connections a thread takes. When it is dropped nothing listens there any more, so that another may.
pub(super) struct Acceptor {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Listens at an address; port 0 stands for a free one.
    pub fn start(address: SocketAddr, mut connected: impl FnMut(TcpStream, SocketAddr) + Send + 'static) -> Acceptor {
        let socket = bound(address);
        socket.listen(64).unwrap();
        let listener: TcpListener = socket.into();
        let accepting = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            loop {
                match accepting.accept() {
                    Ok((stream, peer)) => connected(stream, peer),
                    // It was shut down.
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
                    Err(error) => panic!("accept: {error}"),
                }
            }
        });
        Acceptor { listener, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Wakes the thread; it cannot fail while there is a listener.
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) && !std::thread::panicking() {
            panic!("the acceptor");
        }
    }
}

/// The camera. All its sockets close when it is dropped.
pub struct Camera {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    listening: Option<Acceptor>,
}

impl Camera {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start() -> Camera {
        Camera::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// Starts one at an address.
    pub fn start_at(address: SocketAddr) -> Camera {
        let state =
            Arc::new(Mutex::new(State { video: (0, 1_000, 90_000), audio: (2, 5_000, 8_000), ..State::default() }));
        let shared = state.clone();
        let listening = Acceptor::start(address, move |stream, _| {
            stream.set_nodelay(true).unwrap();
            let state = shared.clone();
            state.lock().unwrap().connections.push(stream.try_clone().unwrap());
            std::thread::spawn(move || serve(&stream, &state));
        });
        Camera { state, address: listening.address(), listening: Some(listening) }
    }

    /// One whose session has begun elsewhere: it goes on at this connection, with the channel, number and time of its next video
    /// packet.
    pub fn going_on(connection: TcpStream, video: (u8, u16, u32)) -> Camera {
        let camera = Camera::start();
        let playing = connection.try_clone().unwrap();
        {
            let mut state = camera.state.lock().unwrap();
            (state.video, state.playing) = (video, Some(playing.try_clone().unwrap()));
            state.connections.push(playing);
        }
        let state = camera.state.clone();
        std::thread::spawn(move || serve(&connection, &state));
        camera
    }

    /// The channel, number and time of its next video packet.
    pub fn next_video(&self) -> (u8, u16, u32) {
        self.state.lock().unwrap().video
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("rtsp://{}/cam", self.address)
    }

    /// The methods of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Waits until a client plays.
    pub fn wait_playing(&self) {
        wait_until("the relay plays the camera", DEADLINE, || self.state.lock().unwrap().playing.is_some());
    }

    /// Closes all connections.
    pub fn hang_up(&self) {
        let mut state = self.state.lock().unwrap();
        for connection in state.connections.drain(..) {
            // It may already be closed.
            let _ = connection.shutdown(Shutdown::Both);
        }
        state.playing = None;
    }

    /// From now on its description has this encoding name for video.
    pub fn becomes(&self, encoding: &'static str) {
        self.state.lock().unwrap().encoding = Some(encoding);
    }

    /// Resets all connections in the middle of a frame.
    pub fn reset_in_mid_frame(&self) {
        let mut state = self.state.lock().unwrap();
        let (_, wire) = state.compose(1, 10_000);
        state.send(&wire[..wire.len() / 2]);
        state.playing = None;
        for connection in state.connections.drain(..) {
            let socket = socket2::SockRef::from(&connection);
            // The reset is sent when the last descriptor closes, which belongs to the thread that reads and ends now.
            let _ = socket.set_linger(Some(Duration::ZERO)).and_then(|()| socket.shutdown(Shutdown::Read));
        }
    }

    /// Closes the sending direction, and continues reading.
    pub fn half_close(&self) {
        if let Some(playing) = self.state.lock().unwrap().playing.take() {
            // It may already be closed.
            let _ = playing.shutdown(Shutdown::Write);
        }
    }

    /// Sends bytes that are no packet, between two frames.
    pub fn send_rubbish(&self, bytes: &[u8]) {
        self.state.lock().unwrap().send(bytes);
    }

    /// Sends a frame a byte at a time, with a pause after each.
    pub fn drip(&self, bytes: usize, pause: Duration) {
        let mut state = self.state.lock().unwrap();
        let (_, wire) = state.compose(1, bytes);
        for byte in wire {
            state.send(&[byte]);
            // The pause is part of dripping.
            std::thread::sleep(pause);
        }
    }

    /// From now on requests are read and not answered, or answered again.
    pub fn set_deaf(&self, deaf: bool) {
        self.state.lock().unwrap().deaf = deaf;
    }

    /// Sends a keyframe (SPS, PPS, IDR) of about `bytes`; returns its number.
    pub fn keyframe(&self, bytes: usize) -> u64 {
        self.frame(5, bytes)
    }

    /// Sends a frame that needs the frames before it; returns its number.
    pub fn delta_frame(&self, bytes: usize) -> u64 {
        self.frame(1, bytes)
    }

    fn frame(&self, nal_type: u8, bytes: usize) -> u64 {
        let mut state = self.state.lock().unwrap();
        let (number, wire) = state.compose(nal_type, bytes);
        state.send(&wire);
        number
    }

    /// Sends an audio packet.
    pub fn sound(&self) {
        let mut state = self.state.lock().unwrap();
        let (channel, seq, time) = state.audio;
        let mut wire = Vec::new();
        rtp(&mut wire, channel, 0, seq, time, AUDIO_SSRC, &[0xFF; SOUND_TICKS as usize]);
        state.audio = (channel, seq.wrapping_add(1), time.wrapping_add(SOUND_TICKS));
        state.send(&wire);
    }

    /// Sends a sender report for the video track: its newest frame was taken at `ntp`.
    pub fn sender_report(&self, ntp: u64) {
        let mut state = self.state.lock().unwrap();
        let (channel, _, next) = state.video;
        state.report(channel + 1, VIDEO_SSRC, ntp, next.wrapping_sub(FRAME_TICKS));
    }

    /// Sends one for the audio track, about its newest packet.
    pub fn sound_report(&self, ntp: u64) {
        let mut state = self.state.lock().unwrap();
        let (channel, _, next) = state.audio;
        state.report(channel + 1, AUDIO_SSRC, ntp, next.wrapping_sub(SOUND_TICKS));
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        // First, so that nobody connects again.
        self.listening = None;
        self.hang_up();
    }
}

impl State {
    /// The next frame's number and its packets.
    fn compose(&mut self, nal_type: u8, bytes: usize) -> (u64, Vec<u8>) {
        let number = self.frames;
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        if nal_type == 5 {
            payloads.push(SPS.to_vec());
            payloads.push(PPS.to_vec());
        }
        // first_mb_in_slice = 0 is a one bit, so a frame's first byte starts with it; the rest is the frame's number, repeated,
        // without a zero byte.
        let filler = |at: usize| ((number as usize * 31 + at * 7) % 251 + 1) as u8;
        let header = nal_type | 0x60;
        if bytes <= PAYLOAD_BYTES {
            let mut payload = vec![header, 0x88];
            payload.extend((0..bytes).map(filler));
            payloads.push(payload);
        } else {
            let fragments = bytes.div_ceil(PAYLOAD_BYTES);
            for fragment in 0..fragments {
                let mut flags = nal_type;
                let mut payload = vec![0x7C];
                if fragment == 0 {
                    flags |= 0x80;
                } else if fragment == fragments - 1 {
                    flags |= 0x40;
                }
                payload.push(flags);
                payload.push(if fragment == 0 { 0x88 } else { 0x99 });
                payload.extend((0..PAYLOAD_BYTES).map(|at| filler(at + fragment)));
                payloads.push(payload);
            }
        }
        let (channel, mut seq, time) = self.video;
        let mut wire = Vec::new();
        let last = payloads.len() - 1;
        for (index, payload) in payloads.iter().enumerate() {
            rtp(&mut wire, channel, if index == last { 0x80 | 96 } else { 96 }, seq, time, VIDEO_SSRC, payload);
            seq = seq.wrapping_add(1);
        }
        self.video = (channel, seq, time.wrapping_add(FRAME_TICKS));
        self.frames += 1;
        (number, wire)
    }

    fn report(&mut self, channel: u8, ssrc: u32, ntp: u64, rtp_time: u32) {
        let mut wire = vec![b'$', channel, 0, 28, 0x80, 200, 0, 6];
        wire.extend(ssrc.to_be_bytes());
        wire.extend(ntp.to_be_bytes());
        wire.extend(rtp_time.to_be_bytes());
        wire.extend([0, 0, 0, 9, 0, 0, 9, 9]);
        self.send(&wire);
    }

    fn send(&mut self, wire: &[u8]) {
        if let Some(stream) = &mut self.playing {
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            // A relay that is stopping, or a scenario that closed the connection.
            if stream.write_all(wire).is_err() {
                self.playing = None;
            }
        }
    }
}

/// Appends an interleaved RTP packet.
pub fn rtp(wire: &mut Vec<u8>, channel: u8, marker_and_type: u8, seq: u16, time: u32, ssrc: u32, payload: &[u8]) {
    wire.extend([b'$', channel]);
    wire.extend((12 + payload.len() as u16).to_be_bytes());
    wire.extend([0x80, marker_and_type]);
    wire.extend(seq.to_be_bytes());
    wire.extend(time.to_be_bytes());
    wire.extend(ssrc.to_be_bytes());
    wire.extend(payload);
}

/// Answers one connection's requests until it ends.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    while let Some(head) = next_request(&mut reader) {
        let method = head.split(' ').next().unwrap().to_string();
        let mut state = state.lock().unwrap();
        if state.deaf {
            continue;
        }
        let (extra, body) = answer(&mut state, &method, &head);
        let cseq = header(&head, "CSeq").unwrap_or_default();
        let answer = format!("RTSP/1.0 200 OK\r\nCSeq: {cseq}\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len());
        let mut writer = stream;
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
        if method == "PLAY" {
            state.playing = Some(stream.try_clone().unwrap());
        } else if method == "TEARDOWN" {
            state.playing = None;
        }
        state.requests.push(method);
    }
}

/// The head of the next request; interleaved packets and bodies are skipped. `None` at the end of the connection.
fn next_request(reader: &mut impl BufRead) -> Option<String> {
    let mut first = [0; 1];
    loop {
        reader.read_exact(&mut first).ok()?;
        if first[0] != b'$' {
            break;
        }
        let mut header = [0; 3];
        reader.read_exact(&mut header).ok()?;
        reader.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))]).ok()?;
    }
    let mut head = String::from_utf8(first.to_vec()).unwrap();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return None;
        }
    }
    if let Some(len) = header(&head, "Content-Length").and_then(|value| value.parse::<usize>().ok()) {
        reader.read_exact(&mut vec![0; len]).ok()?;
    }
    Some(head)
}

/// The value of a header field.
fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
    })
}

/// The header fields and the body of the answer to a request, which may set a track up.
fn answer(state: &mut State, method: &str, head: &str) -> (String, String) {
    let url = head.split(' ').nth(1).unwrap();
    let base = url.trim_end_matches('/');
    match method {
        "OPTIONS" => {
            let public = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER, SET_PARAMETER\r\n";
            (public.into(), String::new())
        }
        "DESCRIBE" => {
            let encoding = state.encoding.unwrap_or("H264");
            let body = format!(
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n\
                 m=video 0 RTP/AVP 96\r\na=rtpmap:96 {encoding}/90000\r\na=fmtp:96 packetization-mode=1;\
                 profile-level-id=42C01E;sprop-parameter-sets={SPROP}\r\na=control:track1\r\n\
                 m=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=control:track2\r\n"
            );
            (format!("Content-Base: {base}/\r\nContent-Type: application/sdp\r\n"), body)
        }
        "SETUP" => {
            let asked = header(head, "Transport").unwrap_or_default();
            let pair = asked.split("interleaved=").nth(1).and_then(|v| v.split([';', ',']).next()).unwrap_or("0-1");
            let channel = pair.split('-').next().unwrap().parse().unwrap();
            if url.ends_with("track1") {
                state.video.0 = channel;
            } else {
                state.audio.0 = channel;
            }
            let fields = format!("Transport: RTP/AVP/TCP;unicast;interleaved={pair}\r\nSession: 4711;timeout=60\r\n");
            (fields, String::new())
        }
        "PLAY" => {
            let fields = format!(
                "Session: 4711\r\nRTP-Info: url={base}/track1;seq={};rtptime={},url={base}/track2;seq={};rtptime={}\r\n",
                state.video.1, state.video.2, state.audio.1, state.audio.2
            );
            (fields, String::new())
        }
        _ => ("Session: 4711\r\n".into(), String::new()),
    }
}

#[test]
fn another_camera_may_start_where_one_has_just_been_dropped() {
    let _turn = super::machine::beside_others();
    let place = Place::reserve();
    for _ in 0..200 {
        drop(Camera::start_at(place.address()));
    }
}
