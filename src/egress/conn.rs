//! Ingress and socket options: connections and datagram sockets, which are read when epoll reports them readable and on which the
//! egress sends.

use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

use super::ready::Ready;
use super::runtime::IoKind;
use super::{Conn, Datagram, Secured};
use crate::limits::{
    DATAGRAM_OWN_SEND_BUFFER_BYTES, DATAGRAM_RECEIVE_BUFFER_BYTES, DATAGRAM_SEND_BUFFER_BYTES, KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES, LISTEN_BACKLOG_MAX, NOTSENT_LOWAT_BYTES, READ_BYTES_MAX,
};

impl Conn {
    /// Takes over a connected stream, in any blocking mode, for a runtime of that kind.
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn from_std(stream: std::net::TcpStream, io: IoKind) -> io::Result<Conn> {
        match io {
            IoKind::Uring => {
                // io_uring returns EAGAIN instead of waiting on a file in non-blocking mode.
                stream.set_nonblocking(false)?;
                Ok(Conn::Uring(Rc::new(Ready::new(stream)?), None))
            }
            IoKind::Epoll => {
                stream.set_nonblocking(true)?;
                Ok(Conn::Epoll(Rc::new(tokio::net::TcpStream::from_std(stream)?), None))
            }
        }
    }

    /// The same connection, as the local socket that represents a TLS client's; `None` leaves it unchanged.
    #[must_use]
    pub fn with_tls(mut self, secured: Option<Arc<Secured>>) -> Conn {
        match &mut self {
            Conn::Uring(_, of) | Conn::Epoll(_, of) => *of = secured,
            #[cfg(feature = "testing")]
            Conn::Scripted => {}
        }
        self
    }

    /// The TCP connection of a TLS client; `None` for others.
    pub fn tls(&self) -> Option<&Arc<Secured>> {
        match self {
            Conn::Uring(_, secured) | Conn::Epoll(_, secured) => secured.as_ref(),
            #[cfg(feature = "testing")]
            Conn::Scripted => None,
        }
    }

    /// The process that encrypts for a TLS client; `None` for others.
    pub fn carrier(&self) -> Option<u32> {
        self.tls().map(|secured| secured.carrier())
    }

    /// The descriptor of the TCP connection, for options and addresses; `None` for a scripted connection.
    pub fn tcp(&self) -> Option<BorrowedFd<'_>> {
        self.tls().map_or_else(|| self.fd(), |secured| Some(secured.as_fd()))
    }

    /// A second, non-blocking handle on the connection, for another shard to take over. Drop this one afterwards; no read may be in
    /// progress, or it would take bytes that the other shard waits for.
    ///
    /// # Errors
    /// The error of `dup`; `Unsupported` for a scripted connection.
    pub fn to_std(&self) -> io::Result<std::net::TcpStream> {
        let fd = self.fd().ok_or(io::ErrorKind::Unsupported)?;
        let stream = std::net::TcpStream::from(fd.try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// The descriptor for reading and sending; `None` for a scripted connection.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Conn::Uring(stream, _) => Some(stream.as_fd()),
            Conn::Epoll(stream, _) => Some(stream.as_fd()),
            #[cfg(feature = "testing")]
            Conn::Scripted => None,
        }
    }

    /// Sets the options for a media connection: `TCP_NODELAY`, `TCP_NOTSENT_LOWAT` ([`NOTSENT_LOWAT_BYTES`]; the backlog beyond it
    /// stays in the log, where it can be skipped), and keep-alive probes.
    ///
    /// # Errors
    /// The first error of `setsockopt`.
    pub fn set_options(&self) -> io::Result<()> {
        self.set_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
        let Some(fd) = self.tcp() else { return Ok(()) };
        let socket = SockRef::from(&fd);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(Duration::from_secs(KEEPALIVE_IDLE_S))
                .with_interval(Duration::from_secs(KEEPALIVE_INTERVAL_S))
                .with_retries(KEEPALIVE_PROBES),
        )
    }

    /// Sets the configurable options: the DSCP of outgoing packets (see [`Datagram::set_dscp`]), and how long sent bytes may stay
    /// unacknowledged (`TCP_USER_TIMEOUT`, tcp(7)) before the connection counts as dead.
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_path(&self, dscp: u8, user_timeout: Duration) -> io::Result<()> {
        let Some(fd) = self.tcp() else { return Ok(()) };
        SockRef::from(&fd).set_tcp_user_timeout(Some(user_timeout))?;
        mark(fd, dscp)
    }

    /// Sets how many unsent bytes the kernel accepts for the socket (`TCP_NOTSENT_LOWAT`, tcp(7)). For a TLS client it is a quarter of
    /// that, because more data waits before the encryption.
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_notsent_lowat(&self, bytes: u32) -> io::Result<()> {
        let bytes = if self.tls().is_some() { bytes / 4 } else { bytes };
        self.tcp().map_or(Ok(()), |fd| SockRef::from(&fd).set_tcp_notsent_lowat(bytes))
    }

    /// The local address that the client connected to.
    ///
    /// # Errors
    /// The error of `getsockname`; `Unsupported` for a scripted connection.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(self.tcp(), |socket| socket.local_addr())
    }

    /// The client's address.
    ///
    /// # Errors
    /// The error of `getpeername` (`NotConnected` once it is gone); `Unsupported` for a scripted connection.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        address(self.tcp(), |socket| socket.peer_addr())
    }

    /// Reads available bytes, waiting for at least one. `buf` is cleared, then filled up to its capacity (without capacity it gets
    /// [`READ_BYTES_MAX`]). 0 bytes: the client has closed its side, or [`Conn::shutdown`] was called.
    ///
    /// The future may be dropped without losing anything.
    pub async fn read(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        buf.clear();
        if buf.capacity() == 0 {
            buf.reserve_exact(READ_BYTES_MAX);
        }
        match self {
            Conn::Uring(stream, _) => {
                let result = stream.recv(&mut buf).await;
                (result, buf)
            }
            Conn::Epoll(stream, _) => loop {
                if let Err(error) = stream.readable().await {
                    return (Err(error), buf);
                }
                match stream.try_read_buf(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return (result, buf),
                }
            },
            #[cfg(feature = "testing")]
            Conn::Scripted => (Err(io::ErrorKind::Unsupported.into()), buf),
        }
    }

    /// Shuts down both directions: a read in progress ends with 0 bytes, a send with `EPIPE`, and the client sees the end after it has
    /// read everything that was sent. The descriptor closes with the last clone.
    pub fn shutdown(&self) {
        if let Some(fd) = self.fd() {
            // It fails only if the connection is already gone.
            let _ = SockRef::from(&fd).shutdown(Shutdown::Both);
        }
    }

    /// Shuts down sending: the client sees the end after it has read everything that was sent, and may keep sending. Returns whether
    /// that was possible: not for a TLS client, or one that is gone.
    pub fn shutdown_send(&self) -> bool {
        let fd = self.fd().filter(|_| self.tls().is_none());
        fd.is_some_and(|fd| SockRef::from(&fd).shutdown(Shutdown::Write).is_ok())
    }

    /// Makes closing the descriptor discard unsent data and reset the connection (`SO_LINGER` 0).
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn reset_on_close(&self) -> io::Result<()> {
        self.fd().map_or(Ok(()), |fd| SockRef::from(&fd).set_linger(Some(Duration::ZERO)))
    }
}

impl Datagram {
    /// Takes over a bound socket for a runtime of that kind, and sets the large send buffer (see [`Datagram::bind_pair`]).
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn from_std(socket: std::net::UdpSocket, io: IoKind) -> io::Result<Datagram> {
        grow_send_buffer(&socket);
        Datagram::inherited(socket, io)
    }

    /// Takes over a socket with the options that it has, which another process may still use.
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn inherited(socket: std::net::UdpSocket, io: IoKind) -> io::Result<Datagram> {
        match io {
            IoKind::Uring => {
                // As in `Conn::from_std`; sends never wait, because they use MSG_DONTWAIT.
                socket.set_nonblocking(false)?;
                Ok(Datagram::Uring(Rc::new(Ready::new(socket)?)))
            }
            IoKind::Epoll => {
                socket.set_nonblocking(true)?;
                Ok(Datagram::Epoll(Rc::new(tokio::net::UdpSocket::from_std(socket)?)))
            }
        }
    }

    /// Binds sockets for RTP and RTCP at `address`: an even port and the next odd one (RFC 3550 section 11), from `ports` (first and
    /// last) or any free ones. An IPv6 socket is IPv6-only, except that the wildcard also accepts IPv4.
    ///
    /// They get a send buffer of [`DATAGRAM_SEND_BUFFER_BYTES`] by `SO_SNDBUFFORCE`, or without CAP_NET_ADMIN as much as
    /// `net.core.wmem_max` allows: clients share a socket, and a slow client must not fill it.
    ///
    /// # Errors
    /// The error of the last attempt (`AddrInUse` if no pair is free).
    pub fn bind_pair(address: IpAddr, ports: Option<(u16, u16)>, io: IoKind) -> io::Result<(Datagram, Datagram)> {
        let (rtp, rtcp) = bind_std_pair(address, ports)?;
        Ok((Datagram::from_std(rtp, io)?, Datagram::from_std(rtcp, io)?))
    }

    /// The descriptor; `None` for a scripted socket.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Datagram::Uring(socket) => Some(socket.as_fd()),
            Datagram::Epoll(socket) => Some(socket.as_fd()),
            #[cfg(feature = "testing")]
            Datagram::Scripted => None,
        }
    }

    /// A socket for a single client, connected to `to`, that sends from the same address and port as this one, so that this client's
    /// backlog does not fill the shared buffer. It has its own send buffer of [`DATAGRAM_OWN_SEND_BUFFER_BYTES`] and is only for
    /// sending; datagrams that arrive from `to` stay in it unread.
    ///
    /// # Errors
    /// The error of `socket`, `bind`, `connect` or `setsockopt`.
    pub fn beside(&self, to: SocketAddr) -> io::Result<Datagram> {
        let Some(fd) = self.fd() else { return Ok(self.clone()) };
        let shared = SockRef::from(&fd);
        let local = shared.local_addr()?;
        let socket = Socket::new(Domain::from(i32::from(local.family())), Type::DGRAM, Some(Protocol::UDP))?;
        // Not SO_REUSEADDR, which would allow any local user to bind to the same port and receive datagrams: with SO_REUSEPORT the
        // kernel requires all sockets on the port to belong to the same user (socket(7)).
        socket.set_reuse_port(true)?;
        if local.is_ipv6() {
            socket.set_only_v6(shared.only_v6()?)?;
            socket.set_tclass_v6(shared.tclass_v6()?)?;
        }
        socket.set_tos_v4(shared.tos_v4()?)?;
        socket.set_send_buffer_size(DATAGRAM_OWN_SEND_BUFFER_BYTES)?;
        // Received datagrams are never read, so the buffer should be as small as possible.
        socket.set_recv_buffer_size(0)?;
        // The shared socket sets it only at this moment. Otherwise the kernel would distribute received datagrams among them, and
        // another socket of this user could bind by mistake.
        shared.set_reuse_port(true)?;
        let bound = socket.bind(&local);
        shared.set_reuse_port(false)?;
        bound?;
        socket.connect(&to.into())?;
        match self {
            Datagram::Uring(_) => Ok(Datagram::Uring(Rc::new(Ready::new(socket)?))),
            _ => {
                socket.set_nonblocking(true)?;
                Ok(Datagram::Epoll(Rc::new(tokio::net::UdpSocket::from_std(socket.into())?)))
            }
        }
    }

    /// A socket that sends to a multicast group of that family, across at most `ttl` routers, through the named interface or the one
    /// that routing chooses. Receivers on this machine get it too.
    ///
    /// # Errors
    /// The error of `socket` or `setsockopt` (`ENODEV` for an unknown interface).
    pub fn multicast(group: IpAddr, ttl: u8, interface: Option<&str>, io: IoKind) -> io::Result<Datagram> {
        let domain = if group.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if group.is_ipv4() {
            socket.set_multicast_ttl_v4(u32::from(ttl))?;
        } else {
            socket.set_multicast_hops_v6(u32::from(ttl))?;
        }
        socket.bind_device(interface.map(str::as_bytes))?;
        Datagram::from_std(socket.into(), io)
    }

    /// Bytes sent that no device has taken yet, including the kernel's overhead (`SIOCOUTQ`, udp(7)).
    ///
    /// # Errors
    /// The error of `ioctl`.
    pub fn unsent(&self) -> io::Result<usize> {
        self.fd().map_or(Ok(0), |fd| crate::sys::unsent_bytes(&fd))
    }

    /// Capacity of its send buffer, as the kernel counts (`SO_SNDBUF`, socket(7)).
    ///
    /// # Errors
    /// The error of `getsockopt`; `Unsupported` for a scripted socket.
    pub fn send_buffer(&self) -> io::Result<usize> {
        let fd = self.fd().ok_or(io::ErrorKind::Unsupported)?;
        SockRef::from(&fd).send_buffer_size()
    }

    /// Sets the differentiated services code point of outgoing packets (RFC 2474); 0 leaves it unchanged.
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_dscp(&self, dscp: u8) -> io::Result<()> {
        self.fd().map_or(Ok(()), |fd| mark(fd, dscp))
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The error of `getsockname`; `Unsupported` for a scripted socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(self.fd(), |socket| socket.local_addr())
    }

    /// Waits for a datagram. `buf` is cleared, then filled up to its capacity; longer datagrams are truncated.
    ///
    /// The future may be dropped without losing one.
    pub async fn recv_from(&self, mut buf: Vec<u8>) -> (io::Result<(usize, SocketAddr)>, Vec<u8>) {
        buf.clear();
        if buf.capacity() == 0 {
            buf.reserve_exact(READ_BYTES_MAX);
        }
        match self {
            Datagram::Uring(socket) => {
                let result = socket.recv_from(&mut buf).await;
                (result, buf)
            }
            Datagram::Epoll(socket) => loop {
                if let Err(error) = socket.readable().await {
                    return (Err(error), buf);
                }
                match socket.try_recv_buf_from(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return (result, buf),
                }
            },
            #[cfg(feature = "testing")]
            Datagram::Scripted => (Err(io::ErrorKind::Unsupported.into()), buf),
        }
    }
}

/// A listening TCP socket; works in both runtimes.
pub struct Listener(TcpListener);

impl Listener {
    /// Listens on `address`; an IPv6 wildcard also accepts IPv4 (as `::ffff:a.b.c.d`). `SO_REUSEADDR` is set, so that a restart need
    /// not wait for old connections.
    ///
    /// # Errors
    /// The error of `socket`, `bind` or `listen`, or of the registration with epoll.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG_MAX)?;
        Listener::from_std(socket.into())
    }

    /// A further handle on the socket.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn to_owned_fd(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Takes over a listening socket (socket activation).
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        Ok(Listener(TcpListener::from_std(listener)?))
    }

    /// Waits for the next connection; its stream is non-blocking. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// The error of `accept`. Errors of one connection (`ECONNABORTED`) and of a lack of descriptors or memory (`EMFILE`, `ENFILE`,
    /// `ENOBUFS`, `ENOMEM`) leave the listener usable; after the latter, wait a little.
    pub async fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((stream.into_std()?, peer))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The error of `getsockname`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn address(
    fd: Option<BorrowedFd<'_>>,
    ask: impl FnOnce(&Socket) -> io::Result<socket2::SockAddr>,
) -> io::Result<SocketAddr> {
    let fd = fd.ok_or(io::ErrorKind::Unsupported)?;
    ask(&SockRef::from(&fd))?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Sets the upper six bits of `IP_TOS` and, for an IPv6 socket, also of `IPV6_TCLASS`, because it may carry both.
fn mark(fd: BorrowedFd<'_>, dscp: u8) -> io::Result<()> {
    if dscp == 0 {
        return Ok(());
    }
    let socket = SockRef::from(&fd);
    let class = u32::from(dscp) << 2;
    if socket.domain()? == Domain::IPV6 {
        socket.set_tclass_v6(class)?;
    }
    socket.set_tos_v4(class)
}

fn grow_send_buffer(socket: &std::net::UdpSocket) {
    if setsockopt(socket, sockopt::SndBufForce, &DATAGRAM_SEND_BUFFER_BYTES).is_err() {
        // The kernel caps the value silently.
        let _ = SockRef::from(socket).set_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES);
    }
}

/// Attempts to find a free pair before giving up, if any port will do.
const PAIR_TRIES_MAX: usize = 64;

/// Binds a pair of non-blocking UDP sockets like [`Datagram::bind_pair`], for readers outside the egress.
///
/// # Errors
/// The error of the last attempt.
pub fn datagram_pair(address: IpAddr) -> io::Result<(std::net::UdpSocket, std::net::UdpSocket)> {
    let (rtp, rtcp) = bind_std_pair(address, None)?;
    rtp.set_nonblocking(true)?;
    rtcp.set_nonblocking(true)?;
    Ok((rtp, rtcp))
}

fn bind_std_pair(address: IpAddr, ports: Option<(u16, u16)>) -> io::Result<(std::net::UdpSocket, std::net::UdpSocket)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    if let Some((first, end)) = ports {
        for rtp in (first.saturating_add(first % 2)..end).step_by(2) {
            match bind_udp(address, rtp).and_then(|one| Ok((one, bind_udp(address, rtp + 1)?))) {
                Ok(pair) => return Ok(pair),
                Err(error) => last = error,
            }
        }
        return Err(last);
    }
    for _ in 0..PAIR_TRIES_MAX {
        let one = bind_udp(address, 0)?;
        let port = one.local_addr()?.port();
        match bind_udp(address, port ^ 1) {
            Ok(other) if port % 2 == 0 => return Ok((one, other)),
            Ok(other) => return Ok((other, one)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Publishers' keyframes arrive in bursts.
fn grow_receive_buffer(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &DATAGRAM_RECEIVE_BUFFER_BYTES).is_err() {
        // The kernel caps the value silently.
        let _ = socket.set_recv_buffer_size(DATAGRAM_RECEIVE_BUFFER_BYTES);
    }
}

fn bind_udp(address: IpAddr, port: u16) -> io::Result<std::net::UdpSocket> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // The wildcard also accepts IPv4, as for RTSP.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    grow_receive_buffer(&socket);
    Ok(socket.into())
}
