//! Reads CPU time and memory of a process from /proc.

use std::collections::{HashMap, HashSet};
use std::fs;

/// Ticks of `utime` and `stime` a second: USER_HZ, which Linux keeps at 100 for programs (proc(5)).
const TICKS: u64 = 100;

/// Why nothing is known about a process, and what to do.
fn unreadable(pid: i32, error: &std::io::Error) -> String {
    format!(
        "process {pid} cannot be read in /proc: {error}; give the process ID of a running server (`pgrep` prints it)"
    )
}

/// CPU time that a process has used, at one moment.
#[derive(Clone, Debug, Default)]
pub struct CpuSample {
    /// Of the whole process, ended threads included, in ns; 10 ms steps.
    process_ns: u64,
    /// Of each living thread, in ns: run time, time spent waiting for a CPU.
    threads: HashMap<i32, (u64, u64)>,
}

impl CpuSample {
    /// Reads it now.
    pub fn of(pid: i32) -> Result<CpuSample, String> {
        let gone = |e: std::io::Error| unreadable(pid, &e);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
        // The name may hold spaces: count from its closing parenthesis. utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let process_ns = (ticks(11) + ticks(12)) * (1_000_000_000 / TICKS);
        let mut threads = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)?.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
            if let (Some(run), Some(wait)) = (numbers.next(), numbers.next()) {
                threads.insert(tid, (run, wait));
            }
        }
        Ok(CpuSample { process_ns, threads })
    }

    /// CPU time used from `earlier` to this sample, in ns: to the nanosecond from the threads, unless threads that have
    /// ended since make the process's own coarse count larger.
    pub fn used_ns_since(&self, earlier: &CpuSample) -> u64 {
        let fine = self.sum(earlier, |t| t.0);
        let coarse = self.process_ns.saturating_sub(earlier.process_ns);
        if coarse > fine + 3 * 1_000_000_000 / TICKS || self.threads.is_empty() { coarse } else { fine }
    }

    /// Time that threads spent ready to run but waiting for a CPU, in ns.
    pub fn waited_ns_since(&self, earlier: &CpuSample) -> u64 {
        self.sum(earlier, |t| t.1)
    }

    fn sum(&self, earlier: &CpuSample, pick: impl Fn(&(u64, u64)) -> u64) -> u64 {
        let before = |tid: &i32| earlier.threads.get(tid).map_or(0, &pick);
        self.threads.iter().map(|(tid, now)| pick(now).saturating_sub(before(tid))).sum()
    }
}

/// The kernel's counts for a process.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// `read`, `readv`, `pread` and similar calls, of anything (`syscr`), including those that returned nothing; not `recv` and similar
    /// calls, nor io_uring's reads. `None` if the kernel does not report it to this user.
    reads: Option<u64>,
    /// Of each living thread: times that it went to sleep (`voluntary_ctxt_switches`).
    sleeps: HashMap<i32, u64>,
}

impl Activity {
    /// Reads it now.
    pub fn of(pid: i32) -> Activity {
        let number =
            |text: &str, key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let mut sleeps = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if let Some(count) = number(&status, "voluntary_ctxt_switches:") {
                sleeps.insert(tid, count);
            }
        }
        Activity { reads: number(&io, "syscr:"), sleeps }
    }

    /// Reads since `earlier`.
    pub fn reads_since(&self, earlier: &Activity) -> Option<u64> {
        Some(self.reads?.saturating_sub(earlier.reads?))
    }

    /// Times since `earlier` that a thread slept, and so was woken; without threads that have ended.
    pub fn wakes_since(&self, earlier: &Activity) -> u64 {
        let before = |tid: &i32| earlier.sleeps.get(tid).copied().unwrap_or(0);
        self.sleeps.iter().map(|(tid, now)| now.saturating_sub(before(tid))).sum()
    }
}

/// Datagrams that the kernel has dropped at the UDP sockets of those ports because their buffers were full. Sockets that were closed
/// meanwhile are not included.
pub fn datagrams_dropped(ports: &HashSet<u16>) -> u64 {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let of_line = |line: &str| {
        // Its second word is ADDRESS:PORT in hexadecimal, its last the number dropped.
        let mut words = line.split_whitespace();
        let port = words.nth(1)?.rsplit_once(':')?.1;
        let ours = u16::from_str_radix(port, 16).is_ok_and(|port| ports.contains(&port));
        words.next_back()?.parse::<u64>().ok().filter(|_| ours)
    };
    tables.iter().flat_map(|table| table.lines().filter_map(of_line)).sum()
}

/// CPU time that the whole machine has used, in ns; 10 ms steps. Zero where /proc/stat cannot be read.
pub fn machine_busy_ns() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = numbers.filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already (proc_stat(5)).
    let busy: u64 = ticks.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, t)| t).sum();
    busy * (1_000_000_000 / TICKS)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: i32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/smaps_rollup");
    // smaps_rollup is exact; status, for kernels and users that may not read it, may lag by some pages a thread.
    let (text, key) = match fs::read_to_string(&path) {
        Ok(text) => (text, "Rss:"),
        Err(_) => (fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| unreadable(pid, &e))?, "VmRSS:"),
    };
    let line = text.lines().find(|l| l.starts_with(key)).ok_or_else(|| format!("no {key} in /proc/{pid}"))?;
    let kilobytes = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    kilobytes.map(|k| k * 1024).ok_or_else(|| format!("/proc/{pid}: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_wakes_are_counted() {
        let pid = std::process::id() as i32;
        let before = Activity::of(pid);
        for _ in 0..10 {
            fs::read("/proc/self/stat").unwrap();
            // Each sleep is one wake, which is what is counted here.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let after = Activity::of(pid);
        // Other tests read and sleep beside this one.
        assert!(after.reads_since(&before).is_none_or(|reads| reads >= 10));
        assert!(after.wakes_since(&before) >= 10);
        assert_eq!(Activity::of(i32::MAX).reads_since(&before), None);
    }

    #[test]
    fn own_work_is_seen() {
        let pid = std::process::id() as i32;
        let before = CpuSample::of(pid).unwrap();
        let mut sum = 0u64;
        while CpuSample::of(pid).unwrap().used_ns_since(&before) == 0 {
            sum = (0..1_000_000u64).fold(sum, |a, b| a.wrapping_mul(31).wrapping_add(b));
        }
        assert!(resident_bytes(pid).unwrap() > 100_000, "{sum}");
        assert!(CpuSample::of(i32::MAX).is_err());
    }
}
