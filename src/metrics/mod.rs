//! What the relay counts, and how it tells.
//!
//! A shard counts with a [`ShardMetrics`] of its own: no atomics, no locks. Once an interval the reporter asks each shard for
//! a [`ShardSnapshot`] through its inbox; a [`Collector`] merges them into a [`report::Report`], which [`table`] and [`lines`]
//! render.

mod collect;
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

pub use collect::Collector;
pub use latency::ClientLatency;
pub use names::{Counter, DropReason, LeaveReason, Limited, Panicked, SourceDrop, Transport};
pub use report::SourceGauge;
pub use scrape::{Scrape, StreamScrape};
pub use shard::{ClientSnapshot, Reception, ReportRequest, ShardMetrics, ShardSnapshot, StreamCounts, StreamSnapshot};
