//! Disconnects clients before the relay stops, a few at a time, so that they do not all reconnect at once.

#[cfg(test)]
#[path = "leaving_tests.rs"]
mod tests;

use std::time::Instant;

use super::link::{Kind, Link, Playing};
use super::state::Core;
use crate::egress::Egress;
use crate::metrics::Transport;
use crate::session::EndReason;

/// The number of clients that may still play at `now`: all of the `clients` at `since`, none from `until` on.
fn may_stay(since: Instant, clients: usize, now: Instant, until: Instant) -> usize {
    let (left, whole) = (until.saturating_duration_since(now), until.saturating_duration_since(since));
    if left.is_zero() { 0 } else { (clients as f64 * left.as_secs_f64() / whole.as_secs_f64()).ceil() as usize }
}

impl<E: Egress> Core<E> {
    /// Disconnects clients, each at the end of a frame and with an RTCP BYE. Called repeatedly; the last one is disconnected at
    /// `until`. Clients that start playing meanwhile are included. Receivers of multicast groups and publishers stay until
    /// [`Core::stop`]: the former cannot be sent anything individually, and the latter serve the remaining clients.
    pub fn send_away(&mut self, now: Instant, until: Instant) {
        if self.stopping.is_some() {
            return;
        }
        let plays = |playing: &Playing| !playing.has_left() && playing.transport != Transport::Multicast;
        let links = self.links.iter().filter(|(_, link)| link.playing.as_ref().is_some_and(plays));
        let players: Vec<u32> = links.map(|(slot, _)| slot as u32).collect();
        let (since, clients) = *self.leaving.get_or_insert((now, players.len()));
        let away = players.len().saturating_sub(may_stay(since, clients, now, until));
        for slot in players.into_iter().take(away) {
            self.end_client(now, slot, EndReason::Leaving);
        }
        self.process_events(now);
    }

    /// Disconnects the clients that play and whose TLS connections that process carries, in the same way.
    pub fn send_away_carried(&mut self, now: Instant, carrier: u32) {
        let carried = |link: &Link| match &link.kind {
            Kind::Tcp { conn, .. } => conn.carrier() == Some(carrier),
            _ => false,
        };
        let plays = |link: &Link| carried(link) && link.playing.as_ref().is_some_and(|playing| !playing.has_left());
        let links = self.links.iter().filter(|(_, link)| plays(link));
        for slot in links.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.end_client(now, slot, EndReason::Leaving);
        }
        self.process_events(now);
    }
}
