//! Players stay connected while a camera is down, however long: the relay keeps sending RTCP reports.
//!
//! `RTSPRELAY_OUTAGES` is a list of outages in seconds that real players must survive: `3` unless it is set; `tests/soak`
//! sets it to `20,120`.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rtsprelay::wire::rtcp::{self, SenderInfo};

use crate::harness::camera::{Camera, Place};
use crate::harness::datagrams::Ports;
use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::relay::{Relay, Uring, command};
use crate::harness::rtsp::{Client, tracks};
use crate::harness::{DEADLINE, SYSTEM_PYTHON, test_file, wait_until};

/// Frames that a player must see to count as playing.
const FRAMES: u64 = 30;

/// One second in NTP's units.
const NTP_S: u64 = 1 << 32;

#[test]
fn a_camera_that_is_away_is_reported_on_until_it_reports_by_itself() {
    let _turn = beside_others();
    let place = Place::reserve();
    let camera = Camera::start_at(place.address());
    let relay = Relay::of_camera(&camera, 5_000);
    let mut client = Client::connect(relay.address());
    let (_, played) = client.play_everything(&relay.url("/"));
    assert_eq!(played.rtp_info().len(), 2);
    let (ports, mut by_datagrams) = (Ports::bind(), Client::connect(relay.address()));
    play_by_datagrams(&mut by_datagrams, &relay, &ports);
    // The camera's clock is half a minute behind; there was no report about its audio.
    let first_ntp = rtsprelay::source::timeline::to_ntp(SystemTime::now() - Duration::from_secs(30));
    let (told, since) = (sent_report(&mut client, &camera, first_ntp), Instant::now());
    sender_info(&ports.rtcp);
    drop(camera);

    let mut reports = vec![told];
    for _ in 0..2 {
        reports.push(SenderInfo::of(&client.packet_on(1).bytes).expect("a sender report"));
        let silent: Vec<_> = rtcp::parse(&client.packet_on(3).bytes).map(Result::unwrap).collect();
        assert!(matches!(silent[..], [rtcp::Packet::ReceiverReport { .. }, rtcp::Packet::SourceDescription]));
    }
    let to_the_other = sender_info(&ports.rtcp);
    assert_goes_on(told, to_the_other);
    // The camera is back, and continues with its previous clock.
    let camera = Camera::start_at(place.address());
    camera.wait_playing();
    camera.keyframe(7_000);
    client.packet_on(0);
    let now = first_ntp + (since.elapsed().as_nanos() * u128::from(NTP_S) / 1_000_000_000) as u64;
    let last = loop {
        camera.sender_report(now);
        let report = SenderInfo::of(&client.packet_on(1).bytes).expect("a sender report");
        if report.ntp == now {
            break report;
        }
    };
    for pair in reports.windows(2) {
        assert_goes_on(pair[0], pair[1]);
    }
    let newest = reports.last().unwrap();
    let forward = |later: u32, earlier: u32| later.wrapping_sub(earlier) < 1 << 31;
    assert!(last.ntp > newest.ntp && forward(last.rtp_time, newest.rtp_time), "{last:?} after {newest:?}");
    assert!(last.packets > newest.packets, "{last:?} after {newest:?}");
    assert!(!relay.printed().contains("stopped playing"), "{}", relay.printed());
}

/// Sets the video up over UDP, and plays it.
fn play_by_datagrams(client: &mut Client, relay: &Relay, ports: &Ports) {
    let described = client.describe(&relay.url("/")).expect(200);
    let set_up = client.request("SETUP", &tracks(&described)[0].url, &[("Transport", &ports.transport())]).expect(200);
    client.session = set_up.session().map(str::to_owned);
    client.play(described.header("Content-Base").unwrap()).expect(200);
}

/// The camera's own report as received by a client.
fn sent_report(client: &mut Client, camera: &Camera, ntp: u64) -> SenderInfo {
    camera.sender_report(ntp);
    let info = SenderInfo::of(&client.packet_on(1).bytes).expect("a sender report");
    assert_eq!(info.ntp, ntp, "the camera's own time is passed on");
    info
}

/// The next sender report that arrives on a socket.
fn sender_info(socket: &UdpSocket) -> SenderInfo {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = [0; 2_000];
    let len = socket.recv(&mut bytes).expect("a report");
    SenderInfo::of(&bytes[..len]).expect("a sender report")
}

/// Panics unless a report is later than the previous one and on the same line.
#[track_caller]
fn assert_goes_on(before: SenderInfo, after: SenderInfo) {
    let seconds = after.ntp.wrapping_sub(before.ntp) as f64 / NTP_S as f64;
    let ticks = f64::from(after.rtp_time.wrapping_sub(before.rtp_time));
    assert!(seconds > 1.0 && (ticks - seconds * 90_000.0).abs() <= 2.0, "{ticks} ticks in {seconds} s");
}

/// A player, and the number of frames that it has received.
enum Player {
    /// A program that prints this many lines with the word per frame.
    Prints(Program, &'static str),
    /// retina, in a thread of this process.
    Retina(Arc<Retina>),
    /// Another relay, and its player.
    Relay(Relay, Box<Client>, u64),
}

#[derive(Default)]
struct Retina {
    frames: AtomicU64,
    ended: AtomicBool,
    stop: AtomicBool,
}

impl Player {
    fn frames(&mut self) -> u64 {
        match self {
            Player::Prints(program, word) => {
                let ended = program.ended();
                let printed = program.stdout.text();
                assert!(ended.is_none(), "it left ({ended:?}): {}", program.stderr.text());
                printed.matches(*word).count() as u64
            }
            Player::Retina(retina) => {
                assert!(!retina.ended.load(Ordering::SeqCst), "retina left");
                retina.frames.load(Ordering::SeqCst)
            }
            Player::Relay(relay, client, frames) => {
                assert!(!relay.printed().contains("sessions=2"), "it left: {}", relay.printed());
                while let Some(packet) = client.packet_within(Duration::from_millis(1)) {
                    *frames += u64::from(packet.channel == 0 && packet.marker());
                }
                *frames
            }
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if let Player::Retina(retina) = self {
            retina.stop.store(true, Ordering::SeqCst);
        }
    }
}

/// ffmpeg without decoding: a line for each video packet, as soon as it arrives.
fn ffmpeg(url: &str, transport: &str) -> Player {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-timeout", "5000000", "-rtsp_transport", transport, "-i", url]);
    command.args(["-map", "0:v", "-c", "copy", "-flush_packets", "1", "-f", "framehash", "-hash", "adler32", "-"]);
    Player::Prints(Program::start(command), "\n0,")
}

fn pyav(url: &str, transport: &str) -> Player {
    let mut command = Command::new(test_file("../.venv/bin/python"));
    command.arg(test_file("players/pyav_player.py")).args(["watch", url, transport]);
    Player::Prints(Program::start(command), "packet\n")
}

fn gstreamer(url: &str, transport: &str) -> Player {
    let mut command = Command::new(SYSTEM_PYTHON);
    command.arg(test_file("players/gst_player.py")).args([url, transport, "watch"]);
    Player::Prints(Program::start(command), "frame\n")
}

fn retina(url: &str, transport: &str) -> Player {
    use futures::StreamExt as _;
    use retina::client::{PlayOptions, Session, SessionOptions, SetupOptions, Transport};
    use retina::codec::CodecItem;

    let counts = Arc::new(Retina::default());
    let (shared, url) = (Arc::clone(&counts), url::Url::parse(url).unwrap());
    let transport = if transport == "udp" { Transport::Udp(Default::default()) } else { Transport::default() };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let play = async {
            let mut session = Session::describe(url, SessionOptions::default()).await?;
            for index in 0..session.streams().len() {
                session.setup(index, SetupOptions::default().transport(transport.clone())).await?;
            }
            let mut session = session.play(PlayOptions::default()).await?.demuxed()?;
            while let Some(item) = session.next().await {
                if let CodecItem::VideoFrame(_) = item? {
                    shared.frames.fetch_add(1, Ordering::SeqCst);
                }
            }
            Ok::<_, retina::Error>(())
        };
        let stopped = async {
            while !shared.stop.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                ended = play => println!("retina ended: {ended:?}"),
                () = stopped => {}
            }
        });
        shared.ended.store(true, Ordering::SeqCst);
    });
    Player::Retina(counts)
}

fn another_relay(url: &str, transport: &str) -> Player {
    // It waits for media, not reports: it must reconnect to a camera that sends reports but no video.
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n\n[[stream]]\nname = \"again\"\nsource = \"{url}\"\n\
         transport = \"{transport}\"\nsource_timeout = \"10m\"\n"
    ));
    let relay = relay.serving("/again");
    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/again"));
    Player::Relay(relay, Box::new(client), 0)
}

/// The test pattern as a camera that is switched off and on.
fn pattern_at(place: &Place) -> Relay {
    Relay::start(command(Uring::AsAsked, &["demo", "--listen", &place.address().to_string()]))
}

#[test]
fn real_players_stay_through_outages() {
    let _turn = beside_others();
    let outages = std::env::var("RTSPRELAY_OUTAGES").unwrap_or_else(|_| "3".to_owned());
    let place = Place::reserve();
    let mut camera = pattern_at(&place).serving("/test");
    let relay = Relay::of(&camera.url("/test"));
    let url = relay.url("/");
    let mut players = Vec::new();
    for transport in ["tcp", "udp"] {
        players.push((format!("ffmpeg by {transport}"), ffmpeg(&url, transport)));
        players.push((format!("PyAV by {transport}"), pyav(&url, transport)));
        players.push((format!("GStreamer by {transport}"), gstreamer(&url, transport)));
        players.push((format!("retina by {transport}"), retina(&url, transport)));
        players.push((format!("another relay by {transport}"), another_relay(&url, transport)));
    }
    all_go_on(&relay, &mut players);
    for seconds in outages.split(',').map(|text| text.parse().expect("seconds")) {
        println!("an outage of {seconds} s");
        drop(camera);
        // The time is what the scenario is about.
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            assert_nobody_left(&relay);
            for (_, player) in &mut players {
                player.frames();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        camera = pattern_at(&place);
        // A request, so that the relay does not wait for its backoff.
        relay_is_asked(&relay);
        all_go_on(&relay, &mut players);
    }
}

fn relay_is_asked(relay: &Relay) {
    Client::connect(relay.address()).describe(&relay.url("/")).expect(200);
}

fn assert_nobody_left(relay: &Relay) {
    let printed = relay.printed();
    assert!(!printed.contains("stopped playing"), "{printed}");
}

/// Waits until each of the players has received more frames.
fn all_go_on(relay: &Relay, players: &mut [(String, Player)]) {
    let before: Vec<u64> = players.iter_mut().map(|(_, player)| player.frames()).collect();
    for ((name, player), before) in players.iter_mut().zip(before) {
        wait_until(&format!("{name} goes on"), DEADLINE, || {
            assert_nobody_left(relay);
            player.frames() >= before + FRAMES
        });
    }
}
