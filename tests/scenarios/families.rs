//! A listener for IPv4 and IPv6 alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::harness::datagrams::Ports;
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, wait_until};

#[test]
fn players_of_both_kinds_of_address_get_datagrams_and_are_told_of_as_people_write_them() {
    let _turn = beside_others();
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return println!("this machine has no IPv6");
    }
    let relay =
        Relay::configured("listen = [\"[::]:0\"]\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n").serving("/t");
    for (ip, kind) in
        [(IpAddr::from(Ipv4Addr::LOCALHOST), "IN IP4 0.0.0.0"), (IpAddr::from(Ipv6Addr::LOCALHOST), "IN IP6 ::")]
    {
        let address = SocketAddr::new(ip, relay.address().port());
        let mut client = Client::connect(address);
        // Without a host in its URL it is told by which address it came.
        let described = client.describe("/t").expect(200);
        assert_eq!(described.header("Content-Base"), Some(format!("rtsp://{address}/t/").as_str()));
        assert!(described.body.contains(&format!("\r\nc={kind}\r\n")), "{}", described.body);
        let ports = Ports::bind_at(ip);
        let transport = ports.transport();
        let answer = client.request("SETUP", &tracks(&described)[0].url, &[("Transport", &transport)]).expect(200);
        client.session = answer.session().map(str::to_string);
        client.play(&format!("rtsp://{address}/t")).expect(200);
        ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
        let (_, from) = ports.rtp.recv_from(&mut [0; 2_048]).expect("datagrams");
        assert_eq!(from.ip(), ip);
        let told = format!("client={}", client.stream().local_addr().unwrap());
        wait_until(&told, DEADLINE, || relay.printed().contains(&told));
    }
}
