//! What browsers are served: the page, its routes, and access checks. No I/O happens here.
#![forbid(unsafe_code)]

#[cfg(feature = "testing")]
pub mod fuzz;
pub mod page;
pub mod pass;
pub mod route;
pub mod upgrade;
