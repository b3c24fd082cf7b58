//! Publishers: ANNOUNCE, SETUP with the mode `record`, and RECORD (RFC 2326 sections 10.3, 10.4 and 10.11).
//!
//! A publisher's session is one like a player's, but for where the media flows: what its connection or its ports bring comes
//! out as [`Event::Published`]. Who may publish a stream is decided by the users' rights, and without
//! users by the address ([`may_publish`]); whether it may now, when
//! somebody else perhaps does, by the control thread, which [`Event::Record`] is put to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::methods::{Asked, Found, Outcome, Refusal, refusal, without_credentials};
use super::server::{NewSession, Server, SetUp, State, Waiting, canonical};
use super::types::{ConnId, Delivery, EndReason, Event, SessionKey};
use crate::limits::TRACKS_MAX;
use crate::metrics::Limited;
use crate::source::pipeline::SourceTrack;
use crate::stream::{Description, StreamId, TrackId};
use crate::wire::rtsp::Status;
use crate::wire::sdp;
use crate::wire::transport::{self, Lower, Spec};

/// What can be done with a stream that is published, seen from its publisher.
const ALLOW: &str = "OPTIONS, ANNOUNCE, SETUP, RECORD, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

/// What a publisher has announced.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) stream: StreamId,
    tracks: Vec<AnnouncedTrack>,
}

#[derive(Clone, Debug)]
struct AnnouncedTrack {
    source: SourceTrack,
    control: String,
}

/// Whether a client of this address may publish: only one on this machine, where no users are configured.
pub(super) fn may_publish(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

impl Server {
    /// Makes a stream one that is published to the relay, or one that is not.
    pub fn set_published(&mut self, id: StreamId, published: bool) {
        if published {
            self.published.insert(id);
        } else {
            self.published.remove(&id);
        }
    }

    /// Answers an [`Event::Record`]: the publisher may send.
    pub fn recording(&mut self, now: Instant, session: SessionKey) {
        let Some(begun) = self.sessions.get_mut(&session).filter(|s| s.state == State::Starting) else { return };
        begun.state = State::Playing;
        begun.heard = now;
        self.arm_session(session);
        if let Some((conn, waiting)) = self.take_waiting(session) {
            self.answer(conn, waiting.answer);
        }
        self.process_released(now);
    }

    pub(super) fn announce(&mut self, asked: &Asked<'_>) -> Outcome {
        let Found::Stream { stream, track: None, .. } = self.resource(asked)? else {
            return Err(Status::NOT_FOUND.into());
        };
        if !self.published.contains(&stream) {
            return Err(refusal(Status::METHOD_NOT_ALLOWED, "Allow", super::methods::PUBLIC));
        }
        let connection = self.conns.get(&asked.conn).ok_or(Status::NOT_FOUND)?;
        // Where there are users, who asks has the right to.
        if self.access.is_none() && !may_publish(connection.peer.ip()) {
            let (stream, client) = (self.streams.name(stream), connection.peer);
            tracing::warn!(%stream, %client, "may not publish: without users in the configuration only clients on this machine may; add a [[user]] with may = [\"publish\"]");
            return Err(Status::FORBIDDEN.into());
        }
        if connection.interleaved.is_some() || connection.announced.is_some() && asked.session.is_some() {
            return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW));
        }
        if asked.request.header("Content-Type").is_some_and(|kind| !kind.to_ascii_lowercase().contains("sdp")) {
            return Err(Status::UNSUPPORTED_MEDIA_TYPE.into());
        }
        let tracks = announced_tracks(&asked.request.body);
        if tracks.is_empty() || tracks.len() > TRACKS_MAX {
            return Err(Status::BAD_REQUEST.into());
        }
        let connection = self.conns.get_mut(&asked.conn).ok_or(Status::NOT_FOUND)?;
        connection.announced = Some(Box::new(Announced { stream, tracks }));
        Ok(Some(self.good(asked)))
    }

    /// SETUP on a connection that has announced a stream.
    pub(super) fn setup_publisher(&mut self, asked: &Asked<'_>, announced: &Announced) -> Outcome {
        let connection = self.conns.get(&asked.conn).ok_or(Status::NOT_FOUND)?;
        let (peer, carried) = (connection.peer, connection.interleaved);
        let session = asked.session.or(carried);
        if session != carried {
            return Err(Status::SESSION_NOT_FOUND.into());
        }
        let set_up = session.and_then(|key| self.sessions.get(&key));
        if set_up.is_some_and(|session| session.state != State::Ready) {
            return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW));
        }
        let track = track_of(&asked.request.url, announced, set_up.map_or(0, |session| session.tracks.len()));
        let track = track.ok_or(Status::NOT_FOUND)?;
        let (lower, used) = match set_up {
            Some(session) if session.tracks.iter().any(|have| have.track == track) => {
                return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW));
            }
            Some(session) => (Some(session.lower), session.tracks.iter().map(|have| have.delivery).collect()),
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
        let spec = specs.iter().find(possible).ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        let (delivery, told) = self.publisher_delivery(spec, track, peer, &used)?;
        if session.is_none() {
            self.room_for_session(asked.conn, true)?;
        }
        let key = session.map_or_else(|| self.draw_key(), Ok)?;
        // Last of what may refuse it, for it ends whoever had them.
        if let Delivery::Udp { rtp, rtcp } = delivery {
            self.claim_ports(asked, key, [rtp, rtcp], true)?;
        }
        if session.is_none() {
            let description = Arc::new(Description { tracks: Vec::new() });
            let lower = spec.lower.unwrap_or(Lower::Tcp);
            let new = NewSession { peer, stream: announced.stream, description, lower, conn: asked.conn };
            self.insert_session(key, new, asked.now);
            if let Some(session) = self.sessions.get_mut(&key) {
                session.publishes = true;
            }
            // Over UDP too: a publisher goes with its connection.
            if let Some(connection) = self.conns.get_mut(&asked.conn) {
                connection.interleaved = Some(key);
            }
        }
        Ok(Some(self.set_up(asked, key, track, delivery, &told)))
    }

    /// Where a publisher's track comes from, and the transport to tell it.
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
                return Err(Status::UNSUPPORTED_TRANSPORT.into());
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
        let (rtp_channel, rtcp_channel) = pair.ok_or(Status::UNSUPPORTED_TRANSPORT)?;
        let told = format!("{protocol};unicast;interleaved={rtp_channel}-{rtcp_channel};mode=record");
        Ok((Delivery::Interleaved { rtp_channel, rtcp_channel }, told))
    }

    pub(super) fn record(&mut self, asked: &Asked<'_>) -> Outcome {
        let key = asked.session.ok_or(Status::SESSION_NOT_FOUND)?;
        let connection = self.conns.get(&asked.conn).ok_or(Status::NOT_FOUND)?;
        let announced = connection.announced.clone().filter(|_| connection.interleaved == Some(key));
        let announced = announced.ok_or_else(|| self.wrong_state(key))?;
        let peer = connection.peer;
        let session = self.sessions.get_mut(&key).ok_or(Status::SESSION_NOT_FOUND)?;
        match session.state {
            State::Playing => return Ok(Some(self.good(asked))),
            State::Starting => return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW)),
            State::Ready => {}
        }
        session.state = State::Starting;
        session.announced = true;
        // Tracks that were announced and not set up do not come.
        let all = session.tracks.iter().map(|have| have.track.0).collect::<Vec<_>>();
        let tracks = all.iter().map(|track| announced.tracks[usize::from(*track)].source.clone()).collect();
        let answer = self.good(asked);
        self.wait(asked.conn, Waiting { session: key, answer, cseq: asked.cseq.to_owned() });
        self.push(Event::Record { session: key, conn: asked.conn, stream: announced.stream, peer, tracks });
        Ok(None)
    }

    /// The publisher's session and track that a datagram's sender address belongs to, and whether it is RTCP.
    pub(super) fn publisher_at(&self, from: SocketAddr) -> Option<(SessionKey, usize, bool)> {
        self.by_publisher.get(&canonical(from)).copied()
    }

    /// Media or RTCP of a publisher.
    pub(super) fn publisher_packet(&mut self, now: Instant, key: SessionKey, index: usize, rtcp: bool, packet: Bytes) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.heard = now;
        if session.state != State::Playing {
            return self.count(Limited::FrameUnasked);
        }
        let stream = session.stream;
        self.push(Event::Published { session: key, stream, track: TrackId(index as u8), rtcp, packet });
    }

    /// The place of an interleaved channel among a publisher's tracks, and whether it is the one for RTCP.
    pub(super) fn published_channel(&self, key: SessionKey, channel: u8) -> Option<(usize, bool)> {
        let session = self.sessions.get(&key).filter(|session| session.publishes)?;
        session.tracks.iter().enumerate().find_map(|(index, set_up)| match set_up.delivery {
            Delivery::Interleaved { rtp_channel, .. } if rtp_channel == channel => Some((index, false)),
            Delivery::Interleaved { rtcp_channel, .. } if rtcp_channel == channel => Some((index, true)),
            _ => None,
        })
    }

    /// A session that is refused or ended by the control thread.
    pub fn end_publisher(&mut self, now: Instant, session: SessionKey, reason: EndReason) {
        if self.sessions.get(&session).is_some_and(|session| session.publishes) {
            self.end_session(now, session, reason);
        }
    }

    /// The stream whose packets a connection brings within itself.
    pub fn published_in(&self, conn: ConnId) -> Option<StreamId> {
        let session = self.sessions.get(&self.conns.get(&conn)?.interleaved?)?;
        let within = |set_up: &SetUp| matches!(set_up.delivery, Delivery::Interleaved { .. });
        (session.publishes && session.tracks.iter().all(within)).then_some(session.stream)
    }

    /// Whether a connection is a publisher's, which deserves large reads.
    pub fn publishes(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|connection| connection.announced.is_some())
    }
}

/// The tracks of a publisher's description that can be passed on.
fn announced_tracks(body: &[u8]) -> Vec<AnnouncedTrack> {
    let track = |media: sdp::MediaAttrs| {
        let payload_type = media.payload_type?;
        let assigned = sdp::static_payload(payload_type);
        let (encoding, clock_rate, channels) = match media.rtpmap {
            Some(rtpmap) => (rtpmap.encoding, rtpmap.clock_rate, rtpmap.channels),
            None => assigned.map(|(encoding, rate, channels)| (encoding.to_owned(), rate, channels))?,
        };
        let source = SourceTrack {
            media: media.media,
            encoding,
            payload_type,
            clock_rate,
            channels,
            fmtp: media.fmtp,
            attributes: media.attributes,
        };
        Some(AnnouncedTrack { source, control: media.control.unwrap_or_default() })
    };
    sdp::media_attributes(body).into_iter().filter_map(track).collect()
}

/// The track that a SETUP's URL names: the one whose control it ends with, else the next one that is not set up.
fn track_of(url: &str, announced: &Announced, set_up: usize) -> Option<TrackId> {
    let url = without_credentials(url);
    let url = url.trim_end_matches('/');
    let named = announced.tracks.iter().position(|track| {
        let control = track.control.trim_end_matches('/');
        let end = url.strip_suffix(control).filter(|_| !control.is_empty() && control != "*");
        end.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    });
    let index = named.or((set_up < announced.tracks.len()).then_some(set_up))?;
    Some(TrackId(index as u8))
}
