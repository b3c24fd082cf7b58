//! Hundreds and hundreds of thousands of names: an edge in front of an origin with many streams, a client that requests names that do not
//! exist, and what remains of removed streams. `tests/soak --names` runs the full size.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{alone, beside_others};
use crate::harness::publisher::Publisher;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::vitals::{Memory, Vitals};
use crate::harness::{DEADLINE, wait_until};
use crate::names::{free_addresses, pattern, relay, relay_at, streams};

/// The numbers of everything.
struct Size {
    /// Names that the origin has.
    names: usize,
    /// Names that are played, and the number of players.
    played: usize,
    players: usize,
    /// Names that do not exist and are requested.
    crawled: usize,
    /// Names that are published and pulled, and then removed.
    gone: usize,
}

/// The usual run's, or with `RTSPRELAY_NAMES` (any value) the full ones.
fn size() -> Size {
    match std::env::var_os("RTSPRELAY_NAMES") {
        Some(_) => Size { names: 500, played: 100, players: 200, crawled: 100_000, gone: 20_000 },
        None => Size { names: 100, played: 20, players: 40, crawled: 3_200, gone: 600 },
    }
}

/// Configured streams that start when they are requested.
fn written(names: usize) -> String {
    let one = |number| format!("[[stream]]\nname = \"cam/{number}\"\nsource = \"test\"\non_demand = true\n");
    (0..names).map(one).collect()
}

/// An edge that pulls from the first of these that plays, and removes unused streams soon.
fn edge(origins: &[SocketAddr]) -> Relay {
    let sources: Vec<_> = origins.iter().map(|origin| format!("\"rtsp://{origin}/cam/{{name}}\"")).collect();
    relay(&pattern("edge/*", &format!("[{}]", sources.join(", ")), "on_demand_stop = \"300ms\""))
}

/// An address of this machine for the client with this number.
fn from(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 2, (number / 200) as u8, (number % 200 + 1) as u8).into()
}

/// What players have seen, and whether they should stop.
struct Seen {
    frames: Vec<AtomicU64>,
    over: AtomicBool,
}

impl Seen {
    fn new(players: usize) -> Seen {
        Seen { frames: (0..players).map(|_| AtomicU64::new(0)).collect(), over: AtomicBool::new(false) }
    }

    /// Plays until told to stop; panics if it is disconnected, or, if `whole`, when a packet is missing.
    fn play(&self, edge: &Relay, number: usize, name: usize, whole: bool) {
        let mut client = Client::connect_from(from(number), edge.address());
        client.play_everything(&edge.url(&format!("/edge/{name}")));
        let mut last = None;
        while !self.over.load(Ordering::Relaxed) {
            for packet in client.frame_on(0) {
                let follows = last.is_none_or(|last: u16| packet.seq() == last.wrapping_add(1));
                assert!(follows || !whole, "a packet is missing");
                last = Some(packet.seq());
            }
            self.frames[number].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until every player has seen some more frames.
    fn all_go_on(&self, when: &str) {
        let now = || self.frames.iter().map(|frames| frames.load(Ordering::Relaxed));
        let before: Vec<u64> = now().collect();
        wait_until(&format!("all play {when}"), DEADLINE, || {
            now().zip(&before).all(|(now, before)| now >= before + 10)
        });
    }
}

/// Ends the players, also if the scenario fails.
struct Ends<'a>(&'a Seen);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn metric(relay: &Relay, name: &str) -> usize {
    value(&get(http_address(relay), "/metrics").1, name) as usize
}

/// The streams that were pulled from it, once for each pull.
fn pulls(origin: &Relay) -> usize {
    metric(origin, "rtsprelay_all_clients_joined_total ")
}

#[test]
fn an_edge_pulls_each_of_many_names_once_and_loses_nobody_when_origins_die() {
    let _turn = alone();
    let size = size();
    let [first, second] = free_addresses();
    let origin = |at: SocketAddr| relay_at(&at.to_string(), &written(size.names));
    let running = origin(first);
    let edge = edge(&[first, second]);
    let seen = Seen::new(size.players);
    // The last one outlives the players, which would otherwise wait for a frame.
    let mut last = None;
    std::thread::scope(|scope| {
        let _ends = Ends(&seen);
        for number in 0..size.players {
            let (seen, edge) = (&seen, &edge);
            scope.spawn(move || seen.play(edge, number, number % size.played, false));
        }
        seen.all_go_on("from the first origin");
        assert_eq!((pulls(&running), streams(&edge).len()), (size.played, size.played));

        running.signal(Signal::SIGKILL);
        running.finish(DEADLINE);
        let running = origin(first);
        wait_until("all are pulled from it again", DEADLINE, || pulls(&running) >= size.played);
        seen.all_go_on("when it is back");
        assert_eq!(pulls(&running), size.played, "each was pulled once");

        let other = last.insert(origin(second));
        running.signal(Signal::SIGKILL);
        running.finish(DEADLINE);
        wait_until("all are pulled from the second", DEADLINE, || pulls(other) >= size.played);
        seen.all_go_on("from the second origin");
        assert_eq!(pulls(other), size.played, "each was pulled once");
    });
    // All of them existed until the end: none was created twice.
    let made = metric(&edge, "rtsprelay_streams_made_total ");
    assert_eq!((made, pulls(&edge)), (size.played, size.players));
    println!("{} players of {} names out of {} stayed", size.players, size.played, size.names);
}

#[test]
fn a_crawler_of_many_names_leaves_nothing_behind_and_players_feel_nothing() {
    const PLAYERS: usize = 4;
    const CRAWLERS: usize = 8;
    let _turn = alone();
    let size = size();
    let origin = relay(&written(10));
    let edge = edge(&[origin.address()]);
    let http = http_address(&edge);
    let seen = Seen::new(PLAYERS);
    std::thread::scope(|scope| {
        let _ends = Ends(&seen);
        for number in 0..PLAYERS {
            let (seen, edge) = (&seen, &edge);
            scope.spawn(move || seen.play(edge, number, number % 2, true));
        }
        seen.all_go_on("before");
        let crawl = |names: usize| {
            std::thread::scope(|scope| {
                for crawler in 0..CRAWLERS {
                    let edge = &edge;
                    scope.spawn(move || ask_for_nothing(edge, crawler, names / CRAWLERS));
                }
            });
            wait_until("nothing is left of them", DEADLINE, || streams(&edge).len() == 2);
        };
        let before = Vitals::of(&edge, http);
        let crawl_and_look = || {
            crawl(size.crawled / 10);
            before.come_back(&edge, http, DEADLINE);
            let told = (get(http, "/+streams").1, get(http, "/metrics").1.lines().count());
            (Memory::of(&edge).anonymous >> 10, told)
        };
        // One-time growth has happened after half of them.
        let (memory, told): (Vec<u64>, Vec<_>) = (0..10).map(|_| crawl_and_look()).unzip();
        println!("memory in the course of {} names, KiB: {memory:?}", size.crawled);
        let (half, whole) = (memory[4], memory[9]);
        assert!(whole < half + half / 10, "grown from {half} to {whole} KiB");
        assert_eq!(told[9], told[4], "the reports list no more streams");
        assert!(!get(http, "/metrics").1.contains("none"), "a label has the name of a missing stream");
        seen.all_go_on("afterwards");
        // The origin has not locked the edge out.
        Client::connect(edge.address()).describe(&edge.url("/edge/9")).expect(200);
    });
    let asked = metric(&origin, "rtsprelay_requests_failed_total ");
    assert!(asked >= size.crawled, "the origin was asked for them: {asked}");
}

/// Requests names that do not exist, from its own address. It changes connections, because a connection with many requests is slowed down.
fn ask_for_nothing(edge: &Relay, crawler: usize, names: usize) {
    const OF_ONE_CONNECTION: usize = 150;
    for begin in (0..names).step_by(OF_ONE_CONNECTION) {
        let mut client = Client::connect_from(from(1_000 + crawler), edge.address());
        for number in begin..names.min(begin + OF_ONE_CONNECTION) {
            let name = format!("none/{crawler}/{}/{number}", fastrand::u32(..));
            assert_eq!(client.describe(&edge.url(&format!("/edge/{name}"))).status, 404, "{name}");
        }
    }
}

#[test]
fn names_that_no_origin_plays_do_not_fill_the_log() {
    const ASKED: usize = 60;
    let _turn = beside_others();
    let [nobody] = free_addresses();
    let edge = relay(&pattern("edge/*", &format!("\"rtsp://{nobody}/{{name}}\""), "on_demand_start = \"500ms\""));
    std::thread::scope(|scope| {
        for number in 0..ASKED {
            let edge = &edge;
            scope.spawn(move || {
                let mut client = Client::connect_from(from(number), edge.address());
                client.describe(&edge.url(&format!("/edge/none/{number}"))).expect(503);
            });
        }
    });
    wait_until("nothing is left of them", DEADLINE, || streams(&edge).is_empty());
    assert_eq!(metric(&edge, "rtsprelay_streams_made_total "), ASKED);
    // Why, and only for some of them: five lines from each of two places within ten seconds.
    let printed = edge.printed();
    let lines = printed.lines().filter(|line| line.contains("edge/none")).count();
    assert!((1..=20).contains(&lines) && printed.contains("refused"), "{printed}");
}

#[test]
fn streams_that_have_been_and_gone_leave_memory_where_it_was() {
    let _turn = beside_others();
    let gone = size().gone;
    let live = pattern("live/*", "\"publish\"", "linger = \"0s\"");
    let relay = relay(&(live + &pattern("cam/*", "\"test\"", "on_demand_stop = \"0s\"")));
    let http = http_address(&relay);
    let before = Vitals::of(&relay, http);
    let come_and_go = || {
        for _ in 0..gone / 20 {
            let name = fastrand::u64(..);
            let url = relay.url(&format!("/live/{name}"));
            let mut publisher = Publisher::start(relay.address(), &url);
            publisher.client.request("TEARDOWN", &url, &[]).expect(200);
            Client::connect(relay.address()).describe(&relay.url(&format!("/cam/{name}"))).expect(200);
        }
        wait_until("all are gone", DEADLINE, || streams(&relay).is_empty());
        before.come_back(&relay, http, DEADLINE);
        Memory::of(&relay).anonymous >> 10
    };
    // One-time growth has happened after half of them.
    let memory: Vec<u64> = (0..10).map(|_| come_and_go()).collect();
    println!("memory in the course of {gone} streams that come and go, KiB: {memory:?}");
    // Besides, a table of what was there in the last minute may double (some 300 KiB): 2 KiB a stream in a short run, 50 bytes in a long one.
    assert!(memory[9] < memory[4] + memory[4] / 10 + 512, "grown: {memory:?}");
    let all = ["rtsprelay_streams_made_total ", "rtsprelay_streams_gone_total "].map(|name| metric(&relay, name));
    assert_eq!(all, [gone, gone], "totals go on");
    assert!(!get(http, "/metrics").1.contains("stream=\""), "metrics of a removed stream remain");
}
