//! Clients on emulated links: a multicast group, links that are too slow beside fast ones, and one with a small MTU.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::harness::camera::Camera;
use crate::harness::machine::{alone, beside_others, cannot_run, is_root, snmp};
use crate::harness::net::{BRIDGE, Net, SERVER};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet, tracks};
use crate::harness::{DEADLINE, h264, wait_until};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 0, 1);

/// A relay in the network's server namespace, which the calling thread enters.
fn serve(net: &Net, stream: &str) -> (Camera, Relay, SocketAddr) {
    net.enter_server();
    let camera = Camera::start();
    let relay = Relay::configured(&format!(
        "listen = [\"0.0.0.0:0\"]\nworkers = 2\n\n[report]\nevery = \"200ms\"\nformat = \"logfmt\"\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\n{stream}\n",
        camera.url()
    ));
    camera.wait_playing();
    camera.keyframe(2_000);
    let address = SocketAddr::from((SERVER, relay.address().port()));
    (camera, relay.serving("/cam"), address)
}

/// Sets the video up with `transport`, and plays. Returns the answer's `Transport`.
fn play(client: &mut Client, address: SocketAddr, transport: &str) -> String {
    let described = client.describe(&format!("rtsp://{address}/cam")).expect(200);
    let video = tracks(&described).into_iter().find(|track| track.media == "video").expect("a video track");
    let answer = client.request("SETUP", &video.url, &[("Transport", transport)]).expect(200);
    client.session = answer.session().map(str::to_owned);
    client.play(described.header("Content-Base").unwrap()).expect(200);
    answer.header("Transport").unwrap().to_owned()
}

/// A socket that can buffer everything that a scenario sends, because its reader may wait for the processor.
fn roomy(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20)).expect("as root");
    socket
}

/// The sequence numbers of arriving packets, until there are `count`.
fn sequence(socket: &UdpSocket, count: usize) -> Vec<u16> {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = [0; 2048];
    let mut found = Vec::new();
    while found.len() < count {
        let bytes = socket.recv(&mut buffer).expect("a packet");
        assert!(bytes > 12);
        found.push(u16::from_be_bytes([buffer[2], buffer[3]]));
    }
    found
}

fn assert_unbroken(sequence: &[u16]) {
    for pair in sequence.windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1));
    }
}

/// Number of datagrams sent in the calling thread's namespace.
fn sent_datagrams() -> u64 {
    snmp("Udp", "OutDatagrams")
}

#[test]
fn a_multicast_group_is_sent_once_for_all_who_joined() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(3);
    let multicast = format!("multicast = \"{GROUP}:5000\"\nmulticast_ttl = 4\nmulticast_interface = \"{BRIDGE}\"");
    let (camera, relay, address) = serve(&net, &multicast);
    let mut witness = Client::connect(address);
    witness.play_everything(&format!("rtsp://{address}/cam"));
    witness.frame_on(0);
    camera.delta_frame(100);
    witness.frame_on(0);
    assert_eq!(sent_datagrams(), 0, "nobody has joined");

    let mut joined: Vec<(Client, UdpSocket)> = (0..3)
        .map(|number| {
            net.at_client(number, || {
                let socket = roomy(5_000);
                socket.join_multicast_v4(&GROUP, &Net::address(number)).unwrap();
                let mut client = Client::connect(address);
                let transport = play(&mut client, address, "RTP/AVP;multicast");
                for part in ["multicast", "destination=239.77.0.1", "port=5000-5001", "ttl=4"] {
                    assert!(transport.split(';').any(|is| is == part), "{transport}");
                }
                (client, socket)
            })
        })
        .collect();
    let before = sent_datagrams();
    camera.keyframe(20_000);
    for _ in 0..20 {
        camera.delta_frame(5_000);
    }
    // The camera's keyframe has 15 fragments and three small packets, at least; the others have four each.
    let received: Vec<Vec<u16>> = joined.iter().map(|(_, socket)| sequence(socket, 15 + 20 * 4)).collect();
    for (number, sequence) in received.iter().enumerate() {
        assert_unbroken(sequence);
        // The first to join may have received packets that the others did not.
        assert_eq!(sequence.len(), 95, "receiver {number}");
    }
    let sent = sent_datagrams() - before;
    // With a few reports; one send to each would be three times as many.
    assert!(sent < 2 * 95, "{sent} datagrams for three receivers of some 98");

    // The group ends when the last one leaves.
    for (client, _) in &mut joined {
        client.request("TEARDOWN", &format!("rtsp://{address}/cam"), &[]).expect(200);
    }
    wait_until("the group falls silent", DEADLINE, || {
        let before = sent_datagrams();
        camera.delta_frame(100);
        witness.frame_on(0);
        sent_datagrams() == before
    });
    wait_until("the log mentions them", DEADLINE, || {
        let log = relay.printed();
        let of_them =
            |what: &str| log.lines().filter(|line| line.contains(what) && line.contains(" client=10.77.")).count();
        of_them("transport=\"multicast\"") == 3 && of_them("reason=\"teardown\"") == 3
    });
}

/// Reads packets until the sequence number `last`; returns all of them.
fn read_on(socket: UdpSocket, packets: usize) -> std::thread::JoinHandle<Vec<u16>> {
    std::thread::spawn(move || sequence(&socket, packets))
}

#[test]
fn one_narrow_link_costs_the_clients_of_free_ones_nothing() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = alone();
    let net = Net::new(3);
    net.narrow(0, "2mbit", "32mb");
    let (camera, relay, address) = serve(&net, "");
    let mut server_port: u16 = 0;
    let mut ends: Vec<(Client, UdpSocket)> = (0..3)
        .map(|number| {
            net.at_client(number, || {
                let socket = roomy(6_000);
                let mut client = Client::connect(address);
                let told = play(&mut client, address, "RTP/AVP;unicast;client_port=6000-6001");
                let ports = told.split(';').find_map(|field| field.strip_prefix("server_port=")).expect("server_port");
                if number == 0 {
                    server_port = ports.split('-').next().unwrap().parse().unwrap();
                }
                (client, socket)
            })
        })
        .collect();
    // Each has been sent at most the first keyframe.
    const FRAMES: usize = 1_000;
    const PACKETS: usize = 12;
    let readers: Vec<_> =
        ends.iter().skip(1).map(|(_, socket)| read_on(socket.try_clone().unwrap(), FRAMES * PACKETS)).collect();
    camera.keyframe(2_000);
    // 17 MB in a few seconds: twice what the shared socket could buffer for the narrow link.
    for frame in 0..FRAMES {
        camera.delta_frame(PACKETS * 1_400 - 100);
        if frame % 4 == 3 {
            // The pace of the camera.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for reader in readers {
        assert_unbroken(&reader.join().unwrap());
    }
    // By now it has its own socket, on the same port as all others. No other program's socket can bind to that port.
    let beside = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    beside.set_reuse_address(true).unwrap();
    let shared = SocketAddr::from((Ipv4Addr::UNSPECIFIED, server_port));
    beside.bind(&shared.into()).expect_err("media that publishers send would come here");
    // Frames for the narrow one were dropped, always whole ones, and counted.
    wait_until("dropped frames are counted", DEADLINE, || {
        relay.printed().lines().any(|line| line.contains("stream=cam") && line.contains("dropped_udp_send_total="))
    });
    let first = sequence(&ends[0].1, 50);
    assert!(!first.is_empty());
    ends.clear();
}

#[test]
fn a_path_for_short_packets_gets_the_first_frame_whole() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(1);
    net.shorten(0, 1_280);
    let (camera, relay, address) = serve(&net, "");
    camera.keyframe(40_000);
    let (mut client, socket) = net.at_client(0, || (Client::connect(address), roomy(6_000)));
    let described = client.describe(&format!("rtsp://{address}/cam")).expect(200);
    let video = tracks(&described).into_iter().find(|track| track.media == "video").expect("a video track");
    let transport = "RTP/AVP;unicast;client_port=6000-6001";
    let answer = client.request("SETUP", &video.url, &[("Transport", transport)]).expect(200);
    client.session = answer.session().map(str::to_owned);
    let (_, first, _) = client.play(described.header("Content-Base").unwrap()).expect(200).rtp_info().remove(0);
    for _ in 0..5 {
        camera.delta_frame(10_000);
    }
    // The keyframe's 29 fragments and its parameter sets, then eight fragments per frame; the network fragments each of them.
    let sequence = sequence(&socket, 31 + 5 * 8);
    assert_eq!(sequence[0], first, "from the very first packet on");
    assert_unbroken(&sequence);
    assert!(!relay.printed().contains("dropped_udp_message_size_total=1"), "{}", relay.printed());
}

/// A frame as received by a client: when its last packet arrived, by its timestamp, which is the same for all clients.
struct Got {
    rtp_time: u32,
    at: Instant,
    first_seq: u16,
    next_seq: u16,
    keyframe: bool,
}

/// Reads frames until the deadline.
fn frames_until(mut client: Client, deadline: Instant) -> Vec<Got> {
    let mut got = Vec::new();
    let mut packets: Vec<Packet> = Vec::new();
    while let Some(packet) = client.packet_within(deadline.saturating_duration_since(Instant::now())) {
        if packet.channel != 0 {
            continue;
        }
        packets.push(packet);
        let last = packets.last().unwrap();
        if last.marker() {
            got.push(Got {
                rtp_time: last.rtp_time(),
                at: last.at,
                first_seq: packets[0].seq(),
                next_seq: last.seq().wrapping_add(1),
                keyframe: h264::is_complete_keyframe(&packets),
            });
            for pair in packets.windows(2) {
                assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1), "frames come whole");
            }
            packets.clear();
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    got
}

#[test]
fn behind_half_the_rate_a_client_goes_from_keyframe_to_keyframe_and_stays_near() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = alone();
    let net = Net::new(2);
    net.narrow(0, "2mbit", "64kb");
    let (camera, _relay, address) = serve(&net, "");
    let ends: Vec<Client> = (0..2)
        .map(|number| {
            net.at_client(number, || {
                let mut client = Client::connect(address);
                client.play_everything(&format!("rtsp://{address}/cam"));
                client
            })
        })
        .collect();
    // 4 Mbit/s, 30 frames a second, a keyframe each second.
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(12);
    let readers: Vec<_> =
        ends.into_iter().map(|client| std::thread::spawn(move || frames_until(client, deadline))).collect();
    let mut number = 0;
    while Instant::now() < deadline {
        if number % 30 == 0 {
            camera.keyframe(60_000);
        } else {
            camera.delta_frame(15_000);
        }
        number += 1;
        // The pace of the camera.
        std::thread::sleep((begun + Duration::from_micros(33_333) * number).saturating_duration_since(Instant::now()));
    }
    let got: Vec<Vec<Got>> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    let (narrow, free) = (&got[0], &got[1]);
    for pair in free.windows(2) {
        assert_eq!(pair[1].first_seq, pair[0].next_seq, "the free one misses nothing");
    }
    let when: HashMap<u32, Instant> = free.iter().map(|frame| (frame.rtp_time, frame.at)).collect();
    let ages = narrow.iter().filter_map(|frame| Some(frame.at.saturating_duration_since(*when.get(&frame.rtp_time)?)));
    let (oldest, skips) =
        (ages.max().expect("frames"), narrow.windows(2).filter(|pair| pair[1].first_seq != pair[0].next_seq));
    let returns: Vec<bool> = skips.map(|pair| pair[1].keyframe).collect();
    println!(
        "behind 2 Mbit/s: {} of {} frames, the oldest {oldest:?}, {} skips",
        narrow.len(),
        free.len(),
        returns.len()
    );
    assert!(returns.len() >= 3 && returns.iter().all(|keyframe| *keyframe), "{returns:?}");
    assert!(oldest < Duration::from_secs(3), "{oldest:?} behind");
}
