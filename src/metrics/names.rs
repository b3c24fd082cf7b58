//! Everything that is counted, each with the stable name used in logs, reports and metrics.

/// Defines an enum whose variants index an array of counts, each with a stable name.
macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[$member_meta:meta])* $member:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$member_meta])* $member,)+
        }

        impl $name {
            /// All variants, in the order of their numbers.
            pub const ALL: &'static [$name] = &[$($name::$member,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$member => $text,)+
                }
            }

            /// The index in an array of [`Self::COUNT`] counts.
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
    /// How a client receives media.
    Transport {
        /// Interleaved in its RTSP connection (RFC 2326 section 10.12).
        Tcp = "tcp",
        /// As UDP datagrams.
        Udp = "udp",
        /// From a multicast group; the data sent to it is not counted for clients.
        Multicast = "multicast",
        /// As MP4 in WebSocket messages (RFC 6455), to a browser.
        WebSocket = "websocket",
    }
}

counted! {
    /// Why a frame did not reach a client, or did not even enter the log.
    DropReason {
        /// The client's lag exceeded `queue.age`; the frames up to the keyframe that it skipped to.
        Lagging = "lagging",
        /// They arrived before the first keyframe of a source that returned.
        WaitingKeyframe = "waiting_keyframe",
        /// The shard's inbox was full.
        InboxFull = "inbox_full",
        /// The stream's log exceeded `queue.log_bytes`.
        LogBytes = "log_bytes",
        /// The socket did not accept a datagram.
        UdpSend = "udp_send",
        /// A datagram was too large for the path (`EMSGSIZE`).
        UdpMessageSize = "udp_message_size",
        /// The source stopped or lost packets within the frame.
        SourceTorn = "source_torn",
    }
}

counted! {
    /// Why a packet from a source is not in the stream.
    SourceDrop {
        /// A duplicate, or too late to be reordered.
        Late = "late",
        /// Not RTP, or of an unknown track.
        Malformed = "malformed",
        /// It had no payload.
        Empty = "empty",
        /// Its payload type is not the track's.
        PayloadType = "payload_type",
        /// Too large for a datagram, and could not be split, or not whole: it had too many NAL units.
        Oversize = "oversize",
        /// A datagram to the ports for a camera from another sender.
        Stranger = "stranger",
        /// On an interleaved channel that was not set up.
        Unassigned = "unassigned_channel",
        /// Invalid RTCP.
        Rtcp = "rtcp_malformed",
        /// Cut short by another frame.
        Torn = "torn",
        /// Not a packet: bytes between two frames that belong to nothing, counted once for each run of them.
        Rubbish = "rubbish",
    }
}

counted! {
    /// Why a client left.
    LeaveReason {
        /// It said TEARDOWN.
        Teardown = "teardown",
        /// It closed the connection, or the connection failed.
        Disconnected = "disconnected",
        /// No sign of life for `limits.session_timeout`.
        SessionTimeout = "session_timeout",
        /// An operation did not complete within `queue.stall_timeout`.
        Stalled = "stalled",
        /// The source's tracks or codecs changed.
        SourceChanged = "source_changed",
        /// The stream was removed.
        StreamRemoved = "stream_removed",
        /// A reload took away its user's right to the stream.
        Unauthorized = "unauthorized",
        /// A user with the right to administer disconnected it.
        Ended = "ended",
        /// It sent something that is not RTSP, or too much of it.
        Protocol = "protocol",
        /// A send failed for a reason other than a closed connection.
        SendFailed = "send_failed",
        /// A bug in the relay.
        Panicked = "panicked",
        /// The same ports were set up again.
        Replaced = "replaced",
        /// Disconnected before a stop (`drain`).
        Drained = "drained",
        /// The relay stops.
        Stopping = "stopping",
    }
}

counted! {
    /// What exceeded a limit, or was not asked for.
    Limited {
        /// A connection beyond `limits.clients`: closed.
        Connections = "connections",
        /// A connection beyond `limits.clients_per_address`: closed.
        ConnectionsPerAddress = "connections_per_address",
        /// A balancer's connection without a valid PROXY protocol header: closed.
        ProxyHeader = "proxy_header",
        /// A connection without a session, evicted for another one.
        WithoutSession = "without_session",
        /// A connection without a complete request for `limits.handshake_timeout`: closed.
        Handshake = "handshake_timeout",
        /// A connection without a session and silent for `limits.session_timeout`: closed.
        Idle = "idle",
        /// A session beyond `limits.clients`: 453.
        Sessions = "sessions",
        /// A session beyond `limits.clients_per_address`: 453.
        SessionsPerAddress = "sessions_per_address",
        /// Too many sessions on one connection: 453.
        SessionsPerConnection = "sessions_per_connection",
        /// A request whose header block or body is too large: 413, closed.
        RequestSize = "request_size",
        /// A connection that was answered later because of its request rate.
        RequestDelayed = "request_delayed",
        /// A connection with too many waiting requests: closed.
        RequestRate = "request_rate",
        /// A connection that kept sending requests without reading the answers: closed.
        AnswersUnread = "answers_unread",
        /// A connection that was moved between shards too often: closed.
        Moves = "moves",
        /// A SETUP with ports that the relay does not send to: 461.
        UdpPorts = "udp_ports",
        /// A request for an unknown stream or track: 404.
        UnknownStream = "unknown_stream",
        /// An interleaved frame on a channel that is not RTCP of a track: dropped.
        FrameUnasked = "frame_unasked",
        /// An RTCP datagram from an address without a session: dropped.
        RtcpUnasked = "rtcp_unasked",
        /// An RTCP packet that is too long or malformed: dropped.
        RtcpMalformed = "rtcp_malformed",
        /// A publisher's packet when too many of its packets were waiting: dropped.
        PublisherQueue = "publisher_queue",
        /// A packet of a publisher's track of unknown encoding, such as one without `a=rtpmap`: dropped.
        TrackUnreadable = "track_unreadable",
    }
}

counted! {
    /// Whose code has panicked.
    Panicked {
        /// A client's; it was closed.
        Client = "client",
        /// A source's; it was restarted.
        Source = "source",
    }
}

counted! {
    /// Counts of a whole shard, independent of streams.
    Counter {
        /// Connections handed to the shard.
        Connections = "connections",
        /// SETUPs answered 453 because a limit on sessions was reached.
        ClientsRefused = "clients_refused",
        /// Connections closed because no complete request arrived within `limits.handshake_timeout`.
        HandshakeTimeouts = "handshake_timeouts",
        /// RTSP requests answered.
        Requests = "requests",
        /// RTSP requests answered with an error status.
        RequestsFailed = "requests_failed",
        /// RTSP requests with wrong credentials.
        AuthFailed = "auth_failed",
        /// RTSP requests refused without checking the credentials, because of earlier failures.
        AuthRefused = "auth_refused",
        /// RTSP requests refused by `auth_url`.
        AuthUrlRefused = "auth_url_refused",
        /// RTSP requests refused because `auth_url` did not answer in time.
        AuthUrlUnanswered = "auth_url_unanswered",
        /// Bytes that were not RTSP.
        Malformed = "malformed",
        /// RTCP receiver reports received.
        ReceiverReports = "receiver_reports",
        /// Connections handed to the shard that owns their session.
        Moved = "moved",
        /// Streams created by name, or added.
        StreamsMade = "streams_made",
        /// Of these, streams that were removed.
        StreamsGone = "streams_gone",
        /// TCP sends that ended early for lack of memory and are retried.
        SendsPutOff = "sends_put_off",
    }
}
