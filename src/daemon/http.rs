//! `/metrics`, `/status` and `/healthz`, on the control thread.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::access::{Doors, Entry};
use super::health;
use super::reporter::Reporter;
use crate::egress::Listener;
use crate::metrics::{Panicked, process, prometheus};
use crate::shard::inbox::ShardSender;

/// Connections at a time; one more ends the oldest, so that nobody who is silent keeps others out.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may last: whoever scrapes comes back.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

/// How long a request's head may take.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// How long a shard may take to answer `/healthz`.
const HEALTHY_MAX: Duration = Duration::from_secs(1);

/// The wait after connections cannot be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// What requests are answered from.
#[derive(Clone)]
pub struct Pages {
    /// Tells what was counted.
    pub reporter: Rc<Mutex<Reporter>>,
    /// The shards.
    pub shards: Rc<[ShardSender]>,
    /// Who may see what tells of clients; `None` where whoever can ask is on this machine.
    pub doors: Option<Doors>,
    /// Clients may have the code that answers them fail, for tests.
    pub test_panics: bool,
}

/// What a client sends, of a relay that is told to be tested so, to have its code fail here.
const ASKS_FOR_FAULT: (&str, &str) = ("x-test-panic", "page");

/// Counts a panic that ends a connection, and with it the task that has this.
struct CountsPanic;

impl Drop for CountsPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            process::panicked(Panicked::Client);
        }
    }
}

/// Listens at `address`.
///
/// # Errors
/// A sentence that names the address and the cure.
pub fn bind(address: SocketAddr) -> Result<Listener, String> {
    Listener::bind(address).map_err(|error| {
        format!(
            "cannot serve HTTP at {address} ({error}); free the port, choose another with --http or `http`, or remove the key"
        )
    })
}

/// Answers until the task is dropped.
pub async fn serve(listener: Listener, pages: Pages) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, peer)) => tokio::net::TcpStream::from_std(stream).map(|stream| (stream, peer)),
            Err(error) => Err(error),
        };
        let Ok((stream, peer)) = stream else {
            // Out of descriptors, which the acceptor of RTSP tells of.
            sleep(PAUSE).await;
            continue;
        };
        let pages = pages.clone();
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(spawn_local(async move {
            let _counts = CountsPanic;
            let service = service_fn(|request| answer(request, peer.ip(), pages.clone()));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            // A connection that breaks or takes too long concerns nobody but its client.
            let _ = timeout(CONNECTION_MAX, builder.serve_connection(TokioIo::new(stream), service)).await;
        }));
    }
}

async fn answer<B>(request: Request<B>, peer: IpAddr, pages: Pages) -> Result<Response<Full<Bytes>>, Infallible> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let asks = request.headers().get(ASKS_FOR_FAULT.0).is_some_and(|value| value == ASKS_FOR_FAULT.1);
    assert!(!(pages.test_panics && asks), "a test wants it so");
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Ok(page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into()));
    }
    // What says no more than that the relay is there is for everybody.
    if let Some(doors) = pages.doors.as_ref().filter(|_| ["/metrics", "/status"].contains(&request.uri().path())) {
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let url = request.uri().path_and_query().map_or("/", |url| url.as_str());
        match doors.entry(peer, request.method().as_str(), url, authorization) {
            Entry::Open => {}
            Entry::Closed => return Ok(page(StatusCode::FORBIDDEN, TEXT, "not for this user\n".into())),
            Entry::Asked(challenges, delay) => {
                sleep(delay).await;
                let mut asked = page(StatusCode::UNAUTHORIZED, TEXT, "a user's name and password, please\n".into());
                for challenge in challenges.iter().filter_map(|value| HeaderValue::from_str(value).ok()) {
                    asked.headers_mut().append(WWW_AUTHENTICATE, challenge);
                }
                return Ok(asked);
            }
        }
    }
    Ok(match request.uri().path() {
        "/metrics" => page(StatusCode::OK, prometheus::CONTENT_TYPE, pages.reporter.lock().await.metrics().await),
        "/status" => page(StatusCode::OK, "application/json", pages.reporter.lock().await.status().await),
        "/healthz" => match health::silent(&pages.shards, HEALTHY_MAX).await.as_slice() {
            [] => page(StatusCode::OK, TEXT, "ok\n".into()),
            silent => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("shards that do not answer: {silent:?}\n")),
        },
        "/" => page(StatusCode::OK, TEXT, "rtsprelay: /metrics /status /healthz\n".into()),
        _ => page(StatusCode::NOT_FOUND, TEXT, "not here; there are /metrics, /status and /healthz\n".into()),
    })
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
