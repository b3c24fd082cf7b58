//! Returns memory to the system that a burst has left in the allocator, which otherwise keeps freed memory between used blocks forever.

use std::time::Duration;

use crate::sys;

/// The interval of checks.
const EVERY: Duration = Duration::from_secs(20);

/// How much free memory must have been added since the last return, in bytes and as a fraction of what is resident: below that a return
/// costs more than it gains.
const ADDED_BYTES: i64 = 1024 * 1024;
const ADDED_PART: i64 = 16;

/// The resident memory that the program has written to and that is not allocated: most of it is free between allocations. The least of it since
/// the last return.
#[derive(Debug)]
struct Spare(i64);

impl Spare {
    /// Whether so much of it is due to be returned.
    fn is_due(&mut self, spare: i64, resident: i64) -> bool {
        self.0 = self.0.min(spare);
        spare - self.0 > ADDED_BYTES.max(resident / ADDED_PART)
    }
}

/// Checks on its own thread for the lifetime of the process, so that neither media nor the control thread wait.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn watch() -> std::io::Result<()> {
    std::thread::Builder::new().name("memory".into()).spawn(|| {
        let Some((_, spare)) = spare() else { return };
        let mut least = Spare(spare);
        loop {
            // This thread does nothing else, and ends with the process.
            std::thread::sleep(EVERY);
            let Some((resident, now)) = self::spare() else { return };
            if least.is_due(now, resident) {
                sys::give_back_free_memory();
                least = Spare(self::spare().map_or(now, |(_, left)| left));
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
    use super::*;

    #[test]
    fn what_is_added_is_returned_once() {
        const MIB: i64 = 1024 * 1024;
        let mut least = Spare(8 * MIB);
        assert!(!least.is_due(8 * MIB + MIB / 4, 10 * MIB));
        // A burst is over, and nothing of it is resident but spare memory.
        assert!(least.is_due(30 * MIB, 33 * MIB));
        least = Spare(9 * MIB);
        assert!(!least.is_due(9 * MIB, 10 * MIB));
        // Connections with buffers that they have not used come and go.
        assert!(!least.is_due(-5 * MIB, 12 * MIB));
        assert!(least.is_due(9 * MIB, 12 * MIB));
        least = Spare(9 * MIB);
        // Of more memory, more may be spare.
        assert!(!least.is_due(17 * MIB, 150 * MIB) && least.is_due(20 * MIB, 150 * MIB));
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

    #[test]
    fn what_lies_between_things_in_use_is_given_back() {
        const PIECES: usize = 64 * 1024;
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
}
