//! What to play: an address, with the login kept apart from all that may be printed.

use std::fmt;

use percent_encoding::percent_decode_str;
use retina::client::Credentials;
use rtsprelay::source::camera::address::{AddressError, CameraAddress};
use url::Url;

/// Why an address cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// It needs TLS.
    #[error("the viewer does not support TLS; use an rtsp:// URL with a port of `listen`")]
    Tls,
    /// It has no host.
    #[error("no host in the address")]
    NoHost,
    /// The relay would reject it as a camera's address, too.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It is not a URL.
    #[error(transparent)]
    Url(#[from] url::ParseError),
}

/// A stream's address.
#[derive(Clone)]
pub struct Target {
    url: Url,
    credentials: Option<Credentials>,
    /// What may be printed.
    shown: String,
}

impl Target {
    /// Reads `HOST:PORT[/NAME]` or `rtsp://[USER:PASSWORD@]HOST[:PORT][/NAME]`; `login` goes before one in the URL.
    pub fn parse(text: &str, login: Option<(String, String)>) -> Result<Self, BadTarget> {
        let text = text.trim();
        let full = if text.contains("://") { text.to_owned() } else { format!("rtsp://{text}") };
        if full.to_ascii_lowercase().starts_with("rtsps://") {
            return Err(BadTarget::Tls);
        }
        let shown = CameraAddress::parse(&full)?.to_string();
        let mut url = Url::parse(&full)?;
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let own =
            (!url.username().is_empty()).then(|| (decode(url.username()), decode(url.password().unwrap_or_default())));
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        cleared.map_err(|()| BadTarget::NoHost)?;
        let credentials = login.or(own).map(|(username, password)| Credentials { username, password });
        Ok(Target { url, credentials, shown })
    }

    /// The address without login.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The login.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// `text` without what must not be printed.
    pub fn redact(&self, text: &str) -> String {
        let mut text = text.replace(self.url.as_str(), &self.shown);
        if let Some(credentials) = self.credentials.as_ref().filter(|it| it.password.len() >= 4) {
            text = text.replace(&credentials.password, "…");
        }
        text
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_port_are_enough() {
        let target = Target::parse("127.0.0.1:8554/front", None).expect("sound");
        assert_eq!(target.url().as_str(), "rtsp://127.0.0.1:8554/front");
        assert_eq!(target.to_string(), "rtsp://127.0.0.1:8554/front");
        assert!(Target::parse("http://x/", None).is_err());
        assert!(Target::parse("rtsps://x/", None).is_err_and(|why| why.to_string().contains("TLS")));
        assert!(Target::parse("", None).is_err());
    }

    #[test]
    fn a_login_is_kept_apart() {
        let target = Target::parse("rtsp://u:p%40ssw@[::1]/x", None).expect("sound");
        let credentials = target.credentials().expect("a login");
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u", "p@ssw"));
        assert_eq!(target.to_string(), "rtsp://[::1]/x");
        let target = Target::parse("u:p@h/x", Some(("a".to_owned(), "b".to_owned()))).expect("sound");
        assert_eq!(target.credentials().map(|it| it.username.as_str()), Some("a"));
    }
}
