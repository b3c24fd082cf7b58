//! A player as plain data, for another process that has the same log.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frames::{HeadState, Heads};
use super::{Notes, Player, Rest};
use crate::media::chunk::{Chunk, ChunkState};
use crate::media::log::Log;
use crate::media::saved::Moment;
use crate::media::{Description, TrackId};
use crate::metrics::DropReason;

/// A player of interleaved packets or of fragments as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlayerState {
    cursor: u64,
    op_bytes_max: usize,
    rest: Vec<ChunkState>,
    started: Moment,
    begun: Moment,
    /// By track.
    tracks: Vec<Option<TrackState>>,
    by_log_bytes: bool,
    /// For a client that gets whole frames: what it has been sent of each track before the first one.
    #[serde(default)]
    heads: Option<Vec<HeadState>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct TrackState {
    channels: (u8, u8),
    waiting: bool,
    from: u64,
    open: Option<u64>,
    next_frame: Option<u64>,
    muted: bool,
}

impl PlayerState {
    /// The tracks that it is sent.
    pub fn tracks(&self) -> impl Iterator<Item = TrackId> + '_ {
        (0u8..).zip(&self.tracks).filter(|(_, track)| track.is_some()).map(|(number, _)| TrackId(number))
    }

    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.rest.iter_mut().for_each(|chunk| each(chunk.bytes_mut()));
        self.heads.iter_mut().flatten().for_each(|head| each(head.bytes_mut()));
    }
}

impl Player {
    /// It as plain data; times are relative to `reference`.
    pub fn save(&self, reference: Instant) -> PlayerState {
        let tracks = self.tracks.iter().map(|wanted| {
            wanted.as_ref().map(|wanted| TrackState {
                channels: wanted.channels,
                waiting: wanted.waiting,
                from: wanted.from,
                open: wanted.open,
                next_frame: wanted.next_frame,
                muted: wanted.muted,
            })
        });
        PlayerState {
            cursor: self.cursor,
            op_bytes_max: self.op_bytes_max,
            rest: self.rest.iter().map(|rest| rest.chunk.save(reference)).collect(),
            started: Moment::of(self.started, reference),
            begun: Moment::of(self.begun, reference),
            tracks: tracks.collect(),
            by_log_bytes: self.cause == DropReason::LogBytes,
            heads: self.fragments.as_ref().map(|heads| heads.save()),
        }
    }

    /// Restores a saved player of the described stream, whose log has been restored.
    pub fn restore(reference: Instant, state: PlayerState, description: &Description, log: &Log) -> Player {
        let tracks = (0u8..).map(TrackId).zip(&state.tracks);
        let tracks = tracks.filter(|(track, _)| usize::from(track.0) < description.tracks.len());
        let channels: Vec<_> = tracks.filter_map(|(track, saved)| Some((track, saved.as_ref()?.channels))).collect();
        let mut player = Player::new(description, &channels, log, reference);
        for (wanted, saved) in player.tracks.iter_mut().zip(&state.tracks) {
            let (Some(wanted), Some(saved)) = (wanted, saved) else { continue };
            (wanted.waiting, wanted.from, wanted.open) = (saved.waiting, saved.from, saved.open);
            (wanted.next_frame, wanted.muted) = (saved.next_frame, saved.muted);
        }
        let rest = state.rest.into_iter().filter_map(|chunk| {
            let chunk = Arc::new(Chunk::restore(reference, chunk));
            let channel = player.tracks.get(usize::from(chunk.track.0))?.as_ref()?.channels.0;
            let piece =
                if channel == chunk.channel() { Arc::clone(&chunk).into() } else { chunk.render(channel).into() };
            Some(Rest { chunk, piece })
        });
        Player {
            cursor: state.cursor,
            op_bytes_max: state.op_bytes_max,
            rest: rest.collect(),
            started: state.started.at(reference),
            begun: state.begun.at(reference),
            cause: if state.by_log_bytes { DropReason::LogBytes } else { DropReason::Lagging },
            notes: Notes::default(),
            fragments: state.heads.map(|heads| Box::new(Heads::restore(heads))),
            tracks: player.tracks.clone(),
        }
    }
}
