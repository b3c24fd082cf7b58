//! What a stream's clients are sent while its source is away: a periodic report on each track, so that players that wait for any data
//! stay connected.
//!
//! A report is made once for all clients of the shard. It is not in the log, whose numbers belong to the source: it has its own number,
//! and each client has a second cursor, which is used only while there are such reports.

#[cfg(test)]
#[path = "outage_tests.rs"]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::link::Playing;
use crate::egress::Piece;
use crate::limits::{INTERLEAVED_HEADER_BYTES, OUTAGE_REPORT_S};
use crate::media::chunk::{Chunk, ChunkKind, ChunkState};
use crate::media::log::Entry;
use crate::media::saved::Moment;
use crate::media::{Description, SourceState, Track, TrackId};
use crate::shard::snapshot::Sent;
use crate::wire::rtcp::{self, SenderInfo};
use crate::wire::rtp;

/// The canonical name of the relay's SDES and BYE packets (RFC 3550 section 6.5.1).
pub(super) const CNAME: &str = "rtsprelay";

const EVERY: Duration = Duration::from_secs(OUTAGE_REPORT_S);

impl Sent {
    /// A report for `now`, if clients were sent nothing else on the track since the last one: its time continues at the clock rate. For
    /// a track whose clock the source has never reported it is a receiver report instead.
    fn report(&self, now: Instant, number: u64, track: TrackId, described: &Track) -> Chunk {
        let goes_on = || {
            let last = self.report.as_ref()?;
            let compound = &last.bytes[INTERLEAVED_HEADER_BYTES..];
            let told = SenderInfo::of(compound)?;
            let elapsed = now.saturating_duration_since(last.arrival).as_nanos();
            // Both times wrap.
            let ntp = told.ntp.wrapping_add(((elapsed << 32) / 1_000_000_000) as u64);
            let rtp_time = described.rtp_time_at((last.arrival, told.rtp_time), now);
            let info = SenderInfo { ntp, rtp_time, packets: self.packets, octets: self.octets };
            Some(Chunk::report(number, track, now, rtp_time, &info.put_into(compound)?))
        };
        goes_on()
            .unwrap_or_else(|| Chunk::report(number, track, now, 0, &rtcp::receiver_report(described.ssrc, &[], CNAME)))
    }
}

/// A stream's reports while its source is away.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// By track.
    sent: Vec<Sent>,
    /// When the next reports are made; `None` while the source is live.
    due: Option<Instant>,
    /// The number of the first of `reports`.
    first: u64,
    /// The newest report on each track; none while the source is live.
    reports: Vec<Entry>,
}

/// The same as plain data, without the newest reports: the next ones are made when it is restored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OutageState {
    /// By track: the source's last report, and the packets and octets.
    sent: Vec<(Option<ChunkState>, u32, u32)>,
    due: Option<Moment>,
    end: u64,
}

impl OutageState {
    /// All of its bytes, in a fixed order.
    pub(super) fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.sent.iter_mut().filter_map(|(report, ..)| report.as_mut()).for_each(|report| each(report.bytes_mut()));
    }
}

impl Outage {
    /// It as plain data; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant) -> OutageState {
        let report = |report: &Arc<Chunk>| report.save(reference);
        OutageState {
            sent: self.sent.iter().map(|sent| (sent.report.as_ref().map(report), sent.packets, sent.octets)).collect(),
            due: self.due.map(|due| Moment::of(due, reference)),
            end: self.end(),
        }
    }

    /// Restores that.
    pub(super) fn restore(&mut self, reference: Instant, state: OutageState) {
        let report = |chunk| Arc::new(Chunk::restore(reference, chunk));
        let sent = state.sent.into_iter();
        let sent = sent.map(|(last, packets, octets)| Sent { report: last.map(report), packets, octets });
        self.sent = sent.collect();
        // A client may not have been sent the newest ones: the next are made at once.
        self.due = state.due.map(|due| due.at(reference).min(reference));
        self.first = state.end;
    }

    /// Records a chunk that goes into the log.
    pub(super) fn note(&mut self, chunk: &Arc<Chunk>) {
        let track = usize::from(chunk.track.0);
        if self.sent.len() <= track {
            self.sent.resize(track + 1, Sent::default());
        }
        let sent = &mut self.sent[track];
        match chunk.kind {
            ChunkKind::Media => {
                let headers = usize::from(chunk.packets) * (INTERLEAVED_HEADER_BYTES + rtp::HEADER_BYTES);
                sent.packets = sent.packets.wrapping_add(u32::from(chunk.packets));
                sent.octets = sent.octets.wrapping_add(chunk.bytes.len().saturating_sub(headers) as u32);
            }
            ChunkKind::Report => {
                if let Some(told) = SenderInfo::of(&chunk.bytes[INTERLEAVED_HEADER_BYTES..]) {
                    *sent = Sent { report: Some(Arc::clone(chunk)), packets: told.packets, octets: told.octets };
                    // A silent source may still send reports; one that was made before would now be outdated, and must not be sent
                    // after it.
                    self.drop_reports();
                }
            }
        }
    }

    /// What has been sent of each track.
    pub(super) fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// Continues from another shard's records.
    pub(super) fn set_sent(&mut self, sent: Vec<Sent>) {
        self.sent = sent;
    }

    /// The stream has other tracks now.
    pub(super) fn forget_tracks(&mut self) {
        self.sent.clear();
        self.drop_reports();
    }

    fn drop_reports(&mut self) {
        self.first = self.end();
        self.reports.clear();
    }

    /// The number of the next report.
    fn end(&self) -> u64 {
        self.first + self.reports.len() as u64
    }

    /// The source's state has changed: reports are made until it is live. `heard` is when the newest media arrived.
    pub(super) fn set_state(&mut self, state: SourceState, heard: Instant) {
        if state == SourceState::Live {
            self.due = None;
            self.drop_reports();
        } else if self.due.is_none() {
            self.due = Some(heard + EVERY);
        }
    }

    /// Makes the reports that are due; returns whether there are any. `heard` is when the newest media arrived; without a description
    /// there are none.
    pub(super) fn make_due(&mut self, now: Instant, heard: Option<Instant>, description: Option<&Description>) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        if let Some(heard) = heard.filter(|heard| now.saturating_duration_since(*heard) < EVERY) {
            // Something arrived anyway.
            self.due = Some(heard + EVERY);
            return false;
        }
        // At exact intervals, unless the shard is late.
        let next = self.due.map_or(now, |due| due + EVERY);
        self.due = Some(if next > now { next } else { now + EVERY });
        match description {
            Some(description) => self.make(now, description),
            None => self.drop_reports(),
        }
        description.is_some()
    }

    fn make(&mut self, now: Instant, description: &Description) {
        self.drop_reports();
        self.sent.resize(description.tracks.len(), Sent::default());
        for (index, described) in description.tracks.iter().enumerate() {
            let report = self.sent[index].report(now, self.end(), TrackId(index as u8), described);
            self.reports.push(Entry::new(Arc::new(report), 1));
        }
    }

    /// Whether there are reports that the client has not been sent.
    pub(super) fn is_owed(&self, playing: &Playing) -> bool {
        !self.reports.is_empty() && playing.reported < self.end() && !playing.has_left()
    }

    /// The next report for the client, on a track that it receives.
    pub(super) fn next(&mut self, playing: &mut Playing) -> Option<&mut Entry> {
        if !self.is_owed(playing) {
            return None;
        }
        let from = playing.reported.saturating_sub(self.first) as usize;
        let set_up = |entry: &Entry| playing.player.channels(entry.chunk().track).is_some();
        let index = (from..self.reports.len()).find(|index| set_up(&self.reports[*index]));
        playing.reported = index.map_or(self.end(), |index| self.first + index as u64 + 1);
        self.reports.get_mut(index?)
    }

    /// Appends all reports that a TCP client has not been sent to `pieces`; returns their size.
    pub(super) fn fill(&mut self, playing: &mut Playing, pieces: &mut Vec<Piece>) -> usize {
        let mut bytes = 0;
        while let Some(entry) = self.next(playing) {
            let Some((_, channel)) = playing.player.channels(entry.chunk().track) else { continue };
            let piece = entry.piece(channel);
            bytes += piece.len();
            pieces.push(piece);
        }
        bytes
    }
}
