//! When a resource runs out, or the relay's own code panics, existing clients are still served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::datagrams::Ports;
use crate::harness::http::{get, http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::vitals::descriptors;
use crate::harness::{DEADLINE, h264, wait_until};

const DEMO: [&str; 7] = ["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", "1"];

/// The relay, started by a shell that first sets something.
fn after(shell: &str, arguments: &[&str]) -> Relay {
    let inner = command(Uring::AsAsked, arguments);
    let mut outer = Command::new("sh");
    outer.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\"")).arg(inner.get_program()).args(inner.get_args());
    Relay::start(outer).serving("/")
}

fn metric(relay: &Relay, name: &str) -> f64 {
    value(&get(http_address(relay), "/metrics").1, name)
}

fn player(relay: &Relay) -> Client {
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    assert!(h264::is_complete_keyframe(&client.frame_on(0)));
    client
}

/// Receives frames, and checks that no packet is missing.
fn unbroken(client: &mut Client, frames: usize) {
    let mut next = None;
    for _ in 0..frames {
        for packet in client.frame_on(0) {
            assert!(next.is_none_or(|next| next == packet.seq()), "a packet is missing");
            next = Some(packet.seq().wrapping_add(1));
        }
    }
}

#[test]
fn without_descriptors_left_players_lose_nothing_and_it_recovers() {
    let _turn = beside_others();
    let relay = after("ulimit -n 100", &DEMO);
    let mut playing = player(&relay);
    let before = descriptors(&relay);
    let crowd: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(relay.address()).expect("a backlog")).collect();
    unbroken(&mut playing, 30);
    wait_until("the fix is logged", DEADLINE, || {
        relay.printed().contains("ulimit -Hn") || relay.printed().contains("ulimit -n")
    });
    let printed = relay.printed();
    assert!(printed.lines().filter(|line| line.contains("WARN")).count() < 10, "{printed}");
    drop(crowd);
    // While some of the crowd are left, new connections may be closed at once.
    wait_until("a new player is served", DEADLINE, || {
        descriptors(&relay) <= before && Client::connect(relay.address()).is_served("DESCRIBE", &relay.url("/"))
    });
    unbroken(&mut player(&relay), 5);
    unbroken(&mut playing, 5);
}

#[test]
fn a_full_disk_under_the_reports_is_counted_and_nothing_else() {
    let _turn = beside_others();
    let arguments = [&DEMO[..], &["--report-every", "100ms", "--report-format", "json"]].concat();
    let relay = after("exec >/dev/full", &arguments);
    let mut playing = player(&relay);
    wait_until("lines are dropped", DEADLINE, || metric(&relay, "rtsprelay_lines_dropped_total") >= 3.0);
    unbroken(&mut playing, 30);
    relay.signal(Signal::SIGTERM);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
}

#[test]
fn without_memory_to_lock_it_serves_all_the_same() {
    let _turn = beside_others();
    // Newer kernels do not count rings as locked memory; on older ones the relay uses epoll.
    let relay = after("ulimit -l 0", &DEMO);
    unbroken(&mut player(&relay), 10);
}

#[test]
fn a_fault_at_one_client_ends_that_one_alone() {
    let _turn = beside_others();
    let relay = Relay::start(command(Uring::AsAsked, &[&DEMO[..], &["--test-panic", "1h"]].concat())).serving("/");
    let mut healthy = player(&relay);
    for (what, times) in [("request", 1.0), ("send", 2.0)] {
        let mut broken = player(&relay);
        let text = broken.compose("OPTIONS", &relay.url("/"), &[("X-Test-Panic", what)]);
        broken.send_raw(text.as_bytes());
        assert!(broken.is_closed(), "{what}");
        unbroken(&mut healthy, 10);
        wait_until("it is counted", DEADLINE, || metric(&relay, "rtsprelay_panics_total{where=\"client\"}") == times);
    }
    let mut page = TcpStream::connect(http_address(&relay)).unwrap();
    page.write_all(b"GET /healthz HTTP/1.0\r\nX-Test-Panic: page\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // Closed or reset, without an answer.
    let _ = page.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let counted = || metric(&relay, "rtsprelay_panics_total{where=\"client\"}") == 3.0;
    wait_until("the panic of a page's client is counted, too", DEADLINE, counted);
    wait_until("both are gone", DEADLINE, || {
        metric(&relay, "rtsprelay_clients{stream=\"test\",transport=\"tcp\"}") == 1.0
    });
    let told =
        |line: &&str| line.contains("a bug in the relay ended this client") && line.contains("client=127.0.0.1:");
    wait_until("both are reported", DEADLINE, || relay.printed().lines().filter(told).count() >= 2);
    let printed = relay.printed();
    assert!(printed.contains("a test wants it so") && printed.contains("panics.rs"), "where: {printed}");
    assert_eq!(printed.lines().filter(told).count(), 2, "{printed}");
    unbroken(&mut player(&relay), 10);
    relay.signal(Signal::SIGTERM);
    let (status, ..) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_fault_at_a_datagram_ends_its_sender_alone() {
    let _turn = beside_others();
    let relay = Relay::start(command(Uring::AsAsked, &[&DEMO[..], &["--test-panic", "1h"]].concat())).serving("/");
    let mut healthy = player(&relay);
    let ports = Ports::bind();
    let mut control = Client::connect(relay.address());
    let transport = ports.transport();
    let set_up = control.request("SETUP", &relay.url("/test/trackID=0"), &[("Transport", &transport)]).expect(200);
    control.session = set_up.session().map(str::to_owned);
    control.play(&relay.url("/test")).expect(200);
    let told = set_up.header("Transport").unwrap();
    let server = told.split(';').find_map(|part| part.strip_prefix("server_port=")?.split_once('-')).unwrap().1;
    ports.rtcp.send_to(b"X-Test-Panic: request", ("127.0.0.1", server.parse().unwrap())).unwrap();
    wait_until("it is counted", DEADLINE, || metric(&relay, "rtsprelay_panics_total{where=\"client\"}") == 1.0);
    assert!(control.is_closed());
    unbroken(&mut healthy, 10);
    unbroken(&mut player(&relay), 10);
}

#[test]
fn a_fault_of_a_source_starts_it_again_and_leaves_the_clients() {
    let _turn = beside_others();
    let relay = Relay::start(command(Uring::AsAsked, &[&DEMO[..], &["--test-panic", "1500ms"]].concat())).serving("/");
    let mut client = player(&relay);
    wait_until("the source fails", DEADLINE, || metric(&relay, "rtsprelay_panics_total{where=\"source\"}") >= 1.0);
    wait_until("it is reported", DEADLINE, || {
        let printed = relay.printed();
        printed.lines().any(|line| line.contains("the source's code panicked") && line.contains("stream=test"))
    });
    // It is back, and the sequence continues.
    let mut before = client.packet_on(0);
    let back = |relay: &Relay| metric(relay, "rtsprelay_source_reconnects_total{stream=\"test\"}") >= 1.0;
    wait_until("it is back", DEADLINE, || {
        while let Some(packet) = client.packet_within(Duration::from_millis(1)) {
            if packet.channel == 0 {
                assert_eq!(packet.seq(), before.seq().wrapping_add(1));
                before = packet;
            }
        }
        back(&relay)
    });
    assert_eq!(client.packet_on(0).seq(), before.seq().wrapping_add(1));
}
