//! A tree of relays behind HAProxy, each in its own network: one origin, three edges, players. Edges drain one after another and
//! return; one dies. `RTSPRELAY_TREE=600,50` (players, streams) is the size that `tests/soak --tree` measures.

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::http::get;
use crate::harness::machine::{alone, cannot_run, is_root};
use crate::harness::net::{Net, SERVER};
use crate::harness::program::Program;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::websocket::watch;
use crate::harness::{DEADLINE, scratch_file, wait_until};
use crate::tls::{Certificate, connection};

const ORIGIN: u8 = 0;
const EDGES: [u8; 3] = [1, 2, 3];
const PLAYERS: u8 = 4;

/// The size of the tree, and whether times are checked: only where nothing else needs the processor.
struct Size {
    players: usize,
    streams: usize,
    judged: bool,
}

fn size() -> Size {
    let given = std::env::var("RTSPRELAY_TREE").ok();
    let parsed = given
        .as_ref()
        .and_then(|text| text.split_once(','))
        .map(|(players, streams)| (players.parse().expect("players"), streams.parse().expect("streams")));
    let (players, streams) = parsed.unwrap_or((24, 3));
    Size { players, streams, judged: given.is_some() }
}

struct Tree {
    net: Net,
    /// The paths of the nodes' configurations.
    files: HashMap<u8, PathBuf>,
    relays: HashMap<u8, Relay>,
    /// The edges' certificate for TLS clients.
    certificate: Certificate,
    size: Size,
}

impl Tree {
    /// The origin and the edges run; HAProxy does not yet.
    fn new(size: Size) -> Tree {
        let certificate = Certificate::new();
        let mut tree = Tree { net: Net::new(5), files: HashMap::new(), relays: HashMap::new(), certificate, size };
        let streams = |source: &dyn Fn(usize) -> String| -> String {
            (0..tree.size.streams).map(|at| format!("[[stream]]\nname = \"s{at}\"\n{}\n", source(at))).collect()
        };
        let head = "listen = \"0.0.0.0:8554\"\nhttp = \"0.0.0.0:8580\"\nlimits.clients_per_address = 0\n";
        let origin = format!("{head}{}", streams(&|_| "source = \"test\"".into()));
        let pulled = |at: usize| format!("source = \"rtsp://{}:8554/s{at}\"\non_demand = true", Net::address(ORIGIN));
        // Twice the time that HAProxy needs to notice (`haproxy`), or longer.
        let edge = format!(
            "{head}listen_tls = \"0.0.0.0:8322\"\n{}proxy_protocol_from = [\"{SERVER}\"]\ndrain = \"1s\"\ndrain_delay = \"1s\"\n{}",
            tree.certificate.keys(),
            streams(&pulled)
        );
        for number in [ORIGIN].into_iter().chain(EDGES) {
            let path = scratch_file("tree.toml");
            std::fs::write(&path, if number == ORIGIN { &origin } else { &edge }).unwrap();
            tree.files.insert(number, path);
            tree.start(number);
        }
        tree
    }

    fn start(&mut self, number: u8) {
        let path = self.files[&number].to_str().unwrap();
        let relay = self.net.at_client(number, || Relay::start(command(Uring::AsAsked, &["run", "--config", path])));
        self.relays.insert(number, relay);
    }

    /// Fetches a page from a node, from HAProxy's network.
    fn page(&self, number: u8, path: &str) -> (u16, String) {
        get(SocketAddr::from((Net::address(number), 8580)), path)
    }

    /// Who plays what on a node, by address.
    fn clients(&self, number: u8) -> Vec<(IpAddr, String)> {
        let status: Value = serde_json::from_str(&self.page(number, "/status").1).expect("JSON");
        let clients = status["clients"].as_array().unwrap().iter();
        let address = |client: &Value| client["address"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip();
        clients.map(|client| (address(client), client["stream"].as_str().unwrap().to_owned())).collect()
    }

    /// The project's HAProxy configuration with this tree's addresses. It checks the edges five times as often, to shorten
    /// the scenario.
    fn haproxy(&self) -> Program {
        let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/haproxy.cfg");
        let text = std::fs::read_to_string(ours).unwrap();
        let mut text = text;
        // Fewer connections, for which the machine may not have enough descriptors.
        for (from, to) in [("10.0.0.1", "10.77.0.1"), ("inter 1s", "inter 200ms"), ("maxconn 20000", "maxconn 2000")] {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        let path = scratch_file("haproxy.cfg");
        std::fs::write(&path, text).unwrap();
        let mut haproxy = Command::new("haproxy");
        haproxy.args(["-db", "-f", path.to_str().unwrap()]);
        let mut haproxy = Program::start(haproxy);
        let first = "rtsp://h/s0";
        wait_until("HAProxy has found the edges", DEADLINE, || {
            assert!(haproxy.ended().is_none(), "{}", haproxy.stderr.text());
            let stream = std::net::TcpStream::connect((SERVER, 8554));
            stream.is_ok_and(|stream| Client::over(stream).is_served("DESCRIBE", first))
        });
        haproxy
    }

    /// RTSPS and a browser's stream also pass through HAProxy, on its other two ports, and the edges see the clients' addresses.
    fn assert_more_than_rtsp_passes(&self) {
        let theirs = (IpAddr::from(Net::address(PLAYERS)), "s0".to_owned());
        let have = || EDGES.iter().flat_map(|edge| self.clients(*edge)).collect::<Vec<_>>();
        let both = self.net.at_client(PLAYERS, || {
            let stream = std::net::TcpStream::connect((SERVER, 8322)).unwrap();
            let mut secured = Client::over(stream).by_tls(connection(&self.certificate.trusted()));
            secured.play_everything(&format!("rtsps://{SERVER}:8322/s0"));
            secured.frame_on(0);
            let mut browser = watch(SocketAddr::from((SERVER, 8080)), "/+live/s0");
            browser.fragment(0);
            (secured, browser)
        });
        wait_until("edges know both", DEADLINE, || have() == [theirs.clone(), theirs.clone()]);
        drop(both);
        wait_until("both are gone", DEADLINE, || have().is_empty());
    }

    /// No stream is pulled twice by one edge, nor by an edge without players of it.
    fn assert_pulled_once(&self) {
        let pulls = self.clients(ORIGIN);
        for (at, pull) in pulls.iter().enumerate() {
            assert!(!pulls[..at].contains(pull), "{pull:?} is pulled twice: {pulls:?}");
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for path in self.files.values() {
            // A scratch file; cleaning the build directory removes it if it stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What happened to all players.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    playing: AtomicUsize,
    /// Connections that ended during playback.
    ended: AtomicUsize,
    /// Connections on which nothing was served.
    refused: AtomicUsize,
    /// Time without media for each that ended.
    outages: Mutex<Vec<Duration>>,
}

impl Seen {
    fn count(&self, what: &AtomicUsize) -> usize {
        let _ = self;
        what.load(Ordering::SeqCst)
    }

    fn take_outages(&self) -> Vec<Duration> {
        let mut outages = std::mem::take(&mut *self.outages.lock().unwrap_or_else(PoisonError::into_inner));
        outages.sort();
        outages
    }
}

/// Plays through HAProxy until told to stop, and reconnects at once when it is disconnected.
fn play(url: &str, seen: &Seen) {
    let mut last: Option<Instant> = None;
    let mut buffer = vec![0; 64 * 1024];
    while !seen.stop.load(Ordering::SeqCst) {
        let mut client = Client::connect(SocketAddr::from((SERVER, 8554)));
        if !client.is_served("DESCRIBE", url) {
            seen.refused.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        client.play_everything(url);
        client.packet_on(0);
        if let Some(last) = last {
            seen.outages.lock().unwrap_or_else(PoisonError::into_inner).push(last.elapsed());
        }
        seen.playing.fetch_add(1, Ordering::SeqCst);
        let mut stream = client.stream().try_clone().unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while !seen.stop.load(Ordering::SeqCst) {
            match stream.read(&mut buffer) {
                Ok(1..) => last = Some(Instant::now()),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                _ => {
                    seen.ended.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        seen.playing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The log lines of an edge about its clients since it stopped accepting.
fn plays_after_closing(printed: &str) -> usize {
    let (_, after) = printed.split_once("leaving: listeners closed").expect("it says when it closes");
    after.matches(" started playing stream=").count()
}

#[test]
fn edges_leave_and_die_and_players_go_on_at_the_others() {
    if !is_root() || Command::new("haproxy").arg("-v").output().is_err() {
        return cannot_run("network namespaces need root, and the balancer haproxy");
    }
    let _turn = alone();
    let mut tree = Tree::new(size());
    let seen = Seen::default();
    let (players, streams) = (tree.size.players, tree.size.streams);
    tree.net.enter_server();
    let _haproxy = tree.haproxy();
    tree.assert_more_than_rtsp_passes();
    std::thread::scope(|scope| {
        for player in 0..players {
            let (seen, net) = (&seen, tree.net.name_of(PLAYERS));
            scope.spawn(move || {
                crate::harness::net::enter(&net);
                play(&format!("rtsp://{SERVER}:8554/s{}", player % streams), seen);
            });
        }
        // Ends the players, also if the scenario fails.
        let _ended = EndsPlayers(&seen);
        let all_play = || seen.count(&seen.playing) == players;
        wait_until("all play", DEADLINE, all_play);
        tree.assert_pulled_once();
        let at_edges: Vec<usize> = EDGES.iter().map(|edge| tree.clients(*edge).len()).collect();
        assert_eq!(at_edges.iter().sum::<usize>(), players);
        assert!(at_edges.iter().all(|count| count.abs_diff(players / 3) <= players / 6), "{at_edges:?}");
        // They are known by their own address.
        let theirs = IpAddr::from(Net::address(PLAYERS));
        assert!(tree.clients(EDGES[0]).iter().all(|(address, _)| *address == theirs));

        for edge in EDGES {
            let (had, ended) = (tree.clients(edge).len(), seen.count(&seen.ended));
            let leaving = tree.relays.remove(&edge).unwrap();
            leaving.signal(Signal::SIGTERM);
            let (status, _, printed) = leaving.finish(DEADLINE);
            assert_eq!(status.code(), Some(0), "{printed}");
            wait_until("all play elsewhere", DEADLINE, all_play);
            assert_eq!(plays_after_closing(&printed), 0, "{printed}");
            let sent_away = seen.count(&seen.ended) - ended;
            assert_eq!(sent_away, had, "each of its clients was disconnected once, and no other");
            assert_eq!(printed.matches("reason=\"drained\"").count(), had, "{printed}");
            tree.start(edge);
            wait_until("the edge is back", DEADLINE, || tree.page(edge, "/healthz").0 == 200);
            tree.assert_pulled_once();
        }
        let outages = seen.take_outages();
        tell("an edge leaves", &outages);
        if tree.size.judged {
            assert!(outages.last() < Some(&Duration::from_secs(1)), "{outages:?}");
        }
        assert_eq!(seen.count(&seen.refused), 0, "HAProxy sent a player to an edge that does not serve");

        // One dies. HAProxy sends new connections to another at once, because the address answers that nothing listens.
        let edge = EDGES.into_iter().max_by_key(|edge| tree.clients(*edge).len()).unwrap();
        let (had, ended) = (tree.clients(edge).len(), seen.count(&seen.ended));
        assert!(had > 0);
        let dies = tree.relays.remove(&edge).unwrap();
        dies.signal(Signal::SIGKILL);
        dies.finish(DEADLINE);
        wait_until("its players have noticed", DEADLINE, || seen.count(&seen.ended) >= ended + had);
        wait_until("all play elsewhere", DEADLINE, all_play);
        assert_eq!(seen.count(&seen.ended), ended + had);
        let outages = seen.take_outages();
        tell("an edge dies", &outages);
        if tree.size.judged {
            assert!(outages.last() < Some(&Duration::from_secs(2)), "{outages:?}");
        }
        tree.assert_pulled_once();
    });
}

struct EndsPlayers<'a>(&'a Seen);

impl Drop for EndsPlayers<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

fn tell(what: &str, outages: &[Duration]) {
    let at = |part: f64| outages[((outages.len() - 1) as f64 * part) as usize];
    println!(
        "{what}: {} players were without media for {:?} (median), {:?} (p99), {:?} at most",
        outages.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
