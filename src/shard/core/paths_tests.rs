//! Which clients get their own sockets, when, and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::egress::Token;
use crate::egress::sim::SimEgress;
use crate::media::StreamId;
use crate::media::chunk::{Chunk, ChunkKind};
use crate::session::{ServerConfig, SessionIds, SessionLimit};
use crate::shard::core::link::Closing;
use crate::shard::core::{Core, CoreConfig, Start, StreamSetup};

const VIDEO: TrackId = TrackId(0);

pub(crate) fn core(now: Instant) -> Core<SimEgress> {
    let config = CoreConfig {
        age: Duration::from_secs(1),
        log_bytes: 1 << 20,
        stall_timeout: Duration::from_secs(10),
        streams: Vec::new(),
        server: ServerConfig {
            shard: 0,
            shards: 1,
            session_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            limit: SessionLimit::new(1_000),
            udp_ports: Some((9000, 9001)),
            all_ports: None,
            ids: SessionIds::Seeded(1),
            loads: None,
        },
    };
    let sockets = UdpSockets { rtp: Datagram::Scripted, rtcp: Datagram::Scripted };
    Core::new(now, config, SimEgress::new(), Some(sockets))
}

fn client(core: &mut Core<SimEgress>, now: Instant, own_sockets: Option<Box<OwnSockets>>) -> Token {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let targets = [Target { track: VIDEO, rtp: at(6000), rtcp_port: 6001 }].into_iter().collect();
    core.links.insert(Kind::udp(now, targets, None, own_sockets))
}

fn check(core: &mut Core<SimEgress>, now: Instant) {
    core.paths.check(now, &mut core.links, &core.streams);
}

/// The number of clients with their own sockets, which equals the core's count.
fn owners(core: &Core<SimEgress>) -> usize {
    let own = |kind: &Kind| matches!(kind, Kind::Udp { own_sockets: Some(own), .. } if own.rtcp.is_none());
    let count = core.links.iter().filter(|(_, link)| own(&link.kind)).count();
    assert_eq!((count, count), core.paths.own(), "a socket a client, for its one track");
    count
}

#[test]
fn no_more_clients_have_sockets_of_their_own_than_there_are_descriptors_for() {
    let now = Instant::now();
    let mut core = core(now);
    core.set_own_sockets_max(2);
    let clients = [0; 4].map(|_| client(&mut core, now, None));
    for _ in 0..2 {
        core.paths.note_refused();
        check(&mut core, now);
        assert_eq!(owners(&core), 2);
    }
    core.close(clients[0].slot, Closing::Join);
    core.paths.note_refused();
    check(&mut core, now);
    assert_eq!((owners(&core), core.links()), (2, 3), "what one gives back another one gets");
}

#[test]
fn a_path_is_found_backed_up_before_a_small_buffer_is_full() {
    let runtime = crate::egress::runtime::Runtime::new(crate::egress::IoKind::Epoll).unwrap();
    runtime.block_on(async {
        let (rtp, _rtcp) = Datagram::bind_pair([127, 0, 0, 1].into(), None, crate::egress::IoKind::Epoll).unwrap();
        // The buffer of a socket without CAP_NET_ADMIN with the kernel's default for net.core.wmem_max.
        let fd = rtp.fd().unwrap();
        socket2::SockRef::from(&fd).set_send_buffer_size(212_992).unwrap();
        let room = rtp.send_buffer().unwrap();
        assert!(room < DATAGRAM_BACKLOG_BYTES_MAX, "{room}");
        assert!(backlog_max(&rtp) <= room / 2, "{} of {room}", backlog_max(&rtp));
    });
}

/// A frame of one empty packet.
pub(in crate::shard::core) fn chunk(number: u64, arrival: Instant) -> Arc<Chunk> {
    Arc::new(Chunk {
        number,
        track: VIDEO,
        kind: ChunkKind::Media,
        frame: number,
        frame_start: true,
        frame_end: true,
        keyframe: true,
        arrival,
        first_seq: number as u16,
        rtp_time: 0,
        bytes: Bytes::from_static(b"$\0\0\x0c\x80\x60\0\0\0\0\0\0\0\0\0\0"),
        packets: 1,
    })
}

#[test]
fn a_pass_looks_at_the_streams_that_have_something_new_and_no_others() {
    let now = Instant::now();
    let mut core = core(now);
    for id in (0..1_000).map(StreamId::first) {
        let name = format!("s{}", id.index());
        let setup = StreamSetup::plain(id, name, Start::Live);
        core.set_stream(now, &setup);
        if id.index() < 999 {
            core.remove_stream(now, id);
        }
    }
    core.drive(now);
    assert!(core.streams.dirty().is_empty());
    for number in 0..3 {
        core.chunk(now, StreamId::first(999), chunk(number, now));
        core.chunk(now, StreamId::first(5), chunk(number, now));
    }
    assert_eq!(core.streams.dirty(), [999]);
    core.drive(now);
    assert!(core.streams.dirty().is_empty());
    core.chunk(now, StreamId::first(999), chunk(3, now));
    assert_eq!(core.streams.dirty(), [999], "it is marked again");
}

#[test]
fn a_refusal_gives_clients_sockets_of_their_own_some_at_a_time() {
    let now = Instant::now();
    let mut core = core(now);
    for _ in 0..DATAGRAM_MOVES_MAX + 8 {
        client(&mut core, now, None);
    }
    check(&mut core, now);
    assert_eq!(owners(&core), 0, "nothing is held, nothing was refused");
    core.paths.note_refused();
    check(&mut core, now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX);
    check(&mut core, now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX, "one refusal is one round");
    core.paths.note_refused();
    check(&mut core, now);
    assert_eq!(owners(&core), DATAGRAM_MOVES_MAX + 8);
}

#[test]
fn what_is_not_needed_for_a_while_is_taken_back() {
    let now = Instant::now();
    let mut core = core(now);
    let clients = [0; 3].map(|_| client(&mut core, now, None));
    core.paths.note_refused();
    check(&mut core, now);
    assert_eq!(owners(&core), 3);
    let almost = now + Duration::from_secs(DATAGRAM_OWN_S) - Duration::from_millis(1);
    check(&mut core, almost);
    assert_eq!(owners(&core), 3);
    // Not during an operation.
    let over = now + Duration::from_secs(DATAGRAM_OWN_S);
    core.links[clients[0].slot as usize].busy = Some(over);
    check(&mut core, over);
    assert_eq!(owners(&core), 1);
    core.links[clients[0].slot as usize].busy = None;
    core.close(clients[0].slot, Closing::Join);
    assert_eq!((owners(&core), core.links()), (0, 2), "who leaves takes its sockets along");
}

#[test]
fn a_multicast_group_keeps_its_sockets_and_is_not_counted() {
    let now = Instant::now();
    let mut core = core(now);
    let group = OwnSockets {
        rtp: SmallVec::from_iter([(VIDEO, Datagram::Scripted)]),
        rtcp: Some(Datagram::Scripted),
        backed_up: now,
    };
    let group = client(&mut core, now, Some(Box::new(group)));
    client(&mut core, now, None);
    core.paths.note_refused();
    check(&mut core, now);
    assert_eq!(owners(&core), 1);
    check(&mut core, now + Duration::from_secs(DATAGRAM_OWN_S));
    assert_eq!(owners(&core), 0);
    let Kind::Udp { own_sockets, .. } = &core.links[group.slot as usize].kind else { unreachable!("a UDP link") };
    assert!(own_sockets.is_some());
    core.close(group.slot, Closing::Join);
    assert_eq!(owners(&core), 0);
}
