//! The handshake thread, and what it does for each connection.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, AlertDescription, ServerConfig, ServerConnection};

use super::carry::{Established, Ready};
use super::turns::{Stage, Turns};
use super::{Counted, HandshakeLimits, TlsCounts, TlsOutcome};
use crate::crowd::{Crowd, Place, origin};
use crate::egress::Secured;
use crate::limits::{TLS_SHARD_SEND_BUFFER_BYTES, tls_half_open_kept, tls_half_open_max};
use crate::shard::inbox::{ControlSender, ShardSender, ToControl, ToShard};
use crate::told::Told;
use crate::wire::proxy_protocol::SIGNATURE;
use crate::wire::rtsp::Fault;

/// The first byte of a TLS handshake record (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The answer to a client that uses RTSP without TLS.
const PLAIN_ANSWER: &[u8] =
    b"RTSP/1.0 400 This port speaks RTSPS: use rtsps:// here, or the port of rtsp://\r\nConnection: close\r\n\r\n";

/// Messages to the handshake thread.
pub(super) enum ToHandshakes {
    /// A connection was accepted.
    Connection(Accepted),
    /// Few more connections can be accepted: evict an unfinished handshake for the one that has arrived.
    GiveWay,
    /// Use this configuration for handshakes from now on.
    Config(Arc<ServerConfig>),
    /// Apply these limits from now on.
    Limits(HandshakeLimits),
}

/// A connection that needs a handshake.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) admitted: Admitted,
    to: Destination,
    counted: Counted,
}

impl Accepted {
    pub(super) fn new(stream: TcpStream, admitted: Admitted, to: Destination, counts: &Arc<TlsCounts>) -> Accepted {
        Accepted { stream, admitted, to, counted: Counted::new(counts, |counts| &counts.half_open) }
    }
}

/// Who serves the client after the handshake.
#[derive(Clone)]
pub(super) enum Destination {
    /// A shard, RTSP.
    Shard,
    /// The HTTP server.
    Pages(mpsc::UnboundedSender<SecuredPage>),
}

/// An HTTPS client's connection, for the HTTP server.
pub struct SecuredPage {
    /// The local socket that represents it, non-blocking.
    pub stream: TcpStream,
    /// The client's address.
    pub peer: SocketAddr,
    /// The TCP connection.
    pub secured: Arc<Secured>,
}

/// A client that the control thread has admitted. When it is dropped, the client is reported as gone, unless a shard has taken over.
pub(super) struct Admitted {
    peer: SocketAddr,
    control: Option<ControlSender>,
}

impl Admitted {
    pub(super) fn new(peer: SocketAddr, control: ControlSender) -> Admitted {
        Admitted { peer, control: Some(control) }
    }

    /// One that does not count as a client.
    pub(super) fn uncounted(peer: SocketAddr) -> Admitted {
        Admitted { peer, control: None }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.tell(ToControl::Gone { peer: self.peer });
        }
    }
}

/// Where connections go after the handshake.
pub(super) struct Onward {
    pub(super) shards: Vec<ShardSender>,
    pub(super) carriers: Vec<mpsc::UnboundedSender<Established>>,
}

/// Does the handshakes of all connections that arrive, until no more can arrive.
pub(super) async fn serve(
    mut inbox: mpsc::UnboundedReceiver<ToHandshakes>,
    mut config: Arc<ServerConfig>,
    mut limits: HandshakeLimits,
    onward: Onward,
    counts: Arc<TlsCounts>,
) {
    let onward = Rc::new(onward);
    let mut next_carrier = 0;
    let crowd = SharedCrowd::default();
    let turns = Rc::new(Turns::default());
    spawn_local({
        let turns = Rc::clone(&turns);
        async move { turns.give().await }
    });
    let mut told_crowded = Told::default();
    while let Some(message) = inbox.recv().await {
        let accepted = match message {
            ToHandshakes::Connection(accepted) => accepted,
            ToHandshakes::GiveWay => {
                let fewer = crowd.borrow().len().saturating_sub(1);
                give_up(&crowd, fewer.max(tls_half_open_kept(limits.clients)), &mut told_crowded);
                continue;
            }
            ToHandshakes::Config(new) => {
                config = new;
                continue;
            }
            ToHandshakes::Limits(new) => {
                limits = new;
                continue;
            }
        };
        give_up(&crowd, tls_half_open_max(limits.clients) - 1, &mut told_crowded);
        let told = Rc::new(Notify::new());
        let place = crowd.borrow_mut().add(Rc::clone(&told), origin(accepted.admitted.peer.ip()));
        let standing = Standing { crowd: Rc::clone(&crowd), place };
        let (onward, counts, config) = (Rc::clone(&onward), Arc::clone(&counts), Arc::clone(&config));
        let turns = Rc::clone(&turns);
        let carrier = next_carrier;
        next_carrier = (next_carrier + 1) % onward.carriers.len();
        spawn_local(async move {
            let _standing = standing;
            let Accepted { stream, admitted, to, counted } = accepted;
            let peer = admitted.peer;
            let handshake = async {
                match timeout(limits.handshake_timeout, greet(stream, peer, config, &turns)).await {
                    Ok(Ok((tcp, tls))) => match pass_on(tcp, tls, (admitted, to), carrier, &onward, &counts) {
                        Ok(()) => TlsOutcome::Done,
                        Err(error) => {
                            tracing::warn!(client = %peer, %error, "cannot set up the TLS connection: closed");
                            TlsOutcome::Failed
                        }
                    },
                    Ok(Err(outcome)) => outcome,
                    Err(_) => TlsOutcome::TimedOut,
                }
            };
            let outcome = tokio::select! {
                biased;
                () = told.notified() => TlsOutcome::CrowdedOut,
                outcome = handshake => outcome,
            };
            counts.count(outcome);
            drop(counted);
        });
    }
}

/// The unfinished handshakes, each with a way to cancel it. No borrow is held across an `await`.
type SharedCrowd = Rc<RefCell<Crowd<Rc<Notify>>>>;

/// Evicts handshakes until at most this many are left.
fn give_up(crowd: &SharedCrowd, left: usize, told_crowded: &mut Told) {
    let mut crowd = crowd.borrow_mut();
    while crowd.len() > left
        && let Some((place, _)) = crowd.first_to_go(fastrand::u64(..))
    {
        // A genuine handshake takes a moment, so of an address with several the oldest is evicted. Among addresses with equally many a
        // random one is chosen, because the oldest of all might just be waiting for its turn.
        if let Some(told) = crowd.remove(place) {
            told.notify_one();
        }
        if told_crowded.is_due(Instant::now()) {
            tracing::warn!(
                "too many connections, {} of them with an unfinished TLS handshake: each new one evicts the oldest of an address that has most; check who connects, and use a certificate with an ECDSA key, which costs a tenth of an RSA one",
                crowd.len() + 1
            );
        }
    }
}

/// A handshake's entry among the unfinished ones.
struct Standing {
    crowd: SharedCrowd,
    place: Place,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.crowd.borrow_mut().remove(self.place);
    }
}

/// One handshake.
async fn greet(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    turns: &Turns,
) -> Result<(TcpStream, ServerConnection), TlsOutcome> {
    let mut tcp = tokio::net::TcpStream::from_std(stream).map_err(|error| {
        tracing::warn!(client = %peer, %error, "cannot set up the TLS connection: closed");
        TlsOutcome::Failed
    })?;
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1) if first[0].is_ascii_uppercase() => {
            tracing::warn!(client = %peer, "client speaks RTSP without TLS on a listen_tls port; use rtsps:// there, or a port of listen");
            // Unread data would make the answer be followed by a reset.
            let _ = tcp.try_read(&mut [0; 4096]);
            // A client that does not wait for the answer does not need it.
            let _ = tcp.write_all(PLAIN_ANSWER).await;
            let _ = tcp.shutdown().await;
            return Err(TlsOutcome::Plain);
        }
        Ok(1) if first[0] == SIGNATURE[0] => {
            tracing::warn!(client = %peer, "{}: closed", Fault::ProxyProtocol);
            return Err(TlsOutcome::Failed);
        }
        Ok(1) => {
            tracing::warn!(client = %peer, "client does not speak TLS on a listen_tls port: closed");
            return Err(TlsOutcome::Failed);
        }
        Ok(_) | Err(_) => return Err(TlsOutcome::Left),
    }
    match shake_hands(&tcp, config, turns).await {
        Ok(tls) => Ok((tcp.into_std().map_err(|_| TlsOutcome::Left)?, tls)),
        Err(Broken::Left) => Err(TlsOutcome::Left),
        Err(Broken::Failed(fault)) => {
            tracing::warn!(client = %peer, "the TLS handshake failed: {fault}{}", cure(&fault));
            Err(TlsOutcome::Failed)
        }
    }
}

/// Why a handshake failed.
enum Broken {
    /// The client went.
    Left,
    /// The client's data is not valid.
    Failed(rustls::Error),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Broken::Left
    }
}

/// Does a handshake, each step when there is something to read, in a turn of its own.
async fn shake_hands(
    tcp: &tokio::net::TcpStream,
    config: Arc<ServerConfig>,
    turns: &Turns,
) -> Result<ServerConnection, Broken> {
    let mut tls = ServerConnection::new(config).map_err(Broken::Failed)?;
    let mut stage = Stage::First;
    loop {
        while tls.wants_write() {
            stage = Stage::Answered;
            match tls.write_tls(&mut Ready(tcp)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => tcp.writable().await?,
                written => drop(written?),
            }
        }
        if !tls.is_handshaking() {
            return Ok(tls);
        }
        tcp.readable().await?;
        // Only a client that has sent something waits for a turn. Until then the connection holds what was read, at most 4 KiB.
        match tls.read_tls(&mut Ready(tcp)) {
            Ok(0) => return Err(Broken::Left),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            read => drop(read?),
        }
        let mut turn = turns.turn(stage).await;
        let step = turn.compute(|| tls.process_new_packets().map(drop).map_err(Broken::Failed));
        drop(turn);
        if step.is_err() {
            // The alert, as far as it can be sent.
            let _ = tls.write_tls(&mut Ready(tcp));
        }
        step?;
    }
}

fn cure(fault: &rustls::Error) -> &'static str {
    match fault {
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => {
            "; the client does not trust the relay's certificate: install the CA on the client, or use a certificate for the name that it connects to"
        }
        rustls::Error::PeerIncompatible(_) => "; the client supports nothing newer than TLS 1.1, or no secure cipher",
        _ => "",
    }
}

/// Gives a connection to the shard with the fewest connections, and its TLS to an encryption thread.
fn pass_on(
    tcp: TcpStream,
    tls: ServerConnection,
    (mut admitted, to): (Admitted, Destination),
    carrier: usize,
    onward: &Onward,
    counts: &Arc<TlsCounts>,
) -> io::Result<()> {
    let (near, shards) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    SockRef::from(&shards).set_send_buffer_size(TLS_SHARD_SEND_BUFFER_BYTES)?;
    let secured = Secured::new(tcp.try_clone()?);
    let shard = onward.shards.iter().min_by_key(|shard| shard.connections()).ok_or(ErrorKind::NotConnected)?;
    // The receivers end only during a stop.
    let _ = onward.carriers[carrier].send(Established::new(tls, tcp, near, counts));
    // A stream socket works the same whatever its family: only addresses and TCP options must be queried from `secured`.
    let stream = TcpStream::from(OwnedFd::from(shards));
    if let Destination::Pages(pages) = to {
        stream.set_nonblocking(true)?;
        // It ends only during a stop.
        let _ = pages.send(SecuredPage { stream, peer: admitted.peer, secured });
        return Ok(());
    }
    // From here on the shard reports the client's end.
    admitted.control = None;
    let (peer, secured) = (admitted.peer, Some(secured));
    shard.tell(ToShard::Connection { stream, peer, unread: Bytes::new(), secured, moves: 0 });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::carry::tests::both;
    use super::super::turns::Slice;
    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    #[test]
    fn only_what_a_client_sends_takes_a_turn() {
        let (config, mut tls) = both();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = std::thread::spawn(move || {
            loop {
                // All it has to say, at once.
                let mut bytes = Vec::new();
                while tls.wants_write() {
                    tls.write_tls(&mut bytes).unwrap();
                }
                client.write_all(&bytes).unwrap();
                if !tls.is_handshaking() {
                    return client;
                }
                tls.read_tls(&mut client).unwrap();
                tls.process_new_packets().unwrap();
            }
        });
        Runtime::new(IoKind::Epoll).unwrap().block_on(async {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let (turns, mut given) = (Rc::new(Turns::default()), 0);
            let mut slice = Slice::new(Instant::now());
            let shaken = spawn_local({
                let turns = Rc::clone(&turns);
                async move { shake_hands(&stream, config, &turns).await.is_ok() }
            });
            while !shaken.is_finished() {
                given += u32::from(turns.give_one(&mut slice).await);
                tokio::task::yield_now().await;
            }
            assert!(shaken.await.unwrap());
            assert_eq!(given, 2, "one for its first message, one for its last");
        });
        client.join().unwrap();
    }
}
