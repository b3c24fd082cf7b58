//! Takes connections and hands each to the shard with the fewest.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::SharedAdmission;
use crate::egress::Listener;
use crate::limits::ACCEPTED_AT_ONCE_MAX;
use crate::shard::inbox::{ShardSender, ToShard};
use crate::tls::TlsSender;
use crate::told::Told;

/// The wait after the system ran out of what a connection needs.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens at every address.
///
/// # Errors
/// A sentence that names the address and the cure.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<Listener>, String> {
    let listener = |&address| Listener::bind(address).map_err(|error| cannot_listen(address, &error));
    addresses.iter().map(listener).collect()
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process serves there (`ss -ltnp 'sport = :{}'` shows it); stop it, or choose another port with --listen or `listen`",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or choose a port from 1024 on".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; use 0.0.0.0 or [::] for all it has".into()
        }
        _ => "choose another address with --listen or `listen`".into(),
    };
    format!("cannot listen at {address} ({error}); {cure}")
}

/// Hands out the connections of one listener until the task is dropped.
///
/// With `secured` the handshakes are done by `tls` first, which gives some up when few more connections would be let in.
pub async fn accept(
    listener: Listener,
    secured: bool,
    shards: Rc<[ShardSender]>,
    tls: Option<TlsSender>,
    admission: SharedAdmission,
) {
    let mut told = Told::default();
    for accepted in 1_usize.. {
        if accepted.is_multiple_of(ACCEPTED_AT_ONCE_MAX) {
            // A flood of connections must not hold up the sources, which run on this thread as well.
            tokio::task::yield_now().await;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(limit) = admission.borrow_mut().enter(peer) {
                    drop(stream);
                    if told.is_due(Instant::now()) {
                        tracing::warn!("{limit}");
                    }
                    continue;
                }
                if let Some(tls) = &tls {
                    // One for one: those that were given up for others of a burst are still counted.
                    if admission.borrow().is_crowded() {
                        tls.give_way();
                    }
                    if secured {
                        tls.connection(stream, peer);
                        continue;
                    }
                }
                let shard = shards.iter().min_by_key(|shard| shard.connections()).expect("there is at least one shard");
                shard.tell(ToShard::Connection { stream, peer, unread: Bytes::new(), secured: None, moves: 0 });
            }
            // The client gave up between the kernel's handshake and us.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                let cure = match error.raw_os_error() {
                    Some(libc::EMFILE) => "raise `ulimit -n` (LimitNOFILE= in a unit) or lower limits.clients",
                    Some(libc::ENFILE) => "raise `sysctl fs.file-max`",
                    _ => "the system is short of memory for sockets",
                };
                if told.is_due(Instant::now()) {
                    tracing::warn!("connections wait unanswered ({error}); {cure}");
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
