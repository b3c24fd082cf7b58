//! SIGUSR2 with players over TLS: the process before stays as the carrier of their connections, and nobody notices.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio_rustls::rustls::ClientConfig;

use rtsprelay::limits::CARRIERS_MAX;

use crate::harness::http::{get, http_address, https_address, value};
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::relay::{Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::websocket::watch;
use crate::harness::{DEADLINE, wait_until};
use crate::tls::{Certificate, connection};
use crate::upgrade::{Filming, PATIENT, Packets, Player, REFUSED, STREAMS, Upgraded, has_ended, serving, with_camera};
use crate::upgrade_web::{Facts, follows};

/// What a carrier may have in memory, besides the code of a program for tests, which is not optimized and several times a release's.
const CARRIER_BYTES_MAX: u64 = 20_000_000;

/// A relay with TLS, and the players that it gets.
struct Secured {
    relay: Upgraded,
    trusted: Arc<ClientConfig>,
    _certificate: Certificate,
}

impl Secured {
    fn start(streams: &str) -> Secured {
        let certificate = Certificate::new();
        let relay = Upgraded::start(&format!(
            "listen_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nhttp_tls = \"127.0.0.1:0\"\n{}{PATIENT}{streams}",
            certificate.keys()
        ));
        Secured { relay, trusted: certificate.trusted(), _certificate: certificate }
    }

    fn connect(&self) -> Client {
        Client::connect(self.relay.relay.tls_address()).by_tls(connection(&self.trusted))
    }

    fn url(&self, path: &str) -> String {
        format!("rtsps://{}{path}", self.relay.relay.tls_address())
    }

    fn player(&self, path: &str, packets: &Arc<Packets>) -> Player {
        Player::of(self.connect(), self.url(path), packets)
    }

    /// A client that plays, and reads only when it is told to.
    fn client(&self, path: &str) -> Client {
        let mut client = self.connect();
        client.play_everything(&self.url(path));
        client.frame_on(0);
        client
    }

    /// Upgrades it; returns the process before, which carries on.
    fn upgrade(&self) -> i32 {
        let before = self.relay.pid();
        self.relay.ask_until(" took over from the relay that ran before");
        wait_until("another process serves", DEADLINE, || self.relay.pid() != before);
        before
    }

    /// Upgrades it twice, each time under another client; returns the clients, and the processes that carry them.
    fn two_carriers(&self) -> (Vec<Client>, Vec<i32>) {
        (0..2).map(|_| (self.client("/pattern"), self.upgrade())).unzip()
    }

    fn metric(&self, name: &str) -> u64 {
        value(&get(http_address(&self.relay.relay), "/metrics").1, &format!("rtsprelay_{name} ")) as u64
    }

    /// Waits until the relay knows so many carriers with so many connections.
    fn has_carriers(&self, processes: u64, connections: u64) {
        wait_until(&format!("{processes} processes carry {connections} connections"), DEADLINE, || {
            (self.metric("tls_carriers"), self.metric("tls_carrier_connections")) == (processes, connections)
        });
    }
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("kill");
}

fn ended(pid: i32) {
    wait_until(&format!("process {pid} has ended"), DEADLINE, || has_ended(pid));
}

/// A process's resident memory in bytes without its own code (proc(5), `/proc/pid/smaps`), and how many descriptors it has.
fn held(pid: i32) -> (u64, usize) {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let (mut resident, mut is_code) = (0, false);
    for line in std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        if let Some(kb) = line.strip_prefix("Rss:").and_then(|rest| rest.trim().strip_suffix(" kB")) {
            resident += if is_code { 0 } else { kb.parse::<u64>().unwrap() * 1_024 };
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            is_code = line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (resident, descriptors)
}

/// Whether a process has a listening TCP socket.
fn listens(pid: i32) -> bool {
    const LISTEN: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = fields.filter(|fields| fields.get(3) == Some(&LISTEN));
    let listening: HashSet<String> = listening.map(|fields| format!("socket:[{}]", fields[9])).collect();
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(Result::ok);
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|to| listening.contains(to.to_str().unwrap()))
}

/// Waits until a client's TCP connection has ended, whatever it still gets before.
fn is_cut_off(client: &Client) {
    let mut stream = client.stream().try_clone().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(1..) => {}
            Ok(0) => return,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection has not ended: {error}"),
        }
    }
}

#[test]
fn players_by_tls_do_not_notice_two_upgrades_in_a_row() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Secured::start(&with_camera(&camera));
    let paths = ["/cam", "/pattern"];
    let packets = paths.map(|_| Arc::<Packets>::default());
    paths.iter().for_each(|path| serving(&relay.relay, path));
    let secured = |number: usize| relay.player(paths[number % 2], &packets[number % 2]);
    let first: Vec<Player> = (0..10).map(secured).collect();
    let plain = Player::start(&relay.relay, "/cam", &packets[0]);
    let others = || first.iter().chain([&plain]);
    others().for_each(|player| player.goes_on(50));

    let carrier = relay.upgrade();
    others().for_each(|player| player.goes_on(50));
    relay.has_carriers(1, 10);
    let (resident, descriptors) = held(carrier);
    println!("a carrier of 10 connections: {resident} bytes, {descriptors} descriptors");
    assert!(resident < CARRIER_BYTES_MAX, "{resident} bytes are resident");
    // For each client its connection, of which the shard had a handle too, and one end of the pair.
    assert!(descriptors < 10 * 2 + 30 && !listens(carrier) && listens(relay.relay.pid()), "{descriptors}");

    let second: Vec<Player> = (0..4).map(secured).collect();
    second.iter().for_each(|player| player.goes_on(50));
    let next = relay.upgrade();
    others().chain(&second).for_each(|player| player.goes_on(50));
    relay.has_carriers(2, 14);
    assert_eq!(relay.relay.count(" stopped playing "), 0);

    // Each ends with its last client, and nothing is left of either.
    let longest = first.into_iter().map(Player::end).max();
    ended(carrier);
    relay.has_carriers(1, 4);
    second.iter().for_each(|player| player.goes_on(50));
    let longest = second.into_iter().map(Player::end).max().max(longest);
    ended(next);
    relay.has_carriers(0, 0);
    plain.goes_on(50);
    println!("the longest time without a packet: {:?}", longest.max(Some(plain.end())));
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
    let status: Value = serde_json::from_str(&get(http_address(&relay.relay.relay), "/status").1).unwrap();
    assert_eq!(status["tls_carriers"]["processes"], 0, "{status}");
}

#[test]
fn a_player_by_tls_that_does_not_read_misses_no_byte() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Secured::start(&with_camera(&camera));
    serving(&relay.relay, "/cam");
    let client = Client::connect_narrow(relay.relay.relay.tls_address(), 4096);
    let mut client = client.by_tls(connection(&relay.trusted));
    client.play_everything(&relay.url("/cam"));
    client.wait_blocking();
    for _ in 0..2 {
        relay.upgrade();
    }
    let mut last = None;
    for packet in (0..120).flat_map(|_| client.frame_on(0)) {
        if let Some(last) = last.replace(packet.seq()) {
            assert_eq!(packet.seq(), last.wrapping_add(1));
        }
    }
}

#[test]
fn an_abandoned_upgrade_is_not_noticed_by_tls_either() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    let packets = Arc::<Packets>::default();
    serving(&relay.relay, "/pattern");
    let earlier = relay.player("/pattern", &packets);
    earlier.goes_on(50);
    let carrier = relay.upgrade();
    // One that is carried here, and one that another process carries.
    let players = [earlier, relay.player("/pattern", &packets)];
    let pid = relay.relay.pid();
    for step in ["ready", "told", "frozen", "restored"] {
        std::fs::write(&relay.relay.step, step).unwrap();
        relay.relay.ask_until(REFUSED);
        assert_eq!(relay.relay.pid(), pid);
        players.iter().for_each(|player| player.goes_on(50));
    }
    std::fs::remove_file(&relay.relay.step).unwrap();
    relay.has_carriers(1, 1);
    // And then one that is not abandoned.
    relay.upgrade();
    players.iter().for_each(|player| player.goes_on(50));
    relay.has_carriers(2, 2);
    for player in players {
        player.end();
    }
    ended(carrier);
    ended(pid);
}

#[test]
fn the_fifth_carrier_is_one_too_many_and_the_oldest_ends() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    let packets = Arc::<Packets>::default();
    serving(&relay.relay, "/pattern");
    let mut oldest = relay.client("/pattern");
    let watching = std::thread::spawn(move || while oldest.packet_or_end().is_some() {});
    let first = relay.upgrade();
    let mut players = Vec::new();
    for number in 1..CARRIERS_MAX {
        players.push(relay.player("/pattern", &packets));
        players.iter().for_each(|player| player.goes_on(20));
        relay.upgrade();
        relay.has_carriers(number as u64 + 1, number as u64 + 1);
    }
    assert!(!has_ended(first));
    players.push(relay.player("/pattern", &packets));
    players.iter().for_each(|player| player.goes_on(20));
    let last = relay.upgrade();
    // To the end of a frame, and with TLS's close_notify: without that the end would be an error.
    watching.join().expect("an end like that of a relay that leaves");
    ended(first);
    relay.has_carriers(CARRIERS_MAX as u64, CARRIERS_MAX as u64);
    players.iter().for_each(|player| player.goes_on(50));
    let said = "the clients of the oldest are sent away";
    assert_eq!((relay.relay.count(said), has_ended(last)), (1, false));
    for player in players {
        player.end();
    }
    ended(last);
}

#[test]
fn a_stop_ends_all_processes() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    serving(&relay.relay, "/pattern");
    let (mut clients, carriers) = relay.two_carriers();
    clients.push(relay.client("/pattern"));
    relay.has_carriers(2, 2);
    // The service manager signals all of them, in any order. They end with the one that serves, not before.
    for carrier in &carriers {
        send(*carrier, Signal::SIGTERM);
    }
    let said = "ends with the relay that serves them";
    wait_until("the carriers have heard it", DEADLINE, || relay.relay.count(said) == 2);
    clients.iter_mut().for_each(|client| assert!(!client.frame_on(0).is_empty()));
    let serves = relay.relay.pid();
    send(serves, Signal::SIGTERM);
    // As if this was the only process.
    for client in &mut clients {
        while client.packet_or_end().is_some() {}
    }
    carriers.iter().chain([&serves]).for_each(|pid| ended(*pid));
}

#[test]
fn the_carriers_end_when_the_relay_is_killed() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    serving(&relay.relay, "/pattern");
    let (clients, carriers) = relay.two_carriers();
    relay.has_carriers(2, 2);
    let serves = relay.relay.pid();
    send(serves, Signal::SIGKILL);
    clients.iter().for_each(is_cut_off);
    carriers.iter().chain([&serves]).for_each(|pid| ended(*pid));
}

#[test]
fn a_carrier_that_is_killed_takes_only_its_own_clients_with_it() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    serving(&relay.relay, "/pattern");
    let packets = Arc::<Packets>::default();
    let (mut clients, carriers) = relay.two_carriers();
    let others = [relay.player("/pattern", &packets), Player::start(&relay.relay, "/pattern", &packets)];
    relay.has_carriers(2, 2);
    send(carriers[0], Signal::SIGKILL);
    is_cut_off(&clients[0]);
    relay.has_carriers(1, 1);
    others.iter().for_each(|player| player.goes_on(50));
    clients[1].frame_on(0);
    for player in others {
        player.end();
    }
}

#[test]
fn a_carrier_is_no_relay() {
    let _turn = beside_others();
    let relay = Secured::start(STREAMS);
    serving(&relay.relay, "/pattern");
    let packets = Arc::<Packets>::default();
    let player = relay.player("/pattern", &packets);
    let upgrade = |pid: i32| Program::start(command(Uring::Unused, &["upgrade", "--pid", &pid.to_string()]));
    let carrier = relay.relay.pid();
    let done = upgrade(carrier).finish(DEADLINE).expect_silent_success();
    let said = format!("; 1 of them use TLS, and process {carrier} stays to carry their bytes until they end");
    assert!(done.stdout.contains(&said), "{done:?}");
    relay.has_carriers(1, 1);
    assert_eq!(std::fs::read_to_string(format!("/proc/{carrier}/comm")).unwrap().trim(), "rtsprelay-carry");
    let refused = upgrade(carrier).finish(DEADLINE);
    assert!(refused.status.code() == Some(1) && refused.stderr.contains("only carries TLS connections"), "{refused:?}");
    player.goes_on(50);
    player.end();
    ended(carrier);
}

/// Until either end is closed. (`std::io::copy` would have the kernel wait for more than there is.)
fn pass_on(from: &mut impl Read, to: &mut impl Write) {
    let mut bytes = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes)
        && to.write_all(&bytes[..count]).and_then(|()| to.flush()).is_ok()
    {}
}

/// A local address that leads to one connection by TLS, through OpenSSL's client.
fn tunnel(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut near = listener.accept().unwrap().0;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &to.to_string()]);
        let mut far =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
        let (mut input, mut output) = (far.stdin.take().unwrap(), far.stdout.take().unwrap());
        let mut back = near.try_clone().unwrap();
        let up = std::thread::spawn(move || pass_on(&mut near, &mut input));
        pass_on(&mut output, &mut back);
        let _ = back.shutdown(Shutdown::Both);
        let _ = far.kill();
        let _ = (up.join(), far.wait());
    });
    address
}

#[test]
fn a_browser_by_https_misses_no_frame_of_two_upgrades_in_a_row() {
    let _turn = beside_others();
    let secured = Secured::start(STREAMS);
    serving(&secured.relay, "/pattern");
    let mut watcher = watch(tunnel(https_address(&secured.relay.relay)), "/+live/pattern");
    let mut last = None;
    let mut goes_on = |frames: usize| {
        for _ in 0..frames {
            let facts = Facts::of(&watcher.fragment(0).1);
            follows(last.replace(facts), facts, 0, 90_000.0);
        }
    };
    goes_on(30);
    for _ in 0..2 {
        secured.upgrade();
        goes_on(30);
    }
}
