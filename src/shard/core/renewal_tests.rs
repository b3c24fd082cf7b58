//! Logs whose chunks are replaced by copies, a limited number at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::paths::tests::{chunk, core};
use super::{Core, Start, StreamSetup};
use crate::egress::sim::SimEgress;
use crate::limits::RENEWED_CHUNKS_CHECK_MAX;
use crate::media::StreamId;
use crate::media::chunk::Chunk;

/// Where the chunks of all logs are. They are kept, because otherwise a new chunk could be where an old one was.
fn places(core: &Core<SimEgress>, kept: &mut Vec<Arc<Chunk>>) -> BTreeSet<*const Chunk> {
    let chunks = core.streams.iter().flat_map(|stream| stream.log.chunks_from(0));
    chunks.inspect(|&chunk| kept.push(Arc::clone(chunk))).map(Arc::as_ptr).collect()
}

#[test]
fn each_chunk_is_copied_once_and_few_at_a_time() {
    let now = Instant::now();
    let mut core = core(now);
    core.streams.set_bounds(Duration::from_secs(1), 1 << 24);
    let many = RENEWED_CHUNKS_CHECK_MAX + 7;
    for (index, chunks) in (0..).zip([many, 0, 3]) {
        let id = StreamId::first(index);
        core.set_stream(now, &StreamSetup::plain(id, format!("s{index}"), Start::Live));
        for number in 0..chunks as u64 {
            core.chunk(now, id, chunk(number, now));
        }
    }
    let kept = &mut Vec::new();
    let first = places(&core, kept);
    core.renew_logs(0);
    assert_eq!(places(&core, kept), first, "there is no reason yet");
    core.renew_logs(1);
    let second = places(&core, kept);
    assert_eq!(second.intersection(&first).count(), 7 + 3);
    // That must not begin anew, however soon the next time comes.
    core.renew_logs(2);
    let third = places(&core, kept);
    assert!(third.is_disjoint(&first));
    assert_eq!(third.intersection(&second).count(), RENEWED_CHUNKS_CHECK_MAX);
    (0..2).for_each(|_| core.renew_logs(2));
    let fourth = places(&core, kept);
    assert!(fourth.is_disjoint(&third));
    core.renew_logs(2);
    assert_eq!(places(&core, kept), fourth);
}
