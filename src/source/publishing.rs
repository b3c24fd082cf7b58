//! What goes between a publisher, on the shard that it is connected to, and its stream's source.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::limits::{PUBLISHED_BYTES_MAX, PUBLISHED_BYTES_READ_MAX};
use crate::media::{SourceTrack, TrackId};
use crate::session::EndReason;

/// What becomes of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublisherVerdict {
    /// It may send.
    Go,
    /// It may not, by this status.
    Refuse(u16),
    /// It is ended.
    End(EndReason),
}

/// What a publisher does.
#[derive(Debug)]
pub enum Publishing {
    /// It wants to send these tracks. A [`PublisherVerdict`] answers it.
    Record {
        /// Where it is.
        peer: SocketAddr,
        /// What it is going to send.
        tracks: Vec<SourceTrack>,
    },
    /// It has sent a packet.
    Packet {
        /// Of this track.
        track: TrackId,
        /// Whether it is RTCP.
        rtcp: bool,
        /// When it was read.
        received: Instant,
        /// The packet.
        packet: Bytes,
        /// Its share of the publisher's data in flight.
        held: BacklogPart,
    },
    /// It sends nothing until its next [`Publishing::Record`].
    Paused,
    /// It is gone.
    Ended(EndReason),
}

/// Counts what is on the way from a publisher to its stream's source, so that it never exceeds [`PUBLISHED_BYTES_MAX`].
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<AtomicUsize>);

/// A packet's part of a [`Backlog`], until it is dropped.
#[derive(Debug)]
pub struct BacklogPart {
    backlog: Backlog,
    bytes: usize,
}

/// Overhead of a packet on the way, in bytes.
const PACKET_OVERHEAD_BYTES: usize = 160;

impl Backlog {
    /// Whether so much data is in flight that reading from the publisher should pause.
    pub fn is_long(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PUBLISHED_BYTES_READ_MAX
    }

    /// The part of one more packet; `None` if there is no room for it.
    pub fn hold(&self, packet: &Bytes) -> Option<BacklogPart> {
        let bytes = packet.len() + PACKET_OVERHEAD_BYTES;
        // One shard alone adds to it.
        if self.0.load(Ordering::Relaxed) + bytes > PUBLISHED_BYTES_MAX {
            return None;
        }
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Some(BacklogPart { backlog: self.clone(), bytes })
    }
}

impl Drop for BacklogPart {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_has_only_so_much_on_the_way() {
        let (backlog, packet) = (Backlog::default(), Bytes::from(vec![0; 1_400]));
        let mut held = Vec::new();
        while let Some(one) = backlog.hold(&packet) {
            held.push(one);
        }
        assert!((PUBLISHED_BYTES_MAX / 1_700..=PUBLISHED_BYTES_MAX / 1_400).contains(&held.len()), "{}", held.len());
        held.pop();
        held.push(backlog.hold(&packet).expect("there is room again"));
        assert!(backlog.hold(&packet).is_none());
        held.clear();
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }
}
