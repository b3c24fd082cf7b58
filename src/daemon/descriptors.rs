//! The limit of open files, raised to what `limits.clients` needs.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors besides those of clients: log, signals, listeners, and room for connections that are refused with an answer.
const SPARE: u64 = 256;

/// Descriptors of a shard: rings, epoll, wake-ups, UDP sockets.
const PER_SHARD: u64 = 16;

/// Descriptors of a client that speaks TLS: its connection, twice, and the two ends of the socket to its shard.
const PER_TLS_CLIENT: u64 = 4;

/// Descriptors of a stream's source.
const PER_STREAM: u64 = 4;

/// Descriptors of a client at most.
fn per_client(config: &Config) -> u64 {
    if config.tls.is_some() { PER_TLS_CLIENT } else { 1 }
}

/// Descriptors that shards and streams need. Of the shards every further one may have a connection more
/// ([`connections_max`](crate::limits::connections_max)).
fn besides(shards: u64, streams: u64, per_client: u64) -> u64 {
    shards * PER_SHARD + shards.saturating_sub(1) * per_client + streams * PER_STREAM
}

/// Descriptors that the configuration may need.
fn needed(config: &Config) -> u64 {
    let besides = besides(config.shards() as u64, config.streams.len() as u64, per_client(config));
    config.limits.clients as u64 * per_client(config) + besides + SPARE
}

/// Raises the limit to what the configuration may need. Gives a warning with its cure if it cannot be raised so far.
pub fn raise(config: &Config) -> Option<String> {
    let (needed, clients) = (needed(config), config.limits.clients);
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => return Some(format!("the limit of open files cannot be asked for ({error}); it stays as it is")),
    };
    if soft >= needed {
        return None;
    }
    let wanted = needed.min(hard);
    // Only a privileged process may raise the hard limit.
    if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return None;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        return Some(format!("the limit of open files stays at {soft} ({error}); {}", cure(needed)));
    }
    (hard < needed).then(|| {
        let served = (clients as u64).saturating_sub((needed - hard).div_ceil(per_client(config)));
        format!(
            "limits.clients = {clients} needs {needed} open files, the hard limit is {hard}: enough for about {served} clients; {} or lower limits.clients",
            cure(needed)
        )
    })
}

/// Clients that there are descriptors for: those of the configuration, or fewer, so that what the relay needs besides is never
/// theirs.
pub fn served(config: &Config) -> usize {
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
}
