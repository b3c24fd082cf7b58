//! Returns memory to the system that a burst has left in the allocator, which otherwise keeps freed memory between used blocks forever.
//!
//! glibc also keeps some freed pieces of each small size in a cache of each thread, where no other thread can reach them, and their pages
//! stay (glibc manual, "Memory Allocation Tunables", `glibc.malloc.tcache_count`). A tunable is set before the program starts or not at all,
//! so the threads are asked to take the pieces out of their caches.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch::Sender;

use crate::sys;

/// The interval of checks.
const EVERY: Duration = Duration::from_secs(20);

/// The interval after a burst, until all is done.
const EVERY_AFTER_BURST: Duration = Duration::from_secs(10);

/// How much free memory must have been added since the last return, in bytes and as a fraction of what is resident: below that a return
/// costs more than it gains.
const ADDED_BYTES: i64 = 1024 * 1024;
const ADDED_PART: i64 = 16;

/// How long the threads have to answer. One that does not keeps what it has.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Sizes of the pieces in a thread's cache, in bytes: 24 to 1,032 in steps of 16 (glibc 2.26 and later).
const CACHED_SIZES: usize = 64;

/// Bytes of the largest pieces in a thread's cache.
pub(crate) const CACHED_BYTES_MAX: usize = size_of_cached(CACHED_SIZES - 1);

/// Pieces of each size in a thread's cache.
const CACHED_OF_A_SIZE: usize = 7;

const fn size_of_cached(size: usize) -> usize {
    24 + 16 * size
}

/// What a thread had in its cache.
type Cached = Vec<Vec<u8>>;

/// The value of [`renewals`].
static RENEWALS: AtomicU32 = AtomicU32::new(0);

/// Asks threads for what they have in their caches.
static ASKED: LazyLock<Sender<Option<mpsc::Sender<Cached>>>> = LazyLock::new(|| Sender::new(None));

/// Sends what the thread has in its cache on request; never returns. Each of the threads that serve runs it.
pub(crate) async fn give_cached() {
    let mut asked = ASKED.subscribe();
    while asked.changed().await.is_ok() {
        let to = asked.borrow_and_update().clone();
        // The requester may have given up.
        drop(to.map(|to| to.send(all_cached())));
    }
}

/// Takes everything out of the thread's cache.
fn all_cached() -> Cached {
    // If the cache lacks pieces of a size, the allocator fills it from others that are free while it looks for one. Once it is full, it
    // gives out its own and looks for none.
    drop(black_box(cached()));
    cached()
}

/// As many pieces of each size as the thread's cache can hold. Whoever asks for memory gets what is in the cache first.
fn cached() -> Cached {
    let mut pieces = Vec::with_capacity(CACHED_SIZES * CACHED_OF_A_SIZE);
    for size in 0..CACHED_SIZES {
        pieces.extend((0..CACHED_OF_A_SIZE).map(|_| Vec::with_capacity(size_of_cached(size))));
    }
    pieces
}

/// Frees what the threads have in their caches.
fn empty_caches() {
    let (to, given) = mpsc::channel();
    let (mut pieces, until) = (Vec::new(), Instant::now() + ANSWER_MAX);
    ASKED.send_replace(Some(to));
    for _ in 0..ASKED.receiver_count() {
        pieces.extend(given.recv_timeout(until.saturating_duration_since(Instant::now())));
    }
    // What a thread frees goes to its own cache first, and that is emptied when it ends.
    if let Ok(thread) = std::thread::Builder::new().name("memory".into()).spawn(move || drop(pieces)) {
        // It cannot panic.
        let _ = thread.join();
    }
}

/// The number of requests so far to replace small pieces by copies: those that are made and freed all the time. The allocator reuses the memory of
/// each for the next, so where a burst has scattered them they would stay, each on a page of its own.
pub(crate) fn renewals() -> u32 {
    RENEWALS.load(Ordering::Relaxed)
}

/// What is due at a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Memory is to be returned.
    Return,
    /// Small pieces are to be replaced by copies ([`renewals`]).
    Renewal,
}

/// What has been done after a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything.
    Done,
    /// Its memory was returned. What has caused it may not have ended.
    Returned,
    /// Small pieces are being replaced by copies, and what they leave is to be returned.
    Renewed,
}

/// The resident memory that the program has written to and that is not allocated: most of it is free between allocations.
#[derive(Debug)]
struct Spare {
    /// The least of it since the last return.
    least: i64,
    stage: Stage,
}

impl Spare {
    fn new(spare: i64) -> Self {
        Spare { least: spare, stage: Stage::Done }
    }

    /// What is due, with so much of it.
    fn due(&mut self, spare: i64, resident: i64) -> Option<Due> {
        self.least = self.least.min(spare);
        let is_burst = spare - self.least > ADDED_BYTES.max(resident / ADDED_PART);
        let (stage, due) = match self.stage {
            // What was replaced has left memory, and that is no burst.
            Stage::Renewed => (Stage::Done, Some(Due::Return)),
            _ if is_burst => (Stage::Returned, Some(Due::Return)),
            Stage::Returned => (Stage::Renewed, Some(Due::Renewal)),
            Stage::Done => (Stage::Done, None),
        };
        self.stage = stage;
        due
    }

    /// When to check next.
    fn interval(&self) -> Duration {
        if self.stage == Stage::Done { EVERY } else { EVERY_AFTER_BURST }
    }

    /// Memory was returned, and so much is left.
    fn returned(&mut self, left: i64) {
        self.least = left;
    }
}

/// Checks on its own thread for the lifetime of the process, so that neither media nor the control thread wait.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn watch() -> std::io::Result<()> {
    std::thread::Builder::new().name("memory".into()).spawn(|| {
        let Some((_, spare)) = spare() else { return };
        let mut before = Spare::new(spare);
        loop {
            // It sleeps because nothing tells when memory becomes free: there is only looking, every 20 s, or 10 s after a burst. The thread does
            // nothing else, nobody waits for it, and it ends with the process.
            std::thread::sleep(before.interval());
            let Some((resident, now)) = self::spare() else { return };
            match before.due(now, resident) {
                Some(Due::Return) => {
                    empty_caches();
                    sys::give_back_free_memory();
                    before.returned(self::spare().map_or(now, |(_, left)| left));
                }
                Some(Due::Renewal) => drop(RENEWALS.fetch_add(1, Ordering::Relaxed)),
                None => {}
            }
        }
    })?;
    Ok(())
}

/// The process's resident memory, and how much of it is spare, in bytes. `None` if that is unknown. Negative if memory is allocated and was
/// never used.
fn spare() -> Option<(i64, i64)> {
    let resident = resident()?;
    Some((resident as i64, difference(resident, sys::allocated_bytes()?)))
}

/// By how much `resident` exceeds what is allocated, of which the lower 32 bits are known; from -1 to 3 GiB.
fn difference(resident: u64, allocated: u32) -> i64 {
    const GIB: i64 = 1 << 30;
    let difference = i64::from((resident as u32).wrapping_sub(allocated));
    if difference < 3 * GIB { difference } else { difference - 4 * GIB }
}

/// The process's resident memory in bytes, without pages of files such as the program (proc(5), `/proc/self/status`).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::sync::watch;

    use super::*;
    use crate::egress::IoKind;
    use crate::egress::runtime::Runtime;

    #[test]
    fn what_a_burst_adds_is_returned_then_pieces_move_and_what_they_leave_is_returned() {
        const MIB: i64 = 1024 * 1024;
        let mut spare = Spare::new(8 * MIB);
        assert_eq!(spare.due(8 * MIB + MIB / 4, 10 * MIB), None);
        // A burst's end, and another part of it.
        assert_eq!(spare.due(30 * MIB, 33 * MIB), Some(Due::Return));
        spare.returned(9 * MIB);
        assert_eq!(spare.due(30 * MIB, 33 * MIB), Some(Due::Return));
        spare.returned(9 * MIB);
        assert_eq!(spare.interval(), EVERY_AFTER_BURST);
        assert_eq!(spare.due(9 * MIB + MIB / 2, 10 * MIB), Some(Due::Renewal));
        // However much has moved, that is not taken for another burst.
        assert_eq!(spare.due(30 * MIB, 33 * MIB), Some(Due::Return));
        spare.returned(9 * MIB);
        assert_eq!((spare.due(9 * MIB + MIB / 2, 10 * MIB), spare.interval()), (None, EVERY));
        // Connections with buffers that they have not used come and go.
        assert_eq!(spare.due(-5 * MIB, 12 * MIB), None);
        assert_eq!(spare.due(9 * MIB, 12 * MIB), Some(Due::Return));
        spare = Spare::new(9 * MIB);
        // Of more memory, more may be spare.
        assert_eq!(spare.due(17 * MIB, 150 * MIB), None);
        assert_eq!(spare.due(20 * MIB, 150 * MIB), Some(Due::Return));
    }

    #[test]
    fn sizes_beyond_32_bits_are_compared() {
        const GIB: u64 = 1 << 30;
        for (resident, allocated) in
            [(5 * GIB, 5 * GIB), (9 * GIB, 7 * GIB), (4 * GIB, GIB + 1), (GIB / 2, GIB), (7 * GIB, 8 * GIB - 1)]
        {
            assert_eq!(difference(resident, allocated as u32), resident as i64 - allocated as i64);
        }
    }

    /// Runs this test in a process of its own, because it compares what the whole process has. Returns whether this is that process.
    fn is_alone(test: &str) -> bool {
        const ALONE: &str = "RTSPRELAY_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let program = std::env::current_exe().unwrap();
        let done = Command::new(program)
            .args(["--exact", &format!("memory::tests::{test}")])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && printed.contains("1 passed"), "{printed}");
        false
    }

    #[test]
    fn what_lies_between_things_in_use_is_given_back() {
        const PIECES: usize = 64 * 1024;
        if !is_alone("what_lies_between_things_in_use_is_given_back") {
            return;
        }
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..PIECES).map(|_| Some(vec![7; 1_024].into_boxed_slice())).collect();
        let full = resident().unwrap();
        let ((_, spare_before), allocated) = (spare().unwrap(), sys::allocated_bytes().unwrap());
        // One of each 64 stays: no large block is free, and the last one keeps the heap from shrinking.
        for (at, piece) in pieces.iter_mut().enumerate() {
            if at % 64 != 0 {
                *piece = None;
            }
        }
        // Of which the system knows nothing yet.
        let freed = allocated.wrapping_sub(sys::allocated_bytes().unwrap());
        assert!(freed as usize > PIECES * 512, "{freed} bytes were freed");
        assert!(spare().unwrap().1 > spare_before + (PIECES * 512) as i64);
        sys::give_back_free_memory();
        let left = resident().unwrap();
        assert!(left + (PIECES * 512) as u64 <= full, "{left} bytes of {full} are left");
    }

    #[test]
    fn what_threads_have_in_their_caches_is_given_back_too() {
        const THREADS: usize = 32;
        const PIECES: usize = CACHED_SIZES * CACHED_OF_A_SIZE;
        if !is_alone("what_threads_have_in_their_caches_is_given_back_too") {
            return;
        }
        let (ready, is_ready) = mpsc::channel();
        let (end, ended) = watch::channel(());
        let serve = |ready: mpsc::Sender<()>, mut ended: watch::Receiver<()>| {
            Runtime::new(IoKind::Epoll).unwrap().block_on(async {
                let (mut pieces, mut between) = (Vec::with_capacity(PIECES), Vec::with_capacity(PIECES));
                for at in 0..PIECES {
                    pieces.push(vec![7_u8; size_of_cached(at / CACHED_OF_A_SIZE)]);
                    between.push(vec![7_u8; 4_096]);
                }
                drop((pieces, between));
                ready.send(()).unwrap();
                // It ends with an error, when the sender is gone.
                let _ = ended.changed().await;
            });
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (ready, ended) = (ready.clone(), ended.clone());
                std::thread::spawn(move || serve(ready, ended))
            })
            .collect();
        is_ready.iter().take(THREADS).for_each(drop);
        sys::give_back_free_memory();
        let cached = resident().unwrap();
        empty_caches();
        sys::give_back_free_memory();
        let left = resident().unwrap();
        drop(end);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let gained = cached as i64 - left as i64;
        assert!(gained > (THREADS * PIECES * 4_096 / 4) as i64, "{gained} bytes were given back");
    }
}
