//! Short answers of the HTTP server, and those to requests whose user is not known.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use tokio::time::sleep;

use super::access::Entry;

/// A response with a complete body.
pub(super) type Answer = Response<Full<Bytes>>;

/// A short text that must not be cached.
pub(super) fn said(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A sentence for people; it needs no line end.
pub(super) fn plain(status: StatusCode, text: &str) -> Answer {
    said(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

/// The response to a request without a valid user; `asked` if credentials are missing or wrong. With `tells_how` it contains the challenges,
/// for programs; a browser would open its own dialog for them.
pub(super) async fn refused(entry: Entry, mut asked: Answer, tells_how: bool) -> Answer {
    let Entry::Asked(challenges, delay) = entry else {
        return plain(StatusCode::FORBIDDEN, "too many wrong passwords; try again later");
    };
    sleep(delay).await;
    for challenge in challenges.iter().filter(|_| tells_how).filter_map(|value| HeaderValue::from_str(value).ok()) {
        asked.headers_mut().append(WWW_AUTHENTICATE, challenge);
    }
    asked
}
