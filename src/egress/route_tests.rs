//! The source address of datagrams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::tests::{datagrams, on_both, token};
use super::*;

#[test]
fn datagrams_leave_from_the_address_that_their_route_says() {
    on_both(async |rig| {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        // Loopback has a whole IPv4 network, which an IPv6 socket can use as well.
        let mapped = Ipv4Addr::new(127, 0, 0, 2).to_ipv6_mapped();
        for (any, to, from) in [
            (any[0], "127.0.0.1", "127.0.0.2".parse().unwrap()),
            (any[1], "::ffff:127.0.0.1", IpAddr::V6(mapped)),
            (any[1], "::1", "::1".parse().unwrap()),
        ] {
            let (rtp, _rtcp) = Datagram::bind_pair(any, None, rig.kind).unwrap();
            let to: IpAddr = to.parse().unwrap();
            let far = UdpSocket::bind((to.to_canonical(), 0)).unwrap();
            far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let to = SocketAddr::new(to, far.local_addr().unwrap().port());
            let own = rtp.beside(to).unwrap();
            for (socket, plain) in [(&rtp, false), (&rtp, true), (&own, false)] {
                let chunk = datagrams(&[1400, 1400, 300, 20]);
                rig.egress.send_datagrams(token(0), socket, Route { to, from: Some(from) }, &chunk, plain);
                rig.wait_ok(0, 3120).await;
                for len in [1400, 1400, 300, 20] {
                    let (count, sender) = far.recv_from(&mut [0; 2000]).unwrap();
                    let port = rtp.local_addr().unwrap().port();
                    assert_eq!((count, sender), (len, SocketAddr::new(from.to_canonical(), port)), "{to} {plain}");
                }
            }
            // Nothing of it remains in the slot, whose next client has another route.
            rig.egress.send_datagrams(token(0), &rtp, to.into(), &datagrams(&[7]), false);
            rig.wait_ok(0, 7).await;
            let (_, sender) = far.recv_from(&mut [0; 2000]).unwrap();
            assert_eq!(sender.ip(), far.local_addr().unwrap().ip());
        }
    });
}
