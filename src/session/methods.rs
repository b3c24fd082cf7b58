//! What is done for each method.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::resource::{self, Resource};
use super::server::{Held, NewSession, Server, SetUp, State, Waiting, canonical};
use super::types::{ConnId, Delivery, EndReason, Event, SessionKey};
use crate::config::redact;
use crate::limits::CLIENT_PORT_MIN;
use crate::metrics::Limited;
use crate::stream::{Description, StreamId, TrackId};
use crate::wire::rtsp::{Request, Response, Status};
use crate::wire::sdp;
use crate::wire::transport::{self, Lower, Spec};

/// What `Public` lists (RFC 2326 section 12.28.1).
pub(super) const PUBLIC: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
/// The same for a relay that takes publishers.
const PUBLIC_WITH_PUBLISHING: &str =
    "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
/// What is possible in a session that has not played yet, and in one that has.
const ALLOW_SET_UP: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
const ALLOW_PLAYED: &str = "OPTIONS, DESCRIBE, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

/// Seconds after which a client may ask again for a source that has never been up.
pub(super) const RETRY_AFTER_S: &str = "5";

/// Characters of a player's name that are kept.
const USER_AGENT_CHARS_MAX: usize = 128;

/// Bytes of what a player asked for that a line of the log shows at most. What is longer it does not show at all: a part of it
/// could begin within a password.
const TOLD_BYTES_MAX: usize = 512;

/// A request that has passed the checks common to all.
pub(super) struct Asked<'a> {
    pub(super) now: Instant,
    pub(super) conn: ConnId,
    pub(super) request: &'a Request,
    pub(super) cseq: &'a str,
    /// The session that it names, which exists and is its client's.
    pub(super) session: Option<SessionKey>,
}

/// An error on its way to an answer.
pub(super) struct Refusal {
    status: Status,
    header: Option<(&'static str, String)>,
    /// No error yet: the stream that sleeps is waited for, so long at most.
    wait_for: Option<(StreamId, Duration)>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { status, header: None, wait_for: None }
    }
}

pub(super) fn refusal(status: Status, name: &'static str, value: impl Into<String>) -> Refusal {
    Refusal { status, header: Some((name, value.into())), wait_for: None }
}

/// What a method comes to: an answer, or none yet.
pub(super) type Outcome = Result<Option<Response>, Refusal>;

impl Server {
    /// A connection just made is encrypted.
    pub fn set_secure(&mut self, conn: ConnId) {
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.secure = true;
        }
    }

    /// Whether media may leave by datagrams for a client that asks on this connection.
    pub(super) fn may_use_udp(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|connection| !connection.secure)
    }

    /// Answers a request, or puts it to the shard.
    pub(super) fn request(&mut self, now: Instant, conn: ConnId, request: Request) {
        if !request.version_1_0 {
            return self.refusal(conn, &request, None, Status::VERSION_NOT_SUPPORTED.into());
        }
        let Some(cseq) = request.cseq() else {
            return self.refusal(conn, &request, None, Status::BAD_REQUEST.into());
        };
        if let Err(refusal) = method_known(&request.method, self.public()).and_then(|()| nothing_required(&request)) {
            return self.refusal(conn, &request, None, refusal);
        }
        if !self.admit(now, conn, &request) {
            return;
        }
        let session = match self.session_of(conn, &request) {
            Named::None => None,
            Named::Own(key) => Some(key),
            Named::Elsewhere(shard) => return self.hand_over(conn, shard, &request),
            Named::Unknown => return self.refusal(conn, &request, None, Status::SESSION_NOT_FOUND.into()),
        };
        match session {
            Some(key) => self.heard(now, key, conn),
            None => self.heard_unnamed(now, conn),
        }
        let asked = Asked { now, conn, request: &request, cseq, session };
        let outcome = match request.method.as_str() {
            "OPTIONS" => Ok(Some(self.good(&asked).header("Public", self.public()))),
            "ANNOUNCE" => self.announce(&asked),
            "RECORD" => self.record(&asked),
            "DESCRIBE" => self.describe(&asked),
            "SETUP" => self.setup(&asked),
            "PLAY" => self.play(&asked),
            "PAUSE" => self.pause(&asked),
            "TEARDOWN" => self.teardown(&asked),
            _ => self.parameter(&asked),
        };
        match outcome {
            Ok(Some(answer)) => self.answer(conn, answer),
            Ok(None) => {}
            Err(Refusal { wait_for: Some((stream, wait)), .. }) => {
                self.hold(conn, Held { request, stream, until: now + wait });
                self.arm_conn(conn);
            }
            Err(refusal) => self.refusal(conn, &request, session, refusal),
        }
    }

    fn public(&self) -> &'static str {
        if self.published.is_empty() { PUBLIC } else { PUBLIC_WITH_PUBLISHING }
    }

    /// Nobody can wait any longer for the stream that a request was held for.
    pub(super) fn give_up(&mut self, conn: ConnId, held: &Held) {
        let refused = refusal(Status::UNAVAILABLE, "Retry-After", RETRY_AFTER_S);
        self.refusal(conn, &held.request, None, refused);
    }

    fn refusal(&mut self, conn: ConnId, request: &Request, session: Option<SessionKey>, refusal: Refusal) {
        if refusal.status == Status::NOT_FOUND {
            self.count(Limited::UnknownStream);
        }
        self.tell_refused(conn, request, refusal.status);
        let mut answer = with_timestamp(Response::new(refusal.status, request.cseq()), request);
        if let Some(key) = session.filter(|key| self.sessions.contains_key(key)) {
            answer = self.with_session(answer, key);
        }
        if let Some((name, value)) = refusal.header {
            answer = answer.header(name, &value);
        }
        self.answer(conn, answer);
    }

    /// Says what a player lacks that asks for what there is not: most show their users no more than that it failed.
    fn tell_refused(&self, conn: ConnId, request: &Request, status: Status) {
        let Some(connection) = self.conns.get(&conn) else { return };
        let client = connection.peer;
        let shown = |text: &str| {
            if text.len() > TOLD_BYTES_MAX { format!("{} bytes", text.len()) } else { redact(text) }
        };
        if status == Status::NOT_FOUND {
            let url = shown(&request.url);
            tracing::warn!(%client, method = request.method, ?url, "refused (404): no such stream or track; the URL's path is a stream's name");
        } else if status == Status::UNSUPPORTED_TRANSPORT {
            let transport = shown(request.header("Transport").unwrap_or_default());
            tracing::info!(%client, method = request.method, ?transport, "refused (461): no such transport here, or its ports are taken; let the player take TCP");
        }
    }

    /// The beginning of a good answer.
    pub(super) fn good(&self, asked: &Asked<'_>) -> Response {
        let answer = with_timestamp(Response::new(Status::OK, Some(asked.cseq)), asked.request);
        match asked.session {
            Some(key) => self.with_session(answer, key),
            None => answer,
        }
    }

    /// The session that a request names, as far as its client may.
    fn session_of(&self, conn: ConnId, request: &Request) -> Named {
        let Some(value) = request.header("Session") else { return Named::None };
        if request.method == "DESCRIBE" || self.is_strangers(conn) {
            // Needs none, and is answered even with one that is long gone.
            return Named::None;
        }
        // What clients were told may come back with its `;timeout=`.
        let id = value.split(';').next().unwrap_or_default().trim();
        let hex = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(key) = u64::from_str_radix(id, 16).ok().filter(|_| hex).map(SessionKey) else { return Named::Unknown };
        let Some(connection) = self.conns.get(&conn) else { return Named::Unknown };
        let shard = (key.0 % u64::from(self.config.shards)) as u16;
        if shard != self.config.shard {
            // The media that a connection carries would not survive the move.
            let carries = connection.interleaved.is_some();
            return if carries { Named::Unknown } else { Named::Elsewhere(shard) };
        }
        let same_address = |owner: SocketAddr| owner.ip().to_canonical() == connection.peer.ip().to_canonical();
        match self.sessions.get(&key) {
            Some(session) if same_address(session.peer) && self.is_users(session, conn) => Named::Own(key),
            _ => Named::Unknown,
        }
    }

    /// The stream and the track that a URL names.
    pub(super) fn resource(&self, asked: &Asked<'_>) -> Result<Found, Refusal> {
        let Some(connection) = self.conns.get(&asked.conn) else { return Err(Status::NOT_FOUND.into()) };
        match resource::parse(&asked.request.url, connection.local, connection.secure) {
            Resource::Stream { name, track, base } => match self.streams.find(&name) {
                Some(stream) => Ok(Found::Stream { stream, track, base }),
                None => Err(Status::NOT_FOUND.into()),
            },
            Resource::Server => Ok(Found::Server),
            Resource::Foreign => Err(Status::NOT_FOUND.into()),
        }
    }

    fn described(&self, stream: StreamId) -> Result<Arc<Description>, Refusal> {
        if let Some(wait) = self.streams.wait_for(stream) {
            return Err(Refusal { status: Status::UNAVAILABLE, header: None, wait_for: Some((stream, wait)) });
        }
        let description = self.streams.description(stream).filter(|description| !description.tracks.is_empty());
        description.cloned().ok_or_else(|| refusal(Status::UNAVAILABLE, "Retry-After", RETRY_AFTER_S))
    }

    fn describe(&mut self, asked: &Asked<'_>) -> Outcome {
        let Found::Stream { stream, track: None, base } = self.resource(asked)? else {
            return Err(Status::NOT_FOUND.into());
        };
        let accepts = asked.request.list("Accept").is_none_or(|list| {
            let kinds = list.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
            kinds.into_iter().any(|kind| {
                ["application/sdp", "application/*", "*/*"].iter().any(|known| kind.eq_ignore_ascii_case(known))
            })
        });
        if !accepts {
            return Err(Status::NOT_ACCEPTABLE.into());
        }
        let description = self.described(stream)?;
        let ipv6 = self.conns.get(&asked.conn).is_some_and(|connection| connection.peer.ip().to_canonical().is_ipv6());
        let body = sdp::describe(self.streams.name(stream), &description, ipv6);
        let answer = self.good(asked).header("Content-Base", &base).header("Cache-Control", "no-cache");
        Ok(Some(answer.body("application/sdp", Bytes::from(body))))
    }

    fn setup(&mut self, asked: &Asked<'_>) -> Outcome {
        if let Some(announced) = self.conns.get(&asked.conn).and_then(|connection| connection.announced.clone()) {
            return self.setup_publisher(asked, &announced);
        }
        let Found::Stream { stream, track, .. } = self.resource(asked)? else {
            return Err(Status::AGGREGATE_NOT_ALLOWED.into());
        };
        let description = self.described(stream)?;
        let track = match (track, description.tracks.len()) {
            (Some(track), tracks) if track < tracks => TrackId(track as u8),
            (Some(_), _) => return Err(Status::NOT_FOUND.into()),
            (None, 1) => TrackId(0),
            (None, _) => return Err(Status::AGGREGATE_NOT_ALLOWED.into()),
        };
        // A client that sends its SETUPs in one go does not know the session yet: what its connection carries is meant.
        let carried = self.conns.get(&asked.conn).and_then(|connection| connection.interleaved);
        let session = asked.session.or_else(|| {
            carried.filter(|key| self.sessions.get(key).is_some_and(|s| s.stream == stream && s.state == State::Ready))
        });
        if let Some(key) = session {
            self.may_set_up(key, stream, asked)?;
        }
        let offered = asked.request.list("Transport").ok_or(Status::BAD_REQUEST)?;
        let mut specs = transport::parse(&offered);
        // By datagrams the media would leave in the clear what the client has encrypted.
        specs.retain(|spec| spec.lower == Some(Lower::Tcp) || self.may_use_udp(asked.conn));
        let spec =
            specs.iter().find(|spec| self.acceptable(spec, session, stream)).ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        let lower = spec.lower.unwrap_or(Lower::Tcp);
        if session.is_none() {
            if lower == Lower::Tcp && carried.is_some() {
                // One connection carries one session.
                return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW_PLAYED));
            }
            self.room_for_session(asked.conn, false)?;
        }
        let peer = self.conns.get(&asked.conn).map(|connection| connection.peer).ok_or(Status::NOT_FOUND)?;
        let ssrc = description.tracks[usize::from(track.0)].ssrc;
        let key = session.map_or_else(|| self.draw_key(), Ok)?;
        let (delivery, told) = match lower {
            Lower::Tcp => self.interleave(session, stream, track, spec, ssrc)?,
            Lower::Udp if spec.multicast => self.group(session, stream, track, spec, ssrc)?,
            Lower::Udp => self.datagrams(asked, key, track, spec, ssrc)?,
        };
        if session.is_none() {
            let new = NewSession { peer, stream, description: description.clone(), lower, conn: asked.conn };
            self.insert_session(key, new, asked.now);
        }
        Ok(Some(self.set_up(asked, key, track, delivery, &told)))
    }

    /// Adds a track to a session; gives the answer with the transport that it has.
    pub(super) fn set_up(
        &mut self,
        asked: &Asked<'_>,
        key: SessionKey,
        track: TrackId,
        delivery: Delivery,
        transport: &str,
    ) -> Response {
        self.add_track(key, SetUp { track, delivery, url: without_credentials(&asked.request.url) });
        self.note_user_agent(key, asked.request);
        self.good(&Asked { session: Some(key), ..*asked }).header("Transport", transport)
    }

    /// Whether a track may be added to this session now, by this connection.
    fn may_set_up(&self, key: SessionKey, stream: StreamId, asked: &Asked<'_>) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(&key) else { return Err(Status::SESSION_NOT_FOUND.into()) };
        if session.stream != stream {
            return Err(Status::AGGREGATE_NOT_ALLOWED.into());
        }
        // What has played goes on with the tracks that it has, and what is published has those that were announced.
        if session.publishes || session.state != State::Ready || session.played || !self.carries(key, asked.conn) {
            return Err(self.wrong_state(key));
        }
        Ok(())
    }

    /// Whether a session's media can go by this connection: datagrams by any, interleaved media by their own.
    fn carries(&self, key: SessionKey, conn: ConnId) -> bool {
        self.sessions.get(&key).is_some_and(|session| session.lower == Lower::Udp || session.conn == Some(conn))
    }

    fn acceptable(&self, spec: &Spec, session: Option<SessionKey>, stream: StreamId) -> bool {
        let possible = match spec.lower {
            Some(Lower::Udp) if spec.multicast => self.streams.multicast(stream).is_some(),
            Some(Lower::Tcp) => true,
            Some(Lower::Udp) => self.config.udp_ports.is_some() && spec.client_port.is_some(),
            None => false,
        };
        // A session has one kind of transport for all of its tracks.
        let same = session.and_then(|key| self.sessions.get(&key)).is_none_or(|have| {
            let multicast = have.tracks.iter().any(|is| matches!(is.delivery, Delivery::Multicast { .. }));
            Some(have.lower) == spec.lower && (have.tracks.is_empty() || multicast == spec.multicast)
        });
        possible && same && spec.plays() && (spec.lower == Some(Lower::Udp) || !spec.multicast)
    }

    /// Multicast: the stream's own group and ports, whatever was asked for.
    fn group(
        &mut self,
        session: Option<SessionKey>,
        stream: StreamId,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let multicast = self.streams.multicast(stream).ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        let rtp = multicast.of(track).ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        if let Some(key) = session {
            self.drop_track(key, track, &[]);
        }
        let told = transport::Answer::Multicast { protocol: &spec.protocol, rtp, ttl: multicast.ttl, ssrc };
        Ok((Delivery::Multicast { rtp }, told.to_string()))
    }

    fn interleave(
        &mut self,
        session: Option<SessionKey>,
        stream: StreamId,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let mut used = Vec::new();
        let mut before = None;
        for set_up in session.and_then(|key| self.sessions.get(&key)).map_or(&[][..], |session| &session.tracks) {
            match set_up.delivery {
                Delivery::Interleaved { rtp_channel, rtcp_channel } if set_up.track != track => {
                    used.extend([rtp_channel, rtcp_channel]);
                }
                _ => before = session,
            }
        }
        let channels = self.streams.take_channels(stream, track, spec.interleaved, &used);
        let channels = channels.ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        if let Some(key) = before {
            // Set up anew: what it had is given back only now, so that a refusal leaves it as it was.
            self.drop_track(key, track, &[]);
        }
        let delivery = Delivery::Interleaved { rtp_channel: channels.0, rtcp_channel: channels.1 };
        let told = transport::Answer::Interleaved { protocol: &spec.protocol, channels, ssrc };
        Ok((delivery, told.to_string()))
    }

    fn datagrams(
        &mut self,
        asked: &Asked<'_>,
        key: SessionKey,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let (Some(server_port), Some(client_port)) = (self.config.udp_ports, spec.client_port) else {
            return Err(Status::UNSUPPORTED_TRANSPORT.into());
        };
        let peer = self.conns.get(&asked.conn).map(|is| is.peer).ok_or(Status::NOT_FOUND)?;
        // Whatever `destination` says: nobody can have media sent to somebody else.
        let at = |port| {
            let mut address = peer;
            address.set_port(port);
            address
        };
        let (rtp, rtcp) = (at(client_port.0), at(client_port.1));
        // No other host's service is to be talked to in a client's name.
        if client_port.0.min(client_port.1) < CLIENT_PORT_MIN {
            self.count(Limited::UdpPorts);
            return Err(Status::UNSUPPORTED_TRANSPORT.into());
        }
        let ports = [rtp, rtcp].map(canonical);
        let taken = self.sessions.get(&key).into_iter().flat_map(|session| &session.tracks).any(|have| {
            matches!(have.delivery, Delivery::Udp { rtp, rtcp }
                if have.track != track && [rtp, rtcp].map(canonical).iter().any(|port| ports.contains(port)))
        });
        if taken {
            return Err(Status::UNSUPPORTED_TRANSPORT.into());
        }
        self.claim_ports(asked, key, ports, false)?;
        self.drop_track(key, track, &ports);
        let told = transport::Answer::Udp { protocol: &spec.protocol, client_port, server_port, ssrc };
        Ok((Delivery::Udp { rtp, rtcp }, told.to_string()))
    }

    /// Has these ports be this session's alone, be it a player's or a publisher's: whoever else sends from there could not be told
    /// from it, and whoever plays there would get both. A session of the same user that has one of them ends: a program that has
    /// started again. But no player takes a port from which a stream comes.
    ///
    /// # Errors
    /// 461, with all as it was: behind one translated address two users can have the same ports, in whatever shard, and neither ends
    /// the other's session, or has media sent to it. A publisher's other track has them, too. And what comes from the relay's own ports
    /// could not be told from what it sends, nor is it to send to itself.
    pub(super) fn claim_ports(
        &mut self,
        asked: &Asked<'_>,
        session: SessionKey,
        ports: [SocketAddr; 2],
        publishes: bool,
    ) -> Result<(), Refusal> {
        let ports = ports.map(canonical);
        let players = ports.map(|port| self.session_at(port).filter(|old| *old != session));
        let publishers = ports.map(|port| self.publisher_at(port).map(|(old, ..)| old));
        let stays = |old: &SessionKey| !publishes || *old == session;
        let others = |old: &SessionKey| !self.is_users(&self.sessions[old], asked.conn);
        if publishers.iter().flatten().any(stays)
            || players.iter().chain(&publishers).flatten().any(others)
            || self.leads_back(asked.conn, ports.map(|port| port.port()))
            || !self.claim_of_all_shards(asked.now, asked.conn, session, ports, publishes)
        {
            self.count(Limited::UdpPorts);
            return Err(Status::UNSUPPORTED_TRANSPORT.into());
        }
        for old in players.into_iter().chain(publishers).flatten() {
            self.remove_session(old, EndReason::Replaced, true);
        }
        Ok(())
    }

    fn play(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        self.track_in(key, asked)?;
        if self.sessions[&key].publishes {
            return Err(self.wrong_state(key));
        }
        let current = self.described(self.sessions[&key].stream)?;
        if !self.carries(key, asked.conn) {
            return Err(self.wrong_state(key));
        }
        let session = self.sessions.get_mut(&key).ok_or(Status::SESSION_NOT_FOUND)?;
        if session.state == State::Ready && !session.description.continues_as(&current) {
            self.remove_session(key, EndReason::SourceChanged, true);
            return Err(Status::SESSION_NOT_FOUND.into());
        }
        let state = session.state;
        let (stream, tracks, resumed) = (session.stream, session.play_tracks(), session.played);
        let info = session.rtp_info.clone();
        if state == State::Ready {
            session.description = current;
            session.state = State::Starting;
            session.announced = true;
        }
        let mut answer = self.good(asked);
        // Live media have one speed; who asks for another is told so (RFC 2326 section 12.34).
        for name in ["Scale", "Speed"] {
            if asked.request.header(name).is_some() {
                answer = answer.header(name, "1.0");
            }
        }
        match state {
            State::Playing => Ok(Some(answer.header("Range", "npt=0-").header("RTP-Info", &info))),
            State::Starting => Err(self.wrong_state(key)),
            State::Ready => {
                self.note_user_agent(key, asked.request);
                self.wait(asked.conn, Waiting { session: key, answer, cseq: asked.cseq.to_owned() });
                self.push(Event::Play { session: key, conn: asked.conn, stream, tracks, resumed });
                Ok(None)
            }
        }
    }

    fn pause(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        let track = self.track_in(key, asked)?;
        let session = self.sessions.get_mut(&key).ok_or(Status::SESSION_NOT_FOUND)?;
        if track.is_some() && session.tracks.len() > 1 {
            return Err(Status::ONLY_AGGREGATE.into());
        }
        match session.state {
            State::Playing if !session.publishes => {
                session.state = State::Ready;
                self.arm_session(key);
                self.push(Event::Pause { session: key });
                Ok(Some(self.good(asked)))
            }
            State::Ready if session.played => Ok(Some(self.good(asked))),
            _ => Err(self.wrong_state(key)),
        }
    }

    fn teardown(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        let track = self.track_in(key, asked)?;
        let session = self.sessions.get(&key).ok_or(Status::SESSION_NOT_FOUND)?;
        if let Some(track) = track.filter(|_| session.tracks.len() > 1) {
            // One of several tracks can go before they play together; what is published was announced as a whole.
            if session.publishes || session.state != State::Ready || session.played {
                return Err(Status::ONLY_AGGREGATE.into());
            }
            self.drop_track(key, track, &[]);
            return Ok(Some(self.good(asked)));
        }
        self.remove_session(key, EndReason::Teardown, true);
        Ok(Some(self.good(&Asked { session: None, ..*asked })))
    }

    /// GET_PARAMETER and SET_PARAMETER: signs of life. There are no parameters.
    fn parameter(&mut self, asked: &Asked<'_>) -> Outcome {
        if asked.request.body.trim_ascii().is_empty() {
            return Ok(Some(self.good(asked)));
        }
        Err(Status::PARAMETER_NOT_UNDERSTOOD.into())
    }

    /// The track of a session that a request's URL names; none for the whole session.
    fn track_in(&self, key: SessionKey, asked: &Asked<'_>) -> Result<Option<TrackId>, Refusal> {
        let session = self.sessions.get(&key).ok_or(Status::SESSION_NOT_FOUND)?;
        match self.resource(asked)? {
            Found::Server => Ok(None),
            Found::Stream { stream, .. } if stream != session.stream => Err(Status::AGGREGATE_NOT_ALLOWED.into()),
            Found::Stream { track: None, .. } => Ok(None),
            Found::Stream { track: Some(track), .. } => {
                let known = session.tracks.iter().map(|set_up| set_up.track).find(|have| usize::from(have.0) == track);
                match known {
                    Some(track) => Ok(Some(track)),
                    None if track < session.description.tracks.len() => Err(Status::AGGREGATE_NOT_ALLOWED.into()),
                    None => Err(Status::NOT_FOUND.into()),
                }
            }
        }
    }

    pub(super) fn wrong_state(&self, key: SessionKey) -> Refusal {
        let allow = match self.sessions.get(&key) {
            Some(session) if session.state != State::Ready => ALLOW_PLAYED,
            Some(session) if session.played => ALLOW_PLAYED,
            _ => ALLOW_SET_UP,
        };
        refusal(Status::METHOD_NOT_VALID, "Allow", allow)
    }

    pub(super) fn note_user_agent(&mut self, key: SessionKey, request: &Request) {
        if let (Some(session), Some(agent)) = (self.sessions.get_mut(&key), request.header("User-Agent")) {
            let agent = agent.chars().filter(|c| !c.is_control()).take(USER_AGENT_CHARS_MAX);
            session.user_agent = Some(agent.collect());
        }
    }
}

/// What a `Session` header comes to.
enum Named {
    /// There is none, or it does not matter.
    None,
    /// A session of this client.
    Own(SessionKey),
    /// A session that another shard may have.
    Elsewhere(u16),
    /// No session, or somebody else's.
    Unknown,
}

/// What a URL comes to.
pub(super) enum Found {
    Server,
    Stream { stream: StreamId, track: Option<usize>, base: String },
}

fn method_known(method: &str, public: &'static str) -> Result<(), Refusal> {
    match method {
        "ANNOUNCE" | "RECORD" if public != PUBLIC => Ok(()),
        "OPTIONS" | "DESCRIBE" | "SETUP" | "PLAY" | "PAUSE" | "TEARDOWN" | "GET_PARAMETER" | "SET_PARAMETER" => Ok(()),
        "ANNOUNCE" | "RECORD" | "REDIRECT" => Err(refusal(Status::METHOD_NOT_ALLOWED, "Allow", public)),
        _ => Err(refusal(Status::NOT_IMPLEMENTED, "Public", public)),
    }
}

/// There are no optional features: whatever is required is refused by name (RFC 2326 section 12.32).
fn nothing_required(request: &Request) -> Result<(), Refusal> {
    let lists = [request.list("Require"), request.list("Proxy-Require")];
    let tags: Vec<_> =
        lists.iter().flatten().flat_map(|list| list.split(',')).map(str::trim).filter(|tag| !tag.is_empty()).collect();
    match tags.is_empty() {
        true => Ok(()),
        false => Err(refusal(Status::OPTION_NOT_SUPPORTED, "Unsupported", tags.join(", "))),
    }
}

/// The client's `Timestamp` comes back as it was (RFC 2326 section 12.38).
pub(super) fn with_timestamp(answer: Response, request: &Request) -> Response {
    match request.header("Timestamp") {
        Some(value) => answer.header("Timestamp", value),
        None => answer,
    }
}

/// A URL as it may be sent back.
pub(super) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
