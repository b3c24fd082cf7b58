//! The fragments' state as plain data, for another process that continues with the same times.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::order::Order;
use super::{Anchor, Clock, Fragments, Init, Last};
use crate::media::Description;
use crate::media::rendering::Piece;
use crate::media::saved::Moment;

/// A [`Clock`] as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    at: Moment,
    unix: Duration,
}

/// [`Fragments`] as plain data, without the stream's description.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FragmentsState {
    clock: ClockState,
    tracks: Vec<Option<SavedTrack>>,
    reports: Vec<Option<(u64, u32, Moment)>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedTrack {
    /// A time, the timestamp at that time, and the same on the stream's timeline.
    anchor: (Moment, u32, i64),
    init: Option<SavedInit>,
    order: Order,
    last: Option<Last>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedInit {
    init: Init,
    /// What browsers are sent of it.
    #[serde(with = "crate::media::saved::bytes")]
    message: Bytes,
}

impl FragmentsState {
    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        for saved in self.tracks.iter_mut().flatten().filter_map(|track| track.init.as_mut()) {
            each(&mut saved.init.segment);
            each(&mut saved.message);
        }
    }
}

impl Clock {
    /// It as plain data; times are relative to `reference`.
    pub fn save(&self, reference: Instant) -> ClockState {
        ClockState { at: Moment::of(self.at, reference), unix: self.unix }
    }

    /// Restores a saved one.
    pub fn restore(reference: Instant, state: ClockState) -> Clock {
        Clock { at: state.at.at(reference), unix: state.unix }
    }
}

impl Fragments {
    /// They as plain data; times are relative to `reference`.
    pub fn save(&self, reference: Instant) -> FragmentsState {
        let tracks = self.tracks.iter().map(|state| {
            state.as_ref().map(|state| SavedTrack {
                anchor: (Moment::of(state.anchor.at, reference), state.anchor.rtp_time, state.anchor.ticks),
                init: state.init.as_ref().map(|(init, message)| SavedInit {
                    init: init.clone(),
                    message: Bytes::copy_from_slice(message.as_slice()),
                }),
                order: state.order.clone(),
                last: state.last,
            })
        });
        let report = |(ntp, rtp_time, at): &(u64, u32, Instant)| (*ntp, *rtp_time, Moment::of(*at, reference));
        FragmentsState {
            clock: self.clock.save(reference),
            tracks: tracks.collect(),
            reports: self.reports.iter().map(|of| of.as_ref().map(report)).collect(),
        }
    }

    /// Restores saved ones of the stream with this description.
    pub fn restore(reference: Instant, state: FragmentsState, description: Arc<Description>) -> Fragments {
        let mut fragments = Fragments::new(reference, Clock::restore(reference, state.clock), description);
        for (track, saved) in fragments.tracks.iter_mut().zip(state.tracks) {
            let (Some(track), Some(saved)) = (track, saved) else { continue };
            let (at, rtp_time, ticks) = saved.anchor;
            track.anchor = Anchor { at: at.at(reference), rtp_time, ticks };
            if let Some(SavedInit { init, message }) = saved.init {
                track.init = Some((init, Piece::from(message)));
            }
            (track.order, track.last) = (saved.order, saved.last);
        }
        for (report, saved) in fragments.reports.iter_mut().zip(state.reports) {
            *report = saved.map(|(ntp, rtp_time, at)| (ntp, rtp_time, at.at(reference)));
        }
        fragments
    }
}
