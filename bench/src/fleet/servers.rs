//! The servers of `fleet`: how each is started and configured with the cameras.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::fanout::Own;
use crate::fanout::children::{Process, free_port};

/// A build of the relay.
#[derive(Clone, Debug, PartialEq)]
pub struct Build {
    /// What it is called; empty for the one that is measured.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
}

impl FromStr for Build {
    type Err = String;

    fn from_str(text: &str) -> Result<Build, String> {
        match text.split_once('=') {
            Some((name, program)) if !name.is_empty() && !program.is_empty() => {
                Ok(Build { name: name.into(), program: program.into() })
            }
            _ => Err(format!("{text:?}: write NAME=PROGRAM")),
        }
    }
}

/// A server of others.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    name: String,
    /// Its program and arguments, with `{port}` and `{sources}`.
    command: Vec<String>,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let (name, command) = text.split_once('=').unwrap_or_default();
        let command: Vec<String> = command.split_whitespace().map(String::from).collect();
        let has = |word: &str| command.iter().any(|part| part.contains(word));
        if name.is_empty() || !has("{port}") || !has("{sources}") {
            return Err(format!("{text:?}: write NAME=COMMAND, with {{port}} and {{sources}} in the command"));
        }
        Ok(Peer { name: name.into(), command })
    }
}

/// Who takes a turn.
pub struct Contender {
    /// What it is called in the results.
    pub name: String,
    kind: Kind,
}

enum Kind {
    Proxy,
    Relay { program: PathBuf, io: Own, workers: usize },
    Peer { command: Vec<String> },
}

/// A server that runs. It ends when this is dropped.
pub struct Running {
    /// Its process.
    pub process: Process,
    /// Where it serves.
    pub listen: SocketAddr,
    /// Where it publishes metrics, if it does.
    pub pages: Option<SocketAddr>,
}

impl Contender {
    /// The proxy, which the others are compared with.
    pub fn proxy() -> Contender {
        Contender { name: Own::Floor.name().into(), kind: Kind::Proxy }
    }

    /// A build of the relay; with `tell_workers` its name includes the number of shards.
    pub fn relay(build: &Build, io: Own, workers: usize, tell_workers: bool) -> Result<Contender, String> {
        if !build.program.is_file() {
            return Err(format!("--build {}: there is no program {}", build.name, build.program.display()));
        }
        let mut name = format!("{} {}", build.name, io.name()).trim().to_string();
        if tell_workers {
            let _ = write!(name, ", {workers} shard{}", if workers == 1 { "" } else { "s" });
        }
        Ok(Contender { name, kind: Kind::Relay { program: build.program.clone(), io, workers } })
    }

    /// Another project's server.
    pub fn peer(peer: &Peer) -> Contender {
        Contender { name: peer.name.clone(), kind: Kind::Peer { command: peer.command.clone() } }
    }

    /// Starts it; each source will be served at its own path. Its files go to `out`.
    pub fn start(&self, sources: &[String], cpu: Option<usize>, out: &Path, log: &Path) -> Result<Running, String> {
        let write = |name: &str, text: &str| {
            let path = out.join(name);
            fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            Ok::<_, String>(path.display().to_string())
        };
        let list = write("sources.txt", &format!("{}\n", sources.join("\n")))?;
        let port = || Ok::<SocketAddr, String>(([127, 0, 0, 1], free_port()?).into());
        match &self.kind {
            Kind::Proxy => {
                let mut process = Process::own("proxy", cpu, &["proxy".into(), format!("--sources={list}")], log)?;
                let url = process.first_line()?;
                let listen = url.trim_start_matches("rtsp://").split('/').next().unwrap_or_default();
                let listen = listen.parse().map_err(|_| format!("the proxy printed {url:?}"))?;
                Ok(Running { process, listen, pages: None })
            }
            Kind::Relay { program, io, workers } => {
                let (listen, pages) = (port()?, port()?);
                let config = write("relay.toml", &configuration(listen, pages, *io, *workers, sources))?;
                let arguments = ["run", "--config", &config].map(String::from);
                let process = Process::other(&self.name, cpu, program, &arguments, log)?;
                Ok(Running { process, listen, pages: Some(pages) })
            }
            Kind::Peer { command } => {
                let listen = port()?;
                let filled =
                    |part: &String| part.replace("{port}", &listen.port().to_string()).replace("{sources}", &list);
                let command: Vec<String> = command.iter().map(filled).collect();
                let process = Process::other(&self.name, cpu, Path::new(&command[0]), &command[1..], log)?;
                Ok(Running { process, listen, pages: None })
            }
        }
    }
}

/// The relay's configuration. It reports only at its end, because the cost of reports about hundreds of streams is not to be measured.
fn configuration(listen: SocketAddr, pages: SocketAddr, io: Own, workers: usize, sources: &[String]) -> String {
    let mut text = format!(
        "listen = [\"{listen}\"]\nhttp = \"{pages}\"\nworkers = {workers}\nio = \"{}\"\n\n[report]\nevery = \"0s\"\n",
        io.name()
    );
    for source in sources {
        let name = crate::rtsp::path_of(source);
        let _ = write!(text, "\n[[stream]]\nname = \"{name}\"\nsource = \"{source}\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_peer_or_build_is_refused() {
        let peer: Peer = "go2rtc=run.py /opt/go2rtc {port} {sources}".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.command.len()), ("go2rtc", 4));
        for wrong in ["go2rtc", "=run {port} {sources}", "x=run {port}", "x=run {sources}"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
        assert!("=x".parse::<Build>().is_err() && "x=".parse::<Build>().is_err());
    }

    #[test]
    fn the_relay_takes_the_configuration() {
        let sources = ["rtsp://127.0.0.1:9/cam0".to_string(), "rtsp://127.0.0.1:9/cam1".to_string()];
        let (listen, pages) = ("127.0.0.1:8554".parse().unwrap(), "127.0.0.1:8580".parse().unwrap());
        let text = configuration(listen, pages, Own::Epoll, 2, &sources);
        let config = rtsprelay::config::Config::from_toml(&text).unwrap();
        assert_eq!((config.streams.len(), config.workers), (2, 2));
    }
}
