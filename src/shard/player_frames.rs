//! Clients that are sent whole frames, each as a fragment: browsers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Player, Taken};
use crate::egress::Piece;
use crate::limits::OP_IOVECS_MAX;
use crate::media::TrackId;
use crate::media::chunk::ChunkKind;
use crate::media::log::Log;
use crate::media::rendering::Rendering;

/// What a client has been sent of each track before its first fragment.
#[derive(Debug, Default)]
pub(super) struct Heads(Vec<(TrackId, Piece)>);

/// The same for one track, as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HeadState {
    track: TrackId,
    #[serde(with = "crate::media::saved::bytes")]
    bytes: Bytes,
}

impl HeadState {
    pub(super) fn bytes_mut(&mut self) -> &mut Bytes {
        &mut self.bytes
    }
}

impl Heads {
    /// They as plain data.
    pub(super) fn save(&self) -> Vec<HeadState> {
        let saved = |(track, head): &(TrackId, Piece)| HeadState {
            track: *track,
            bytes: Bytes::copy_from_slice(head.as_slice()),
        };
        self.0.iter().map(saved).collect()
    }

    /// Restores saved ones.
    pub(super) fn restore(state: Vec<HeadState>) -> Heads {
        Heads(state.into_iter().map(|head| (head.track, head.bytes.into())).collect())
    }

    /// Whether the client lacks this one; it is sent to it next.
    fn lacks(&mut self, track: TrackId, head: &Piece) -> bool {
        match self.0.iter_mut().find(|(of, _)| *of == track) {
            Some((_, has)) if has.is_same(head) => false,
            Some((_, has)) => {
                // A process that took over has made all pieces anew.
                let lacks = has.as_slice() != head.as_slice();
                *has = head.clone();
                lacks
            }
            None => {
                self.0.push((track, head.clone()));
                true
            }
        }
    }
}

impl Player {
    /// Makes it get whole frames.
    pub fn want_fragments(&mut self) {
        self.fragments = Some(Box::default());
    }

    /// Omits a track, or sends it again from its next frame on.
    pub fn set_muted(&mut self, track: TrackId, muted: bool) {
        if let Some(Some(wanted)) = self.tracks.get_mut(usize::from(track.0)) {
            wanted.muted = muted;
            // What it did not want was not dropped.
            wanted.next_frame = None;
        }
    }

    /// Whether it gets whole frames.
    pub fn wants_fragments(&self) -> bool {
        self.fragments.is_some()
    }

    /// Like [`Player::fill`], with whole frames in the form that `rendering` makes. A frame that cannot be converted is omitted; for
    /// video also the frames after it, up to a keyframe.
    pub fn fill_fragments(
        &mut self,
        log: &mut Log,
        (age, now): (Duration, Instant),
        mut bytes: usize,
        rendering: &mut impl Rendering,
        pieces: &mut Vec<Piece>,
        arrivals: &mut impl Extend<Instant>,
    ) -> usize {
        let before = bytes;
        self.catch_up(log, age, now);
        while let Some(entry) = log.next(self.cursor) {
            let chunk = entry.chunk();
            // It may be preceded by a head.
            let full =
                pieces.len() + 1 >= OP_IOVECS_MAX || (bytes > 0 && bytes + chunk.bytes.len() > self.op_bytes_max);
            if full && !self.passes_over(chunk) {
                break;
            }
            self.cursor = chunk.number + 1;
            let Some(Taken { track, kind, since, .. }) = self.take(chunk, now) else { continue };
            if kind == ChunkKind::Report || !chunk.frame_end {
                continue;
            }
            let (number, arrival) = (chunk.number, chunk.arrival);
            let rendered = log.rendered(number, rendering).unwrap_or_default();
            let Some(body) = rendered.body else {
                if let Some(Some(wanted)) = self.tracks.get_mut(usize::from(track.0)) {
                    wanted.waiting = wanted.video;
                }
                continue;
            };
            if let (Some(heads), Some(head)) = (&mut self.fragments, rendered.head)
                && heads.lacks(track, &head)
            {
                bytes += head.len();
                pieces.push(head);
            }
            bytes += body.len();
            arrivals.extend([arrival.max(since)]);
            pieces.push(body);
        }
        bytes - before
    }
}
