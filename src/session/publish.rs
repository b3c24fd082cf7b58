//! Publishers: ANNOUNCE, SETUP with the mode `record`, and RECORD (RFC 2326 sections 10.3, 10.4 and 10.11).
//!
//! A publisher's session is like a player's, except for the direction of the media: what arrives on its connection or ports comes out
//! as [`Event::Published`]. Who may publish a stream is decided by the users' rights, and without users by the address
//! ([`may_publish`]). Whether it may at present, when another publisher may be active, is decided by the stream's source, which
//! receives [`Event::Record`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::announced::{Announced, AnnouncedTrack, announced_tracks};
use super::connections::Waiting;
use super::methods::{
    ALLOW_ANNOUNCED, ALLOW_RECORDED, Asked, Found, Outcome, PUBLIC, Refusal, refusal, shown, shown_url,
};
use super::no_transport::NoTransport;
use super::resource::without_credentials;
use super::server::Server;
use super::sessions::{NewSession, Session, SetUp, State};
use super::types::{ConnId, Delivery, EndReason, Event, SessionKey};
use crate::limits::{ANNOUNCE_BYTES_MAX, TRACKS_MAX};
use crate::media::{Description, StreamId, TrackId};
use crate::metrics::Limited;
use crate::wire::rtsp::Status;
use crate::wire::transport::{self, Lower, Spec};

/// Whether a client with this address may publish if no users are configured: only from this machine.
pub(super) fn may_publish(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

impl Server {
    /// Sets whether a stream accepts publishers.
    pub fn set_published(&mut self, id: StreamId, published: bool) {
        if published {
            self.published.insert(id);
        } else {
            self.published.remove(&id);
        }
    }

    /// Answers an [`Event::Record`]: the publisher may send.
    pub fn recording(&mut self, now: Instant, session: SessionKey) {
        let Some(begun) = self.sessions.get_mut(session) else { return };
        if !begun.start() {
            return;
        }
        begun.heard = now;
        self.arm_session(session);
        if let Some((conn, waiting)) = self.take_waiting(session) {
            self.answer(conn, waiting.answer);
        }
        self.process_released(now);
    }

    pub(super) fn announce(&mut self, asked: &Asked<'_>) -> Outcome {
        let found = match self.resource(asked) {
            Ok(Found::Stream { stream, track: None, .. }) if self.published.contains(&stream) => Ok(stream),
            Ok(Found::Stream { track: None, .. }) => {
                return Err(refusal(Status::METHOD_NOT_ALLOWED, "Allow", PUBLIC));
            }
            Ok(_) => return Err(Status::NOT_FOUND.into()),
            // The session is created only if the announcement is usable.
            Err(refusal) if refusal.wait_for.is_some() => Err(refusal),
            Err(refusal) => return Err(refusal),
        };
        let tracks = self.announcement(asked, found.as_ref().ok().copied())?;
        let stream = found?;
        self.move_home(asked.conn, stream, true)?;
        let connection = self.connections.get_mut(asked.conn).ok_or(Status::NOT_FOUND)?;
        connection.announced = Some(Box::new(Announced::new(stream, tracks)));
        Ok(Some(self.good(asked)))
    }

    /// A publisher's announcement, if it is allowed and valid.
    fn announcement(&self, asked: &Asked<'_>, stream: Option<StreamId>) -> Result<Vec<AnnouncedTrack>, Refusal> {
        let connection = self.connections.get(asked.conn).ok_or(Status::NOT_FOUND)?;
        // With users or an external server, the right has already been checked.
        if self.auth.is_open() && !may_publish(connection.peer.ip()) {
            return Err(Status::FORBIDDEN.into());
        }
        if connection.interleaved().is_some() || connection.announced.is_some() && asked.session.is_some() {
            return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW_ANNOUNCED));
        }
        if asked.request.header("Content-Type").is_some_and(|kind| !kind.to_ascii_lowercase().contains("sdp")) {
            return Err(Status::UNSUPPORTED_MEDIA_TYPE.into());
        }
        if asked.request.body.len() > ANNOUNCE_BYTES_MAX {
            return Err(Status::TOO_LARGE.into());
        }
        let tracks = announced_tracks(&asked.request.body);
        if tracks.is_empty() || tracks.len() > TRACKS_MAX {
            return Err(Status::BAD_REQUEST.into());
        }
        let unreadable = tracks.iter().filter_map(|track| Some((&track.control, track.source.as_ref().err()?)));
        if unreadable.clone().count() == tracks.len() {
            let (stream, client) = (
                stream.map_or_else(|| shown_url(&asked.request.url), |stream| self.streams.name(stream).to_owned()),
                connection.peer,
            );
            for (control, why) in unreadable {
                tracing::warn!(%stream, %client, track = ?shown(control), "refused (415): no track can be relayed: {why}");
            }
            return Err(Status::UNSUPPORTED_MEDIA_TYPE.into());
        }
        Ok(tracks)
    }

    /// SETUP on a connection that has announced a stream.
    pub(super) fn setup_publisher(&mut self, asked: &Asked<'_>, announced: &Announced) -> Outcome {
        let connection = self.connections.get(asked.conn).ok_or(Status::NOT_FOUND)?;
        let (peer, carried) = (connection.peer, connection.interleaved());
        let session = asked.session.or(carried);
        if session != carried {
            return Err(Status::SESSION_NOT_FOUND.into());
        }
        let set_up = session.and_then(|key| self.sessions.get(key));
        if set_up.is_some_and(|session| !session.is_being_set_up()) {
            return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW_RECORDED));
        }
        let track = announced.track_of(&asked.request.url, set_up.map_or(&[], Session::tracks));
        let track = track.ok_or(Status::NOT_FOUND)?;
        let (lower, used) = match set_up {
            Some(session) if session.tracks().iter().any(|have| have.track == track) => {
                return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW_ANNOUNCED));
            }
            Some(session) => (Some(session.lower), session.tracks().iter().map(|have| have.delivery).collect()),
            None => (None, Vec::new()),
        };
        let offered = asked.request.list("Transport").ok_or(Status::BAD_REQUEST)?;
        let specs = transport::parse(&offered);
        let possible = |spec: &&Spec| {
            let known = match spec.lower {
                Some(Lower::Tcp) => true,
                Some(Lower::Udp) => {
                    self.config.udp_ports.is_some() && spec.client_port.is_some() && self.may_use_udp(asked.conn)
                }
                None => false,
            };
            known && !spec.multicast && lower.is_none_or(|lower| spec.lower == Some(lower))
        };
        let spec = specs.iter().find(possible).ok_or_else(|| self.no_publisher_transport(&specs, asked.conn, lower))?;
        let (delivery, told) = self.publisher_delivery(spec, track, peer, &used)?;
        if session.is_none() {
            self.room_for_session(asked.conn, true)?;
        }
        let key = session.map_or_else(|| self.sessions.draw_key(), Ok)?;
        // The last check, because it ends the previous owner of the ports.
        if let Delivery::Udp { rtp, rtcp } = delivery {
            self.claim_ports(asked, key, [rtp, rtcp], true)?;
        }
        if session.is_none() {
            let description = Arc::new(Description { tracks: Vec::new() });
            let lower = spec.lower.unwrap_or(Lower::Tcp);
            let (stream, conn) = (announced.stream, asked.conn);
            let new = NewSession { peer, stream, description, lower, conn, publishes: true };
            self.insert_session(key, &new, asked.now);
        }
        let (url, discarded) = (without_credentials(&asked.request.url), announced.track(track).source.is_err());
        Ok(Some(self.set_up(asked, key, SetUp { track, delivery, url, discarded }, &told)))
    }

    /// Why none of the transports that a publisher offers is possible.
    fn no_publisher_transport(&self, offered: &[Spec], conn: ConnId, has: Option<Lower>) -> NoTransport {
        let offered: Vec<Spec> = offered.iter().map(|spec| Spec { mode: None, ..spec.clone() }).collect();
        let (encrypted, datagrams) = (!self.may_use_udp(conn), self.config.udp_ports.is_some());
        // Nobody publishes to a group.
        NoTransport::of(&offered, encrypted, false, datagrams, has.is_some())
    }

    /// The source of a publisher's track, and the transport for the answer.
    fn publisher_delivery(
        &self,
        spec: &Spec,
        track: TrackId,
        peer: SocketAddr,
        used: &[Delivery],
    ) -> Result<(Delivery, String), Refusal> {
        let protocol = &spec.protocol;
        if spec.lower == Some(Lower::Udp) {
            let (Some(server), Some(client)) = (self.config.udp_ports, spec.client_port) else {
                return Err(NoTransport::NoPorts.into());
            };
            let at = |port| SocketAddr::new(peer.ip(), port);
            let told = format!(
                "{protocol};unicast;client_port={}-{};server_port={}-{};mode=record",
                client.0, client.1, server.0, server.1
            );
            return Ok((Delivery::Udp { rtp: at(client.0), rtcp: at(client.1) }, told));
        }
        let taken = |channel: u8| {
            used.iter().any(|delivery| {
                matches!(delivery, Delivery::Interleaved { rtp_channel, rtcp_channel }
                    if *rtp_channel == channel || *rtcp_channel == channel)
            })
        };
        let own = (track.rtp_channel(), track.rtcp_channel());
        let pair =
            spec.interleaved.into_iter().chain([own]).find(|pair| pair.0 != pair.1 && !taken(pair.0) && !taken(pair.1));
        let (rtp_channel, rtcp_channel) = pair.ok_or(NoTransport::NoChannels)?;
        let told = format!("{protocol};unicast;interleaved={rtp_channel}-{rtcp_channel};mode=record");
        Ok((Delivery::Interleaved { rtp_channel, rtcp_channel }, told))
    }

    pub(super) fn record(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        let connection = self.connections.get(asked.conn).ok_or(Status::NOT_FOUND)?;
        let announced = connection.announced.clone().filter(|_| connection.interleaved() == Some(key));
        let announced = announced.ok_or_else(|| self.wrong_state(key))?;
        let peer = connection.peer;
        let session = self.sessions.get_mut(key).ok_or(Status::SESSION_NOT_FOUND)?;
        match session.state() {
            State::Playing => return Ok(Some(self.good(asked))),
            State::Starting => return Err(self.wrong_state(key)),
            State::Ready => {}
        }
        // Tracks that were announced and not set up do not arrive.
        let all: Vec<_> = session.tracks().iter().map(|have| announced.track(have.track)).collect();
        let tracks: Vec<_> = all.iter().filter_map(|track| track.source.clone().ok()).collect();
        if tracks.is_empty() {
            return Err(self.wrong_state(key));
        }
        if !session.has_played() {
            let stream = self.streams.name(announced.stream);
            for (track, why) in all.iter().filter_map(|track| Some((&track.control, track.source.as_ref().err()?))) {
                tracing::warn!(%stream, publisher = %peer, session = %key, track = ?shown(track), "the track is accepted, but its packets are discarded: {why}");
            }
        }
        session.ask();
        let answer = self.good(asked);
        self.wait(asked.conn, Waiting { session: key, answer, cseq: asked.cseq.to_owned() });
        self.push(Event::Record { session: key, conn: asked.conn, stream: announced.stream, peer, tracks });
        Ok(None)
    }

    /// Media or RTCP from a publisher.
    pub(super) fn publisher_packet(&mut self, now: Instant, key: SessionKey, index: usize, rtcp: bool, packet: Bytes) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.heard = now;
        if session.state() != State::Playing {
            return self.count(Limited::FrameUnasked);
        }
        session.hint_ports = false;
        let Some(set_up) = session.tracks().get(index) else { return };
        if set_up.discarded {
            return self.count(Limited::TrackUnreadable);
        }
        let place = session.tracks()[..index].iter().filter(|before| !before.discarded).count();
        let stream = session.stream;
        self.push(Event::Published { session: key, stream, track: TrackId(place as u8), rtcp, packet });
    }

    /// A datagram arrived from an unknown port. If a publisher at its address has sent nothing yet, that is probably why; logged once.
    pub(super) fn tell_other_port(&mut self, from: SocketAddr) {
        let waits = |key: &SessionKey| {
            self.sessions.get(*key).is_some_and(|session| session.hint_ports && session.state() == State::Playing)
        };
        let Some(key) = self.ports.at_address(from.ip(), true).find(waits) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.hint_ports = false;
        let ports = session.tracks().iter().filter_map(|track| match track.delivery {
            Delivery::Udp { rtp, rtcp } => Some(format!("{}-{}", rtp.port(), rtcp.port())),
            _ => None,
        });
        let announced = ports.collect::<Vec<_>>().join(",");
        let (stream, publisher) = (self.streams.name(session.stream), session.peer);
        tracing::warn!(%stream, %publisher, session = %key, from_port = from.port(), %announced, "datagrams come from another port than the publisher announced and are dropped; a router that translates ports may be in between: let it publish over TCP");
    }

    /// The index of an interleaved channel among a publisher's tracks, and whether it is RTCP.
    pub(super) fn published_channel(&self, key: SessionKey, channel: u8) -> Option<(usize, bool)> {
        let session = self.sessions.get(key).filter(|session| session.publishes)?;
        session.tracks().iter().enumerate().find_map(|(index, set_up)| match set_up.delivery {
            Delivery::Interleaved { rtp_channel, .. } if rtp_channel == channel => Some((index, false)),
            Delivery::Interleaved { rtcp_channel, .. } if rtcp_channel == channel => Some((index, true)),
            _ => None,
        })
    }

    /// The stream's source refuses or ends a session.
    pub fn end_publisher(&mut self, now: Instant, session: SessionKey, reason: EndReason) {
        if self.sessions.get(session).is_some_and(|session| session.publishes) {
            self.end_session(now, session, reason);
        }
    }

    /// The stream whose packets a connection carries interleaved.
    pub fn published_in(&self, conn: ConnId) -> Option<StreamId> {
        let session = self.sessions.get(self.connections.get(conn)?.interleaved()?)?;
        let within = |set_up: &SetUp| matches!(set_up.delivery, Delivery::Interleaved { .. });
        (session.publishes && session.tracks().iter().all(within)).then_some(session.stream)
    }

    /// Whether a connection is a publisher's, for which large reads pay off.
    pub fn publishes(&self, conn: ConnId) -> bool {
        self.connections.get(conn).is_some_and(|connection| connection.announced.is_some())
    }

    /// The publisher's session that a connection carries.
    pub fn publisher_of(&self, conn: ConnId) -> Option<SessionKey> {
        let connection = self.connections.get(conn)?;
        connection.interleaved().filter(|_| connection.announced.is_some())
    }
}
