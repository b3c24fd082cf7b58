//! Answers to clients that do not speak RTSP.

use std::net::SocketAddr;

use bytes::Bytes;

use super::server::Server;
use super::types::{CloseReason, ConnId, Event};
use crate::wire::rtsp::{Fault, Invalid, Response, SERVER, Status};

impl Server {
    /// The connection's bytes are not a valid message: the client is told so if it can understand that, and the connection is closed.
    pub(super) fn invalid(&mut self, conn: ConnId, invalid: Invalid) {
        let Invalid { fault, cseq, .. } = invalid;
        let (status, reason) = if fault.is_foreign() {
            (None, CloseReason::NotRtsp(fault))
        } else if fault.is_too_large() {
            (Some(Status::TOO_LARGE), CloseReason::TooLarge(fault))
        } else {
            (Some(Status::BAD_REQUEST), CloseReason::Malformed(fault))
        };
        if let Some(status) = status {
            self.answer(conn, Response::new(status, cseq.as_deref()).header("Connection", "close"));
        }
        if let (Fault::Http, Some(connection)) = (fault, self.connections.get(conn)) {
            let bytes = answer_to_http(connection.local, connection.secure);
            *self.counters.answers.entry(Status::NOT_IMPLEMENTED.0).or_default() += 1;
            self.push(Event::Answer { conn, bytes });
        }
        self.close(conn, reason);
    }
}

/// The answer to an HTTP client on this port (RFC 9110).
fn answer_to_http(local: SocketAddr, secure: bool) -> Bytes {
    let scheme = if secure { "rtsps" } else { "rtsp" };
    let body = format!(
        "This port serves RTSP, not HTTP. A player finds a stream at {scheme}://{local}/NAME; RTSP tunnelled in HTTP is not \
         served, RTSP over TCP is. /metrics, /status and /healthz are served over HTTP at the address that `http` in rtsprelay's \
         configuration names.\n"
    );
    let length = body.len();
    Bytes::from(format!(
        "HTTP/1.1 501 Not Implemented\r\nServer: {SERVER}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    ))
}
