//! Zero-copy sends deliver the same bytes, and the counters match what the kernel reports.

use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, h264, wait_until};

/// The newest value of a counter in the relay's reports.
fn counter(printed: &str, name: &str) -> u64 {
    let words = printed.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    words.filter_map(|value| value.parse().ok()).next_back().unwrap_or(0)
}

#[test]
fn forced_on_over_loopback_all_of_it_arrives_and_counts_as_copied() {
    let _turn = beside_others();
    if std::env::var_os("RTSPRELAY_TEST_IO").is_some() {
        eprintln!("zero copy needs io_uring");
        return;
    }
    let relay = Relay::configured(
        "listen = [\"127.0.0.1:0\"]\nzero_copy = \"on\"\n\n[report]\nevery = \"100ms\"\nformat = \"logfmt\"\n\n\
         [[stream]]\nname = \"t\"\nsource = \"test\"\n",
    )
    .serving("/t");
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(relay.address())).collect();
    for client in &mut clients {
        client.play_everything(&relay.url("/t"));
        let mut packets = client.frame_on(0);
        assert!(h264::is_complete_keyframe(&packets));
        for _ in 0..20 {
            packets.extend(client.frame_on(0));
        }
        for pair in packets.windows(2) {
            assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1));
        }
    }
    wait_until("the report counts copied sends", DEADLINE, || {
        counter(&relay.printed(), "zero_copy_copied_total") > 100
    });
    assert_eq!(counter(&relay.printed(), "zero_copy_total"), 0, "loopback always copies");
    // A client that stops reading keeps pages lent; its end releases them, and affects nobody else.
    let mut standing = Client::connect_narrow(relay.address(), 8 * 1024);
    standing.play_everything(&relay.url("/t"));
    standing.wait_blocking();
    drop(standing);
    for client in &mut clients {
        client.queued.clear();
        client.frame_on(0);
    }
}
