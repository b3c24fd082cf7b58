//! RTSP 1.0 messages (RFC 2326), as a server reads and writes them.

mod decode;
mod scan;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use decode::{Decoder, Fault, Invalid, METHODS};
#[cfg(feature = "testing")]
pub use scan::fuzz as fuzz_scanner;
pub use scan::{Answer, Channel, NotRtsp, Piece, Scanner, ScannerState};

/// The port of an `rtsp://` URL without one (RFC 2326 section 3.2).
pub const PORT: u16 = 554;

/// The port of an `rtsps://` URL without one (RFC 7826 section 4.2).
pub const SECURE_PORT: u16 = 322;

/// The relay's name in `Server`.
pub const SERVER: &str = concat!("rtsprelay/", env!("CARGO_PKG_VERSION"));

/// One message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response; the relay sent no request. It is parsed and ignored.
    Response,
    /// An interleaved packet.
    Frame {
        /// Its channel.
        channel: u8,
        /// The packet.
        packet: Bytes,
    },
}

/// A request, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, as spelled; methods are case-sensitive (RFC 2326 section 10).
    pub method: String,
    /// The request's URL, or `*`.
    pub url: String,
    /// Whether its version is `RTSP/1.0`.
    pub version_1_0: bool,
    /// Names and values in order; folded lines are joined by one space, and surrounding white space is removed.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// The request as received, from the first byte of the method to the last of the body.
    pub raw: Bytes,
}

impl Request {
    /// The first value of a header; names are compared case-insensitively.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All values of a list header, joined by commas (RFC 2326 section 4.2); `None` if there are none.
    pub fn list(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self
            .headers
            .iter()
            .filter(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }
}

/// A status code (RFC 2326 section 7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(pub u16);

impl Status {
    /// All went well.
    pub const OK: Status = Status(200);
    /// The request is malformed.
    pub const BAD_REQUEST: Status = Status(400);
    /// Authentication is required.
    pub const UNAUTHORIZED: Status = Status(401);
    /// Not for this client.
    pub const FORBIDDEN: Status = Status(403);
    /// The body is not SDP.
    pub const UNSUPPORTED_MEDIA_TYPE: Status = Status(415);
    /// No such stream or track.
    pub const NOT_FOUND: Status = Status(404);
    /// Not allowed for this resource; `Allow` has the methods that are.
    pub const METHOD_NOT_ALLOWED: Status = Status(405);
    /// The client does not accept the only available format.
    pub const NOT_ACCEPTABLE: Status = Status(406);
    /// Over a limit.
    pub const TOO_LARGE: Status = Status(413);
    /// The requested parameter is not supported.
    pub const PARAMETER_NOT_UNDERSTOOD: Status = Status(451);
    /// The limit of clients is reached.
    pub const NOT_ENOUGH_BANDWIDTH: Status = Status(453);
    /// No such session, or it belongs to another client.
    pub const SESSION_NOT_FOUND: Status = Status(454);
    /// Not allowed in this state; `Allow` has the methods that are.
    pub const METHOD_NOT_VALID: Status = Status(455);
    /// The URL names all tracks where one is required, or something that is not in the session.
    pub const AGGREGATE_NOT_ALLOWED: Status = Status(459);
    /// The URL names one track where all are required.
    pub const ONLY_AGGREGATE: Status = Status(460);
    /// None of the requested transports is possible.
    pub const UNSUPPORTED_TRANSPORT: Status = Status(461);
    /// An unknown method.
    pub const NOT_IMPLEMENTED: Status = Status(501);
    /// The source has never been up.
    pub const UNAVAILABLE: Status = Status(503);
    /// Another version than 1.0.
    pub const VERSION_NOT_SUPPORTED: Status = Status(505);
    /// `Require` names something that the server does not support.
    pub const OPTION_NOT_SUPPORTED: Status = Status(551);

    /// The reason phrase.
    pub fn reason(self) -> &'static str {
        match self.0 {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            406 => "Not Acceptable",
            408 => "Request Time-out",
            413 => "Request Entity Too Large",
            415 => "Unsupported Media Type",
            451 => "Parameter Not Understood",
            453 => "Not Enough Bandwidth",
            454 => "Session Not Found",
            455 => "Method Not Valid in This State",
            457 => "Invalid Range",
            459 => "Aggregate Operation Not Allowed",
            460 => "Only Aggregate Operation Allowed",
            461 => "Unsupported Transport",
            500 => "Internal Server Error",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            505 => "RTSP Version Not Supported",
            551 => "Option Not Supported",
            _ => "Error",
        }
    }
}

/// A response being written.
#[derive(Clone, Debug)]
pub struct Response {
    status: Status,
    head: Vec<u8>,
    body: Option<Bytes>,
}

impl Response {
    /// A response with its status line, the request's `CSeq` and `Server`.
    pub fn new(status: Status, cseq: Option<&str>) -> Self {
        let head = format!("RTSP/1.0 {} {}\r\n", status.0, status.reason()).into_bytes();
        let mut response = Response { status, head, body: None };
        if let Some(cseq) = cseq {
            response = response.header("CSeq", cseq);
        }
        response.header("Server", SERVER)
    }

    /// Adds a header. Control characters in the value become spaces, so that it cannot start another line.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.extend_from_slice(name.as_bytes());
        self.head.extend_from_slice(b": ");
        self.head.extend(value.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
        self.head.extend_from_slice(b"\r\n");
        self
    }

    /// Adds a body with its type. Without a body, the response has no `Content-Length` (RFC 2326 section 12.14).
    pub fn body(mut self, content_type: &str, body: Bytes) -> Self {
        let length = body.len().to_string();
        self.body = Some(body);
        self.header("Content-Type", content_type).header("Content-Length", &length)
    }

    /// Its status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The bytes to send.
    pub fn finish(self) -> Bytes {
        let mut out = self.head;
        out.extend_from_slice(b"\r\n");
        if let Some(body) = self.body {
            out.extend_from_slice(&body);
        }
        Bytes::from(out)
    }
}
