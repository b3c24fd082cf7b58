//! A source's state, shared by the tasks of its shard.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::held::{Deposit, Resume, Running};
use super::pipeline::Pipeline;
use crate::media::{SourceState, StreamEvent, StreamSink};
use crate::metrics::SourceDrop;
use crate::sys::Connection;

/// The state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// The state that the shards were last told.
    pub state: SourceState,
    /// Since when; `None` before the supervisor runs.
    pub since: Option<SystemTime>,
    /// Sessions that brought packets.
    pub sessions: u64,
    /// Sessions that failed, before or after their first packet.
    pub failures: u64,
    /// Why the last session failed, without secrets; `None` while the source is live.
    pub fault: Option<String>,
    /// When the camera is retried next, during a delay.
    pub next_try: Option<SystemTime>,
}

impl SourceStatus {
    /// Sessions that received packets, except the first.
    pub fn reconnects(&self) -> u64 {
        self.sessions.saturating_sub(1)
    }
}

/// A source as shared by the tasks of its shard. No borrow is ever held across an `await`.
pub struct Source {
    /// The pipeline; others than the supervisor read its counts.
    pub pipeline: RefCell<Pipeline>,
    /// The state of the source.
    pub status: RefCell<SourceStatus>,
    /// The connections on which a camera's media arrive.
    pub connections: RefCell<Vec<Connection>>,
    /// Packets dropped before the pipeline, by reason, since the source was created.
    pub dropped: RefCell<[u64; SourceDrop::COUNT]>,
    /// Reads of a camera that returned data.
    pub reads: Cell<u64>,
    /// Bytes that were copied between being read and reaching the pipeline.
    pub copied: Cell<u64>,
    /// While it is held for a hand-over: what times are to be relative to.
    pub(super) held: watch::Sender<Option<Instant>>,
    pub(super) running: Cell<Running>,
    /// The session as its task leaves it while the source is held.
    pub(super) deposit: RefCell<Option<Deposit>>,
    /// The session to start with.
    pub(super) resume: RefCell<Option<Resume>>,
    /// It continues one of another process, and the control thread has not been told its state.
    pub(super) restored: Cell<bool>,
}

impl Source {
    /// A source that has not started.
    pub fn new(pipeline: Pipeline) -> Rc<Self> {
        let status = SourceStatus {
            state: SourceState::Down,
            since: None,
            sessions: 0,
            failures: 0,
            fault: None,
            next_try: None,
        };
        Rc::new(Source {
            pipeline: RefCell::new(pipeline),
            status: RefCell::new(status),
            connections: RefCell::default(),
            dropped: RefCell::new([0; SourceDrop::COUNT]),
            reads: Cell::new(0),
            copied: Cell::new(0),
            held: watch::Sender::new(None),
            running: Cell::default(),
            deposit: RefCell::default(),
            resume: RefCell::default(),
            restored: Cell::new(false),
        })
    }

    /// Whether packets have ever arrived.
    pub fn was_live(&self) -> bool {
        self.status.borrow().sessions > 0
    }

    /// Bytes that a camera has sent and the relay has not read yet. `None` if no camera is connected, or its media are datagrams.
    pub fn unread_bytes(&self) -> Option<u64> {
        let connections = self.connections.borrow();
        let unread = connections.iter().filter_map(Connection::unread).map(|bytes| bytes as u64);
        // A closed connection shows that the session is over.
        unread.reduce(|one, other| one + other)
    }

    /// The source's task has panicked: ends the current frame, and reports that the source is down, and why.
    pub fn failed<P: StreamSink>(&self, fault: String, publisher: &mut P) {
        self.pipeline.borrow_mut().disconnected(publisher);
        let mut status = self.status.borrow_mut();
        status.failures += 1;
        (status.state, status.since, status.fault) = (SourceState::Down, Some(SystemTime::now()), Some(fault));
        status.next_try = None;
        drop(status);
        publisher.accept(StreamEvent::State(SourceState::Down));
    }
}

/// Resolves when the source is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // If the sender was dropped, that means stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}
