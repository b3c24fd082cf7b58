//! A shard's data for each connection and client.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::browser::Web;
use crate::egress::{Conn, Datagram, Datagrams};
use crate::media::{StreamId, TrackId};
use crate::metrics::{ClientLatency, Reception, Transport};
use crate::session::SessionKey;
use crate::shard::player::Player;

/// Destination of a link's data.
pub(super) enum Kind {
    /// An RTSP connection, with the interleaved client on it if one plays.
    Tcp {
        conn: Conn,
        peer: SocketAddr,
        /// Unsent answers; they go first in the next operation.
        answers: VecDeque<Bytes>,
        answer_bytes: usize,
        /// How often it has been moved to another shard.
        moves: u8,
        /// Of a browser's WebSocket.
        web: Option<Box<Web>>,
    },
    /// A client that is sent datagrams.
    Udp {
        /// Where its tracks go.
        targets: Targets,
        /// The local address to send from: the one that the player connected to.
        from: Option<IpAddr>,
        /// Datagrams for this client alone (its first sender report, its BYE); they precede the next chunk.
        own: VecDeque<(SocketAddr, std::rc::Rc<Datagrams>)>,
        /// Its own sockets, one per track, while its path is or may be backed up.
        own_sockets: Option<Box<OwnSockets>>,
        /// The path does not accept runs of packets (GSO): they are sent one by one.
        plain: bool,
        /// Bytes sent since `burst_from`, so that a client that catches up does not overflow its receive buffer.
        burst_bytes: usize,
        burst_from: Instant,
        /// It waits in [`Pacing`](super::pacing::Pacing).
        paced: bool,
    },
    /// A client that receives the stream's multicast group: nothing is sent to it individually.
    Receiver { stream: StreamId, peer: SocketAddr, tracks: Vec<TrackId> },
}

impl Kind {
    /// A client that is sent datagrams, at first through `own_sockets`, if it has any.
    pub(super) fn udp(
        now: Instant,
        targets: Targets,
        from: Option<IpAddr>,
        own_sockets: Option<Box<OwnSockets>>,
    ) -> Kind {
        let (own, burst_from) = (VecDeque::new(), now);
        Kind::Udp { targets, from, own, own_sockets, plain: false, burst_bytes: 0, burst_from, paced: false }
    }
}

/// Destinations of a UDP client's tracks; up to two are stored in the link, because every chunk needs them.
pub(super) type Targets = SmallVec<[Target; 2]>;

/// Where a track goes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) track: TrackId,
    pub(super) rtp: SocketAddr,
    /// Of the same host.
    pub(super) rtcp_port: u16,
}

impl Target {
    /// Where its RTCP goes.
    pub(super) fn rtcp(&self) -> SocketAddr {
        let mut rtcp = self.rtp;
        rtcp.set_port(self.rtcp_port);
        rtcp
    }
}

/// A UDP client's own sockets for RTP; its few RTCP packets stay on the shared one, where the client's are also received.
pub(super) struct OwnSockets {
    pub(super) rtp: SmallVec<[(TrackId, Datagram); 2]>,
    /// For RTCP, for a multicast group only.
    pub(super) rtcp: Option<Datagram>,
    /// When one of them was last seen backed up, initially when they were created.
    pub(super) backed_up: Instant,
}

/// How far the closing of a link has progressed: cancel, join, close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// Close when everything queued has been sent.
    Flush,
    /// Close when its operation has completed.
    Join,
}

/// A destination of operations: at most one is in flight.
///
/// By each of its turns, the other clients' media have evicted it from the cache. Therefore the data that every chunk needs is kept
/// together and prefetched ([`LINK_HOT_BYTES`]).
#[repr(C, align(64))]
pub(super) struct Link {
    pub(super) kind: Kind,
    /// The bytes that end the connection (RTCP BYE), sent after the last media.
    pub(super) farewell: Option<Bytes>,
    /// When the operation in flight started.
    pub(super) busy: Option<Instant>,
    /// Arrivals of the media chunks in the operation in flight.
    pub(super) arrivals: SmallVec<[Instant; 2]>,
    /// Bytes of media in the operation in flight, and in total.
    pub(super) media_bytes: usize,
    pub(super) op_bytes: usize,
    pub(super) generation: u32,
    pub(super) closing: Closing,
    /// It is among those that [`Links::next_ready`](super::links::Links::next_ready) returns.
    pub(super) queued: bool,
    /// A cancel was requested because the operation took too long.
    pub(super) stalled: bool,
    /// Something was sent since it is being closed, which its client must not lose.
    pub(super) farewell_sent: bool,
    /// UDP: the track whose frame the operation in flight carries.
    pub(super) op_track: Option<TrackId>,
    pub(super) playing: Option<Playing>,
}

impl Link {
    /// A link without operations.
    pub(super) fn new(generation: u32, kind: Kind) -> Link {
        Link {
            generation,
            kind,
            playing: None,
            closing: Closing::No,
            farewell: None,
            busy: None,
            arrivals: SmallVec::new(),
            media_bytes: 0,
            op_bytes: 0,
            op_track: None,
            queued: false,
            stalled: false,
            farewell_sent: false,
        }
    }
}

/// The data that every chunk needs, from the start of a link.
pub(super) const LINK_HOT_BYTES: usize = std::mem::offset_of!(Link, playing) + std::mem::offset_of!(Playing, latency);

const _: () = assert!(size_of::<Option<Playing>>() == size_of::<Playing>());

/// A client that plays; the data that every chunk needs comes first.
#[repr(C)]
pub(super) struct Playing {
    /// Until when it counts as lagging and is sent small operations.
    pub(super) lagging_until: Option<Instant>,
    pub(super) bytes: u64,
    pub(super) stream: StreamId,
    pub(super) paused: bool,
    pub(super) player: Player,
    pub(super) latency: ClientLatency,
    pub(super) session: SessionKey,
    pub(super) transport: Transport,
    pub(super) peer: SocketAddr,
    /// Its index among the stream's members; `None` once it has been removed and is only being sent its last data.
    pub(super) member: Option<usize>,
    pub(super) skips: u64,
    /// The number of the next report of an outage.
    pub(super) reported: u64,
    /// A test wants its code to panic, once `lagging_until` is over.
    #[cfg(feature = "testing")]
    pub(super) panics: bool,
    /// Its last receiver report.
    pub(super) reception: Option<Reception>,
    pub(super) since: Instant,
}

impl Playing {
    /// A client that starts: its session and address, its cursor and transport, and its index among the stream's members.
    pub(super) fn new(
        now: Instant,
        (session, peer): (SessionKey, SocketAddr),
        (stream, transport): (StreamId, Transport),
        player: Player,
        member: Option<usize>,
    ) -> Playing {
        Playing {
            lagging_until: None,
            bytes: 0,
            stream,
            paused: false,
            player,
            latency: ClientLatency::default(),
            session,
            transport,
            peer,
            member,
            skips: 0,
            reported: 0,
            #[cfg(feature = "testing")]
            panics: false,
            reception: None,
            since: now,
        }
    }

    /// Whether it has been removed from its stream, and is only being sent its last data.
    pub(super) fn has_left(&self) -> bool {
        self.member.is_none()
    }
}
