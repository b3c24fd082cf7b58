//! Safe wrappers for raw system calls that nix and socket2 lack.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read};
use std::mem::{size_of, size_of_val};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, getpeername, getsockname, recvmsg};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::INHERITED_DESCRIPTORS_MAX;

/// Prefetches the first `bytes` of a value into the cache, without waiting. Does nothing on processors for which it is not implemented.
#[inline]
pub(crate) fn prefetch<T>(value: &T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        const CACHE_LINE_BYTES: usize = 64;
        for offset in (0..bytes.min(size_of::<T>())).step_by(CACHE_LINE_BYTES) {
            let at = std::ptr::from_ref(value).cast::<i8>().wrapping_add(offset);
            // SAFETY: a prefetch has no visible effect, and does not fault for any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, bytes);
}

/// Size in bytes from which an allocation is a mapping of its own, and free memory at a heap's end that stays there.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: libc::c_int = 1024 * 1024;

/// Makes the allocator return large pieces of memory, such as a page of metrics, as soon as they are freed. Otherwise the first of them that is freed
/// moves both of glibc's thresholds to its own size and twice that (mallopt(3), `M_MMAP_THRESHOLD`). Does nothing with C libraries other than
/// glibc. For the start of the program.
pub fn return_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread allocates yet (mallopt(3) is MT-Unsafe only in its initialization); the call takes numbers and touches no memory
    // in use. A refusal leaves the thresholds as they were.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
    }
}

/// Makes the allocator return free whole pages to the system (malloc_trim(3)). Threads that allocate may have to wait: about a
/// millisecond per ten megabytes. Does nothing with C libraries other than glibc.
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call it at any time (malloc_trim(3), MT-Safe); it takes the allocator's locks and does not touch memory in
    // use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the calling thread give way to the others: its nice value grows by `more`, for which no right is needed (nice(2); on Linux each thread
/// has its own).
///
/// # Errors
/// A filter of system calls forbids it.
pub fn lower_priority(more: i32) -> io::Result<()> {
    // The new value may be -1 as well, so the error is told apart by `errno` (nice(2)).
    nix::errno::Errno::clear();
    // SAFETY: it takes and returns a number.
    match unsafe { libc::nice(more) } {
        -1 if nix::errno::Errno::last_raw() != 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What the process has allocated, in bytes modulo 4 GiB (mallinfo(3): `uordblks` and `hblkhd`, which are numbers of 32 bits); `None` with C
/// libraries other than glibc. Threads that allocate may have to wait while the free blocks are counted.
pub fn allocated_bytes() -> Option<u32> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no thread calls mallopt(3) any more (mallinfo(3) is MT-Unsafe only beside that); it takes the allocator's locks and returns numbers.
        let info = unsafe { libc::mallinfo() };
        Some((info.uordblks as u32).wrapping_add(info.hblkhd as u32))
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// The kernel's data about a TCP connection (`struct tcp_info` of `linux/tcp.h`, the fields used in reports).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Segments retransmitted since the start of the connection.
    pub retransmits: u32,
    /// Bytes in the socket that have never been sent; 0 before Linux 4.6, which does not report it.
    pub notsent_bytes: u32,
    /// Bytes received since the start of the connection, read or not; 0 before Linux 4.1, which does not report it.
    pub received_bytes: u64,
}

/// Words of `struct tcp_info` up to and including `tcpi_notsent_bytes`. The kernel only ever appends to the structure.
const TCP_INFO_WORDS: usize = 37;
const TCP_INFO_RTT: usize = 17;
const TCP_INFO_TOTAL_RETRANS: usize = 25;
const TCP_INFO_BYTES_RECEIVED: usize = 32;
const TCP_INFO_NOTSENT_BYTES: usize = 36;

/// Reads `TCP_INFO` (tcp(7)).
///
/// # Errors
/// The error of `getsockopt`, and `InvalidData` if the kernel's structure is too short for the retransmissions.
pub fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    tcp_info_of(socket.as_fd().as_raw_fd())
}

fn tcp_info_of(fd: RawFd) -> io::Result<TcpInfo> {
    let mut words = [0u32; TCP_INFO_WORDS];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the call changes nothing, whatever the number refers to; the kernel writes at most `len` bytes to `words`, which is that
    // long and lives through the call.
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

/// The 64-bit number stored in two words.
fn wide(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Columns and rows of a terminal (`TIOCGWINSZ`, ioctl_tty(2)); `None` if it is not a terminal, or does not know.
pub fn terminal_size(terminal: &impl AsFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `struct winsize`, which is that and lives through the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Bytes that can be read from the socket: all bytes of a stream, or the next datagram (`SIOCINQ`, tcp(7) and udp(7)).
///
/// # Errors
/// The error of `ioctl`.
pub fn unread_bytes(socket: &impl AsFd) -> io::Result<usize> {
    queue_bytes(socket, libc::FIONREAD)
}

/// Bytes in the socket's send queue: for TCP those not acknowledged, for UDP those (with the kernel's overhead) not yet handed to the
/// device (`SIOCOUTQ`, tcp(7) and udp(7)).
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
    // SAFETY: the requests change nothing, whatever the number refers to; they write one int, to a variable that lives through the
    // call.
    let result = unsafe { libc::ioctl(fd, request, &mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Limits the rate in bytes per second at which the kernel sends a TCP socket's data, like a slow link (`SO_MAX_PACING_RATE`,
/// socket(7)).
///
/// # Errors
/// The error of `setsockopt`.
pub fn set_max_pacing_rate(socket: &impl AsFd, bytes_per_second: u64) -> io::Result<()> {
    let rate = libc::c_ulong::try_from(bytes_per_second).unwrap_or(libc::c_ulong::MAX);
    let (fd, len) = (socket.as_fd().as_raw_fd(), size_of_val(&rate) as libc::socklen_t);
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel reads `len` bytes of `rate`, which is that long
    // and lives through the call.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, (&raw const rate).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the number is currently the descriptor of a TCP socket.
pub fn is_tcp(fd: RawFd) -> bool {
    let mut protocol: libc::c_int = 0;
    let mut len = size_of_val(&protocol) as libc::socklen_t;
    // SAFETY: the call changes nothing, whatever the number refers to; the kernel writes at most `len` bytes to `protocol`, which is
    // that long and lives through the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, (&raw mut protocol).cast(), &mut len) };
    result == 0 && protocol == libc::IPPROTO_TCP
}

/// A TCP connection owned by other code in this process, identified by its descriptor number. Both addresses are remembered, because
/// the owner may close it and the number may be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    fd: RawFd,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Connection {
    /// The connection that the number currently refers to; `None` if it is not one.
    pub fn of(fd: RawFd) -> Option<Connection> {
        let (local, peer) = is_tcp(fd).then(|| ends(fd)).flatten()?;
        Some(Connection { fd, local, peer })
    }

    /// The far end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Bytes received and not read yet; `None` if the connection was closed on this side.
    pub fn unread(&self) -> Option<usize> {
        self.is_same().then(|| queue_bytes_of(self.fd, libc::FIONREAD).ok()).flatten()
    }

    /// Bytes that were read from it; `None` if the connection was closed on this side.
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

/// The descriptors that were open when the process started, in the range that a service manager may pass.
static PASSED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const PASSED_FIRST: RawFd = 3;

/// Records which descriptors the process was started with. Call it before anything else is opened; further calls change nothing.
pub fn note_descriptors() {
    // SAFETY: it only queries whether the descriptor is open.
    let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
    PASSED.get_or_init(|| (PASSED_FIRST..PASSED_FIRST + INHERITED_DESCRIPTORS_MAX as RawFd).filter(is_open).collect());
}

/// The descriptors from the service manager.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The descriptors with their names, which may be empty.
    pub descriptors: Vec<(OwnedFd, String)>,
    /// How many more `LISTEN_FDS` announces than were open when the process started.
    pub missing: usize,
}

/// The descriptors passed by the service manager, from 3 on (sd_listen_fds(3)); empty if there are none for this process, or if they
/// were already taken. Never includes descriptors that the process has opened itself, whatever `LISTEN_FDS` says.
pub fn inherited_descriptors() -> Inherited {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Inherited::default();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(INHERITED_DESCRIPTORS_MAX) as RawFd;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let passed = PASSED.get().map_or(&[][..], |passed| passed);
    let descriptors: Vec<_> = (PASSED_FIRST..PASSED_FIRST + count)
        .zip(names)
        .filter(|(fd, _)| passed.contains(fd))
        .filter_map(|(fd, name)| {
            // SAFETY: both calls only query whether the descriptor is open, and mark it close-on-exec.
            let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            // SAFETY: it was open when the process started (PASSED), nothing has taken it (TAKEN), and it is still open.
            open.then(|| (unsafe { OwnedFd::from_raw_fd(fd) }, name.to_owned()))
        })
        .collect();
    let missing = count as usize - descriptors.len();
    Inherited { descriptors, missing }
}

/// The number under which [`spawn_detached`] passes a descriptor.
const HANDED_FD: RawFd = 3;

/// The variable that says that a descriptor was passed.
const HANDED: &str = "RTSPRELAY_HANDED";

/// Starts a program that becomes a child of init, or of the service manager, and not of this process. It finds `passed` with
/// [`handed_descriptor`]. What was announced to this process alone (`LISTEN_FDS`, `WATCHDOG_PID`) is not announced to it. Returns its
/// process id.
///
/// # Errors
/// The program cannot be started.
pub fn spawn_detached(command: &mut Command, passed: BorrowedFd<'_>) -> io::Result<u32> {
    let fd = passed.as_raw_fd();
    let (mut started, tell) = io::pipe()?;
    let teller = tell.as_raw_fd();
    command.env(HANDED, "1");
    for of_this_process in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
        command.env_remove(of_this_process);
    }
    // SAFETY: the function runs in the new process before exec and allocates nothing; all it calls are system calls (signal-safety(7)),
    // and `fork`, whose locks the first fork has left free. The numbers stay open: `passed` and `tell` outlive the call.
    unsafe {
        command.pre_exec(move || {
            match libc::fork() {
                -1 => return Err(io::Error::last_os_error()),
                0 => {}
                // The program itself is its child, which thereby loses its parent.
                _ => libc::_exit(0),
            }
            let pid = libc::getpid().to_ne_bytes();
            if libc::write(teller, pid.as_ptr().cast(), pid.len()) != pid.len() as isize {
                return Err(io::Error::last_os_error());
            }
            let done = if fd == HANDED_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, HANDED_FD) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command.spawn()?.wait()?;
    drop(tell);
    let mut pid = [0; size_of::<libc::pid_t>()];
    started.read_exact(&mut pid)?;
    Ok(libc::pid_t::from_ne_bytes(pid) as u32)
}

/// The descriptor that this process was started with by [`spawn_detached`]; `None` if it was not, or if it was already taken.
pub fn handed_descriptor() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    std::env::var_os(HANDED)?;
    if !PASSED.get()?.contains(&HANDED_FD) || TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: it only marks the descriptor close-on-exec.
    unsafe { libc::fcntl(HANDED_FD, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it was open when the process started (PASSED), and nothing has taken it (TAKEN).
    Some(unsafe { OwnedFd::from_raw_fd(HANDED_FD) })
}

/// Whether the other end of a socket is closed (`POLLHUP`, poll(2)).
pub fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: it points to one entry, which outlives the call.
    unsafe { libc::poll(&mut polled, 1, 0) == 1 }
}

/// Maximum number of descriptors in one message (`SCM_MAX_FD`, unix(7)).
pub const MESSAGE_FDS_MAX: usize = 253;

/// Receives bytes into these buffers, one after another, and appends the descriptors that come with them (`SCM_RIGHTS`, unix(7)).
///
/// # Errors
/// The error of `recvmsg`; `InvalidData` if there was no room for all descriptors, usually because the limit on open files is reached.
pub fn recv_descriptors(
    socket: BorrowedFd<'_>,
    buffers: &mut [IoSliceMut<'_>],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MESSAGE_FDS_MAX]);
    let received = recvmsg::<()>(socket.as_raw_fd(), buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let truncated = received.flags.contains(MsgFlags::MSG_CTRUNC);
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel has just made these descriptors for this process, and nothing else knows them.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if truncated {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the limit on open files is too low for all descriptors",
        ));
    }
    Ok(received.bytes)
}

/// Registers a socket with the thread's runtime to watch for readability.
///
/// # Errors
/// The error of the registration with epoll.
pub(crate) fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is the value's own, open until it is dropped, and nothing replaces the value.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Appends received bytes to `buf`, up to its capacity, without waiting (`MSG_DONTWAIT`, recv(2)), in any blocking mode.
///
/// # Errors
/// The error of `recv`; `WouldBlock` if there is nothing.
pub(crate) fn recv(socket: BorrowedFd<'_>, buf: &mut Vec<u8>) -> io::Result<usize> {
    let count = SockRef::from(&socket).recv_with_flags(buf.spare_capacity_mut(), libc::MSG_DONTWAIT)?;
    // SAFETY: the kernel has written that many bytes after the existing ones, and no more than fit.
    unsafe { buf.set_len(buf.len() + count) };
    Ok(count)
}

/// Like [`recv`] for a datagram, with its sender.
///
/// # Errors
/// The error of `recvfrom`; `WouldBlock` if there is nothing, `InvalidData` if the sender has no IP address.
pub(crate) fn recv_from(socket: BorrowedFd<'_>, buf: &mut Vec<u8>) -> io::Result<(usize, SocketAddr)> {
    let (count, from) = SockRef::from(&socket).recv_from_with_flags(buf.spare_capacity_mut(), libc::MSG_DONTWAIT)?;
    // SAFETY: as in `recv`.
    unsafe { buf.set_len(buf.len() + count) };
    Ok((count, from.as_socket().ok_or(io::ErrorKind::InvalidData)?))
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
