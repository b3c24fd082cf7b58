//! The cursor's rules, one by one.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::stream::Track;
use crate::stream::chunk::{Span, cut_runs};

const AGE: Duration = Duration::from_secs(1);
const VIDEO: TrackId = TrackId(0);
const AUDIO: TrackId = TrackId(1);

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
        let description = Description { tracks: vec![track("video"), track("audio")] };
        Bed { epoch, log: Log::new(AGE, 1 << 20), number: 0, description }
    }

    fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    /// Appends a chunk of `bytes` whose single packet tells its number; returns the number.
    fn chunk(&mut self, ms: u64, track: TrackId, frame: u64, flags: &str, bytes: usize) -> u64 {
        let number = self.number;
        self.number += 1;
        let mut data = vec![b'$', track.rtp_channel()];
        data.extend_from_slice(&(bytes as u16).to_be_bytes());
        data.extend_from_slice(&number.to_be_bytes());
        data.resize(4 + bytes.max(8), 0);
        let packets: Box<[Span]> = Box::new([Span { offset: 4, len: (data.len() - 4) as u16 }]);
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
            runs: cut_runs(&packets),
            packets,
        };
        self.log.append(Arc::new(chunk));
        number
    }

    fn player(&self, ms: u64) -> Player {
        Player::new(&self.description, &[(VIDEO, (0, 1)), (AUDIO, (2, 3))], &self.log, self.at(ms))
    }

    /// One operation's chunks, by their numbers.
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
fn who_lags_because_of_the_sound_alone_does_not_keep_it() {
    let mut bed = Bed::new();
    let mut player = bed.player(0);
    for frame in 0..60 {
        bed.chunk(frame * 33, AUDIO, frame, "se", 10);
    }
    assert_eq!(bed.fill(&mut player, 2_000), [0u64; 0], "it has not had a picture yet, and goes on with what is new");
    // The newest of it, if it is much.
    let key = bed.chunk(2_010, VIDEO, 0, "kse", 100);
    let next = bed.chunk(2_011, AUDIO, 60, "se", 10);
    assert_eq!(bed.fill(&mut player, 2_011), [key, next]);
    let sound: Vec<u64> = (61..161).map(|frame| bed.chunk(frame * 33 + 100, AUDIO, frame, "se", 996)).collect();
    let got = bed.fill(&mut player, 6_000);
    assert_eq!(got, sound[sound.len() - 32..]);
    assert_eq!(player.take_notes().lagging_frames, 68);
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
fn a_frame_whose_start_the_log_has_lost_is_never_begun() {
    let mut bed = Bed::new();
    bed.log = Log::new(AGE, 250);
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
    bed.log = Log::new(AGE, 32 << 20);
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
    bed.log = Log::new(AGE, 32 << 20);
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
