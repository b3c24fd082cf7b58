//! What a request's URL names.

use std::net::SocketAddr;

use crate::wire::sdp::TRACK_PREFIX;

/// A request's URL, taken apart.
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
        /// The stream's URL with a trailing slash, for `Content-Base`. Without query and credentials.
        base: String,
    },
    /// A URL of another scheme.
    Foreign,
}

/// Takes a URL apart. One without a host is completed by `local`, one without a scheme by whether the connection is `secure`.
///
/// Players put the track behind the URL they know: behind `Content-Base`, but some behind a query string of their own.
pub(super) fn parse(url: &str, local: SocketAddr, secure: bool) -> Resource {
    if url == "*" {
        return Resource::Server;
    }
    let mut is_rtsps = secure;
    let (authority, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_rtsp(scheme) => {
            // Behind a proxy that does the TLS the client knows better than the connection.
            is_rtsps = scheme.eq_ignore_ascii_case("rtsps");
            rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
        }
        // A query may hold a whole URL; only what stands before it is a scheme.
        Some((scheme, _)) if !scheme.contains(['/', '?']) => return Resource::Foreign,
        _ => ("", url),
    };
    // Credentials are for the server alone.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let mut track = query.trim_end_matches('/').rsplit_once('/').and_then(|(_, last)| track_number(last));
    if track.is_none() {
        track = segments.last().and_then(|last| track_number(last));
        if track.is_some() {
            segments.pop();
        }
    }
    let joined = segments.join("/");
    let host = if authority.is_empty() { local.to_string() } else { authority.to_owned() };
    let slash = if joined.is_empty() { "" } else { "/" };
    let scheme = if is_rtsps { "rtsps" } else { "rtsp" };
    Resource::Stream { name: percent_decoded(&joined), track, base: format!("{scheme}://{host}/{joined}{slash}") }
}

fn is_rtsp(scheme: &str) -> bool {
    ["rtsp", "rtspu", "rtsps"].iter().any(|known| known.eq_ignore_ascii_case(scheme))
}

fn track_number(segment: &str) -> Option<usize> {
    let (prefix, number) = segment.split_at_checked(TRACK_PREFIX.len())?;
    let digits = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (prefix.eq_ignore_ascii_case(TRACK_PREFIX) && digits).then(|| number.parse().ok()).flatten()
}

pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = (byte == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
            u8::from_str_radix(hex, 16).ok()
        });
        match hex {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            None => out.push(byte),
        }
    }
    out
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
