//! SIGUSR2: another process takes everything over, and neither players nor publishers nor cameras notice.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use rtsprelay::wire::auth;

use crate::harness::camera::Camera;
use crate::harness::http::{get, http_address};
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};

/// A relay that is upgraded, in whichever process it lives at the moment.
pub(crate) struct Upgraded {
    pub(crate) relay: Relay,
    /// Its configuration first.
    pub(crate) files: Vec<PathBuf>,
    /// Says at which step the next successor ends.
    pub(crate) step: PathBuf,
}

impl Upgraded {
    pub(crate) fn start(config: &str) -> Upgraded {
        Upgraded::start_with(Uring::AsAsked, config)
    }

    pub(crate) fn start_with(uring: Uring, config: &str) -> Upgraded {
        let (path, step) = (scratch_file("upgrade.toml"), scratch_file("step"));
        std::fs::write(&path, format!("listen = [\"127.0.0.1:0\"]\nworkers = 2\n{config}")).unwrap();
        let fault = format!("--test-hand-over={}", step.display());
        let relay = Relay::start(command(uring, &["run", "--config", path.to_str().unwrap(), &fault]));
        Upgraded { relay, files: vec![path, step.clone()], step }
    }

    pub(crate) fn pid(&self) -> i32 {
        let printed = self.relay.printed();
        let last = printed.lines().rfind(|line| line.contains("handed over to the new program"));
        let pid = last.and_then(|line| line.split_once("pid=")).and_then(|(_, rest)| rest.split(' ').next());
        pid.map_or(self.relay.pid(), |pid| pid.parse().expect("a process id"))
    }

    pub(crate) fn ask(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGUSR2).expect("kill");
    }

    pub(crate) fn count(&self, said: &str) -> usize {
        self.relay.printed().matches(said).count()
    }

    /// Asks for an upgrade, and waits until the log says `said` once more than before.
    pub(crate) fn ask_until(&self, said: &str) {
        let before = self.count(said);
        self.ask();
        wait_until(&format!("the relay says {said:?}"), DEADLINE, || self.count(said) > before);
    }

    /// From now on, a successor refuses to take over.
    pub(crate) fn has_other_shards(&self) {
        let config = std::fs::read_to_string(&self.files[0]).unwrap();
        std::fs::write(&self.files[0], config.replace("workers = 2", "workers = 3")).unwrap();
    }

    /// Upgrades it.
    pub(crate) fn upgrade(&self) {
        let before = self.pid();
        self.ask_until(" took over from the relay that ran before");
        wait_until("the process before has ended", DEADLINE, || self.pid() != before && has_ended(before));
    }
}

/// Whether a process has ended; one that only its parent's `wait` is missing for has.
pub(crate) fn has_ended(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    status.map_or(true, |status| status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        let pid = self.pid();
        if pid != self.relay.pid() {
            if std::thread::panicking() {
                eprintln!("--- the relay printed:\n{}---", self.relay.printed());
            }
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for file in &self.files {
            // Scratch files; the build directory's cleaning takes what stays.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The new program's steps up to the commit.
pub(crate) const STEPS: [&str; 5] = ["ready", "told", "copying", "frozen", "restored"];

pub(crate) const REFUSED: &str = "the upgrade was not done, and nothing has changed";

/// What all players of a stream have received: by track, number and timestamp, the hash of the packet.
pub(crate) type Packets = Mutex<HashMap<(u8, u16, u32), u64>>;

/// A player that checks everything it gets.
pub(crate) struct Player {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    pub(crate) thread: JoinHandle<Duration>,
}

impl Player {
    pub(crate) fn start(relay: &Upgraded, path: &str, packets: &Arc<Packets>) -> Player {
        Player::of(Client::connect(relay.relay.address()), relay.relay.url(path), packets)
    }

    /// The same on a connection.
    pub(crate) fn of(mut client: Client, url: String, packets: &Arc<Packets>) -> Player {
        let (tracks, _) = client.play_everything(&url);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, all, count) = (Arc::clone(&stop), Arc::clone(packets), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || watch(&mut client, &url, tracks.len(), &stopped, &all, &counted));
        Player { stop, packets: count, thread }
    }

    /// Waits until it has received so many packets from now on.
    pub(crate) fn goes_on(&self, packets: u64) {
        let before = self.packets.load(Ordering::Relaxed);
        wait_until("the player receives more", DEADLINE, || {
            assert!(!self.thread.is_finished(), "the player has failed");
            self.packets.load(Ordering::Relaxed) >= before + packets
        });
    }

    /// Ends it; gives the longest time without a packet.
    pub(crate) fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a player that saw no fault")
    }
}

/// How much further than the time that has passed timestamps may go from one packet to the next.
pub const AHEAD_MAX: Duration = Duration::from_millis(400);

fn watch(
    client: &mut Client,
    url: &str,
    tracks: usize,
    stop: &AtomicBool,
    all: &Packets,
    count: &AtomicU64,
) -> Duration {
    let mut last: HashMap<u8, (u16, u32, u32, Instant)> = HashMap::new();
    let (mut longest, mut before, mut asked) = (Duration::ZERO, Instant::now(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let packet = client.packet();
        longest = longest.max(before.elapsed());
        before = Instant::now();
        count.fetch_add(1, Ordering::Relaxed);
        if asked.elapsed() > Duration::from_millis(200) {
            // Requests are answered by whichever process it is, about the same session.
            client.request("GET_PARAMETER", url, &[]).expect(200);
            asked = Instant::now();
        }
        if packet.channel % 2 == 1 || usize::from(packet.channel / 2) >= tracks {
            continue;
        }
        let (seq, time, ssrc) = (packet.seq(), packet.rtp_time(), packet.ssrc());
        if let Some((seq_before, time_before, ssrc_before, at)) = last.insert(packet.channel, (seq, time, ssrc, before))
        {
            assert_eq!((seq, ssrc), (seq_before.wrapping_add(1), ssrc_before), "channel {}", packet.channel);
            let rate = if packet.channel == 0 { 90_000 } else { 8_000 };
            let step = Duration::from_secs(1) * time.wrapping_sub(time_before) / rate;
            let passed = before.duration_since(at);
            assert!(step < passed + AHEAD_MAX, "time steps by {step:?} in {passed:?} on channel {}", packet.channel);
        }
        let mut hasher = DefaultHasher::new();
        packet.bytes.hash(&mut hasher);
        let hash = hasher.finish();
        let same = *all.lock().unwrap().entry((packet.channel, seq, time)).or_insert(hash);
        assert_eq!(same, hash, "two players got different packets {seq}");
    }
    longest
}

/// A camera that sends 30 frames and 50 packets of sound a second.
pub(crate) struct Filming {
    pub(crate) camera: Arc<Camera>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Filming {
    pub(crate) fn start() -> Filming {
        Filming::with(30, 60_000, 9_000)
    }

    /// With a keyframe every so many frames, and such sizes of keyframes and others.
    pub(crate) fn with(every: u32, keyframe: usize, other: usize) -> Filming {
        let (camera, stop) = (Arc::new(Camera::start()), Arc::new(AtomicBool::new(false)));
        let (shown, stopped) = (Arc::clone(&camera), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            shown.wait_playing();
            let begun = Instant::now();
            for frame in 0u32.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if frame % every == 0 {
                    shown.keyframe(keyframe)
                } else {
                    shown.delta_frame(other)
                };
                shown.sound();
                // At its times, as a camera does.
                std::thread::sleep(
                    (begun + frame * Duration::from_micros(33_333)).saturating_duration_since(Instant::now()),
                );
            }
        });
        Filming { camera, stop, thread: Some(thread) }
    }

    /// The methods that it was asked for, without keep-alives.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.camera.requests().into_iter().filter(|method| !["OPTIONS", "GET_PARAMETER"].contains(&&**method)).collect()
    }
}

impl Drop for Filming {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn ffmpeg(arguments: &str) -> Program {
    let mut command = Command::new("ffmpeg");
    command.args(arguments.split_whitespace());
    Program::start(command)
}

pub(crate) const STREAMS: &str =
    "\n[[stream]]\nname = \"pattern\"\nsource = \"test\"\n\n[[stream]]\nname = \"live\"\nsource = \"publish\"\n";

/// Clients that do not read are not skipped or closed.
pub(crate) const PATIENT: &str = "queue.age = \"60s\"\nqueue.stall_timeout = \"60s\"\n";

pub(crate) fn with_camera(camera: &Filming) -> String {
    format!("{STREAMS}\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\n", camera.camera.url())
}

pub(crate) fn serving(relay: &Upgraded, path: &str) {
    serving_at(relay.relay.address(), &relay.relay.url(path));
}

pub(crate) fn serving_at(address: SocketAddr, url: &str) {
    let started = Instant::now();
    loop {
        let answer = Client::connect(address).describe(url);
        if answer.status == 200 {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{url} is not served: {answer:?}");
        // Until the next look; `wait_until` cannot say what the last answer was.
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_upgrades_in_a_row_are_noticed_by_nobody() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Upgraded::start(&format!("{PATIENT}{}", with_camera(&camera)));
    let _publisher = ffmpeg(&format!(
        "-v error -re -f lavfi -i testsrc2=size=320x240:rate=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25 \
         -pix_fmt yuv420p -f rtsp -rtsp_transport tcp {}",
        relay.relay.url("/live")
    ));
    let paths = ["/cam", "/pattern", "/live"];
    let packets = paths.map(|_| Arc::<Packets>::default());
    paths.iter().for_each(|path| serving(&relay, path));
    let players: Vec<Player> =
        (0..20).map(|number| Player::start(&relay, paths[number % 3], &packets[number % 3])).collect();
    let program = ffmpeg(&format!("-v error -rtsp_transport tcp -i {} -t 8 -f null -", relay.relay.url("/pattern")));
    wait_until("ffmpeg plays", DEADLINE, || relay.count(" started playing ") == 21);
    for _ in 0..2 {
        players.iter().for_each(|player| player.goes_on(50));
        relay.upgrade();
        players.iter().for_each(|player| player.goes_on(50));
    }
    // Who comes now is served like before.
    let late = Player::start(&relay, "/cam", &packets[0]);
    late.goes_on(50);
    // One for the viewer by ffmpeg, which may have ended.
    assert!(relay.count(" stopped playing ") <= 1);
    let longest = players.into_iter().chain([late]).map(Player::end).max();
    println!("the longest time without a packet: {longest:?}");
    program.finish(DEADLINE).expect_silent_success();
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
    assert_eq!(relay.count(" publishes"), 1);
}

#[test]
fn a_successor_that_dies_before_the_commit_is_noticed_by_nobody() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Upgraded::start(&format!("{PATIENT}{}", with_camera(&camera)));
    let packets = ["/cam", "/pattern"].map(|_| Arc::<Packets>::default());
    serving(&relay, "/cam");
    serving(&relay, "/pattern");
    let players = [Player::start(&relay, "/cam", &packets[0]), Player::start(&relay, "/pattern", &packets[1])];
    let pid = relay.pid();
    for step in STEPS {
        std::fs::write(&relay.step, step).unwrap();
        relay.ask_until(REFUSED);
        assert_eq!(relay.pid(), pid);
        players.iter().for_each(|player| player.goes_on(50));
    }
    std::fs::remove_file(&relay.step).unwrap();
    // And then one that does not.
    relay.ask_until(" took over from the relay that ran before");
    players.iter().for_each(|player| player.goes_on(50));
    let longest = players.into_iter().map(Player::end).max();
    println!("the longest time without a packet: {longest:?}");
    assert_eq!(camera.asked(), ["DESCRIBE", "SETUP", "SETUP", "PLAY"]);
}

#[test]
fn a_client_that_does_not_read_misses_no_byte() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Upgraded::start(&format!("{PATIENT}{}", with_camera(&camera)));
    serving(&relay, "/cam");
    let mut client = Client::connect_narrow(relay.relay.address(), 4096);
    client.play_everything(&relay.relay.url("/cam"));
    // An operation is in flight, and stops within a packet.
    client.wait_blocking();
    relay.upgrade();
    let mut last = None;
    for _ in 0..120 {
        for packet in client.frame_on(0) {
            if let Some(last) = last.replace(packet.seq()) {
                assert_eq!(packet.seq(), last.wrapping_add(1));
            }
        }
    }
}

#[test]
fn epoll_hands_over_as_well() {
    let _turn = beside_others();
    let camera = Filming::start();
    let relay = Upgraded::start_with(Uring::Unused, &format!("io = \"epoll\"\n{PATIENT}{}", with_camera(&camera)));
    serving(&relay, "/cam");
    let packets = Arc::<Packets>::default();
    let players: Vec<Player> = (0..4).map(|_| Player::start(&relay, "/cam", &packets)).collect();
    let mut narrow = Client::connect_narrow(relay.relay.address(), 4096);
    narrow.play_everything(&relay.relay.url("/cam"));
    narrow.wait_blocking();
    players.iter().for_each(|player| player.goes_on(50));
    relay.upgrade();
    players.iter().for_each(|player| player.goes_on(50));
    players.into_iter().for_each(|player| assert!(player.end() < DEADLINE));
    let mut last = None;
    for packet in (0..30).flat_map(|_| narrow.frame_on(0)) {
        if let Some(last) = last.replace(packet.seq()) {
            assert_eq!(packet.seq(), last.wrapping_add(1));
        }
    }
}

#[test]
fn what_cannot_be_handed_over_is_said_before_anything_is_touched() {
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    let packets = Arc::<Packets>::default();
    let player = Player::start(&relay, "/pattern", &packets);
    relay.has_other_shards();
    let said = "it would have 3 shards instead of 2";
    relay.ask_until(said);
    let refused = command(Uring::Unused, &["upgrade", "--pid", &relay.pid().to_string()]);
    let refused = Program::start(refused).finish(DEADLINE);
    assert!(refused.status.code() == Some(1) && refused.stderr.contains(said), "{refused:?}");
    player.goes_on(20);
    player.end();
}

#[test]
fn users_and_pages_go_on() {
    let _turn = beside_others();
    let user = "[[user]]\nname = \"viewer\"\npassword = \"secret\"\n";
    let relay = Upgraded::start(&format!("http = \"127.0.0.1:0\"\n{STREAMS}\n{user}"));
    let url = relay.relay.url("/pattern");
    let mut client = Client::connect(relay.relay.address());
    let challenge = client.request("DESCRIBE", &url, &[]).expect(401);
    let challenge = challenge.header("WWW-Authenticate").unwrap().to_owned();
    let shown = auth::answer(&challenge, "viewer", "secret", "DESCRIBE", &url).unwrap();
    let authorization = [("Authorization", shown.as_str())];
    wait_until("the stream is up", DEADLINE, || client.request("DESCRIBE", &url, &authorization).status == 200);
    // An idle connection for pages does not keep the relay from it.
    let pages = http_address(&relay.relay);
    let mut idle = TcpStream::connect(pages).unwrap();
    write!(idle, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(idle.read(&mut [0; 1024]).unwrap() > 0);
    // The command waits for the outcome.
    let asked = command(Uring::Unused, &["upgrade", "--pid", &relay.pid().to_string()]);
    let done = Program::start(asked).finish(DEADLINE).expect_silent_success();
    assert!(done.stdout.starts_with("handed over to process "), "{done:?}");
    // By the nonce of the process before, on the same connection and on another.
    client.request("DESCRIBE", &url, &authorization).expect(200);
    Client::connect(relay.relay.address()).request("DESCRIBE", &url, &authorization).expect(200);
    assert_eq!(idle.read(&mut [0; 1024]).unwrap(), 0);
    assert_eq!(get(pages, "/livez").0, 200);
}
