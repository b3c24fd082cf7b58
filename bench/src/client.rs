//! The player's side of the RTSP handshake, without a socket: answers in, requests out.

use base64::Engine as _;

use crate::rtsp::{Message, Url};

/// Transport of the media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Interleaved in the RTSP connection.
    Tcp,
    /// Datagrams to ports of the player.
    Udp,
    /// MP4 fragments in a WebSocket, as for browsers; without audio.
    Ws,
}

impl Transport {
    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Ws => "ws",
        }
    }
}

/// A track's codec, as far as it matters for recognizing keyframes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// H.264.
    H264,
    /// H.265.
    H265,
    /// Any other.
    #[default]
    Other,
}

/// One track of the presentation, from its SDP.
#[derive(Clone, Debug)]
pub struct TrackInfo {
    /// Whether its media is video.
    pub video: bool,
    /// Its codec.
    pub codec: Codec,
    /// The URL for SETUP.
    pub control: String,
    /// The UDP ports (RTP, RTCP) that the player has bound for it; set before SETUP if the transport is UDP.
    pub client_ports: (u16, u16),
    /// The interleaved channels assigned by the server (RTP, RTCP).
    pub channels: (u8, u8),
    /// The server's UDP ports (RTP, RTCP), 0 if unknown.
    pub server_ports: (u16, u16),
    /// Its lines of the SDP, `m=` first.
    pub sdp: Vec<String>,
}

/// The next action of the handshake.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Send this request and feed the answer in.
    Send(Vec<u8>),
    /// Bind UDP ports for every track ([`Handshake::tracks`]), then call [`Handshake::resume`].
    BindPorts,
    /// PLAY has been answered with 200: media follows.
    Playing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Describe { tried_credentials: bool },
    Setup(usize),
    Play,
    Playing,
}

/// One player's handshake: DESCRIBE, SETUP of each track, PLAY.
#[derive(Debug)]
pub struct Handshake {
    url: Url,
    transport: Transport,
    cseq: u32,
    state: State,
    base: String,
    /// The session, once there is one.
    pub session: Option<String>,
    /// The session timeout in seconds.
    pub timeout_s: u64,
    /// The tracks, once described.
    pub tracks: Vec<TrackInfo>,
    /// Whether tracks other than video are also set up.
    all_tracks: bool,
    /// The session-level lines of the SDP.
    pub sdp_session: Vec<String>,
}

impl Handshake {
    /// A handshake with the server of `url`; `all_tracks` includes those that are not video.
    pub fn new(url: Url, transport: Transport, all_tracks: bool) -> Handshake {
        Handshake {
            base: url.bare.clone(),
            url,
            transport,
            cseq: 0,
            state: State::Describe { tried_credentials: false },
            session: None,
            timeout_s: 60,
            tracks: Vec::new(),
            all_tracks,
            sdp_session: Vec::new(),
        }
    }

    /// The first request.
    pub fn begin(&mut self) -> Vec<u8> {
        if self.transport == Transport::Ws {
            return self.upgrade();
        }
        let url = self.url.bare.clone();
        self.request("DESCRIBE", &url, &["Accept: application/sdp"])
    }

    /// A request of this session outside the handshake (`GET_PARAMETER`, `TEARDOWN`).
    pub fn extra(&mut self, method: &str) -> Vec<u8> {
        if self.transport == Transport::Ws {
            // A close frame with a mask of zeros; the open connection itself is its sign of life.
            return if method == "TEARDOWN" { vec![0x88, 0x80, 0, 0, 0, 0] } else { Vec::new() };
        }
        let base = self.base.clone();
        self.request(method, &base, &[])
    }

    /// A WebSocket request (RFC 6455 section 4.1). All players may use the same key, because there is no proxy in between.
    fn upgrade(&mut self) -> Vec<u8> {
        let (_, name) = self.url.bare.trim_start_matches("ws://").split_once('/').unwrap_or_default();
        let credentials = self.url.credentials.as_ref().map_or_else(String::new, |(user, password)| {
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Authorization: Basic {basic}\r\n")
        });
        format!(
            "GET /+live/{name} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: cnRzcHJlbGF5LWJlbmNoIQ==\r\n{credentials}\r\n",
            self.url.host_port
        )
        .into_bytes()
    }

    fn request(&mut self, method: &str, url: &str, headers: &[&str]) -> Vec<u8> {
        self.cseq += 1;
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\nUser-Agent: rtsprelay-bench\r\n", self.cseq);
        if let Some(session) = &self.session {
            text.push_str(&format!("Session: {session}\r\n"));
        }
        let sends_credentials = !matches!(self.state, State::Describe { tried_credentials: false });
        if let (Some((user, password)), true) = (&self.url.credentials, sends_credentials) {
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            text.push_str(&format!("Authorization: Basic {basic}\r\n"));
        }
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// Processes an answer; returns what to do next.
    pub fn answer(&mut self, answer: &Message) -> Result<Step, String> {
        let status = answer.status().ok_or_else(|| format!("no RTSP answer: {:?}", answer.start))?;
        if self.transport == Transport::Ws {
            if status != 101 {
                return Err(format!(
                    "the server answered the WebSocket request with {:?}; check the URL",
                    answer.start
                ));
            }
            self.state = State::Playing;
            return Ok(Step::Playing);
        }
        if let State::Describe { tried_credentials: false } = self.state
            && status == 401
            && self.url.credentials.is_some()
        {
            if !answer.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("WWW-Authenticate") && v.starts_with("Basic"))
            {
                return Err(
                    "the server requires Digest authentication, which this client does not support; enable Basic there"
                        .into(),
                );
            }
            self.state = State::Describe { tried_credentials: true };
            return Ok(Step::Send(self.begin()));
        }
        if status != 200 {
            let cure = match status {
                401 => "; write rtsp://USER:PASSWORD@… with the right ones",
                404 => "; check the URL's path",
                453 => "; the server is full: raise its limit of clients, or use fewer players",
                461 => "; try the other --transport",
                _ => "",
            };
            return Err(format!("{} answered with {:?}{cure}", self.step_name(), answer.start));
        }
        if let Some(session) = answer.header("Session") {
            let mut parts = session.split(';');
            self.session = parts.next().map(|s| s.trim().to_string());
            for part in parts {
                if let Some(seconds) = part.trim().strip_prefix("timeout=").and_then(|s| s.parse().ok()) {
                    self.timeout_s = seconds;
                }
            }
        }
        match self.state {
            State::Describe { .. } => {
                if let Some(base) = answer.header("Content-Base").or(answer.header("Content-Location")) {
                    self.base = base.to_string();
                }
                self.described(&String::from_utf8_lossy(&answer.body))?;
                self.state = State::Setup(0);
                if self.transport == Transport::Udp { Ok(Step::BindPorts) } else { Ok(self.resume()) }
            }
            State::Setup(index) => {
                let transport = answer.header("Transport").ok_or("the answer to SETUP has no Transport")?;
                self.set_up(index, transport)?;
                self.state = State::Setup(index + 1);
                Ok(self.resume())
            }
            State::Play => {
                self.state = State::Playing;
                Ok(Step::Playing)
            }
            State::Playing => Err("an answer to no request".into()),
        }
    }

    /// The next SETUP, or PLAY after the last.
    pub fn resume(&mut self) -> Step {
        let State::Setup(index) = self.state else { unreachable!("only between DESCRIBE and PLAY") };
        let Some(track) = self.tracks.get(index) else {
            self.state = State::Play;
            let base = self.base.clone();
            return Step::Send(self.request("PLAY", &base, &["Range: npt=0.000-"]));
        };
        let control = track.control.clone();
        let transport = match self.transport {
            Transport::Tcp => format!("Transport: RTP/AVP/TCP;unicast;interleaved={}-{}", index * 2, index * 2 + 1),
            Transport::Udp => {
                format!("Transport: RTP/AVP;unicast;client_port={}-{}", track.client_ports.0, track.client_ports.1)
            }
            Transport::Ws => unreachable!("nothing is set up for a WebSocket"),
        };
        Step::Send(self.request("SETUP", &control, &[&transport]))
    }

    fn step_name(&self) -> &'static str {
        match self.state {
            State::Describe { .. } => "DESCRIBE",
            State::Setup(_) => "SETUP",
            State::Play | State::Playing => "PLAY",
        }
    }

    fn described(&mut self, sdp: &str) -> Result<(), String> {
        for line in sdp.lines().map(str::trim_end).filter(|l| !l.is_empty()) {
            if let Some(media) = line.strip_prefix("m=") {
                self.tracks.push(TrackInfo {
                    video: media.starts_with("video "),
                    codec: Codec::Other,
                    control: String::new(),
                    client_ports: (0, 0),
                    channels: (0, 0),
                    server_ports: (0, 0),
                    sdp: vec![line.to_string()],
                });
                continue;
            }
            let Some(track) = self.tracks.last_mut() else {
                self.sdp_session.push(line.to_string());
                continue;
            };
            track.sdp.push(line.to_string());
            if let Some(control) = line.strip_prefix("a=control:") {
                track.control = join(&self.base, control);
            } else if let Some(map) = line.strip_prefix("a=rtpmap:") {
                let name = map.split(' ').nth(1).unwrap_or_default().split('/').next().unwrap_or_default();
                track.codec = match name.to_ascii_uppercase().as_str() {
                    "H264" => Codec::H264,
                    "H265" => Codec::H265,
                    _ => Codec::Other,
                };
            }
        }
        let all = self.all_tracks;
        self.tracks.retain(|t| t.video || all);
        for track in self.tracks.iter_mut().filter(|t| t.control.is_empty()) {
            track.control = self.base.clone();
        }
        if self.tracks.is_empty() { Err("the SDP has no track to play".into()) } else { Ok(()) }
    }

    fn set_up(&mut self, index: usize, transport: &str) -> Result<(), String> {
        let pair = |key: &str| -> Option<(u16, u16)> {
            let value = transport.split(';').find_map(|p| p.trim().strip_prefix(key))?;
            let (a, b) = value.split_once('-').unwrap_or((value, value));
            Some((a.parse().ok()?, b.parse().ok()?))
        };
        let track = &mut self.tracks[index];
        match self.transport {
            Transport::Tcp => {
                let (a, b) = pair("interleaved=").ok_or_else(|| format!("SETUP gave no channels: {transport}"))?;
                let narrow = |n: u16| u8::try_from(n).map_err(|_| format!("a channel over 255: {transport}"));
                track.channels = (narrow(a)?, narrow(b)?);
            }
            Transport::Udp => track.server_ports = pair("server_port=").unwrap_or((0, 0)),
            Transport::Ws => {}
        }
        Ok(())
    }
}

/// Resolves a control attribute against the base URL as players do: an absolute one stays, `*` is the base, others are appended.
fn join(base: &str, control: &str) -> String {
    if control.contains("://") {
        control.to_string()
    } else if control == "*" {
        base.to_string()
    } else {
        format!("{}/{}", base.trim_end_matches('/'), control.trim_start_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(headers: &str, body: &str) -> Message {
        let text = format!("RTSP/1.0 200 OK\r\nCSeq: 1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len());
        Message::parse(text.as_bytes()).unwrap().unwrap().0
    }

    fn sent(step: Step) -> String {
        match step {
            Step::Send(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_tracks_are_set_up_then_played() {
        let sdp = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t0\r\n\
                   m=audio 0 RTP/AVP 0\r\na=control:rtsp://h:1/x/t1\r\n";
        let mut hs = Handshake::new(Url::parse("rtsp://h:1/x").unwrap(), Transport::Tcp, true);
        assert!(hs.begin().starts_with(b"DESCRIBE rtsp://h:1/x RTSP/1.0\r\nCSeq: 1\r\n"));
        let setup = sent(hs.answer(&ok("Content-Base: rtsp://h:1/x/\r\n", sdp)).unwrap());
        assert!(setup.starts_with("SETUP rtsp://h:1/x/t0 ") && setup.contains("interleaved=0-1"), "{setup}");
        let setup =
            sent(hs.answer(&ok("Session: 7;timeout=30\r\nTransport: RTP/AVP/TCP;interleaved=4-5\r\n", "")).unwrap());
        assert!(setup.starts_with("SETUP rtsp://h:1/x/t1 ") && setup.contains("Session: 7\r\n"), "{setup}");
        let play = sent(hs.answer(&ok("Session: 7\r\nTransport: RTP/AVP/TCP;interleaved=2-3\r\n", "")).unwrap());
        assert!(play.starts_with("PLAY rtsp://h:1/x/ "), "{play}");
        assert_eq!(hs.answer(&ok("Session: 7\r\n", "")).unwrap(), Step::Playing);
        assert_eq!((hs.timeout_s, hs.tracks[0].channels, hs.tracks[0].codec), (30, (4, 5), Codec::H264));
    }
}
