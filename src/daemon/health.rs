//! Whether the shards still respond.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::shard::inbox::{ShardSender, ToShard};

/// The shards that do not answer a ping in time.
pub(super) async fn silent(shards: &[ShardSender], within: Duration) -> Vec<usize> {
    let deadline = Instant::now() + within;
    let pings: Vec<_> = shards
        .iter()
        .map(|shard| {
            let (reply, answer) = oneshot::channel();
            shard.tell(ToShard::Ping(reply));
            answer
        })
        .collect();
    let mut silent = Vec::new();
    for (index, answer) in pings.into_iter().enumerate() {
        if !matches!(timeout_at(deadline, answer).await, Ok(Ok(()))) {
            silent.push(index);
        }
    }
    silent
}
