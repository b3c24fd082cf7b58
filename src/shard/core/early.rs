//! What a stream's home says of it before the control thread has told this shard that there is such a stream: the two are not in order.

use std::collections::HashMap;
use std::sync::Arc;

use crate::media::{Description, SourceState, StreamId};

/// The last words about streams that are not known here yet. Of each stream that comes, the control thread tells every shard, so nothing
/// stays here for long.
#[derive(Debug, Default)]
pub(super) struct Early(HashMap<StreamId, Words>);

/// The last words about a stream.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) description: Option<Arc<Description>>,
    pub(super) source: Option<SourceState>,
}

impl Early {
    /// What is known of a stream, to be completed.
    pub(super) fn of(&mut self, id: StreamId) -> &mut Words {
        self.0.entry(id).or_default()
    }

    /// The stream is known now.
    pub(super) fn take(&mut self, id: StreamId) -> Option<Words> {
        self.0.remove(&id)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
