//! What clients send besides requests: RTCP, interleaved or as datagrams, and publishers' media.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::server::{Server, canonical};
use super::types::{ConnId, Delivery, Event, SessionKey};
use crate::limits::RTCP_BYTES_MAX;
use crate::metrics::Limited;
use crate::stream::TrackId;
use crate::wire::rtcp;

impl Server {
    /// A datagram came to the shard's RTCP socket.
    pub fn rtcp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let from = canonical(from);
        if let Some((key, index, rtcp)) = self.publisher_at(from) {
            return self.publisher_packet(now, key, index, rtcp, Bytes::copy_from_slice(bytes));
        }
        let Some(key) = self.player_at(from) else {
            return self.count(Limited::RtcpUnasked);
        };
        let track = self.sessions[&key].tracks.iter().find_map(|set_up| match set_up.delivery {
            Delivery::Udp { rtcp, .. } if canonical(rtcp) == from => Some(set_up.track),
            _ => None,
        });
        self.report(now, key, track, bytes);
    }

    /// The player that sends RTCP from an address in its canonical form; one whose port was translated, if it is the only one there.
    fn player_at(&self, from: SocketAddr) -> Option<SessionKey> {
        let known = self.by_port.get(&from).filter(|(_, rtcp)| *rtcp).map(|(key, _)| *key);
        known.or_else(|| match self.by_address.get(&from.ip())?.as_slice() {
            [only] => Some(*only),
            _ => None,
        })
    }

    /// Whose datagrams come from this address: the session, and its connection while that is open.
    pub fn sender_at(&self, from: SocketAddr) -> Option<(SessionKey, Option<ConnId>)> {
        let from = canonical(from);
        let key = self.publisher_at(from).map(|(key, ..)| key).or_else(|| self.player_at(from))?;
        Some((key, self.sessions.get(&key)?.conn))
    }

    /// An interleaved packet from a client.
    pub(super) fn frame(&mut self, now: Instant, conn: ConnId, channel: u8, packet: Bytes) {
        let key = self.conns.get(&conn).and_then(|connection| connection.interleaved);
        if let Some((key, (index, rtcp))) = key.and_then(|key| Some((key, self.published_channel(key, channel)?))) {
            return self.publisher_packet(now, key, index, rtcp, packet);
        }
        let track = key.and_then(|key| self.sessions.get(&key)).and_then(|session| {
            session.tracks.iter().find_map(|set_up| match set_up.delivery {
                Delivery::Interleaved { rtcp_channel, .. } if rtcp_channel == channel => Some(set_up.track),
                _ => None,
            })
        });
        match (key, track) {
            (Some(key), Some(track)) => self.report(now, key, Some(track), &packet),
            _ => self.count(Limited::FrameUnasked),
        }
    }

    /// RTCP from a session's client, about `track` if its address tells.
    fn report(&mut self, now: Instant, key: SessionKey, track: Option<TrackId>, compound: &[u8]) {
        if compound.len() > RTCP_BYTES_MAX {
            return self.count(Limited::RtcpMalformed);
        }
        let mut alive = false;
        for packet in rtcp::parse(compound) {
            let blocks = match packet {
                Ok(rtcp::Packet::ReceiverReport { reports, .. } | rtcp::Packet::SenderReport { reports, .. }) => {
                    reports
                }
                Ok(_) => Vec::new(),
                Err(_) => {
                    self.count(Limited::RtcpMalformed);
                    break;
                }
            };
            alive = true;
            for report in blocks {
                let session = &self.sessions[&key];
                let by_ssrc = session.tracks.iter().map(|set_up| set_up.track).find(|track| {
                    session.description.tracks.get(usize::from(track.0)).is_some_and(|have| have.ssrc == report.ssrc)
                });
                if let Some(track) = by_ssrc.or(track) {
                    self.push(Event::ReceiverReport { session: key, track, report });
                }
            }
        }
        if let Some(session) = self.sessions.get_mut(&key).filter(|_| alive) {
            session.heard = now;
        }
    }
}
