//! The rtsprelay daemon.
fn main() {}
