//! The viewer's man page and shell completions in the package.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use rtsprelay_view::args::Args;

/// They match the command line. With `RTSPRELAY_WRITE_PAGES=1` they are rewritten.
#[test]
fn man_page_and_completions_are_those_of_this_version() {
    let mut command = Args::command();
    let mut files = vec![("rtsprelay-view.1".to_owned(), Vec::new())];
    clap_mangen::Man::new(command.clone()).render(&mut files[0].1).unwrap();
    for (shell, name) in
        [(Shell::Bash, "rtsprelay-view.bash"), (Shell::Fish, "rtsprelay-view.fish"), (Shell::Zsh, "_rtsprelay-view")]
    {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "rtsprelay-view", &mut text);
        files.push((name.to_owned(), text));
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/generated");
    for (name, text) in files {
        let path = directory.join(name);
        if std::env::var_os("RTSPRELAY_WRITE_PAGES").is_some() {
            std::fs::write(&path, text).unwrap();
        } else {
            assert!(
                std::fs::read(&path).is_ok_and(|kept| kept == text),
                "{}: run `RTSPRELAY_WRITE_PAGES=1 cargo test -p rtsprelay-view --test pages` and commit what changed",
                path.display()
            );
        }
    }
}
