//! The streams of a server, and the channels for which their tracks are rendered.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits::{ASKED_EVERY_S, RENDERINGS_MAX};
use crate::media::{Description, StreamId, TrackId};

/// Channels of RTP and RTCP.
pub(super) type Channels = (u8, u8);

/// Destination of a stream's multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Multicast {
    /// The group, with the port of the first track's RTP.
    pub(super) group: SocketAddr,
    /// The number of routers that a packet may pass.
    pub(super) ttl: u8,
}

impl Multicast {
    /// The group with the port of a track's RTP: two ports per track.
    pub(super) fn of(self, track: TrackId) -> Option<SocketAddr> {
        let port = self.group.port().checked_add(2 * u16::from(track.0)).filter(|port| *port < u16::MAX)?;
        Some(SocketAddr::new(self.group.ip(), port))
    }
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// The shard that runs its source.
    home: u16,
    name: Option<String>,
    description: Option<Arc<Description>>,
    multicast: Option<Multicast>,
    /// For an on-demand stream: how long requests wait for it.
    on_demand: Option<Duration>,
    /// An on-demand stream that is not pulled, or has not come up since it is pulled.
    asleep: bool,
    /// For a pulled stream: how long a request waits for it while it has never been up.
    first_wait: Option<Duration>,
    /// Its source is down.
    down: bool,
    /// Its source is not live.
    away: bool,
    /// When the shard was last told that the stream was requested although it is down.
    asked: Option<Instant>,
    /// The relays that it has passed through.
    path: Option<Arc<str>>,
    /// Whether it is configured, and not created by name.
    written: bool,
    /// Sessions of it, and requests that wait for it.
    wanted: usize,
    /// By track: the channels other than its own that sessions use, and how many sessions do.
    renderings: Vec<Vec<(Channels, usize)>>,
}

impl Stream {
    fn new(id: StreamId) -> Stream {
        Stream {
            id,
            home: 0,
            name: None,
            description: None,
            multicast: None,
            on_demand: None,
            asleep: false,
            first_wait: None,
            down: false,
            away: false,
            asked: None,
            path: None,
            written: true,
            wanted: 0,
            renderings: Vec::new(),
        }
    }
}

/// All streams, by index.
#[derive(Debug, Default)]
pub(super) struct KnownStreams {
    streams: Vec<Stream>,
    /// Streams whose demand has changed.
    turned: VecDeque<(StreamId, bool)>,
    by_name: HashMap<String, StreamId>,
}

/// The channels in a track's chunks.
pub(super) fn own(track: TrackId) -> Channels {
    (track.rtp_channel(), track.rtcp_channel())
}

impl KnownStreams {
    fn get(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(id.index()).filter(|stream| stream.id == id)
    }

    fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id.index()).filter(|stream| stream.id == id)
    }

    /// Adds a stream with its name. Sessions of the previous stream at its index have no stream any more.
    pub(super) fn set_name(&mut self, id: StreamId, name: &str) {
        let index = id.index();
        if self.streams.len() <= index {
            let places = (self.streams.len()..=index).map(|place| Stream::new(StreamId::first(place as u16)));
            self.streams.extend(places.collect::<Vec<_>>());
        }
        if self.streams[index].id != id {
            self.streams[index] = Stream::new(id);
        }
        let name = name.trim_matches('/').to_owned();
        self.by_name.insert(name.clone(), id);
        self.streams[index].name = Some(name);
    }

    /// Makes a stream unknown.
    pub(super) fn remove(&mut self, id: StreamId) {
        let Some(stream) = self.get_mut(id) else { return };
        let name = stream.name.take();
        stream.description = None;
        stream.path = None;
        (stream.on_demand, stream.asleep, stream.first_wait) = (None, false, None);
        // Another stream may have the name already.
        if let Some(name) = name.filter(|name| self.by_name.get(name) == Some(&id)) {
            self.by_name.remove(&name);
        }
    }

    /// Sets whether a stream was created by name; such a stream is not served at the root.
    pub(super) fn set_made(&mut self, id: StreamId, made: bool) {
        if let Some(stream) = self.get_mut(id) {
            stream.written = !made;
        }
    }

    pub(super) fn set_path(&mut self, id: StreamId, path: Arc<str>) {
        if let Some(stream) = self.get_mut(id) {
            stream.path = Some(path);
        }
    }

    pub(super) fn path(&self, id: StreamId) -> Option<Arc<str>> {
        self.get(id)?.path.clone()
    }

    pub(super) fn set_description(&mut self, id: StreamId, description: Option<Arc<Description>>) {
        if let Some(stream) = self.get_mut(id) {
            stream.description = description;
        }
    }

    pub(super) fn set_multicast(&mut self, id: StreamId, multicast: Multicast) {
        if let Some(stream) = self.get_mut(id) {
            stream.multicast = Some(multicast);
        }
    }

    pub(super) fn multicast(&self, id: StreamId) -> Option<Multicast> {
        self.get(id)?.multicast
    }

    /// Whether the stream is now pulled on demand while clients want it.
    pub(super) fn set_on_demand(&mut self, id: StreamId, wait: Option<Duration>) -> bool {
        let Some(stream) = self.get_mut(id) else { return false };
        let begins = wait.is_some() && stream.on_demand.is_none();
        stream.asleep |= begins;
        stream.on_demand = wait;
        begins && stream.wanted > 0
    }

    pub(super) fn set_asleep(&mut self, id: StreamId, asleep: bool) {
        if let Some(stream) = self.get_mut(id) {
            stream.asleep = asleep && stream.on_demand.is_some();
        }
    }

    pub(super) fn is_asleep(&self, id: StreamId) -> bool {
        self.get(id).is_some_and(|stream| stream.asleep)
    }

    pub(super) fn set_first_wait(&mut self, id: StreamId, wait: Option<Duration>) {
        if let Some(stream) = self.get_mut(id) {
            stream.first_wait = wait;
        }
    }

    /// Its source is away, or is back. Returns whether that changed.
    pub(super) fn set_away(&mut self, id: StreamId, away: bool) -> bool {
        self.get_mut(id).is_some_and(|stream| std::mem::replace(&mut stream.away, away) != away)
    }

    pub(super) fn is_away(&self, id: StreamId) -> bool {
        self.get(id).is_some_and(|stream| stream.away)
    }

    pub(super) fn set_down(&mut self, id: StreamId, down: bool) {
        if let Some(stream) = self.get_mut(id) {
            stream.down = down;
        }
    }

    /// How long a request waits for this stream, if it sleeps or has never been up.
    pub(super) fn wait_for(&self, id: StreamId) -> Option<Duration> {
        let stream = self.get(id)?;
        if stream.asleep {
            return stream.on_demand;
        }
        stream.first_wait.filter(|_| stream.description.is_none())
    }

    /// A client requests the stream. Returns whether to notify the shard.
    pub(super) fn ask(&mut self, now: Instant, id: StreamId) -> bool {
        let Some(stream) = self.get_mut(id) else { return false };
        let every = Duration::from_secs(ASKED_EVERY_S);
        let tells = stream.down && stream.asked.is_none_or(|told| now.saturating_duration_since(told) >= every);
        if tells {
            stream.asked = Some(now);
        }
        tells
    }

    /// A client wants the stream, or no longer does. Returns what the shard must be told, if anything.
    pub(super) fn want(&mut self, id: StreamId, wanted: bool) -> Option<bool> {
        let stream = self.get_mut(id)?;
        let before = stream.wanted > 0;
        stream.wanted = if wanted { stream.wanted + 1 } else { stream.wanted - 1 };
        let after = stream.wanted > 0;
        let on_demand = stream.on_demand.is_some();
        if before != after {
            self.turned.push_back((id, after));
        }
        (on_demand && before != after).then_some(after)
    }

    /// The next stream whose demand has changed.
    pub(super) fn poll_turned(&mut self) -> Option<(StreamId, bool)> {
        self.turned.pop_front()
    }

    /// Whether any client wants the stream.
    pub(super) fn is_wanted(&self, id: StreamId) -> bool {
        self.get(id).is_some_and(|stream| stream.wanted > 0)
    }

    pub(super) fn set_home(&mut self, id: StreamId, home: u16) {
        if let Some(stream) = self.get_mut(id) {
            stream.home = home;
        }
    }

    pub(super) fn home(&self, id: StreamId) -> Option<u16> {
        Some(self.get(id)?.home)
    }

    pub(super) fn name(&self, id: StreamId) -> &str {
        self.get(id).and_then(|stream| stream.name.as_deref()).unwrap_or_default()
    }

    pub(super) fn description(&self, id: StreamId) -> Option<&Arc<Description>> {
        self.get(id)?.description.as_ref()
    }

    /// The stream with that name; the root is the only configured stream.
    pub(super) fn find(&self, name: &[u8]) -> Option<StreamId> {
        let found = std::str::from_utf8(name).ok().and_then(|name| self.by_name.get(name)).copied();
        if found.is_some() || !name.is_empty() {
            return found;
        }
        let mut written = self.streams.iter().filter(|stream| stream.name.is_some() && stream.written);
        written.next().filter(|_| written.next().is_none()).map(|stream| stream.id)
    }

    /// Reserves channels for a track, if possible those requested: none that are `used` in the connection already, and none that would
    /// need too many renderings. `None` if there is no such pair.
    pub(super) fn take_channels(
        &mut self,
        id: StreamId,
        track: TrackId,
        asked: Option<Channels>,
        used: &[u8],
    ) -> Option<Channels> {
        let renderings = &mut self.get_mut(id)?.renderings;
        if renderings.len() <= usize::from(track.0) {
            renderings.resize_with(usize::from(track.0) + 1, Vec::new);
        }
        let rendered = &mut renderings[usize::from(track.0)];
        let possible = |pair: &Channels| {
            let free = pair.0 != pair.1 && !used.contains(&pair.0) && !used.contains(&pair.1);
            let known = *pair == own(track) || rendered.iter().any(|(have, _)| have == pair);
            free && (known || rendered.len() < RENDERINGS_MAX)
        };
        let pairs = (0..128).map(|number| (number * 2, number * 2 + 1));
        let pair = asked
            .into_iter()
            .chain([own(track)])
            .chain(rendered.iter().map(|(pair, _)| *pair))
            .chain(pairs)
            .find(possible)?;
        if pair != own(track) {
            match rendered.iter_mut().find(|(have, _)| *have == pair) {
                Some((_, sessions)) => *sessions += 1,
                None => rendered.push((pair, 1)),
            }
        }
        Some(pair)
    }

    /// Releases channels of [`KnownStreams::take_channels`].
    pub(super) fn release_channels(&mut self, id: StreamId, track: TrackId, pair: Channels) {
        if pair == own(track) {
            return;
        }
        // A session that has outlived its stream releases them to nobody.
        let Some(stream) = self.get_mut(id) else { return };
        let rendered = &mut stream.renderings[usize::from(track.0)];
        let index = rendered.iter().position(|(have, _)| *have == pair).expect("channels that were taken");
        rendered[index].1 -= 1;
        if rendered[index].1 == 0 {
            rendered.swap_remove(index);
        }
    }

    /// Sessions that use another pair than the track's own, over all tracks; and the maximum number of pairs that one track is rendered
    /// for.
    #[cfg(feature = "testing")]
    pub(super) fn rendered(&self) -> (usize, usize) {
        let tracks = || self.streams.iter().flat_map(|stream| &stream.renderings);
        let sessions = tracks().flatten().map(|(_, sessions)| sessions).sum();
        (sessions, tracks().map(Vec::len).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::first(0);
    const TRACK: TrackId = TrackId(1);

    #[test]
    fn channels_are_those_asked_for_or_free_ones() {
        let mut streams = KnownStreams::default();
        streams.set_name(STREAM, "a");
        let mut take = |asked, used: &[u8]| streams.take_channels(STREAM, TRACK, asked, used);
        assert_eq!(take(None, &[]), Some((2, 3)));
        assert_eq!(take(Some((0, 1)), &[]), Some((0, 1)));
        assert_eq!(take(Some((9, 4)), &[]), Some((9, 4)));
        // If they are taken: the track's own, else a pair that is already rendered, else the first free one.
        assert_eq!(take(Some((4, 5)), &[5]), Some((2, 3)));
        assert_eq!(take(None, &[2, 3]), Some((0, 1)));
        assert_eq!(take(None, &[0, 2, 4]), Some((6, 7)));
        assert_eq!(take(Some((7, 7)), &[]), Some((2, 3)));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(take(None, &all), None);
    }

    #[test]
    fn one_rendering_too_many_is_answered_with_one_that_is_there() {
        let mut streams = KnownStreams::default();
        streams.set_name(STREAM, "a");
        for number in 0..RENDERINGS_MAX as u8 {
            let pair = (100 + number * 2, 101 + number * 2);
            assert_eq!(streams.take_channels(STREAM, TRACK, Some(pair), &[]), Some(pair));
        }
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((2, 3)));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[3]), Some((100, 101)));
        // Another track is counted separately.
        assert_eq!(streams.take_channels(STREAM, TrackId(0), Some((50, 51)), &[]), Some((50, 51)));
        streams.release_channels(STREAM, TRACK, (100, 101));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((2, 3)));
        streams.release_channels(STREAM, TRACK, (100, 101));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((50, 51)));
    }

    #[test]
    fn the_root_is_a_single_stream() {
        let mut streams = KnownStreams::default();
        assert_eq!(streams.find(b""), None);
        streams.set_name(StreamId::first(1), "/a/b");
        assert_eq!(streams.find(b""), Some(StreamId::first(1)));
        assert_eq!(streams.find(b"a/b"), Some(StreamId::first(1)));
        streams.set_name(StreamId::first(0), "c");
        assert_eq!(streams.find(b""), None);
        assert_eq!(streams.find(b"c"), Some(StreamId::first(0)));
        assert_eq!(streams.find(b"d"), None);
    }

    #[test]
    fn the_root_is_the_only_stream_that_is_written_down() {
        let mut streams = KnownStreams::default();
        let made = StreamId::first(1);
        streams.set_name(STREAM, "front");
        streams.set_name(made, "live/x");
        assert_eq!(streams.find(b""), None);
        streams.set_made(made, true);
        assert_eq!((streams.find(b""), streams.find(b"live/x")), (Some(STREAM), Some(made)));
        streams.remove(STREAM);
        assert_eq!((streams.find(b""), streams.find(b"front")), (None, None));
    }

    #[test]
    fn whoever_holds_a_removed_stream_finds_nothing_of_the_next_one_at_its_place() {
        let mut streams = KnownStreams::default();
        let (old, new) = (STREAM, STREAM.next_generation());
        streams.set_name(old, "a");
        assert_eq!(streams.take_channels(old, TRACK, Some((6, 7)), &[]), Some((6, 7)));
        assert_eq!(streams.want(old, true), None);
        streams.remove(old);
        streams.set_name(new, "b");
        assert_eq!((streams.find(b"a"), streams.find(b"b")), (None, Some(new)));
        assert_eq!((streams.name(old), streams.name(new)), ("", "b"));
        // What its sessions release does not belong to the new stream.
        streams.release_channels(old, TRACK, (6, 7));
        assert_eq!(streams.want(old, false), None);
        assert_eq!((streams.take_channels(old, TRACK, None, &[]), streams.rendered()), (None, (0, 0)));
        assert!(!streams.set_on_demand(new, Some(Duration::from_secs(1))), "nobody wants it yet");
        assert_eq!(streams.want(new, true), Some(true));
    }
}
