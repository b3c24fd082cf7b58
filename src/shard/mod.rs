//! The shard: a thread that owns a share of the clients and puts every chunk into their sockets.

pub mod core;
pub mod fanout;
#[doc(hidden)]
pub mod fuzz;
pub mod inbox;
pub mod player;
pub mod thread;
