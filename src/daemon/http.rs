//! The HTTP server on the control thread: `/metrics`, `/status`, `/healthz`, `/livez`, and the pages for browsers ([`super::web`]).

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Either;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinSet, spawn_local, yield_now};
use tokio::time::sleep;

use super::admission::SharedAdmission;
use super::answers::{Answer, plain, said};
use super::failure::Failure;
use super::fd_store::FdStore;
use super::health;
use super::manage::{self, Manage};
use super::places::{Places, Requested, Seat};
use super::proxied;
use super::reporter::{Page, Reporter};
use super::web::{self, From, Site};
use crate::egress::{Listener, Valve};
use crate::limits::PROXY_HEADERS_AWAITED_MAX;
use crate::metrics::{Limited, Panicked, process, prometheus};
use crate::shard::inbox::ShardSender;
use crate::testing::Testing;
use crate::tls::{SecuredPage, TlsSender};
use crate::upgrade::Purpose;
use crate::web::upgrade;

/// Maximum duration of a connection; scrapers reconnect.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

/// Maximum number of requests per connection; the last answer closes it. Scrapers send one request every few seconds.
const REQUESTS_MAX: u32 = 32;

/// Maximum size of buffered requests and answers before reading stops; an answer is always complete.
const BUFFER_BYTES_MAX: usize = 16 * 1024;

/// How long a request's head may take.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// How long a shard may take to answer for `/healthz` or `/livez`.
const HEALTHY_MAX: Duration = Duration::from_secs(1);

/// The delay after connections cannot be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// What requests are answered from.
#[derive(Clone)]
pub(super) struct Pages {
    /// What the pages for browsers are served from.
    pub site: Site,
    /// Answers programs.
    pub manage: Manage,
    /// Returns the counts.
    pub reporter: Rc<Mutex<Reporter>>,
    /// The shards.
    pub shards: Rc<[ShardSender]>,
    /// Knows the load balancers.
    pub admission: SharedAdmission,
    /// Whether it listens on loopback: then only requests that name this machine by a local name or address are answered.
    pub on_loopback: bool,
    /// Clients may make the code that serves them panic, for tests.
    pub testing: Testing,
    /// Closed while everything is handed over to another process.
    pub valve: Valve,
    /// Ends the connections.
    pub ending: Rc<watch::Sender<bool>>,
}

impl Pages {
    /// The response to a request that may come from a page in a browser which reaches the relay under its author's domain name (DNS
    /// rebinding): the request has that name as its host.
    fn misdirected<B>(&self, request: &Request<B>) -> Option<Answer> {
        if self.on_loopback {
            // Behind a proxy all clients come from this machine: what is open to the machine must not be open under the proxy's name.
            let why = "these pages are for this machine: ask by an address or as localhost";
            let refused = || plain(StatusCode::MISDIRECTED_REQUEST, why);
            return (!upgrade::is_host_good(upgrade::host_asked(request), &[])).then(refused);
        }
        // Elsewhere programs may use any name that leads here. With users, a browser has no password for an attacker's name.
        let is_open = self.manage.doors.basic().is_none() && !["/healthz", "/livez"].contains(&request.uri().path());
        let may_be_theirs = is_open && upgrade::may_be_script(request.headers());
        (may_be_theirs && !self.site.is_asked_by_its_name(request)).then(web::misdirected)
    }
}

/// With this content a request makes the relay's code fail, if tests allow it.
const ASKS_FOR_FAULT: (&str, &[u8]) = ("x-test-panic", b"page");

/// Counts a panic that ends a connection, together with the task that owns this.
struct CountsPanic;

impl Drop for CountsPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            process::panicked(Panicked::Client);
        }
    }
}

/// Listens on `address`.
///
/// # Errors
/// A sentence with the address and the fix.
pub(super) fn bind(store: &mut FdStore, purpose: Purpose, address: SocketAddr) -> Result<Listener, Failure> {
    store.listen(purpose, address).map_err(|error| {
        format!(
            "cannot serve HTTP on {address} ({error}); free the port, choose another with --http or `http`, or remove the key"
        )
        .into()
    })
}

/// Answers until the task is dropped.
pub(super) async fn serve(listener: Listener, pages: Pages) {
    let places = Rc::default();
    loop {
        let (stream, peer) = pages.valve.pass(accepted(&listener)).await;
        take(stream, From { peer, secured: None }, &pages, &places);
        // After a restart more may wait than there are places: accepted all at once, they would be closed before they are served.
        yield_now().await;
    }
}

/// The same over TLS; the handshakes are done elsewhere.
pub(super) async fn serve_tls(listener: Listener, tls: TlsSender, pages: Pages) {
    let (sender, mut secured) = mpsc::unbounded_channel();
    let places = Rc::default();
    let accept = async {
        // Connections of balancers that have not said yet whose they are.
        let mut unsaid = JoinSet::new();
        loop {
            let (stream, peer) = tokio::select! {
                Some(_) = unsaid.join_next() => continue,
                next = pages.valve.pass(accepted(&listener)) => next,
            };
            if !pages.admission.borrow().balancers().have(peer.ip()) {
                tls.page(stream, peer, &sender);
            } else if unsaid.len() >= PROXY_HEADERS_AWAITED_MAX {
                process::limited(Limited::ProxyHeader);
            } else {
                unsaid.spawn_local(page_behind_balancer(
                    stream,
                    peer,
                    pages.admission.clone(),
                    tls.clone(),
                    sender.clone(),
                ));
            }
        }
    };
    let answer = async {
        while let Some(SecuredPage { stream, peer, secured }) = secured.recv().await {
            take(stream, From { peer, secured: Some(secured) }, &pages, &places);
            // As above.
            yield_now().await;
        }
    };
    tokio::join!(accept, answer);
}

/// Has the handshake of a balancer's connection done, as soon as that has said whose it is.
async fn page_behind_balancer(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    admission: SharedAdmission,
    tls: TlsSender,
    sender: mpsc::UnboundedSender<SecuredPage>,
) {
    let Ok(mut stream) = tokio::net::TcpStream::from_std(stream) else { return };
    let balancers = admission.borrow().balancers().clone();
    let Some(client) = proxied::asker(&balancers, &mut stream, peer).await else { return };
    if let Ok(stream) = stream.into_std() {
        tls.page(stream, client, &sender);
    }
}

async fn accepted(listener: &Listener) -> (std::net::TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Out of descriptors; the RTSP acceptor logs that.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Serves a connection, in a task that holds its place.
fn take(stream: std::net::TcpStream, from: From, pages: &Pages, places: &Rc<Places>) {
    let Ok(mut stream) = tokio::net::TcpStream::from_std(stream) else { return };
    let seat = Seat::new(places, from.peer.ip());
    let kept = Rc::clone(&seat);
    let pages = pages.clone();
    let connection = spawn_local(async move {
        let _counts = CountsPanic;
        let Some(from) = behind_balancer(&mut stream, from, &pages).await else { return };
        // It counts among the connections of its own address, and not of all that the balancer forwards.
        kept.is_from(from.peer.ip());
        let (asked, goes_on) = (Cell::new(0), Cell::new(false));
        let service = service_fn(|request: Request<Incoming>| {
            kept.asked(Requested::of(request.uri().path()));
            asked.set(asked.get() + 1);
            let (from, pages, last) = (from.clone(), pages.clone(), asked.get() >= REQUESTS_MAX);
            let goes_on = &goes_on;
            async move {
                let answer = answer_one(request, from, pages, last).await?;
                goes_on.set(matches!(answer.body(), Either::Right(_)));
                Ok::<_, Infallible>(answer)
            }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(BUFFER_BYTES_MAX);
        // A failed or slow connection concerns only its client.
        let mut ending = pages.ending.subscribe();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        tokio::select! {
            _ = connection.as_mut() => {}
            () = too_long(&goes_on) => {}
            _ = ending.wait_for(|ending| *ending) => {
                // One that is idle ends at once, another with its answer, unless that has no end.
                if !goes_on.get() {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        }
    });
    seat.is_of(connection.abort_handle());
}

/// The client's address, from a balancer's header if there is one; `None` if the header is invalid.
async fn behind_balancer(stream: &mut tokio::net::TcpStream, from: From, pages: &Pages) -> Option<From> {
    if from.secured.is_some() {
        return Some(from);
    }
    let balancers = pages.admission.borrow().balancers().clone();
    let peer = proxied::asker(&balancers, stream, from.peer).await?;
    Some(From { peer, ..from })
}

/// Resolves when a connection has lasted long enough, unless it receives an endless response.
async fn too_long(goes_on: &Cell<bool>) {
    sleep(CONNECTION_MAX).await;
    while goes_on.get() {
        sleep(CONNECTION_MAX).await;
    }
}

/// Answers a request; `last` says that the connection closes with it.
async fn answer_one(
    request: Request<Incoming>,
    from: From,
    pages: Pages,
    last: bool,
) -> Result<Response<manage::Answer>, Infallible> {
    let path = request.uri().path();
    // Browsers get events over a WebSocket.
    let is_socket = path == "/+events" && request.headers().contains_key(UPGRADE);
    let mut response = if !is_socket && Manage::is_for(path) {
        match pages.misdirected(&request) {
            Some(refused) => refused.map(Either::Left),
            None => pages.manage.answer(request, from.peer.ip()).await,
        }
    } else {
        answer(request, from, pages).await?.map(Either::Left)
    };
    if last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn answer(request: Request<Incoming>, from: From, pages: Pages) -> Result<Answer, Infallible> {
    let asks = request.headers().get(ASKS_FOR_FAULT.0).map(HeaderValue::as_bytes).unwrap_or_default();
    assert!(!pages.testing.is_asked(asks, ASKS_FOR_FAULT.1), "a test wants it so");
    let request = match pages.site.answer(request, &from, &pages.shards, &pages.reporter).await {
        Ok(answer) => return Ok(answer),
        Err(request) => request,
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only"));
    }
    if let Some(refused) = pages.misdirected(&request) {
        return Ok(refused);
    }
    // Anyone may learn that the relay is up.
    if ["/metrics", "/status"].contains(&request.uri().path())
        && let Err(refused) = pages.manage.may_see(&request, from.peer.ip()).await
    {
        return Ok(*refused);
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            said(StatusCode::OK, prometheus::CONTENT_TYPE, Reporter::page(&pages.reporter, Page::Metrics).await)
        }
        "/status" => said(StatusCode::OK, "application/json", Reporter::page(&pages.reporter, Page::Status).await),
        "/healthz" if process::leaves_until().is_some() => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "the relay is leaving")
        }
        "/healthz" | "/livez" => match health::silent(&pages.shards, HEALTHY_MAX).await.as_slice() {
            [] => plain(StatusCode::OK, "ok"),
            silent => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("shards that do not answer: {silent:?}")),
        },
        _ => plain(StatusCode::NOT_FOUND, "not found; there are /, /metrics, /status, /healthz and /livez"),
    })
}
