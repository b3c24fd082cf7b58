//! `proxy`: the reference for relays with many cameras. It pulls each camera once, and writes whatever one read returns to each of the
//! camera's players with one blocking `write`, unchanged; one thread, one epoll, nothing stored. A second thread answers players'
//! requests and sleeps otherwise.
//!
//! It uses `read(2)`, which the kernel counts for every process (`syscr` of `/proc/PID/io`), and not `recv(2)`, which it does not
//! count; they cost the same.

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::floor::Source;
use crate::os;
use crate::rtsp::{Url, path_of};
use crate::server::{Conduct, Delivery, Event, Play, Presentation, Server};

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 256 * 1024;

/// Maximum interval of checks for new players, in milliseconds.
const LOOK_EVERY_MS: u8 = 20;

/// Arguments of `proxy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with a camera's URL on each line; each is pulled over TCP and served at the same path.
    #[arg(long)]
    pub sources: PathBuf,
    /// Address to listen on; port 0 chooses a free one. The URL of the first camera's stream is printed as the first line.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

/// Finds packet boundaries in a stream of interleaved packets, across reads.
#[derive(Debug, Default)]
struct Framing {
    /// The bytes of a packet's header that have arrived.
    head: Vec<u8>,
    /// Remaining bytes of the current packet.
    skip: usize,
}

/// A camera and its players.
struct Line {
    stream: TcpStream,
    framing: Framing,
    players: Vec<(u64, Arc<TcpStream>)>,
    /// Players that wait for the start of the next packet.
    waiting: Vec<(u64, Arc<TcpStream>)>,
    /// Answers to players, which are sent between two packets.
    answers: Vec<(u64, Vec<u8>)>,
}

struct Proxy {
    server: Server,
    lines: Vec<Line>,
    /// Which camera a player plays.
    of_player: HashMap<u64, usize>,
}

/// Runs the proxy until it is stopped, or a camera goes away.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let text = std::fs::read_to_string(&args.sources)
        .map_err(|e| format!("--sources: cannot read {}: {e}", args.sources.display()))?;
    let fail = |e: nix::Error| format!("epoll: {e}");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(fail)?;
    let mut lines = Vec::new();
    let mut presentations: Vec<Presentation> = Vec::new();
    for url in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let source = Source::connect(&Url::parse(url)?)?;
        presentations.push(source.presentation(path_of(url)));
        source.stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, lines.len() as u64);
        epoll.add(&source.stream, event).map_err(fail)?;
        let mut framing = Framing::default();
        framing.advance(&source.input)?;
        lines.push(Line { stream: source.stream, framing, players: vec![], waiting: vec![], answers: vec![] });
    }
    let Some(first) = presentations.first().map(|presentation| presentation.path.clone()) else {
        return Err(format!("--sources: {} names no camera", args.sources.display()));
    };
    let server = Server::start(args.listen, presentations, Conduct::default())?;
    println!("rtsp://{}/{first}", server.address);
    let mut proxy = Proxy { server, lines, of_player: HashMap::new() };
    let mut ready = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; READ_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        let count = match epoll.wait(&mut ready, EpollTimeout::from(LOOK_EVERY_MS)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(fail(error)),
        };
        proxy.events();
        for event in &ready[..count] {
            proxy.lines[event.data() as usize].serve(&mut buffer)?;
        }
    }
    Ok(())
}

impl Line {
    /// Reads once, and writes that once to each player.
    fn serve(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        let count = match nix::unistd::read(&self.stream, buffer) {
            Ok(0) => return Err("a camera closed its connection".into()),
            Ok(count) => count,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(()),
            Err(error) => return Err(format!("a camera's connection broke: {error}")),
        };
        let bytes = &buffer[..count];
        let begins = self.framing.advance(bytes)?;
        // A player that cannot be written to is reported as gone by the thread that reads from it.
        self.players.retain(|(number, player)| match begins {
            Some(begins) if self.answers.iter().any(|(other, _)| other == number) => {
                let answers = self.answers.iter().filter(|(other, _)| other == number);
                let mut all = bytes[..begins].to_vec();
                answers.for_each(|(_, answer)| all.extend_from_slice(answer));
                all.extend_from_slice(&bytes[begins..]);
                (&**player).write_all(&all).is_ok()
            }
            _ => (&**player).write_all(bytes).is_ok(),
        });
        if let Some(begins) = begins {
            self.answers.clear();
            for (number, player) in self.waiting.drain(..) {
                if (&*player).write_all(&bytes[begins..]).is_ok() {
                    self.players.push((number, player));
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, number: u64) {
        self.players.retain(|(other, _)| *other != number);
        self.waiting.retain(|(other, _)| *other != number);
    }
}

impl Proxy {
    /// Handles clients that connected, left, or sent a request.
    fn events(&mut self) {
        while let Ok(event) = self.server.events.try_recv() {
            match event {
                Event::Play(play) => self.play(&play),
                Event::Answer { conn, bytes } => {
                    if let Some(&line) = self.of_player.get(&conn) {
                        self.lines[line].answers.push((conn, bytes));
                    }
                }
                // A player that pauses is not part of this benchmark: it is dropped.
                Event::Pause { conn, .. } | Event::Gone { conn } => {
                    if let Some(line) = self.of_player.remove(&conn) {
                        self.lines[line].remove(conn);
                    }
                }
            }
        }
    }

    fn play(&mut self, play: &Play) {
        let as_it_comes = |&(track, delivery): &(usize, Delivery)| {
            let channel = track as u8 * 2;
            delivery == Delivery::Interleaved(channel, channel + 1)
        };
        if !play.tracks.iter().all(as_it_comes) {
            eprintln!("a player asks for UDP, or for channels other than the camera's, and gets nothing");
            return;
        }
        if (&*play.stream).write_all(&play.answer(&[])).is_ok() {
            self.of_player.insert(play.conn, play.path);
            self.lines[play.path].waiting.push((play.conn, play.stream.clone()));
        }
    }
}

impl Framing {
    /// Processes the next bytes; returns the first offset at which a packet starts.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let (mut at, mut begins) = (0, None);
        while at < bytes.len() {
            if self.skip > 0 {
                let taken = self.skip.min(bytes.len() - at);
                self.skip -= taken;
                at += taken;
                continue;
            }
            if self.head.is_empty() {
                if bytes[at] != b'$' {
                    return Err(format!("byte {:#04x} where a camera's packet should begin", bytes[at]));
                }
                begins = begins.or(Some(at));
            }
            let taken = (4 - self.head.len()).min(bytes.len() - at);
            self.head.extend_from_slice(&bytes[at..at + taken]);
            at += taken;
            if let [_, _, high, low] = self.head[..] {
                self.skip = usize::from(u16::from_be_bytes([high, low]));
                self.head.clear();
            }
        }
        Ok(begins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_however_they_are_cut() {
        let packet = |len: u16| [&[b'$', 0][..], &len.to_be_bytes(), &vec![b'$'; len.into()]].concat();
        let bytes = [packet(9), packet(0), packet(300), packet(2)].concat();
        let truth = [0, 13, 17, 321];
        for size in 1..bytes.len() {
            let mut framing = Framing::default();
            let mut found = Vec::new();
            for (index, piece) in bytes.chunks(size).enumerate() {
                found.extend(framing.advance(piece).unwrap().map(|at| index * size + at));
            }
            // Of each piece the first.
            let mut expected: Vec<usize> = truth.to_vec();
            expected.dedup_by_key(|at| *at / size);
            assert_eq!(found, expected, "pieces of {size}");
        }
        assert!(Framing::default().advance(b"RTSP").is_err());
    }
}
