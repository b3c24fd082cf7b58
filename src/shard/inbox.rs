//! What the control thread tells a shard, and the queue it goes through.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::core::{ShardLimits, StreamSetup};
use crate::access::Access;
use crate::limits::{INBOX_MESSAGES_MAX, PUBLISHED_BYTES_MAX};
use crate::metrics::ReportRequest;
use crate::session::{EndReason, SessionKey};
use crate::source::pipeline::SourceTrack;
use crate::stream::chunk::Chunk;
use crate::stream::{Description, StreamId, TrackId};
use crate::tls::Secured;

/// How a source is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// On its way to a camera that has not failed since it last played, or to one tried for the first time.
    Connecting,
    /// Packets come.
    Live,
    /// The connection stands, but packets have ceased to come.
    Silent,
    /// No media since a session failed, however often the camera has been tried again since.
    Down,
    /// An on-demand source that nobody asks for.
    Idle,
}

impl SourceState {
    /// Every state.
    pub const ALL: &'static [SourceState] =
        &[SourceState::Connecting, SourceState::Live, SourceState::Silent, SourceState::Down, SourceState::Idle];

    /// What it is called in reports; stable.
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Connecting => "connecting",
            SourceState::Live => "live",
            SourceState::Silent => "silent",
            SourceState::Down => "down",
            SourceState::Idle => "idle",
        }
    }
}

/// A message to a shard.
pub enum ToShard {
    /// A connection that the acceptor took, or that another shard handed over together with the bytes it had read.
    Connection {
        /// The socket.
        stream: TcpStream,
        /// The client's address.
        peer: SocketAddr,
        /// Bytes already read from it.
        unread: Bytes,
        /// The TCP connection, if the socket is the local one that stands for a client that speaks TLS.
        secured: Option<Arc<Secured>>,
        /// Shards that it has been handed to after its first.
        moves: u8,
    },
    /// The next chunk of a stream. Numbers follow one another, but for chunks that an overfull inbox refused.
    Chunk(StreamId, Arc<Chunk>),
    /// So many frames of the stream were refused by the overfull inbox before its next chunk.
    Refused(StreamId, u64),
    /// The stream's description, before its first chunk and after every change.
    ///
    /// If the old one cannot be continued ([`Description::continues_as`]) the stream's clients are ended with an RTCP BYE.
    Described(StreamId, Arc<Description>),
    /// The source changed its state.
    Source(StreamId, SourceState),
    /// A stream is new (with the next number), or begins otherwise from now on. Nothing else is said of a new one before.
    Stream(StreamSetup),
    /// A stream is no more. Whatever is still said of it is passed over; its number is not used again.
    RemoveStream(StreamId),
    /// Other limits hold from now on.
    Limits(ShardLimits),
    /// Who may do what from now on; `None` where no users are configured.
    Access(Option<Arc<Access>>),
    /// What the control thread says to a publisher of the shard.
    Publisher(SessionKey, Verdict),
    /// The reporter wants the shard's counts.
    Report(ReportRequest),
    /// Answer, to show that the shard still turns.
    Ping(oneshot::Sender<()>),
    /// Finish the frames in flight, close the clients, end the thread.
    Stop,
}

/// What becomes of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may send.
    Go,
    /// It may not, by this status.
    Refuse(u16),
    /// It is ended.
    End(EndReason),
}

/// What a publisher does.
#[derive(Debug)]
pub enum Publishing {
    /// It wants to send these tracks. A [`Verdict`] answers it.
    Record {
        /// Where it is.
        peer: SocketAddr,
        /// What it is going to send.
        tracks: Vec<SourceTrack>,
    },
    /// It has sent a packet.
    Packet {
        /// Of this track.
        track: TrackId,
        /// Whether it is RTCP.
        rtcp: bool,
        /// When it was read.
        received: Instant,
        /// The packet.
        packet: Bytes,
        /// Its part of what the publisher may have on the way.
        held: Held,
    },
    /// It is gone.
    Ended(EndReason),
}

/// What is on the way from a publisher to the control thread, so that no more than [`PUBLISHED_BYTES_MAX`] ever is.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<AtomicUsize>);

/// A packet's part of a [`Backlog`], until it is dropped.
#[derive(Debug)]
pub struct Held {
    backlog: Backlog,
    bytes: usize,
}

/// Bytes that a packet on the way takes beside its own.
const PACKET_OVERHEAD_BYTES: usize = 160;

impl Backlog {
    /// The part of one more packet; `None` if there is no room for it.
    pub fn hold(&self, packet: &Bytes) -> Option<Held> {
        let bytes = packet.len() + PACKET_OVERHEAD_BYTES;
        // One shard alone adds to it.
        if self.0.load(Ordering::Relaxed) + bytes > PUBLISHED_BYTES_MAX {
            return None;
        }
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Some(Held { backlog: self.clone(), bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a shard tells the control thread.
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
    /// A publisher does something.
    Publishing {
        /// The stream.
        stream: StreamId,
        /// The publisher's session.
        session: SessionKey,
        /// What it does.
        what: Publishing,
    },
}

/// A shard's end of the queue to the control thread.
#[derive(Clone, Debug)]
pub struct ControlSender {
    shard: u16,
    queue: mpsc::UnboundedSender<(u16, ToControl)>,
}

impl ControlSender {
    /// For the shard of that number; what it says arrives with the number.
    pub fn new(shard: u16, queue: mpsc::UnboundedSender<(u16, ToControl)>) -> Self {
        ControlSender { shard, queue }
    }

    /// Tells the control thread something that must not be lost.
    pub fn tell(&self, message: ToControl) {
        // It ends after the shards, but for a failure.
        let _ = self.queue.send((self.shard, message));
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Messages on their way.
    waiting: AtomicUsize,
    /// Connections that the shard has, or will have when it has read its inbox.
    connections: AtomicUsize,
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

/// A shard's inbox.
pub fn channel() -> (ShardSender, ShardReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    (ShardSender { queue: sender, shared: Arc::clone(&shared) }, ShardReceiver { queue: receiver, shared })
}

impl ShardSender {
    /// Tells the shard something that must not be lost. A shard that has ended is told nothing.
    pub fn tell(&self, message: ToShard) {
        if let ToShard::Connection { .. } = message {
            self.shared.connections.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        // A shard ends only at a stop, when nobody waits for what it would have done.
        let _ = self.queue.send(message);
    }

    /// Passes a chunk on, unless [`INBOX_MESSAGES_MAX`] messages wait already.
    ///
    /// # Errors
    /// The chunk again, if the inbox is full.
    pub fn chunk(&self, stream: StreamId, chunk: Arc<Chunk>) -> Result<(), Arc<Chunk>> {
        if self.shared.waiting.load(Ordering::Relaxed) >= INBOX_MESSAGES_MAX {
            return Err(chunk);
        }
        self.tell(ToShard::Chunk(stream, chunk));
        Ok(())
    }

    /// Connections that the shard has; the acceptor gives the next one to the shard with the fewest.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl ShardReceiver {
    /// The next message; `None` when every sender is gone.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<ToShard>> {
        let polled = self.queue.poll_recv(cx);
        if let Poll::Ready(Some(_)) = polled {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        polled
    }

    /// One of the shard's connections is gone.
    pub fn connection_gone(&self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_has_only_so_much_on_the_way() {
        let (backlog, packet) = (Backlog::default(), Bytes::from(vec![0; 1_400]));
        let mut held = Vec::new();
        while let Some(one) = backlog.hold(&packet) {
            held.push(one);
        }
        assert!((PUBLISHED_BYTES_MAX / 1_700..=PUBLISHED_BYTES_MAX / 1_400).contains(&held.len()), "{}", held.len());
        held.pop();
        held.push(backlog.hold(&packet).expect("there is room again"));
        assert!(backlog.hold(&packet).is_none());
        held.clear();
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }
}
