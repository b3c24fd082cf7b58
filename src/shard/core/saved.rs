//! A frozen shard's clients and streams as plain data, for the shard with the same number in another process.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::link::{Closing, Kind, Link};
use super::saved_datagrams::{DatagramLink, ReceiverLink};
use super::saved_playing::PlayingState;
use super::state::Core;
use super::streams::StreamState;
use crate::egress::{Conn, Egress, Piece, Token};
use crate::media::Description;
use crate::media::saved::Moment;
use crate::metrics::Transport;
use crate::session::{ConnId, KnownStreamState, ServerState, SessionKey};
use crate::source::publishing::Backlog;

/// A shard's clients and streams.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CoreState {
    streams: Vec<SavedStream>,
    server: ServerState,
    /// In the order of their descriptors.
    links: Vec<LinkState>,
    /// Who is sent datagrams.
    #[serde(default)]
    datagrams: Vec<DatagramLink>,
    /// Who receives a stream's multicast group.
    #[serde(default)]
    receivers: Vec<ReceiverLink>,
    /// Publishers' sessions that their streams' sources know, with their streams.
    publishers: Vec<(u64, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedStream {
    name: String,
    description: Option<Description<Moment>>,
    known: KnownStreamState,
    state: StreamState,
    /// What is sent to its multicast group, if it is from here.
    #[serde(default)]
    group: Option<PlayingState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LinkState {
    slot: u32,
    peer: SocketAddr,
    moves: u8,
    /// What is left of its operation.
    #[serde(with = "crate::media::saved::bytes")]
    unsent: Bytes,
    /// Answers after that.
    #[serde(with = "crate::media::saved::bytes")]
    answers: Bytes,
    playing: Option<PlayingState>,
}

/// What cannot be handed over to another process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncarried {
    /// Connections over TLS.
    pub tls: usize,
    /// Browsers' connections.
    pub web: usize,
    /// Streams whose camera is connected to anew, because its connection cannot be handed over, and why.
    pub cameras: Vec<(String, &'static str)>,
}

impl CoreState {
    /// All of its bytes, in a fixed order: they may travel apart from the rest.
    pub fn each_bytes(&mut self, each: &mut impl FnMut(&mut Bytes)) {
        for stream in &mut self.streams {
            stream.state.each_bytes(each);
            if let Some(group) = &mut stream.group {
                group.each_bytes(each);
            }
        }
        self.server.each_bytes(each);
        for link in &mut self.links {
            each(&mut link.unsent);
            each(&mut link.answers);
            if let Some(playing) = &mut link.playing {
                playing.each_bytes(each);
            }
        }
        self.datagrams.iter_mut().for_each(|link| link.each_bytes(each));
    }

    /// How many descriptors belong to it.
    pub fn descriptors(&self) -> usize {
        self.links.len()
    }

    /// The addresses of its clients.
    pub fn peers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.links.iter().map(|link| link.peer)
    }
}

fn joined<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    let mut all = BytesMut::new();
    pieces.into_iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}

/// Whether a link is an open connection, and so is to be saved.
fn is_kept(link: &Link) -> bool {
    link.closing == Closing::No && matches!(link.kind, Kind::Tcp { .. })
}

impl<E: Egress> Core<E> {
    /// What there is that cannot be saved.
    pub fn uncarried(&self) -> Uncarried {
        let mut found = Uncarried::default();
        for (_, link) in self.links.iter() {
            if let Kind::Tcp { conn, web, .. } = &link.kind {
                found.web += usize::from(web.is_some());
                found.tls += usize::from(conn.tls().is_some() && web.is_none());
            }
        }
        found
    }

    /// The frozen shard as plain data; times are relative to `reference`. [`Core::saved_connections`] has the descriptors.
    ///
    /// # Errors
    /// Why it cannot be saved at the moment.
    pub fn save(&self, reference: Instant) -> Result<CoreState, String> {
        debug_assert!(self.is_frozen());
        if !self.awaiting.is_empty() {
            return Err("a client is just about to start".into());
        }
        let kept = |conn: ConnId| self.links.get(conn.0 as usize).is_some_and(is_kept);
        let server = self.server.save(reference, kept).map_err(|why| why.to_string())?;
        let streams = self.streams.iter().map(|stream| SavedStream {
            name: stream.name.clone(),
            description: stream.description.as_ref().map(|is| is.with_moments(|at| Moment::of(at, reference))),
            known: self.server.save_stream(stream.id),
            state: stream.save(reference),
            group: self.save_group(reference, stream),
        });
        let links = self.links.iter().filter(|(_, link)| is_kept(link));
        let links = links.filter_map(|(slot, link)| self.save_link(reference, slot as u32, link));
        let publishers = self.publishers.iter().map(|(session, (stream, _))| {
            (session.0, self.streams.get(stream.index()).map_or(String::new(), |stream| stream.name.clone()))
        });
        Ok(CoreState {
            streams: streams.collect(),
            server,
            links: links.collect(),
            datagrams: self.save_datagrams(reference),
            receivers: self.save_receivers(),
            publishers: publishers.collect(),
        })
    }

    /// The connections of the saved links, in their order.
    pub fn saved_connections(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.links.iter().filter(|(_, link)| is_kept(link)).filter_map(|(_, link)| match &link.kind {
            Kind::Tcp { conn, .. } => conn.fd(),
            _ => None,
        })
    }

    fn save_link(&self, reference: Instant, slot: u32, link: &Link) -> Option<LinkState> {
        let Kind::Tcp { peer, answers, moves, .. } = &link.kind else { return None };
        let unsent = self.put_off.of(Token { slot, generation: link.generation });
        let playing = link.playing.as_ref().filter(|playing| !playing.has_left());
        let playing = playing.map(|playing| self.save_playing(reference, playing));
        Some(LinkState {
            slot,
            peer: *peer,
            moves: *moves,
            unsent: joined(unsent.iter().map(Piece::as_slice)),
            answers: joined(answers.iter().map(|answer| &answer[..])),
            playing,
        })
    }

    /// Restores a saved shard into a frozen one without clients, with its connections in their order. Streams that are not there are
    /// passed over, and their clients' sessions with them. Returns the connections, to be read after [`Core::thaw`].
    pub fn restore(
        &mut self,
        now: Instant,
        reference: Instant,
        mut state: CoreState,
        conns: Vec<Conn>,
    ) -> Vec<(Token, Conn)> {
        for saved in state.streams {
            let Some(index) = self.streams.iter().find(|stream| stream.name == saved.name).map(|is| is.id.index())
            else {
                continue;
            };
            let id = self.streams[index].id;
            let description = saved.description.map(|is| Arc::new(is.with_moments(|at| at.at(reference))));
            if let Some(description) = &description {
                self.streams[index].describe(description, true);
            }
            self.server.set_description(id, description);
            self.server.set_source(now, id, saved.state.source());
            self.server.restore_stream(id, saved.known);
            self.streams[index].restore(reference, saved.state);
            self.open_group(now, id);
            if let Some(group) = saved.group {
                self.restore_group(reference, index, group);
            }
        }
        let mut slots = HashMap::new();
        let mut restored = Vec::new();
        for (saved, conn) in state.links.into_iter().zip(conns) {
            let (old, link) = (saved.slot, self.restore_link(now, reference, saved, &conn));
            slots.insert(old, link.slot);
            restored.push((link, conn));
        }
        state.datagrams.into_iter().for_each(|saved| self.restore_datagrams(now, reference, saved));
        state.receivers.into_iter().for_each(|saved| self.restore_receiver(saved));
        state.server.renumber(|old| slots.get(&old).copied());
        self.server.restore(now, reference, state.server);
        for (session, stream) in state.publishers {
            if let Some(stream) = self.streams.iter().find(|is| is.name == stream) {
                self.publishers.insert(SessionKey(session), (stream.id, Backlog::default()));
            }
        }
        self.process_events(now);
        restored
    }

    fn restore_link(&mut self, now: Instant, reference: Instant, saved: LinkState, conn: &Conn) -> Token {
        let LinkState { peer, moves, unsent, answers, playing, .. } = saved;
        let answer_bytes = answers.len();
        let answers: VecDeque<Bytes> = Some(answers).filter(|answers| !answers.is_empty()).into_iter().collect();
        let token = self.links.insert(Kind::Tcp { conn: conn.clone(), peer, answers, answer_bytes, moves, web: None });
        if let Some(playing) = playing {
            self.restore_player(reference, token.slot, playing, Transport::Tcp);
        }
        if !unsent.is_empty() {
            let link = &mut self.links[token.slot as usize];
            (link.busy, link.op_bytes) = (Some(now), unsent.len());
            self.put_off.add(now, token, vec![unsent.into()]);
        }
        token
    }

    /// The restored shard serves: what its clients had sent is processed.
    pub fn go_on(&mut self, now: Instant) {
        self.thaw(now);
        self.server.go_on(now);
        self.process_events(now);
    }
}
