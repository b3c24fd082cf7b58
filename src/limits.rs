//! Every limit of rtsprelay in one place, unit last, with the relations between them asserted at compile time.

/// Bytes of media that one send operation to a TCP client carries at most (cut at chunk ends).
///
/// A larger operation would keep a slow client out of reach: while it is under way nothing can be skipped or judged.
pub const OP_BYTES_MAX: usize = 128 * 1024;

/// The same for a client that has lagged within the last [`LAGGED_S`]: what is on its way to it cannot be skipped, so little is.
pub const OP_BYTES_LAGGING_MAX: usize = 16 * 1024;

/// Seconds for which a skip of video keeps the sound at most, the newest: more than a start on a keyframe of some seconds ago
/// and an operation that takes some more together. A stream's log holds the sound for as long.
pub const SKIP_KEPT_S: u64 = 10;

/// Bytes of sound that a skip of video keeps at most, of each track: 14 s of PCMU, 8 s of AAC with 128 kbit/s.
pub const SKIP_KEPT_BYTES_MAX: usize = 128 * 1024;

/// The same of a track that is neither video nor sound.
pub const SKIP_KEPT_DATA_BYTES_MAX: usize = 32 * 1024;

/// Such a client's lag may be `queue.age` divided by this: what it is sent stands behind all that it has not read yet. As this is
/// less than most cameras' keyframe interval, it then goes on with a keyframe that is new.
pub const AGE_LAGGING_DIVISOR: u32 = 2;

/// Seconds without a skip after which a client counts as one that keeps up again.
pub const LAGGED_S: u64 = 10;

/// Seconds between two warnings about the same trouble, at least.
pub const TOLD_EVERY_S: u64 = 60;

/// Milliseconds until what the system was too short of memory for is tried again.
pub const SHORTAGE_PAUSE_MS: u64 = 10;

/// I/O vectors that one `sendmsg` carries at most (`UIO_MAXIOV` is 1,024).
pub const OP_IOVECS_MAX: usize = 512;

/// Bytes at which an open chunk is closed although its frame goes on.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Bytes that must be open before [`CHUNK_OPEN_MAX_US`] may close a chunk before its frame ends.
pub const CHUNK_PART_BYTES_MIN: usize = 16 * 1024;

/// Microseconds after its first packet at which a chunk of at least [`CHUNK_PART_BYTES_MIN`] is closed if nothing more is
/// there to read.
pub const CHUNK_OPEN_MAX_US: u64 = 2_000;

/// Bytes of one RTP packet at most (the 16-bit length of RFC 2326 section 10.12).
pub const PACKET_BYTES_MAX: usize = 65_535;

/// Bytes of an RTP packet of H.264 or H.265 at most after the timeline, so that one packet sequence serves TCP and UDP.
pub const RTP_PACKET_BYTES_MAX: usize = 1_452;

/// Bytes of a parameter set at most that is kept to be put before keyframes; a longer one has to come with them.
pub const PARAMETER_SET_BYTES_MAX: usize = 1_024;

/// Parameter sets of one track that are kept at most.
pub const PARAMETER_SETS_MAX: usize = 16;

/// Bytes of the interleaved header: `$`, channel, length (RFC 2326 section 10.12).
pub const INTERLEAVED_HEADER_BYTES: usize = 4;

/// Packets in one UDP generic segmentation offload run at most (`UDP_MAX_SEGMENTS` of older kernels).
pub const GSO_SEGMENTS_MAX: usize = 64;

/// Bytes in one UDP generic segmentation offload run at most.
pub const GSO_BYTES_MAX: usize = 65_000;

/// Tracks of one stream at most.
pub const TRACKS_MAX: usize = 16;

/// Renderings of one track (other channel numbers than its own) that a shard keeps at most.
pub const RENDERINGS_MAX: usize = 8;

/// Bytes of a request's header block at most.
pub const REQUEST_HEADER_BYTES_MAX: usize = 16 * 1024;

/// Header lines of a request at most; read, each takes many times its bytes.
pub const REQUEST_HEADERS_MAX: usize = 128;

/// Bytes of a request's body at most.
pub const REQUEST_BODY_BYTES_MAX: usize = 64 * 1024;

/// Bytes that one read from a client's connection takes at most; the size of an idle client's buffer.
pub const READ_BYTES_MAX: usize = 1024;

/// Messages waiting in a shard's inbox at most; a chunk beyond them is dropped and counted.
pub const INBOX_MESSAGES_MAX: usize = 16 * 1024;

/// Seconds without a keyframe after which a video track is treated as one that has none.
pub const KEYFRAME_WAIT_MAX_S: u64 = 10;

/// Seconds of silence of a track after which its last keyframe is no longer kept for clients that begin.
pub const KEYFRAME_KEPT_S: u64 = 10;

/// UDP ports from a stream's multicast port on that no other stream may use: two for each of its tracks, if it has no more
/// than four.
pub const MULTICAST_PORTS: u16 = 8;

/// Bytes of answers waiting for one client at most; a client that asks on without reading is closed.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Requests a second that one connection may go on sending; those beyond are answered later.
pub const REQUESTS_PER_S_MAX: u32 = 50;

/// How long an address is remembered from which a connection was closed for asking too much: a new one from there may send
/// nothing at once.
pub const FLOOD_REMEMBERED_S: u64 = 60;

/// Addresses that a shard remembers so at most.
pub const FLOODERS_MAX: usize = 1024;

/// Requests that one connection may send at once.
pub const REQUESTS_AT_ONCE_MAX: u32 = 200;

/// Interleaved frames of a player that weigh as much as a request.
pub const FRAMES_PER_REQUEST: u32 = 20;

/// Sessions of one connection at most (each of them over UDP); beyond them SETUP is answered 453.
pub const SESSIONS_PER_CONNECTION_MAX: usize = 16;

/// Connections without a session at most, over all shards, if `limits.clients` does not ask for fewer ([`strangers_max`]).
pub const STRANGERS_MAX: usize = 4_096;

/// Connections without a session for which there is room even where half of `limits.clients` is less, as far as others keep theirs.
pub const STRANGERS_MIN: usize = 128;

/// Connections without a session at most, over all shards: half of `limits.clients`, but in a small relay as many as there may be
/// players, who may all come at once and wait for a source together, and a few more. Beyond them the oldest of the address that has
/// most of them is closed, so that nobody keeps others from connecting.
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

/// The same of each shard while there are so many sessions: some of the places that all connections may take are left for those who
/// come next, and for TLS handshakes.
pub const fn strangers_beside(clients: usize, sessions: usize, shards: usize) -> usize {
    let free = clients.saturating_add(answered_beyond(clients) / 2).saturating_sub(sessions);
    let max = strangers_max(clients);
    // Every shard takes somebody in.
    (if free < max { free } else { max }).div_ceil(shards)
}

/// Connections at most, over all shards: those that get an answer, and one for each further shard, for each counts those without a
/// session for itself ([`strangers_beside`]).
pub const fn connections_max(clients: usize, shards: usize) -> usize {
    clients.saturating_add(answered_beyond(clients) + shards - 1)
}

/// Connections beyond which a TLS handshake that is not done is given up for each that comes, so that there is a place for the next.
pub const fn connections_many(clients: usize, shards: usize) -> usize {
    connections_max(clients, shards) - answered_beyond(clients) / 4
}

/// Connections beyond `limits.clients` that still get an answer: in proportion to it, for they take descriptors as well.
pub const fn answered_beyond(clients: usize) -> usize {
    let beyond = clients / 4 + 8;
    if beyond < REFUSED_WITH_ANSWER_MAX { beyond } else { REFUSED_WITH_ANSWER_MAX }
}

/// Sessions of publishers for which there is room beyond `limits.clients`: an encoder that has started again comes before its last
/// session has ended, and all players of its stream wait for it.
pub const fn publishers_beyond(clients: usize) -> usize {
    answered_beyond(clients) / 4
}

/// The same beyond `limits.clients_per_address`, for each address.
pub const PUBLISHERS_BEYOND_PER_ADDRESS: usize = 1;

/// Bits of an IPv6 address that the limits of an address look at: whoever has one of a network has them all.
pub const ADDRESS_BITS_V6: u32 = 64;

/// Connections beyond `limits.clients` that still get an answer (453) instead of a closed door.
pub const REFUSED_WITH_ANSWER_MAX: usize = 64;

/// The same beyond `limits.clients_per_address`, for each address.
pub const REFUSED_WITH_ANSWER_PER_ADDRESS_MAX: usize = 4;

/// Connections that are accepted before others on the control thread get their turn.
pub const ACCEPTED_AT_ONCE_MAX: usize = 16;

/// Shards that a connection is handed to at most, one after another, because of the sessions that it names.
pub const MOVES_MAX: u8 = 16;

/// Microseconds for which a shard takes in what connections have sent before it goes on with the media.
pub const READS_PASS_MAX_US: u64 = 1_000;

/// The lowest port of a client that datagrams are sent to: below are the services of other hosts and of routers.
pub const CLIENT_PORT_MIN: u16 = 1_024;

/// Bytes of a compound RTCP packet of a player at most (one datagram of a usual path).
pub const RTCP_BYTES_MAX: usize = 1_500;

/// Bytes of a publisher's packets on their way to the control thread at most; those beyond are dropped and counted.
pub const PUBLISHED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Streams at most.
pub const STREAMS_MAX: usize = 4_096;

/// Bytes of an interface's name at most (`IFNAMSIZ` without its end).
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Packets of a track that wait for one before them at most.
pub const REORDER_PACKETS_MAX: usize = 64;

/// Bytes of a camera's answer at most, where it is looked at before the RTSP library gets it.
pub const CAMERA_ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Bytes that may be read from a camera without a packet in them, or in one step before its media: the RTSP library takes an
/// answer of any length.
pub const CAMERA_SILENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Sessions of a source with TEARDOWNs that its cameras have not answered, at most: the RTSP library goes on trying for as long as
/// the camera has said that a session lives. Beyond them sessions end without one.
pub const TEARDOWNS_OWED_MAX: usize = 4;

/// Bytes that one read from a publisher's connection takes at most.
pub const PUBLISHER_READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes of receive buffer that a UDP socket is given: publishers' keyframes come in bursts.
pub const DATAGRAM_RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Sources of one stream at most, to fail over to.
pub const SOURCES_MAX: usize = 8;

/// Bytes of a stream's name at most.
pub const STREAM_NAME_BYTES_MAX: usize = 64;

/// Bounds of `limits.clients`.
pub const CLIENTS_MAX: u64 = 1_000_000;

/// Milliseconds of `queue.age` at least: below it every keyframe of a usual size would count as lag.
pub const QUEUE_AGE_MIN_MS: u64 = 20;

/// Milliseconds of `queue.age` at most.
pub const QUEUE_AGE_MAX_MS: u64 = 60_000;

/// Bytes of `queue.log_bytes` at least: room for a large keyframe.
pub const LOG_BYTES_MIN: u64 = 1024 * 1024;

/// Bytes of `queue.log_bytes` at most.
pub const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// Milliseconds of `report.every` at least, when it is not 0.
pub const REPORT_EVERY_MIN_MS: u64 = 100;

/// Milliseconds between two looks at the shards' counts at most, however rarely they are reported; interval counters have
/// 32 bits.
pub const COLLECT_EVERY_MAX_MS: u64 = 60_000;

/// Shards at most.
pub const WORKERS_MAX: usize = 256;

/// Milliseconds that a stop may take, from the signal to the exit.
pub const STOP_MAX_MS: u64 = 1_800;

/// Bytes in a TCP socket not yet sent, from which on it takes no more (`TCP_NOTSENT_LOWAT`, tcp(7)).
pub const NOTSENT_LOWAT_BYTES: u32 = 64 * 1024;

/// The same for a client that has lagged within the last [`LAGGED_S`].
pub const NOTSENT_LOWAT_LAGGING_BYTES: u32 = 4 * 1024;

/// Seconds beyond `queue.stall_timeout` for which sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`, tcp(7)): the relay
/// judges a client that does not read, the kernel one that is gone.
pub const USER_TIMEOUT_AFTER_STALL_S: u64 = 10;

/// Differentiated services code points (RFC 2474) have six bits.
pub const DSCP_MAX: u8 = 63;

/// Seconds of silence on a TCP connection before it is probed (`TCP_KEEPIDLE`).
pub const KEEPALIVE_IDLE_S: u64 = 60;

/// Seconds between two such probes (`TCP_KEEPINTVL`).
pub const KEEPALIVE_INTERVAL_S: u64 = 10;

/// Probes without an answer after which the connection is dead (`TCP_KEEPCNT`).
pub const KEEPALIVE_PROBES: u32 = 6;

/// Bytes of send buffer that a UDP socket is given.
pub const DATAGRAM_SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of send buffer of a UDP socket that belongs to one client alone; what does not fit is late anyway.
pub const DATAGRAM_OWN_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Bytes unsent in the UDP socket that clients share (as the kernel counts them) above which somebody's path is backed up.
pub const DATAGRAM_BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// Clients that are given a UDP socket of their own in one check at most, to find the one whose path is backed up.
pub const DATAGRAM_MOVES_MAX: usize = 32;

/// Seconds after which a client goes back to the shared UDP socket if nothing has been backed up in its own.
pub const DATAGRAM_OWN_S: u64 = 30;

/// Connections waiting to be accepted at most.
pub const LISTEN_BACKLOG_MAX: i32 = 1024;

/// Bytes from which on a send with `zero_copy = "auto"` lends its pages to the kernel; below it, copying is cheaper.
pub const ZERO_COPY_BYTES_MIN: usize = 16 * 1024;

/// Zero-copy sends of one client whose pages the kernel may hold at a time; the next one copies.
pub const ZERO_COPY_HELD_MAX: u8 = 8;

/// TLS handshakes that are not done at a time, at most, if `limits.clients` does not ask for fewer ([`tls_half_open_max`]).
pub const TLS_HALF_OPEN_MAX: usize = 1_024;

/// TLS handshakes that are not done at a time, at most: as many as there may be players, who may all come at once, and some more,
/// within bounds. Beyond them, and beyond [`connections_many`], the oldest of the address that has most of them is given up.
pub const fn tls_half_open_max(clients: usize) -> usize {
    let wanted = clients.saturating_add(answered_beyond(clients) / 2);
    if wanted < TLS_HALF_OPEN_MAX { wanted } else { TLS_HALF_OPEN_MAX }
}

/// TLS handshakes that nobody else's connection has given up.
pub const fn tls_half_open_kept(clients: usize) -> usize {
    answered_beyond(clients) / 4
}

/// Connections that wait for their TLS handshake or are in it, at most.
pub const TLS_QUEUED_MAX: usize = 2 * TLS_HALF_OPEN_MAX;

/// Bytes that are taken from the shard for a TLS client, and encrypted, before the last ones are in its socket.
pub const TLS_CARRY_BYTES_MAX: usize = 32 * 1024;

/// Bytes of send buffer of the socket that stands for a TLS client in its shard; the kernel doubles it and counts its overhead.
/// What is in it cannot be skipped any more.
pub const TLS_SHARD_SEND_BUFFER_BYTES: usize = 32 * 1024;

/// Bytes of a file with certificates or a key at most: those of all authorities that a system trusts fit in.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Milliseconds for which a TLS client that the shard has ended may still take what was sent to it.
pub const TLS_FAREWELL_MAX_MS: u64 = 1_000;

/// Milliseconds that the end of an egress waits for its operations; then their memory is leaked rather than freed.
pub const EGRESS_DRAIN_MAX_MS: u64 = 500;

/// Seconds for which a nonce is good; who comes with an older one and the right password is given another.
pub const NONCE_LIFETIME_S: u64 = 300;

/// Milliseconds that the answer to wrong credentials is put off, for their connection alone.
pub const AUTH_DELAY_MS: u64 = 1_000;

/// Wrong credentials after which an address is refused, each within [`AUTH_REFUSED_S`] of the one before.
pub const AUTH_FAILURES_MAX: u8 = 10;

/// Seconds for which it is refused after the last of them.
pub const AUTH_REFUSED_S: u64 = 60;

/// Users at most.
pub const USERS_MAX: usize = 1_024;

/// Bytes of a user's name at most.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// Bytes of a password at most, in a file or not.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

const _: () = {
    assert!(EGRESS_DRAIN_MAX_MS < STOP_MAX_MS);
    assert!(TLS_FAREWELL_MAX_MS < STOP_MAX_MS);
    assert!(CHUNK_PART_BYTES_MIN < CHUNK_BYTES_MAX);
    // A chunk always fits in an operation, even if one packet of the largest size made it overflow its bound.
    assert!(CHUNK_BYTES_MAX + PACKET_BYTES_MAX + INTERLEAVED_HEADER_BYTES <= OP_BYTES_MAX + INTERLEAVED_HEADER_BYTES);
    // A run always fits, with the kernel's overhead.
    assert!(DATAGRAM_OWN_SEND_BUFFER_BYTES > 2 * GSO_BYTES_MAX);
    assert!(DATAGRAM_BACKLOG_BYTES_MAX < DATAGRAM_SEND_BUFFER_BYTES);
    assert!(OP_BYTES_LAGGING_MAX <= OP_BYTES_MAX);
    assert!(OP_IOVECS_MAX <= 1024);
    assert!(RTP_PACKET_BYTES_MAX < GSO_BYTES_MAX);
    // A parameter set is one packet.
    assert!(PARAMETER_SET_BYTES_MAX + 12 <= RTP_PACKET_BYTES_MAX);
    assert!(GSO_BYTES_MAX < 65_536);
    assert!(LOG_BYTES_MIN as usize >= 2 * OP_BYTES_MAX);
    // Sound is a small part of any log.
    assert!(LOG_BYTES_MIN as usize >= 4 * SKIP_KEPT_BYTES_MAX);
    assert!(QUEUE_AGE_MIN_MS * 1_000 > CHUNK_OPEN_MAX_US);
    assert!(STREAMS_MAX <= 1 << 16);
    assert!(STRANGERS_MIN <= STRANGERS_MAX);
    // However many come without a session, by TLS or not, and however many sessions there are: what is beyond `connections_many`
    // are handshakes that give way, and some place is left.
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
    // What a publisher may have sent in one read always fits.
    assert!(PUBLISHED_BYTES_MAX > 2 * PUBLISHER_READ_BYTES_MAX);
    // What passes for one answer never counts as too much.
    assert!(CAMERA_ANSWER_BYTES_MAX as u64 * 2 <= CAMERA_SILENT_BYTES_MAX);
    // Channel numbers are one byte, two a track.
    assert!(TRACKS_MAX * 2 <= 256);
};
