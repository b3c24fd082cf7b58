//! The threads, from outside.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use super::handshake::{self, Accepted, Admitted, Onward, ToHandshakes};
use super::{Identity, Outcome, TlsCounts, carry};
use crate::egress::IoKind;
use crate::egress::runtime::Runtime;
use crate::limits::TLS_QUEUED_MAX;
use crate::shard::inbox::{ControlSender, ShardSender};

/// What connections may take before their handshake is done.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may take.
    pub handshake_timeout: Duration,
    /// `limits.clients`, which it follows from how many there may be.
    pub clients: usize,
}

/// The running threads.
#[derive(Debug)]
pub struct Tls {
    sender: TlsSender,
    threads: Vec<JoinHandle<()>>,
}

/// Where connections of TLS listeners are handed to.
#[derive(Clone, Debug)]
pub struct TlsSender {
    queue: mpsc::UnboundedSender<ToHandshakes>,
    control: ControlSender,
    counts: Arc<TlsCounts>,
}

impl TlsSender {
    /// Has the handshake of a connection done, and what follows.
    pub fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let admitted = Admitted::new(peer, self.control.clone());
        if self.counts.half_open() >= TLS_QUEUED_MAX {
            // More come than can even be looked at. Whoever means it tries again.
            self.counts.count(Outcome::CrowdedOut);
            return;
        }
        // The thread ends after the acceptor, but for a failure.
        let _ = self.queue.send(ToHandshakes::Connection(Accepted::new(stream, admitted, &self.counts)));
    }

    /// Has a handshake that is not done given up, if there are more than a few.
    pub fn give_way(&self) {
        // As above.
        let _ = self.queue.send(ToHandshakes::GiveWay);
    }

    /// Shows clients that come from now on another certificate.
    pub fn set_identity(&self, identity: &Identity) {
        // As above.
        let _ = self.queue.send(ToHandshakes::Config(identity.config()));
    }

    /// Lets handshakes take so much from now on.
    pub fn set_limits(&self, limits: Limits) {
        // As above.
        let _ = self.queue.send(ToHandshakes::Limits(limits));
    }

    /// What is counted.
    pub fn counts(&self) -> &Arc<TlsCounts> {
        &self.counts
    }
}

impl Tls {
    /// Starts the thread of the handshakes and `carriers` threads that carry. Of connections that do not reach a shard `control` is
    /// told when they are gone. With `test_panics` clients may have the code that carries them fail.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn spawn(
        identity: &Identity,
        limits: Limits,
        carriers: usize,
        shards: Vec<ShardSender>,
        control: ControlSender,
        test_panics: bool,
    ) -> io::Result<Tls> {
        let counts = Arc::new(TlsCounts::default());
        let mut threads = Vec::with_capacity(carriers + 1);
        let mut senders = Vec::with_capacity(carriers);
        for index in 0..carriers {
            let (sender, clients) = mpsc::unbounded_channel();
            threads.push(thread(format!("tls-{index}"), move || carry::carry_all(clients, test_panics))?);
            senders.push(sender);
        }
        let (queue, inbox) = mpsc::unbounded_channel();
        let (config, of_thread) = (identity.config(), Arc::clone(&counts));
        let onward = Onward { shards, carriers: senders };
        threads
            .push(thread("tls-handshakes".into(), move || handshake::serve(inbox, config, limits, onward, of_thread))?);
        Ok(Tls { sender: TlsSender { queue, control, counts }, threads })
    }

    /// Where connections are handed to.
    pub fn sender(&self) -> &TlsSender {
        &self.sender
    }

    /// Whether one of the threads has ended by itself.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Takes no more connections; gives the threads, which end when the last client has gone. The other senders are to be
    /// dropped too.
    pub fn stop(self) -> Vec<JoinHandle<()>> {
        self.threads
    }
}

/// A thread with a runtime of its own. It is epoll's in any case: what costs here is the encryption.
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
