//! Clients' coming, playing and going.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::link::{Closing, Kind, Link, Playing, Target, Targets};
use super::{Core, Handover, Start, leave_reason};
use crate::egress::{Conn, Datagrams, Egress, Token};
use crate::limits::{ANSWER_BYTES_MAX, MOVES_MAX};
use crate::metrics::{ClientSnapshot, Counter, Limited, Reception, Transport};
use crate::session::{CloseReason, ConnId, Delivery, EndReason, Event, FirstPacket, PlayTrack, SessionKey};
use crate::shard::inbox::{Backlog, Publishing, ToControl, Verdict};
use crate::shard::player::Player;
use crate::stream::chunk::{Run, Span};
use crate::stream::{StreamId, TrackId};
use crate::wire::rtcp::{self, ReportBlock};

/// The canonical name of the relay's SDES and BYE packets (RFC 3550 section 6.5.1).
pub const CNAME: &str = "rtsprelay";

impl<E: Egress> Core<E> {
    pub(super) fn add_link(&mut self, kind: Kind) -> Token {
        self.links.insert(|generation| Link {
            generation,
            kind,
            playing: None,
            closing: Closing::No,
            farewell: None,
            busy: None,
            arrivals: SmallVec::new(),
            media_bytes: 0,
            op_bytes: 0,
            op_track: None,
            queued: false,
            stalled: false,
        })
    }

    pub(super) fn link(&self, token: Token) -> Option<&Link> {
        self.links.get(token.slot as usize).filter(|link| link.generation == token.generation)
    }

    /// Does what the RTSP server asks for.
    pub(super) fn process_events(&mut self, now: Instant) {
        // Sender reports of clients that begin to play: they follow the answer, which is an event of its own.
        let mut reports: SmallVec<[u32; 2]> = SmallVec::new();
        let caller = self.at;
        while let Some(event) = self.server.poll_event() {
            self.at = event.conn().map(|conn| conn.0).or(caller);
            match event {
                Event::Answer { conn, bytes } => self.answer(now, conn.0, bytes),
                Event::Play { session, conn, stream, tracks, resumed } => {
                    match self.play(now, session, conn, stream, &tracks, resumed) {
                        Ok((slot, first)) => {
                            self.server.start(now, session, &first);
                            reports.push(slot);
                        }
                        Err(status) => self.server.refuse(now, session, status),
                    }
                }
                Event::Pause { session } => self.pause(session),
                Event::End { session, reason } => {
                    match self.publishers.remove(&session) {
                        Some((stream, _)) => self.publishing(stream, session, Publishing::Ended(reason)),
                        None => self.session_ended(session, reason),
                    };
                }
                Event::Record { session, stream, peer, tracks, .. } => {
                    self.publishers.insert(session, (stream, Backlog::default()));
                    self.publishing(stream, session, Publishing::Record { peer, tracks });
                }
                Event::Published { session, stream, track, rtcp, packet } => {
                    let Some((_, backlog)) = self.publishers.get(&session) else { continue };
                    let Some(held) = backlog.hold(&packet) else {
                        self.metrics.limited(Limited::PublisherQueue);
                        continue;
                    };
                    let what = Publishing::Packet { track, rtcp, received: now, packet, held };
                    self.publishing(stream, session, what);
                }
                Event::ReceiverReport { session, track, report } => self.received(session, track, &report),
                Event::Demand { stream, wanted } => self.outbox.push(ToControl::Demand { stream, wanted }),
                Event::Move { conn, shard, unread } => self.hand_over(conn.0, shard, unread),
                Event::Close { conn, reason } => {
                    if let (CloseReason::NotRtsp(fault), Some(link)) = (reason, self.links.get(conn.0 as usize))
                        && let Kind::Tcp { peer, .. } = &link.kind
                    {
                        tracing::warn!(client = %peer, "{fault}: closed");
                    }
                    self.close(conn.0, Closing::Flush);
                }
            }
        }
        self.at = None;
        for slot in reports {
            self.queue_reports(slot);
        }
    }

    fn publishing(&mut self, stream: StreamId, session: SessionKey, what: Publishing) {
        self.outbox.push(ToControl::Publishing { stream, session, what });
    }

    /// What the control thread says to a publisher.
    pub fn publisher(&mut self, now: Instant, session: SessionKey, verdict: Verdict) {
        match verdict {
            Verdict::Go => self.server.recording(now, session),
            Verdict::Refuse(status) => {
                self.publishers.remove(&session);
                self.server.refuse(now, session, status);
            }
            Verdict::End(reason) => {
                self.publishers.remove(&session);
                self.server.end_publisher(now, session, reason);
            }
        }
        self.process_events(now);
    }

    fn answer(&mut self, now: Instant, slot: u32, bytes: Bytes) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Kind::Tcp { answers, answer_bytes, peer, .. } = &mut link.kind else { return };
        *answer_bytes += bytes.len();
        answers.push_back(bytes);
        if *answer_bytes > ANSWER_BYTES_MAX && link.closing == Closing::No {
            let playing = link.playing.as_ref();
            tracing::warn!(
                stream = playing.map(|playing| tracing::field::display(&self.streams[usize::from(playing.stream.0)].name)),
                client = %peer,
                session = playing.map(|playing| tracing::field::display(playing.session)),
                "asks on without reading the answers: closed"
            );
            self.metrics.limited(Limited::AnswersUnread);
            self.server.disconnected(now, ConnId(slot));
            self.close(slot, Closing::Join);
            return;
        }
        self.wake(slot);
    }

    /// Makes the session's client play. Returns its slot and its first packets, or the status to refuse it with.
    fn play(
        &mut self,
        now: Instant,
        session: SessionKey,
        conn: ConnId,
        id: StreamId,
        tracks: &[PlayTrack],
        resumed: bool,
    ) -> Result<(u32, Vec<FirstPacket>), u16> {
        const NOT_VALID_IN_THIS_STATE: u16 = 455;
        const SERVICE_UNAVAILABLE: u16 = 503;
        let slot = match self.sessions.get(&session).copied() {
            Some(slot) => {
                self.resume(now, slot, resumed);
                slot
            }
            None if tracks.iter().any(|track| matches!(track.delivery, Delivery::Multicast { .. })) => {
                let Some(peer) = self.peer(conn) else { return Err(NOT_VALID_IN_THIS_STATE) };
                self.receiver_plays(session, id, peer, tracks)
            }
            None => {
                let stream = &self.streams[usize::from(id.0)];
                let description = stream.description.as_ref().ok_or(SERVICE_UNAVAILABLE)?;
                let channels: Vec<_> = tracks
                    .iter()
                    .map(|track| match track.delivery {
                        Delivery::Interleaved { rtp_channel, rtcp_channel } => {
                            (track.track, (rtp_channel, rtcp_channel))
                        }
                        _ => (track.track, (track.track.rtp_channel(), track.track.rtcp_channel())),
                    })
                    .collect();
                let mut player = Player::new(description, &channels, &stream.log, now);
                if stream.start == Start::Cached {
                    player.start_cached(&stream.log, now);
                }
                let targets: Targets = tracks
                    .iter()
                    .filter_map(|track| match track.delivery {
                        Delivery::Udp { rtp, rtcp } => Some(Target { track: track.track, rtp, rtcp_port: rtcp.port() }),
                        _ => None,
                    })
                    .collect();
                let Some(peer) = self.peer(conn) else { return Err(NOT_VALID_IN_THIS_STATE) };
                let (slot, transport) = if targets.is_empty() {
                    (conn.0, Transport::Tcp)
                } else {
                    let kind = Kind::Udp {
                        targets,
                        own: VecDeque::new(),
                        own_sockets: None,
                        plain: false,
                        burst_bytes: 0,
                        burst_from: now,
                        paced: false,
                    };
                    (self.add_link(kind).slot, Transport::Udp)
                };
                let link = &mut self.links[slot as usize];
                if link.playing.is_some() {
                    // One connection carries one interleaved session's media.
                    return Err(NOT_VALID_IN_THIS_STATE);
                }
                let members = &mut self.streams[usize::from(id.0)].members;
                link.playing = Some(Playing::new(now, (session, peer), (id, transport), player, members.len()));
                members.push(slot);
                self.sessions.insert(session, slot);
                self.metrics.client_joined(id, transport);
                tracing::info!(
                    stream = %self.streams[usize::from(id.0)].name,
                    client = %peer,
                    session = %session,
                    transport = transport.name(),
                    "plays"
                );
                slot
            }
        };
        self.wake(slot);
        Ok((slot, self.first_packets(now, slot)))
    }

    /// The client of a connection, as people write its address.
    fn peer(&self, conn: ConnId) -> Option<SocketAddr> {
        match self.links.get(conn.0 as usize)?.kind {
            // At a listener for both families an IPv4 address comes as an IPv6 one.
            Kind::Tcp { peer, .. } => Some(SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            _ => None,
        }
    }

    fn resume(&mut self, now: Instant, slot: u32, resumed: bool) {
        let Some(playing) = &mut self.links[slot as usize].playing else { return };
        if !(playing.paused && resumed) {
            return;
        }
        playing.paused = false;
        playing.player.resume(&mut self.streams[usize::from(playing.stream.0)].log, now);
    }

    /// The first packet of each track, by the log where it has it, else by the numbers that come next.
    fn first_packets(&self, now: Instant, slot: u32) -> Vec<FirstPacket> {
        let link = &self.links[slot as usize];
        let (id, player, tracks): (_, _, SmallVec<[TrackId; 4]>) = match (&link.kind, &link.playing) {
            (Kind::Receiver { stream, tracks, .. }, _) => (*stream, None, tracks.iter().copied().collect()),
            (_, Some(playing)) => (playing.stream, Some(&playing.player), playing.player.tracks().collect()),
            _ => return Vec::new(),
        };
        let stream = &self.streams[usize::from(id.0)];
        let Some(description) = &stream.description else { return Vec::new() };
        let first = |track: TrackId| {
            if let Some(chunk) = player.and_then(|player| player.first_chunk(&stream.log, track)) {
                return FirstPacket { track, seq: chunk.first_seq, rtp_time: chunk.rtp_time };
            }
            let described = &description.tracks[usize::from(track.0)];
            match stream.tails.get(usize::from(track.0)).copied().flatten() {
                Some(tail) => {
                    FirstPacket { track, seq: tail.next_seq, rtp_time: described.rtp_time_at(tail.clock, now) }
                }
                None => FirstPacket {
                    track,
                    seq: described.first_seq,
                    rtp_time: described.rtp_time_at(described.clock, now),
                },
            }
        };
        tracks.into_iter().map(first).collect()
    }

    /// The sequence numbers that a client's tracks would have gone on with after the operation under way, for the log.
    pub(super) fn next_seq(&self, now: Instant, slot: u32) -> String {
        let next = self.first_packets(now, slot);
        next.iter().map(|first| first.seq.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Gives a client that begins to play the last sender report of each of its tracks, right behind the answer.
    fn queue_reports(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Some(playing) = &link.playing else { return };
        for report in self.streams[usize::from(playing.stream.0)].reports.iter().flatten() {
            let Some((_, rtcp_channel)) = playing.player.channels(report.track) else { continue };
            match &mut link.kind {
                Kind::Tcp { answers, answer_bytes, .. } => {
                    *answer_bytes += report.bytes.len();
                    answers.push_back(if rtcp_channel == report.channel() {
                        report.bytes.clone()
                    } else {
                        report.render(rtcp_channel)
                    });
                }
                Kind::Udp { targets, own, .. } => {
                    if let Some(target) = targets.iter().find(|target| target.track == report.track) {
                        own.push_back((target.rtcp(), Rc::new(Datagrams::of(report))));
                    }
                }
                Kind::Receiver { .. } => {}
            }
        }
        self.wake(slot);
    }

    /// Notes what a client says of its reception.
    fn received(&mut self, session: SessionKey, track: TrackId, report: &ReportBlock) {
        self.metrics.count(Counter::ReceiverReports, 1);
        let Some(slot) = self.sessions.get(&session) else { return };
        let Some(playing) = &mut self.links[*slot as usize].playing else { return };
        if playing.reception.is_some_and(|known| known.track < track) {
            return;
        }
        let description = self.streams[usize::from(playing.stream.0)].description.as_ref();
        let clock_rate = description.and_then(|is| is.tracks.get(usize::from(track.0))).map_or(0, |is| is.clock_rate);
        playing.reception = Some(Reception {
            track,
            fraction_lost: f32::from(report.fraction_lost) / 256.0,
            lost: report.lost,
            jitter: Duration::from_secs_f64(f64::from(report.jitter) / f64::from(clock_rate.max(1))),
        });
    }

    fn pause(&mut self, session: SessionKey) {
        if let Some(slot) = self.sessions.get(&session)
            && let Some(playing) = &mut self.links[*slot as usize].playing
        {
            playing.paused = true;
        }
    }

    fn session_ended(&mut self, session: SessionKey, reason: EndReason) {
        let Some(slot) = self.sessions.remove(&session) else { return };
        if !self.links.contains(slot as usize) {
            return;
        }
        self.remove_player(slot, reason);
        match &self.links[slot as usize].kind {
            Kind::Tcp { .. } => {}
            Kind::Udp { .. } => self.close(slot, Closing::Join),
            Kind::Receiver { .. } => self.receiver_left(session, slot, reason),
        }
    }

    /// Takes the client out of its stream and of the counts.
    pub(super) fn remove_player(&mut self, slot: u32, reason: EndReason) {
        let Some(mut playing) = self.links[slot as usize].playing.take() else { return };
        self.leave(&mut playing, reason);
    }

    fn leave(&mut self, playing: &mut Playing, reason: EndReason) {
        self.sessions.remove(&playing.session);
        let stream = &mut self.streams[usize::from(playing.stream.0)];
        if playing.member != usize::MAX {
            stream.members.swap_remove(playing.member);
            if let Some(moved) = stream.members.get(playing.member)
                && let Some(moved) = &mut self.links[*moved as usize].playing
            {
                moved.member = playing.member;
            }
            playing.member = usize::MAX;
            if playing.transport == Transport::Multicast {
                // The group itself, which is no client.
                return;
            }
            self.metrics.client_left(playing.stream, playing.transport, leave_reason(reason));
            tracing::info!(
                stream = %stream.name,
                client = %playing.peer,
                session = %playing.session,
                reason = leave_reason(reason).name(),
                bytes = playing.bytes,
                skips = playing.skips,
                "plays no more"
            );
        }
    }

    /// The shard ends a client: what it has begun is finished, then comes a BYE, then its link is closed.
    pub(super) fn end_client(&mut self, now: Instant, slot: u32, reason: EndReason) {
        let Some(mut playing) = self.links[slot as usize].playing.take() else { return };
        self.leave(&mut playing, reason);
        playing.player.finish(&mut self.streams[usize::from(playing.stream.0)].log);
        let session = playing.session;
        let stream = &self.streams[usize::from(playing.stream.0)];
        let link = &mut self.links[slot as usize];
        if let Some(description) = &stream.description {
            let mut farewell = Vec::new();
            for (track, described) in (0u8..).map(TrackId).zip(&description.tracks) {
                let Some((_, channel)) = playing.player.channels(track) else { continue };
                let bye = rtcp::bye(described.ssrc, CNAME);
                match &mut link.kind {
                    Kind::Tcp { .. } => {
                        farewell.extend_from_slice(&[b'$', channel]);
                        farewell.extend_from_slice(&(bye.len() as u16).to_be_bytes());
                        farewell.extend_from_slice(&bye);
                    }
                    Kind::Udp { targets, own, .. } => {
                        if let Some(target) = targets.iter().find(|target| target.track == track) {
                            own.push_back((target.rtcp(), Rc::new(single_datagram(bye))));
                        }
                    }
                    Kind::Receiver { .. } => {}
                }
            }
            link.farewell = (!farewell.is_empty()).then(|| Bytes::from(farewell));
        }
        link.playing = Some(playing);
        self.server.end_session(now, session, reason);
        if let Kind::Udp { .. } = self.links[slot as usize].kind {
            self.close(slot, Closing::Flush);
        }
    }

    fn hand_over(&mut self, slot: u32, shard: u16, unread: Bytes) {
        let Some(link) = self.links.get(slot as usize) else { return };
        let idle = link.busy.is_none();
        let Kind::Tcp { conn, peer, answers, moves, .. } = &link.kind else { return };
        if *moves >= MOVES_MAX {
            tracing::warn!(client = %peer, "asks for sessions of ever other shards: closed");
            self.metrics.limited(Limited::Moves);
            return self.close(slot, Closing::Join);
        }
        // Its answers have been read before it asks on, unless it pipelines across shards, which no player does.
        if !idle || !answers.is_empty() {
            tracing::warn!(client = %peer, "asks for another shard's session before it has its answers: closed");
            self.close(slot, Closing::Join);
            return;
        }
        let token = Token { slot, generation: link.generation };
        let moves = moves + 1;
        self.handovers.push(Handover { token, conn: conn.clone(), peer: *peer, shard, unread, moves });
        self.metrics.count(Counter::Moved, 1);
        self.forget(slot);
    }

    /// Closes a link as soon as `closing` allows.
    pub(super) fn close(&mut self, slot: u32, closing: Closing) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        if link.closing != Closing::Join {
            link.closing = closing;
        }
        match (link.closing, link.busy) {
            (Closing::Join, Some(_)) => {
                let token = Token { slot, generation: link.generation };
                if self.put_off.forget(token) {
                    // Nothing of it is with the egress.
                    link.busy = None;
                    self.remove(slot);
                } else {
                    self.egress.cancel(token);
                }
            }
            (Closing::Join, None) => self.remove(slot),
            _ => self.wake(slot),
        }
    }

    /// The last step: nothing of the link is in flight.
    pub(super) fn remove(&mut self, slot: u32) {
        debug_assert!(self.links[slot as usize].busy.is_none(), "a link is removed only when its operation was joined");
        self.remove_player(slot, EndReason::Disconnected);
        if let Kind::Tcp { conn, peer, .. } = &self.links[slot as usize].kind {
            let generation = self.links[slot as usize].generation;
            if self.egress.holds(Token { slot, generation }) {
                // It fails only if the connection is gone already, and everything given back.
                let _ = conn.reset_on_close();
            }
            // Ends the read that is under way; the descriptor closes when its task has let go of it.
            conn.shutdown();
            self.gone.push(*peer);
        }
        self.forget(slot);
    }

    fn forget(&mut self, slot: u32) {
        let link = self.links.remove(slot as usize);
        self.egress.forget(Token { slot, generation: link.generation });
        match link.kind {
            Kind::Udp { own_sockets: Some(own), .. } if own.rtcp.is_none() => self.own_paths -= 1,
            Kind::Receiver { stream, .. } => self.receiver_gone(stream),
            _ => {}
        }
    }

    pub(super) fn client_snapshot(
        &self,
        now: Instant,
        link: &Link,
        playing: &Playing,
        lag: Duration,
    ) -> ClientSnapshot {
        let conn = match &link.kind {
            Kind::Tcp { conn, .. } => Some(conn),
            _ => None,
        };
        let tcp = conn.and_then(Conn::tcp).and_then(|fd| crate::sys::tcp_info(&fd).ok());
        ClientSnapshot {
            peer: playing.peer,
            session: playing.session.to_string(),
            user_agent: self.server.session_info(playing.session).and_then(|info| info.user_agent),
            playing: now.saturating_duration_since(playing.since),
            stream: playing.stream,
            transport: playing.transport,
            tls: conn.and_then(Conn::tls).is_some(),
            bytes: playing.bytes,
            lag,
            skips: playing.skips,
            p99: playing.latency.p99(),
            rtt: tcp.map(|tcp| tcp.rtt),
            retransmits: tcp.map(|tcp| u64::from(tcp.retransmits)),
            reception: playing.reception,
        }
    }
}

/// One packet that no chunk holds, as a UDP client is sent it.
fn single_datagram(packet: Vec<u8>) -> Datagrams {
    let len = packet.len() as u16;
    let (packet_at, run) = (Span { offset: 0, len }, Run { first: 0, count: 1, segment: len });
    Datagrams::new(Bytes::from(packet), Box::new([packet_at]), Box::new([run]))
}
