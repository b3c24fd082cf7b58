//! SIGHUP: new settings apply, unchanged streams continue untouched, and an invalid file changes nothing.

use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::harness::machine::beside_others;
use crate::harness::publisher::Publisher;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::{Client, Incoming};
use crate::harness::{DEADLINE, scratch_file, wait_until};

struct Configured {
    relay: Relay,
    path: PathBuf,
}

const HEAD: &str = "listen = [\"127.0.0.1:0\"]\n\n";

fn stream(name: &str) -> String {
    format!("[[stream]]\nname = \"{name}\"\nsource = \"test\"\n\n")
}

impl Configured {
    fn start(streams: &str) -> Configured {
        let path = scratch_file("reload.toml");
        std::fs::write(&path, format!("{HEAD}{streams}")).unwrap();
        let relay = Relay::start(command(Uring::AsAsked, &["run", "--config", path.to_str().unwrap()]));
        Configured { relay, path }
    }

    /// Rewrites the file, requests a reload, and waits until the log contains `said` once more than before.
    fn reload(&self, text: &str, said: &str) {
        let before = self.relay.printed().matches(said).count();
        std::fs::write(&self.path, format!("{HEAD}{text}")).unwrap();
        self.relay.signal(Signal::SIGHUP);
        wait_until(&format!("the relay says {said:?}"), DEADLINE, || {
            self.relay.printed().matches(said).count() > before
        });
    }

    fn describe(&self, path: &str) -> u16 {
        Client::connect(self.relay.address()).describe(&self.relay.url(path)).status
    }

    fn wait_serving(&self, path: &str) {
        wait_until(&format!("{path} is served"), DEADLINE, || self.describe(path) == 200);
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // A scratch file; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads `frames` frames, and fails if a packet is missing between them.
fn unbroken(client: &mut Client, last: &mut Option<u16>, frames: usize) {
    for _ in 0..frames {
        for packet in client.frame_on(0) {
            if let Some(last) = *last {
                assert_eq!(packet.seq(), last.wrapping_add(1), "a packet is missing");
            }
            *last = Some(packet.seq());
        }
    }
}

/// A relay with the stream `one`, and a client that has received this many frames of it.
fn watched(frames: usize) -> (Configured, Client, Option<u16>) {
    let relay = Configured::start(&stream("one"));
    relay.wait_serving("/one");
    let mut watching = Client::connect(relay.relay.address());
    watching.play_everything(&relay.relay.url("/one"));
    let mut last = None;
    unbroken(&mut watching, &mut last, frames);
    (relay, watching, last)
}

#[test]
fn streams_come_and_go_and_others_notice_nothing() {
    let _turn = beside_others();
    let (relay, mut watching, mut last) = watched(10);

    relay.reload(&(stream("one") + &stream("two")), "configuration reloaded");
    relay.wait_serving("/two");
    let added = format!("added stream=two url={}\n", relay.relay.url("/two"));
    assert!(relay.relay.printed().contains(&added), "{}", relay.relay.printed());
    unbroken(&mut watching, &mut last, 10);
    let mut other = Client::connect(relay.relay.address());
    other.play_everything(&relay.relay.url("/two"));
    other.frame_on(0);

    // The second stream is removed, a third added; the second's client is disconnected, the first's is not.
    relay.reload(&(stream("three") + &stream("one")), "configuration reloaded");
    assert!(other.is_closed());
    assert_eq!(relay.describe("/two"), 404);
    relay.wait_serving("/three");
    unbroken(&mut watching, &mut last, 10);

    // It may come back, as a new stream.
    relay.reload(&(stream("one") + &stream("two")), "configuration reloaded");
    relay.wait_serving("/two");
    unbroken(&mut watching, &mut last, 10);
    assert!(!relay.relay.printed().contains("panicked"), "{}", relay.relay.printed());
}

#[test]
fn a_bad_file_is_refused_as_a_whole() {
    let _turn = beside_others();
    let relay = Configured::start(&stream("one"));
    relay.wait_serving("/one");
    let bad = stream("one") + &stream("two") + "[[stream]]\nname = \"x\"\nsorce = \"test\"\n";
    relay.reload(&bad, "the relay keeps the current one");
    let printed = relay.relay.printed();
    assert!(printed.contains("sorce") && printed.contains("did you mean stream.source"), "{printed}");
    assert_eq!((relay.describe("/two"), relay.describe("/one")), (404, 200));
}

#[test]
fn a_change_of_the_start_or_of_the_limits_leaves_clients_alone() {
    let _turn = beside_others();
    let (relay, mut watching, mut last) = watched(5);
    let limits = "[queue]\nage = \"3s\"\n\n[limits]\nclients = 100\nsession_timeout = \"7s\"\n\n";
    relay.reload(
        &format!("{limits}[[stream]]\nname = \"one\"\nsource = \"test\"\nstart = \"live\"\n"),
        "configuration reloaded added=0 removed=0 changed=1",
    );
    unbroken(&mut watching, &mut last, 5);
    // New sessions get the new session timeout.
    let mut next = Client::connect(relay.relay.address());
    let (_, answer) = next.play_everything(&relay.relay.url("/one"));
    assert!(answer.header("Session").is_some_and(|session| session.contains("timeout=7")), "{answer:?}");
}

#[test]
fn what_cannot_change_is_told() {
    let _turn = beside_others();
    let relay = Configured::start(&stream("one"));
    relay.reload(&format!("workers = 7\n{}", stream("one")), "workers changed");
    // A change of a multicast group needs a restart; everything else applies.
    let group = stream("one") + "multicast = \"239.1.2.3:5000\"\n\n" + &stream("two");
    relay.reload(&group, "configuration reloaded added=1 removed=0 changed=0");
    assert!(relay.relay.printed().contains("stream.multicast changed"), "{}", relay.relay.printed());
    relay.wait_serving("/two");
}

#[test]
fn who_is_ended_gets_its_goodbye_whatever_it_has_sent_meanwhile() {
    let _turn = beside_others();
    let relay = Configured::start(&(stream("one") + &stream("two")));
    relay.wait_serving("/one");
    let mut slow = Client::connect_narrow(relay.relay.address(), 4_096);
    slow.play_everything(&relay.relay.url("/one"));
    slow.wait_blocking();
    relay.reload(&stream("two"), "stopped playing");
    // Data that the relay does not read would make it reset the connection, and data on its way to here would be lost.
    let request = slow.compose("GET_PARAMETER", &relay.relay.url("/one"), &[("X", &"x".repeat(900))]);
    slow.send_raw(request.repeat(32).as_bytes());
    let mut goodbyes = 0;
    let end = Instant::now() + DEADLINE;
    while let Some(incoming) = slow.read(end).expect("the end of the connection, not its reset") {
        let Incoming::Packet(packet) = incoming else { continue };
        // An empty receiver report, SDES, and BYE (RFC 3550 section 6.1).
        let is_rtcp = packet.channel % 2 == 1 && packet.bytes[1] == 201;
        goodbyes += usize::from(is_rtcp && packet.bytes.windows(2).any(|word| word == [0x81, 203]));
    }
    assert!(goodbyes > 0, "the connection ended without a BYE");
}

#[test]
fn a_publisher_stays_when_takeover_alone_is_changed() {
    let _turn = beside_others();
    let published = |keys: &str| format!("[[stream]]\nname = \"live\"\nsource = \"publish\"\n{keys}\n");
    let relay = Configured::start(&published(""));
    let mut publisher = Publisher::start(relay.relay.address(), &relay.relay.url("/live"));
    relay.wait_serving("/live");
    relay.reload(&published("takeover = true\nsource_timeout = \"20s\""), "configuration reloaded");
    // It answers requests in its session.
    assert_eq!(publisher.client.request("GET_PARAMETER", &relay.relay.url("/live"), &[]).status, 200);
    // And the next one takes over from it.
    let _second = Publisher::start(relay.relay.address(), &relay.relay.url("/live"));
    assert!(publisher.client.is_closed());
    wait_until("the log says so", DEADLINE, || relay.relay.printed().contains("takes the stream over"));
    let printed = relay.relay.printed();
    assert!(!printed.contains("source changed"), "{printed}");
}
