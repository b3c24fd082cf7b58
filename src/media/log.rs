//! The log: the newest chunks of a stream, in order and numbered. Each shard keeps one for each stream that it serves.

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::chunk::{Chunk, ChunkKind, ChunkState, Run, Span};
use super::copied::{Kept, Numbers};
use super::rendering::{Datagrams, Form, Interleaved, Piece, Rendered, Rendering};
use super::saved::Moment;
use super::{Description, TrackId};
use crate::burst::ShrinkIfSparse;
use crate::limits::{KEYFRAME_KEPT_S, SKIP_KEPT_BYTES_MAX, SKIP_KEPT_S, TRACKS_MAX};
use crate::memory::CACHED_BYTES_MAX;

/// Bytes of overhead of each allocation.
const ALLOCATION_BYTES: usize = 16;

/// Bytes of the two counters before a shared value.
const COUNTS_BYTES: usize = 2 * size_of::<usize>();

/// Bytes of what several [`Bytes`] of the same memory share: a pointer, its length and a counter.
const BYTES_SHARED: usize = 3 * size_of::<usize>();

/// Fixed cost of a chunk besides its bytes: the struct, and the allocations for the bytes and for what shares them, if something does.
const CHUNK_PRICE_BYTES: usize = COUNTS_BYTES + size_of::<Chunk>() + BYTES_SHARED + 3 * ALLOCATION_BYTES;

/// Cost of a chunk in each shard: an entry, the unused capacity of a growing list, and the shard's own counter.
const SHARD_PRICE_BYTES: usize = 2 * size_of::<Entry>() + PIECE_PRICE_BYTES;

/// Cost of a [`Piece`] besides the memory that it points to.
const PIECE_PRICE_BYTES: usize = COUNTS_BYTES + Piece::OWN_BYTES + ALLOCATION_BYTES;

/// Cost of each packet of datagrams besides the packet: its entry, its run and its I/O vector.
const DATAGRAM_PRICE_BYTES: usize = size_of::<Span>() + size_of::<Run>() + size_of::<libc::iovec>();

/// The part of a log's maximum cost up to which [`Log::renew`] copies its chunks.
const RENEWED_PART_MAX: usize = 4;

/// Entries by which a list grows at least.
const ROOM_ADDED: usize = 16;

/// A chunk in the log, with the renderings that the shard has made of it.
#[derive(Debug)]
pub struct Entry {
    chunk: Arc<Chunk>,
    /// The shard's own reference count, in addition to the chunk's: cloning for a client touches no memory that another shard touches.
    shared: Piece,
    /// The other forms that clients have needed.
    renderings: SmallVec<[(Form, Rendered); 1]>,
    datagrams: Option<Rc<Datagrams>>,
    /// Bytes of memory that it costs, with its renderings, and in the other shards.
    cost: usize,
}

impl Entry {
    /// An entry without renderings, in the log of one of this many shards.
    pub(crate) fn new(chunk: Arc<Chunk>, shards: usize) -> Entry {
        let cost = chunk.bytes.len() + CHUNK_PRICE_BYTES + shards * SHARD_PRICE_BYTES;
        let shared = Piece::from(Arc::clone(&chunk));
        Entry { chunk, shared, renderings: SmallVec::new(), datagrams: None, cost }
    }

    /// The chunk itself.
    pub fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// The chunk's bytes with `channel`, rendered on first use.
    pub fn piece(&mut self, channel: u8) -> Piece {
        if channel == self.chunk.channel() {
            return self.shared.clone();
        }
        let rendered = self.rendered(Form::Interleaved(channel));
        let rendered = rendered.unwrap_or_else(|| {
            let mut rendering = Interleaved(channel);
            let made = rendering.render(&[&self.chunk]);
            self.keep(rendering.form(), made)
        });
        rendered.body.expect("any chunk can be interleaved")
    }

    /// The chunk in another form, if that has been made.
    fn rendered(&self, form: Form) -> Option<Rendered> {
        self.renderings.iter().find(|(of, _)| *of == form).map(|(_, rendered)| rendered.clone())
    }

    fn keep(&mut self, form: Form, made: Rendered) -> Rendered {
        // Many frames share one head.
        self.cost += made.body.as_ref().map_or(0, |body| body.len() + PIECE_PRICE_BYTES);
        self.renderings.push((form, made.clone()));
        made
    }

    /// A copy, which shares bytes that are more than a small piece. Of the renderings it has those that depend on others before them.
    fn renewed(&self, shards: usize) -> Entry {
        let mut entry = Entry::new(Arc::new(self.chunk.with_bytes(renewed(&self.chunk.bytes))), shards);
        for (form, made) in self.renderings.iter().filter(|(form, _)| *form == Form::Fragment) {
            let body = made.body.as_ref().map(|body| body.map(renewed));
            entry.keep(*form, Rendered { head: made.head.clone(), body });
        }
        entry
    }

    /// The chunk as sent to UDP clients.
    pub fn datagrams(&mut self) -> Rc<Datagrams> {
        let Entry { chunk, shared, datagrams, cost, .. } = self;
        Rc::clone(datagrams.get_or_insert_with(|| {
            *cost += COUNTS_BYTES
                + size_of::<Datagrams>()
                + 4 * ALLOCATION_BYTES
                + usize::from(chunk.packets) * DATAGRAM_PRICE_BYTES;
            Rc::new(Datagrams::of(chunk, shared.clone()))
        }))
    }
}

/// A mutable entry of a [`Log`], which accounts for new renderings.
#[derive(Debug)]
pub struct EntryMut<'a> {
    entry: &'a mut Entry,
    cost: &'a mut usize,
}

impl EntryMut<'_> {
    /// As [`Entry::piece`].
    pub fn piece(&mut self, channel: u8) -> Piece {
        self.priced(|entry| entry.piece(channel))
    }

    /// As [`Entry::datagrams`].
    pub fn datagrams(&mut self) -> Rc<Datagrams> {
        self.priced(Entry::datagrams)
    }

    fn priced<T>(&mut self, make: impl FnOnce(&mut Entry) -> T) -> T {
        let before = self.entry.cost;
        let made = make(self.entry);
        *self.cost = *self.cost - before + self.entry.cost;
        made
    }
}

impl Deref for EntryMut<'_> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        self.entry
    }
}

/// What [`Log::append`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The chunk follows the previous one.
    Next,
    /// Chunks are missing before it; all older ones have been dropped.
    AfterGap,
}

/// The newest chunks of one stream.
///
/// It keeps all chunks since the older of the last keyframe (of every video track that is not silent) and `age` ago. Before that it
/// keeps audio for another [`SKIP_KEPT_S`] (at most [`SKIP_KEPT_BYTES_MAX`]), for clients that were busy for longer. If it costs more
/// than `bytes_max`, the oldest frames are dropped, and with them possibly the keyframe at which new clients would start
/// ([`Log::cached_start`]). The limit is on the memory that chunks cost ([`Log::cost`]), not just on the media: a frame of one byte
/// costs hundreds of bytes.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Entry>,
    first: u64,
    /// Chunks that have left `entries`, of the tracks in `audio`.
    sound: VecDeque<Entry>,
    sound_bytes: usize,
    audio: [bool; TRACKS_MAX],
    /// Of `entries` and `sound`.
    bytes: usize,
    /// What these cost.
    cost: usize,
    /// Number of shards that keep such a log.
    shards: usize,
    age: Duration,
    /// The end of the last time in which nobody was sent anything.
    resumed: Option<Instant>,
    bytes_max: usize,
    /// Number of the newest chunk that starts a keyframe, for each track, while the log has it.
    keyframes: [Option<u64>; TRACKS_MAX],
    /// When the newest media chunk of each track arrived.
    heard: [Option<Instant>; TRACKS_MAX],
    overflowed: bool,
    /// Chunks below this number that are gone were dropped because of `bytes_max` while they were still young.
    forced_below: u64,
}

/// A log as plain data, without its limits. Of its renderings it has the fragments, because they depend on those before them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogState {
    first: u64,
    head: u64,
    /// The numbers of its chunks before `first`.
    sound: Vec<u64>,
    /// Those of its chunks that the other process has not been sent before.
    chunks: Vec<ChunkState>,
    audio: [bool; TRACKS_MAX],
    keyframes: [Option<u64>; TRACKS_MAX],
    heard: [Option<Moment>; TRACKS_MAX],
    overflowed: bool,
    forced_below: u64,
    /// Frames as fragments, and what precedes them.
    #[serde(default)]
    fragments: Vec<FragmentState>,
    #[serde(default)]
    heads: Vec<Block>,
}

/// A frame as a fragment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FragmentState {
    /// The number of its last chunk.
    number: u64,
    /// Its index in [`LogState::heads`].
    head: Option<u32>,
    /// Empty if the frame cannot be converted.
    body: Block,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Block(#[serde(with = "super::saved::bytes")] Bytes);

impl Block {
    fn of(piece: &Piece) -> Block {
        Block(piece.shared())
    }
}

impl LogState {
    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.chunks.iter_mut().for_each(|chunk| each(chunk.bytes_mut()));
        self.fragments.iter_mut().for_each(|fragment| each(&mut fragment.body.0));
        self.heads.iter_mut().for_each(|head| each(&mut head.0));
    }

    /// Puts its chunks with those that came before, for its own log and those of other shards. Times are relative to `reference`.
    pub fn keep(&mut self, reference: Instant, kept: &mut Kept) {
        self.chunks.drain(..).for_each(|chunk| kept.add(reference, chunk));
    }
}

/// A saved log lacks a chunk that should have been sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {0} is missing")]
pub struct Missing(u64);

impl Log {
    /// Its contents as plain data, with all chunks.
    pub fn save(&self, now: Instant) -> LogState {
        self.save_beyond(now, &mut Numbers::default())
    }

    /// Its contents as plain data, with the chunks whose numbers are not in `sent`, which has all of them then. Takes time for these
    /// chunks only, however many there are, and for browsers' fragments, which are all saved.
    pub fn save_beyond(&self, now: Instant, sent: &mut Numbers) -> LogState {
        let new_sound = self.sound.iter().filter(|entry| sent.insert(entry.chunk.number));
        let mut chunks: Vec<ChunkState> = new_sound.map(|entry| entry.chunk.save(now)).collect();
        let lacking: Vec<u64> = sent.lacking(self.first..self.head()).collect();
        for number in lacking {
            sent.insert(number);
            chunks.extend(self.get(number).map(|entry| entry.chunk.save(now)));
        }
        let (fragments, heads) = self.save_fragments();
        LogState {
            first: self.first,
            head: self.head(),
            sound: self.sound.iter().map(|entry| entry.chunk.number).collect(),
            chunks,
            audio: self.audio,
            keyframes: self.keyframes,
            heard: self.heard.map(|heard| heard.map(|at| Moment::of(at, now))),
            overflowed: self.overflowed,
            forced_below: self.forced_below,
            fragments,
            heads,
        }
    }

    fn save_fragments(&self) -> (Vec<FragmentState>, Vec<Block>) {
        let mut heads: Vec<&Piece> = Vec::new();
        let mut fragments = Vec::new();
        for entry in self.sound.iter().chain(&self.entries) {
            let Some((_, made)) = entry.renderings.iter().find(|(form, _)| *form == Form::Fragment) else { continue };
            let head = made.head.as_ref().map(|head| {
                // Usually the newest.
                let known = heads.iter().rposition(|known| known.is_same(head));
                known.unwrap_or_else(|| {
                    heads.push(head);
                    heads.len() - 1
                }) as u32
            });
            let body = made.body.as_ref().map_or(Block(Bytes::new()), Block::of);
            fragments.push(FragmentState { number: entry.chunk.number, head, body });
        }
        (fragments, heads.into_iter().map(Block::of).collect())
    }

    fn restore_fragments(&mut self, fragments: Vec<FragmentState>, heads: Vec<Block>) {
        let heads: Vec<Piece> = heads.into_iter().map(|head| head.0.into()).collect();
        for FragmentState { number, head, body } in fragments {
            let head = head.and_then(|head| heads.get(head as usize).cloned());
            let made = Rendered { head, body: Some(body.0).filter(|body| !body.is_empty()).map(Piece::from) };
            if let Some(mut entry) = self.next_mut(number).filter(|entry| entry.chunk.number == number) {
                entry.priced(|entry| entry.keep(Form::Fragment, made));
            }
        }
    }

    /// Replaces its contents by saved ones, of which all chunks are there. Its limits stay, and apply from the next [`Log::trim`] on.
    ///
    /// # Errors
    /// As [`Log::restore_with`].
    pub fn restore(&mut self, now: Instant, mut state: LogState) -> Result<(), Missing> {
        let mut kept = Kept::default();
        state.keep(now, &mut kept);
        self.restore_with(now, state, &kept)
    }

    /// As [`Log::restore`], with chunks that are `kept`, those of [`LogState::keep`] too.
    ///
    /// # Errors
    /// A chunk is missing; nothing has been replaced then.
    pub fn restore_with(&mut self, now: Instant, state: LogState, kept: &Kept) -> Result<(), Missing> {
        let shards = self.shards;
        let entry =
            |number: u64| kept.get(number).map(|chunk| Entry::new(Arc::clone(chunk), shards)).ok_or(Missing(number));
        let entries = (state.first..state.head).map(entry).collect::<Result<VecDeque<Entry>, Missing>>()?;
        let sound = state.sound.into_iter().map(entry).collect::<Result<VecDeque<Entry>, Missing>>()?;
        let bytes = |entries: &VecDeque<Entry>| entries.iter().map(|entry| entry.chunk.bytes.len()).sum::<usize>();
        (self.entries, self.sound) = (entries, sound);
        self.sound_bytes = bytes(&self.sound);
        self.bytes = bytes(&self.entries) + self.sound_bytes;
        self.cost = self.entries.iter().chain(&self.sound).map(|entry| entry.cost).sum();
        self.first = state.first;
        (self.audio, self.keyframes) = (state.audio, state.keyframes);
        self.heard = state.heard.map(|heard| heard.map(|at| at.at(now)));
        (self.overflowed, self.forced_below) = (state.overflowed, state.forced_below);
        self.restore_fragments(state.fragments, state.heads);
        Ok(())
    }

    /// The number of its oldest chunk, including audio before [`Log::first`].
    pub fn oldest(&self) -> u64 {
        self.sound.front().map_or(self.first, |entry| entry.chunk.number)
    }

    /// Its chunks from that number on, in order.
    pub fn chunks_from(&self, number: u64) -> impl Iterator<Item = &Arc<Chunk>> {
        let entries = (number.saturating_sub(self.first) as usize).min(self.entries.len());
        self.sound.range(self.sound_from(number)..).chain(self.entries.range(entries..)).map(|entry| &entry.chunk)
    }

    /// An empty log that keeps chunks for `age`, costing at most `bytes_max` bytes. `shards`, at least one, is how many shards keep a
    /// log of the same stream; the chunks themselves exist once, but for those of [`Log::renew`].
    pub fn new(age: Duration, bytes_max: usize, shards: usize) -> Self {
        Log {
            entries: VecDeque::new(),
            first: 0,
            sound: VecDeque::new(),
            sound_bytes: 0,
            audio: [false; TRACKS_MAX],
            bytes: 0,
            cost: 0,
            shards,
            age,
            resumed: None,
            bytes_max,
            keyframes: [None; TRACKS_MAX],
            heard: [None; TRACKS_MAX],
            overflowed: false,
            forced_below: 0,
        }
    }

    /// Changes the limits, from the next [`Log::trim`] on.
    pub fn set_bounds(&mut self, age: Duration, bytes_max: usize) {
        self.age = age;
        self.bytes_max = bytes_max;
    }

    /// Sets which tracks are audio; initially none.
    pub fn describe(&mut self, description: &Description) {
        self.audio = [false; TRACKS_MAX];
        for (audio, track) in self.audio.iter_mut().zip(&description.tracks) {
            *audio = track.is_audio();
        }
    }

    /// Number of the oldest chunk from which on the log is complete; [`Log::head`] if it is empty.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next chunk will have.
    pub fn head(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes of media in the log, without renderings.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that the log costs: the media, the overhead of each chunk and packet here and in the other shards, and this
    /// shard's renderings.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// False after the keyframe at which clients would start was dropped because of `bytes_max`, until the next keyframe.
    pub fn cached_start(&self) -> bool {
        !self.overflowed
    }

    /// Whether the chunk with that number is gone although it was younger than `age`, because of `bytes_max` or a gap.
    pub fn forced_out(&self, number: u64) -> bool {
        number < self.first && number < self.forced_below
    }

    /// The chunk with that number, if it is not older than [`Log::first`] and has arrived.
    pub fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Like [`Log::get`], for making renderings.
    pub fn get_mut(&mut self, number: u64) -> Option<EntryMut<'_>> {
        let entry = self.entries.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)?;
        Some(EntryMut { entry, cost: &mut self.cost })
    }

    /// The oldest chunk in the log from `number` on; before [`Log::first`] there is only audio.
    pub fn next(&self, number: u64) -> Option<&Entry> {
        if number >= self.first {
            return self.get(number);
        }
        self.sound.get(self.sound_from(number)).or_else(|| self.entries.front())
    }

    /// Like [`Log::next`], for making renderings.
    pub fn next_mut(&mut self, number: u64) -> Option<EntryMut<'_>> {
        if number >= self.first {
            return self.get_mut(number);
        }
        let at = self.sound_from(number);
        let entry = self.sound.get_mut(at).or_else(|| self.entries.front_mut())?;
        Some(EntryMut { entry, cost: &mut self.cost })
    }

    /// The chunk with that number in another form; for a form made of whole frames, the frame that ends with this chunk. `None` if the
    /// log lacks a part of it.
    pub fn rendered<R: Rendering>(&mut self, number: u64, rendering: &mut R) -> Option<Rendered> {
        if let Some(made) = self.entry(number)?.rendered(rendering.form()) {
            return Some(made);
        }
        let chunk = Arc::clone(&self.entry(number)?.chunk);
        let made = if !R::WHOLE_FRAMES || chunk.frame_start {
            rendering.render(&[&chunk])
        } else {
            let of_frame =
                |other: &&Chunk| (other.kind, other.track, other.frame) == (ChunkKind::Media, chunk.track, chunk.frame);
            let mut parts: SmallVec<[&Chunk; 8]> = SmallVec::new();
            for part in self.newest_first(self.first..number + 1).filter(of_frame) {
                parts.push(part);
                if part.frame_start {
                    break;
                }
            }
            parts.reverse();
            if !parts.first()?.frame_start {
                return None;
            }
            rendering.render(&parts)
        };
        let mut entry = self.next_mut(number)?;
        Some(entry.priced(|entry| entry.keep(rendering.form(), made)))
    }

    /// The entry with exactly that number, including audio before [`Log::first`].
    fn entry(&self, number: u64) -> Option<&Entry> {
        self.next(number).filter(|entry| entry.chunk.number == number)
    }

    /// The entries with those numbers, newest first.
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

    /// The chunks with which a log elsewhere can start: those from the keyframe on at which new clients start, if there is one.
    pub fn since_keyframe(&self) -> impl Iterator<Item = &Arc<Chunk>> {
        let keyframe = self.keyframes.iter().flatten().copied().min().filter(|_| self.cached_start());
        let from = keyframe.map_or(self.entries.len(), |number| number.saturating_sub(self.first) as usize);
        self.entries.range(from.min(self.entries.len())..).map(|entry| &entry.chunk)
    }

    /// Drops everything; the next chunk will have that number.
    pub fn begin_at(&mut self, number: u64) {
        self.first = number;
        self.forced_below = number;
        self.overflowed = false;
        self.heard = [None; TRACKS_MAX];
        self.empty();
    }

    /// Drops everything; numbering continues.
    pub fn clear(&mut self) {
        self.first = self.head();
        self.forced_below = self.first;
        self.empty();
    }

    fn empty(&mut self) {
        // Also frees the capacity.
        self.entries = VecDeque::new();
        self.sound = VecDeque::new();
        (self.bytes, self.sound_bytes, self.cost) = (0, 0, 0);
        self.keyframes = [None; TRACKS_MAX];
    }

    /// No client will start at the current keyframes, and they need not be kept for that.
    pub fn forget_keyframes(&mut self) {
        self.keyframes = [None; TRACKS_MAX];
    }

    /// Appends the next chunk.
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
        let entry = Entry::new(chunk, self.shards);
        self.cost += entry.cost;
        push(&mut self.entries, entry);
        appended
    }

    /// Nobody was sent anything until `now`: what arrived before counts as if it had arrived now.
    pub fn resume(&mut self, now: Instant) {
        self.resumed = Some(now);
    }

    /// How long what could be sent from `since` on has waited at `now`, without the time before the last [`Log::resume`].
    pub fn waited(&self, since: Instant, now: Instant) -> Duration {
        waited(self.resumed, since, now)
    }

    /// Drops chunks that are no longer needed at `now`, oldest first, and passes each to `gone`.
    pub fn trim(&mut self, now: Instant, mut gone: impl FnMut(Entry)) {
        for (keyframe, heard) in self.keyframes.iter_mut().zip(&self.heard) {
            // Otherwise a track that has stopped for good would keep the others' chunks forever.
            let silent = heard.is_none_or(|at| waited(self.resumed, at, now).as_secs() >= KEYFRAME_KEPT_S);
            *keyframe = keyframe.filter(|_| !silent);
        }
        let keyframe = self.keyframes.iter().flatten().copied().min();
        loop {
            let over = self.cost > self.bytes_max;
            if over && self.forget_sound() {
                continue;
            }
            let Some(entry) = self.entries.front() else { break };
            let young = self.waited(entry.chunk.arrival, now) <= self.age;
            let needed = keyframe.is_some_and(|keyframe| self.first >= keyframe);
            if !over && (young || needed) {
                break;
            }
            // Whatever the limit, the newest chunk stays until it has been offered to the clients.
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
                push(&mut self.sound, entry);
            } else {
                self.bytes -= entry.chunk.bytes.len();
                self.cost -= entry.cost;
                gone(entry);
            }
        }
        let kept = Duration::from_secs(SKIP_KEPT_S);
        while let Some(entry) = self.sound.front()
            && (self.sound_bytes > SKIP_KEPT_BYTES_MAX || self.waited(entry.chunk.arrival, now) > kept)
        {
            self.forget_sound();
        }
        self.entries.shrink_if_sparse();
        self.sound.shrink_if_sparse();
        self.check();
    }

    /// Replaces at most so many of its chunks, from the number `next` on, by copies. Returns how many, and changes `next` to the number after
    /// them. What they replace is appended to `old`: it should be dropped when all copies are made, so that none takes its place.
    ///
    /// The allocator gives the small pieces of a chunk that goes to the next chunk, so where a burst has scattered them they would stay
    /// for as long as the stream goes on, each on a page of its own. Clients that are being sent a chunk keep the old one until then, and other
    /// shards keep theirs. A log that is more than a quarter full stays as it is: the copies of several shards cost more than one chunk, and
    /// [`Log::cost`] does not tell.
    pub fn renew(&mut self, next: &mut u64, chunks_max: usize, old: &mut Vec<Entry>) -> usize {
        if self.cost > self.bytes_max / RENEWED_PART_MAX {
            return 0;
        }
        let before = old.len();
        while let Some(entry) = self.next(*next).filter(|_| old.len() - before < chunks_max) {
            *next = entry.chunk.number + 1;
            old.push(entry.renewed(self.shards));
        }
        for entry in &mut old[before..] {
            let mut place = self.next_mut(entry.chunk.number).expect("it is a copy of one that is there");
            place.priced(|place| std::mem::swap(place, entry));
        }
        self.check();
        old.len() - before
    }

    /// Checks the counters against the contents. For large logs the check would be too expensive.
    fn check(&self) {
        const LOOKED_AT_MAX: usize = 1_000;
        if cfg!(debug_assertions) && self.entries.len() + self.sound.len() <= LOOKED_AT_MAX {
            let sums = self
                .sound
                .iter()
                .chain(&self.entries)
                .fold((0, 0), |(bytes, cost), entry| (bytes + entry.chunk.bytes.len(), cost + entry.cost));
            assert_eq!((self.bytes, self.cost), sums);
        }
    }

    /// Drops the oldest audio; false if there is none from before [`Log::first`].
    fn forget_sound(&mut self) -> bool {
        let Some(entry) = self.sound.pop_front() else { return false };
        self.sound_bytes -= entry.chunk.bytes.len();
        self.bytes -= entry.chunk.bytes.len();
        self.cost -= entry.cost;
        true
    }

    /// Whether the chunk is a whole audio frame.
    fn is_sound(&self, chunk: &Chunk) -> bool {
        let whole = chunk.kind == ChunkKind::Media && chunk.frame_start && chunk.frame_end;
        whole && self.audio[usize::from(chunk.track.0)]
    }
}

fn waited(resumed: Option<Instant>, since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(resumed.map_or(since, |resumed| resumed.max(since)))
}

/// A copy of the bytes, if they are so few that the allocator keeps their memory for the next of this size; otherwise the same.
fn renewed(bytes: &Bytes) -> Bytes {
    if bytes.len() <= CACHED_BYTES_MAX { Bytes::copy_from_slice(bytes) } else { bytes.clone() }
}

/// Appends to a list. Its capacity grows by a quarter, not twofold: a thousand streams keep such lists, and their lengths change little.
fn push(entries: &mut VecDeque<Entry>, entry: Entry) {
    if entries.len() == entries.capacity() {
        entries.reserve_exact(ROOM_ADDED.max(entries.len() / 4));
    }
    entries.push_back(entry);
}
