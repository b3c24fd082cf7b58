//! The timeline rewrites sequence numbers, timestamps and sender reports so that players see one unbroken sequence.
//!
//! Each track's timestamps count from a random base at the stream's origin, which is the time of the first connection. Within a session
//! of the source, a track's time is the camera's own clock plus a constant. A new session starts at the time given by the wall clock,
//! with **one** gap for all tracks, so that reconnects do not shift audio against video, and never before what was already sent.
//!
//! A stream keeps **one** relation of NTP time to timestamps for good, that of the reports already relayed, because players derive
//! their time from it and a recording would jump otherwise. If a camera's clock steps, within a session or between two, its reports are
//! shifted from then on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::media::saved::Moment;
use crate::wire::rtcp;

/// Difference in seconds between a timestamp and the wall clock that counts as a restart of the camera's clock.
const JUMP_S: i64 = 10;

/// Seconds by which a keyframe, or an audio packet, must be behind what its track has sent to count as a restart of the camera's clock.
/// Frames between keyframes may go back, because they are sent in decoding order.
const BEHIND_MAX_S: i64 = 1;

/// A report whose NTP time deviates by at most this from the previous one is relayed unchanged, because clocks drift. A larger
/// deviation is a step.
const STEP_NTP: u64 = NTP_S as u64 / 10;

/// Maximum difference in seconds between the camera's clock and the relay's at the stream's first report; beyond it the camera's is
/// considered wrong.
const WRONG_S: u64 = 3_600;

/// Interval of reports made by the relay, in seconds, if the source sends none.
const OWN_REPORT_S: u64 = 5;

/// Maximum lateness of a late or duplicate packet, in sequence numbers; a larger step back is a restart of the sequence.
const LATE_MAX: u16 = 128;

/// Maximum gap at which another SSRC is considered to continue the previous one's numbers. An independent one starts anywhere.
const RENAMED_MAX: u16 = 128;

/// Larger steps forward are a restart of the sequence (`MAX_DROPOUT` of RFC 3550 appendix A.1).
const DROPOUT_MAX: u16 = 3_000;

/// Number of consecutive late packets that count as a restart of the sequence.
const LATE_RUN: u8 = 5;

/// One second in NTP format (RFC 3550 section 4).
const NTP_S: i64 = 1 << 32;

const NANOS: i128 = 1_000_000_000;

/// Meaning of a packet's sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The session's first packet.
    First,
    /// The number of packets missing before it.
    After(u16),
    /// Duplicate or too late.
    Late,
    /// The sequence restarted with it.
    Restart,
}

/// The order of a track's packets in a session of the source.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Order {
    expected: Option<u16>,
    ssrc: u32,
    /// Of the packet placed last.
    timestamp: u32,
    /// The number that would continue the current run of late packets, and their count.
    late: (u16, u8),
}

impl Order {
    /// Processes the next packet's number. Some cameras change their SSRC now and then while their numbers continue.
    pub fn place(&mut self, sequence: u16, ssrc: u32, timestamp: u32) -> Place {
        let next = sequence.wrapping_add(1);
        let Some(expected) = self.expected else {
            *self = Order { expected: Some(next), ssrc, timestamp, late: (0, 0) };
            return Place::First;
        };
        let ahead = sequence.wrapping_sub(expected);
        let behind = expected.wrapping_sub(sequence);
        let most = if ssrc == self.ssrc { DROPOUT_MAX } else { RENAMED_MAX };
        let place = if ahead <= most {
            Place::After(ahead)
        } else if sequence == 0 && (timestamp.wrapping_sub(self.timestamp) as i32) > 0 {
            // Soon after its start a sequence may restart; late packets are older.
            Place::Restart
        } else if behind <= LATE_MAX {
            let run = if self.late.0 == sequence { self.late.1 + 1 } else { 1 };
            self.late = (next, run);
            if run < LATE_RUN { Place::Late } else { Place::Restart }
        } else {
            Place::Restart
        };
        if place != Place::Late {
            *self = Order { expected: Some(next), ssrc, timestamp, late: (0, 0) };
        }
        place
    }
}

/// A report to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReport {
    /// The time, in NTP format.
    pub ntp: u64,
    /// The same time as an RTP timestamp of the relay.
    pub rtp_time: u32,
}

/// Result of mapping a report of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The report to send, if any.
    pub report: Option<SenderReport>,
    /// How far the camera's clock is ahead of the relay's, in NTP format, if it is wrong.
    pub wrong: Option<i64>,
    /// How far it has stepped forward against its timestamps since its last report, in NTP format, if it has. The relayed report does
    /// not show the step.
    pub stepped: Option<i64>,
}

/// A report as received from the source.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Heard<T = Instant> {
    received: T,
    /// The relay's clock at that time, in NTP format.
    ours: u64,
    /// The camera's.
    ntp: u64,
    rtp_time: u32,
}

/// Result of mapping a packet's timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The relay's timestamp.
    pub rtp_time: u32,
    /// Whether the camera's clock jumped.
    pub jumped: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Last<T = Instant> {
    arrival: T,
    /// Ticks since the stream's origin.
    ticks: i64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Clock<T = Instant> {
    rate: u32,
    base: u32,
    /// The last packet of any session.
    last: Option<Last<T>>,
    /// The packet with the highest timestamp of any session.
    newest: Option<Last<T>>,
    /// The source's timestamp of the last packet in this session.
    source: Option<u32>,
    /// Whether the source has sent a report in this session.
    reported: bool,
    /// A report of the source from before the first packet, so that it could not be checked.
    saved: Option<Heard<T>>,
    own_due: Option<T>,
    /// The newest report that was relayed or made, in any session: NTP time and ticks.
    told: Option<(u64, i64)>,
    /// The offset that is added to the camera's NTP time.
    shift: i64,
}

impl<T> Clock<T> {
    fn with_moments<U>(self, to: &impl Fn(T) -> U) -> Clock<U> {
        let last = |last: Last<T>| Last { arrival: to(last.arrival), ticks: last.ticks };
        let heard =
            |Heard { received, ours, ntp, rtp_time }: Heard<T>| Heard { received: to(received), ours, ntp, rtp_time };
        Clock {
            rate: self.rate,
            base: self.base,
            last: self.last.map(last),
            newest: self.newest.map(last),
            source: self.source,
            reported: self.reported,
            saved: self.saved.map(heard),
            own_due: self.own_due.map(to),
            told: self.told,
            shift: self.shift,
        }
    }
}

impl Clock {
    fn nanos(&self, ticks: i64) -> i128 {
        i128::from(ticks) * NANOS / i128::from(self.rate)
    }

    fn ticks(&self, nanos: i128) -> i64 {
        (nanos * i128::from(self.rate) / NANOS) as i64
    }

    /// Ticks at `now` according to the wall clock.
    fn expected(&self, last: Last, now: Instant) -> i64 {
        last.ticks + self.ticks(now.saturating_duration_since(last.arrival).as_nanos() as i128)
    }

    fn rtp_time(&self, ticks: i64) -> u32 {
        // Wraps as RTP timestamps do.
        self.base.wrapping_add(ticks as u32)
    }

    /// The step of the source's timestamp to `source`, with as many wraps as `elapsed` ticks of the wall clock suggest.
    fn step(&self, before: u32, source: u32, elapsed: i64) -> i64 {
        let step = source.wrapping_sub(before) as i32;
        if self.is_far(step, 0) && !self.is_far(step, elapsed) {
            elapsed + i64::from((step as u32).wrapping_sub(elapsed as u32) as i32)
        } else {
            i64::from(step)
        }
    }

    /// Whether a step of the source's timestamp differs much from the elapsed wall-clock time.
    fn is_far(&self, step: i32, elapsed: i64) -> bool {
        let limit = (JUMP_S * i64::from(self.rate)).min(i64::from(i32::MAX));
        let off = (step as u32).wrapping_sub(elapsed as u32) as i32;
        i64::from(off).abs() > limit
    }
}

/// The clocks of a stream's tracks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline<T = Instant> {
    origin: T,
    /// Nanoseconds by which the timeline is ahead of the wall clock since the origin, as of the session's start.
    ahead: i128,
    /// When the session's first packet arrived.
    session: Option<T>,
    tracks: Vec<Clock<T>>,
    /// The newest jump of the camera's timestamps: when, and by how many nanoseconds.
    jump: Option<(T, i128)>,
    /// The latest change of the offset that is added to the camera's NTP time.
    shift: i64,
    /// The camera's newest report of any session: its NTP time, and its arrival.
    heard: Option<(u64, T)>,
    /// NTP time as relayed minus the relay's own, as of the newest report.
    ntp_ahead: i64,
}

/// A timeline as plain data.
pub type TimelineState = Timeline<Moment>;

impl<T: Copy> Timeline<T> {
    fn with_moments<U>(&self, to: impl Fn(T) -> U) -> Timeline<U> {
        Timeline {
            origin: to(self.origin),
            ahead: self.ahead,
            session: self.session.map(&to),
            tracks: self.tracks.iter().map(|clock| clock.with_moments(&to)).collect(),
            jump: self.jump.map(|(when, by)| (to(when), by)),
            shift: self.shift,
            heard: self.heard.map(|(ntp, when)| (ntp, to(when))),
            ntp_ahead: self.ntp_ahead,
        }
    }
}

impl Timeline {
    /// Its state as plain data.
    pub fn save(&self, now: Instant) -> TimelineState {
        self.with_moments(|at| Moment::of(at, now))
    }

    /// Restores a saved timeline.
    pub fn restore(now: Instant, state: &TimelineState) -> Timeline {
        state.with_moments(|at| at.at(now))
    }

    /// A timeline that starts at `origin`.
    pub fn new(origin: Instant) -> Self {
        Timeline {
            origin,
            ahead: 0,
            session: None,
            tracks: Vec::new(),
            jump: None,
            shift: 0,
            heard: None,
            ntp_ahead: 0,
        }
    }

    /// Replaces the tracks, each with its clock rate and the timestamp at the origin.
    pub fn set_tracks(&mut self, tracks: impl IntoIterator<Item = (u32, u32)>) {
        self.tracks = tracks
            .into_iter()
            .map(|(rate, base)| Clock {
                rate: rate.max(1),
                base,
                last: None,
                newest: None,
                source: None,
                reported: false,
                saved: None,
                own_due: None,
                told: None,
                shift: 0,
            })
            .collect();
    }

    /// A new session of the source: its timestamps are unrelated to earlier ones, but its reports continue.
    pub fn new_session(&mut self) {
        self.session = None;
        self.jump = None;
        for clock in &mut self.tracks {
            clock.source = None;
            clock.reported = false;
            clock.saved = None;
            clock.own_due = None;
        }
    }

    /// A time and the track's timestamp at that time, assuming that the track follows the wall clock from the session's start.
    pub fn estimate(&self, track: usize) -> (Instant, u32) {
        let clock = &self.tracks[track];
        (self.origin, clock.rtp_time(clock.ticks(self.ahead)))
    }

    /// Whether a packet's timestamp continues the track's earlier packets in this session.
    pub fn goes_on(&self, track: usize, source: u32, arrival: Instant) -> bool {
        let clock = &self.tracks[track];
        let (Some(before), Some(last)) = (clock.source, clock.last) else { return true };
        !clock.is_far(source.wrapping_sub(before) as i32, clock.expected(last, arrival) - last.ticks)
    }

    /// The relay's timestamp for a packet of the source.
    ///
    /// `restarted` is whether the source is known to have restarted with this packet. `begins`, which returns whether something starts
    /// with it that refers to nothing before, is called only for a packet that is far behind.
    pub fn map(
        &mut self,
        track: usize,
        source: u32,
        arrival: Instant,
        restarted: bool,
        begins: impl FnOnce() -> bool,
    ) -> Mapped {
        let session = *self.session.get_or_insert_with(|| {
            // The first packet of any track sets the gap for all of them.
            self.ahead = anchor(&self.tracks, self.origin, self.ahead, arrival);
            arrival
        });
        let clock = &mut self.tracks[track];
        let mut jumped = false;
        let ticks = match (clock.source, clock.last, clock.newest) {
            (Some(before), Some(last), Some(newest)) => {
                let elapsed = clock.expected(last, arrival) - last.ticks;
                let short = source.wrapping_sub(before) as i32;
                let ticks = last.ticks + clock.step(before, source, elapsed);
                let is_behind = newest.ticks - ticks > BEHIND_MAX_S * i64::from(clock.rate);
                // A short step is not a jump: the camera or the network only paused.
                jumped = clock.is_far(short, 0) && clock.is_far(short, elapsed)
                    || restarted && clock.is_far(short, elapsed)
                    || is_behind && begins();
                if jumped {
                    let off = clock.nanos(ticks - clock.expected(newest, arrival));
                    // Another track that jumps by the same amount is corrected by exactly as much.
                    let near = self.jump.filter(|(when, by)| {
                        arrival.saturating_duration_since(*when) < Duration::from_secs(JUMP_S as u64)
                            && (off - by).abs() < NANOS
                    });
                    let (_, by) = *self.jump.insert(near.unwrap_or((arrival, off)));
                    (ticks - clock.ticks(by)).max(newest.ticks + 1)
                } else {
                    ticks
                }
            }
            (.., newest) => {
                let nanos = arrival.saturating_duration_since(self.origin).as_nanos() as i128 + self.ahead;
                let ticks = clock.ticks(nanos);
                newest.map_or(ticks, |newest| ticks.max(newest.ticks + 1))
            }
        };
        let this = Last { arrival, ticks };
        clock.source = Some(source);
        clock.last = Some(this);
        if clock.newest.is_none_or(|newest| ticks > newest.ticks) {
            clock.newest = Some(this);
        }
        clock.own_due.get_or_insert(session + Duration::from_secs(OWN_REPORT_S));
        Mapped { rtp_time: clock.rtp_time(ticks), jumped }
    }

    /// The NTP time of a track at `ticks`, by the track's newest report or, before its first, by another track's.
    fn expected_ntp(&self, track: usize, ticks: i64) -> Option<u64> {
        let clock = &self.tracks[track];
        if let Some((ntp, then)) = clock.told {
            let passed = i128::from(ticks - then) * i128::from(NTP_S) / i128::from(clock.rate);
            return Some(ntp.wrapping_add_signed(passed as i64));
        }
        self.tracks.iter().find_map(|other| {
            let (ntp, then) = other.told?;
            let passed = (clock.nanos(ticks) - other.nanos(then)) * i128::from(NTP_S) / NANOS;
            Some(ntp.wrapping_add_signed(passed as i64))
        })
    }

    /// Maps a report of the source whose timestamp is `ticks`, so that it continues the earlier ones.
    fn pass_on(&mut self, track: usize, ticks: i64, heard: Heard) -> Passed {
        let Heard { received, ours, ntp: camera, .. } = heard;
        let off = |ntp: u64, from: u64| ntp.wrapping_sub(from) as i64;
        let ahead = off(camera, ours);
        let wrong = (ahead.unsigned_abs() > WRONG_S * NTP_S as u64).then_some(ahead);
        let before = self.heard.replace((camera, received));
        let expected = self.expected_ntp(track, ticks);
        let step = before.filter(|_| expected.is_some()).map(|(before, when)| {
            let passed = received.saturating_duration_since(when).as_nanos() as i128 * i128::from(NTP_S) / NANOS;
            off(camera, before).wrapping_sub(passed as i64)
        });
        let is_first = self.tracks[track].told.is_none();
        let shift_so_far = if is_first { self.shift } else { self.tracks[track].shift };
        let shift = match expected {
            // The stream's first report.
            None => wrong.map_or(0, i64::wrapping_neg),
            Some(expected) => {
                // Tracks start when their first packets arrive, which is not exactly when the camera says.
                let most = if is_first { NTP_S as u64 } else { STEP_NTP };
                let known = [shift_so_far, self.shift, 0];
                let fits = |shift: &i64| off(camera.wrapping_add_signed(*shift), expected).unsigned_abs() <= most;
                known.into_iter().find(fits).unwrap_or(off(expected, camera))
            }
        };
        self.shift = shift;
        let ntp = camera.wrapping_add_signed(shift);
        self.ntp_ahead = off(ntp, ours);
        let clock = &mut self.tracks[track];
        clock.shift = shift;
        clock.reported = true;
        clock.told = Some((ntp, ticks));
        let report = Some(SenderReport { ntp, rtp_time: clock.rtp_time(ticks) });
        // A report that arrives late but agrees with its packets was only delayed.
        Passed { report, wrong, stepped: step.filter(|step| step.unsigned_abs() > STEP_NTP && shift != shift_so_far) }
    }

    /// Maps a report of the source. A report from before the track's first packet is kept until then.
    ///
    /// # Errors
    /// The report's timestamp is far from the track's packets, so the source's clock in it is unusable.
    pub fn map_report(
        &mut self,
        track: usize,
        received: Instant,
        wall: SystemTime,
        ntp: u64,
        rtp_time: u32,
    ) -> Result<Passed, BadReport> {
        // Zero means that the source has no clock (RFC 3550 section 6.4.1); such a report is useless.
        if ntp == 0 {
            return Ok(Passed::default());
        }
        let heard = Heard { received, ours: to_ntp(wall), ntp, rtp_time };
        match self.near(track, received, rtp_time) {
            Near::At(ticks) => Ok(self.pass_on(track, ticks, heard)),
            Near::Nowhere => Err(BadReport),
            Near::Unknown => {
                self.tracks[track].saved = Some(heard);
                Ok(Passed::default())
            }
        }
    }

    /// Ticks of a report's timestamp.
    fn near(&self, track: usize, now: Instant, rtp_time: u32) -> Near {
        let clock = &self.tracks[track];
        let (Some(before), Some(last)) = (clock.source, clock.last) else { return Near::Unknown };
        let elapsed = clock.expected(last, now) - last.ticks;
        if clock.is_far(rtp_time.wrapping_sub(before) as i32, elapsed) {
            return Near::Nowhere;
        }
        Near::At(last.ticks + clock.step(before, rtp_time, elapsed))
    }

    /// Processes the report that was kept for the track's first packet, once that has arrived.
    pub fn saved_report(&mut self, track: usize, now: Instant) -> Option<Passed> {
        let heard = self.tracks[track].saved?;
        let near = self.near(track, now, heard.rtp_time);
        if near != Near::Unknown {
            self.tracks[track].saved = None;
        }
        let Near::At(ticks) = near else { return None };
        Some(self.pass_on(track, ticks, heard))
    }

    /// When [`Self::own_report`] has something.
    pub fn own_report_due(&self) -> Option<Instant> {
        self.tracks.iter().filter(|clock| !clock.reported).filter_map(|clock| clock.own_due).min()
    }

    /// A report made by the relay, if one is due.
    ///
    /// Players that derive time from reports must not see packet jitter in them, nor adjustments of the relay's clock. So each report
    /// continues the previous one at the track's clock rate, corrected towards the relay's time by at most 2 ms.
    pub fn own_report(&mut self, track: usize, now: Instant, wall: SystemTime) -> Option<SenderReport> {
        let clock = &mut self.tracks[track];
        if clock.reported || clock.own_due? > now {
            return None;
        }
        clock.own_due = Some(now + Duration::from_secs(OWN_REPORT_S));
        let ticks = clock.expected(clock.last?, now);
        let ours = to_ntp(wall);
        let target = ours.wrapping_add_signed(self.ntp_ahead);
        let ntp = match self.expected_ntp(track, ticks) {
            None => target,
            Some(expected) => {
                let off = target.wrapping_sub(expected) as i64;
                let most = NTP_S / 500;
                if off.unsigned_abs() > STEP_NTP {
                    self.ntp_ahead = expected.wrapping_sub(ours) as i64;
                    expected
                } else {
                    expected.wrapping_add_signed(off.clamp(-most, most))
                }
            }
        };
        let clock = &mut self.tracks[track];
        clock.told = Some((ntp, ticks));
        Some(SenderReport { ntp, rtp_time: clock.rtp_time(ticks) })
    }
}

/// Ticks of a report's timestamp, relative to the track's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    /// There was no packet in this session.
    Unknown,
    /// More than ten seconds away.
    Nowhere,
    /// At these ticks.
    At(i64),
}

/// A report of the source whose timestamp is more than ten seconds from its packets'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReport;

/// Nanoseconds by which the timeline must be ahead of the wall clock in a session that starts at `arrival`.
fn anchor(tracks: &[Clock], origin: Instant, ahead: i128, arrival: Instant) -> i128 {
    let since_origin = |moment: Instant| moment.saturating_duration_since(origin).as_nanos() as i128;
    let sent = || tracks.iter().filter_map(|clock| clock.newest.map(|newest| (newest, clock.nanos(newest.ticks))));
    // The gap is counted from the last packet on any track.
    let ahead =
        sent().max_by_key(|(last, _)| last.arrival).map_or(ahead, |(last, nanos)| nanos - since_origin(last.arrival));
    // No track goes back.
    let newest = sent().map(|(_, nanos)| nanos).max();
    newest.map_or(ahead, |newest| ahead.max(newest + NANOS / 1000 - since_origin(arrival)))
}

/// A time in NTP format ([`rtcp::ntp`]).
pub fn to_ntp(wall: SystemTime) -> u64 {
    rtcp::ntp(wall.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIDEO: (u32, u32) = (90_000, u32::MAX - 100);
    const SOUND: (u32, u32) = (8_000, 5);

    fn at(origin: Instant, ms: u64) -> Instant {
        origin + Duration::from_millis(ms)
    }

    fn ms(track: (u32, u32), rtp_time: u32) -> i64 {
        i64::from(rtp_time.wrapping_sub(track.1) as i32) * 1_000 / i64::from(track.0)
    }

    #[test]
    fn the_order_of_packets_is_told_across_the_wrap() {
        let mut order = Order::default();
        assert_eq!(order.place(65_534, 7, 0), Place::First);
        assert_eq!(order.place(65_535, 7, 0), Place::After(0));
        assert_eq!(order.place(1, 7, 0), Place::After(1));
        assert_eq!(order.place(0, 7, 0), Place::Late);
        assert_eq!(order.place(1, 7, 0), Place::Late);
        assert_eq!(order.place(2, 7, 0), Place::After(0));
        assert_eq!(order.place(2 + 1 + DROPOUT_MAX, 7, 0), Place::After(DROPOUT_MAX));
        assert_eq!(order.place(10_000, 7, 0), Place::Restart);
        // Another name for the same sender, and another sender.
        assert_eq!(order.place(10_001, 8, 0), Place::After(0));
        assert_eq!(order.place(10_001, 7, 0), Place::Late);
        assert_eq!(order.place(10_003, 7, 0), Place::After(1));
        assert_eq!(order.place(11_000, 8, 0), Place::Restart);
        assert_eq!(order.place(0, 8, 0), Place::Restart);
        assert_eq!(order.place(1, 8, 0), Place::After(0));
        // Again at 0 after a few packets; and one that came late.
        assert_eq!(order.place(2, 8, 3_000), Place::After(0));
        assert_eq!(order.place(0, 8, 6_000), Place::Restart);
        assert_eq!(order.place(1, 8, 6_000), Place::After(0));
        assert_eq!(order.place(0, 8, 6_000), Place::Late);
    }

    #[test]
    fn tracks_begin_where_the_wall_clock_says_and_keep_their_own_steps() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO, SOUND]);
        assert_eq!(timeline.estimate(0), (origin, VIDEO.1));
        assert_eq!(ms(VIDEO, timeline.map(0, 0xffff_ff00, at(origin, 100), false, || true).rtp_time), 100);
        assert_eq!(ms(SOUND, timeline.map(1, 77, at(origin, 130), false, || true).rtp_time), 130);
        // Late by the wall clock, in time by the camera's.
        assert_eq!(
            ms(VIDEO, timeline.map(0, 0xffff_ff00u32.wrapping_add(3_600), at(origin, 190), false, || true).rtp_time),
            140
        );
        // B-frames step back.
        assert_eq!(
            ms(VIDEO, timeline.map(0, 0xffff_ff00u32.wrapping_add(1_800), at(origin, 195), false, || true).rtp_time),
            120
        );
    }

    #[test]
    fn a_camera_whose_clock_runs_fast_never_sends_a_new_session_back() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO, SOUND]);
        let mut newest = [i64::MIN; 2];
        let mut now = 0;
        for session in 0..50u32 {
            timeline.new_session();
            for step in 0..20u32 {
                let video =
                    timeline.map(0, (session * 77_777_777).wrapping_add(step * 7_200), at(origin, now), false, || true);
                let sound =
                    timeline.map(1, (session * 99_999).wrapping_add(step * 500), at(origin, now + 1), false, || true);
                for (index, got) in [ms(VIDEO, video.rtp_time), ms(SOUND, sound.rtp_time)].into_iter().enumerate() {
                    assert!(got >= newest[index]);
                    newest[index] = got;
                }
                now += 40;
            }
            // Reconnects do not pull them apart by more than one session's drift.
            assert!((newest[0] - newest[1]).abs() < 400, "{newest:?}");
        }
    }

    #[test]
    fn sparse_tracks_and_wrapped_timestamps_do_not_jump() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO]);
        let hours = |hours: u64| at(origin, hours * 3_600_000);
        let ticks = |hours: u64| (hours * 3_600 * 90_000) as u32;
        for hour in [0, 1, 9, 30, 31] {
            let got = timeline.map(0, ticks(hour), hours(hour), false, || true);
            assert!(!got.jumped, "{hour}");
            assert_eq!(got.rtp_time, VIDEO.1.wrapping_add(ticks(hour)));
        }
        assert!(timeline.map(0, ticks(31) + 11 * 90_000, hours(31), false, || true).jumped);
        assert!(timeline.map(0, ticks(31) + 22 * 90_000, hours(31), false, || true).jumped);
    }

    #[test]
    fn a_wall_clock_that_jumps_moves_neither_timestamps_nor_reports() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO, SOUND]);
        let wall = |now: u64| UNIX_EPOCH + Duration::from_millis(1_700_000_000_000u64.wrapping_add(now));
        let steps = [0, 0, 7_200, 7_200, -7_200, -7_200, 30, 0];
        for (round, jump) in (0u64..).zip(steps) {
            let now = round * 1_000 * OWN_REPORT_S;
            let ticks = |rate: u32| (now * u64::from(rate) / 1_000) as u32;
            for (track, of) in [(0, VIDEO), (1, SOUND)] {
                let got = timeline.map(track, ticks(of.0), at(origin, now), false, || true);
                assert_eq!(ms(of, got.rtp_time), now as i64);
            }
            if round == 0 {
                continue;
            }
            let seen = wall(now.wrapping_add_signed(jump * 1_000));
            for (track, of) in [(0, VIDEO), (1, SOUND)] {
                let report = timeline.own_report(track, at(origin, now), seen).expect("one is due");
                assert_eq!(ms(of, report.rtp_time), now as i64);
                assert!(report.ntp.abs_diff(to_ntp(wall(now))) <= 8, "track {track} in round {round}");
            }
        }
    }

    /// A report of the camera, whose clock is ahead by `off` ms of one that began with the timeline, at `now` ms for a timestamp that
    /// was sampled then. Returns what its NTP time became, in ms since that beginning, and whether a step was seen.
    fn reported(timeline: &mut Timeline, track: usize, now: u64, source: u32, off: i64) -> (i64, bool) {
        let begin = 1_700_000_000_000;
        let (origin, ours) = (timeline.origin, UNIX_EPOCH + Duration::from_millis(begin + now));
        let ntp = to_ntp(UNIX_EPOCH + Duration::from_millis((begin + now).wrapping_add_signed(off)));
        let passed = timeline.map_report(track, at(origin, now), ours, ntp, source).expect("it is near");
        let since =
            passed.report.expect("packets came").ntp.wrapping_sub(to_ntp(UNIX_EPOCH + Duration::from_millis(begin)));
        (((i128::from(since as i64) * 1_000 + (1 << 31)) >> 32) as i64, passed.stepped.is_some())
    }

    #[test]
    fn a_clock_that_steps_moves_no_report_in_a_session_or_between_two() {
        let mut timeline = Timeline::new(Instant::now());
        timeline.set_tracks([VIDEO, SOUND]);
        let origin = timeline.origin;
        let mut now = 0;
        let mut steps = 0;
        // The camera's clock is 90 s behind ours, and right enough to be passed on.
        for (session, offs) in
            [[-90_000, -90_000, -90_040], [-60_000, -60_000, -120_000], [-90_080; 3]].into_iter().enumerate()
        {
            timeline.new_session();
            let begin = now;
            for off in offs {
                let source = |rate: u32| (session as u32) << 30 | ((now - begin) * u64::from(rate) / 1_000) as u32;
                for (track, of) in [(0, VIDEO), (1, SOUND)] {
                    timeline.map(track, source(of.0), at(origin, now), false, || true);
                    let (ntp, stepped) = reported(&mut timeline, track, now, source(of.0), off);
                    steps += u32::from(stepped);
                    let error = ntp - (now as i64 - 90_000);
                    // A little is drift; it is passed on.
                    assert!((-150..=0).contains(&error), "{error} ms in session {session}");
                }
                now += 2_000;
            }
            now += 60_000;
        }
        // Each counts once, however many tracks there are.
        assert_eq!(steps, 3);
    }

    #[test]
    fn a_report_that_was_read_late_is_no_step() {
        let mut timeline = Timeline::new(Instant::now());
        timeline.set_tracks([VIDEO]);
        let origin = timeline.origin;
        let source = |now: u64| (now * 90) as u32;
        // What the camera sent at 7 s is read at 10 s, as after an upgrade that hung, or a network that did.
        for (sent, read) in [(0, 0), (5_000, 5_000), (7_000, 10_000), (12_000, 12_000)] {
            timeline.map(0, source(sent), at(origin, read), false, || true);
            let late = read as i64 - sent as i64;
            let (ntp, stepped) = reported(&mut timeline, 0, read, source(sent), -late);
            assert_eq!((ntp, stepped), (sent as i64, false), "sent at {sent} ms");
        }
    }

    #[test]
    fn a_session_without_reports_goes_on_from_those_before() {
        let mut timeline = Timeline::new(Instant::now());
        timeline.set_tracks([VIDEO]);
        let origin = timeline.origin;
        timeline.map(0, 0, origin, false, || true);
        assert_eq!(reported(&mut timeline, 0, 0, 0, -90_000), (-90_000, false));
        timeline.new_session();
        timeline.map(0, 5, at(origin, 10_000), false, || true);
        let wall = UNIX_EPOCH + Duration::from_millis(1_700_000_020_000);
        let report = timeline.own_report(0, at(origin, 20_000), wall).expect("one is due");
        assert!(report.ntp.abs_diff(to_ntp(wall - Duration::from_secs(90))) <= 8);
        assert_eq!(ms(VIDEO, report.rtp_time), 20_000);
    }

    #[test]
    fn what_refers_to_nothing_does_not_go_far_back() {
        let mut timeline = Timeline::new(Instant::now());
        timeline.set_tracks([VIDEO]);
        let origin = timeline.origin;
        let mut map = |now: u64, camera: i64, begins: bool| {
            let mapped = timeline.map(0, (camera * 90) as u32, at(origin, now), false, || begins);
            (ms(VIDEO, mapped.rtp_time), mapped.jumped)
        };
        assert_eq!(map(5_000, 5_000, true), (5_000, false));
        // Its clock goes back by 4 s between keyframes, and in the middle of what refers to what came before.
        assert_eq!(map(5_040, 1_040, false), (1_040, false));
        assert_eq!(map(5_500, 1_500, false), (1_500, false));
        assert_eq!(map(6_000, 2_000, true), (6_000, true));
        assert_eq!(map(6_040, 2_040, false), (6_040, false));
        // Less than a second is none, as in a group of pictures that is sent in the order of decoding.
        assert_eq!(map(6_080, 1_080, true), (5_080, false));
        assert_eq!(map(6_120, 2_120, false), (6_120, false));
    }

    #[test]
    fn ntp_time_counts_from_1900_and_wraps() {
        assert_eq!(to_ntp(UNIX_EPOCH), 2_208_988_800 << 32);
        assert_eq!(to_ntp(UNIX_EPOCH + Duration::from_millis(500)), 2_208_988_800 << 32 | 1 << 31);
        let wrapped = UNIX_EPOCH + Duration::from_secs((1 << 32) - 2_208_988_800 + 3);
        assert_eq!(to_ntp(wrapped), 3 << 32);
        to_ntp(UNIX_EPOCH - Duration::from_secs(9));
    }
}
