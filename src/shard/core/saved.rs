//! A frozen shard's clients and streams as plain data, for the shard with the same number in another process.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::browser::{Web, WebState};
use super::link::{Closing, Kind, Link};
use super::logs::{KeptLogs, SentLogs};
use super::saved_datagrams::{DatagramLink, ReceiverLink};
use super::saved_playing::PlayingState;
use super::state::Core;
use super::streams::StreamState;
use crate::egress::{Conn, Egress, IoKind, Piece, Secured, Token};
use crate::media::Description;
use crate::media::copied::Kept;
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
    /// The chunks that were sent before belong to a stream of the same name that is gone.
    #[serde(default)]
    anew: bool,
    /// What is sent to its multicast group, if it is from here.
    #[serde(default)]
    group: Option<PlayingState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LinkState {
    slot: u32,
    peer: SocketAddr,
    moves: u8,
    /// The process that has its keys, if it is the local socket of a TLS client. Then its descriptor is followed by that of the TCP
    /// connection.
    #[serde(default)]
    carrier: Option<u32>,
    /// What is left of its operation.
    #[serde(with = "crate::media::saved::bytes")]
    unsent: Bytes,
    /// Answers after that.
    #[serde(with = "crate::media::saved::bytes")]
    answers: Bytes,
    playing: Option<PlayingState>,
    /// Of a browser.
    #[serde(default)]
    web: Option<WebState>,
    /// Of the media in its operation: their bytes, and when they arrived.
    #[serde(default)]
    media: (usize, Vec<Moment>),
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

    /// Puts its chunks with those that came before, for its own logs and those of other shards. Times are relative to `reference`.
    pub fn keep(&mut self, reference: Instant, kept: &mut KeptLogs) {
        for stream in &mut self.streams {
            let kept = kept.entry(stream.name.clone()).or_default();
            if stream.anew {
                *kept = Kept::default();
            }
            stream.state.keep(reference, kept);
        }
    }

    /// How many descriptors belong to it.
    pub fn descriptors(&self) -> usize {
        self.links.iter().map(|link| 1 + usize::from(link.carrier.is_some())).sum()
    }

    /// How many connections of clients there are.
    pub fn clients(&self) -> usize {
        self.links.len()
    }

    /// Makes its connections of the descriptors that belong to it, within the shard's runtime.
    ///
    /// # Errors
    /// The error of `fcntl` or of the registration with epoll; `UnexpectedEof` if there are too few.
    pub fn connections(&self, fds: &mut impl Iterator<Item = OwnedFd>, kind: IoKind) -> io::Result<Vec<Conn>> {
        let mut next = || fds.next().map(TcpStream::from).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
        let one = |link: &LinkState| -> io::Result<Conn> {
            let conn = Conn::from_std(next()?, kind)?;
            Ok(match link.carrier {
                Some(carrier) => conn.with_tls(Some(Secured::of_carrier(next()?, carrier))),
                None => conn,
            })
        };
        self.links.iter().map(one).collect()
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
    /// The frozen shard as plain data; times are relative to `reference`. [`Core::saved_connections`] has the descriptors.
    ///
    /// # Errors
    /// Why it cannot be saved at the moment.
    pub fn save(&self, reference: Instant) -> Result<CoreState, String> {
        let mut sent = SentLogs::new();
        self.save_beyond(reference, || Ok(&mut sent))
    }

    /// As [`Core::save`], without the chunks that have been sent before; what `sent` returns has all of them then. It is called when only the
    /// streams are left to save.
    ///
    /// # Errors
    /// Why it cannot be saved at the moment.
    pub fn save_beyond<S: DerefMut<Target = SentLogs>>(
        &self,
        reference: Instant,
        sent: impl FnOnce() -> Result<S, String>,
    ) -> Result<CoreState, String> {
        debug_assert!(self.is_frozen());
        if !self.awaiting.is_empty() {
            return Err("a client is just about to start".into());
        }
        let kept = |conn: ConnId| self.links.get(conn.0 as usize).is_some_and(is_kept);
        let server = self.server.save(reference, kept).map_err(|why| why.to_string())?;
        let links = self.links.iter().filter(|(_, link)| is_kept(link));
        let links = links.filter_map(|(slot, link)| self.save_link(reference, slot as u32, link)).collect();
        let (datagrams, receivers) = (self.save_datagrams(reference), self.save_receivers());
        let publishers = self.publishers.iter().map(|(session, (stream, _))| {
            (session.0, self.streams.get(stream.index()).map_or(String::new(), |stream| stream.name.clone()))
        });
        let publishers = publishers.collect();
        let mut sent = sent()?;
        let streams = self.streams.iter().map(|stream| {
            let (numbers, anew) = sent.entry(stream.name.clone()).or_default().of(stream.id);
            SavedStream {
                name: stream.name.clone(),
                description: stream.description.as_ref().map(|is| is.with_moments(|at| Moment::of(at, reference))),
                known: self.server.save_stream(stream.id),
                state: stream.save(reference, numbers),
                anew,
                group: self.save_group(reference, stream),
            }
        });
        let streams = streams.collect();
        Ok(CoreState { streams, server, links, datagrams, receivers, publishers })
    }

    /// The connections of the saved links, in their order; after that of a TLS client its TCP connection.
    pub fn saved_connections(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.saved_conns().flat_map(|conn| conn.fd().into_iter().chain(conn.tls().map(|secured| secured.as_fd())))
    }

    /// How many of them are over TLS and have their keys in this process.
    pub fn carried_here(&self) -> usize {
        self.saved_conns().filter(|conn| conn.carrier() == Some(std::process::id())).count()
    }

    fn saved_conns(&self) -> impl Iterator<Item = &Conn> {
        self.links.iter().filter(|(_, link)| is_kept(link)).filter_map(|(_, link)| match &link.kind {
            Kind::Tcp { conn, .. } => Some(conn),
            _ => None,
        })
    }

    fn save_link(&self, reference: Instant, slot: u32, link: &Link) -> Option<LinkState> {
        let Kind::Tcp { conn, peer, answers, moves, web, .. } = &link.kind else { return None };
        let unsent = self.put_off.of(Token { slot, generation: link.generation });
        let playing = link.playing.as_ref().filter(|playing| !playing.has_left());
        let playing = playing.map(|playing| self.save_playing(reference, playing));
        Some(LinkState {
            slot,
            peer: *peer,
            moves: *moves,
            carrier: conn.carrier(),
            unsent: joined(unsent.iter().map(Piece::as_slice)),
            answers: joined(answers.iter().map(|answer| &answer[..])),
            playing,
            web: web.as_ref().map(|web| web.save(reference, &self.streams[web.client.stream.index()].name)),
            media: (link.media_bytes, link.arrivals.iter().map(|at| Moment::of(*at, reference)).collect()),
        })
    }

    /// Restores a saved shard into a frozen one without clients, with its connections in their order. Streams that are not there are
    /// passed over, and their clients' sessions with them. Returns the connections, to be read after [`Core::thaw`].
    ///
    /// # Errors
    /// A browser's stream is not there.
    pub fn restore(
        &mut self,
        now: Instant,
        reference: Instant,
        mut state: CoreState,
        conns: Vec<Conn>,
    ) -> Result<Vec<(Token, Conn)>, String> {
        let mut kept = KeptLogs::new();
        state.keep(reference, &mut kept);
        self.restore_with(now, reference, state, conns, || &kept)
    }

    /// As [`Core::restore`], with chunks that are `kept`, those of [`CoreState::keep`] too. They are borrowed only until the streams are there.
    ///
    /// # Errors
    /// A log lacks a chunk, or a browser's stream is not there.
    pub fn restore_with<K: Deref<Target = KeptLogs>>(
        &mut self,
        now: Instant,
        reference: Instant,
        mut state: CoreState,
        conns: Vec<Conn>,
        kept: impl FnOnce() -> K,
    ) -> Result<Vec<(Token, Conn)>, String> {
        self.restore_streams(now, reference, std::mem::take(&mut state.streams), &kept())?;
        let mut slots = HashMap::new();
        let mut restored = Vec::new();
        for (saved, conn) in state.links.into_iter().zip(conns) {
            let (old, link) = (saved.slot, self.restore_link(now, reference, saved, &conn)?);
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
        Ok(restored)
    }

    fn restore_streams(
        &mut self,
        now: Instant,
        reference: Instant,
        streams: Vec<SavedStream>,
        kept: &KeptLogs,
    ) -> Result<(), String> {
        for saved in streams {
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
            let kept = kept.get(&saved.name).ok_or_else(|| format!("{}: its chunks were not kept", saved.name))?;
            let done = self.streams[index].restore(reference, saved.state, kept);
            done.map_err(|missing| format!("{}: {missing}", self.streams[index].name))?;
            if self.streams[index].home != self.shard {
                // Unless a session wants it, its subscription ends as always.
                self.streams.set_wanted(now, index, false);
            }
            self.open_group(now, id);
            if let Some(group) = saved.group {
                self.restore_group(reference, index, group);
            }
        }
        Ok(())
    }

    fn restore_link(
        &mut self,
        now: Instant,
        reference: Instant,
        saved: LinkState,
        conn: &Conn,
    ) -> Result<Token, String> {
        let LinkState { peer, moves, unsent, answers, playing, web, media, .. } = saved;
        let web = web.map(|web| self.restore_web(reference, web)).transpose()?;
        let transport = if web.is_some() { Transport::WebSocket } else { Transport::Tcp };
        let answer_bytes = answers.len();
        let answers: VecDeque<Bytes> = Some(answers).filter(|answers| !answers.is_empty()).into_iter().collect();
        let token = self.links.insert(Kind::Tcp { conn: conn.clone(), peer, answers, answer_bytes, moves, web });
        if let Some(playing) = playing {
            self.restore_player(reference, token.slot, playing, transport);
        }
        if !unsent.is_empty() {
            let link = &mut self.links[token.slot as usize];
            (link.busy, link.op_bytes) = (Some(now), unsent.len());
            link.media_bytes = media.0;
            link.arrivals = media.1.into_iter().map(|at| at.at(reference)).collect();
            self.put_off.add(now, token, vec![unsent.into()]);
        }
        Ok(token)
    }

    fn restore_web(&mut self, reference: Instant, saved: WebState) -> Result<Box<Web>, String> {
        let stream = self.streams.iter().find(|stream| stream.name == saved.stream()).map(|stream| stream.id);
        let stream = stream.ok_or_else(|| format!("there is no stream {}, which browsers watch", saved.stream()))?;
        let web = Web::restore(reference, saved, stream);
        if web.waits.is_some() {
            self.server.web_wants(stream, true);
        }
        Ok(Box::new(web))
    }

    /// The restored shard serves: what its clients had sent is processed.
    pub fn go_on(&mut self, now: Instant) {
        self.thaw(now);
        self.server.go_on(now);
        self.process_events(now);
    }
}
