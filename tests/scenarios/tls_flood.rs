//! A flood of TLS handshakes, more than the relay can compute.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::harness::machine::{alone, only_when_idle};
use crate::harness::program::run;
use crate::harness::relay::Relay;
use crate::harness::rtsp::Client;
use crate::harness::{DEADLINE, scratch_file, wait_until};

/// A certificate with an RSA key, the most expensive kind, and the key; both files are removed when it is dropped.
pub struct Rsa(PathBuf, PathBuf);

impl Rsa {
    pub fn new() -> Rsa {
        let made = Rsa(scratch_file("rsa.pem"), scratch_file("rsa-key.pem"));
        let (path, key) = (made.0.to_str().unwrap(), made.1.to_str().unwrap());
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"];
        let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        let openssl = run(DEADLINE, "openssl", &[&request[..], &names, &["-keyout", key, "-out", path]].concat());
        assert!(openssl.status.success(), "{openssl:?}");
        made
    }

    /// The configuration keys.
    pub fn keys(&self) -> String {
        format!("tls_certificate = {:?}\ntls_key = {:?}\n", self.0, self.1)
    }

    /// The configuration of a client that trusts only this certificate.
    pub fn trusted(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.0).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(rtsprelay::trust::provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }
}

impl Drop for Rsa {
    fn drop(&mut self) {
        for file in [&self.0, &self.1] {
            // Scratch files; cleaning the build directory removes them if they stay.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The client's end of a connection.
pub fn connection(trusted: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(trusted), ServerName::try_from("127.0.0.1").unwrap()).unwrap()
}

#[test]
fn players_come_in_while_many_addresses_begin_handshakes_that_they_never_end() {
    const PLAYERS: usize = 10;
    /// Incomplete handshakes that the attackers keep open.
    const HELD: usize = 3_000;
    const ATTACKERS: u8 = 2;
    let _turn = alone();
    let certificate = Rsa::new();
    let keys = certificate.keys();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\nlisten_tls = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{keys}\n\
         [[stream]]\nname = \"t\"\nsource = \"test\"\n"
    ))
    .serving("/");
    let trusted = certificate.trusted();
    let address = relay.tls_address();
    let hello = {
        let mut bytes = Vec::new();
        connection(&trusted).write_tls(&mut bytes).unwrap();
        bytes
    };
    // More than the relay can compute.
    let rate = answered_in_a_second(address, &hello) * 3 / 2;
    let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Whatever the result, the flood ends with the test.
        let _ends = Over(&over);
        for attacker in 0..ATTACKERS {
            let (over, sent, hello) = (&over, &sent, &hello);
            scope.spawn(move || {
                only_when_idle();
                let mut open = std::collections::VecDeque::new();
                let began = Instant::now();
                for number in 0_u32.. {
                    // Sends what a busy machine has kept from being sent.
                    let due = began + Duration::from_secs(1) * number / (rate / u32::from(ATTACKERS));
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let [_, high, low, _] = (number % 60_000).to_be_bytes();
                    let [.., last] = number.to_be_bytes();
                    let from = IpAddr::from([127, 10 + attacker, high.wrapping_add(low), last]);
                    let Some(mut stream) = try_from(from, address) else { continue };
                    if stream.write_all(hello).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                        open.push_back(stream);
                    }
                    if open.len() > HELD / usize::from(ATTACKERS) {
                        open.pop_front();
                    }
                }
            });
        }
        wait_until("the flood is there", DEADLINE, || sent.load(Ordering::Relaxed) >= 2 * HELD);
        let (begun, since) = (sent.load(Ordering::Relaxed), Instant::now());
        let handshakes = || sent.load(Ordering::Relaxed) - begun;
        // More than one after the other could be answered. Attackers that were kept from the processor catch up.
        let is_flood = || handshakes() as f64 > f64::from(rate) * 2.0 / 3.0 * since.elapsed().as_secs_f64();
        for player in (0..).take_while(|player| *player < PLAYERS || !is_flood()) {
            let is_late = player >= PLAYERS && since.elapsed() > 4 * DEADLINE;
            assert!(!is_late, "{} handshakes were no flood", handshakes());
            let mut tries = 0;
            wait_until(&format!("player {player} is served"), 2 * DEADLINE, || {
                tries += 1;
                plays(address, &trusted)
            });
            println!("player {player} came in at try {tries}");
        }
        println!("beside {} handshakes, {rate} a second", handshakes());
    });
}

/// How many handshakes the relay answers in a second, one after the other, on this machine; its answer is most of its work.
fn answered_in_a_second(address: SocketAddr, hello: &[u8]) -> u32 {
    let (begun, mut answered) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(1) {
        let mut stream = try_from(IpAddr::from([127, 9, 0, 1]), address).expect("a relay that listens");
        stream.write_all(hello).expect("an open connection");
        assert!(stream.read(&mut [0; 64]).is_ok_and(|count| count > 0), "no answer");
        answered += 1;
    }
    answered
}

/// Sets the flag when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn try_from(from: IpAddr, address: SocketAddr) -> Option<std::net::TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::new(from, 0).into()).ok()?;
    socket.connect_timeout(&address.into(), Duration::from_secs(5)).ok()?;
    Some(socket.into())
}

/// Whether a new connection gets a TLS response.
fn plays(address: SocketAddr, trusted: &Arc<ClientConfig>) -> bool {
    let Some(stream) = try_from([127, 0, 0, 1].into(), address) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    let (mut stream, mut tls) = (stream, connection(trusted));
    while tls.is_handshaking() {
        if tls.complete_io(&mut stream).is_err() {
            return false;
        }
    }
    let mut client = Client::over(stream).by_tls(tls);
    // The relay may have evicted it before it read the end of the handshake.
    client.is_served("DESCRIBE", &format!("rtsps://{address}/t"))
}
