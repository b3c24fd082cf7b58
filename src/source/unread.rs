//! What cameras have sent and nobody has read yet: the time stamps of packets do not tell of it, as they are made on reading. And
//! what the library has read of them, which keeps an answer of any length.
//!
//! The RTSP library keeps its connection's descriptor to itself. But it makes the connection while its future is polled, on
//! this thread, and a new descriptor is always the lowest that is free: so the number that was free before a poll, and is a
//! TCP connection after it, is the one. Other threads may take the number in between; then the connection is not found, or
//! its ends show that it is another.

use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::task::Poll;

use crate::limits::CAMERA_SILENT_BYTES_MAX;
use crate::sys::{Connection, is_tcp};

/// More than [`CAMERA_SILENT_BYTES_MAX`] were read with nothing to show for them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

/// Awaits `future`, and finds the connection to `port` that it has made, if it still has it.
///
/// # Errors
/// [`TooMuch`], as soon as it has read so much on that connection.
pub(super) async fn connecting<T>(
    port: u16,
    future: impl Future<Output = T>,
) -> Result<(T, Option<Connection>), TooMuch> {
    let mut future = pin!(future);
    let mut made: Vec<RawFd> = Vec::new();
    let is_its = |connection: &Connection| connection.peer().port() == port;
    let find = |made: &[RawFd]| made.iter().rev().copied().filter_map(Connection::of).find(is_its);
    let output = poll_fn(|cx| {
        let free = lowest_free();
        let polled = future.as_mut().poll(cx);
        if let Some(fd) = free
            && is_tcp(fd)
            && !made.contains(&fd)
        {
            made.push(fd);
        }
        let read = || find(&made)?.read();
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if read().is_some_and(|read| read > CAMERA_SILENT_BYTES_MAX) => Poll::Ready(Err(TooMuch)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    Ok((output, find(&made)))
}

/// Awaits `future`, which reads from the connection, if that is known.
///
/// # Errors
/// [`TooMuch`], as soon as it has read so much.
pub(super) async fn reading<T>(connection: Option<Connection>, future: impl Future<Output = T>) -> Result<T, TooMuch> {
    let mut future = pin!(future);
    let mut appetite = Appetite::new(connection);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if appetite.is_too_much() => Poll::Ready(Err(TooMuch)),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// What is read from a connection while nothing comes of it.
#[derive(Debug)]
pub(super) struct Appetite {
    connection: Option<Connection>,
    /// What had been read when it was first asked about since something came.
    before: Option<u64>,
}

impl Appetite {
    /// Nothing has been read yet. Of a connection that is not known nothing is ever too much.
    pub(super) fn new(connection: Option<Connection>) -> Appetite {
        Appetite { connection, before: None }
    }

    /// Something came.
    pub(super) fn fed(&mut self) {
        self.before = None;
    }

    /// Whether too much has been read since.
    pub(super) fn is_too_much(&mut self) -> bool {
        let Some(read) = self.connection.and_then(|connection| connection.read()) else { return false };
        read.saturating_sub(*self.before.get_or_insert(read)) > CAMERA_SILENT_BYTES_MAX
    }
}

fn lowest_free() -> Option<RawFd> {
    UnixDatagram::unbound().ok().map(|socket| socket.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};

    use tokio::net::TcpStream;

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    #[test]
    fn the_connection_that_a_future_makes_is_found_by_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            // Other threads of the tests make descriptors as well, and may take the number; not every time.
            let (near, connection) = loop {
                let (near, found) = connecting(address.port(), TcpStream::connect(address)).await.unwrap();
                if let Some(connection) = found {
                    break (near.unwrap(), connection);
                }
            };
            assert_eq!(connection.peer(), address);
            let ours = near.local_addr().unwrap();
            let mut far = loop {
                let (stream, peer): (_, SocketAddr) = listener.accept().unwrap();
                if peer == ours {
                    break stream;
                }
            };
            assert_eq!(connection.unread(), Some(0));
            far.write_all(&[7; 1000]).unwrap();
            while connection.unread() != Some(1000) {
                tokio::task::yield_now().await;
            }
            drop(near);
            assert_eq!(connection.unread(), None, "the number may be another's now");
        });
    }
}
