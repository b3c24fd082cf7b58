//! Connections from load balancers: their PROXY protocol header is read before anything else looks at them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::access::AddressRange;
use crate::config::Config;
use crate::limits::PROXY_HEADER_BYTES_MAX;
use crate::metrics::{Limited, process};
use crate::wire::proxy_protocol::{Fault, HEAD_BYTES, Head, SIGNATURE};

/// The load balancers, and how long the header may take.
#[derive(Clone, Debug, Default)]
pub(super) struct Balancers {
    from: Vec<AddressRange>,
    header_timeout: Duration,
}

/// Why a connection is closed at once.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The header is invalid or not supported.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// It has not come.
    #[error("sent no complete PROXY protocol header within limits.handshake_timeout")]
    TimedOut,
    /// The balancer went.
    #[error("closed the connection before its PROXY protocol header was complete ({0})")]
    Gone(#[from] io::Error),
}

impl Balancers {
    /// Those of a configuration.
    pub(super) fn of(config: &Config) -> Balancers {
        Balancers { from: config.site.proxy_protocol_from.clone(), header_timeout: config.limits.handshake_timeout }
    }

    /// Whether connections from there start with a header.
    pub(super) fn have(&self, ip: IpAddr) -> bool {
        self.from.iter().any(|range| range.contains(ip))
    }

    /// The client of a balancer's connection. Exactly the header has been read from it then.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub(super) async fn client(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<SocketAddr, Refused> {
        timeout(self.header_timeout, read(stream)).await.unwrap_or(Err(Refused::TimedOut)).map(|of| of.unwrap_or(peer))
    }
}

/// The client of a connection to the HTTP server; `None` if it is to be closed.
///
/// A balancer's own health check may come without a header. A header starts with a line end, which a request never does.
pub(super) async fn asker(balancers: &Balancers, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
    if !balancers.have(peer.ip()) {
        return Some(peer);
    }
    let mut first = [0];
    let peeked = timeout(balancers.header_timeout, stream.peek(&mut first)).await.ok()?;
    if peeked.ok()? == 0 || first[0] != SIGNATURE[0] {
        return Some(peer);
    }
    match balancers.client(stream, peer).await {
        Ok(client) => Some(client),
        Err(why) => {
            if let Some(why) = refused(peer, &why) {
                tracing::warn!("{why}");
            }
            None
        }
    }
}

/// Counts a connection that is closed, and returns what to log: nothing if it was just closed by the peer, as health checks do.
pub(super) fn refused(peer: SocketAddr, why: &Refused) -> Option<String> {
    if let Refused::Gone(_) = why {
        return None;
    }
    process::limited(Limited::ProxyHeader);
    Some(format!("the balancer {peer} {why}: closed"))
}

/// Whose a connection is by its header, which is read off it, and nothing else; none says that it is the sender's own.
///
/// # Errors
/// It is to be closed.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Refused> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let head = Head::parse(&head)?;
    let mut rest = [0; PROXY_HEADER_BYTES_MAX - HEAD_BYTES];
    let rest = &mut rest[..head.rest_bytes()];
    stream.read_exact(rest).await?;
    Ok(head.client(rest))
}
