//! Accepts connections and hands each to the shard with the fewest connections.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::admission::{LimitReached, SharedAdmission};
use super::failure::Failure;
use super::fd_store::FdStore;
use super::proxied::{self, Refused};
use crate::egress::{Listener, Valve};
use crate::limits::{ACCEPTED_AT_ONCE_MAX, PROXY_HEADERS_AWAITED_MAX};
use crate::metrics::{Limited, process};
use crate::shard::inbox::{ShardSender, ToShard};
use crate::tls::TlsSender;
use crate::told::Told;
use crate::upgrade::Purpose;

/// The delay after the system ran out of resources for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens on every address.
///
/// # Errors
/// A sentence with the address and the fix.
pub(super) fn bind(store: &mut FdStore, purpose: Purpose, addresses: &[SocketAddr]) -> Result<Vec<Listener>, Failure> {
    let listener = |&address| store.listen(purpose, address).map_err(|error| cannot_listen(address, &error).into());
    addresses.iter().map(listener).collect()
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process uses that port (`ss -ltnp 'sport = :{}'` shows it); stop it, or choose another port with --listen or `listen`",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or choose a port from 1024 on".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; use 0.0.0.0 or [::] for all its addresses".into()
        }
        _ => "choose another address with --listen or `listen`".into(),
    };
    format!("cannot listen on {address} ({error}); {cure}")
}

/// Where connections go: to the shard with the fewest, or with `secured` first to the TLS handshakes.
#[derive(Clone)]
pub(super) struct Entrance {
    /// Whether clients use TLS.
    pub secured: bool,
    /// The shards.
    pub shards: Rc<[ShardSender]>,
    /// Does TLS handshakes; evicts one when few more connections can be accepted.
    pub tls: Option<TlsSender>,
    /// Lets them in.
    pub admission: SharedAdmission,
    /// Closed while everything is handed over to another process.
    pub valve: Valve,
}

impl Entrance {
    /// Hands on a client's connection if it is admitted.
    ///
    /// # Errors
    /// The limit; the connection is closed.
    fn enter(&self, stream: TcpStream, peer: SocketAddr) -> Result<(), LimitReached> {
        self.admission.borrow_mut().enter(peer)?;
        if let Some(tls) = &self.tls {
            // One for one: handshakes evicted for others of a burst are still counted.
            if self.admission.borrow().is_crowded() {
                tls.give_way();
            }
            if self.secured {
                tls.connection(stream, peer);
                return Ok(());
            }
        }
        let shard = self.shards.iter().min_by_key(|shard| shard.connections()).expect("there is at least one shard");
        shard.tell(ToShard::Connection { stream, peer, unread: Bytes::new(), secured: None, moves: 0 });
        Ok(())
    }

    /// The same for a balancer's connection, once its header has arrived. Returns what to log if it is closed.
    async fn enter_proxied(self, stream: TcpStream, balancer: SocketAddr) -> Result<(), Option<String>> {
        let read = async {
            stream.set_nonblocking(true)?;
            let mut stream = tokio::net::TcpStream::from_std(stream)?;
            let balancers = self.admission.borrow().balancers().clone();
            let client = balancers.client(&mut stream, balancer).await?;
            Ok::<_, Refused>((stream.into_std()?, client))
        };
        let (stream, client) = read.await.map_err(|why| proxied::refused(balancer, &why))?;
        self.enter(stream, client).map_err(|limit| Some(limit.to_string()))
    }
}

/// Accepts the connections of one listener until the task is dropped.
pub(super) async fn accept(listener: Listener, entrance: Entrance) {
    let mut told = Told::default();
    // Balancers' connections whose header has not arrived yet.
    let mut headers: JoinSet<Result<(), Option<String>>> = JoinSet::new();
    for accepted in 1_usize.. {
        if accepted.is_multiple_of(ACCEPTED_AT_ONCE_MAX) {
            // A flood of connections must not delay the other tasks on this thread.
            tokio::task::yield_now().await;
        }
        let next = loop {
            tokio::select! {
                biased;
                Some(ended) = headers.join_next() => {
                    if let Ok(Err(Some(why))) = ended && told.is_due(Instant::now()) {
                        tracing::warn!("{why}");
                    }
                }
                next = entrance.valve.pass(listener.accept()) => break next,
            }
        };
        match next {
            Ok((stream, peer)) => {
                let is_proxied = entrance.admission.borrow().balancers().have(peer.ip());
                let entered = if !is_proxied {
                    entrance.enter(stream, peer)
                } else if headers.len() >= PROXY_HEADERS_AWAITED_MAX {
                    process::limited(Limited::ProxyHeader);
                    Err(LimitReached::ProxyHeaders { peer })
                } else {
                    headers.spawn_local(entrance.clone().enter_proxied(stream, peer));
                    Ok(())
                };
                if let Err(limit) = entered
                    && told.is_due(Instant::now())
                {
                    tracing::warn!("{limit}");
                }
            }
            // The client gave up between the kernel's handshake and accept.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                let cure = match error.raw_os_error() {
                    Some(libc::EMFILE) => "raise `ulimit -n` (LimitNOFILE= in a unit) or lower limits.clients",
                    Some(libc::ENFILE) => "raise `sysctl fs.file-max`",
                    _ => "the system is short of memory for sockets",
                };
                if told.is_due(Instant::now()) {
                    tracing::warn!("cannot accept connections ({error}); {cure}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_told_with_address_and_cure() {
        let address = "127.0.0.1:8554".parse().unwrap();
        let text = cannot_listen(address, &io::ErrorKind::AddrInUse.into());
        assert!(text.contains("127.0.0.1:8554") && text.contains("ss -ltnp") && text.contains("--listen"), "{text}");
        let text = cannot_listen(address, &io::ErrorKind::PermissionDenied.into());
        assert!(text.contains("CAP_NET_BIND_SERVICE"), "{text}");
    }
}
