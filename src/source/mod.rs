//! Where streams come from.
