//! Replaces the chunks of all logs by copies after a burst ([`Log::renew`](crate::media::log::Log::renew)), a limited number at a time.

use super::streams::{ShardStreams, Stream};
use crate::limits::RENEWED_CHUNKS_CHECK_MAX;

/// Its progress.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// The number for which it was last begun.
    number: u32,
    /// The index of the stream that is next, and the number of the chunk in its log; `None` if it is done.
    at: Option<(usize, u64)>,
}

impl Renewal {
    /// Begins if it is done and `number` is another one than the last time, and makes at most [`RENEWED_CHUNKS_CHECK_MAX`] copies.
    pub(super) fn go_on(&mut self, number: u32, streams: &mut ShardStreams) {
        if self.at.is_none() && std::mem::replace(&mut self.number, number) != number {
            self.at = Some((0, 0));
        }
        let (mut room, mut old) = (RENEWED_CHUNKS_CHECK_MAX, Vec::new());
        while let Some((stream, next)) = &mut self.at {
            let Some(Stream { log, .. }) = streams.get_mut(*stream) else {
                self.at = None;
                return;
            };
            room -= log.renew(next, room, &mut old);
            if room == 0 {
                return;
            }
            self.at = Some((*stream + 1, 0));
        }
    }
}
