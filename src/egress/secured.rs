//! A TLS client's TCP connection, in addition to the local socket that represents it in the shard.

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A handle on the TCP connection of a TLS client. An encryption thread, of this process or of one before it (a carrier), reads and
/// writes it through another handle; the shard sets its options and queries its state.
#[derive(Debug)]
pub struct Secured {
    tcp: TcpStream,
    carrier: u32,
}

impl Secured {
    /// Takes over a handle on a connection after its handshake.
    pub fn new(tcp: TcpStream) -> Arc<Secured> {
        Arc::new(Secured { tcp, carrier: std::process::id() })
    }

    /// The same for a connection of a process before this one, which carries it on.
    pub fn of_carrier(tcp: TcpStream, carrier: u32) -> Arc<Secured> {
        Arc::new(Secured { tcp, carrier })
    }

    /// The process that has the keys of the connection.
    pub fn carrier(&self) -> u32 {
        self.carrier
    }
}

impl AsFd for Secured {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}
