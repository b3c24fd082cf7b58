//! The parameters of a server.

use std::sync::Arc;
use std::time::Duration;

use super::loads::Loads;
use super::ports::UdpPorts;
use super::types::{SessionIds, SessionLimit};

/// The parameters of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Number of this shard, below `shards`.
    pub shard: u16,
    /// Number of shards, at least 1. A session belongs to the shard whose number is the remainder of its id.
    pub shards: u16,
    /// Silence after which a session ends (only one over UDP, or one that is not playing).
    pub session_timeout: Duration,
    /// Time within which a connection must send its first complete request.
    pub handshake_timeout: Duration,
    /// The limit on sessions over all shards; beyond it SETUP is answered 453.
    pub limit: Arc<SessionLimit>,
    /// The shard's UDP ports for RTP and RTCP. `None`: UDP is answered 461.
    pub udp_ports: Option<(u16, u16)>,
    /// The UDP ports of all shards; with `None` it knows only its own.
    pub all_ports: Option<Arc<UdpPorts>>,
    /// The source of session ids.
    pub ids: SessionIds,
    /// The number of connections of each shard; with `None` connections do not move to a stream's home.
    pub loads: Option<Loads>,
}
