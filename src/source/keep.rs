//! Runs a source of any kind as long as it is wanted.

use std::time::{Instant, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep_until;

use super::cameras::Cameras;
use super::feed::Feed;
use super::held::{Deposit, Resume, Running};
use super::pattern::{Emitted, PatternState, TestPattern};
use super::saved::Runs;
use super::shared::stopped;
use super::spec::{SourceKind, SourceSpec};
use super::timeline::{SenderReport, to_ntp};
use crate::media::{SourceState, StreamSink};

/// Runs the source until the stop.
pub(super) async fn keep<P: StreamSink>(
    spec: &SourceSpec,
    cameras: &mut Cameras<'_>,
    feed: &mut Feed<'_, P>,
    stop: &mut watch::Receiver<bool>,
    random: &mut impl FnMut() -> f64,
) {
    match &spec.kind {
        SourceKind::Cameras(_) => cameras.supervise(spec, feed, stop, random).await,
        // Publishers connect by themselves.
        SourceKind::Publisher { .. } => stopped(stop).await,
        SourceKind::Test => {
            tokio::select! {
                biased;
                () = stopped(stop) => {}
                () = play_pattern(feed) => {}
            }
        }
    }
}

/// Plays the test pattern forever.
async fn play_pattern<P: StreamSink>(feed: &mut Feed<'_, P>) {
    let source = feed.source();
    let _runs = Runs::new(source, Running::Session);
    let mut pattern = match source.resume.take().and_then(Resume::of::<PatternState>) {
        Some((state, _, reference)) => {
            feed.restore(reference, state.feed);
            TestPattern::restore(reference, &state)
        }
        None => {
            let pattern = TestPattern::new(Instant::now());
            feed.state(SourceState::Connecting);
            feed.connected(pattern.tracks());
            pattern
        }
    };
    loop {
        let due = pattern.deadline();
        let due = feed.deadline().map_or(due, |deadline| deadline.min(due));
        tokio::select! {
            biased;
            reference = source.held() => {
                let session = pattern.save(reference, feed.save(reference));
                source.wait_held(Deposit::new(&session, Vec::new())).await;
            }
            () = sleep_until(due.into()) => {}
        }
        let (now, wall) = (Instant::now(), SystemTime::now());
        pattern.emit(now, wall, |track, emitted| match emitted {
            Emitted::Packet(packet) => feed.packet(track, now, packet),
            Emitted::Report(rtp_time) => feed.sender_report(track, now, SenderReport { ntp: to_ntp(wall), rtp_time }),
        });
        feed.drained(now);
        if feed.deadline().is_some_and(|deadline| deadline <= now) {
            feed.tick(now, wall);
        }
    }
}
