//! The client side of RTSP, for cameras. Bytes and time go in; requests, packets and events come out. It has no socket and no clock.
//!
//! One [`Client`] is one session. It tolerates every deviation that does not prevent receiving packets: a response is interpreted in
//! the only way that makes sense, and what cannot be used is counted and ignored. A session ends with a [`Fault`].

mod access;
mod answers;
#[cfg(feature = "testing")]
mod fuzz_body;
mod keepalive;
mod media;
mod reception;
mod state;
#[cfg(test)]
mod tests;
mod track;
mod urls;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::access::{Access, Sent};
use self::keepalive::KeepAlive;
use self::track::Track;
use super::Timeouts;
use super::address::Credentials;
use super::fault::{Fault, Step};
use crate::limits::{CAMERA_OUT_BYTES_MAX, CAMERA_PIECES_PER_S_MAX, CAMERA_SILENT_BYTES_MAX};
use crate::media::SourceTrack;
use crate::metrics::SourceDrop;
use crate::source::news::Relaying;
use crate::source::timeline::SenderReport;
use crate::wire::relay_path;
use crate::wire::rtsp::{Channel, NotRtsp, Piece, Request, Scanner};

#[cfg(feature = "testing")]
pub use self::fuzz_body::fuzz;
pub(super) use self::state::ClientState;

/// The client's `User-Agent`.
const USER_AGENT: &str = concat!("rtsprelay/", env!("CARGO_PKG_VERSION"));

/// Which datagrams count as the camera's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatagramsFrom {
    /// Those from the address of the RTSP connection.
    #[default]
    Camera,
    /// Those from this address as well.
    Address(IpAddr),
    /// All. Then anyone who knows the port can inject a picture into the stream.
    Any,
}

/// What is known about a camera from earlier sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::source) struct Learned {
    /// Media come as datagrams.
    pub(in crate::source) udp: bool,
    /// Its sessions always end after one timeout, whatever keep-alive it announces, so it is sent each kind of request.
    pub(super) every_keepalive: bool,
    /// It refuses SHA-256.
    pub(super) md5_first: bool,
    /// Tracks (by index in the description) whose SETUP ended a session although another track's did not, since the last session that
    /// went live. After two times the track is omitted.
    pub(in crate::source) suspects: Vec<usize>,
}

impl Learned {
    /// Nothing but the transport of its media.
    pub(in crate::source) fn new(udp: bool) -> Self {
        Learned { udp, ..Learned::default() }
    }
}

/// The parameters of a session.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The URL to request, without credentials.
    pub(super) url: String,
    /// Whether the connection uses TLS; then all request URLs do.
    pub(super) secure: bool,
    /// User name and password.
    pub(super) credentials: Option<Credentials>,
    /// Whether the password may be sent in clear to a camera that offers Digest and refuses it.
    pub(super) basic: bool,
    /// The camera's address on the connection.
    pub(super) camera: IpAddr,
    /// Whose datagrams count.
    pub(super) datagrams_from: DatagramsFrom,
    /// Maximum duration of each step.
    pub(super) timeouts: Timeouts,
    /// What earlier sessions have learned.
    pub(super) learned: Learned,
    /// Whether the last session that played had video: then a session with only audio is not accepted.
    pub(super) had_video: bool,
    /// Randomness for what must differ between sessions.
    pub(super) seed: u64,
    /// How the relay identifies itself to another relay.
    pub(super) relaying: Option<Relaying>,
}

/// Receives a session's output.
pub(super) trait Media {
    /// The camera plays these tracks. Packets refer to them by index.
    fn playing(&mut self, tracks: Vec<SourceTrack>);
    /// An RTP packet, its header validated.
    fn packet(&mut self, track: usize, received: Instant, rtp: &[u8]);
    /// A sender report.
    fn report(&mut self, track: usize, received: Instant, report: SenderReport);
    /// Something that is not relayed.
    fn dropped(&mut self, why: SourceDrop, count: u64);
    /// A read returned data; this many bytes were copied because the rest of their packet had not arrived.
    fn was_read(&mut self, _copied: u64) {}
}

/// What the driver of a client must do or know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A pair of ports is needed for this track's datagrams: call [`Client::ports`].
    WantsPorts(usize),
    /// The camera has described its stream.
    Described,
    /// The server is a relay, and its stream has passed through these.
    Path(Arc<str>),
    /// A track is not used.
    TrackLeftOut {
        /// Which.
        track: String,
        /// Why.
        reason: String,
    },
    /// No media for the time after which a source counts as silent.
    Silent,
    /// Datagrams from this address are ignored.
    ForeignDatagrams(IpAddr),
    /// The camera redirects to this URL.
    Redirected(String),
    /// The session is over, or could not be started.
    Ended(Fault),
    /// TEARDOWN is done, as far as possible.
    TornDown,
}

/// A datagram to send to the camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// From the sockets of this track.
    pub(super) track: usize,
    /// From the RTCP socket.
    pub(super) rtcp: bool,
    /// To this port of the camera.
    pub(super) port: u16,
    /// The bytes.
    pub(super) bytes: Vec<u8>,
}

/// The purpose of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Options,
    Describe,
    Setup,
    Play,
    KeepAlive(keepalive::Method),
    Teardown,
}

/// An unanswered request.
#[derive(Clone, Debug)]
struct Pending {
    cseq: u32,
    kind: Kind,
    url: String,
    sent: Sent,
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Describing,
    SettingUp,
    Starting,
    Playing,
    Leaving,
    Over,
}

/// A track that the description offers.
#[derive(Clone, Debug)]
struct Offer {
    /// Its index in the description.
    index: usize,
    track: SourceTrack,
    /// Its possible URLs, in the order in which they are tried.
    urls: VecDeque<String>,
}

/// One session with a camera.
pub(super) struct Client {
    scanner: Scanner,
    session: Session,
}

/// A session without the connection's buffered bytes.
struct Session {
    settings: Settings,
    state: State,
    access: Access,
    cseq: u32,
    pending: VecDeque<Pending>,
    /// What the SETUPs have agreed on.
    id: Option<String>,
    /// The camera's session timeout.
    timeout: Duration,
    /// The aggregate URL.
    aggregate: String,
    offers: VecDeque<Offer>,
    /// The offer that is being set up, with the ports for its datagrams.
    offer: Option<(Offer, Option<u16>)>,
    /// Why a track was refused, reported if no track is left.
    refused: Option<Fault>,
    without_range: bool,
    tracks: Vec<Track>,
    /// By channel: the track's index, times two, plus one for RTCP.
    links: Box<[Option<u8>; 256]>,
    assigned: Vec<(u8, Channel)>,
    keepalive: KeepAlive,
    ssrc: u32,
    cname: String,
    /// When the response to PLAY, or the first packet before it, arrived.
    began: Option<Instant>,
    /// When media last arrived, or playing started.
    heard: Instant,
    silent: bool,
    told_foreign: bool,
    foreign: Option<IpAddr>,
    step_due: Option<Instant>,
    options_due: Option<Instant>,
    keepalive_due: Option<Instant>,
    report_due: Option<Instant>,
    /// Bytes since the last packet, and the number of messages without a packet in the second that started then.
    without_packet_bytes: u64,
    useless: (Instant, u32),
    out: Vec<u8>,
    datagrams: VecDeque<Datagram>,
    events: VecDeque<Event>,
}

impl Client {
    /// A session over an established connection; `begun` is the start of the time limit for connecting and DESCRIBE.
    pub(super) fn new(begun: Instant, now: Instant, settings: Settings) -> Self {
        let mut random = fastrand::Rng::with_seed(settings.seed);
        let cnonce = format!("{:016x}", random.u64(..));
        let Settings { credentials, basic, secure, .. } = &settings;
        let access = Access::new(credentials.clone(), *basic || *secure, settings.learned.md5_first, cnonce);
        let mut session = Session {
            state: State::Describing,
            access,
            cseq: 0,
            pending: VecDeque::new(),
            id: None,
            timeout: keepalive::TIMEOUT,
            aggregate: settings.url.clone(),
            offers: VecDeque::new(),
            offer: None,
            refused: None,
            without_range: false,
            tracks: Vec::new(),
            links: Box::new([None; 256]),
            assigned: Vec::new(),
            keepalive: KeepAlive::new(settings.learned.every_keepalive),
            ssrc: random.u32(..),
            cname: format!("{:016x}", random.u64(..)),
            began: None,
            heard: now,
            silent: false,
            told_foreign: false,
            foreign: None,
            step_due: Some(begun + settings.timeouts.describe),
            options_due: Some(now + settings.timeouts.describe / 4),
            keepalive_due: None,
            report_due: None,
            without_packet_bytes: 0,
            useless: (now, 0),
            out: Vec::new(),
            datagrams: VecDeque::new(),
            events: VecDeque::new(),
            settings,
        };
        let url = session.settings.url.clone();
        session.ask(Kind::Options, url, None);
        Client { scanner: Scanner::default(), session }
    }

    /// Processes bytes that were read from the connection at `now`.
    pub(super) fn receive(&mut self, now: Instant, mut bytes: &[u8], media: &mut impl Media) {
        let Client { scanner, session } = self;
        session.without_packet_bytes += bytes.len() as u64;
        while session.state != State::Over {
            match scanner.next(&mut bytes) {
                Ok(Some(piece)) => session.piece(now, piece, media),
                Ok(None) => break,
                Err(NotRtsp::Foreign(what)) => return session.fail(Fault::NotRtsp(what)),
                Err(NotRtsp::TooLarge) => return session.fail(Fault::TooMuch(session.step())),
            }
            for (channel, what) in session.assigned.drain(..) {
                scanner.assign(channel, what);
            }
        }
        let useless = now.saturating_duration_since(session.useless.0) < Duration::from_secs(1)
            && session.useless.1 > CAMERA_PIECES_PER_S_MAX;
        if session.without_packet_bytes > CAMERA_SILENT_BYTES_MAX || useless {
            session.fail(Fault::TooMuch(session.step()));
        }
    }

    /// Processes a datagram that arrived on a track's sockets.
    pub(super) fn datagram(
        &mut self,
        now: Instant,
        track: usize,
        rtcp: bool,
        from: IpAddr,
        bytes: &[u8],
        media: &mut impl Media,
    ) {
        self.session.datagram(now, track, rtcp, from, bytes, media);
    }

    /// The even port of the pair for the track in [`Event::WantsPorts`].
    pub(super) fn ports(&mut self, now: Instant, rtp: u16) {
        self.session.set_up(rtp);
        self.session.arm_step(now);
    }

    /// No ports are available for that track.
    pub(super) fn no_ports(&mut self, reason: String) {
        self.session.fail(Fault::NoPorts(reason));
    }

    /// The connection is gone.
    pub(super) fn closed(&mut self, now: Instant) {
        let session = &mut self.session;
        match session.state {
            State::Over => {}
            State::Leaving => session.torn_down(),
            _ => {
                session.learn_from_end(now);
                if session.state == State::SettingUp {
                    session.suspect();
                }
                session.fail(Fault::Closed(session.step()));
            }
        }
    }

    /// Ends the session, with TEARDOWN if there is something to end. [`Event::TornDown`] says when there is nothing more to wait for.
    pub(super) fn leave(&mut self) {
        self.session.leave();
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, now: Instant, media: &mut impl Media) {
        self.session.tick(now, media);
    }

    /// When [`Client::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    /// Whether a partial message or packet has been received.
    pub(super) fn is_in_piece(&self) -> bool {
        self.scanner.is_in_piece()
    }

    /// Bytes copied since the last call because the rest of their packet had not arrived.
    pub(super) fn take_copied(&mut self) -> u64 {
        self.scanner.take_carried()
    }

    /// The bytes to send on the connection; the caller removes those that were sent.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.session.out
    }

    /// The next datagram to send.
    pub(super) fn poll_datagram(&mut self) -> Option<Datagram> {
        self.session.datagrams.pop_front()
    }

    /// The next event.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.session.events.pop_front()
    }

    /// Whether [`Client::poll_event`] has something.
    pub(super) fn has_events(&self) -> bool {
        !self.session.events.is_empty()
    }

    /// Whether the session is completely finished.
    pub(super) fn is_over(&self) -> bool {
        self.session.state == State::Over
    }

    /// Nothing was read until `now`: the camera was not silent for that.
    pub(super) fn resume(&mut self, now: Instant) {
        self.session.heard = now;
    }

    /// What this session has learned, for the next ones.
    pub(super) fn learned(&self) -> &Learned {
        &self.session.settings.learned
    }
}

impl Session {
    /// What the session is doing, for a fault.
    fn step(&self) -> Step {
        match self.state {
            State::Describing => Step::Describe,
            State::SettingUp => Step::Setup,
            State::Starting => Step::Play,
            State::Playing | State::Leaving | State::Over => Step::Playing,
        }
    }

    fn piece(&mut self, now: Instant, piece: Piece<'_>, media: &mut impl Media) {
        let useless = match piece {
            Piece::Frame { channel, packet } => !self.frame(now, channel, packet, media),
            Piece::Answer(answer) => {
                self.answered(now, &answer, media);
                true
            }
            Piece::Request(request) => {
                self.asked(&request);
                true
            }
            Piece::Torn(_) => {
                media.dropped(SourceDrop::Torn, 1);
                true
            }
            Piece::Rubbish(_) => {
                media.dropped(SourceDrop::Rubbish, 1);
                true
            }
        };
        if useless {
            if now.saturating_duration_since(self.useless.0) >= Duration::from_secs(1) {
                self.useless = (now, 0);
            }
            self.useless.1 = self.useless.1.saturating_add(1);
        }
        self.arm_step(now);
    }

    /// The session has failed.
    fn fail(&mut self, fault: Fault) {
        match self.state {
            State::Over => {}
            State::Leaving => self.torn_down(),
            _ => {
                // What was set up must still be torn down, and the connection may be usable for that.
                self.state = if self.id.is_some() || !self.tracks.is_empty() { State::Leaving } else { State::Over };
                self.stop_timers();
                let left = self.state == State::Leaving && !matches!(fault, Fault::Closed(_) | Fault::Left);
                self.events.push_back(Event::Ended(fault));
                if left {
                    self.say_teardown();
                } else {
                    self.state = State::Over;
                }
            }
        }
    }

    fn stop_timers(&mut self) {
        self.step_due = None;
        self.options_due = None;
        self.keepalive_due = None;
        self.report_due = None;
        self.offers.clear();
        self.offer = None;
    }

    fn leave(&mut self) {
        match self.state {
            State::Over => self.events.push_back(Event::TornDown),
            State::Leaving => {}
            _ if self.id.is_some() || !self.tracks.is_empty() => {
                self.state = State::Leaving;
                self.stop_timers();
                self.say_teardown();
            }
            _ => self.torn_down(),
        }
    }

    fn say_teardown(&mut self) {
        let url = self.aggregate.clone();
        self.ask(Kind::Teardown, url, None);
    }

    fn torn_down(&mut self) {
        self.state = State::Over;
        self.stop_timers();
        self.events.push_back(Event::TornDown);
    }

    /// Sends a request; `before` says how the same request was sent before.
    fn ask(&mut self, kind: Kind, url: String, before: Option<Sent>) {
        let transport = match (&kind, &self.offer) {
            (Kind::Setup, Some((_, Some(rtp)))) => {
                Some(format!("RTP/AVP;unicast;client_port={rtp}-{}", rtp.saturating_add(1)))
            }
            (Kind::Setup, _) => {
                let channel = self.tracks.len() * 2;
                Some(format!("RTP/AVP/TCP;unicast;interleaved={channel}-{}", channel + 1))
            }
            _ => None,
        };
        let method = match kind {
            Kind::Options => "OPTIONS",
            Kind::Describe => "DESCRIBE",
            Kind::Setup => "SETUP",
            Kind::Play => "PLAY",
            Kind::KeepAlive(method) => method.name(),
            Kind::Teardown => "TEARDOWN",
        };
        self.cseq += 1;
        let (authorization, sent) = self.access.header(method, &url, before);
        let mut text = format!("{method} {url} RTSP/1.0\r\nCSeq: {}\r\nUser-Agent: {USER_AGENT}\r\n", self.cseq);
        let mut header = |name: &str, value: &str| text += &format!("{name}: {value}\r\n");
        match kind {
            Kind::Describe => {
                header("Accept", "application/sdp");
                if let Some(via) = self.settings.relaying.as_ref().and_then(|relaying| relaying.via.as_ref()) {
                    let hops: Vec<_> = relay_path::ids(via).map(|id| format!("RTSP/1.0 {id}")).collect();
                    header("Via", &hops.join(", "));
                }
            }
            Kind::Play if !self.without_range => header("Range", "npt=0.000-"),
            _ => {}
        }
        if let Some(transport) = transport {
            header("Transport", &transport);
        }
        if let Some(id) = self.id.as_deref().filter(|_| !matches!(kind, Kind::Options | Kind::Describe)) {
            header("Session", id);
        }
        if let Some(authorization) = authorization {
            header("Authorization", &authorization);
        }
        text += "\r\n";
        self.out.extend_from_slice(text.as_bytes());
        self.pending.push_back(Pending { cseq: self.cseq, kind, url, sent });
    }

    /// A request from the camera is answered, because some cameras close the connection otherwise.
    fn asked(&mut self, request: &Request) {
        if self.out.len() > CAMERA_OUT_BYTES_MAX {
            return;
        }
        let known = ["OPTIONS", "GET_PARAMETER", "SET_PARAMETER", "TEARDOWN"].contains(&request.method.as_str());
        let status = if known { "200 OK" } else { "501 Not Implemented" };
        let mut text = format!("RTSP/1.0 {status}\r\n");
        if let Some(cseq) = request.cseq() {
            text += &format!("CSeq: {cseq}\r\n");
        }
        if let Some(id) = &self.id {
            text += &format!("Session: {id}\r\n");
        }
        if request.method == "OPTIONS" {
            text += "Public: OPTIONS, GET_PARAMETER, SET_PARAMETER, TEARDOWN\r\n";
        }
        text += "\r\n";
        self.out.extend_from_slice(text.as_bytes());
        if request.method == "TEARDOWN" {
            self.fail(Fault::Left);
        }
    }

    fn tick(&mut self, now: Instant, media: &mut impl Media) {
        self.tick_media(now, media);
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.step_due) {
            return self.step_timed_out();
        }
        if due(self.options_due) {
            // Some never answer OPTIONS; its result is not needed.
            self.options_due = None;
            self.describe();
        }
        if due(self.keepalive_due) {
            self.keep_alive(now);
        }
        if due(self.report_due) {
            self.report(now);
        }
        if self.state == State::Playing {
            self.judge_silence(now);
        }
    }

    fn judge_silence(&mut self, now: Instant) {
        let Timeouts { quiet, silence, .. } = self.settings.timeouts;
        if now >= self.heard + silence {
            self.learn_from_end(now);
            self.fail(Fault::Silent { limit: silence, from: self.foreign });
        } else if now >= self.heard + quiet.min(silence / 2) && !std::mem::replace(&mut self.silent, true) {
            self.events.push_back(Event::Silent);
        }
    }

    fn step_timed_out(&mut self) {
        let Timeouts { describe, setup, play, .. } = self.settings.timeouts;
        let (step, limit) = match self.state {
            State::Describing => (Step::Describe, describe),
            State::SettingUp => (Step::Setup, setup),
            _ => (Step::Play, play),
        };
        if step == Step::Setup {
            self.suspect();
        }
        self.fail(Fault::TimedOut(step, limit));
    }

    fn deadline(&self) -> Option<Instant> {
        let Timeouts { quiet, silence, .. } = self.settings.timeouts;
        let silent = (self.state == State::Playing)
            .then(|| self.heard + if self.silent { silence } else { quiet.min(silence / 2) });
        let held = self.tracks.iter().filter_map(Track::deadline).min();
        [self.step_due, self.options_due, self.keepalive_due, self.report_due, silent, held].into_iter().flatten().min()
    }

    /// A session that ends at the camera's timeout was not kept alive.
    fn learn_from_end(&mut self, now: Instant) {
        let Some(began) = self.began else { return };
        let age = now.saturating_duration_since(began);
        // If it is noticed: at once, or after some silence.
        let least = self.timeout.mul_f32(0.8);
        let most = self.timeout.mul_f32(1.5) + self.settings.timeouts.silence + Duration::from_secs(5);
        if (least..=most).contains(&age) {
            self.settings.learned.every_keepalive = true;
        }
    }
}
