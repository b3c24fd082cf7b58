//! `camera`: a synthetic camera, an RTSP server whose frames carry time stamps and whose faults are chosen.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use nix::sys::socket::{MsgFlags, send};
use serde::Serialize;

use crate::faults::{Fault, Faults};
use crate::media::{self, Burst, Rtp, Video, VideoConfig};
use crate::os;
use crate::server::{Conduct, Delivery, Event, Play, Presentation, Server, UdpPair};

/// Bytes that wait for one client at most; then whole frames are dropped for it, as cameras do. Two of the largest frames fit in.
const BACKLOG_BYTES_MAX: usize = 16 << 20;

/// How often what waits is tried again.
const FLUSH_EVERY: Duration = Duration::from_millis(1);

/// Seconds between sender reports.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Time from one packet of the tone to the next.
const TONE_EVERY: Duration = Duration::from_millis(20);

/// Time after which a stream is looked at again at the latest, for its faults.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Bytes that arrive over a link in one piece: what a reader that keeps up finds at once, from a camera at 100 Mbit/s.
const LINK_PIECE_BYTES: usize = 2048;

/// Arguments of `camera`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 chooses a free one. The URL is printed as the first line.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Paths of the streams to serve, each with its own phase.
    #[arg(long = "path", value_name = "NAME", default_values_t = ["cam".to_string()])]
    pub paths: Vec<String>,
    /// Bit rate of the video (4M, 500k).
    #[arg(long, default_value = "4M", value_parser = os::quantity)]
    pub bitrate: u64,
    /// Frames per second.
    #[arg(long, default_value = "30", value_parser = os::positive)]
    pub fps: f64,
    /// Frames from one keyframe to the next.
    #[arg(long, default_value_t = 30)]
    pub gop: u64,
    /// Size of a keyframe relative to other frames.
    #[arg(long, default_value = "4", value_parser = os::positive)]
    pub keyframe_factor: f64,
    /// Maximum RTP payload of a packet in bytes.
    #[arg(long, default_value_t = 1400)]
    pub packet: usize,
    /// Add a track with a tone (PCMU, 20 ms packets).
    #[arg(long)]
    pub audio: bool,
    /// Spread the packets of each frame over this time.
    #[arg(long, default_value = "0", value_parser = os::duration)]
    pub pace: Duration,
    /// Simulated bit rate of the link for each TCP connection (100M): the kernel sends a frame in pieces of 2 KB at that pace, as a
    /// real camera's network does.
    #[arg(long, value_parser = os::quantity)]
    pub link: Option<u64>,
    /// Generate two groups of pictures once for all streams, and send them repeatedly with new timestamps. Hundreds of streams then
    /// cost this program little more than the sends.
    #[arg(long)]
    pub repeat: bool,
    /// A fault, at a time since the stream was first played: stall=2s@5s, die=2s@5s, restart@5s, retime@5s, loss=1%, corrupt=1%,
    /// delay=20ms, garbage@5s. A rate or delay may have a time range: loss=1%@2s-6s. Can be repeated.
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<Fault>,
    /// For tests: count the faults' time from SIGUSR1 instead of the first PLAY.
    #[arg(long, hide = true)]
    pub armed: bool,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Exit after this time; by default on SIGINT or SIGTERM.
    #[arg(long, value_parser = os::duration)]
    pub seconds: Option<Duration>,
    /// On exit, print what was sent and what was damaged as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What one stream has sent and spoilt while it had a client. A frame is counted once.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// The stream's path.
    pub path: String,
    /// Frames that were due.
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
    backlog: BytesMut,
    /// Bytes that are sent in one piece.
    piece: usize,
    /// It has sent PAUSE, and no PLAY since.
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
    /// Packets of the current frame, each with the time it is due, in reverse order.
    paced: Vec<(Instant, Burst)>,
    report_at: Instant,
    /// Frame number at which the timeline started (it starts again after a restart).
    timeline_frame: u64,
    timeline_tone: u64,
    /// When it comes back after `die`.
    down_until: Option<Instant>,
}

/// Runs the camera until it is stopped.
pub fn run(args: &Args) -> Result<(), String> {
    let (stop, go) = (os::stop_flag()?, os::go_flag()?);
    os::raise_open_files();
    check(args)?;
    let start = Instant::now();
    let (mut channels, presentations) = channels(args, start)?;
    let server = Server::start(args.listen, presentations, Conduct { link: args.link, mortal: true })?;
    println!("rtsp://{}/{}", server.address, args.paths[0]);
    let ends = args.seconds.map(|s| start + s);
    // When each stream is to be looked at, the next one on top: there may be a thousand.
    let mut agenda: BinaryHeap<_> = (0..channels.len()).map(|index| Reverse((start, index))).collect();
    while !stop.load(Ordering::Relaxed) && ends.is_none_or(|end| Instant::now() < end) {
        let now = Instant::now();
        if go.swap(false, Ordering::Relaxed) {
            channels.iter_mut().for_each(|channel| channel.faults.begin(now));
        }
        let mut next = now + LOOK_EVERY;
        while let Some(mut top) = agenda.peek_mut() {
            let Reverse((due, index)) = *top;
            if due > now {
                next = next.min(due);
                break;
            }
            *top = Reverse((channels[index].advance(now, args, &server).min(now + LOOK_EVERY), index));
        }
        match server.events.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(event) => {
                let played = handle(&mut channels, event, args);
                if let Some(index) = played {
                    // Its first data are due at once. Its next frame is in the agenda already.
                    channels[index].advance(Instant::now(), args, &server);
                }
            }
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

/// Refuses what makes no sense together.
fn check(args: &Args) -> Result<(), String> {
    if args.packet < 64 || args.packet > 65_000 || args.gop == 0 {
        return Err("--packet must be 64 to 65000, --gop more than 0".into());
    }
    if let Some(twice) = args.paths.iter().enumerate().find(|(index, path)| args.paths[..*index].contains(path)) {
        return Err(format!("--path {} is given twice; each stream needs a path of its own", twice.1));
    }
    if args.link.is_some_and(|bits| bits < 8 * LINK_PIECE_BYTES as u64) {
        return Err("--link is in bits a second, and at least 16384".into());
    }
    Ok(())
}

/// A channel for each path, and what it describes itself as.
fn channels(args: &Args, start: Instant) -> Result<(Vec<Channel>, Vec<Presentation>), String> {
    let mut channels = Vec::new();
    let mut presentations = Vec::new();
    let repeated = args.repeat.then(|| Video::repeated(video_config(args), args.seed)).transpose()?;
    for (index, path) in args.paths.iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(args.seed.wrapping_add(index as u64));
        let seed = random.u64(..);
        let video = repeated.clone().map_or_else(|| Video::new(video_config(args), seed), Ok)?;
        let mut sdp = format!(
            "v=0\r\no=- {} 1 IN IP4 0.0.0.0\r\ns=bench\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n",
            index + 1
        );
        sdp.push_str(&video.sdp("track0"));
        if args.audio {
            sdp.push_str(&media::audio_sdp("track1"));
        }
        presentations.push(Presentation { path: path.clone(), sdp, tracks: 1 + usize::from(args.audio) });
        // Cameras are in step with one another neither in their frames nor in their keyframes.
        let frame = index as u64 * args.gop / args.paths.len() as u64;
        let phase = Duration::from_secs_f64(index as f64 / args.paths.len() as f64 / args.fps);
        let ago = Duration::from_secs_f64(frame as f64 / args.fps);
        let tone = (ago.as_millis() / TONE_EVERY.as_millis()) as u64;
        channels.push(Channel {
            video,
            rtp: [Rtp::new(media::VIDEO_PAYLOAD_TYPE, &mut random), Rtp::new(0, &mut random)],
            faults: Faults::new(&args.faults),
            random,
            clients: HashMap::new(),
            tally: Tally { path: path.clone(), ..Tally::default() },
            origin: start + phase - ago,
            frame,
            tone,
            paced: Vec::new(),
            report_at: start,
            timeline_frame: frame,
            timeline_tone: tone,
            down_until: None,
        });
    }
    Ok((channels, presentations))
}

fn video_config(args: &Args) -> VideoConfig {
    VideoConfig { bitrate: args.bitrate, fps: args.fps, gop: args.gop, keyframe_factor: args.keyframe_factor }
}

/// Does what a client wants; the channel that it plays from now on, if it has asked for that.
fn handle(channels: &mut [Channel], event: Event, args: &Args) -> Option<usize> {
    match event {
        Event::Play(play) => {
            channels[play.path].play(&play, args);
            return Some(play.path);
        }
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
    None
}

impl Client {
    /// Writes what the socket accepts and keeps the rest. `false`: dropped, because too much waits already.
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.flush();
        if self.backlog.len() + bytes.len() > BACKLOG_BYTES_MAX {
            return false;
        }
        let mut sent = 0;
        if self.backlog.is_empty() {
            sent = self.push(bytes);
        }
        self.backlog.extend_from_slice(&bytes[sent..]);
        true
    }

    /// Writes what the socket accepts, and returns how much that was.
    fn push(&self, bytes: &[u8]) -> usize {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut sent = 0;
        for piece in bytes.chunks(self.piece) {
            // The end of a record keeps the kernel from putting pieces together again.
            let flags = if self.piece < usize::MAX { flags | MsgFlags::MSG_EOR } else { flags };
            let count = send(self.stream.as_raw_fd(), piece, flags).unwrap_or(0);
            sent += count;
            if count < piece.len() {
                break;
            }
        }
        sent
    }

    /// Writes the waiting bytes as far as the socket accepts them; returns whether any are left.
    fn flush(&mut self) -> bool {
        if !self.backlog.is_empty() {
            let sent = self.push(&self.backlog);
            self.backlog.advance(sent);
        }
        !self.backlog.is_empty()
    }

    /// Sends packets of a track, or reports of it; `false` if they were dropped.
    fn send(&mut self, track: usize, report: bool, burst: &mut Burst, udp: &UdpPair) -> bool {
        if self.paused {
            // Data that it was sent before must be completed nevertheless, or its framing would be torn.
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
        self.origin + TONE_EVERY * self.tone as u32
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
            backlog: BytesMut::new(),
            piece: if args.link.is_some() { LINK_PIECE_BYTES } else { usize::MAX },
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

    /// Does what is due and returns when something is due next.
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
        let waiting = self.clients.values_mut().map(Client::flush).filter(|waits| *waits).count();
        if waiting > 0 { next.min(now + FLUSH_EVERY) } else { next }
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

    /// As after a reboot: another SSRC, sequence number and timestamp. Frame numbers in the stamps continue, because the players'
    /// reports are checked against them.
    fn new_timeline(&mut self) {
        self.rtp = [Rtp::new(media::VIDEO_PAYLOAD_TYPE, &mut self.random), Rtp::new(0, &mut self.random)];
        self.timeline_frame = self.frame;
        self.timeline_tone = self.tone;
    }

    /// Makes a frame that has been due since `due`. Its faults depend on `due`, so that a busy machine, which makes it late, damages
    /// the same frames.
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
        whole.reserve(nals.iter().map(|nal| nal.len()).sum(), args.packet);
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

    /// Drops and corrupts packets according to the faults, and counts them.
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
