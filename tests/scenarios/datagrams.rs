//! A stream goes out in datagrams that networks carry, whatever its camera sends.

use crate::harness::datagrams::Ports;
use crate::harness::machine::beside_others;
use crate::harness::program::run;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, servers};

/// Bytes of a datagram at most, so that it passes networks of 1,500 with IPv6 and a tunnel's header.
const DATAGRAM_BYTES_MAX: usize = 1_452;

/// A client that plays the video over UDP, and the sockets that it comes to.
fn play(relay: &Relay) -> (Client, Ports) {
    let mut client = Client::connect(relay.address());
    let described = client.describe(&relay.url("/")).expect(200);
    let video = tracks(&described).into_iter().find(|track| track.media == "video").expect("a video track");
    let ports = Ports::bind();
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
    let (_client, ports) = play(&relay);
    let mut buffer = [0; 65_536];
    let sizes: Vec<usize> = (0..300).map(|_| ports.rtp.recv(&mut buffer).expect("a datagram")).collect();
    let largest = sizes.iter().copied().max().unwrap();
    assert!((1_000..=DATAGRAM_BYTES_MAX).contains(&largest), "{largest} bytes");
    // Over TCP they would come as the camera sends them, if they were not cut for both.
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
