//! A camera as a source: the relay's own RTSP client.
//!
//! [`client`] is the protocol, without sockets or clock; [`connection`] does its I/O: TCP, TLS and datagrams. Deviations that are
//! tolerated are handled in the client; what ends a session is a [`fault::Fault`].

pub mod address;
mod client;
mod connection;
pub mod fault;
pub(super) mod pace;
pub(crate) mod pauses;
mod sockets;
pub mod tls;

use std::time::Duration;

pub use self::client::DatagramsFrom;
pub(super) use self::client::Learned;
pub(super) use self::connection::{Camera, CameraAgain, CameraSession, Outcome};
use self::tls::TlsOptions;
use super::news::Relaying;

#[cfg(feature = "testing")]
pub use self::client::fuzz;

/// Maximum duration of each step of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting and DESCRIBE together.
    pub describe: Duration,
    /// Each SETUP.
    pub setup: Duration,
    /// PLAY.
    pub play: Duration,
    /// Time without a packet after which a connected source is reported as silent.
    pub quiet: Duration,
    /// Maximum time between two packets; after that the session is ended.
    pub silence: Duration,
    /// Minimum interval of checks whether a camera earlier in the list is back; less often if it answered and then did not play.
    pub look_back: Duration,
    /// TEARDOWN when the relay stops; must fit into [`STOP_MAX_MS`](crate::limits::STOP_MAX_MS).
    pub teardown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let step = Duration::from_secs(10);
        Timeouts {
            describe: step,
            setup: step,
            play: step,
            quiet: Duration::from_secs(2),
            silence: step,
            look_back: Duration::from_secs(5),
            teardown: Duration::from_secs(1),
        }
    }
}

/// Transport of a camera's media.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullTransport {
    /// In the RTSP connection.
    #[default]
    Tcp,
    /// As datagrams.
    Udp,
    /// In the RTSP connection, or over UDP if the camera refuses that (461).
    Auto,
}

/// How to talk to the cameras of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CameraOptions {
    /// Time limits of a session's steps.
    pub timeouts: Timeouts,
    /// How media come.
    pub transport: PullTransport,
    /// How certificates of `rtsps://` cameras are checked.
    pub tls: TlsOptions,
    /// Whether the password may be sent in clear to a camera that offers Digest and refuses it. With TLS it always may.
    pub basic: bool,
    /// Which datagrams count as the camera's.
    pub datagrams_from: DatagramsFrom,
    /// What other relays are told about this one; not configurable.
    pub relaying: Option<Relaying>,
}
