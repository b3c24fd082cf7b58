//! The address of a camera, whose password is never shown.

use std::fmt;

use url::Url;

/// What stands in for a secret.
const HIDDEN: &str = "***";

/// User name and password of a camera.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password; never to be printed, logged or served.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).field("password", &HIDDEN).finish()
    }
}

/// Where a camera is, and how to log in to it. `Display` and `Debug` show it without its secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceUrl {
    url: Url,
    credentials: Option<Credentials>,
}

impl SourceUrl {
    /// Reads `rtsp://[user[:password]@]host[:port]/path`.
    ///
    /// # Errors
    /// A sentence that names what is wrong and the cure, without any secret of `text`.
    pub fn parse(text: &str) -> Result<SourceUrl, String> {
        if text.trim() != text || text.chars().any(char::is_control) {
            return Err("a source's URL has no spaces around it and no control characters in it; remove them".into());
        }
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("rtsp") => {}
            Some("rtsps" | "rtspu") => {
                return Err(format!(
                    "{} sources are not built yet; use an rtsp:// URL",
                    scheme.expect("matched").to_uppercase()
                ));
            }
            Some(_) => {
                return Err(format!("{:?} is not an RTSP source; its URL must begin with rtsp://", redact(text)));
            }
            None => {
                return Err(format!(
                    "{:?} is no source; write a URL (\"rtsp://HOST/PATH\") or \"test\" for the built-in test pattern",
                    redact(text)
                ));
            }
        }
        let encode = "percent-encode what is special in the user name or password (@ as %40, : as %3A, / as %2F, # as %23, ? as %3F)";
        let mut url =
            Url::parse(text).map_err(|error| format!("{:?} is not a valid URL: {error}; {encode}", redact(text)))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("{:?} names no host; write rtsp://HOST/PATH", redact(text)));
        }
        if url.fragment().is_some() {
            return Err(format!("{:?} has a part after \"#\", which no camera gets to see; {encode}", redact(text)));
        }
        if url.port() == Some(0) {
            return Err(format!("{:?} has port 0; write the camera's port, or none for 554", redact(text)));
        }
        let decode = |part: &str| {
            let mut bytes = Vec::with_capacity(part.len());
            let mut rest = part.as_bytes();
            while let Some((&byte, tail)) = rest.split_first() {
                let hex = |at: usize| tail.get(at).and_then(|digit| (*digit as char).to_digit(16));
                match (byte, hex(0), hex(1)) {
                    (b'%', Some(high), Some(low)) => {
                        bytes.push((high * 16 + low) as u8);
                        rest = &tail[2..];
                    }
                    _ => {
                        bytes.push(byte);
                        rest = tail;
                    }
                }
            }
            String::from_utf8(bytes)
        };
        let credentials = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            let not_utf8 =
                |_| format!("user name or password in {:?} are not UTF-8 once decoded; encode them anew", redact(text));
            Some(Credentials {
                username: decode(url.username()).map_err(not_utf8)?,
                password: decode(url.password().unwrap_or_default()).map_err(not_utf8)?,
            })
        };
        url.set_username("").and_then(|()| url.set_password(None)).expect("a URL with a host can lose its user");
        Ok(SourceUrl { url, credentials })
    }

    /// The URL without user name and password. Its path or query may still hold a secret, so do not print it; print `self`.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// How to log in.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = redact(self.url.as_str());
        match &self.credentials {
            None => f.write_str(&url),
            Some(Credentials { username, .. }) => {
                let rest = url.strip_prefix("rtsp://").unwrap_or(&url);
                let printable: String = username.chars().filter(|c| !c.is_control()).collect();
                write!(f, "rtsp://{printable}:{HIDDEN}@{rest}")
            }
        }
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceUrl({self})")
    }
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

/// Hides the values of what looks like `password=…`: some cameras take it in the path or in the query.
fn push_without_secrets(out: &mut String, text: &str) {
    const NAMES: [&str; 7] = ["password=", "passwd=", "pass=", "pwd=", "token=", "secret=", "auth="];
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    loop {
        let next = NAMES.iter().filter_map(|name| lower[from..].find(name).map(|at| from + at + name.len())).min();
        let Some(value) = next else { break };
        out.push_str(&text[from..value]);
        let ends = |c: char| matches!(c, '&' | '/' | '?' | '#' | ';' | '"' | '\'') || c.is_whitespace();
        let end = text[value..].find(ends).map_or(text.len(), |at| value + at);
        if end > value {
            out.push_str(HIDDEN);
        }
        from = end;
    }
    out.push_str(&text[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_and_decoded() {
        let source = SourceUrl::parse("rtsp://ad%6Din:s%40fe%2F1@192.0.2.10:8554/stream1?x=1").unwrap();
        assert_eq!(source.url().as_str(), "rtsp://192.0.2.10:8554/stream1?x=1");
        let credentials = source.credentials().unwrap();
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("admin", "s@fe/1"));
        assert_eq!(source.to_string(), "rtsp://admin:***@192.0.2.10:8554/stream1?x=1");
        assert!(!format!("{source:?} {credentials:?}").contains("s@fe"));
        assert!(SourceUrl::parse("rtsp://[::1]/a").unwrap().credentials().is_none());
    }

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
            "see 'rtsp://a:hunter2@b/' and rtsp://c:hunter2@d/.",
        ];
        for text in secrets {
            assert!(!redact(text).contains("hunter2"), "redact({text:?}) is {:?}", redact(text));
            match SourceUrl::parse(text) {
                Ok(source) => {
                    let shown = format!("{source} {source:?}");
                    assert!(!shown.contains("hunter2"), "{text:?} is shown as {shown:?}");
                }
                Err(why) => assert!(!why.contains("hunter2"), "{text:?} is refused with {why:?}"),
            }
        }
        assert_eq!(redact("no URL here: a@b"), "no URL here: a@b");
    }

    #[test]
    fn a_bad_url_is_refused_with_a_cure() {
        for (text, part) in [
            ("192.0.2.10/stream1", "rtsp://HOST/PATH"),
            ("rtsp:///stream1", "host"),
            ("rtsps://h/", "not built yet"),
            ("http://h/", "begin with rtsp://"),
            ("rtsp://h/a#b", "%23"),
            ("rtsp://h:0/a", "554"),
            (" rtsp://h/a", "spaces"),
            ("rtsp://u:p:q/a", "percent-encode"),
        ] {
            let why = SourceUrl::parse(text).expect_err(text);
            assert!(why.contains(part), "{text:?}: {why}");
        }
    }
}
