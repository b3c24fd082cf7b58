//! Behind a balancer that sends the PROXY protocol, clients keep their own addresses: rights and limits per address apply, and the
//! header is accepted only from the balancer.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::Value;
use tokio_rustls::rustls::StreamOwned;

use crate::harness::http::{get, http_address, https_address, sum};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, stream_from, tracks};
use crate::harness::{DEADLINE, wait_until};
use crate::tls::{Certificate, connection};

/// The balancer's address; the relay listens at 127.0.0.1.
const BALANCER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

fn relay(more: &str) -> Relay {
    let head = "listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nproxy_protocol_from = [\"127.0.0.2\"]\n";
    Relay::configured(&format!("{head}{more}\n[[stream]]\nname = \"t\"\nsource = \"test\"\n"))
}

/// A header of version 2 (`doc/proxy-protocol.txt` section 2.2) for a client at `from`.
pub fn header(from: &str) -> Vec<u8> {
    let from: SocketAddr = from.parse().unwrap();
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match from {
        SocketAddr::V4(from) => {
            header.extend([0x11, 0, 12]);
            header.extend(from.ip().octets());
            header.extend([198, 51, 100, 1]);
        }
        SocketAddr::V6(from) => {
            header.extend([0x21, 0, 36]);
            header.extend(from.ip().octets());
            header.extend([0; 16]);
        }
    }
    header.extend(from.port().to_be_bytes());
    header.extend(8554_u16.to_be_bytes());
    header
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn by_balancer(relay: &Relay, header: &[u8]) -> Client {
    let mut client = Client::connect_from(BALANCER, relay.address());
    client.send_raw(header);
    client
}

fn addresses(relay: &Relay) -> Vec<String> {
    let status: Value = serde_json::from_str(&get(http_address(relay), "/status").1).expect("JSON");
    status["clients"].as_array().unwrap().iter().map(|client| client["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn clients_are_known_by_their_own_addresses() {
    let _turn = beside_others();
    let relay = relay("limits.clients_per_address = 1\n").serving("/");
    let mut first = by_balancer(&relay, &header("192.0.2.7:1000"));
    first.play_everything(&relay.url("/"));
    first.frame_on(0);
    let mut second = by_balancer(&relay, &header("[2001:db8::9]:1001"));
    second.play_everything(&relay.url("/"));
    second.frame_on(0);
    // The balancer's own connection.
    let mut checks = by_balancer(&relay, LOCAL);
    checks.play_everything(&relay.url("/"));
    checks.frame_on(0);
    let found = addresses(&relay);
    assert_eq!(found.len(), 3, "{found:?}");
    for (at, wanted) in [(0, "192.0.2.7:1000"), (1, "[2001:db8::9]:1001"), (2, "127.0.0.2:")] {
        assert!(found.iter().any(|found| found.starts_with(wanted)), "{at}: {wanted} is not in {found:?}");
    }
    // Its address has its own limit; others have theirs.
    let mut more = by_balancer(&relay, &header("192.0.2.7:1002"));
    let tracks = tracks(&more.describe(&relay.url("/")).expect(200));
    more.setup(&tracks[0], 0, 1).expect(453);
    // Datagrams would come from another address than the one that it connected to.
    let mut datagrams = by_balancer(&relay, &header("192.0.2.8:1000"));
    datagrams.request("SETUP", &tracks[0].url, &[("Transport", "RTP/AVP;unicast;client_port=20000-20001")]).expect(461);
    datagrams.setup(&tracks[0], 0, 1).expect(200);
    // A client that connects directly needs no header, and may not send one.
    Client::connect(relay.address()).describe(&relay.url("/")).expect(200);
}

#[test]
fn a_users_addresses_are_those_of_the_clients() {
    let _turn = beside_others();
    let user = "basic = true\n[[user]]\nname = \"a\"\npassword = \"b\"\nfrom = [\"192.0.2.0/24\"]\n";
    let relay = relay(user);
    let url = relay.url("/t");
    let asked = |from: &str| {
        let mut client = by_balancer(&relay, &header(from));
        client.request("DESCRIBE", &url, &[("Authorization", "Basic YTpi")]).status
    };
    wait_until("its stream is up", DEADLINE, || asked("192.0.2.1:1") == 200);
    assert_eq!(asked("198.51.100.1:1"), 401);
}

#[test]
fn nobody_else_is_believed_and_a_balancer_without_a_header_is_closed() {
    let _turn = beside_others();
    let relay = relay("limits.handshake_timeout = \"1s\"\n").serving("/");
    let mut stranger = Client::connect(relay.address());
    stranger.send_raw(&[&header("192.0.2.7:1000")[..], b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"].concat());
    assert!(stranger.is_closed());
    wait_until("the log says whose header it was", DEADLINE, || {
        let printed = relay.printed();
        printed.lines().any(|line| line.contains("client=127.0.0.1:") && line.contains("not in proxy_protocol_from"))
    });
    for bytes in [
        &b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1000 8554\r\n",
        &header("192.0.2.7:1000")[..20],
    ] {
        assert!(by_balancer(&relay, bytes).is_closed(), "{bytes:?}");
    }
    wait_until("they are counted", DEADLINE, || {
        let metrics = get(http_address(&relay), "/metrics").1;
        metrics.contains("rtsprelay_limited_total{reason=\"proxy_header\"} 3\n")
    });
    assert_eq!(sum(&get(http_address(&relay), "/metrics").1, "rtsprelay_clients"), 0.0);
}

#[test]
fn a_header_may_come_in_pieces() {
    let _turn = beside_others();
    let relay = relay("").serving("/");
    let mut client = Client::connect_from(BALANCER, relay.address());
    for byte in header("192.0.2.7:1000") {
        client.send_raw(&[byte]);
    }
    client.describe(&relay.url("/")).expect(200);
}

/// The response to a request for the pages that starts like this.
fn asked(relay: &Relay, begins: &[u8]) -> String {
    let mut stream: TcpStream = stream_from(BALANCER, http_address(relay));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&[begins, b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n"].concat()).unwrap();
    let mut answer = String::new();
    // A refused connection may be reset.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn the_pages_take_a_header_from_balancers_where_there_is_one() {
    let _turn = beside_others();
    let relay = relay("").serving("/");
    for (begins, answered) in
        [(&b""[..], true), (&header("192.0.2.7:1"), true), (LOCAL, true), (b"\r\n\r\n\0\r\nQUIT\n\x99\0\0\0", false)]
    {
        assert_eq!(asked(&relay, begins).starts_with("HTTP/1.0 200"), answered, "{begins:?}");
    }
}

#[test]
fn the_header_stands_before_tls() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let keys = format!("listen_tls = [\"127.0.0.1:0\"]\nhttp_tls = \"127.0.0.1:0\"\n{}", certificate.keys());
    let relay = relay(&keys).serving("/");
    let trusted = certificate.trusted();
    let url = format!("rtsps://{}/t", relay.tls_address());
    let mut players = Vec::new();
    for header in [header("192.0.2.7:1000"), header("[2001:db8::9]:1001"), LOCAL.to_vec()] {
        let mut client = Client::connect_from(BALANCER, relay.tls_address());
        let mut tls = connection(&trusted);
        // The end of the header arrives together with the client's first bytes, as from a balancer; its start alone.
        let (first, rest) = header.split_at(header.len() / 2);
        client.send_raw(first);
        let mut with_hello = rest.to_vec();
        tls.write_tls(&mut with_hello).unwrap();
        client.send_raw(&with_hello);
        let mut client = client.by_tls(tls);
        client.play_everything(&url);
        client.frame_on(0);
        players.push(client);
    }
    let found = addresses(&relay);
    for wanted in ["192.0.2.7:1000", "[2001:db8::9]:1001", "127.0.0.2:"] {
        assert!(found.iter().any(|found| found.starts_with(wanted)), "{wanted} is not in {found:?}");
    }
    let mut stranger = Client::connect(relay.tls_address());
    stranger.send_raw(&header("192.0.2.7:1000"));
    assert!(stranger.is_closed());
    let mut without = Client::connect_from(BALANCER, relay.tls_address());
    let mut hello = Vec::new();
    connection(&trusted).write_tls(&mut hello).unwrap();
    without.send_raw(&hello);
    assert!(without.is_closed());
    wait_until("the log says whose they were", DEADLINE, || {
        let printed = relay.printed();
        printed.lines().any(|line| line.contains("client=127.0.0.1:") && line.contains("not in proxy_protocol_from"))
            && printed.contains("begins without a PROXY protocol header")
    });
}

#[test]
fn pages_by_https_take_a_header_before_tls() {
    let _turn = beside_others();
    let certificate = Certificate::new();
    let user = "basic = true\n[[user]]\nname = \"a\"\npassword = \"b\"\nfrom = [\"192.0.2.0/24\", \"127.0.0.2\"]\n";
    let relay = relay(&format!("http_tls = \"127.0.0.1:0\"\n{}{user}", certificate.keys()));
    let (https, trusted) = (https_address(&relay), certificate.trusted());
    let asked = |from: IpAddr, begins: &[u8]| {
        let mut stream = stream_from(from, https);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(begins).unwrap();
        let mut tls = StreamOwned::new(connection(&trusted), stream);
        // A refused connection may be reset.
        let _ = tls.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\nAuthorization: Basic YTpi\r\n\r\n");
        let mut answer = String::new();
        let _ = tls.read_to_string(&mut answer);
        answer.split(' ').nth(1).map(str::to_owned)
    };
    for (begins, answered) in [
        (header("192.0.2.7:1"), Some("200")),
        (header("198.51.100.7:1"), Some("401")),
        (LOCAL.to_vec(), Some("200")),
        (Vec::new(), Some("200")),
        (b"\r\n\r\n\0\r\nQUIT\n\x99\0\0\0".to_vec(), None),
    ] {
        assert_eq!(asked(BALANCER, &begins).as_deref(), answered, "{begins:?}");
    }
    assert_eq!(asked(IpAddr::from([127, 0, 0, 1]), &header("192.0.2.7:1")), None, "a stranger's header");
}

#[test]
fn who_floods_the_pages_by_a_balancer_keeps_nobody_else_out() {
    let _turn = beside_others();
    let relay = relay("");
    let http = http_address(&relay);
    let answers = |stream: &mut TcpStream| {
        // A closed connection may be reset.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (mut answer, mut piece) = (Vec::new(), [0; 1_024]);
        while !answer.ends_with(b"ok\n") {
            match stream.read(&mut piece) {
                Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
                _ => return false,
            }
        }
        true
    };
    let connect = |from: &str| {
        let mut stream = stream_from(BALANCER, http);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&header(from)).unwrap();
        assert!(answers(&mut stream));
        stream
    };
    let mut other = connect("192.0.2.9:1");
    let mut flood: Vec<_> = (1..=40).map(|port| connect(&format!("192.0.2.7:{port}"))).collect();
    assert!(answers(&mut other));
    assert!(!answers(&mut flood[0]), "the oldest of the address that has most gives way");
}
