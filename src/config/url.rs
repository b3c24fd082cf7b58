//! The URL of a camera, checked with cures, and the hiding of passwords in whatever people typed.

use std::borrow::Cow;

use url::Url;

use crate::source::address::CameraAddress;

/// What stands in for a secret.
const HIDDEN: &str = "***";

/// What to do about a user name or password that breaks the URL.
const ENCODE: &str =
    "percent-encode what is special in the user name or password (@ as %40, : as %3A, / as %2F, # as %23, ? as %3F)";

/// Reads `rtsp://[user[:password]@]host[:port]/path`.
///
/// # Errors
/// A sentence that names what is wrong and the cure, without any secret of `text`.
pub fn camera(text: &str) -> Result<CameraAddress, String> {
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err("a source's URL has no spaces around it and no control characters in it; remove them".into());
    }
    let shown = || redact(text);
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!(
            "{:?} is no source; write a URL (\"rtsp://HOST/PATH\") or \"test\" for the built-in test pattern",
            redact(&without_userinfo(text))
        ));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "rtsp" | "rtsps" => {}
        _ => return Err(format!("{:?} is not an RTSP source; its URL must begin with rtsp:// or rtsps://", shown())),
    }
    let url = Url::parse(text).map_err(|error| format!("{:?} is not a valid URL: {error}; {ENCODE}", shown()))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{:?} names no host; write rtsp://HOST/PATH", shown()));
    }
    if url.fragment().is_some() {
        return Err(format!("{:?} has a part after \"#\", which no camera gets to see; {ENCODE}", shown()));
    }
    if url.port() == Some(0) {
        return Err(format!("{:?} has port 0; write the camera's port, or none for 554", shown()));
    }
    // `rtsp://user:12/34@host/` is a valid URL of the host `user`, and not what anybody means.
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if !authority.contains('@')
        && authority.rsplit(']').next().is_some_and(|port| port.contains(':'))
        && rest.contains('@')
    {
        return Err(format!("{:?} has its @ after a / or ?; {ENCODE}, and an @ of the path as %40", shown()));
    }
    CameraAddress::parse(text).map_err(|error| format!("{:?}: {error}", shown()))
}

/// `text` with everything hidden that could be a password of a URL in it, whether or not the URL is well formed.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // Everything up to the *last* @ of the line may belong to a password that somebody forgot to encode.
        let (url, tail) = after.split_at(after.find('\n').unwrap_or(after.len()));
        match url.rsplit_once('@') {
            Some((user, host)) => {
                if let Some((name, _)) = user.split_once(':') {
                    push_without_secrets(&mut out, name);
                    out.push(':');
                }
                out.push_str(HIDDEN);
                out.push('@');
                push_without_secrets(&mut out, host);
            }
            None => {
                // Another URL may follow on the line.
                let next = url.find("://").unwrap_or(url.len());
                push_without_secrets(&mut out, &url[..next]);
                rest = &after[next..];
                continue;
            }
        }
        rest = tail;
    }
    push_without_secrets(&mut out, rest);
    out
}

/// `user:password@host` as `user:***@host`; any other text as it is.
fn without_userinfo(text: &str) -> Cow<'_, str> {
    let Some((name, rest)) = text.split_once(':') else { return text.into() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{name}:{HIDDEN}@{host}").into(),
        None => text.into(),
    }
}

/// Hides the passwords of URLs that lack their scheme, or a slash of it, and the values of what looks like `password=…`: some
/// cameras take it in the path or in the query.
fn push_without_secrets(out: &mut String, text: &str) {
    const NAMES: [&str; 7] = ["password=", "passwd=", "pass=", "pwd=", "token=", "secret=", "auth="];
    let text: String = text.split_inclusive(char::is_whitespace).map(without_userinfo).collect();
    let lower = text.to_ascii_lowercase();
    let (mut from, mut at) = (0, 0);
    while let Some(found) = text[at..].find('=') {
        let value = at + found + 1;
        at = value;
        if !NAMES.iter().any(|name| lower[..value].ends_with(name)) {
            continue;
        }
        out.push_str(&text[from..value]);
        let ends = |c: char| matches!(c, '&' | '/' | '?' | '#' | ';' | '"' | '\'') || c.is_whitespace();
        let end = text[value..].find(ends).map_or(text.len(), |at| value + at);
        if end > value {
            out.push_str(HIDDEN);
        }
        (from, at) = (end, end);
    }
    out.push_str(&text[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_ever_shown() {
        let secrets = [
            "rtsp://admin:hunter2@host/x",
            "rtsp://admin:hun@hunter2@host/x",
            "rtsp://admin:hunter2/@host/x",
            "rtsp://admin:12/hunter2@host/x",
            "rtsp://admin:12?hunter2@host/x",
            "rtsp://admin:#hunter2@host/x",
            "rtsp://admin:hunter2@",
            "rtsp://admin:hunter2@host:99999/x",
            "rtsp://admin:hunter2@host:port/x",
            "RTSP://admin:hunter2@host/x",
            "rtsps://admin:hunter2@host/x",
            "http://admin:hunter2@host/x",
            "rtsp://host/user=admin&password=hunter2&channel=1",
            "rtsp://host/user=admin_password=hunter2_channel=1_stream=0.sdp",
            "rtsp://host/x?pwd=hunter2&a=b",
            "rtsp://host/x?PassWord=hunter2",
            "rtsp://:hunter2@host/x",
            "rtsp://admin:%ff%68unter2hunter2@host/",
            " rtsp://admin:hunter2@host/x",
            "rtsp://admin:hun hunter2@host/x",
            "rtsp://admin:hun\"hunter2@host/x",
            "rtsp://host/x?pwd=hunter2:foo@y",
            "rtsp:/admin:hunter2@host/x",
            "admin:hunter2@host/x",
            "admin:12@hunter2@host/x",
            "error: unexpected argument 'admin:hunter2@host/x' found",
            "rtsp:admin:hunter2@host/x?password=a",
            "admin:hunter2?pwd=x@host/x",
            "192.0.2.10/ch0?user=admin&password=hunter2",
            "rtsp:/u:p@h/x?pwd=hunter2",
            "see 'rtsp://a:hunter2@b/' and rtsp://c:hunter2@d/.",
        ];
        for text in secrets {
            assert!(!redact(text).contains("hunter2"), "redact({text:?}) is {:?}", redact(text));
            match camera(text) {
                Ok(source) => {
                    let shown = format!("{source} {source:?}");
                    assert!(!shown.contains("hunter2"), "{text:?} is shown as {shown:?}");
                }
                Err(why) => assert!(!why.contains("hunter2"), "{text:?} is refused with {why:?}"),
            }
        }
        assert!(camera("rtsp://[::1]:554/a?b=c").is_ok() && camera("rtsp://u:p%40@[::1]/a@b").is_ok());
        assert_eq!(redact("no URL here: a@b"), "no URL here: a@b");
    }

    #[test]
    fn a_bad_url_is_refused_with_a_cure() {
        for (text, part) in [
            ("192.0.2.10/stream1", "rtsp://HOST/PATH"),
            ("rtsp:///stream1", "host"),
            ("http://h/", "begin with rtsp://"),
            ("rtsp://h/a#b", "%23"),
            ("rtsp://h:0/a", "554"),
            (" rtsp://h/a", "spaces"),
            ("rtsp://u:p:q/a", "percent-encode"),
            ("rtsp://u:12/34@h/a", "%2F"),
        ] {
            let why = camera(text).expect_err(text);
            assert!(why.contains(part), "{text:?}: {why}");
        }
    }
}
