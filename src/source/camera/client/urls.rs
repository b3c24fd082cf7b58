//! The URLs to request from a camera, as cameras build them. The connection always goes to the configured host, whatever these URLs
//! name.

/// Whether a text is an RTSP URL with a host.
fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    ["rtsp", "rtsps", "rtspu"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && !rest.is_empty()
        && !rest.starts_with(['/', '?', '#'])
}

/// A URL that is safe in a request line: no white space or control characters, no credentials, and `rtsps` if the connection uses TLS.
fn clean(url: &str, secure: bool) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("rtsp", url));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let scheme = if secure { "rtsps" } else { scheme };
    let mut out = format!("{scheme}://");
    for char in host.chars().chain(path.chars()) {
        if char.is_control() || char.is_whitespace() {
            let mut bytes = [0; 4];
            for byte in char.encode_utf8(&mut bytes).bytes() {
                out += &format!("%{byte:02X}");
            }
        } else {
            out.push(char);
        }
    }
    out
}

/// The base for the description's relative URLs (RFC 2326 section C.1.1), if the camera's is a URL.
pub(super) fn base(headers: [Option<&str>; 2], asked: &str, secure: bool) -> String {
    let named = headers.into_iter().flatten().map(str::trim).find(|base| is_url(base));
    named.map_or_else(|| asked.to_owned(), |base| clean(base, secure))
}

/// The URLs that a camera may mean by this `a=control`, the likeliest first. Most expect a relative one appended to the base with a
/// slash, as live555 and ffmpeg do; some resolve it according to RFC 3986.
pub(super) fn controlled(base: &str, control: Option<&str>, secure: bool) -> Vec<String> {
    let control = control.map_or("", str::trim);
    if control.is_empty() || control == "*" {
        return vec![base.to_owned()];
    }
    if is_url(control) {
        return vec![clean(control, secure)];
    }
    let slash = if base.ends_with('/') { "" } else { "/" };
    let appended = clean(&format!("{base}{slash}{control}"), secure);
    let mut urls = vec![appended];
    let joined = url::Url::parse(base).and_then(|base| base.join(control));
    if let Ok(joined) = joined
        && is_url(joined.as_str())
    {
        let joined = clean(joined.as_str(), secure);
        if control.starts_with('/') {
            urls.insert(0, joined);
        } else {
            urls.push(joined);
        }
    }
    urls.dedup();
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_that_is_no_url_is_none() {
        let asked = "rtsp://cam/live";
        for wrong in ["", "/", "  ", "cam:554/live/", "/live/", "http://cam/", "rtsp:///x", "rtsp://"] {
            assert_eq!(base([Some(wrong), None], asked, false), asked, "{wrong:?}");
        }
        assert_eq!(base([Some("/"), Some("rtsp://10.0.0.9/a/")], asked, false), "rtsp://10.0.0.9/a/");
        // Never a weaker scheme than the connection's, and no password other than the configured one.
        assert_eq!(base([Some("rtsp://u:p@cam/live/"), None], "rtsps://cam/live", true), "rtsps://cam/live/");
        assert_eq!(base([Some("rtsp://cam/a b\u{7}"), None], asked, false), "rtsp://cam/a%20b%07");
    }

    #[test]
    fn tracks_are_asked_for_as_cameras_mean_them() {
        let of = |base: &str, control: &str| controlled(base, Some(control), false);
        assert_eq!(of("rtsp://cam/live/", "trackID=1")[0], "rtsp://cam/live/trackID=1");
        assert_eq!(of("rtsp://cam/live", "trackID=1"), ["rtsp://cam/live/trackID=1", "rtsp://cam/trackID=1"]);
        assert_eq!(of("rtsp://cam/live?x=1", "track1")[0], "rtsp://cam/live?x=1/track1");
        assert_eq!(of("rtsp://cam/live", "/live/track1")[0], "rtsp://cam/live/track1");
        assert_eq!(of("rtsp://cam/live", "rtsp://10.1.1.1/other/track1"), ["rtsp://10.1.1.1/other/track1"]);
        assert_eq!(of("rtsp://cam/live", "*"), ["rtsp://cam/live"]);
        assert_eq!(controlled("rtsp://cam/live", None, false), ["rtsp://cam/live"]);
        assert_eq!(controlled("rtsps://cam/live", Some("rtsp://cam/t"), true), ["rtsps://cam/t"]);
    }
}
