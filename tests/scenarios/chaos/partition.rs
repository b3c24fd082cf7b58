//! Network failures between the relay and its clients or its camera, with no notice to either end.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{AtEnd, GOP, QUIET_MAX, witness};
use crate::harness::camera::Camera;
use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::net::{Net, SERVER};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, tracks};
use crate::harness::vitals::Vitals;
use crate::harness::{DEADLINE, wait_until};

/// The nodes of the network.
const CAMERA: u8 = 0;
const BY_TCP: u8 = 1;
const BY_UDP: u8 = 2;
const STAYS: u8 = 3;

/// Sends frames until a condition holds.
fn feed_until(camera: &Camera, what: &str, mut condition: impl FnMut() -> bool) {
    let mut number = 0;
    wait_until(what, DEADLINE, || {
        // Enough to fill what the kernel buffers for a client that is gone.
        if number % GOP == 0 {
            camera.keyframe(15_000)
        } else {
            camera.delta_frame(10_000)
        };
        number += 1;
        // The pace of the camera.
        std::thread::sleep(Duration::from_millis(10));
        condition()
    });
}

#[test]
fn a_partition_ends_those_behind_it_and_nobody_else() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(4);
    net.enter_server();
    let camera = net.at_client(CAMERA, || Camera::start_at((Net::address(CAMERA), 0).into()));
    let relay = Relay::configured(&format!(
        "listen = [\"0.0.0.0:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n\n[queue]\nstall_timeout = \"1s\"\n\n\
         [limits]\nsession_timeout = \"2s\"\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\nsource_timeout = \"1s\"\n",
        camera.url()
    ));
    camera.wait_playing();
    camera.keyframe(2_000);
    let relay = relay.serving("/cam");
    let address = SocketAddr::from((SERVER, relay.address().port()));
    let (stop, frames) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _end = AtEnd(|| stop.store(true, Ordering::Relaxed));
        let stays = net.at_client(STAYS, || scope.spawn(|| witness(address, "/cam", &stop, &frames)));
        feed_until(&camera, "the witness sees frames", || frames.load(Ordering::Relaxed) > 10);
        clients_are_cut_off(&net, &camera, &relay, address);
        the_camera_is_cut_off(&net, &camera, &relay);
        let wanted = frames.load(Ordering::Relaxed) + 50;
        feed_until(&camera, "the picture is back", || frames.load(Ordering::Relaxed) >= wanted);
        stop.store(true, Ordering::Relaxed);
        camera.keyframe(2_000);
        let (_, skips) = stays.join().unwrap();
        assert_eq!(skips, 0, "it lost frames that the camera had sent");
    });
}

/// One operation stalls, one session is silent; both clients are disconnected, and nothing is left of them.
fn clients_are_cut_off(net: &Net, camera: &Camera, relay: &Relay, address: SocketAddr) {
    let http = http_address(relay);
    let url = format!("rtsp://{address}/cam");
    let before = Vitals::of(relay, http);
    let mut by_udp = net.at_client(BY_UDP, || Client::connect(address));
    let socket = net.at_client(BY_UDP, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6000)).unwrap());
    let track = &tracks(&by_udp.describe(&url).expect(200))[0];
    let answer = by_udp.request("SETUP", &track.url, &[("Transport", "RTP/AVP;unicast;client_port=6000-6001")]);
    by_udp.session = answer.expect(200).session().map(str::to_owned);
    by_udp.play(&url).expect(200);
    let mut by_tcp = net.at_client(BY_TCP, || Client::connect(address));
    by_tcp.play_everything(&url);
    socket.set_nonblocking(true).unwrap();
    // Until they are cut off they read and send reports, so that nothing else ends them.
    let mut datagrams = 0;
    feed_until(camera, "both play", || {
        while by_tcp.packet_within(Duration::ZERO).is_some() {}
        datagrams += usize::from(socket.recv(&mut [0; 2_048]).is_ok());
        by_udp.request("GET_PARAMETER", &url, &[]).expect(200);
        datagrams > 0 && Vitals::of(relay, http).clients == before.clients + 2
    });

    net.cut(BY_TCP);
    net.cut(BY_UDP);
    let metrics = || get(http, "/metrics").1;
    feed_until(camera, "both are ended", || value(&metrics(), "rtsprelay_sessions ") as u64 == before.sessions);
    before.come_back(relay, http, QUIET_MAX);
    for reason in ["stalled", "session_timeout"] {
        let name = format!("rtsprelay_clients_left_total{{stream=\"cam\",reason=\"{reason}\"}}");
        wait_until(&name, DEADLINE, || value(&metrics(), &name) == 1.0);
    }
}

/// The relay reconnects until it answers; its viewer stays connected.
fn the_camera_is_cut_off(net: &Net, camera: &Camera, relay: &Relay) {
    let http = http_address(relay);
    let metrics = |name: &str| value(&get(http, "/metrics").1, &format!("{name}{{stream=\"cam\"}}"));
    net.cut(CAMERA);
    wait_until("the relay misses the camera", DEADLINE, || {
        relay.printed().contains("the camera sent no media for 1 s") && metrics("rtsprelay_source_up") == 0.0
    });
    net.mend(CAMERA);
    feed_until(camera, "the camera is back", || metrics("rtsprelay_source_reconnects_total") >= 1.0);
}
