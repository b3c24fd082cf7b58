//! The cursor's rules, one by one.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::media::Track;

const AGE: Duration = Duration::from_secs(1);
const VIDEO: TrackId = TrackId(0);
const AUDIO: TrackId = TrackId(1);
const DATA: TrackId = TrackId(2);

struct Bed {
    epoch: Instant,
    log: Log,
    number: u64,
    description: Description,
}

impl Bed {
    fn new() -> Self {
        let epoch = Instant::now();
        let track = |media: &str| Track {
            media: media.into(),
            encoding: "X".into(),
            payload_type: 96,
            clock_rate: 90_000,
            channels: None,
            fmtp: None,
            attributes: Vec::new(),
            ssrc: 1,
            first_seq: 0,
            clock: (epoch, 0),
        };
        let description = Description { tracks: vec![track("video"), track("audio"), track("application")] };
        let mut log = Log::new(AGE, 1 << 20, 1);
        log.describe(&description);
        Bed { epoch, log, number: 0, description }
    }

    fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    /// Appends a chunk of `bytes` whose single packet contains its number; returns the number.
    fn chunk(&mut self, ms: u64, track: TrackId, frame: u64, flags: &str, bytes: usize) -> u64 {
        let number = self.number;
        self.number += 1;
        let mut data = vec![b'$', track.rtp_channel()];
        data.extend_from_slice(&(bytes as u16).to_be_bytes());
        data.extend_from_slice(&number.to_be_bytes());
        data.resize(4 + bytes.max(8), 0);
        let chunk = Chunk {
            number,
            track,
            kind: ChunkKind::Media,
            frame,
            frame_start: flags.contains('s'),
            frame_end: flags.contains('e'),
            keyframe: flags.contains('k'),
            arrival: self.at(ms),
            first_seq: number as u16,
            rtp_time: 0,
            bytes: Bytes::from(data),
            packets: 1,
        };
        self.log.append(Arc::new(chunk));
        number
    }

    /// A video frame every 33 ms, every `gop`th of them a keyframe, and 20 ms of PCMU every 20 ms; the log is trimmed as they arrive.
    /// Returns the numbers of the audio chunks.
    fn camera(&mut self, ms: Range<u64>, gop: u64) -> Vec<u64> {
        let mut sound = Vec::new();
        for ms in ms {
            if ms % 33 == 0 {
                let flags = if (ms / 33) % gop == 0 { "kse" } else { "se" };
                self.chunk(ms, VIDEO, ms / 33, flags, 500);
            }
            if ms % 20 == 0 {
                sound.push(self.chunk(ms, AUDIO, ms / 20, "se", 172));
            }
            self.log.trim(self.at(ms), |_| {});
        }
        sound
    }

    fn track(&self, number: u64) -> TrackId {
        self.log.get(number).expect("the log has it").chunk().track
    }

    /// The chunks that a UDP client is sent, by number.
    fn datagrams(&mut self, player: &mut Player, ms: u64) -> Vec<u64> {
        let now = self.at(ms);
        let next = || Some(player.next_chunk(&mut self.log, AGE, now)?.0);
        let number = |chunk: Rc<Datagrams>| u64::from_be_bytes(chunk.bytes()[4..12].try_into().expect("8 bytes"));
        std::iter::from_fn(next).map(number).collect()
    }

    fn player(&self, ms: u64) -> Player {
        Player::new(&self.description, &[(VIDEO, (0, 1)), (AUDIO, (2, 3))], &self.log, self.at(ms))
    }

    /// One operation's chunks, by number.
    fn fill(&mut self, player: &mut Player, ms: u64) -> Vec<u64> {
        let mut pieces = Vec::new();
        let mut arrivals: Vec<Instant> = Vec::new();
        let now = self.at(ms);
        player.fill(&mut self.log, AGE, now, 0, &mut pieces, &mut arrivals);
        assert_eq!(pieces.len(), arrivals.len());
        pieces.iter().map(|p| u64::from_be_bytes(p.as_slice()[4..12].try_into().expect("8 bytes"))).collect()
    }
}

#[test]
fn a_new_client_begins_on_the_last_keyframe_or_waits_for_the_next() {
    let mut bed = Bed::new();
    bed.chunk(0, VIDEO, 0, "kse", 100);
    bed.chunk(33, VIDEO, 1, "se", 100);
    let mut cached = bed.player(40);
    cached.start_cached(&bed.log, bed.at(40));
    let mut live = bed.player(40);
    assert_eq!(bed.fill(&mut cached, 40), [0, 1]);
    assert_eq!(bed.fill(&mut live, 40), [0u64; 0]);
    bed.chunk(66, VIDEO, 2, "se", 100);
    let audio = bed.chunk(67, AUDIO, 0, "se", 10);
    let key = bed.chunk(99, VIDEO, 3, "kse", 100);
    assert_eq!(bed.fill(&mut live, 100), [audio, key], "audio flows while video waits for its keyframe");
}

#[test]
fn a_lagging_client_finishes_its_frame_and_skips_to_the_newest_keyframe() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    let first = bed.chunk(0, VIDEO, 0, "ks", 100);
    assert_eq!(bed.fill(&mut player, 1), [first]);
    let rest = bed.chunk(5, VIDEO, 0, "e", 100);
    for frame in 1..40 {
        bed.chunk(frame * 33, VIDEO, frame, if frame % 15 == 0 { "kse" } else { "se" }, 100);
    }
    let got = bed.fill(&mut player, 1400);
    assert_eq!(got[0], rest, "the frame begun is finished");
    assert_eq!(got[1], 31, "then comes the newest keyframe, frame 30");
    assert_eq!(got.len(), 11);
    let notes = player.take_notes();
    assert_eq!(notes, Notes { skips: 1, lagging_frames: 29, log_bytes_frames: 0 });
}

#[test]
fn a_skip_of_video_keeps_the_sound() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.chunk(0, VIDEO, 0, "kse", 100);
    bed.chunk(1, AUDIO, 0, "se", 10);
    assert_eq!(bed.fill(&mut player, 1), [0, 1]);
    let mut sound = Vec::new();
    for frame in 1..60 {
        bed.chunk(frame * 33, VIDEO, frame, "se", 100);
        sound.push(bed.chunk(frame * 33 + 1, AUDIO, frame, "se", 10));
    }
    assert_eq!(bed.fill(&mut player, 2000), sound, "all of it while the video waits for a keyframe");
    let notes = player.take_notes();
    assert_eq!((notes.skips, notes.lagging_frames), (1, 0), "the video's are counted when it goes on");
    let key = bed.chunk(2_010, VIDEO, 60, "kse", 100);
    let next = bed.chunk(2_011, AUDIO, 60, "se", 10);
    assert_eq!(bed.fill(&mut player, 2_011), [key, next]);
    assert_eq!(player.take_notes().lagging_frames, 59);
}

#[test]
fn a_skip_keeps_the_sound_since_a_cached_start_of_long_ago() {
    let mut bed = Bed::new();
    bed.camera(0..4_800, 1_000);
    let mut player = bed.player(4_800);
    player.start_cached(&bed.log, bed.at(4_800));
    player.set_op_bytes_max(10_000);
    let begun = bed.fill(&mut player, 4_800).len() as u64;
    player.set_op_bytes_max(OP_BYTES_MAX);
    let sound = bed.camera(4_800..7_500, 1_000);
    let got = bed.fill(&mut player, 7_500);
    let (first, last) = (got[0], *got.last().expect("there is sound"));
    assert!(first < begun + 2, "it goes on where it was, and not with {first} after {begun}");
    assert_eq!(last, *sound.last().expect("there is sound"));
    let count = |numbers: &[u64]| numbers.iter().filter(|number| (first..=last).contains(number)).count();
    assert_eq!(got.len(), count(&(0..bed.number).filter(|n| bed.track(*n) == AUDIO).collect::<Vec<_>>()));
    assert_eq!(player.take_notes(), Notes { skips: 1, ..Notes::default() });
}

#[test]
fn who_waits_for_a_keyframe_gets_all_the_sound_however_late() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.camera(0..1_000, 1_000);
    bed.fill(&mut player, 1_000);
    let sound = bed.camera(1_000..2_500, 1_000);
    assert_eq!(bed.fill(&mut player, 2_500), sound);
    assert_eq!(player.take_notes().skips, 1);
    // That operation waited behind the video that was already in flight.
    let sound = bed.camera(2_500..5_500, 1_000);
    assert_eq!(bed.fill(&mut player, 5_500), sound);
    assert_eq!(player.take_notes(), Notes::default(), "nothing more was left out");
}

#[test]
fn the_sound_that_the_log_has_moved_on_from_is_kept() {
    for udp in [false, true] {
        let mut bed = Bed::new();
        let mut player = bed.player(0);
        bed.camera(0..4_000, 150);
        let send = |bed: &mut Bed, player: &mut Player, ms| {
            if udp { bed.datagrams(player, ms) } else { bed.fill(player, ms) }
        };
        send(&mut bed, &mut player, 4_000);
        player.take_notes();
        let cursor = bed.number;
        let sound = bed.camera(4_000..7_000, 150);
        assert!(bed.log.first() > cursor, "the keyframe of 4.95 s has taken the place of what was before");
        let got = send(&mut bed, &mut player, 7_000);
        let (got_sound, got_video): (Vec<u64>, Vec<u64>) = got.into_iter().partition(|n| sound.contains(n));
        assert_eq!(got_sound, sound);
        assert_eq!(Some(got_video[0]), bed.log.newest_keyframe(VIDEO));
        assert_eq!(got_video.len(), 7_000 / 33 - 149);
        assert_eq!(player.take_notes().skips, 1);
    }
}

#[test]
fn of_much_or_old_sound_a_skip_keeps_the_newest() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.camera(0..100, 1_000);
    bed.fill(&mut player, 100);
    let sound = bed.camera(100..15_000, 1_000);
    let kept = bed.fill(&mut player, 15_000);
    assert_eq!(kept, sound[sound.len() - 50 * SKIP_KEPT_S as usize..]);
    assert_eq!(player.take_notes().lagging_frames as usize, sound.len() - kept.len());
    let much: Vec<u64> = (750..1_050).map(|frame| bed.chunk(frame * 20, AUDIO, frame, "se", 996)).collect();
    assert_eq!(bed.fill(&mut player, 21_000), much[much.len() - SKIP_KEPT_BYTES_MAX / 1_000..]);
    assert_eq!(player.take_notes().skips, 1);
    // The log itself keeps no more of what precedes the last keyframe.
    bed.chunk(22_000, VIDEO, 700, "kse", 100);
    bed.log.trim(bed.at(23_500), |_| {});
    assert!(bed.log.bytes() <= SKIP_KEPT_BYTES_MAX + 104);
}

#[test]
fn who_gets_sound_alone_skips_to_now() {
    let mut bed = Bed::new();
    let mut player = Player::new(&bed.description, &[(AUDIO, (2, 3))], &bed.log, bed.epoch);
    bed.camera(0..100, 30);
    assert_eq!(bed.fill(&mut player, 100).len(), 5);
    bed.camera(100..2_000, 30);
    assert_eq!(bed.fill(&mut player, 2_000), [0u64; 0]);
    let next = bed.camera(2_000..2_100, 30);
    assert_eq!(bed.fill(&mut player, 2_100), next);
    assert_eq!(player.take_notes(), Notes { skips: 1, lagging_frames: 95, log_bytes_frames: 0 });
    // Nor is audio sent that the log keeps for others.
    bed.camera(2_100..6_000, 30);
    assert_eq!(bed.fill(&mut player, 6_000), [0u64; 0]);
}

#[test]
fn a_skip_keeps_less_of_what_is_neither_video_nor_sound() {
    let mut bed = Bed::new();
    let mut player = Player::new(&bed.description, &[(VIDEO, (0, 1)), (DATA, (4, 5))], &bed.log, bed.epoch);
    bed.chunk(0, VIDEO, 0, "kse", 100);
    bed.fill(&mut player, 0);
    let data: Vec<u64> = (0..50).map(|frame| bed.chunk(frame * 40, DATA, frame, "se", 996)).collect();
    assert_eq!(bed.fill(&mut player, 2_000), data[data.len() - SKIP_KEPT_DATA_BYTES_MAX / 1_000..]);
}

#[test]
fn video_that_is_passed_over_ends_no_operation() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.camera(0..1_000, 1_000);
    bed.fill(&mut player, 1_000);
    player.set_op_bytes_max(1_000);
    let sound = bed.camera(1_000..2_500, 1_000);
    assert_eq!(bed.fill(&mut player, 2_500), sound[..5], "as many as fit");
}

#[test]
fn what_the_log_lets_go_of_a_frame_begun_is_pinned() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    let first = bed.chunk(0, VIDEO, 0, "ks", 100);
    assert_eq!(bed.fill(&mut player, 1), [first]);
    let middle = bed.chunk(5, VIDEO, 0, "", 100);
    let end = bed.chunk(6, VIDEO, 0, "e", 100);
    let key = bed.chunk(3000, VIDEO, 1, "kse", 100);
    bed.log.trim(bed.epoch + Duration::from_millis(3000), |mut entry| {
        let chunk = Arc::clone(entry.chunk());
        player.pin(&chunk, |channel| entry.piece(channel));
    });
    assert_eq!(bed.log.first(), key);
    assert_eq!(bed.fill(&mut player, 3001), [middle, end, key]);
}

#[test]
fn without_a_newer_keyframe_the_client_waits_at_the_head_and_audio_flows() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    let key = bed.chunk(0, VIDEO, 0, "kse", 100);
    assert_eq!(bed.fill(&mut player, 0), [key]);
    for frame in 1..60 {
        bed.chunk(frame * 33, VIDEO, frame, "se", 100);
    }
    assert_eq!(bed.fill(&mut player, 2000), [0u64; 0]);
    let audio = bed.chunk(2001, AUDIO, 0, "se", 10);
    bed.chunk(2002, VIDEO, 60, "se", 100);
    let key = bed.chunk(2030, VIDEO, 61, "kse", 100);
    assert_eq!(bed.fill(&mut player, 2030), [audio, key]);
    assert_eq!(player.take_notes().lagging_frames, 60);
}

#[test]
fn who_waits_is_not_behind_for_what_the_log_has_dropped() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.chunk(0, VIDEO, 0, "se", 100);
    assert!(player.is_behind(&bed.log));
    let now = bed.at(10_000);
    bed.log.trim(now, drop);
    // Only a skip moves the cursor of a client that waits for a keyframe.
    assert_eq!(bed.fill(&mut player, 10_000), [0u64; 0]);
    assert!(!player.is_behind(&bed.log), "it would never be sent the reports of an outage");
    let keyframe = bed.chunk(10_000, VIDEO, 1, "kse", 100);
    assert!(player.is_behind(&bed.log));
    assert_eq!(bed.fill(&mut player, 10_000), [keyframe]);
}

#[test]
fn a_frame_whose_start_the_log_has_lost_is_never_begun() {
    let mut bed = Bed::new();
    // The size of two of them.
    let cost = bed.log.cost();
    bed.chunk(0, VIDEO, 0, "ks", 100);
    let room = (bed.log.cost() - cost) * 5 / 2;
    bed.number = 0;
    bed.log = Log::new(AGE, room, 1);
    let mut player = bed.player(0);
    bed.chunk(0, VIDEO, 0, "ks", 100);
    bed.chunk(1, VIDEO, 0, "", 100);
    bed.chunk(2, VIDEO, 0, "e", 100);
    bed.log.trim(bed.epoch + Duration::from_millis(2), |_| {});
    assert!(!bed.log.cached_start());
    assert_eq!(bed.fill(&mut player, 3), [0u64; 0]);
    let key = bed.chunk(33, VIDEO, 1, "kse", 100);
    assert!(bed.log.cached_start());
    assert_eq!(bed.fill(&mut player, 33), [key]);
}

#[test]
fn a_video_track_that_has_stopped_does_not_have_the_other_kept_for_ever() {
    let mut bed = Bed::new();
    bed.log = Log::new(AGE, 32 << 20, 1);
    let stopped = TrackId(2);
    bed.chunk(0, stopped, 0, "kse", 100);
    bed.chunk(0, VIDEO, 0, "kse", 100);
    let mut most = 0;
    for frame in 1..1_000 {
        bed.chunk(frame * 33, VIDEO, frame, if frame % 30 == 0 { "kse" } else { "se" }, 100);
        bed.log.trim(bed.at(frame * 33), |_| {});
        most = most.max(bed.log.bytes());
    }
    assert!(most < 11 * 30 * 110, "{most} bytes: more than ten seconds of them");
    assert!(bed.log.bytes() < 3 * 30 * 110, "{} bytes", bed.log.bytes());
    assert_eq!((bed.log.newest_keyframe(stopped), bed.log.newest_keyframe(VIDEO)), (None, Some(991)));
}

#[test]
fn an_operation_is_bounded_in_bytes_and_cut_at_chunks() {
    let mut bed = Bed::new();
    bed.log = Log::new(AGE, 32 << 20, 1);
    let mut player = bed.player(0);
    for frame in 0..10 {
        bed.chunk(frame, VIDEO, frame, if frame == 0 { "kse" } else { "se" }, 60_000);
    }
    assert_eq!(bed.fill(&mut player, 10), [0, 1]);
    assert_eq!(bed.fill(&mut player, 10), [2, 3]);
}

#[test]
fn a_lag_is_counted_from_the_start_on_a_keyframe() {
    let mut bed = Bed::new();
    bed.chunk(0, VIDEO, 0, "kse", 100);
    for frame in 1..150 {
        bed.chunk(frame * 33, VIDEO, frame, "se", 100);
    }
    let mut player = bed.player(5000);
    player.start_cached(&bed.log, bed.at(5000));
    assert_eq!(player.lag(&bed.log, bed.at(5000)), Duration::ZERO);
    assert_eq!(bed.fill(&mut player, 5900).len(), 150, "an old cached start is no lag");
}

#[test]
fn a_finished_player_sends_the_rest_of_its_frame_and_nothing_else() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    bed.chunk(0, VIDEO, 0, "ks", 100);
    assert_eq!(bed.fill(&mut player, 1), [0]);
    let rest = bed.chunk(2, VIDEO, 0, "e", 100);
    bed.chunk(33, VIDEO, 1, "kse", 100);
    player.finish(&mut bed.log);
    assert!(player.is_behind(&bed.log));
    assert_eq!(bed.fill(&mut player, 34), [rest]);
    bed.chunk(66, VIDEO, 2, "se", 100);
    assert_eq!(bed.fill(&mut player, 67), [0u64; 0]);
}

#[test]
fn the_first_packet_that_is_announced_is_the_first_one_sent() {
    let mut bed = Bed::new();
    bed.chunk(0, VIDEO, 0, "kse", 100);
    bed.chunk(10, AUDIO, 0, "se", 10);
    let key = bed.chunk(33, VIDEO, 1, "kse", 100);
    let audio = bed.chunk(40, AUDIO, 1, "se", 10);
    let mut player = bed.player(50);
    player.start_cached(&bed.log, bed.at(50));
    assert_eq!(player.first_chunk(&bed.log, VIDEO).map(|chunk| chunk.number), Some(key));
    assert_eq!(player.first_chunk(&bed.log, AUDIO).map(|chunk| chunk.number), Some(audio));
}
