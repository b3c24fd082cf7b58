//! A relay that drains (`drain`) first reports it, then accepts no new clients, and disconnects its clients one after another.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};

fn relay(more: &str) -> Relay {
    let stream = "[[stream]]\nname = \"t\"\nsource = \"test\"\n";
    Relay::configured(&format!("listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n{more}\n{stream}")).serving("/")
}

/// Plays until it is disconnected. Returns when that was, and whether it was at the end of a frame with a BYE.
fn play_to_the_end(client: &mut Client) -> (Instant, bool) {
    let (mut last_media, mut bye) = (None, false);
    while let Some(packet) = client.packet_or_end() {
        match packet.channel {
            0 => last_media = Some(packet.marker()),
            // A BYE is the last packet of the compound (RFC 3550 section 6.1).
            1 => bye = packet.bytes.windows(2).any(|two| two[0] & 0xE0 == 0x80 && two[1] == 203),
            _ => {}
        }
    }
    (Instant::now(), last_media == Some(true) && bye)
}

#[test]
fn clients_are_sent_away_over_the_time_and_nobody_is_let_in() {
    let _turn = beside_others();
    let relay = relay("drain = \"2s\"\ndrain_delay = \"1s\"\n");
    let http = http_address(&relay);
    assert_eq!((get(http, "/healthz").0, get(http, "/livez").0), (200, 200));
    let mut clients: Vec<Client> = (0..6).map(|_| relay.player("/")).collect();
    relay.signal(Signal::SIGTERM);
    wait_until("it says that it leaves", DEADLINE, || get(http, "/healthz").0 == 503);
    // Balancers have not noticed yet.
    Client::connect(relay.address()).describe(&relay.url("/")).expect(200);
    assert_eq!(get(http, "/livez").0, 200);
    let status: Value = serde_json::from_str(&get(http, "/status").1).unwrap();
    assert_eq!(status["leaving"], true);
    assert!(status["leaves_until"].as_str().is_some_and(|until| until.ends_with('Z')), "{status}");
    assert_eq!(value(&get(http, "/metrics").1, "rtsprelay_leaving"), 1.0);
    let mut ends: Vec<Instant> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients.iter_mut().map(|client| scope.spawn(move || play_to_the_end(client))).collect();
        wait_until("the listeners are closed", DEADLINE, || std::net::TcpStream::connect(relay.address()).is_err());
        // Some are still connected, and some gone: the HTTP server shows them until the end.
        wait_until("some are sent away", DEADLINE, || {
            value(&get(http, "/metrics").1, "rtsprelay_clients_left_total{stream=\"t\",reason=\"drained\"}") > 0.0
        });
        threads
            .into_iter()
            .map(|thread| {
                let (at, whole) = thread.join().unwrap();
                assert!(whole, "the last frame is complete and followed by a BYE");
                at
            })
            .collect()
    });
    ends.sort();
    let (first, last) = (ends[0], ends[5]);
    assert!(last - first >= Duration::from_millis(1_200), "five of six parts of 2 s: {:?}", last - first);
    let (status, _, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    assert_eq!(
        printed.matches("reason=\"drained\"").count() + printed.matches("reason=drained").count(),
        6,
        "{printed}"
    );
    assert!(
        printed.contains("leaving: /healthz answers 503") && printed.contains("leaving: listeners closed"),
        "{printed}"
    );
}

#[test]
fn it_stops_as_soon_as_nobody_is_there_and_at_once_when_asked_twice() {
    let _turn = beside_others();
    let idle = relay("drain = \"1h\"\ndrain_delay = \"0s\"\n");
    idle.signal(Signal::SIGTERM);
    let (status, _, printed) = idle.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
    let relay = relay("drain = \"1h\"\ndrain_delay = \"1h\"\n");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    relay.signal(Signal::SIGTERM);
    wait_until("it leaves", DEADLINE, || get(http_address(&relay), "/healthz").0 == 503);
    // Any sooner, it would count as the echo of the first.
    wait_until("it has ended", DEADLINE, || {
        relay.signal(Signal::SIGTERM);
        client.packet_or_end().is_none()
    });
    let (status, _, printed) = relay.finish(DEADLINE);
    assert_eq!(status.code(), Some(0), "{printed}");
}

#[test]
fn a_configuration_that_changes_is_read_without_a_signal() {
    let _turn = beside_others();
    let directory = scratch_file("mounted");
    let stream = |name: &str| format!("[[stream]]\nname = \"{name}\"\nsource = \"test\"\n");
    // As Kubernetes mounts a ConfigMap: links to a directory that is replaced as a whole.
    let publish = |version: &str, text: &str| {
        std::fs::create_dir_all(directory.join(version)).unwrap();
        let text = format!("listen = \"127.0.0.1:0\"\nreload_on_change = true\n{text}");
        std::fs::write(directory.join(version).join("rtsprelay.toml"), text).unwrap();
        std::os::unix::fs::symlink(version, directory.join("..data_tmp")).unwrap();
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    publish("..1", &stream("one"));
    let path = directory.join("rtsprelay.toml");
    std::os::unix::fs::symlink("..data/rtsprelay.toml", &path).unwrap();
    let relay = Relay::start(command(Uring::AsAsked, &["run", "--config", path.to_str().unwrap()])).serving("/one");
    let mut watching = Client::connect(relay.address());
    watching.play_everything(&relay.url("/one"));
    publish("..2", &(stream("one") + &stream("two")));
    let describe = |path: &str| Client::connect(relay.address()).describe(&relay.url(path)).status;
    wait_until("the new stream is served", DEADLINE, || describe("/two") == 200);
    // An invalid file changes nothing, and is logged once.
    publish("..3", &stream("one").replace("name", "nam"));
    wait_until("it is reported", DEADLINE, || relay.printed().contains("did you mean stream.name"));
    assert_eq!(describe("/two"), 200);
    publish("..4", &stream("one"));
    wait_until("what was removed is gone", DEADLINE, || describe("/two") == 404);
    assert_eq!(relay.printed().matches("did you mean stream.name").count(), 1);
    watching.frame_on(0);
    std::fs::remove_dir_all(directory).unwrap();
}
