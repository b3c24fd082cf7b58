//! A client that requests too much gets its share, and the others get theirs.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rtsprelay::limits::{STRANGERS_MIN, strangers_max};

use crate::harness::camera::Camera;
use crate::harness::http::{get, http_address, sum, value};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet, stream_from};
use crate::harness::vitals::peak;
use crate::harness::{DEADLINE, wait_until};

fn relay(limits: &str) -> Relay {
    Relay::configured(&format!(
        "listen = [\"0.0.0.0:0\"]\nhttp = \"127.0.0.1:0\"\n\n[report]\nevery = \"0s\"\n\n[limits]\n{limits}\n\n\
         [[stream]]\nname = \"t\"\nsource = \"test\"\n"
    ))
    .serving("/t")
}

/// The relay's address.
fn at(relay: &Relay) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], relay.address().port()))
}

/// One of this machine's addresses for clients.
fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

fn limited(relay: &Relay, reason: &str) -> f64 {
    value(&get(http_address(relay), "/metrics").1, &format!("rtsprelay_limited_total{{reason=\"{reason}\"}}"))
}

/// A player, with the video's next sequence number.
struct Player {
    client: Client,
    next: Option<u16>,
}

impl Player {
    fn new(relay: &Relay, last: u8) -> Player {
        let mut client = Client::connect_from(ip(last), at(relay));
        client.play_everything(&format!("rtsp://{}/t", at(relay)));
        Player { client, next: None }
    }

    /// Receives whole frames, and checks that nothing is missing.
    fn frames(&mut self, count: usize) {
        for _ in 0..count {
            for packet in self.client.frame_on(0) {
                self.follows(&packet);
            }
        }
    }

    /// The same for everything that has arrived, because a client that receives one frame at a time between other work may be too slow.
    fn keep_up(&mut self) {
        while let Some(packet) = self.client.packet_within(Duration::ZERO) {
            if packet.channel == 0 {
                self.follows(&packet);
            }
        }
    }

    fn follows(&mut self, packet: &Packet) {
        assert!(self.next.is_none_or(|next| next == packet.seq()), "a packet is missing");
        self.next = Some(packet.seq().wrapping_add(1));
    }
}

#[test]
fn a_thousand_half_open_and_dripping_connections_keep_nobody_out() {
    let _turn = beside_others();
    // Long enough for all of them to connect before the first times out, so it is the limit that evicts them.
    let relay = relay("clients = 200\nclients_per_address = 0\nhandshake_timeout = \"8s\"");
    let mut player = Player::new(&relay, 1);
    player.frames(5);
    let connections = || value(&get(http_address(&relay), "/metrics").1, "rtsprelay_connections ");
    let most = (strangers_max(200) + 3) as f64;
    let mut crowd = Vec::new();
    for number in 0..1_000 {
        let mut stream = stream_from(ip(2), at(&relay));
        if number % 2 == 0 {
            // The relay may already have closed it.
            let _ = stream.write_all(b"O");
        }
        crowd.push(stream);
        if number % 100 == 0 {
            player.frames(1);
            // More at once than it evicts others for would be refused.
            wait_until("others have been closed for them", DEADLINE, || {
                player.keep_up();
                connections() <= most
            });
        }
    }
    // Those in the kernel's accept queue are neither connected yet nor refused.
    wait_until("the crowd has been cut down", DEADLINE, || {
        player.keep_up();
        connections() <= most && limited(&relay, "without_session") >= 700.0
    });
    // Others are accepted, also from the crowd's address.
    Player::new(&relay, 3).frames(5);
    player.frames(1);
    player.keep_up();
    Player::new(&relay, 2).frames(5);
    // One byte now and then is no request.
    let start = Instant::now();
    while limited(&relay, "handshake_timeout") < STRANGERS_MIN as f64 / 2.0 {
        assert!(start.elapsed() < DEADLINE, "the dripping ones are not closed");
        for stream in crowd.iter_mut().step_by(2) {
            let _ = stream.write_all(b"P");
        }
        player.frames(1);
        player.keep_up();
    }
    player.frames(5);
}

#[test]
fn a_flood_of_requests_is_slowed_down_and_delays_nobody() {
    let _turn = beside_others();
    let relay = relay("clients = 200");
    let mut player = Player::new(&relay, 1);
    player.frames(5);
    let address = at(&relay);
    // All of them connect before the first one floods: a connection from a flooder's address starts without an allowance.
    let crowd: Vec<_> = (0..10)
        .map(|_| {
            let mut client = Client::connect_from(ip(2), address);
            client.request("OPTIONS", "*", &[]).expect(200);
            client
        })
        .collect();
    let floods: Vec<_> = crowd
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                let request = client.compose("DESCRIBE", &format!("rtsp://{address}/nothing/here"), &[]).repeat(50);
                let mut stream = client.stream().try_clone().unwrap();
                let reader = std::thread::spawn(move || client.is_closed());
                // Until the relay has had enough.
                while stream.write_all(request.as_bytes()).is_ok() {}
                reader.join()
            })
        })
        .collect();
    player.frames(60);
    for flood in floods {
        // The connection may have been reset within an answer.
        let _ = flood.join().expect("the flood ends");
    }
    // A busy shard reports it a moment later.
    wait_until("the floods are counted", DEADLINE, || limited(&relay, "request_rate") >= 10.0);
    let answered = "half of 10 allowances of 200 requests were answered";
    wait_until(answered, DEADLINE, || limited(&relay, "unknown_stream") >= 1_000.0);
    assert!(relay.printed().lines().count() < 100, "a flood fills no log");
    player.frames(5);
}

#[test]
fn an_address_gets_its_share() {
    let _turn = beside_others();
    let relay = relay("clients = 100\nclients_per_address = 2");
    let mut players = [Player::new(&relay, 2), Player::new(&relay, 2)];
    let url = format!("rtsp://{}/t", at(&relay));
    let mut third = Client::connect_from(ip(2), at(&relay));
    let tracks = crate::harness::rtsp::tracks(&third.describe(&url).expect(200));
    third.setup(&tracks[0], 0, 1).expect(453);
    wait_until("it is counted", DEADLINE, || limited(&relay, "sessions_per_address") >= 1.0);
    // Further ones do not even get an answer, …
    let mut more: Vec<Client> = (0..8).map(|_| Client::connect_from(ip(2), at(&relay))).collect();
    assert!(more.last_mut().unwrap().is_closed());
    // … others do.
    Player::new(&relay, 3).frames(5);
    for player in &mut players {
        player.frames(5);
    }
    let [_, leaves] = players;
    drop((leaves, third, more));
    wait_until("the place is free again", DEADLINE, || {
        let mut client = Client::connect_from(ip(2), at(&relay));
        client.is_served("OPTIONS", &url) && client.setup(&tracks[0], 0, 1).status == 200
    });
}

/// The claims of docs/SITES.md about small machines. The binary is a test build, of which more is resident than of a release.
#[test]
fn one_camera_and_ten_viewers_have_room_in_64_mib() {
    /// 4 Mbit/s at 30 frames/s, for half a minute; a keyframe every two seconds.
    const FRAME_BYTES: usize = 16_000;
    const FRAMES: usize = 900;
    const GOP: usize = 60;
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 1\nqueue.log_bytes = \"8MiB\"\n\n\
         [[stream]]\nname = \"t\"\nsource = \"{}\"\n",
        camera.url()
    ));
    camera.wait_playing();
    camera.keyframe(4 * FRAME_BYTES);
    let relay = relay.serving("/t");
    let mut viewers: Vec<Client> = (0..10).map(|_| relay.player("/t")).collect();
    for frame in 1..FRAMES {
        if frame % GOP == 0 {
            camera.keyframe(4 * FRAME_BYTES);
        } else {
            camera.delta_frame(FRAME_BYTES);
        }
        for viewer in &mut viewers {
            viewer.frame_on(0);
        }
    }
    let metrics = get(http_address(&relay), "/metrics").1;
    let (log, peak) = (sum(&metrics, "rtsprelay_log_bytes"), peak(&relay));
    println!("{} KiB resident at most, {} KiB of media in the log", peak / 1_024, log / 1_024.0);
    assert!(log > 1_000_000.0, "the log is in use: {log}");
    assert!(peak < 64 * 1_024 * 1_024, "{peak} bytes were resident");
}
