//! Pulling a source only while somebody asks for it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::info;

use super::feed::Feed;
use super::pipeline::Publish;
use super::supervisor::{SourceSpec, keep, stopped};
use crate::shard::inbox::SourceState;

/// What clients want of a stream, over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Shards with clients that wait for the stream or have a session of it.
    pub shards: usize,
    /// Times that somebody asked anew. Who asks and goes at once is seen by this alone.
    pub asked: u64,
}

/// When an on-demand source is pulled, and for how long.
#[derive(Clone, Debug)]
pub struct OnDemand {
    /// How long it is kept after the last client has left.
    pub stop: Duration,
    /// What clients want.
    pub demand: watch::Receiver<Demand>,
}

/// Keeps the source going whenever somebody asks for it, until the stop.
pub(super) async fn keep_on_demand<P: Publish>(
    on_demand: OnDemand,
    spec: &SourceSpec,
    feed: &mut Feed<'_, P>,
    stop: &watch::Receiver<bool>,
    random: &mut impl FnMut() -> f64,
) {
    let OnDemand { stop: linger, mut demand } = on_demand;
    let mut stop = stop.clone();
    let mut seen = 0;
    loop {
        feed.state(SourceState::Idle);
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            asked = demand.wait_for(|demand| demand.shards > 0 || demand.asked != seen) => {
                if asked.is_err() {
                    return;
                }
            }
        }
        info!(stream = %feed.name, "asked for");
        let (halt, mut halted) = watch::channel(false);
        let end = async {
            tokio::select! {
                () = stopped(&mut stop) => {}
                () = unwanted(&mut demand, linger) => {}
            }
            halt.send_replace(true);
        };
        tokio::join!(keep(spec, feed, &mut halted, random), end);
        feed.disconnected();
        if *stop.borrow() || stop.has_changed().is_err() {
            return;
        }
        seen = demand.borrow().asked;
        feed.tell_live = true;
        info!(stream = %feed.name, "nobody has asked for it for {} s: left", linger.as_secs_f32());
    }
}

/// Resolves when nobody has wanted the stream for `linger`.
async fn unwanted(demand: &mut watch::Receiver<Demand>, linger: Duration) {
    loop {
        // Without a sender nobody can want anything.
        let Ok(asked) = demand.wait_for(|demand| demand.shards == 0).await.map(|demand| demand.asked) else { return };
        tokio::select! {
            biased;
            again = demand.wait_for(|demand| demand.shards > 0 || demand.asked != asked) => {
                if again.is_err() {
                    return;
                }
            }
            () = sleep(linger) => return,
        }
    }
}
