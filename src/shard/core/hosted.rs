//! Streams whose home is this shard: their output goes to the log here, and to the other shards.

use std::sync::Arc;
use std::time::Instant;

use super::early::Words;
use super::out::Mail;
use super::state::Core;
use crate::egress::Egress;
use crate::media::{Description, SourceState, StreamEvent, StreamId};
use crate::session::SessionKey;
use crate::shard::inbox::ToShard;
use crate::source::publishing::Publishing;

impl<E: Egress> Core<E> {
    /// A source on this shard has produced something for its stream.
    pub fn hosted(&mut self, now: Instant, id: StreamId, event: StreamEvent) {
        let Some(index) = self.streams.find(id) else { return };
        match event {
            StreamEvent::Chunk(chunk) => {
                for by in &self.streams[index].subscribers {
                    self.out.send(by.shard, ToShard::Chunk(id, by.epoch, Arc::clone(&chunk)));
                }
                self.chunk(now, id, chunk);
            }
            StreamEvent::Described(description) => {
                self.tell_others(|| ToShard::Described(id, Arc::clone(&description)));
                self.described(now, id, description);
            }
            StreamEvent::State(state) => {
                self.tell_others(|| ToShard::Source(id, state));
                self.source(now, id, state);
            }
        }
    }

    fn tell_others(&mut self, what: impl Fn() -> ToShard) {
        for to in (0..self.shards as u16).filter(|shard| *shard != self.shard) {
            self.out.send(to, what());
        }
    }

    /// Passes a publisher's action to the source of its stream.
    pub(super) fn publishing(&mut self, stream: StreamId, session: SessionKey, what: Publishing) {
        let to = self.streams.get(stream.index()).filter(|at| at.id == stream).map_or(self.shard, |at| at.home);
        self.out.send(to, ToShard::Publishing { stream, shard: self.shard, session, what });
    }

    /// The messages for other shards, in order, and for this shard's sources.
    pub fn take_mail(&mut self) -> Vec<Mail> {
        self.out.take_mail()
    }

    /// The source of a stream that is not known here has described it. Of one that was removed it is of no interest.
    pub(super) fn described_early(&mut self, id: StreamId, description: Arc<Description>) {
        if self.streams.is_to_come(id) {
            self.early.of(id).description = Some(description);
        }
    }

    /// The same for the state of its source.
    pub(super) fn source_early(&mut self, id: StreamId, state: SourceState) {
        if self.streams.is_to_come(id) {
            self.early.of(id).source = Some(state);
        }
    }

    /// The stream is known now: what was said before is heard.
    pub(super) fn hear_early(&mut self, now: Instant, id: StreamId) {
        let Some(Words { description, source }) = self.early.take(id) else { return };
        if let Some(description) = description {
            self.described(now, id, description);
        }
        if let Some(source) = source {
            self.source(now, id, source);
        }
    }
}
