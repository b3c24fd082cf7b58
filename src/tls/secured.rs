//! A TLS client's TCP connection, beside the local socket that stands for it in the shard.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tokio::sync::Notify;

/// A handle on the TCP connection of a client that speaks TLS: the carrying thread reads and writes it by another, the shard sets
/// its options, asks how it does, and says when it is over.
#[derive(Debug)]
pub struct Secured {
    tcp: TcpStream,
    over: Arc<Notify>,
}

impl Secured {
    /// Takes over a handle on a connection whose handshake is done.
    pub fn new(tcp: TcpStream) -> Arc<Secured> {
        Arc::new(Secured { tcp, over: Arc::default() })
    }

    /// The shard is done with the client: what it has sent may still go out, but not for ever.
    pub fn end(&self) {
        self.over.notify_one();
    }

    /// What tells the carrying thread of [`Secured::end`], and that the shard has let go of the last handle without it.
    pub(super) fn over(&self) -> Arc<Notify> {
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
