//! RTSPS for clients: its listeners and threads, from startup to stop.

use std::net::SocketAddr;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, warn};

use super::failure::Failure;
use super::fd_store::FdStore;
use crate::config::Config;
use crate::egress::Listener;
use crate::metrics::lines::rfc3339;
use crate::shard::inbox::{ControlSender, ShardSender};
use crate::tls::{HandshakeLimits, Identity, Tls};
use crate::upgrade::Purpose;

/// Serves RTSPS; nothing without `listen_tls`.
pub(super) struct Secured {
    /// Where connections come in.
    pub listeners: Vec<Listener>,
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    /// The handshake and encryption threads.
    pub threads: Option<Tls>,
}

impl Secured {
    /// Listens, on the sockets of a socket unit if there are any, and starts the threads: as many encryption threads as shards,
    /// but at most one per core.
    ///
    /// # Errors
    /// A sentence with the fix.
    pub(super) fn start(
        config: &Config,
        (inherited, store): (Vec<std::net::TcpListener>, &mut FdStore),
        shards: &[ShardSender],
        control: &ControlSender,
    ) -> Result<Secured, Failure> {
        let Some(tls) = &config.tls else {
            if !inherited.is_empty() {
                warn!(
                    "the service manager passed a socket for rtsps, which needs listen_tls with a certificate and key; it is closed"
                );
            }
            return Ok(Secured { listeners: Vec::new(), addresses: Vec::new(), threads: None });
        };
        let (listeners, addresses) = super::listen(inherited, store, Purpose::Rtsps, &tls.listen)?;
        let carriers = shards.len().min(available_parallelism().map_or(1, usize::from));
        let threads =
            Tls::spawn(&tls.identity, limits(config), carriers, shards.to_vec(), control.clone(), config.testing);
        let threads = threads.map_err(|error| {
            format!("the threads for TLS cannot start ({error}); raise the limit on threads (`ulimit -u`, TasksMax= in a unit)")
        })?;
        Ok(Secured { listeners, addresses, threads: Some(threads) })
    }
}

/// What handshakes may take.
pub(super) fn limits(config: &Config) -> HandshakeLimits {
    HandshakeLimits { handshake_timeout: config.limits.handshake_timeout, clients: config.limits.clients }
}

/// Lets the threads deliver the last bytes to clients, until the deadline at most.
pub(super) async fn stop(tls: Tls, deadline: Instant) {
    let threads = tls.stop();
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    for thread in threads {
        if !thread.is_finished() {
            warn!("a TLS client did not read its last bytes in time; its thread is abandoned");
        } else if thread.join().is_err() {
            error!("a TLS thread has panicked");
        }
    }
}

/// When a certificate expires, for the log.
pub(super) fn expires(identity: &Identity) -> String {
    identity.expires().map_or_else(|| "unknown".into(), rfc3339)
}
