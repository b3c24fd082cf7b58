//! A stream is sent in datagrams that fit the network, whatever size its camera sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use crate::harness::datagrams::Ports;
use crate::harness::machine::{beside_others, has_own_network};
use crate::harness::program::{Program, run};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, servers};

/// Maximum datagram size that passes IPv4 networks with an MTU of 1,500 unfragmented.
const DATAGRAM_BYTES_MAX: usize = 1_472;

/// A client at `ip` that plays the video over UDP, and the sockets that receive it.
fn play(relay: &Relay, ip: IpAddr) -> (Client, Ports) {
    let address = SocketAddr::new(ip, relay.address().port());
    let mut client = Client::connect(address);
    let described = client.describe(&format!("rtsp://{address}/")).expect(200);
    let video = tracks(&described).into_iter().find(|track| track.media == "video").expect("a video track");
    let ports = Ports::bind_at(ip);
    ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
    let answer = client.request("SETUP", &video.url, &[("Transport", &ports.transport())]).expect(200);
    client.session = answer.session().map(str::to_owned);
    client.play(described.header("Content-Base").unwrap()).expect(200);
    (client, ports)
}

#[test]
fn a_cameras_packets_of_3000_bytes_come_in_pieces_that_decode() {
    let _turn = beside_others();
    let relay = servers::relayed(&["x264", "--mtu", "3000"]);
    let (_client, ports) = play(&relay, Ipv4Addr::LOCALHOST.into());
    let mut buffer = [0; 65_536];
    let sizes: Vec<usize> = (0..300).map(|_| ports.rtp.recv(&mut buffer).expect("a datagram")).collect();
    let largest = sizes.iter().copied().max().unwrap();
    assert!((1_000..=DATAGRAM_BYTES_MAX).contains(&largest), "{largest} bytes");
    // Over TCP they would arrive in the camera's size if they were not split for both.
    let finished = run(
        DEADLINE,
        "ffmpeg",
        &[
            "-nostdin",
            "-v",
            "error",
            "-xerror",
            "-rtsp_transport",
            "udp",
            "-i",
            &relay.url("/"),
            "-t",
            "2",
            "-f",
            "null",
            "-",
        ],
    );
    finished.expect_silent_success();
}

#[test]
fn packets_that_fill_a_datagram_pass_whole_over_ipv4_and_in_fragments_over_ipv6() {
    let _turn = beside_others();
    // A network for this thread and its children, in which packets have the usual size limit.
    if !has_own_network() {
        return;
    }
    run(DEADLINE, "ip", &["link", "set", "lo", "mtu", "1500", "up"]).expect_silent_success();
    let relay = Relay::configured("listen = [\"[::]:0\"]\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n");
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=640x480:rate=25"]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "10", "-f", "rtsp"]);
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), relay.address().port());
    command.args(["-rtsp_transport", "tcp", &format!("rtsp://{at}/live")]);
    let _encoder = Program::start(command);
    crate::harness::wait_until("it publishes", DEADLINE, || {
        Client::connect(at).describe(&format!("rtsp://{at}/live")).status == 200
    });
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let (_client, ports) = play(&relay, ip);
        let mut buffer = [0; 65_536];
        let packets: Vec<(u16, usize)> = (0..200)
            .map(|_| {
                let len = ports.rtp.recv(&mut buffer).expect("a datagram");
                (u16::from_be_bytes([buffer[2], buffer[3]]), len)
            })
            .collect();
        let count = |size| packets.iter().filter(|(_, len)| *len == size).count();
        assert!(count(1_472) > 40 && count(1_452) == 0, "{ip}: {packets:?}");
        assert!(packets.windows(2).all(|pair| pair[1].0 == pair[0].0.wrapping_add(1)), "{ip}: {packets:?}");
    }
}

#[test]
fn datagrams_come_from_the_ports_that_the_configuration_names() {
    let _turn = beside_others();
    // Two that were free a moment ago.
    let pair = Ports::bind().pair();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nworkers = 1\nudp_ports = \"{pair}\"\n\n[[stream]]\nname = \"t\"\nsource = \"test\"\n"
    ))
    .serving("/t");
    let url = relay.url("/t");
    let mut player = Client::connect(relay.address());
    let track = tracks(&player.describe(&url).expect(200)).remove(0);
    let ports = Ports::bind();
    let answer = player.request("SETUP", &track.url, &[("Transport", &ports.transport())]).expect(200);
    assert_eq!(answer.transport("server_port"), Some(pair.as_str()));
    player.session = answer.session().map(str::to_owned);
    player.play(&url).expect(200);
    let mut packet = [0; 2_000];
    ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
    let (_, from) = ports.rtp.recv_from(&mut packet).expect("a packet");
    assert!(pair.starts_with(&format!("{}-", from.port())), "{from}: {pair}");
}
