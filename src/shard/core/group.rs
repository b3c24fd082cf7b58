//! Multicast: one shard sends a stream's packets to its group, once for all who receive them.
//!
//! The group is a client like any UDP client, of the shard that sends, and pauses while nobody has joined. Who joins is a
//! session without media of its own, in whatever shard; a count that the shards share is all that they tell each other.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::link::{Kind, OwnSockets, Playing, Target, Targets};
use super::{Core, Group};
use crate::egress::Egress;
use crate::metrics::Transport;
use crate::session::{EndReason, PlayTrack, SessionKey};
use crate::shard::player::Player;
use crate::stream::{StreamId, TrackId};

/// What stands for a session in the group's link. Ids of sessions are drawn from all numbers, and this one clashes with none
/// that matters: nobody looks the group up by it.
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
    /// Makes the group's link, in the shard that sends, as soon as the stream's tracks are known.
    pub(super) fn open_group(&mut self, now: Instant, id: StreamId) {
        let stream = &self.streams[usize::from(id.0)];
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
        let kind = Kind::Udp {
            targets,
            own: VecDeque::new(),
            own_sockets: Some(Box::new(own)),
            plain: false,
            burst_bytes: 0,
            burst_from: now,
            paced: false,
        };
        let slot = self.add_link(kind).slot;
        let stream = &mut self.streams[usize::from(id.0)];
        let playing = Playing::new(now, (NO_SESSION, peer), (id, Transport::Multicast), player, stream.members.len());
        self.links[slot as usize].playing = Some(Playing { paused: true, ..playing });
        stream.members.push(slot);
        stream.group_link = Some(slot);
    }

    /// Has the group go on when somebody has joined, and pause when nobody is left.
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
        let slot = self.add_link(Kind::Receiver { stream: id, peer, tracks }).slot;
        self.sessions.insert(session, slot);
        self.metrics.client_joined(id, Transport::Multicast);
        let stream = &mut self.streams[usize::from(id.0)];
        if let Some(group) = &stream.group {
            group.receivers.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(
            stream = %stream.name,
            client = %peer,
            session = %session,
            transport = Transport::Multicast.name(),
            "plays"
        );
        slot
    }

    /// A session that had joined has ended.
    pub(super) fn receiver_left(&mut self, session: SessionKey, slot: u32, reason: EndReason) {
        let Kind::Receiver { stream, peer, .. } = self.links[slot as usize].kind else { return };
        let reason = super::leave_reason(reason);
        self.metrics.client_left(stream, Transport::Multicast, reason);
        tracing::info!(
            stream = %self.streams[usize::from(stream.0)].name,
            client = %peer,
            session = %session,
            reason = reason.name(),
            "plays no more"
        );
        self.remove(slot);
    }

    pub(super) fn receiver_gone(&mut self, id: StreamId) {
        if let Some(group) = &self.streams[usize::from(id.0)].group {
            group.receivers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The source has changed or the stream is no more: whoever receives the group has to ask anew, and the group's link has
    /// been closed.
    pub(super) fn end_receivers(&mut self, now: Instant, id: StreamId, reason: EndReason) {
        self.streams[usize::from(id.0)].group_link = None;
        let of_stream = |slot: &u32| {
            let kind = self.links.get(*slot as usize).map(|link| &link.kind);
            matches!(kind, Some(Kind::Receiver { stream, .. }) if *stream == id)
        };
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, slot)| of_stream(slot)).map(|(key, slot)| (*key, *slot)).collect();
        for (session, slot) in ended {
            self.sessions.remove(&session);
            self.server.end_session(now, session, reason);
            self.receiver_left(session, slot, reason);
        }
    }
}
