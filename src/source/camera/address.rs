//! The address of a camera, with the password kept apart from everything that may be printed.

use std::fmt;

use thiserror::Error;
use url::Url;

use super::fault::Fault;
use crate::wire::rtsp::{PORT, SECURE_PORT};

/// The placeholder in the path of a pattern's source for the part of the name that `*` matched.
pub const NAME: &str = "{name}";

/// The same as encoded in a URL's path.
const NAME_ENCODED: &str = "%7Bname%7D";

/// Why the URL of a camera is invalid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not a URL.
    #[error("not a URL ({0}); write rtsp://HOST[:PORT]/PATH, with % codes for special characters in a password")]
    Malformed(url::ParseError),
    /// A scheme other than `rtsp` and `rtsps`.
    #[error("the scheme `{0}` is not supported; use rtsp:// or rtsps://")]
    Scheme(String),
    /// No host.
    #[error("no host; write rtsp://HOST[:PORT]/PATH")]
    NoHost,
    /// A user name or password whose decoded % codes are not UTF-8.
    #[error("the user name or the password is not UTF-8 after its % codes are decoded")]
    NotUtf8,
}

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// The URL of a camera without credentials, and the credentials.
///
/// [`fmt::Display`] and [`fmt::Debug`] print no user name, no password, and no values in the query, because many cameras expect a
/// password there.
#[derive(Clone, PartialEq, Eq)]
pub struct CameraAddress {
    url: Url,
    /// The interface of a link-local IPv6 address (RFC 6874). It is local to this machine and not sent to the camera.
    zone: Option<String>,
    credentials: Option<Credentials>,
}

impl CameraAddress {
    /// Parses a URL: `rtsp://[USER[:PASSWORD]@]HOST[:PORT][/PATH]`, port 554 by default.
    ///
    /// A link-local IPv6 address includes its interface: `rtsp://[fe80::1%25eth0]/`, or with a plain `%`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (text, zone) = without_zone(text.trim());
        let mut url = Url::parse(&text).map_err(AddressError::Malformed)?;
        if !matches!(url.scheme(), "rtsp" | "rtsps") {
            return Err(AddressError::Scheme(url.scheme().to_owned()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(AddressError::NoHost);
        }
        let credentials = if url.username().is_empty() && url.password().is_none() {
            None
        } else {
            Some(Credentials {
                username: percent_decode(url.username())?,
                password: percent_decode(url.password().unwrap_or_default())?,
            })
        };
        // Both fail only for URLs without a host.
        url.set_username("").map_err(|()| AddressError::NoHost)?;
        url.set_password(None).map_err(|()| AddressError::NoHost)?;
        Ok(CameraAddress { url, zone, credentials })
    }

    /// Whether its path has the placeholder for a stream's name ([`NAME`]).
    pub fn takes_name(&self) -> bool {
        self.url.path().contains(NAME_ENCODED)
    }

    /// The same address with `part` of a stream's name in place of [`NAME`]. Names need no encoding (`media::name`), and the host never
    /// changes.
    pub fn named(&self, part: &str) -> CameraAddress {
        let mut named = self.clone();
        named.url.set_path(&self.url.path().replace(NAME_ENCODED, part));
        named
    }

    /// The URL without credentials, to be sent to the camera. Do not print it.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the connection to the camera uses TLS.
    pub fn is_secure(&self) -> bool {
        self.url.scheme() == "rtsps"
    }

    /// The host to connect to (without brackets), the zone, and the port.
    pub(super) fn target(&self) -> (&str, Option<&str>, u16) {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.url.port().unwrap_or(if self.is_secure() { SECURE_PORT } else { PORT });
        (host, self.zone.as_deref(), port)
    }

    /// The address that a camera's redirect leads to. Another host gets no credentials.
    ///
    /// # Errors
    /// The redirect is not an RTSP URL, or leads from TLS to plain RTSP.
    pub(super) fn redirected(&self, location: &str) -> Result<CameraAddress, Fault> {
        let shown = || {
            let shown: String = Path(&self.redact(location)).to_string().chars().take(200).collect();
            shown.escape_debug().to_string()
        };
        let not_followed = |why: &str| Fault::Redirect(format!("\"{}\", which {why}", shown()));
        let (location, zone) = without_zone(location.trim());
        let joined = self.url.join(&location).map_err(|_| not_followed("is no URL"))?;
        let mut to = CameraAddress::parse(joined.as_str()).map_err(|_| not_followed("is no URL of RTSP"))?;
        if self.is_secure() && !to.is_secure() {
            return Err(not_followed("is not encrypted; the relay does not follow redirects from TLS to plain RTSP"));
        }
        let host = |url: &Url| url.host_str().unwrap_or_default().to_ascii_lowercase();
        let same_host = host(&to.url) == host(&self.url);
        to.credentials = self.credentials.clone().filter(|_| same_host);
        to.zone = zone.or(self.zone.clone().filter(|_| same_host));
        Ok(to)
    }

    /// The credentials. Do not print them.
    pub(super) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Whether the URL has a user name or a password.
    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// `text` with all secrets of this address removed.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.replace(self.url.as_str(), &self.to_string());
        let (path, shown) = (self.url.path(), Path(self.url.path()).to_string());
        if path != shown {
            // Also with another host before it, because a camera may write it so.
            text = text.replace(path, &shown);
        }
        for secret in self.secrets() {
            text = text.replace(secret, "…");
        }
        text
    }

    /// The strings that must not be printed. Very short ones are omitted: removing every `a` from a text would not help.
    fn secrets(&self) -> impl Iterator<Item = &str> {
        let password = self.credentials.as_ref().map(|credentials| credentials.password.as_str());
        password.into_iter().chain(self.url.query()).filter(|secret| secret.len() >= 4)
    }
}

impl fmt::Display for CameraAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.scheme();
        match (self.url.host_str().unwrap_or_default(), &self.zone) {
            (host, None) => write!(f, "{scheme}://{host}")?,
            (host, Some(zone)) => write!(f, "{scheme}://{}%25{zone}]", host.trim_end_matches(']'))?,
        }
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

/// A URL's path as printed, without passwords: some cameras expect them there (`/user=admin&password=secret&channel=1.sdp`).
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

/// A URL without the zone of the IPv6 address in its host, and the zone.
pub(crate) fn without_zone(text: &str) -> (String, Option<String>) {
    let zone = || {
        let authority = text.split_once("://")?.1.split(['/', '?']).next()?;
        let open = authority.rfind('[')?;
        let host = authority[open..].split(']').next()?;
        let (_, zone) = host.split_once('%')?;
        let zone = zone.strip_prefix("25").filter(|rest| !rest.is_empty()).unwrap_or(zone);
        Some((format!("%{}", host.split_once('%')?.1), zone.to_owned()))
    };
    match zone() {
        Some((spelled, zone)) => (text.replacen(&format!("{spelled}]"), "]", 1), Some(zone)),
        None => (text.to_owned(), None),
    }
}

/// Decodes % codes (RFC 3986 section 2.1); a % that starts no valid code stays.
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
    fn a_name_goes_into_the_path_alone() {
        let address = parse("rtsp://{name}:{name}@origin/{name}/x/{name}?q={name}");
        assert!(address.takes_name());
        let named = address.named("live/cam1");
        assert_eq!(named.url().as_str(), "rtsp://origin/live/cam1/x/live/cam1?q={name}");
        assert_eq!(named.credentials().map(|it| it.username.as_str()), Some("{name}"));
        assert!(!parse("rtsp://origin/x").takes_name());
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
            for text in [address.to_string(), format!("{address:?}"), address.redact(&format!("bad {}", address.url()))]
            {
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
    fn a_zone_says_where_to_connect_and_is_not_sent() {
        for url in ["rtsp://u:p@[fe80::1%25eth0]:8554/x", "rtsp://u:p@[fe80::1%eth0]:8554/x"] {
            let address = parse(url);
            assert_eq!(address.url().as_str(), "rtsp://[fe80::1]:8554/x");
            assert_eq!(address.target(), ("fe80::1", Some("eth0"), 8554));
            assert_eq!(address.to_string(), "rtsp://[fe80::1%25eth0]:8554/x");
        }
        assert_eq!(parse("rtsps://cam/a%25b").target(), ("cam", None, SECURE_PORT));
    }

    #[test]
    fn redirects_are_followed_without_giving_anything_away() {
        let address = parse("rtsp://u:secret@cam/x");
        let to = |location: &str| address.redirected(location).map(|to| (to.to_string(), to.has_credentials()));
        assert_eq!(to("rtsp://cam:8554/y"), Ok(("rtsp://cam:8554/y".to_owned(), true)));
        assert_eq!(to("rtsps://cam/y"), Ok(("rtsps://cam/y".to_owned(), true)));
        assert_eq!(to("/z"), Ok(("rtsp://cam/z".to_owned(), true)));
        assert_eq!(to("rtsp://a:b@other/y"), Ok(("rtsp://other/y".to_owned(), false)));
        assert!(matches!(to("http://cam/y"), Err(Fault::Redirect(_))));
        let secure = parse("rtsps://u:secret@cam/x");
        assert!(matches!(secure.redirected("rtsp://cam/x"), Err(Fault::Redirect(why)) if why.contains("TLS")));
        assert!(secure.redirected("rtsps://cam/other").is_ok());
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
