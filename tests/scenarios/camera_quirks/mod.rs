//! Cameras with the faults that public reports describe: each must play, and players must get every frame that it sent.
//!
//! ffmpeg is the yardstick for whether such a camera is realistic: it plays all of them except those marked as too much for it.

mod answers;
mod asks;
mod coming_back;
mod datagrams;
mod flood;
mod hostile;
mod keepalive;
mod long;
mod packets;
mod passwords;
mod redirects;
mod yardstick;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::http::{get, http_address, value};
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Incoming, Packet, tracks};
use crate::harness::scripted::media::{Received, received, sound_number};
use crate::harness::scripted::{Camera, Script, SentFrame};
use crate::harness::wait_until;

/// How long a camera may take to play, and a player to get what it waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Frames that a player must get, unless stated otherwise: four keyframes and the frames after them.
const FRAMES: usize = 120;

/// A camera's name and its script.
type Variant = (&'static str, Script);

/// What a player received.
#[derive(Default)]
struct Seen {
    frames: Vec<Received>,
    /// When each frame was complete.
    times: Vec<Instant>,
    sounds: Vec<u32>,
    /// Packets whose number does not follow the previous one.
    holes: usize,
    /// Why it received no more.
    over: Option<String>,
}

impl Seen {
    /// The differences from what the camera sent. `lost_max` frames may be missing or torn. Players see a gap in the numbers where
    /// packets were lost, so this is no fault if some may be lost.
    fn faults(&self, camera: &Camera, lost_max: usize) -> Vec<String> {
        let mut faults: Vec<String> = self.over.iter().map(|why| format!("the player was sent away: {why}")).collect();
        if self.holes > 0 && lost_max == 0 {
            faults.push(format!("{} holes in the sequence numbers", self.holes));
        }
        let numbers: Vec<u64> = self.frames.iter().filter_map(|frame| frame.number).collect();
        if !numbers.is_sorted_by(|one, next| one < next) {
            faults.push(format!("frames out of order, or twice: {numbers:?}"));
        }
        let record = camera.record();
        let (first, last) = (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0));
        let sent: Vec<_> = record.frames.iter().filter(|frame| (first..=last).contains(&frame.number)).collect();
        let got: HashMap<u64, u64> = self.frames.iter().filter_map(|frame| Some((frame.number?, frame.hash))).collect();
        let is_whole = |frame: &&&SentFrame| got.get(&frame.number) == Some(&frame.hash);
        let lost: Vec<u64> = sent.iter().filter(|frame| !is_whole(frame)).map(|frame| frame.number).collect();
        if lost.len() > lost_max {
            faults.push(format!("{} of {} frames lost or torn: {lost:?}", lost.len(), sent.len()));
        }
        let broken: Vec<&[u32]> = self.sounds.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
        if lost_max == 0 && !broken.is_empty() {
            faults.push(format!("packets of sound are missing or out of order: {broken:?}"));
        }
        faults
    }
}

/// A player of one stream, in its own thread.
struct Viewer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Viewer {
    /// Plays a stream; an error if it cannot be described within [`PATIENCE`].
    fn start(relay: &Relay, name: &str) -> Result<Viewer, String> {
        let (url, begun) = (relay.url(&format!("/{name}")), Instant::now());
        let mut client = Client::connect(relay.address());
        let described = loop {
            let described = client.describe(&url);
            if described.status == 200 {
                break described;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("never plays: DESCRIBE is answered {}", described.status));
            }
            // The interval between two tries.
            std::thread::sleep(Duration::from_millis(50));
        };
        let mut video = None;
        for (number, track) in (0u8..).zip(&tracks(&described)) {
            if track.media == "video" {
                video = Some(number * 2);
            }
            client.setup(track, number * 2, number * 2 + 1).expect(200);
        }
        client.play(described.header("Content-Base").unwrap()).expect(200);
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            std::thread::spawn(move || watch(client, video, &seen, &stop))
        };
        Ok(Viewer { seen, stop, thread: Some(thread) })
    }

    /// The number of frames it has received.
    fn frames(&self) -> usize {
        self.seen.lock().unwrap().frames.len()
    }

    /// Waits until it has received this many more frames or is disconnected; an error if that takes too long.
    fn gets(&self, frames: usize, patience: Duration) -> Result<(), String> {
        let (before, begun) = (self.frames(), Instant::now());
        loop {
            let got = self.frames() - before;
            if got >= frames || self.seen.lock().unwrap().over.is_some() {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(format!("{got} frames instead of {frames}"));
            }
            // The interval between two checks.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it received.
    fn finish(mut self) -> Seen {
        self.end();
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic in it is reported separately.
            let _ = thread.join();
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads until `stop`.
fn watch(mut client: Client, video: Option<u8>, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut frame: Vec<Packet> = Vec::new();
    let mut last_seqs = [None; 256];
    let mut queued = std::mem::take(&mut client.queued);
    while !stop.load(Ordering::SeqCst) {
        let packet = match queued.pop_front() {
            Some(packet) => packet,
            None => match client.read(Instant::now() + Duration::from_millis(100)) {
                Ok(Some(Incoming::Packet(packet))) => packet,
                Ok(Some(Incoming::Answer(_))) => continue,
                Ok(None) => {
                    seen.lock().unwrap().over = Some("the relay closed the connection".into());
                    return;
                }
                Err(error) if is_early(&error) => continue,
                Err(error) => {
                    seen.lock().unwrap().over = Some(error.to_string());
                    return;
                }
            },
        };
        if packet.channel % 2 == 1 {
            continue;
        }
        let mut seen = seen.lock().unwrap();
        let last = last_seqs[usize::from(packet.channel)].replace(packet.seq());
        seen.holes += usize::from(last.is_some_and(|last: u16| last.wrapping_add(1) != packet.seq()));
        if Some(packet.channel) != video {
            seen.sounds.push(sound_number(&packet));
            continue;
        }
        if frame.first().is_some_and(|first| first.rtp_time() != packet.rtp_time()) {
            take_frame(&mut seen, &mut frame);
        }
        let ends = packet.marker();
        frame.push(packet);
        if ends {
            take_frame(&mut seen, &mut frame);
        }
    }
}

fn take_frame(seen: &mut Seen, frame: &mut Vec<Packet>) {
    seen.frames.push(received(frame));
    seen.times.push(frame.last().expect("a packet").at);
    frame.clear();
}

fn is_early(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// A configuration without streams.
const HEAD: &str = "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 1\n";

/// The configuration of a camera; `more` are further lines.
fn stream(name: &str, camera: &Camera, script: &Script, more: &str) -> String {
    let fingerprint =
        script.identity.as_ref().map(|identity| format!("tls_fingerprint = \"{}\"\n", identity.fingerprint));
    format!(
        "\n[[stream]]\nname = \"{name}\"\nsource = \"{}\"\n{}{more}\n",
        camera.url(),
        fingerprint.unwrap_or_default()
    )
}

/// Cameras behind one relay, and what their players received.
struct Played {
    relay: Relay,
    cameras: Vec<Camera>,
    names: Vec<&'static str>,
    seen: Vec<Result<Seen, String>>,
}

/// How much of each camera is played, and which faults are allowed.
#[derive(Clone, Copy)]
struct Terms {
    /// Frames.
    frames: usize,
    /// Sessions with the camera; 1, unless the camera requires more.
    sessions_max: usize,
    /// Frames that may be missing.
    lost_max: usize,
    /// Lines in the stream's configuration.
    more: &'static str,
}

/// One session, without loss.
const WHOLE: Terms = Terms { frames: FRAMES, sessions_max: 1, lost_max: 0, more: "" };

impl Terms {
    /// For this many seconds of a camera with 50 frames a second.
    const fn lasting(seconds: usize) -> Terms {
        Terms { frames: seconds * 50, ..WHOLE }
    }
}

/// Plays cameras, each until its player has received the frames that it should, and fails with all faults found.
#[track_caller]
fn play(variants: Vec<Variant>, terms: Terms) -> Played {
    let played = try_play(variants, terms);
    let wrong = played.faults(terms);
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), played.told());
    played
}

fn try_play(variants: Vec<Variant>, terms: Terms) -> Played {
    let mut config = HEAD.to_owned();
    let (mut cameras, mut names) = (Vec::new(), Vec::new());
    for (name, script) in variants {
        let camera = Camera::start(script.clone());
        config += &stream(name, &camera, &script, terms.more);
        cameras.push(camera);
        names.push(name);
    }
    let relay = Relay::configured(&config);
    let patience = PATIENCE + Duration::from_millis(terms.frames as u64 * 20);
    let seen = std::thread::scope(|scope| {
        let play_one = |name| {
            let viewer = Viewer::start(&relay, name)?;
            viewer.gets(terms.frames, patience)?;
            Ok(viewer.finish())
        };
        let players: Vec<_> = names.iter().map(|name| scope.spawn(move || play_one(name))).collect();
        players.into_iter().map(|player| player.join().unwrap()).collect()
    });
    Played { relay, cameras, names, seen }
}

impl Played {
    fn faults(&self, terms: Terms) -> Vec<String> {
        let mut wrong = Vec::new();
        for (at, name) in self.names.iter().enumerate() {
            let mut faults = match &self.seen[at] {
                Ok(seen) => seen.faults(&self.cameras[at], terms.lost_max),
                Err(fault) => vec![fault.clone()],
            };
            let sessions = self.cameras[at].count("PLAY");
            if sessions > terms.sessions_max {
                faults.push(format!("{sessions} sessions with the camera instead of {}", terms.sessions_max));
            }
            wrong.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
        }
        wrong
    }

    /// Lines of the relay's log that may explain a failure.
    fn told(&self) -> String {
        let printed = self.relay.printed();
        printed
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .take(12)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// A count of one stream in `/metrics`.
    fn metric(&self, name: &str, labels: &str) -> f64 {
        metric(&self.relay, name, labels)
    }

    /// Packets of a stream that arrived and were dropped, for any reason.
    fn dropped(&self, stream: &str) -> f64 {
        let metrics = get(http_address(&self.relay), "/metrics").1;
        let begin = format!("rtsprelay_source_packets_dropped_total{{stream=\"{stream}\"");
        let lines = metrics.lines().filter(|line| line.starts_with(&begin));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }
}

/// The value of a line in `/metrics`.
fn metric(relay: &Relay, name: &str, labels: &str) -> f64 {
    value(&get(http_address(relay), "/metrics").1, &format!("{name}{{{labels}}}"))
}

/// The entry of a stream in `/status`.
fn status_of(relay: &Relay, stream: &str) -> Value {
    let status: Value = serde_json::from_str(&get(http_address(relay), "/status").1).expect("JSON");
    let streams = status["streams"].as_array().expect("streams");
    streams.iter().find(|line| line["stream"] == stream).expect("the stream").clone()
}

/// The warnings in the relay's log about a stream.
fn warnings(relay: &Relay, stream: &str) -> Vec<String> {
    let of = format!("stream={stream} ");
    let printed = relay.printed();
    let lines = printed.lines().filter(|line| line.contains(&of) && line.contains("WARN"));
    lines.map(str::to_owned).collect()
}

/// Waits until a warning about a stream contains all of `words`.
#[track_caller]
fn wait_told(relay: &Relay, stream: &str, words: &[&str]) {
    wait_until(&format!("the log warns of {stream} with {words:?}"), PATIENCE, || {
        warnings(relay, stream).iter().any(|line| words.iter().all(|word| line.contains(word)))
    });
}
