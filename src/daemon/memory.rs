//! Returns memory to the system that a burst has left in the allocator, which otherwise keeps freed memory between used blocks forever.

use std::time::Duration;

use crate::sys;

/// The interval of checks.
const EVERY: Duration = Duration::from_secs(20);

/// Minimum growth of the memory since it was last returned, in bytes and as a fraction: below that a trim costs more than it gains.
const GROWN_BYTES: u64 = 8 * 1024 * 1024;
const GROWN_PART: u64 = 10;

/// Checks on its own thread for the lifetime of the process, so that neither media nor the control thread wait.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn watch() -> std::io::Result<()> {
    std::thread::Builder::new().name("memory".into()).spawn(|| {
        let mut least = resident().unwrap_or(0);
        loop {
            // This thread does nothing else, and ends with the process.
            std::thread::sleep(EVERY);
            let Some(now) = resident() else { return };
            if now > least + GROWN_BYTES.max(least / GROWN_PART) {
                sys::give_back_free_memory();
            }
            least = least.min(resident().unwrap_or(now));
        }
    })?;
    Ok(())
}

/// The process's resident memory in bytes (proc(5), `/proc/self/status`).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_things_in_use_is_given_back() {
        const PIECES: usize = 64 * 1024;
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..PIECES).map(|_| Some(vec![7; 1_024].into_boxed_slice())).collect();
        let full = resident().unwrap();
        // One of each 64 stays: no large block is free, and the last one keeps the heap from shrinking.
        for (at, piece) in pieces.iter_mut().enumerate() {
            if at % 64 != 0 {
                *piece = None;
            }
        }
        sys::give_back_free_memory();
        let left = resident().unwrap();
        assert!(left + (PIECES * 512) as u64 <= full, "{left} bytes of {full} are left");
    }
}
