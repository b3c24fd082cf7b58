//! `floor`: the bare loop that the relay is compared with. It pulls the same camera over RTSP as the relay does, and sends each frame
//! to each client with one blocking `write` (TCP) or one `sendto` per packet (UDP); one thread, nothing else.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rtsprelay::source::stamp;

use crate::client::{Handshake, Step, TrackInfo, Transport};
use crate::media::Burst;
use crate::nal;
use crate::os;
use crate::rtsp::{Message, Url};
use crate::server::{Conduct, Delivery, Event, Presentation, Server};

/// Arguments of `floor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The camera to pull, over TCP.
    #[arg(long)]
    pub source: String,
    /// Address to listen on; port 0 chooses a free one. The URL is printed as the first line.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

struct Client {
    stream: Arc<TcpStream>,
    tracks: Vec<(usize, Delivery)>,
    /// Whether it still waits for a keyframe.
    waits: bool,
    /// It has sent PAUSE, and no PLAY since.
    paused: bool,
}

/// The camera's connection.
pub struct Source {
    /// The connection; its reads time out after 20 ms.
    pub stream: TcpStream,
    /// What was read after the answer to PLAY.
    pub input: Vec<u8>,
    /// The tracks, with their channels.
    pub tracks: Vec<TrackInfo>,
    sdp_session: Vec<String>,
}

/// Runs the loop until it is stopped.
pub fn run(args: &Args) -> Result<(), String> {
    let stop = os::stop_flag()?;
    let url = Url::parse(&args.source)?;
    if url.tls {
        return Err(format!("{}: the floor pulls only rtsp:// URLs", args.source));
    }
    let mut source = Source::connect(&url)?;
    let server = Server::start(args.listen, vec![source.presentation("")], Conduct::default())?;
    println!("rtsp://{}/", server.address);
    let mut floor = Floor { server, clients: HashMap::new(), order: Vec::new(), turn: 0 };
    while !stop.load(Ordering::Relaxed) {
        match source.serve(&mut floor, &stop) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("the camera went away ({error}); trying again");
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(200));
                    floor.events();
                    if let Ok(again) = Source::connect(&url) {
                        source = again;
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}

impl Source {
    /// Connects and sets up every track over TCP, until the camera plays.
    pub fn connect(url: &Url) -> Result<Source, String> {
        let fail = |e: std::io::Error| format!("cannot reach the camera at {}: {e}", url.host_port);
        let mut stream = TcpStream::connect(&url.host_port).map_err(fail)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(fail)?;
        let mut handshake = Handshake::new(url.clone(), Transport::Tcp, true);
        let mut request = handshake.begin();
        let mut input = Vec::new();
        loop {
            stream.write_all(&request).map_err(fail)?;
            let answer = loop {
                if let Some((answer, used)) = Message::parse(&input)? {
                    input.drain(..used);
                    break answer;
                }
                let mut buffer = [0u8; 4096];
                match stream.read(&mut buffer).map_err(fail)? {
                    0 => return Err(format!("the camera at {} closed the connection", url.host_port)),
                    count => input.extend_from_slice(&buffer[..count]),
                }
            };
            match handshake.answer(&answer)? {
                Step::Send(bytes) => request = bytes,
                Step::BindPorts => return Err("UDP was not asked for".into()),
                Step::Playing => break,
            }
        }
        stream.set_read_timeout(Some(Duration::from_millis(20))).map_err(fail)?;
        Ok(Source { stream, input, tracks: handshake.tracks, sdp_session: handshake.sdp_session })
    }

    /// What the floor serves at a path: the camera's own SDP with its own control lines.
    pub fn presentation(&self, path: &str) -> Presentation {
        let mut sdp = String::new();
        for line in &self.sdp_session {
            sdp.push_str(line);
            sdp.push_str("\r\n");
        }
        for (index, track) in self.tracks.iter().enumerate() {
            for line in track.sdp.iter().filter(|l| !l.starts_with("a=control:")) {
                sdp.push_str(line);
                sdp.push_str("\r\n");
            }
            sdp.push_str(&format!("a=control:track{index}\r\n"));
        }
        Presentation { path: path.into(), sdp, tracks: self.tracks.len() }
    }

    /// Reads packets and sends each frame when it is complete.
    fn serve(&mut self, floor: &mut Floor, stop: &AtomicBool) -> Result<(), String> {
        let mut frames: Vec<Burst> = vec![Burst::default(); self.tracks.len()];
        let mut buffer = vec![0u8; 256 * 1024];
        while !stop.load(Ordering::Relaxed) {
            let mut at = 0;
            while let Some(head) = self.input.get(at..at + 4) {
                if head[0] != b'$' {
                    // An answer between packets is ignored; anything else means that the framing is lost.
                    match Message::parse(&self.input[at..])? {
                        Some((_, used)) => at += used,
                        None => break,
                    }
                    continue;
                }
                let (channel, len) = (head[1], usize::from(u16::from_be_bytes([head[2], head[3]])));
                let Some(packet) = self.input.get(at + 4..at + 4 + len) else { break };
                at += 4 + len;
                for (index, track) in self.tracks.iter().enumerate() {
                    if channel == track.channels.1 {
                        let mut report = Burst::default();
                        report.push(0, packet, &[]);
                        floor.give(index, true, false, &mut report);
                    } else if channel == track.channels.0 {
                        let frame = &mut frames[index];
                        frame.push(index as u8 * 2, packet, &[]);
                        if !track.video || packet.get(1).is_some_and(|b| b & 0x80 != 0) {
                            let keyframe = track.video && is_keyframe(track, frame);
                            floor.events();
                            floor.give(index, false, keyframe, frame);
                            frame.clear();
                        }
                    }
                }
            }
            self.input.drain(..at);
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("it closed the connection".into()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    floor.events();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}

/// Whether a frame is a keyframe: by its stamp if it has one, otherwise by its NAL units.
fn is_keyframe(track: &TrackInfo, frame: &Burst) -> bool {
    let mut payloads = frame.packets().filter_map(nal::payload).take(4);
    payloads.any(|p| match stamp::find(p) {
        Some(stamp) => stamp.keyframe(),
        None => nal::tells_keyframe(track.codec, p),
    })
}

struct Floor {
    server: Server,
    clients: HashMap<u64, Client>,
    /// The clients' numbers in the order in which they connected.
    order: Vec<u64>,
    /// Where in that order the next frame starts, so that no client is always last.
    turn: usize,
}

impl Floor {
    /// Handles clients that connected, left, or sent a request.
    fn events(&mut self) {
        while let Ok(event) = self.server.events.try_recv() {
            match event {
                Event::Play(play) => {
                    if (&*play.stream).write_all(&play.answer(&[])).is_ok() {
                        let (stream, tracks) = (play.stream.clone(), play.tracks.clone());
                        let client = Client { stream, tracks, waits: true, paused: false };
                        if self.clients.insert(play.conn, client).is_none() {
                            self.order.push(play.conn);
                        }
                    }
                }
                Event::Answer { conn, bytes } => {
                    if let Some(client) = self.clients.get(&conn)
                        && (&*client.stream).write_all(&bytes).is_err()
                    {
                        self.remove(conn);
                    }
                }
                Event::Pause { conn, bytes } => {
                    let Some(client) = self.clients.get_mut(&conn) else { continue };
                    client.paused = true;
                    if (&*client.stream).write_all(&bytes).is_err() {
                        self.remove(conn);
                    }
                }
                Event::Gone { conn } => self.remove(conn),
            }
        }
    }

    fn remove(&mut self, conn: u64) {
        self.clients.remove(&conn);
        self.order.retain(|&other| other != conn);
    }

    /// Sends one frame (or report) of a track to every client that wants it.
    fn give(&mut self, track: usize, report: bool, keyframe: bool, burst: &mut Burst) {
        let mut failed = Vec::new();
        let count = self.order.len();
        let mut channel_now = None;
        for index in 0..count {
            let number = self.order[(index + self.turn) % count];
            let Some(client) = self.clients.get_mut(&number) else { continue };
            client.waits &= !keyframe;
            if client.waits || client.paused {
                continue;
            }
            let Some(&(_, delivery)) = client.tracks.iter().find(|(t, _)| *t == track) else { continue };
            match delivery {
                Delivery::Interleaved(rtp, rtcp) => {
                    let channel = if report { rtcp } else { rtp };
                    if channel_now != Some(channel) {
                        burst.set_channel(channel);
                        channel_now = Some(channel);
                    }
                    if (&*client.stream).write_all(&burst.bytes).is_err() {
                        failed.push(number);
                    }
                }
                Delivery::Udp(rtp, rtcp) => {
                    let (socket, to) = if report { (&self.server.udp.rtcp, rtcp) } else { (&self.server.udp.rtp, rtp) };
                    for packet in burst.packets() {
                        let _ = socket.send_to(packet, to);
                    }
                }
            }
        }
        self.turn = if count == 0 { 0 } else { (self.turn + 1) % count };
        failed.into_iter().for_each(|number| self.remove(number));
    }
}
