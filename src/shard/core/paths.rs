//! UDP clients whose path is backed up send from sockets of their own, so that they do not fill the shared buffer.
//!
//! A datagram stays in its socket's buffer until a device has taken it. So one slow path would eventually fill the buffer that all
//! clients share, and the other clients' datagrams would be refused. The shared socket does not say whose datagrams it holds.
//! Therefore, when it holds many, clients are moved to their own sockets in turn, and those whose sockets have no backlog are moved
//! back.

#[cfg(test)]
#[path = "paths_tests.rs"]
pub(super) mod tests;

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::link::{Kind, OwnSockets, Target};
use super::links::Links;
use super::streams::ShardStreams;
use crate::egress::Datagram;
use crate::limits::{DATAGRAM_BACKLOG_BYTES_MAX, DATAGRAM_BACKLOG_PART, DATAGRAM_MOVES_MAX, DATAGRAM_OWN_S};
use crate::media::TrackId;
use crate::shard::types::UdpSockets;

impl OwnSockets {
    pub(super) fn of(&self, track: TrackId) -> Option<&Datagram> {
        self.rtp.iter().find(|(of, _)| *of == track).map(|(_, socket)| socket)
    }

    fn is_backed_up(&self) -> bool {
        self.rtp.iter().any(|(_, socket)| socket.unsent().is_ok_and(|bytes| bytes > 0))
    }
}

/// The shard's UDP sockets, and which clients have their own.
pub(super) struct Paths {
    sockets: Option<UdpSockets>,
    /// Whether the sockets are bound to a wildcard address.
    is_wildcard: bool,
    /// Unsent bytes in the shared RTP socket above which some path is considered backed up.
    backlog_max: usize,
    /// The shared socket has refused a datagram since the last check.
    refused: bool,
    /// Clients that have their own sockets.
    own_paths: usize,
    /// The number of their sockets, and the maximum.
    own_sockets: usize,
    own_sockets_max: usize,
}

impl Paths {
    pub(super) fn new(sockets: Option<UdpSockets>) -> Paths {
        let local = sockets.as_ref().and_then(|sockets| sockets.rtp.local_addr().ok());
        let backlog_max = sockets.as_ref().map_or(DATAGRAM_BACKLOG_BYTES_MAX, |sockets| backlog_max(&sockets.rtp));
        Paths {
            sockets,
            is_wildcard: local.is_some_and(|local| local.ip().is_unspecified()),
            backlog_max,
            refused: false,
            own_paths: 0,
            own_sockets: 0,
            own_sockets_max: usize::MAX,
        }
    }

    /// The sockets that clients share.
    pub(super) fn shared(&self) -> Option<&UdpSockets> {
        self.sockets.as_ref()
    }

    /// Whether routing chooses the sockets' source address.
    pub(super) fn is_wildcard(&self) -> bool {
        self.is_wildcard
    }

    /// Sets the maximum number of clients' own sockets; existing ones stay.
    pub(super) fn set_own_sockets_max(&mut self, sockets: usize) {
        self.own_sockets_max = sockets;
    }

    /// The shared socket has refused a datagram.
    pub(super) fn note_refused(&mut self) {
        self.refused = true;
    }

    /// A client with its own sockets is gone, and its sockets with it.
    pub(super) fn gone(&mut self, own: &OwnSockets) {
        // A multicast group's sockets come from the configuration.
        if own.rtcp.is_none() {
            self.own_paths -= 1;
            self.own_sockets -= own.rtp.len();
        }
    }

    /// Checks whether a path is backed up, and moves clients to and from their own sockets.
    pub(super) fn check(&mut self, now: Instant, links: &mut Links, streams: &ShardStreams) {
        let Some(sockets) = &self.sockets else { return };
        let refused = std::mem::take(&mut self.refused);
        let backed_up = refused || sockets.rtp.unsent().is_ok_and(|bytes| bytes > self.backlog_max);
        if !backed_up && self.own_paths == 0 {
            return;
        }
        let mut moves = if backed_up { DATAGRAM_MOVES_MAX } else { 0 };
        for (_, link) in links.iter_mut() {
            let playing = link.playing.as_ref();
            let Kind::Udp { targets, own_sockets, .. } = &mut link.kind else { continue };
            match own_sockets {
                Some(own) if own.rtcp.is_some() => {}
                Some(own) if own.is_backed_up() => own.backed_up = now,
                Some(own) => {
                    let calm = now.saturating_duration_since(own.backed_up) >= Duration::from_secs(DATAGRAM_OWN_S);
                    if calm && link.busy.is_none() {
                        self.own_sockets -= own.rtp.len();
                        *own_sockets = None;
                        self.own_paths -= 1;
                    }
                }
                None if moves > 0 && self.own_sockets + targets.len() <= self.own_sockets_max => {
                    moves -= 1;
                    match own(sockets, targets, now) {
                        Ok(own) => {
                            self.own_sockets += own.rtp.len();
                            *own_sockets = Some(Box::new(own));
                            self.own_paths += 1;
                        }
                        Err(error) => {
                            let stream = playing.map(|playing| &streams[playing.stream.index()].name);
                            tracing::warn!(
                                stream = stream.map(tracing::field::display),
                                client = playing.map(|playing| tracing::field::display(playing.peer)),
                                session = playing.map(|playing| tracing::field::display(playing.session)),
                                %error,
                                "cannot open a separate socket for a UDP client"
                            );
                        }
                    }
                }
                None => {}
            }
        }
    }

    /// Clients with their own sockets, and those sockets.
    #[cfg(test)]
    pub(super) fn own(&self) -> (usize, usize) {
        (self.own_paths, self.own_sockets)
    }
}

/// Unsent bytes in a socket above which some path is considered backed up: well before it is full and refuses all datagrams. Without
/// CAP_NET_ADMIN it is no larger than `net.core.wmem_max` allows.
fn backlog_max(socket: &Datagram) -> usize {
    let room = socket.send_buffer().unwrap_or(usize::MAX);
    DATAGRAM_BACKLOG_BYTES_MAX.min(room / DATAGRAM_BACKLOG_PART)
}

fn own(sockets: &UdpSockets, targets: &[Target], now: Instant) -> std::io::Result<OwnSockets> {
    let rtp = targets.iter().map(|target| Ok((target.track, sockets.rtp.beside(target.rtp)?)));
    let rtp = rtp.collect::<std::io::Result<SmallVec<_>>>()?;
    Ok(OwnSockets { rtp, rtcp: None, backed_up: now })
}
