//! RTSP messages as far as the benchmark needs them (RFC 2326). Deliberately separate from the relay's own parser, so that the check
//! shares no code with what it checks.

/// Maximum size of a message; a peer that sends a longer one is not speaking RTSP.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Why bytes are not an RTSP message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The header block does not end within the maximum size.
    #[error("a header block without end")]
    Endless,
    /// The header block is not UTF-8.
    #[error("a header block that is not text")]
    NotText,
    /// A header line has no colon.
    #[error("a header line without colon: {0:?}")]
    HeaderLine(String),
    /// The body's length is not a number.
    #[error("Content-Length: {0}")]
    ContentLength(String),
    /// The body is too large.
    #[error("a body of {0} bytes")]
    BodyTooLarge(usize),
}

/// Why a URL cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme.
    #[error("{0:?} does not begin with rtsp://, rtsps:// or ws://")]
    Scheme(String),
    /// No host.
    #[error("{0:?} has no host")]
    NoHost(String),
}

impl From<Malformed> for String {
    fn from(error: Malformed) -> String {
        error.to_string()
    }
}

impl From<BadUrl> for String {
    fn from(error: BadUrl) -> String {
        error.to_string()
    }
}

/// A request or a response.
#[derive(Debug, PartialEq)]
pub struct Message {
    /// The first line, without its end.
    pub start: String,
    /// The header fields in their order, values trimmed.
    pub headers: Vec<(String, String)>,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
}

impl Message {
    /// Parses the message at the start of `bytes`, and returns its size. `None`: it is incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, Malformed> {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return if bytes.len() > MESSAGE_BYTES_MAX { Err(Malformed::Endless) } else { Ok(None) };
        };
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed::NotText)?;
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap_or_default().to_string();
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| Malformed::HeaderLine(line.to_string()))?;
            headers.push((name.trim().to_string(), value.trim().to_string()));
        }
        let mut message = Message { start, headers, body: Vec::new() };
        let length = match message.header("Content-Length") {
            Some(text) => text.parse::<usize>().map_err(|_| Malformed::ContentLength(text.to_string()))?,
            None => 0,
        };
        if length > MESSAGE_BYTES_MAX {
            return Err(Malformed::BodyTooLarge(length));
        }
        let total = end + 4 + length;
        if bytes.len() < total {
            return Ok(None);
        }
        message.body = bytes[end + 4..total].to_vec();
        Ok(Some((message, total)))
    }

    /// The value of a header field, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The status code of a response.
    pub fn status(&self) -> Option<u16> {
        let mut words = self.start.split(' ');
        words.next().filter(|w| w.starts_with("RTSP/") || w.starts_with("HTTP/"))?;
        words.next()?.parse().ok()
    }

    /// Method and URL of a request.
    pub fn request(&self) -> Option<(&str, &str)> {
        let mut words = self.start.split(' ');
        let (method, url, version) = (words.next()?, words.next()?, words.next()?);
        version.starts_with("RTSP/").then_some((method, url))
    }
}

/// The parts of an `rtsp://`, `rtsps://` or `ws://` URL.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    /// Host and port, to connect to.
    pub host_port: String,
    /// The whole URL without credentials.
    pub bare: String,
    /// Whether it is an `rtsps://` one.
    pub tls: bool,
    /// User and password, if it has them.
    pub credentials: Option<(String, String)>,
}

impl Url {
    /// Parses a URL; the default port is 554, or 322 with TLS, or 80 for a WebSocket.
    pub fn parse(text: &str) -> Result<Url, BadUrl> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("rtsp" | "rtsps" | "ws"), rest)) => (scheme, rest),
            _ => return Err(BadUrl::Scheme(text.to_string())),
        };
        let tls = scheme == "rtsps";
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((user, host)) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                (Some((user.to_string(), password.to_string())), host)
            }
            None => (None, authority),
        };
        if host.is_empty() {
            return Err(BadUrl::NoHost(text.to_string()));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = match scheme {
            "ws" => 80,
            "rtsps" => 322,
            _ => 554,
        };
        let host_port = if has_port { host.to_string() } else { format!("{host}:{port}") };
        Ok(Url { host_port, bare: format!("{scheme}://{host}{path}"), tls, credentials })
    }
}

/// The path of a request's URL: no scheme, host, query, nor slashes around it.
pub fn path_of(url: &str) -> &str {
    let path = match url.strip_prefix("rtsp://") {
        Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
        None => url,
    };
    path.split('?').next().unwrap_or_default().trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_at_every_split() {
        let text = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\ncontent-length: 5\r\n\r\nhelloRTSP";
        for end in 0..text.len() - 4 {
            assert_eq!(Message::parse(&text[..end]).unwrap(), None, "at {end}");
        }
        let (message, used) = Message::parse(text).unwrap().unwrap();
        assert_eq!(used, text.len() - 4);
        assert_eq!(
            (message.status(), message.header("cseq"), &message.body[..]),
            (Some(200), Some("2"), &b"hello"[..])
        );
    }

    #[test]
    fn urls_come_apart() {
        let url = Url::parse("rtsp://me:pass@10.0.0.1:8554/front").unwrap();
        assert_eq!(url.host_port, "10.0.0.1:8554");
        assert_eq!(url.bare, "rtsp://10.0.0.1:8554/front");
        assert_eq!(url.credentials, Some(("me".into(), "pass".into())));
        assert_eq!(Url::parse("rtsp://cam").unwrap().host_port, "cam:554");
        let url = Url::parse("rtsps://cam/a").unwrap();
        assert_eq!((url.host_port.as_str(), url.bare.as_str(), url.tls), ("cam:322", "rtsps://cam/a", true));
        assert!(Url::parse("http://cam/").is_err());
        assert_eq!(path_of("rtsp://h:1/a/b/?x=1"), "a/b");
    }
}
