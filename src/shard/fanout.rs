//! Sends chunks to the inboxes of other shards.

use std::collections::HashMap;
use std::sync::Arc;

use super::inbox::{ShardSender, ToShard};
use crate::media::chunk::{Chunk, ChunkKind};
use crate::media::{StreamId, TrackId};

/// Sends chunks, and counts those refused by a full inbox.
#[derive(Debug, Default)]
pub struct Fanout {
    /// By stream and shard, until the shard has been told.
    refused: HashMap<(StreamId, u16), Refused>,
}

#[derive(Debug, Default)]
struct Refused {
    frames: u64,
    /// The frame of the last refused chunk: a frame counts once, however many of its chunks are refused.
    last: Option<(TrackId, u64)>,
}

impl Fanout {
    /// Sends the next chunk to the shard.
    pub fn chunk(&mut self, shard: u16, sender: &ShardSender, stream: StreamId, epoch: u32, chunk: Arc<Chunk>) {
        match sender.chunk(stream, epoch, chunk) {
            Ok(()) => {
                if !self.refused.is_empty()
                    && let Some(refused) = self.refused.remove(&(stream, shard))
                {
                    sender.tell(ToShard::Refused(stream, refused.frames));
                }
            }
            Err(chunk) => {
                // The gap in the numbers makes the shard's log restart, so no client continues with a frame that lacks a part.
                let refused = self.refused.entry((stream, shard)).or_default();
                let frame = Some((chunk.track, chunk.frame));
                if chunk.kind == ChunkKind::Media && refused.last != frame {
                    refused.last = frame;
                    refused.frames += 1;
                }
            }
        }
    }

    /// A stream was removed.
    pub fn remove(&mut self, stream: StreamId) {
        self.refused.retain(|(of, _), _| *of != stream);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Instant;

    use super::*;
    use crate::limits::INBOX_CHUNKS_OF_STREAM_MAX;
    use crate::session::Loads;
    use crate::shard::inbox::{self, ShardReceiver};

    const STREAM: StreamId = StreamId::first(3);

    /// A part of a frame.
    fn chunk(number: u64, frame: u64) -> Arc<Chunk> {
        Arc::new(Chunk {
            number,
            track: TrackId(0),
            kind: ChunkKind::Media,
            frame,
            frame_start: true,
            frame_end: true,
            keyframe: false,
            arrival: Instant::now(),
            first_seq: number as u16,
            rtp_time: 0,
            bytes: bytes::Bytes::from_static(b"$\0\0\x0c\x80\x60\0\0\0\0\0\0\0\0\0\0"),
            packets: 1,
        })
    }

    async fn next(inbox: &mut ShardReceiver) -> Option<ToShard> {
        poll_fn(|cx| match inbox.poll_recv(cx) {
            Poll::Pending => Poll::Ready(None),
            ready => ready,
        })
        .await
    }

    #[test]
    fn a_frame_that_an_overfull_inbox_refuses_is_told_of_once_there_is_room() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (sender, mut inbox) = inbox::channel(1, Loads::new(2));
        let mut fanout = Fanout::default();
        let max = INBOX_CHUNKS_OF_STREAM_MAX as u64;
        for number in 0..max {
            fanout.chunk(1, &sender, STREAM, 1, chunk(number, number));
        }
        // Three parts of one frame, and one of the next.
        for (number, frame) in [(max, max), (max + 1, max), (max + 2, max), (max + 3, max + 1)] {
            fanout.chunk(1, &sender, STREAM, 1, chunk(number, frame));
        }
        // All of them in one turn.
        runtime.block_on(tokio::task::unconstrained(async {
            assert!(matches!(next(&mut inbox).await, Some(ToShard::Chunk(STREAM, 1, first)) if first.number == 0));
            fanout.chunk(1, &sender, STREAM, 1, chunk(max + 4, max + 2));
            let mut told = None;
            while let Some(message) = next(&mut inbox).await {
                told = Some(message);
            }
            assert!(matches!(told, Some(ToShard::Refused(STREAM, 2))));
        }));
        assert!(fanout.refused.is_empty());
    }
}
