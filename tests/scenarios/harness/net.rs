//! A separate small network: namespaces joined by a bridge. Nothing that a scenario sends leaves it.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A server's namespace with a bridge, and clients' namespaces that are each connected to it. Removed when dropped.
pub struct Net {
    name: String,
    clients: u8,
}

/// The bridge's interface in the server's namespace.
pub const BRIDGE: &str = "br0";

/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

static MADE: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect(program);
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Net {
    /// A network with this many client namespaces, numbered from 0.
    pub fn new(clients: u8) -> Net {
        let name = format!("rr{}x{}", std::process::id(), MADE.fetch_add(1, Ordering::SeqCst));
        let net = Net { name, clients };
        let server = net.server();
        ip(&format!("netns add {server}"));
        ip(&format!("-n {server} link set lo up"));
        ip(&format!("-n {server} link add {BRIDGE} type bridge"));
        ip(&format!("-n {server} addr add {SERVER}/24 dev {BRIDGE}"));
        ip(&format!("-n {server} link set {BRIDGE} up"));
        for number in 0..clients {
            let client = net.client(number);
            ip(&format!("netns add {client}"));
            ip(&format!("-n {server} link add port{number} type veth peer name eth0 netns {client}"));
            ip(&format!("-n {server} link set port{number} master {BRIDGE} up"));
            ip(&format!("-n {client} addr add {}/24 dev eth0", Net::address(number)));
            ip(&format!("-n {client} link set eth0 up"));
            ip(&format!("-n {client} route add default dev eth0"));
        }
        net
    }

    fn server(&self) -> String {
        format!("{}s", self.name)
    }

    /// The name of a client's namespace, for a thread that will [`enter`] it.
    pub fn name_of(&self, number: u8) -> String {
        self.client(number)
    }

    fn client(&self, number: u8) -> String {
        format!("{}c{number}", self.name)
    }

    /// A client's address.
    pub fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + number)
    }

    /// Limits the rate towards a client to `rate` (in the notation of `tc`); the rest waits, up to `limit`.
    pub fn narrow(&self, number: u8, rate: &str, limit: &str) {
        let server = self.server();
        run("tc", &format!("-n {server} qdisc add dev port{number} root tbf rate {rate} burst 16kb limit {limit}"));
    }

    /// Limits the size of packets towards a client.
    pub fn shorten(&self, number: u8, bytes: u16) {
        ip(&format!("-n {} route add {}/32 dev {BRIDGE} mtu {bytes}", self.server(), Net::address(number)));
    }

    /// Gives a client, or the server, another address.
    pub fn add_address(&self, client: Option<u8>, address: &str) {
        let (namespace, interface) = match client {
            Some(number) => (self.client(number), "eth0"),
            None => (self.server(), BRIDGE),
        };
        let at_once = if address.contains(':') { " nodad" } else { "" };
        ip(&format!("-n {namespace} addr add {address} dev {interface}{at_once}"));
    }

    /// Disconnects a client: no packet passes, and neither end is notified.
    pub fn cut(&self, number: u8) {
        // The bridge's port, not the client's, whose own end stays up, like that of a machine behind a broken switch.
        ip(&format!("-n {} link set port{number} nomaster", self.server()));
    }

    /// Reconnects it.
    pub fn mend(&self, number: u8) {
        ip(&format!("-n {} link set port{number} master {BRIDGE}", self.server()));
    }

    /// Moves the calling thread, and the processes that it starts from now on, to the server's namespace.
    pub fn enter_server(&self) {
        enter(&self.server());
    }

    /// Calls a function in a client's namespace. Sockets created there stay there.
    pub fn at_client<T: Send>(&self, number: u8, work: impl FnOnce() -> T + Send) -> T {
        let name = self.client(number);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&name);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Moves the calling thread to a namespace.
pub fn enter(namespace: &str) {
    let file = std::fs::File::open(format!("/var/run/netns/{namespace}")).expect("the namespace");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (0..self.clients).map(|number| self.client(number)).chain([self.server()]) {
            // One that was never created needs no removal.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
