//! Notifications to the service manager (sd_notify(3), sd_watchdog_enabled(3)).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use super::health;
use super::reporter::Reporter;
use crate::media::SourceState;
use crate::shard::inbox::ShardSender;

/// How often the manager is sent the number of streams and clients, if it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Notifies the service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct Notifier(Option<(UnixDatagram, UnixAddr)>);

impl Notifier {
    /// The manager named by `NOTIFY_SOCKET`.
    pub(super) fn from_env() -> Notifier {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Notifier(None) };
        let bytes = name.as_encoded_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name),
            None => UnixAddr::new(name.as_os_str()),
        };
        match address.map_err(io::Error::from).and_then(|address| Ok((UnixDatagram::unbound()?, address))) {
            Ok(pair) => Notifier(Some(pair)),
            Err(error) => {
                tracing::warn!("cannot notify the service manager ({error}); NOTIFY_SOCKET is {name:?}");
                Notifier(None)
            }
        }
    }

    /// Whether there is a manager.
    pub(super) fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// Sends lines of `NAME=value`.
    pub(super) fn tell(&self, lines: &str) {
        // If the manager is not there at the moment, nothing is needed.
        let _ = self.send(lines, &[]);
    }

    /// Sends lines, and with them a descriptor (sd_pid_notify_with_fds(3)); the manager gets a duplicate.
    ///
    /// # Errors
    /// The error of `sendmsg`. Success does not mean that the manager keeps the descriptor.
    pub(super) fn pass(&self, lines: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send(lines, &[ControlMessage::ScmRights(&[descriptor.as_raw_fd()])])
    }

    fn send(&self, lines: &str, control: &[ControlMessage<'_>]) -> io::Result<()> {
        let Some((socket, address)) = &self.0 else { return Ok(()) };
        let lines = [IoSlice::new(lines.as_bytes())];
        sendmsg(socket.as_raw_fd(), &lines, control, MsgFlags::MSG_NOSIGNAL, Some(address))?;
        Ok(())
    }

    /// A reload starts; it ends with `READY=1`.
    pub(super) fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.unwrap_or_default().as_micros()));
    }
}

/// The interval within which the manager expects a notification.
pub(super) fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| meant && *usec > 0).map(Duration::from_micros)
}

/// Notifies the watchdog as long as every shard answers.
pub(super) async fn feed(notifier: Rc<Notifier>, within: Duration, shards: Rc<[ShardSender]>) {
    // A late answer must not cost more than one of two notifications.
    let every = within / 3;
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match health::silent(&shards, every).await.as_slice() {
            [] => notifier.tell("WATCHDOG=1"),
            silent => tracing::error!(
                shards = ?silent,
                "shards do not respond: the watchdog is not notified, and the service manager restarts the relay after {within:?}"
            ),
        }
    }
}

/// Keeps the manager's status line up to date.
pub(super) async fn status(notifier: Rc<Notifier>, reporter: Rc<Mutex<Reporter>>) {
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
