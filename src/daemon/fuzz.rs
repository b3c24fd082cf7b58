//! The body of a fuzz target: what comes of a balancer's bytes as they come from its connection.
#![allow(missing_docs)]

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

use super::proxied::{Refused, read};
use crate::wire::proxy_protocol::{Fault, HEAD_BYTES};

/// Places at most at which an input is cut in two; of a shorter one they are all.
const CUTS_MAX: usize = 128;

/// A connection whose bytes come in two pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    cut: usize,
    read: usize,
    /// The reader was told to call again for the second piece.
    has_waited: bool,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read == self.cut && !self.has_waited {
            self.has_waited = true;
            return Poll::Pending;
        }
        let end = if self.read < self.cut { self.cut } else { self.bytes.len() };
        let count = (end - self.read).min(into.remaining());
        into.put_slice(&self.bytes[self.read..self.read + count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

/// Whose the connection is, or what is wrong (nothing, if the bytes end too early); and how many bytes were read for that.
fn read_cut(bytes: &[u8], cut: usize) -> (Result<Option<SocketAddr>, Option<Fault>>, usize) {
    let mut pieces = Pieces { bytes, cut, read: 0, has_waited: false };
    let outcome = {
        let mut reading = pin!(read(&mut pieces));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(outcome) = reading.as_mut().poll(&mut context) {
                break outcome;
            }
        }
    };
    let outcome = outcome.map_err(|refused| match refused {
        Refused::Fault(fault) => Some(fault),
        Refused::Gone(_) => None,
        Refused::TimedOut => unreachable!("there is no clock here"),
    });
    (outcome, pieces.read)
}

/// A header is read to its end, and no byte of the client's behind it, whatever pieces it comes in.
pub fn proxy_headers(data: &[u8]) {
    let whole = read_cut(data, data.len());
    let expected = match whole.0 {
        Ok(_) => HEAD_BYTES + usize::from(u16::from_be_bytes([data[HEAD_BYTES - 2], data[HEAD_BYTES - 1]])),
        Err(Some(_)) => HEAD_BYTES,
        Err(None) => data.len(),
    };
    assert_eq!(whole.1, expected, "{:?}", whole.0);
    for cut in (0..data.len()).step_by(data.len() / CUTS_MAX + 1) {
        assert_eq!(read_cut(data, cut), whole, "cut at {cut}");
    }
}
