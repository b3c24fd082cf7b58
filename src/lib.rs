//! rtsprelay pulls one RTSP session from a camera and serves it to any number of standard RTSP players.
//!
//! The modules in the order of a packet's path:
//!
//! 1. [`source`] pulls the camera (or makes the test pattern) on the stream's home shard;
//! 2. [`media`] puts its packets on an unbroken timeline and into shared chunks, and keeps a log of them;
//! 3. [`shard`] owns a share of the clients on its own thread and moves their cursors along the log;
//! 4. [`egress`] sends the chunks to the clients' sockets;
//! 5. [`session`] is the RTSP server for clients, using the formats in [`wire`];
//! 6. [`tls`] encrypts for TLS clients, on separate threads.
//!
//! Besides these there are [`access`] (users and their rights) and [`metrics`] (counters). [`config`] reads the configuration, and
//! [`daemon`] starts, reloads and stops everything. A module uses only modules below it; `tests/tidy/rooms.rs` has their order.
//!
//! `docs/ARCHITECTURE.md` is an overview, with a page for each part under `docs/architecture/`. `docs/GLOSSARY.md` defines the terms.

#![warn(unreachable_pub)]

pub mod access;
mod burst;
pub mod config;
mod crowd;
pub mod daemon;
pub mod egress;
mod escape;
mod file;
pub mod limits;
pub mod media;
mod memory;
pub mod metrics;
mod redact;
pub mod session;
pub mod shard;
pub mod source;
pub mod sys;
pub mod testing;
pub mod tls;
mod told;
pub mod trust;
pub mod upgrade;
pub mod web;
pub mod wire;
