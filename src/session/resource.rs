//! Parses a request's URL.

use std::net::SocketAddr;

use crate::media::name::{of_path, percent_decoded};
use crate::wire::sdp::TRACK_PREFIX;

/// A parsed request URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `*`: the server itself.
    Server,
    /// A stream or one of its tracks.
    Stream {
        /// The stream's name, percent-decoded, without empty segments; empty for the root.
        name: Vec<u8>,
        /// The track's number.
        track: Option<usize>,
        /// The stream's URL with a trailing slash, for `Content-Base`, without query and credentials.
        base: String,
    },
    /// A URL with another scheme.
    Foreign,
}

/// Parses a URL. A missing host is replaced by `local`, a missing scheme by that of the connection (`secure`).
///
/// Players append the track to the URL that they know: to `Content-Base`, but some after a query string of their own.
pub(super) fn parse(url: &str, local: SocketAddr, secure: bool) -> Resource {
    if url == "*" {
        return Resource::Server;
    }
    let mut is_rtsps = secure;
    let (authority, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_rtsp(scheme) => {
            // Behind a TLS proxy the client knows the scheme better than the connection.
            is_rtsps = scheme.eq_ignore_ascii_case("rtsps");
            rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
        }
        // A query may contain a whole URL; only what precedes it is a scheme.
        Some((scheme, _)) if !scheme.contains(['/', '?']) => return Resource::Foreign,
        _ => ("", url),
    };
    // Credentials are only for the server.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let mut track = query.trim_end_matches('/').rsplit_once('/').and_then(|(_, last)| track_number(last.as_bytes()));
    if track.is_none() {
        track = segments.last().and_then(|last| track_number(&percent_decoded(last)));
        if track.is_some() {
            segments.pop();
        }
    }
    let joined = segments.join("/");
    let host = if authority.is_empty() { local.to_string() } else { authority.to_owned() };
    let slash = if joined.is_empty() { "" } else { "/" };
    let scheme = if is_rtsps { "rtsps" } else { "rtsp" };
    Resource::Stream { name: of_path(&joined), track, base: format!("{scheme}://{host}/{joined}{slash}") }
}

fn is_rtsp(scheme: &str) -> bool {
    ["rtsp", "rtspu", "rtsps"].iter().any(|known| known.eq_ignore_ascii_case(scheme))
}

fn track_number(segment: &[u8]) -> Option<usize> {
    let segment = std::str::from_utf8(segment).ok()?;
    let (prefix, number) = segment.split_at_checked(TRACK_PREFIX.len())?;
    let digits = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (prefix.eq_ignore_ascii_case(TRACK_PREFIX) && digits).then(|| number.parse().ok()).flatten()
}

/// A URL in a form that can be sent back.
pub(super) fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(url: &str) -> (String, Option<usize>, String) {
        match parse(url, "192.0.2.1:8554".parse().unwrap(), false) {
            Resource::Stream { name, track, base } => (String::from_utf8(name).unwrap(), track, base),
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn every_spelling_finds_the_stream() {
        for (url, name, track, base) in [
            ("rtsp://h:1/front", "front", None, "rtsp://h:1/front/"),
            ("rtsp://h:1/front/", "front", None, "rtsp://h:1/front/"),
            ("rtsp://h:1//front//", "front", None, "rtsp://h:1/front/"),
            ("RTSP://h/front?a=b&c=/d", "front", None, "rtsp://h/front/"),
            ("rtsp://h/front/?a=b", "front", None, "rtsp://h/front/"),
            ("rtsp://u:p@ss@h/front", "front", None, "rtsp://h/front/"),
            ("rtsp://h/front/trackID=1", "front", Some(1), "rtsp://h/front/"),
            ("rtsp://h/front/trackid=12/", "front", Some(12), "rtsp://h/front/"),
            ("rtsp://h/front//trackID=0?x", "front", Some(0), "rtsp://h/front/"),
            ("rtsp://h/front?a=b/trackID=2", "front", Some(2), "rtsp://h/front/"),
            ("rtsp://h/front?a=b/trackID=2/", "front", Some(2), "rtsp://h/front/"),
            ("rtsp://h/live/cam1/trackID=1", "live/cam1", Some(1), "rtsp://h/live/cam1/"),
            ("rtsp://h/live%2Fcam1/trackID%3D1", "live/cam1", Some(1), "rtsp://h/live%2Fcam1/"),
            ("rtsp://h/live%2F%2Fcam1%2F", "live/cam1", None, "rtsp://h/live%2F%2Fcam1%2F/"),
            ("rtsp://h/a%2541", "a%41", None, "rtsp://h/a%2541/"),
            ("rtsp://h/yard/front%20door", "yard/front door", None, "rtsp://h/yard/front%20door/"),
            ("rtsp://h/100%", "100%", None, "rtsp://h/100%/"),
            ("rtsp://h/a%+1", "a%+1", None, "rtsp://h/a%+1/"),
            ("rtsp://[::1]:8554/front", "front", None, "rtsp://[::1]:8554/front/"),
            ("rtsp://h", "", None, "rtsp://h/"),
            ("rtsp://h/", "", None, "rtsp://h/"),
            ("rtsp://h?x=y", "", None, "rtsp://h/"),
            ("rtsp://h/trackID=3", "", Some(3), "rtsp://h/"),
            ("/front", "front", None, "rtsp://192.0.2.1:8554/front/"),
            ("front", "front", None, "rtsp://192.0.2.1:8554/front/"),
            ("rtsp:///front", "front", None, "rtsp://192.0.2.1:8554/front/"),
            ("/front?from=rtsp://x", "front", None, "rtsp://192.0.2.1:8554/front/"),
            ("rtsp://h/front/trackID=", "front/trackID=", None, "rtsp://h/front/trackID=/"),
            ("rtsp://h/front/trackID=-1", "front/trackID=-1", None, "rtsp://h/front/trackID=-1/"),
            ("rtsp://h/front/trackID=1234", "front/trackID=1234", None, "rtsp://h/front/trackID=1234/"),
            ("rtsp://h/fröntträck", "fröntträck", None, "rtsp://h/fröntträck/"),
            ("", "", None, "rtsp://192.0.2.1:8554/"),
        ] {
            assert_eq!(stream(url), (name.to_owned(), track, base.to_owned()), "{url}");
        }
    }

    #[test]
    fn the_server_and_other_schemes_are_no_stream() {
        let local = "192.0.2.1:8554".parse().unwrap();
        assert_eq!(parse("*", local, false), Resource::Server);
        assert_eq!(parse("http://h/front", local, false), Resource::Foreign);
    }

    #[test]
    fn the_scheme_is_the_clients_or_else_the_connections() {
        for (url, secure, scheme) in [
            ("rtsps://h/front", false, "rtsps"),
            ("RTSPS://h/front", true, "rtsps"),
            ("rtsp://h/front", true, "rtsp"),
            ("/front", true, "rtsps"),
            ("/front", false, "rtsp"),
        ] {
            match parse(url, "192.0.2.1:8322".parse().unwrap(), secure) {
                Resource::Stream { base, .. } => assert_eq!(base.split(':').next(), Some(scheme), "{url}"),
                other => panic!("{url}: {other:?}"),
            }
        }
    }
}
