//! Where streams come from.

pub mod pipeline;
