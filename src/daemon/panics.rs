//! Faults of the relay's own code: told in the log, whatever thread they happen on and whatever becomes of it.

use std::any::Any;
use std::panic::{self, PanicHookInfo};

/// From now on panics are told in the log, in place of standard error.
pub fn tell() {
    panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = info.location().map(tracing::field::display),
            "a fault of rtsprelay itself: {}; please report it",
            said(info.payload())
        );
    }));
}

/// What a panic says.
pub fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
