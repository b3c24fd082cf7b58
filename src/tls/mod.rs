//! RTSPS for clients: TLS between a client and the shard that serves it, on threads of its own.
//!
//! The acceptor hands a connection of a TLS listener to the thread of the [`handshake`]. When that is done, the connection goes
//! to one of the threads that [`carry`] its bytes, and the shard gets one end of a pair of local stream sockets in its place.
//! So a shard sends and reads as it always does, encrypts nothing, and waits for no handshake; what a client does not read
//! backs up through the carrying thread into that pair, which is small, and from there into the shard's own cursor.

pub mod carry;
pub mod handshake;
mod identity;
mod judge;
mod secured;
mod service;
mod validity;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub use identity::{Identity, Part, certificates};
pub use judge::Judge;
pub use secured::Secured;
pub use service::{Limits, Tls, TlsSender};

use crate::metrics::{Panicked, process};

/// What all TLS of the relay is computed by, towards clients and towards cameras.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What became of handshakes, and what goes on. Touched when a client comes or goes, never by media.
#[derive(Debug, Default)]
pub struct TlsCounts {
    /// Connections whose handshake is not done.
    pub(crate) half_open: AtomicUsize,
    /// Connections that are carried.
    pub(crate) carried: AtomicUsize,
    outcomes: [AtomicU64; Outcome::COUNT],
}

/// How a connection to a TLS listener went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake was done.
    Done,
    /// It failed: no common version or cipher, the client does not trust the certificate, or what came is no TLS.
    Failed,
    /// The client spoke RTSP without TLS.
    Plain,
    /// It was not done within `limits.handshake_timeout`.
    TimedOut,
    /// It was the oldest one that was not done when there were too many.
    CrowdedOut,
    /// The client went away in the middle of it.
    Left,
    /// After the handshake: the client sent what is no TLS, or not meant for this connection.
    Broken,
    /// A fault of the relay ended this connection alone.
    Panicked,
}

impl Outcome {
    /// Every one, in the order of their numbers.
    pub const ALL: [Outcome; Outcome::COUNT] = [
        Outcome::Done,
        Outcome::Failed,
        Outcome::Plain,
        Outcome::TimedOut,
        Outcome::CrowdedOut,
        Outcome::Left,
        Outcome::Broken,
        Outcome::Panicked,
    ];
    /// How many there are.
    pub const COUNT: usize = 8;

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Plain => "plain",
            Outcome::TimedOut => "timed_out",
            Outcome::CrowdedOut => "crowded_out",
            Outcome::Left => "left",
            Outcome::Broken => "broken",
            Outcome::Panicked => "panicked",
        }
    }
}

impl TlsCounts {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often that has happened since the start.
    pub fn total(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// Connections whose handshake is not done.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Connections that are carried now.
    pub fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }
}

/// Counts one thing as there while it lives, and a panic that takes it away.
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
            self.counts.count(Outcome::Panicked);
            process::panicked(Panicked::Client);
        }
    }
}
