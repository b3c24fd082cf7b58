//! Showing nothing: numbers for scripts.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Ending;
use crate::player::{FaultKind, Player, Screen, State};
use crate::stats::{Second, Spread, Stats};

/// What to watch for, and how to tell.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// JSON instead of words.
    pub json: bool,
    /// When to stop.
    pub until: Option<Instant>,
    /// How long to go on without a new picture.
    pub patience: Duration,
}

/// Prints a line a second until the end.
pub fn run(player: &Arc<Player>, options: Options, stop: &dyn Fn() -> bool) -> io::Result<Ending> {
    let mut screen = Screen { picture: None, number: 0, state: State::Connecting, stream: None };
    let mut last_picture = Instant::now();
    let ending = loop {
        let now = Instant::now();
        if player.complete() {
            break Ending::Complete;
        }
        if stop() {
            break Ending::Asked;
        }
        if options.until.is_some_and(|until| now >= until) {
            break Ending::TimeOver;
        }
        if let State::Away(fault) = &screen.state {
            // Nothing will change by itself in what a server refuses from the start.
            if fault.kind != FaultKind::Unreachable && screen.number == 0 {
                break Ending::GaveUp(fault.clone());
            }
        }
        if now.saturating_duration_since(last_picture) > options.patience {
            break match &screen.state {
                State::Away(fault) => Ending::GaveUp(fault.clone()),
                _ => Ending::NoPicture,
            };
        }
        let until = options.until.map_or(Duration::MAX, |until| until.saturating_duration_since(now));
        let next = player.wait(screen.number, &screen.state, Duration::from_millis(50).min(until));
        if next.number != screen.number {
            last_picture = Instant::now();
        }
        if next.state != screen.state {
            tell_state(&next.state, options.json)?;
        }
        screen = next;
        let mut stats = player.stats();
        if stats.roll(Instant::now()) && screen.stream.is_some() {
            tell(&stats, options.json)?;
        }
    };
    let mut summary = player.stats().summary_json(Instant::now());
    if let (Some(picture), Value::Object(map)) = (&player.screen().picture, &mut summary) {
        map.insert("width".to_owned(), picture.width().into());
        map.insert("height".to_owned(), picture.height().into());
        map.insert("last_stamp_frame".to_owned(), picture.info.stamp.map(|stamp| stamp.frame).into());
    }
    if let (Some(stream), Value::Object(map)) = (&screen.stream, &mut summary) {
        map.insert("codec".to_owned(), stream.codec.to_string().into());
        map.insert("transport".to_owned(), stream.transport.into());
    }
    if options.json {
        line(&summary.to_string())?;
    } else {
        line(&summary_words(&player.stats(), &summary))?;
    }
    Ok(ending)
}

/// Writes a line to standard output; it is no failure if nobody reads it any more.
fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn tell_state(state: &State, as_json: bool) -> io::Result<()> {
    match state {
        State::Away(fault) if as_json => line(&json!({ "state": "away", "reason": fault.text }).to_string()),
        State::Playing if as_json => line(&json!({ "state": "playing" }).to_string()),
        State::Away(fault) => {
            eprintln!("rtsprelay-view: {}", fault.text);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn tell(stats: &Stats, as_json: bool) -> io::Result<()> {
    if as_json {
        return line(&stats.second_json(Instant::now()).to_string());
    }
    let second = stats.latest();
    line(&words(&second, stats))
}

/// A second in words.
pub fn words(second: &Second, stats: &Stats) -> String {
    let spread =
        |it: Option<Spread>| it.map_or_else(|| "-".to_owned(), |it| format!("{:.1}/{:.1} ms", it.p50_ms, it.p99_ms));
    format!(
        "fps {:.1} received {:.1} decoded  {:.0} kbit/s  lost {}  dropped {}  errors {}  jitter {:.1} ms  decode {}  \
         latency {}{}",
        second.fps_received,
        second.fps_decoded,
        second.kbit_s,
        second.lost,
        second.dropped,
        second.errors,
        second.jitter_ms,
        spread(second.decode),
        spread(second.latency),
        clock_note(stats),
    )
}

/// What to say after a latency that rests on the camera's clock.
pub fn clock_note(stats: &Stats) -> &'static str {
    match stats.clock() {
        crate::frame::AgeClock::SenderReport => " (if clocks agree)",
        _ => "",
    }
}

fn summary_words(stats: &Stats, summary: &Value) -> String {
    let totals = stats.totals();
    format!(
        "{} pictures decoded of {} frames, fps {}, {} packets lost, {} frames dropped, {} errors, latency p50 {} ms{}, \
         {} reconnects, {} audio packets",
        totals.decoded,
        totals.frames,
        summary["fps"],
        totals.lost,
        totals.dropped(),
        totals.errors,
        summary["latency_ms"]["p50"],
        clock_note(stats),
        totals.reconnects,
        totals.audio_packets,
    )
}
