//! Decides when a camera is read.
//!
//! A frame arrives over a network in pieces. Reading each piece at once would cost a wake-up, a system call and a pass through the client per
//! piece. Therefore a read that ends inside a frame is followed by a pause. If frames have arrived in pieces so far, the first piece of the next
//! one also stays in the socket for that long: one read then gets what two would, and the frame is complete no later. Every so often a frame is
//! read at once nevertheless, to find out whether frames still arrive in pieces.

use std::time::{Duration, Instant};

use crate::limits::{CAMERA_IN_PIECES_AFTER, CAMERA_LOOK_EVERY, CAMERA_READ_EVERY_US};

const PAUSE: Duration = Duration::from_micros(CAMERA_READ_EVERY_US);

/// The state of the media when nothing is left to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Drained {
    /// A frame has begun and is not complete.
    pub(in crate::source) in_frame: bool,
    /// Video frames that have ended so far.
    pub(in crate::source) pictures: u64,
}

/// What a camera's connection is waiting for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The next frame.
    #[default]
    Idle,
    /// The end of a pause.
    Paused(Instant),
    /// Nothing: it is read until the socket is empty.
    Reading {
        /// The data is the first piece of a frame, and is read as soon as it arrives.
        at_once: bool,
    },
    /// The rest of a frame, without a pause: nothing has arrived since the last one.
    InFrame,
}

/// When a camera is read.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: State,
    /// How many frames in a row were incomplete when they were read at once, up to [`CAMERA_IN_PIECES_AFTER`].
    in_pieces: u8,
    /// How many more frames may be delayed before one is read at once.
    until_look: u8,
    pictures: u64,
}

impl Pace {
    /// Whether the camera may be read now. `is_ready` tells whether data is there; if not, it has the task woken when data arrives.
    pub(super) fn may_read(&mut self, now: Instant, is_ready: impl FnOnce() -> bool) -> bool {
        self.state = match self.state {
            State::Paused(until) if until > now => return false,
            State::Idle if self.in_pieces == CAMERA_IN_PIECES_AFTER && self.until_look > 0 => {
                if is_ready() {
                    self.until_look -= 1;
                    self.state = State::Paused(now + PAUSE);
                }
                return false;
            }
            State::Idle => State::Reading { at_once: true },
            State::Paused(_) | State::InFrame => State::Reading { at_once: false },
            reading @ State::Reading { .. } => reading,
        };
        true
    }

    /// Nothing more is there to read; `read` is when something was, since the last time.
    pub(super) fn drained(&mut self, read: Option<Instant>, seen: Drained) {
        let at_once = self.state == State::Reading { at_once: true };
        let ended = std::mem::replace(&mut self.pictures, seen.pictures) != seen.pictures;
        self.state = match (seen.in_frame, read) {
            (true, Some(read)) => State::Paused(read + PAUSE),
            (true, None) => State::InFrame,
            (false, _) => State::Idle,
        };
        if !at_once || read.is_none() {
            return;
        }
        if seen.in_frame {
            self.in_pieces = (self.in_pieces + 1).min(CAMERA_IN_PIECES_AFTER);
            self.until_look = CAMERA_LOOK_EVERY;
        } else if ended {
            // Sound alone says nothing: its packets are frames.
            self.in_pieces = 0;
        }
    }

    /// Until when it is not read.
    pub(super) fn pause(&self) -> Option<Instant> {
        match self.state {
            State::Paused(until) => Some(until),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A camera whose frames come in `pieces`, read by a pace.
    struct Camera {
        pace: Pace,
        now: Instant,
        pictures: u64,
    }

    impl Camera {
        fn new() -> Camera {
            Camera { pace: Pace::default(), now: Instant::now(), pictures: 0 }
        }

        /// Sends a frame whose pieces come a part of a pause apart; gives how often it was read, and how long after its last piece it was whole.
        fn frame(&mut self, pieces: u32) -> (u32, Duration) {
            let begun = self.now;
            let came = |at: Instant| pieces.min(1 + ((at - begun).as_micros() / 200) as u32);
            let last = begun + Duration::from_micros(200) * (pieces - 1);
            let (mut reads, mut taken) = (0, 0);
            loop {
                let there = came(self.now) > taken;
                if self.pace.may_read(self.now, || there) {
                    let read = there.then_some(self.now);
                    if there {
                        (reads, taken) = (reads + 1, came(self.now));
                    }
                    self.pictures += u64::from(there && taken == pieces);
                    let in_frame = taken > 0 && taken < pieces;
                    self.pace.drained(read, Drained { in_frame, pictures: self.pictures });
                    if taken == pieces {
                        let late = self.now.saturating_duration_since(last);
                        self.now += 40 * PAUSE;
                        return (reads, late);
                    }
                }
                self.now += Duration::from_micros(100);
            }
        }

        fn sound(&mut self) {
            assert!(self.pace.may_read(self.now, || true));
            self.pace.drained(Some(self.now), Drained { in_frame: false, pictures: self.pictures });
        }
    }

    #[test]
    fn whole_frames_are_read_at_once_and_frames_in_pieces_once() {
        let mut camera = Camera::new();
        for _ in 0..100 {
            assert_eq!(camera.frame(1), (1, Duration::ZERO));
        }
        assert_eq!([camera.frame(4).0, camera.frame(4).0], [2, 2]);
        let reads: u32 = (0..100).map(|_| camera.frame(4).0).sum();
        assert!((100..=107).contains(&reads), "{reads} reads of 100 frames");
    }

    #[test]
    fn a_frame_in_pieces_is_whole_no_later_than_by_a_read_at_once_and_one_after_the_pause() {
        let mut camera = Camera::new();
        let (_, before) = camera.frame(4);
        for _ in 0..50 {
            assert!(camera.frame(4).1 <= before);
        }
        // Larger than what comes in a pause.
        assert_eq!(camera.frame(20).0, 4);
    }

    #[test]
    fn a_keyframe_in_pieces_now_and_then_keeps_no_other_frame_waiting() {
        let mut camera = Camera::new();
        for _ in 0..10 {
            camera.frame(20);
            for _ in 0..24 {
                assert_eq!(camera.frame(1), (1, Duration::ZERO));
            }
        }
    }

    #[test]
    fn frames_that_come_whole_again_wait_for_a_while_only() {
        let mut camera = Camera::new();
        for _ in 0..20 {
            camera.frame(4);
        }
        let waited = (0..100).filter(|_| camera.frame(1).1 > Duration::ZERO).count();
        assert!(waited <= usize::from(CAMERA_LOOK_EVERY), "{waited} frames waited");
    }

    #[test]
    fn sound_between_frames_says_nothing() {
        let mut camera = Camera::new();
        for _ in 0..2 {
            camera.sound();
            camera.frame(4);
        }
        assert_eq!(camera.frame(4).0, 1);
    }
}
