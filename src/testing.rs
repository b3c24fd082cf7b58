//! Fault injection and measurements for tests. Only builds with the feature `testing` support them: in other builds there is nothing to
//! set, every question below is answered with a constant, and the code behind it is not compiled in.

use std::ffi::OsString;
#[cfg(feature = "testing")]
use std::fmt::Display;
use std::time::Duration;

use crate::limits::NONCE_LIFETIME_S;

/// What tests ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Testing {
    #[cfg(feature = "testing")]
    knobs: Knobs,
}

/// A `--test-` argument that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadArgument {
    /// There is none of this name.
    #[error("{0} is no argument of tests")]
    Unknown(String),
    /// Its value is not a time: the argument, and what is wrong.
    #[error("{0}: {1}")]
    Value(String, String),
}

/// The `--test-` arguments.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Knobs {
    delay: Option<Duration>,
    panic: Option<Duration>,
    nonce_lifetime: Option<Duration>,
    unmeasured: bool,
    hand_over: Option<&'static str>,
    recording: Option<&'static str>,
}

#[cfg(feature = "testing")]
impl Testing {
    /// Takes the `--test-` arguments out of a command line, so that the program's own parser never sees them. `parse` reads a
    /// time.
    ///
    /// ```text
    /// --test-delay TIME            chunks are held back so long between chunker and shards
    /// --test-panic TIME            a source panics so long after its start; a client's code does when the client asks for it
    /// --test-nonce-lifetime TIME   how long nonces are valid
    /// --test-hand-over=FILE        a program that takes over ends at the step that the file names, or stops there (`STEP stops`)
    /// --test-record=FILE           a program that takes over records what it receives
    /// --test-unmeasured            nothing that is sent is counted, and nothing is reported
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with one of them.
    pub fn take<E: Display>(
        mut arguments: impl Iterator<Item = OsString>,
        parse: fn(&str) -> Result<Duration, E>,
    ) -> Result<(Testing, Vec<OsString>), BadArgument> {
        let (mut knobs, mut others) = (Knobs::default(), Vec::new());
        while let Some(argument) = arguments.next() {
            let Some(text) = argument.to_str().filter(|text| text.starts_with("--test-")) else {
                others.push(argument);
                continue;
            };
            if text == "--test-unmeasured" {
                knobs.unmeasured = true;
                continue;
            }
            if let Some(file) = text.strip_prefix("--test-hand-over=") {
                // As long as the process lives.
                knobs.hand_over = Some(file.to_owned().leak());
                continue;
            }
            if let Some(file) = text.strip_prefix("--test-record=") {
                knobs.recording = Some(file.to_owned().leak());
                continue;
            }
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (text, arguments.next().and_then(|value| value.into_string().ok()).unwrap_or_default()),
            };
            let knob = match name {
                "--test-delay" => &mut knobs.delay,
                "--test-panic" => &mut knobs.panic,
                "--test-nonce-lifetime" => &mut knobs.nonce_lifetime,
                _ => return Err(BadArgument::Unknown(name.to_owned())),
            };
            *knob = Some(parse(&value).map_err(|error| BadArgument::Value(name.to_owned(), error.to_string()))?);
        }
        Ok((Testing { knobs }, others))
    }

    /// How long chunks are delayed between chunker and shards.
    pub fn chunk_delay(&self) -> Duration {
        self.knobs.delay.unwrap_or_default()
    }

    /// How long after its start a source panics.
    pub fn source_panics_after(&self) -> Option<Duration> {
        self.knobs.panic
    }

    /// Whether `bytes` ask for a panic by `what`, and tests allow it.
    pub fn is_asked(&self, bytes: &[u8], what: &[u8]) -> bool {
        self.knobs.panic.is_some() && bytes.windows(what.len()).any(|window| window == what)
    }

    /// How long nonces are valid.
    pub fn nonce_lifetime(&self) -> Duration {
        self.knobs.nonce_lifetime.unwrap_or(Duration::from_secs(NONCE_LIFETIME_S))
    }

    /// A program that takes over from another has come to this step.
    pub fn hand_over_step(&self, step: &str) {
        use nix::sys::signal::{Signal, raise};

        let told = self.knobs.hand_over.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        // As if somebody else had ended or stopped it.
        let signal = match told.trim().strip_prefix(step) {
            Some("") => Signal::SIGKILL,
            Some(" stops") => Signal::SIGSTOP,
            _ => return,
        };
        let _ = raise(signal);
    }

    /// The file for what a program that takes over receives.
    pub fn recording(&self) -> Option<std::fs::File> {
        std::fs::File::create(self.knobs.recording?).ok()
    }

    /// Whether sends are not counted and nothing is reported.
    pub fn is_unmeasured(&self) -> bool {
        self.knobs.unmeasured
    }
}

#[cfg(not(feature = "testing"))]
impl Testing {
    /// All of the command line: there are no arguments of tests.
    ///
    /// # Errors
    ///
    /// None.
    pub fn take<E>(
        arguments: impl Iterator<Item = OsString>,
        _parse: fn(&str) -> Result<Duration, E>,
    ) -> Result<(Testing, Vec<OsString>), BadArgument> {
        Ok((Testing {}, arguments.collect()))
    }

    /// None.
    pub const fn chunk_delay(&self) -> Duration {
        Duration::ZERO
    }

    /// Never.
    pub const fn source_panics_after(&self) -> Option<Duration> {
        None
    }

    /// No.
    pub const fn is_asked(&self, _bytes: &[u8], _what: &[u8]) -> bool {
        false
    }

    /// As [`NONCE_LIFETIME_S`] says.
    pub const fn nonce_lifetime(&self) -> Duration {
        Duration::from_secs(NONCE_LIFETIME_S)
    }

    /// Nothing happens.
    pub const fn hand_over_step(&self, _step: &str) {}

    /// None.
    pub const fn recording(&self) -> Option<std::fs::File> {
        None
    }

    /// No.
    pub const fn is_unmeasured(&self) -> bool {
        false
    }
}

/// Counts how often a task is woken.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct WakeCount(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl WakeCount {
    /// How often since this was last called.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(test)]
impl std::task::Wake for WakeCount {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;

    fn taken(line: &str) -> Result<(Testing, Vec<OsString>), BadArgument> {
        Testing::take(line.split(' ').map(OsString::from), crate::config::parse_duration)
    }

    #[test]
    fn arguments_of_tests_are_taken_out_wherever_they_stand() {
        let (testing, others) =
            taken("rtsprelay demo --test-delay 20ms --http 127.0.0.1:0 --test-panic=1h --test-unmeasured").unwrap();
        assert_eq!(others, ["rtsprelay", "demo", "--http", "127.0.0.1:0"]);
        assert_eq!(testing.chunk_delay(), Duration::from_millis(20));
        assert_eq!(testing.source_panics_after(), Some(Duration::from_secs(3600)));
        assert!(testing.is_unmeasured() && testing.is_asked(b"X-Test: now", b"now"));
        assert_eq!(testing.nonce_lifetime(), Duration::from_secs(NONCE_LIFETIME_S));
    }

    #[test]
    fn nothing_panics_that_was_not_told_to_be_tested_so() {
        let (testing, _) = taken("rtsprelay demo").unwrap();
        assert_eq!(testing, Testing::default());
        assert!(!testing.is_asked(b"X-Test: now", b"now"));
        assert!(taken("rtsprelay demo --test-dealy 1s").is_err() && taken("rtsprelay demo --test-delay").is_err());
    }
}
