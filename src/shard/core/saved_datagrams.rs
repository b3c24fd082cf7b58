//! A frozen shard's UDP clients and multicast groups as plain data, and its sockets, for the shard with the same number in another
//! process. Nothing of them is in flight: datagrams never wait in an operation.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::clients::single_datagram;
use super::link::{Closing, Kind, Link, Playing, Target, Targets};
use super::saved_playing::PlayingState;
use super::state::Core;
use super::streams::Stream;
use crate::egress::{Datagram, Datagrams, Egress};
use crate::media::TrackId;
use crate::metrics::Transport;
use crate::session::SessionKey;
use crate::shard::types::SocketFds;

/// A client that is sent datagrams.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DatagramLink {
    targets: Vec<Target>,
    from: Option<IpAddr>,
    plain: bool,
    /// What precedes the next chunk.
    own: Vec<OwnDatagram>,
    playing: PlayingState,
}

/// A datagram for one client alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OwnDatagram {
    to: SocketAddr,
    #[serde(with = "crate::media::saved::bytes")]
    bytes: Bytes,
}

/// A session that receives a stream's multicast group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReceiverLink {
    stream: String,
    session: u64,
    peer: SocketAddr,
    tracks: Vec<TrackId>,
}

impl DatagramLink {
    /// All of its bytes, in a fixed order.
    pub(super) fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        self.own.iter_mut().for_each(|datagram| each(&mut datagram.bytes));
        self.playing.each_bytes(each);
    }
}

/// The rendered packets, one by one.
fn packets(own: &(SocketAddr, Rc<Datagrams>)) -> impl Iterator<Item = OwnDatagram> + '_ {
    let (to, datagrams) = own;
    let own = move |span| OwnDatagram { to: *to, bytes: Bytes::copy_from_slice(datagrams.packet(span)) };
    datagrams.packets.iter().map(own)
}

fn further(socket: &Datagram) -> io::Result<Option<OwnedFd>> {
    socket.fd().map(|fd| fd.try_clone_to_owned()).transpose()
}

impl<E: Egress> Core<E> {
    /// Further descriptors of the shard's sockets.
    ///
    /// # Errors
    /// The error of `dup`.
    pub fn sockets(&self) -> io::Result<SocketFds> {
        let pair = match self.paths.shared() {
            Some(shared) => further(&shared.rtp)?.zip(further(&shared.rtcp)?),
            None => None,
        };
        let mut groups = Vec::new();
        for stream in self.streams.iter() {
            let Some(group) = &stream.group else { continue };
            if let Some(socket) = group.socket.as_ref().map(further).transpose()?.flatten() {
                groups.push((stream.name.clone(), group.address, socket));
            }
        }
        Ok(SocketFds { pair, groups })
    }

    pub(super) fn save_datagrams(&self, reference: Instant) -> Vec<DatagramLink> {
        self.links.iter().filter_map(|(_, link)| self.save_datagram_link(reference, link)).collect()
    }

    /// Also one that is only sent its last data, of a session that has ended.
    fn save_datagram_link(&self, reference: Instant, link: &Link) -> Option<DatagramLink> {
        let Kind::Udp { targets, from, own, own_sockets, plain, .. } = &link.kind else { return None };
        let is_group = own_sockets.as_ref().is_some_and(|own| own.rtcp.is_some());
        let playing = link.playing.as_ref().filter(|_| link.closing != Closing::Join && !is_group)?;
        Some(DatagramLink {
            targets: targets.to_vec(),
            from: *from,
            plain: *plain,
            own: own.iter().flat_map(packets).collect(),
            playing: self.save_playing(reference, playing),
        })
    }

    pub(super) fn save_receivers(&self) -> Vec<ReceiverLink> {
        let receiver = |(session, slot): (SessionKey, u32)| {
            let Kind::Receiver { stream, peer, tracks } = &self.links.get(slot as usize)?.kind else { return None };
            let stream = self.streams[stream.index()].name.clone();
            Some(ReceiverLink { stream, session: session.0, peer: *peer, tracks: tracks.clone() })
        };
        let mut receivers: Vec<_> = self.links.sessions().filter_map(receiver).collect();
        // The same order for the same seed.
        receivers.sort_by_key(|receiver| receiver.session);
        receivers
    }

    /// What is sent to a stream's group.
    pub(super) fn save_group(&self, reference: Instant, stream: &Stream) -> Option<PlayingState> {
        let link = self.links.get(stream.group_link? as usize)?;
        Some(self.save_playing(reference, link.playing.as_ref()?))
    }

    /// Restores a UDP client. One that cannot be is left to its session's timeout.
    pub(super) fn restore_datagrams(&mut self, now: Instant, reference: Instant, saved: DatagramLink) {
        let DatagramLink { targets, from, plain: is_plain, own: datagrams, playing } = saved;
        let has_left = playing.has_left();
        let targets: Targets = targets.into_iter().collect();
        if !playing.tracks().all(|track| targets.iter().any(|target| target.track == track)) {
            return;
        }
        let slot = self.links.insert(Kind::udp(now, targets, from, None)).slot;
        if !self.restore_player(reference, slot, playing, Transport::Udp) {
            self.links.remove(slot as usize);
            return;
        }
        let link = &mut self.links[slot as usize];
        if has_left {
            link.closing = Closing::Flush;
        }
        if let Kind::Udp { own, plain, .. } = &mut link.kind {
            *plain = is_plain;
            own.extend(datagrams.into_iter().map(|of| (of.to, Rc::new(single_datagram(of.bytes)))));
        }
    }

    pub(super) fn restore_receiver(&mut self, saved: ReceiverLink) {
        let Some(stream) = self.streams.iter().find(|stream| stream.name == saved.stream) else { return };
        let (id, group) = (stream.id, stream.group.as_ref());
        if let Some(group) = group {
            group.receivers.fetch_add(1, Ordering::Relaxed);
        }
        let slot = self.links.insert(Kind::Receiver { stream: id, peer: saved.peer, tracks: saved.tracks }).slot;
        self.links.bind(SessionKey(saved.session), slot);
        self.metrics.client_restored(id, Transport::Multicast);
    }

    /// The group's link, which is open, continues where that of the other process was.
    pub(super) fn restore_group(&mut self, reference: Instant, index: usize, saved: PlayingState) {
        let stream = &self.streams[index];
        let (Some(slot), Some(description)) = (stream.group_link, &stream.description) else { return };
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Some(opened) = link.playing.take() else { return };
        link.playing = Some(saved.restore(reference, description, &stream.log, |player| Playing { player, ..opened }));
    }
}
