//! The sockets of a session with a camera: new ones, and those of another process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use super::address::CameraAddress;
use super::fault::Fault;

/// The two sockets for a track's datagrams, by track.
pub(super) type Pairs = Vec<Option<(UdpSocket, UdpSocket)>>;

/// Another process's connection, and its sockets for datagrams: for each track, whether it has two.
pub(super) fn taken_over(sockets: Vec<OwnedFd>, datagrams: &[bool]) -> io::Result<(TcpStream, Pairs)> {
    let mut sockets = sockets.into_iter();
    let mut next = || sockets.next().ok_or_else(|| io::Error::other("a socket is missing"));
    let tcp = TcpStream::from_std(next()?.into())?;
    let mut socket = || UdpSocket::from_std(next()?.into());
    let mut pairs = Vec::new();
    for is_there in datagrams {
        pairs.push(if *is_there { Some((socket()?, socket()?)) } else { None });
    }
    Ok((tcp, pairs))
}

/// Opens a TCP connection to the first of the camera's addresses that accepts. Each gets a share of the remaining time.
pub(super) async fn connect(address: &CameraAddress, until: Instant) -> Result<TcpStream, Fault> {
    let (host, zone, port) = address.target();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::Refused,
        _ => Fault::Unreachable(error.to_string()),
    };
    let addresses: Vec<SocketAddr> = match (host.parse(), zone) {
        (Ok(IpAddr::V6(ip)), Some(zone)) => {
            let scope = nix::net::if_::if_nametoindex(zone)
                .map_err(|_| Fault::Unreachable(format!("this machine has no interface {zone:?}")))?;
            vec![std::net::SocketAddrV6::new(ip, port, 0, scope).into()]
        }
        (Ok(ip), _) => vec![SocketAddr::new(ip, port)],
        (Err(_), _) => lookup_host((host, port)).await.map_err(failed)?.collect(),
    };
    let mut last = Fault::Unreachable("the name has no address".to_owned());
    let count = addresses.len() as u32;
    for (at, address) in (0..count).zip(addresses) {
        let share = until.saturating_duration_since(Instant::now()) / (count - at);
        let connected = timeout(share, TcpStream::connect(address)).await;
        // Requests are small and must not wait for acknowledgements of earlier ones.
        match connected.map(|connected| connected.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))) {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = failed(error),
            Err(_) => last = Fault::Unreachable(format!("{address} does not answer")),
        }
    }
    Err(last)
}
