//! Whether a request may become a WebSocket (RFC 6455 section 4.2.1), and which hosts and origins may send it.

use std::net::IpAddr;

use hyper::header::{
    ACCEPT_LANGUAGE, CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use hyper::{HeaderMap, Request};

use crate::wire::websocket;

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The key of a WebSocket request.
///
/// # Errors
/// Why it is invalid, for the client.
pub fn websocket_key(headers: &HeaderMap) -> Result<&str, &'static str> {
    let lists = |name, wanted: &str| {
        text(headers, name).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(wanted)))
    };
    if !lists(CONNECTION, "upgrade") || !lists(UPGRADE, "websocket") {
        return Err("this is a WebSocket: send Upgrade: websocket");
    }
    if text(headers, SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err("only WebSocket version 13 is supported");
    }
    text(headers, SEC_WEBSOCKET_KEY).filter(|key| websocket::is_key(key)).ok_or("Sec-WebSocket-Key is invalid")
}

/// The name or address in a `Host` header or an authority, without port and IPv6 brackets.
fn host_of(authority: &str) -> &str {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = authority.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(authority, |(name, _)| name);
    let name = name.trim_end_matches('.');
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// The host and port that a request is for: those in the request line take precedence over `Host` (RFC 9112 section 3.2.2). A value
/// that is not text is not a name.
pub fn host_asked<B>(request: &Request<B>) -> Option<&str> {
    let header = || request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    request.uri().authority().map(|authority| authority.as_str()).or_else(header)
}

/// Whether a request may use this `Host`: an address, localhost, or a configured name. A page that reaches the relay under its
/// author's domain name (DNS rebinding) uses that name. Programs that send no host at all are no browsers.
pub fn is_host_good(host: Option<&str>, names: &[String]) -> bool {
    let Some(host) = host else { return true };
    let name = host_of(host);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a request comes from the relay's own page: its `Origin` matches the request's host. Programs send no `Origin`.
pub fn is_own_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Some((_, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
    text(headers, HOST).is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

/// Whether a browser sent the request. A browser must not be sent a challenge that opens its own password dialog.
pub fn is_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || text(headers, USER_AGENT).is_some_and(|agent| agent.starts_with("Mozilla/"))
}

/// Whether a page's script may have sent the request: browsers send `Accept-Language` and `User-Agent` with each request, which scripts
/// can change but not remove.
pub fn may_be_script(headers: &HeaderMap) -> bool {
    headers.contains_key(ACCEPT_LANGUAGE) || is_browser(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_is_no_handshake_is_told_so() {
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert_eq!(websocket_key(&headers(&good)), Ok("dGhlIHNhbXBsZSBub25jZQ=="));
        for left_out in 0..good.len() {
            let mut lines = good.to_vec();
            lines.remove(left_out);
            assert!(websocket_key(&headers(&lines)).is_err(), "{}", good[left_out].0);
        }
    }

    #[test]
    fn names_of_others_are_refused() {
        let names = ["cam.example".to_owned()];
        for host in [
            "127.0.0.1:8580",
            "[::1]:8580",
            "192.0.2.7",
            "localhost:1",
            "LocalHost.",
            "x.localhost",
            "CAM.example:8580",
            "cam.example.",
        ] {
            assert!(is_host_good(Some(host), &names), "{host}");
        }
        for host in [
            "attacker.example",
            "cam.example.attacker.example",
            "localhost.attacker.example",
            "127.0.0.1.nip.io",
            "",
            "127.1",
            "[::1",
            "cam.example:x",
        ] {
            assert!(!is_host_good(Some(host), &names), "{host}");
        }
        assert!(is_host_good(None, &[]));
    }

    #[test]
    fn the_line_of_a_request_goes_before_its_host() {
        let asked = |uri: &str, host: &[u8]| {
            let request = Request::get(uri).header(HOST, hyper::header::HeaderValue::from_bytes(host).unwrap());
            host_asked(&request.body(()).unwrap()).map(str::to_owned)
        };
        assert_eq!(asked("/status", b"cam:8580").as_deref(), Some("cam:8580"));
        assert_eq!(asked("http://cam.example/status", b"localhost").as_deref(), Some("cam.example"));
        assert_eq!(asked("/status", b"\xe4.example").as_deref(), Some(""));
        assert_eq!(host_asked(&Request::get("/status").body(()).unwrap()), None);
    }

    #[test]
    fn scripts_are_known_by_what_they_cannot_leave_out() {
        for (name, value, may) in [
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)", true),
            ("accept-language", "en", true),
            ("origin", "http://cam", true),
            ("user-agent", "Prometheus/2.42.0", false),
            ("accept-encoding", "gzip", false),
        ] {
            assert_eq!(may_be_script(&headers(&[(name, value)])), may, "{name}: {value}");
        }
    }

    #[test]
    fn only_the_own_page_may_ask() {
        for (host, origin, good) in [
            ("cam:8580", Some("http://cam:8580"), true),
            ("cam:8580", Some("https://cam:8580"), true),
            ("cam:8580", Some("http://cam"), false),
            ("cam:8580", Some("http://attacker.example"), false),
            ("cam:8580", Some("null"), false),
            ("cam:8580", None, true),
        ] {
            let lines: Vec<_> = [("host", host)].into_iter().chain(origin.map(|origin| ("origin", origin))).collect();
            assert_eq!(is_own_origin(&headers(&lines)), good, "{host} {origin:?}");
        }
    }
}
