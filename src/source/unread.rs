//! What cameras have sent and nobody has read yet: the time stamps of packets do not tell of it, as they are made on reading.
//!
//! The RTSP library keeps its connection's descriptor to itself. But it makes the connection while its future is polled, on
//! this thread, and a new descriptor is always the lowest that is free: so the number that was free before a poll, and is a
//! TCP connection after it, is the one. Other threads may take the number in between; then the connection is not found, or
//! its ends show that it is another.

use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::pin::pin;

use crate::sys::{Connection, is_tcp};

/// Awaits `future`, and finds the connection to `port` that it has made, if it still has it.
pub(super) async fn connecting<T>(port: u16, future: impl Future<Output = T>) -> (T, Option<Connection>) {
    let mut future = pin!(future);
    let mut made: Vec<RawFd> = Vec::new();
    let output = poll_fn(|cx| {
        let free = lowest_free();
        let polled = future.as_mut().poll(cx);
        if let Some(fd) = free
            && is_tcp(fd)
            && !made.contains(&fd)
        {
            made.push(fd);
        }
        polled
    })
    .await;
    let is_its = |connection: &Connection| connection.peer().port() == port;
    let found = made.into_iter().rev().filter_map(Connection::of).find(is_its);
    (output, found)
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
                let (near, found) = connecting(address.port(), TcpStream::connect(address)).await;
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
