//! The rtsprelay daemon.

mod cli;

use std::fmt::Display;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use cli::{Cli, Command, Overrides, StreamsWhat};
use rtsprelay::access::{Right, Secrets};
use rtsprelay::config::{Config, DEFAULT_PATH, SourceKind, parse_camera, parse_duration, redact};
use rtsprelay::daemon::{self, Failure};
use rtsprelay::testing::Testing;
use rtsprelay::web::pass::{self, Pass};

/// Exit code of a runtime failure.
const EXIT_FAILURE: u8 = 1;

/// Exit code of wrong arguments or a wrong configuration.
const EXIT_WRONG: u8 = 2;

fn main() -> ExitCode {
    rtsprelay::sys::note_descriptors();
    rtsprelay::sys::return_large_memory();
    let (testing, arguments) = match Testing::take(std::env::args_os(), parse_duration) {
        Ok(taken) => taken,
        Err(error) => return wrong(&error),
    };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Check { config } => check(&config),
        Command::Upgrade { pid } => match daemon::upgrade(pid) {
            Ok(done) => {
                // If nobody reads standard output any more, the exit code suffices.
                let _ = writeln!(std::io::stdout(), "{done}");
                ExitCode::SUCCESS
            }
            Err(message) => complain(&message, EXIT_FAILURE),
        },
        Command::Top { http, password_file } => ask(&http, password_file.as_deref(), daemon::top),
        Command::Streams { what: None, http, password_file } => {
            ask(&http, password_file.as_deref(), daemon::list_streams)
        }
        Command::Streams { what: Some(what), http, password_file } => {
            ask(&http, password_file.as_deref(), |target| change_streams(what, target))
        }
        Command::HashPassword { name } => match hash_password(&name) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => complain(&message, EXIT_FAILURE),
        },
        Command::Token { user, stream, lasts, config } => match token(&user, &stream, lasts, &config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => wrong(&message),
        },
        Command::Generate { dir } => match generate(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&format!("{}: {error}", dir.display()), EXIT_FAILURE),
        },
        Command::Demo { overrides } => {
            let mut config = Config { testing, ..Config::demo() };
            overrides.apply(&mut config);
            serve(Ok::<_, Failure>(config), None)
        }
        Command::Run { source, config, overrides } => run(source.as_deref(), config, overrides, testing),
    }
}

/// Serves one camera, or a configuration file; without either, whatever this machine publishes.
fn run(source: Option<&str>, path: Option<PathBuf>, overrides: Overrides, testing: Testing) -> ExitCode {
    if let Some(source) = source {
        let source = match source {
            "test" => Ok(SourceKind::Test),
            url => parse_camera(url).map(|camera| SourceKind::Cameras(vec![camera])),
        };
        let config = source.map_err(|message| format!("--source: {message}")).map(|source| {
            let mut config = Config { testing, ..Config::for_source(source) };
            overrides.apply(&mut config);
            config
        });
        return serve(config, None);
    }
    // Without a configuration file somebody is trying the relay out.
    if path.is_none() && !Path::new(DEFAULT_PATH).exists() {
        let mut config = Config::for_publishers();
        overrides.apply(&mut config);
        return serve(Ok::<_, Failure>(config), None);
    }
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let load = move || {
        Config::load(&path).map(|mut config| {
            config.testing = testing;
            overrides.apply(&mut config);
            config
        })
    };
    serve(load(), Some(Box::new(load)))
}

/// Serves until it is asked to stop; `load` reads the configuration again.
fn serve(config: Result<Config, impl Display>, load: Option<daemon::Load>) -> ExitCode {
    match config {
        Ok(config) => {
            daemon::console::start_log(config.report.syslog);
            daemon::run(config, load)
        }
        Err(error) => wrong(&error),
    }
}

/// Runs `command` against a running relay.
fn ask(
    http: &str,
    password_file: Option<&Path>,
    command: impl FnOnce(&daemon::Target) -> Result<(), Failure>,
) -> ExitCode {
    let target = match daemon::Target::new(http, password_file) {
        Ok(target) => target,
        Err(message) => return wrong(&message),
    };
    match command(&target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => complain(&message, EXIT_FAILURE),
    }
}

/// Adds or removes a stream, or disconnects a client.
fn change_streams(what: StreamsWhat, target: &daemon::Target) -> Result<(), Failure> {
    match what {
        StreamsWhat::Add { name, source: Some(source) } => {
            // A TOML basic string.
            let quoted = source.replace('\\', "\\\\").replace('"', "\\\"");
            daemon::add_stream(target, &name, &format!("source = \"{quoted}\"\n"))
        }
        StreamsWhat::Add { name, source: None } => {
            let mut keys = String::new();
            std::io::stdin()
                .read_to_string(&mut keys)
                .map_err(|error| format!("standard input could not be read ({error})"))?;
            daemon::add_stream(target, &name, &keys)
        }
        StreamsWhat::Remove { name } => daemon::remove_stream(target, &name),
        StreamsWhat::End { session } => daemon::end_client(target, &session),
    }
}

/// Prints the path of a link to one stream, with a token.
fn token(user: &str, stream: &str, lasts: Duration, config: &Path) -> Result<(), Failure> {
    let config = Config::load(config).map_err(|error| error.to_string())?;
    let user = config.users.iter().find(|known| known.name == user);
    let user = user.ok_or("there is no such user; name one of the [[user]] in the configuration with --user")?;
    if !config.streams.iter().any(|known| known.name == stream) {
        return Err("there is no such stream; name one of the [[stream]] in the configuration with --stream".into());
    }
    if !user.may(Right::Read, stream) {
        return Err(
            "this user may not watch that stream; it takes may = [\"read\"], and the stream among the user's".into()
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970; set it")?;
    let pass = Pass { user: user.name.clone(), expires: (now + lasts).as_secs(), stream: Some(stream.to_owned()) };
    let text = pass.sign(&user.secrets).ok_or("this user has no password")?;
    // If nobody reads standard output any more, the exit code suffices.
    let _ = writeln!(std::io::stdout(), "/{stream}/?{}={text}", pass::PARAMETER);
    Ok(())
}

/// Reads a password and prints the hashes that stand for it, as lines of a `[[user]]`.
fn hash_password(name: &str) -> Result<(), Failure> {
    let password = read_password().map_err(|error| format!("no password could be read ({error})"))?;
    if password.is_empty() {
        return Err("the password is empty; write one on standard input".into());
    }
    let secrets = Secrets::of(name, &password);
    let line = |key: &str, hash: &Option<String>| format!("{key} = \"{}\"\n", hash.as_deref().unwrap_or_default());
    let text = line("ha1_sha256", &secrets.sha256) + &line("ha1_md5", &secrets.md5);
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("the hashes could not be printed ({error})").into())
}

/// The first line of standard input; a terminal does not echo it.
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
    // Nobody misses the prompt if standard error is closed.
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
    // Otherwise the man pages would describe the command `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command.clone(), dir)?;
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Fish, clap_complete::Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "rtsprelay", dir)?;
    }
    Ok(())
}

/// Validates a file and prints the result.
fn check(path: &Path) -> ExitCode {
    match Config::load(path) {
        Ok(config) => {
            let patterns = config.patterns.iter().map(|pattern| pattern.pattern.to_string());
            let streams: Vec<_> = config.streams.iter().map(|stream| stream.name.clone()).chain(patterns).collect();
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
            // If nobody reads standard output any more, the exit code suffices.
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => wrong(&error),
    }
}

fn wrong(message: &impl Display) -> ExitCode {
    complain(message, EXIT_WRONG)
}

fn complain(message: &impl Display, code: u8) -> ExitCode {
    // If standard error is closed, the exit code must suffice.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

/// Prints help, version or a usage error, without any password of a URL among the arguments.
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
