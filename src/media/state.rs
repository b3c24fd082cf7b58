//! The state of a stream's source.

use serde::{Deserialize, Serialize};

/// The state of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceState {
    /// Connecting to a camera that has not failed since it last played, or that is tried for the first time.
    Connecting,
    /// Packets come.
    Live,
    /// The connection is open, but no packets arrive.
    Silent,
    /// A session failed and no media have arrived since, however often the camera was retried.
    Down,
    /// An on-demand source without clients.
    Idle,
}

impl SourceState {
    /// Every state.
    pub const ALL: &'static [SourceState] =
        &[SourceState::Connecting, SourceState::Live, SourceState::Silent, SourceState::Down, SourceState::Idle];

    /// Its stable name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Connecting => "connecting",
            SourceState::Live => "live",
            SourceState::Silent => "silent",
            SourceState::Down => "down",
            SourceState::Idle => "idle",
        }
    }
}
