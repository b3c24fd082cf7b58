//! SETUP of a player: the transport of a track, and its ports or channels.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connections::Connection;
use super::methods::{ALLOW_PLAYED, Asked, Found, Outcome, Refusal, refusal};
use super::no_transport::NoTransport;
use super::ports::{Holder, canonical};
use super::resource::without_credentials;
use super::server::Server;
use super::sessions::{NewSession, Session, SetUp, State};
use super::types::{ConnId, Delivery, EndReason, SessionKey};
use crate::access::User;
use crate::limits::CLIENT_PORT_MIN;
use crate::media::{StreamId, TrackId};
use crate::metrics::Limited;
use crate::wire::rtsp::{Response, Status};
use crate::wire::transport::{self, Lower, Spec};

impl Server {
    pub(super) fn setup(&mut self, asked: &Asked<'_>) -> Outcome {
        if let Some(announced) = self.connections.get(asked.conn).and_then(|connection| connection.announced.clone()) {
            return self.setup_publisher(asked, &announced);
        }
        let Found::Stream { stream, track, .. } = self.resource(asked)? else {
            return Err(Status::AGGREGATE_NOT_ALLOWED.into());
        };
        self.ask(asked.now, stream);
        let description = self.described(stream)?;
        let track = match (track, description.tracks.len()) {
            (Some(track), tracks) if track < tracks => TrackId(track as u8),
            (Some(_), _) => return Err(Status::NOT_FOUND.into()),
            (None, 1) => TrackId(0),
            (None, _) => return Err(Status::AGGREGATE_NOT_ALLOWED.into()),
        };
        if asked.session.is_none() {
            self.move_home(asked.conn, stream, false)?;
        }
        // A client that sends several SETUPs at once does not know the session id yet: it means the session that its connection
        // carries.
        let carried = self.connections.get(asked.conn).and_then(Connection::interleaved);
        let mut session = asked.session.or_else(|| {
            let is_it = |session: &Session| session.stream == stream && session.state() == State::Ready;
            carried.filter(|key| self.sessions.get(*key).is_some_and(is_it))
        });
        if let Some(key) = session {
            self.may_set_up(key, stream, asked)?;
        }
        let offered = asked.request.list("Transport").ok_or(Status::BAD_REQUEST)?;
        let specs = transport::parse(&offered);
        // As datagrams the media would be sent unencrypted, although the client uses encryption.
        let allowed = |spec: &&Spec| spec.lower == Some(Lower::Tcp) || self.may_use_udp(asked.conn);
        let spec = specs.iter().filter(allowed).find(|spec| self.acceptable(spec, session, stream));
        let spec = spec.ok_or_else(|| self.no_transport(&specs, asked.conn, session, stream))?;
        let lower = spec.lower.unwrap_or(Lower::Tcp);
        if session.is_none() && asked.request.header("Session").is_none() && lower == Lower::Udp {
            session = self.session_without(asked.conn, stream, track);
            session = session.filter(|key| self.acceptable(spec, Some(*key), stream));
        }
        if session.is_none() {
            if lower == Lower::Tcp && carried.is_some() {
                // One connection carries one session.
                return Err(refusal(Status::METHOD_NOT_VALID, "Allow", ALLOW_PLAYED));
            }
            self.room_for_session(asked.conn, false)?;
        }
        let peer = self.connections.get(asked.conn).map(|connection| connection.peer).ok_or(Status::NOT_FOUND)?;
        let ssrc = description.tracks[usize::from(track.0)].ssrc;
        let key = session.map_or_else(|| self.sessions.draw_key(), Ok)?;
        let (delivery, told) = match lower {
            Lower::Tcp => self.interleave(session, stream, track, spec, ssrc)?,
            Lower::Udp if spec.multicast => self.group(session, stream, track, spec, ssrc)?,
            Lower::Udp => self.datagrams(asked, key, track, spec, ssrc)?,
        };
        if session.is_none() {
            let (description, conn) = (description.clone(), asked.conn);
            let new = NewSession { peer, stream, description, lower, conn, publishes: false };
            self.insert_session(key, &new, asked.now);
        }
        let url = without_credentials(&asked.request.url);
        Ok(Some(self.set_up(asked, key, SetUp { track, delivery, url, discarded: false }, &told)))
    }

    /// Adds a track to a session; returns the answer with its transport.
    pub(super) fn set_up(&mut self, asked: &Asked<'_>, key: SessionKey, track: SetUp, transport: &str) -> Response {
        self.add_track(key, track);
        self.note_user_agent(key, asked.request);
        self.good(&Asked { session: Some(key), ..*asked }).header("Transport", transport)
    }

    /// The only session of a connection, if it is being set up and still lacks this track of its stream.
    fn session_without(&self, conn: ConnId, stream: StreamId, track: TrackId) -> Option<SessionKey> {
        self.only_session(conn).filter(|key| {
            let session = &self.sessions[key];
            let is_players = session.is_being_set_up() && !session.publishes;
            is_players && session.stream == stream && session.tracks().iter().all(|have| have.track != track)
        })
    }

    /// Whether this connection may now add a track to this session.
    fn may_set_up(&self, key: SessionKey, stream: StreamId, asked: &Asked<'_>) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(key) else { return Err(Status::SESSION_NOT_FOUND.into()) };
        if session.stream != stream {
            return Err(Status::AGGREGATE_NOT_ALLOWED.into());
        }
        // A session that has played keeps its tracks, and a published one those that were announced.
        if session.publishes || !session.is_being_set_up() || !self.carries(key, asked.conn) {
            return Err(self.wrong_state(key));
        }
        Ok(())
    }

    /// Whether a session's media can use this connection: datagrams can use any, interleaved media only their own.
    pub(super) fn carries(&self, key: SessionKey, conn: ConnId) -> bool {
        self.sessions.get(key).is_some_and(|session| session.lower == Lower::Udp || session.conn() == Some(conn))
    }

    fn acceptable(&self, spec: &Spec, session: Option<SessionKey>, stream: StreamId) -> bool {
        let possible = match spec.lower {
            Some(Lower::Udp) if spec.multicast => self.streams.multicast(stream).is_some(),
            Some(Lower::Tcp) => true,
            Some(Lower::Udp) => self.config.udp_ports.is_some() && spec.client_port.is_some(),
            None => false,
        };
        // All tracks of a session use one kind of transport.
        let same = session.and_then(|key| self.sessions.get(key)).is_none_or(|have| {
            let multicast = have.tracks().iter().any(|is| matches!(is.delivery, Delivery::Multicast { .. }));
            Some(have.lower) == spec.lower && (have.tracks().is_empty() || multicast == spec.multicast)
        });
        possible && same && spec.plays() && (spec.lower == Some(Lower::Udp) || !spec.multicast)
    }

    /// Why none of the transports that a player offers is possible.
    fn no_transport(
        &self,
        offered: &[Spec],
        conn: ConnId,
        session: Option<SessionKey>,
        stream: StreamId,
    ) -> NoTransport {
        let (encrypted, group) = (!self.may_use_udp(conn), self.streams.multicast(stream).is_some());
        let other = session.and_then(|key| self.sessions.get(key)).is_some_and(|have| !have.tracks().is_empty());
        NoTransport::of(offered, encrypted, group, self.config.udp_ports.is_some(), other)
    }

    /// Multicast: the stream's own group and ports, whatever was requested.
    fn group(
        &mut self,
        session: Option<SessionKey>,
        stream: StreamId,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let multicast = self.streams.multicast(stream).ok_or(NoTransport::NoGroup)?;
        let rtp = multicast.of(track).ok_or(NoTransport::NoGroup)?;
        if let Some(key) = session {
            self.drop_track(key, track, &[]);
        }
        let told = transport::Answer::Multicast { protocol: &spec.protocol, rtp, ttl: multicast.ttl, ssrc };
        Ok((Delivery::Multicast { rtp }, told.to_string()))
    }

    fn interleave(
        &mut self,
        session: Option<SessionKey>,
        stream: StreamId,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let mut used = Vec::new();
        let mut before = None;
        for set_up in session.and_then(|key| self.sessions.get(key)).map_or(&[][..], Session::tracks) {
            match set_up.delivery {
                Delivery::Interleaved { rtp_channel, rtcp_channel } if set_up.track != track => {
                    used.extend([rtp_channel, rtcp_channel]);
                }
                _ => before = session,
            }
        }
        let channels = self.streams.take_channels(stream, track, spec.interleaved, &used);
        let channels = channels.ok_or(NoTransport::NoChannels)?;
        if let Some(key) = before {
            // Set up again: the old ports or channels are released only now, so that a refusal changes nothing.
            self.drop_track(key, track, &[]);
        }
        let delivery = Delivery::Interleaved { rtp_channel: channels.0, rtcp_channel: channels.1 };
        let told = transport::Answer::Interleaved { protocol: &spec.protocol, channels, ssrc };
        Ok((delivery, told.to_string()))
    }

    fn datagrams(
        &mut self,
        asked: &Asked<'_>,
        key: SessionKey,
        track: TrackId,
        spec: &Spec,
        ssrc: u32,
    ) -> Result<(Delivery, String), Refusal> {
        let (Some(server_port), Some(client_port)) = (self.config.udp_ports, spec.client_port) else {
            return Err(NoTransport::NoPorts.into());
        };
        let peer = self.connections.get(asked.conn).map(|is| is.peer).ok_or(Status::NOT_FOUND)?;
        // Whatever `destination` says: a client must not direct media to others.
        let at = |port| {
            let mut address = peer;
            address.set_port(port);
            address
        };
        let (rtp, rtcp) = (at(client_port.0), at(client_port.1));
        // A client must not make the relay send to other hosts' services.
        if client_port.0.min(client_port.1) < CLIENT_PORT_MIN {
            self.count(Limited::UdpPorts);
            return Err(NoTransport::LowPorts.into());
        }
        let ports = [rtp, rtcp].map(canonical);
        let taken = self.sessions.get(key).into_iter().flat_map(Session::tracks).any(|have| {
            matches!(have.delivery, Delivery::Udp { rtp, rtcp }
                if have.track != track && [rtp, rtcp].map(canonical).iter().any(|port| ports.contains(port)))
        });
        if taken {
            return Err(NoTransport::OwnTrack.into());
        }
        self.claim_ports(asked, key, ports, false)?;
        self.drop_track(key, track, &ports);
        let told = transport::Answer::Udp { protocol: &spec.protocol, client_port, server_port, ssrc };
        Ok((Delivery::Udp { rtp, rtcp }, told.to_string()))
    }

    /// Makes these ports belong only to this session, a player's or publisher's: datagrams from another sender there could not be told
    /// from it, and a player there would get both streams. A session of the same user that has one of them ends: it is probably a
    /// program that was restarted. But a player never takes a port from a publisher.
    ///
    /// # Errors
    /// 461, with nothing changed. Behind NAT two users can have the same ports, on any shards, and neither may end the other's session
    /// or receive its media. The ports may also belong to another track of a publisher. And datagrams from the relay's own ports could
    /// not be told from its own, and it must not send to itself.
    pub(super) fn claim_ports(
        &mut self,
        asked: &Asked<'_>,
        session: SessionKey,
        ports: [SocketAddr; 2],
        publishes: bool,
    ) -> Result<(), Refusal> {
        let ports = ports.map(canonical);
        let players = ports.map(|port| self.ports.session_at(port).filter(|old| *old != session));
        let publishers = ports.map(|port| self.ports.publisher_at(port).map(|(old, ..)| old));
        let stays = |old: &SessionKey| !publishes || *old == session;
        let others = |old: &SessionKey| !self.is_users(&self.sessions[old], asked.conn);
        if publishers.iter().flatten().any(stays)
            || players.iter().chain(&publishers).flatten().any(others)
            || !self.claim_of_all_shards(asked, session, ports, publishes)
        {
            self.count(Limited::UdpPorts);
            return Err(NoTransport::Taken.into());
        }
        for old in players.into_iter().chain(publishers).flatten() {
            self.remove_session(old, EndReason::Replaced, true);
        }
        Ok(())
    }

    /// Claims ports, of canonical addresses, for a session that is or will be the connection's; returns whether it has them now. Ports
    /// that lead back to the relay itself are refused.
    fn claim_of_all_shards(
        &self,
        asked: &Asked<'_>,
        session: SessionKey,
        ports: [SocketAddr; 2],
        publishes: bool,
    ) -> bool {
        let Some(connection) = self.connections.get(asked.conn) else { return false };
        if self.ports.leads_back(connection.peer.ip(), connection.local.ip(), ports.map(|port| port.port())) {
            return false;
        }
        let user = self.sessions.get(session).map_or(&connection.user, |session| &session.user).clone();
        let is_same_user = |owner: Option<&Arc<User>>| self.auth.is_same(owner, connection.user.as_ref());
        self.ports.claim(asked.now, ports, &Holder { session, user, publishes }, is_same_user)
    }
}
