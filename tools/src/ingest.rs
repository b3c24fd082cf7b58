//! Receives: one RTSP session, and another one whenever it fails.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt as _;
use retina::client::{
    InitialSequenceNumberPolicy, InitialTimestampPolicy, PacketItem, PlayOptions, Playing, Session, SessionGroup,
    SessionIdPolicy, SessionOptions, SetupOptions, TcpTransportOptions, TeardownPolicy, Transport, UdpTransportOptions,
    UnassignedChannelDataPolicy, UnknownRtcpSsrcPolicy,
};
use retina::codec::{ParametersRef, VideoParametersCodec};
use tokio::time::timeout;

use crate::depacketize::{Depacketizer, PacketInfo};
use crate::frame::{Age, AgeClock, Codec, Frame};
use crate::player::{Fault, FaultKind, Player, State, StreamInfo};
use crate::target::Target;

/// How long each request may take.
const STEP_MAX: Duration = Duration::from_secs(5);

/// Time without media after which the picture is marked as old.
const SILENT: Duration = Duration::from_secs(2);

/// Time without media after which the session is ended.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Delays before the next attempts; the last one repeats.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// The delay after a server has refused, which it will do again.
const REFUSED_RETRY: Duration = Duration::from_secs(3);

/// Sender reports are believed only within this distance of this machine's clock.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// Over what the media comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MediaTransport {
    /// In the RTSP connection.
    Tcp,
    /// In datagrams of their own.
    Udp,
}

impl MediaTransport {
    fn options(self) -> Transport {
        match self {
            MediaTransport::Tcp => Transport::Tcp(TcpTransportOptions::default()),
            MediaTransport::Udp => Transport::Udp(UdpTransportOptions::default()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            MediaTransport::Tcp => "TCP",
            MediaTransport::Udp => "UDP",
        }
    }
}

/// Receives until the player ends; the body of the receiving thread.
pub fn run(target: &Target, transport: MediaTransport, player: &Arc<Player>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let group = Arc::new(SessionGroup::default());
        let receiver = Receiver { target, transport, player, group: group.clone() };
        tokio::select! {
            () = receiver.for_ever() => {}
            () = player.stop.notified() => {}
        }
        // A polite goodbye, if it is quick.
        let _ = timeout(Duration::from_millis(300), group.await_teardown()).await;
    });
    Ok(())
}

struct Receiver<'a> {
    target: &'a Target,
    transport: MediaTransport,
    player: &'a Arc<Player>,
    group: Arc<SessionGroup>,
}

/// A session and which of its streams is what.
struct Begun {
    session: Session<Playing>,
    video: usize,
    codec: Codec,
    clock_rate: u32,
    parameter_sets: Vec<Vec<u8>>,
}

impl Receiver<'_> {
    async fn for_ever(&self) {
        let mut sessions = 0;
        let mut wait = RETRY;
        loop {
            let fault = match self.begin().await {
                Ok(begun) => {
                    self.player.stats().connected(begun.clock_rate, sessions > 0);
                    sessions += 1;
                    wait = RETRY;
                    self.receive(begun).await
                }
                Err(fault) => fault,
            };
            let refused = fault.kind != FaultKind::Unreachable;
            self.player.set_state(State::Away(fault));
            tokio::time::sleep(if refused { REFUSED_RETRY } else { wait }).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn step<T>(&self, name: &str, future: impl Future<Output = Result<T, retina::Error>>) -> Result<T, Fault> {
        match timeout(STEP_MAX, future).await {
            Ok(Ok(it)) => Ok(it),
            Ok(Err(error)) => Err(self.fault(name, &error)),
            Err(_) => Err(Fault {
                kind: FaultKind::Unreachable,
                text: format!("no answer to {name} within {} s from {}", STEP_MAX.as_secs(), self.target),
            }),
        }
    }

    fn fault(&self, step: &str, error: &retina::Error) -> Fault {
        let refused = |text: String| Fault { kind: FaultKind::Refused, text };
        match error.status_code() {
            Some(401) if self.target.credentials().is_some() => {
                return refused(format!("401: {} refuses this user name and password", self.target));
            }
            Some(401) => {
                return refused(format!("401: {} requires a login: give --user and --password-file", self.target));
            }
            Some(403) => return refused(format!("403: {} does not allow this user to see the stream", self.target)),
            Some(404) => return refused(format!("404: {} is not a stream there; check the name", self.target)),
            Some(461) => {
                return refused(format!("461: {} does not offer this transport; try another --transport", self.target));
            }
            Some(status @ (453 | 503)) => {
                let text = format!("{status} to {step}: {} is not ready, or serves no more clients", self.target);
                return Fault { kind: FaultKind::Unreachable, text };
            }
            Some(status @ 300..) => return refused(format!("{} answers {status} to {step}", self.target)),
            _ => {}
        }
        // The first line has the reason, the others name the connection.
        let text = error.to_string();
        let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
        let line = self.target.redact(&line);
        let text = if line.contains("Connection refused") {
            format!("connection refused: nothing listens at {}", self.target)
        } else if line.contains("EOF") || line.contains("Connection reset") || line.contains("Broken pipe") {
            format!("{} closed the connection", self.target)
        } else {
            format!("{step}: {line}")
        };
        Fault { kind: FaultKind::Unreachable, text }
    }

    async fn begin(&self) -> Result<Begun, Fault> {
        let options = SessionOptions::default()
            .creds(self.target.credentials().cloned())
            .user_agent(concat!("rtsprelay-view/", env!("CARGO_PKG_VERSION")).to_owned())
            .session_group(self.group.clone())
            .session_id(SessionIdPolicy::UseFirst)
            .unassigned_channel_data(UnassignedChannelDataPolicy::Ignore)
            .teardown(TeardownPolicy::Auto);
        let mut session = self.step("DESCRIBE", Session::describe(self.target.url().clone(), options)).await?;
        let (video, codec) = choose(session.streams())?;
        let stream = &session.streams()[video];
        let clock_rate = NonZeroU32::new(stream.clock_rate_hz()).map_or(90_000, NonZeroU32::get);
        let parameter_sets = parameter_sets(stream.parameters());
        let audio: Vec<(usize, String)> = session
            .streams()
            .iter()
            .enumerate()
            .filter(|(_, stream)| stream.media() == "audio")
            .map(|(index, stream)| (index, stream.encoding_name().to_owned()))
            .collect();
        let set_up = || SetupOptions::default().transport(self.transport.options());
        self.step("SETUP", session.setup(video, set_up())).await?;
        let mut heard = Vec::new();
        for (index, name) in audio {
            // The picture matters more: a server that has no sound after all is still good.
            match self.step("SETUP of the audio", session.setup(index, set_up())).await {
                Ok(()) => heard.push(name),
                Err(fault) if fault.kind == FaultKind::Refused => {}
                Err(fault) => return Err(fault),
            }
        }
        let options = PlayOptions::default()
            .initial_timestamp(InitialTimestampPolicy::Permissive)
            .initial_seq(InitialSequenceNumberPolicy::Ignore)
            .unknown_rtcp_ssrc(UnknownRtcpSsrcPolicy::ProcessPackets);
        let session = self.step("PLAY", session.play(options)).await?;
        self.player.begin(StreamInfo { codec, transport: self.transport.name(), audio: heard });
        Ok(Begun { session, video, codec, clock_rate, parameter_sets })
    }

    /// Hands frames on until the session fails.
    async fn receive(&self, begun: Begun) -> Fault {
        let Begun { mut session, video, codec, clock_rate, parameter_sets } = begun;
        let mut assembly = Assembly {
            depacketizer: Depacketizer::new(codec, parameter_sets),
            clock_rate,
            report: None,
            burst: Burst::default(),
            malformed: 0,
        };
        let mut heard = Instant::now();
        let mut playing = false;
        loop {
            match timeout(Duration::from_millis(500), session.next()).await {
                Ok(Some(Ok(PacketItem::Rtp(packet)))) => {
                    if packet.stream_id() != video {
                        self.player.stats().audio(packet.raw().len());
                        continue;
                    }
                    heard = packet.ctx().received();
                    if !playing {
                        playing = true;
                        self.player.set_state(State::Playing);
                    }
                    assembly.packet(&packet, self.player);
                }
                Ok(Some(Ok(PacketItem::Rtcp(compound)))) if compound.stream_id() == video => {
                    assembly.sender_report(&compound);
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return self.fault("playing", &error),
                Ok(None) => {
                    let text = format!("{} ended the session", self.target);
                    return Fault { kind: FaultKind::Unreachable, text };
                }
                Err(_) => {}
            }
            let silent = heard.elapsed();
            if silent > SILENT && playing {
                playing = false;
                let text = format!("{} sends no media; its camera may be down", self.target);
                self.player.set_state(State::Away(Fault { kind: FaultKind::Unreachable, text }));
            }
            if silent > SILENCE_MAX {
                let text = format!("no media for {} s from {}", SILENCE_MAX.as_secs(), self.target);
                return Fault { kind: FaultKind::Unreachable, text };
            }
        }
    }
}

/// The first video that can be decoded.
fn choose(streams: &[retina::client::Stream]) -> Result<(usize, Codec), Fault> {
    let videos = || streams.iter().enumerate().filter(|(_, stream)| matches!(stream.media(), "video" | "image"));
    if let Some(found) =
        videos().find_map(|(index, stream)| Codec::from_encoding(stream.encoding_name()).map(|codec| (index, codec)))
    {
        return Ok(found);
    }
    let names: Vec<String> = videos().map(|(_, stream)| stream.encoding_name().to_uppercase()).collect();
    let text = if names.is_empty() {
        "the stream has no video".to_owned()
    } else {
        format!("the codec {} is not supported; this viewer decodes H.264, H.265 and MJPEG", names.join(", "))
    };
    Err(Fault { kind: FaultKind::Unsupported, text })
}

fn parameter_sets(parameters: Option<ParametersRef<'_>>) -> Vec<Vec<u8>> {
    let Some(ParametersRef::Video(video)) = parameters else { return Vec::new() };
    match video.codec_params() {
        VideoParametersCodec::H264 { sps, pps } => vec![sps.to_vec(), pps.to_vec()],
        VideoParametersCodec::H265 { vps, sps, pps } => vec![vps.to_vec(), sps.to_vec(), pps.to_vec()],
        _ => Vec::new(),
    }
}

/// From a session's packets to frames.
struct Assembly {
    depacketizer: Depacketizer,
    clock_rate: u32,
    /// The newest sender report: wall-clock time and timestamp of one moment.
    report: Option<(SystemTime, i64)>,
    burst: Burst,
    malformed: u64,
}

impl Assembly {
    fn packet(&mut self, packet: &retina::rtp::ReceivedPacket, player: &Player) {
        let timestamp = packet.timestamp().timestamp();
        let arrived = packet.ctx().received();
        let lost = u32::from(packet.loss());
        player.stats().packet(packet.raw().len(), lost, timestamp, arrived);
        let info = PacketInfo { timestamp, marker: packet.mark(), lost, arrived, arrived_wall: SystemTime::now() };
        let Assembly { depacketizer, clock_rate, report, burst, .. } = self;
        depacketizer.push(info, packet.payload(), &mut |mut frame| {
            frame.age = age(&frame, *report, *clock_rate);
            frame.catching_up = burst.catching_up(frame.timestamp, frame.arrived, *clock_rate);
            player.stats().received(&frame);
            player.frame(frame);
        });
        let malformed = depacketizer.malformed();
        if malformed > self.malformed {
            player.stats().malformed(malformed - self.malformed);
            self.malformed = malformed;
        }
    }

    fn sender_report(&mut self, compound: &retina::rtcp::ReceivedCompoundPacket) {
        let Some(timestamp) = compound.rtp_timestamp() else { return };
        for packet in compound.pkts() {
            if let Ok(Some(report)) = packet.as_sender_report() {
                self.report = from_ntp(report.ntp_timestamp().0).map(|wall| (wall, timestamp.timestamp()));
            }
        }
    }
}

/// Seconds from the epoch of NTP to that of Unix.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;

/// An NTP time (RFC 3550 section 4) as wall-clock time; none before 1970, which is how clocks that were never set look.
fn from_ntp(ntp: u64) -> Option<SystemTime> {
    let seconds = (ntp >> 32).checked_sub(NTP_TO_UNIX_S)?;
    let nanoseconds = ((ntp & 0xffff_ffff) * 1_000_000_000) >> 32;
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds as u32))
}

/// When a frame left its source: according to its own stamp, or else to the sender report.
fn age(frame: &Frame, report: Option<(SystemTime, i64)>, clock_rate: u32) -> Option<Age> {
    if let Some(stamp) = frame.stamp {
        return Some(Age { left: stamp.wall(), clock: AgeClock::Stamp });
    }
    let (wall, timestamp) = report?;
    let ticks = frame.timestamp - timestamp;
    let apart = Duration::from_secs_f64(ticks.unsigned_abs() as f64 / f64::from(clock_rate));
    let left = if ticks < 0 { wall.checked_sub(apart) } else { wall.checked_add(apart) }?;
    let distance = match frame.arrived_wall.duration_since(left) {
        Ok(distance) => distance,
        Err(ahead) => ahead.duration(),
    };
    (distance < CLOCKS_APART_MAX).then_some(Age { left, clock: AgeClock::SenderReport })
}

/// Distinguishes frames that a server sends in a burst at the start, to show a picture at once, from live ones.
#[derive(Default)]
struct Burst {
    last: Option<(i64, Instant)>,
    /// Frames in a row that came as far apart as their timestamps are.
    paced: u32,
}

impl Burst {
    fn catching_up(&mut self, timestamp: i64, arrived: Instant, clock_rate: u32) -> bool {
        if self.paced >= 2 {
            return false;
        }
        if let Some((before, at)) = self.last.replace((timestamp, arrived)) {
            let due = (timestamp - before).max(0) as f64 / f64::from(clock_rate);
            let paced = arrived.saturating_duration_since(at).as_secs_f64() > due / 2.0;
            self.paced = if paced { self.paced + 1 } else { 0 };
        }
        true
    }
}
