//! Keeps one source running forever.

use std::rc::Rc;

use tokio::sync::watch;
use tokio::time::sleep;

use super::cameras::Cameras;
use super::feed::Feed;
use super::keep::keep;
use super::on_demand::keep_on_demand;
use super::shared::{Source, stopped};
use super::spec::SourceSpec;
use crate::media::{SourceState, StreamSink};

/// Runs the source of `spec` until `stop` is true or its sender is dropped; then sends TEARDOWN to the camera, waits for the answer
/// within [`Timeouts::teardown`](super::camera::Timeouts::teardown), and returns. Must run in a tokio runtime with timers and I/O.
///
/// Chunks, descriptions and states go to `publisher`.
pub async fn run<P: StreamSink>(spec: SourceSpec, source: Rc<Source>, publisher: P, stop: watch::Receiver<bool>) {
    run_with(spec, source, publisher, stop, fastrand::f64).await;
}

/// [`run`] with the given randomness (numbers from 0 to 1) for the backoff.
pub async fn run_with<P: StreamSink>(
    spec: SourceSpec,
    source: Rc<Source>,
    publisher: P,
    mut stop: watch::Receiver<bool>,
    mut random: impl FnMut() -> f64,
) {
    let mut feed = Feed::new(&spec.name, &source, publisher).with_news(spec.news.clone());
    feed.tell_restored();
    let goes_on = source.resume.borrow().is_some();
    tokio::select! {
        biased;
        () = stopped(&mut stop) => {}
        () = sleep(spec.start_after), if !goes_on => {}
        () = std::future::ready(()), if goes_on => {}
    }
    let mut cameras = Cameras::of(&spec);
    match spec.on_demand.clone() {
        Some(on_demand) => keep_on_demand(on_demand, &spec, &mut cameras, &mut feed, &stop, &mut random).await,
        None => keep(&spec, &mut cameras, &mut feed, &mut stop, &mut random).await,
    }
    feed.disconnected();
    feed.state(SourceState::Down);
}
