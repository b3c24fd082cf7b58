//! The sources of streams.
//!
//! A [`supervisor`] keeps one source running, a [`camera`] or the built-in test [`pattern`], and passes its packets to the stream's
//! [`pipeline`]. The test source consists of parts that the bench and the viewer share: [`clip`], [`packetizer`], [`stamp`] and
//! [`tone`].

pub mod backoff;
pub mod camera;
mod cameras;
pub mod clip;
mod fault_log;
mod feed;
#[cfg(feature = "testing")]
pub mod fuzz;
mod gate;
pub mod held;
mod input;
mod keep;
pub mod news;
mod on_demand;
pub mod packetizer;
pub mod pattern;
mod payload_types;
pub mod pipeline;
pub mod publisher;
pub mod publishing;
mod reorder;
pub mod saved;
pub mod shared;
pub mod spec;
pub mod stamp;
pub mod stats;
pub mod supervisor;
pub mod timeline;
pub mod tone;
pub(crate) mod turns;

#[cfg(test)]
mod fake_camera;
#[cfg(test)]
mod pipeline_tests;
#[cfg(test)]
mod tests;
