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
    over: Notify,
}

impl Secured {
    /// Takes over a handle on a connection whose handshake is done.
    pub fn new(tcp: TcpStream) -> Arc<Secured> {
        Arc::new(Secured { tcp, over: Notify::new() })
    }

    /// The connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The shard is done with the client: what it has sent may still go out, but not for ever.
    pub fn end(&self) {
        self.over.notify_one();
    }

    /// Waits for [`Secured::end`].
    pub(super) async fn ended(&self) {
        self.over.notified().await;
    }
}

impl AsFd for Secured {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}
