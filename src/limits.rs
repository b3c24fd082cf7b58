//! All limits of rtsprelay in one place, with the unit last in the name, and the relations between them asserted at compile time.

/// Maximum bytes of media in one send operation to a TCP client (a whole number of chunks).
///
/// While an operation is in progress, nothing of it can be skipped, so a larger one would make it harder to keep a slow client current.
pub const OP_BYTES_MAX: usize = 128 * 1024;

/// The same for a client that has lagged within the last [`LAGGED_S`]: small, because what has been sent cannot be skipped.
pub const OP_BYTES_LAGGING_MAX: usize = 16 * 1024;

/// Maximum age in seconds of the audio that a skip of video keeps: longer than a keyframe interval of some seconds plus a slow
/// operation. A stream's log keeps audio for this long.
pub const SKIP_KEPT_S: u64 = 10;

/// Maximum bytes of audio that a skip of video keeps, for each track: 14 s of PCMU, 8 s of AAC with 128 kbit/s.
pub const SKIP_KEPT_BYTES_MAX: usize = 128 * 1024;

/// The same for a track that is neither video nor audio.
pub const SKIP_KEPT_DATA_BYTES_MAX: usize = 32 * 1024;

/// Such a client's maximum lag is `queue.age` divided by this, because new data waits behind everything that it has not read yet. It is
/// less than most cameras' keyframe interval, so the client continues at a new keyframe.
pub const AGE_LAGGING_DIVISOR: u32 = 2;

/// Seconds without a skip after which a client no longer counts as lagging.
pub const LAGGED_S: u64 = 10;

/// Maximum size of a message from a browser in bytes: a line of JSON.
pub const WEBSOCKET_MESSAGE_BYTES_MAX: usize = 2_048;

/// Messages per second that a browser may send; one that sends more is closed.
pub const WEBSOCKET_MESSAGES_PER_S_MAX: u32 = 32;

/// Seconds between two pings to a browser.
pub const WEBSOCKET_PING_EVERY_S: u64 = 20;

/// Lifetime of a login in a browser in seconds.
pub const LOGIN_S: u64 = 12 * 3_600;

/// Maximum size of a login form in bytes.
pub const LOGIN_BYTES_MAX: usize = 4_096;

/// Seconds within which a connection that was answered 101 must become a WebSocket.
pub const UPGRADE_MAX_S: u64 = 5;

/// Duration in milliseconds that a video frame in MP4 states. The next frame cuts it short. If it were less than half of a real gap,
/// browsers would drop everything up to the next keyframe.
pub const FRAGMENT_STATED_MS: u32 = 300;

/// Maximum gap in audio that is filled with silence, in milliseconds.
pub const SILENCE_MAX_MS: u32 = 2_000;

/// Minimum seconds between two warnings about the same problem.
pub const TOLD_EVERY_S: u64 = 60;

/// Maximum size of a log line's message, and of each value in it, in bytes.
pub const LOG_VALUE_BYTES_MAX: usize = 1_024;

/// Lines about clients that can be logged in a burst. Lines about wrong passwords have a separate budget.
pub const LOG_CLIENT_LINES_MAX: u32 = 2_000;

/// Lines per minute by which this budget refills. Lines beyond the budget are counted and suppressed.
pub const LOG_CLIENT_LINES_PER_MIN: u32 = 240;

/// Bytes of such lines that can be logged in a burst.
pub const LOG_CLIENT_BYTES_MAX: u32 = 512 * 1024;

/// Bytes per minute by which this budget refills: 94 MB a day, whatever clients do.
pub const LOG_CLIENT_BYTES_PER_MIN: u32 = 64 * 1024;

/// Maximum size of a PROXY protocol header in bytes. Addresses take 52; load balancers add certificate names and similar data.
pub const PROXY_HEADER_BYTES_MAX: usize = 2_048;

/// Maximum number of connections at a listener whose PROXY protocol header has not arrived yet. It normally arrives with the
/// connection.
pub const PROXY_HEADERS_AWAITED_MAX: usize = 1_024;

/// Maximum time for disconnecting clients on a stop, and for the delay before it, in milliseconds.
pub const DRAIN_MAX_MS: u64 = 3_600_000;

/// Default time in milliseconds that listeners stay open when the relay is leaving, because load balancers check only periodically.
pub const DRAIN_DELAY_MS: u64 = 5_000;

/// Maximum number of parts into which the streams of a site can be split.
pub const PARTS_MAX: u64 = 10_000;

/// Maximum number of unanswered queries to `auth_url`; further requests are refused.
pub const OUTSIDE_PENDING_MAX: usize = 1_024;

/// Maximum number of these that run at once.
pub const OUTSIDE_AT_ONCE_MAX: usize = 32;

/// Maximum number of cached answers of `auth_url`, and of connections that are granted access by them.
pub const OUTSIDE_KNOWN_MAX: usize = 16_384;

/// Milliseconds after which a request that waits for `auth_url` is checked again.
pub const OUTSIDE_LOOK_MS: u64 = 10;

/// Seconds for which a connection may set up what it was allowed to DESCRIBE, whatever its further URLs are.
pub const OUTSIDE_GRANT_S: u64 = 60;

/// Seconds after which a query without an answer is sent again.
pub const OUTSIDE_UNANSWERED_S: u64 = 1;

/// Maximum bytes of a URL's query that are passed to `auth_url`.
pub const URL_QUERY_BYTES_MAX: usize = 2_048;

/// Milliseconds after which something is retried that failed for lack of memory.
pub const SHORTAGE_PAUSE_MS: u64 = 10;

/// Maximum number of I/O vectors in one `sendmsg` (`UIO_MAXIOV` is 1,024).
pub const OP_IOVECS_MAX: usize = 512;

/// Size in bytes at which an open chunk is closed before its frame ends.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Minimum size in bytes at which [`CHUNK_OPEN_MAX_US`] may close a chunk before its frame ends.
pub const CHUNK_PART_BYTES_MIN: usize = 16 * 1024;

/// Microseconds after its first packet at which a chunk of at least [`CHUNK_PART_BYTES_MIN`] is closed if there is nothing more to
/// read.
pub const CHUNK_OPEN_MAX_US: u64 = 2_000;

/// Maximum size of an RTP packet in bytes (the 16-bit length of RFC 2326 section 10.12).
pub const PACKET_BYTES_MAX: usize = 65_535;

/// Maximum size of an RTP packet of H.264 or H.265 after the timeline, in bytes, so that one packet sequence serves TCP and UDP: what
/// fits into an IPv4 datagram with the usual MTU of 1,500. Encoders send packets of exactly this size.
pub const RTP_PACKET_BYTES_MAX: usize = 1_472;

/// Maximum size of each part of a larger packet, in bytes: what fits into an IPv6 datagram with that MTU.
pub const RTP_PART_BYTES_MAX: usize = 1_452;

/// Maximum number of packets that one received packet of H.264 or H.265 is split into: one that holds thousands of tiny NAL units would
/// keep a shard from its clients for milliseconds. The largest fragment needs 46, a frame with a slice for each row of macroblocks 68.
pub const PACKETS_OF_ONE_MAX: u64 = 512;

/// Maximum size of a parameter set that is stored and inserted before keyframes, in bytes; a larger one must come with them.
pub const PARAMETER_SET_BYTES_MAX: usize = 1_024;

/// Maximum number of stored parameter sets per track.
pub const PARAMETER_SETS_MAX: usize = 16;

/// Parameter sets of one track that are parsed per second: ten times as many as a stream with all of them in each of 60 frames per
/// second has.
pub const PARAMETER_SETS_SEEN_PER_S: u32 = 2_000;

/// Maximum number of changes per second of a track's description because of its parameter sets; each makes every shard check its
/// sessions.
pub const DESCRIBED_PER_S: u32 = 4;

/// Maximum bytes of parameter sets that are inserted before keyframes of one track per second.
pub const PARAMETER_SETS_INSERTED_BYTES_PER_S: usize = 128 * 1024;

/// Maximum size of a publisher's description in bytes.
pub const ANNOUNCE_BYTES_MAX: usize = 16 * 1024;

/// Size of the interleaved header: `$`, channel, length (RFC 2326 section 10.12).
pub const INTERLEAVED_HEADER_BYTES: usize = 4;

/// Maximum number of packets in one UDP generic segmentation offload run (`UDP_MAX_SEGMENTS` of older kernels).
pub const GSO_SEGMENTS_MAX: usize = 64;

/// Maximum bytes in one UDP generic segmentation offload run.
pub const GSO_BYTES_MAX: usize = 65_000;

/// Maximum number of tracks per stream.
pub const TRACKS_MAX: usize = 16;

/// Maximum number of renderings of one track (other channel numbers than its own) per shard.
pub const RENDERINGS_MAX: usize = 8;

/// Maximum size of a request's header block in bytes.
pub const REQUEST_HEADER_BYTES_MAX: usize = 16 * 1024;

/// Maximum number of header lines in a request; parsed, each takes many times its size.
pub const REQUEST_HEADERS_MAX: usize = 128;

/// Maximum size of a request's body in bytes.
pub const REQUEST_BODY_BYTES_MAX: usize = 64 * 1024;

/// Maximum size of a request's body in bytes while its connection has neither a session nor shown a right password. It must fit a
/// publisher's description ([`ANNOUNCE_BYTES_MAX`]).
pub const FIRST_BODY_BYTES_MAX: usize = 16 * 1024;

/// Bytes that all connections without a session or user may hold together, over all shards: partial requests and unread answers. Beyond
/// that, the connection that holds most is closed.
pub const STRANGERS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes of such a connection that are not counted: a normal request and its answer.
pub const STRANGER_FREE_BYTES: usize = 2 * 1024;

/// Maximum bytes of unsent answers for one such connection.
pub const STRANGER_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Characters of a player's name for itself that are kept.
pub const USER_AGENT_CHARS_MAX: usize = 128;

/// Maximum bytes of a client's text that an answer echoes, where it need not echo all of it.
pub const ECHO_BYTES_MAX: usize = 1_024;

/// Maximum bytes of one read from a client's connection; the size of an idle client's buffer.
pub const READ_BYTES_MAX: usize = 1024;

/// Maximum number of messages in a shard's inbox; further chunks are dropped and counted.
pub const INBOX_MESSAGES_MAX: usize = 16 * 1024;

/// Maximum number of one stream's chunks in a shard's inbox, so that a stream of tiny frames does not fill it.
pub const INBOX_CHUNKS_OF_STREAM_MAX: usize = INBOX_MESSAGES_MAX / 4;

/// Seconds without a keyframe after which a video track is treated as one without keyframes.
pub const KEYFRAME_WAIT_MAX_S: u64 = 10;

/// Seconds of silence after which a track's last keyframe is no longer kept for new clients.
pub const KEYFRAME_KEPT_S: u64 = 10;

/// Seconds without media, while a stream's source is away, after which its clients are sent a report on each track, and the interval of
/// these reports. Players wait at least 5 s.
pub const OUTAGE_REPORT_S: u64 = 2;

/// Minimum seconds between two messages from a shard that a stream whose source is down was requested.
pub const ASKED_EVERY_S: u64 = 1;

/// UDP ports, from a stream's multicast port on, that no other stream may use: two for each of its tracks, if it has at most four.
pub const MULTICAST_PORTS: u16 = 8;

/// Maximum bytes of unsent answers for one client; a client that keeps sending requests without reading is closed.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Sustained rate of requests per second of one connection; requests beyond it are answered later.
pub const REQUESTS_PER_S_MAX: u32 = 50;

/// Seconds for which an address is remembered after one of its connections was closed for sending too many requests: new connections
/// from it have no burst.
pub const FLOOD_REMEMBERED_S: u64 = 60;

/// Maximum number of addresses that a shard remembers for that.
pub const FLOODERS_MAX: usize = 1024;

/// Requests that a connection may send in a burst.
pub const REQUESTS_AT_ONCE_MAX: u32 = 200;

/// Interleaved frames from a player that count as one request.
pub const FRAMES_PER_REQUEST: u32 = 20;

/// Maximum number of sessions per connection (each over UDP); beyond that SETUP is answered 453.
pub const SESSIONS_PER_CONNECTION_MAX: usize = 16;

/// Upper bound for the number of connections without a session, over all shards ([`strangers_max`]).
pub const STRANGERS_MAX: usize = 4_096;

/// Number of connections without a session that is allowed even if half of `limits.clients` is less, as far as there is room.
pub const STRANGERS_MIN: usize = 128;

/// Maximum number of connections without a session, over all shards: half of `limits.clients`, but in a small relay slightly more than
/// `limits.clients`, because all players may connect at once and wait for a source together. Beyond that, the oldest of the address
/// that has most is closed, so that no client can keep others from connecting.
pub const fn strangers_max(clients: usize) -> usize {
    let half = clients / 2;
    let all = clients.saturating_add(answered_beyond(clients) / 4);
    let least = if all < STRANGERS_MIN { all } else { STRANGERS_MIN };
    if half > STRANGERS_MAX {
        STRANGERS_MAX
    } else if half < least {
        least
    } else {
        half
    }
}

/// The same per shard, with this many sessions: it leaves some of the places for all connections to newcomers and TLS handshakes.
pub const fn strangers_beside(clients: usize, sessions: usize, shards: usize) -> usize {
    let free = clients.saturating_add(answered_beyond(clients) / 2).saturating_sub(sessions);
    let max = strangers_max(clients);
    // Every shard must accept some.
    (if free < max { free } else { max }).div_ceil(shards)
}

/// Maximum number of connections, over all shards: those that get an answer, plus one for each further shard, because each shard counts
/// connections without a session separately ([`strangers_beside`]).
pub const fn connections_max(clients: usize, shards: usize) -> usize {
    clients.saturating_add(answered_beyond(clients) + shards - 1)
}

/// Number of connections from which on each new one evicts an unfinished TLS handshake, so that there is a place for the next.
pub const fn connections_many(clients: usize, shards: usize) -> usize {
    connections_max(clients, shards) - answered_beyond(clients) / 4
}

/// Connections beyond `limits.clients` that still get an answer: in proportion to it, because they need descriptors too.
pub const fn answered_beyond(clients: usize) -> usize {
    let beyond = clients / 4 + 8;
    if beyond < REFUSED_WITH_ANSWER_MAX { beyond } else { REFUSED_WITH_ANSWER_MAX }
}

/// Sessions of publishers that are allowed beyond `limits.clients`: a restarted encoder connects before its old session has ended, and
/// all players of its stream wait for it.
pub const fn publishers_beyond(clients: usize) -> usize {
    answered_beyond(clients) / 4
}

/// Minimum default for clients per address.
pub const CLIENTS_PER_ADDRESS_MIN: usize = 16;

/// The default of `limits.clients_per_address`: a quarter of all, so that one address leaves room for others.
pub const fn clients_per_address_share(clients: usize) -> usize {
    let quarter = clients / 4;
    if quarter > CLIENTS_PER_ADDRESS_MIN { quarter } else { CLIENTS_PER_ADDRESS_MIN }
}

/// The same beyond `limits.clients_per_address`, per address.
pub const PUBLISHERS_BEYOND_PER_ADDRESS: usize = 1;

/// Prefix length of IPv6 addresses for limits per address: a host usually has a whole /64 network.
pub const ADDRESS_BITS_V6: u32 = 64;

/// Connections beyond `limits.clients` that still get an answer (453) instead of being closed at once.
pub const REFUSED_WITH_ANSWER_MAX: usize = 64;

/// The same beyond `limits.clients_per_address`, per address.
pub const REFUSED_WITH_ANSWER_PER_ADDRESS_MAX: usize = 4;

/// Connections that are accepted before other tasks on the control thread run.
pub const ACCEPTED_AT_ONCE_MAX: usize = 16;

/// Maximum number of times that a connection is moved to another shard because of the sessions that it names.
pub const MOVES_MAX: u8 = 16;

/// Seconds for which a shard keeps receiving another shard's stream after its own last client of it left.
pub const SUBSCRIPTION_LINGER_S: u64 = 2;

/// Microseconds that a shard spends on input from connections before it continues with the media.
pub const READS_PASS_MAX_US: u64 = 1_000;

/// The lowest client port that datagrams are sent to: lower ports belong to services of other hosts and of routers.
pub const CLIENT_PORT_MIN: u16 = 1_024;

/// Maximum size of a player's compound RTCP packet in bytes (one datagram on a usual path).
pub const RTCP_BYTES_MAX: usize = 1_500;

/// Maximum bytes of a publisher's packets that wait for its stream's source; further packets are dropped and counted.
pub const PUBLISHED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of a publisher's waiting packets from which on its connection is not read until there are fewer.
pub const PUBLISHED_BYTES_READ_MAX: usize = 1024 * 1024;

/// Streams at most.
pub const STREAMS_MAX: usize = 4_096;

/// Maximum length of an interface name (`IFNAMSIZ` without the terminating zero).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Maximum number of packets of a track that wait for a missing one.
pub const REORDER_PACKETS_MAX: usize = 64;

/// Maximum size of the head of a camera's response or request in bytes.
pub const CAMERA_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Maximum size of the body of a camera's response or request in bytes.
pub const CAMERA_BODY_BYTES_MAX: usize = 256 * 1024;

/// Bytes that may be read from a camera without a packet among them.
pub const CAMERA_SILENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Responses, requests and useless packets per second that a camera may send; more would delay others.
pub const CAMERA_PIECES_PER_S_MAX: u32 = 20_000;

/// Unsent bytes to a camera beyond which its requests are not answered and optional requests are not sent.
pub const CAMERA_OUT_BYTES_MAX: usize = 64 * 1024;

/// Maximum bytes of one read from a camera.
pub const CAMERA_READ_BYTES_MAX: usize = 128 * 1024;

/// Bytes that are read from one camera before others are read.
pub const CAMERA_PASS_BYTES_MAX: usize = 512 * 1024;

/// Microseconds for which one camera is read before others are read.
pub const CAMERA_PASS_MAX_US: u64 = 500;

/// Bytes that are read from all cameras of a shard between two of its passes.
pub const CAMERAS_TURN_BYTES_MAX: usize = 1024 * 1024;

/// Microseconds for which all cameras of a shard are read between two of its passes.
pub const CAMERAS_TURN_MAX_US: u64 = 1_000;

/// Minimum microseconds between two reads of a camera whose frame is still arriving.
pub const CAMERA_READ_EVERY_US: u64 = 1_000;

/// Frames in a row that are not whole when they are read at once, after which the first piece of the next waits for others.
pub const CAMERA_IN_PIECES_AFTER: u8 = 2;

/// Frames whose first piece waits, after which one is read at once, to see whether they still come in pieces.
pub const CAMERA_LOOK_EVERY: u8 = 16;

/// Microseconds within which the ends of cameras' pauses are taken together.
pub const CAMERA_PAUSES_TOGETHER_US: u64 = 250;

/// Maximum number of redirects that are followed to a camera.
pub const CAMERA_REDIRECTS_MAX: usize = 5;

/// Maximum bytes of one read from a publisher's connection.
pub const PUBLISHER_READ_BYTES_MAX: usize = 64 * 1024;

/// If a read from a publisher's connection brought more packets than this, the next is smaller: what one read brought is processed before the
/// media of others.
pub const PUBLISHER_READ_PACKETS_MAX: usize = 256;

/// Receive buffer of a UDP socket in bytes: publishers' keyframes arrive in bursts.
pub const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of sources of one stream.
pub const SOURCES_MAX: usize = 8;

/// Maximum length of a stream's name in bytes, including slashes.
pub const STREAM_NAME_BYTES_MAX: usize = 200;

/// Patterns at most.
pub const PATTERNS_MAX: usize = 256;

/// Names that are looked up at origins at a time for one address. Further requests wait for [`LOOKUP_WAIT_MS`] and are then answered
/// 503.
pub const LOOKUPS_PER_ADDRESS_MAX: usize = 4;

/// The same per pattern.
pub const LOOKUPS_OF_PATTERN_MAX: usize = 64;

/// Milliseconds that a lookup waits for its turn.
pub const LOOKUP_WAIT_MS: u64 = 2_000;

/// Maximum number of waiting lookups; one address may have an eighth of them.
pub const LOOKUPS_WAITING_MAX: usize = 1_024;

/// Milliseconds for which a name that no origin has is answered from the cache.
pub const NOT_FOUND_KEPT_MS: u64 = 1_000;

/// Maximum number of such names in the cache.
pub const NOT_FOUND_KEPT_MAX: usize = 4_096;

/// Seconds for which a stream waits that was announced and has not been sent yet.
pub const ANNOUNCED_WAIT_S: u64 = 10;

/// Default of `streams_max`.
pub const STREAMS_UNDER_PATTERN: usize = 1_000;

/// Bounds of `limits.clients`.
pub const CLIENTS_MAX: u64 = 1_000_000;

/// Minimum of `queue.age` in milliseconds: below it every normal keyframe would count as lag.
pub const QUEUE_AGE_MIN_MS: u64 = 20;

/// Maximum of `queue.age` in milliseconds.
pub const QUEUE_AGE_MAX_MS: u64 = 60_000;

/// Minimum of `queue.log_bytes`: room for a large keyframe.
pub const LOG_BYTES_MIN: u64 = 1024 * 1024;

/// Maximum of `queue.log_bytes`.
pub const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// Maximum of `queue.log_bytes_total`.
pub const LOG_BYTES_TOTAL_MAX: u64 = 1024 * 1024 * 1024 * 1024;

/// Minimum of `report.every` in milliseconds, when it is not 0.
pub const REPORT_EVERY_MIN_MS: u64 = 100;

/// Streams whose URLs are logged at startup.
pub const URLS_LOGGED_MAX: usize = 20;

/// Maximum milliseconds between two collections of the shards' counts, however rarely they are reported, because interval counters have
/// 32 bits.
pub const COLLECT_EVERY_MAX_MS: u64 = 60_000;

/// Shards at most.
pub const WORKERS_MAX: usize = 256;

/// Maximum milliseconds from the stop signal to the exit.
pub const STOP_MAX_MS: u64 = 1_800;

/// Unsent bytes in a TCP socket above which it accepts no more (`TCP_NOTSENT_LOWAT`, tcp(7)).
pub const NOTSENT_LOWAT_BYTES: u32 = 64 * 1024;

/// The same for a client that has lagged within the last [`LAGGED_S`].
pub const NOTSENT_LOWAT_LAGGING_BYTES: u32 = 4 * 1024;

/// Seconds beyond `queue.stall_timeout` for which sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`, tcp(7)): the relay closes a
/// client that does not read, the kernel one that is unreachable.
pub const USER_TIMEOUT_AFTER_STALL_S: u64 = 10;

/// Differentiated services code points (RFC 2474) have six bits.
pub const DSCP_MAX: u8 = 63;

/// Seconds of silence on a TCP connection before it is probed (`TCP_KEEPIDLE`).
pub const KEEPALIVE_IDLE_S: u64 = 60;

/// Seconds between two such probes (`TCP_KEEPINTVL`).
pub const KEEPALIVE_INTERVAL_S: u64 = 10;

/// Unanswered probes after which the connection is dead (`TCP_KEEPCNT`).
pub const KEEPALIVE_PROBES: u32 = 6;

/// Send buffer of a UDP socket in bytes.
pub const DATAGRAM_SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Send buffer in bytes of a UDP socket for a single client; what does not fit would be late anyway.
pub const DATAGRAM_OWN_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Unsent bytes in the shared UDP socket (as counted by the kernel) above which some client's path is considered backed up.
pub const DATAGRAM_BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// The same as a fraction of a small socket buffer: a quarter.
pub const DATAGRAM_BACKLOG_PART: usize = 4;

/// Maximum number of clients that are moved to a UDP socket of their own in one check, to find the one whose path is backed up.
pub const DATAGRAM_MOVES_MAX: usize = 32;

/// Seconds without a backlog after which a client returns to the shared UDP socket.
pub const DATAGRAM_OWN_S: u64 = 30;

/// Seconds that a UDP session continues after its player's RTSP connection ended without TEARDOWN, unless the player sends something:
/// twice the interval of receiver reports (RFC 3550 section 6.2).
pub const UDP_ORPHANED_S: u64 = 10;

/// Seconds without a request after which a player with an open connection is considered to keep it open while it plays.
pub const CONNECTION_KEPT_S: u64 = 5;

/// Milliseconds for which a client's data is read and discarded after the relay has shut down sending.
pub const LINGER_MS: u64 = 300;

/// Maximum bytes that are read and discarded for that; a client that sends more may lose the last data sent to it.
pub const LINGER_READ_BYTES_MAX: usize = 256 * 1024;

/// Length of the queue of connections to be accepted.
pub const LISTEN_BACKLOG_MAX: i32 = 1024;

/// Maximum number of descriptors that a service manager may pass.
pub const INHERITED_DESCRIPTORS_MAX: u32 = 64;

/// Maximum number of listening sockets that the relay has the service manager keep; `FileDescriptorStoreMax=` in the packaged unit.
pub const STORED_SOCKETS_MAX: usize = 32;

/// Minimum size in bytes of a send that lends its pages to the kernel with `zero_copy = "auto"`; below it, copying is cheaper.
pub const ZERO_COPY_BYTES_MIN: usize = 16 * 1024;

/// Zero-copy sends of one client whose pages the kernel may hold at a time; further sends copy.
pub const ZERO_COPY_HELD_MAX: u8 = 8;

/// After an upgrade's freeze, milliseconds until connections and sessions may time out again: what their clients sent meanwhile is read first.
pub const THAWED_MS: u64 = 1_000;

/// Upper bound for the number of unfinished TLS handshakes ([`tls_half_open_max`]).
pub const TLS_HALF_OPEN_MAX: usize = 1_024;

/// Maximum number of unfinished TLS handshakes: slightly more than `limits.clients`, because all players may connect at once, up to
/// [`TLS_HALF_OPEN_MAX`]. Beyond that, and beyond [`connections_many`], the oldest of the address that has most is evicted.
pub const fn tls_half_open_max(clients: usize) -> usize {
    let wanted = clients.saturating_add(answered_beyond(clients) / 2);
    if wanted < TLS_HALF_OPEN_MAX { wanted } else { TLS_HALF_OPEN_MAX }
}

/// Number of TLS handshakes that other connections cannot evict.
pub const fn tls_half_open_kept(clients: usize) -> usize {
    answered_beyond(clients) / 4
}

/// By how much the nice value of the thread that does TLS handshakes exceeds that of the others: where they compete for a processor, it gets a
/// third of what a shard gets (sched(7), "The nice value").
pub const TLS_HANDSHAKES_NICE: i32 = 5;

/// Length of a time slice of the thread that does TLS handshakes, in microseconds.
pub const TLS_SLICE_US: u64 = 20_000;

/// Maximum microseconds of such a slice for computing handshakes; in the rest the thread accepts and evicts connections.
pub const TLS_SLICE_COMPUTED_US: u64 = 15_000;

/// Maximum number of connections that wait for their TLS handshake or are in it.
pub const TLS_QUEUED_MAX: usize = 2 * TLS_HALF_OPEN_MAX;

/// Bytes that are read from the shard for a TLS client and encrypted before all previous ones are in its socket.
pub const TLS_CARRY_BYTES_MAX: usize = 32 * 1024;

/// Send buffer of the socket that represents a TLS client in its shard, in bytes; the kernel doubles it and counts overhead. Data in it
/// can no longer be skipped.
pub const TLS_SHARD_SEND_BUFFER_BYTES: usize = 32 * 1024;

/// Maximum size of a file with certificates or a key in bytes: large enough for all CAs that a system trusts.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Milliseconds for which a TLS client that the shard has ended may still receive data that was sent to it.
pub const TLS_FAREWELL_MAX_MS: u64 = 1_000;

/// Maximum number of processes of relays before this one that carry TLS connections, each with at least one; with one more, the oldest is
/// told to end. Each takes less than 20 MB with up to 500 connections.
pub const CARRIERS_MAX: usize = 4;

/// Milliseconds in which the clients of that carrier are disconnected, each at the end of a frame; then the others are.
pub const CARRIER_FAREWELL_MS: u64 = 2_000;

/// Milliseconds that a carrier takes at most to end when it is told to, or when the relay has ended.
pub const CARRIER_END_MAX_MS: u64 = TLS_FAREWELL_MAX_MS + 200;

/// Milliseconds that an egress waits for its operations when it ends; then their memory is leaked rather than freed.
pub const EGRESS_DRAIN_MAX_MS: u64 = 500;

/// Lifetime of a nonce in seconds; a client with an older one and the right password is given a new one.
pub const NONCE_LIFETIME_S: u64 = 300;

/// Milliseconds by which the answer to wrong credentials is delayed, for that connection only.
pub const AUTH_DELAY_MS: u64 = 1_000;

/// Wrong credentials for one user after which that user is refused at an address, each within [`AUTH_REFUSED_S`] of the previous one.
pub const AUTH_FAILURES_MAX: u8 = 10;

/// The same for all users at an address together, after which all are refused.
pub const AUTH_FAILURES_OF_ADDRESS_MAX: u8 = 50;

/// Seconds after a right password during which a user that would be refused at that address is delayed instead.
pub const AUTH_SEEN_S: u64 = 24 * 3_600;

/// Minimum milliseconds between two such checks of credentials, per user and address: four guesses a second over all connections.
pub const AUTH_TURN_MS: u64 = 250;

/// Maximum milliseconds that such a user waits; if the queue is longer, the request is refused.
pub const AUTH_TURN_WAIT_MAX_MS: u64 = 10_000;

/// Seconds for which a user or address is refused after the last failure.
pub const AUTH_REFUSED_S: u64 = 60;

/// Users at most.
pub const USERS_MAX: usize = 1_024;

/// Maximum length of a user's name in bytes.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// Maximum length of a password in bytes, whether in a file or not.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// Maximum number of chunks that a shard hands out at a time for a copy of its logs, and their maximum size in bytes before the last one.
pub const COPIED_CHUNKS_PASS_MAX: usize = 64;
/// See [`COPIED_CHUNKS_PASS_MAX`].
pub const COPIED_BYTES_PASS_MAX: usize = 1 << 20;

/// Maximum number of chunks that a shard replaces by copies at a time: 0.6 ms for small ones, even without optimization.
pub const RENEWED_CHUNKS_CHECK_MAX: usize = 1_024;

const _: () = {
    assert!(EGRESS_DRAIN_MAX_MS < STOP_MAX_MS);
    assert!(TLS_FAREWELL_MAX_MS < STOP_MAX_MS);
    assert!(CARRIER_END_MAX_MS < STOP_MAX_MS);
    assert!(LINGER_MS < STOP_MAX_MS / 2);
    // All of them are passed back, besides those of socket units: one that is not seen would listen without anybody accepting.
    assert!(STORED_SOCKETS_MAX <= INHERITED_DESCRIPTORS_MAX as usize / 2);
    assert!(TLS_SLICE_COMPUTED_US < TLS_SLICE_US);
    assert!(CHUNK_PART_BYTES_MIN < CHUNK_BYTES_MAX);
    // A chunk's packets are counted in 16 bits; the shortest has an RTP header of 12 bytes.
    assert!(CHUNK_BYTES_MAX / (INTERLEAVED_HEADER_BYTES + 12) <= u16::MAX as usize);
    // A chunk always fits in an operation, even if a packet of the maximum size made it exceed its limit.
    assert!(CHUNK_BYTES_MAX + PACKET_BYTES_MAX + INTERLEAVED_HEADER_BYTES <= OP_BYTES_MAX + INTERLEAVED_HEADER_BYTES);
    // A run always fits, including the kernel's overhead.
    assert!(DATAGRAM_OWN_SEND_BUFFER_BYTES > 2 * GSO_BYTES_MAX);
    assert!(DATAGRAM_BACKLOG_BYTES_MAX < DATAGRAM_SEND_BUFFER_BYTES);
    assert!(OP_BYTES_LAGGING_MAX <= OP_BYTES_MAX);
    assert!(OP_IOVECS_MAX <= 1024);
    assert!(RTP_PACKET_BYTES_MAX < GSO_BYTES_MAX);
    assert!(RTP_PART_BYTES_MAX <= RTP_PACKET_BYTES_MAX);
    // Enough for all of them before several keyframes per second.
    assert!(PARAMETER_SETS_INSERTED_BYTES_PER_S >= 8 * PARAMETER_SETS_MAX * PARAMETER_SET_BYTES_MAX);
    assert!(ANNOUNCE_BYTES_MAX <= FIRST_BODY_BYTES_MAX && FIRST_BODY_BYTES_MAX <= REQUEST_BODY_BYTES_MAX);
    // A parameter set is one packet.
    assert!(PARAMETER_SET_BYTES_MAX + 12 <= RTP_PART_BYTES_MAX);
    assert!(GSO_BYTES_MAX < 65_536);
    assert!(LOG_BYTES_MIN as usize >= 2 * OP_BYTES_MAX);
    // Audio is a small part of any log.
    assert!(LOG_BYTES_MIN as usize >= 4 * SKIP_KEPT_BYTES_MAX);
    assert!(QUEUE_AGE_MIN_MS * 1_000 > CHUNK_OPEN_MAX_US);
    assert!(STREAMS_MAX <= 1 << 16);
    assert!(STRANGERS_MIN <= STRANGERS_MAX);
    // For any number of connections without a session, with TLS or not, and any number of sessions: those beyond `connections_many` are
    // handshakes that can be evicted, and some places are left.
    let mut clients = 1;
    while clients <= 4 * TLS_HALF_OPEN_MAX {
        let mut shards = 1;
        while shards <= WORKERS_MAX {
            let (many, all) = (connections_many(clients, shards), connections_max(clients, shards));
            let with_none = strangers_beside(clients, 0, shards) * shards;
            let sessions = clients + publishers_beyond(clients);
            let with_all = sessions + strangers_beside(clients, sessions, shards) * shards;
            assert!(with_none + tls_half_open_kept(clients) <= many && with_all + tls_half_open_kept(clients) <= many);
            assert!(strangers_beside(clients, sessions, shards) > 0);
            assert!(tls_half_open_max(clients) < many && many < all);
            shards *= 4;
        }
        clients += 1;
    }
    assert!(REQUESTS_AT_ONCE_MAX >= REQUESTS_PER_S_MAX);
    // In each shard, a first request of the maximum size fits besides another one and its answers.
    assert!(STRANGERS_BYTES_MAX / WORKERS_MAX >= 2 * (REQUEST_HEADER_BYTES_MAX + FIRST_BODY_BYTES_MAX));
    assert!(STRANGER_ANSWER_BYTES_MAX <= ANSWER_BYTES_MAX && STRANGER_ANSWER_BYTES_MAX >= 2 * REQUEST_HEADER_BYTES_MAX);
    // The data of one read from a publisher always fits.
    assert!(PUBLISHED_BYTES_MAX > 2 * PUBLISHER_READ_BYTES_MAX);
    assert!(PUBLISHED_BYTES_READ_MAX <= PUBLISHED_BYTES_MAX / 2);
    // A valid response never counts as too much.
    assert!((CAMERA_HEAD_BYTES_MAX + CAMERA_BODY_BYTES_MAX) as u64 * 2 <= CAMERA_SILENT_BYTES_MAX);
    // Channel numbers have one byte, and each track uses two.
    assert!(TRACKS_MAX * 2 <= 256);
};
