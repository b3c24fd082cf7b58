//! SIGKILL during an upgrade. Of the relay that is upgraded, at each step before the commit: nothing goes on without it; after it, it ends by
//! itself, and nobody needs it. Of the new program, after the commit: a crash. (Before the commit: `upgrade`; a carrier: `upgrade_tls`.)

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::machine::beside_others;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, wait_until};
use crate::upgrade::{Packets, Player, STEPS, STREAMS, Upgraded, has_ended, serving};
use crate::upgrade_stop::upgrade_that_stops_at;

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("kill");
}

/// A process that is killed with the test.
struct Killed(i32);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

/// Waits until nobody holds the relay's port, so that a service manager can start the next relay there.
fn nobody_listens(relay: &Upgraded) {
    wait_until("nobody listens", DEADLINE, || {
        TcpStream::connect(relay.relay.address()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

/// Reads until nothing has come for `patience` (`false`) or the connection has ended (`true`).
fn read_out(client: &Client, patience: Duration) -> (usize, bool) {
    let mut stream = client.stream().try_clone().unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let (mut buffer, mut count) = (vec![0; 65_536], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (count, true),
            Ok(n) => count += n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (count, true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return (count, false),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn before_the_commit_the_new_program_ends_with_the_relay_and_sends_nothing() {
    let _turn = beside_others();
    for step in STEPS {
        let relay = Upgraded::start(STREAMS);
        serving(&relay, "/pattern");
        let mut client = Client::connect(relay.relay.address());
        client.play_everything(&relay.relay.url("/pattern"));
        client.frame_on(0);
        let (before, successor) = (relay.pid(), upgrade_that_stops_at(step, &relay));
        let _killed = Killed(successor);
        send(before, Signal::SIGKILL);
        wait_until("the relay has ended", DEADLINE, || has_ended(before));
        // What was on its way. From some step on the new program has the connection too, and it stays open.
        let (_, is_closed) = read_out(&client, Duration::from_millis(200));
        assert!(!has_ended(successor), "the new program has ended at {step}, although it is stopped");
        // There may be more parts to copy; it stops no more.
        std::fs::remove_file(&relay.step).unwrap();
        send(successor, Signal::SIGCONT);
        wait_until("the new program has ended", DEADLINE, || has_ended(successor));
        if !is_closed {
            assert_eq!(read_out(&client, DEADLINE), (0, true), "at {step}");
        }
        assert_eq!(relay.count(" took over from "), 0, "at {step}");
        nobody_listens(&relay);
    }
}

#[test]
fn after_the_commit_nobody_needs_the_relay_that_ran_before() {
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    let player = Player::start(&relay, "/pattern", &Arc::<Packets>::default());
    player.goes_on(50);
    let before = relay.pid();
    let successor = upgrade_that_stops_at("committed", &relay);
    let _killed = Killed(successor);
    // By itself; there is no TLS to carry.
    wait_until("the relay that ran before has ended", DEADLINE, || has_ended(before));
    std::fs::remove_file(&relay.step).unwrap();
    send(successor, Signal::SIGCONT);
    player.goes_on(50);
    // It can be upgraded like any other.
    relay.upgrade();
    player.goes_on(50);
    player.end();
}

#[test]
fn the_new_programs_end_after_the_commit_is_a_crash() {
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    let mut client = Client::connect(relay.relay.address());
    client.play_everything(&relay.relay.url("/pattern"));
    client.frame_on(0);
    let before = relay.pid();
    std::fs::write(&relay.step, "committed").unwrap();
    relay.ask();
    wait_until("the relay that ran before has ended", DEADLINE, || has_ended(before));
    assert!(read_out(&client, DEADLINE).1, "the connection is still open");
    nobody_listens(&relay);
    wait_until("the log says so", DEADLINE, || relay.count("handed over to the new program") == 1);
}
