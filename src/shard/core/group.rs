//! Multicast: one shard sends a stream's packets to its group, once for all receivers.
//!
//! On that shard, the group is a client like any UDP client, which pauses while nobody has joined. A client that joins has a session
//! without media of its own, on any shard. The shards share only a count of receivers.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::link::{Kind, OwnSockets, Playing, Target, Targets};
use super::reasons::leave_reason;
use super::state::Core;
use crate::egress::Egress;
use crate::media::{StreamId, TrackId};
use crate::metrics::Transport;
use crate::session::{EndReason, PlayTrack, SessionKey};
use crate::shard::player::Player;
use crate::shard::types::Group;

/// The session id of the group's link. Session ids are drawn from all numbers, but a collision does not matter, because the group is
/// never looked up by it.
const NO_SESSION: SessionKey = SessionKey(0);

impl Group {
    /// Where a track's RTP and RTCP go, if there are such ports.
    fn target(&self, track: TrackId) -> Option<Target> {
        let rtp = self.address.port().checked_add(2 * u16::from(track.0))?;
        let rtcp_port = rtp.checked_add(1)?;
        Some(Target { track, rtp: SocketAddr::new(self.address.ip(), rtp), rtcp_port })
    }
}

impl<E: Egress> Core<E> {
    /// Creates the group's link, on the shard that sends, as soon as the stream's tracks are known.
    pub(super) fn open_group(&mut self, now: Instant, id: StreamId) {
        let stream = &self.streams[id.index()];
        let (Some(group), Some(description), None) = (&stream.group, &stream.description, stream.group_link) else {
            return;
        };
        let Some(socket) = group.socket.clone() else { return };
        let tracks = (0u8..).map(TrackId).take(description.tracks.len());
        let targets: Targets = tracks.filter_map(|track| group.target(track)).collect();
        let channels: Vec<_> =
            targets.iter().map(|to| (to.track, (to.track.rtp_channel(), to.track.rtcp_channel()))).collect();
        let player = Player::new(description, &channels, &stream.log, now);
        let peer = group.address;
        let own = OwnSockets {
            rtp: targets.iter().map(|target| (target.track, socket.clone())).collect(),
            rtcp: Some(socket),
            backed_up: now,
        };
        let kind = Kind::udp(now, targets, None, Some(Box::new(own)));
        let slot = self.links.insert(kind).slot;
        let stream = &mut self.streams[id.index()];
        stream.group_link = Some(slot);
        let playing =
            Playing::new(now, (NO_SESSION, peer), (id, Transport::Multicast), player, Some(stream.join(slot)));
        self.links[slot as usize].playing = Some(Playing { paused: true, ..playing });
    }

    /// Resumes the group when a client has joined, and pauses it when none is left.
    pub(super) fn wake_group(&mut self, now: Instant, index: usize) {
        let stream = &mut self.streams[index];
        let (Some(group), Some(slot)) = (&stream.group, stream.group_link) else { return };
        let wanted = group.receivers.load(Ordering::Relaxed) > 0;
        let Some(playing) = self.links.get_mut(slot as usize).and_then(|link| link.playing.as_mut()) else { return };
        if playing.paused == wanted {
            playing.paused = !wanted;
            if wanted {
                playing.player.resume(&mut stream.log, now);
            }
            tracing::info!(stream = %stream.name, group = %group.address, sends = wanted, "multicast");
        }
    }

    /// A session joins. Returns its slot.
    pub(super) fn receiver_plays(
        &mut self,
        session: SessionKey,
        id: StreamId,
        peer: SocketAddr,
        tracks: &[PlayTrack],
    ) -> u32 {
        let tracks = tracks.iter().map(|track| track.track).collect();
        let slot = self.links.insert(Kind::Receiver { stream: id, peer, tracks }).slot;
        self.links.bind(session, slot);
        if let Some(group) = &self.streams[id.index()].group {
            group.receivers.fetch_add(1, Ordering::Relaxed);
        }
        self.client_plays(session, id, peer, Transport::Multicast);
        slot
    }

    /// A session that had joined has ended.
    pub(super) fn receiver_left(&mut self, session: SessionKey, slot: u32, reason: EndReason) {
        let Kind::Receiver { stream, peer, .. } = self.links[slot as usize].kind else { return };
        let reason = leave_reason(reason);
        self.metrics.client_left(stream, Transport::Multicast, reason);
        self.tell_client(stream, peer, session, Err(reason));
        tracing::info!(
            stream = %self.streams[stream.index()].name,
            client = %peer,
            session = %session,
            reason = reason.name(),
            "stopped playing"
        );
        self.remove(slot);
    }

    pub(super) fn receiver_gone(&mut self, id: StreamId) {
        if let Some(group) = &self.streams[id.index()].group {
            group.receivers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The source has changed or the stream was removed: receivers of the group must set it up again, and the group's link has been
    /// closed.
    pub(super) fn end_receivers(&mut self, now: Instant, id: StreamId, reason: EndReason) {
        let stream = &mut self.streams[id.index()];
        stream.group_link = None;
        if stream.group.is_none() {
            return;
        }
        let of_stream = |slot: &u32| {
            let kind = self.links.get(*slot as usize).map(|link| &link.kind);
            matches!(kind, Some(Kind::Receiver { stream, .. }) if *stream == id)
        };
        let ended: Vec<_> = self.links.sessions().filter(|(_, slot)| of_stream(slot)).collect();
        for (session, slot) in ended {
            self.links.unbind(session);
            self.server.end_session(now, session, reason);
            self.receiver_left(session, slot, reason);
        }
    }
}
