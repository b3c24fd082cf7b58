//! The small files that the configuration names: passwords, certificates, keys.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Permission of everybody to read (chmod(2)).
const OTHERS_READ: u32 = 0o004;

/// What was read of a file.
pub struct Contents {
    /// Its bytes, up to one more than were asked for.
    pub bytes: Vec<u8>,
    /// Whether every user of the machine may read it.
    pub exposed: bool,
}

/// Reads `bytes_max` bytes of a file, and one more if there are more.
///
/// # Errors
/// The error of opening or reading it, and of one that is no regular file.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Contents> {
    // Without waiting for whoever has the other end of a pipe.
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
pub fn is_exposed(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & OTHERS_READ != 0
}

/// The first line of a file with a password, without its end; a longer one is cut off after `bytes_max`, and one byte more.
///
/// # Errors
/// As of [`read`], and `InvalidData` if it is no UTF-8.
pub fn first_line(path: &Path, bytes_max: usize) -> io::Result<(String, bool)> {
    let Contents { bytes, exposed } = read(path, bytes_max + 1)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = str::from_utf8(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((line.to_owned(), exposed))
}

/// What to say of a secret in a file that every user may read; `shown` is its name.
pub fn exposed(shown: impl std::fmt::Display) -> String {
    format!("every user of this machine can read {shown}; `chmod o-r {shown}`")
}

/// The same where the relay reads it, which need not own it.
pub fn exposed_of_relay(shown: impl std::fmt::Display) -> String {
    format!("every user of this machine can read {shown}; `chmod 640 {shown}`, with the relay's group")
}
