//! Where streams come from.
//!
//! A [`supervisor`] keeps one source going, a [`camera`] or the built-in test [`pattern`], and hands its packets to the
//! stream's [`pipeline`]. The test source is made of parts that the bench and the viewer share: [`clip`], [`packetizer`],
//! [`stamp`] and [`tone`].

pub mod address;
pub mod backoff;
pub mod camera;
pub mod clip;
pub mod fault;
mod feed;
mod fragment;
#[doc(hidden)]
pub mod fuzz;
mod input;
mod loopback;
mod mend;
pub mod on_demand;
pub mod packetizer;
mod parameter_sets;
pub mod pattern;
pub mod pipeline;
pub mod publisher;
mod reorder;
pub mod stamp;
pub mod supervisor;
pub mod timeline;
pub mod tone;
pub mod tunnel;
mod unread;

#[cfg(test)]
mod fake_camera;
#[cfg(test)]
mod pipeline_tests;
#[cfg(test)]
mod tests;
