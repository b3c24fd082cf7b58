//! rtsprelay: one RTSP session to the camera in, any number of standard RTSP players out.
//!
//! The modules in the order in which a packet meets them:
//!
//! 1. [`source`] pulls the camera (or makes the test pattern) on the control thread;
//! 2. [`stream`] puts its packets on a timeline that never breaks and into shared chunks, and keeps a log of them;
//! 3. [`shard`] owns a share of the clients on a thread of its own and moves their cursors along the log;
//! 4. [`egress`] puts the chunks into the clients' sockets;
//! 5. [`session`] is the RTSP server that clients talk to, over the formats in [`wire`];
//! 6. [`tls`] encrypts what goes to clients that want it so, beside the shards.
//!
//! Beside the way lie [`access`], who may do what, and [`metrics`], what all of them count and how it is told. [`config`] says
//! what to do, and [`daemon`] puts everything together.
//!
//! `docs/ARCHITECTURE.md` tells the whole story, `docs/GLOSSARY.md` the words.

pub mod access;
pub mod config;
mod crowd;
pub mod daemon;
pub mod egress;
mod file;
pub mod limits;
pub mod metrics;
pub mod session;
pub mod shard;
pub mod source;
pub mod stream;
pub mod sys;
pub mod tls;
mod told;
pub mod wire;
