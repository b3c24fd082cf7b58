//! A function for each method. SETUP is in `setup` and `publish`, ANNOUNCE and RECORD in `publish`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connections::{Connection, Held, Waiting, Waits};
use super::no_transport::NoTransport;
use super::resource::{self, Resource};
use super::server::{RETRY_AFTER_S, Server};
use super::sessions::State;
use super::types::{ConnId, EndReason, Event, SessionKey};
use crate::limits::ECHO_BYTES_MAX;
use crate::media::sdp::describe;
use crate::media::{Description, StreamId, TrackId};
use crate::metrics::Limited;
use crate::redact::{redact, without_query_values};
use crate::wire::relay_path::PATH;
use crate::wire::rtsp::{Request, Response, Status};

/// The methods in `Public` (RFC 2326 section 12.28.1).
pub(super) const PUBLIC: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
/// The same for a relay that accepts publishers.
const PUBLIC_WITH_PUBLISHING: &str =
    "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
/// What is possible in a session that has not played yet, and in one that has.
const ALLOW_SET_UP: &str = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
pub(super) const ALLOW_PLAYED: &str = "OPTIONS, DESCRIBE, PLAY, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

/// The methods allowed for an announced stream, for its publisher, and for one that is being recorded.
pub(super) const ALLOW_ANNOUNCED: &str = "OPTIONS, ANNOUNCE, SETUP, RECORD, TEARDOWN, GET_PARAMETER, SET_PARAMETER";
pub(super) const ALLOW_RECORDED: &str = "OPTIONS, RECORD, PAUSE, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

/// Maximum size of a player's request text in a log line. Longer text is not shown at all, because truncation could start within a
/// password.
const TOLD_BYTES_MAX: usize = 512;

/// A request that has passed the checks common to all methods.
pub(super) struct Asked<'a> {
    pub(super) now: Instant,
    pub(super) conn: ConnId,
    pub(super) request: &'a Request,
    pub(super) cseq: &'a str,
    /// The session that it names, which exists and is its client's.
    pub(super) session: Option<SessionKey>,
}

/// An error or another outcome that leads to an answer.
pub(super) struct Refusal {
    pub(super) status: Status,
    /// The reason for a 461, for the log.
    pub(super) why: Option<NoTransport>,
    pub(super) header: Option<(&'static str, String)>,
    /// Not an error yet: wait for the stream, which sleeps or has never been up, for at most this long.
    pub(super) wait_for: Option<(Waits, Duration)>,
    /// Not an error either: the connection moves to this shard, with its request.
    pub(super) move_to: Option<u16>,
    /// With 503: the relays that the stream passes through, or would.
    pub(super) path: Option<String>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { status, why: None, header: None, wait_for: None, move_to: None, path: None }
    }
}

impl From<NoTransport> for Refusal {
    fn from(why: NoTransport) -> Self {
        Refusal { why: Some(why), ..Status::UNSUPPORTED_TRANSPORT.into() }
    }
}

pub(super) fn refusal(status: Status, name: &'static str, value: impl Into<String>) -> Refusal {
    Refusal { header: Some((name, value.into())), ..status.into() }
}

/// The connection moves to that shard.
pub(super) fn move_to(shard: u16) -> Refusal {
    Refusal { move_to: Some(shard), ..Status::UNAVAILABLE.into() }
}

/// The result of a method: an answer, or none yet.
pub(super) type Outcome = Result<Option<Response>, Refusal>;

impl Server {
    /// Marks a new connection as encrypted.
    pub fn set_secure(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.secure = true;
        }
    }

    /// Marks a new connection as coming through a load balancer. Datagrams would not come from the address that its client connected
    /// to, and the client's would not arrive here.
    pub fn set_proxied(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.proxied = true;
        }
    }

    /// Whether media for this client may be sent as datagrams.
    pub(super) fn may_use_udp(&self, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(Connection::may_use_udp)
    }

    /// Answers a request, or passes it to the shard.
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
        if !self.admit(now, conn, &request) || !self.admit_outside(now, conn, &request) {
            return;
        }
        let session = match self.session_of(conn, &request) {
            Named::None => self.implied_session(conn, &request),
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
            Err(Refusal { wait_for: Some((waits, wait)), .. }) => {
                self.hold(conn, Held { request, waits, until: now + wait });
                self.arm_conn(conn);
            }
            Err(Refusal { move_to: Some(shard), .. }) => self.hand_over(conn, shard, &request),
            Err(refusal) => self.refusal(conn, &request, session, refusal),
        }
    }

    fn public(&self) -> &'static str {
        let publishes = !self.published.is_empty() || self.names.patterns.iter().any(|rule| rule.published);
        if publishes { PUBLIC_WITH_PUBLISHING } else { PUBLIC }
    }

    /// The stream that a held request waited for will not come up.
    pub(super) fn give_up(&mut self, conn: ConnId, held: &Held) {
        let refused = match &held.waits {
            Waits::Stream(stream) => self.unavailable(*stream),
            // Nobody has published it.
            Waits::Name(name) if self.names.pattern(name.as_bytes()).is_some_and(|(_, rule)| rule.published) => {
                Status::NOT_FOUND.into()
            }
            Waits::Name(_) => refusal(Status::UNAVAILABLE, "Retry-After", RETRY_AFTER_S),
        };
        self.refusal(conn, &held.request, None, refused);
    }

    pub(super) fn refusal(&mut self, conn: ConnId, request: &Request, session: Option<SessionKey>, refusal: Refusal) {
        if refusal.status == Status::NOT_FOUND {
            self.count(Limited::UnknownStream);
        }
        self.tell_refused(conn, request, &refusal);
        self.tell_not_allowed(conn, request, refusal.status);
        let mut answer = with_timestamp(Response::new(refusal.status, request.cseq()), request);
        if let Some(key) = session.filter(|key| self.sessions.contains(*key)) {
            answer = self.with_session(answer, key);
        }
        if let Some((name, value)) = refusal.header {
            answer = answer.header(name, &value);
        }
        if let Some(path) = refusal.path {
            answer = answer.header(PATH, &path);
        }
        self.answer(conn, answer);
    }

    /// Logs what is missing for a refused player, because most players only tell their users that it failed.
    fn tell_refused(&self, conn: ConnId, request: &Request, refusal: &Refusal) {
        let Some(connection) = self.connections.get(conn) else { return };
        let client = connection.peer;
        let (method, url) = (&request.method, shown_url(&request.url));
        if refusal.status == Status::NOT_FOUND {
            tracing::warn!(%client, method, ?url, "refused (404): no such stream or track; the URL's path is a stream's name");
        } else if refusal.status == Status::AGGREGATE_NOT_ALLOWED && method == "SETUP" {
            tracing::info!(%client, method, ?url, "refused (459): SETUP needs the URL of one track of the session's stream (a=control in the description)");
        } else if refusal.status == Status::AGGREGATE_NOT_ALLOWED {
            tracing::info!(%client, method, ?url, "refused (459): the URL is neither the session's stream nor a track that was set up");
        } else if let Some(why) = refusal.why {
            let transport = shown(request.header("Transport").unwrap_or_default());
            tracing::info!(%client, method, ?transport, "refused (461): {why}");
        }
    }

    /// The start of a successful answer.
    pub(super) fn good(&self, asked: &Asked<'_>) -> Response {
        let answer = with_timestamp(Response::new(Status::OK, Some(asked.cseq)), asked.request);
        match asked.session {
            Some(key) => self.with_session(answer, key),
            None => answer,
        }
    }

    /// The session that a request names, if its client may use it.
    fn session_of(&self, conn: ConnId, request: &Request) -> Named {
        let Some(value) = request.header("Session") else { return Named::None };
        if request.method == "DESCRIBE" || self.is_strangers(conn) {
            // Needs none, and is answered even with an expired session.
            return Named::None;
        }
        // Clients may return the id with its `;timeout=`.
        let id = value.split(';').next().unwrap_or_default().trim();
        let hex = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(key) = u64::from_str_radix(id, 16).ok().filter(|_| hex).map(SessionKey) else { return Named::Unknown };
        let Some(connection) = self.connections.get(conn) else { return Named::Unknown };
        let shard = (key.0 % u64::from(self.config.shards)) as u16;
        if shard != self.config.shard {
            // The media that a connection carries would not survive the move.
            let carries = connection.interleaved().is_some();
            return if carries { Named::Unknown } else { Named::Elsewhere(shard) };
        }
        let same_address = |owner: SocketAddr| owner.ip().to_canonical() == connection.peer.ip().to_canonical();
        match self.sessions.get(key) {
            Some(session) if same_address(session.peer) && self.is_users(session, conn) => Named::Own(key),
            _ => Named::Unknown,
        }
    }

    /// The session that a request must mean that names none: the only one of its connection.
    fn implied_session(&self, conn: ConnId, request: &Request) -> Option<SessionKey> {
        let means_one = matches!(request.method.as_str(), "PLAY" | "PAUSE" | "RECORD" | "TEARDOWN");
        if means_one && request.header("Session").is_none() { self.only_session(conn) } else { None }
    }

    /// The session of a connection that has exactly one, if it belongs to its user.
    pub(super) fn only_session(&self, conn: ConnId) -> Option<SessionKey> {
        let [only] = *self.connections.get(conn)?.sessions() else { return None };
        self.sessions.get(only).filter(|session| self.is_users(session, conn)).map(|_| only)
    }

    /// The stream and track that a URL names.
    pub(super) fn resource(&self, asked: &Asked<'_>) -> Result<Found, Refusal> {
        let Some(connection) = self.connections.get(asked.conn) else { return Err(Status::NOT_FOUND.into()) };
        match resource::parse(&asked.request.url, connection.local, connection.secure) {
            Resource::Stream { name, track, base } => match self.streams.find(&name) {
                Some(stream) => Ok(Found::Stream { stream, track, base }),
                None if track.is_some() && asked.request.method != "SETUP" => Err(Status::NOT_FOUND.into()),
                None => Err(self.unknown(&name, asked.request)),
            },
            Resource::Server => Ok(Found::Server),
            Resource::Foreign => Err(Status::NOT_FOUND.into()),
        }
    }

    pub(super) fn described(&self, stream: StreamId) -> Result<Arc<Description>, Refusal> {
        if let Some(wait) = self.streams.wait_for(stream) {
            return Err(Refusal { wait_for: Some((Waits::Stream(stream), wait)), ..Status::UNAVAILABLE.into() });
        }
        let description = self.streams.description(stream).filter(|description| !description.tracks.is_empty());
        description.cloned().ok_or_else(|| self.unavailable(stream))
    }

    /// 503: the stream is not up.
    fn unavailable(&self, stream: StreamId) -> Refusal {
        let path = self.path_of(stream);
        Refusal { path, ..refusal(Status::UNAVAILABLE, "Retry-After", RETRY_AFTER_S) }
    }

    fn describe(&mut self, asked: &Asked<'_>) -> Outcome {
        self.no_loop(asked.request)?;
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
        self.ask(asked.now, stream);
        let description = self.described(stream)?;
        let ipv6 =
            self.connections.get(asked.conn).is_some_and(|connection| connection.peer.ip().to_canonical().is_ipv6());
        let path = self.path_of(stream);
        let body = describe(self.streams.name(stream), &description, ipv6, path.as_deref());
        let answer = self.good(asked).header("Content-Base", &base).header("Cache-Control", "no-cache");
        Ok(Some(answer.body("application/sdp", Bytes::from(body))))
    }

    fn play(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        self.track_in(key, asked)?;
        if self.sessions[&key].publishes {
            return Err(self.wrong_state(key));
        }
        let stream = self.sessions[&key].stream;
        self.ask(asked.now, stream);
        let current = self.described(stream)?;
        if !self.carries(key, asked.conn) {
            return Err(self.wrong_state(key));
        }
        let session = self.sessions.get_mut(key).ok_or(Status::SESSION_NOT_FOUND)?;
        if session.state() == State::Ready && !session.description.continues_as(&current) {
            self.remove_session(key, EndReason::SourceChanged, true);
            return Err(Status::SESSION_NOT_FOUND.into());
        }
        let state = session.state();
        let (stream, tracks, resumed) = (session.stream, session.play_tracks(), session.has_played());
        let info = session.rtp_info().to_owned();
        if state == State::Ready {
            session.description = current;
            session.ask();
        }
        let mut answer = self.good(asked);
        // Live media have one speed; a client that requests another is told so (RFC 2326 section 12.34).
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
        let session = self.sessions.get_mut(key).ok_or(Status::SESSION_NOT_FOUND)?;
        if track.is_some() && session.tracks().len() > 1 {
            return Err(Status::ONLY_AGGREGATE.into());
        }
        match session.state() {
            State::Playing => {
                session.pause();
                self.arm_session(key);
                self.push(Event::Pause { session: key });
                Ok(Some(self.good(asked)))
            }
            State::Ready if session.has_played() => Ok(Some(self.good(asked))),
            _ => Err(self.wrong_state(key)),
        }
    }

    fn teardown(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        let track = self.track_in(key, asked)?;
        let session = self.sessions.get(key).ok_or(Status::SESSION_NOT_FOUND)?;
        if let Some(track) = track.filter(|_| session.tracks().len() > 1) {
            // One of several tracks can be torn down before playing; published tracks were announced as a whole.
            if session.publishes || !session.is_being_set_up() {
                return Err(Status::ONLY_AGGREGATE.into());
            }
            self.drop_track(key, track, &[]);
            return Ok(Some(self.good(asked)));
        }
        self.remove_session(key, EndReason::Teardown, true);
        Ok(Some(self.good(&Asked { session: None, ..*asked })))
    }

    /// GET_PARAMETER and SET_PARAMETER: keep-alives. There are no parameters.
    fn parameter(&mut self, asked: &Asked<'_>) -> Outcome {
        if asked.request.body.trim_ascii().is_empty() {
            return Ok(Some(self.good(asked)));
        }
        Err(Status::PARAMETER_NOT_UNDERSTOOD.into())
    }

    /// The track of a session that a request's URL names; `None` for the whole session.
    fn track_in(&self, key: SessionKey, asked: &Asked<'_>) -> Result<Option<TrackId>, Refusal> {
        let session = self.sessions.get(key).ok_or(Status::SESSION_NOT_FOUND)?;
        match self.resource(asked)? {
            Found::Server => Ok(None),
            Found::Stream { stream, .. } if stream != session.stream => Err(Status::AGGREGATE_NOT_ALLOWED.into()),
            Found::Stream { track: None, .. } => Ok(None),
            Found::Stream { track: Some(track), .. } => {
                let known =
                    session.tracks().iter().map(|set_up| set_up.track).find(|have| usize::from(have.0) == track);
                match known {
                    Some(track) => Ok(Some(track)),
                    None if track < session.description.tracks.len() => Err(Status::AGGREGATE_NOT_ALLOWED.into()),
                    None => Err(Status::NOT_FOUND.into()),
                }
            }
        }
    }

    pub(super) fn wrong_state(&self, key: SessionKey) -> Refusal {
        let allow = match self.sessions.get(key) {
            Some(session) if session.publishes && !session.is_being_set_up() => ALLOW_RECORDED,
            Some(session) if session.publishes => ALLOW_ANNOUNCED,
            Some(session) if !session.is_being_set_up() => ALLOW_PLAYED,
            _ => ALLOW_SET_UP,
        };
        refusal(Status::METHOD_NOT_VALID, "Allow", allow)
    }

    pub(super) fn note_user_agent(&mut self, key: SessionKey, request: &Request) {
        if let (Some(session), Some(agent)) = (self.sessions.get_mut(key), request.header("User-Agent")) {
            session.set_user_agent(agent);
        }
    }
}

/// Text from a client in a form for the log.
pub(super) fn shown(text: &str) -> String {
    shown_by(redact, text)
}

/// The same of the URL that it asks for.
pub(super) fn shown_url(url: &str) -> String {
    shown_by(without_query_values, url)
}

fn shown_by(hide: fn(&str) -> String, text: &str) -> String {
    if text.len() > TOLD_BYTES_MAX { format!("{} bytes", text.len()) } else { hide(text) }
}

/// The session that a `Session` header means.
enum Named {
    /// There is none, or it does not matter.
    None,
    /// A session of this client.
    Own(SessionKey),
    /// A session that may be another shard's.
    Elsewhere(u16),
    /// No session, or another client's.
    Unknown,
}

/// The result of parsing a URL.
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
        false => {
            // A client that requires so many knows them; the first few suffice.
            let mut named = tags.join(", ");
            while named.len() > ECHO_BYTES_MAX {
                named.pop();
            }
            Err(refusal(Status::OPTION_NOT_SUPPORTED, "Unsupported", named))
        }
    }
}

/// The client's `Timestamp` is returned unchanged (RFC 2326 section 12.38).
pub(super) fn with_timestamp(answer: Response, request: &Request) -> Response {
    match request.header("Timestamp") {
        Some(value) if value.len() <= ECHO_BYTES_MAX => answer.header("Timestamp", value),
        _ => answer,
    }
}
