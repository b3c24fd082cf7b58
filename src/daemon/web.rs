//! The pages for browsers, their keyframes, and WebSockets up to the 101 response; after that a shard serves them.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, ETAG, HOST, HeaderValue, IF_NONE_MATCH,
    LOCATION, REFERRER_POLICY, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SET_COOKIE, UPGRADE, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::warn;

use super::access::Doors;
use super::admission::SharedAdmission;
use super::answers::{Answer, plain, refused, said};
use super::events::{EventText, Events};
use super::reporter::{Reporter, SharedWatched};
use super::web_events;
use crate::access::{Right, User};
use crate::config::Config;
use crate::egress::Secured;
use crate::limits::{LOGIN_BYTES_MAX, LOGIN_S, UPGRADE_MAX_S};
use crate::media::rendering::fmp4::Clock;
use crate::media::{SourceState, StreamId};
use crate::shard::inbox::{ShardSender, ToShard};
use crate::shard::types::WebClient;
use crate::web::route::{self, Route};
use crate::web::{page, pass, upgrade};
use crate::wire::websocket;

/// How long a shard may take to return a keyframe.
const STILL_MAX: Duration = Duration::from_secs(1);

/// Where a request came from.
#[derive(Clone)]
pub(super) struct From {
    /// The client's address.
    pub peer: SocketAddr,
    /// The TCP connection of a TLS client.
    pub secured: Option<Arc<Secured>>,
}

/// The configuration of the pages, which a reload may change.
#[derive(Clone, Debug, Default)]
struct Rules {
    hosts: Vec<String>,
    embedders: Vec<String>,
    /// An external server decides who may watch, and browsers cannot be checked with it.
    asks_outside: bool,
    /// Streams, and the smaller streams shown in their tiles.
    tiles: Vec<(String, String)>,
}

/// What the pages are served from.
#[derive(Clone)]
pub(super) struct Site {
    rules: Rc<RefCell<Rules>>,
    doors: Doors,
    watched: SharedWatched,
    admission: SharedAdmission,
    events: Events,
    clock: Clock,
}

/// The sender of a request.
struct Visitor {
    user: Option<Arc<User>>,
    /// The only stream that a link allows.
    only: Option<String>,
    /// When the link or cookie expires, as Unix time in seconds.
    expires: Option<u64>,
}

impl Visitor {
    fn may_watch(&self, stream: &str) -> bool {
        let is_opened = self.only.as_deref().is_none_or(|only| only == stream);
        is_opened && self.user.as_ref().is_none_or(|user| user.may(Right::Read, stream))
    }

    /// Whether it may see an event; `None` if its credentials are no longer valid.
    fn sees(&self, doors: &Doors, told: Option<&EventText>) -> Option<bool> {
        if self.expires.is_some_and(|at| at <= unix_s()) {
            return None;
        }
        let user = match &self.user {
            Some(was) => Some(doors.current(was)?),
            // Users have been configured meanwhile.
            None if doors.basic().is_some() => return None,
            None => None,
        };
        let now = Visitor { user, only: self.only.clone(), expires: self.expires };
        Some(told.is_some_and(|told| match told.is_of_client {
            true => now.only.is_none() && now.user.as_ref().is_none_or(|user| user.may_read_all()),
            false => now.may_watch(&told.stream),
        }))
    }
}

/// A clock for browsers that is right now.
pub(super) fn clock() -> Clock {
    Clock::new(Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn header<'r>(request: &'r Request<Incoming>, name: &hyper::header::HeaderName) -> Option<&'r str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The response to a request that should be for a WebSocket.
fn no_websocket(why: &str) -> Answer {
    with(plain(StatusCode::UPGRADE_REQUIRED, why), UPGRADE, "websocket")
}

/// The response to a request with a host name that is not this relay's.
pub(super) fn misdirected() -> Answer {
    let why = "this relay is not known by that name: ask by its address, or add the name to http_hosts";
    plain(StatusCode::MISDIRECTED_REQUEST, why)
}

fn with(mut answer: Answer, name: hyper::header::HeaderName, value: &str) -> Answer {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().append(name, value);
    }
    answer
}

impl Site {
    /// With this configuration.
    pub(super) fn new(
        config: &Config,
        doors: Doors,
        watched: SharedWatched,
        admission: SharedAdmission,
        events: Events,
        clock: Clock,
    ) -> Site {
        let site = Site { rules: Rc::default(), doors, watched, admission, events, clock };
        site.set(config);
        site
    }

    /// The clock for browsers.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Applies a configuration.
    pub(super) fn set(&self, config: &Config) {
        let tiles = config.streams.iter().filter_map(|stream| Some((stream.name.clone(), stream.tile.clone()?)));
        *self.rules.borrow_mut() = Rules {
            hosts: config.http_hosts.clone(),
            embedders: config.http_embed.clone(),
            asks_outside: config.site.auth.is_some(),
            tiles: tiles.collect(),
        };
    }

    /// The state of a stream's source changed.
    pub(super) fn set_state(&self, id: StreamId, state: SourceState) {
        let mut watched = self.watched.borrow_mut();
        if let Some(watched) = watched.iter_mut().find(|watched| watched.id == id) {
            watched.state = Some(state);
        }
    }

    /// Answers a request for the pages; returns any other.
    ///
    /// # Errors
    /// The request, if it is not for the pages.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        from: &From,
        shards: &[ShardSender],
        reporter: &Rc<Mutex<Reporter>>,
    ) -> Result<Answer, Request<Incoming>> {
        let route = match Route::of(request.uri().path()) {
            Route::Other => return Err(request),
            // Other addresses of the HTTP server have no trailing slash.
            Route::Bare(name) if self.find(&name).is_none() => return Err(request),
            route => route,
        };
        if let Some(why) = self.refusal(&request, &route) {
            return Ok(why);
        }
        Ok(match route {
            Route::Home | Route::Stream(_) => self.page(&request),
            Route::Bare(name) => {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                with(
                    plain(StatusCode::PERMANENT_REDIRECT, "the address ends with a slash"),
                    LOCATION,
                    &format!("/{name}/{query}"),
                )
            }
            Route::Tiles => self.tiles(request, from, reporter).await,
            Route::Keyframe(name) => self.keyframe(request, from, shards, &name).await,
            Route::Live(name) => self.live(request, from, shards, &name).await,
            Route::Events => self.events(request, from).await,
            Route::Login => self.login(request, from).await,
            Route::Logout => with(plain(StatusCode::OK, "forgotten"), SET_COOKIE, &pass::set_cookie("", 0, false)),
            Route::Other => return Err(request),
        })
    }

    /// Why a request is refused, if it is: because of its host name, its method, or its origin.
    fn refusal(&self, request: &Request<Incoming>, route: &Route) -> Option<Answer> {
        if !self.is_asked_by_its_name(request) {
            return Some(misdirected());
        }
        let changes = matches!(route, Route::Login | Route::Logout);
        let is_method = match request.method() {
            &Method::POST => changes,
            method => !changes && [Method::GET, Method::HEAD].contains(method),
        };
        if !is_method {
            let why = if changes { "POST only" } else { "GET and HEAD only" };
            return Some(plain(StatusCode::METHOD_NOT_ALLOWED, why));
        }
        if (changes || matches!(route, Route::Live(_) | Route::Events)) && !upgrade::is_own_origin(request.headers()) {
            return Some(plain(StatusCode::FORBIDDEN, "another page's script asks, which it may not"));
        }
        None
    }

    /// Whether a request's host is an address, localhost, or a name that is configured for the pages.
    pub(super) fn is_asked_by_its_name<B>(&self, request: &Request<B>) -> bool {
        upgrade::is_host_good(upgrade::host_asked(request), &self.rules.borrow().hosts)
    }

    fn page(&self, request: &Request<Incoming>) -> Answer {
        let policy = page::policy(header(request, &HOST).unwrap_or_default(), &self.rules.borrow().embedders);
        let answer = said(StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(page::HTML.as_bytes()));
        let answer = with(answer, CONTENT_SECURITY_POLICY, &policy);
        with(answer, REFERRER_POLICY, "no-referrer")
    }

    /// The stream with a name.
    fn find(&self, name: &str) -> Option<StreamId> {
        self.watched.borrow().iter().find(|watched| watched.name == name).map(|watched| watched.id)
    }

    /// The user, by cookie, link or `Authorization`.
    async fn visitor(&self, request: &Request<Incoming>, peer: IpAddr) -> Result<Visitor, Answer> {
        if self.rules.borrow().asks_outside {
            return Err(plain(StatusCode::FORBIDDEN, "auth_url decides who may watch, and works for RTSP only"));
        }
        if self.doors.basic().is_none() {
            return Ok(Visitor { user: None, only: None, expires: None });
        }
        let query = request.uri().query().unwrap_or_default();
        let token = route::parameter(query, pass::PARAMETER);
        let shown = token.or_else(|| header(request, &COOKIE).and_then(pass::cookie).map(str::to_owned));
        if let Some((pass, user)) = shown.and_then(|text| self.doors.pass(peer, &text, unix_s())) {
            return Ok(Visitor { user: Some(user), only: pass.stream, expires: Some(pass.expires) });
        }
        match self.doors.user(peer, request).await {
            Ok(user) => Ok(Visitor { user, only: None, expires: None }),
            Err(entry) => {
                let asked = said(StatusCode::UNAUTHORIZED, "application/json", "{\"login\":true}\n");
                Err(refused(entry, asked, !upgrade::is_browser(request.headers())).await)
            }
        }
    }

    /// The user and the stream of a request.
    async fn entrance(
        &self,
        request: &Request<Incoming>,
        from: &From,
        name: &str,
    ) -> Result<(Visitor, StreamId), Answer> {
        let visitor = self.visitor(request, from.peer.ip()).await?;
        // A user without a right to a stream is not told whether it exists.
        if !visitor.may_watch(name) {
            return Err(plain(StatusCode::FORBIDDEN, "this user has no right to the stream"));
        }
        let stream = self.find(name).ok_or_else(|| plain(StatusCode::NOT_FOUND, "there is no such stream"))?;
        Ok((visitor, stream))
    }

    async fn tiles(&self, request: Request<Incoming>, from: &From, reporter: &Rc<Mutex<Reporter>>) -> Answer {
        let visitor = match self.visitor(&request, from.peer.ip()).await {
            Ok(visitor) => visitor,
            Err(answer) => return answer,
        };
        let reporter = reporter.lock().await;
        let last = reporter.last();
        let rules = self.rules.borrow();
        let mut streams = Vec::new();
        for watched in self.watched.borrow().iter().filter(|watched| visitor.may_watch(&watched.name)) {
            let about = last.and_then(|report| report.streams.iter().find(|stream| stream.name == watched.name));
            let flow = about.map(|about| &about.flow);
            let micros = |at: Option<Duration>| at.map(|at| at.as_micros() as u64);
            let tile = rules.tiles.iter().find(|(of, _)| *of == watched.name).map(|(_, tile)| tile.as_str());
            streams.push(json!({
                "name": watched.name,
                "state": watched.state.or(about.map(|about| about.state)).map(SourceState::name),
                "video": about.and_then(|about| about.encodings[0].as_deref()),
                "audio": about.and_then(|about| about.encodings[1].as_deref()),
                "fps": about.map(|about| about.fps),
                "bps": flow.map(|flow| flow.in_bps),
                "viewers": flow.map(|flow| flow.clients()),
                "p50_us": flow.and_then(|flow| micros(flow.latency.p50)),
                "p99_us": flow.and_then(|flow| micros(flow.latency.p99)),
                "tile": tile.filter(|tile| visitor.may_watch(tile)),
            }));
        }
        let user = visitor.user.as_ref().map(|user| user.name.as_str());
        let text = json!({ "user": user, "link": visitor.only.is_some(), "streams": streams }).to_string();
        said(StatusCode::OK, "application/json", text)
    }

    async fn keyframe(&self, request: Request<Incoming>, from: &From, shards: &[ShardSender], name: &str) -> Answer {
        let stream = match self.entrance(&request, from, name).await {
            Ok((_, stream)) => stream,
            Err(answer) => return answer,
        };
        let (reply, answer) = oneshot::channel();
        // Other shards have it only while they have clients of it.
        let home = self.watched.borrow().iter().find(|watched| watched.id == stream).map(|watched| watched.home);
        let Some(shard) = home.and_then(|home| shards.get(usize::from(home))) else {
            return plain(StatusCode::NOT_FOUND, "there are no shards");
        };
        shard.tell(ToShard::Still { stream, clock: self.clock, reply });
        let Ok(Ok(Some(still))) = timeout(STILL_MAX, answer).await else {
            let none = plain(StatusCode::SERVICE_UNAVAILABLE, "there is no picture at present");
            return with(none, RETRY_AFTER, "2");
        };
        let tag = format!("\"{}\"", still.number);
        let is_known =
            header(&request, &IF_NONE_MATCH).is_some_and(|known| known.split(',').any(|one| one.trim() == tag));
        let (status, bytes) =
            if is_known { (StatusCode::NOT_MODIFIED, Bytes::new()) } else { (StatusCode::OK, still.bytes) };
        let mut answer = with(said(status, "video/mp4", bytes), ETAG, &tag);
        if let Ok(mime) = HeaderValue::from_str(&still.mime) {
            answer.headers_mut().insert(CONTENT_TYPE, mime);
        }
        // Must be revalidated each time, with the tag.
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        answer
    }

    async fn live(&self, request: Request<Incoming>, from: &From, shards: &[ShardSender], name: &str) -> Answer {
        if let Err(why) = upgrade::websocket_key(request.headers()) {
            return no_websocket(why);
        }
        let (visitor, stream) = match self.entrance(&request, from, name).await {
            Ok(entrance) => entrance,
            Err(answer) => return answer,
        };
        let client = WebClient {
            stream,
            sound: route::parameter(request.uri().query().unwrap_or_default(), "sound").is_some_and(|on| on != "0"),
            user: visitor.user,
            user_agent: header(&request, &USER_AGENT).map(str::to_owned),
            clock: self.clock,
            expires: visitor.expires.map(|at| Instant::now() + Duration::from_secs(at.saturating_sub(unix_s()))),
        };
        let shard = shards.iter().min_by_key(|shard| shard.connections()).cloned();
        let (from, admission) = (from.clone(), Rc::clone(&self.admission));
        self.websocket(request, from.peer, move |stream, unread| match (stream.into_std(), shard) {
            (Ok(stream), Some(shard)) => {
                shard.tell(ToShard::Web { stream, peer: from.peer, unread, secured: from.secured, client });
            }
            _ => admission.borrow_mut().gone(from.peer),
        })
    }

    /// Sends the events of the streams that a browser may see.
    async fn events(&self, request: Request<Incoming>, from: &From) -> Answer {
        if let Err(why) = upgrade::websocket_key(request.headers()) {
            return no_websocket(why);
        }
        let visitor = match self.visitor(&request, from.peer.ip()).await {
            Ok(visitor) => visitor,
            Err(answer) => return answer,
        };
        let (doors, events) = (self.doors.clone(), self.events.listen());
        let (peer, admission, rules) = (from.peer, Rc::clone(&self.admission), Rc::clone(&self.rules));
        self.websocket(request, peer, move |stream, unread| {
            spawn_local(async move {
                // Nobody can decide here for the external server, so the pages are closed then.
                let sees = |told: Option<&_>| visitor.sees(&doors, told).filter(|_| !rules.borrow().asks_outside);
                web_events::pass_on(stream, &unread, events, sees).await;
                admission.borrow_mut().gone(peer);
            });
        })
    }

    /// Answers with 101, and passes the connection with the data already read to `then`, which must report its end to
    /// [`Site::admission`].
    fn websocket(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        then: impl FnOnce(TcpStream, Bytes) + 'static,
    ) -> Answer {
        let accept = match upgrade::websocket_key(request.headers()) {
            Ok(key) => websocket::accept(key),
            Err(why) => return no_websocket(why),
        };
        if let Err(limit) = self.admission.borrow_mut().enter(peer) {
            warn!("{limit}");
            return with(
                plain(StatusCode::SERVICE_UNAVAILABLE, "as many clients as there may be are connected"),
                RETRY_AFTER,
                "5",
            );
        }
        let admission = Rc::clone(&self.admission);
        let upgraded = hyper::upgrade::on(&mut request);
        spawn_local(async move {
            let handed = timeout(Duration::from_secs(UPGRADE_MAX_S), upgraded).await.ok().and_then(Result::ok);
            match handed.and_then(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>().ok()) {
                Some(parts) => then(parts.io.into_inner(), parts.read_buf),
                // It closed before it was answered.
                None => admission.borrow_mut().gone(peer),
            }
        });
        let mut answer = Response::new(Full::new(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let answer = with(answer, CONNECTION, "Upgrade");
        with(with(answer, UPGRADE, "websocket"), SEC_WEBSOCKET_ACCEPT, &accept)
    }

    /// Accepts a name and password from a form, and returns a cookie.
    async fn login(&self, request: Request<Incoming>, from: &From) -> Answer {
        let peer = from.peer.ip();
        let is_secure = from.secured.is_some();
        if !is_secure && !peer.to_canonical().is_loopback() && self.doors.basic() == Some(false) {
            let why = "the password would be sent in clear: use HTTPS (http_tls), or set basic = true";
            return plain(StatusCode::FORBIDDEN, why);
        }
        let Ok(body) = Limited::new(request.into_body(), LOGIN_BYTES_MAX).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "name and password required");
        };
        let form = String::from_utf8(body.to_bytes().to_vec()).unwrap_or_default();
        let (Some(name), Some(password)) = (route::parameter(&form, "user"), route::parameter(&form, "password"))
        else {
            return plain(StatusCode::BAD_REQUEST, "name and password required");
        };
        match self.doors.login(peer, (&name, &password)).await {
            Ok(Some(user)) => {
                let pass = pass::Pass { user: user.name.clone(), expires: unix_s() + LOGIN_S, stream: None };
                let Some(text) = pass.sign(&user.secrets) else {
                    return plain(StatusCode::FORBIDDEN, "this user has no password");
                };
                let cookie = pass::set_cookie(&text, LOGIN_S, is_secure);
                with(said(StatusCode::NO_CONTENT, "text/plain", Bytes::new()), SET_COOKIE, &cookie)
            }
            Ok(None) => said(StatusCode::NO_CONTENT, "text/plain", Bytes::new()),
            Err(entry) => refused(entry, plain(StatusCode::FORBIDDEN, "wrong name or password"), false).await,
        }
    }
}
