//! Where streams come from.

mod fragment;
mod input;
mod parameter_sets;
pub mod pipeline;
pub mod timeline;
