//! Chooses the requests that keep a camera's session alive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Default session timeout if the camera gives none (RFC 2326 section 12.37).
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum time between two keep-alives.
const EVERY_MAX: Duration = Duration::from_secs(30);

/// Minimum time, whatever the camera says.
const EVERY_MIN: Duration = Duration::from_millis(500);

/// A request whose only purpose is to keep the session alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Method {
    Options,
    GetParameter,
    SetParameter,
}

impl Method {
    /// In the order in which they are tried.
    const ALL: [Method; 3] = [Method::GetParameter, Method::Options, Method::SetParameter];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Method::Options => "OPTIONS",
            Method::GetParameter => "GET_PARAMETER",
            Method::SetParameter => "SET_PARAMETER",
        }
    }
}

/// The requests that keep a session alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeepAlive {
    /// Both of the usual kinds, because neither worked alone.
    every: bool,
    /// What the camera supports, as far as known.
    method: Method,
    refused: Vec<Method>,
}

impl KeepAlive {
    pub(super) fn new(every: bool) -> Self {
        KeepAlive { every, method: Method::Options, refused: Vec::new() }
    }

    /// The camera listed its methods (`Public`).
    pub(super) fn told(&mut self, public: &str) {
        let names = |method: Method| public.split(',').any(|name| name.trim().eq_ignore_ascii_case(method.name()));
        let named = [Method::GetParameter, Method::SetParameter].into_iter().filter(|method| names(*method));
        if let Some(method) = named.into_iter().find(|method| !self.refused.contains(method)) {
            self.method = method;
        }
    }

    /// The camera does not support this one; the next kind is tried. A camera that refuses all of them is sent OPTIONS.
    pub(super) fn refused(&mut self, method: Method) {
        if !self.refused.contains(&method) {
            self.refused.push(method);
        }
        self.method = Method::ALL.into_iter().find(|kind| !self.refused.contains(kind)).unwrap_or(Method::Options);
    }

    /// What to send now.
    pub(super) fn methods(&self) -> impl Iterator<Item = Method> + use<> {
        let both = [Method::Options, Method::GetParameter];
        let (every, method) = (self.every, self.method);
        both.into_iter().filter(move |_| every).chain((!every || !both.contains(&method)).then_some(method))
    }
}

/// The interval of keep-alives for a camera with this session timeout.
pub(super) fn every(timeout: Duration) -> Duration {
    (timeout / 2).clamp(EVERY_MIN, EVERY_MAX)
}
