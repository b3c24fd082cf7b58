//! Logs panics, on whatever thread they happen.

use std::any::Any;
use std::panic::{self, PanicHookInfo};

/// From now on panics are logged instead of printed to standard error.
pub(super) fn tell() {
    panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = info.location().map(tracing::field::display),
            "a bug in rtsprelay: {}; please report it",
            said(info.payload())
        );
    }));
}

/// What a panic says.
pub(super) fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
