//! What a log keeps, drops and hands over.

use super::*;
use crate::burst::ROOM_MAX;
use crate::media::rendering::Piece;

fn chunk(number: u64, arrival: Instant, bytes: usize) -> Arc<Chunk> {
    let mut framed = vec![0; bytes];
    framed[0] = b'$';
    framed[2..4].copy_from_slice(&((bytes - 4) as u16).to_be_bytes());
    Arc::new(Chunk {
        number,
        track: TrackId(0),
        kind: ChunkKind::Media,
        frame: number,
        frame_start: true,
        frame_end: true,
        keyframe: number == 0,
        arrival,
        first_seq: number as u16,
        rtp_time: 0,
        bytes: bytes::Bytes::from(framed),
        packets: 1,
    })
}

#[test]
fn tiny_frames_cost_what_they_take() {
    const BYTES_MAX: usize = 1 << 20;
    let now = Instant::now();
    let held = |shards| {
        let mut log = Log::new(Duration::from_secs(60), BYTES_MAX, shards);
        for number in 0..200_000 {
            log.append(chunk(number, now, 17));
            log.trim(now, |_| {});
        }
        assert!(log.cost() <= BYTES_MAX && log.bytes() == log.entries.len() * 17);
        log.entries.len()
    };
    // What a shard allocates for each: the chunk, an entry in a list that may be half empty, a reference count.
    let least = size_of::<Chunk>() + size_of::<Entry>() + size_of::<Piece>();
    assert!(held(1) < BYTES_MAX / least, "{}", held(1));
    assert!(held(8) < held(1) / 3, "{} and {}", held(8), held(1));
    // Normal frames have little overhead.
    let mut log = Log::new(Duration::from_secs(60), BYTES_MAX, 2);
    for number in 0..100 {
        log.append(chunk(number, now, 20_000));
        log.trim(now, |_| {});
    }
    assert!(log.bytes() > BYTES_MAX * 9 / 10, "{}", log.bytes());
}

#[test]
fn what_is_made_for_clients_is_counted_and_goes_with_its_chunk() {
    let now = Instant::now();
    let mut log = Log::new(Duration::ZERO, 1 << 20, 1);
    log.append(chunk(0, now, 1_000));
    let before = log.cost();
    log.get_mut(0).unwrap().piece(0);
    assert_eq!(log.cost(), before, "its own channel is there already");
    log.get_mut(0).unwrap().piece(7);
    let rendered = log.cost();
    assert!(rendered >= before + 1_000);
    log.get_mut(0).unwrap().piece(7);
    assert_eq!(log.cost(), rendered, "made once");
    log.next_mut(0).unwrap().datagrams();
    assert!(log.cost() > rendered);
    log.forget_keyframes();
    log.trim(now + Duration::from_secs(1), |_| {});
    assert_eq!((log.bytes(), log.cost(), log.entries.len()), (0, 0, 0));
}

/// A chunk as sources make them: its bytes say where its packet is.
fn framed(number: u64, arrival: Instant) -> Arc<Chunk> {
    let bytes = bytes::Bytes::from(vec![b'$', 0, 0, 12, 0x80, 96, 0, number as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
    Arc::new(Chunk { bytes, ..Chunk::clone(&chunk(number, arrival, 16)) })
}

#[test]
fn a_log_that_was_copied_before_is_completed_by_what_is_new() {
    let (now, age) = (Instant::now(), Duration::from_secs(10));
    let mut log = Log::new(age, 1 << 20, 2);
    (0..40).for_each(|number| assert_ne!(log.append(framed(number, now)), Appended::AfterGap));
    // Copied while all runs on, in two parts.
    let (mut sent, mut kept) = (Numbers::default(), Kept::default());
    for from in [0, 25] {
        for chunk in log.chunks_from(from).take(25) {
            assert!(sent.insert(chunk.number));
            kept.add(now, chunk.save(now));
        }
    }
    // Some have left the log by then.
    log.begin_at(30);
    (30..50).for_each(|number| assert_ne!(log.append(framed(number, now)), Appended::AfterGap));
    sent.forget_before(20);
    kept.drop_before(20);
    let state = log.save_beyond(now, &mut sent);
    assert_eq!(state.chunks.iter().map(ChunkState::number).collect::<Vec<_>>(), (40..50).collect::<Vec<_>>());
    let written = serde_json::to_string(&state).unwrap();
    let restored = |state: &str, kept: &mut Kept| {
        let mut log = Log::new(age, 1 << 20, 2);
        let mut state: LogState = serde_json::from_str(state).unwrap();
        state.keep(now, kept);
        log.restore_with(now, state, kept).map(|()| log)
    };
    let same = |one: &Log, other: &Log| {
        let bytes = |log: &Log| log.chunks_from(0).map(|chunk| chunk.bytes.clone()).collect::<Vec<_>>();
        assert_eq!(
            (one.first(), one.head(), one.bytes(), bytes(one)),
            (other.first(), other.head(), other.bytes(), bytes(other))
        );
    };
    let after = restored(&written, &mut kept).unwrap();
    same(&after, &log);
    // Another shard's log, which goes back further, shares the chunks and sends what only it has.
    let mut other = Log::new(age, 1 << 20, 2);
    (15..50).for_each(|number| {
        other.append(framed(number, now));
    });
    let state = other.save_beyond(now, &mut sent);
    assert_eq!(state.chunks.iter().map(ChunkState::number).collect::<Vec<_>>(), (15..20).collect::<Vec<_>>());
    let shared = restored(&serde_json::to_string(&state).unwrap(), &mut kept).unwrap();
    same(&shared, &other);
    assert!(Arc::ptr_eq(shared.get(45).unwrap().chunk(), after.get(45).unwrap().chunk()));
    // Without what came before there is no log.
    assert_eq!(restored(&written, &mut Kept::default()).err(), Some(Missing(30)));
}

#[test]
fn the_room_of_a_burst_is_given_back() {
    let now = Instant::now();
    let mut log = Log::new(Duration::from_secs(1), 1 << 30, 1);
    for number in 0..100_000 {
        log.append(chunk(number, now, 17));
    }
    assert!(log.entries.capacity() >= 100_000);
    log.forget_keyframes();
    log.trim(now + Duration::from_secs(2), |_| {});
    assert!(log.entries.is_empty() && log.entries.capacity() <= ROOM_MAX, "{}", log.entries.capacity());
}

/// Makes fragments, and counts them.
struct Counted(Piece, u32);

impl Rendering for Counted {
    const WHOLE_FRAMES: bool = true;

    fn form(&self) -> Form {
        Form::Fragment
    }

    fn render(&mut self, chunks: &[&Chunk]) -> Rendered {
        self.1 += 1;
        // The third cannot be converted.
        let body = (chunks[0].number != 2).then(|| Piece::from(Bytes::from(vec![self.1 as u8; 9])));
        Rendered { head: Some(self.0.clone()), body }
    }
}

#[test]
fn fragments_are_handed_over_with_the_log() {
    let now = Instant::now();
    let mut log = Log::new(Duration::from_secs(60), 1 << 20, 1);
    for number in 0..6 {
        log.append(chunk(number, now, 100));
    }
    let mut rendering = Counted(Bytes::from_static(b"head").into(), 0);
    let made: Vec<_> = (1..5).map(|number| log.rendered(number, &mut rendering).unwrap()).collect();
    let mut state: LogState = serde_json::from_str(&serde_json::to_string(&log.save(now)).unwrap()).unwrap();
    assert_eq!((state.fragments.len(), state.heads.len()), (4, 1));
    let mut bytes = 0;
    state.each_bytes(&mut |block| bytes += block.len());
    assert_eq!(bytes, 6 * 100 + 3 * 9 + 4);
    let mut other = Log::new(Duration::from_secs(60), 1 << 20, 1);
    other.restore(now, state).expect("all chunks");
    other.trim(now, |_| {});
    assert_eq!(other.cost(), log.cost());
    let restored: Vec<_> = (1..5).map(|number| other.rendered(number, &mut rendering).unwrap()).collect();
    assert_eq!(rendering.1, 4, "none is made again");
    for (made, restored) in made.iter().zip(&restored) {
        let body = |is: &Rendered| is.body.as_ref().map(|body| body.as_slice().to_vec());
        assert_eq!(body(made), body(restored));
    }
    let [first, .., last] = &restored[..] else { panic!("four") };
    assert!(first.head.as_ref().unwrap().is_same(last.head.as_ref().unwrap()), "they share it");
}

#[test]
fn renewed_chunks_are_the_same_in_other_memory() {
    let now = Instant::now();
    let mut log = Log::new(Duration::from_secs(60), 1 << 20, 1);
    for (number, bytes) in (0..).zip([200, 20_000, 1_000, 300]) {
        log.append(chunk(number, now, bytes));
    }
    let mut counted = Counted(Piece::from(Bytes::from_static(b"head")), 0);
    for number in 0..4 {
        log.rendered(number, &mut counted).expect("it is there");
        log.get_mut(number).expect("it is there").datagrams();
    }
    let what = |log: &mut Log, number| {
        let chunk = Arc::clone(log.get(number).expect("it is there").chunk());
        let own = log.get_mut(number).expect("it is there").piece(0);
        let made = log.rendered(number, &mut Counted(Piece::from(Bytes::new()), 9)).expect("it is there");
        (chunk, own, made)
    };
    let before: Vec<_> = (0..4).map(|number| what(&mut log, number)).collect();
    let mut next = 0;
    let old = &mut Vec::new();
    assert_eq!((log.renew(&mut next, 3, old), next, old.len()), (3, 3, 3));
    let after: Vec<_> = (0..4).map(|number| what(&mut log, number)).collect();
    let pointers = |(chunk, own, made): &(Arc<Chunk>, Piece, Rendered)| {
        (Arc::as_ptr(chunk), own.as_slice().as_ptr(), made.body.as_ref().map(|body| body.as_slice().as_ptr()))
    };
    for (before, after) in before.iter().zip(&after).take(3) {
        let chunk = |chunk: &Chunk| format!("{:?}", Chunk { bytes: Bytes::new(), ..chunk.clone() });
        assert_eq!((chunk(&before.0), before.1.as_slice()), (chunk(&after.0), after.1.as_slice()));
        assert_eq!(before.2.body.as_ref().map(Piece::as_slice), after.2.body.as_ref().map(Piece::as_slice));
        assert!(before.2.head.as_ref().unwrap().is_same(after.2.head.as_ref().unwrap()));
        let ((chunk, own, body), (new_chunk, new_own, new_body)) = (pointers(before), pointers(after));
        assert!(chunk != new_chunk && (body.is_none() || body != new_body));
        assert_eq!(own == new_own, before.1.len() > CACHED_BYTES_MAX, "only small pieces are copied");
    }
    assert_eq!(pointers(&before[3]), pointers(&after[3]));
    assert_eq!((log.renew(&mut next, 3, old), next), (1, 4));
    assert_eq!((log.renew(&mut next, 3, old), next), (0, 4));
    log.append(chunk(4, now, 17));
    log.forget_keyframes();
    log.trim(now + Duration::from_secs(61), |_| {});
    assert_eq!((log.bytes(), log.cost()), (0, 0), "all that was counted has gone");
}

#[test]
fn sound_before_the_oldest_frame_is_renewed_too_and_a_log_that_has_begun_anew() {
    let now = Instant::now();
    let mut log = Log::new(Duration::ZERO, 1 << 20, 1);
    log.audio[0] = true;
    for number in 0..6 {
        log.append(chunk(number, now, 100));
    }
    log.forget_keyframes();
    log.trim(now + Duration::from_millis(1), |_| {});
    assert!(log.first() > 0 && log.oldest() == 0);
    let (mut next, mut old) = (0, Vec::new());
    assert_eq!((log.renew(&mut next, 10, &mut old), next), (6, 6));
    let numbers: Vec<_> = log.chunks_from(0).map(|chunk| chunk.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    assert!(log.chunks_from(0).zip(&old).all(|(new, old)| !Arc::ptr_eq(new, old.chunk())));
    // Wherever the last call ended.
    log.begin_at(3);
    log.append(chunk(3, now, 100));
    assert_eq!(log.renew(&mut next, 10, &mut old), 0);
    next = 1;
    assert_eq!((log.renew(&mut next, 10, &mut old), next), (1, 4));
}

#[test]
fn a_log_that_is_nearly_full_is_not_renewed() {
    let now = Instant::now();
    let mut log = Log::new(Duration::from_secs(60), 10_000, 2);
    log.append(chunk(0, now, 100));
    assert_eq!(log.renew(&mut 0, 10, &mut Vec::new()), 1);
    log.append(chunk(1, now, 2_000));
    assert_eq!(log.renew(&mut 0, 10, &mut Vec::new()), 0);
}
