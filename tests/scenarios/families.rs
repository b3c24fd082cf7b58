//! One listener for both IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::harness::datagrams::Ports;
use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::net::Net;
use crate::harness::relay::{Relay, Uring};
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
        // A URL without a host: the answer names the address that the connection was made to.
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

#[test]
fn datagrams_leave_from_the_address_that_the_player_asked() {
    let _turn = beside_others();
    for uring in [Uring::AsAsked, Uring::Refused] {
        let config = "listen = [\"0.0.0.0:0\"]\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n";
        let relay = Relay::configured_with(uring, config).serving("/t");
        // By the routes, datagrams to 127.0.0.1 leave from there, whatever address the player connected to.
        let asked = SocketAddr::from(([127, 0, 0, 2], relay.address().port()));
        let (_client, ports) = plays_at(Ipv4Addr::LOCALHOST.into(), asked);
        for socket in [&ports.rtp, &ports.rtcp] {
            let (_, from) = socket.recv_from(&mut [0; 2_048]).expect("datagrams");
            assert_eq!(from.ip(), asked.ip());
        }
    }
}

/// A player at `ip` that requests datagrams of the first track from `relay`, with a URL without a host.
fn plays_at(ip: IpAddr, relay: SocketAddr) -> (Client, Ports) {
    let mut client = Client::connect_from(ip, relay);
    let described = client.describe("/t").expect(200);
    let ports = Ports::bind_at(ip);
    let transport = ports.transport();
    let answer = client.request("SETUP", &tracks(&described)[0].url, &[("Transport", &transport)]).expect(200);
    client.session = answer.session().map(str::to_string);
    client.play(&format!("rtsp://{relay}/t")).expect(200);
    for socket in [&ports.rtp, &ports.rtcp] {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    (client, ports)
}

#[test]
fn datagrams_leave_from_the_address_of_ipv6_that_the_player_asked() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(1);
    // Both addresses belong to server and client themselves, so that the one with the higher number is not the one that routing would
    // choose.
    net.add_address(None, "fd77::1/64");
    net.add_address(None, "fd77::2/64");
    net.add_address(None, "10.77.0.2/24");
    net.add_address(Some(0), "fd77::10/64");
    net.enter_server();
    for uring in [Uring::AsAsked, Uring::Refused] {
        let config = "listen = [\"[::]:0\"]\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n";
        let relay = Relay::configured_with(uring, config).serving("/t");
        let port = relay.address().port();
        for (client, servers) in [("fd77::10", ["fd77::1", "fd77::2"]), ("10.77.0.10", ["10.77.0.1", "10.77.0.2"])] {
            for server in servers {
                let asked = SocketAddr::new(server.parse().unwrap(), port);
                let from = net.at_client(0, || {
                    let (_client, ports) = plays_at(client.parse().unwrap(), asked);
                    ports.rtp.recv_from(&mut [0; 2_048]).expect("datagrams").1
                });
                assert_eq!(from.ip(), asked.ip(), "asked by {client}");
            }
        }
    }
}

#[test]
fn a_relay_pulls_datagrams_from_a_relay_by_any_of_its_addresses() {
    let _turn = beside_others();
    let first =
        Relay::configured("listen = [\"0.0.0.0:0\"]\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n").serving("/t");
    let source = format!("rtsp://127.0.0.2:{}/t", first.address().port());
    let second = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n\n[[stream]]\nname = \"t\"\nsource = \"{source}\"\ntransport = \"udp\"\n"
    ))
    .serving("/t");
    second.has_sent("/t", 10);
}
