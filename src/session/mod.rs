//! The RTSP server's sessions: a state machine without sockets or clock. Bytes and time go in; answers and events come out.
//!
//! A shard has one [`Server`]. It informs the server about connections, received bytes and the time. After each call it takes the
//! events with [`Server::poll_event`] until there are none, and acts on them in order.
#![forbid(unsafe_code)]

mod admit;
mod announced;
mod answers;
mod auth;
#[cfg(feature = "testing")]
mod check;
mod config;
mod connections;
#[cfg(feature = "testing")]
pub mod fuzz;
#[cfg(feature = "testing")]
pub mod fuzz_publish;
mod held;
mod holding;
mod homes;
mod ids;
mod incoming;
mod loads;
mod methods;
mod named;
mod no_transport;
mod outside;
mod ports;
mod publish;
mod rate;
mod reports;
mod resource;
mod saved;
mod server;
mod sessions;
mod setup;
mod strangers;
mod streams;
#[cfg(test)]
mod tests;
mod timeouts;
mod timers;
mod types;
mod web;

pub(crate) use auth::tell_failure;
pub use config::ServerConfig;
pub use loads::Loads;
pub use named::NotMade;
pub use ports::UdpPorts;
pub use saved::{NotSaved, ServerState, StreamState as KnownStreamState};
pub use server::Server;
pub use types::{
    CloseReason, ConnId, Counters, Delivery, EndReason, Event, FirstPacket, NameWanted, PlayTrack, SessionIds,
    SessionInfo, SessionKey, SessionLimit,
};
