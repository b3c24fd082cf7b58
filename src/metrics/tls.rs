//! Counts for TLS.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts of handshakes and connections. Updated when a client connects or leaves, never by media.
#[derive(Debug, Default)]
pub struct TlsCounts {
    /// Connections with an unfinished handshake.
    pub(crate) half_open: AtomicUsize,
    /// Connections that are carried.
    pub(crate) carried: AtomicUsize,
    outcomes: [AtomicU64; TlsOutcome::COUNT],
}

/// The outcome of a connection to a TLS listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsOutcome {
    /// The handshake was done.
    Done,
    /// It failed: no common version or cipher, the client does not trust the certificate, or the data is not TLS.
    Failed,
    /// The client used RTSP without TLS.
    Plain,
    /// It did not finish within `limits.handshake_timeout`.
    TimedOut,
    /// It was evicted because too many were unfinished.
    CrowdedOut,
    /// The client disconnected during it.
    Left,
    /// After the handshake: the client sent invalid TLS data.
    Broken,
    /// A bug in the relay ended this connection.
    Panicked,
}

impl TlsOutcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [TlsOutcome; TlsOutcome::COUNT] = [
        TlsOutcome::Done,
        TlsOutcome::Failed,
        TlsOutcome::Plain,
        TlsOutcome::TimedOut,
        TlsOutcome::CrowdedOut,
        TlsOutcome::Left,
        TlsOutcome::Broken,
        TlsOutcome::Panicked,
    ];
    /// How many there are.
    pub const COUNT: usize = 8;

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            TlsOutcome::Done => "done",
            TlsOutcome::Failed => "failed",
            TlsOutcome::Plain => "plain",
            TlsOutcome::TimedOut => "timed_out",
            TlsOutcome::CrowdedOut => "crowded_out",
            TlsOutcome::Left => "left",
            TlsOutcome::Broken => "broken",
            TlsOutcome::Panicked => "panicked",
        }
    }
}

impl TlsCounts {
    pub(crate) fn count(&self, outcome: TlsOutcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// It has happened so many times in a process before.
    pub(crate) fn add(&self, outcome: TlsOutcome, times: u64) {
        self.outcomes[outcome as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// How often that has happened since startup.
    pub fn total(&self, outcome: TlsOutcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// Connections with an unfinished handshake.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Connections after the handshake.
    pub fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }
}
