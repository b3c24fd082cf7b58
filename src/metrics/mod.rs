//! Counting, and the output of the counts.
//!
//! Each shard counts with its own [`ShardMetrics`]: no atomics, no locks. Once per interval the reporter requests a [`ShardSnapshot`]
//! from each shard through its inbox. A [`Collector`] merges them into a [`report::Report`], which [`table`] and [`lines`] format.

mod collect;
pub mod digest;
mod latency;
pub mod lines;
mod names;
pub mod process;
pub mod prometheus;
pub mod report;
mod scrape;
mod shard;
pub mod status;
pub mod table;
#[cfg(test)]
mod testing;
mod tls;

pub use collect::{Collector, CountsState};
pub use latency::ClientLatency;
pub use names::{Counter, DropReason, LeaveReason, Limited, Panicked, SourceDrop, Transport};
pub use report::SourceGauge;
pub use scrape::{Scrape, StreamScrape};
pub use shard::{ClientSnapshot, Reception, ReportRequest, ShardMetrics, ShardSnapshot, StreamCounts, StreamSnapshot};
pub use tls::{TlsCounts, TlsOutcome};
