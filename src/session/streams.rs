//! The streams that a server knows, and which channels their tracks are rendered for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::RENDERINGS_MAX;
use crate::stream::{Description, StreamId, TrackId};

/// Channels of RTP and RTCP.
pub(super) type Channels = (u8, u8);

/// Where a stream's multicast goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Multicast {
    /// The group, with the port of the first track's RTP.
    pub(super) group: SocketAddr,
    /// Routers that a packet may pass.
    pub(super) ttl: u8,
}

impl Multicast {
    /// The group with the port of a track's RTP: two ports a track.
    pub(super) fn of(self, track: TrackId) -> Option<SocketAddr> {
        let port = self.group.port().checked_add(2 * u16::from(track.0)).filter(|port| *port < u16::MAX)?;
        Some(SocketAddr::new(self.group.ip(), port))
    }
}

#[derive(Debug, Default)]
struct Stream {
    name: Option<String>,
    description: Option<Arc<Description>>,
    multicast: Option<Multicast>,
    /// For an on-demand stream: how long requests wait for it.
    on_demand: Option<Duration>,
    /// An on-demand stream that is not pulled, or has not come up since it is.
    asleep: bool,
    /// Sessions of it, and requests that wait for it.
    wanted: usize,
    /// By track: the channels other than its own that sessions use, and how many do.
    renderings: Vec<Vec<(Channels, usize)>>,
}

/// All streams, by number.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: Vec<Stream>,
}

/// The channels that a track's chunks carry of themselves.
pub(super) fn own(track: TrackId) -> Channels {
    (track.rtp_channel(), track.rtcp_channel())
}

impl Streams {
    fn entry(&mut self, id: StreamId) -> &mut Stream {
        let index = usize::from(id.0);
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, Stream::default);
        }
        &mut self.streams[index]
    }

    pub(super) fn set_name(&mut self, id: StreamId, name: &str) {
        self.entry(id).name = Some(name.trim_matches('/').to_owned());
    }

    /// Makes a stream unknown. Its number stays taken.
    pub(super) fn remove(&mut self, id: StreamId) {
        let entry = self.entry(id);
        entry.name = None;
        entry.description = None;
    }

    pub(super) fn set_description(&mut self, id: StreamId, description: Option<Arc<Description>>) {
        self.entry(id).description = description;
    }

    pub(super) fn set_multicast(&mut self, id: StreamId, multicast: Multicast) {
        self.entry(id).multicast = Some(multicast);
    }

    pub(super) fn multicast(&self, id: StreamId) -> Option<Multicast> {
        self.streams.get(usize::from(id.0))?.multicast
    }

    /// Whether the stream begins to be one that is pulled on demand while somebody wants it.
    pub(super) fn set_on_demand(&mut self, id: StreamId, wait: Option<Duration>) -> bool {
        let stream = self.entry(id);
        let begins = wait.is_some() && stream.on_demand.is_none();
        stream.asleep |= begins;
        stream.on_demand = wait;
        begins && stream.wanted > 0
    }

    pub(super) fn set_asleep(&mut self, id: StreamId, asleep: bool) {
        let stream = self.entry(id);
        stream.asleep = asleep && stream.on_demand.is_some();
    }

    /// How long a request is to wait for this stream, if it is one that sleeps.
    pub(super) fn wait_for(&self, id: StreamId) -> Option<Duration> {
        let stream = self.streams.get(usize::from(id.0))?;
        stream.on_demand.filter(|_| stream.asleep)
    }

    /// Somebody wants the stream, or does no more. What the shard is to be told of it, if anything.
    pub(super) fn want(&mut self, id: StreamId, wanted: bool) -> Option<bool> {
        let stream = self.entry(id);
        let before = stream.wanted > 0;
        stream.wanted = if wanted { stream.wanted + 1 } else { stream.wanted - 1 };
        let after = stream.wanted > 0;
        (stream.on_demand.is_some() && before != after).then_some(after)
    }

    pub(super) fn name(&self, id: StreamId) -> &str {
        self.streams.get(usize::from(id.0)).and_then(|stream| stream.name.as_deref()).unwrap_or_default()
    }

    pub(super) fn description(&self, id: StreamId) -> Option<&Arc<Description>> {
        self.streams.get(usize::from(id.0))?.description.as_ref()
    }

    /// The stream of that name; the root is the only stream there is.
    pub(super) fn find(&self, name: &[u8]) -> Option<StreamId> {
        let named = || self.streams.iter().enumerate().filter(|(_, stream)| stream.name.is_some());
        let index = match named().find(|(_, stream)| stream.name.as_deref().unwrap_or_default().as_bytes() == name) {
            Some((index, _)) => index,
            None if name.is_empty() && named().count() == 1 => named().next()?.0,
            None => return None,
        };
        Some(StreamId(index as u16))
    }

    /// Takes channels for a track, if possible those asked for: none that are `used` in the connection already, and
    /// none that would need one rendering too many. `None` if there is no such pair.
    pub(super) fn take_channels(
        &mut self,
        id: StreamId,
        track: TrackId,
        asked: Option<Channels>,
        used: &[u8],
    ) -> Option<Channels> {
        let renderings = &mut self.entry(id).renderings;
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

    /// Gives back channels of [`Streams::take_channels`].
    pub(super) fn release_channels(&mut self, id: StreamId, track: TrackId, pair: Channels) {
        if pair == own(track) {
            return;
        }
        let rendered = &mut self.entry(id).renderings[usize::from(track.0)];
        let index = rendered.iter().position(|(have, _)| *have == pair).expect("channels that were taken");
        rendered[index].1 -= 1;
        if rendered[index].1 == 0 {
            rendered.swap_remove(index);
        }
    }

    /// Sessions that use another pair than the track's own, over all tracks; and the most pairs that one track is
    /// rendered for.
    pub(super) fn rendered(&self) -> (usize, usize) {
        let tracks = || self.streams.iter().flat_map(|stream| &stream.renderings);
        let sessions = tracks().flatten().map(|(_, sessions)| sessions).sum();
        (sessions, tracks().map(Vec::len).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(0);
    const TRACK: TrackId = TrackId(1);

    #[test]
    fn channels_are_those_asked_for_or_free_ones() {
        let mut streams = Streams::default();
        let mut take = |asked, used: &[u8]| streams.take_channels(STREAM, TRACK, asked, used);
        assert_eq!(take(None, &[]), Some((2, 3)));
        assert_eq!(take(Some((0, 1)), &[]), Some((0, 1)));
        assert_eq!(take(Some((9, 4)), &[]), Some((9, 4)));
        // Taken ones: its own, else one that is rendered already, else the first free.
        assert_eq!(take(Some((4, 5)), &[5]), Some((2, 3)));
        assert_eq!(take(None, &[2, 3]), Some((0, 1)));
        assert_eq!(take(None, &[0, 2, 4]), Some((6, 7)));
        assert_eq!(take(Some((7, 7)), &[]), Some((2, 3)));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(take(None, &all), None);
    }

    #[test]
    fn one_rendering_too_many_is_answered_with_one_that_is_there() {
        let mut streams = Streams::default();
        for number in 0..RENDERINGS_MAX as u8 {
            let pair = (100 + number * 2, 101 + number * 2);
            assert_eq!(streams.take_channels(STREAM, TRACK, Some(pair), &[]), Some(pair));
        }
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((2, 3)));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[3]), Some((100, 101)));
        // Another track counts for itself.
        assert_eq!(streams.take_channels(STREAM, TrackId(0), Some((50, 51)), &[]), Some((50, 51)));
        streams.release_channels(STREAM, TRACK, (100, 101));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((2, 3)));
        streams.release_channels(STREAM, TRACK, (100, 101));
        assert_eq!(streams.take_channels(STREAM, TRACK, Some((50, 51)), &[]), Some((50, 51)));
    }

    #[test]
    fn the_root_is_a_single_stream() {
        let mut streams = Streams::default();
        assert_eq!(streams.find(b""), None);
        streams.set_name(StreamId(1), "/a/b");
        assert_eq!(streams.find(b""), Some(StreamId(1)));
        assert_eq!(streams.find(b"a/b"), Some(StreamId(1)));
        streams.set_name(StreamId(0), "c");
        assert_eq!(streams.find(b""), None);
        assert_eq!(streams.find(b"c"), Some(StreamId(0)));
        assert_eq!(streams.find(b"d"), None);
    }
}
