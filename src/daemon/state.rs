//! The file with the streams that were added at run time.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::config::added::{self, Added};

/// Reads it; a missing file contains none.
///
/// # Errors
/// A sentence with the fix.
pub(super) fn read(path: &Path) -> Result<Vec<Added>, Failure> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => added::read_all(&text).map_err(|why| format!("state = \"{shown}\": {why}").into()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!(
            "state = \"{shown}\" cannot be read ({error}); let the user that runs rtsprelay read and write it"
        )
        .into()),
    }
}

/// Rewrites it atomically. It may contain passwords, so only the relay's user can read it.
///
/// # Errors
/// A sentence with the fix.
pub(super) fn write(path: &Path, added: &[Added]) -> Result<(), Failure> {
    let new = beside(path);
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(added::write(added).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // Syncing the directory makes the new name durable.
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    written().map_err(|error| {
        format!(
            "state = \"{}\" cannot be written ({error}); let the user that runs rtsprelay write in its directory",
            path.display()
        )
        .into()
    })
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_there_again_and_nobody_elses_to_read() {
        let path = std::env::temp_dir().join(format!("rtsprelay-state-{}-{}", std::process::id(), fastrand::u32(..)));
        assert_eq!(read(&path), Ok(Vec::new()));
        let added = vec![added::read("a", "source = \"test\"").unwrap()];
        write(&path, &added).unwrap();
        assert_eq!(read(&path), Ok(added));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!beside(&path).exists());
        std::fs::remove_file(&path).unwrap();
        assert!(write(Path::new("/nonexistent/x"), &[]).unwrap_err().to_string().contains("cannot be written"));
    }
}
