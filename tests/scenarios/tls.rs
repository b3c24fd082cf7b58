//! RTSPS: players get the same over TLS as without it, and a client that stalls its handshake or stops reading delays no other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use rtsprelay::limits::{TLS_HANDSHAKES_NICE, connections_many, strangers_max, tls_half_open_max};

use crate::harness::camera::Camera;
use crate::harness::http::{get, http_address, value};
use crate::harness::machine::{alone, beside_others};
use crate::harness::program::{Program, run};
use crate::harness::relay::{BINARY, Relay, Uring, command};
use crate::harness::rtsp::{Client, Packet, stream_from, tracks};
use crate::harness::{DEADLINE, SYSTEM_PYTHON, scratch_file, test_file, wait_until};

/// How long a player may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate for 127.0.0.1 and its key, in files.
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    pub fn new() -> Certificate {
        let made = Certificate { certificate: scratch_file("certificate.pem"), key: scratch_file("key.pem") };
        made.renew(None);
        made
    }

    /// Writes another certificate to the same files; one that expired in 2020 if `expired`.
    fn renew(&self, expired: impl Into<Option<i32>>) {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        if let Some(year) = expired.into() {
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&self.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&self.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&self.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The file that a client may trust.
    pub fn file(&self) -> &Path {
        &self.certificate
    }

    /// The configuration keys for it.
    pub fn keys(&self) -> String {
        format!("tls_certificate = {:?}\ntls_key = {:?}\n", self.certificate, self.key)
    }

    /// The configuration of a client that trusts only this certificate.
    pub fn trusted(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.certificate).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(rtsprelay::trust::provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        for file in [&self.certificate, &self.key] {
            // Scratch files; cleaning the build directory removes them if they stay.
            let _ = std::fs::remove_file(file);
        }
    }
}

pub fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap()
}

fn connect(relay: &Relay, trusted: &Arc<ClientConfig>) -> Client {
    Client::connect(relay.tls_address()).by_tls(connection(trusted))
}

fn url(relay: &Relay, path: &str) -> String {
    format!("rtsps://{}{path}", relay.tls_address())
}

fn configuration(certificate: &Certificate, more: &str) -> String {
    let keys = certificate.keys();
    format!(
        "listen = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{keys}\n{more}\n[[stream]]\nname = \"t\"\nsource = \"test\"\n"
    )
}

fn relay(certificate: &Certificate, more: &str) -> Relay {
    Relay::configured(&configuration(certificate, more)).serving("/")
}

fn status(relay: &Relay) -> Value {
    serde_json::from_str(&get(http_address(relay), "/status").1).expect("JSON")
}

fn assert_unbroken(packets: &[Packet]) {
    for pair in packets.windows(2) {
        assert_eq!(pair[1].seq(), pair[0].seq().wrapping_add(1), "a packet is missing");
    }
}

/// The nice value of a thread of the relay (proc_pid_stat(5)).
fn nice(relay: &Relay, thread: &str) -> i32 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).expect("/proc of the relay");
    // Other threads may end meanwhile.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let of_thread = stats.filter_map(|stat| stat.split_once(&format!("({thread}) ")).map(|(_, rest)| rest.to_owned()));
    // The 19th field; the name is the second.
    of_thread.map(|rest| rest.split(' ').nth(16).unwrap().parse().unwrap()).next().expect("the thread")
}

#[test]
fn handshakes_give_way_to_media() {
    let _turn = beside_others();
    let relay = relay(&Certificate::new(), "");
    let of_media = nice(&relay, "shard-0");
    assert_eq!(nice(&relay, "tls-0"), of_media);
    let wanted = (of_media + TLS_HANDSHAKES_NICE).min(19);
    wait_until("handshakes give way", DEADLINE, || nice(&relay, "tls-handshakes") == wanted);
}

#[test]
fn ffmpeg_plays_by_tls() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let of = ["-v", "error", "-read_intervals", "%+2", "-show_entries", "frame=media_type", "-of", "csv"];
    let finished = run(PATIENCE, "ffprobe", &[&of[..], &[&url(&relay, "/")]].concat()).expect_silent_success();
    let frames = finished.stdout.lines().filter(|line| line.contains("video")).count();
    assert!(frames >= 45, "{frames} frames in two seconds: {}", finished.stdout);
}

#[test]
fn ffprobe_told_to_check_the_certificate_plays() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    // Not every ffprobe can show that a wrong certificate is rejected: in 5.1, the RTSP code passes neither option on to TLS.
    let checks = ["-v", "error", "-tls_verify", "1", "-ca_file", certificate.certificate.to_str().unwrap()];
    let url = format!("rtsps://localhost:{}/t", relay.tls_address().port());
    let shown = ["-show_entries", "stream=codec_type", "-of", "csv", &url];
    let seen = run(PATIENCE, "ffprobe", &[&checks[..], &shown].concat()).expect_silent_success();
    assert!(seen.stdout.contains("video") && seen.stdout.contains("audio"), "{seen:#?}");
}

#[test]
fn rsa_keys_of_both_kinds_are_taken() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let (path, key) = (certificate.certificate.to_str().unwrap(), certificate.key.to_str().unwrap());
    let made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"];
    let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    assert!(run(PATIENCE, "openssl", &[&made[..], &names, &["-keyout", key, "-out", path]].concat()).status.success());
    for kind in ["BEGIN PRIVATE KEY", "BEGIN RSA PRIVATE KEY"] {
        if kind.contains("RSA") {
            assert!(run(PATIENCE, "openssl", &["rsa", "-traditional", "-in", key, "-out", key]).status.success());
        }
        assert!(std::fs::read_to_string(&certificate.key).unwrap().contains(kind));
        let relay = relay(&certificate, "");
        let mut client = connect(&relay, &certificate.trusted());
        client.play_everything(&url(&relay, "/t"));
        client.frame_on(0);
    }
}

#[test]
fn sockets_of_the_service_manager_are_told_apart_by_their_names() {
    /// Passes descriptors like systemd: from 3 on, with their names and the process that they are for.
    const MANAGER: &str = "import os, socket, sys\n\
        sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]\n\
        print('\\n'.join('handed over %d' % s.getsockname()[1] for s in sockets), flush=True)\n\
        high = [os.dup(os.dup2(s.fileno(), 20 + n)) for n, s in enumerate(sockets)]\n\
        [os.dup2(fd, 3 + n) for n, fd in enumerate(high)]\n\
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='rtsps:rtsp')\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let _turn = beside_others();
    let certificate = Certificate::new();
    let path = scratch_file("tls-sockets.toml");
    std::fs::write(&path, configuration(&certificate, "")).unwrap();
    let mut manager = std::process::Command::new(SYSTEM_PYTHON);
    manager.args(["-c", MANAGER, BINARY, "run", "--config", path.to_str().unwrap()]);
    let relay = Relay::start(manager).serving("/t");
    let printed = relay.printed();
    let ports: Vec<u16> = printed.lines().filter_map(|line| line.strip_prefix("handed over ")?.parse().ok()).collect();
    // The first one's name says that it is for RTSPS.
    assert_eq!([relay.tls_address().port(), relay.address().port()], ports[..], "{printed}");
    let mut client = connect(&relay, &certificate.trusted());
    client.play_everything(&url(&relay, "/t"));
    client.frame_on(0);
    // A scratch file; cleaning the build directory removes it if it stays.
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_fault_at_one_client_ends_that_one_alone() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let path = scratch_file("tls-fault.toml");
    std::fs::write(&path, configuration(&certificate, "workers = 1\n")).unwrap();
    let arguments = ["run", "--config", path.to_str().unwrap(), "--test-panic", "1h"];
    let relay = Relay::start(command(Uring::AsAsked, &arguments)).serving("/");
    let trusted = certificate.trusted();
    let player = || {
        let mut client = connect(&relay, &trusted);
        client.play_everything(&url(&relay, "/t"));
        client
    };
    // Both are served by the only encryption thread.
    let (mut healthy, mut broken) = (player(), player());
    let mut packets = healthy.frame_on(0);
    let text = broken.compose("OPTIONS", &url(&relay, "/t"), &[("X-Test-Panic", "tls")]);
    broken.send_raw(text.as_bytes());
    wait_until("it is counted, and nothing is left of it", DEADLINE, || {
        packets.extend(healthy.frame_on(0));
        let metrics = get(http_address(&relay), "/metrics").1;
        value(&metrics, "rtsprelay_panics_total{where=\"client\"}") == 1.0 && status(&relay)["tls"]["connections"] == 1
    });
    wait_until("it is reported", DEADLINE, || relay.printed().contains("a test wants it so"));
    player().frame_on(0);
    packets.extend(healthy.frame_on(0));
    assert_unbroken(&packets);
    // A scratch file; cleaning the build directory removes it if it stays.
    let _ = std::fs::remove_file(&path);
}

#[test]
fn half_open_handshakes_leave_room_in_a_small_relay_and_for_other_addresses() {
    const CLIENTS: usize = 20;
    let _turn = beside_others();
    let certificate = Certificate::new();
    // Longer than any wait for a newcomer below: connections end only to make room for others.
    let relay = relay(&certificate, &format!("[limits]\nclients = {CLIENTS}\nhandshake_timeout = \"600s\"\n"));
    let first = stream_from([127, 0, 0, 3].into(), relay.tls_address());
    let crowd =
        |address| (0..4 * CLIENTS).map(move |_| stream_from([127, 0, 0, 2].into(), address)).collect::<Vec<_>>();
    let half_open = crowd(relay.tls_address());
    let silent = crowd(relay.address());
    let shards = available_parallelism().unwrap().get();
    let room = (tls_half_open_max(CLIENTS), strangers_max(CLIENTS).next_multiple_of(shards));
    wait_until("most are closed", DEADLINE, || {
        let told = status(&relay);
        let count = |of: &Value| of.as_u64().unwrap() as usize;
        let left = (count(&told["tls"]["half_open"]), count(&told["total"]["connections"]));
        // None of them is still on its way, or a new one among them might be refused.
        let metrics = get(http_address(&relay), "/metrics").1;
        let gone = value(&metrics, "rtsprelay_tls_handshakes_total{outcome=\"crowded_out\"}")
            + value(&metrics, "rtsprelay_limited_total{reason=\"without_session\"}")
            + value(&metrics, "rtsprelay_limited_total{reason=\"connections\"}");
        left.0 <= room.0 && left.1 <= room.1 && (left.0 + left.1) as f64 + gone >= (8 * CLIENTS + 1) as f64
    });
    // Then another one is evicted for each new connection. That takes a moment, and if many arrive in it, some are refused.
    let come = || {
        let mut newcomer = None;
        wait_until("another one has been evicted", DEADLINE, || {
            let mut client = Client::connect(relay.address());
            newcomer = client.is_served("OPTIONS", "*").then_some(client);
            newcomer.is_some()
        });
        newcomer.unwrap()
    };
    // Clients without TLS are accepted, and the client from before the crowd is still served.
    let mut plain = come();
    plain.play_everything(&relay.url("/t"));
    plain.frame_on(0);
    let mut secured = Client::over(first).by_tls(connection(&certificate.trusted()));
    secured.play_everything(&url(&relay, "/t"));
    secured.frame_on(0);
    // So are all others that may have a session, because half-open handshakes are evicted for them, too.
    let mut players = vec![plain, secured];
    while players.len() < CLIENTS {
        let mut player = come();
        player.play_everything(&relay.url("/t"));
        players.push(player);
    }
    // New clients get an answer that says that there is no room.
    let track = tracks(&players[0].describe(&relay.url("/t")).expect(200)).remove(0);
    come().setup(&track, 0, 1).expect(453);
    drop((half_open, silent));
}

#[test]
fn of_half_open_handshakes_one_gives_way_for_each_of_a_burst() {
    const CLIENTS: usize = 100;
    /// Descriptors that must be left over, for what the harness itself opened and closed.
    const FREE: usize = 4;
    const GIVEN: u64 = 6;
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, &format!("[limits]\nclients = {CLIENTS}\nhandshake_timeout = \"60s\"\n"));
    let most = connections_many(CLIENTS, available_parallelism().unwrap().get());
    let half_open: Vec<_> = (0..CLIENTS).map(|_| stream_from([127, 0, 0, 2].into(), relay.tls_address())).collect();
    let beside: Vec<_> = (CLIENTS..most - FREE).map(|_| stream_from([127, 0, 0, 3].into(), relay.address())).collect();
    let count = |told: &Value, of: &str| told.pointer(of).and_then(Value::as_u64).unwrap();
    let are_in = |wanted: (u64, u64)| {
        let told = status(&relay);
        (count(&told, "/tls/half_open"), count(&told, "/total/connections")) == wanted
    };
    let (waiting, plain) = (half_open.len() as u64, beside.len() as u64);
    wait_until("all are in", DEADLINE, || are_in((waiting, plain)));
    // After it resumes, it sees all of them.
    relay.signal(Signal::SIGSTOP);
    let burst = FREE as u64 + GIVEN;
    let burst: Vec<_> = (0..burst).map(|_| stream_from([127, 0, 0, 3].into(), relay.address())).collect();
    relay.signal(Signal::SIGCONT);
    wait_until("as many have been evicted", DEADLINE, || are_in((waiting - GIVEN, plain + burst.len() as u64)));
    assert_eq!(count(&status(&relay), "/tls/handshakes_total/crowded_out"), GIVEN);
    drop((half_open, beside, burst));
}

#[test]
fn all_players_of_a_small_relay_may_come_by_tls_at_once() {
    const CLIENTS: usize = 8;
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, &format!("[limits]\nclients = {CLIENTS}\n"));
    let trusted = certificate.trusted();
    // After it resumes, it sees all of them.
    relay.signal(Signal::SIGSTOP);
    let all: Vec<Client> = (0..CLIENTS).map(|_| connect(&relay, &trusted)).collect();
    relay.signal(Signal::SIGCONT);
    std::thread::scope(|scope| {
        for mut client in all {
            let relay = &relay;
            scope.spawn(move || {
                client.play_everything(&url(relay, "/t"));
                client.frame_on(0);
            });
        }
    });
    let crowded_out = &status(&relay)["tls"]["handshakes_total"]["crowded_out"];
    assert_eq!(crowded_out, &0);
}

#[test]
fn gstreamer_plays_by_tls_and_checks_the_certificate() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let play = |ca: &Path| {
        let mut command = std::process::Command::new(SYSTEM_PYTHON);
        command.arg(test_file("players/gst_player.py")).args([&url(&relay, "/t"), "tcp", "45"]).arg(ca);
        let finished = Program::start(command).finish(PATIENCE).expect_silent_success();
        serde_json::from_str::<Value>(&finished.stdout).expect("JSON")
    };
    let seen = play(&certificate.certificate);
    assert_eq!(seen["problems"].as_array().map(Vec::len), Some(0), "{seen}");
    assert_eq!((&seen["corrupt"], seen["times"].as_array().map(|times| times.len() >= 45)), (&0.into(), Some(true)));
    // A certificate signed by another CA.
    let other = Certificate::new();
    let seen = play(&other.certificate);
    assert!(seen["problems"][0].as_str().is_some_and(|problem| problem.contains("Failed to connect")), "{seen}");
    assert_eq!(seen["times"].as_array().map(Vec::len), Some(0), "{seen}");
}

#[test]
fn what_comes_by_tls_is_what_comes_without_it() {
    /// By track, for each client.
    const PACKETS_MIN: usize = 60;
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let trusted = certificate.trusted();
    let end = Instant::now() + Duration::from_secs(4);
    let collect = |mut client: Client, url: String| {
        let (_, played) = client.play_everything(&url);
        let rtp_info = played.rtp_info();
        assert!(rtp_info.iter().all(|(track, ..)| track.starts_with(&url)), "{rtp_info:?}");
        let (mut video, mut audio) = (Vec::new(), Vec::new());
        while Instant::now() < end || video.len() < PACKETS_MIN || audio.len() < PACKETS_MIN {
            let packet = client.packet();
            match packet.channel {
                0 => video.push(packet),
                2 => audio.push(packet),
                _ => {}
            }
        }
        assert_eq!(video[0].seq(), rtp_info[0].1, "RTP-Info names the first packet");
        client.request("TEARDOWN", &url, &[]).expect(200);
        (video, audio)
    };
    let all: Vec<(Vec<Packet>, Vec<Packet>)> = std::thread::scope(|scope| {
        let (relay, trusted, collect) = (&relay, &trusted, &collect);
        let secured = (0..10).map(|_| scope.spawn(move || collect(connect(relay, trusted), url(relay, "/t"))));
        let plain = (0..10).map(|_| scope.spawn(move || collect(Client::connect(relay.address()), relay.url("/t"))));
        let clients: Vec<_> = secured.chain(plain).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut known = std::collections::HashMap::new();
    for (video, audio) in &all {
        for (track, packets) in [video, audio].into_iter().enumerate() {
            assert_unbroken(packets);
            for packet in packets {
                let same = known.entry((track, packet.seq())).or_insert(&packet.bytes);
                assert_eq!(*same, &packet.bytes, "track {track}, packet {}", packet.seq());
            }
        }
    }
    let told = status(&relay);
    assert_eq!((&told["tls"]["half_open"], told["tls"]["handshakes_total"]["done"].as_u64()), (&0.into(), Some(10)));
}

#[test]
fn the_status_knows_who_comes_by_tls() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let mut client = connect(&relay, &certificate.trusted());
    let described = client.describe(&url(&relay, "/t")).expect(200);
    let base = described.header("Content-Base").unwrap().to_owned();
    assert_eq!(base, url(&relay, "/t/"));
    // Datagrams would not be encrypted.
    let track = &tracks(&described)[0];
    client.request("SETUP", &track.url, &[("Transport", "RTP/AVP;unicast;client_port=40000-40001")]).expect(461);
    let both = "RTP/AVP;unicast;client_port=40000-40001,RTP/AVP/TCP;unicast;interleaved=0-1";
    let answer = client.request("SETUP", &track.url, &[("Transport", both)]).expect(200);
    client.session = answer.session().map(str::to_owned);
    client.play(&base).expect(200);
    client.frame_on(0);
    wait_until("the status knows the client", DEADLINE, || {
        let status = status(&relay);
        let told = &status["clients"][0];
        told["tls"] == true
            && told["rtt_us"].as_u64() > Some(0)
            && told["address"].as_str() == Some(&client.stream().local_addr().unwrap().to_string())
            && status["tls"]["connections"] == 1
    });
    drop(client);
    wait_until("nothing is left of it", DEADLINE, || {
        let status = status(&relay);
        status["tls"]["connections"] == 0 && status["total"]["connections"] == 0
    });
}

#[test]
fn a_client_is_told_when_the_relay_stops() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let mut client = connect(&relay, &certificate.trusted());
    client.play_everything(&url(&relay, "/t"));
    let mut packets = client.frame_on(0);
    relay.signal(Signal::SIGTERM);
    // Its last packets are RTCP's BYE, then TLS's close_notify: without that the end would be an error.
    while let Some(packet) = client.packet_or_end() {
        if packet.channel == 0 {
            packets.push(packet);
        }
    }
    assert_unbroken(&packets);
    let (status, took, printed) = relay.finish(DEADLINE);
    assert!(status.success() && took < Duration::from_secs(10), "{printed}");
    assert!(!printed.contains("abandoned"), "{printed}");
}

#[test]
fn the_wrong_port_says_so() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let relay = relay(&certificate, "");
    let mut plain = Client::connect(relay.tls_address());
    plain.send_raw(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    let answer = plain.answer().expect(400);
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(plain.is_closed());
    let mut secured = connection(&certificate.trusted());
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    secured.complete_io(&mut stream).expect_err("no TLS here");
    // Neither.
    let mut rubbish = TcpStream::connect(relay.tls_address()).unwrap();
    rubbish.write_all(b"\x00\x01\x02").unwrap();
    assert_eq!(rubbish.read(&mut [0; 8]).unwrap_or(0), 0);
    let mut bent = TcpStream::connect(relay.tls_address()).unwrap();
    bent.write_all(b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff").unwrap();
    assert_eq!(bent.read(&mut [0; 8]).unwrap_or(0), 0);
    for said in [
        "speaks RTSP without TLS",
        "the client uses TLS, which this port does not support; use rtsp:// here, or a listen_tls port",
        "client does not speak TLS on a listen_tls port",
        "the TLS handshake failed",
    ] {
        wait_until(said, DEADLINE, || relay.printed().contains(said));
    }
}

#[test]
fn a_thousand_half_open_handshakes_delay_nobody() {
    let _turn = alone();
    let certificate = Certificate::new();
    // Long enough for all of them to connect before the first one times out.
    let relay = relay(&certificate, "[limits]\nhandshake_timeout = \"8s\"\n");
    let trusted = certificate.trusted();
    let mut plain = Client::connect(relay.address());
    plain.play_everything(&relay.url("/t"));
    // It reads all the time: a client that does not is slow, and skips.
    let stop = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut packets = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                packets.extend(plain.frame_on(0));
            }
            packets
        }
    });
    let address = relay.tls_address();
    let hello = {
        let mut bytes = Vec::new();
        connection(&trusted).write_tls(&mut bytes).unwrap();
        bytes
    };
    let half_open: Vec<TcpStream> = (0..1_100)
        .map(|number| {
            let mut stream = TcpStream::connect(address).unwrap();
            // Some send nothing, some disconnect in the middle, some leave the relay's message unanswered.
            stream.write_all(&hello[..[0, 1, hello.len() / 2, hello.len()][number % 4]]).unwrap();
            stream
        })
        .collect();
    wait_until("they are half open", DEADLINE, || status(&relay)["tls"]["half_open"].as_u64() >= Some(1_000));
    // A newcomer is served nevertheless: the oldest is evicted for it.
    let mut secured = connect(&relay, &trusted);
    secured.play_everything(&url(&relay, "/t"));
    let mut by_tls = Vec::new();
    for _ in 0..30 {
        by_tls.extend(secured.frame_on(0));
    }
    assert_unbroken(&by_tls);
    let counted = status(&relay);
    stop.store(true, Ordering::Relaxed);
    let packets = watching.join().expect("who watches goes on");
    assert!(packets.len() > 30, "{} packets", packets.len());
    assert_unbroken(&packets);
    let total = |outcome: &str| counted["tls"]["handshakes_total"][outcome].as_u64();
    assert!(total("crowded_out") >= Some(76), "{counted}");
    assert_eq!((total("done"), counted["total"]["skips_total"].as_u64()), (Some(1), Some(0)), "{counted}");
    wait_until("they are closed", DEADLINE, || status(&relay)["tls"]["half_open"] == 0);
    drop(half_open);
}

#[test]
fn a_client_that_reads_nothing_skips_and_is_closed() {
    /// More than all buffers between shard and client hold.
    const BLOCKING_FRAME_BYTES: usize = 3_000_000;
    let _turn = alone();
    let certificate = Certificate::new();
    let camera = Camera::start();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{}\n[queue]\nstall_timeout = \"3s\"\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\n",
        certificate.keys(),
        camera.url()
    ));
    camera.wait_playing();
    camera.keyframe(2_000);
    let relay = relay.serving("/cam");
    let trusted = certificate.trusted();
    let play = |narrow: Option<usize>| {
        let client = match narrow {
            Some(bytes) => Client::connect_narrow(relay.tls_address(), bytes),
            None => Client::connect(relay.tls_address()),
        };
        let mut client = client.by_tls(connection(&trusted));
        client.play_everything(&url(&relay, "/cam"));
        client.frame_on(0);
        client
    };
    let mut slow = play(Some(8 * 1024));
    let mut healthy = play(None);
    camera.keyframe(BLOCKING_FRAME_BYTES);
    let mut all = healthy.frame_on(0);
    // It stops for longer than queue.age: what it lacks beyond the current frame is skipped.
    let blocked = Instant::now();
    while blocked.elapsed() < Duration::from_millis(1_500) {
        camera.keyframe(4_000);
        all.extend(healthy.frame_on(0));
    }
    let mut begun = slow.frame_on(0);
    wait_until("it skips", DEADLINE, || {
        camera.delta_frame(100);
        all.extend(healthy.frame_on(0));
        slow.packet_within(Duration::from_millis(1)).into_iter().for_each(|packet| begun.push(packet));
        status(&relay)["clients"].as_array().unwrap().iter().any(|client| client["skips_total"].as_u64() > Some(0))
    });
    // Now it reads no more at all.
    let stalled = |relay: &Relay| status(relay)["clients"].as_array().unwrap().len() == 1;
    wait_until("it is closed", DEADLINE, || {
        camera.keyframe(BLOCKING_FRAME_BYTES / 10);
        all.extend(healthy.frame_on(0));
        stalled(&relay)
    });
    assert_unbroken(&all);
    wait_until("nothing of it is left", DEADLINE, || status(&relay)["tls"]["connections"] == 1);
}

#[test]
fn a_new_certificate_is_shown_to_new_clients_and_a_bad_one_to_none() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let path = scratch_file("tls-reload.toml");
    std::fs::write(&path, configuration(&certificate, "")).unwrap();
    let relay = Relay::start(command(Uring::AsAsked, &["run", "--config", path.to_str().unwrap()])).serving("/");
    let old = certificate.trusted();
    let mut watching = connect(&relay, &old);
    watching.play_everything(&url(&relay, "/t"));
    let mut packets = watching.frame_on(0);
    let mut reload = |said: &str| {
        let before = relay.printed().matches(said).count();
        relay.signal(Signal::SIGHUP);
        wait_until(said, DEADLINE, || {
            packets.extend(watching.frame_on(0));
            relay.printed().matches(said).count() > before
        });
    };

    certificate.renew(None);
    reload("the certificate for rtsps changed");
    let greets = |config: &Arc<ClientConfig>| {
        let mut stream = TcpStream::connect(relay.tls_address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut tls = connection(config);
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok::<_, std::io::Error>(())
    };
    let new = certificate.trusted();
    greets(&new).expect("the new certificate");
    greets(&old).expect_err("the old certificate");

    // Two files that do not belong together: neither is used.
    let other = Certificate::new();
    std::fs::copy(&other.key, &certificate.key).unwrap();
    reload("the relay keeps the current one");
    let fault = "is not the key of the first certificate";
    wait_until(fault, DEADLINE, || relay.printed().contains(fault));
    greets(&new).expect("the certificate before");
    // An expired one is used, with a warning.
    certificate.renew(2020);
    reload("expired at 2020-01-01");
    reload("configuration reloaded");
    assert_unbroken(&packets);
    // A scratch file; cleaning the build directory removes it if it stays.
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_check_says_what_is_wrong_with_the_files() {
    let certificate = Certificate::new();
    let check = |text: &str| {
        let path = scratch_file("tls-check.toml");
        std::fs::write(&path, text).unwrap();
        let finished = run(PATIENCE, BINARY, &["check", "--config", path.to_str().unwrap()]);
        // A scratch file; cleaning the build directory removes it if it stays.
        let _ = std::fs::remove_file(&path);
        (finished.status.code(), finished.stdout + &finished.stderr)
    };
    let good = configuration(&certificate, "");
    let (code, said) = check(&good);
    assert!(code == Some(0) && said.contains("127.0.0.1:0 (TLS)"), "{said}");
    let refused = |text: String, line: &str, parts: &[&str]| {
        let (code, said) = check(&text);
        assert_eq!(code, Some(2), "{said}");
        for part in parts.iter().chain([&line]) {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    };
    let file = |path: &Path| format!("{path:?}");
    let (certificate_file, key_file) = (file(&certificate.certificate), file(&certificate.key));
    refused(good.replace(&key_file, "\"/nonexistent.pem\""), ":5:", &["tls_key", "/nonexistent.pem cannot be read"]);
    refused(good.replace(&certificate_file, &key_file), ":4:", &["tls_certificate", "holds no certificate"]);
    refused(good.replace(&key_file, &certificate_file), ":5:", &["tls_key", "holds no private key"]);
    let other = Certificate::new();
    refused(good.replace(&key_file, &file(&other.key)), ":5:", &["is not the key of the first certificate"]);
    refused(good.replace("tls_key", "#"), ":2:", &["listen_tls", "add tls_key"]);
    refused(good.replace("listen_tls", "#"), ":4:", &["tls_certificate", "add listen_tls"]);
    certificate.renew(2020);
    let (code, said) = check(&good);
    assert!(code == Some(0) && said.contains("expired at 2020-01-01") && said.contains("renew it"), "{said}");
}
