//! Between the three threads: the one that receives, the one that decodes, and the one that shows.
//!
//! What is received is decoded at once, in order; only the newest picture is kept for showing. A decoder that can't keep up
//! skips frames up to a keyframe instead of falling behind.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::decode::Decoder;
use crate::frame::{Codec, Frame};
use crate::picture::Picture;
use crate::stats::Stats;

/// How long a frame may wait for the decoder while a newer keyframe is available.
const LATE: Duration = Duration::from_millis(250);

/// How long a frame may wait for the decoder at all.
const TOO_LATE: Duration = Duration::from_secs(2);

/// Frames that wait for the decoder at most; past it, all are dropped.
const WAITING_MAX: usize = 600;

/// What kind of fault ended a session, as far as it matters to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no server, it went away, or it sends nothing.
    Unreachable,
    /// The server refuses: wrong login, no such stream. It will do so again.
    Refused,
    /// There is no video that can be decoded here.
    Unsupported,
}

/// Why there are no new pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// Cause and cure, in one line.
    pub text: String,
}

/// What is being received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// The video's codec.
    pub codec: Codec,
    /// `TCP` or `UDP`.
    pub transport: &'static str,
    /// Encoding names of the audio tracks.
    pub audio: Vec<String>,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For the first time, not yet answered.
    Connecting,
    /// Media comes.
    Playing,
    /// No new pictures; the last one is old.
    Away(Fault),
}

/// What there is to show.
#[derive(Clone)]
pub struct Screen {
    /// The newest picture.
    pub picture: Option<Arc<Picture>>,
    /// Its number; it grows with each.
    pub number: u64,
    /// The connection.
    pub state: State,
    /// The stream, once known.
    pub stream: Option<StreamInfo>,
}

enum Event {
    Begin(Codec),
    Frame(Box<Frame>),
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    frames: usize,
    /// Frames were thrown away before the next event.
    skipped: bool,
    stopped: bool,
}

/// What the threads share.
pub struct Player {
    queue: Mutex<Queue>,
    ready: Condvar,
    screen: Mutex<Screen>,
    changed: Condvar,
    stats: Mutex<Stats>,
    /// Wakes the receiving thread to stop.
    pub(crate) stop: Notify,
    /// Pictures to decode at most.
    frames_max: Option<u64>,
    waker: Mutex<Option<Box<dyn Fn() + Send>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Player {
    /// A player that stops decoding after `frames_max` pictures.
    pub fn new(frames_max: Option<u64>) -> Arc<Self> {
        Arc::new(Player {
            queue: Mutex::default(),
            ready: Condvar::new(),
            screen: Mutex::new(Screen { picture: None, number: 0, state: State::Connecting, stream: None }),
            changed: Condvar::new(),
            stats: Mutex::new(Stats::new(Instant::now())),
            stop: Notify::new(),
            frames_max,
            waker: Mutex::default(),
        })
    }

    /// The counters, locked.
    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    /// What there is to show.
    pub fn screen(&self) -> Screen {
        lock(&self.screen).clone()
    }

    /// Sets what is called, on other threads, when there is something new to show.
    pub fn set_waker(&self, waker: impl Fn() + Send + 'static) {
        *lock(&self.waker) = Some(Box::new(waker));
    }

    /// Waits until there is another picture than `number`, or another state, `limit` at most.
    pub fn wait(&self, number: u64, state: &State, limit: Duration) -> Screen {
        let screen = lock(&self.screen);
        let unchanged = |screen: &mut Screen| screen.number == number && screen.state == *state;
        let (screen, _) =
            self.changed.wait_timeout_while(screen, limit, unchanged).unwrap_or_else(PoisonError::into_inner);
        screen.clone()
    }

    /// Whether as many pictures as asked for have been decoded.
    pub fn complete(&self) -> bool {
        self.frames_max.is_some_and(|max| self.stats().totals().decoded >= max)
    }

    /// Ends the other threads.
    pub fn end(&self) {
        lock(&self.queue).stopped = true;
        self.ready.notify_all();
        self.stop.notify_one();
    }

    /// Whether [`end`](Self::end) was called.
    pub fn ended(&self) -> bool {
        lock(&self.queue).stopped
    }

    fn wake(&self) {
        self.changed.notify_all();
        if let Some(waker) = &*lock(&self.waker) {
            waker();
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        lock(&self.screen).state = state;
        self.wake();
    }

    /// A session starts.
    pub(crate) fn begin(&self, stream: StreamInfo) {
        let codec = stream.codec;
        lock(&self.screen).stream = Some(stream);
        self.post(Event::Begin(codec));
    }

    /// A frame has been received.
    pub fn frame(&self, frame: Frame) {
        self.post(Event::Frame(Box::new(frame)));
    }

    fn post(&self, event: Event) {
        let mut queue = lock(&self.queue);
        let mut thrown = 0;
        if let Event::Frame(_) = &event {
            if queue.frames >= WAITING_MAX {
                thrown = queue.frames;
                queue.events.retain(|event| matches!(event, Event::Begin(_)));
                queue.frames = 0;
                queue.skipped = true;
            }
            queue.frames += 1;
        }
        queue.events.push_back(event);
        drop(queue);
        if thrown > 0 {
            self.stats().late(thrown as u64);
        }
        self.ready.notify_one();
    }

    /// The next event, whether frames before it were left out, and how many just now.
    fn next(&self) -> Option<(Event, bool, u64)> {
        let queue = lock(&self.queue);
        let mut queue = self
            .ready
            .wait_while(queue, |queue| queue.events.is_empty() && !queue.stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if queue.stopped {
            return None;
        }
        let now = Instant::now();
        let waited = queue.events.iter().find_map(|event| match event {
            Event::Frame(frame) => Some(now.saturating_duration_since(frame.arrived)),
            Event::Begin(_) => None,
        });
        let mut late = 0;
        if waited.is_some_and(|waited| waited > LATE) {
            let newest = queue.events.iter().rposition(|event| matches!(event, Event::Frame(it) if it.keyframe));
            let too_late = waited.is_some_and(|waited| waited > TOO_LATE);
            let drop_to = newest.or(too_late.then(|| queue.events.len() - 1)).unwrap_or(0);
            // The session's start is never dropped.
            let begin = queue.events.iter().rposition(|event| matches!(event, Event::Begin(_))).map_or(0, |at| at + 1);
            if drop_to > begin {
                queue.events.drain(begin..drop_to);
                late = (drop_to - begin) as u64;
                queue.frames = queue.frames.saturating_sub(drop_to - begin);
                queue.skipped = true;
            }
        }
        let event = queue.events.pop_front()?;
        let mut skipped = false;
        if let Event::Frame(_) = &event {
            queue.frames = queue.frames.saturating_sub(1);
            skipped = std::mem::take(&mut queue.skipped);
        }
        Some((event, skipped, late))
    }

    /// Decodes until the end; the body of the decoding thread.
    pub fn decode(&self) {
        let mut decoder: Option<Decoder> = None;
        while let Some((event, skipped, late)) = self.next() {
            if late > 0 {
                self.stats().late(late);
            }
            match event {
                Event::Begin(codec) => decoder = Some(Decoder::new(codec)),
                Event::Frame(frame) => {
                    if let Some(decoder) = &mut decoder {
                        if skipped {
                            decoder.skipped();
                        }
                        self.decode_frame(decoder, &frame);
                    }
                }
            }
        }
    }

    fn decode_frame(&self, decoder: &mut Decoder, frame: &Frame) {
        let begun = Instant::now();
        let mut new = false;
        let outcome = decoder.decode(frame, &mut |picture| {
            if self.complete() {
                return;
            }
            self.stats().decoded(&picture.info, SystemTime::now());
            let mut screen = lock(&self.screen);
            screen.picture = Some(Arc::new(picture));
            screen.number += 1;
            new = true;
        });
        self.stats().outcome(&outcome, begun.elapsed());
        if new {
            self.wake();
        }
    }
}
