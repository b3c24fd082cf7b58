//! Sockets that the service manager passes at startup (sd_listen_fds(3)).

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::fd_store::{self, FdStore};
use super::notify::Notifier;
use crate::config::Config;
use crate::sys;

/// The name of a socket for RTSPS (systemd.socket(5), `FileDescriptorName=`).
const TLS_NAME: &str = "rtsps";

/// Sockets from the service manager.
#[derive(Debug)]
pub(super) struct Inherited {
    /// Listening sockets of a socket unit, for RTSP.
    pub plain: Vec<TcpListener>,
    /// The same for RTSPS.
    pub secured: Vec<TcpListener>,
    /// Those of the store that the configuration asks for.
    pub store: FdStore,
}

impl Inherited {
    /// Takes the sockets that this process was started with; without a service manager there are none.
    pub(super) fn take(config: &Config, notifier: &Rc<Notifier>) -> Inherited {
        let (mut plain, mut secured, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        for (fd, name) in descriptors() {
            if fd_store::is_stored(&name) {
                stored.push((fd, name));
                continue;
            }
            let socket = socket2::Socket::from(fd);
            let listens = socket.is_listener().unwrap_or(false);
            match socket.local_addr().ok().and_then(|address| address.as_socket()) {
                Some(_) if listens && name == TLS_NAME => secured.push(socket.into()),
                Some(_) if listens => plain.push(socket.into()),
                address => tracing::warn!(
                    ?address,
                    "a socket from the service manager is not used because it is not a listening TCP socket; see ListenStream="
                ),
            }
        }
        let wanted = fd_store::wanted(config, !plain.is_empty(), !secured.is_empty());
        let store = FdStore::new(Rc::clone(notifier), stored, &wanted);
        Inherited { plain, secured, store }
    }
}

fn descriptors() -> Vec<(OwnedFd, String)> {
    let sys::Inherited { descriptors, missing } = sys::inherited_descriptors();
    if missing > 0 {
        let (passed, told) = (descriptors.len(), descriptors.len() + missing);
        tracing::warn!(
            passed,
            told,
            "LISTEN_FDS announces more sockets than the relay was started with; it uses those that exist"
        );
    }
    descriptors
}
