//! What a source tells the control thread, besides what the shards are told about its stream.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::media::{SourceState, StreamId};

/// News from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceNews {
    /// It has another state.
    State(SourceState),
    /// All of its cameras answered that there is no such stream (404).
    NotFound,
    /// It is this relay itself, through other relays: their ids.
    Loop(Arc<str>),
    /// The relays that its stream has passed through: their ids.
    Path(Arc<str>),
    /// Nobody has requested it for `on_demand_stop`, and it is no longer pulled.
    Unwanted,
    /// A publisher started or stopped sending it.
    Publisher(bool),
}

/// Sends news of one stream's source to the control thread.
#[derive(Clone, Debug)]
pub struct NewsSender {
    stream: StreamId,
    queue: mpsc::UnboundedSender<(StreamId, SourceNews)>,
}

impl NewsSender {
    /// For the source of that stream.
    pub fn new(stream: StreamId, queue: mpsc::UnboundedSender<(StreamId, SourceNews)>) -> Self {
        NewsSender { stream, queue }
    }

    /// Sends news.
    pub fn tell(&self, news: SourceNews) {
        // Nobody listens during a stop, when news have no effect.
        let _ = self.queue.send((self.stream, news));
    }
}

/// How a relay identifies itself to the relays that it pulls from, to detect loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relaying {
    /// The relay's own id, random at each start.
    pub own: Arc<str>,
    /// The relays that a request has passed through, this one last, separated by commas; `None` to send nothing about them.
    pub via: Option<Arc<str>>,
}
