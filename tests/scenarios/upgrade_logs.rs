//! The logs are copied to the new process while all runs on: only what is new goes in the freeze, and once for all shards.

use std::sync::Arc;

use crate::harness::machine::beside_others;
use crate::harness::{DEADLINE, wait_until};
use crate::upgrade::{Filming, Packets, Player, Upgraded, serving};

/// The value of a field in the last line that has it.
fn field(printed: &str, name: &str) -> u64 {
    let line = printed.lines().rfind(|line| line.contains(&format!(" {name}="))).unwrap_or_else(|| panic!("no {name}"));
    let value = line.split_once(&format!(" {name}=")).unwrap().1.split(' ').next().unwrap();
    value.parse().unwrap_or_else(|_| panic!("{line}"))
}

#[test]
fn little_of_a_large_log_is_left_for_the_freeze() {
    let _turn = beside_others();
    // Keyframes every 10 s, 40 Mbit/s.
    let camera = Filming::with(300, 400_000, 170_000);
    let relay = Upgraded::start(&format!(
        "http = \"127.0.0.1:0\"\nqueue.log_bytes = \"128MiB\"\nqueue.age = \"60s\"\nqueue.stall_timeout = \"60s\"\n\
         [[stream]]\nname = \"cam\"\nsource = \"{}\"\n",
        camera.camera.url()
    ));
    serving(&relay, "/cam");
    let packets = Arc::<Packets>::default();
    // On both shards.
    let players: Vec<Player> = (0..6).map(|_| Player::start(&relay, "/cam", &packets)).collect();
    // Some 20 MB.
    players.iter().for_each(|player| player.goes_on(15_000));
    for _ in 0..2 {
        relay.upgrade();
        players.iter().for_each(|player| player.goes_on(500));
        let printed = relay.relay.printed();
        let [copied, left, frozen] = ["copied_bytes", "frozen_bytes", "frozen_ms"].map(|name| field(&printed, name));
        println!("copied before: {copied} bytes, in the freeze: {left}; frozen for {frozen} ms");
        assert!(copied > 10 << 20, "{copied}");
        assert!(left < copied / 4, "{left} of {copied}");
    }
    let printed = relay.relay.printed();
    for part in ["start_ms", "copy_ms", "freeze_ms", "save_ms", "restore_ms"] {
        field(&printed, part);
    }
    let longest = players.into_iter().map(Player::end).max();
    println!("the longest time without a packet: {longest:?}");
    // The new process has them for its metrics.
    let mut metrics = String::new();
    wait_until("the metrics have the times", DEADLINE, || {
        metrics = crate::harness::http::get(crate::harness::http::http_address(&relay.relay), "/metrics").1;
        metrics.contains("rtsprelay_upgrade_seconds{part=\"restore\"}")
    });
    assert!(crate::harness::http::value(&metrics, "rtsprelay_upgrade_seconds{part=\"start\"}") > 0.0);
}
