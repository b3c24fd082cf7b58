//! The faults that the synthetic camera can simulate, and when.

use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::os;

/// When a lasting fault applies, since the stream was first played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub from: Duration,
    /// Its end; `None`: it stays.
    pub to: Option<Duration>,
}

impl Span {
    fn holds(&self, at: Duration) -> bool {
        at >= self.from && self.to.is_none_or(|to| at < to)
    }
}

/// One fault of the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Sends nothing; the frames of that time are never sent.
    Stall(Span),
    /// Closes everything and does not listen for this long; then starts another timeline.
    Die {
        /// When.
        at: Duration,
        /// For how long.
        lasts: Duration,
    },
    /// Another SSRC, sequence and timestamp in the middle of the session.
    Retime {
        /// When.
        at: Duration,
    },
    /// 500 random bytes between packets, over TCP.
    Garbage {
        /// When.
        at: Duration,
    },
    /// Packets not sent, with this probability.
    Loss(f64, Span),
    /// Payloads replaced by random bytes, with this probability.
    Corrupt(f64, Span),
    /// Frames sent this long after they were stamped.
    Delay(Duration, Span),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let (what, when) = match text.split_once('@') {
            Some((what, when)) => (what, Some(when)),
            None => (text, None),
        };
        let (kind, value) = match what.split_once('=') {
            Some((kind, value)) => (kind, Some(value)),
            None => (what, None),
        };
        let (from, to) = match when.map(|w| w.split_once('-').map_or((w, None), |(a, b)| (a, Some(b)))) {
            Some((from, to)) => (os::duration(from)?, to.map(os::duration).transpose()?),
            None => (Duration::ZERO, None),
        };
        if to.is_some_and(|to| to <= from) {
            return Err(format!("{text:?}: the end is not after the start"));
        }
        let span = Span { from, to };
        let at = from;
        let need = || value.ok_or_else(|| format!("{text:?}: {kind} needs a value, as in {kind}=…"));
        let share = || -> Result<f64, String> {
            let number = need()?.trim_end_matches('%').parse::<f64>().ok().filter(|n| (0.0..=100.0).contains(n));
            number.map(|n| n / 100.0).ok_or_else(|| format!("{text:?}: write a share as a percentage, such as 1%"))
        };
        Ok(match kind {
            "stall" => {
                let to = value.map(os::duration).transpose()?.map(|lasts| at + lasts);
                Fault::Stall(Span { from: at, to })
            }
            "die" => Fault::Die { at, lasts: os::duration(value.unwrap_or("2s"))? },
            "restart" => Fault::Die { at, lasts: os::duration(value.unwrap_or("100ms"))? },
            "retime" => Fault::Retime { at },
            "garbage" => Fault::Garbage { at },
            "loss" => Fault::Loss(share()?, span),
            "corrupt" => Fault::Corrupt(share()?, span),
            "delay" => Fault::Delay(os::duration(need()?)?, span),
            _ => {
                return Err(format!(
                    "{kind:?} is not a fault; the faults are stall, die, restart, retime, garbage, loss, corrupt, delay"
                ));
            }
        })
    }
}

/// A stream's script of faults, on its own clock.
#[derive(Clone, Debug)]
pub struct Faults {
    faults: Vec<(Fault, bool)>,
    begun: Option<Instant>,
}

impl Faults {
    /// The script; its clock starts with [`Faults::begin`].
    pub fn new(faults: &[Fault]) -> Faults {
        Faults { faults: faults.iter().map(|f| (*f, false)).collect(), begun: None }
    }

    /// Starts the clock, if it is not running.
    pub fn begin(&mut self, now: Instant) {
        self.begun.get_or_insert(now);
    }

    fn at(&self, now: Instant) -> Option<Duration> {
        self.begun.map(|begun| now.saturating_duration_since(begun))
    }

    fn holding(&self, now: Instant) -> impl Iterator<Item = Fault> + '_ {
        let at = self.at(now);
        self.faults.iter().map(|(fault, _)| *fault).filter(move |fault| match (fault, at) {
            (Fault::Stall(span) | Fault::Loss(_, span) | Fault::Corrupt(_, span) | Fault::Delay(_, span), Some(at)) => {
                span.holds(at)
            }
            _ => false,
        })
    }

    /// Momentary faults that are due; each is returned once.
    pub fn due(&mut self, now: Instant) -> Vec<Fault> {
        let Some(now) = self.at(now) else { return Vec::new() };
        let mut due = Vec::new();
        for (fault, done) in &mut self.faults {
            let (Fault::Die { at, .. } | Fault::Retime { at } | Fault::Garbage { at }) = *fault else { continue };
            if !*done && at <= now {
                *done = true;
                due.push(*fault);
            }
        }
        due
    }

    /// Whether nothing is sent now.
    pub fn stalled(&self, now: Instant) -> bool {
        self.holding(now).any(|fault| matches!(fault, Fault::Stall(_)))
    }

    /// Probability of losing a packet.
    pub fn loss(&self, now: Instant) -> f64 {
        self.holding(now).map(|f| if let Fault::Loss(share, _) = f { share } else { 0.0 }).fold(0.0, f64::max)
    }

    /// Probability of corrupting a packet.
    pub fn corrupt(&self, now: Instant) -> f64 {
        self.holding(now).map(|f| if let Fault::Corrupt(share, _) = f { share } else { 0.0 }).fold(0.0, f64::max)
    }

    /// Time from stamping a frame to sending it.
    pub fn delay(&self, now: Instant) -> Duration {
        self.holding(now)
            .map(|f| if let Fault::Delay(by, _) = f { by } else { Duration::ZERO })
            .max()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn faults_are_read() {
        let read = |text: &str| text.parse::<Fault>();
        assert_eq!(read("stall=2s@5s"), Ok(Fault::Stall(Span { from: S(5), to: Some(S(7)) })));
        assert_eq!(read("loss=1%@2s-6s"), Ok(Fault::Loss(0.01, Span { from: S(2), to: Some(S(6)) })));
        assert_eq!(read("delay=20ms"), Ok(Fault::Delay(Duration::from_millis(20), Span { from: S(0), to: None })));
        assert_eq!(read("die@3s"), Ok(Fault::Die { at: S(3), lasts: S(2) }));
        assert!(read("loss").unwrap_err().contains("loss=…"));
        assert!(read("explode").is_err());
        assert!(read("loss=1%@6s-2s").unwrap_err().contains("not after the start"));
    }

    #[test]
    fn a_fault_holds_in_its_time_only() {
        let mut faults = Faults::new(&["stall=2s@5s".parse().unwrap(), "die@6s".parse().unwrap()]);
        let start = Instant::now();
        assert!(!faults.stalled(start + S(6)), "the clock stands");
        faults.begin(start);
        assert_eq!([4, 5, 6, 7].map(|s| faults.stalled(start + S(s))), [false, true, true, false]);
        assert_eq!(faults.due(start + S(6)).len(), 1);
        assert_eq!(faults.due(start + S(7)).len(), 0);
    }
}
