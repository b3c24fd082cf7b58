//! The thread of the handshakes, and what it does for each connection.

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
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, AlertDescription, ServerConfig, ServerConnection};

use super::carry::Established;
use super::{Counted, Limits, Outcome, Secured, TlsCounts};
use crate::crowd::{Crowd, Place, origin};
use crate::limits::{TLS_SHARD_SEND_BUFFER_BYTES, tls_half_open_kept, tls_half_open_max};
use crate::shard::inbox::{ControlSender, ShardSender, ToControl, ToShard};
use crate::told::Told;

/// The first byte of a TLS record with a handshake (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// What a client that speaks RTSP without TLS is told, in its own words.
const PLAIN_ANSWER: &[u8] =
    b"RTSP/1.0 400 This port speaks RTSPS: use rtsps:// here, or the port of rtsp://\r\nConnection: close\r\n\r\n";

/// What the thread of the handshakes is told.
pub(super) enum ToHandshakes {
    /// A connection was accepted.
    Connection(Accepted),
    /// Few connections more would be accepted: for the one that has come, one of those that are not done is to be given up.
    GiveWay,
    /// Handshakes are done with this from now on.
    Config(Arc<ServerConfig>),
    /// This is what they may take from now on.
    Limits(Limits),
}

/// A connection whose handshake is to be done.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) admitted: Admitted,
    counted: Counted,
}

impl Accepted {
    pub(super) fn new(stream: TcpStream, admitted: Admitted, counts: &Arc<TlsCounts>) -> Accepted {
        Accepted { stream, admitted, counted: Counted::new(counts, |counts| &counts.half_open) }
    }
}

/// A client that the control thread has let in: told as gone when dropped, unless a shard answers for it by then.
pub(super) struct Admitted {
    peer: SocketAddr,
    control: Option<ControlSender>,
}

impl Admitted {
    pub(super) fn new(peer: SocketAddr, control: ControlSender) -> Admitted {
        Admitted { peer, control: Some(control) }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.tell(ToControl::Gone { peer: self.peer });
        }
    }
}

/// Where connections go whose handshake is done.
pub(super) struct Onward {
    pub(super) shards: Vec<ShardSender>,
    pub(super) carriers: Vec<mpsc::UnboundedSender<Established>>,
}

/// Does the handshakes of all connections that come, until no more can come.
pub(super) async fn serve(
    mut inbox: mpsc::UnboundedReceiver<ToHandshakes>,
    mut config: Arc<ServerConfig>,
    mut limits: Limits,
    onward: Onward,
    counts: Arc<TlsCounts>,
) {
    let onward = Rc::new(onward);
    let mut next_carrier = 0;
    let crowd = SharedCrowd::default();
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
        let (onward, counts, acceptor) = (Rc::clone(&onward), Arc::clone(&counts), TlsAcceptor::from(config.clone()));
        let carrier = next_carrier;
        next_carrier = (next_carrier + 1) % onward.carriers.len();
        spawn_local(async move {
            let _standing = standing;
            let Accepted { stream, admitted, counted } = accepted;
            let peer = admitted.peer;
            let handshake = async {
                match timeout(limits.handshake_timeout, greet(stream, peer, acceptor)).await {
                    Ok(Ok((tcp, tls))) => match pass_on(tcp, tls, admitted, carrier, &onward, &counts) {
                        Ok(()) => Outcome::Done,
                        Err(error) => {
                            tracing::warn!(client = %peer, %error, "a TLS connection could not be taken over: closed");
                            Outcome::Failed
                        }
                    },
                    Ok(Err(outcome)) => outcome,
                    Err(_) => Outcome::TimedOut,
                }
            };
            let outcome = tokio::select! {
                biased;
                () = told.notified() => Outcome::CrowdedOut,
                outcome = handshake => outcome,
            };
            counts.count(outcome);
            drop(counted);
        });
    }
}

/// The handshakes that are not done, and what tells each of them that it is given up. No borrow is held across an `await`.
type SharedCrowd = Rc<RefCell<Crowd<Rc<Notify>>>>;

/// Gives handshakes up until there are no more than these.
fn give_up(crowd: &SharedCrowd, left: usize, told_crowded: &mut Told) {
    let mut crowd = crowd.borrow_mut();
    while crowd.len() > left
        && let Some((place, _)) = crowd.first_to_go()
    {
        // One that means it is done in a moment; so whoever came first and is still at it is the one to go.
        if let Some(told) = crowd.remove(place) {
            told.notify_one();
        }
        if told_crowded.is_due(Instant::now()) {
            tracing::warn!(
                "too many connections, of which {} have a TLS handshake that is not done: for each new one the oldest of the address that has most is given up; see who connects",
                crowd.len() + 1
            );
        }
    }
}

/// A handshake's place among those that are not done.
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
    acceptor: TlsAcceptor,
) -> Result<(TcpStream, ServerConnection), Outcome> {
    let mut tcp = tokio::net::TcpStream::from_std(stream).map_err(|error| {
        tracing::warn!(client = %peer, %error, "a TLS connection could not be taken over: closed");
        Outcome::Failed
    })?;
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1) if first[0].is_ascii_uppercase() => {
            tracing::warn!(client = %peer, "speaks RTSP without TLS to a port of listen_tls; use rtsps:// there, or a port of listen");
            // What is left unread would have the answer followed by a reset.
            let _ = tcp.try_read(&mut [0; 4096]);
            // Whoever does not wait for the answer needs none.
            let _ = tcp.write_all(PLAIN_ANSWER).await;
            let _ = tcp.shutdown().await;
            return Err(Outcome::Plain);
        }
        Ok(1) => {
            tracing::warn!(client = %peer, "what came to a port of listen_tls is no TLS: closed");
            return Err(Outcome::Failed);
        }
        Ok(_) | Err(_) => return Err(Outcome::Left),
    }
    match acceptor.accept(tcp).await {
        Ok(established) => {
            let (tcp, tls) = established.into_inner();
            let tcp = tcp.into_std().map_err(|_| Outcome::Left)?;
            Ok((tcp, tls))
        }
        Err(error) => {
            let Some(fault) = error.get_ref().and_then(|fault| fault.downcast_ref::<rustls::Error>()) else {
                return Err(Outcome::Left);
            };
            tracing::warn!(client = %peer, "the TLS handshake failed: {fault}{}", cure(fault));
            Err(Outcome::Failed)
        }
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
            "; the client does not trust the relay's certificate: give it the authority's, or a certificate for the name it asks for"
        }
        rustls::Error::PeerIncompatible(_) => {
            "; the client knows nothing newer than TLS 1.1, or no cipher that is safe"
        }
        _ => "",
    }
}

/// Gives a connection to the shard with the fewest, and its TLS to a thread that carries.
fn pass_on(
    tcp: TcpStream,
    tls: ServerConnection,
    mut admitted: Admitted,
    carrier: usize,
    onward: &Onward,
    counts: &Arc<TlsCounts>,
) -> io::Result<()> {
    let (near, shards) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    SockRef::from(&shards).set_send_buffer_size(TLS_SHARD_SEND_BUFFER_BYTES)?;
    let secured = Secured::new(tcp.try_clone()?);
    let shard = onward.shards.iter().min_by_key(|shard| shard.connections()).ok_or(ErrorKind::NotConnected)?;
    // Whatever has ended ends only at a stop.
    let _ = onward.carriers[carrier].send(Established::new(tls, tcp, near, secured.over(), counts));
    // A stream socket is one whatever its family is: only the addresses and the options of TCP are to be asked of `secured`.
    let stream = TcpStream::from(OwnedFd::from(shards));
    // From here on the shard tells of the client's end.
    admitted.control = None;
    let (peer, secured) = (admitted.peer, Some(secured));
    shard.tell(ToShard::Connection { stream, peer, unread: Bytes::new(), secured, moves: 0 });
    Ok(())
}
