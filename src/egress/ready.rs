//! Sockets that a ring sends on, and that are read when epoll reports them readable.
//!
//! io_uring returns `EAGAIN` instead of waiting on a file in non-blocking mode. So they are in blocking mode, and each read uses
//! `MSG_DONTWAIT`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

use crate::sys;

/// A socket that is read when it is ready.
pub struct Ready(AsyncFd<OwnedFd>);

impl Ready {
    /// Takes over a socket in blocking mode, within the thread's runtime.
    ///
    /// # Errors
    /// The error of the registration with epoll.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        sys::watched(socket.into()).map(Ready)
    }

    /// Appends received bytes to `buf`, up to its capacity, waiting for at least one; 0 bytes: the other side has closed. May be
    /// dropped without losing anything.
    ///
    /// # Errors
    /// The error of `recv`.
    pub async fn recv(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let room = buf.capacity() - buf.len();
            match sys::recv(self.as_fd(), buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    if count > 0 && count < room {
                        // There is nothing more (epoll(7)), so the next read need not try.
                        ready.clear_ready();
                    }
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends the next datagram to `buf`, up to its capacity. May be dropped without losing one.
    ///
    /// # Errors
    /// The error of `recvfrom`.
    pub async fn recv_from(&self, buf: &mut Vec<u8>) -> io::Result<(usize, SocketAddr)> {
        loop {
            let mut ready = self.0.readable().await?;
            match sys::recv_from(self.as_fd(), buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsRawFd for Ready {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
