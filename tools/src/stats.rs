//! What the stream is like: counters, and spreads of latency and decode time over each second, the last minute, and all.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::decode::Outcome;
use crate::frame::{AgeClock, Frame};
use crate::picture::PictureInfo;

/// Seconds in the graph.
pub const HISTORY_SECONDS: usize = 60;

/// Median, 99th percentile and largest of some durations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Values that went in.
    pub count: u64,
    /// Median, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// The largest, in milliseconds.
    pub max_ms: f64,
}

impl Spread {
    fn of(histogram: &Histogram<u32>) -> Option<Self> {
        let ms = |microseconds: u64| microseconds as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Spread {
            count: histogram.len(),
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            max_ms: ms(histogram.max()),
        })
    }

    fn json(spread: Option<Spread>) -> Value {
        spread.map_or(Value::Null, |it| json!({ "p50": it.p50_ms, "p99": it.p99_ms, "max": it.max_ms }))
    }
}

/// Durations from 1 µs to 100 s.
fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 100_000_000, 3).expect("the bounds are right")
}

fn record(histogram: &mut Histogram<u32>, duration: Duration) {
    histogram.saturating_record(duration.as_micros().clamp(1, 100_000_000) as u64);
}

/// Counters, all since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// RTP packets of the video.
    pub packets: u64,
    /// Their bytes, RTP headers included.
    pub bytes: u64,
    /// Packets missing between them.
    pub lost: u64,
    /// Frames received, whole or not.
    pub frames: u64,
    /// Of those, frames that came in the burst at the start.
    pub catch_up: u64,
    /// Pictures decoded.
    pub decoded: u64,
    /// Pictures shown.
    pub shown: u64,
    /// Frames not decoded because parts of them are lost.
    pub dropped_damaged: u64,
    /// Frames not decoded because they refer to one that was not decoded.
    pub dropped_waiting: u64,
    /// Frames not decoded because newer ones were there already.
    pub dropped_late: u64,
    /// Frames that the decoder refused.
    pub errors: u64,
    /// Payloads against their format's rules.
    pub malformed: u64,
    /// RTP packets of audio.
    pub audio_packets: u64,
    /// Their bytes.
    pub audio_bytes: u64,
    /// Sessions after the first.
    pub reconnects: u64,
}

impl Totals {
    /// Frames that were not decoded, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.dropped_damaged + self.dropped_waiting + self.dropped_late
    }
}

/// One second of a stream, or a little more or less.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Frames received a second.
    pub fps_received: f64,
    /// Pictures decoded a second.
    pub fps_decoded: f64,
    /// Pictures shown a second.
    pub fps_shown: f64,
    /// Video, in kilobits a second.
    pub kbit_s: f64,
    /// Packets lost in it.
    pub lost: u64,
    /// Frames dropped in it.
    pub dropped: u64,
    /// Frames refused by the decoder in it.
    pub errors: u64,
    /// Interarrival jitter at its end (RFC 3550 section 6.4.1), in milliseconds.
    pub jitter_ms: f64,
    /// Time to decode a frame.
    pub decode: Option<Spread>,
    /// Age of pictures when they were ready to be shown.
    pub latency: Option<Spread>,
    /// Age of frames when their last packet had been read.
    pub receive_latency: Option<Spread>,
}

/// Spreads over some time.
struct Spreads {
    decode: Histogram<u32>,
    latency: Histogram<u32>,
    receive: Histogram<u32>,
}

impl Spreads {
    fn new() -> Self {
        Spreads { decode: histogram(), latency: histogram(), receive: histogram() }
    }
}

/// Everything that is counted and measured.
pub struct Stats {
    started: Instant,
    totals: Totals,
    before: Totals,
    second_began: Instant,
    second: Spreads,
    all: Spreads,
    clock: AgeClock,
    history: VecDeque<Second>,
    jitter: Jitter,
    pace: Pace,
    /// What the decoder said last of a frame that it refused.
    last_error: Option<String>,
}

impl Stats {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Stats {
            started: now,
            totals: Totals::default(),
            before: Totals::default(),
            second_began: now,
            second: Spreads::new(),
            all: Spreads::new(),
            clock: AgeClock::Unknown,
            history: VecDeque::new(),
            jitter: Jitter::default(),
            pace: Pace::default(),
            last_error: None,
        }
    }

    /// A session starts; `clock_rate` is that of its video, in Hz.
    pub fn connected(&mut self, clock_rate: u32, again: bool) {
        self.totals.reconnects += u64::from(again);
        self.jitter = Jitter { clock_rate: f64::from(clock_rate), ..Jitter::default() };
        self.pace.last = None;
    }

    /// A video packet of `bytes` with timestamp `timestamp` was read, after `lost` that never came.
    pub fn packet(&mut self, bytes: usize, lost: u32, timestamp: i64, arrived: Instant) {
        self.totals.packets += 1;
        self.totals.bytes += bytes as u64;
        self.totals.lost += u64::from(lost);
        self.jitter.packet(timestamp, arrived);
    }

    /// An audio packet of `bytes` was read.
    pub fn audio(&mut self, bytes: usize) {
        self.totals.audio_packets += 1;
        self.totals.audio_bytes += bytes as u64;
    }

    /// This many more payloads were malformed.
    pub fn malformed(&mut self, count: u64) {
        self.totals.malformed += count;
    }

    /// A frame has been received.
    pub fn received(&mut self, frame: &Frame) {
        self.totals.frames += 1;
        if frame.catching_up {
            self.totals.catch_up += 1;
            return;
        }
        self.pace.frame(frame.arrived);
        if let (Some(age), Some(known)) = (frame.received_age(), frame.age) {
            self.clock = known.clock;
            record(&mut self.second.receive, age);
            record(&mut self.all.receive, age);
        }
    }

    /// A frame went through the decoder, or did not.
    pub fn outcome(&mut self, outcome: &Outcome, took: Duration) {
        match outcome {
            Outcome::Decoded => {
                record(&mut self.second.decode, took);
                record(&mut self.all.decode, took);
            }
            Outcome::Damaged => self.totals.dropped_damaged += 1,
            Outcome::WaitsForKeyframe => self.totals.dropped_waiting += 1,
            Outcome::Failed(reason) => {
                self.totals.errors += 1;
                self.last_error = Some(reason.to_string());
            }
        }
    }

    /// This many frames were dropped because newer ones had arrived.
    pub fn late(&mut self, count: u64) {
        self.totals.dropped_late += count;
    }

    /// A picture is ready to be shown.
    pub fn decoded(&mut self, info: &PictureInfo, wall: SystemTime) {
        self.totals.decoded += 1;
        if let Some(age) = info.age_at(wall).filter(|_| !info.catching_up) {
            record(&mut self.second.latency, age);
            record(&mut self.all.latency, age);
        }
    }

    /// A picture was shown.
    pub fn shown(&mut self) {
        self.totals.shown += 1;
    }

    /// The counters.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What ages rest on.
    pub fn clock(&self) -> AgeClock {
        self.clock
    }

    /// The last seconds, oldest first, [`HISTORY_SECONDS`] at most.
    pub fn history(&self) -> &VecDeque<Second> {
        &self.history
    }

    /// The second that ended last.
    pub fn latest(&self) -> Second {
        self.history.back().copied().unwrap_or_default()
    }

    /// Ends the second if it is over; true if it was.
    pub fn roll(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.second_began).as_secs_f64();
        if elapsed < 1.0 {
            return false;
        }
        let (new, old) = (&self.totals, &self.before);
        let live = |totals: &Totals| totals.frames - totals.catch_up;
        let second = Second {
            fps_received: (live(new) - live(old)) as f64 / elapsed,
            fps_decoded: (new.decoded - old.decoded) as f64 / elapsed,
            fps_shown: (new.shown - old.shown) as f64 / elapsed,
            kbit_s: (new.bytes - old.bytes) as f64 * 8.0 / 1000.0 / elapsed,
            lost: new.lost - old.lost,
            dropped: new.dropped() - old.dropped(),
            errors: new.errors - old.errors,
            jitter_ms: self.jitter.ms(),
            decode: Spread::of(&self.second.decode),
            latency: Spread::of(&self.second.latency),
            receive_latency: Spread::of(&self.second.receive),
        };
        if self.history.len() == HISTORY_SECONDS {
            self.history.pop_front();
        }
        self.history.push_back(second);
        self.second = Spreads::new();
        self.before = self.totals;
        self.second_began = now;
        true
    }

    /// The second that ended last, as one JSON object.
    pub fn second_json(&self, now: Instant) -> Value {
        let second = self.latest();
        json!({
            "t": round(now.saturating_duration_since(self.started).as_secs_f64()),
            "fps_received": round(second.fps_received),
            "fps_decoded": round(second.fps_decoded),
            "fps_shown": round(second.fps_shown),
            "kbit_s": round(second.kbit_s),
            "lost": second.lost,
            "dropped": second.dropped,
            "errors": second.errors,
            "jitter_ms": round(second.jitter_ms),
            "decode_ms": Spread::json(second.decode),
            "latency_ms": Spread::json(second.latency),
            "receive_latency_ms": Spread::json(second.receive_latency),
            "latency_clock": self.clock.name(),
            "audio_packets": self.totals.audio_packets,
            "reconnects": self.totals.reconnects,
        })
    }

    /// Everything since the start, as one JSON object.
    pub fn summary_json(&self, now: Instant) -> Value {
        let totals = &self.totals;
        json!({
            "summary": true,
            "t": round(now.saturating_duration_since(self.started).as_secs_f64()),
            "fps": self.pace.fps().map(round),
            "frames_received": totals.frames,
            "frames_catch_up": totals.catch_up,
            "frames_decoded": totals.decoded,
            "frames_shown": totals.shown,
            "dropped_damaged": totals.dropped_damaged,
            "dropped_waiting": totals.dropped_waiting,
            "dropped_late": totals.dropped_late,
            "errors": totals.errors,
            "last_error": self.last_error,
            "malformed": totals.malformed,
            "packets": totals.packets,
            "bytes": totals.bytes,
            "lost": totals.lost,
            "jitter_ms": round(self.jitter.ms()),
            "decode_ms": Spread::json(Spread::of(&self.all.decode)),
            "latency_ms": Spread::json(Spread::of(&self.all.latency)),
            "receive_latency_ms": Spread::json(Spread::of(&self.all.receive)),
            "latency_clock": self.clock.name(),
            "audio_packets": totals.audio_packets,
            "audio_bytes": totals.audio_bytes,
            "reconnects": totals.reconnects,
        })
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Interarrival jitter (RFC 3550 section 6.4.1 and appendix A.8).
#[derive(Default)]
struct Jitter {
    clock_rate: f64,
    last: Option<(i64, Instant)>,
    seconds: f64,
}

impl Jitter {
    fn packet(&mut self, timestamp: i64, arrived: Instant) {
        if let Some((before, at)) = self.last
            && self.clock_rate > 0.0
        {
            let apart = arrived.saturating_duration_since(at).as_secs_f64();
            let difference = apart - (timestamp - before) as f64 / self.clock_rate;
            self.seconds += (difference.abs() - self.seconds) / 16.0;
        }
        self.last = Some((timestamp, arrived));
    }

    fn ms(&self) -> f64 {
        self.seconds * 1000.0
    }
}

/// Frames a second over all sessions, not counting the time between them.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    frames: u64,
    time: Duration,
}

impl Pace {
    fn frame(&mut self, arrived: Instant) {
        if let Some(last) = self.last.replace(arrived) {
            self.frames += 1;
            self.time += arrived.saturating_duration_since(last);
        }
    }

    fn fps(&self) -> Option<f64> {
        (self.frames > 0 && !self.time.is_zero()).then(|| self.frames as f64 / self.time.as_secs_f64())
    }
}
