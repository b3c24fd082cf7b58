//! Ingress, and what a socket is set to: connections and datagram sockets that both runtimes read and the egress sends on.

use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

use super::runtime::IoKind;
use super::{Conn, Datagram};
use crate::limits::{
    DATAGRAM_OWN_SEND_BUFFER_BYTES, DATAGRAM_RECEIVE_BUFFER_BYTES, DATAGRAM_SEND_BUFFER_BYTES, KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES, LISTEN_BACKLOG_MAX, NOTSENT_LOWAT_BYTES, READ_BYTES_MAX,
};
use crate::tls::Secured;

impl Conn {
    /// Takes over a connected stream, in whatever blocking mode it is, for the thread's runtime of that kind.
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn from_std(stream: std::net::TcpStream, io: IoKind) -> io::Result<Conn> {
        match io {
            IoKind::Uring => {
                // io_uring answers EAGAIN instead of waiting on a file that is in non-blocking mode.
                stream.set_nonblocking(false)?;
                Ok(Conn::Uring(Rc::new(tokio_uring::net::TcpStream::from_std(stream)), None))
            }
            IoKind::Epoll => {
                stream.set_nonblocking(true)?;
                Ok(Conn::Epoll(Rc::new(tokio::net::TcpStream::from_std(stream)?), None))
            }
        }
    }

    /// The same connection as the local socket that stands for a TLS client's; `None` leaves it as it is.
    #[must_use]
    pub fn with_tls(mut self, secured: Option<Arc<Secured>>) -> Conn {
        if let Conn::Uring(_, of) | Conn::Epoll(_, of) = &mut self {
            *of = secured;
        }
        self
    }

    /// The TCP connection of a client that speaks TLS; none for one that does not.
    pub fn tls(&self) -> Option<&Arc<Secured>> {
        match self {
            Conn::Uring(_, secured) | Conn::Epoll(_, secured) => secured.as_ref(),
            Conn::Scripted => None,
        }
    }

    /// The descriptor of the TCP connection, which is what options and addresses are about; none for a scripted connection.
    pub fn tcp(&self) -> Option<BorrowedFd<'_>> {
        self.tls().map_or_else(|| self.fd(), |secured| Some(secured.as_fd()))
    }

    /// A second handle on the connection, non-blocking, for another shard to take over. Drop this one then; no read of it
    /// may be under way, or it would take bytes that the other shard waits for.
    ///
    /// # Errors
    /// The error of `dup`; `Unsupported` for a scripted connection.
    pub fn to_std(&self) -> io::Result<std::net::TcpStream> {
        let fd = self.fd().ok_or(io::ErrorKind::Unsupported)?;
        let stream = std::net::TcpStream::from(fd.try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// The descriptor that is read and sent on; none for a scripted connection.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Conn::Uring(stream, _) => Some(crate::sys::uring_stream_fd(stream)),
            Conn::Epoll(stream, _) => Some(stream.as_fd()),
            Conn::Scripted => None,
        }
    }

    /// Sets what a media connection needs: `TCP_NODELAY`, `TCP_NOTSENT_LOWAT`
    /// ([`NOTSENT_LOWAT_BYTES`]; the backlog beyond it stays in the log, where it can be skipped), and keep-alive probes.
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

    /// Sets what the operator chooses: the mark on outgoing packets (see [`Datagram::set_dscp`]), and for how long sent bytes
    /// may stay unacknowledged (`TCP_USER_TIMEOUT`, tcp(7)) before the connection counts as dead.
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_path(&self, dscp: u8, user_timeout: Duration) -> io::Result<()> {
        let Some(fd) = self.tcp() else { return Ok(()) };
        SockRef::from(&fd).set_tcp_user_timeout(Some(user_timeout))?;
        mark(fd, dscp)
    }

    /// Sets how many bytes wait unsent in the kernel before the socket takes no more (`TCP_NOTSENT_LOWAT`, tcp(7)); of a TLS
    /// client a quarter of that, for more wait on this side of the encryption.
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn set_notsent_lowat(&self, bytes: u32) -> io::Result<()> {
        let bytes = if self.tls().is_some() { bytes / 4 } else { bytes };
        self.tcp().map_or(Ok(()), |fd| SockRef::from(&fd).set_tcp_notsent_lowat(bytes))
    }

    /// The address that the client reached.
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

    /// Reads what has come, waiting for at least a byte. `buf` is emptied, then filled to its capacity at most (one without
    /// capacity gets [`READ_BYTES_MAX`]). 0 bytes: the client has closed its side, or [`Conn::shutdown`] was called.
    ///
    /// Dropping the future does not take back the read with io_uring: what it then reads is lost.
    pub async fn read(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        buf.clear();
        if buf.capacity() == 0 {
            buf.reserve_exact(READ_BYTES_MAX);
        }
        match self {
            Conn::Uring(stream, _) => loop {
                match stream.read(buf).await {
                    (Err(error), back) if error.kind() == io::ErrorKind::Interrupted => buf = back,
                    done => return done,
                }
            },
            Conn::Epoll(stream, _) => loop {
                if let Err(error) = stream.readable().await {
                    return (Err(error), buf);
                }
                match stream.try_read_buf(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return (result, buf),
                }
            },
            Conn::Scripted => (Err(io::ErrorKind::Unsupported.into()), buf),
        }
    }

    /// Ends both directions: a read under way ends with 0 bytes, a send with `EPIPE`, the client sees the end once it has
    /// read everything that was sent. The descriptor closes with the last clone.
    pub fn shutdown(&self) {
        if let Some(fd) = self.fd() {
            // It fails only if the connection is gone already.
            let _ = SockRef::from(&fd).shutdown(Shutdown::Both);
        }
        if let Some(secured) = self.tls() {
            secured.end();
        }
    }

    /// Makes the close of the descriptor discard what has not been sent and reset the connection (`SO_LINGER` 0).
    ///
    /// # Errors
    /// The error of `setsockopt`.
    pub fn reset_on_close(&self) -> io::Result<()> {
        self.fd().map_or(Ok(()), |fd| SockRef::from(&fd).set_linger(Some(Duration::ZERO)))
    }
}

impl Datagram {
    /// Takes over a bound socket for the thread's runtime of that kind, and gives it the large send buffer
    /// (see [`Datagram::bind_pair`]).
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll.
    pub fn from_std(socket: std::net::UdpSocket, io: IoKind) -> io::Result<Datagram> {
        grow_send_buffer(&socket);
        match io {
            IoKind::Uring => {
                // As in `Conn::from_std`; sends never wait, because they say MSG_DONTWAIT.
                socket.set_nonblocking(false)?;
                Ok(Datagram::Uring(Rc::new(tokio_uring::net::UdpSocket::from_std(socket))))
            }
            IoKind::Epoll => {
                socket.set_nonblocking(true)?;
                Ok(Datagram::Epoll(Rc::new(tokio::net::UdpSocket::from_std(socket)?)))
            }
        }
    }

    /// Binds sockets for RTP and RTCP at `address`: an even port and the odd one after it (RFC 3550 section 11), from
    /// `ports` (first and last that may be used) or any that are free. An IPv6 socket takes IPv6 only, but that of the wildcard
    /// IPv4 as well.
    ///
    /// They get [`DATAGRAM_SEND_BUFFER_BYTES`] of send buffer by `SO_SNDBUFFORCE`, or without CAP_NET_ADMIN as much of it
    /// as `net.core.wmem_max` allows: clients share a socket, and one that is slow must not fill it for the others.
    ///
    /// # Errors
    /// The error of the last try (`AddrInUse` when no pair is free).
    pub fn bind_pair(address: IpAddr, ports: Option<(u16, u16)>, io: IoKind) -> io::Result<(Datagram, Datagram)> {
        let (rtp, rtcp) = bind_std_pair(address, ports)?;
        Ok((Datagram::from_std(rtp, io)?, Datagram::from_std(rtcp, io)?))
    }

    /// The descriptor; none for a scripted socket.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Datagram::Uring(socket) => Some(crate::sys::uring_datagram_fd(socket)),
            Datagram::Epoll(socket) => Some(socket.as_fd()),
            Datagram::Scripted => None,
        }
    }

    /// A socket for one client alone, connected to `to`, that sends from the same address and port as this one: what the
    /// client's path holds back fills nobody else's buffer. It has [`DATAGRAM_OWN_SEND_BUFFER_BYTES`] of its own and is to be
    /// sent on only; datagrams that come from `to` stay in it unread.
    ///
    /// # Errors
    /// The error of `socket`, `bind`, `connect` or `setsockopt`.
    pub fn beside(&self, to: SocketAddr) -> io::Result<Datagram> {
        let Some(fd) = self.fd() else { return Ok(Datagram::Scripted) };
        let shared = SockRef::from(&fd);
        let local = shared.local_addr()?;
        let socket = Socket::new(Domain::from(i32::from(local.family())), Type::DGRAM, Some(Protocol::UDP))?;
        // Only now, when the port is taken: a free port is not to be one that others share.
        shared.set_reuse_address(true)?;
        socket.set_reuse_address(true)?;
        if local.is_ipv6() {
            socket.set_only_v6(shared.only_v6()?)?;
            socket.set_tclass_v6(shared.tclass_v6()?)?;
        }
        socket.set_tos_v4(shared.tos_v4()?)?;
        socket.set_send_buffer_size(DATAGRAM_OWN_SEND_BUFFER_BYTES)?;
        // What comes is never read: as little as possible is to be kept of it.
        socket.set_recv_buffer_size(0)?;
        socket.bind(&local)?;
        socket.connect(&to.into())?;
        match self {
            Datagram::Uring(_) => Ok(Datagram::Uring(Rc::new(tokio_uring::net::UdpSocket::from_std(socket.into())))),
            _ => {
                socket.set_nonblocking(true)?;
                Ok(Datagram::Epoll(Rc::new(tokio::net::UdpSocket::from_std(socket.into())?)))
            }
        }
    }

    /// A socket that sends to a multicast group of that family, and no further than `ttl` routers, by way of the named
    /// interface or the one that the routes say. Receivers on this machine get it too.
    ///
    /// # Errors
    /// The error of `socket` or `setsockopt` (`ENODEV` for an interface that is not there).
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

    /// Bytes sent that no device has taken yet, with the kernel's overhead (`SIOCOUTQ`, udp(7)).
    ///
    /// # Errors
    /// The error of `ioctl`.
    pub fn unsent(&self) -> io::Result<usize> {
        self.fd().map_or(Ok(0), |fd| crate::sys::unsent_bytes(&fd))
    }

    /// Marks outgoing packets with a differentiated services code point (RFC 2474); 0 leaves them as they are.
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

    /// Waits for a datagram. `buf` is emptied, then filled to its capacity at most; what is longer is cut.
    ///
    /// Dropping the future does not take back the read with io_uring: the next datagram is lost then.
    pub async fn recv_from(&self, mut buf: Vec<u8>) -> (io::Result<(usize, SocketAddr)>, Vec<u8>) {
        buf.clear();
        if buf.capacity() == 0 {
            buf.reserve_exact(READ_BYTES_MAX);
        }
        match self {
            Datagram::Uring(socket) => loop {
                match socket.recv_from(buf).await {
                    (Err(error), back) if error.kind() == io::ErrorKind::Interrupted => buf = back,
                    done => return done,
                }
            },
            Datagram::Epoll(socket) => loop {
                if let Err(error) = socket.readable().await {
                    return (Err(error), buf);
                }
                match socket.try_recv_buf_from(&mut buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return (result, buf),
                }
            },
            Datagram::Scripted => (Err(io::ErrorKind::Unsupported.into()), buf),
        }
    }
}

/// A listening TCP socket; works in both runtimes.
pub struct Listener(TcpListener);

impl Listener {
    /// Listens at `address`; an IPv6 wildcard takes IPv4 as well (as `::ffff:a.b.c.d`). `SO_REUSEADDR` is set, so that a
    /// restart need not wait for old connections.
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

    /// Takes over a socket that listens already (socket activation).
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
    /// The error of `accept`. Those of one connection (`ECONNABORTED`) and of a lack of descriptors or memory (`EMFILE`,
    /// `ENFILE`, `ENOBUFS`, `ENOMEM`) leave the listener in order; wait a little before going on after the latter.
    pub async fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((stream.into_std()?, peer))
    }

    /// The address that it listens at.
    ///
    /// # Errors
    /// The error of `getsockname`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn address(
    fd: Option<BorrowedFd<'_>>,
    ask: impl FnOnce(&Socket) -> io::Result<socket2::SockAddr>,
) -> io::Result<SocketAddr> {
    let fd = fd.ok_or(io::ErrorKind::Unsupported)?;
    ask(&SockRef::from(&fd))?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Sets the upper six bits of `IP_TOS` and, of an IPv6 socket, of `IPV6_TCLASS` too: it may carry both.
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
        // The kernel takes the part of it that it allows; there is no error to tell.
        let _ = SockRef::from(socket).set_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES);
    }
}

/// Tries to find a free pair before giving up, when any port will do.
const PAIR_TRIES_MAX: usize = 64;

/// Binds a pair of UDP sockets as [`Datagram::bind_pair`] does, nonblocking, for readers that are not of the egress.
///
/// # Errors
/// The error of the last try.
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

/// Publishers' keyframes come in bursts.
fn grow_receive_buffer(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &DATAGRAM_RECEIVE_BUFFER_BYTES).is_err() {
        // The kernel takes the part of it that it allows; there is no error to tell.
        let _ = socket.set_recv_buffer_size(DATAGRAM_RECEIVE_BUFFER_BYTES);
    }
}

fn bind_udp(address: IpAddr, port: u16) -> io::Result<std::net::UdpSocket> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // The wildcard serves IPv4 as well, as it does for RTSP.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    grow_receive_buffer(&socket);
    Ok(socket.into())
}
