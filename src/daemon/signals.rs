//! Signals, on their own thread so that a second SIGTERM ends the process even if the relay hangs.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

/// What a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM: stop.
    Stop,
    /// SIGINT: stop; if a service manager keeps the listening sockets, a successor accepts their connections (`RestartKillSignal=` in
    /// the unit).
    Restart,
    /// SIGHUP: reload.
    Reload,
    /// SIGUSR1: print the summary.
    Summary,
    /// SIGUSR2: hand everything over to the program that now lies at this one's path.
    Upgrade,
}

/// A second signal sooner than this is a duplicate: Ctrl-C reaches a whole process group, and a wrapper forwards it.
const ECHO: Duration = Duration::from_millis(100);

/// Starts listening for signals. The second request to stop ends the process at once, with exit code 0.
///
/// # Errors
/// The handlers or the thread cannot be set up.
pub(super) fn listen() -> io::Result<mpsc::UnboundedReceiver<Asked>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopping: Option<Instant> = None;
        let on_terminal = io::stdout().is_terminal();
        for signal in signals.forever() {
            let asked = match (signal, stopping) {
                // The same signal means that the terminal was closed; standard output is then no terminal any more.
                (SIGHUP, _) if !on_terminal || io::stdout().is_terminal() => Asked::Reload,
                (SIGUSR1, _) => Asked::Summary,
                (SIGUSR2, _) => Asked::Upgrade,
                (_, None) => {
                    stopping = Some(Instant::now());
                    if signal == SIGINT { Asked::Restart } else { Asked::Stop }
                }
                (_, Some(first)) if first.elapsed() < ECHO => continue,
                _ => std::process::exit(0),
            };
            // The control thread has ended, and the process will too.
            let _ = tell.send(asked);
        }
    })?;
    Ok(told)
}
