//! What experiments have in common: their course, and the files that they leave.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::summary::RATIO_ROUNDS_MIN;
use super::{Own, machine};
use crate::os;

/// How an experiment goes.
#[derive(Clone, Debug, clap::Args)]
pub struct Course {
    /// Rounds; in each, every server is measured once under every load. Ratios are printed from five rounds on.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Time of each measurement.
    #[arg(long, default_value = "8", value_parser = os::some_time)]
    pub seconds: Duration,
    /// Time between the last player's start and the measurement.
    #[arg(long, default_value = "2", value_parser = os::duration)]
    pub warmup: Duration,
    /// Time that a server runs before its memory is read and players connect.
    #[arg(long, default_value = "2.5", value_parser = os::duration)]
    pub settle: Duration,
    /// Players to start per second.
    #[arg(long, default_value = "500", value_parser = os::positive)]
    pub ramp: f64,
    /// Servers to start; `floor` is the bare loop, or with many cameras the proxy.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Own::Floor, Own::Uring, Own::Epoll])]
    pub servers: Vec<Own>,
    /// The relay's program; by default the one in this program's directory.
    #[arg(long)]
    pub relay: Option<PathBuf>,
    /// CPU of the servers.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// CPU of the players and cameras.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
}

impl Course {
    /// One short round, to check that everything works.
    pub fn shorten(&mut self) {
        self.rounds = 1;
        self.seconds = Duration::from_secs(1);
        self.warmup = Duration::from_millis(300);
        self.settle = Duration::from_millis(200);
    }

    /// Whether this program may run on the CPUs.
    ///
    /// # Errors
    /// Which it may not, and why.
    pub fn may_pin(&self) -> Result<(), String> {
        for (option, cpu) in [("--server-cpu", self.server_cpu), ("--load-cpu", self.load_cpu)] {
            os::may_pin(cpu).map_err(|e| format!("{option}: {e}"))?;
        }
        Ok(())
    }

    /// The relay's program: the one given, or the one beside this.
    ///
    /// # Errors
    /// If it is needed, and not there.
    pub fn relay_program(&self) -> Result<PathBuf, String> {
        let beside = std::env::current_exe().ok().and_then(|me| me.parent().map(|dir| dir.join("rtsprelay")));
        let program = self.relay.clone().or(beside).unwrap_or_else(|| PathBuf::from("rtsprelay"));
        let needed = self.servers.iter().any(|server| *server != Own::Floor);
        if needed && !program.is_file() {
            return Err(format!(
                "the relay is not at {}; build it with `cargo build --release`, or name it with --relay, or take --servers floor",
                program.display()
            ));
        }
        Ok(program)
    }
}

/// The files that an experiment writes at its end.
pub struct Files<'a> {
    /// Their directory.
    pub out: &'a Path,
}

impl Files<'_> {
    /// Writes a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let path = self.out.join(name);
        fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Writes a chart. `None` removes the file, because an earlier run's would be mistaken for this one's.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn chart(&self, name: &str, svg: Option<String>) -> Result<(), String> {
        match svg {
            Some(svg) => self.write(name, &svg),
            None => {
                let _ = fs::remove_file(self.out.join(name));
                Ok(())
            }
        }
    }

    /// Writes `summary.json`; returns the start of the table, with the machine and the `setting`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn summary(
        &self,
        course: &Course,
        summaries: &impl Serialize,
        setting: &str,
        stopped: bool,
    ) -> Result<String, String> {
        self.write("summary.json", &serde_json::to_string_pretty(summaries).map_err(|e| e.to_string())?)?;
        let mut table = format!("{}\n- {setting}\n- medians, in parentheses the range of the rounds\n", machine());
        if stopped {
            table.push_str("- **stopped early**: later rounds are missing\n");
        }
        if course.rounds < RATIO_ROUNDS_MIN {
            table.push_str("- too few rounds for ratios\n");
        }
        Ok(table)
    }
}

/// The files of a running experiment: a line for each measurement, and the output of the programs.
pub struct Results {
    out: PathBuf,
    lines: fs::File,
    /// What the programs print.
    pub log: PathBuf,
    measured: usize,
}

impl Results {
    /// Creates the directory, and starts new files.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub fn create(out: &Path) -> Result<Results, String> {
        fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
        let path = out.join("results.jsonl");
        let lines = fs::File::create(&path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let log = out.join("log.txt");
        let _ = fs::remove_file(&log);
        Ok(Results { out: out.to_owned(), lines, log, measured: 0 })
    }

    /// Adds a measurement.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, measurement: &impl Serialize) -> Result<(), String> {
        let json = serde_json::to_string(measurement).map_err(|e| e.to_string())?;
        self.measured += 1;
        writeln!(self.lines, "{json}").map_err(|e| format!("cannot write the results: {e}"))
    }

    /// What the experiment comes to.
    ///
    /// # Errors
    /// If it was stopped early, or some measurements failed.
    pub fn outcome(&self, stopped: bool, failed: usize) -> Result<(), String> {
        match (stopped, failed) {
            (true, _) => {
                Err(format!("stopped; the {} measurements until then are in {}", self.measured, self.out.display()))
            }
            (_, 0) => Ok(()),
            _ => Err(format!("{failed} measurements failed; results.jsonl and log.txt tell why")),
        }
    }
}
