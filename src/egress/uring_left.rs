//! What an egress leaves behind at its end, because the kernel may still read it.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::uring_hold::Holds;
use super::uring_slot::Slot;

/// Memory that is never freed, with what was left before it.
struct Left {
    _slots: Vec<Slot>,
    _holds: Holds,
    before: AtomicPtr<Left>,
}

/// The newest. Only here so that checkers for leaks find it, and what it points at: this one is meant.
static NEWEST: AtomicPtr<Left> = AtomicPtr::new(ptr::null_mut());

/// Never frees them.
pub(super) fn leave(slots: Vec<Slot>, holds: Holds) {
    let left = Box::leak(Box::new(Left { _slots: slots, _holds: holds, before: AtomicPtr::default() }));
    let before = NEWEST.swap(ptr::from_mut(left), Ordering::AcqRel);
    left.before.store(before, Ordering::Release);
}
