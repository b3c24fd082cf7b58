//! A process that was started to take over, and that may have to be ended before it does.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sys;

/// The process.
#[derive(Debug)]
pub struct Successor {
    pid: u32,
    /// The channel to it, for its state only.
    channel: UnixStream,
}

impl Successor {
    pub(super) fn new(pid: u32, channel: UnixStream) -> Successor {
        Successor { pid, channel }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has closed the channel, usually by its end.
    pub fn has_ended(&self) -> bool {
        sys::has_hung_up(self.channel.as_fd())
    }

    /// Ends it at once, whatever it does. It must not have been told to serve.
    pub fn kill(&self) {
        // As long as it has the channel, its number is not another process's.
        if !self.has_ended() {
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
    }

    /// Passes a signal on to it.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid as i32), signal);
    }
}
