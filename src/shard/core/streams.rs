//! The streams by index: a shard's data for each, and which of them a pass must process.

use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::browser::WebStream;
use super::outage::{Outage, OutageState};
use crate::limits::SUBSCRIPTION_LINGER_S;
use crate::media::chunk::{Chunk, ChunkKind, ChunkState};
use crate::media::copied::{Kept, Numbers};
use crate::media::log::{Appended, Log, LogState, Missing};
use crate::media::rendering::fmp4::{Fragments, FragmentsState};
use crate::media::saved::Moment;
use crate::media::{Description, SourceState, StreamId};
use crate::shard::snapshot::{Snapshot, Tail};
use crate::shard::types::{Group, Start, StreamSetup};

/// How long a shard stays subscribed after the last client of the stream left.
const LINGER: Duration = Duration::from_secs(SUBSCRIPTION_LINGER_S);

/// The state of a subscription to a stream of another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    /// Nobody here wants it.
    None,
    /// The home was asked, and has not answered.
    Waiting(u32),
    /// Each chunk comes.
    Live(u32),
}

/// A shard that has subscribed to a stream of this shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscriber {
    pub(super) shard: u16,
    pub(super) epoch: u32,
}

/// A shard's data for a stream as plain data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamState {
    log: LogState,
    outage: OutageState,
    source: SourceState,
    epoch: u32,
    /// The epoch of the subscription, if each chunk comes.
    live: Option<u32>,
    /// Subscribed shards, with their epochs.
    subscribers: Vec<(u16, u32)>,
    /// By track: the number of the next packet, and a time with the timestamp at that time.
    tails: Vec<Option<(u16, Moment, u32)>>,
    reports: Vec<Option<ChunkState>>,
    /// What browsers' fragments are made by.
    #[serde(default)]
    fragments: Option<FragmentsState>,
}

impl StreamState {
    /// All of its bytes, in a fixed order.
    pub(super) fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.log.each_bytes(each);
        self.reports.iter_mut().flatten().for_each(|chunk| each(chunk.bytes_mut()));
        self.outage.each_bytes(each);
        if let Some(fragments) = &mut self.fragments {
            fragments.each_bytes(each);
        }
    }

    /// Puts its chunks with those that came before; times are relative to `reference`.
    pub(super) fn keep(&mut self, reference: Instant, kept: &mut Kept) {
        self.log.keep(reference, kept);
    }

    /// The state of its source.
    pub(super) fn source(&self) -> SourceState {
        self.source
    }
}

pub(super) struct Stream {
    pub(super) id: StreamId,
    /// The shard that runs its source.
    pub(super) home: u16,
    /// Subscribed shards, if this is its home.
    pub(super) subscribers: SmallVec<[Subscriber; 1]>,
    /// The subscription, if its home is another shard.
    pub(super) subscription: Subscription,
    pub(super) start: Start,
    pub(super) name: String,
    pub(super) description: Option<Arc<Description>>,
    pub(super) log: Log,
    pub(super) outage: Outage,
    pub(super) web: WebStream,
    pub(super) group: Option<Group>,
    /// The link that sends to the group.
    pub(super) group_link: Option<u32>,
    pub(super) told_no_cached_start: bool,
    state: SourceState,
    /// The epoch of the last subscription.
    epoch: u32,
    /// Since when no client has wanted it, while it is still subscribed.
    unwanted: Option<Instant>,
    /// It was removed. Its index is released when the last of its clients' links is gone.
    removed: bool,
    /// Its index has been released.
    released: bool,
    /// Links with a client of it, including those that are only being sent their last data.
    players: usize,
    /// Links whose clients are sent new chunks, in no order.
    members: Vec<u32>,
    /// Where the next walk over the members starts, so that no client is always last.
    rotate: usize,
    /// It is in [`ShardStreams::dirty`].
    dirty: bool,
    tails: Vec<Option<Tail>>,
    /// The last sender report of each track.
    reports: Vec<Option<Arc<Chunk>>>,
}

impl Stream {
    fn new(setup: &StreamSetup, age: Duration, log_bytes: usize, shards: usize) -> Stream {
        Stream {
            id: setup.id,
            home: setup.home,
            subscribers: SmallVec::new(),
            subscription: Subscription::None,
            start: setup.start,
            name: setup.name.clone(),
            description: None,
            log: Log::new(age, log_bytes, shards),
            outage: Outage::default(),
            web: WebStream::default(),
            group: None,
            group_link: None,
            told_no_cached_start: false,
            state: SourceState::Connecting,
            epoch: 0,
            unwanted: None,
            removed: false,
            released: false,
            players: 0,
            members: Vec::new(),
            rotate: 0,
            dirty: false,
            tails: Vec::new(),
            reports: Vec::new(),
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    /// It was removed: whatever still arrives for it is ignored.
    pub(super) fn set_removed(&mut self) {
        self.removed = true;
    }

    /// The links whose clients are sent new chunks, in no order.
    pub(super) fn members(&self) -> &[u32] {
        &self.members
    }

    /// The log, and those links.
    pub(super) fn log_and_members(&mut self) -> (&mut Log, &[u32]) {
        (&mut self.log, &self.members)
    }

    /// A link's client plays the stream from now on. Returns its index among the members.
    pub(super) fn join(&mut self, slot: u32) -> usize {
        self.players += 1;
        self.members.push(slot);
        self.members.len() - 1
    }

    /// A link's client is only sent its last data: it is no member.
    pub(super) fn join_to_leave(&mut self) -> Option<usize> {
        self.players += 1;
        None
    }

    /// A member is sent no more chunks. Returns the link that takes its index.
    pub(super) fn leave(&mut self, member: usize) -> Option<u32> {
        self.members.swap_remove(member);
        self.members.get(member).copied()
    }

    /// The number of members, and where the next walk starts; `None` if there are none.
    pub(super) fn next_walk(&mut self) -> Option<(usize, usize)> {
        let count = self.members.len();
        if count == 0 {
            return None;
        }
        let start = self.rotate % count;
        self.rotate = start + 1;
        Some((start, count))
    }

    /// Whether its source is silent: connected, but sending nothing.
    pub(super) fn is_silent(&self) -> bool {
        self.state == SourceState::Silent
    }

    /// Whether its source is live, or may be at any moment.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.state, SourceState::Live | SourceState::Silent)
    }

    /// The source's state has changed.
    fn set_state(&mut self, now: Instant, state: SourceState) {
        self.state = state;
        self.outage.set_state(state, self.heard().unwrap_or(now));
        if !self.goes_on() {
            // A new client must not be shown the last picture of an unreachable camera as if it were current.
            self.log.forget_keyframes();
            // A report of an old session says nothing about the next one.
            self.reports.fill(None);
        }
    }

    /// Whether its clients miss media. The source of an on-demand stream that is not wanted has none.
    fn is_away(&self) -> bool {
        !self.removed && !matches!(self.state, SourceState::Live | SourceState::Idle)
    }

    /// When the newest media arrived, on any track.
    fn heard(&self) -> Option<Instant> {
        self.tails.iter().flatten().map(|tail| tail.clock.0).max()
    }

    /// The state of a track, for clients that have no chunk of it yet.
    pub(super) fn tail(&self, track: usize) -> Option<Tail> {
        self.tails.get(track).copied().flatten()
    }

    /// The last sender report of each track that has one.
    pub(super) fn reports(&self) -> impl Iterator<Item = &Arc<Chunk>> {
        self.reports.iter().flatten()
    }

    /// The next chunk.
    fn append(&mut self, chunk: Arc<Chunk>) -> Appended {
        let track = usize::from(chunk.track.0);
        if self.tails.len() <= track {
            self.tails.resize(track + 1, None);
            self.reports.resize(track + 1, None);
        }
        match chunk.kind {
            ChunkKind::Report => {
                self.web.report(&chunk);
                self.reports[track] = Some(Arc::clone(&chunk));
            }
            ChunkKind::Media => {
                let next_seq = chunk.first_seq.wrapping_add(chunk.packets);
                self.tails[track] = Some(Tail { next_seq, clock: (chunk.arrival, chunk.rtp_time) });
            }
        }
        self.outage.note(&chunk);
        self.log.append(chunk)
    }

    /// The source has described the stream; `continues` says that clients stay.
    pub(super) fn describe(&mut self, description: &Arc<Description>, continues: bool) {
        self.web.described(description, continues);
        self.log.describe(description);
        self.description = Some(Arc::clone(description));
    }

    /// Forgets the state of its tracks, because it has others now, or was removed.
    pub(super) fn forget_tracks(&mut self) {
        self.tails.clear();
        self.reports.clear();
        self.outage.forget_tracks();
    }

    /// Subscribes, unless that was already done. Returns the epoch of a new subscription.
    pub(super) fn subscribe(&mut self) -> Option<u32> {
        if self.subscription != Subscription::None {
            return None;
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.subscription = Subscription::Waiting(self.epoch);
        Some(self.epoch)
    }

    /// Ends a subscription and drops its data. Returns its epoch, if there was one.
    pub(super) fn unsubscribe(&mut self) -> Option<u32> {
        let before = std::mem::replace(&mut self.subscription, Subscription::None);
        let (Subscription::Waiting(epoch) | Subscription::Live(epoch)) = before else { return None };
        self.log.clear();
        self.forget_tracks();
        Some(epoch)
    }

    /// What a subscription starts with.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            chunks: self.log.since_keyframe().cloned().collect(),
            head: self.log.head(),
            tails: self.tails.clone(),
            reports: self.reports.clone(),
            sent: self.outage.sent().to_vec(),
        }
    }

    /// Starts with the home's snapshot.
    pub(super) fn begin_with(&mut self, snapshot: Snapshot) {
        let Snapshot { chunks, head, tails, reports, sent } = snapshot;
        self.log.begin_at(chunks.first().map_or(head, |chunk| chunk.number));
        for chunk in chunks {
            self.log.append(chunk);
        }
        debug_assert_eq!(self.log.head(), head, "a snapshot goes up to the next chunk");
        (self.tails, self.reports) = (tails, reports);
        self.reports.iter().flatten().for_each(|report| self.web.report(report));
        self.outage.set_sent(sent);
    }

    /// It as plain data, with the chunks that have not been `sent` before; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant, sent: &mut Numbers) -> StreamState {
        let tail = |tail: &Tail| (tail.next_seq, Moment::of(tail.clock.0, reference), tail.clock.1);
        StreamState {
            log: self.log.save_beyond(reference, sent),
            outage: self.outage.save(reference),
            source: self.state,
            epoch: self.epoch,
            live: match self.subscription {
                Subscription::Live(epoch) => Some(epoch),
                _ => None,
            },
            subscribers: self.subscribers.iter().map(|by| (by.shard, by.epoch)).collect(),
            tails: self.tails.iter().map(|of| of.as_ref().map(tail)).collect(),
            reports: self.reports.iter().map(|of| of.as_ref().map(|report| report.save(reference))).collect(),
            fragments: self.web.fragments.as_ref().map(|fragments| fragments.save(reference)),
        }
    }

    /// Restores that, with the chunks that are `kept`. The stream has been described.
    ///
    /// # Errors
    /// A chunk is missing.
    pub(super) fn restore(&mut self, reference: Instant, state: StreamState, kept: &Kept) -> Result<(), Missing> {
        self.log.restore_with(reference, state.log, kept)?;
        self.outage.restore(reference, state.outage);
        self.state = state.source;
        self.epoch = state.epoch;
        self.subscription = state.live.map_or(Subscription::None, Subscription::Live);
        self.subscribers = state.subscribers.into_iter().map(|(shard, epoch)| Subscriber { shard, epoch }).collect();
        let tail = |(next_seq, at, time): (u16, Moment, u32)| Tail { next_seq, clock: (at.at(reference), time) };
        self.tails = state.tails.into_iter().map(|of| of.map(tail)).collect();
        let report = |chunk| Arc::new(Chunk::restore(reference, chunk));
        self.reports = state.reports.into_iter().map(|of| of.map(report)).collect();
        self.web.fragments = self
            .description
            .as_ref()
            .and_then(|description| Some(Fragments::restore(reference, state.fragments?, Arc::clone(description))));
        Ok(())
    }

    /// Makes the reports that are due while the source is away; returns whether there are any.
    fn make_reports(&mut self, now: Instant) -> bool {
        let heard = self.heard();
        // A new client must not start with an old one.
        let wanted = !self.members.is_empty() && !self.removed;
        self.outage.make_due(now, heard, self.description.as_deref().filter(|_| wanted))
    }
}

/// A shard's streams.
pub(super) struct ShardStreams {
    places: Vec<Stream>,
    /// Streams with chunks that were not offered to their members yet: a pass processes no others.
    dirty: Vec<usize>,
    /// Streams whose members have not been offered the newest reports of an outage.
    reporting: Vec<usize>,
    /// Streams of other shards that no client wants at present.
    unwanted: Vec<usize>,
    /// A source is away, or was at the last look: reports for its clients may be due.
    away: bool,
    /// Lag at which a client skips to a keyframe.
    age: Duration,
    log_bytes: usize,
    shards: usize,
}

impl ShardStreams {
    /// Initially empty. The logs go back by `age` and hold at most this many bytes; `shards` share the chunks.
    pub(super) fn new(age: Duration, log_bytes: usize, shards: usize) -> ShardStreams {
        let (dirty, reporting, unwanted) = (Vec::new(), Vec::new(), Vec::new());
        ShardStreams { places: Vec::new(), dirty, reporting, unwanted, away: false, age, log_bytes, shards }
    }

    /// A stream is new, or has other settings from now on. Returns whether it is new.
    ///
    /// # Panics
    /// If a new stream has neither the next index nor a released one.
    pub(super) fn set(&mut self, setup: &StreamSetup) -> bool {
        if let Some(index) = self.find(setup.id) {
            self.places[index].start = setup.start;
            return false;
        }
        let stream = Stream::new(setup, self.age, self.log_bytes, self.shards);
        match self.places.get_mut(setup.id.index()) {
            Some(place) => {
                assert!(place.removed && place.players == 0, "a slot is reused only after every shard has released it");
                *place = stream;
            }
            None => {
                assert_eq!(setup.id.index(), self.places.len(), "places are given in their order");
                self.places.push(stream);
            }
        }
        true
    }

    /// The index of a stream; `None` if it was removed, and data for it should be ignored.
    pub(super) fn find(&self, id: StreamId) -> Option<usize> {
        self.places.get(id.index()).filter(|stream| stream.id == id && !stream.removed).map(|_| id.index())
    }

    /// Whether the stream is not known yet, rather than gone: an index goes to the next stream after every shard has released it.
    pub(super) fn is_to_come(&self, id: StreamId) -> bool {
        self.places.get(id.index()).is_none_or(|stream| stream.id.next_generation() == id)
    }

    pub(super) fn get(&self, index: usize) -> Option<&Stream> {
        self.places.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Stream> {
        self.places.get_mut(index)
    }

    /// Places there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Those that there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.places.iter().filter(|stream| !stream.removed)
    }

    /// Lag at which a client skips to a keyframe.
    pub(super) fn age(&self) -> Duration {
        self.age
    }

    /// Sets other limits for the logs.
    pub(super) fn set_bounds(&mut self, age: Duration, log_bytes: usize) {
        (self.age, self.log_bytes) = (age, log_bytes);
        for stream in &mut self.places {
            stream.log.set_bounds(age, log_bytes);
        }
    }

    /// The next chunk of a stream, to be offered to its members.
    pub(super) fn append(&mut self, index: usize, chunk: Arc<Chunk>) -> Appended {
        let stream = &mut self.places[index];
        if !std::mem::replace(&mut stream.dirty, true) {
            self.dirty.push(index);
        }
        stream.append(chunk)
    }

    /// Offers the members of all streams what there is.
    pub(super) fn offer_all(&mut self) {
        self.dirty = (0..self.places.len()).collect();
        for stream in &mut self.places {
            stream.dirty = true;
        }
    }

    /// Nobody was sent anything for a while, until `now`.
    pub(super) fn resume(&mut self, now: Instant) {
        self.places.iter_mut().for_each(|stream| stream.log.resume(now));
    }

    /// The next stream whose members must be offered new chunks.
    pub(super) fn next_dirty(&mut self) -> Option<usize> {
        let index = self.dirty.pop()?;
        self.places[index].dirty = false;
        Some(index)
    }

    /// The next stream whose members must be offered reports.
    pub(super) fn next_reporting(&mut self) -> Option<usize> {
        self.reporting.pop()
    }

    /// Whether members of some stream must be offered something.
    pub(super) fn has_more(&self) -> bool {
        !self.dirty.is_empty() || !self.reporting.is_empty()
    }

    /// A source's state has changed.
    pub(super) fn set_state(&mut self, now: Instant, index: usize, state: SourceState) {
        self.places[index].set_state(now, state);
        self.away |= self.places[index].is_away();
    }

    /// Makes the reports that are due while sources are away.
    pub(super) fn make_reports(&mut self, now: Instant) {
        for (index, stream) in self.places.iter_mut().enumerate() {
            if stream.make_reports(now) {
                self.reporting.push(index);
            }
        }
        self.away = self.places.iter().any(Stream::is_away);
    }

    /// Whether [`ShardStreams::make_reports`] is to be called on time.
    pub(super) fn are_away(&self) -> bool {
        self.away
    }

    /// Streams that receive nothing and that nobody plays: otherwise logs are trimmed only when chunks arrive.
    pub(super) fn at_rest(&self) -> Vec<usize> {
        let is_at_rest =
            |stream: &Stream| !stream.goes_on() && !stream.dirty && stream.members.is_empty() && stream.log.cost() > 0;
        (0..self.places.len()).filter(|index| is_at_rest(&self.places[*index])).collect()
    }

    /// A link with a client of the stream is gone.
    pub(super) fn let_go(&mut self, index: usize) {
        self.places[index].players -= 1;
    }

    /// Releases a removed stream's index if nothing refers to it any more; returns whether that is so now.
    pub(super) fn give_back(&mut self, index: usize) -> bool {
        let stream = &mut self.places[index];
        stream.removed && stream.players == 0 && !std::mem::replace(&mut stream.released, true)
    }

    /// Clients want a stream of another shard, or no longer do.
    pub(super) fn set_wanted(&mut self, now: Instant, index: usize, wanted: bool) {
        let stream = &mut self.places[index];
        if wanted {
            stream.unwanted = None;
        } else if stream.unwanted.replace(now).is_none() && !self.unwanted.contains(&index) {
            self.unwanted.push(index);
        }
    }

    /// Takes those that no client has wanted for a while.
    pub(super) fn take_unwanted(&mut self, now: Instant) -> Vec<usize> {
        let mut taken = Vec::new();
        self.unwanted.retain(|index| {
            let stream = &mut self.places[*index];
            let Some(since) = stream.unwanted else { return false };
            if now.saturating_duration_since(since) < LINGER {
                return true;
            }
            stream.unwanted = None;
            if stream.members.is_empty() {
                taken.push(*index);
            }
            false
        });
        taken
    }

    /// The streams whose members must be offered new chunks.
    #[cfg(test)]
    pub(super) fn dirty(&self) -> &[usize] {
        &self.dirty
    }
}

impl Index<usize> for ShardStreams {
    type Output = Stream;

    fn index(&self, index: usize) -> &Stream {
        &self.places[index]
    }
}

impl IndexMut<usize> for ShardStreams {
    fn index_mut(&mut self, index: usize) -> &mut Stream {
        &mut self.places[index]
    }
}
