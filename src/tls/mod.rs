//! RTSPS for clients: TLS between a client and the shard that serves it, on separate threads.
//!
//! The acceptor passes a connection of a TLS listener to the [`handshake`] thread. After the handshake, the connection goes to one of
//! the threads that [`carry`] its bytes, and the shard gets one end of a pair of local stream sockets. So a shard sends and reads as
//! usual, does not encrypt, and waits for no handshake. The backlog of a client that does not read fills the small buffer of the socket
//! pair, and then stays in the shard's log.

pub mod carry;
pub mod handshake;
mod identity;
mod service;
mod turns;
mod validity;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use handshake::SecuredPage;
pub use identity::{Identity, IdentityError, PemFile};
pub use service::{Carried, HandshakeLimits, Tls, TlsSender};

use crate::metrics::{Panicked, TlsCounts, TlsOutcome, process};

/// Counts something for as long as it lives, and records it if a panic drops it.
struct Counted {
    counts: Arc<TlsCounts>,
    which: fn(&TlsCounts) -> &AtomicUsize,
}

impl Counted {
    fn new(counts: &Arc<TlsCounts>, which: fn(&TlsCounts) -> &AtomicUsize) -> Counted {
        which(counts).fetch_add(1, Ordering::Relaxed);
        Counted { counts: Arc::clone(counts), which }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.counts).fetch_sub(1, Ordering::Relaxed);
        if std::thread::panicking() {
            self.counts.count(TlsOutcome::Panicked);
            process::panicked(Panicked::Client);
        }
    }
}
