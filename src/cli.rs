//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use rtsprelay::config::{
    Config, DEFAULT_PATH, IoChoice, ReportFormat, ZeroCopy, parse_duration, parse_http, parse_listen, user_name,
};
use rtsprelay::limits::{REPORT_EVERY_MIN_MS, WORKERS_MAX};

/// Relays one RTSP camera session to any number of RTSP players.
#[derive(Debug, Parser)]
#[command(
    name = "rtsprelay",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 asked to stop, 1 runtime failure, 2 wrong arguments or configuration.\nRTSPRELAY_LOG sets what is logged: error, warn, info (the default), debug, trace."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the streams of a configuration file, or one camera without a file
    Run {
        /// The configuration file [default: /etc/rtsprelay/rtsprelay.toml]
        #[arg(long, value_name = "FILE", conflicts_with = "source")]
        config: Option<PathBuf>,
        /// A camera to serve without a file, at rtsp://HOST:8554/: rtsp[s]://[USER:PASSWORD@]HOST[:PORT]/PATH, or `test`.
        /// Other users of this machine may see it; a file keeps a password to itself
        // Checked by hand, so that no error of the command line shows its password.
        #[arg(long, value_name = "URL")]
        source: Option<String>,
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Serve the built-in test pattern, without a camera, at rtsp://127.0.0.1:8554/test
    Demo {
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Show the live table of a relay that runs, with its clients
    Top {
        /// Address of its HTTP server (`http` in its configuration), with a user's name where it asks for one.
        /// Other users of this machine may see a password here; a file keeps it to itself
        // Checked by hand, so that no error of the command line shows its password.
        #[arg(long, value_name = "[USER[:PASSWORD]@]IP:PORT", default_value = "127.0.0.1:8580")]
        http: String,
        /// A file with that user's password on its first line
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Print the hashes that stand for a user's password, which is read from standard input
    HashPassword {
        /// The user's name: the hashes are good for it alone
        #[arg(value_name = "NAME", value_parser = user_name)]
        name: String,
    },
    /// Write the man pages and shell completions, for packages
    #[command(hide = true)]
    Generate {
        /// Where to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Validate a configuration file: every fault with line and cure
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
}

/// Options that go before what the file says.
#[derive(Clone, Debug, Args)]
pub struct Overrides {
    /// Address to serve RTSP at; may be given several times. Port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", value_parser = parse_listen)]
    pub listen: Vec<SocketAddr>,
    /// Address to serve /metrics (Prometheus), /status (JSON) and /healthz at
    #[arg(long, value_name = "IP:PORT", value_parser = parse_http)]
    pub http: Option<SocketAddr>,
    /// Threads that serve clients; 0 for one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=WORKERS_MAX as i64))]
    pub workers: Option<u16>,
    /// What drives the sockets
    #[arg(long, value_enum)]
    pub io: Option<Io>,
    /// Which sends lend their pages to the kernel instead of having them copied
    #[arg(long, value_enum, value_name = "WHICH")]
    pub zero_copy: Option<Lend>,
    /// How reports on standard output look
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub report_format: Option<Format>,
    /// Time between two reports, such as 1s; 0 for none but the summary at the end
    #[arg(long, value_name = "TIME", value_parser = parse_every)]
    pub report_every: Option<Duration>,
    /// For tests: holds chunks back between chunker and shards
    #[arg(long, hide = true, value_name = "TIME", value_parser = parse_duration)]
    pub test_delay: Option<Duration>,
    /// For tests: the code of sources fails so long after their start, and that of clients who ask for it
    #[arg(long, hide = true, value_name = "TIME", value_parser = parse_duration)]
    pub test_panic: Option<Duration>,
    /// For tests: how long nonces are good
    #[arg(long, hide = true, value_name = "TIME", value_parser = parse_duration)]
    pub test_nonce_lifetime: Option<Duration>,
    /// For tests of what it costs: counts nothing of what is sent, and reports nothing
    #[arg(long, hide = true)]
    pub test_unmeasured: bool,
}

/// What drives the sockets.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Io {
    /// io_uring where it works, else epoll with a warning
    Auto,
    /// io_uring, or no start
    Uring,
    /// epoll
    Epoll,
}

/// Which sends lend their pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Lend {
    /// Large ones to other machines, until the kernel reports that it copies
    Auto,
    /// All over TCP
    On,
    /// None
    Off,
}

/// How reports look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A live table on a terminal, else logfmt
    Auto,
    /// A table
    Table,
    /// Lines of key=value
    Logfmt,
    /// A JSON object a line
    Json,
}

impl Overrides {
    /// Puts the options in the place of what the configuration says.
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
                Format::Table => ReportFormat::Table,
                Format::Logfmt => ReportFormat::Logfmt,
                Format::Json => ReportFormat::Json,
            };
        }
        if let Some(every) = self.report_every {
            config.report.every = every;
        }
        if let Some(delay) = self.test_delay {
            config.test_delay = delay;
        }
        if self.test_panic.is_some() {
            config.test_panic = self.test_panic;
        }
        if let Some(lifetime) = self.test_nonce_lifetime {
            config.test_nonce_lifetime = lifetime;
        }
        config.test_unmeasured |= self.test_unmeasured;
    }
}

fn parse_every(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text)?;
    if !every.is_zero() && every < Duration::from_millis(REPORT_EVERY_MIN_MS) {
        return Err(format!("{text} is too often; at least {REPORT_EVERY_MIN_MS}ms, or 0 for no reports"));
    }
    Ok(every)
}
