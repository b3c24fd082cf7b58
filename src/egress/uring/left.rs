//! What an egress leaks when it ends, because the kernel may still read it.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::hold::Holds;
use super::slot::Slot;

/// Memory that is never freed, linked to what was leaked before.
struct Left {
    _slots: Vec<Slot>,
    _holds: Holds,
    before: AtomicPtr<Left>,
}

/// The newest, so that leak checkers find it and what it points at, because this leak is intended.
static NEWEST: AtomicPtr<Left> = AtomicPtr::new(ptr::null_mut());

/// Never frees them.
pub(super) fn leave(slots: Vec<Slot>, holds: Holds) {
    let left = Box::leak(Box::new(Left { _slots: slots, _holds: holds, before: AtomicPtr::default() }));
    let before = NEWEST.swap(ptr::from_mut(left), Ordering::AcqRel);
    left.before.store(before, Ordering::Release);
}
