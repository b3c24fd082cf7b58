//! A track that a camera has agreed to send.

use std::time::{Duration, Instant};

use super::reception::Reception;
use crate::media::SourceTrack;
use crate::source::reorder::Reorder;

/// Minimum time between two sender reports of a track that are relayed.
const REPORTS_APART_MIN: Duration = Duration::from_millis(100);

/// A track that was set up.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) source: SourceTrack,
    /// Its channels, if it is interleaved.
    pub(super) channels: Option<(u8, u8)>,
    /// The camera's ports, if it uses UDP and the camera has named them.
    pub(super) ports: Option<(u16, u16)>,
    pub(super) reception: Reception,
    pub(super) reorder: Reorder,
    /// Whether a sender report has had the SSRC of the packets; if so, reports with other SSRCs do not belong to the track.
    pub(super) told_by_itself: bool,
    /// When the last sender report was relayed.
    pub(super) told: Option<Instant>,
}

impl Track {
    pub(super) fn new(source: SourceTrack) -> Self {
        let reception = Reception::new(source.clock_rate);
        Track {
            source,
            channels: None,
            ports: None,
            reception,
            reorder: Reorder::default(),
            told_by_itself: false,
            told: None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.reorder.deadline()
    }

    /// Whether a sender report belongs to the track's packets and is not too soon after the previous one, because each is relayed to
    /// every player.
    pub(super) fn is_its_report(&mut self, now: Instant, ssrc: u32) -> bool {
        let its = self.reception.ssrc() == Some(ssrc);
        if !its && self.told_by_itself || self.told.is_some_and(|told| now < told + REPORTS_APART_MIN) {
            return false;
        }
        self.told_by_itself |= its;
        self.told = Some(now);
        true
    }
}
