//! UDP ports for a player, safe beside other players that run in parallel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use super::rtsp::Answer;

/// A player's two sockets, on an even port and the next. Both are bound: a relay that is told of a port that nobody has taken here may
/// send its reports to another scenario's player.
pub struct Ports {
    /// RTP comes here.
    pub rtp: UdpSocket,
    /// RTCP comes here.
    pub rtcp: UdpSocket,
}

impl Ports {
    /// A pair on 127.0.0.1.
    pub fn bind() -> Ports {
        Ports::bind_at(Ipv4Addr::LOCALHOST.into())
    }

    /// A pair on an address.
    pub fn bind_at(ip: IpAddr) -> Ports {
        Ports::bind_beside(SocketAddr::new(ip, 0))
    }

    /// A pair on the address of a socket, whose zone it has too.
    pub fn bind_beside(mut address: SocketAddr) -> Ports {
        loop {
            address.set_port(0);
            let one = UdpSocket::bind(address).expect("a port");
            let port = port_of(&one);
            address.set_port(port ^ 1);
            // Another program may have the neighbour.
            let Ok(other) = UdpSocket::bind(address) else { continue };
            return if port.is_multiple_of(2) {
                Ports { rtp: one, rtcp: other }
            } else {
                Ports { rtp: other, rtcp: one }
            };
        }
    }

    /// As `client_port` has them.
    pub fn pair(&self) -> String {
        format!("{}-{}", port_of(&self.rtp), port_of(&self.rtcp))
    }

    /// The `Transport` that asks for datagrams to them.
    pub fn transport(&self) -> String {
        format!("RTP/AVP;unicast;client_port={}", self.pair())
    }
}

/// Lets a socket take the datagrams alone that come from the RTP port of the relay, which its answer to SETUP names.
pub fn take_from(socket: &UdpSocket, relay: IpAddr, answer: &Answer) {
    let ports = answer.transport("server_port").expect("server_port");
    let port = ports.split('-').next().unwrap().parse().expect("a port");
    socket.connect(SocketAddr::new(relay, port)).expect("connect");
}

fn port_of(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("bound").port()
}
