//! What remains of a process that has handed everything over and has the keys of TLS connections, which cannot move: it carries the
//! bytes of exactly those connections between their clients and the sockets that the shards of the new process have now.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::ask_upgrade;
use super::failure::Failure;
use super::signals::Asked;
use crate::egress::IoKind;
use crate::egress::runtime::Runtime;
use crate::limits::CARRIER_END_MAX_MS;
use crate::sys;
use crate::tls::Carried;
use crate::upgrade::{Control, Order};

/// How often the number of connections is told, if it has changed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Interval of checks whether threads have ended.
const WAIT_STEP: Duration = Duration::from_millis(2);

/// What the process is called from now on (proc_pid_comm(5)): whoever looks for the relay is to find the one that serves.
const NAME: &std::ffi::CStr = c"rtsprelay-carry";

/// The TLS connections, and who says how long they last.
pub(super) struct Carrying {
    tls: Carried,
    control: UnixStream,
}

impl Carrying {
    /// These connections, until `control` says otherwise.
    pub(super) fn new(tls: Carried, control: UnixStream) -> Carrying {
        Carrying { tls, control }
    }

    /// Carries the connections until the last one has ended, or the relay.
    ///
    /// # Errors
    /// The runtime cannot be created; the connections end.
    pub(super) fn run(self, asked: &mut UnboundedReceiver<Asked>) -> Result<(), Failure> {
        // Otherwise only the name is wrong.
        let _ = prctl::set_name(NAME);
        sys::give_back_free_memory();
        let runtime = Runtime::new(IoKind::Epoll).map_err(|error| format!("cannot carry TLS connections ({error})"))?;
        runtime.block_on(self.serve(asked))
    }

    async fn serve(self, asked: &mut UnboundedReceiver<Asked>) -> Result<(), Failure> {
        let control = Control::new(self.control).map_err(|error| format!("cannot carry TLS connections ({error})"))?;
        info!(connections = self.tls.connections(), "this process carries TLS connections for the new one");
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        let why = loop {
            if self.tls.is_over() {
                info!("the last TLS connection that this process carried has ended");
                return Ok(());
            }
            tokio::select! {
                order = control.ordered() => match order {
                    Some(Order::Tell) => told = None,
                    Some(Order::End) => break "the relay wants no more of them",
                    None => break "the relay that serves them has ended",
                },
                Some(asked) = asked.recv() => refuse(asked),
                _ = look.tick() => {
                    let connections = self.tls.connections();
                    if told != Some(connections) && control.tell(connections) {
                        told = Some(connections);
                    }
                }
            }
        };
        info!(connections = self.tls.connections(), "the TLS connections that this process carried are closed: {why}");
        self.tls.send_away();
        let deadline = Instant::now() + Duration::from_millis(CARRIER_END_MAX_MS);
        while !self.tls.is_over() && Instant::now() < deadline {
            sleep(WAIT_STEP).await;
        }
        Ok(())
    }
}

/// Says that this process is no relay any more.
fn refuse(asked: Asked) {
    match asked {
        Asked::Upgrade => ask_upgrade::tell(&Err(
            "this process only carries TLS connections for the relay that has taken over; upgrade that one".into(),
        )),
        // The service manager signals all processes of the service: the clients' sessions end in the relay.
        Asked::Stop | Asked::Restart => info!(
            "this process carries TLS connections, and ends with the relay that serves them; a second signal ends it at once"
        ),
        Asked::Reload | Asked::Summary => {
            warn!("this process only carries TLS connections for the relay that has taken over; signal that one")
        }
    }
}
