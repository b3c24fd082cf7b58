//! A client that plays as plain data, whatever its transport.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::link::Playing;
use super::state::Core;
use crate::egress::Egress;
use crate::media::log::Log;
use crate::media::saved::Moment;
use crate::media::{Description, TrackId};
use crate::metrics::Transport;
use crate::session::SessionKey;
use crate::shard::player::{Player, PlayerState};

/// A client that plays as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PlayingState {
    stream: String,
    session: u64,
    peer: SocketAddr,
    paused: bool,
    pub(super) player: PlayerState,
    lagging_until: Option<Moment>,
    bytes: u64,
    skips: u64,
    reported: u64,
    since: Moment,
    /// It is only being sent its last data.
    #[serde(default)]
    left: bool,
}

impl PlayingState {
    /// All of its bytes, in a fixed order.
    pub(super) fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.player.each_bytes(each);
    }

    /// The tracks that it is sent.
    pub(super) fn tracks(&self) -> impl Iterator<Item = TrackId> + '_ {
        self.player.tracks()
    }

    /// Whether it is only being sent its last data.
    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    /// Restores a player of the described stream, whose log has been restored.
    pub(super) fn restore(
        self,
        reference: Instant,
        description: &Description,
        log: &Log,
        of: impl FnOnce(Player) -> Playing,
    ) -> Playing {
        let player = Player::restore(reference, self.player, description, log);
        Playing {
            lagging_until: self.lagging_until.map(|until| until.at(reference)),
            paused: self.paused,
            bytes: self.bytes,
            skips: self.skips,
            reported: self.reported,
            since: self.since.at(reference),
            ..of(player)
        }
    }
}

impl<E: Egress> Core<E> {
    /// A link's player; times are relative to `reference`.
    pub(super) fn save_playing(&self, reference: Instant, playing: &Playing) -> PlayingState {
        PlayingState {
            stream: self.streams[playing.stream.index()].name.clone(),
            session: playing.session.0,
            peer: playing.peer,
            paused: playing.paused,
            player: playing.player.save(reference),
            lagging_until: playing.lagging_until.map(|until| Moment::of(until, reference)),
            bytes: playing.bytes,
            skips: playing.skips,
            reported: playing.reported,
            since: Moment::of(playing.since, reference),
            left: playing.has_left(),
        }
    }

    /// Restores a link's player. Returns whether it could: its stream must be there, with its description.
    pub(super) fn restore_player(
        &mut self,
        reference: Instant,
        slot: u32,
        saved: PlayingState,
        transport: Transport,
    ) -> bool {
        let Some(stream) = self.streams.iter().find(|stream| stream.name == saved.stream) else { return false };
        let Some(description) = stream.description.clone() else { return false };
        let (id, session, peer) = (stream.id, SessionKey(saved.session), saved.peer);
        let stream = &mut self.streams[id.index()];
        let member = if saved.left { stream.join_to_leave() } else { Some(stream.join(slot)) };
        let of = |player| Playing::new(reference, (session, peer), (id, transport), player, member);
        self.links[slot as usize].playing = Some(saved.restore(reference, &description, &stream.log, of));
        if member.is_some() {
            self.links.bind(session, slot);
            self.metrics.client_restored(id, transport);
        }
        true
    }
}
