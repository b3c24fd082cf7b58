//! Thousands of clients that connect, receive a frame, and leave.

use super::QUIET_MAX;
use crate::harness::http::{get, http_address, sum};
use crate::harness::machine::beside_others;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::vitals::{Memory, Vitals};

/// Joins in each half of the test.
const JOINS: usize = 1_000;

/// Clients at a time.
const AT_A_TIME: usize = 8;

fn join_and_leave(relay: &Relay) {
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                for number in 0..JOINS / AT_A_TIME {
                    let mut client = Client::connect(relay.address());
                    client.play_everything(&relay.url("/"));
                    // The cached picture, or its first packet.
                    client.packet_on(0);
                    if number % 2 == 0 {
                        client.request("TEARDOWN", &relay.url("/"), &[]).expect(200);
                    }
                }
            });
        }
    });
}

#[test]
fn thousands_of_joins_leave_nothing_behind() {
    let _turn = beside_others();
    let relay = Relay::start(command(Uring::AsAsked, &["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]));
    let relay = relay.serving("/");
    let http = http_address(&relay);
    join_and_leave_once(&relay);
    let before = Vitals::of(&relay, http);
    join_and_leave(&relay);
    before.come_back(&relay, http, QUIET_MAX);
    let half = Memory::of(&relay).anonymous;
    join_and_leave(&relay);
    before.come_back(&relay, http, QUIET_MAX);
    let whole = Memory::of(&relay).anonymous;
    let joined = sum(&get(http, "/metrics").1, "rtsprelay_clients_joined_total");
    println!("memory after half of {joined} joins {} KiB, after all {} KiB", half >> 10, whole >> 10);
    assert!(joined >= (2 * JOINS) as f64, "{joined}");
    // The pattern's log and the allocator vary by less.
    assert!(whole < half + 1_024 * JOINS as u64, "grown from {half} to {whole} bytes by {JOINS} joins");
}

/// What is allocated once, for the first client, is not a leak.
fn join_and_leave_once(relay: &Relay) {
    let mut client = relay.player("/");
    client.request("TEARDOWN", &relay.url("/"), &[]).expect(200);
}
