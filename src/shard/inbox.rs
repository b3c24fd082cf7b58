//! Messages from the control thread and other shards to a shard, and their queue.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::saved::HandOver;
use super::snapshot::Snapshot;
use super::types::{Hosting, ShardLimits, Still, StreamSetup, WebClient};
use crate::access::Access;
use crate::access::outside::Outside;
use crate::egress::Secured;
use crate::limits::{INBOX_CHUNKS_OF_STREAM_MAX, INBOX_MESSAGES_MAX, STREAMS_MAX};
use crate::media::chunk::Chunk;
use crate::media::name::NameRules;
use crate::media::rendering::fmp4::Clock;
use crate::media::{Description, SourceState, StreamId};
use crate::metrics::{LeaveReason, ReportRequest, Transport};
use crate::session::{Loads, NameWanted, NotMade, SessionKey};
use crate::source::publishing::{PublisherVerdict, Publishing};

/// A message to a shard.
pub enum ToShard {
    /// A connection from the acceptor, or one that another shard has handed over with the bytes it had read.
    Connection {
        /// The socket.
        stream: TcpStream,
        /// The client's address.
        peer: SocketAddr,
        /// Bytes already read from it.
        unread: Bytes,
        /// The TCP connection, if the socket is the local one that represents a TLS client.
        secured: Option<Arc<Secured>>,
        /// How often it has been moved to another shard.
        moves: u8,
    },
    /// A connection of a browser that the HTTP server has answered with 101 (RFC 6455 section 4.2.2).
    Web {
        /// The socket.
        stream: TcpStream,
        /// The client's address.
        peer: SocketAddr,
        /// Bytes already read from it after its request.
        unread: Bytes,
        /// The TCP connection, if the socket is the local one that represents a TLS client.
        secured: Option<Arc<Secured>>,
        /// What it wants.
        client: WebClient,
    },
    /// A request for a stream's newest keyframe as a separate file. Answered with `None` if there is none.
    Still {
        /// The stream.
        stream: StreamId,
        /// The relay's clock.
        clock: Clock,
        /// Where the answer goes.
        reply: oneshot::Sender<Option<Still>>,
    },
    /// The next chunk of a stream, for the subscription with that epoch. Numbers are consecutive, except for chunks that a full inbox
    /// refused.
    Chunk(StreamId, u32, Arc<Chunk>),
    /// A shard wants the chunks of a stream whose home is here.
    Subscribe {
        /// The stream.
        stream: StreamId,
        /// The shard.
        shard: u16,
        /// The epoch of this subscription.
        epoch: u32,
    },
    /// It no longer wants them.
    Unsubscribe {
        /// The stream.
        stream: StreamId,
        /// The shard.
        shard: u16,
        /// The subscription.
        epoch: u32,
    },
    /// The start of a subscription; each further chunk follows.
    Snapshot {
        /// The stream.
        stream: StreamId,
        /// The subscription.
        epoch: u32,
        /// Where the stream stands.
        snapshot: Box<Snapshot>,
    },
    /// This many frames of the stream were refused by the full inbox before its next chunk.
    Refused(StreamId, u64),
    /// The stream's description, before its first chunk and after every change.
    ///
    /// If the old one cannot be continued ([`Description::continues_as`]), the stream's clients are ended with an RTCP BYE.
    Described(StreamId, Arc<Description>),
    /// The source's state has changed.
    Source(StreamId, SourceState),
    /// A stream is new, with the next index or a released one, or has other settings from now on. No message about a new stream
    /// precedes it.
    Stream(StreamSetup),
    /// A stream was removed. Later messages about it are ignored, and [`ToControl::Released`] answers it.
    RemoveStream(StreamId),
    /// The rules for names that no stream has.
    Names(Arc<NameRules>),
    /// There is no stream of this name, for all requests that wait for it, or with an origin for those from there.
    NotMade {
        /// The name.
        name: Arc<str>,
        /// The [`origin`](crate::crowd::origin).
        from: Option<IpAddr>,
        /// What they are answered.
        why: NotMade,
    },
    /// A stream does not come up: the requests that wait for it are refused.
    NotUp(StreamId, NotMade),
    /// The relays that a stream has passed through on its way to this one.
    Path(StreamId, Arc<str>),
    /// An administrator ends this session. Answered with whether it existed.
    EndClient(SessionKey, oneshot::Sender<bool>),
    /// Applies other limits from now on.
    Limits(ShardLimits),
    /// Sets users and rights from now on; `None` if no users are configured.
    Access(Option<Arc<Access>>),
    /// Sets the external authentication server; `None` for none.
    Outside(Option<Arc<Outside>>),
    /// Keep a stream's source going, of a new one ([`ToShard::Stream`]) too.
    Host(Box<Hosting>),
    /// An action of a publisher of a stream whose home is here.
    Publishing {
        /// The stream.
        stream: StreamId,
        /// The shard that the publisher is connected to.
        shard: u16,
        /// The publisher's session.
        session: SessionKey,
        /// What it does.
        what: Publishing,
    },
    /// A source's message to a publisher of the shard.
    Publisher(SessionKey, PublisherVerdict),
    /// The reporter requests the shard's counts.
    Report(ReportRequest),
    /// Answer, to show that the shard responds.
    Ping(oneshot::Sender<()>),
    /// Disconnect a few clients, so that the last one is disconnected at that time. Sent repeatedly.
    SendAway(Instant),
    /// Disconnect the clients whose TLS connections that process carries.
    SendAwayCarried(u32),
    /// A step of a hand-over from one process to another.
    HandOver(Box<HandOver>),
    /// Finish the frames in flight, close the clients, end the thread.
    Stop,
}

/// A message from a shard to the control thread.
#[derive(Debug)]
pub enum ToControl {
    /// One of the shard's connections is gone.
    Gone {
        /// Whose it was.
        peer: SocketAddr,
    },
    /// The shard has the first client that wants an on-demand stream, or has none any more.
    Demand {
        /// The stream.
        stream: StreamId,
        /// Whether it is wanted.
        wanted: bool,
    },
    /// A request waits for a name under a pattern. [`ToShard::Stream`] with that name or [`ToShard::NotMade`] answers it.
    Wanted(NameWanted),
    /// A pulled stream whose source is down was requested. Sent at most once per [`ASKED_EVERY_S`](crate::limits::ASKED_EVERY_S).
    Asked {
        /// The stream.
        stream: StreamId,
    },
    /// A client started or stopped playing.
    Client(ClientNews),
    /// Nothing in the shard refers to a removed stream any more.
    Released {
        /// The stream.
        stream: StreamId,
    },
}

/// News about a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientNews {
    /// The stream's name.
    pub stream: String,
    /// The client's address.
    pub client: SocketAddr,
    /// Its session.
    pub session: SessionKey,
    /// Its transport, or why it stopped.
    pub what: Result<Transport, LeaveReason>,
}

/// A shard's end of the queue to the control thread.
#[derive(Clone, Debug)]
pub struct ControlSender {
    shard: u16,
    queue: mpsc::UnboundedSender<(u16, ToControl)>,
}

impl ControlSender {
    /// For the shard with that number, which is attached to its messages.
    pub fn new(shard: u16, queue: mpsc::UnboundedSender<(u16, ToControl)>) -> Self {
        ControlSender { shard, queue }
    }

    /// Sends the control thread a message that must not be lost.
    pub fn tell(&self, message: ToControl) {
        // It ends after the shards, unless it failed.
        let _ = self.queue.send((self.shard, message));
    }
}

#[derive(Debug)]
struct Shared {
    /// Messages on their way.
    waiting: AtomicUsize,
    /// The number of chunks of each stream, by index modulo the size of the table.
    chunks: Box<[AtomicUsize]>,
    /// The number of the shard among the connections of all.
    shard: u16,
    loads: Loads,
}

/// The control thread's end of a shard's inbox.
#[derive(Clone, Debug)]
pub struct ShardSender {
    queue: mpsc::UnboundedSender<ToShard>,
    shared: Arc<Shared>,
}

/// The shard's end of its inbox.
#[derive(Debug)]
pub struct ShardReceiver {
    queue: mpsc::UnboundedReceiver<ToShard>,
    shared: Arc<Shared>,
}

/// The inbox of the shard with that number; its connections are counted in `loads`.
pub fn channel(shard: u16, loads: Loads) -> (ShardSender, ShardReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let chunks = (0..STREAMS_MAX).map(|_| AtomicUsize::new(0)).collect();
    let shared = Arc::new(Shared { waiting: AtomicUsize::new(0), chunks, shard, loads });
    (ShardSender { queue: sender, shared: Arc::clone(&shared) }, ShardReceiver { queue: receiver, shared })
}

impl Shared {
    fn chunks_of(&self, stream: StreamId) -> &AtomicUsize {
        &self.chunks[stream.index() % STREAMS_MAX]
    }
}

impl ShardSender {
    /// Sends the shard a message that must not be lost. Does nothing if the shard has ended.
    pub fn tell(&self, message: ToShard) {
        if let ToShard::Connection { .. } | ToShard::Web { .. } = message {
            self.shared.loads.come(self.shared.shard);
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        // A shard ends only during a stop, when nobody waits for the effect.
        let _ = self.queue.send(message);
    }

    /// Sends a chunk, unless [`INBOX_MESSAGES_MAX`] messages are waiting, or [`INBOX_CHUNKS_OF_STREAM_MAX`] of its stream.
    ///
    /// # Errors
    /// The chunk, if the inbox is full.
    pub fn chunk(&self, stream: StreamId, epoch: u32, chunk: Arc<Chunk>) -> Result<(), Arc<Chunk>> {
        let of_stream = self.shared.chunks_of(stream);
        if self.shared.waiting.load(Ordering::Relaxed) >= INBOX_MESSAGES_MAX
            || of_stream.load(Ordering::Relaxed) >= INBOX_CHUNKS_OF_STREAM_MAX
        {
            return Err(chunk);
        }
        of_stream.fetch_add(1, Ordering::Relaxed);
        self.tell(ToShard::Chunk(stream, epoch, chunk));
        Ok(())
    }

    /// The shard's number of connections; the acceptor gives the next one to the shard with the fewest.
    pub fn connections(&self) -> usize {
        self.shared.loads.connections(self.shared.shard)
    }
}

impl ShardReceiver {
    /// The next message; `None` if every sender is gone.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<ToShard>> {
        let polled = self.queue.poll_recv(cx);
        if let Poll::Ready(Some(message)) = &polled {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            if let ToShard::Chunk(stream, ..) = message {
                self.shared.chunks_of(*stream).fetch_sub(1, Ordering::Relaxed);
            }
        }
        polled
    }

    /// Whether no message is waiting.
    pub fn is_empty(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) == 0
    }

    /// The shard has one more connection, which did not come through the inbox.
    pub fn connection_restored(&self) {
        self.shared.loads.come(self.shared.shard);
    }

    /// One of the shard's connections is gone.
    pub fn connection_gone(&self) {
        self.shared.loads.gone(self.shared.shard);
    }
}
