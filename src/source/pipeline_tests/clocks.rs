//! Timestamps and sender reports of sources whose clocks jump, step or come back otherwise.

use super::*;
use crate::source::timeline::to_ntp;

#[test]
fn a_reconnect_goes_on_where_the_wall_clock_is_with_one_gap_for_all() {
    let tracks = || vec![track("video", "H264", None), track("audio", "PCMU", None)];
    let mut rig = Rig::new(tracks());
    for _ in 0..25 {
        rig.send(1, false, &[1; 320]);
        rig.time[1] = rig.time[1].wrapping_add(320);
        rig.frame(&[IDR]);
    }
    let last = |rig: &Rig, track| rig.out.media(track).last().map(|c| (c.rtp_time, c.first_seq)).unwrap();
    let before = [last(&rig, 0), last(&rig, 1)];
    // A torn frame that nobody saw is dropped with its number.
    rig.send(0, false, P);
    rig.pipeline.disconnected(&mut rig.out);
    assert_eq!(rig.pipeline.stats().torn, 1);
    rig.wait(7_000 - 40);
    rig.seq = [4_000, 9];
    rig.time = [123_456, 3_000_000_000];
    rig.connect(tracks());
    assert_eq!(rig.out.descriptions, 1);
    rig.frame(&[IDR]);
    rig.send(1, false, &[1; 320]);
    let after = [last(&rig, 0), last(&rig, 1)];
    assert_eq!(after[0].1, before[0].1.wrapping_add(1));
    assert_eq!(after[1].1, before[1].1.wrapping_add(1));
    // The torn frame's packet came 40 ms after the last whole one, and the new session 6.96 s after that; the first sound came
    // 40 ms after the picture.
    let gap = |index: usize| after[index].0.wrapping_sub(before[index].0);
    assert_eq!((gap(0), gap(1)), (7 * 90_000, 7_040 * 8));
}

#[test]
fn timestamps_that_jump_are_put_right_on_all_tracks_alike() {
    let mut rig = Rig::new(vec![track("video", "H264", None), track("audio", "PCMU", None)]);
    let step = |rig: &mut Rig| {
        rig.send(1, false, &[1; 320]);
        rig.time[1] = rig.time[1].wrapping_add(320);
        rig.frame(&[IDR]);
    };
    (0..10).for_each(|_| step(&mut rig));
    for seconds in [3_600i64, -7_200] {
        rig.time[0] = rig.time[0].wrapping_add((seconds * 90_000) as u32);
        rig.time[1] = rig.time[1].wrapping_add((seconds * 8_000) as u32);
        // The video hiccups while it jumps; the sound is to stay with it.
        rig.wait(15);
        (0..10).for_each(|_| step(&mut rig));
    }
    let times = |track| rig.out.media(track).map(|c| c.rtp_time).collect::<Vec<_>>();
    let span = |times: Vec<u32>| times[29].wrapping_sub(times[0]);
    assert_eq!(rig.pipeline.stats().jumps, 4);
    let (video, sound) = (span(times(0)), span(times(1)));
    assert_eq!(video / 90, sound / 8);
    // 29 frames of 40 ms, and the two hiccups at most.
    assert!((29 * 40..=29 * 40 + 30).contains(&(video / 90)), "{} ms", video / 90);
}

#[test]
fn a_keyframe_far_behind_is_a_new_beginning_with_all_that_stands_before_it() {
    let mut rig = Rig::h264(None);
    for _ in 0..50 {
        rig.frame(&[IDR]);
    }
    // Its clock is set back by 1.5 s, before frames that refer to others and then a keyframe that begins with no parameter set.
    rig.time[0] = rig.time[0].wrapping_sub(135_000);
    rig.frame(&[P]);
    rig.frame(&[AUD, SEI, SPS, PPS, IDR]);
    rig.frame(&[P]);
    let times: Vec<_> = rig.chunks().iter().map(|c| c.rtp_time).collect();
    let step = |at: usize| times[at].wrapping_sub(times[49]) as i32;
    assert_eq!((step(50), step(51), step(52)), (3_600 - 135_000, 7_200, 10_800));
    assert_eq!(rig.pipeline.stats().jumps, 1);
    // B-frames are sent behind what they refer to.
    rig.time[0] = rig.time[0].wrapping_sub(3 * 3_600);
    rig.frame(&[P]);
    assert_eq!(rig.chunks()[53].rtp_time.wrapping_sub(times[52]) as i32, -7_200);
    assert_eq!(rig.pipeline.stats().jumps, 1);
}

#[test]
fn a_clock_that_comes_back_otherwise_is_told_of_and_not_passed_on() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    let report = |rig: &mut Rig, off: i64| {
        let ntp = to_ntp(rig.wall).wrapping_add_signed(off << 32);
        rig.pipeline.sender_report(TrackId(0), rig.now, rig.wall, ntp, rig.time[0], &mut rig.out);
    };
    report(&mut rig, 0);
    for off in [30, -30] {
        rig.pipeline.disconnected(&mut rig.out);
        rig.wait(3_000);
        rig.connect(vec![track("video", "H264", None)]);
        // Before the session's first packet, too.
        report(&mut rig, off);
        for _ in 0..50 {
            rig.frame(&[IDR]);
        }
        report(&mut rig, off);
    }
    let reports = rig.out.reports(0);
    assert_eq!(reports.len(), 5);
    for pair in reports.windows(2) {
        let ticks = i64::from(pair[1].1.wrapping_sub(pair[0].1));
        let off = (pair[1].0 - pair[0].0) as i64 - (ticks << 32) / 90_000;
        assert!(off.abs() <= 1 << 28, "{off}");
    }
    assert_eq!(rig.pipeline.stats().clock_steps, 2);
    let told = |forward, seconds| Notice::ClockStepped { by: Duration::from_secs(seconds), forward };
    let notices: Vec<_> = rig.notices().into_iter().filter(|notice| *notice != told(true, 30)).collect();
    assert_eq!(notices, [told(false, 60)]);
}

#[test]
fn a_pause_of_the_source_is_no_jump() {
    let mut rig = Rig::h264(None);
    rig.frame(&[IDR]);
    rig.wait(15_000);
    rig.frame(&[P]);
    // Time that did pass for the camera, too.
    rig.wait(20_000);
    rig.time[0] = rig.time[0].wrapping_add(20 * 90_000);
    rig.frame(&[P]);
    let times: Vec<_> = rig.chunks().iter().map(|c| c.rtp_time).collect();
    assert_eq!(times[1].wrapping_sub(times[0]), 3_600);
    assert_eq!(times[2].wrapping_sub(times[1]), 3_600 + 20 * 90_000);
    assert_eq!(rig.pipeline.stats().jumps, 0);
}

#[test]
fn reports_of_the_source_are_mapped_and_counted_by_the_relay() {
    let mut rig = Rig::h264(None);
    let ntp = to_ntp(rig.wall - Duration::from_secs(90));
    // It comes before the first packet, and waits for it.
    let time = rig.time[0];
    let ahead = time.wrapping_sub(900);
    rig.pipeline.sender_report(TrackId(0), rig.now, rig.wall, ntp, ahead, &mut rig.out);
    assert_eq!(rig.out.reports(0).len(), 0);
    rig.frame(&[SPS, PPS, IDR]);
    let first = rig.chunks()[0].rtp_time;
    assert_eq!(rig.out.reports(0), [(ntp, first.wrapping_sub(900), 0, 0)]);
    let later = time.wrapping_add(3_600);
    rig.pipeline.sender_report(TrackId(0), rig.now, rig.wall, ntp + 1, later, &mut rig.out);
    let octets = (SPS.len() + PPS.len() + IDR.len()) as u32;
    assert_eq!(rig.out.reports(0)[1], (ntp + 1, first.wrapping_add(3_600), 3, octets));
    // No reports of the relay's own then.
    assert_eq!(rig.pipeline.deadline(), None);
    // A timestamp from nowhere is not passed on.
    rig.pipeline.sender_report(TrackId(0), rig.now, rig.wall, ntp, time.wrapping_add(90_000 * 60), &mut rig.out);
    assert_eq!((rig.out.reports(0).len(), rig.pipeline.stats().bad_reports), (2, 1));
}

#[test]
fn a_wrong_clock_is_replaced_by_ours_once_for_all_tracks() {
    let mut rig = Rig::new(vec![track("video", "H264", None), track("audio", "PCMU", None)]);
    rig.frame(&[IDR]);
    rig.send(1, false, &[1; 320]);
    let camera = to_ntp(SystemTime::UNIX_EPOCH + Duration::from_secs(100));
    let time = rig.time;
    rig.pipeline.sender_report(TrackId(0), rig.now, rig.wall, camera, time[0], &mut rig.out);
    let ours = to_ntp(rig.wall);
    rig.wait(300);
    rig.pipeline.sender_report(TrackId(1), rig.now, rig.wall, camera + (1 << 30), time[1] + 2_000, &mut rig.out);
    assert_eq!(rig.out.reports(0)[0].0, ours);
    // A quarter of a second later by the camera's clock, whenever it came.
    assert_eq!(rig.out.reports(1)[0].0, ours + (1 << 30));
    let notices = rig.notices();
    assert!(matches!(notices[..], [Notice::ClockWrong { ahead: false, .. }]), "{notices:?}");
}

#[test]
fn a_source_without_reports_gets_ours_every_five_seconds() {
    let mut rig = Rig::h264(None);
    let start = rig.now;
    rig.frame(&[IDR]);
    assert_eq!(rig.pipeline.deadline(), Some(start + Duration::from_secs(5)));
    for round in 1..=3 {
        // Packets jitter, reports do not.
        while rig.now < start + Duration::from_secs(5 * round) {
            rig.frame(&[P]);
        }
        rig.wait(7 * round % 3);
        let deadline = rig.pipeline.deadline().unwrap();
        assert!(deadline <= rig.now);
        rig.pipeline.tick(rig.now, rig.wall, &mut rig.out);
    }
    let reports = rig.out.reports(0);
    assert_eq!(reports.len(), 3);
    for pair in reports.windows(2) {
        let ticks = u64::from(pair[1].1.wrapping_sub(pair[0].1));
        let ntp = pair[1].0 - pair[0].0;
        let off = (ntp as i64 - (ticks * (1 << 32) / 90_000) as i64).abs();
        assert!(off <= (1 << 32) / 500 + 1, "{off}");
    }
    rig.pipeline.disconnected(&mut rig.out);
    assert_eq!(rig.pipeline.deadline(), None);
}
