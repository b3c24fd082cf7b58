//! The things that are counted, each with the stable name that logs, reports and scrapers know it by.

/// Defines an enum whose members are counted in an array, with a stable name for each.
macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[$member_meta:meta])* $member:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$member_meta])* $member,)+
        }

        impl $name {
            /// Every member, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$member,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$member => $text,)+
                }
            }

            /// The place in an array of [`Self::COUNT`] counts.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

counted! {
    /// How a client gets its media.
    Transport {
        /// Interleaved in its RTSP connection (RFC 2326 section 10.12).
        Tcp = "tcp",
        /// As UDP datagrams.
        Udp = "udp",
        /// From a multicast group; what is sent to it is counted for nobody.
        Multicast = "multicast",
    }
}

counted! {
    /// Why a frame did not reach a client, or not even the log.
    DropReason {
        /// The client's lag passed `queue.age`; the frames up to the keyframe that it was moved on to.
        Lagging = "lagging",
        /// They came before the first keyframe of a source that is back.
        WaitingKeyframe = "waiting_keyframe",
        /// The shard's inbox was full.
        InboxFull = "inbox_full",
        /// The stream's log passed `queue.log_bytes`.
        LogBytes = "log_bytes",
        /// The socket did not take a datagram.
        UdpSend = "udp_send",
        /// A datagram was larger than the path takes (`EMSGSIZE`).
        UdpMessageSize = "udp_message_size",
        /// The source broke off or lost packets in the middle of the frame.
        SourceTorn = "source_torn",
    }
}

counted! {
    /// Why a packet of a source is not in the stream.
    SourceDrop {
        /// It came twice, or too late to be put in its place.
        Late = "late",
        /// It was no RTP, or of a track that there is not.
        Malformed = "malformed",
        /// It had no payload.
        Empty = "empty",
        /// Its payload type was not its track's.
        PayloadType = "payload_type",
        /// It was too large for a datagram, and could not be cut.
        Oversize = "oversize",
        /// A datagram that came to a camera's ports and was not the camera's, or nobody's packet.
        Stranger = "stranger",
    }
}

counted! {
    /// Why a client is no longer there.
    LeaveReason {
        /// It said TEARDOWN.
        Teardown = "teardown",
        /// It closed the connection, or the connection broke.
        Disconnected = "disconnected",
        /// Nothing was heard from it for `limits.session_timeout`.
        SessionTimeout = "session_timeout",
        /// One operation did not complete within `queue.stall_timeout`.
        Stalled = "stalled",
        /// The source's tracks or codecs changed.
        SourceChanged = "source_changed",
        /// The stream was taken out of the configuration.
        StreamRemoved = "stream_removed",
        /// Its user may not have the stream any more, by a configuration that was read again.
        Unauthorized = "unauthorized",
        /// It sent what is not RTSP, or too much of it.
        Protocol = "protocol",
        /// A send to it failed, and not because its connection broke.
        SendFailed = "send_failed",
        /// The relay's own code failed at it.
        Panicked = "panicked",
        /// The same ports were set up anew.
        Replaced = "replaced",
        /// The relay stops.
        Stopping = "stopping",
    }
}

counted! {
    /// What somebody passed a limit with, or sent that nobody asked for.
    Limited {
        /// A connection when `limits.clients` were connected already: closed.
        Connections = "connections",
        /// A connection when its address had `limits.clients_per_address` already: closed.
        ConnectionsPerAddress = "connections_per_address",
        /// A connection without a session, closed to make room for another one.
        WithoutSession = "without_session",
        /// A connection without a whole request, or with the same part of one, for `limits.handshake_timeout`: closed.
        Handshake = "handshake_timeout",
        /// A connection without a session and silent for `limits.session_timeout`: closed.
        Idle = "idle",
        /// A session when there were `limits.clients`: 453.
        Sessions = "sessions",
        /// A session when its address had `limits.clients_per_address`: 453.
        SessionsPerAddress = "sessions_per_address",
        /// A session when its connection had enough: 453.
        SessionsPerConnection = "sessions_per_connection",
        /// A request with a header block or a body that is too large: 413, closed.
        RequestSize = "request_size",
        /// A connection that was answered later for once, because of its many requests.
        RequestDelayed = "request_delayed",
        /// A connection with too many requests waiting: closed.
        RequestRate = "request_rate",
        /// A connection that asked on without reading the answers: closed.
        AnswersUnread = "answers_unread",
        /// A connection that went from shard to shard: closed.
        Moves = "moves",
        /// A SETUP with ports that nothing is sent to: 461.
        UdpPorts = "udp_ports",
        /// A request for a stream or a track that there is not: 404.
        UnknownStream = "unknown_stream",
        /// An interleaved frame on a channel that is no track's RTCP: dropped.
        FrameUnasked = "frame_unasked",
        /// An RTCP datagram from an address that has no session: dropped.
        RtcpUnasked = "rtcp_unasked",
        /// An RTCP packet that is too long or cannot be read: dropped.
        RtcpMalformed = "rtcp_malformed",
        /// A publisher's packet when too many of its packets waited: dropped.
        PublisherQueue = "publisher_queue",
    }
}

counted! {
    /// Whose code has panicked.
    Panicked {
        /// A client's: it was closed.
        Client = "client",
        /// A source's: it was started again.
        Source = "source",
    }
}

counted! {
    /// Counts of a whole shard that belong to no stream.
    Counter {
        /// Connections that the shard was handed.
        Connections = "connections",
        /// SETUPs answered 453: for one more session there was no room.
        ClientsRefused = "clients_refused",
        /// Connections closed because no full request came within `limits.handshake_timeout`.
        HandshakeTimeouts = "handshake_timeouts",
        /// RTSP requests answered.
        Requests = "requests",
        /// RTSP requests answered with an error status.
        RequestsFailed = "requests_failed",
        /// RTSP requests with wrong credentials.
        AuthFailed = "auth_failed",
        /// RTSP requests refused unseen because their address had failed too often.
        AuthRefused = "auth_refused",
        /// Bytes that were not RTSP.
        Malformed = "malformed",
        /// RTCP receiver reports taken in.
        ReceiverReports = "receiver_reports",
        /// Connections handed to the shard that owns their session.
        Moved = "moved",
        /// Sends on connections that the system had no memory for, tried again later.
        SendsPutOff = "sends_put_off",
    }
}
