//! `camera`: a synthetic camera, an RTSP server whose frames carry time stamps and whose faults are chosen.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};
use serde::Serialize;

use crate::faults::{Fault, Faults};
use crate::media::{self, Burst, Rtp, Video, VideoConfig};
use crate::os;
use crate::server::{Delivery, Event, Play, Presentation, Server, UdpPair};

/// Bytes that wait for one client at most; then whole frames are dropped for it, as cameras do.
const BACKLOG_BYTES_MAX: usize = 4 << 20;

/// Seconds between sender reports.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `camera`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen at; port 0 takes a free one. The URL is printed as the first line.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Streams to serve, each at its own path and with its own phase.
    #[arg(long = "path", value_name = "NAME", default_values_t = ["cam".to_string()])]
    pub paths: Vec<String>,
    /// Bits a second of the video (4M, 500k).
    #[arg(long, default_value = "4M", value_parser = os::quantity)]
    pub bitrate: u64,
    /// Frames a second.
    #[arg(long, default_value = "30", value_parser = os::positive)]
    pub fps: f64,
    /// Frames from one keyframe to the next.
    #[arg(long, default_value_t = 30)]
    pub gop: u64,
    /// Size of a keyframe as a multiple of another frame's.
    #[arg(long, default_value = "4", value_parser = os::positive)]
    pub keyframe_factor: f64,
    /// Bytes of RTP payload in a packet at most.
    #[arg(long, default_value_t = 1400)]
    pub packet: usize,
    /// Adds a track with a tone (PCMU, 20 ms packets).
    #[arg(long)]
    pub audio: bool,
    /// Spreads the packets of each frame over this time.
    #[arg(long, default_value = "0", value_parser = os::duration)]
    pub pace: Duration,
    /// A fault, by time since the stream was first played: stall=2s@5s, die=2s@5s, restart@5s, retime@5s, loss=1%,
    /// corrupt=1%, delay=20ms, garbage@5s. A rate or delay may have a range: loss=1%@2s-6s. May be given several times.
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<Fault>,
    /// For tests: the faults' time runs from SIGUSR1 on, and not from the first PLAY.
    #[arg(long, hide = true)]
    pub armed: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ends after this time; without it, at SIGINT or SIGTERM.
    #[arg(long, value_parser = os::duration)]
    pub seconds: Option<Duration>,
    /// Prints what was sent and what was spoilt as JSON when it ends.
    #[arg(long)]
    pub json: bool,
}

/// What one stream has sent and spoilt while it had a client. A frame is counted once.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// The stream's path.
    pub path: String,
    /// Frames whose time came.
    pub frames: u64,
    /// Of these, frames not sent at all (stall, or every packet of it lost).
    pub frames_missing: u64,
    /// Frames sent with some packets lost.
    pub frames_damaged: u64,
    /// Frames sent with some packets corrupted.
    pub frames_corrupted: u64,
    /// Video packets sent.
    pub packets: u64,
    /// Video packets that got a sequence number and were not sent.
    pub packets_lost: u64,
    /// Frames and tones dropped for a client that did not read.
    pub refused: u64,
}

struct Client {
    stream: Arc<TcpStream>,
    tracks: Vec<(usize, Delivery)>,
    backlog: Vec<u8>,
    /// It has said PAUSE, and not PLAY since.
    paused: bool,
}

/// One packet stream's state and one fault script: a path.
struct Channel {
    video: Video,
    rtp: [Rtp; 2],
    faults: Faults,
    random: fastrand::Rng,
    clients: HashMap<u64, Client>,
    tally: Tally,
    /// When frame 0 was due.
    origin: Instant,
    /// The next frame to make.
    frame: u64,
    /// The next tone to make.
    tone: u64,
    /// Packets of the frame under way, each with the moment it is due, first last.
    paced: Vec<(Instant, Burst)>,
    report_at: Instant,
    /// Frame number at which the timeline began (it begins anew after a restart).
    timeline_frame: u64,
    timeline_tone: u64,
    /// When the power comes back.
    down_until: Option<Instant>,
}

/// Runs the camera until it is stopped.
pub fn run(args: &Args) -> Result<(), String> {
    let (stop, go) = (os::stop_flag()?, os::go_flag()?);
    if args.packet < 64 || args.packet > 65_000 || args.gop == 0 {
        return Err("--packet must be 64 to 65000, --gop more than 0".into());
    }
    if let Some(twice) = args.paths.iter().enumerate().find(|(index, path)| args.paths[..*index].contains(path)) {
        return Err(format!("--path {} is given twice; each stream needs a path of its own", twice.1));
    }
    let mut channels = Vec::new();
    let mut presentations = Vec::new();
    let start = Instant::now();
    for (index, path) in args.paths.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(args.seed.wrapping_add(index as u64));
        let video = Video::new(video_config(args), random.u64(..))?;
        let mut sdp = format!(
            "v=0\r\no=- {} 1 IN IP4 0.0.0.0\r\ns=bench\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n",
            index + 1
        );
        sdp.push_str(&video.sdp("track0"));
        if args.audio {
            sdp.push_str(&media::audio_sdp("track1"));
        }
        presentations.push(Presentation { path: path.clone(), sdp, tracks: 1 + usize::from(args.audio) });
        let phase = Duration::from_secs_f64(index as f64 / args.paths.len() as f64 / args.fps);
        channels.push(Channel {
            video,
            rtp: [Rtp::new(media::VIDEO_PAYLOAD_TYPE, &mut random), Rtp::new(0, &mut random)],
            faults: Faults::new(&args.faults),
            random,
            clients: HashMap::new(),
            tally: Tally { path: path.clone(), ..Tally::default() },
            origin: start + phase,
            frame: 0,
            tone: 0,
            paced: Vec::new(),
            report_at: start,
            timeline_frame: 0,
            timeline_tone: 0,
            down_until: None,
        });
    }
    let server = Server::start(args.listen, presentations)?;
    println!("rtsp://{}/{}", server.address, args.paths[0]);
    let ends = args.seconds.map(|s| start + s);
    while !stop.load(Ordering::Relaxed) && ends.is_none_or(|end| Instant::now() < end) {
        let now = Instant::now();
        let mut next = now + Duration::from_millis(50);
        if go.swap(false, Ordering::Relaxed) {
            channels.iter_mut().for_each(|channel| channel.faults.begin(now));
        }
        for channel in &mut channels {
            next = next.min(channel.advance(now, args, &server));
        }
        match server.events.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(event) => handle(&mut channels, event, args),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("the RTSP thread has ended".into()),
        }
    }
    if args.json {
        let tallies: Vec<&Tally> = channels.iter().map(|c| &c.tally).collect();
        println!("{}", serde_json::to_string(&tallies).map_err(|e| e.to_string())?);
    }
    Ok(())
}

fn video_config(args: &Args) -> VideoConfig {
    VideoConfig { bitrate: args.bitrate, fps: args.fps, gop: args.gop, keyframe_factor: args.keyframe_factor }
}

fn handle(channels: &mut [Channel], event: Event, args: &Args) {
    match event {
        Event::Play(play) => channels[play.path].play(&play, args),
        Event::Answer { conn, bytes } => {
            for channel in channels {
                if let Some(client) = channel.clients.get_mut(&conn) {
                    client.write(&bytes);
                }
            }
        }
        Event::Pause { conn, bytes } => {
            for channel in channels {
                if let Some(client) = channel.clients.get_mut(&conn) {
                    client.write(&bytes);
                    client.paused = true;
                }
            }
        }
        Event::Gone { conn } => {
            for channel in channels {
                channel.clients.remove(&conn);
            }
        }
    }
}

impl Client {
    /// Writes what the socket takes at once and keeps the rest. `false`: dropped, because too much waits already.
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.flush();
        if self.backlog.len() + bytes.len() > BACKLOG_BYTES_MAX {
            return false;
        }
        let mut sent = 0;
        if self.backlog.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            sent = send(self.stream.as_raw_fd(), bytes, flags).unwrap_or(0);
        }
        self.backlog.extend_from_slice(&bytes[sent..]);
        true
    }

    fn flush(&mut self) {
        if !self.backlog.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let sent = send(self.stream.as_raw_fd(), &self.backlog, flags).unwrap_or(0);
            self.backlog.drain(..sent);
        }
    }

    /// Sends packets of a track, or reports of it; `false` if they were dropped.
    fn send(&mut self, track: usize, report: bool, burst: &mut Burst, udp: &UdpPair) -> bool {
        if self.paused {
            // What it was sent before must end all the same, lest its framing be torn.
            self.flush();
            return true;
        }
        let Some(&(_, delivery)) = self.tracks.iter().find(|(t, _)| *t == track) else { return true };
        match delivery {
            Delivery::Interleaved(rtp, rtcp) => {
                burst.set_channel(if report { rtcp } else { rtp });
                self.write(&burst.bytes)
            }
            Delivery::Udp(rtp, rtcp) => {
                let (socket, to) = if report { (&udp.rtcp, rtcp) } else { (&udp.rtp, rtp) };
                // Every packet is tried: one that the socket refuses is lost, the next may pass.
                burst.packets().filter(|packet| socket.send_to(packet, to).is_err()).count() == 0
            }
        }
    }
}

impl Channel {
    /// Whether anybody plays.
    fn is_heard(&self) -> bool {
        self.clients.values().any(|client| !client.paused)
    }

    fn frame_due(&self, args: &Args) -> Instant {
        self.origin + Duration::from_secs_f64(self.frame as f64 / args.fps)
    }

    fn tone_due(&self) -> Instant {
        self.origin + Duration::from_millis(20) * self.tone as u32
    }

    /// RTP timestamps of the next frame and the next tone.
    fn times(&self, args: &Args) -> [u32; 2] {
        let ticks = ((self.frame - self.timeline_frame) as f64 * 90_000.0 / args.fps) as u64;
        let samples = (self.tone - self.timeline_tone) * u64::from(media::AUDIO_SAMPLES);
        [self.rtp[0].base_time.wrapping_add(ticks as u32), self.rtp[1].base_time.wrapping_add(samples as u32)]
    }

    fn play(&mut self, play: &Play, args: &Args) {
        let times = self.times(args);
        let first = [Some((self.rtp[0].seq, times[0])), Some((self.rtp[1].seq, times[1]))];
        let client = self.clients.entry(play.conn).or_insert_with(|| Client {
            stream: play.stream.clone(),
            tracks: Vec::new(),
            backlog: Vec::new(),
            paused: false,
        });
        client.tracks.clone_from(&play.tracks);
        client.paused = false;
        client.write(&play.answer(&first));
        let now = Instant::now();
        if !args.armed {
            self.faults.begin(now);
        }
        self.report_at = now;
    }

    /// Does what is due and returns the moment at which something is due next.
    fn advance(&mut self, now: Instant, args: &Args, server: &Server) -> Instant {
        self.power(now, server);
        while self.frame_due(args) <= now {
            self.make_frame(now, self.frame_due(args), args);
            self.frame += 1;
        }
        while self.paced.last().is_some_and(|(due, _)| *due <= now) {
            let (_, mut burst) = self.paced.pop().expect("seen just now");
            self.deliver(0, false, &mut burst, server);
        }
        while args.audio && self.tone_due() <= now {
            let (time, due) = (self.times(args)[1], self.tone_due());
            self.tone += 1;
            if self.down_until.is_none() && self.is_heard() && !self.faults.stalled(due) {
                let mut burst = Burst::default();
                media::tone(&mut self.rtp[1], 0, time, &mut burst);
                self.deliver(1, false, &mut burst, server);
            }
        }
        if self.report_at <= now && self.is_heard() && !self.faults.stalled(now) {
            let times = self.times(args);
            for (track, time) in times.into_iter().take(1 + usize::from(args.audio)).enumerate() {
                let mut burst = Burst::default();
                self.rtp[track].report(0, os::wall_ns(), time, &mut burst);
                self.deliver(track, true, &mut burst, server);
            }
            self.report_at = now + REPORT_EVERY;
        }
        let mut next = self.frame_due(args);
        if let Some((due, _)) = self.paced.last() {
            next = next.min(*due);
        }
        if args.audio {
            next = next.min(self.tone_due());
        }
        next
    }

    /// Deaths, restarts and junk.
    fn power(&mut self, now: Instant, server: &Server) {
        if let Some(back) = self.down_until {
            if now < back {
                return;
            }
            self.down_until = None;
            server.restore_power();
        }
        for fault in self.faults.due(now) {
            match fault {
                Fault::Die { lasts, .. } => {
                    server.cut_power();
                    self.down_until = Some(now + lasts);
                    self.new_timeline();
                    self.paced.clear();
                }
                Fault::Retime { .. } => self.new_timeline(),
                Fault::Garbage { .. } => {
                    let junk: Vec<u8> = (0..500).map(|_| self.random.u8(..)).collect();
                    for client in self.clients.values_mut() {
                        client.write(&junk);
                    }
                }
                _ => {}
            }
        }
    }

    /// As after a reboot: another SSRC, sequence and timestamp. Frame numbers in the stamps go on, for they are the truth
    /// that players are judged by.
    fn new_timeline(&mut self) {
        self.rtp = [Rtp::new(media::VIDEO_PAYLOAD_TYPE, &mut self.random), Rtp::new(0, &mut self.random)];
        self.timeline_frame = self.frame;
        self.timeline_tone = self.tone;
    }

    /// Makes a frame that is due since `due`. By this moment its faults are told, so that a busy machine, which makes it late,
    /// spoils no fewer frames and no others.
    fn make_frame(&mut self, now: Instant, due: Instant, args: &Args) {
        if !self.is_heard() || self.down_until.is_some() {
            return;
        }
        self.tally.frames += 1;
        if self.faults.stalled(due) {
            self.tally.frames_missing += 1;
            return;
        }
        let time = self.times(args)[0];
        let nals = self.video.frame(self.frame, os::wall_ns());
        let mut whole = Burst::default();
        self.rtp[0].access_unit(0, time, &nals, args.packet, &mut whole);
        let begins = now + self.faults.delay(due);
        let kept = self.spoil(due, whole);
        if kept.is_empty() {
            return;
        }
        // In the order of time with the first at the end, so that a delay longer than a frame's time keeps the order.
        self.paced.reverse();
        if args.pace.is_zero() {
            self.paced.push((begins, kept));
        } else {
            let count = kept.spans.len() as u32;
            for (index, packet) in kept.packets().enumerate() {
                let mut burst = Burst::default();
                burst.push(0, packet, &[]);
                self.paced.push((begins + args.pace * index as u32 / count, burst));
            }
        }
        self.paced.reverse();
    }

    /// Loses and corrupts packets as the faults say, and counts.
    fn spoil(&mut self, due: Instant, whole: Burst) -> Burst {
        let (loss, corrupt) = (self.faults.loss(due), self.faults.corrupt(due));
        self.tally.packets += whole.spans.len() as u64;
        if loss == 0.0 && corrupt == 0.0 {
            return whole;
        }
        let mut kept = Burst::default();
        let mut corrupted = false;
        for packet in whole.packets() {
            if self.random.f64() < loss {
                continue;
            }
            let mut packet = packet.to_vec();
            if self.random.f64() < corrupt {
                corrupted = true;
                // The RTP header stays, so that it is the decoder's problem and not the transport's.
                packet[12..].iter_mut().for_each(|byte| *byte = self.random.u8(..));
            }
            kept.push(0, &packet, &[]);
        }
        let lost = whole.spans.len() - kept.spans.len();
        self.tally.packets -= lost as u64;
        self.tally.packets_lost += lost as u64;
        self.tally.frames_missing += u64::from(kept.is_empty());
        self.tally.frames_damaged += u64::from(lost > 0 && !kept.is_empty());
        self.tally.frames_corrupted += u64::from(corrupted);
        kept
    }

    fn deliver(&mut self, track: usize, report: bool, burst: &mut Burst, server: &Server) {
        for client in self.clients.values_mut() {
            if !client.send(track, report, burst, &server.udp) {
                self.tally.refused += 1;
            }
        }
    }
}
