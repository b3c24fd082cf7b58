//! Raises the limit on open files to what `limits.clients` needs.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors besides those of clients: log, signals, listeners, and connections that are refused with an answer.
const SPARE: u64 = 256;

/// Descriptors of a shard: ring, epoll, wake-ups, UDP sockets.
const PER_SHARD: u64 = 16;

/// Descriptors of a TLS client: its connection, twice, and both ends of the socket pair to its shard.
const PER_TLS_CLIENT: u64 = 4;

/// Descriptors of a stream's source.
const PER_STREAM: u64 = 4;

/// Maximum descriptors of a client.
fn per_client(config: &Config) -> u64 {
    if config.tls.is_some() { PER_TLS_CLIENT } else { 1 }
}

/// Sockets per shard for UDP clients whose paths are backed up. They come from descriptors that are left when all clients are
/// connected, because a client without its own socket is still served.
pub(super) fn own_sockets(config: &Config) -> usize {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    own_sockets_by(soft, needed(config), config.shards() as u64)
}

fn own_sockets_by(soft: u64, needed: u64, shards: u64) -> usize {
    usize::try_from(soft.saturating_sub(needed) / shards.max(1)).unwrap_or(usize::MAX)
}

/// Maximum descriptors of a UDP client with its own sockets: its connection and one socket per track.
const PER_OWN_PATH: u64 = 1 + TYPICAL_TRACKS;

/// Video and sound.
const TYPICAL_TRACKS: u64 = 2;

/// Descriptors that shards and streams need. Each further shard may have one more connection
/// ([`connections_max`](crate::limits::connections_max)).
fn besides(shards: u64, streams: u64, per_client: u64) -> u64 {
    shards * PER_SHARD + shards.saturating_sub(1) * per_client + streams * PER_STREAM
}

/// Descriptors that the configuration may need.
fn needed(config: &Config) -> u64 {
    let besides = besides(config.shards() as u64, config.streams.len() as u64, per_client(config));
    config.limits.clients as u64 * per_client(config) + besides + SPARE
}

/// Raises the limit to what the configuration may need, and if possible to what it needs if all UDP clients have their own sockets.
/// Returns a warning with a fix if it cannot be raised enough to serve all clients.
pub(super) fn raise(config: &Config) -> Option<String> {
    let (needed, clients) = (needed(config), config.limits.clients);
    let wished = needed + clients as u64 * PER_OWN_PATH.saturating_sub(per_client(config));
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => return Some(format!("cannot read the limit on open files ({error}); it stays unchanged")),
    };
    if soft >= wished {
        return None;
    }
    let wanted = wished.min(hard);
    // Only a privileged process may raise the hard limit.
    if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return None;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        return (soft < needed).then(|| format!("the limit on open files stays at {soft} ({error}); {}", cure(needed)));
    }
    (hard < needed).then(|| {
        let served = (clients as u64).saturating_sub((needed - hard).div_ceil(per_client(config)));
        format!(
            "limits.clients = {clients} needs {needed} open files, the hard limit is {hard}: enough for about {served} clients; {} or lower limits.clients",
            cure(needed)
        )
    })
}

/// The number of clients for which there are descriptors: as configured or fewer, so that the relay's own needs are always met.
pub(super) fn served(config: &Config) -> usize {
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return config.limits.clients };
    served_by(soft, config.shards() as u64, config.streams.len() as u64, config.limits.clients, per_client(config))
}

fn served_by(soft: u64, shards: u64, streams: u64, clients: usize, per_client: u64) -> usize {
    let besides = besides(shards, streams, per_client) + SPARE.min(soft / 3);
    let room = usize::try_from(soft.saturating_sub(besides) / per_client).unwrap_or(usize::MAX);
    clients.min(room.max(1))
}

fn cure(needed: u64) -> String {
    format!("raise it to {needed} (`ulimit -Hn`, LimitNOFILE= in a unit)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_serve_few_clients_and_leave_some_over() {
        assert_eq!(served_by(20_000, 2, 1, 10_000, 1), 10_000);
        assert_eq!(served_by(1_024, 2, 1, 10_000, 1), 1_024 - 32 - 1 - 4 - 256);
        assert_eq!(served_by(100, 1, 1, 10_000, 1), 100 - 16 - 4 - 33);
        assert_eq!(served_by(10, 8, 1, 10_000, 1), 1);
        assert_eq!(served_by(20_000, 2, 1, 10_000, PER_TLS_CLIENT), (20_000 - 32 - 4 - 4 - 256) / 4);
    }

    #[test]
    fn paths_of_their_own_take_what_clients_leave() {
        assert_eq!(own_sockets_by(1_024, 2_000, 2), 0);
        assert_eq!(own_sockets_by(3_024, 2_000, 2), 512);
    }
}
