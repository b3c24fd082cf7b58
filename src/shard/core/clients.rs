//! Clients: starting, playing and leaving.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use super::browser::farewell;
use super::link::{Closing, Kind, Link, Playing, Target, Targets};
use super::outage::CNAME;
use super::reasons::leave_reason;
use super::state::{Awaiting, Core};
use crate::egress::{Conn, Datagrams, Egress, Token};
use crate::limits::{ANSWER_BYTES_MAX, MOVES_MAX, STRANGER_ANSWER_BYTES_MAX};
use crate::media::chunk::{Run, Span};
use crate::media::{StreamId, TrackId};
use crate::metrics::{ClientSnapshot, Counter, Limited, Reception, Transport};
use crate::session::{CloseReason, ConnId, Delivery, EndReason, Event, FirstPacket, PlayTrack, SessionKey};
use crate::shard::inbox::{ClientNews, ToControl};
use crate::shard::player::Player;
use crate::shard::types::{Handover, Lingering, Start};
use crate::source::publishing::{Backlog, PublisherVerdict, Publishing};
use crate::wire::rtcp::{self, ReportBlock};

/// Statuses for refusing a PLAY.
const NOT_VALID_IN_THIS_STATE: u16 = 455;
const SERVICE_UNAVAILABLE: u16 = 503;

impl<E: Egress> Core<E> {
    /// Processes the events of the RTSP server.
    pub(super) fn process_events(&mut self, now: Instant) {
        // Sender reports for clients that start playing: they follow the answer, which is a separate event.
        let mut reports: SmallVec<[u32; 2]> = SmallVec::new();
        let caller = self.at;
        while let Some(event) = self.server.poll_event() {
            self.at = event.conn().map(|conn| conn.0).or(caller);
            match event {
                Event::Answer { conn, bytes } => self.answer(now, conn.0, bytes),
                Event::Play { session, conn, stream, tracks, resumed } => {
                    let awaiting = Awaiting { session, conn, stream, tracks, resumed };
                    if self.awaits(stream) {
                        self.awaiting.push(awaiting);
                    } else {
                        reports.extend(self.begin(now, awaiting));
                    }
                }
                Event::Pause { session } => match self.publishers.get(&session) {
                    Some((stream, _)) => self.publishing(*stream, session, Publishing::Paused),
                    None => self.pause(session),
                },
                Event::End { session, reason } => {
                    self.awaiting.retain(|awaiting| awaiting.session != session);
                    match self.publishers.remove(&session) {
                        Some((stream, _)) => self.publishing(stream, session, Publishing::Ended(reason)),
                        None => self.session_ended(session, reason),
                    };
                }
                Event::Record { session, stream, peer, tracks, .. } => {
                    // A client that resumes after a pause has its backlog already.
                    self.publishers.entry(session).or_insert_with(|| (stream, Backlog::default()));
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
                Event::Wanted(wanted) => self.out.tell(ToControl::Wanted(wanted)),
                Event::Asked { stream } => self.out.tell(ToControl::Asked { stream }),
                Event::Demand { stream, wanted } => self.out.tell(ToControl::Demand { stream, wanted }),
                Event::Move { conn, shard, unread } => self.hand_over(conn.0, shard, unread),
                Event::Close { conn, reason } => {
                    if let (CloseReason::NotRtsp(fault), Some(link)) = (reason, self.links.get(conn.0 as usize))
                        && let Kind::Tcp { peer, .. } = &link.kind
                    {
                        tracing::warn!(client = %peer, "{fault}: closed");
                    }
                    // A browser's page shows the reason.
                    if let CloseReason::SessionEnded(reason) = reason
                        && self.is_web(conn.0)
                        && let Some(link) = self.links.get_mut(conn.0 as usize)
                    {
                        link.farewell.get_or_insert_with(|| farewell(reason));
                    }
                    self.close(conn.0, Closing::Flush);
                }
            }
        }
        self.at = None;
        self.follow_wants(now);
        for slot in reports {
            self.queue_reports(slot);
        }
    }

    /// Makes a session play. Returns its slot, which must be sent the tracks' last reports after its answer.
    pub(super) fn begin(&mut self, now: Instant, awaiting: Awaiting) -> Option<u32> {
        let Awaiting { session, conn, stream, tracks, resumed } = awaiting;
        match self.play(now, session, conn, stream, &tracks, resumed) {
            Ok((slot, first)) => {
                self.server.start(now, session, &first);
                Some(slot)
            }
            Err(status) => {
                self.server.refuse(now, session, status);
                None
            }
        }
    }

    /// Handles a source's message to a publisher.
    pub fn publisher(&mut self, now: Instant, session: SessionKey, verdict: PublisherVerdict) {
        match verdict {
            PublisherVerdict::Go => self.server.recording(now, session),
            PublisherVerdict::Refuse(status) => {
                self.publishers.remove(&session);
                self.server.refuse(now, session, status);
            }
            PublisherVerdict::End(reason) => {
                self.publishers.remove(&session);
                self.server.end_publisher(now, session, reason);
            }
        }
        self.process_events(now);
    }

    pub(super) fn answer(&mut self, now: Instant, slot: u32, bytes: Bytes) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Kind::Tcp { answers, answer_bytes, peer, .. } = &mut link.kind else { return };
        *answer_bytes += bytes.len();
        answers.push_back(bytes);
        // Bytes in flight are not read by the client yet either, and without a player they are all answers.
        let under_way = if link.busy.is_some() && link.playing.is_none() { link.op_bytes } else { 0 };
        let waiting = *answer_bytes + under_way;
        let max = if self.server.is_stranger(ConnId(slot)) { STRANGER_ANSWER_BYTES_MAX } else { ANSWER_BYTES_MAX };
        self.server.set_unread(ConnId(slot), waiting);
        if waiting > max && link.closing == Closing::No {
            let playing = link.playing.as_ref();
            tracing::warn!(
                stream = playing.map(|playing| tracing::field::display(&self.streams[playing.stream.index()].name)),
                client = %peer,
                session = playing.map(|playing| tracing::field::display(playing.session)),
                "sends requests without reading the answers: closed"
            );
            self.metrics.limited(Limited::AnswersUnread);
            self.server.disconnected(now, ConnId(slot));
            self.close(slot, Closing::Join);
            return;
        }
        self.links.wake(slot);
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
        let slot = match self.links.of_session(session) {
            Some(slot) => {
                self.resume(now, slot, resumed);
                slot
            }
            None if tracks.iter().any(|track| matches!(track.delivery, Delivery::Multicast { .. })) => {
                let peer = self.peer(conn).ok_or(NOT_VALID_IN_THIS_STATE)?;
                self.receiver_plays(session, id, peer, tracks)
            }
            None => self.join(now, session, conn, id, tracks)?,
        };
        self.links.wake(slot);
        Ok((slot, self.first_packets(now, slot)))
    }

    /// Creates a client for a session that plays for the first time. Returns its slot.
    fn join(
        &mut self,
        now: Instant,
        session: SessionKey,
        conn: ConnId,
        id: StreamId,
        tracks: &[PlayTrack],
    ) -> Result<u32, u16> {
        let stream = &self.streams[self.streams.find(id).ok_or(SERVICE_UNAVAILABLE)?];
        let description = stream.description.as_ref().ok_or(SERVICE_UNAVAILABLE)?;
        let channels = |track: &PlayTrack| match track.delivery {
            Delivery::Interleaved { rtp_channel, rtcp_channel } => (track.track, (rtp_channel, rtcp_channel)),
            _ => (track.track, (track.track.rtp_channel(), track.track.rtcp_channel())),
        };
        let channels: Vec<_> = tracks.iter().map(channels).collect();
        let mut player = Player::new(description, &channels, &stream.log, now);
        // If a camera sends nothing at present, its last picture must not be shown as if it were current, each time someone checks
        // whether there is a new one.
        if stream.start == Start::Cached && !stream.is_silent() {
            player.start_cached(&stream.log, now);
        }
        let peer = self.peer(conn).ok_or(NOT_VALID_IN_THIS_STATE)?;
        let is_web = self.is_web(conn.0);
        let target = |track: &PlayTrack| match track.delivery {
            Delivery::Udp { rtp, rtcp } => Some(Target { track: track.track, rtp, rtcp_port: rtcp.port() }),
            _ => None,
        };
        let targets: Targets = tracks.iter().filter_map(target).collect();
        let (slot, transport) = if is_web {
            (conn.0, Transport::WebSocket)
        } else if targets.is_empty() {
            (conn.0, Transport::Tcp)
        } else {
            (self.links.insert(Kind::udp(now, targets, self.reached_at(conn), None)).slot, Transport::Udp)
        };
        let link = &mut self.links[slot as usize];
        if link.playing.is_some() {
            // One connection carries one interleaved session's media.
            return Err(NOT_VALID_IN_THIS_STATE);
        }
        let member = Some(self.streams[id.index()].join(slot));
        link.playing = Some(Playing::new(now, (session, peer), (id, transport), player, member));
        self.links.bind(session, slot);
        if is_web {
            self.web_plays(slot);
        }
        self.client_plays(session, id, peer, transport);
        Ok(slot)
    }

    /// Counts a client that starts playing, notifies the control thread and logs it.
    pub(super) fn client_plays(&mut self, session: SessionKey, id: StreamId, peer: SocketAddr, transport: Transport) {
        self.metrics.client_joined(id, transport);
        self.tell_client(id, peer, session, Ok(transport));
        let stream = &self.streams[id.index()].name;
        tracing::info!(%stream, client = %peer, %session, transport = transport.name(), "started playing");
    }

    /// The source address that datagrams for a connection's client must have: if the sockets are bound to a wildcard, the address that
    /// the client connected to. Players and firewalls accept no other.
    fn reached_at(&self, conn: ConnId) -> Option<IpAddr> {
        let Kind::Tcp { conn, .. } = &self.links.get(conn.0 as usize).filter(|_| self.paths.is_wildcard())?.kind else {
            return None;
        };
        conn.local_addr().ok().map(|local| local.ip())
    }

    /// The client's address of a connection, in its usual form.
    fn peer(&self, conn: ConnId) -> Option<SocketAddr> {
        match self.links.get(conn.0 as usize)?.kind {
            // On a listener for both families, IPv4 addresses are IPv4-mapped IPv6 addresses.
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
        playing.player.resume(&mut self.streams[playing.stream.index()].log, now);
    }

    /// The first packet of each track: from the log if it is there, otherwise the next numbers.
    fn first_packets(&self, now: Instant, slot: u32) -> Vec<FirstPacket> {
        let link = &self.links[slot as usize];
        let (id, player, tracks): (_, _, SmallVec<[TrackId; 4]>) = match (&link.kind, &link.playing) {
            (Kind::Receiver { stream, tracks, .. }, _) => (*stream, None, tracks.iter().copied().collect()),
            (_, Some(playing)) => (playing.stream, Some(&playing.player), playing.player.tracks().collect()),
            _ => return Vec::new(),
        };
        let stream = &self.streams[id.index()];
        let Some(description) = &stream.description else { return Vec::new() };
        let first = |track: TrackId| {
            if let Some(chunk) = player.and_then(|player| player.first_chunk(&stream.log, track)) {
                return FirstPacket { track, seq: chunk.first_seq, rtp_time: chunk.rtp_time };
            }
            let described = &description.tracks[usize::from(track.0)];
            match stream.tail(usize::from(track.0)) {
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

    /// For the log: the sequence numbers with which a client's tracks would have continued after the operation in flight.
    pub(super) fn next_seq(&self, now: Instant, slot: u32) -> String {
        let next = self.first_packets(now, slot);
        next.iter().map(|first| first.seq.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Sends a client that starts playing the last sender report of each of its tracks, right after the answer.
    pub(super) fn queue_reports(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Some(playing) = &link.playing else { return };
        if playing.player.wants_fragments() {
            return;
        }
        for report in self.streams[playing.stream.index()].reports() {
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
                        own.push_back((target.rtcp(), Rc::new(Datagrams::of(report, Arc::clone(report).into()))));
                    }
                }
                Kind::Receiver { .. } => {}
            }
        }
        self.links.wake(slot);
    }

    /// Records a client's receiver report.
    fn received(&mut self, session: SessionKey, track: TrackId, report: &ReportBlock) {
        self.metrics.count(Counter::ReceiverReports, 1);
        let Some(slot) = self.links.of_session(session) else { return };
        let Some(playing) = &mut self.links[slot as usize].playing else { return };
        if playing.reception.is_some_and(|known| known.track < track) {
            return;
        }
        let description = self.streams[playing.stream.index()].description.as_ref();
        let clock_rate = description.and_then(|is| is.tracks.get(usize::from(track.0))).map_or(0, |is| is.clock_rate);
        playing.reception = Some(Reception {
            track,
            fraction_lost: f32::from(report.fraction_lost) / 256.0,
            lost: report.lost,
            jitter: Duration::from_secs_f64(f64::from(report.jitter) / f64::from(clock_rate.max(1))),
        });
    }

    fn pause(&mut self, session: SessionKey) {
        if let Some(slot) = self.links.of_session(session)
            && let Some(playing) = &mut self.links[slot as usize].playing
        {
            playing.paused = true;
        }
    }

    fn session_ended(&mut self, session: SessionKey, reason: EndReason) {
        let Some(slot) = self.links.unbind(session) else { return };
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

    /// Removes the client from its stream and from the counts.
    pub(super) fn remove_player(&mut self, slot: u32, reason: EndReason) {
        let Some(mut playing) = self.links[slot as usize].playing.take() else { return };
        self.leave(&mut playing, reason);
        let index = playing.stream.index();
        self.streams.let_go(index);
        self.give_back(index);
    }

    /// Removes a client from its stream's members and from the counts, if that was not done yet.
    fn leave(&mut self, playing: &mut Playing, reason: EndReason) {
        self.links.unbind(playing.session);
        let Some(member) = playing.member.take() else { return };
        let stream = &mut self.streams[playing.stream.index()];
        if let Some(moved) = stream.leave(member)
            && let Some(moved) = &mut self.links[moved as usize].playing
        {
            moved.member = Some(member);
        }
        if playing.transport == Transport::Multicast {
            // The group itself, which is not a client.
            return;
        }
        let why = leave_reason(reason);
        self.metrics.client_left(playing.stream, playing.transport, why);
        let (stream, client, session) = (stream.name.clone(), playing.peer, playing.session);
        tracing::info!(
            stream = %stream,
            client = %client,
            session = %session,
            reason = why.name(),
            bytes = playing.bytes,
            skips = playing.skips,
            "stopped playing"
        );
        self.out.tell(ToControl::Client(ClientNews { stream, client, session, what: Err(why) }));
    }

    /// Ends a client: its current frame is finished, then it is sent a BYE, then its link is closed.
    pub(super) fn end_client(&mut self, now: Instant, slot: u32, reason: EndReason) {
        let Some(mut playing) = self.links[slot as usize].playing.take() else { return };
        self.leave(&mut playing, reason);
        playing.player.finish(&mut self.streams[playing.stream.index()].log);
        let session = playing.session;
        let stream = &self.streams[playing.stream.index()];
        let link = &mut self.links[slot as usize];
        if playing.player.wants_fragments() {
            link.farewell = Some(farewell(reason));
        } else if let Some(description) = &stream.description {
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
            tracing::warn!(client = %peer, "requests sessions of too many shards: closed");
            self.metrics.limited(Limited::Moves);
            return self.close(slot, Closing::Join);
        }
        // Its answers have been read before it sends further requests, unless it pipelines across shards, which no player does.
        if !idle || !answers.is_empty() {
            tracing::warn!(client = %peer, "requests another shard's session before reading its answers: closed");
            self.close(slot, Closing::Join);
            return;
        }
        let token = Token { slot, generation: link.generation };
        let moves = moves + 1;
        self.out.hand_over(Handover { token, conn: conn.clone(), peer: *peer, shard, unread, moves });
        self.metrics.count(Counter::Moved, 1);
        self.forget(slot);
    }

    /// Closes a link as soon as `closing` allows.
    pub(super) fn close(&mut self, slot: u32, closing: Closing) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        if link.closing != Closing::Join {
            link.closing = closing;
        }
        link.farewell_sent |= link.closing == Closing::Flush && link.busy.is_some();
        match (link.closing, link.busy) {
            (Closing::Join, Some(_)) => {
                let token = Token { slot, generation: link.generation };
                if self.put_off.forget(token) {
                    // The egress has nothing of it.
                    link.busy = None;
                    self.remove(slot);
                } else {
                    self.egress.cancel(token);
                }
            }
            (Closing::Join, None) => self.remove(slot),
            _ => self.links.wake(slot),
        }
    }

    /// The last step: nothing of the link is in flight.
    pub(super) fn remove(&mut self, slot: u32) {
        debug_assert!(self.links[slot as usize].busy.is_none(), "a link is removed only when its operation was joined");
        self.remove_player(slot, EndReason::Disconnected);
        let link = &self.links[slot as usize];
        if let Kind::Tcp { conn, peer, .. } = &link.kind {
            let token = Token { slot, generation: link.generation };
            let held = self.egress.holds(token);
            if held {
                // It fails only if the connection is already gone and everything was released.
                let _ = conn.reset_on_close();
            }
            let was_sent_all = link.closing == Closing::Flush && link.farewell_sent;
            if !held && was_sent_all && conn.shutdown_send() {
                self.out.linger(Lingering { token, conn: conn.clone(), peer: *peer });
            } else {
                // Ends the read in progress; the descriptor closes when its task has dropped it.
                conn.shutdown();
                self.out.gone(*peer);
            }
        }
        self.forget(slot);
    }

    fn forget(&mut self, slot: u32) {
        let link = self.links.remove(slot as usize);
        debug_assert!(link.playing.is_none(), "a playing link must leave its stream first");
        self.egress.forget(Token { slot, generation: link.generation });
        match link.kind {
            Kind::Udp { own_sockets: Some(own), .. } => self.paths.gone(&own),
            Kind::Receiver { stream, .. } => self.receiver_gone(stream),
            Kind::Tcp { web: Some(web), .. } => self.web_gone(&web),
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

/// One packet that is not in a chunk, in the form for UDP clients.
pub(super) fn single_datagram(packet: impl Into<Bytes>) -> Datagrams {
    let packet = packet.into();
    let len = packet.len() as u16;
    let (packet_at, run) = (Span { offset: 0, len }, Run { first: 0, count: 1, segment: len });
    Datagrams::new(packet.into(), smallvec![packet_at], smallvec![run])
}
