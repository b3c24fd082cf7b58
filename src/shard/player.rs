//! A client's position in the log: one cursor, and the decision what to send next. [`Player::catch_up`] makes a slow client skip.
//!
//! Nothing is queued per client. What a client lacks is what lies between its cursor and the head of the log, so the depth of its queue
//! is its lag, and skipping means moving the cursor.

#[path = "player_frames.rs"]
mod frames;
#[path = "player_saved.rs"]
mod saved;
#[cfg(test)]
#[path = "player_tests.rs"]
mod tests;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::{SmallVec, smallvec};

use crate::egress::{Datagrams, Piece};
use crate::limits::{
    OP_BYTES_MAX, OP_IOVECS_MAX, SKIP_KEPT_BYTES_MAX, SKIP_KEPT_DATA_BYTES_MAX, SKIP_KEPT_S, TRACKS_MAX,
};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::log::Log;
use crate::media::{Description, TrackId};
use crate::metrics::DropReason;

pub use self::saved::PlayerState;

/// A track as a client receives it.
#[derive(Clone, Debug)]
struct Wanted {
    /// The interleaved channels of its RTP and RTCP; over UDP the track's own.
    channels: (u8, u8),
    video: bool,
    /// Video: its chunks are omitted until a keyframe starts.
    waiting: bool,
    /// Frames that start before this chunk are omitted because of a skip.
    from: u64,
    /// Maximum bytes of its frames that a skip of video keeps.
    kept_max: usize,
    /// The frame of which it has been sent a part, but not the end.
    open: Option<u64>,
    /// The frame that follows the last one started.
    next_frame: Option<u64>,
    /// Its client does not want it at present.
    muted: bool,
}

impl Wanted {
    /// Whether it gets the frame that starts with the chunk; false if none does.
    fn begins(&self, chunk: &Chunk) -> bool {
        chunk.frame_start && chunk.number >= self.from && (!self.waiting || chunk.keyframe) && !self.muted
    }

    /// Whether the chunk continues a frame whose start it has received.
    fn goes_on(&self, chunk: &Chunk) -> bool {
        chunk.kind == ChunkKind::Media && self.open == Some(chunk.frame) && !chunk.frame_start
    }
}

/// A chunk to send now, in the form for the player.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The track.
    pub track: TrackId,
    /// The interleaved channel to use.
    pub channel: u8,
    /// Media or report.
    pub kind: ChunkKind,
    /// Since when the client could have received it, unless it is newer.
    pub since: Instant,
}

/// What is sent before anything else: a part of a started frame that the log has dropped or that the client skips past.
#[derive(Debug)]
struct Rest {
    chunk: Arc<Chunk>,
    /// The chunk's bytes for a TCP client.
    piece: Piece,
}

/// Counts since they were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Skips.
    pub skips: u32,
    /// Frames omitted because of its lag.
    pub lagging_frames: u64,
    /// Frames omitted because the log had already dropped them.
    pub log_bytes_frames: u64,
}

impl Notes {
    /// The chunk's frame is started: counts those of its track that were omitted since the last one.
    fn begin(&mut self, wanted: &mut Wanted, chunk: &Chunk, cause: DropReason) {
        let passed = wanted.next_frame.map_or(0, |next| chunk.frame.saturating_sub(next));
        match cause {
            DropReason::LogBytes => self.log_bytes_frames += passed,
            _ => self.lagging_frames += passed,
        }
        wanted.next_frame = Some(chunk.frame + 1);
    }
}

/// The cursor of a player that gets nothing more: past every head. There is no separate flag, because each turn reads the cursor
/// anyway.
const FINISHED: u64 = u64::MAX;

/// The cursor and flags of one playing client.
///
/// The data that every turn needs, including its tracks, comes first: see the shard's links.
#[derive(Debug)]
#[repr(C)]
pub struct Player {
    cursor: u64,
    /// Maximum bytes of one operation.
    op_bytes_max: usize,
    rest: VecDeque<Rest>,
    /// When it last started on a keyframe, skipped, or started to play.
    started: Instant,
    tracks: SmallVec<[Option<Wanted>; 2]>,
    /// When it started to play, or resumed after a pause.
    begun: Instant,
    cause: DropReason,
    notes: Notes,
    /// For a client that gets whole frames as fragments: what it has been sent of each track before the first one.
    fragments: Option<Box<frames::Heads>>,
}

impl Player {
    /// A player for the tracks that have interleaved channels (RTP, RTCP) in `channels`, at the head of the log and waiting for a
    /// keyframe.
    ///
    /// # Panics
    /// If `channels` contains a track that the description lacks.
    pub fn new(description: &Description, channels: &[(TrackId, (u8, u8))], log: &Log, now: Instant) -> Self {
        let mut tracks: SmallVec<[Option<Wanted>; 2]> = smallvec![None; description.tracks.len()];
        for (track, channels) in channels {
            let described = &description.tracks[usize::from(track.0)];
            let video = described.is_video();
            let kept_max = if described.is_audio() { SKIP_KEPT_BYTES_MAX } else { SKIP_KEPT_DATA_BYTES_MAX };
            let channels = *channels;
            let wanted = Wanted {
                channels,
                video,
                waiting: video,
                from: 0,
                kept_max,
                open: None,
                next_frame: None,
                muted: false,
            };
            tracks[usize::from(track.0)] = Some(wanted);
        }
        Player {
            cursor: log.head(),
            tracks,
            begun: now,
            started: now,
            rest: VecDeque::new(),
            op_bytes_max: OP_BYTES_MAX,
            cause: DropReason::Lagging,
            notes: Notes::default(),
            fragments: None,
        }
    }

    /// Moves it to the newest keyframe in the log, if there is one; for a client that starts or resumes.
    pub fn start_cached(&mut self, log: &Log, now: Instant) {
        if let Some(keyframe) = self.newest_keyframe(log).filter(|_| log.cached_start()) {
            self.cursor = keyframe;
            self.started = now;
        }
    }

    /// Drops its current frames and starts with the oldest chunk, waiting for a keyframe; for a client whose stream was interrupted.
    pub fn restart(&mut self, log: &Log, now: Instant) {
        self.cursor = log.first();
        (self.begun, self.started) = (now, now);
        self.rest.clear();
        for wanted in self.tracks.iter_mut().flatten() {
            wanted.waiting = wanted.video;
            wanted.from = 0;
            wanted.open = None;
            // Frames that are missing in the log were counted before it.
            wanted.next_frame = None;
        }
    }

    /// Resumes after a pause: at the newest keyframe, or where it stopped if it was already sent that keyframe. No frame is ever sent
    /// twice.
    pub fn resume(&mut self, log: &mut Log, now: Instant) {
        let newer = self.newest_keyframe(log).filter(|keyframe| *keyframe >= self.cursor);
        let decoding = self.tracks.iter().flatten().any(|wanted| wanted.video && !wanted.waiting);
        (self.begun, self.started) = (now, now);
        if newer.is_none() && decoding && self.cursor >= log.first() {
            return;
        }
        let target = newer.unwrap_or(log.head());
        self.keep(log, target);
        self.cursor = target;
        for wanted in self.tracks.iter_mut().flatten() {
            wanted.waiting = wanted.video;
            // What it missed while it was paused was not dropped.
            wanted.next_frame = None;
        }
    }

    /// The interleaved channels (RTP, RTCP) of a track that it is sent.
    pub fn channels(&self, track: TrackId) -> Option<(u8, u8)> {
        self.tracks.get(usize::from(track.0))?.as_ref().map(|wanted| wanted.channels)
    }

    /// The tracks it is sent.
    pub fn tracks(&self) -> impl Iterator<Item = TrackId> + '_ {
        (0u8..).zip(&self.tracks).filter(|(_, wanted)| wanted.is_some()).map(|(track, _)| TrackId(track))
    }

    /// The age of what it gets next: now minus the arrival of the chunk at the cursor, its last start on a keyframe, or the end of a time
    /// in which nobody was sent anything, whichever is latest. Zero at the head.
    pub fn lag(&self, log: &Log, now: Instant) -> Duration {
        let arrival = match (self.rest.front(), log.next(self.cursor)) {
            (Some(rest), _) => rest.chunk.arrival,
            (None, Some(entry)) => entry.chunk().arrival,
            (None, None) => return Duration::ZERO,
        };
        log.waited(arrival.max(self.started), now)
    }

    /// Sets the maximum bytes of one operation; a larger chunk is still sent, alone.
    pub fn set_op_bytes_max(&mut self, bytes: usize) {
        self.op_bytes_max = bytes;
    }

    /// Whether there is anything in the log from its cursor on. What the log has dropped is nothing to wait for.
    pub fn is_behind(&self, log: &Log) -> bool {
        let is_there = || log.first() < log.head() || log.next(self.cursor).is_some();
        !self.rest.is_empty() || (self.cursor < log.head() && is_there())
    }

    /// Keeps only the rest of the started frames, as far as it has arrived; for a client that is about to be closed.
    pub fn finish(&mut self, log: &mut Log) {
        self.keep(log, log.head());
        self.cursor = FINISHED;
    }

    /// Whether a part of a started frame must be sent before anything else.
    pub fn is_rest_left(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Its counts since the last call.
    pub fn take_notes(&mut self) -> Notes {
        std::mem::take(&mut self.notes)
    }

    /// The first media chunk of `track` that it will be sent if it does not skip, if the log has it already.
    pub fn first_chunk<'l>(&self, log: &'l Log, track: TrackId) -> Option<&'l Chunk> {
        let wanted = self.tracks.get(usize::from(track.0))?.as_ref()?;
        (self.cursor.max(log.first())..log.head())
            .filter_map(|number| log.get(number))
            .map(|entry| entry.chunk().as_ref())
            .filter(|chunk| chunk.track == track && chunk.kind == ChunkKind::Media)
            .find(|chunk| wanted.begins(chunk))
    }

    /// Fills `pieces` with what a TCP client lacks, as far as one operation allows, and `arrivals` with each media chunk's arrival.
    /// `bytes` are in the operation already. Returns the bytes added.
    pub fn fill(
        &mut self,
        log: &mut Log,
        age: Duration,
        now: Instant,
        mut bytes: usize,
        pieces: &mut Vec<Piece>,
        arrivals: &mut impl Extend<Instant>,
    ) -> usize {
        let before = bytes;
        while let Some(rest) = self.rest.front() {
            if pieces.len() >= OP_IOVECS_MAX || (bytes > 0 && bytes + rest.piece.len() > self.op_bytes_max) {
                return bytes - before;
            }
            let rest = self.rest.pop_front().expect("front was there");
            bytes += rest.piece.len();
            arrivals.extend([rest.chunk.arrival]);
            self.end_frame(&rest.chunk);
            pieces.push(rest.piece);
        }
        self.catch_up(log, age, now);
        // The rest of a started frame that catch_up kept precedes the contents of the log.
        if !self.rest.is_empty() {
            return bytes - before + self.fill(log, age, now, bytes, pieces, arrivals);
        }
        while let Some(mut entry) = log.next_mut(self.cursor) {
            let chunk = entry.chunk();
            let full = pieces.len() >= OP_IOVECS_MAX || (bytes > 0 && bytes + chunk.bytes.len() > self.op_bytes_max);
            if full && !self.passes_over(chunk) {
                break;
            }
            self.cursor = chunk.number + 1;
            if let Some(taken) = self.take(chunk, now) {
                bytes += chunk.bytes.len();
                if taken.kind == ChunkKind::Media {
                    arrivals.extend([chunk.arrival.max(taken.since)]);
                }
                pieces.push(entry.piece(taken.channel));
            }
        }
        debug_assert!(self.is_finished() || self.cursor <= log.head(), "a cursor is never past the head");
        bytes - before
    }

    /// The next chunk for a UDP client, which gets them one by one: its datagrams, their form, and its arrival.
    pub fn next_chunk(
        &mut self,
        log: &mut Log,
        age: Duration,
        now: Instant,
    ) -> Option<(Rc<Datagrams>, Taken, Instant)> {
        if self.rest.is_empty() {
            self.catch_up(log, age, now);
        }
        if let Some(rest) = self.rest.pop_front() {
            let chunk = &rest.chunk;
            self.end_frame(chunk);
            let taken = Taken { track: chunk.track, channel: chunk.channel(), kind: chunk.kind, since: self.begun };
            return Some((Rc::new(Datagrams::of(chunk, rest.piece)), taken, chunk.arrival));
        }
        while let Some(mut entry) = log.next_mut(self.cursor) {
            let chunk = entry.chunk();
            let arrival = chunk.arrival;
            self.cursor = chunk.number + 1;
            if let Some(taken) = self.take(chunk, now) {
                return Some((entry.datagrams(), taken, arrival.max(taken.since)));
            }
        }
        None
    }

    /// Drops the rest of `track`'s current frame: for a UDP client whose socket refused a part of it.
    pub fn abandon_frame(&mut self, track: TrackId) {
        self.rest.retain(|rest| rest.chunk.track != track);
        if let Some(wanted) = &mut self.tracks[usize::from(track.0)] {
            wanted.open = None;
        }
    }

    /// Keeps a chunk that the log drops, if it continues a frame that this client has started: a started frame is finished, however
    /// long the operation in flight takes.
    pub fn pin(&mut self, chunk: &Arc<Chunk>, piece: impl FnOnce(u8) -> Piece) {
        // A fragment is sent completely or not at all.
        if chunk.number < self.cursor || self.fragments.is_some() {
            return;
        }
        let Some(Some(wanted)) = self.tracks.get(usize::from(chunk.track.0)) else { return };
        if wanted.goes_on(chunk) {
            let piece = piece(wanted.channels.0);
            self.rest.push_back(Rest { chunk: Arc::clone(chunk), piece });
        }
    }

    /// If the chunk ends its frame, the frame is finished.
    fn end_frame(&mut self, chunk: &Chunk) {
        if let Some(wanted) = self.tracks[usize::from(chunk.track.0)].as_mut().filter(|_| chunk.frame_end) {
            wanted.open = None;
        }
    }

    fn newest_keyframe(&self, log: &Log) -> Option<u64> {
        self.tracks()
            .filter(|track| self.tracks[usize::from(track.0)].as_ref().is_some_and(|wanted| wanted.video))
            .filter_map(|track| log.newest_keyframe(track))
            .max()
    }

    /// Whether [`Player::finish`] was called.
    fn is_finished(&self) -> bool {
        self.cursor == FINISHED
    }

    /// The rule for slow clients: when the lag exceeds `age`, or the log has dropped what is next, finish the started frame and go to
    /// the newest keyframe.
    ///
    /// The cursor goes there at once only if there is no audio in between: otherwise it passes over the skipped video while the audio
    /// is sent.
    fn catch_up(&mut self, log: &mut Log, age: Duration, now: Instant) {
        if self.is_finished() {
            return;
        }
        // A client that waits for a keyframe misses none of the video that the log has dropped.
        let cut_off = self.cursor < log.first() && !self.waits();
        if !cut_off && self.lag(log, now) <= age {
            return;
        }
        // A keyframe at the cursor itself has not been sent yet.
        let target = self.newest_keyframe(log).filter(|keyframe| *keyframe >= self.cursor).unwrap_or(log.head());
        self.cause = if log.forced_out(self.cursor) { DropReason::LogBytes } else { DropReason::Lagging };
        let leaves_out = self.leave_out(log, target, now) || cut_off;
        self.notes.skips += u32::from(leaves_out);
        let kept_from = self.tracks.iter().flatten().map(|wanted| wanted.from).min().unwrap_or(target);
        let cursor = kept_from.clamp(self.cursor, target);
        self.keep(log, cursor);
        self.cursor = cursor;
        self.started = now;
    }

    /// Whether it has video, and gets none of it before the next keyframe.
    fn waits(&self) -> bool {
        let mut videos = self.tracks.iter().flatten().filter(|wanted| wanted.video).peekable();
        videos.peek().is_some() && videos.all(|wanted| wanted.waiting)
    }

    /// Omits video up to `target`, and of the other tracks' data before that all except the newest, within limits. If there is no
    /// video, those tracks themselves lag, and all of it is omitted. Returns whether that includes anything that the client would have
    /// received.
    fn leave_out(&mut self, log: &Log, target: u64, now: Instant) -> bool {
        let mut leaves_out = false;
        let mut room = [0; TRACKS_MAX];
        if self.tracks.iter().flatten().any(|wanted| wanted.video) {
            for (room, wanted) in room.iter_mut().zip(&self.tracks) {
                *room = wanted.as_ref().map_or(0, |wanted| wanted.kept_max);
            }
        }
        let mut kept_from = [target; TRACKS_MAX];
        for chunk in log.newest_first(self.cursor..target).filter(|chunk| chunk.kind == ChunkKind::Media) {
            let track = usize::from(chunk.track.0);
            let Some(Some(wanted)) = self.tracks.get(track) else { continue };
            if !wanted.begins(chunk) {
                continue;
            }
            let new = log.waited(chunk.arrival, now) <= Duration::from_secs(SKIP_KEPT_S);
            if !wanted.video && new && chunk.bytes.len() <= room[track] {
                room[track] -= chunk.bytes.len();
                kept_from[track] = chunk.number;
            } else {
                room[track] = 0;
                leaves_out = true;
            }
        }
        for (wanted, kept_from) in self.tracks.iter_mut().zip(kept_from) {
            let Some(wanted) = wanted else { continue };
            // A skip is also counted if video continues with the very next frame, a keyframe.
            leaves_out |= wanted.video && !wanted.waiting;
            wanted.waiting = wanted.video;
            wanted.from = kept_from;
        }
        leaves_out
    }

    /// Keeps what the log has of the started frames below `end`.
    fn keep(&mut self, log: &mut Log, end: u64) {
        if self.fragments.is_some() {
            self.tracks.iter_mut().flatten().for_each(|wanted| wanted.open = None);
            return;
        }
        for number in self.cursor.max(log.first())..end {
            let Some(mut entry) = log.get_mut(number) else { continue };
            let chunk = Arc::clone(entry.chunk());
            let Some(Some(wanted)) = self.tracks.get(usize::from(chunk.track.0)) else { continue };
            if wanted.goes_on(&chunk) {
                let piece = entry.piece(wanted.channels.0);
                self.rest.push_back(Rest { chunk, piece });
            }
        }
    }

    /// Whether the chunk at the cursor is not for this client.
    fn passes_over(&self, chunk: &Chunk) -> bool {
        let Some(Some(wanted)) = self.tracks.get(usize::from(chunk.track.0)) else { return true };
        chunk.kind == ChunkKind::Media && !wanted.goes_on(chunk) && !wanted.begins(chunk)
    }

    /// Decides about the chunk at the cursor: in which form it is sent, or that it is omitted.
    fn take(&mut self, chunk: &Chunk, now: Instant) -> Option<Taken> {
        let wanted = self.tracks.get_mut(usize::from(chunk.track.0))?.as_mut()?;
        let channel = match chunk.kind {
            ChunkKind::Report => wanted.channels.1,
            ChunkKind::Media => wanted.channels.0,
        };
        if chunk.kind == ChunkKind::Media {
            if !wanted.goes_on(chunk) {
                if !wanted.begins(chunk) {
                    return None;
                }
                if std::mem::take(&mut wanted.waiting) {
                    self.started = now;
                }
                self.notes.begin(wanted, chunk, self.cause);
            }
            wanted.open = (!chunk.frame_end).then_some(chunk.frame);
        }
        // What was in the log before this client started, or continued at a keyframe, did not wait because of the client.
        let since = if wanted.video { self.started } else { self.begun };
        Some(Taken { track: chunk.track, channel, kind: chunk.kind, since })
    }
}
