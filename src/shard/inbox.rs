//! What the control thread tells a shard, and the queue it goes through.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use bytes::Bytes;

use crate::metrics::ReportRequest;
use crate::stream::chunk::Chunk;
use crate::stream::{Description, StreamId};

/// How a source is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// On its way to the camera for the first time, or again.
    Connecting,
    /// Packets come.
    Live,
    /// No connection; the supervisor waits before the next try.
    Down,
}

/// A message to a shard.
pub enum ToShard {
    /// A connection that the acceptor took, or that another shard handed over together with the bytes it had read.
    Connection {
        /// The socket, non-blocking.
        stream: TcpStream,
        /// The client's address.
        peer: SocketAddr,
        /// Bytes already read from it.
        unread: Bytes,
    },
    /// The next chunk of a stream. Numbers follow one another, but for chunks that an overfull inbox refused.
    Chunk(StreamId, Arc<Chunk>),
    /// The stream's description, before its first chunk and after every change.
    ///
    /// If the old one cannot be continued ([`Description::continues_as`]) the stream's clients are ended with an RTCP BYE.
    Described(StreamId, Arc<Description>),
    /// The source changed its state.
    Source(StreamId, SourceState),
    /// The reporter wants the shard's counts.
    Report(ReportRequest),
    /// Finish the frames in flight, close the clients, end the thread.
    Stop,
}
