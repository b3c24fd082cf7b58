//! Every client gets the same bytes: nothing missing, duplicated, torn or out of order.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::harness::datagrams::take_from;
use crate::harness::machine::{alone, beside_others};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, servers};

/// What a client received: for each track, each packet's sequence number and the hash of its bytes, in order.
type Got = HashMap<u8, Vec<(u16, u64)>>;

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Video packets that each client waits for, on however slow a machine: at half of 30 frames a second, one per frame.
fn packets_min(seconds: u64) -> usize {
    seconds as usize * 30 / 2
}

fn over_tcp(relay: &Relay, seconds: u64) -> Got {
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut got = Got::new();
    while Instant::now() < end || got.get(&0).map_or(0, Vec::len) <= packets_min(seconds) {
        let packet = client.packet();
        if packet.channel.is_multiple_of(2) {
            got.entry(packet.channel / 2).or_default().push((packet.seq(), hash(&packet.bytes)));
        }
    }
    got
}

fn over_udp(relay: &Relay, seconds: u64) -> Got {
    let mut client = Client::connect(relay.address());
    let described = client.describe(&relay.url("/")).expect(200);
    let mut sockets = Vec::new();
    for track in tracks(&described) {
        let rtp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        rtp.set_recv_buffer_size(4 << 20).unwrap();
        // More than the machine's usual limit, as root: this reader may wait for the processor.
        let _ = nix::sys::socket::setsockopt(&rtp, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20));
        rtp.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        let rtp: UdpSocket = rtp.into();
        let rtcp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = format!("{}-{}", rtp.local_addr().unwrap().port(), rtcp.local_addr().unwrap().port());
        let transport = format!("RTP/AVP;unicast;client_port={ports}");
        let answer = client.request("SETUP", &track.url, &[("Transport", &transport)]).expect(200);
        client.session = answer.session().map(str::to_string);
        take_from(&rtp, relay.address().ip(), &answer);
        sockets.push((rtp, rtcp));
    }
    client.play(described.header("Content-Base").unwrap()).expect(200);
    let end = Instant::now() + Duration::from_secs(seconds);
    let readers: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(track, (rtp, rtcp))| {
            let wanted = if track == 0 { packets_min(seconds) } else { 0 };
            std::thread::spawn(move || {
                rtp.set_read_timeout(Some(DEADLINE)).unwrap();
                let (mut buffer, mut got) = (vec![0; 65_536], Vec::new());
                while Instant::now() < end || got.len() <= wanted {
                    let n = rtp.recv(&mut buffer).expect("a datagram");
                    got.push((u16::from_be_bytes([buffer[2], buffer[3]]), hash(&buffer[..n])));
                }
                drop(rtcp);
                got
            })
        })
        .collect();
    (0u8..).zip(readers).map(|(track, reader)| (track, reader.join().unwrap())).collect()
}

/// Panics unless all received the same, without gaps.
fn assert_same(all: &[Got]) {
    let mut known: HashMap<(u8, u16), u64> = HashMap::new();
    for (client, got) in all.iter().enumerate() {
        assert_eq!(got.len(), 2, "client {client} has both tracks");
        for (track, packets) in got {
            assert!(packets.len() < 65_536, "sequence numbers say which packet it is");
            for pair in packets.windows(2) {
                assert_eq!(pair[1].0, pair[0].0.wrapping_add(1), "client {client}, track {track}");
            }
            for (seq, hash) in packets {
                let same = known.entry((*track, *seq)).or_insert(*hash);
                assert_eq!(same, hash, "client {client}, track {track}, packet {seq}");
            }
        }
    }
}

fn deliver(relay: &Relay, tcp: usize, udp: usize, seconds: u64) {
    let all: Vec<Got> = std::thread::scope(|scope| {
        let tcp = (0..tcp).map(|_| scope.spawn(|| over_tcp(relay, seconds)));
        let udp = (0..udp).map(|_| scope.spawn(|| over_udp(relay, seconds)));
        let clients: Vec<_> = tcp.chain(udp).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_same(&all);
}

#[test]
fn of_the_demo_to_two_hundred_clients_for_twenty_seconds() {
    let _turn = alone();
    deliver(&Relay::demo(), 200, 0, 20);
}

#[test]
fn of_an_encoder_to_clients_over_tcp_and_udp() {
    let _turn = beside_others();
    deliver(&servers::relayed(&["x264"]), 20, 10, 8);
}
