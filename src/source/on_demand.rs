//! Pulls a source only while clients request it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

use super::cameras::Cameras;
use super::feed::Feed;
use super::keep::keep;
use super::news::SourceNews;
use super::shared::stopped;
use super::spec::{Demand, OnDemand, SourceSpec};
use crate::media::{SourceState, StreamSink};

/// Runs the source whenever clients request it, until the stop.
pub(super) async fn keep_on_demand<P: StreamSink>(
    on_demand: OnDemand,
    spec: &SourceSpec,
    cameras: &mut Cameras<'_>,
    feed: &mut Feed<'_, P>,
    stop: &watch::Receiver<bool>,
    random: &mut impl FnMut() -> f64,
) {
    let OnDemand { stop: linger, mut demand } = on_demand;
    let mut stop = stop.clone();
    let mut seen = 0;
    loop {
        // The session of another process goes on.
        if feed.source().resume.borrow().is_none() {
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
            // Requests for names that do not exist must not fill the log.
            if spec.made {
                debug!(stream = %feed.name, "asked for");
            } else {
                info!(stream = %feed.name, "asked for");
            }
        }
        let (halt, mut halted) = watch::channel(false);
        let source = feed.source();
        let end = async {
            tokio::select! {
                () = stopped(&mut stop) => {}
                () = unwanted(&mut demand, || if spec.made && !source.was_live() { Duration::ZERO } else { linger }) => {}
            }
            halt.send_replace(true);
        };
        tokio::join!(keep(spec, cameras, feed, &mut halted, random), end);
        feed.disconnected();
        if *stop.borrow() || stop.has_changed().is_err() {
            return;
        }
        seen = demand.borrow().asked;
        feed.tell_live = true;
        feed.tell_news(SourceNews::Unwanted);
        if source.was_live() || !spec.made {
            info!(stream = %feed.name, "no clients for {} s: stopped pulling", linger.as_secs_f32());
        }
    }
}

/// Resolves when nobody has wanted the stream for `linger`.
async fn unwanted(demand: &mut watch::Receiver<Demand>, linger: impl Fn() -> Duration) {
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
            () = sleep(linger()) => return,
        }
    }
}
