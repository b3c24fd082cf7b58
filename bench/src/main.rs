//! The load generator and the fan-out benchmark of rtsprelay.

mod camera;
mod client;
mod fanout;
mod faults;
mod fleet;
mod floor;
mod load;
mod media;
mod metrics;
mod nal;
mod os;
mod picture;
mod proc;
mod proxy;
mod rtsp;
mod server;
mod siege;
mod tls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks RTSP servers: many players, a synthetic camera, a bare loop for comparison, and whole experiments.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Run on this CPU only.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// Exit when this process, which must be the parent, exits.
    #[arg(long, global = true, hide = true)]
    parent: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a stream with many clients and report what they received.
    Load(load::Args),
    /// Serve synthetic streams with timestamps and, on demand, faults.
    Camera(camera::Args),
    /// Serve a camera's stream with one blocking write per frame and client.
    Floor(floor::Args),
    /// Forward the data of many cameras to their players as it arrives: one read, one write per player.
    Proxy(proxy::Args),
    /// Run the whole experiment: camera, bare loop and relay in turn under growing load; write a table and charts.
    Fanout(fanout::Args),
    /// Measure many cameras with few players each: proxy, relay and other servers in turn; write a table and charts.
    Fleet(fleet::Args),
    /// Measure how thousands of hostile connections affect the relay's players, in pairs of windows with and without them.
    Siege(siege::Args),
    /// Open connections that only cost a server resources: silent, slowly sending, flooding.
    Attack(siege::attack::Args),
    /// Execute another program, tied to the given parent and CPU.
    #[command(hide = true)]
    Exec(ExecArgs),
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// File to append the program's output to.
    #[arg(long)]
    output: std::path::PathBuf,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    // Exit code 2 for wrong arguments is clap's own.
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rtsprelay-bench: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    if let Some(parent) = cli.parent {
        os::die_with_parent(parent)?;
    }
    if let Some(cpu) = cli.cpu {
        os::pin(cpu)?;
    }
    match &cli.command {
        Command::Load(args) => load::run(args),
        Command::Camera(args) => camera::run(args),
        Command::Floor(args) => {
            os::raise_open_files();
            floor::run(args)
        }
        Command::Fanout(args) => fanout::run(args),
        Command::Proxy(args) => {
            os::raise_open_files();
            proxy::run(args)
        }
        Command::Fleet(args) => fleet::run(args),
        Command::Siege(args) => siege::run(args),
        Command::Attack(args) => siege::attack::run(args),
        Command::Exec(args) => Err(exec(args)),
    }
}

/// Returns only if the program cannot be started.
fn exec(args: &ExecArgs) -> String {
    use std::os::unix::process::CommandExt as _;
    os::raise_open_files();
    let output = std::fs::File::options().create(true).append(true).open(&args.output);
    let (Ok(stdout), program) = (output, &args.command[0]) else {
        return format!("cannot write {}", args.output.display());
    };
    let error = std::process::Command::new(program).args(&args.command[1..]).stdout(stdout).exec();
    format!("cannot start {program}: {error}")
}
