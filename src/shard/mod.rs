//! The shard: a thread that owns a share of the clients and sends every chunk to their sockets.

pub mod core;
pub mod fanout;
#[cfg(feature = "testing")]
pub mod fuzz;
mod hand_over;
mod handing;
pub mod home;
pub mod inbox;
pub mod local;
pub mod player;
mod read_size;
pub mod saved;
mod snapshot;
pub mod thread;
pub mod turn;
pub mod types;
