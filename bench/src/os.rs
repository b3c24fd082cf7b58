//! Operating system functions: time, CPU pinning, limits, signals, ends of children.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Keeps this process (the threads made after the call too) on one CPU.
pub fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|e| format!("{cpu} is not a CPU number: {e}"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|e| format!("cannot run on CPU {cpu} ({e}); use one that `nproc` and the cpuset allow"))
}

/// Whether processes of this one may be kept on a CPU.
pub fn may_pin(cpu: usize) -> Result<(), String> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).map_err(|e| format!("cannot read the list of CPUs: {e}"))?;
    pin(cpu)?;
    sched_setaffinity(this, &before).map_err(|e| format!("cannot return to all CPUs: {e}"))
}

/// Lets a process run only when nobody else wants its CPU.
pub fn come_last(pid: i32) -> Result<(), String> {
    let renice = std::process::Command::new("renice").args(["-n", "19", "-p", &pid.to_string()]).output();
    match renice {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("renice: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("renice, of the package bsdutils: {error}")),
    }
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// A second signal sooner than this is a duplicate: Ctrl-C reaches a whole process group, and the program that started this process
/// forwards it (`timeout` signals the process and then its group).
const ECHO: Duration = Duration::from_millis(100);

/// A flag that SIGINT and SIGTERM set. A second signal that is not a duplicate ends the process at once.
pub fn stop_flag() -> Result<Arc<AtomicBool>, String> {
    let fail = |e: std::io::Error| format!("cannot watch for signals: {e}");
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(fail)?;
    let told = flag.clone();
    let watch = move || {
        let mut first: Option<Instant> = None;
        for _ in signals.forever() {
            match first {
                None => first = Some(Instant::now()),
                Some(first) if first.elapsed() < ECHO => {}
                Some(_) => std::process::exit(1),
            }
            told.store(true, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(fail)?;
    Ok(flag)
}

/// A flag that SIGUSR1 sets.
pub fn go_flag() -> Result<Arc<AtomicBool>, String> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, flag.clone())
        .map_err(|e| format!("cannot watch for signals: {e}"))?;
    Ok(flag)
}

/// Asks the kernel to send this process SIGTERM when the thread that started it ends.
///
/// `parent` is the process id that the caller believes is its parent; if it has ended before the call, this fails.
pub fn die_with_parent(parent: i32) -> Result<(), String> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
        .map_err(|e| format!("cannot set PDEATHSIG: {e}"))?;
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err("the parent has ended already".into()) }
}

/// Reads `2s`, `20ms`, `500us`, or a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let scale = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" | "min" => 60.0,
        _ => return Err(format!("{text:?}: the unit must be us, ms, s or m")),
    };
    match number.trim().parse::<f64>() {
        Ok(n) if (0.0..1e9).contains(&n) => Ok(Duration::from_secs_f64(n * scale)),
        _ => Err(format!("{text:?} is not a duration; write 2s or 20ms")),
    }
}

/// Reads a number above 0, up to a million.
pub fn positive(text: &str) -> Result<f64, String> {
    rate(text).ok().filter(|n| *n > 0.0).ok_or_else(|| format!("{text:?} is not a number above 0 and up to 1000000"))
}

/// Reads a number from 0 to a million.
pub fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.0..=1e6).contains(n));
    number.ok_or_else(|| format!("{text:?} is not a number from 0 to 1000000"))
}

/// Reads a time above 0.
pub fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?}: the duration must be above 0; write 8s or 500ms")),
        time => Ok(time),
    }
}

/// Reads a number with an optional decimal suffix: `4M` is 4,000,000.
pub fn quantity(text: &str) -> Result<u64, String> {
    let (number, scale) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'g' | 'G')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 0.0 && n * scale < 1e15 => Ok((n * scale) as u64),
        _ => Err(format!("{text:?} is not a number; write 4000000, 4000k or 4M")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("2s").unwrap(), Duration::from_secs(2));
        assert_eq!(duration("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(duration("1.5").unwrap(), Duration::from_millis(1500));
        assert!(duration("2 weeks").is_err());
        assert!(duration("-1s").is_err());
    }

    #[test]
    fn rates_are_numbers_that_can_be_kept() {
        assert_eq!((positive("29.97"), rate("0")), (Ok(29.97), Ok(0.0)));
        for wrong in ["0", "-1", "nan", "inf", "1e9", "many"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
        for wrong in ["-1", "nan", "inf", "1e9", ""] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert!(some_time("0ms").unwrap_err().contains("must be above 0"));
        assert_eq!(some_time("8"), Ok(Duration::from_secs(8)));
    }

    #[test]
    fn quantities_have_suffixes() {
        assert_eq!(quantity("4M").unwrap(), 4_000_000);
        assert_eq!(quantity("13k").unwrap(), 13_000);
        assert!(quantity("M").is_err());
    }
}
