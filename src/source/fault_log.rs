//! Decides when a source's fault is logged: at once when it is new, then at increasing intervals while it lasts. Takes the time as an
//! argument.

use std::time::{Duration, Instant, SystemTime};

/// Intervals between lines about an outage; the last one repeats forever.
const DISTANCES: [Duration; 6] = [minutes(1), minutes(2), minutes(5), minutes(10), minutes(30), minutes(60)];

/// An outage is over when the source has been live for this long. A source that comes and goes is still in the same outage.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// Maximum number of faults that are remembered per outage. A source with ever new faults is logged for each of them.
const KNOWN_MAX: usize = 4;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The failed attempts of an outage, for the log line about its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempts {
    /// When the first failed attempt was.
    pub since: SystemTime,
    /// Attempts that have failed since then, including this one.
    pub tries: u64,
}

/// Decides which failed attempts are logged. `F` is the fault; equal faults count as the same.
#[derive(Debug)]
pub(super) struct FaultLog<F> {
    current: Option<Current<F>>,
    /// When the current session went live.
    live_since: Option<Instant>,
}

#[derive(Debug)]
struct Current<F> {
    since: SystemTime,
    tries: u64,
    /// The faults that have been logged, newest first.
    known: Vec<F>,
    logged: Instant,
    /// Number of lines that repeated a known fault.
    repeats: usize,
}

impl<F> Default for FaultLog<F> {
    fn default() -> Self {
        FaultLog { current: None, live_since: None }
    }
}

impl<F: Clone + PartialEq> FaultLog<F> {
    /// A session went live. Once it has been live for [`STEADY`], the next failure starts a new outage.
    pub(super) fn live(&mut self, now: Instant) {
        self.live_since = Some(now);
    }

    /// An attempt or a live session failed. Returns what to log, or `None`; `always` forces a line.
    pub(super) fn failed(&mut self, now: Instant, wall: SystemTime, fault: &F, always: bool) -> Option<Attempts> {
        let live_since = self.live_since.take();
        if live_since.is_some_and(|since| now.saturating_duration_since(since) >= STEADY) {
            self.current = None;
        }
        let Some(current) = &mut self.current else {
            self.current = Some(Current { since: wall, tries: 1, known: vec![fault.clone()], logged: now, repeats: 0 });
            return Some(Attempts { since: wall, tries: 1 });
        };
        current.tries += 1;
        let is_new = !current.known.contains(fault);
        let distance = DISTANCES[current.repeats.min(DISTANCES.len() - 1)];
        if is_new {
            current.known.truncate(KNOWN_MAX - 1);
            current.known.insert(0, fault.clone());
        } else if now.saturating_duration_since(current.logged) >= distance {
            current.repeats += 1;
        } else if !always {
            return None;
        }
        current.logged = now;
        Some(Attempts { since: current.since, tries: current.tries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries every 30 s from the start on, each with its fault; the seconds at which a line is logged, with its tries.
    fn logged(seconds: u64, fault: impl Fn(u64) -> &'static str) -> Vec<(u64, u64)> {
        let (begun, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut log = FaultLog::default();
        let mut lines = Vec::new();
        for at in (0..=seconds).step_by(30) {
            let after = Duration::from_secs(at);
            if let Some(outage) = log.failed(begun + after, wall + after, &fault(at), false) {
                assert_eq!(outage.since, wall, "an outage begins with its first failure");
                lines.push((at, outage.tries));
            }
        }
        lines
    }

    #[test]
    fn a_fault_that_lasts_is_logged_with_growing_distance() {
        let minutes = |lines: Vec<(u64, u64)>| lines.into_iter().map(|(at, _)| at / 60).collect::<Vec<_>>();
        let lines = logged(4 * 3_600, |_| "refused");
        assert_eq!(lines[..3], [(0, 1), (60, 3), (180, 7)]);
        // 1, 2, 5, 10, 30, 60, 60 minutes after one another.
        assert_eq!(minutes(lines), [0, 1, 3, 8, 18, 48, 108, 168, 228]);
    }

    #[test]
    fn another_fault_is_logged_at_once_and_one_known_in_this_outage_is_not() {
        let lines = logged(150, |at| if at / 30 % 2 == 0 { "refused" } else { "unreachable" });
        // The second is new at 30 s. From there it takes a minute, and then two, although they alternate.
        assert_eq!(lines, [(0, 1), (30, 2), (90, 4)]);
    }

    #[test]
    fn an_outage_ends_when_the_source_has_been_live_for_a_while() {
        let begun = Instant::now();
        let at =
            |seconds| (begun + Duration::from_secs(seconds), SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let mut log = FaultLog::default();
        let failed = |log: &mut FaultLog<&str>, seconds| {
            let (now, wall) = at(seconds);
            let outage = log.failed(now, wall, &"closed", false)?;
            let since = outage.since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            Some((since, outage.tries))
        };
        assert_eq!(failed(&mut log, 0), Some((0, 1)));
        log.live(at(1).0);
        assert_eq!(failed(&mut log, 5), None, "it comes and goes");
        log.live(at(6).0);
        assert_eq!(failed(&mut log, 6 + STEADY.as_secs()), Some((16, 1)), "a new outage");
        assert_eq!(failed(&mut log, 17), None, "being live counts once");
    }

    #[test]
    fn a_source_with_ever_new_faults_does_not_grow() {
        let mut log = FaultLog::default();
        for fault in 0..1_000 {
            assert!(log.failed(Instant::now(), SystemTime::UNIX_EPOCH, &fault, false).is_some());
        }
        assert!(log.current.is_some_and(|current| current.known.len() == KNOWN_MAX));
    }
}
