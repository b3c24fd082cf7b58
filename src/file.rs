//! Reads the small files that the configuration names: passwords, certificates, keys.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The permission for others to read (chmod(2)).
const OTHERS_READ: u32 = 0o004;

/// What was read of a file.
pub(crate) struct Contents {
    /// Its bytes, up to one more than requested.
    pub bytes: Vec<u8>,
    /// Whether every user of the machine may read it.
    pub exposed: bool,
}

/// Reads `bytes_max` bytes of a file, and one more if there are more.
///
/// # Errors
/// The error of opening or reading it, or that it is not a regular file.
pub(crate) fn read(path: &Path, bytes_max: usize) -> io::Result<Contents> {
    // Does not wait for the other end of a pipe.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Contents { bytes, exposed: is_exposed(&metadata) })
}

/// Whether every user of the machine may read a file.
pub(crate) fn is_exposed(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & OTHERS_READ != 0
}

/// The first line of a file with a password, without its line end; truncated to `bytes_max` plus one byte.
///
/// # Errors
/// As [`read`], and `InvalidData` if it is not UTF-8.
pub(crate) fn first_line(path: &Path, bytes_max: usize) -> io::Result<(String, bool)> {
    let Contents { bytes, exposed } = read(path, bytes_max + 1)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = str::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((line.to_owned(), exposed))
}

/// A warning about a secret in a file that every user can read; `shown` is its name.
pub(crate) fn exposed(shown: impl std::fmt::Display) -> String {
    format!("every user of this machine can read {shown}; `chmod o-r {shown}`")
}

/// The same for a file that the relay reads but need not own.
pub(crate) fn exposed_of_relay(shown: impl std::fmt::Display) -> String {
    format!("every user of this machine can read {shown}; `chmod 640 {shown}`, with the relay's group")
}
