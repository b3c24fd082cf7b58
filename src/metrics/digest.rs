//! A report in one short line, for people who read the journal.

use std::fmt;
use std::time::Duration;

use super::report::{Percentiles, Scope};
use super::table::{clock, si, span};
use crate::media::SourceState;

/// Maximum number of streams that are named for each problematic state.
const NAMED_MAX: usize = 3;

/// The contents of the line. Rates and counts cover [`Digest::span`].
#[derive(Clone, Debug, PartialEq)]
pub struct Digest {
    /// What it is about.
    pub scope: Scope,
    /// The time since the last line, or the whole run.
    pub span: Duration,
    /// Every stream's name and state.
    pub streams: Vec<(String, SourceState)>,
    /// Clients that play now.
    pub clients: u64,
    /// Bits per second from the sources.
    pub in_bps: f64,
    /// Bits per second of media to all clients.
    pub out_bps: f64,
    /// The relay latency.
    pub latency: Percentiles,
    /// Times that a slow client skipped to a keyframe.
    pub skips: u64,
    /// Frames that clients missed.
    pub dropped: u64,
    /// Packets from the sources that were lost.
    pub lost: u64,
    /// Shards that did not answer in time.
    pub silent_shards: usize,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope == Scope::Summary {
            write!(f, "ran for {}; ", clock(self.span))?;
        }
        write!(f, "{}", counted(self.streams.len() as u64, "stream"))?;
        let mut between = ": ";
        for &state in SourceState::ALL {
            let in_state = || self.streams.iter().filter(|(_, is)| *is == state).map(|(name, _)| name.as_str());
            let count = in_state().count();
            if count > 0 {
                write!(f, "{between}{count} {}", state.name())?;
                between = ", ";
            }
            if count > 0 && matches!(state, SourceState::Silent | SourceState::Down) {
                let more = if count > NAMED_MAX { ", …" } else { "" };
                write!(f, " ({}{more})", in_state().take(NAMED_MAX).collect::<Vec<_>>().join(", "))?;
            }
        }
        write!(f, "; {}", counted(self.clients, "client"))?;
        write!(f, "; in {}, out {}", bits(self.in_bps), bits(self.out_bps))?;
        let Percentiles { p50, p99, max, count, .. } = self.latency;
        if count > 0 {
            write!(f, "; latency p50 {}, p99 {}, max {}", time(p50), time(p99), time(max))?;
        }
        for (count, what) in [(self.skips, "skip"), (self.dropped, "dropped frame"), (self.lost, "lost packet")] {
            if count > 0 {
                write!(f, "; {}", counted(count, what))?;
            }
        }
        if self.silent_shards > 0 {
            write!(f, "; {} without an answer", counted(self.silent_shards as u64, "shard"))?;
        }
        Ok(())
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `4.01 Mbit/s`.
fn bits(bps: f64) -> String {
    format!("{}bit/s", spaced(&si(bps)))
}

/// `130 µs`.
fn time(latency: Option<Duration>) -> String {
    spaced(&span(latency))
}

/// A number with a space before its unit or unit prefix.
fn spaced(text: &str) -> String {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::report;

    fn digest() -> Digest {
        let report = report();
        Digest {
            scope: Scope::Interval,
            span: Duration::from_secs(60),
            streams: report.streams.iter().map(|stream| (stream.name.clone(), stream.state)).collect(),
            clients: 12,
            in_bps: 4_012_000.4,
            out_bps: 950.0,
            latency: report.total.flow.latency,
            skips: 1,
            dropped: 30,
            lost: 0,
            silent_shards: 0,
        }
    }

    #[test]
    fn it_is_short_and_has_units() {
        assert_eq!(
            digest().to_string(),
            "2 streams: 1 live, 1 down (yard); 12 clients; in 4.01 Mbit/s, out 950 bit/s; \
             latency p50 130 µs, p99 950 µs, max 31 ms; 1 skip; 30 dropped frames"
        );
        let whole = Digest { scope: Scope::Summary, latency: Percentiles::default(), skips: 0, dropped: 0, ..digest() };
        assert_eq!(
            whole.to_string(),
            "ran for 00:01:00; 2 streams: 1 live, 1 down (yard); 12 clients; in 4.01 Mbit/s, out 950 bit/s"
        );
    }

    #[test]
    fn a_thousand_cameras_that_are_down_take_no_more_room() {
        let streams = (0..1_000).map(|n| (format!("camera-{n}"), SourceState::Down)).collect();
        let text = Digest { streams, ..digest() }.to_string();
        assert!(text.starts_with("1000 streams: 1000 down (camera-0, camera-1, camera-2, …); 12 clients;"), "{text}");
    }
}
