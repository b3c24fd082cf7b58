//! The body of the fuzz target: any request for a WebSocket.
#![allow(missing_docs)]

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use super::pass::{self, Pass};
use super::route::{self, Route};
use super::{page, upgrade};
use crate::access::User;

/// The first line is a path with its query; each further line is a header field.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let target = lines.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match Route::of(path) {
        Route::Stream(name) | Route::Bare(name) | Route::Live(name) | Route::Keyframe(name) => {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
            assert!(!name.is_empty() && name.chars().all(is_name), "{name:?}");
            assert!(name.split('/').all(|segment| !matches!(segment, "" | "." | "..")), "{name:?}");
        }
        _ => {}
    }
    let token = route::parameter(query, pass::PARAMETER);
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Ok(key) = upgrade::websocket_key(&headers) {
        assert_eq!(key.len(), 24);
    }
    let host = header("host");
    let _ = (upgrade::is_host_good(host, &["cams.example".into()]), upgrade::is_browser(&headers));
    if upgrade::is_own_origin(&headers) && headers.contains_key("origin") {
        assert!(header("origin").is_some_and(|origin| origin.len() > host.map_or(0, str::len)));
    }
    let policy = page::policy(host.unwrap_or_default(), &[]);
    assert_eq!(policy.matches("script-src").count(), 1);
    let user = std::sync::Arc::new(User::viewer("viewer", "a password that no fuzzer finds"));
    let cookie = header("cookie").and_then(pass::cookie).map(str::to_owned);
    for shown in token.into_iter().chain(cookie) {
        assert!(Pass::open(&shown, 0, |_| Some(user.clone())).is_none(), "a pass was guessed");
    }
}

#[test]
fn any_request_is_survived() {
    let pieces = [
        "/+live/",
        "cam",
        "?token=",
        "%2F",
        "%",
        "..",
        "\n",
        "host: ",
        "origin: http://",
        "cookie: rtsprelay=",
        "a.1.-.b",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: ",
        "dGhlIHNhbXBsZSBub25jZQ==",
        "[::1]:1",
        "ä",
        ";",
        "'",
    ];
    let mut random = fastrand::Rng::with_seed(20);
    for _ in 0..5_000 {
        let text: String = (0..random.usize(..12)).map(|_| pieces[random.usize(..pieces.len())]).collect();
        request(text.as_bytes());
    }
}
