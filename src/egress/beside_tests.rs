//! Sockets for single clients, bound to the shared socket's port: no other program may bind to it, too.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Socket, Type};

use super::Datagram;
use super::runtime::Runtime;
use super::tests::kinds;

/// Another user of the machine: binds to the socket's address with the options that would allow it.
fn bind_at(address: SocketAddr, share: fn(&Socket)) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    share(&socket);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[test]
fn nobody_binds_beside_a_port_that_the_relay_shares_with_itself() {
    for kind in kinds() {
        Runtime::new(kind).unwrap().block_on(async {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let (rtp, _rtcp) = Datagram::bind_pair(Ipv4Addr::LOCALHOST.into(), None, kind).unwrap();
            let to = client.local_addr().unwrap();
            // More than one, and again after one was released.
            let own = [rtp.beside(to).unwrap(), rtp.beside(to).unwrap()];
            drop(rtp.beside(to).unwrap());
            let again = rtp.beside(to).unwrap();
            let address = rtp.local_addr().unwrap();
            assert!(own.iter().chain([&again]).all(|socket| socket.local_addr().unwrap() == address));
            let wildcard = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            for at in [address, wildcard] {
                bind_at(at, |socket| socket.set_reuse_address(true).unwrap()).expect_err("beside, by SO_REUSEADDR");
                if Uid::effective().is_root() {
                    // Another user of the machine, as far as this thread's sockets are concerned.
                    let stranger = std::thread::spawn(move || {
                        setfsuid(Uid::from_raw(65_534));
                        bind_at(at, |socket| {
                            socket.set_reuse_address(true).unwrap();
                            socket.set_reuse_port(true).unwrap();
                        })
                    });
                    stranger.join().unwrap().expect_err("beside, by SO_REUSEPORT");
                }
            }
            // Datagrams from others than those clients arrive only at the shared socket.
            let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            for number in 0..20_u8 {
                other.send_to(&[number], address).unwrap();
                let received = tokio::time::timeout(Duration::from_secs(10), rtp.recv_from(Vec::with_capacity(16)));
                let (result, bytes) = received.await.expect("it arrives at the shared socket");
                assert_eq!((result.unwrap().1, bytes), (other.local_addr().unwrap(), vec![number]));
            }
        });
    }
}
