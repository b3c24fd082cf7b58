//! SIGTERM and SIGINT during an upgrade: before the commit it is given up, and the relay stops as always.

use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::harness::machine::beside_others;
use crate::harness::{DEADLINE, wait_until};
use crate::upgrade::{Packets, Player, REFUSED, STEPS, STREAMS, Upgraded, has_ended, serving};

/// The process that has been started to take over from this relay and has been stopped by a signal, if there is one.
fn stopped_successor(relay: &Upgraded) -> Option<i32> {
    let step = relay.step.to_str().unwrap().as_bytes().to_vec();
    let pids = std::fs::read_dir("/proc").unwrap();
    let mut pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_stopped = status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
        is_stopped && *pid != relay.relay.pid() && line.windows(step.len()).any(|part| part == step)
    })
}

/// Begins an upgrade whose new program stops at `step` as by SIGSTOP; returns that program when it has.
pub(crate) fn upgrade_that_stops_at(step: &str, relay: &Upgraded) -> i32 {
    std::fs::write(&relay.step, format!("{step} stops")).unwrap();
    relay.ask();
    let mut successor = None;
    wait_until(&format!("the new program stops at {step}"), DEADLINE, || {
        successor = stopped_successor(relay);
        successor.is_some()
    });
    successor.unwrap()
}

#[test]
fn a_stop_during_an_upgrade_is_not_kept_waiting_by_the_new_program() {
    let _turn = beside_others();
    for (step, signal) in STEPS.into_iter().zip([Signal::SIGTERM, Signal::SIGINT].into_iter().cycle()) {
        let relay = Upgraded::start(STREAMS);
        serving(&relay, "/pattern");
        let player = Player::start(&relay, "/pattern", &Arc::<Packets>::default());
        player.goes_on(50);
        let successor = upgrade_that_stops_at(step, &relay);
        let begun = Instant::now();
        relay.relay.signal(signal);
        wait_until("both have ended", DEADLINE, || has_ended(relay.pid()) && has_ended(successor));
        println!("at {step}: both have ended after {:?}", begun.elapsed());
        let printed = relay.relay.printed();
        assert_eq!(relay.count(REFUSED), 1, "{printed}");
        // Not because of a deadline.
        assert!(printed.contains("stop") && !printed.contains("took too long"), "{printed}");
        assert!(!printed.contains(" took over from "), "{printed}");
        // Its connection has been closed.
        assert!(player.thread.join().is_err());
    }
}

#[test]
fn a_program_that_hangs_is_killed_and_noticed_by_nobody() {
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    let packets = Arc::<Packets>::default();
    let player = Player::start(&relay, "/pattern", &packets);
    player.goes_on(50);
    let successor = upgrade_that_stops_at("frozen", &relay);
    wait_until("the relay goes on", DEADLINE, || relay.count(REFUSED) == 1);
    wait_until("the new program has ended", DEADLINE, || has_ended(successor));
    player.goes_on(50);
    std::fs::remove_file(&relay.step).unwrap();
    relay.upgrade();
    player.goes_on(50);
    player.end();
}
