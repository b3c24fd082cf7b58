//! UDP clients whose path is backed up: each sends from a socket of its own, so that it fills nobody else's buffer.
//!
//! A datagram stays in its socket's buffer until a device has taken it, so one slow path would in time fill the buffer that all
//! clients share, and then the free ones' datagrams are refused. The shared socket does not tell whose datagrams it holds; so
//! when much is held, clients are given sockets of their own in turn, and those in which nothing is ever held go back.

#[cfg(test)]
#[path = "paths_tests.rs"]
pub(super) mod tests;

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::link::{Kind, OwnSockets, Target};
use super::{Core, UdpSockets};
use crate::egress::{Datagram, Egress};
use crate::limits::{DATAGRAM_BACKLOG_BYTES_MAX, DATAGRAM_MOVES_MAX, DATAGRAM_OWN_S};
use crate::stream::TrackId;

impl OwnSockets {
    pub(super) fn of(&self, track: TrackId) -> Option<&Datagram> {
        self.rtp.iter().find(|(of, _)| *of == track).map(|(_, socket)| socket)
    }

    fn is_backed_up(&self) -> bool {
        self.rtp.iter().any(|(_, socket)| socket.unsent().is_ok_and(|bytes| bytes > 0))
    }
}

impl<E: Egress> Core<E> {
    /// Looks whether a path is backed up, and gives sockets and takes them back.
    pub(super) fn check_paths(&mut self, now: Instant) {
        let Some(sockets) = &self.udp else { return };
        let refused = std::mem::take(&mut self.path_refused);
        let backed_up = refused || sockets.rtp.unsent().is_ok_and(|bytes| bytes > DATAGRAM_BACKLOG_BYTES_MAX);
        if !backed_up && self.own_paths == 0 {
            return;
        }
        let mut moves = if backed_up { DATAGRAM_MOVES_MAX } else { 0 };
        for (_, link) in self.links.iter_mut() {
            let playing = link.playing.as_ref();
            let Kind::Udp { targets, own_sockets, .. } = &mut link.kind else { continue };
            match own_sockets {
                Some(own) if own.rtcp.is_some() => {}
                Some(own) if own.is_backed_up() => own.backed_up = now,
                Some(own) => {
                    let calm = now.saturating_duration_since(own.backed_up) >= Duration::from_secs(DATAGRAM_OWN_S);
                    if calm && link.busy.is_none() {
                        *own_sockets = None;
                        self.own_paths -= 1;
                    }
                }
                None if moves > 0 => {
                    moves -= 1;
                    match own(sockets, targets, now) {
                        Ok(own) => {
                            *own_sockets = Some(Box::new(own));
                            self.own_paths += 1;
                        }
                        Err(error) => {
                            let stream = playing.map(|playing| &self.streams[usize::from(playing.stream.0)].name);
                            tracing::warn!(
                                stream = stream.map(tracing::field::display),
                                client = playing.map(|playing| tracing::field::display(playing.peer)),
                                session = playing.map(|playing| tracing::field::display(playing.session)),
                                %error,
                                "a UDP client gets no socket of its own"
                            );
                        }
                    }
                }
                None => {}
            }
        }
    }
}

fn own(sockets: &UdpSockets, targets: &[Target], now: Instant) -> std::io::Result<OwnSockets> {
    let rtp = targets.iter().map(|target| Ok((target.track, sockets.rtp.beside(target.rtp)?)));
    let rtp = rtp.collect::<std::io::Result<SmallVec<_>>>()?;
    Ok(OwnSockets { rtp, rtcp: None, backed_up: now })
}
