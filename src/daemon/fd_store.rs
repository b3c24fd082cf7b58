//! The service manager's file descriptor store (sd_notify(3), `FDSTORE=1`): while the relay is restarted the manager keeps the listening
//! sockets, so connections wait in their backlogs instead of being refused.

use std::fmt::{self, Display};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use socket2::{Protocol, Socket, Type};
use tracing::{info, warn};

use super::notify::Notifier;
use crate::config::Config;
use crate::egress::Listener;
use crate::limits::{LISTEN_BACKLOG_MAX, STORED_SOCKETS_MAX};
use crate::upgrade::Purpose;

const PURPOSES: [Purpose; 4] = [Purpose::Rtsp, Purpose::Rtsps, Purpose::Http, Purpose::Https];

/// What a socket's name in the store begins with.
const fn word(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Rtsp => "rtsp",
        Purpose::Rtsps => "rtsps",
        Purpose::Http => "http",
        Purpose::Https => "https",
    }
}

/// Between a name's first word and its address. Names of sockets from a socket unit lack it, unless `FileDescriptorName=` has one.
const SEPARATOR: char = '/';

/// Whether a descriptor with this name comes from the store, and not from a socket unit.
pub(super) fn is_stored(name: &str) -> bool {
    name.contains(SEPARATOR)
}

/// A socket's name in the store, such as `rtsp/0.0.0.0_8554` or `https/[__1]_8443`: the address has `_` for `:`, which must not be in a
/// name (sd_notify(3), `FDNAME=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    purpose: Purpose,
    address: SocketAddr,
}

impl Name {
    /// `None` if no version of the relay would give this name to a socket that this version can serve.
    fn parse(text: &str) -> Option<Name> {
        let (first, address) = text.split_once(SEPARATOR)?;
        let purpose = PURPOSES.into_iter().find(|purpose| word(*purpose) == first)?;
        let name = Name { purpose, address: address.replace('_', ":").parse().ok()? };
        (name.to_string() == text).then_some(name)
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", word(self.purpose), self.address.to_string().replace(':', "_"))
    }
}

/// The names of the sockets that the configuration asks for. A socket unit replaces `listen` or `listen_tls`.
pub(super) fn wanted(config: &Config, has_plain: bool, has_secured: bool) -> Vec<Name> {
    let plain = config.listen.iter().filter(|_| !has_plain).map(|&address| Name { purpose: Purpose::Rtsp, address });
    let secured = config.tls.iter().filter(|_| !has_secured).flat_map(|tls| &tls.listen);
    let secured = secured.map(|&address| Name { purpose: Purpose::Rtsps, address });
    let http = config.http.map(|address| Name { purpose: Purpose::Http, address });
    let https = config.http_tls.map(|address| Name { purpose: Purpose::Https, address });
    plain.chain(secured).chain(http).chain(https).collect()
}

/// The relay's side of the store.
#[derive(Debug)]
pub(super) struct FdStore {
    notifier: Rc<Notifier>,
    /// Sockets from the store that the relay does not listen on yet.
    passed: Vec<(Name, Socket)>,
    /// Sockets that the relay listens on, for the store.
    open: Vec<(Name, OwnedFd)>,
    /// The names of those in the store.
    stored: Vec<Name>,
}

impl FdStore {
    /// Accepts those of the `passed` descriptors that are what their names say and are `wanted`. Closes the others, and removes them from
    /// the store.
    pub(super) fn new(notifier: Rc<Notifier>, passed: Vec<(OwnedFd, String)>, wanted: &[Name]) -> FdStore {
        let mut store = FdStore { notifier, passed: Vec::new(), open: Vec::new(), stored: Vec::new() };
        for (fd, name) in passed {
            store.receive(fd.into(), &name, wanted);
        }
        store
    }

    /// The store of a relay that takes over from another, which has stored these sockets.
    pub(super) fn succeeding(notifier: Rc<Notifier>, listeners: &[(Purpose, SocketAddr)]) -> FdStore {
        // Those of a socket unit were not stored; the manager ignores the removal of what it does not have.
        let stored = listeners.iter().map(|&(purpose, address)| Name { purpose, address }).collect();
        FdStore { notifier, passed: Vec::new(), open: Vec::new(), stored }
    }

    fn receive(&mut self, socket: Socket, text: &str, wanted: &[Name]) {
        let Some(name) = Name::parse(text) else {
            warn!(name = text, "a descriptor in the service manager's store has an unknown name; it is closed");
            return self.remove(text);
        };
        match fault(&socket, name.address) {
            Ok(None) if self.passed.iter().any(|(other, _)| *other == name) => {
                warn!(%name, "the service manager passed two sockets of this name; the second is closed");
            }
            Ok(None) if wanted.contains(&name) => self.passed.push((name, socket)),
            Ok(None) => self.close(name, &socket),
            Ok(Some(fault)) => {
                warn!(%name, "a descriptor in the service manager's store {fault}, unlike its name says; it is closed");
                self.remove(text);
            }
            Err(error) => {
                warn!(%name, "a descriptor in the service manager's store cannot be examined ({error}); it is closed");
                self.remove(text);
            }
        }
    }

    /// Ends a listening socket that the configuration does not have any more, and removes it from the store.
    fn close(&self, name: Name, socket: &Socket) {
        info!(
            address = %name.address,
            "the configuration does not have this address for {} any more; its socket is closed", word(name.purpose)
        );
        // Closing is not enough: until the manager has closed its descriptor, the address would stay in use.
        if let Err(error) = socket.shutdown(Shutdown::Read) {
            warn!(%name, "cannot end listening ({error})");
        }
        self.remove(&name.to_string());
    }

    /// Closes a socket of the relay that ran before, which this one has no use for.
    pub(super) fn close_passed(&mut self, purpose: Purpose, address: SocketAddr, socket: OwnedFd) {
        let name = Name { purpose, address };
        self.stored.retain(|stored| *stored != name);
        self.close(name, &socket.into());
    }

    /// Listens on `address`, with the socket from the store if there is one.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub(super) fn listen(&mut self, purpose: Purpose, address: SocketAddr) -> io::Result<Listener> {
        let passed = self.passed.iter().position(|(name, _)| *name == Name { purpose, address });
        let listener = match passed.map(|index| self.passed.swap_remove(index)) {
            Some((_, socket)) => {
                // The length of its backlog may have been another (LISTEN_BACKLOG_MAX, net.core.somaxconn).
                socket.listen(LISTEN_BACKLOG_MAX)?;
                info!(%address, "the {} socket is the one that the service manager kept", word(purpose));
                Listener::from_std(socket.into())?
            }
            None => Listener::bind(address)?,
        };
        if self.notifier.is_present() {
            let name = Name { purpose, address: listener.local_addr()? };
            self.open.push((name, listener.as_fd().try_clone_to_owned()?));
        }
        Ok(listener)
    }

    /// Puts the sockets into the store; those that are in it already stay there once. Call it when the relay serves, so that a relay
    /// that cannot start leaves no socket behind.
    pub(super) fn keep(&mut self) {
        let open = std::mem::take(&mut self.open);
        if open.len() > STORED_SOCKETS_MAX {
            warn!(
                "the relay listens on {} addresses; the service manager keeps the first {STORED_SOCKETS_MAX}, and while the relay is restarted the others refuse connections",
                open.len()
            );
        }
        for (name, socket) in open.into_iter().take(STORED_SOCKETS_MAX) {
            if let Err(error) = self.notifier.pass(&format!("FDSTORE=1\nFDNAME={name}"), socket.as_fd()) {
                warn!(%name, "the service manager cannot keep this socket ({error}); while the relay is restarted it refuses connections");
            } else {
                self.stored.push(name);
            }
        }
    }

    /// Removes the sockets from the store, because nobody will accept their connections.
    pub(super) fn release(&mut self) {
        for name in std::mem::take(&mut self.stored) {
            self.remove(&name.to_string());
        }
    }

    fn remove(&self, name: &str) {
        self.notifier.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }
}

/// What keeps a descriptor from being a TCP socket that listens on `address`.
fn fault(socket: &Socket, address: SocketAddr) -> io::Result<Option<String>> {
    if socket.r#type()? != Type::STREAM || socket.protocol()? != Some(Protocol::TCP) {
        return Ok(Some("is not a TCP socket".into()));
    }
    let bound = socket.local_addr()?.as_socket();
    if bound != Some(address) {
        return Ok(Some(bound.map_or("has no address".into(), |bound| format!("is bound to {bound}"))));
    }
    Ok((!socket.is_listener()?).then(|| "does not listen".into()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_unit_lets_as_many_be_stored() {
        let unit = include_str!("../../systemd/rtsprelay.service");
        assert!(unit.contains(&format!("\nFileDescriptorStoreMax={STORED_SOCKETS_MAX}\n")));
    }

    fn name(purpose: Purpose, address: &str) -> Name {
        Name { purpose, address: address.parse().unwrap() }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, text) in [
            (name(Purpose::Rtsp, "0.0.0.0:8554"), "rtsp/0.0.0.0_8554"),
            (name(Purpose::Rtsps, "[::]:8322"), "rtsps/[__]_8322"),
            (name(Purpose::Http, "[::ffff:192.0.2.1]:80"), "http/[__ffff_192.0.2.1]_80"),
            (name(Purpose::Https, "[fe80::1%3]:65535"), "https/[fe80__1%3]_65535"),
        ] {
            assert_eq!(name.to_string(), text);
            assert_eq!(Name::parse(text), Some(name));
            assert!(is_stored(text) && !text.contains(':'));
        }
    }

    #[test]
    fn other_names_are_not_taken_for_one() {
        for text in [
            "",
            "/",
            "rtsp",
            "rtsp/",
            "rtsp/0.0.0.0",
            "rtsp/0.0.0.0_",
            "rtsp/0.0.0.0_65536",
            "rtsp/0.0.0.0_08554",
            "rtsp/0.0.0.0:8554",
            "rtsp/localhost_8554",
            "rtsp/__1_8554",
            "rtsp/[0__1]_8554",
            "RTSP/0.0.0.0_8554",
            "srt/0.0.0.0_8554",
            "/0.0.0.0_8554",
            "rtsp/0.0.0.0_8554/",
            " rtsp/0.0.0.0_8554",
        ] {
            assert_eq!(Name::parse(text), None, "{text:?}");
        }
        assert!(!is_stored("rtsps") && !is_stored("rtsprelay.socket") && !is_stored(""));
    }

    fn at(address: io::Result<SocketAddr>) -> Name {
        Name { purpose: Purpose::Rtsp, address: address.unwrap() }
    }

    #[test]
    fn only_what_listens_on_the_address_of_its_name_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let right = at(listener.local_addr());
        let connection = TcpStream::connect(right.address).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let idle = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        idle.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        let idle_at = Name { purpose: Purpose::Rtsp, address: idle.local_addr().unwrap().as_socket().unwrap() };
        let wrong_port = name(Purpose::Rtsp, "127.0.0.1:1");
        let names = [right, wrong_port, at(connection.local_addr()), at(udp.local_addr()), idle_at];
        let passed: Vec<(OwnedFd, Name)> = vec![
            (listener.try_clone().unwrap().into(), wrong_port),
            (file.into(), right),
            (connection.into(), names[2]),
            (udp.into(), names[3]),
            (idle.into(), idle_at),
            (listener.try_clone().unwrap().into(), right),
            (listener.try_clone().unwrap().into(), right),
        ];
        let passed = passed.into_iter().map(|(fd, name)| (fd, name.to_string())).collect();
        let store = FdStore::new(Rc::default(), passed, &names);
        let accepted: Vec<Name> = store.passed.iter().map(|(name, _)| *name).collect();
        assert_eq!(accepted, [right]);
        // It was not harmed by those that claimed to be it.
        TcpStream::connect(right.address).unwrap();
    }

    #[test]
    fn the_address_of_a_socket_that_is_not_wanted_is_free_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = at(listener.local_addr());
        // The manager's descriptor, which it closes some time later.
        let manager = listener.try_clone().unwrap();
        let store = FdStore::new(Rc::default(), vec![(listener.into(), name.to_string())], &[]);
        assert!(store.passed.is_empty());
        assert!(TcpStream::connect(name.address).is_err());
        let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&name.address.into()).unwrap();
        socket.listen(1).unwrap();
        TcpStream::connect(name.address).unwrap();
        drop(manager);
    }
}
