//! The origin of a camera's packets: datagrams from another address than the connection's, and addresses with a zone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::process::Command;

use super::{HEAD, PATIENCE, Terms, Viewer, WHOLE, metric, play, stream, wait_told};
use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::net::{BRIDGE, Net};
use crate::harness::relay::Relay;
use crate::harness::scripted::{Camera, Script};
use crate::harness::wait_until;

/// The source address of a camera's datagrams, whose connection is to 127.0.0.1.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn split() -> Script {
    Script { datagrams_from: Some(IpAddr::V4(OTHER)), ..Script::default() }
}

#[test]
fn a_camera_that_sends_datagrams_is_played_without_loss() {
    let _turn = beside_others();
    play(vec![("udp", Script::default())], Terms { more: "transport = \"udp\"", ..WHOLE });
}

#[test]
fn datagrams_of_another_address_are_refused_and_the_address_is_named() {
    let _turn = beside_others();
    let unsaid = split().answers(|request, reply| {
        // It may name the source address, or not.
        if request.method == "SETUP" && request.url.ends_with("track1") {
            let transport = reply.headers.iter().find(|(name, _)| name == "Transport").expect("Transport").1.clone();
            reply.set("Transport", transport.replace("source=127.0.0.2;", ""));
        }
    });
    let camera = Camera::start(unsaid.clone());
    let relay = Relay::configured(&format!("{HEAD}{}", stream("split", &camera, &unsaid, "transport = \"udp\"")));
    wait_told(&relay, "split", &["127.0.0.2", "udp_from"]);
    let counted = || metric(&relay, "rtsprelay_source_packets_dropped_total", "stream=\"split\",reason=\"stranger\"");
    wait_until("they are counted", PATIENCE, || counted() > 0.0);
    let frames = metric(&relay, "rtsprelay_source_frames_total", "stream=\"split\"");
    assert_eq!(frames, 0.0);
}

#[test]
fn datagrams_of_another_address_are_taken_where_the_stream_names_it() {
    let _turn = beside_others();
    play(vec![("split", split())], Terms { more: "transport = \"udp\"\nudp_from = \"127.0.0.2\"", ..WHOLE });
}

#[test]
fn datagrams_of_any_address_are_taken_where_the_stream_says_so() {
    let _turn = beside_others();
    play(vec![("split", split())], Terms { more: "transport = \"udp\"\nudp_from = \"any\"", ..WHOLE });
}

#[test]
fn datagrams_of_a_third_address_are_refused_where_the_stream_names_another() {
    let _turn = beside_others();
    let camera = Camera::start(split());
    let more = "transport = \"udp\"\nudp_from = \"127.0.0.3\"";
    let relay = Relay::configured(&format!("{HEAD}{}", stream("split", &camera, &split(), more)));
    wait_told(&relay, "split", &["127.0.0.2"]);
}

/// The link-local address of an interface in the calling thread's namespace, once it is usable.
fn link_local(interface: &str) -> SocketAddrV6 {
    let mut found = None;
    wait_until("a link-local address", PATIENCE, || {
        let arguments = ["-6", "-o", "addr", "show", "dev", interface, "scope", "link", "-tentative"];
        let shown = Command::new("ip").args(arguments).output().expect("ip").stdout;
        let shown = String::from_utf8(shown).unwrap();
        found = shown.split_whitespace().find_map(|word| word.split('/').next()?.parse().ok());
        found.is_some()
    });
    let index = nix::net::if_::if_nametoindex(interface).expect("the interface");
    SocketAddrV6::new(found.unwrap(), 0, 0, index)
}

#[test]
fn a_camera_is_reached_by_an_address_with_a_zone() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(1);
    net.enter_server();
    let camera = net.at_client(0, || Camera::start_at(link_local("eth0").into(), Script::default()));
    link_local(BRIDGE);
    let SocketAddr::V6(at) = camera.address() else { panic!("IPv6") };
    let mut config = "listen = [\"0.0.0.0:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 1\n".to_owned();
    for transport in ["tcp", "udp"] {
        let url = format!("rtsp://[{}%25{BRIDGE}]:{}/cam", at.ip(), at.port());
        config += &format!("\n[[stream]]\nname = \"{transport}\"\nsource = \"{url}\"\ntransport = \"{transport}\"\n");
    }
    let relay = Relay::configured(&config);
    for transport in ["tcp", "udp"] {
        let viewer = Viewer::start(&relay, transport).unwrap_or_else(|fault| panic!("{fault}\n{}", relay.printed()));
        viewer.gets(super::FRAMES, PATIENCE).unwrap();
        assert_eq!(viewer.finish().holes, 0);
    }
    // The URL in the request must make sense to the camera: the zone is only valid on this machine (RFC 6874 section 1).
    assert!(camera.record().requests.iter().all(|request| !request.url.contains('%')));
}
