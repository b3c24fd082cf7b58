//! Decodes messages from bytes in pieces of any size.

use bytes::{Buf, Bytes, BytesMut};

use super::{Message, Request};
use crate::limits::{INTERLEAVED_HEADER_BYTES, REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX, REQUEST_HEADERS_MAX};
use crate::wire::interleaved;

/// The methods of RFC 2326. If a line that is not RTSP starts with anything else, it is another protocol.
pub const METHODS: [&str; 11] = [
    "OPTIONS",
    "DESCRIBE",
    "ANNOUNCE",
    "SETUP",
    "PLAY",
    "PAUSE",
    "TEARDOWN",
    "GET_PARAMETER",
    "SET_PARAMETER",
    "REDIRECT",
    "RECORD",
];

/// The empty lines with which a PROXY protocol header starts.
const PROXY_EMPTY_LINES_BYTES: u64 = 4;

/// Why a connection's bytes are invalid. After any of these errors the next message cannot be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The first byte of a TLS record.
    #[error(
        "the client uses TLS, which this port does not support; use rtsp:// here, or a listen_tls port for rtsps://"
    )]
    Tls,
    /// A line of HTTP.
    #[error(
        "the client speaks HTTP; point it at the http address, or use RTSP over TCP or UDP instead of the HTTP tunnel"
    )]
    Http,
    /// Two empty lines and a zero, which only a PROXY protocol header starts with.
    #[error(
        "sends a PROXY protocol header, and its address is not in proxy_protocol_from; add it if it is a balancer of yours"
    )]
    ProxyProtocol,
    /// Something else.
    #[error("the bytes are not RTSP")]
    NotRtsp,
    /// A request line without a URL or a version.
    #[error("a request line without URL or version")]
    RequestLine,
    /// A header line without a colon, or with an invalid name.
    #[error("a header line without a name and a colon")]
    HeaderLine,
    /// A control character within a line.
    #[error("a control character within a line")]
    Control,
    /// A `Content-Length` that is not a number, or two that differ.
    #[error("a Content-Length that is not a single number")]
    ContentLength,
    /// The header block exceeds [`REQUEST_HEADER_BYTES_MAX`].
    #[error("a header block of more than {REQUEST_HEADER_BYTES_MAX} bytes")]
    HeaderTooLarge,
    /// More header lines than [`REQUEST_HEADERS_MAX`].
    #[error("more than {REQUEST_HEADERS_MAX} header lines")]
    TooManyHeaders,
    /// The body exceeds [`REQUEST_BODY_BYTES_MAX`], or the limit for unauthenticated clients.
    #[error("a body that is too large")]
    BodyTooLarge,
}

impl Fault {
    /// Whether the bytes belong to another protocol, so that an RTSP answer would not be understood.
    pub fn is_foreign(self) -> bool {
        matches!(self, Fault::Tls | Fault::Http | Fault::ProxyProtocol | Fault::NotRtsp)
    }

    /// Whether a limit was exceeded.
    pub fn is_too_large(self) -> bool {
        matches!(self, Fault::HeaderTooLarge | Fault::TooManyHeaders | Fault::BodyTooLarge)
    }
}

/// Bytes that can never become a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset} of the connection: {fault}")]
pub struct Invalid {
    /// Offset from the connection's first byte.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
    /// The request's `CSeq`, if it could be read.
    pub cseq: Option<String>,
}

/// Splits a connection's bytes into messages. Needs at most the memory of one message, and none when no partial message is pending.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    /// Bytes consumed before `buf`.
    consumed: u64,
    /// Number of bytes of `buf` that are known not to end the header block.
    scanned: usize,
    /// Start of the line that `scanned` is in.
    line: usize,
    /// Size of the message in `buf` (header block and body), once its header block is complete.
    whole: Option<(usize, usize)>,
    failed: Option<Invalid>,
    /// Maximum size of a body in bytes.
    body_max: BodyMax,
}

/// [`REQUEST_BODY_BYTES_MAX`] by default.
#[derive(Debug)]
struct BodyMax(u32);

impl Default for BodyMax {
    fn default() -> Self {
        BodyMax(REQUEST_BODY_BYTES_MAX as u32)
    }
}

impl Decoder {
    /// A decoder for the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum size of bodies from now on; at most [`REQUEST_BODY_BYTES_MAX`].
    pub fn set_body_max(&mut self, bytes: usize) {
        self.body_max = BodyMax(bytes.min(REQUEST_BODY_BYTES_MAX) as u32);
    }

    /// Bytes of memory that it uses.
    pub fn held(&self) -> usize {
        self.buf.capacity()
    }

    /// Takes further bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Bytes fed that are not part of a returned message yet.
    pub fn pending(&self) -> usize {
        self.buf.len()
    }

    /// Bytes fed that were part of returned messages, since the start of the connection.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The bytes that are not part of a returned message yet.
    pub fn unread(&self) -> &[u8] {
        &self.buf
    }

    /// Takes all bytes that are not part of a returned message yet.
    pub fn take_unread(&mut self) -> BytesMut {
        self.consumed += self.buf.len() as u64;
        self.restart();
        std::mem::take(&mut self.buf)
    }

    /// The next message; `None` if it is incomplete.
    ///
    /// # Errors
    /// [`Invalid`] if the bytes cannot become a message. Every further call returns the same error.
    pub fn next_message(&mut self) -> Result<Option<Message>, Invalid> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let result = self.advance();
        if let Err(invalid) = &result {
            self.failed = Some(invalid.clone());
        }
        if self.buf.is_empty() {
            // Thousands of idle clients must not keep a buffer each.
            self.buf = BytesMut::new();
        }
        result
    }

    fn restart(&mut self) {
        (self.scanned, self.line, self.whole) = (0, 0, None);
    }

    /// Bytes of memory kept for a partial message.
    #[cfg(test)]
    pub(super) fn buf_capacity(&self) -> usize {
        self.buf.capacity()
    }

    fn consume(&mut self, bytes: usize) -> Bytes {
        self.restart();
        self.consumed += bytes as u64;
        self.buf.split_to(bytes).freeze()
    }

    fn invalid(&self, at: usize, fault: Fault) -> Invalid {
        // Checks whole lines up to the scan position, so that the result does not depend on how the bytes are split.
        let seen = &self.buf[..self.line];
        let cseq = if fault.is_foreign() { None } else { find_cseq(seen) };
        Invalid { offset: self.consumed + at as u64, fault, cseq }
    }

    fn advance(&mut self) -> Result<Option<Message>, Invalid> {
        if self.scanned == 0 {
            // Empty lines before a message are skipped (RFC 2326 section 4.1 with RFC 2068 section 4.1).
            let empty = self.buf.iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count();
            self.buf.advance(empty);
            self.consumed += empty as u64;
        }
        match self.buf.first() {
            None => Ok(None),
            Some(&interleaved::MAGIC) => Ok(self.frame()),
            Some(_) => self.message(),
        }
    }

    fn frame(&mut self) -> Option<Message> {
        let (channel, len) = interleaved::parse(&self.buf)?;
        if self.buf.len() < INTERLEAVED_HEADER_BYTES + len {
            return None;
        }
        let packet = self.consume(INTERLEAVED_HEADER_BYTES + len).slice(INTERLEAVED_HEADER_BYTES..);
        Some(Message::Frame { channel, packet })
    }

    fn message(&mut self) -> Result<Option<Message>, Invalid> {
        let (head, body) = match self.whole {
            Some(whole) => whole,
            None => {
                let Some(head) = self.scan()? else { return Ok(None) };
                let body = self.body_len(head)?;
                *self.whole.insert((head, body))
            }
        };
        if self.buf.len() < head + body {
            return Ok(None);
        }
        let block = &self.buf[..head];
        if block.starts_with(b"RTSP/") {
            self.consume(head + body);
            return Ok(Some(Message::Response));
        }
        let mut request = parse_head(block).map_err(|(at, fault)| self.invalid(at, fault))?;
        request.raw = self.consume(head + body);
        request.body = request.raw.slice(head..);
        Ok(Some(Message::Request(request)))
    }

    /// Looks for the empty line after the header block, checking lines on the way. Returns the size of the block including that line.
    fn scan(&mut self) -> Result<Option<usize>, Invalid> {
        if self.scanned == 0 && !is_token(self.buf[0]) {
            let fault = match self.buf[0] {
                0x16 => Fault::Tls,
                // Depends only on the position, so that the error is the same however the bytes are split.
                0 if self.consumed == PROXY_EMPTY_LINES_BYTES => Fault::ProxyProtocol,
                _ => Fault::NotRtsp,
            };
            return Err(self.invalid(0, fault));
        }
        while let Some(&byte) = self.buf.get(self.scanned) {
            let at = self.scanned;
            if at >= REQUEST_HEADER_BYTES_MAX {
                return Err(self.invalid(at, Fault::HeaderTooLarge));
            }
            self.scanned += 1;
            if byte == b'\n' {
                let line = without_cr(&self.buf[self.line..at]);
                if line.is_empty() {
                    return Ok(Some(self.scanned));
                }
                if self.line == 0 {
                    judge_first_line(line).map_err(|fault| self.invalid(0, fault))?;
                }
                self.line = self.scanned;
                continue;
            }
            let lone_cr = at > self.line && self.buf[at - 1] == b'\r';
            if lone_cr || (byte.is_ascii_control() && byte != b'\t' && byte != b'\r') {
                // If this is a later line, everything so far was text.
                let fault = if self.line == 0 { Fault::NotRtsp } else { Fault::Control };
                return Err(self.invalid(at, fault));
            }
        }
        Ok(None)
    }

    /// Size of the body after a header block of `head` bytes.
    fn body_len(&self, head: usize) -> Result<usize, Invalid> {
        let mut found: Option<usize> = None;
        let mut is_length = false;
        for (at, line) in lines(&self.buf[..head]) {
            let value = value_of(line, "content-length");
            if matches!(line.first(), Some(b' ' | b'\t')) {
                // A folded line belongs to the previous value. A length that only some parsers see could hide a request from others.
                if is_length || value.is_some() {
                    return Err(self.invalid(at, Fault::ContentLength));
                }
                continue;
            }
            is_length = value.is_some();
            let Some(value) = value else { continue };
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if !digits {
                return Err(self.invalid(at, Fault::ContentLength));
            }
            // A number too large for its type is certainly too large for a body.
            let len = value.parse().unwrap_or(usize::MAX);
            if len > self.body_max.0 as usize {
                return Err(self.invalid(at, Fault::BodyTooLarge));
            }
            if found.is_some_and(|before| before != len) {
                return Err(self.invalid(at, Fault::ContentLength));
            }
            found = Some(len);
        }
        Ok(found.unwrap_or(0))
    }
}

/// The characters of a token (RFC 2326 section 15.1).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte)
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The lines of a block with their offsets, without line ends.
pub(super) fn lines(block: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    block.split_inclusive(|&byte| byte == b'\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, without_cr(line.strip_suffix(b"\n").unwrap_or(line)))
    })
}

/// The value in a header line with that name.
fn value_of<'a>(line: &'a [u8], name: &str) -> Option<&'a str> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let (have, value) = line.split_at(colon);
    have.trim_ascii()
        .eq_ignore_ascii_case(name.as_bytes())
        .then(|| std::str::from_utf8(&value[1..]).ok().map(str::trim))
        .flatten()
}

/// The `CSeq` of a block that may be incomplete or invalid.
fn find_cseq(block: &[u8]) -> Option<String> {
    let value = lines(block).find_map(|(_, line)| value_of(line, "cseq"))?;
    is_cseq(value).then(|| value.to_owned())
}

/// Whether a value may be echoed as `CSeq`.
fn is_cseq(value: &str) -> bool {
    (1..=20).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit())
}

fn judge_first_line(line: &[u8]) -> Result<(), Fault> {
    if line.starts_with(b"RTSP/") {
        return Ok(());
    }
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let method = words.next().unwrap_or_default();
    let version = words.next_back().unwrap_or_default();
    if version.starts_with(b"RTSP/") && method.iter().copied().all(is_token) {
        return if words.next().is_some() { Ok(()) } else { Err(Fault::RequestLine) };
    }
    if version.starts_with(b"HTTP/") || line.starts_with(b"HTTP/") {
        return Err(Fault::Http);
    }
    let known = METHODS.iter().any(|known| known.as_bytes() == method);
    Err(if known { Fault::RequestLine } else { Fault::NotRtsp })
}

/// Parses a complete header block whose first line has been checked.
fn parse_head(block: &[u8]) -> Result<Request, (usize, Fault)> {
    let mut rest = lines(block);
    let (_, first) = rest.next().ok_or((0, Fault::RequestLine))?;
    let first = String::from_utf8_lossy(first);
    let (method, first) = first.trim().split_once([' ', '\t']).ok_or((0, Fault::RequestLine))?;
    let (url, version) = first.trim().rsplit_once([' ', '\t']).ok_or((0, Fault::RequestLine))?;
    let mut headers: Vec<(String, String)> = Vec::new();
    for (at, line) in rest {
        if line.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(line);
        if line[0] == b' ' || line[0] == b'\t' {
            // A folded line continues the previous value (RFC 2326 section 15.1, LWS).
            let (_, value) = headers.last_mut().ok_or((at, Fault::HeaderLine))?;
            let more = text.trim();
            if !value.is_empty() && !more.is_empty() {
                value.push(' ');
            }
            value.push_str(more);
            continue;
        }
        let (name, value) = text.split_once(':').ok_or((at, Fault::HeaderLine))?;
        let name = name.trim_end();
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err((at, Fault::HeaderLine));
        }
        if headers.len() == REQUEST_HEADERS_MAX {
            return Err((at, Fault::TooManyHeaders));
        }
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Request {
        method: method.to_owned(),
        url: url.trim().to_owned(),
        version_1_0: version == "RTSP/1.0",
        headers,
        body: Bytes::new(),
        raw: Bytes::new(),
    })
}

impl Request {
    /// The `CSeq` as spelled, if it is present and a number (RFC 2326 section 12.17).
    pub fn cseq(&self) -> Option<&str> {
        self.header("CSeq").filter(|value| is_cseq(value))
    }
}
