//! The log: the newest chunks of a stream, in order, numbered; a shard keeps one for each stream.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::chunk::{Chunk, ChunkKind};
use super::{Description, TrackId};
use crate::egress::{Datagrams, Piece};
use crate::limits::{KEYFRAME_KEPT_S, SKIP_KEPT_BYTES_MAX, SKIP_KEPT_S, TRACKS_MAX};

/// A chunk in the log, with what the shard has made of it for its clients.
#[derive(Debug)]
pub struct Entry {
    chunk: Arc<Chunk>,
    /// The shard's own count in front of the chunk's: a clone for a client touches no memory that another shard touches.
    shared: Piece,
    /// The bytes under other channel numbers; one for each mapping that a client has asked for.
    renderings: SmallVec<[(u8, Piece); 1]>,
    datagrams: Option<Rc<Datagrams>>,
}

impl Entry {
    /// The chunk itself.
    pub fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// The chunk's bytes under `channel`, rendered when they are asked for the first time.
    pub fn piece(&mut self, channel: u8) -> Piece {
        if channel == self.chunk.channel() {
            return self.shared.clone();
        }
        if let Some((_, rendering)) = self.renderings.iter().find(|(of, _)| *of == channel) {
            return rendering.clone();
        }
        let rendering = Piece::from(self.chunk.render(channel));
        self.renderings.push((channel, rendering.clone()));
        rendering
    }

    /// The chunk as UDP clients are sent it.
    pub fn datagrams(&mut self) -> Rc<Datagrams> {
        let chunk = &self.chunk;
        Rc::clone(self.datagrams.get_or_insert_with(|| Rc::new(Datagrams::of(chunk))))
    }
}

/// What [`Log::append`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The chunk follows the last one.
    Next,
    /// Chunks are missing before it; everything older has been forgotten.
    AfterGap,
}

/// The newest chunks of one stream.
///
/// It keeps everything since the older of the last keyframe (of every video track that has not fallen silent) and `age` ago, and
/// the sound of [`SKIP_KEPT_S`] before that ([`SKIP_KEPT_BYTES_MAX`] at most) for clients that were busy for longer. Past
/// `bytes_max` the oldest frames go, and with them perhaps the keyframe that new clients would start at
/// ([`Log::cached_start`]).
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    first: u64,
    /// What has left `entries` of the tracks that `audio` names.
    sound: VecDeque<Entry>,
    sound_bytes: usize,
    audio: [bool; TRACKS_MAX],
    /// Of `entries` and `sound`.
    bytes: usize,
    age: Duration,
    bytes_max: usize,
    /// Number of the newest chunk that starts a keyframe, of each track, as long as the log holds it.
    keyframes: [Option<u64>; TRACKS_MAX],
    /// When the newest media chunk of each track arrived.
    heard: [Option<Instant>; TRACKS_MAX],
    overflowed: bool,
    /// Everything below this number that is gone went, at the latest, because of `bytes_max` while it was still young.
    forced_below: u64,
}

impl Log {
    /// An empty log that keeps chunks for `age`, and no more than `bytes_max` bytes of them.
    pub fn new(age: Duration, bytes_max: usize) -> Self {
        Log {
            entries: VecDeque::new(),
            first: 0,
            sound: VecDeque::new(),
            sound_bytes: 0,
            audio: [false; TRACKS_MAX],
            bytes: 0,
            age,
            bytes_max,
            keyframes: [None; TRACKS_MAX],
            heard: [None; TRACKS_MAX],
            overflowed: false,
            forced_below: 0,
        }
    }

    /// Sets other bounds, for the next [`Log::trim`].
    pub fn set_bounds(&mut self, age: Duration, bytes_max: usize) {
        self.age = age;
        self.bytes_max = bytes_max;
    }

    /// Says which of the tracks are sound; before that none is.
    pub fn describe(&mut self, description: &Description) {
        self.audio = [false; TRACKS_MAX];
        for (audio, track) in self.audio.iter_mut().zip(&description.tracks) {
            *audio = track.is_audio();
        }
    }

    /// Number of the oldest chunk from which on it holds everything; [`Log::head`] if it holds none.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next chunk will have.
    pub fn head(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes of media that it holds, renderings not counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// False once the keyframe that clients would start at had to go because of `bytes_max`, until the next keyframe.
    pub fn cached_start(&self) -> bool {
        !self.overflowed
    }

    /// Whether the chunk of that number is gone although it was younger than `age`: `bytes_max` or a gap took it.
    pub fn forced_out(&self, number: u64) -> bool {
        number < self.first && number < self.forced_below
    }

    /// The chunk of that number, if it is not older than [`Log::first`] and has come.
    pub fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// As [`Log::get`], for making renderings.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// The oldest chunk that it holds of those from `number` on: before [`Log::first`] there is sound alone.
    pub fn next(&self, number: u64) -> Option<&Entry> {
        if number >= self.first {
            return self.get(number);
        }
        self.sound.get(self.sound_from(number)).or_else(|| self.entries.front())
    }

    /// As [`Log::next`], for making renderings.
    pub fn next_mut(&mut self, number: u64) -> Option<&mut Entry> {
        if number >= self.first {
            return self.get_mut(number);
        }
        let at = self.sound_from(number);
        self.sound.get_mut(at).or_else(|| self.entries.front_mut())
    }

    /// What it holds of those numbers, the newest first.
    pub fn newest_first(&self, numbers: Range<u64>) -> impl Iterator<Item = &Chunk> {
        let place = |number: u64| (number.saturating_sub(self.first) as usize).min(self.entries.len());
        let sound = self.sound.range(self.sound_from(numbers.start)..self.sound_from(numbers.end)).rev();
        let entries = self.entries.range(place(numbers.start)..place(numbers.end)).rev();
        entries.chain(sound).map(|entry| entry.chunk.as_ref())
    }

    fn sound_from(&self, number: u64) -> usize {
        self.sound.partition_point(|entry| entry.chunk.number < number)
    }

    /// Number of the newest chunk that starts a keyframe of `track`.
    pub fn newest_keyframe(&self, track: TrackId) -> Option<u64> {
        self.keyframes[usize::from(track.0)]
    }

    /// Forgets everything; the numbers go on.
    pub fn clear(&mut self) {
        self.first = self.head();
        self.forced_below = self.first;
        self.empty();
    }

    fn empty(&mut self) {
        self.entries.clear();
        self.sound.clear();
        (self.bytes, self.sound_bytes) = (0, 0);
        self.keyframes = [None; TRACKS_MAX];
    }

    /// Nobody starts at what it holds now, and it need not be kept for that.
    pub fn forget_keyframes(&mut self) {
        self.keyframes = [None; TRACKS_MAX];
    }

    /// Puts the next chunk at the head.
    pub fn append(&mut self, chunk: Arc<Chunk>) -> Appended {
        let mut appended = Appended::Next;
        if chunk.number != self.head() {
            if self.head() != 0 || !self.entries.is_empty() {
                appended = Appended::AfterGap;
            }
            self.empty();
            self.first = chunk.number;
            self.forced_below = chunk.number;
        }
        if chunk.starts_keyframe() {
            self.keyframes[usize::from(chunk.track.0)] = Some(chunk.number);
            self.overflowed = false;
        }
        if chunk.kind == ChunkKind::Media {
            self.heard[usize::from(chunk.track.0)] = Some(chunk.arrival);
        }
        self.bytes += chunk.bytes.len();
        let shared = Piece::from(chunk.bytes.clone());
        self.entries.push_back(Entry { chunk, shared, renderings: SmallVec::new(), datagrams: None });
        appended
    }

    /// Lets go of what need not be kept at `now`, oldest first, and gives each chunk to `gone` on its way out.
    pub fn trim(&mut self, now: Instant, mut gone: impl FnMut(Entry)) {
        for (keyframe, heard) in self.keyframes.iter_mut().zip(&self.heard) {
            // A track that has stopped for good would have the others' chunks kept for ever.
            let silent = heard.is_none_or(|at| now.saturating_duration_since(at).as_secs() >= KEYFRAME_KEPT_S);
            *keyframe = keyframe.filter(|_| !silent);
        }
        let keyframe = self.keyframes.iter().flatten().copied().min();
        loop {
            let over = self.bytes > self.bytes_max;
            if over && self.forget_sound() {
                continue;
            }
            let Some(entry) = self.entries.front() else { break };
            let young = now.saturating_duration_since(entry.chunk.arrival) <= self.age;
            let needed = keyframe.is_some_and(|keyframe| self.first >= keyframe);
            if !over && (young || needed) {
                break;
            }
            // Whatever the bound says, the newest chunk stays until the clients have been shown it.
            if over && self.entries.len() == 1 {
                break;
            }
            if over && needed {
                self.overflowed = true;
            }
            if young {
                self.forced_below = self.first + 1;
            }
            let entry = self.entries.pop_front().expect("front was there");
            for keyframe in &mut self.keyframes {
                *keyframe = keyframe.filter(|number| *number != self.first);
            }
            self.first += 1;
            if self.is_sound(&entry.chunk) {
                self.sound_bytes += entry.chunk.bytes.len();
                self.sound.push_back(entry);
            } else {
                self.bytes -= entry.chunk.bytes.len();
                gone(entry);
            }
        }
        let kept = Duration::from_secs(SKIP_KEPT_S);
        while let Some(entry) = self.sound.front()
            && (self.sound_bytes > SKIP_KEPT_BYTES_MAX || now.saturating_duration_since(entry.chunk.arrival) > kept)
        {
            self.forget_sound();
        }
        debug_assert_eq!(
            self.bytes,
            self.sound.iter().chain(&self.entries).map(|e| e.chunk.bytes.len()).sum::<usize>()
        );
    }

    /// Lets go of the oldest sound; false if it holds none from before [`Log::first`].
    fn forget_sound(&mut self) -> bool {
        let Some(entry) = self.sound.pop_front() else { return false };
        self.sound_bytes -= entry.chunk.bytes.len();
        self.bytes -= entry.chunk.bytes.len();
        true
    }

    /// Whether the chunk is a whole frame of sound.
    fn is_sound(&self, chunk: &Chunk) -> bool {
        let whole = chunk.kind == ChunkKind::Media && chunk.frame_start && chunk.frame_end;
        whole && self.audio[usize::from(chunk.track.0)]
    }
}
