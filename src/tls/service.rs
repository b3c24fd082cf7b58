//! The threads, from outside.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::handshake::{self, Accepted, Admitted, Destination, Onward, SecuredPage, ToHandshakes};
use super::{Identity, TlsCounts, TlsOutcome, carry};
use crate::egress::IoKind;
use crate::egress::runtime::Runtime;
use crate::limits::{TLS_HANDSHAKES_NICE, TLS_QUEUED_MAX};
use crate::shard::inbox::{ControlSender, ShardSender};
use crate::sys::lower_priority;
use crate::testing::Testing;

/// HandshakeLimits for connections before their handshake is complete.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Maximum duration of a handshake.
    pub handshake_timeout: Duration,
    /// `limits.clients`, from which the number of handshakes is derived.
    pub clients: usize,
}

/// The running threads.
#[derive(Debug)]
pub struct Tls {
    sender: TlsSender,
    threads: Vec<JoinHandle<()>>,
    /// Whether all connections are to end.
    ending: watch::Sender<bool>,
}

/// The threads of a process that only carries the connections that there are.
#[derive(Debug)]
pub struct Carried {
    threads: Vec<JoinHandle<()>>,
    counts: Arc<TlsCounts>,
    ending: watch::Sender<bool>,
}

impl Carried {
    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.counts.carried()
    }

    /// Whether the last connection is gone.
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Ends all connections: what was sent may still be delivered, within [`TLS_FAREWELL_MAX_MS`](crate::limits::TLS_FAREWELL_MAX_MS).
    pub fn send_away(&self) {
        self.ending.send_replace(true);
    }
}

/// Takes the connections of TLS listeners.
#[derive(Clone, Debug)]
pub struct TlsSender {
    queue: mpsc::UnboundedSender<ToHandshakes>,
    control: ControlSender,
    counts: Arc<TlsCounts>,
}

impl TlsSender {
    /// Starts the handshake of a connection, and what follows.
    pub fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        self.begin(stream, Admitted::new(peer, self.control.clone()), Destination::Shard);
    }

    /// The same for a connection that goes to the HTTP server.
    pub fn page(&self, stream: TcpStream, peer: SocketAddr, pages: &mpsc::UnboundedSender<SecuredPage>) {
        self.begin(stream, Admitted::uncounted(peer), Destination::Pages(pages.clone()));
    }

    fn begin(&self, stream: TcpStream, admitted: Admitted, to: Destination) {
        if self.counts.half_open() >= TLS_QUEUED_MAX {
            // More arrive than can even be queued. Genuine clients retry.
            self.counts.count(TlsOutcome::CrowdedOut);
            return;
        }
        // The thread ends after the acceptor, unless it failed.
        let _ = self.queue.send(ToHandshakes::Connection(Accepted::new(stream, admitted, to, &self.counts)));
    }

    /// Evicts an unfinished handshake, if there are more than a few.
    pub fn give_way(&self) {
        // As above.
        let _ = self.queue.send(ToHandshakes::GiveWay);
    }

    /// Uses another certificate for clients that connect from now on.
    pub fn set_identity(&self, identity: &Identity) {
        // As above.
        let _ = self.queue.send(ToHandshakes::Config(identity.config()));
    }

    /// Sets the limits for handshakes from now on.
    pub fn set_limits(&self, limits: HandshakeLimits) {
        // As above.
        let _ = self.queue.send(ToHandshakes::Limits(limits));
    }

    /// What is counted.
    pub fn counts(&self) -> &Arc<TlsCounts> {
        &self.counts
    }
}

impl Tls {
    /// Starts the handshake thread and `carriers` encryption threads. `control` is told when connections end that did not reach a
    /// shard. Tests may make the carrying code panic.
    ///
    /// # Errors
    /// A thread or its runtime cannot be created.
    pub fn spawn(
        identity: &Identity,
        limits: HandshakeLimits,
        carriers: usize,
        shards: Vec<ShardSender>,
        control: ControlSender,
        testing: Testing,
    ) -> io::Result<Tls> {
        let counts = Arc::new(TlsCounts::default());
        let mut threads = Vec::with_capacity(carriers + 1);
        let mut senders = Vec::with_capacity(carriers);
        let (ending, is_ending) = watch::channel(false);
        for index in 0..carriers {
            let (sender, clients) = mpsc::unbounded_channel();
            let is_ending = is_ending.clone();
            threads.push(thread(format!("tls-{index}"), move || carry::carry_all(clients, is_ending, testing))?);
            senders.push(sender);
        }
        let (queue, inbox) = mpsc::unbounded_channel();
        let (config, of_thread) = (identity.config(), Arc::clone(&counts));
        let onward = Onward { shards, carriers: senders };
        threads.push(thread("tls-handshakes".into(), move || {
            // Media first. Where it is forbidden, handshakes compete with the shards as equals.
            let _ = lower_priority(TLS_HANDSHAKES_NICE);
            handshake::serve(inbox, config, limits, onward, of_thread)
        })?);
        Ok(Tls { sender: TlsSender { queue, control, counts }, threads, ending })
    }

    /// Takes connections.
    pub fn sender(&self) -> &TlsSender {
        &self.sender
    }

    /// Whether one of the threads has ended unexpectedly.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Accepts no more connections; returns the threads, which end when the last client is gone. The other senders must be dropped too.
    pub fn stop(self) -> Vec<JoinHandle<()>> {
        self.threads
    }

    /// Accepts no more connections, ends the unfinished handshakes, and carries the others on. The other senders must be dropped too.
    pub fn carry_on(self) -> Carried {
        Carried { threads: self.threads, counts: self.sender.counts, ending: self.ending }
    }
}

/// A thread with its own runtime. It always uses epoll, because the main cost here is encryption.
fn thread<F: Future<Output = ()>>(
    name: String,
    serve: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || match Runtime::new(IoKind::Epoll) {
        Ok(runtime) => {
            // The spawner waits for this.
            let _ = ready.send(Ok(()));
            runtime.block_on(serve());
        }
        Err(error) => drop(ready.send(Err(error))),
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("a TLS thread ended before it was ready")),
    }
}
