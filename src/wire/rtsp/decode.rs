//! From bytes in any pieces to messages.

use bytes::{Buf, Bytes, BytesMut};

use super::{Message, Request};
use crate::limits::{INTERLEAVED_HEADER_BYTES, REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX, REQUEST_HEADERS_MAX};
use crate::wire::interleaved;

/// The methods of RFC 2326. Whatever else begins a line that is no RTSP is of another protocol.
const METHODS: [&str; 11] = [
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

/// What is wrong with a connection's bytes. After any of them the next message cannot be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// The first byte of a TLS record.
    #[error("the client speaks TLS, which this port does not; use rtsp:// here, or a port of listen_tls for rtsps://")]
    Tls,
    /// A line of HTTP.
    #[error(
        "the client speaks HTTP; point it at the http address, or use RTSP over TCP or UDP instead of the HTTP tunnel"
    )]
    Http,
    /// Something else.
    #[error("the bytes are not RTSP")]
    NotRtsp,
    /// A request line without a URL or a version.
    #[error("a request line without URL or version")]
    RequestLine,
    /// A header line without a colon or with an impossible name.
    #[error("a header line without a name and a colon")]
    HeaderLine,
    /// A control character within a line.
    #[error("a control character within a line")]
    Control,
    /// A `Content-Length` that is no number, or two that differ.
    #[error("a Content-Length that is no single number")]
    ContentLength,
    /// The header block passes [`REQUEST_HEADER_BYTES_MAX`].
    #[error("a header block of more than {REQUEST_HEADER_BYTES_MAX} bytes")]
    HeaderTooLarge,
    /// More header lines than [`REQUEST_HEADERS_MAX`].
    #[error("more than {REQUEST_HEADERS_MAX} header lines")]
    TooManyHeaders,
    /// The body passes [`REQUEST_BODY_BYTES_MAX`].
    #[error("a body of more than {REQUEST_BODY_BYTES_MAX} bytes")]
    BodyTooLarge,
}

impl Fault {
    /// Whether these bytes are of another protocol, so that an answer would not be understood.
    pub fn is_foreign(self) -> bool {
        matches!(self, Fault::Tls | Fault::Http | Fault::NotRtsp)
    }

    /// Whether a limit is passed.
    pub fn is_too_large(self) -> bool {
        matches!(self, Fault::HeaderTooLarge | Fault::TooManyHeaders | Fault::BodyTooLarge)
    }
}

/// Bytes that cannot be a message however they go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset} of the connection: {fault}")]
pub struct Invalid {
    /// Where, counted from the connection's first byte.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
    /// The request's `CSeq`, if it could be read.
    pub cseq: Option<String>,
}

/// Cuts a connection's bytes into messages. Needs at most one message's bytes of memory, and none when there is no part
/// of one.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    /// Bytes consumed before `buf`.
    consumed: u64,
    /// Bytes of `buf` that are known not to end the header block.
    scanned: usize,
    /// Where the line that `scanned` is in begins.
    line: usize,
    /// Bytes of the message in `buf` whose header block is known to be whole: header block and body.
    whole: Option<(usize, usize)>,
    failed: Option<Invalid>,
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes further bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// Bytes fed that no message was made of yet.
    pub fn pending(&self) -> usize {
        self.buf.len()
    }

    /// Bytes fed and made messages of, since the connection's beginning.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Takes out all bytes that no message was made of yet.
    pub fn take_unread(&mut self) -> BytesMut {
        self.consumed += self.buf.len() as u64;
        self.restart();
        std::mem::take(&mut self.buf)
    }

    /// The next message; `None` if its bytes are not all there yet.
    ///
    /// # Errors
    /// [`Invalid`] if the bytes cannot become a message; the same again at every further call.
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

    /// Bytes of memory kept for the part of a message.
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
        // Whole lines up to where the scan is, so that the pieces in which the bytes come make no difference.
        let seen = &self.buf[..self.line];
        let cseq = if fault.is_foreign() { None } else { find_cseq(seen) };
        Invalid { offset: self.consumed + at as u64, fault, cseq }
    }

    fn advance(&mut self) -> Result<Option<Message>, Invalid> {
        if self.scanned == 0 {
            // Empty lines before a message are passed over (RFC 2326 section 4.1 with RFC 2068 section 4.1).
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

    /// Looks for the empty line after the header block, judging lines on the way. Returns the block's bytes with that
    /// line.
    fn scan(&mut self) -> Result<Option<usize>, Invalid> {
        if self.scanned == 0 && !is_token(self.buf[0]) {
            let fault = if self.buf[0] == 0x16 { Fault::Tls } else { Fault::NotRtsp };
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
                // Nothing but text was seen so far if this is a later line.
                let fault = if self.line == 0 { Fault::NotRtsp } else { Fault::Control };
                return Err(self.invalid(at, fault));
            }
        }
        Ok(None)
    }

    /// Bytes of the body behind a header block of `head` bytes.
    fn body_len(&self, head: usize) -> Result<usize, Invalid> {
        let mut found: Option<usize> = None;
        let mut is_length = false;
        for (at, line) in lines(&self.buf[..head]) {
            let value = value_of(line, "content-length");
            if matches!(line.first(), Some(b' ' | b'\t')) {
                // A folded line is of the value before it. A length that only some readers see hides a request from the others.
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
            // A number too large for its type is certainly too large a body.
            let len = value.parse().unwrap_or(usize::MAX);
            if len > REQUEST_BODY_BYTES_MAX {
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

/// The lines of a block with their offsets, without their ends.
fn lines(block: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    block.split_inclusive(|&byte| byte == b'\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, without_cr(line.strip_suffix(b"\n").unwrap_or(line)))
    })
}

/// The value in a header line of that name.
fn value_of<'a>(line: &'a [u8], name: &str) -> Option<&'a str> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let (have, value) = line.split_at(colon);
    have.trim_ascii()
        .eq_ignore_ascii_case(name.as_bytes())
        .then(|| std::str::from_utf8(&value[1..]).ok().map(str::trim))
        .flatten()
}

/// The `CSeq` of a block that need not be whole or right.
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

/// Parses a whole header block whose first line has been judged.
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
            // A folded line goes on with the value before it (RFC 2326 section 15.1, LWS).
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
    /// The `CSeq`, if it is there and a number (RFC 2326 section 12.17), as spelled.
    pub fn cseq(&self) -> Option<&str> {
        self.header("CSeq").filter(|value| is_cseq(value))
    }
}
