//! The load generator and the fan-out benchmark of rtsprelay.

mod camera;
mod client;
mod fanout;
mod faults;
mod floor;
mod load;
mod media;
mod nal;
mod os;
mod picture;
mod proc;
mod rtsp;
mod server;
mod siege;
mod tls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures RTSP servers: many players, a synthetic camera, the bare loop to compare with, and the whole experiment.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Runs on this CPU alone.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// Ends when the process of this number, which must be the parent, ends.
    #[arg(long, global = true, hide = true)]
    parent: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plays a stream with many clients and reports what they got.
    Load(load::Args),
    /// Serves synthetic streams with time stamps, and with faults on demand.
    Camera(camera::Args),
    /// Serves a camera's stream with one blocking write per frame and client.
    Floor(floor::Args),
    /// Runs the whole experiment: camera, bare loop and relay in turn under growing load; writes a table and charts.
    Fanout(fanout::Args),
    /// Measures what players of the relay feel of thousands of hostile connections, in pairs of windows with and without them.
    Siege(siege::Args),
    /// Opens connections that only cost a server something: half-open, dripping, flooding.
    Attack(siege::attack::Args),
    /// Becomes another program, tied to the parent and the CPU that were given.
    #[command(hide = true)]
    Exec(ExecArgs),
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// File that the program's output is appended to.
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
