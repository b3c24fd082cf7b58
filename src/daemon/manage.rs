//! The HTTP interface for programs: `/+events`, `/+streams` and `/+clients`.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Frame};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::access::Doors;
use super::answers::{self, plain};
use super::events::{EventText, Events};
use crate::access::{Right, User};
use crate::media::name::of_path;
use crate::session::SessionKey;
use crate::web::upgrade;

/// The response: a page, or events as long as somebody reads them.
pub(super) type Answer = Either<Full<Bytes>, Stream>;

/// Why a request goes no further.
type Refused = Box<answers::Answer>;

/// Maximum size of a stream's keys in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Maximum time for a request's body.
const BODY_MAX: Duration = Duration::from_secs(5);

/// Interval after which a reader of events is sent something, so that proxies do not consider the connection dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Pieces that are queued for a reader; beyond that, [`Events`] keeps a limited number for it.
const PIECES: usize = 16;

/// A request to the relay.
pub(super) enum Ask {
    /// The streams, or the one with this name, as JSON.
    List(Option<String>),
    /// Add a stream with this name and these keys.
    Add(String, String),
    /// Remove the stream with this name.
    Remove(String),
    /// Disconnect the client with this session.
    End(SessionKey),
}

/// The result: a status and a message.
pub(super) type Reply = (StatusCode, String);

/// The channel to the relay.
pub(super) type Asks = mpsc::UnboundedSender<(Ask, oneshot::Sender<Reply>)>;

/// Answers programs.
#[derive(Clone)]
pub(super) struct Manage {
    /// Decides who may do what.
    pub doors: Doors,
    /// Whether all clients are local: then everyone may see the streams.
    pub on_loopback: bool,
    /// What happens.
    pub events: Events,
    /// The channel to the relay.
    pub asks: Asks,
}

/// What a request is about.
enum Target {
    Events,
    Streams,
    Stream(String),
    Client(SessionKey),
}

impl Target {
    fn of(path: &str) -> Option<Target> {
        let name = |path: &str| String::from_utf8(of_path(path)).ok();
        match path {
            "/+events" => Some(Target::Events),
            "/+streams" | "/+streams/" => Some(Target::Streams),
            _ => {
                if let Some(path) = path.strip_prefix("/+streams/") {
                    return name(path).map(Target::Stream);
                }
                let key = path.strip_prefix("/+clients/").filter(|key| key.len() == 16)?;
                u64::from_str_radix(key, 16).ok().map(SessionKey).map(Target::Client)
            }
        }
    }

    fn methods(&self) -> &'static str {
        match self {
            Target::Events | Target::Streams => "GET",
            Target::Stream(_) => "GET, POST, DELETE",
            Target::Client(_) => "DELETE",
        }
    }
}

impl Manage {
    /// Whether the request is for this interface.
    pub(super) fn is_for(path: &str) -> bool {
        Target::of(path).is_some()
    }

    /// Answers a request for which [`Manage::is_for`] returned true.
    pub(super) async fn answer<B>(&self, request: Request<B>, peer: IpAddr) -> Response<Answer>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.answered(request, peer).await.unwrap_or_else(|refused| refused.map(Either::Left))
    }

    async fn answered<B>(&self, request: Request<B>, peer: IpAddr) -> Result<Response<Answer>, Refused>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(target) = Target::of(request.uri().path()) else {
            return Err(plain(StatusCode::NOT_FOUND, "not here").into());
        };
        if !target.methods().split(", ").any(|method| method == request.method().as_str()) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, &format!("{} only", target.methods()));
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static(target.methods()));
            return Err(refused.into());
        }
        let changes = request.method() != Method::GET;
        if changes && !upgrade::is_own_origin(request.headers()) {
            return Err(plain(StatusCode::FORBIDDEN, "a page of another site may change nothing here").into());
        }
        if changes {
            self.may_change(&request, &target, peer).await?;
        } else {
            self.may_see(&request, peer).await?;
        }
        let ask = match (target, request.method()) {
            (Target::Events, _) => return Ok(self.events()),
            (Target::Streams, _) => Ask::List(None),
            (Target::Stream(name), &Method::GET) => Ask::List(Some(name)),
            (Target::Stream(name), &Method::POST) => Ask::Add(name, keys(request).await?),
            (Target::Stream(name), _) => Ask::Remove(name),
            (Target::Client(session), _) => Ask::End(session),
        };
        let is_list = matches!(ask, Ask::List(_));
        let (reply, replied) = oneshot::channel();
        // Nobody answers during a stop.
        let _ = self.asks.send((ask, reply));
        let Ok((status, said)) = replied.await else {
            return Err(plain(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping").into());
        };
        let kind = if is_list && status == StatusCode::OK { "application/json" } else { "text/plain; charset=utf-8" };
        Ok(answers::said(status, kind, said).map(Either::Left))
    }

    /// Whether the requester may see every stream.
    pub(super) async fn may_see<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<(), Refused> {
        // A load balancer on this machine forwards requests from others.
        if self.on_loopback && peer.to_canonical().is_loopback() {
            return Ok(());
        }
        match self.user(request, peer).await? {
            Some(user) if !user.may_read_all() => {
                Err(plain(StatusCode::FORBIDDEN, "this user has no right to this").into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the requester may add and remove streams: a user with that right. This applies to this machine too, because any web page
    /// in a local browser can send requests.
    async fn may_change<B>(&self, request: &Request<B>, target: &Target, peer: IpAddr) -> Result<(), Refused> {
        let may = |user: &User| match target {
            Target::Stream(name) => user.may(Right::Administer, name),
            // Of any stream.
            _ => user.administer && user.streams.is_none(),
        };
        match self.user(request, peer).await? {
            Some(user) if may(&user) => Ok(()),
            Some(_) => Err(plain(
                StatusCode::FORBIDDEN,
                "this needs a user with may = [\"administer\"] and the stream in its streams",
            )
            .into()),
            None => {
                let cure = "there are no users; this needs a [[user]] with may = [\"administer\"] in the configuration";
                Err(plain(StatusCode::FORBIDDEN, cure).into())
            }
        }
    }

    async fn user<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<Option<std::sync::Arc<User>>, Refused> {
        match self.doors.user(peer, request).await {
            Ok(user) => Ok(user),
            Err(entry) => {
                let asked = plain(StatusCode::UNAUTHORIZED, "user name and password required");
                Err(answers::refused(entry, asked, true).await.into())
            }
        }
    }

    /// Events from now on (server-sent events, HTML Living Standard section 9.2).
    fn events(&self) -> Response<Answer> {
        let (pieces, reader) = mpsc::channel(PIECES);
        tokio::task::spawn_local(pass_on(self.events.listen(), pieces));
        let mut response = Response::new(Either::Right(Stream(reader)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Passes events on to one reader, until it has gone.
async fn pass_on(mut events: broadcast::Receiver<EventText>, pieces: mpsc::Sender<Bytes>) {
    let mut piece = Bytes::from_static(b": events from now on\n\n");
    while pieces.send(piece).await.is_ok() {
        piece = match timeout(SIGN_OF_LIFE, events.recv()).await {
            Ok(Ok(event)) => format!("data: {}\n\n", event.text).into(),
            Ok(Err(broadcast::error::RecvError::Lagged(missed))) => {
                format!("data: {}\n\n", Events::missed(missed)).into()
            }
            Ok(Err(broadcast::error::RecvError::Closed)) => return,
            Err(_) => Bytes::from_static(b":\n\n"),
        };
    }
}

/// The events for one reader.
pub(super) struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// The keys of a stream in a request's body.
async fn keys<B>(request: Request<B>) -> Result<String, Refused>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = timeout(BODY_MAX, Limited::new(request.into_body(), BODY_BYTES_MAX).collect()).await;
    let Ok(Ok(body)) = read else {
        let why =
            format!("the body did not arrive within {} s, or has more than {BODY_BYTES_MAX} bytes", BODY_MAX.as_secs());
        return Err(plain(StatusCode::PAYLOAD_TOO_LARGE, &why).into());
    };
    String::from_utf8(body.to_bytes().to_vec())
        .map_err(|_| plain(StatusCode::BAD_REQUEST, "the body is not UTF-8; write TOML").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_contract() {
        let stream = |path: &str| match Target::of(path) {
            Some(Target::Stream(name)) => Some(name),
            _ => None,
        };
        assert_eq!(stream("/+streams/live/a").as_deref(), Some("live/a"));
        assert_eq!(stream("/+streams/live%2Fa/").as_deref(), Some("live/a"));
        for path in ["/+streams", "/+streams/", "/+events", "/+clients/00112233445566ff"] {
            assert!(Manage::is_for(path) && stream(path).is_none(), "{path}");
        }
        for path in ["/", "/status", "/+events/x", "/+clients/1", "/+clients/zz112233445566ff", "/live/a", "/+streamsx"]
        {
            assert!(!Manage::is_for(path), "{path}");
        }
    }
}
