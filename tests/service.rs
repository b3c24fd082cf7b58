//! The Debian package under a real systemd: install, start, play, reload, watchdog, crashes, syslog, stop, sockets, sandbox, purge.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `cargo deb`, as installed by tests/run or from the PATH.
fn cargo_deb() -> PathBuf {
    let own = root().join("target/tools/bin/cargo-deb");
    if own.exists() { own } else { "cargo-deb".into() }
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| {
        panic!("cannot start {command:?}: {error}; tests/run installs what is needed");
    });
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    println!("{said}");
    assert!(status.success(), "{command:?}: {status}");
    said
}

#[test]
fn the_package_runs_as_a_service() {
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    if !is_root {
        assert!(std::env::var_os("CI").is_none(), "booting a systemd needs root");
        eprintln!("SKIPPED: booting a systemd needs root");
        return;
    }
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let deb = scratch.join("rtsprelay.deb");
    // The same binary as in the other tests; a release build would be the same code, after an hour of CPU time.
    let directory = Path::new(env!("CARGO_BIN_EXE_rtsprelay")).parent().unwrap();
    let profile = if directory.ends_with("release") { "release" } else { "dev" };
    if ["rtsprelay-view", "rtsprelay-bench"].iter().any(|program| !directory.join(program).exists()) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "-q", "--locked", "-p", "rtsprelay-view", "-p", "rtsprelay-bench", "--bins"])
            .current_dir(root());
        succeeds(if profile == "release" { cargo.arg("--release") } else { &mut cargo });
    }
    succeeds(
        Command::new(cargo_deb())
            .args(["-p", "rtsprelay", "--no-build", "--profile", profile, "--output"])
            .arg(&deb)
            .current_dir(root()),
    );
    // Outside the build directory, whose files may be given to another owner.
    let rootfs = "/var/tmp/rtsprelay-rootfs";
    let said = succeeds(
        Command::new(root().join("tests/systemd/boot.sh"))
            .arg(rootfs)
            .arg(root().join("tests/systemd/service.sh"))
            .arg(&deb)
            .arg(directory.join("rtsprelay-bench"))
            .current_dir(root()),
    );
    assert!(said.contains("nothing is left behind"));
}

/// The man pages and completions in the package match the command line.
#[test]
fn man_pages_and_completions_are_those_of_this_version() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    // It is created anew each time.
    let _ = std::fs::remove_dir_all(&scratch);
    succeeds(Command::new(env!("CARGO_BIN_EXE_rtsprelay")).args(["generate", "--dir"]).arg(&scratch));
    let files = |directory: &Path| {
        let mut files: Vec<_> = std::fs::read_dir(directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
            // The viewer's own test checks these.
            .filter(|(name, _)| !name.to_string_lossy().contains("rtsprelay-view"))
            .collect();
        files.sort();
        files
    };
    let (made, kept) = (files(&scratch), files(&root().join("packaging/generated")));
    assert!(made == kept, "run `cargo run -- generate --dir packaging/generated` and commit what changed");
}
