//! Carries a client's bytes between its TLS connection and the local socket that represents it in the shard.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, BufRead as _, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead as _, Interest, ReadBuf};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::sleep;
use tokio_rustls::rustls::ServerConnection;

use super::{Counted, TlsCounts, TlsOutcome};
use crate::limits::{TLS_CARRY_BYTES_MAX, TLS_FAREWELL_MAX_MS};
use crate::testing::Testing;

/// Pieces of one client that are carried before other clients have their turn.
const TURN_PIECES_MAX: usize = 4;

/// A client whose handshake is complete.
pub struct Established {
    tls: ServerConnection,
    tcp: std::net::TcpStream,
    near: std::os::unix::net::UnixStream,
    counted: Counted,
}

impl Established {
    /// The TLS connection on `tcp`, of which the shard has another handle, and the other end of the shard's socket; both in
    /// non-blocking mode. Counts as carried from now on.
    pub(super) fn new(
        tls: ServerConnection,
        tcp: std::net::TcpStream,
        near: std::os::unix::net::UnixStream,
        counts: &Arc<TlsCounts>,
    ) -> Established {
        Established { tls, tcp, near, counted: Counted::new(counts, |counts| &counts.carried) }
    }
}

/// If a relay under test receives this from a client, the carrying code panics.
const ASKS_FOR_FAULT: &[u8] = b"X-Test-Panic: tls";

/// Carries all clients that arrive, until no more can arrive and the last is gone; as soon as `ending` is true, all are sent away.
/// Tests may make a client's code panic.
pub async fn carry_all(
    mut clients: mpsc::UnboundedReceiver<Established>,
    ending: watch::Receiver<bool>,
    testing: Testing,
) {
    // What is read from one client's shard is encrypted before another's is read, because they share the buffer.
    let scratch: Scratch = Rc::new(RefCell::new(vec![0; TLS_CARRY_BYTES_MAX].into_boxed_slice()));
    let (running, mut all_gone) = mpsc::channel::<()>(1);
    while let Some(client) = clients.recv().await {
        let (scratch, ending, running) = (Rc::clone(&scratch), ending.clone(), running.clone());
        // A panic ends the task, and closes the client's two sockets.
        spawn_local(async move {
            carry(client, scratch, ending, testing).await;
            drop(running);
        });
    }
    drop(running);
    all_gone.recv().await;
}

type Scratch = Rc<RefCell<Box<[u8]>>>;

async fn carry(client: Established, scratch: Scratch, ending: watch::Receiver<bool>, testing: Testing) {
    let Established { tls, tcp, near, counted } = client;
    let peer = tcp.peer_addr();
    let carrier = Carrier::new(tls, tcp, near, scratch);
    let outcome = match carrier {
        Ok((mut carrier, near)) => {
            carrier.testing = testing;
            let outcome = tokio::select! {
                outcome = poll_fn(|cx| carrier.poll(cx)) => outcome,
                () = too_late(near, ending) => Ok(()),
            };
            // What was sent is still delivered; nothing more follows. It fails only if the connection is already gone.
            let _ = SockRef::from(&carrier.far).shutdown(Shutdown::Both);
            outcome
        }
        Err(error) => Err(error),
    };
    if let Err(error) = outcome
        && error.kind() == ErrorKind::InvalidData
    {
        counted.counts.count(TlsOutcome::Broken);
        match peer {
            Ok(client) => tracing::warn!(%client, "TLS: {error}: closed"),
            Err(_) => tracing::warn!("TLS: {error}: closed"),
        }
    }
}

/// Resolves some time after the connection has been ended by the shard, in whichever process that is, or because all are: a client that
/// reads nothing is not waited for.
async fn too_late(near: OwnedWriteHalf, mut ending: watch::Receiver<bool>) {
    tokio::select! {
        // The shard has shut down or closed its end (EPOLLHUP, which nobody needs to ask for).
        _ = near.as_ref().ready(Interest::PRIORITY) => {}
        Ok(_) = ending.wait_for(|ending| *ending) => {
            // For the shard the client has gone, for the client the shard has. It fails only if the shard has closed its end.
            let _ = SockRef::from(near.as_ref()).shutdown(Shutdown::Both);
        }
    }
    sleep(Duration::from_millis(TLS_FAREWELL_MAX_MS)).await;
}

/// One client.
struct Carrier {
    tls: ServerConnection,
    far: TcpStream,
    near: OwnedReadHalf,
    scratch: Scratch,
    /// The shard sends no more.
    near_ended: bool,
    /// The client has been told that nothing more follows.
    said_farewell: bool,
    /// The client sends no more.
    far_ended: bool,
    /// The shard has been told so.
    told_shard: bool,
    testing: Testing,
}

impl Carrier {
    fn new(
        mut tls: ServerConnection,
        far: std::net::TcpStream,
        near: std::os::unix::net::UnixStream,
        scratch: Scratch,
    ) -> io::Result<(Carrier, OwnedWriteHalf)> {
        // Memory is bounded because nothing is read from the shard before everything has been sent.
        tls.set_buffer_limit(None);
        let (near, other_half) = UnixStream::from_std(near)?.into_split();
        let carrier = Carrier {
            tls,
            far: TcpStream::from_std(far)?,
            near,
            scratch,
            near_ended: false,
            said_farewell: false,
            far_ended: false,
            told_shard: false,
            testing: Testing::default(),
        };
        Ok((carrier, other_half))
    }

    /// Carries what is available; ready when the shard has ended the connection and the client received all of it, or on an error.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inward = self.inward(cx);
        // Also after an error of the client, which is sent an alert.
        let outward = self.outward(cx);
        match (inward, outward) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (_, outward) => outward,
        }
    }

    /// From the client to the shard.
    fn inward(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..TURN_PIECES_MAX {
            while !self.told_shard {
                let mut reader = self.tls.reader();
                // Nothing more at present, or ever: the client has sent close_notify, or just disconnected.
                let Ok(plain @ [_, ..]) = reader.fill_buf() else { break };
                assert!(!self.testing.is_asked(plain, ASKS_FOR_FAULT), "a test wants it so");
                ready!(self.near.as_ref().poll_write_ready(cx))?;
                match self.near.as_ref().try_write(plain) {
                    Ok(count) => reader.consume(count),
                    Err(error) if is_for_another_try(&error) => {}
                    // The shard reads no more because it has ended the connection; the other direction handles that.
                    Err(_) => self.told_shard = true,
                }
            }
            if self.far_ended {
                if !self.told_shard {
                    self.told_shard = true;
                    // It fails only if the shard has closed its end.
                    let _ = SockRef::from(self.near.as_ref()).shutdown(Shutdown::Write);
                }
                return Poll::Ready(Ok(()));
            }
            ready!(self.far.poll_read_ready(cx))?;
            match self.tls.read_tls(&mut Ready(&self.far)) {
                Ok(0) => self.far_ended = true,
                Ok(_) => {
                    let state = self.tls.process_new_packets();
                    let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                    self.far_ended |= state.peer_has_closed();
                }
                Err(error) if is_for_another_try(&error) => {}
                // It has broken off.
                Err(_) => self.far_ended = true,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From the shard to the client.
    fn outward(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pieces = 0;
        loop {
            while self.tls.wants_write() {
                ready!(self.far.poll_write_ready(cx))?;
                match self.tls.write_tls(&mut Ready(&self.far)) {
                    Err(error) if !is_for_another_try(&error) => return Poll::Ready(Err(error)),
                    Ok(_) | Err(_) => {}
                }
            }
            if self.said_farewell {
                return Poll::Ready(Ok(()));
            }
            if self.near_ended {
                self.tls.send_close_notify();
                self.said_farewell = true;
                continue;
            }
            if pieces == TURN_PIECES_MAX {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            pieces += 1;
            let mut scratch = self.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.near).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => self.tls.writer().write_all(buf.filled())?,
                // The shard has shut down sending, or has closed its end with unread data from the client.
                Ok(()) | Err(_) => self.near_ended = true,
            }
        }
    }
}

fn is_for_another_try(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A connection as TLS reads and writes it after it was reported ready.
pub(super) struct Ready<'a>(pub(super) &'a TcpStream);

impl Read for Ready<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Ready<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use tokio::time::timeout;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;
    use crate::trust::provider;

    /// Long enough for the slowest machine.
    const DEADLINE: Duration = Duration::from_secs(30);

    /// The configuration of a server, and a client that trusts it.
    pub(in crate::tls) fn both() -> (Arc<ServerConfig>, ClientConnection) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let client = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
        (Arc::new(server), client)
    }

    /// A completed handshake, in memory.
    fn shaken() -> (ServerConnection, ClientConnection) {
        let (server, mut client) = both();
        let mut server = ServerConnection::new(server).unwrap();
        while server.is_handshaking() || client.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets().unwrap();
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        (server, client)
    }

    /// A carried client that reads nothing, with its end; the shard's end, whose writes wait half a second; and what sends all away.
    fn silent_client() -> (tokio::task::JoinHandle<()>, std::net::TcpStream, StdUnixStream, watch::Sender<bool>) {
        let (tls, _client) = shaken();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (near, shards) = StdUnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        shards.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let client = Established::new(tls, tcp, near, &Arc::default());
        let scratch = Rc::new(RefCell::new(vec![0; TLS_CARRY_BYTES_MAX].into_boxed_slice()));
        let (end, ending) = watch::channel(false);
        (tokio::task::spawn_local(carry(client, scratch, ending, Testing::default())), silent, shards, end)
    }

    /// Sends until neither side accepts anything more.
    async fn fill(carried: &tokio::task::JoinHandle<()>, mut shards: StdUnixStream) -> StdUnixStream {
        let fed = std::thread::spawn(move || {
            while shards.write_all(&[0; 65_536]).is_ok() {}
            shards
        });
        while !fed.is_finished() {
            assert!(!carried.is_finished());
            sleep(Duration::from_millis(10)).await;
        }
        fed.join().unwrap()
    }

    #[test]
    fn a_client_that_reads_nothing_is_not_carried_for_ever_once_its_shard_has_let_go() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            for shut_down in [true, false] {
                let (carried, _silent, shards, _end) = silent_client();
                let shards = fill(&carried, shards).await;
                // It has another handle on its end, as two processes have in an upgrade.
                let other = shut_down.then(|| shards.try_clone().unwrap());
                if shut_down {
                    shards.shutdown(Shutdown::Both).unwrap();
                }
                drop(shards);
                timeout(DEADLINE, carried).await.unwrap().unwrap();
                drop(other);
            }
        });
    }

    #[test]
    fn all_are_sent_away_when_everything_ends() {
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let (carried, _silent, shards, end) = silent_client();
            let mut shards = fill(&carried, shards).await;
            // Of another process, which goes on.
            let (other, _other_silent, _other_shards, _other_end) = silent_client();
            end.send_replace(true);
            timeout(DEADLINE, carried).await.unwrap().unwrap();
            assert!(!matches!(shards.read(&mut [0]), Ok(1..)), "the shard is told, too");
            assert!(!other.is_finished());
        });
    }
}
