//! The load generator and the fan-out benchmark of rtsprelay.
fn main() {}
