//! What the relay counts, and how it tells.
//!
//! A shard counts with a [`ShardMetrics`] of its own: no atomics, no locks. Once an interval the reporter asks each shard for
//! a [`ShardSnapshot`] through its inbox and merges them.

mod latency;
mod names;
mod shard;

pub use latency::ClientLatency;
pub use names::{Counter, DropReason, LeaveReason, Transport};
pub use shard::{ClientSnapshot, ReportRequest, ShardMetrics, ShardSnapshot, StreamCounts, StreamSnapshot};
