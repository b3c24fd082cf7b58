//! Reads the time at which the kernel finished a submission, from the kernel itself.
//!
//! The sends of a submission wake their players. With `preempt=none`, a player on this CPU runs as soon as the system call returns, so
//! the thread can read a clock only afterwards: 75 to 250 µs later in a third of all submissions of 25 sends, which took 200 µs
//! (docs/journal/2026-11-22-metrics.md). Therefore the last entry of a submission sends a datagram to a socket of our own, which the
//! kernel timestamps (`SO_TIMESTAMPNS`, socket(7)) before anything else runs. Sending and receiving it costs 2.5 µs, and several times as
//! much with few clients, because each frame then finds the cache cold: 5 % of the CPU with 10. So submissions of few entries do it only on a
//! machine where other programs are seen to displace the thread ([`Displaced`]).

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant, SystemTime};

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use nix::libc::timespec;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, setsockopt, sockopt};

use super::id::{Tag, UserData};
use crate::egress::Token;

/// What the datagrams hold.
static NOTHING: [u8; 1] = [0];

/// Entries with which a submission always reads the clock, and with which it does if the thread has been displaced.
const ENTRIES_MANY: usize = 16;
const ENTRIES_FEW: usize = 4;

/// How long a submission takes for each of its entries at least if the thread was displaced. It takes 8 to 25 µs if it was not.
const SLOW_ENTRY: Duration = Duration::from_micros(50);

/// How long after the end of a submission the thread continues at least if it was displaced.
const DISPLACED_MIN: Duration = Duration::from_micros(50);

/// How many submissions read the clock after one in which the thread was displaced. The first such one is not told from a slow one, so it
/// must be rarer than those that a 99th percentile leaves out.
const ASKED_AFTER: u32 = 1_000;

/// Whether other programs take the thread's processor at the end of its submissions.
#[derive(Default)]
pub(super) struct Displaced {
    /// The submissions that are still to read the clock.
    asks: u32,
}

impl Displaced {
    /// Whether a submission of so many entries is to read the clock.
    pub(super) fn asks(&self, entries: usize) -> bool {
        entries >= ENTRIES_MANY || (entries >= ENTRIES_FEW && self.asks > 0)
    }

    /// A submission of so many entries was over, for the thread, after `took`. The kernel had finished `earlier` than that, if it said.
    pub(super) fn submitted(&mut self, entries: usize, took: Duration, earlier: Option<Duration>) {
        if entries < ENTRIES_FEW {
            return;
        }
        let displaced = earlier.map_or(took / entries as u32 >= SLOW_ENTRY, |earlier| earlier >= DISPLACED_MIN);
        self.asks = if displaced { ASKED_AFTER } else { self.asks.saturating_sub(1) };
    }
}

/// A clock that a submission reads.
pub(super) struct Clock {
    to: UnixDatagram,
    from: UnixDatagram,
    control: Vec<u8>,
    /// An entry has been queued whose datagram has not arrived.
    asked: bool,
}

impl Clock {
    /// # Errors
    /// Those of `socketpair(2)` and `setsockopt(2)`.
    pub(super) fn new() -> io::Result<Clock> {
        let (to, from) = UnixDatagram::pair()?;
        setsockopt(&from, sockopt::ReceiveTimestampns, &true)?;
        Ok(Clock { to, from, control: nix::cmsg_space!(timespec), asked: false })
    }

    /// The entry that reads the clock, unless an earlier one is still queued. It posts a completion only if it fails.
    pub(super) fn ask(&mut self) -> Option<Entry> {
        if self.asked {
            return None;
        }
        self.asked = true;
        let id = UserData { tag: Tag::Clock, token: Token { slot: 0, generation: 0 } };
        let send = opcode::Send::new(types::Fd(self.to.as_raw_fd()), NOTHING.as_ptr(), NOTHING.len() as u32);
        Some(send.flags(nix::libc::MSG_DONTWAIT).build().flags(Flags::SKIP_SUCCESS).user_data(id.pack()))
    }

    /// When the kernel processed the entry, if it has.
    pub(super) fn told(&mut self) -> Option<Instant> {
        if !self.asked {
            return None;
        }
        let mut bytes = NOTHING;
        let mut bytes = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<UnixAddr>(self.from.as_raw_fd(), &mut bytes, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)
                .ok()?;
        self.asked = false;
        let stamp = message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
            _ => None,
        })?;
        // The timestamp is wall-clock time, which may be adjusted in between; the caller checks whether it is plausible.
        let ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + stamp).ok()?;
        Instant::now().checked_sub(ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sleep does not wait for anything; it separates the measured time from those before and after it.
    const PAUSE: Duration = Duration::from_millis(20);

    #[test]
    fn few_entries_ask_only_for_a_while_after_the_thread_was_displaced() {
        let [quick, slow] = [5, 500].map(Duration::from_micros);
        let mut displaced = Displaced::default();
        displaced.submitted(12, 12 * quick, None);
        assert!(displaced.asks(ENTRIES_MANY) && !displaced.asks(12));
        displaced.submitted(12, 12 * slow, None);
        assert!(displaced.asks(12) && !displaced.asks(ENTRIES_FEW - 1));
        // What is slow by itself is not taken for it, once the kernel says when it ended.
        for _ in 0..ASKED_AFTER {
            assert!(displaced.asks(12));
            displaced.submitted(12, 12 * slow, Some(quick));
            displaced.submitted(1, slow, None);
        }
        assert!(!displaced.asks(12));
        displaced.submitted(20, 20 * quick, Some(slow));
        assert!(displaced.asks(12));
    }

    /// Does what the kernel does with an entry.
    fn submit(clock: &Clock) {
        clock.to.send(&NOTHING).unwrap();
    }

    #[test]
    fn the_clock_tells_when_the_kernel_came_to_the_entry_and_not_when_it_was_looked_at() {
        let mut clock = Clock::new().unwrap();
        assert_eq!(clock.told(), None, "nobody asked");
        for _ in 0..3 {
            assert!(clock.ask().is_some());
            // The result is neither the time of the request,
            std::thread::sleep(PAUSE);
            let begun = Instant::now();
            submit(&clock);
            let ended = Instant::now();
            // nor that of the check.
            std::thread::sleep(PAUSE);
            let told = clock.told().expect("it was asked");
            // How far apart the two clocks are read on a busy machine.
            let apart = PAUSE / 2;
            assert!(told + apart >= begun && told <= ended + apart, "{told:?} is not from {begun:?} to {ended:?}");
            assert_eq!(clock.told(), None, "told once");
        }
    }

    #[test]
    fn the_clock_is_asked_again_when_it_has_told() {
        let mut clock = Clock::new().unwrap();
        assert!(clock.ask().is_some());
        assert!(clock.ask().is_none(), "the first is still queued");
        assert_eq!(clock.told(), None, "the kernel has not come to it");
        assert!(clock.ask().is_none(), "the first is still queued");
        submit(&clock);
        assert!(clock.told().is_some());
        assert!(clock.ask().is_some());
    }
}
