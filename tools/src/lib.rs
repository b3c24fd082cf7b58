//! rtsprelay-view: a small client that decodes a stream, shows it, and measures it.
//!
//! Three threads: [`ingest`] receives packets and assembles [`frame`]s ([`depacketize`]), the [`player`] decodes them ([`decode`]), and
//! one of [`headless`], [`terminal`] and [`window`] shows the newest [`picture`] and the [`stats`].

#![forbid(unsafe_code)]

pub mod args;
pub mod decode;
pub mod depacketize;
pub mod frame;
pub mod headless;
pub mod ingest;
pub mod overlay;
pub mod picture;
pub mod player;
pub mod snapshot;
pub mod stats;
pub mod status;
pub mod target;
pub mod terminal;
pub mod window;

use player::Fault;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By a key or a signal.
    Asked,
    /// The pictures asked for have been decoded.
    Complete,
    /// The seconds asked for are over.
    TimeOver,
    /// No picture for too long, for this reason.
    GaveUp(Fault),
    /// No picture for too long, though media comes.
    NoPicture,
}
