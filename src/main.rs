//! The rtsprelay daemon.

mod cli;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
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
    let config = match cli.command {
        Command::Check { config } => return check(&config),
        Command::Top { http } => {
            return match daemon::top(http) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => complain(&message, EXIT_FAILURE),
            };
        }
        Command::Demo { overrides } => {
            let mut config = Config::demo();
            overrides.apply(&mut config);
            Ok(config)
        }
        Command::Run { source: Some(source), overrides, .. } => match source.as_str() {
            "test" => Ok(SourceKind::Test),
            url => parse_camera(url).map(SourceKind::Camera),
        }
        .map_err(|message| format!("--source: {message}"))
        .map(|source| {
            let mut config = Config::for_source(source);
            overrides.apply(&mut config);
            config
        }),
        Command::Run { config, overrides, .. } => {
            let path = config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
            Config::load(path).map_err(|error| error.to_string()).map(|mut config| {
                overrides.apply(&mut config);
                config
            })
        }
    };
    match config {
        Ok(config) => {
            daemon::console::start_log();
            daemon::run(config)
        }
        Err(message) => wrong(&message),
    }
}

/// Validates a file, and says so.
fn check(path: &Path) -> ExitCode {
    match Config::load(path) {
        Ok(config) => {
            let streams: Vec<_> = config.streams.iter().map(|stream| stream.name.as_str()).collect();
            let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
            let count = streams.len();
            let noun = if count == 1 { "stream" } else { "streams" };
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
