//! The routes of the HTTP server for browsers.

use crate::limits::STREAM_NAME_BYTES_MAX;

/// Where a request goes. Stream names are paths, and none contains `+`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`: every stream.
    Home,
    /// `/NAME/`: one stream, live.
    Stream(String),
    /// `/NAME`, which redirects to the same with a slash.
    Bare(String),
    /// `/+live/NAME`: a WebSocket.
    Live(String),
    /// `/+keyframe/NAME`: the newest keyframe.
    Keyframe(String),
    /// `/+tiles`: what the home page shows of each stream, as JSON.
    Tiles,
    /// `/+events`: a WebSocket; programs are answered with server-sent events elsewhere.
    Events,
    /// `/+login`: takes a name and a password.
    Login,
    /// `/+logout`: forgets them.
    Logout,
    /// Something else.
    Other,
}

/// The paths that monitoring requests, whatever streams are called.
const PROBES: [&str; 4] = ["/metrics", "/status", "/healthz", "/livez"];

/// Whether monitoring requests this path.
pub fn is_probe(path: &str) -> bool {
    PROBES.contains(&path)
}

impl Route {
    /// The route for a request's path, without the query.
    pub fn of(path: &str) -> Route {
        let named = |rest: &str, route: fn(String) -> Route| name(rest).map_or(Route::Other, route);
        match path {
            "/" => Route::Home,
            "/+tiles" => Route::Tiles,
            "/+events" => Route::Events,
            "/+login" => Route::Login,
            "/+logout" => Route::Logout,
            _ => {
                if let Some(rest) = path.strip_prefix("/+live/") {
                    named(rest, Route::Live)
                } else if let Some(rest) = path.strip_prefix("/+keyframe/") {
                    named(rest, Route::Keyframe)
                } else if path.ends_with('/') {
                    named(path, Route::Stream)
                } else if is_probe(path) {
                    Route::Other
                } else {
                    named(path, Route::Bare)
                }
            }
        }
    }
}

/// The name of a stream in a path: decoded once and then checked; empty segments are dropped.
fn name(path: &str) -> Option<String> {
    let decoded = percent_decoded(path)?;
    let segments: Vec<&str> = decoded.split('/').filter(|segment| !segment.is_empty()).collect();
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    let is_name = |segment: &&str| segment.chars().all(is_safe) && !matches!(*segment, "." | "..");
    let name = segments.join("/");
    (segments.iter().all(is_name) && !name.is_empty() && name.len() <= STREAM_NAME_BYTES_MAX).then_some(name)
}

/// Text with `%XX` decoded; `None` if it is invalid.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok()
}

/// A parameter of a query or form, decoded.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|item| {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        (key == name).then_some(value)
    })?;
    percent_decoded(&value.replace('+', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_people_expect() {
        let stream = |name: &str| Route::Stream(name.into());
        for (path, route) in [
            ("/", Route::Home),
            ("/front/", stream("front")),
            ("/front", Route::Bare("front".into())),
            ("/live/cam1/", stream("live/cam1")),
            ("//live//cam1/", stream("live/cam1")),
            ("/live%2Fcam1/", stream("live/cam1")),
            ("/fr%6fnt/", stream("front")),
            ("/+live/live/cam1", Route::Live("live/cam1".into())),
            ("/+keyframe/front", Route::Keyframe("front".into())),
            ("/+tiles", Route::Tiles),
            ("/+events", Route::Events),
            ("/metrics", Route::Other),
            ("/metrics/", stream("metrics")),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
        for path in ["/+other", "/a+b/", "/../etc/", "/a/../b/", "/a%00b/", "/a%/", "/a%2", "/+live/", "/%252e/", "/ä/"]
        {
            assert_eq!(Route::of(path), Route::Other, "{path}");
        }
        let long = format!("/{}/", "a".repeat(STREAM_NAME_BYTES_MAX + 1));
        assert_eq!(Route::of(&long), Route::Other);
    }

    #[test]
    fn parameters_are_decoded_once() {
        assert_eq!(parameter("a=1&b=x%20y+z", "b").as_deref(), Some("x y z"));
        assert_eq!(parameter("a=%2525", "a").as_deref(), Some("%25"));
        assert_eq!(parameter("sound", "sound").as_deref(), Some(""));
        assert_eq!(parameter("a=1", "b"), None);
    }
}
