//! The output of a shard's core: to other shards, to the control thread, and for connections to its own thread.

use std::net::SocketAddr;

use crate::shard::inbox::{ToControl, ToShard};
use crate::shard::types::{Handover, Lingering};

/// A message to another shard, or to other parts of this shard.
pub struct Mail {
    /// The shard.
    pub to: u16,
    /// The message.
    pub what: ToShard,
}

/// What was output since the thread last took it, each kind in order.
#[derive(Default)]
pub(super) struct Out {
    mail: Vec<Mail>,
    control: Vec<ToControl>,
    handovers: Vec<Handover>,
    gone: Vec<SocketAddr>,
    lingering: Vec<Lingering>,
}

impl Out {
    /// Sends a message to another shard, or to other parts of this one.
    pub(super) fn send(&mut self, to: u16, what: ToShard) {
        self.mail.push(Mail { to, what });
    }

    /// Tells the control thread.
    pub(super) fn tell(&mut self, what: ToControl) {
        self.control.push(what);
    }

    /// Hands a connection over to another shard.
    pub(super) fn hand_over(&mut self, handover: Handover) {
        self.handovers.push(handover);
    }

    /// A connection was closed.
    pub(super) fn gone(&mut self, peer: SocketAddr) {
        self.gone.push(peer);
    }

    /// A connection was closed on this side, and must linger.
    pub(super) fn linger(&mut self, lingering: Lingering) {
        self.lingering.push(lingering);
    }

    pub(super) fn take_mail(&mut self) -> Vec<Mail> {
        std::mem::take(&mut self.mail)
    }

    pub(super) fn take_control(&mut self) -> Vec<ToControl> {
        std::mem::take(&mut self.control)
    }

    pub(super) fn take_handovers(&mut self) -> Vec<Handover> {
        std::mem::take(&mut self.handovers)
    }

    pub(super) fn take_gone(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.gone)
    }

    pub(super) fn take_lingering(&mut self) -> Vec<Lingering> {
        std::mem::take(&mut self.lingering)
    }
}
