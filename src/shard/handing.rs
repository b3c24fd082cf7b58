//! The state of a shard's hand-over from one process to another.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::types::Hosting;
use crate::egress::{Conn, Token};
use crate::media::StreamId;

/// The state of a hand-over.
#[derive(Default)]
pub(super) struct Handing {
    /// Nothing is sent or read.
    pub(super) frozen: bool,
    /// It ends, because another process has everything.
    pub(super) ended: bool,
    /// It takes over from another process, which still serves.
    pub(super) is_heir: bool,
    /// Sources to run as soon as it has taken over.
    pub(super) hostings: Vec<Hosting>,
    /// The number up to which each stream's log has been copied.
    pub(super) copied: HashMap<StreamId, u64>,
    /// Messages to other shards since the last answer.
    pub(super) told: usize,
    /// Who wait for everything to come to rest.
    pub(super) waiting: Vec<oneshot::Sender<usize>>,
    /// The restored connections, which are not read yet.
    pub(super) restored: Vec<(Token, Conn)>,
}

impl Handing {
    /// For a shard that starts frozen, or serves.
    pub(super) fn new(is_heir: bool) -> Handing {
        Handing { frozen: is_heir, is_heir, ..Handing::default() }
    }
}
