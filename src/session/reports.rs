//! What clients send besides requests: RTCP, interleaved or as datagrams, and publishers' media.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::connections::Connection;
use super::ports::canonical;
use super::server::Server;
use super::types::{ConnId, Delivery, Event, SessionKey};
use crate::limits::RTCP_BYTES_MAX;
use crate::media::TrackId;
use crate::metrics::Limited;
use crate::wire::rtcp;

impl Server {
    /// A datagram arrived on the shard's RTCP socket.
    pub fn rtcp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let from = canonical(from);
        if let Some((key, index, rtcp)) = self.ports.publisher_at(from) {
            return self.publisher_packet(now, key, index, rtcp, Bytes::copy_from_slice(bytes));
        }
        if rtcp::is_opening(bytes) && self.ports.has_player_at(from) {
            return;
        }
        let Some(key) = self.ports.player_at(from) else {
            self.tell_other_port(from);
            return self.count(Limited::RtcpUnasked);
        };
        let track = self.sessions[&key].tracks().iter().find_map(|set_up| match set_up.delivery {
            Delivery::Udp { rtcp, .. } if canonical(rtcp) == from => Some(set_up.track),
            _ => None,
        });
        self.report(now, key, track, bytes);
    }

    /// A datagram arrived on the shard's RTP socket. From a player, whatever its contents, it opens the way back through a router or
    /// firewall; some also send their reports here.
    pub fn rtp(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        let from = canonical(from);
        if self.ports.publisher_at(from).is_none() && !rtcp::is_compound(bytes) && self.ports.has_player_at(from) {
            return;
        }
        self.rtcp(now, from, bytes);
    }

    /// The session for a datagram's source address, and its connection while that is open.
    pub fn sender_at(&self, from: SocketAddr) -> Option<(SessionKey, Option<ConnId>)> {
        let from = canonical(from);
        let key = self.ports.publisher_at(from).map(|(key, ..)| key).or_else(|| self.ports.player_at(from))?;
        Some((key, self.sessions.get(key)?.conn()))
    }

    /// An interleaved packet from a client.
    pub(super) fn frame(&mut self, now: Instant, conn: ConnId, channel: u8, packet: Bytes) {
        let key = self.connections.get(conn).and_then(Connection::interleaved);
        if let Some((key, (index, rtcp))) = key.and_then(|key| Some((key, self.published_channel(key, channel)?))) {
            return self.publisher_packet(now, key, index, rtcp, packet);
        }
        let track = key.and_then(|key| self.sessions.get(key)).and_then(|session| {
            session.tracks().iter().find_map(|set_up| match set_up.delivery {
                Delivery::Interleaved { rtcp_channel, .. } if rtcp_channel == channel => Some(set_up.track),
                _ => None,
            })
        });
        match (key, track) {
            (Some(key), Some(track)) => self.report(now, key, Some(track), &packet),
            _ => self.count(Limited::FrameUnasked),
        }
    }

    /// RTCP from a session's client, about `track` if that follows from its address.
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
                let by_ssrc = session.tracks().iter().map(|set_up| set_up.track).find(|track| {
                    session.description.tracks.get(usize::from(track.0)).is_some_and(|have| have.ssrc == report.ssrc)
                });
                if let Some(track) = by_ssrc.or(track) {
                    self.push(Event::ReceiverReport { session: key, track, report });
                }
            }
        }
        if let Some(session) = self.sessions.get_mut(key).filter(|_| alive) {
            session.heard = now;
        }
    }
}
