//! What the service manager is told, and what it hands over (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)).

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::health;
use super::reporter::Reporter;
use crate::shard::inbox::{ShardSender, SourceState};
use crate::sys;

/// How often the manager is told how many streams and clients there are, if that has changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Tells the service manager, if there is one that listens.
#[derive(Debug, Default)]
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// The manager that `NOTIFY_SOCKET` names.
    pub fn from_env() -> Notifier {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Notifier(None) };
        let bytes = name.as_encoded_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&name),
        };
        match address.and_then(|address| Ok((UnixDatagram::unbound()?, address))) {
            Ok(pair) => Notifier(Some(pair)),
            Err(error) => {
                tracing::warn!("the service manager cannot be told of anything ({error}); NOTIFY_SOCKET is {name:?}");
                Notifier(None)
            }
        }
    }

    /// Tells something, lines of `NAME=value`.
    pub fn tell(&self, lines: &str) {
        if let Some((socket, address)) = &self.0 {
            // A manager that is not there just now asks for nothing.
            let _ = socket.send_to_addr(lines.as_bytes(), address);
        }
    }

    /// A reload begins; it ends with `READY=1`.
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.unwrap_or_default().as_micros()));
    }
}

/// The time within which the manager wants to hear of us, again and again.
pub fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| meant && *usec > 0).map(Duration::from_micros)
}

/// Feeds the watchdog as long as every shard answers.
pub async fn feed(notifier: Rc<Notifier>, within: Duration, shards: Rc<[ShardSender]>) {
    // A late answer must not cost more than one of two feeds.
    let every = within / 3;
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match health::silent(&shards, every).await.as_slice() {
            [] => notifier.tell("WATCHDOG=1"),
            silent => tracing::error!(
                shards = ?silent,
                "shards do not turn: the watchdog is not fed, and the service manager restarts the relay after {within:?}"
            ),
        }
    }
}

/// Keeps the manager's status line right.
pub async fn status(notifier: Rc<Notifier>, reporter: Rc<Mutex<Reporter>>) {
    let mut told = String::new();
    let mut tick = interval(STATUS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        super::fold::tell_left_out();
        let reporter = reporter.lock().await;
        let Some(report) = reporter.last() else { continue };
        let live = report.streams.iter().filter(|stream| stream.state == SourceState::Live).count();
        let clients = report.total.flow.clients();
        let status = format!("STATUS={live} of {} streams live, {clients} clients", report.streams.len());
        if status != told {
            notifier.tell(&status);
            told = status;
        }
    }
}

/// The name of a socket for RTSPS (systemd.socket(5), `FileDescriptorName=`).
const TLS_NAME: &str = "rtsps";

/// The listening sockets that the service manager has handed over: those for RTSP, and those for RTSPS; none without one.
pub fn inherited_listeners() -> (Vec<TcpListener>, Vec<TcpListener>) {
    let (mut plain, mut secured) = (Vec::new(), Vec::new());
    for (fd, name) in sys::inherited_descriptors() {
        let socket = socket2::Socket::from(fd);
        let listens = socket.is_listener().unwrap_or(false);
        match socket.local_addr().ok().and_then(|address| address.as_socket()) {
            Some(_) if listens && name == TLS_NAME => secured.push(socket.into()),
            Some(_) if listens => plain.push(socket.into()),
            address => tracing::warn!(
                ?address,
                "a socket that the service manager handed over is not used: it is no listening TCP socket; see ListenStream="
            ),
        }
    }
    (plain, secured)
}
