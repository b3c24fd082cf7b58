//! Streams whose home is another shard: their data comes from there while clients here want it.
//!
//! The home sends descriptions and states to all shards, and chunks to those that have subscribed, through one queue for each pair of
//! shards. Each subscription has an epoch, to tell its data from that of an earlier one.

use std::sync::Arc;
use std::time::Instant;

use super::state::Core;
use super::streams::{Subscriber, Subscription};
use crate::egress::Egress;
use crate::media::StreamId;
use crate::media::chunk::Chunk;
use crate::session::EndReason;
use crate::shard::inbox::ToShard;
use crate::shard::snapshot::Snapshot;

impl<E: Egress> Core<E> {
    /// Whether a client that wants to play the stream must wait for its snapshot, which is requested.
    pub(super) fn awaits(&mut self, id: StreamId) -> bool {
        let Some(index) = self.streams.find(id) else { return false };
        let stream = &self.streams[index];
        if stream.home == self.shard || matches!(stream.subscription, Subscription::Live(_)) {
            return false;
        }
        self.subscribe(index);
        true
    }

    fn subscribe(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        if let Some(epoch) = stream.subscribe() {
            self.out.send(stream.home, ToShard::Subscribe { stream: stream.id, shard: self.shard, epoch });
        }
    }

    /// Subscribes to streams that clients have started to want, and notes those that they no longer want.
    pub(super) fn follow_wants(&mut self, now: Instant) {
        while let Some((id, wanted)) = self.server.poll_wanted() {
            let index = self.streams.find(id).filter(|index| self.streams[*index].home != self.shard);
            let Some(index) = index else { continue };
            self.streams.set_wanted(now, index, wanted);
            if wanted {
                self.subscribe(index);
            }
        }
    }

    /// Unsubscribes from streams that no client has wanted for a while.
    pub(super) fn unsubscribe_unwanted(&mut self, now: Instant) {
        for index in self.streams.take_unwanted(now) {
            let stream = &mut self.streams[index];
            if let Some(epoch) = stream.unsubscribe() {
                self.out.send(stream.home, ToShard::Unsubscribe { stream: stream.id, shard: self.shard, epoch });
            }
        }
    }

    /// Another shard wants the chunks of a stream of this shard.
    pub fn subscribed(&mut self, id: StreamId, shard: u16, epoch: u32) {
        let Some(index) = self.streams.find(id) else { return };
        let stream = &mut self.streams[index];
        stream.subscribers.retain(|subscriber| subscriber.shard != shard);
        stream.subscribers.push(Subscriber { shard, epoch });
        let snapshot = Box::new(stream.snapshot());
        self.out.send(shard, ToShard::Snapshot { stream: id, epoch, snapshot });
    }

    /// Another shard no longer wants them.
    pub fn unsubscribed(&mut self, id: StreamId, shard: u16, epoch: u32) {
        if let Some(index) = self.streams.find(id) {
            let subscribers = &mut self.streams[index].subscribers;
            subscribers.retain(|subscriber| (subscriber.shard, subscriber.epoch) != (shard, epoch));
        }
    }

    /// The start of a subscription: waiting clients play.
    pub fn snapshot_came(&mut self, now: Instant, id: StreamId, epoch: u32, snapshot: Snapshot) {
        let Some(index) = self.streams.find(id) else { return };
        let stream = &mut self.streams[index];
        if stream.subscription != Subscription::Waiting(epoch) {
            return;
        }
        stream.subscription = Subscription::Live(epoch);
        stream.begin_with(snapshot);
        for awaiting in self.awaiting.extract_if(.., |awaiting| awaiting.stream == id).collect::<Vec<_>>() {
            self.at = Some(awaiting.conn.0);
            let begun = self.begin(now, awaiting);
            self.process_events(now);
            if let Some(slot) = begun {
                self.queue_reports(slot);
            }
        }
    }

    /// The next chunk of a stream whose home is another shard.
    pub fn chunk_came(&mut self, now: Instant, id: StreamId, epoch: u32, chunk: Arc<Chunk>) {
        if self.streams.find(id).is_some_and(|index| self.streams[index].subscription == Subscription::Live(epoch)) {
            self.chunk(now, id, chunk);
        }
    }

    /// Ends the sessions that wait to play a stream that they can no longer play.
    pub(super) fn end_awaiting(&mut self, now: Instant, id: StreamId, reason: EndReason) {
        for awaiting in self.awaiting.extract_if(.., |awaiting| awaiting.stream == id).collect::<Vec<_>>() {
            self.server.end_session(now, awaiting.session, reason);
        }
    }
}
