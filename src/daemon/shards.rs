//! Starts and stops the shards.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout_at};
use tracing::{error, warn};

use super::failure::Failure;
use super::passed::Before;
use super::{descriptors, streams};
use crate::config::{Config, IoChoice, StreamConfig};
use crate::egress::IoKind;
use crate::limits::{STOP_MAX_MS, answered_beyond};
use crate::media::StreamId;
use crate::session::{Loads, ServerConfig, SessionIds, SessionLimit, UdpPorts};
use crate::shard::core::{CoreConfig, StreamSetup};
use crate::shard::inbox::{self, ControlSender, ShardSender, ToControl, ToShard};
use crate::shard::thread::{self, MulticastSetup, ShardConfig, ShardHandle};
use crate::shard::types::SocketFds;

/// How long the shards wait during a stop for the sources to end incomplete frames.
const LAST_FRAMES_MAX: Duration = Duration::from_millis(50);

/// Minimum and maximum number of submission entries of a shard's ring.
const RING_ENTRIES: std::ops::RangeInclusive<u32> = 256..=16_384;

/// Starts the shards, frozen and with the sockets of others if they take over from those; with epoll if that is allowed and io_uring fails for lack of resources (usually memory).
pub(super) async fn start_shards(
    config: &Config,
    io: IoKind,
    control: &mpsc::UnboundedSender<(u16, ToControl)>,
    before: Option<&Before>,
) -> Result<(IoKind, Vec<ShardHandle>), Failure> {
    let mut handles = Vec::new();
    let why = match start_shards_with(config, io, control, before, &mut handles) {
        Ok(()) => return Ok((io, handles)),
        Err(why) => why,
    };
    let senders: Vec<ShardSender> = handles.iter().map(|handle| handle.sender.clone()).collect();
    let deadline = Instant::now() + Duration::from_millis(STOP_MAX_MS);
    stop_all(Vec::new(), handles, &senders, deadline).await;
    if config.io != IoChoice::Auto || io == IoKind::Epoll {
        return Err(why);
    }
    warn!("{why}; using epoll, at a higher CPU cost per client");
    let mut handles = Vec::new();
    start_shards_with(config, IoKind::Epoll, control, before, &mut handles)?;
    Ok((IoKind::Epoll, handles))
}

fn start_shards_with(
    config: &Config,
    io: IoKind,
    control: &mpsc::UnboundedSender<(u16, ToControl)>,
    before: Option<&Before>,
    handles: &mut Vec<ShardHandle>,
) -> Result<(), Failure> {
    let count = config.shards();
    let loads = Loads::new(count);
    let (senders, inboxes): (Vec<_>, Vec<_>) =
        (0..count as u16).map(|shard| inbox::channel(shard, loads.clone())).unzip();
    let homes = before.map(|before| &before.homes);
    let set_up =
        |id, stream: &StreamConfig| streams::setup(id, streams::first_home(id, &stream.name, count, homes), stream);
    let streams: Vec<StreamSetup> =
        (0u16..).zip(&config.streams).map(|(place, stream)| set_up(StreamId::first(place), stream)).collect();
    let multicast = multicast_groups(config, before);
    let per_shard = config.limits.clients.div_ceil(count) + answered_beyond(config.limits.clients);
    let entries = u32::try_from(per_shard).unwrap_or(u32::MAX).clamp(*RING_ENTRIES.start(), *RING_ENTRIES.end());
    let limit = SessionLimit::new(config.limits.clients);
    limit.set_max(config.limits.clients, config.clients_per_address());
    let all_ports = UdpPorts::new(count, is_own_address);
    for ((shard, inbox), sender) in (0u16..).zip(inboxes).zip(&senders) {
        let server = ServerConfig {
            shard,
            shards: count as u16,
            session_timeout: config.limits.session_timeout,
            handshake_timeout: config.limits.handshake_timeout,
            limit: Arc::clone(&limit),
            udp_ports: None,
            all_ports: Some(Arc::clone(&all_ports)),
            ids: SessionIds::Random,
            loads: Some(loads.clone()),
        };
        let core = CoreConfig {
            age: config.queue.age,
            log_bytes: usize::try_from(config.log_bytes(config.streams.len())).unwrap_or(usize::MAX),
            stall_timeout: config.queue.stall_timeout,
            streams: streams.clone(),
            server,
        };
        let own_sockets = descriptors::own_sockets(config);
        let inherited = before.and_then(|before| before.sockets.get(usize::from(shard))).map(SocketFds::try_clone);
        let inherited = inherited
            .transpose()
            .map_err(|error| format!("shard {shard} cannot take over its sockets ({error}); {}", shard_cure(&error)))?;
        let config = ShardConfig {
            core,
            io,
            ring_entries: entries.next_power_of_two(),
            udp: Some(udp_address(&config.listen)),
            dscp: config.dscp,
            udp_ports: config.udp_ports,
            zero_copy: config.zero_copy,
            multicast: multicast.clone(),
            own_sockets,
            frozen: before.is_some(),
            inherited: inherited.unwrap_or_default(),
            testing: config.testing,
        };
        let handle =
            thread::spawn(config, sender.clone(), inbox, senders.clone(), ControlSender::new(shard, control.clone()))
                .map_err(|error| format!("shard {shard} cannot start ({error}); {}", shard_cure(&error)))?;
        handles.push(handle);
    }
    Ok(())
}

/// The streams' multicast groups; each is sent to by its stream's home, or by the shard that did so in another process.
fn multicast_groups(config: &Config, before: Option<&Before>) -> Vec<MulticastSetup> {
    let group = |(place, stream): (u16, &StreamConfig)| {
        let multicast = stream.multicast.as_ref()?;
        let known = before.and_then(|before| before.group_sender(&stream.name));
        let stream = StreamId::first(place);
        Some(MulticastSetup {
            stream,
            address: multicast.group,
            ttl: multicast.ttl,
            interface: multicast.interface.clone(),
            sender: known.unwrap_or_else(|| streams::home_at(stream, config.shards())),
            receivers: Arc::default(),
        })
    };
    (0u16..).zip(&config.streams).filter_map(group).collect()
}

fn shard_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "raise `ulimit -l` (LimitMEMLOCK= in a unit), or set a lower workers or io = \"epoll\"",
        Some(libc::EMFILE) => "raise `ulimit -n` (LimitNOFILE= in a unit)",
        Some(libc::ENODEV) => "stream.multicast_interface is not an interface of this machine (`ip link` lists them)",
        Some(libc::EAGAIN) => "raise the limit on threads (`ulimit -u`, TasksMax= in a unit), or lower workers",
        _ => "try io = \"epoll\"",
    }
}

/// The address to send UDP media from: the one that RTSP is served on, or a wildcard that covers all of them.
fn udp_address(listen: &[SocketAddr]) -> IpAddr {
    let first = listen.first().map_or(Ipv4Addr::UNSPECIFIED.into(), SocketAddr::ip);
    if listen.iter().all(|address| address.ip() == first) {
        return first;
    }
    if listen.iter().any(SocketAddr::is_ipv6) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// Whether an address belongs to this machine.
fn is_own_address(ip: IpAddr) -> bool {
    // Only a local address can be bound. Other errors count as local: a link-local address, for example, lacks its scope here.
    match std::net::UdpSocket::bind((ip, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

/// Stops sources and shards, within the deadline.
pub(super) async fn stop_all(
    sources: Vec<oneshot::Receiver<()>>,
    handles: Vec<ShardHandle>,
    shards: &[ShardSender],
    deadline: Instant,
) {
    let mut sources = std::pin::pin!(async {
        for source in sources {
            // Nothing is ever sent: the channel closes when the source has ended.
            let _ = source.await;
        }
    });
    // First the sources: they end incomplete frames. Their TEARDOWN may take longer than that.
    let mut ended = timeout_at((Instant::now() + LAST_FRAMES_MAX).into(), sources.as_mut()).await.is_ok();
    for shard in shards {
        shard.tell(ToShard::Stop);
    }
    if !ended {
        ended = timeout_at(deadline.into(), sources).await.is_ok();
    }
    if !ended {
        warn!("a camera has not answered TEARDOWN in time");
    }
    while handles.iter().any(|handle| !handle.thread.is_finished()) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    for (index, handle) in handles.into_iter().enumerate() {
        if !handle.thread.is_finished() {
            warn!(shard = index, "a shard did not end in time; its thread is abandoned");
        } else if handle.thread.join().is_err() {
            error!(shard = index, "a shard has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn udp_leaves_from_where_rtsp_is_served() {
        for (listen, udp) in [
            (&["127.0.0.1:1"][..], "127.0.0.1"),
            (&["0.0.0.0:1", "0.0.0.0:2"], "0.0.0.0"),
            (&["127.0.0.1:1", "192.0.2.1:1"], "0.0.0.0"),
            (&["0.0.0.0:1", "[::]:1"], "::"),
        ] {
            let listen: Vec<_> = listen.iter().map(|text| address(text)).collect();
            assert_eq!(udp_address(&listen).to_string(), udp);
        }
    }

    #[test]
    fn the_machine_knows_its_addresses() {
        assert!(is_own_address(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own_address(Ipv4Addr::new(192, 0, 2, 1).into()), "of a network for documentation");
    }
}
