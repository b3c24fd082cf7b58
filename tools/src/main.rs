//! The program: arguments, threads, exit codes.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser as _;

use rtsprelay_view::args::{Args, Mode};
use rtsprelay_view::player::{FaultKind, Player, Screen, State};
use rtsprelay_view::target::Target;
use rtsprelay_view::{Ending, headless, ingest, snapshot, terminal, window};

/// Failure on this side: display, files.
const FAILURE: u8 = 1;
/// Wrong arguments.
const WRONG_ARGUMENTS: u8 = 2;
/// The server can't be reached, or refuses.
const NO_SERVER: u8 = 3;
/// No picture could be decoded.
const NO_PICTURE: u8 = 4;
/// Fewer pictures than asked for.
const TOO_FEW: u8 = 5;

fn main() -> ExitCode {
    let args = Args::parse();
    let target = match target(&args) {
        Ok(target) => target,
        Err(reason) => return fail(WRONG_ARGUMENTS, &reason),
    };
    match play(&args, &target) {
        Ok(code) => ExitCode::from(code),
        Err(reason) => fail(FAILURE, &reason),
    }
}

fn fail(code: u8, reason: &str) -> ExitCode {
    eprintln!("rtsprelay-view: {reason}");
    ExitCode::from(code)
}

fn target(args: &Args) -> Result<Target, String> {
    let login = match (&args.user, &args.password_file) {
        (Some(user), Some(file)) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("cannot read the password file {}: {error}", file.display()))?;
            Some((user.clone(), text.lines().next().unwrap_or_default().to_owned()))
        }
        _ => None,
    };
    Target::parse(&args.address, login).map_err(|reason| format!("cannot play `{}`: {reason}", target_shown(args)))
}

/// The part of the address that may be printed even if it is invalid.
fn target_shown(args: &Args) -> &str {
    args.address.rsplit('@').next().unwrap_or_default()
}

fn play(args: &Args, target: &Target) -> Result<u8, String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| format!("cannot watch for signals: {error}"))?;
    }
    let display =
        ["WAYLAND_DISPLAY", "DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|it| !it.is_empty()));
    let mode = args.mode(display, std::io::stdout().is_terminal());
    let player = Player::new(args.frames_max(mode));
    let receiver = {
        let (target, transport, player) = (target.clone(), args.transport, player.clone());
        spawn("receive", move || {
            if let Err(error) = ingest::run(&target, transport, &player) {
                eprintln!("rtsprelay-view: cannot receive: {error}");
            }
        })?
    };
    let decoder = {
        let player = player.clone();
        spawn("decode", move || player.decode())?
    };
    let ending = show(args, target, mode, &player, &|| stop.load(Ordering::Relaxed));
    player.end();
    let _ = receiver.join();
    let _ = decoder.join();
    finish(args, &player, &ending?)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, String> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(body).map_err(|error| format!("cannot start a thread: {error}"))
}

fn show(
    args: &Args,
    target: &Target,
    mode: Mode,
    player: &Arc<Player>,
    stop: &dyn Fn() -> bool,
) -> Result<Ending, String> {
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let (snapshot, fullscreen) = (args.snapshot.clone(), args.fullscreen);
    let written = |error| format!("cannot write: {error}");
    let in_terminal = || {
        let options = terminal::Options { until, snapshot: snapshot.clone(), fullscreen };
        terminal::run(target, player, &options, stop).map_err(written)
    };
    match mode {
        Mode::Headless => {
            let patience = Duration::from_secs_f64(args.patience);
            headless::run(player, headless::Options { json: args.json, until, patience }, stop).map_err(written)
        }
        Mode::Terminal => in_terminal(),
        Mode::Window => {
            let options = window::Options { until, snapshot: snapshot.clone(), fullscreen };
            match window::run(target, player, options, stop) {
                Err(_) if !args.window && std::io::stdout().is_terminal() => in_terminal(),
                Err(reason) => {
                    Err(format!("cannot open a window: {reason}; use --terminal or --headless, or check the display"))
                }
                Ok(ending) => Ok(ending),
            }
        }
    }
}

/// Writes the snapshot and makes the exit code.
fn finish(args: &Args, player: &Player, ending: &Ending) -> Result<u8, String> {
    let Screen { picture, state, .. } = player.screen();
    if let Some(path) = &args.snapshot
        && let Some(picture) = &picture
    {
        snapshot::write_png(picture, path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let code = match ending {
        Ending::GaveUp(fault) => {
            // Without --json it has been said when it happened.
            if args.json {
                eprintln!("rtsprelay-view: {}", fault.text);
            }
            if fault.kind == FaultKind::Unsupported { NO_PICTURE } else { NO_SERVER }
        }
        Ending::NoPicture => {
            eprintln!("rtsprelay-view: media arrived, but no picture could be decoded");
            NO_PICTURE
        }
        Ending::TimeOver if picture.is_none() => {
            eprintln!("rtsprelay-view: no picture within the time given");
            // Either media arrived, or the source sent none.
            if matches!(state, State::Away(_)) { NO_SERVER } else { NO_PICTURE }
        }
        Ending::TimeOver if args.frames.is_some() => TOO_FEW,
        Ending::Asked | Ending::Complete | Ending::TimeOver => 0,
    };
    Ok(code)
}
