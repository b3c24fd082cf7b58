//! The limit of open files, raised to what `limits.clients` needs.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors besides those of clients: log, signals, listeners, and room for connections that are refused with an answer.
const SPARE: u64 = 256;

/// Descriptors of a shard: rings, epoll, wake-ups, UDP sockets.
const PER_SHARD: u64 = 16;

/// Descriptors of a stream's source.
const PER_STREAM: u64 = 4;

/// Descriptors that the configuration may need.
pub fn needed(config: &Config) -> u64 {
    let shards = config.shards() as u64 * PER_SHARD;
    config.limits.clients as u64 + shards + config.streams.len() as u64 * PER_STREAM + SPARE
}

/// Raises the limit to `needed`. Gives a warning with its cure if it cannot be raised so far.
pub fn raise(needed: u64, clients: usize) -> Option<String> {
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
        let served = (clients as u64).saturating_sub(needed - hard);
        format!(
            "limits.clients = {clients} needs {needed} open files, the hard limit is {hard}: enough for about {served} clients; {} or lower limits.clients",
            cure(needed)
        )
    })
}

fn cure(needed: u64) -> String {
    format!("raise it to {needed} (`ulimit -Hn`, LimitNOFILE= in a unit)")
}
