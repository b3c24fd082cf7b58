//! A shard without its thread: the RTSP server, the streams' logs, the clients and the egress.
//!
//! It is passed bytes, chunks, completions and the time, and never fetches any of them itself, so the tests can run thousands of
//! clients on a virtual clock. The rule is *absorb, then drive*: everything that has happened is absorbed first, then [`Core::drive`]
//! acts on it once.
//!
//! Each part owns its state (`links`, `streams`, `paths`, `pacing`, `put_off`, `out`); what concerns several of them is done by
//! [`Core`], in a file for each topic.

mod browser;
mod clients;
mod drive;
mod early;
mod freeze;
mod group;
mod hosted;
mod leaving;
mod link;
mod links;
#[cfg(test)]
mod log_tests;
mod logs;
mod named;
mod out;
mod outage;
mod outside;
mod pacing;
mod panics;
mod paths;
#[cfg(test)]
mod place_tests;
mod put_off;
mod reasons;
mod renewal;
#[cfg(test)]
mod renewal_tests;
mod report;
mod saved;
mod saved_datagrams;
mod saved_playing;
mod shortage;
#[cfg(test)]
mod silent_tests;
mod state;
mod streams;
#[cfg(test)]
mod subscription_tests;
mod subscriptions;
mod timers;
mod web;
#[cfg(test)]
mod web_tests;

pub use logs::{CopiedLog, CopiedLogs, KeptLogs, SentLogs};
pub use out::Mail;
pub use saved::CoreState;
pub use state::Core;

pub use super::types::{CoreConfig, ShardLimits, Start, StreamSetup, UdpSockets, WebClient};
