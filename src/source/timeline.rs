//! The timeline: sequence numbers, timestamps and sender reports, rewritten once so that they never break.
//!
//! Each track's timestamps count from a random base at the stream's origin, which is the moment of the first connection. Within a
//! session of the source a track is the camera's own clock plus a constant. A new session begins where the wall clock says, by
//! **one** gap for all tracks, so that reconnects do not pull sound and picture apart; and never before what was sent already.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seconds by which a timestamp must leave the wall clock to be taken for a new beginning of the camera's clock.
const JUMP_S: i64 = 10;

/// Seconds from the beginning of a session, or from the report before, to a report made by the relay.
const OWN_REPORT_S: u64 = 5;

/// Packets that may come late or twice at most; a step back beyond that is a new beginning of the sequence.
const LATE_MAX: u16 = 128;

/// Steps forward over this are a new beginning of the sequence (`MAX_DROPOUT` of RFC 3550 appendix A.1).
const DROPOUT_MAX: u16 = 3_000;

/// Late packets in a row, each the one after the one before, that are a new beginning of the sequence.
const LATE_RUN: u8 = 5;

/// One second in NTP format (RFC 3550 section 4).
const NTP_S: i64 = 1 << 32;

const NANOS: i128 = 1_000_000_000;

/// What a packet's sequence number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The session's first packet.
    First,
    /// So many packets are missing before it.
    After(u16),
    /// It came twice or too late.
    Late,
    /// The sequence began again with it.
    Restart,
}

/// The order of a track's packets in a session of the source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    expected: Option<u16>,
    ssrc: u32,
    /// The number that would go on the run of late packets, and their count.
    late: (u16, u8),
}

impl Order {
    /// Takes the next packet's number.
    pub fn place(&mut self, sequence: u16, ssrc: u32) -> Place {
        let next = sequence.wrapping_add(1);
        let Some(expected) = self.expected else {
            *self = Order { expected: Some(next), ssrc, late: (0, 0) };
            return Place::First;
        };
        let ahead = sequence.wrapping_sub(expected);
        let behind = expected.wrapping_sub(sequence);
        let place = if ssrc != self.ssrc {
            Place::Restart
        } else if ahead <= DROPOUT_MAX {
            Place::After(ahead)
        } else if behind <= LATE_MAX {
            let run = if self.late.0 == sequence { self.late.1 + 1 } else { 1 };
            self.late = (next, run);
            if run < LATE_RUN { Place::Late } else { Place::Restart }
        } else {
            Place::Restart
        };
        if place != Place::Late {
            *self = Order { expected: Some(next), ssrc, late: (0, 0) };
        }
        place
    }
}

/// A report to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The moment, in NTP format.
    pub ntp: u64,
    /// The same moment as an RTP timestamp of the relay.
    pub rtp_time: u32,
}

/// What a packet's timestamp became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The relay's timestamp.
    pub rtp_time: u32,
    /// Whether the camera's clock jumped.
    pub jumped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    arrival: Instant,
    /// Ticks since the stream's origin.
    ticks: i64,
}

#[derive(Clone, Debug)]
struct Clock {
    rate: u32,
    base: u32,
    /// The newest packet of any session.
    last: Option<Last>,
    /// The source's timestamp of the newest packet in this session.
    source: Option<u32>,
    /// Whether the source has sent a report in this session.
    reported: bool,
    /// A report of the source that no packet was there to be compared with, its NTP time ready.
    saved: Option<(u64, u32)>,
    own_due: Option<Instant>,
    /// The newest report made by the relay: NTP time and ticks.
    own: Option<(u64, i64)>,
}

impl Clock {
    fn nanos(&self, ticks: i64) -> i128 {
        i128::from(ticks) * NANOS / i128::from(self.rate)
    }

    fn ticks(&self, nanos: i128) -> i64 {
        (nanos * i128::from(self.rate) / NANOS) as i64
    }

    /// Ticks that the wall clock says should be, at `now`.
    fn expected(&self, last: Last, now: Instant) -> i64 {
        last.ticks + self.ticks(now.saturating_duration_since(last.arrival).as_nanos() as i128)
    }

    fn rtp_time(&self, ticks: i64) -> u32 {
        // Wraps as RTP timestamps do.
        self.base.wrapping_add(ticks as u32)
    }

    /// Whether a step of the source's timestamp is far from what passed by the wall clock.
    fn is_far(&self, step: i32, elapsed: i64) -> bool {
        let limit = (JUMP_S * i64::from(self.rate)).min(i64::from(i32::MAX));
        let off = (step as u32).wrapping_sub(elapsed as u32) as i32;
        i64::from(off).abs() > limit
    }
}

/// The clocks of a stream's tracks.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin: Instant,
    /// Nanoseconds that the timeline is ahead of the wall clock since the origin, as of the session's beginning.
    ahead: i128,
    /// When the session's first packet came.
    session: Option<Instant>,
    tracks: Vec<Clock>,
    /// The newest jump of the camera's clock: when, and by how many nanoseconds.
    jump: Option<(Instant, i128)>,
    /// What is added to the camera's NTP time, once it was found wrong.
    shift: Option<i64>,
    /// NTP time as passed on less our own, as of the newest report.
    ntp_ahead: Option<i64>,
}

impl Timeline {
    /// A timeline that begins at `origin`.
    pub fn new(origin: Instant) -> Self {
        Timeline { origin, ahead: 0, session: None, tracks: Vec::new(), jump: None, shift: None, ntp_ahead: None }
    }

    /// Replaces the tracks by new ones, each with its clock rate and the timestamp it has at the origin.
    pub fn set_tracks(&mut self, tracks: impl IntoIterator<Item = (u32, u32)>) {
        self.tracks = tracks
            .into_iter()
            .map(|(rate, base)| Clock {
                rate: rate.max(1),
                base,
                last: None,
                source: None,
                reported: false,
                saved: None,
                own_due: None,
                own: None,
            })
            .collect();
    }

    /// A new session of the source: its clocks and reports have nothing to do with those before.
    pub fn new_session(&mut self) {
        self.session = None;
        self.jump = None;
        self.shift = None;
        self.ntp_ahead = None;
        for clock in &mut self.tracks {
            clock.source = None;
            clock.reported = false;
            clock.saved = None;
            clock.own_due = None;
            clock.own = None;
        }
    }

    /// A moment and the track's timestamp at it, if the track went by the wall clock from the session's beginning on.
    pub fn estimate(&self, track: usize) -> (Instant, u32) {
        let clock = &self.tracks[track];
        (self.origin, clock.rtp_time(clock.ticks(self.ahead)))
    }

    /// The relay's timestamp for a packet of the source.
    ///
    /// `restarted` is whether the source is known to have begun again with this packet.
    pub fn map(&mut self, track: usize, source: u32, arrival: Instant, restarted: bool) -> Mapped {
        let session = *self.session.get_or_insert_with(|| {
            // The first packet of any track sets the gap for all of them.
            self.ahead = anchor(&self.tracks, self.origin, self.ahead, arrival);
            arrival
        });
        let clock = &mut self.tracks[track];
        let mut jumped = false;
        let ticks = match (clock.source, clock.last) {
            (Some(before), Some(last)) => {
                let step = source.wrapping_sub(before) as i32;
                let elapsed = clock.expected(last, arrival) - last.ticks;
                // A step that is short in itself is no jump: the camera or the network only paused.
                jumped =
                    clock.is_far(step, 0) && clock.is_far(step, elapsed) || (restarted && clock.is_far(step, elapsed));
                if jumped {
                    let off = clock.nanos(i64::from(step) - elapsed);
                    // Another track that jumps by as much is put right by exactly as much.
                    let near = self.jump.filter(|(when, by)| {
                        arrival.saturating_duration_since(*when) < Duration::from_secs(JUMP_S as u64)
                            && (off - by).abs() < NANOS
                    });
                    let (_, by) = *self.jump.insert(near.unwrap_or((arrival, off)));
                    (last.ticks + i64::from(step) - clock.ticks(by)).max(last.ticks + 1)
                } else {
                    last.ticks + i64::from(step)
                }
            }
            (_, last) => {
                let nanos = arrival.saturating_duration_since(self.origin).as_nanos() as i128 + self.ahead;
                let ticks = clock.ticks(nanos);
                last.map_or(ticks, |last| ticks.max(last.ticks + 1))
            }
        };
        clock.source = Some(source);
        clock.last = Some(Last { arrival, ticks });
        clock.own_due.get_or_insert(session + Duration::from_secs(OWN_REPORT_S));
        Mapped { rtp_time: clock.rtp_time(ticks), jumped }
    }

    /// The NTP time to pass on for the camera's, and how far the camera's is from ours if that is news of a wrong clock.
    fn pass_on(&mut self, camera: u64, ours: u64) -> (u64, Option<i64>) {
        let off = |ntp: u64| ntp.wrapping_sub(ours) as i64;
        if off(camera).unsigned_abs() <= 3_600 * NTP_S as u64 {
            self.shift = None;
            return (camera, None);
        }
        // One shift for the whole session keeps the tracks together to the tick.
        if let Some(shift) = self.shift
            && off(camera.wrapping_add_signed(shift)).unsigned_abs() <= (JUMP_S * NTP_S) as u64
        {
            return (camera.wrapping_add_signed(shift), None);
        }
        let news = self.shift.is_none();
        self.shift = Some(off(camera).wrapping_neg());
        (ours, news.then_some(off(camera)))
    }

    /// Maps a report of the source. A report that comes before the track's first packet is kept until then.
    ///
    /// # Errors
    /// The report, and so the source's clock in it, is nowhere near the track's packets.
    pub fn map_report(
        &mut self,
        track: usize,
        received: Instant,
        wall: SystemTime,
        ntp: u64,
        rtp_time: u32,
    ) -> Result<(Option<Report>, Option<i64>), BadReport> {
        // Zero is for a source without a clock (RFC 3550 section 6.4.1); such a report tells nothing.
        if ntp == 0 {
            return Ok((None, None));
        }
        let near = self.near(track, received, rtp_time);
        if near == Some(None) {
            return Err(BadReport);
        }
        let ours = to_ntp(wall);
        let (ntp, wrong) = self.pass_on(ntp, ours);
        self.ntp_ahead = Some(ntp.wrapping_sub(ours) as i64);
        let clock = &mut self.tracks[track];
        match near.flatten() {
            Some(mapped) => {
                clock.reported = true;
                Ok((Some(Report { ntp, rtp_time: mapped }), wrong))
            }
            None => {
                clock.saved = Some((ntp, rtp_time));
                Ok((None, wrong))
            }
        }
    }

    /// The relay's timestamp for a report's: none before the track's first packet, `Some(None)` if it is nowhere near.
    fn near(&self, track: usize, now: Instant, rtp_time: u32) -> Option<Option<u32>> {
        let clock = &self.tracks[track];
        let (Some(before), Some(last)) = (clock.source, clock.last) else { return None };
        let step = rtp_time.wrapping_sub(before) as i32;
        let far = clock.is_far(step, clock.expected(last, now) - last.ticks);
        Some((!far).then(|| clock.rtp_time(last.ticks + i64::from(step))))
    }

    /// The report that was kept for the track's first packet, once that has come.
    pub fn saved_report(&mut self, track: usize, now: Instant) -> Option<Report> {
        let (ntp, rtp_time) = self.tracks[track].saved?;
        let near = self.near(track, now, rtp_time)?;
        let clock = &mut self.tracks[track];
        clock.saved = None;
        let rtp_time = near?;
        clock.reported = true;
        Some(Report { ntp, rtp_time })
    }

    /// When [`Self::own_report`] has something.
    pub fn own_report_due(&self) -> Option<Instant> {
        self.tracks.iter().filter(|clock| !clock.reported).filter_map(|clock| clock.own_due).min()
    }

    /// A report made by the relay, if one is due.
    ///
    /// Players that reckon by reports must not see the jitter of packets in them: each goes on from the one before by the
    /// track's own clock, and is drawn towards our time by at most 2 ms.
    pub fn own_report(&mut self, track: usize, now: Instant, wall: SystemTime) -> Option<Report> {
        let ntp_ahead = self.ntp_ahead.unwrap_or(0);
        let clock = &mut self.tracks[track];
        if clock.reported || clock.own_due? > now {
            return None;
        }
        clock.own_due = Some(now + Duration::from_secs(OWN_REPORT_S));
        let ticks = clock.expected(clock.last?, now);
        let target = to_ntp(wall).wrapping_add_signed(ntp_ahead);
        let ntp = match clock.own {
            None => target,
            Some((before, then)) => {
                let passed = (i128::from(ticks - then) * i128::from(NTP_S) / i128::from(clock.rate)) as i64;
                let expected = before.wrapping_add_signed(passed);
                let off = target.wrapping_sub(expected) as i64;
                let most = NTP_S / 500;
                if off.unsigned_abs() > NTP_S as u64 {
                    target
                } else {
                    expected.wrapping_add_signed(off.clamp(-most, most))
                }
            }
        };
        clock.own = Some((ntp, ticks));
        Some(Report { ntp, rtp_time: clock.rtp_time(ticks) })
    }
}

/// A report of the source whose timestamp is more than ten seconds from its packets'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReport;

/// Nanoseconds that the timeline must be ahead of the wall clock in a session that begins at `arrival`.
fn anchor(tracks: &[Clock], origin: Instant, ahead: i128, arrival: Instant) -> i128 {
    let since_origin = |moment: Instant| moment.saturating_duration_since(origin).as_nanos() as i128;
    let sent = || tracks.iter().filter_map(|clock| clock.last.map(|last| (last, clock.nanos(last.ticks))));
    // The gap is counted from the packet that came last, on whichever track.
    let ahead =
        sent().max_by_key(|(last, _)| last.arrival).map_or(ahead, |(last, nanos)| nanos - since_origin(last.arrival));
    // No track goes back.
    let newest = sent().map(|(_, nanos)| nanos).max();
    newest.map_or(ahead, |newest| ahead.max(newest + NANOS / 1000 - since_origin(arrival)))
}

/// A moment in NTP format, seconds since 1900 in the upper half. Wraps in 2036, as RFC 3550 wants.
pub fn to_ntp(wall: SystemTime) -> u64 {
    const SECONDS_1900_TO_1970: u64 = 2_208_988_800;
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    since.as_secs().wrapping_add(SECONDS_1900_TO_1970) << 32 | fraction
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
        assert_eq!(order.place(65_534, 7), Place::First);
        assert_eq!(order.place(65_535, 7), Place::After(0));
        assert_eq!(order.place(1, 7), Place::After(1));
        assert_eq!(order.place(0, 7), Place::Late);
        assert_eq!(order.place(1, 7), Place::Late);
        assert_eq!(order.place(2, 7), Place::After(0));
        assert_eq!(order.place(2 + 1 + DROPOUT_MAX, 7), Place::After(DROPOUT_MAX));
        assert_eq!(order.place(10_000, 7), Place::Restart);
        assert_eq!(order.place(10_001, 8), Place::Restart);
        assert_eq!(order.place(10_002, 8), Place::After(0));
    }

    #[test]
    fn tracks_begin_where_the_wall_clock_says_and_keep_their_own_steps() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO, SOUND]);
        assert_eq!(timeline.estimate(0), (origin, VIDEO.1));
        assert_eq!(ms(VIDEO, timeline.map(0, 0xffff_ff00, at(origin, 100), false).rtp_time), 100);
        assert_eq!(ms(SOUND, timeline.map(1, 77, at(origin, 130), false).rtp_time), 130);
        // Late by the wall clock, in time by the camera's.
        assert_eq!(
            ms(VIDEO, timeline.map(0, 0xffff_ff00u32.wrapping_add(3_600), at(origin, 190), false).rtp_time),
            140
        );
        // B-frames step back.
        assert_eq!(
            ms(VIDEO, timeline.map(0, 0xffff_ff00u32.wrapping_add(1_800), at(origin, 195), false).rtp_time),
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
                let video = timeline.map(0, (session * 77_777_777).wrapping_add(step * 7_200), at(origin, now), false);
                let sound = timeline.map(1, (session * 99_999).wrapping_add(step * 500), at(origin, now + 1), false);
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
            let got = timeline.map(0, ticks(hour), hours(hour), false);
            assert!(!got.jumped, "{hour}");
            assert_eq!(got.rtp_time, VIDEO.1.wrapping_add(ticks(hour)));
        }
        assert!(timeline.map(0, ticks(31) + 11 * 90_000, hours(31), false).jumped);
        assert!(timeline.map(0, ticks(31) + 22 * 90_000, hours(31), false).jumped);
    }

    #[test]
    fn a_wall_clock_that_jumps_moves_no_timestamp_and_takes_the_tracks_reports_along() {
        let origin = Instant::now();
        let mut timeline = Timeline::new(origin);
        timeline.set_tracks([VIDEO, SOUND]);
        let steps = [0, 0, 7_200, 7_200, -7_200, -7_200, 30, 0];
        for (round, jump) in (0u64..).zip(steps) {
            let now = round * 1_000 * OWN_REPORT_S;
            let ticks = |rate: u32| (now * u64::from(rate) / 1_000) as u32;
            assert_eq!(ms(VIDEO, timeline.map(0, ticks(90_000), at(origin, now), false).rtp_time), now as i64);
            assert_eq!(ms(SOUND, timeline.map(1, ticks(8_000), at(origin, now), false).rtp_time), now as i64);
            if round == 0 {
                continue;
            }
            let wall = UNIX_EPOCH + Duration::from_millis((1_700_000_000_000 + now).wrapping_add_signed(jump * 1_000));
            for (track, of) in [(0, VIDEO), (1, SOUND)] {
                let report = timeline.own_report(track, at(origin, now), wall).expect("one is due");
                assert_eq!(ms(of, report.rtp_time), now as i64);
                assert_eq!(report.ntp, to_ntp(wall), "track {track} in round {round}");
            }
        }
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
