//! What cameras have sent and nobody has read yet: the time stamps of packets do not tell of it, as they are made on reading. And
//! what the library has read of them, which keeps an answer of any length.
//!
//! The RTSP library keeps its connection's descriptor to itself. But it makes the connection while its future is polled, on
//! this thread, and a new descriptor is always the lowest that is free: so the number that was free before a poll, or one of the
//! next if other threads took that in between, is the one, if it is a TCP connection to the camera's port after it and was
//! none before.

use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::task::Poll;

use crate::limits::CAMERA_SILENT_BYTES_MAX;
use crate::sys::{Connection, is_tcp};

/// Numbers that are looked at, from the lowest that is free: other threads open no more in the time of a poll, as a rule.
const NEAR: usize = 16;

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
        let near = lowest_free().map_or(0..0, |free| free..free.saturating_add(NEAR as RawFd));
        let mut were = [false; NEAR];
        were.iter_mut().zip(near.clone()).for_each(|(was, fd)| *was = is_tcp(fd));
        let polled = future.as_mut().poll(cx);
        for (fd, was) in near.zip(were) {
            if !was && is_tcp(fd) && !made.contains(&fd) {
                made.push(fd);
            }
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
            // As if another thread had taken the number, and the next.
            let taken = async || {
                let others = [UnixDatagram::unbound(), UnixDatagram::unbound()];
                (TcpStream::connect(address).await, others)
            };
            // Those of other tests may take more; not every time.
            let (near, connection, _others) = loop {
                let ((near, others), found) = connecting(address.port(), taken()).await.unwrap();
                if let Some(connection) = found {
                    break (near.unwrap(), connection, others);
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
