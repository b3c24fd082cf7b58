//! The RTSP server's sessions: a state machine without sockets or a clock. Bytes and time go in, answers and events
//! come out.
//!
//! A shard has one [`Server`]. It tells the server of connections, of the bytes read from them and of the time, and
//! after each call takes the events with [`Server::poll_event`] until there are none, acting on them in their order.
#![forbid(unsafe_code)]

mod auth;
mod check;
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod fuzz_publish;
mod ids;
mod methods;
mod ports;
mod publish;
mod rate;
mod reports;
mod resource;
mod server;
mod strangers;
mod streams;
#[cfg(test)]
mod tests;
mod timers;
mod types;

pub(crate) use auth::tell_failure;
pub use ports::OwnPorts;
pub(crate) use resource::percent_decoded;
pub use server::Server;
pub use types::{
    CloseReason, ConnId, Counters, Delivery, EndReason, Event, FirstPacket, PlayTrack, ServerConfig, SessionIds,
    SessionInfo, SessionKey, SessionLimit,
};
