//! What a shard knows of each connection and client.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::egress::{Conn, Datagram, Datagrams};
use crate::metrics::{ClientLatency, Reception, Transport};
use crate::session::SessionKey;
use crate::shard::player::Player;
use crate::stream::{StreamId, TrackId};

/// Where a link's bytes go.
pub(super) enum Kind {
    /// An RTSP connection, and the interleaved client on it if one plays.
    Tcp {
        conn: Conn,
        peer: SocketAddr,
        /// Answers that have not been sent yet; they go first in the next operation.
        answers: VecDeque<Bytes>,
        answer_bytes: usize,
        /// Shards that it has been handed to after its first.
        moves: u8,
    },
    /// A client that is sent datagrams.
    Udp {
        /// Where its tracks go.
        targets: Targets,
        /// Datagrams of this client alone (its first sender report, its BYE); they go before the next chunk.
        own: VecDeque<(SocketAddr, std::rc::Rc<Datagrams>)>,
        /// Sockets of its own, one a track, while its path is or may be backed up.
        own_sockets: Option<Box<OwnSockets>>,
        /// The path takes no runs of packets (GSO): they go one by one.
        plain: bool,
        /// Bytes sent since `burst_from`, so that a catching-up client's receive buffer is not overrun.
        burst_bytes: usize,
        burst_from: Instant,
        /// It is in [`Core::paced`].
        paced: bool,
    },
    /// A client that receives the stream's multicast group: nothing is sent to it alone.
    Receiver { stream: StreamId, peer: SocketAddr, tracks: Vec<TrackId> },
}

/// Where the tracks of a UDP client go; of two tracks within the link, as every chunk needs them.
pub(super) type Targets = SmallVec<[Target; 2]>;

/// Where a track goes.
#[derive(Clone, Copy)]
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

/// A UDP client's own sockets for RTP; its few RTCP packets stay on the shared one, where the client's are read too.
pub(super) struct OwnSockets {
    pub(super) rtp: SmallVec<[(TrackId, Datagram); 2]>,
    /// For RTCP, of a multicast group alone.
    pub(super) rtcp: Option<Datagram>,
    /// When one of them was last seen backed up, at first when they were made.
    pub(super) backed_up: Instant,
}

/// How far a link is on its way to being closed: cancel, join, close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// As soon as what is queued has been sent.
    Flush,
    /// As soon as its operation has been joined.
    Join,
}

/// One target of operations: at most one is in flight.
///
/// The other clients' media has driven it out of the cache by each of its turns: what every chunk needs of it lies together, to be
/// asked for in time ([`LINK_HOT_BYTES`]).
#[repr(C, align(64))]
pub(super) struct Link {
    pub(super) kind: Kind,
    /// The bytes that end the connection (RTCP BYE), sent after the last media.
    pub(super) farewell: Option<Bytes>,
    /// When the operation under way began.
    pub(super) busy: Option<Instant>,
    /// Arrivals of the media chunks in the operation under way.
    pub(super) arrivals: SmallVec<[Instant; 2]>,
    /// Bytes of media in the operation under way, and of everything.
    pub(super) media_bytes: usize,
    pub(super) op_bytes: usize,
    pub(super) generation: u32,
    pub(super) closing: Closing,
    /// It is in [`Core::ready`].
    pub(super) queued: bool,
    /// A cancel has been asked for because the operation took too long.
    pub(super) stalled: bool,
    /// UDP: the track whose frame the operation under way carries.
    pub(super) op_track: Option<TrackId>,
    pub(super) playing: Option<Playing>,
}

/// What every chunk needs of a link, from its beginning.
pub(super) const LINK_HOT_BYTES: usize = std::mem::offset_of!(Link, playing) + std::mem::offset_of!(Playing, latency);

const _: () = assert!(size_of::<Option<Playing>>() == size_of::<Playing>());

/// A client that plays; what every chunk needs of it comes first.
#[repr(C)]
pub(super) struct Playing {
    /// Until when it counts as one that lags, and is sent little at a time.
    pub(super) lagging_until: Option<Instant>,
    pub(super) bytes: u64,
    pub(super) stream: StreamId,
    pub(super) paused: bool,
    pub(super) player: Player,
    pub(super) latency: ClientLatency,
    pub(super) session: SessionKey,
    pub(super) transport: Transport,
    pub(super) peer: SocketAddr,
    /// Its place in [`Stream::members`].
    pub(super) member: usize,
    pub(super) skips: u64,
    /// A test wants its code to fail, once `lagging_until` is over.
    pub(super) panics: bool,
    /// What its last receiver report says.
    pub(super) reception: Option<Reception>,
    pub(super) since: Instant,
}

impl Playing {
    /// A client that begins: its session and address, what it plays by what, and its place in [`Stream::members`].
    pub(super) fn new(
        now: Instant,
        (session, peer): (SessionKey, SocketAddr),
        (stream, transport): (StreamId, Transport),
        player: Player,
        member: usize,
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
            panics: false,
            reception: None,
            since: now,
        }
    }
}
