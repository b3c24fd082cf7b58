//! A client for the relay's HTTP server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::relay::{Relay, address_after};
use super::{DEADLINE, wait_until};

/// Where the relay serves HTTP.
pub fn http_address(relay: &Relay) -> SocketAddr {
    listens_for(relay, "http")
}

/// Where it serves HTTPS.
pub fn https_address(relay: &Relay) -> SocketAddr {
    listens_for(relay, "https")
}

fn listens_for(relay: &Relay, what: &str) -> SocketAddr {
    let said = format!("listening for {what} ");
    let mut found = None;
    wait_until(&format!("the relay says where it listens for {what}"), DEADLINE, || {
        found = address_after(&relay.printed(), |line| line.contains(&said));
        found.is_some()
    });
    found.unwrap()
}

/// Status and body of `GET path`.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a line of `/metrics` that begins with `name`.
pub fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {metrics}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// The sum of a metric over all its labels.
pub fn sum(metrics: &str, name: &str) -> f64 {
    let labelled = format!("{name}{{");
    let lines = metrics.lines().filter(|line| line.starts_with(&labelled));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}
