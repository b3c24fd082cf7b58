//! Watches the configuration's files for changes, for systems where nobody sends SIGHUP.
//!
//! It checks them periodically by name. Kubernetes mounts links to a directory that is replaced as a whole by renaming a link next to
//! it, and inotify(7) reports nothing for the files then.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Delay after which a refused configuration is retried: a missing file may exist by then, and which one it lacks is unknown as long as
/// the configuration is refused.
const AGAIN: Duration = Duration::from_secs(10);

/// Identifies a file's contents: device, inode, size, and the time of the last change in nanoseconds. `None` if it does not exist.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The state of the files at the last check.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<PathBuf>,
    /// When the configuration was last read.
    read: Vec<Stamp>,
    /// At the last look.
    seen: Vec<Stamp>,
    refused: Option<Instant>,
}

impl Watch {
    /// Starts with a configuration that was just read from these files.
    pub(super) fn new(files: &[PathBuf]) -> Watch {
        let read = stamps(files);
        Watch { files: files.to_vec(), seen: read.clone(), read, refused: None }
    }

    /// Whether to reload: a file has changed, and has not changed further since the last check. To be called about once a second, so that
    /// it is complete then.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let is = stamps(&self.files);
        let at_rest = is == self.seen;
        self.seen = is;
        let again = self.refused.is_some_and(|since| now.saturating_duration_since(since) >= AGAIN);
        at_rest && (self.seen != self.read || again)
    }

    /// It was reloaded, as of the last check: from these files, or it was refused.
    pub(super) fn was_read(&mut self, now: Instant, files: Option<&[PathBuf]>) {
        match files {
            Some(files) if files != self.files => *self = Watch::new(files),
            _ => self.read.clone_from(&self.seen),
        }
        self.refused = files.is_none().then_some(now);
    }

    /// Whether the configuration was refused when it was last read.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.is_some()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let is = std::fs::metadata(file).ok()?;
        Some((is.dev(), is.ino(), is.size(), is.mtime(), is.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_exchange_of_links_as_kubernetes_does_it_is_seen_once_it_rests() {
        let directory =
            std::env::temp_dir().join(format!("rtsprelay-watch-{}-{}", std::process::id(), fastrand::u32(..)));
        let publish = |version: &str, text: &str| {
            std::fs::create_dir(directory.join(version)).unwrap();
            std::fs::write(directory.join(version).join("rtsprelay.toml"), text).unwrap();
            symlink(version, directory.join("..data_tmp")).unwrap();
            std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        };
        std::fs::create_dir(&directory).unwrap();
        publish("..1", "one");
        let file = directory.join("rtsprelay.toml");
        symlink("..data/rtsprelay.toml", &file).unwrap();

        let mut now = Instant::now();
        let files = [file.clone(), directory.join("missing.pass")];
        let mut watch = Watch::new(&files);
        let mut look = |watch: &mut Watch| {
            now += Duration::from_secs(1);
            (watch.is_due(now), now)
        };
        assert!(!look(&mut watch).0);
        publish("..2", "two");
        assert!(!look(&mut watch).0, "it may still be written");
        let (due, now) = look(&mut watch);
        assert!(due);
        watch.was_read(now, Some(&files));
        assert!(!look(&mut watch).0);
        // A missing file appears.
        std::fs::write(&files[1], "secret").unwrap();
        assert_eq!([look(&mut watch).0, look(&mut watch).0], [false, true]);
        // A refused configuration is retried periodically, even without a known change.
        let (_, now) = look(&mut watch);
        watch.was_read(now, None);
        assert!(watch.was_refused());
        let waits = (0..30).take_while(|_| !look(&mut watch).0).count();
        assert_eq!(waits as u64 + 1, AGAIN.as_secs());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
