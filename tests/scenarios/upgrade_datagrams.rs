//! SIGUSR2 with datagrams and with cameras whose connection cannot be handed over: players and publishers over UDP, multicast groups,
//! cameras over UDP and rtsps.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use rtsprelay::wire::rtcp;

use crate::harness::datagrams::Ports;
use crate::harness::machine::{beside_others, cannot_run, is_root};
use crate::harness::net::{BRIDGE, Net, SERVER};
use crate::harness::program::Program;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, wait_until};
use crate::tls::Certificate;
use crate::upgrade::{Filming, PATIENT, Packets, Player, REFUSED, Upgraded, ffmpeg, serving, with_camera};

/// A silent session ends soon: whoever plays is heard.
const IMPATIENT: &str = "limits.session_timeout = \"3s\"\n";

/// More packets than a camera sends in that time.
const BEYOND_TIMEOUT: u64 = 1_200;

/// Makes room for everything that is sent while its reader waits for the processor.
fn roomy(socket: &UdpSocket) {
    const BYTES: usize = 8 << 20;
    if setsockopt(socket, sockopt::RcvBufForce, &BYTES).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BYTES).expect("a receive buffer");
    }
}

/// A range of four ports that were free a moment ago: exactly those of two shards.
fn ports_of_two_shards() -> String {
    loop {
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let others: Vec<_> =
            (1..4).map_while(|next| UdpSocket::bind(("127.0.0.1", port.checked_add(next)?)).ok()).collect();
        if port.is_multiple_of(2) && others.len() == 3 {
            return format!("{port}-{}", port + 3);
        }
    }
}

/// A player of the video over UDP that checks everything it gets. Its reports are its only sign of life.
struct Watcher {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    reports: Arc<AtomicU64>,
    thread: JoinHandle<Duration>,
}

/// What its thread uses.
struct Watching {
    /// Keeps the connection open, on which nothing more is requested.
    _client: Client,
    ports: Ports,
    /// The relay's ports.
    relay: (SocketAddr, SocketAddr),
    /// The channel of the track over TCP.
    channel: u8,
    all: Arc<Packets>,
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    reports: Arc<AtomicU64>,
}

impl Watcher {
    fn start(relay: &Upgraded, path: &str, packets: &Arc<Packets>) -> Watcher {
        let (url, address) = (relay.relay.url(path), relay.relay.address());
        let mut client = Client::connect(address);
        let described = client.describe(&url).expect(200);
        let tracks = tracks(&described);
        let video = tracks.iter().position(|track| track.media == "video").expect("a video track");
        let ports = Ports::bind();
        roomy(&ports.rtp);
        ports.rtp.set_read_timeout(Some(DEADLINE)).unwrap();
        ports.rtcp.set_nonblocking(true).unwrap();
        let answer = client.request("SETUP", &tracks[video].url, &[("Transport", &ports.transport())]).expect(200);
        client.session = answer.session().map(str::to_owned);
        client.play(described.header("Content-Base").unwrap()).expect(200);
        let (rtp, rtcp) = answer.transport("server_port").and_then(|pair| pair.split_once('-')).expect("server_port");
        let at = |port: &str| SocketAddr::new(address.ip(), port.parse().expect("a port"));
        let (stop, count, reports) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let watching = Watching {
            _client: client,
            ports,
            relay: (at(rtp), at(rtcp)),
            channel: 2 * video as u8,
            all: Arc::clone(packets),
            stop: Arc::clone(&stop),
            packets: Arc::clone(&count),
            reports: Arc::clone(&reports),
        };
        Watcher { stop, packets: count, reports, thread: std::thread::spawn(move || watching.watch()) }
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        wait_until(what, DEADLINE, || {
            assert!(!self.thread.is_finished(), "the player has failed");
            is_so()
        });
    }

    /// Waits until it has received so many packets from now on.
    fn goes_on(&self, packets: u64) {
        let before = self.packets.load(Ordering::Relaxed);
        self.wait("the player receives more", || self.packets.load(Ordering::Relaxed) >= before + packets);
    }

    /// Waits until it has received another report.
    fn is_reported_to(&self) {
        let before = self.reports.load(Ordering::Relaxed);
        self.wait("the player receives a report", || self.reports.load(Ordering::Relaxed) > before);
    }

    /// Ends it; gives the longest time without a packet.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a player that saw no fault")
    }
}

impl Watching {
    fn watch(self) -> Duration {
        let mut buffer = [0; 2_048];
        let mut last: Option<(u16, u32)> = None;
        let (mut longest, mut before, mut told) = (Duration::ZERO, Instant::now(), Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            let (count, from) = self.ports.rtp.recv_from(&mut buffer).expect("a packet");
            longest = longest.max(before.elapsed());
            before = Instant::now();
            assert_eq!(from, self.relay.0, "from another port than before");
            let packet = &buffer[..count];
            let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
            let (seq, time, ssrc) = (number(0) as u16, number(4), number(8));
            if let Some((seq_before, ssrc_before)) = last.replace((seq, ssrc)) {
                assert_eq!((seq, ssrc), (seq_before.wrapping_add(1), ssrc_before));
            }
            let mut hasher = DefaultHasher::new();
            packet.hash(&mut hasher);
            let hash = hasher.finish();
            let same = *self.all.lock().unwrap().entry((self.channel, seq, time)).or_insert(hash);
            assert_eq!(same, hash, "two players got different packets {seq}");
            self.packets.fetch_add(1, Ordering::Relaxed);
            self.hear();
            if told.elapsed() > Duration::from_millis(200) {
                self.ports.rtcp.send_to(&rtcp::receiver_report(7, &[], "watcher"), self.relay.1).expect("a report");
                told = Instant::now();
            }
        }
        longest
    }

    /// Counts the sender reports that have arrived.
    fn hear(&self) {
        let mut buffer = [0; 2_048];
        loop {
            match self.ports.rtcp.recv_from(&mut buffer) {
                Ok((_, from)) => {
                    assert_eq!(from, self.relay.1, "from another port than before");
                    self.reports.fetch_add(u64::from(buffer[1] == 200), Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("no report: {error}"),
            }
        }
    }
}

#[test]
fn players_and_publishers_over_udp_notice_nothing_in_two_upgrades_in_a_row() {
    let _turn = beside_others();
    let camera = Filming::start();
    // There is no room for a second pair of each shard.
    let range = format!("udp_ports = \"{}\"\n", ports_of_two_shards());
    let relay = Upgraded::start(&format!("{range}{PATIENT}{IMPATIENT}{}", with_camera(&camera)));
    let _publisher = ffmpeg(&format!(
        "-v error -re -f lavfi -i testsrc2=size=320x240:rate=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25 \
         -pix_fmt yuv420p -f rtsp -rtsp_transport udp {}",
        relay.relay.url("/live")
    ));
    let paths = ["/cam", "/pattern", "/live"];
    let packets = paths.map(|_| Arc::<Packets>::default());
    paths.iter().for_each(|path| serving(&relay, path));
    let watchers: Vec<Watcher> =
        (0..9).map(|number| Watcher::start(&relay, paths[number % 3], &packets[number % 3])).collect();
    let players: Vec<Player> = (0..3).map(|number| Player::start(&relay, paths[number], &packets[number])).collect();
    let program = ffmpeg(&format!("-v error -rtsp_transport udp -i {} -t 8 -f null -", relay.relay.url("/pattern")));
    wait_until("ffmpeg plays", DEADLINE, || relay.count(" started playing ") == 13);
    for _ in 0..2 {
        watchers.iter().for_each(|watcher| watcher.goes_on(50));
        relay.upgrade();
        watchers.iter().for_each(|watcher| watcher.goes_on(50));
        players.iter().for_each(|player| player.goes_on(50));
    }
    // Their reports are heard, and they are sent some.
    watchers[0].goes_on(BEYOND_TIMEOUT);
    watchers[1].is_reported_to();
    // Who comes now is served like before.
    let late = Watcher::start(&relay, "/cam", &packets[0]);
    late.goes_on(50);
    // One for the viewer by ffmpeg, which may have ended.
    assert!(relay.count(" stopped playing ") <= 1);
    let longest = watchers.into_iter().chain([late]).map(Watcher::end).max();
    let longest_by_tcp = players.into_iter().map(Player::end).max();
    println!("the longest time without a packet: {longest:?} by UDP, {longest_by_tcp:?} by TCP");
    program.finish(DEADLINE).expect_silent_success();
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
    assert_eq!(relay.count(" publishes"), 1);
}

#[test]
fn epoll_hands_datagrams_over_as_well() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay =
        Upgraded::start_with(Uring::Unused, &format!("io = \"epoll\"\n{PATIENT}{IMPATIENT}{}", with_camera(&camera)));
    serving(&relay, "/cam");
    let packets = Arc::<Packets>::default();
    let watchers: Vec<Watcher> = (0..4).map(|_| Watcher::start(&relay, "/cam", &packets)).collect();
    watchers.iter().for_each(|watcher| watcher.goes_on(50));
    relay.upgrade();
    watchers.iter().for_each(|watcher| watcher.goes_on(BEYOND_TIMEOUT));
    watchers.into_iter().for_each(|watcher| assert!(watcher.end() < DEADLINE));
}

#[test]
fn players_over_udp_do_not_notice_a_successor_that_dies_before_the_commit() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Upgraded::start(&format!("{PATIENT}{IMPATIENT}{}", with_camera(&camera)));
    let packets = ["/cam", "/pattern"].map(|_| Arc::<Packets>::default());
    serving(&relay, "/cam");
    serving(&relay, "/pattern");
    let watchers = [Watcher::start(&relay, "/cam", &packets[0]), Watcher::start(&relay, "/pattern", &packets[1])];
    let pid = relay.pid();
    for step in ["ready", "told", "frozen", "restored"] {
        std::fs::write(&relay.step, step).unwrap();
        relay.ask_until(REFUSED);
        assert_eq!(relay.pid(), pid);
        watchers.iter().for_each(|watcher| watcher.goes_on(50));
    }
    watchers[0].goes_on(BEYOND_TIMEOUT);
    std::fs::remove_file(&relay.step).unwrap();
    // And then one that does not.
    relay.upgrade();
    watchers.iter().for_each(|watcher| watcher.goes_on(50));
    let longest = watchers.into_iter().map(Watcher::end).max();
    println!("the longest time without a packet: {longest:?}");
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
}

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 0, 9);

#[test]
fn a_multicast_group_goes_on_until_the_last_receiver_leaves() {
    if !is_root() {
        return cannot_run("network namespaces need root");
    }
    let _turn = beside_others();
    let net = Net::new(1);
    net.enter_server();
    let camera = Filming::start();
    let relay = Upgraded::start(&format!(
        "{PATIENT}\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\nmulticast = \"{GROUP}:5000\"\nmulticast_interface = \"{BRIDGE}\"\n",
        camera.camera.url()
    ));
    serving(&relay, "/cam");
    let url = relay.relay.url("/cam");
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5_000)).unwrap();
    roomy(&socket);
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.join_multicast_v4(&GROUP, &SERVER).unwrap();
    let mut client = Client::connect(relay.relay.address());
    let described = client.describe(&url).expect(200);
    let video = tracks(&described).into_iter().find(|track| track.media == "video").expect("a video track");
    let answer = client.request("SETUP", &video.url, &[("Transport", "RTP/AVP;multicast")]).expect(200);
    client.session = answer.session().map(str::to_owned);
    client.play(described.header("Content-Base").unwrap()).expect(200);
    let mut last: Option<(u16, SocketAddr)> = None;
    let mut receive = |count: usize| {
        let mut buffer = [0; 2_048];
        for _ in 0..count {
            let (_, from) = socket.recv_from(&mut buffer).expect("a packet");
            let seq = u16::from_be_bytes([buffer[2], buffer[3]]);
            if let Some(before) = last.replace((seq, from)) {
                assert_eq!((seq, from), (before.0.wrapping_add(1), before.1));
            }
        }
    };
    receive(200);
    for _ in 0..2 {
        relay.upgrade();
        // Also what was sent meanwhile.
        receive(300);
    }
    client.request("GET_PARAMETER", &url, &[]).expect(200);
    assert_eq!(relay.count("multicast stream=cam"), 1, "it has neither paused nor resumed");
    client.request("TEARDOWN", &url, &[]).expect(200);
    wait_until("nothing is sent to the group", DEADLINE, || relay.count("sends=false") == 1);
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
}

/// Another relay as the camera, with a test pattern.
fn origin(keys: &str) -> Relay {
    Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nworkers = 1\n{keys}\n[[stream]]\nname = \"t\"\nsource = \"test\"\n"
    ))
    .serving("/t")
}

fn played(origin: &Relay) -> usize {
    origin.printed().matches(" started playing ").count()
}

#[test]
fn a_camera_over_udp_sees_one_session() {
    let _turn = beside_others();
    let origin = origin("");
    let relay = Upgraded::start(&format!(
        "{PATIENT}\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\ntransport = \"udp\"\n",
        origin.url("/t")
    ));
    serving(&relay, "/cam");
    let packets = Arc::<Packets>::default();
    let player = Player::start(&relay, "/cam", &packets);
    let watcher = Watcher::start(&relay, "/cam", &packets);
    let before = played(&origin);
    let printed = origin.printed();
    assert!(printed.contains("transport=udp") || printed.contains("transport=\"udp\""), "{printed}");
    for _ in 0..2 {
        player.goes_on(50);
        relay.upgrade();
        player.goes_on(50);
        watcher.goes_on(50);
    }
    assert_eq!(played(&origin), before);
    assert_eq!(relay.count(" live stream=cam"), 1);
    println!("the longest time without a packet: {:?}", player.end().max(watcher.end()));
}

#[test]
fn a_camera_over_rtsps_is_connected_to_anew_and_its_players_numbers_go_on() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let origin = origin(&format!("listen_tls = [\"127.0.0.1:0\"]\n{}", certificate.keys()));
    let relay = Upgraded::start(&format!(
        "{PATIENT}\n[[stream]]\nname = \"cam\"\nsource = \"rtsps://{}/t\"\ntls_ca = {:?}\n",
        origin.tls_address(),
        certificate.file()
    ));
    serving(&relay, "/cam");
    let packets = Arc::<Packets>::default();
    let players: Vec<Player> = (0..4).map(|_| Player::start(&relay, "/cam", &packets)).collect();
    players.iter().for_each(|player| player.goes_on(50));
    let before = played(&origin);
    // Abandoned: the session goes on.
    std::fs::write(&relay.step, "restored").unwrap();
    relay.ask_until(REFUSED);
    players.iter().for_each(|player| player.goes_on(100));
    assert_eq!(played(&origin), before);
    std::fs::remove_file(&relay.step).unwrap();
    let asked = command(Uring::Unused, &["upgrade", "--pid", &relay.pid().to_string()]);
    let done = Program::start(asked).finish(DEADLINE).expect_silent_success();
    assert!(done.stdout.contains("it connects to these cameras anew: cam (rtsps"), "{done:?}");
    players.iter().for_each(|player| player.goes_on(100));
    assert_eq!(played(&origin), before + 1);
    assert_eq!(relay.count("reconnecting: a connection over TLS cannot be handed over"), 1);
    assert_eq!((relay.count(" stopped playing "), relay.count("retry_in_ms")), (0, 0));
    println!("the longest time without a packet: {:?}", players.into_iter().map(Player::end).max());
}
