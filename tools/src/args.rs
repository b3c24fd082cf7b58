//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::ingest::MediaTransport;

/// Shows an RTSP stream and measures it, in a window, in the terminal, or as numbers only.
///
/// Exit codes: 0 done or stopped by the user, 1 local failure (display, files), 2 wrong arguments, 3 the server cannot be reached or
/// refuses, 4 no picture could be decoded, 5 the time elapsed before --frames were decoded.
#[derive(Clone, Debug, Parser)]
#[command(name = "rtsprelay-view", version)]
pub struct Args {
    /// The stream: HOST:PORT, HOST:PORT/NAME, or an rtsp:// URL
    pub address: String,

    /// How the media is transported
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: MediaTransport,

    /// The user name
    #[arg(long, requires = "password_file")]
    pub user: Option<String>,

    /// A file with the password on its first line
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,

    /// Always show in a window
    #[arg(long, group = "mode")]
    pub window: bool,

    /// Always show in the terminal
    #[arg(long, group = "mode")]
    pub terminal: bool,

    /// Show no picture: print a line of numbers every second
    #[arg(long, group = "mode")]
    pub headless: bool,

    /// Print the numbers as JSON, one object per line; shows no picture
    #[arg(long)]
    pub json: bool,

    /// Start in full screen
    #[arg(long)]
    pub fullscreen: bool,

    /// Stop after this many decoded pictures
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub frames: Option<u64>,

    /// Stop after this many seconds
    #[arg(long, value_name = "N", value_parser = seconds)]
    pub seconds: Option<f64>,

    /// Write the last picture to this PNG file at exit; without other options, write the first picture and stop
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,

    /// Without a window or terminal: give up after this many seconds without a new picture
    #[arg(long, value_name = "N", value_parser = seconds, default_value = "10")]
    pub patience: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("must be a number of seconds above 0".to_owned()),
    }
}

/// How to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In a window.
    Window,
    /// In the terminal.
    Terminal,
    /// Not at all.
    Headless,
}

impl Args {
    /// The mode that was requested; otherwise a window if there is a display, otherwise the terminal if output goes to one.
    pub fn mode(&self, display: bool, terminal: bool) -> Mode {
        if self.window {
            Mode::Window
        } else if self.terminal {
            Mode::Terminal
        } else if self.headless || self.json || self.snapshot.is_some() {
            Mode::Headless
        } else if display {
            Mode::Window
        } else if terminal {
            Mode::Terminal
        } else {
            Mode::Headless
        }
    }

    /// Pictures after which to stop.
    pub fn frames_max(&self, mode: Mode) -> Option<u64> {
        let only_snapshot = self.snapshot.is_some() && self.seconds.is_none() && mode == Mode::Headless;
        self.frames.or(only_snapshot.then_some(1))
    }
}
