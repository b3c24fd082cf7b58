//! Streams that are created and removed by name: published at any path, pulled by an edge, removed when unused.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::http::{get, http_address, value};
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::publisher::{Publisher, VIDEO};
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::{Answer, Client, Incoming};
use crate::harness::vitals::Vitals;
use crate::harness::{DEADLINE, wait_until};

/// A relay with these streams, two shards and HTTP.
pub(crate) fn relay(text: &str) -> Relay {
    relay_at("127.0.0.1:0", text)
}

pub(crate) fn relay_at(address: &str, text: &str) -> Relay {
    Relay::configured(&format!(
        "listen = [\"{address}\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n[report]\nevery = \"0s\"\n{text}"
    ))
}

pub(crate) fn pattern(name: &str, source: &str, keys: &str) -> String {
    format!("[[stream]]\nname = \"{name}\"\nsource = {source}\n{keys}\n")
}

/// An edge that pulls from these origins, with short timeouts.
fn edge(origins: &[SocketAddr], path: &str) -> Relay {
    let sources: Vec<_> = origins.iter().map(|origin| format!("\"rtsp://{origin}/{path}{{name}}\"")).collect();
    relay(&pattern("edge/*", &format!("[{}]", sources.join(", ")), "on_demand_stop = \"300ms\"\nlinger = \"1s\""))
}

fn describe(relay: &Relay, path: &str) -> u16 {
    Client::connect(relay.address()).describe(&relay.url(path)).status
}

/// The names and faults of the streams in `/status`.
pub(crate) fn streams(relay: &Relay) -> Vec<(String, Option<String>)> {
    let (_, text) = get(http_address(relay), "/status");
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let streams = status["streams"].as_array().expect("streams").iter();
    streams.map(|stream| (text(&stream["stream"]).expect("a name"), text(&stream["fault"]))).collect()
}

#[test]
fn any_name_is_published_without_a_file_beside_the_source() {
    let _turn = beside_others();
    let relay = Relay::of("test");
    let mut publisher = Publisher::start(relay.address(), &relay.url("/some/where"));
    let relay = relay.serving("/some/where").serving("/");
    assert!(relay.printed().contains("made stream=some/where"), "{}", relay.printed());
    // The root is the source's, whatever else is published.
    let root = Client::connect(relay.address()).describe(&relay.url("/"));
    assert!(root.body.contains("s=live"), "{root:?}");
    assert_eq!(publisher.client.request("TEARDOWN", &relay.url("/some/where"), &[]).status, 200);
}

#[test]
fn any_name_is_published_without_a_file_and_without_a_source() {
    let _turn = beside_others();
    let relay = Relay::start(command(Uring::AsAsked, &["run", "--listen", "127.0.0.1:0"]));
    let _publisher = ffmpeg(&relay.url("/whatever"));
    let relay = relay.serving("/whatever");
    relay.has_sent("/whatever", 5);
    // No stream is configured.
    assert_eq!(describe(&relay, "/"), 404);
}

#[test]
fn who_asks_first_waits_for_the_publisher() {
    let _turn = beside_others();
    let relay = relay(&pattern("live/*", "\"publish\"", "linger = \"500ms\""));
    let mut waiting = Client::connect(relay.address());
    let request = waiting.compose("DESCRIBE", &relay.url("/live/a"), &[("Accept", "application/sdp")]);
    waiting.send_raw(request.as_bytes());
    let mut publisher = Publisher::start(relay.address(), &relay.url("/live/a"));
    let answer = waiting.answer();
    assert!(answer.status == 200 && answer.body.contains("m=video"), "{answer:?}");
    // It remains for a while after its publisher left, for the next one; then it is removed.
    publisher.client.request("TEARDOWN", &relay.url("/live/a"), &[]).expect(200);
    let again = Publisher::start(relay.address(), &relay.url("/live/a"));
    assert_eq!(relay.printed().matches("made stream=live/a").count(), 1, "{}", relay.printed());
    drop(again);
    wait_until("the stream is gone", DEADLINE, || {
        relay.printed().contains("gone stream=live/a reason=\"unpublished\"")
    });
    wait_until("nothing is left of it", DEADLINE, || streams(&relay).is_empty());
}

#[test]
fn names_that_no_pattern_has_are_not_found_and_streams_are_bounded() {
    let _turn = beside_others();
    let relay = relay(&pattern("live/*", "\"publish\"", "streams_max = 2\non_demand_start = \"100ms\""));
    let publish = |name: &str| {
        let mut publisher = Publisher { client: Client::connect(relay.address()) };
        let status = publisher.announce(&relay.url(name), VIDEO).status;
        (publisher, status)
    };
    let publishers: Vec<_> = ["/live/a", "/live/b", "/live/c", "/else", "/live/"].map(publish).into();
    assert_eq!(publishers.iter().map(|(_, status)| *status).collect::<Vec<_>>(), [200, 200, 503, 404, 404]);
    assert_eq!((describe(&relay, "/live/z"), describe(&relay, "/else")), (404, 404));
}

#[test]
fn an_edge_pulls_each_name_once_and_lets_it_go() {
    let _turn = beside_others();
    let origin = relay(&pattern("cam/*", "\"test\"", ""));
    let edge = edge(&[origin.address()], "cam/");
    let play = |number: usize| {
        let mut client = Client::connect(edge.address());
        client.play_everything(&edge.url(&format!("/edge/{}", number % 10)));
        client.frame_on(0);
        client
    };
    // All at once: more names than may be looked up for one address at a time.
    let players: Vec<Client> = std::thread::scope(|scope| {
        let players: Vec<_> = (0..20).map(|number| scope.spawn(move || play(number))).collect();
        players.into_iter().map(|player| player.join().expect("a player")).collect()
    });
    assert_eq!(edge.printed().matches(" live stream=edge/").count(), 10, "{}", edge.printed());
    assert_eq!(origin.printed().matches(" started playing ").count(), 10, "{}", origin.printed());
    assert_eq!(streams(&edge).len(), 10);
    drop(players);
    wait_until("the edge has released them", DEADLINE, || streams(&edge).is_empty());
    assert_eq!(edge.printed().matches("reason=\"unwanted\"").count(), 10, "{}", edge.printed());
    let metrics = get(http_address(&edge), "/metrics").1;
    assert!(!metrics.contains("edge/3"), "{metrics}");
    assert!(value(&metrics, "rtsprelay_uptime_seconds") > 0.0);
}

#[test]
fn a_name_that_the_origin_does_not_have_is_not_found_and_leaves_nothing() {
    let _turn = beside_others();
    let origin = relay(&pattern("cam/*", "\"test\"", ""));
    let edge = edge(&[origin.address()], "");
    // A name that was not found is remembered for a second; on a busy machine the next request may come later.
    let asked = |name: &str| {
        let printed = origin.printed();
        printed.lines().filter(|line| line.contains("refused (404)") && line.contains(&format!("/{name}\""))).count()
    };
    let remembered = (0..20).any(|number| {
        let (name, began) = (format!("nothing{number}"), Instant::now());
        assert_eq!(describe(&edge, &format!("/edge/{name}")), 404);
        assert_eq!(describe(&edge, &format!("/edge/{name}")), 404);
        let at_once = began.elapsed() < Duration::from_secs(1);
        wait_until("the origin reports it", DEADLINE, || asked(&name) > 0);
        assert!(!at_once || asked(&name) == 1, "{}", origin.printed());
        at_once
    });
    assert!(remembered, "no two requests were made within a second");
    assert_eq!(describe(&edge, "/edge/cam/1"), 200);
    let mut crawler = Client::connect(edge.address());
    for number in 0..500 {
        let url = edge.url(&format!("/edge/none/{number}"));
        assert_eq!(crawler.describe(&url).status, 404, "{number}");
    }
    wait_until("nothing is left of them", DEADLINE, || !streams(&edge).iter().any(|(name, _)| name.contains("none")));
    assert_eq!(describe(&edge, "/edge/cam/2"), 200, "the origin has not shut the edge out");
}

#[test]
fn players_stay_while_the_origin_is_away_and_a_second_one_takes_over() {
    let _turn = beside_others();
    let streams = pattern("cam/*", "\"test\"", "");
    let first = relay(&streams);
    let second = relay(&streams);
    let edge = edge(&[first.address(), second.address()], "cam/");
    let mut players: Vec<Client> = (0..4)
        .map(|number| {
            let mut client = Client::connect(edge.address());
            client.play_everything(&edge.url(&format!("/edge/{number}")));
            client.frame_on(0);
            client
        })
        .collect();
    let address = first.address();
    first.signal(Signal::SIGKILL);
    first.finish(DEADLINE);
    for player in &mut players {
        for _ in 0..30 {
            player.frame_on(0);
        }
    }
    let served = second.printed().matches(" started playing ").count();
    assert!(served >= 4, "{}", second.printed());
    // The first one is back, and is used again.
    let first = relay_at(&address.to_string(), &streams);
    wait_until("the edge goes back", DEADLINE, || first.printed().matches(" started playing ").count() >= 4);
    for player in &mut players {
        for _ in 0..10 {
            player.frame_on(0);
        }
    }
}

/// Free ports, released just before they are used.
pub(crate) fn free_addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let listeners: [TcpListener; COUNT] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.each_ref().map(|listener| listener.local_addr().unwrap())
}

#[test]
fn a_ring_of_three_ends_on_its_first_round() {
    let _turn = beside_others();
    let addresses = free_addresses::<3>();
    let ring: Vec<_> = (0..3)
        .map(|at| {
            let next = addresses[(at + 1) % 3];
            let source = format!("\"rtsp://{next}/ring/{{name}}\"");
            relay_at(&addresses[at].to_string(), &pattern("ring/*", &source, "on_demand_start = \"20s\""))
        })
        .collect();
    let begun = std::time::Instant::now();
    let answer = Client::connect(ring[0].address()).describe(&ring[0].url("/ring/a"));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "it was not waited for");
    for relay in &ring {
        wait_until("the fault is named", DEADLINE, || relay.printed().contains("loop: "));
        let printed = relay.printed();
        let path = printed.split("loop: ").nth(1).unwrap().split(": ").next().unwrap();
        assert_eq!(path.split(", ").count(), 3, "{printed}");
        wait_until("nothing is left", DEADLINE, || streams(relay).is_empty());
    }
}

/// A relay of another kind: for each DESCRIBE it asks its origin for the same path and waits for the answer, even if the client
/// is gone. It does not forward header fields, and forwards only the lines of a description that it knows.
struct Foreign {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Foreign {
    fn of(origin: SocketAddr) -> Foreign {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        // It ends with the tests' process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                std::thread::spawn(move || {
                    let requests = BufReader::new(stream.try_clone().unwrap());
                    Foreign::serve(requests, stream, origin, &count);
                });
            }
        });
        Foreign { address, asked }
    }

    fn serve(requests: impl BufRead, mut answers: impl Write, origin: SocketAddr, count: &AtomicUsize) {
        let (mut path, mut cseq) = (None, String::new());
        for line in requests.lines().map_while(Result::ok) {
            if let Some(url) = line.strip_prefix("DESCRIBE rtsp://") {
                let url = url.split(' ').next().unwrap();
                path = url.find('/').map(|at| url[at..].to_owned());
            } else if line.starts_with("CSeq:") {
                cseq = line;
            } else if line.is_empty() {
                // OPTIONS, which the relay sends to cameras first, is answered at once.
                let Answer { status, body, .. } = match path.take() {
                    Some(path) => {
                        count.fetch_add(1, Ordering::SeqCst);
                        Foreign::describe(origin, &path)
                    }
                    None => Answer { status: 200, ..Answer::default() },
                };
                let known = ["a=control", "a=rtpmap", "a=fmtp", "a=range"];
                let passes = |line: &&str| !line.starts_with("a=") || known.iter().any(|known| line.starts_with(known));
                let body: String = body.lines().filter(passes).map(|line| format!("{line}\r\n")).collect();
                let head = format!("RTSP/1.0 {status} Whatever\r\n{cseq}\r\nContent-Type: application/sdp\r\n");
                let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
                if answers.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    }

    fn describe(origin: SocketAddr, path: &str) -> Answer {
        let mut client = Client::connect(origin);
        let url = format!("rtsp://{origin}{path}");
        let request = client.compose("DESCRIBE", &url, &[("Accept", "application/sdp")]);
        client.send_raw(request.as_bytes());
        match client.read(Instant::now() + DEADLINE) {
            Ok(Some(Incoming::Answer(answer))) => answer,
            _ => Answer { status: 503, ..Answer::default() },
        }
    }
}

#[test]
fn a_ring_through_a_relay_of_another_kind_ends_by_on_demand_start() {
    let _turn = beside_others();
    let [first, second, nobody] = free_addresses();
    let foreign = Foreign::of(first);
    // With a second origin the first one is given up after 4 s and asked again, so in the ring there is always a waiting request.
    let ring = |next: SocketAddr| {
        let sources = format!("[\"rtsp://{next}/ring/{{name}}\", \"rtsp://{nobody}/{{name}}\"]");
        pattern("ring/*", &sources, "on_demand_start = \"6s\"")
            + &pattern("cam/*", "\"test\"", "on_demand_stop = \"300ms\"")
    };
    let relays = [(first, second), (second, foreign.address)].map(|(at, next)| relay_at(&at.to_string(), &ring(next)));
    // It is a relay, and does not pass on what reveals a loop.
    let own = Client::connect(first).describe(&relays[0].url("/cam/1")).expect(200);
    let passed = Client::connect(foreign.address).describe(&format!("rtsp://{}/cam/1", foreign.address)).expect(200);
    assert!(own.body.contains("a=x-rtsprelay-path:") && passed.body.contains("a=rtpmap:"), "{own:?} {passed:?}");
    assert!(!passed.body.contains("x-rtsprelay"), "{passed:?}");
    for relay in &relays {
        wait_until("nobody wants it any more", DEADLINE, || streams(relay).is_empty());
    }
    let before = relays.each_ref().map(|relay| Vitals::of(relay, http_address(relay)));

    let answer = Client::connect(first).describe(&relays[0].url("/ring/a"));
    assert!(answer.status == 503 && answer.header("Retry-After").is_some(), "{answer:?}");
    assert!(foreign.asked.load(Ordering::SeqCst) > 1, "the request goes through the other relay, and around again");
    for (relay, before) in relays.iter().zip(before) {
        wait_until("nothing is left", DEADLINE, || streams(relay).is_empty());
        before.come_back(relay, http_address(relay), DEADLINE);
    }
    let why = "no origin has played it within on_demand_start: given up; see that one can be reached, and that relays do not pull";
    assert!(relays.iter().any(|relay| relay.printed().contains(why)), "{}", relays[0].printed());
    assert!(relays.iter().all(|relay| !relay.printed().contains("loop: ")), "{}", relays[0].printed());
}

#[test]
fn a_reload_leaves_streams_alone_that_still_match() {
    let _turn = beside_others();
    let origin = relay(&pattern("cam/*", "\"test\"", ""));
    let path = crate::harness::scratch_file("names.toml");
    let write = |patterns: &[&str], keys: &str| {
        let source = format!("\"rtsp://{}/cam/{{name}}\"", origin.address());
        let text: String = patterns.iter().map(|name| pattern(name, &source, keys)).collect();
        let written = if patterns.contains(&"b/*") { "[[stream]]\nname = \"front\"\nsource = \"test\"\n" } else { "" };
        let head = "listen = [\"127.0.0.1:0\"]\n[report]\nevents = true\nformat = \"json\"\n";
        std::fs::write(&path, format!("{head}{written}{text}")).unwrap();
    };
    write(&["a/*", "b/*"], "");
    let edge = Relay::start(command(Uring::AsAsked, &["run", "--config", path.to_str().unwrap()]));
    let mut players = ["/a/1", "/b/1"].map(|name| {
        let mut client = Client::connect(edge.address());
        client.play_everything(&edge.url(name));
        client.frame_on(0);
        client
    });
    // The first one matches another pattern, with the same source; the second one's pattern is gone.
    write(&["a*", "c/*"], "");
    edge.signal(Signal::SIGHUP);
    // {name} expands to another part of the name, so the source changes.
    wait_until("the reload", DEADLINE, || {
        edge.printed().contains("configuration reloaded added=0 removed=2 changed=1")
    });
    assert!(players[1].is_closed());
    for name in ["front", "b/1"] {
        let gone = format!("\"event\":\"gone\",\"reason\":\"removed\",\"stream\":\"{name}\"");
        wait_until("programs are notified", DEADLINE, || edge.printed().matches(&gone).count() == 1);
    }
    let pulls = || origin.printed().matches(" started playing stream=").count();
    wait_until("the first one is pulled from there", DEADLINE, || pulls() == 3);
    // Changes of the pattern that concern other streams, or timeouts, leave the playing stream alone.
    write(&["a*", "d/*"], "streams_max = 1\nlinger = \"7s\"\non_demand_start = \"3s\"");
    edge.signal(Signal::SIGHUP);
    wait_until("the reload", DEADLINE, || {
        edge.printed().contains("configuration reloaded added=0 removed=0 changed=1")
    });
    let mut last = None;
    for _ in 0..30 {
        for packet in players[0].frame_on(0) {
            assert!(last.is_none_or(|last: u16| packet.seq() == last.wrapping_add(1)), "a packet is missing");
            last = Some(packet.seq());
        }
    }
    assert_eq!(pulls(), 3, "it is pulled as it was");
    assert_eq!((describe(&edge, "/b/1"), describe(&edge, "/a/2")), (404, 503), "the patterns are the new ones");
    std::fs::remove_file(&path).unwrap();
}

fn ffmpeg(url: &str) -> Program {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=10", "-c:v", "libx264"]);
    command.args(["-preset", "ultrafast", "-tune", "zerolatency", "-g", "10", "-pix_fmt", "yuv420p"]);
    command.args(["-f", "rtsp", "-rtsp_transport", "tcp", url]);
    Program::start(command)
}

fn gstreamer(url: &str) -> Program {
    let mut command = Command::new("gst-launch-1.0");
    let pipeline = format!(
        "-q videotestsrc is-live=true ! video/x-raw,width=160,height=120,framerate=10/1 ! \
         x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! h264parse ! \
         rtspclientsink location={url} protocols=tcp"
    );
    command.args(pipeline.split_whitespace());
    Program::start(command)
}

#[test]
fn ffmpeg_and_gstreamer_publish_to_ten_names_and_readers_stay() {
    let _turn = beside_others();
    let relay = relay(&pattern("live/*", "\"publish\"", "on_demand_start = \"30s\""));
    let url = |number: usize| relay.url(&format!("/live/cam/{number}"));
    let start = |number: usize| if number.is_multiple_of(2) { ffmpeg(&url(number)) } else { gstreamer(&url(number)) };
    let mut publishers: Vec<_> = (0..10).map(start).collect();
    let mut readers: Vec<_> = (0..10)
        .map(|number| {
            let mut client = Client::connect(relay.address());
            client.play_everything(&url(number));
            client.frame_on(0);
            client
        })
        .collect();
    for number in [0, 1, 4, 7] {
        publishers[number].signal(Signal::SIGKILL);
        publishers[number] = start(number);
    }
    // The same session, across its publisher's death and the next one's first frames.
    for (number, reader) in readers.iter_mut().enumerate() {
        for _ in 0..if [0, 1, 4, 7].contains(&number) { 20 } else { 5 } {
            reader.frame_on(0);
        }
    }
    assert_eq!(relay.printed().matches(" made stream=live/cam/").count(), 10, "{}", relay.printed());
}
