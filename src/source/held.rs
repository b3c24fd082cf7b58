//! What a source's task leaves when it is held for a hand-over, and what one starts with that continues in another process.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::media::saved::Moment;

/// A session as its task leaves it.
pub(super) struct Deposit {
    session: Value,
    sockets: Vec<OwnedFd>,
}

impl Deposit {
    /// A session, in the form in which a task of the same kind reads it, and its sockets.
    pub(super) fn new(session: &impl Serialize, sockets: Vec<OwnedFd>) -> Option<Deposit> {
        Some(Deposit { session: serde_json::to_value(session).ok()?, sockets })
    }

    /// Its parts.
    pub(super) fn into_parts(self) -> (Value, Vec<OwnedFd>) {
        (self.session, self.sockets)
    }
}

/// A session that a source starts with.
pub(super) struct Resume {
    pub(super) session: Value,
    pub(super) sockets: Vec<OwnedFd>,
    /// What its times are relative to.
    pub(super) reference: Instant,
}

impl Resume {
    /// The session, if it is of this kind.
    pub(super) fn of<T: DeserializeOwned>(self) -> Option<(T, Vec<OwnedFd>, Instant)> {
        Some((serde_json::from_value(self.session).ok()?, self.sockets, self.reference))
    }

    /// Whether it is of this kind: the session then, a copy.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        T::deserialize(&self.session).ok()
    }
}

/// What a feed knows beside the pipeline.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct FeedState {
    pub(super) live: Option<Moment>,
    pub(super) silent: bool,
    pub(super) had_video: bool,
}

/// What a source's task does, for a hand-over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Running {
    /// Nothing that goes on in another process.
    #[default]
    Nothing,
    /// A session that it leaves when the source is held.
    Session,
    /// A session with a camera over TLS, whose keys cannot be handed over: it leaves what is needed to start anew.
    Tls,
}

impl Running {
    /// Whether it leaves something when the source is held.
    pub(super) fn leaves(self) -> bool {
        matches!(self, Running::Session | Running::Tls)
    }
}
