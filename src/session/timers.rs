//! Timers for connections and sessions.

use std::collections::BTreeSet;
use std::time::Instant;

use super::types::{ConnId, SessionKey};

/// Whose moment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Conn(ConnId),
    Session(SessionKey),
}

/// The time that is set for a connection or session. Only [`Timers`] changes it.
#[derive(Debug, Default)]
pub(super) struct Armed(Option<Instant>);

/// The timers of all connections and sessions. A timer is moved forward at once, but one that fires too early is rescheduled when it
/// fires, so that a sign of life costs nothing.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Moves a timer forward to `due` if it is set for later, or not set.
    pub(super) fn arm(&mut self, timer: Timer, armed: &mut Armed, due: Instant) {
        if armed.0.is_none_or(|armed| due < armed) {
            self.set(timer, armed, Some(due));
        }
    }

    /// Sets a timer, or stops it.
    pub(super) fn set(&mut self, timer: Timer, armed: &mut Armed, due: Option<Instant>) {
        if let Some(old) = std::mem::replace(&mut armed.0, due) {
            self.due.remove(&(old, timer));
        }
        if let Some(due) = due {
            self.due.insert((due, timer));
        }
    }

    /// The next one that is due.
    pub(super) fn first(&self) -> Option<(Instant, Timer)> {
        self.due.first().copied()
    }

    /// Panics unless the timer is set as `armed` says, and not later than `deadline`. Returns whether it is set.
    #[cfg(feature = "testing")]
    pub(super) fn check(&self, timer: Timer, armed: &Armed, deadline: Option<Instant>) -> bool {
        assert!(armed.0.is_none_or(|due| self.due.contains(&(due, timer))));
        assert!(deadline.is_none_or(|due| armed.0.is_some_and(|armed| armed <= due)), "a timer too late");
        armed.0.is_some()
    }

    /// Timers that are set.
    #[cfg(feature = "testing")]
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }
}
