//! The memory that a shard holds for unauthenticated clients.

use std::collections::BTreeSet;

use super::types::ConnId;

/// Connections of unauthenticated clients by the bytes that the shard holds for them: partial requests and unread answers. Those that
/// hold no more than a normal request are not included.
#[derive(Debug, Default)]
pub(super) struct Holding {
    by_bytes: BTreeSet<(usize, ConnId)>,
    total: usize,
}

impl Holding {
    /// A connection that held `before` now holds `now`.
    pub(super) fn change(&mut self, conn: ConnId, before: usize, now: usize) {
        if before > 0 {
            self.by_bytes.remove(&(before, conn));
        }
        if now > 0 {
            self.by_bytes.insert((now, conn));
        }
        self.total = self.total - before + now;
    }

    /// Bytes of all together.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The connection that holds most.
    pub(super) fn most(&self) -> Option<ConnId> {
        self.by_bytes.last().map(|(_, conn)| *conn)
    }
}
