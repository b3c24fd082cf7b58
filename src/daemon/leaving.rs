//! Leaving: first the relay reports it, then it stops accepting, then it disconnects clients, a few at a time.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use super::failure::Failure;
use super::signals::Asked;
use super::{Relay, ask_upgrade, failed};
use crate::metrics::process;
use crate::shard::inbox::ToShard;
use crate::shard::thread::ShardHandle;
use crate::tls::Tls;

/// Time between two steps.
const STEP: Duration = Duration::from_millis(50);

/// How often the service manager is asked for more time, and for how much each time (sd_notify(3), `EXTEND_TIMEOUT_USEC=`).
const EXTEND_EVERY: Duration = Duration::from_secs(1);
const EXTEND_US: u64 = 5_000_000;

impl Relay {
    /// Whether a thread that clients need has ended.
    pub(super) fn look_after(&self, handles: &[ShardHandle]) -> Result<(), Failure> {
        if self.tls.as_ref().is_some_and(Tls::has_failed) {
            return Err("a TLS thread ended unexpectedly, and its clients with it; the log says why".into());
        }
        match handles.iter().position(|handle| handle.thread.is_finished()) {
            Some(index) => {
                Err(format!("shard {index} ended unexpectedly, and its clients with it; the log says why").into())
            }
            None => Ok(()),
        }
    }

    pub(super) async fn tell_summary(&self) {
        let mut reporter = self.reporter.lock().await;
        reporter.collect().await;
        reporter.tell_summary();
    }

    /// Performs `drain` and `drain_delay`; `acceptors` are the tasks that accept clients. Returns when the relay should stop: all
    /// clients that it disconnects are gone, or the time is up.
    ///
    /// # Errors
    /// As [`Relay::serve`].
    pub(super) async fn leave(
        &mut self,
        handles: &[ShardHandle],
        tasks: &mut JoinSet<()>,
        acceptors: &[AbortHandle],
        asked: &mut UnboundedReceiver<Asked>,
    ) -> Result<(), Failure> {
        let (delay, over) = (self.config.site.drain_delay, self.config.site.drain);
        if over.is_zero() {
            return Ok(());
        }
        // Other relays take over the clients; here they would wait for the end of `drain`.
        self.store.release();
        process::leave(SystemTime::now() + delay + over);
        info!(
            drain = ?over,
            drain_delay = ?delay,
            "leaving: /healthz answers 503 from now on; listeners stay open for drain_delay, then clients are disconnected over drain"
        );
        let closes = Instant::now() + delay;
        let ends = closes + over;
        let (mut accepts, mut extended) = (true, None::<Instant>);
        let mut step = interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = asked.recv() => match asked {
                    Some(Asked::Summary) => self.tell_summary().await,
                    Some(Asked::Reload) => info!("leaving: the configuration is not reloaded"),
                    Some(Asked::Upgrade) => {
                        info!("leaving: there is no upgrade any more");
                        ask_upgrade::tell(&Err("the relay is leaving; start the new program when it has ended".into()));
                    }
                    Some(Asked::Stop | Asked::Restart) | None => return Ok(()),
                },
                why = failed(tasks) => return Err(why),
                _ = step.tick() => {}
            }
            self.look_after(handles)?;
            let now = Instant::now();
            if extended.is_none_or(|last| now - last >= EXTEND_EVERY) {
                self.notifier.tell(&format!("STOPPING=1\nSTATUS=leaving\nEXTEND_TIMEOUT_USEC={EXTEND_US}"));
                extended = Some(now);
            }
            if now < closes {
                continue;
            }
            let connections: usize = self.shards.iter().map(|shard| shard.connections()).sum();
            if accepts {
                acceptors.iter().for_each(AbortHandle::abort);
                self.passing.listening.clear();
                accepts = false;
                info!(connections, "leaving: listeners closed");
            }
            for shard in self.shards.iter() {
                shard.tell(ToShard::SendAway(ends));
            }
            if now >= ends || connections == 0 {
                return Ok(());
            }
        }
    }
}
