//! UDP ports for a player, safe beside other players that run in parallel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use super::rtsp::Answer;

/// A player's two sockets, on an even port and the next. Both are bound: otherwise a relay that is given an unbound port
/// might send its reports to another scenario's player.
pub struct Ports {
    /// Receives RTP.
    pub rtp: UdpSocket,
    /// Receives RTCP.
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

    /// A pair on a socket's address, with the same zone.
    pub fn bind_beside(mut address: SocketAddr) -> Ports {
        loop {
            address.set_port(0);
            let one = UdpSocket::bind(address).expect("a port");
            let port = port_of(&one);
            address.set_port(port ^ 1);
            // Another program may have bound the next port.
            let Ok(other) = UdpSocket::bind(address) else { continue };
            return if port.is_multiple_of(2) {
                Ports { rtp: one, rtcp: other }
            } else {
                Ports { rtp: other, rtcp: one }
            };
        }
    }

    /// The value of `client_port`.
    pub fn pair(&self) -> String {
        format!("{}-{}", port_of(&self.rtp), port_of(&self.rtcp))
    }

    /// The `Transport` header that requests datagrams to them.
    pub fn transport(&self) -> String {
        format!("RTP/AVP;unicast;client_port={}", self.pair())
    }
}

/// Connects a socket, so it receives only datagrams from the relay's RTP port, which the answer to SETUP names.
pub fn take_from(socket: &UdpSocket, relay: IpAddr, answer: &Answer) {
    let ports = answer.transport("server_port").expect("server_port");
    let port = ports.split('-').next().unwrap().parse().expect("a port");
    socket.connect(SocketAddr::new(relay, port)).expect("connect");
}

fn port_of(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("bound").port()
}
