//! Handles what a camera sends besides responses: packets in the connection and as datagrams. Sends reports back.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Datagram, DatagramsFrom, Event, Media, Session, State};
use crate::limits::CAMERA_OUT_BYTES_MAX;
use crate::metrics::SourceDrop;
use crate::source::timeline::SenderReport;
use crate::wire::rtp::Header;
use crate::wire::{interleaved, rtcp};

/// Time between two receiver reports (RFC 3550 section 6.2).
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(5);

/// RTCP packet types, which some cameras send on the RTP channel (RFC 5761 section 4).
const RTCP_TYPES: std::ops::RangeInclusive<u8> = 200..=204;

impl Session {
    /// Handles a packet from the connection. Returns whether it was useful.
    pub(super) fn frame(&mut self, now: Instant, channel: u8, packet: &[u8], media: &mut impl Media) -> bool {
        match self.links[usize::from(channel)] {
            None => {
                media.dropped(SourceDrop::Unassigned, 1);
                false
            }
            Some(link) => self.packet(now, usize::from(link / 2), link % 2 == 1, packet, media),
        }
    }

    fn packet(&mut self, now: Instant, at: usize, rtcp: bool, packet: &[u8], media: &mut impl Media) -> bool {
        if rtcp || packet.len() > 1 && RTCP_TYPES.contains(&packet[1]) {
            return self.rtcp(now, at, packet, media);
        }
        let Ok(header) = Header::parse(packet) else {
            media.dropped(SourceDrop::Malformed, 1);
            return false;
        };
        self.plays(now, media);
        if self.state != State::Playing {
            return true;
        }
        let track = &mut self.tracks[at];
        track.reception.packet(now, &header);
        self.heard = now;
        self.silent = false;
        self.without_packet_bytes = 0;
        track.reorder.push(now, packet, &mut |received, packet| media.packet(at, received, packet));
        true
    }

    fn rtcp(&mut self, now: Instant, at: usize, compound: &[u8], media: &mut impl Media) -> bool {
        let sounds = self.tracks.iter().any(|track| matches!(track.source.media.as_str(), "video" | "audio"));
        let mut reported = false;
        let mut parts = rtcp::parse(compound).peekable();
        if parts.peek().is_none() {
            // An empty one.
            media.dropped(SourceDrop::Rtcp, 1);
            return false;
        }
        for part in parts {
            match part {
                Ok(rtcp::Packet::SenderReport { ssrc, ntp, rtp_time, .. }) => {
                    // At most one per compound (RFC 3550 section 6.1), and none if it belongs to other packets on the channel.
                    if std::mem::replace(&mut reported, true) || !self.tracks[at].is_its_report(now, ssrc) {
                        media.dropped(SourceDrop::Rtcp, 1);
                        continue;
                    }
                    self.tracks[at].reception.sender_report(now, ntp);
                    if self.state == State::Playing {
                        media.report(at, now, SenderReport { ntp, rtp_time });
                    }
                    // Reports do not count as media: an encoder can hang while its RTCP continues. ONVIF metadata may be silent for
                    // long.
                    if !sounds {
                        self.heard = now;
                        self.silent = false;
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    media.dropped(SourceDrop::Rtcp, 1);
                    return reported;
                }
            }
        }
        true
    }

    pub(super) fn datagram(
        &mut self,
        now: Instant,
        at: usize,
        rtcp: bool,
        from: IpAddr,
        bytes: &[u8],
        media: &mut impl Media,
    ) {
        let from = from.to_canonical();
        let is_its = from == self.settings.camera.to_canonical()
            || match self.settings.datagrams_from {
                DatagramsFrom::Camera => false,
                DatagramsFrom::Address(address) => address.to_canonical() == from,
                DatagramsFrom::Any => true,
            };
        if at >= self.tracks.len() || self.state == State::Over {
            return;
        }
        if !is_its {
            media.dropped(SourceDrop::Stranger, 1);
            self.foreign.get_or_insert(from);
            if !std::mem::replace(&mut self.told_foreign, true) {
                self.events.push_back(Event::ForeignDatagrams(from));
            }
            return;
        }
        self.packet(now, at, rtcp, bytes, media);
    }

    /// Sends something to the camera's ports, so that firewalls let its datagrams through. Always to the camera itself, whatever sender
    /// it announces, so that a camera cannot direct datagrams at others.
    pub(super) fn open_path(&mut self, at: usize) {
        let track = &self.tracks[at];
        let Some((rtp, rtcp)) = track.ports.filter(|_| track.channels.is_none()) else { return };
        let opening = Header::write(false, 0, 0, 0, self.ssrc).to_vec();
        let report = rtcp::receiver_report(self.ssrc, &[], &self.cname);
        self.datagrams.push_back(Datagram { track: at, rtcp: false, port: rtp, bytes: opening });
        self.datagrams.push_back(Datagram { track: at, rtcp: true, port: rtcp, bytes: report });
    }

    pub(super) fn tick_media(&mut self, now: Instant, media: &mut impl Media) {
        for (at, track) in self.tracks.iter_mut().enumerate() {
            track.reorder.tick(now, &mut |received, packet| media.packet(at, received, packet));
        }
    }

    /// Sends receiver reports: some cameras accept only these as a sign of life.
    pub(super) fn report(&mut self, now: Instant) {
        self.report_due = Some(now + REPORT_EVERY);
        for (at, track) in self.tracks.iter_mut().enumerate() {
            let block = track.reception.block(now);
            let compound = rtcp::receiver_report(self.ssrc, block.as_slice(), &self.cname);
            match (track.channels, track.ports) {
                (Some((_, channel)), _) if self.out.len() <= CAMERA_OUT_BYTES_MAX => {
                    self.out.extend_from_slice(&interleaved::frame(channel, &compound));
                }
                (None, Some((_, port))) => {
                    self.datagrams.push_back(Datagram { track: at, rtcp: true, port, bytes: compound });
                }
                _ => {}
            }
        }
    }
}
