//! A TLS client's TCP connection, in addition to the local socket that represents it in the shard.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tokio::sync::Notify;

/// A handle on the TCP connection of a TLS client. The encryption thread reads and writes it through another handle; the shard sets its
/// options, queries its state, and says when it is over.
#[derive(Debug)]
pub struct Secured {
    tcp: TcpStream,
    over: Arc<Notify>,
}

impl Secured {
    /// Takes over a handle on a connection after its handshake.
    pub fn new(tcp: TcpStream) -> Arc<Secured> {
        Arc::new(Secured { tcp, over: Arc::default() })
    }

    /// The shard is done with the client: what was sent may still be delivered, but not indefinitely.
    pub fn end(&self) {
        self.over.notify_one();
    }

    /// Tells the encryption thread about [`Secured::end`], or that the shard has dropped the last handle without it.
    pub fn over(&self) -> Arc<Notify> {
        Arc::clone(&self.over)
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.over.notify_one();
    }
}

impl AsFd for Secured {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}
