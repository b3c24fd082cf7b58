//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use rtsprelay::config::{
    BadValue, Config, DEFAULT_PATH, IoChoice, ReportFormat, ZeroCopy, parse_duration, parse_http, parse_listen,
    user_name,
};
use rtsprelay::limits::{REPORT_EVERY_MIN_MS, WORKERS_MAX};

/// Relays one RTSP camera session to any number of RTSP players.
#[derive(Debug, Parser)]
#[command(
    name = "rtsprelay",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 stopped on request or handed over, 1 runtime failure, 2 invalid arguments or configuration.\nSignals: SIGTERM stops, SIGHUP reloads the configuration, SIGUSR1 prints a summary, SIGUSR2 hands everything over to the program that now lies at the path of this one.\nRTSPRELAY_LOG sets the log level: error, warn, info (the default), debug, trace."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the streams of a configuration file, or one camera without a file. Without a file, programs on this machine can also publish
    /// streams of any name: ffmpeg … -f rtsp rtsp://127.0.0.1:8554/NAME
    Run {
        /// The configuration file [default: /etc/rtsprelay/rtsprelay.toml, if it exists]
        #[arg(long, value_name = "FILE", conflicts_with = "source")]
        config: Option<PathBuf>,
        /// A camera to serve without a file, at rtsp://HOST:8554/ : rtsp[s]://[USER:PASSWORD@]HOST[:PORT]/PATH, or `test`.
        /// Other users of this machine can see the command line; to hide a password, use a file
        // Parsed by hand, so that no error message contains its password.
        #[arg(long, value_name = "URL")]
        source: Option<String>,
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Serve the built-in test pattern, without a camera, at rtsp://127.0.0.1:8554/
    Demo {
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Have a running relay hand its clients and cameras over to the program that now lies at its path, as on SIGUSR2, and print the
    /// outcome
    Upgrade {
        /// The relay's process id [default: the only relay that runs on this machine]
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
    },
    /// Show a running relay's live table, with its clients
    Top {
        /// Address of its HTTP server (`http` in its configuration), with a user name if it requires one.
        /// Other users of this machine can see the command line; to hide a password, use --password-file
        // Parsed by hand, so that no error message contains its password.
        #[arg(long, value_name = "[USER[:PASSWORD]@]IP:PORT", default_value = "127.0.0.1:8580")]
        http: String,
        /// A file with the user's password on its first line
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List a running relay's streams: URL, state, clients and errors; add or remove a stream; disconnect a client
    #[command(disable_help_subcommand = true)]
    Streams {
        /// What to do instead of listing the streams
        #[command(subcommand)]
        what: Option<StreamsWhat>,
        /// Address of its HTTP server (`http` in its configuration), with a user name if it requires one.
        /// Other users of this machine can see the command line; to hide a password, use --password-file
        // Parsed by hand, so that no error message contains its password.
        #[arg(long, value_name = "[USER[:PASSWORD]@]IP:PORT", default_value = "127.0.0.1:8580")]
        http: String,
        /// A file with the user's password on its first line
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Print the hashes of a user's password, which is read from standard input
    HashPassword {
        /// The user's name; the hashes are valid for this name only
        #[arg(value_name = "NAME", value_parser = user_name)]
        name: String,
    },
    /// Print a link that lets anyone who has it watch one stream in a browser until it expires
    Token {
        /// The user whose right to the stream the link grants; changing the user's password invalidates it
        #[arg(long, value_name = "NAME")]
        user: String,
        /// The stream
        #[arg(long, value_name = "NAME")]
        stream: String,
        /// How long the link is valid, such as 30m or 48h
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, default_value = "24h")]
        lasts: Duration,
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Write the man pages and shell completions, for packages
    #[command(hide = true)]
    Generate {
        /// The output directory
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Validate a configuration file: reports every error with its line and how to fix it
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
}

/// What to do with the streams of a running relay; needs a user with may = ["administer"].
#[derive(Debug, Subcommand)]
pub enum StreamsWhat {
    /// Add a stream
    Add {
        /// Its name
        name: String,
        /// Its source: rtsp[s]://…, "publish" or "test". Other users of this machine can see the command line; without this option the
        /// stream's keys are read from standard input, in the format of a [[stream]] table in the configuration
        // Checked by the relay, whose messages contain no password.
        #[arg(long, value_name = "URL")]
        source: Option<String>,
    },
    /// Remove a stream
    Remove {
        /// Its name
        name: String,
    },
    /// Disconnect a client
    End {
        /// Its session, as shown by /status and `rtsprelay top`
        session: String,
    },
}

/// Options that override the configuration file.
#[derive(Clone, Debug, Args)]
pub struct Overrides {
    /// Address to serve RTSP on; can be repeated. Port 0 chooses a free port
    #[arg(long, value_name = "IP:PORT", value_parser = parse_listen)]
    pub listen: Vec<SocketAddr>,
    /// Address to serve the pages for browsers, /metrics (Prometheus), /status (JSON) and /healthz on
    #[arg(long, value_name = "IP:PORT", value_parser = parse_http)]
    pub http: Option<SocketAddr>,
    /// Threads that serve clients; 0 for one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=WORKERS_MAX as i64))]
    pub workers: Option<u16>,
    /// How data is sent
    #[arg(long, value_enum)]
    pub io: Option<Io>,
    /// Which sends lend their pages to the kernel instead of having it copy them
    #[arg(long, value_enum, value_name = "WHICH")]
    pub zero_copy: Option<Lend>,
    /// Format of the reports on standard output
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub report_format: Option<Format>,
    /// Time between two reports, such as 1s; 0 for only the summary at exit [default: 1min for the format line, otherwise 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_every)]
    pub report_every: Option<Duration>,
}

/// How data is sent.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Io {
    /// io_uring if it works, otherwise epoll with a warning
    Auto,
    /// io_uring, or fail at startup
    Uring,
    /// epoll
    Epoll,
}

/// Which sends lend their pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Lend {
    /// Large ones to other machines, until the kernel reports that it copies them
    Auto,
    /// All TCP sends
    On,
    /// None
    Off,
}

/// Format of the reports.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A live table on a terminal, otherwise a line
    Auto,
    /// A short line about all streams
    Line,
    /// A table
    Table,
    /// Lines of key=value
    Logfmt,
    /// One JSON object per line
    Json,
}

impl Overrides {
    /// Overrides the configuration with these options.
    pub fn apply(&self, config: &mut Config) {
        if !self.listen.is_empty() {
            config.listen = self.listen.clone();
        }
        if self.http.is_some() {
            config.http = self.http;
        }
        if let Some(workers) = self.workers {
            config.workers = usize::from(workers);
        }
        if let Some(io) = self.io {
            config.io = match io {
                Io::Auto => IoChoice::Auto,
                Io::Uring => IoChoice::Uring,
                Io::Epoll => IoChoice::Epoll,
            };
        }
        if let Some(zero_copy) = self.zero_copy {
            config.zero_copy = match zero_copy {
                Lend::Auto => ZeroCopy::Auto,
                Lend::On => ZeroCopy::On,
                Lend::Off => ZeroCopy::Off,
            };
        }
        if let Some(format) = self.report_format {
            config.report.format = match format {
                Format::Auto => ReportFormat::Auto,
                Format::Line => ReportFormat::Line,
                Format::Table => ReportFormat::Table,
                Format::Logfmt => ReportFormat::Logfmt,
                Format::Json => ReportFormat::Json,
            };
        }
        if let Some(every) = self.report_every {
            config.report.every = Some(every);
        }
    }
}

fn parse_every(text: &str) -> Result<Duration, BadValue> {
    let every = parse_duration(text)?;
    if !every.is_zero() && every < Duration::from_millis(REPORT_EVERY_MIN_MS) {
        return Err(format!("{text} is too often; at least {REPORT_EVERY_MIN_MS}ms, or 0 for no reports").into());
    }
    Ok(every)
}
