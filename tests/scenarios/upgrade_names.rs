//! An upgrade with streams that are not in the configuration: created by name, and added while the relay runs.

use std::sync::Arc;

use crate::harness::machine::beside_others;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};
use crate::upgrade::{Packets, Player, Upgraded, ffmpeg, serving};

fn is_gone(relay: &Upgraded, name: &str, why: &str) -> bool {
    let said = format!(" gone stream={name} ");
    relay.relay.printed().lines().any(|line| line.contains(&said) && line.contains(why))
}

#[test]
fn streams_by_name_and_added_ones_go_on() {
    let _turn = beside_others();
    let state = scratch_file("added.toml");
    std::fs::write(&state, "[[stream]]\nname = \"yard\"\nsource = \"test\"\n").unwrap();
    let relay = Upgraded::start(&format!(
        "state = \"{}\"\nqueue.age = \"60s\"\nqueue.stall_timeout = \"60s\"\n\
         [[stream]]\nname = \"cam/*\"\nsource = \"test\"\non_demand_stop = \"300ms\"\n\
         [[stream]]\nname = \"live/*\"\nsource = \"publish\"\nlinger = \"300ms\"\n",
        state.display()
    ));
    serving(&relay, "/yard");
    // The next processes know the stream from the one before.
    std::fs::remove_file(&state).unwrap();
    let publisher = ffmpeg(&format!(
        "-v error -re -f lavfi -i testsrc2=size=320x240:rate=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25 \
         -pix_fmt yuv420p -f rtsp -rtsp_transport tcp {}",
        relay.relay.url("/live/x")
    ));
    serving(&relay, "/live/x");
    let paths = ["/cam/a", "/cam/b", "/live/x", "/yard"];
    let packets = paths.map(|_| Arc::<Packets>::default());
    let players: Vec<Player> =
        (0..12).map(|number| Player::start(&relay, paths[number % 4], &packets[number % 4])).collect();
    for _ in 0..2 {
        players.iter().for_each(|player| player.goes_on(50));
        relay.upgrade();
        players.iter().for_each(|player| player.goes_on(50));
    }
    // Another name, and one that there is, for somebody new.
    let late = ["/cam/c", "/live/x"].map(|path| Player::start(&relay, path, &Arc::default()));
    late.iter().for_each(|player| player.goes_on(50));
    assert_eq!((relay.count(" stopped playing "), relay.count(" publishes")), (0, 1));
    let longest = players.into_iter().chain(late).map(Player::end).max();
    println!("the longest time without a packet: {longest:?}");
    // They go like others.
    for name in ["cam/a", "cam/b", "cam/c"] {
        wait_until(&format!("{name} is gone"), DEADLINE, || is_gone(&relay, name, "unwanted"));
    }
    drop(publisher);
    wait_until("live/x is gone", DEADLINE, || is_gone(&relay, "live/x", "unpublished"));
    // And come again; the added one has stayed.
    for path in ["/cam/a", "/yard"] {
        Client::connect(relay.relay.address()).describe(&relay.relay.url(path)).expect(200);
    }
}
