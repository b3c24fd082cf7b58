//! RTSPS for clients: its listeners and threads, from the start to the stop.

use std::net::SocketAddr;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, warn};

use crate::config::Config;
use crate::egress::Listener;
use crate::metrics::lines::rfc3339;
use crate::shard::inbox::{ControlSender, ShardSender};
use crate::tls::{Identity, Limits, Tls};

/// What serves RTSPS; nothing without `listen_tls`.
pub struct Secured {
    /// Where connections come in.
    pub listeners: Vec<Listener>,
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    /// The threads that do the handshakes, and that carry.
    pub threads: Option<Tls>,
}

impl Secured {
    /// Listens, by the sockets that the service manager has handed over if it has, and starts the threads: as many that carry as
    /// there are shards, but no more than cores.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn start(
        config: &Config,
        inherited: Vec<std::net::TcpListener>,
        shards: &[ShardSender],
        control: &ControlSender,
    ) -> Result<Secured, String> {
        let Some(tls) = &config.tls else {
            if !inherited.is_empty() {
                warn!(
                    "the service manager hands over a socket for rtsps, which needs listen_tls with a certificate and key; it is closed"
                );
            }
            return Ok(Secured { listeners: Vec::new(), addresses: Vec::new(), threads: None });
        };
        let listeners = super::listen(inherited, "listen_tls", &tls.listen)?;
        let address =
            |listener: &Listener| listener.local_addr().map_err(|error| format!("a listener has no address ({error})"));
        let addresses = listeners.iter().map(address).collect::<Result<_, _>>()?;
        let carriers = shards.len().min(available_parallelism().map_or(1, usize::from));
        let test_panics = config.test_panic.is_some();
        let threads =
            Tls::spawn(&tls.identity, limits(config), carriers, shards.to_vec(), control.clone(), test_panics);
        let threads = threads.map_err(|error| {
            format!("the threads for TLS cannot start ({error}); raise the limit of threads (`ulimit -u`, TasksMax= in a unit)")
        })?;
        Ok(Secured { listeners, addresses, threads: Some(threads) })
    }
}

/// What handshakes may take.
pub fn limits(config: &Config) -> Limits {
    Limits { handshake_timeout: config.limits.handshake_timeout, clients: config.limits.clients }
}

/// Lets the threads give the last bytes to clients, but not for longer than to the deadline.
pub async fn stop(tls: Tls, deadline: Instant) {
    let threads = tls.stop();
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    for thread in threads {
        if !thread.is_finished() {
            warn!("a TLS client did not take its last bytes in time; its thread is left behind");
        } else if thread.join().is_err() {
            error!("a TLS thread has panicked");
        }
    }
}

/// When a certificate expires, for the log.
pub fn expires(identity: &Identity) -> String {
    identity.expires().map_or_else(|| "unknown".into(), rfc3339)
}
