//! A camera that sends through a real pipeline, disconnects and returns.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rtsprelay::limits::INTERLEAVED_HEADER_BYTES;
use rtsprelay::media::chunk::{Chunk, ChunkKind};
use rtsprelay::media::{SourceState, SourceTrack, StreamEvent, StreamSink, TrackId};
use rtsprelay::source::pipeline::Pipeline;
use rtsprelay::source::timeline::to_ntp;
use rtsprelay::wire::rtcp::SenderInfo;

use super::written_and_read;

/// Clock rates of video and audio, in Hz.
const RATES: [u32; 2] = [90_000, 48_000];

/// Our clock when the camera starts, in seconds since 1970: 5 s later NTP time wraps.
const BEGUN_S: u64 = (1 << 32) - 2_208_988_800 - 5;

/// How the camera goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It pauses for a moment, and nothing else shows it.
    Pause,
    /// It sends nothing, but its connection stays open.
    Silence,
    /// Its connection is lost, and with it the whole session.
    Loss,
}

/// A camera that sends video frames of few to many packets, and audio, through a real pipeline.
pub struct Camera {
    rng: fastrand::Rng,
    pipeline: Pipeline,
    made: Made,
    pub video_frame: u64,
    pub audio_frame: u64,
    /// When each audio frame was sent.
    pub audio_at: Vec<Instant>,
    seqs: [u16; 2],
    /// The timestamps at its start.
    bases: [u32; 2],
    pub gop: u64,
    bitrate_scale: usize,
    /// The next frame is a keyframe, whatever its number.
    refresh: bool,
    /// Parts of the current frame, with the times at which they are due.
    pending: VecDeque<(Instant, Vec<Vec<u8>>)>,
    next_video: Instant,
    next_audio: Instant,
    leaving: Option<(Absence, Duration)>,
    silent_until: Instant,
    /// Since when it has been away as seen by the shard, and how.
    pub away: Option<(Instant, Absence)>,
    /// When it last came back.
    pub back: Instant,
    /// When it started, by its clock and by ours.
    begun: (Instant, SystemTime),
    /// When it sends its next sender reports, if it sends any.
    next_report: Option<Instant>,
    /// By how much its NTP clock is ahead of ours, in NTP format.
    clock_ahead: i64,
    /// The sender reports that the pipeline made for each track.
    pub told: [Vec<SenderInfo>; 2],
    pub saved: u64,
}

/// The pipeline's output since the last call.
#[derive(Default)]
struct Made(Vec<StreamEvent>);

impl StreamSink for Made {
    fn accept(&mut self, event: StreamEvent) {
        self.0.push(event);
    }
}

impl Camera {
    /// A camera that starts now. It sends sender reports, or leaves them to the relay.
    pub fn new(seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut camera = Camera {
            pipeline: Pipeline::new(seed),
            made: Made::default(),
            video_frame: 0,
            audio_frame: 0,
            audio_at: Vec::new(),
            seqs: [0; 2],
            bases: [0; 2],
            gop: rng.u64(1..90),
            bitrate_scale: rng.usize(1..4),
            refresh: false,
            pending: VecDeque::new(),
            next_video: now,
            next_audio: now,
            leaving: None,
            silent_until: now,
            away: None,
            back: now,
            begun: (now, UNIX_EPOCH + Duration::from_secs(BEGUN_S)),
            next_report: rng.bool().then_some(now),
            clock_ahead: -(3 << 32),
            told: [Vec::new(), Vec::new()],
            saved: 0,
            rng,
        };
        camera.connect(now);
        camera
    }

    /// Starts a session: nothing of the previous one continues.
    fn connect(&mut self, now: Instant) {
        self.pipeline.connected(now, vec![track("video", "VP8", 96), track("audio", "L16", 97)], &mut self.made);
        self.seqs = [self.rng.u16(..), self.rng.u16(..)];
        self.bases = [self.rng.u32(..), self.rng.u32(..)];
        self.refresh = self.rng.bool();
        self.next_report = self.next_report.map(|_| now);
    }

    /// Makes it go away once the current frame is sent.
    pub fn leave(&mut self, how: Absence, long: Duration) {
        self.leaving = Some((how, long));
    }

    fn go(&mut self, now: Instant, how: Absence, long: Duration) {
        self.silent_until = now + long;
        let state = match how {
            Absence::Pause => return,
            Absence::Silence => SourceState::Silent,
            Absence::Loss => {
                self.pipeline.disconnected(&mut self.made);
                SourceState::Down
            }
        };
        self.away = Some((now, how));
        self.made.accept(StreamEvent::State(state));
    }

    fn come_back(&mut self, now: Instant) {
        let Some((_, how)) = self.away.take() else { return };
        self.back = now;
        if how == Absence::Loss {
            self.connect(now);
        }
        self.made.accept(StreamEvent::State(SourceState::Live));
    }

    fn wall(&self, now: Instant) -> SystemTime {
        self.begun.1 + (now - self.begun.0)
    }

    fn rtp_time(&self, track: u8, now: Instant) -> u32 {
        let track = usize::from(track);
        let ticks = (now - self.begun.0).as_nanos() * u128::from(RATES[track]) / 1_000_000_000;
        self.bases[track].wrapping_add(ticks as u32)
    }

    fn packets(&mut self, track: u8, now: Instant, frame: u64, keyframe: bool, sizes: &[usize]) -> Vec<Vec<u8>> {
        let total = sizes.len() as u32;
        let rtp_time = self.rtp_time(track, now);
        let mut packets = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let seq = &mut self.seqs[usize::from(track)];
            let marker = if index + 1 == sizes.len() { 0x80 } else { 0 };
            let mut packet = vec![0x80, marker | (96 + track)];
            packet.extend_from_slice(&seq.to_be_bytes());
            packet.extend_from_slice(&rtp_time.to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0, track]);
            // The descriptor and frame tag of VP8, by which the relay recognizes keyframes (RFC 7741 section 4).
            packet.extend_from_slice(&[if index == 0 { 0x10 } else { 0 }, u8::from(!keyframe)]);
            packet.extend_from_slice(&frame.to_be_bytes());
            packet.extend_from_slice(&(index as u32).to_be_bytes());
            packet.extend_from_slice(&total.to_be_bytes());
            packet.push(u8::from(keyframe));
            packet.resize(packet.len().max(*size), 0xA5);
            *seq = seq.wrapping_add(1);
            packets.push(packet);
        }
        packets
    }

    fn send(&mut self, track: u8, now: Instant, packets: &[Vec<u8>]) {
        for packet in packets {
            self.pipeline.packet(TrackId(track), now, packet, &mut self.made);
        }
    }

    /// The part of what it sent that has arrived by `now`.
    pub fn due(&mut self, now: Instant) -> Vec<StreamEvent> {
        // One that has gone already comes back first.
        let may_leave = self.pending.is_empty() && self.away.is_none();
        if let Some((how, long)) = self.leaving.take_if(|_| may_leave) {
            self.go(now, how, long);
        }
        // A camera that falls silent does so between two frames, or the rest arrives late, and counts as late.
        if now >= self.silent_until || !self.pending.is_empty() {
            self.come_back(now);
            self.send_reports(now);
            self.send_media(now);
            self.pipeline.drained(now, &mut self.made);
        }
        if self.pipeline.deadline().is_some_and(|due| due <= now) {
            self.pipeline.tick(now, self.wall(now), &mut self.made);
        }
        let made = std::mem::take(&mut self.made.0);
        for event in &made {
            if let StreamEvent::Chunk(chunk) = event
                && chunk.kind == ChunkKind::Report
            {
                self.note(chunk);
            }
        }
        made
    }

    /// Sends a report with its clock, which is off by a little each time, and sometimes steps.
    fn send_reports(&mut self, now: Instant) {
        if self.next_report.is_none_or(|due| due > now) {
            return;
        }
        self.next_report = Some(now + Duration::from_millis(self.rng.u64(800..2_000)));
        if self.rng.u8(0..12) == 0 {
            self.clock_ahead += self.rng.i64(-600..600) << 32;
        }
        for track in [0, 1] {
            // Up to 31 ms in either direction.
            let off = self.rng.i64(-(1 << 27)..1 << 27);
            let ntp = to_ntp(self.wall(now)).wrapping_add_signed(self.clock_ahead + off);
            let rtp_time = self.rtp_time(track, now);
            self.pipeline.sender_report(TrackId(track), now, self.wall(now), ntp, rtp_time, &mut self.made);
        }
    }

    fn send_media(&mut self, now: Instant) {
        if now >= self.next_video && self.pending.is_empty() {
            self.next_video = now + Duration::from_millis(33);
            let frame = self.video_frame;
            self.video_frame += 1;
            let keyframe = std::mem::take(&mut self.refresh) || frame.is_multiple_of(self.gop);
            let count = if keyframe { self.rng.usize(20..160) } else { self.rng.usize(1..16) } * self.bitrate_scale;
            let sizes: Vec<usize> =
                (0..count).map(|index| if index + 1 == count { self.rng.usize(40..1400) } else { 1400 }).collect();
            let packets = self.packets(0, now, frame, keyframe, &sizes);
            let part = if self.rng.bool() { packets.len() } else { self.rng.usize(12..46) };
            let mut at = now;
            for part in packets.chunks(part) {
                self.pending.push_back((at, part.to_vec()));
                at += Duration::from_millis(self.rng.u64(0..4));
            }
        }
        while self.pending.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, part)) = self.pending.pop_front()
        {
            self.send(0, now, &part);
            if self.rng.bool() {
                self.pipeline.drained(now, &mut self.made);
            }
            if self.rng.u8(0..40) == 0 {
                self.pipeline = Pipeline::restore(now, written_and_read(&self.pipeline.save(now)));
                self.saved += 1;
            }
        }
        if now >= self.next_audio {
            self.next_audio = now + Duration::from_millis(20);
            let frame = self.audio_frame;
            self.audio_frame += 1;
            self.audio_at.push(now);
            let packets = self.packets(1, now, frame, false, &[172]);
            self.send(1, now, &packets);
        }
    }

    /// Records a report made by the pipeline: all reports of a track are near one line, and continue along it.
    fn note(&mut self, chunk: &Chunk) {
        let track = usize::from(chunk.track.0);
        let told = SenderInfo::of(&chunk.bytes[INTERLEAVED_HEADER_BYTES..]).expect("a sender report");
        if let Some(before) = self.told[track].last() {
            let off = off_line(track, before, &told);
            // A camera's own clock is passed on with a drift of up to 100 ms; the relay's is corrected by up to 2 ms.
            let most = i64::from(RATES[track]) / if self.next_report.is_some() { 10 } else { 500 };
            assert!(off.abs() <= most + 2, "track {track}: {told:?} is off by {off} ticks from {before:?}");
            assert!(is_after(told.ntp, before.ntp), "track {track}: {told:?} after {before:?}");
        }
        self.told[track].push(told);
    }
}

/// By how many ticks `report` is off the line that starts with `before`.
pub fn off_line(track: usize, before: &SenderInfo, report: &SenderInfo) -> i64 {
    let passed = i128::from(report.ntp.wrapping_sub(before.ntp) as i64);
    let ticks = (passed * i128::from(RATES[track])) >> 32;
    i64::from(report.rtp_time.wrapping_sub(before.rtp_time).wrapping_sub(ticks as u32) as i32)
}

/// Whether an NTP time is later than another, which may be from before the wrap.
pub fn is_after(ntp: u64, other: u64) -> bool {
    ntp.wrapping_sub(other) as i64 > 0
}

pub fn track(media: &str, encoding: &str, payload_type: u8) -> SourceTrack {
    SourceTrack {
        media: media.into(),
        encoding: encoding.into(),
        payload_type,
        clock_rate: RATES[usize::from(payload_type) - 96],
        channels: None,
        fmtp: None,
        attributes: Vec::new(),
    }
}
