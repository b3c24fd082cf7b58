//! The rtsprelay daemon.

mod cli;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use rtsprelay::access::Secrets;
use rtsprelay::config::{Config, DEFAULT_PATH, SourceKind, parse_camera, redact};
use rtsprelay::daemon;

/// Exit code of a failure at run time.
const EXIT_FAILURE: u8 = 1;

/// Exit code of wrong arguments or a wrong configuration.
const EXIT_WRONG: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let (config, file) = match cli.command {
        Command::Check { config } => return check(&config),
        Command::Top { http, password_file } => {
            let target = match daemon::Target::new(&http, password_file.as_deref()) {
                Ok(target) => target,
                Err(message) => return wrong(&message),
            };
            return match daemon::top(&target) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => complain(&message, EXIT_FAILURE),
            };
        }
        Command::HashPassword { name } => {
            return match hash_password(&name) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => complain(&message, EXIT_FAILURE),
            };
        }
        Command::Generate { dir } => {
            return match generate(&dir) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(&format!("{}: {error}", dir.display()), EXIT_FAILURE),
            };
        }
        Command::Demo { overrides } => {
            let mut config = Config::demo();
            overrides.apply(&mut config);
            (Ok(config), None)
        }
        Command::Run { source: Some(source), overrides, .. } => {
            let source = match source.as_str() {
                "test" => Ok(SourceKind::Test),
                url => parse_camera(url).map(|camera| SourceKind::Cameras(vec![camera])),
            };
            let config = source.map_err(|message| format!("--source: {message}")).map(|source| {
                let mut config = Config::for_source(source);
                overrides.apply(&mut config);
                config
            });
            (config, None)
        }
        Command::Run { config, overrides, .. } => {
            let path = config.unwrap_or_else(|| DEFAULT_PATH.into());
            let load = move || {
                Config::load(&path).map_err(|error| error.to_string()).map(|mut config| {
                    overrides.apply(&mut config);
                    config
                })
            };
            (load(), Some(Box::new(load) as daemon::Load))
        }
    };
    match config {
        Ok(config) => {
            daemon::console::start_log(config.report.syslog);
            daemon::run(config, file)
        }
        Err(message) => wrong(&message),
    }
}

/// Reads a password and prints the hashes that stand for it, as lines of a `[[user]]`.
fn hash_password(name: &str) -> Result<(), String> {
    let password = read_password().map_err(|error| format!("no password could be read ({error})"))?;
    if password.is_empty() {
        return Err("the password is empty; write one on standard input".into());
    }
    let secrets = Secrets::of(name, &password);
    let line = |key: &str, hash: &Option<String>| format!("{key} = \"{}\"\n", hash.as_deref().unwrap_or_default());
    let text = line("ha1_sha256", &secrets.sha256) + &line("ha1_md5", &secrets.md5);
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("the hashes could not be printed ({error})"))
}

/// The first line of standard input; a terminal does not show what is typed.
fn read_password() -> std::io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let input = std::io::stdin();
    let mut line = String::new();
    if !input.is_terminal() {
        input.read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let shown = tcgetattr(&input)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    // Where nobody reads it, the prompt is not missed.
    let _ = write!(std::io::stderr(), "Password: ");
    tcsetattr(&input, SetArg::TCSAFLUSH, &hidden)?;
    let read = input.read_line(&mut line);
    tcsetattr(&input, SetArg::TCSAFLUSH, &shown)?;
    let _ = writeln!(std::io::stderr());
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Writes man pages and shell completions.
fn generate(dir: &Path) -> std::io::Result<()> {
    use clap::CommandFactory;
    std::fs::create_dir_all(dir)?;
    // Without it the pages would describe a command of its own, `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command.clone(), dir)?;
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Fish, clap_complete::Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "rtsprelay", dir)?;
    }
    Ok(())
}

/// Validates a file, and says so.
fn check(path: &Path) -> ExitCode {
    match Config::load(path) {
        Ok(config) => {
            let streams: Vec<_> = config.streams.iter().map(|stream| stream.name.as_str()).collect();
            let plain = config.listen.iter().map(ToString::to_string);
            let secured = config.tls.iter().flat_map(|tls| &tls.listen).map(|address| format!("{address} (TLS)"));
            let listen: Vec<_> = plain.chain(secured).collect();
            let count = streams.len();
            let noun = if count == 1 { "stream" } else { "streams" };
            for warning in &config.warnings {
                let _ = writeln!(std::io::stderr(), "{}: warning: {warning}", path.display());
            }
            let line =
                format!("{}: ok, {count} {noun} ({}) at {}", path.display(), streams.join(", "), listen.join(", "));
            // Whoever asked and went away does not read the answer.
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => wrong(&error.to_string()),
    }
}

fn wrong(message: &str) -> ExitCode {
    complain(message, EXIT_WRONG)
}

fn complain(message: &str, code: u8) -> ExitCode {
    // Without standard error the exit code has to do.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

/// Help, version or a complaint about the arguments, without the password of a URL that may be among them.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    if error.use_stderr() {
        let text = if std::io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() };
        let _ = write!(std::io::stderr(), "{}", redact(&text));
    } else {
        let text = if std::io::stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
        let _ = write!(std::io::stdout(), "{text}");
    }
    ExitCode::from(error.exit_code() as u8)
}
