//! Where a camera is, with the password kept apart from everything that may be printed.

use std::fmt;

use thiserror::Error;
use url::Url;

/// What is wrong with the URL of a camera.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not a URL at all.
    #[error("not a URL ({0}); write rtsp://HOST[:PORT]/PATH, with % codes for special characters in a password")]
    Malformed(url::ParseError),
    /// Another scheme than `rtsp` and `rtsps`.
    #[error("the scheme `{0}` is not supported; use rtsp:// or rtsps://")]
    Scheme(String),
    /// No host.
    #[error("no host; write rtsp://HOST[:PORT]/PATH")]
    NoHost,
    /// User name or password with % codes that are not UTF-8.
    #[error("the user name or the password is not UTF-8 after its % codes are decoded")]
    NotUtf8,
}

/// The URL of a camera, without credentials, and the credentials.
///
/// [`fmt::Display`] and [`fmt::Debug`] print neither user name nor password, and no value of a query either: many cameras take
/// a password there.
#[derive(Clone, PartialEq, Eq)]
pub struct CameraAddress {
    url: Url,
    credentials: Option<retina::client::Credentials>,
}

impl CameraAddress {
    /// Takes a URL apart: `rtsp://[USER[:PASSWORD]@]HOST[:PORT][/PATH]`, port 554 if none is given.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let mut url = Url::parse(text.trim()).map_err(AddressError::Malformed)?;
        if !matches!(url.scheme(), "rtsp" | "rtsps") {
            return Err(AddressError::Scheme(url.scheme().to_owned()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(AddressError::NoHost);
        }
        let credentials = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            Some(retina::client::Credentials {
                username: percent_decode(url.username())?,
                password: percent_decode(url.password().unwrap_or_default())?,
            })
        };
        // Both fail only for URLs that have no host.
        url.set_username("").map_err(|()| AddressError::NoHost)?;
        url.set_password(None).map_err(|()| AddressError::NoHost)?;
        Ok(CameraAddress { url, credentials })
    }

    /// The URL without credentials, to be sent to the camera, not to be printed.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the camera is spoken to by TLS.
    pub fn is_secure(&self) -> bool {
        self.url.scheme() == "rtsps"
    }

    /// The URL without credentials, with a port of this machine's loopback in the place of the camera, in plain RTSP.
    pub(super) fn at_loopback(&self, port: u16) -> Url {
        let mut url = self.url.clone();
        // None of them fails for a URL that has a host.
        let _ = (url.set_scheme("rtsp"), url.set_host(Some("127.0.0.1")), url.set_port(Some(port)));
        url
    }

    /// The credentials, not to be printed.
    pub(super) fn credentials(&self) -> Option<&retina::client::Credentials> {
        self.credentials.as_ref()
    }

    /// Whether the URL has a user name or a password.
    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// `text` with everything of this address that is secret taken out.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.replace(self.url.as_str(), &self.to_string());
        let (path, shown) = (self.url.path(), Path(self.url.path()).to_string());
        if path != shown {
            // With another host before it, too: the library is told of one on loopback.
            text = text.replace(path, &shown);
        }
        for secret in self.secrets() {
            text = text.replace(secret, "…");
        }
        text
    }

    /// The strings that must not be printed. Short ones are left out: to take every `a` out of a text helps nobody.
    fn secrets(&self) -> impl Iterator<Item = &str> {
        let password = self.credentials.as_ref().map(|credentials| credentials.password.as_str());
        password.into_iter().chain(self.url.query()).filter(|secret| secret.len() >= 4)
    }
}

impl fmt::Display for CameraAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtsp://{}", self.url.host_str().unwrap_or_default())?;
        if let Some(port) = self.url.port() {
            write!(f, ":{port}")?;
        }
        write!(f, "{}", Path(self.url.path()))?;
        if self.url.query().is_some() {
            f.write_str("?…")?;
        }
        Ok(())
    }
}

/// A URL's path, printed without passwords: some cameras take them there (`/user=admin&password=secret&channel=1.sdp`).
struct Path<'a>(&'a str);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['&', '/', '_', ';']) {
            match part.split_once('=') {
                Some((key, value)) if key.to_ascii_lowercase().contains("pass") || key.eq_ignore_ascii_case("pwd") => {
                    write!(f, "{key}=…")?;
                    if value.ends_with(['&', '/', '_', ';']) {
                        f.write_str(&value[value.len() - 1..])?;
                    }
                }
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CameraAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CameraAddress({self})")
    }
}

/// Decodes % codes (RFC 3986 section 2.1); a % that begins none stays.
fn percent_decode(text: &str) -> Result<String, AddressError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, more)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| more.get(..2))
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = match code {
            Some(decoded) => {
                out.push(decoded);
                &more[2..]
            }
            None => {
                out.push(byte);
                more
            }
        };
    }
    String::from_utf8(out).map_err(|_| AddressError::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> CameraAddress {
        CameraAddress::parse(text).expect("a sound URL")
    }

    #[test]
    fn credentials_are_decoded_and_kept_apart() {
        let address = parse("rtsp://ad%6din:p%40ss%3Aw%25@[::1]:8554/a?b=c");
        let credentials = address.credentials().expect("credentials");
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("admin", "p@ss:w%"));
        assert_eq!(address.url().as_str(), "rtsp://[::1]:8554/a?b=c");
        assert_eq!(parse("rtsp://cam/x").credentials(), None);
        assert_eq!(parse("rtsp://u@cam/x").credentials().map(|it| it.password.as_str()), Some(""));
        assert_eq!(parse("rtsp://u:50%@cam/x").credentials().map(|it| it.password.as_str()), Some("50%"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        for url in [
            "rtsp://admin:hunter2@10.0.0.1/stream1",
            "rtsp://10.0.0.1:554/live?user=admin&password=hunter2",
            "rtsp://10.0.0.1/user=admin&password=hunter2&channel=1.sdp",
            "rtsp://10.0.0.1/user=admin_passwd=hunter2_channel=1.sdp",
            "rtsp://10.0.0.1/pwd=hunter2",
        ] {
            let address = parse(url);
            for text in [
                address.to_string(),
                format!("{address:?}"),
                address.redact(&format!("bad {}", address.url())),
                address.redact(&format!("bad {} 10.0.0.1", address.at_loopback(9))),
            ] {
                assert!(!text.contains("hunter2"), "{text}");
                assert!(text.contains("10.0.0.1"), "{text}");
            }
        }
        assert_eq!(parse("rtsp://a:b@cam:99/x/y").to_string(), "rtsp://cam:99/x/y");
        assert_eq!(
            parse("rtsp://cam/user=x&password=yy&channel=1").to_string(),
            "rtsp://cam/user=x&password=…&channel=1"
        );
    }

    #[test]
    fn texts_of_others_lose_the_password() {
        let address = parse("rtsp://admin:hunter2@cam/x");
        assert_eq!(address.redact("wrong: hunter2"), "wrong: …");
    }

    #[test]
    fn what_is_no_camera_is_refused_with_the_cure() {
        assert!(matches!(CameraAddress::parse("cam/stream"), Err(AddressError::Malformed(_))));
        assert_eq!(CameraAddress::parse("http://cam/"), Err(AddressError::Scheme("http".to_owned())));
        assert_eq!(CameraAddress::parse("rtsp://u:%ff@cam/"), Err(AddressError::NotUtf8));
        assert!(CameraAddress::parse("rtsp:///x").is_err());
    }
}
