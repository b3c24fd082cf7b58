//! The few safe wrappers over raw system calls that nix and socket2 lack.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, size_of_val};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

/// Has the first `bytes` of a value brought into the cache, for whoever is about to use them; costs no wait itself. Nothing happens on
/// processors that it is not written for.
#[inline]
pub(crate) fn prefetch<T>(value: &T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        const CACHE_LINE_BYTES: usize = 64;
        for offset in (0..bytes.min(size_of::<T>())).step_by(CACHE_LINE_BYTES) {
            let at = std::ptr::from_ref(value).cast::<i8>().wrapping_add(offset);
            // SAFETY: a prefetch changes nothing that a program can see, and does not fault whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, bytes);
}

/// Descriptors that a service manager may hand over.
const INHERITED_MAX: u32 = 64;

/// What the kernel knows of a TCP connection (`struct tcp_info` of `linux/tcp.h`, the fields that reports show).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// Bytes in the socket that have not been sent once; 0 before Linux 4.6, which does not tell.
    pub notsent_bytes: u32,
    /// Bytes that have come since the connection began, read or not; 0 before Linux 4.1, which does not tell.
    pub received_bytes: u64,
}

/// Words of `struct tcp_info` up to and with `tcpi_notsent_bytes`. The kernel only ever appends to the structure.
const TCP_INFO_WORDS: usize = 37;
const TCP_INFO_RTT: usize = 17;
const TCP_INFO_TOTAL_RETRANS: usize = 25;
const TCP_INFO_BYTES_RECEIVED: usize = 32;
const TCP_INFO_NOTSENT_BYTES: usize = 36;

/// Asks for `TCP_INFO` (tcp(7)).
///
/// # Errors
/// The error of `getsockopt`, and `InvalidData` from a kernel whose structure is too short to tell the retransmissions.
pub fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    tcp_info_of(socket.as_fd().as_raw_fd())
}

fn tcp_info_of(fd: RawFd) -> io::Result<TcpInfo> {
    let mut words = [0u32; TCP_INFO_WORDS];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: it only tells, whatever the number stands for; the kernel writes at most `len` bytes to `words`, which is that long
    // and lives through the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, words.as_mut_ptr().cast(), &mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < (TCP_INFO_TOTAL_RETRANS + 1) * size_of::<u32>() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this kernel's TCP_INFO is too short"));
    }
    Ok(TcpInfo {
        rtt: Duration::from_micros(u64::from(words[TCP_INFO_RTT])),
        retransmits: words[TCP_INFO_TOTAL_RETRANS],
        notsent_bytes: words[TCP_INFO_NOTSENT_BYTES],
        received_bytes: wide(words[TCP_INFO_BYTES_RECEIVED], words[TCP_INFO_BYTES_RECEIVED + 1]),
    })
}

/// The 64-bit number that lies in two words of memory.
fn wide(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Columns and rows of the terminal behind a descriptor (`TIOCGWINSZ`, ioctl_tty(2)); nothing when it is none, or does not know.
pub fn terminal_size(terminal: &impl AsFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `struct winsize`, which is that and lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Bytes that can be read from the socket now: of a stream all of them, of a datagram socket the next datagram
/// (`SIOCINQ`, tcp(7) and udp(7)).
///
/// # Errors
/// The error of `ioctl`.
pub fn unread_bytes(socket: &impl AsFd) -> io::Result<usize> {
    queue_bytes(socket, libc::FIONREAD)
}

/// Bytes in the socket's send queue: of TCP those not yet acknowledged, of UDP those (with the kernel's overhead) not yet
/// handed to the device (`SIOCOUTQ`, tcp(7) and udp(7)).
///
/// # Errors
/// The error of `ioctl`.
pub fn unsent_bytes(socket: &impl AsFd) -> io::Result<usize> {
    queue_bytes(socket, libc::TIOCOUTQ)
}

fn queue_bytes(socket: &impl AsFd, request: libc::Ioctl) -> io::Result<usize> {
    queue_bytes_of(socket.as_fd().as_raw_fd(), request)
}

fn queue_bytes_of(fd: RawFd, request: libc::Ioctl) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the requests only tell, whatever the number stands for; they write one int, to a variable that lives through
    // the call.
    let result = unsafe { libc::ioctl(fd, request, &mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Whether the number is the descriptor of a TCP socket now.
pub fn is_tcp(fd: RawFd) -> bool {
    let mut protocol: libc::c_int = 0;
    let mut len = size_of_val(&protocol) as libc::socklen_t;
    // SAFETY: it only tells, whatever the number stands for; the kernel writes at most `len` bytes to `protocol`, which is that
    // long and lives through the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, (&raw mut protocol).cast(), &mut len) };
    result == 0 && protocol == libc::IPPROTO_TCP
}

/// A TCP connection that somebody else in this process owns, known by the number of its descriptor. Both ends are remembered,
/// because the owner may close it, and the number then becomes another file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    fd: RawFd,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Connection {
    /// The connection that the number stands for now; nothing if it is none.
    pub fn of(fd: RawFd) -> Option<Connection> {
        let (local, peer) = is_tcp(fd).then(|| ends(fd)).flatten()?;
        Some(Connection { fd, local, peer })
    }

    /// The far end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Bytes that have come and were not read yet; nothing if the connection was closed on this side.
    pub fn unread(&self) -> Option<usize> {
        self.is_same().then(|| queue_bytes_of(self.fd, libc::FIONREAD).ok()).flatten()
    }

    /// Bytes that were read from it; nothing if the connection was closed on this side.
    pub fn read(&self) -> Option<u64> {
        let unread = self.unread()? as u64;
        Some(tcp_info_of(self.fd).ok()?.received_bytes.saturating_sub(unread))
    }

    fn is_same(&self) -> bool {
        is_tcp(self.fd) && ends(self.fd) == Some((self.local, self.peer))
    }
}

/// Both addresses of a connected socket.
fn ends(fd: RawFd) -> Option<(SocketAddr, SocketAddr)> {
    let address = |storage: SockaddrStorage| match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::V4((*v4).into())),
        (_, Some(v6)) => Some(SocketAddr::V6((*v6).into())),
        _ => None,
    };
    Some((address(getsockname(fd).ok()?)?, address(getpeername(fd).ok()?)?))
}

/// The descriptors that the service manager has handed over, from 3 on (sd_listen_fds(3)), with the name of each, empty if it
/// has none; nothing if there is none for this process, or if they have been taken already.
pub fn inherited_descriptors() -> Vec<(OwnedFd, String)> {
    const FIRST: RawFd = 3;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(INHERITED_MAX) as RawFd;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    (FIRST..FIRST + count)
        .zip(names)
        .filter_map(|(fd, name)| {
            // SAFETY: both calls only tell whether the descriptor is open, and close it in children.
            let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            // SAFETY: the manager opened it for this process, nothing here has taken it (TAKEN), and it is open.
            open.then(|| (unsafe { OwnedFd::from_raw_fd(fd) }, name.to_owned()))
        })
        .collect()
}

/// The descriptor of a tokio-uring stream, which itself only tells its number.
pub(crate) fn uring_stream_fd(stream: &tokio_uring::net::TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream keeps its descriptor open while it lives, and the result borrows the stream.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// As [`uring_stream_fd`], of a datagram socket.
pub(crate) fn uring_datagram_fd(socket: &tokio_uring::net::UdpSocket) -> BorrowedFd<'_> {
    // SAFETY: the socket keeps its descriptor open while it lives, and the result borrows the socket.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn queues_and_tcp_info_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 1000]).unwrap();
        let mut first = [0; 1];
        far.read_exact(&mut first).unwrap();
        while unread_bytes(&far).unwrap() < 999 {
            std::thread::yield_now();
        }
        far.write_all(&[7; 10]).unwrap();
        near.read_exact(&mut [0; 10]).unwrap();
        while unsent_bytes(&near).unwrap() > 0 {
            std::thread::yield_now();
        }
        let info = tcp_info(&near).unwrap();
        assert!(info.rtt > Duration::ZERO);
        assert_eq!((info.retransmits, info.notsent_bytes, info.received_bytes), (0, 0, 10));
        let connection = Connection::of(far.as_raw_fd()).unwrap();
        assert_eq!((connection.read(), connection.unread()), (Some(1), Some(999)));
    }

    #[test]
    fn tcp_info_of_something_else_is_an_error() {
        assert!(tcp_info(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
