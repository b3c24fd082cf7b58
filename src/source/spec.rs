//! The parameters of a source: where its stream comes from, and how it is kept running.

use std::time::Duration;

use tokio::sync::watch;

use super::backoff::Waits;
use super::camera::CameraOptions;
use super::camera::address::{AddressError, CameraAddress};
use super::news::NewsSender;

/// Where a stream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Cameras, pulled over RTSP: the first one that works, in this order. Never empty.
    Cameras(Vec<CameraAddress>),
    /// A publisher, which connects to the relay ([`publisher`](super::publisher)).
    Publisher {
        /// Whether a second one takes over; otherwise it is refused.
        takeover: bool,
    },
    /// The built-in test pattern.
    Test,
}

impl SourceKind {
    /// The source for a configured value: `test`, or the URL of a camera.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.trim() == "test" {
            return Ok(SourceKind::Test);
        }
        CameraAddress::parse(text).map(|address| SourceKind::Cameras(vec![address]))
    }
}

/// The source that a supervisor runs.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The stream's name, for the log.
    pub name: String,
    /// Where the stream comes from.
    pub kind: SourceKind,
    /// How to talk to cameras.
    pub camera: CameraOptions,
    /// Delays between attempts.
    pub waits: Waits,
    /// Delay of the first connection, so that many sources do not connect at the same moment.
    pub start_after: Duration,
    /// For a source that is pulled on demand.
    pub on_demand: Option<OnDemand>,
    /// Changes on a reload; all attempts that are waiting are then made at once.
    pub reloaded: Option<watch::Receiver<u64>>,
    /// Counts requests for the stream while its source was down.
    pub asked: Option<watch::Receiver<u64>>,
    /// Where its news go.
    pub news: Option<NewsSender>,
    /// Whether it was created by name: then it ends at once if nobody waits for it and it has never been live.
    pub made: bool,
}

impl SourceSpec {
    /// A source with the default limits.
    pub fn new(name: impl Into<String>, kind: SourceKind) -> Self {
        SourceSpec {
            name: name.into(),
            kind,
            camera: CameraOptions::default(),
            waits: Waits::default(),
            start_after: Duration::ZERO,
            on_demand: None,
            reloaded: None,
            asked: None,
            news: None,
            made: false,
        }
    }
}

/// What clients want from a stream, over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Shards with clients that wait for the stream or have a session of it.
    pub shards: usize,
    /// Counts requests. A client that requests the stream and leaves at once is noticed only by this.
    pub asked: u64,
}

/// When an on-demand source is pulled, and for how long.
#[derive(Clone, Debug)]
pub struct OnDemand {
    /// How long it is kept after the last client left.
    pub stop: Duration,
    /// What clients want.
    pub demand: watch::Receiver<Demand>,
}
