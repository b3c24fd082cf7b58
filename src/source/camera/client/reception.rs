//! Reception statistics of one track, for receiver reports (RFC 3550 section 6.4.1, appendix A.3 and A.8).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::media::saved::Moment;
use crate::wire::rtcp::ReportBlock;
use crate::wire::rtp::Header;

/// Sequence jumps beyond which a source counts as restarted (RFC 3550 appendix A.1).
const DROPOUT_MAX: u16 = 3_000;

/// Counts for one SSRC; another SSRC restarts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reception<T = Instant> {
    clock_rate: u32,
    source: Option<Source<T>>,
}

/// The same as plain data.
pub(super) type ReceptionState = Reception<Moment>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Source<T> {
    ssrc: u32,
    /// The first sequence number, and the highest with its cycles in the upper half.
    base: u32,
    highest: u32,
    received: u32,
    /// Expected and received packets at the previous report.
    told: (u32, u32),
    /// Arrival and timestamp of the newest packet.
    newest: (T, u32),
    /// Interarrival jitter, times 16.
    jitter: u64,
    /// The middle of the newest sender report's NTP time, and its arrival.
    report: Option<(u32, T)>,
}

impl<T: Copy> Reception<T> {
    fn with_moments<U>(&self, to: impl Fn(T) -> U) -> Reception<U> {
        let source = self.source.as_ref().map(|source| Source {
            ssrc: source.ssrc,
            base: source.base,
            highest: source.highest,
            received: source.received,
            told: source.told,
            newest: (to(source.newest.0), source.newest.1),
            jitter: source.jitter,
            report: source.report.map(|(ntp, at)| (ntp, to(at))),
        });
        Reception { clock_rate: self.clock_rate, source }
    }
}

impl Reception {
    /// The counts as plain data.
    pub(super) fn save(&self, now: Instant) -> ReceptionState {
        self.with_moments(|at| Moment::of(at, now))
    }

    /// Restores saved counts.
    pub(super) fn restore(now: Instant, state: &ReceptionState) -> Reception {
        state.with_moments(|at| at.at(now))
    }

    /// Nothing received yet.
    pub(super) fn new(clock_rate: u32) -> Self {
        Reception { clock_rate: clock_rate.max(1), source: None }
    }

    /// The SSRC of the newest packet.
    pub(super) fn ssrc(&self) -> Option<u32> {
        self.source.as_ref().map(|source| source.ssrc)
    }

    /// A packet came.
    pub(super) fn packet(&mut self, received: Instant, header: &Header) {
        let sequence = header.sequence;
        let begin = |report| Source {
            ssrc: header.ssrc,
            base: u32::from(sequence),
            highest: u32::from(sequence),
            received: 0,
            told: (0, 0),
            newest: (received, header.timestamp),
            jitter: 0,
            report,
        };
        let source = self.source.get_or_insert_with(|| begin(None));
        let ahead = sequence.wrapping_sub(source.highest as u16);
        if source.ssrc != header.ssrc || (DROPOUT_MAX..u16::MAX - DROPOUT_MAX).contains(&ahead) {
            *source = begin(source.report);
        } else if ahead < DROPOUT_MAX {
            source.highest = source.highest.wrapping_add(u32::from(ahead));
        }
        source.received = source.received.wrapping_add(1);
        let ticks = |passed: Duration| (passed.as_nanos() * u128::from(self.clock_rate) / 1_000_000_000) as i64;
        let passed = ticks(received.saturating_duration_since(source.newest.0));
        let stepped = i64::from(header.timestamp.wrapping_sub(source.newest.1) as i32);
        let off = (passed - stepped).unsigned_abs();
        // A restarted clock does not count as jitter.
        if off < u64::from(self.clock_rate) * 10 {
            source.jitter = source.jitter + off - ((source.jitter + 8) >> 4);
        }
        source.newest = (received, header.timestamp);
    }

    /// A sender report came.
    pub(super) fn sender_report(&mut self, received: Instant, ntp: u64) {
        if let Some(source) = &mut self.source {
            source.report = Some(((ntp >> 16) as u32, received));
        }
    }

    /// The report for the camera; `None` before the first packet.
    pub(super) fn block(&mut self, now: Instant) -> Option<ReportBlock> {
        let source = self.source.as_mut()?;
        let expected = source.highest.wrapping_sub(source.base).wrapping_add(1);
        let lost = expected.wrapping_sub(source.received) as i32;
        let expected_since = expected.wrapping_sub(source.told.0);
        let lost_since = expected_since.wrapping_sub(source.received.wrapping_sub(source.told.1)) as i32;
        source.told = (expected, source.received);
        let fraction_lost = if expected_since == 0 || lost_since <= 0 {
            0
        } else {
            ((u64::from(lost_since.unsigned_abs()) << 8) / u64::from(expected_since)).min(255) as u8
        };
        let delay = |at: Instant| (now.saturating_duration_since(at).as_micros() * 65_536 / 1_000_000) as u32;
        Some(ReportBlock {
            ssrc: source.ssrc,
            fraction_lost,
            lost,
            highest_sequence: source.highest,
            jitter: (source.jitter >> 4) as u32,
            last_sender_report: source.report.map_or(0, |(ntp, _)| ntp),
            delay: source.report.map_or(0, |(_, at)| delay(at)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u16, timestamp: u32, ssrc: u32) -> Header {
        Header::parse(&Header::write(false, 96, sequence, timestamp, ssrc)).expect("a header")
    }

    #[test]
    fn loss_and_cycles_are_counted_across_the_wrap() {
        let now = Instant::now();
        let mut reception = Reception::new(90_000);
        assert_eq!(reception.block(now), None);
        for sequence in [65_534, 65_535, 1, 2, 3, 2] {
            reception.packet(now, &header(sequence, 0, 7));
        }
        let block = reception.block(now).expect("packets came");
        // One of six is missing, and one is duplicated.
        assert_eq!((block.ssrc, block.lost, block.fraction_lost), (7, 0, 0));
        assert_eq!(block.highest_sequence, 0x0001_0003);
        for sequence in [5, 6, 9] {
            reception.packet(now, &header(sequence, 0, 7));
        }
        let block = reception.block(now).expect("packets came");
        assert_eq!((block.lost, block.fraction_lost), (3, (3 * 256 / 6) as u8));
        reception.packet(now, &header(40, 0, 8));
        let block = reception.block(now).expect("packets came");
        assert_eq!((block.ssrc, block.lost, block.highest_sequence), (8, 0, 40));
    }

    #[test]
    fn jitter_and_the_delay_since_a_report_are_told() {
        let begun = Instant::now();
        let mut reception = Reception::new(1_000);
        for step in 0..200u32 {
            let late = u64::from(step % 2) * 10;
            let arrival = begun + Duration::from_millis(u64::from(step) * 40 + late);
            reception.packet(arrival, &header(step as u16, step * 40, 7));
        }
        let last = begun + Duration::from_secs(8);
        reception.sender_report(last, 0x1122_3344_5566_7788);
        let block = reception.block(last + Duration::from_millis(500)).expect("packets came");
        assert!((9..=10).contains(&block.jitter), "{block:?}");
        assert_eq!((block.last_sender_report, block.delay), (0x3344_5566, 32_768));
    }
}
