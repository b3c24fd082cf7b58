//! The built-in test source: a looped H.264 clip with timestamps, and a tone in PCMU, paced like a camera.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::clip::Clip;
use super::held::FeedState;
use super::packetizer::Packetizer;
use super::stamp::{H264_SEI, Stamp};
use super::tone::{self, Tone};
use crate::media::saved::Moment;
use crate::media::{SourceTrack, TrackId};

/// The track with the picture.
pub const VIDEO: TrackId = TrackId(0);

/// The track with the tone.
pub const AUDIO: TrackId = TrackId(1);

/// Payload types and SSRCs; the timeline replaces the SSRCs.
const VIDEO_TYPE: u8 = 96;
const VIDEO_SSRC: u32 = 1;
const AUDIO_TYPE: u8 = 0;
const AUDIO_SSRC: u32 = 2;

/// Clock rate of the video track's RTP timestamp.
const VIDEO_CLOCK: u32 = 90_000;

/// Audio packets per second: 20 ms each.
const AUDIO_RATE: u32 = 50;

/// Samples (and, in PCMU, bytes) of an audio packet.
const AUDIO_SAMPLES: usize = (tone::RATE / AUDIO_RATE) as usize;

/// Interval of a track's sender reports.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// If the source is later than this (because the machine slept, for example), it skips the time instead of sending everything at once.
const LATE_MAX: Duration = Duration::from_millis(500);

/// What the test source produces for its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emitted<'a> {
    /// An RTP packet.
    Packet(&'a [u8]),
    /// A sender report for the time of the call, with the track's RTP timestamp at that time.
    Report(u32),
}

/// Deadlines at a fixed rate, each computed from the start, so that errors do not accumulate.
#[derive(Clone, Copy, Debug)]
struct Pace {
    start: Instant,
    per_second: u32,
    next: u64,
}

impl Pace {
    fn new(start: Instant, per_second: u32) -> Self {
        Pace { start, per_second, next: 0 }
    }

    /// The next deadline.
    fn deadline(&self) -> Instant {
        let nanos = u128::from(self.next) * 1_000_000_000 / u128::from(self.per_second);
        self.start + Duration::from_nanos(nanos as u64)
    }

    /// The number of the next deadline, if it is at or before `now`. Deadlines more than [`LATE_MAX`] ago are skipped.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let late = now.checked_duration_since(self.deadline())?;
        if late > LATE_MAX {
            let elapsed = now.saturating_duration_since(self.start).as_nanos();
            self.next = (elapsed * u128::from(self.per_second) / 1_000_000_000) as u64;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

/// Makes the packets of the test source. Has no clock of its own.
#[derive(Clone, Debug)]
pub struct TestPattern {
    clip: Clip<'static>,
    tone: Tone,
    start: Instant,
    video_pace: Pace,
    audio_pace: Pace,
    report_at: Instant,
    video: Packetizer,
    audio: Packetizer,
    frame: u64,
    sei: Vec<u8>,
}

/// A test source as plain data.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PatternState {
    pub(super) feed: FeedState,
    start: Moment,
    report_at: Moment,
    /// The numbers of the next deadlines.
    ticks: (u64, u64),
    /// The numbers of the next packets.
    seqs: (u16, u16),
    frame: u64,
    tone: usize,
}

impl TestPattern {
    /// It as plain data; times are relative to `reference`.
    pub(super) fn save(&self, reference: Instant, feed: FeedState) -> PatternState {
        PatternState {
            feed,
            start: Moment::of(self.start, reference),
            report_at: Moment::of(self.report_at, reference),
            ticks: (self.video_pace.next, self.audio_pace.next),
            seqs: (self.video.next_seq(), self.audio.next_seq()),
            frame: self.frame,
            tone: self.tone.at(),
        }
    }

    /// Restores a saved test source.
    pub(super) fn restore(reference: Instant, state: &PatternState) -> TestPattern {
        let mut pattern = TestPattern::new(state.start.at(reference));
        pattern.report_at = state.report_at.at(reference);
        (pattern.video_pace.next, pattern.audio_pace.next) = state.ticks;
        pattern.video = Packetizer::new(VIDEO_TYPE, VIDEO_SSRC, state.seqs.0);
        pattern.audio = Packetizer::new(AUDIO_TYPE, AUDIO_SSRC, state.seqs.1);
        pattern.frame = state.frame;
        pattern.tone = Tone::from(state.tone);
        pattern
    }

    /// A test source whose first frame is due at `start`.
    pub fn new(start: Instant) -> Self {
        TestPattern {
            clip: Clip::built_in(),
            tone: Tone::default(),
            start,
            video_pace: Pace::new(start, Clip::RATE),
            audio_pace: Pace::new(start, AUDIO_RATE),
            report_at: start,
            // The timeline replaces these initial numbers and SSRCs.
            video: Packetizer::new(VIDEO_TYPE, VIDEO_SSRC, 0),
            audio: Packetizer::new(AUDIO_TYPE, AUDIO_SSRC, 0),
            frame: 0,
            sei: Vec::new(),
        }
    }

    /// Its tracks: [`VIDEO`], [`AUDIO`].
    pub fn tracks(&self) -> Vec<SourceTrack> {
        vec![
            SourceTrack {
                media: "video".to_owned(),
                encoding: "H264".to_owned(),
                payload_type: VIDEO_TYPE,
                clock_rate: VIDEO_CLOCK,
                channels: None,
                fmtp: Some(self.clip.fmtp()),
                attributes: vec![format!("framerate:{}", Clip::RATE)],
            },
            SourceTrack {
                media: "audio".to_owned(),
                encoding: "PCMU".to_owned(),
                payload_type: AUDIO_TYPE,
                clock_rate: tone::RATE,
                channels: Some(1),
                fmtp: None,
                attributes: vec![format!("ptime:{}", 1000 / AUDIO_RATE)],
            },
        ]
    }

    /// When [`TestPattern::emit`] next has something.
    pub fn deadline(&self) -> Instant {
        self.video_pace.deadline().min(self.audio_pace.deadline())
    }

    /// Passes `out` everything that is due at `now`, when `CLOCK_REALTIME` is `wall`.
    pub fn emit(&mut self, now: Instant, wall: SystemTime, mut out: impl FnMut(TrackId, Emitted<'_>)) {
        loop {
            // In the order of their deadlines, so that the tracks stay together after a delay.
            if self.video_pace.deadline() <= self.audio_pace.deadline() {
                let Some(tick) = self.video_pace.take(now) else { break };
                self.emit_frame(tick, wall, &mut out);
            } else {
                let Some(tick) = self.audio_pace.take(now) else { break };
                let mut samples = [0; AUDIO_SAMPLES];
                self.tone.fill(&mut samples);
                let rtp_time = tick.wrapping_mul(AUDIO_SAMPLES as u64) as u32;
                // The marker starts a talkspurt (RFC 3551 section 4.1); this one never ends.
                out(AUDIO, Emitted::Packet(self.audio.packet(&samples, rtp_time, tick == 0)));
            }
        }
        if now >= self.report_at {
            self.report_at = now + REPORT_EVERY;
            for (track, clock) in [(VIDEO, VIDEO_CLOCK), (AUDIO, tone::RATE)] {
                let elapsed = now.saturating_duration_since(self.start).as_nanos();
                let rtp_time = (elapsed * u128::from(clock) / 1_000_000_000) as u32;
                out(track, Emitted::Report(rtp_time));
            }
        }
    }

    fn emit_frame(&mut self, tick: u64, wall: SystemTime, out: &mut impl FnMut(TrackId, Emitted<'_>)) {
        // The clip continues with its next frame even if time was skipped, because it could not be decoded otherwise.
        let frame = &self.clip.frames[(self.frame % self.clip.frames.len() as u64) as usize];
        let rtp_time = tick.wrapping_mul(u64::from(VIDEO_CLOCK / Clip::RATE)) as u32;
        self.sei.clear();
        Stamp::new(self.frame, wall, frame.keyframe).write_nal(H264_SEI, &mut self.sei);
        self.frame += 1;
        for (index, nal) in frame.nals.iter().enumerate() {
            if index == frame.first_slice {
                self.video.nal(&self.sei, rtp_time, false, |packet| out(VIDEO, Emitted::Packet(packet)));
            }
            let last = index + 1 == frame.nals.len();
            self.video.nal(nal, rtp_time, last, |packet| out(VIDEO, Emitted::Packet(packet)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp;
    use super::*;

    #[derive(Debug, Default)]
    struct Got {
        video: Vec<(u32, bool, Vec<u8>)>,
        audio: Vec<(u32, Vec<u8>)>,
        reports: Vec<(TrackId, u32)>,
    }

    impl Got {
        fn take(&mut self, track: TrackId, emitted: Emitted<'_>) {
            match emitted {
                Emitted::Packet(packet) => {
                    let rtp_time = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
                    if track == VIDEO {
                        self.video.push((rtp_time, packet[1] & 0x80 != 0, packet[12..].to_vec()));
                    } else {
                        self.audio.push((rtp_time, packet[12..].to_vec()));
                    }
                }
                Emitted::Report(report) => self.reports.push((track, report)),
            }
        }
    }

    /// Runs a pattern for `total`, waking at each deadline and `late` after it.
    fn run(total: Duration, late: Duration) -> (Got, u32) {
        let start = Instant::now();
        let mut pattern = TestPattern::new(start);
        let mut got = Got::default();
        let mut wakes = 0;
        loop {
            let now = pattern.deadline() + late;
            if now >= start + total + late {
                return (got, wakes);
            }
            wakes += 1;
            pattern.emit(now, SystemTime::UNIX_EPOCH + (now - start), |track, emitted| got.take(track, emitted));
            assert!(pattern.deadline() > now, "all that is due is sent");
        }
    }

    #[test]
    fn a_minute_has_exactly_its_frames_and_packets() {
        for late in [Duration::ZERO, Duration::from_millis(7), Duration::from_millis(90)] {
            let (got, _) = run(Duration::from_secs(60), late);
            let ends = got.video.iter().filter(|(_, marker, _)| *marker).count();
            let more = ends as i64 - 1800;
            assert!((0..=3).contains(&more), "{ends} frames when {late:?} late");
            let times: Vec<_> = got.audio.iter().map(|(time, _)| *time).collect();
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 160));
        }
    }

    #[test]
    fn the_packets_are_the_clip_and_its_stamps() {
        let (got, _) = run(Duration::from_secs(9), Duration::ZERO);
        let clip = Clip::built_in();
        let mut nals: Vec<(u32, Vec<u8>)> = Vec::new();
        for (rtp_time, _, payload) in &got.video {
            if payload[0] & 0x1f == 28 {
                if payload[1] & 0x80 != 0 {
                    nals.push((*rtp_time, vec![payload[0] & 0xe0 | payload[1] & 0x1f]));
                }
                nals.last_mut().expect("started").1.extend_from_slice(&payload[2..]);
            } else {
                nals.push((*rtp_time, payload.clone()));
            }
        }
        let mut nals = nals.into_iter();
        for number in 0..270u64 {
            let frame = &clip.frames[number as usize % clip.frames.len()];
            for (index, want) in frame.nals.iter().enumerate() {
                if index == frame.first_slice {
                    let (rtp_time, sei) = nals.next().expect("a stamp");
                    let stamp = stamp::find(&sei).expect("a stamp before the first slice");
                    assert_eq!((stamp.frame, stamp.keyframe()), (number, number % 30 == 0));
                    assert_eq!(stamp.unix_ns, number * 1_000_000_000 / 30);
                    assert_eq!(rtp_time, number as u32 * 3000);
                }
                let (rtp_time, nal) = nals.next().expect("a unit of the clip");
                assert!(nal == *want, "unit {index} of frame {number}");
                assert_eq!(rtp_time, number as u32 * 3000);
            }
        }
        assert!(nals.next().is_none());
    }

    #[test]
    fn a_long_sleep_is_left_out() {
        let start = Instant::now();
        let mut pattern = TestPattern::new(start);
        let mut got = Got::default();
        let wall = SystemTime::UNIX_EPOCH;
        pattern.emit(start, wall, |track, emitted| got.take(track, emitted));
        let asleep = Duration::from_secs(3600);
        pattern.emit(start + asleep, wall, |track, emitted| got.take(track, emitted));
        let ends: Vec<_> = got.video.iter().filter(|(_, marker, _)| *marker).map(|(time, ..)| *time).collect();
        assert_eq!(ends, [0, 3600 * 90_000], "the timestamp tells of the time left out");
        assert_eq!(got.audio.iter().map(|(time, _)| *time).collect::<Vec<_>>(), [0, 3600 * 8000]);
        let stamps: Vec<_> = got.video.iter().filter_map(|(.., payload)| stamp::find(payload)).collect();
        assert_eq!(stamps.iter().map(|stamp| stamp.frame).collect::<Vec<_>>(), [0, 1], "but no frame of the clip is");
    }

    #[test]
    fn a_short_delay_is_caught_up_in_order() {
        let start = Instant::now();
        let mut pattern = TestPattern::new(start);
        let mut order = Vec::new();
        pattern.emit(start + Duration::from_millis(100), SystemTime::UNIX_EPOCH, |track, emitted| {
            if let Emitted::Packet(packet) = emitted
                && (track == AUDIO || packet[1] & 0x80 != 0)
            {
                order.push(track);
            }
        });
        // Frames at 0, 33, 67 and 100 ms, sound at 0, 20, 40, 60, 80 and 100 ms.
        let want = "vaavaavava";
        let got: String = order.iter().map(|track| if *track == VIDEO { 'v' } else { 'a' }).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn reports_come_at_once_and_every_five_seconds_on_one_clock() {
        let (got, _) = run(Duration::from_secs(11), Duration::ZERO);
        let of = |track| got.reports.iter().filter(move |(of, _)| *of == track).map(|(_, report)| *report);
        assert_eq!((of(VIDEO).count(), of(AUDIO).count()), (3, 3));
        for (video, audio) in of(VIDEO).zip(of(AUDIO)) {
            let seconds = [f64::from(video) / 90_000.0, f64::from(audio) / 8_000.0];
            assert!((seconds[0] - seconds[1]).abs() < 0.001);
        }
    }

    #[test]
    fn the_sdp_tells_what_the_packets_are() {
        let tracks = TestPattern::new(Instant::now()).tracks();
        assert_eq!(tracks[usize::from(VIDEO.0)].encoding, "H264");
        assert_eq!(tracks[usize::from(AUDIO.0)].encoding, "PCMU");
    }
}
