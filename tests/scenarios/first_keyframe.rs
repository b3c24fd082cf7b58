//! A new client gets a picture at once or, if so configured, starts at the next keyframe.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::camera::Camera;
use crate::harness::machine::{alone, beside_others};
use crate::harness::program::Program;
use crate::harness::relay::Relay;
use crate::harness::rtsp::{Client, Packet};
use crate::harness::{DEADLINE, h264, servers};

const JOINS: usize = 50;

/// Joins once. Returns the time from PLAY to the last packet of the first frame, and that frame's packets.
fn join(relay: &Relay) -> (Duration, Vec<Packet>) {
    let mut client = Client::connect(relay.address());
    let described = client.describe(&relay.url("/")).expect(200);
    let tracks = crate::harness::rtsp::tracks(&described);
    let video = tracks.iter().position(|t| t.media == "video").unwrap();
    for (number, track) in (0u8..).zip(&tracks) {
        client.setup(track, number * 2, number * 2 + 1).expect(200);
    }
    let asked = Instant::now();
    let played = client.play(described.header("Content-Base").unwrap()).expect(200);
    let frame = client.frame_on(video as u8 * 2);
    let (_, seq, rtp_time) = played.rtp_info()[video].clone();
    assert_eq!((frame[0].seq(), frame[0].rtp_time()), (seq, rtp_time), "RTP-Info is that of the first packet");
    (frame.last().unwrap().at - asked, frame)
}

fn assert_decodes(frame: &[Packet]) {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-xerror", "-f", "h264", "-i", "-", "-f", "null", "-progress", "-", "-"]);
    command.stdin(Stdio::piped());
    let mut program = Program::start_fed(command);
    program.stdin().unwrap().write_all(&h264::annex_b(frame)).unwrap();
    let finished = program.finish(DEADLINE).expect_silent_success();
    assert!(finished.stdout.lines().any(|line| line.trim() == "frame=1"), "{finished:#?}");
}

fn fifty_joins(relay: &Relay) {
    // Another program may occupy the processor for a while, but hardly three times in a row.
    let in_time = (0..3).any(|_| median_of_joins(relay) < Duration::from_millis(50));
    assert!(in_time, "the median is over 50 ms each time");
}

/// Joins many times. Returns the median of the times from PLAY to the first whole keyframe.
fn median_of_joins(relay: &Relay) -> Duration {
    let mut times: Vec<Duration> = Vec::new();
    for number in 0..JOINS {
        // The random time is part of the measurement, not a wait for a condition.
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..400)));
        let (time, frame) = join(relay);
        assert!(h264::is_complete_keyframe(&frame), "join {number} begins with {:?}", h264::types(&frame));
        if number % 10 == 0 {
            assert_decodes(&frame);
        }
        times.push(time);
    }
    times.sort();
    let median = times[JOINS / 2];
    eprintln!("first keyframe complete after PLAY: median {median:?}, worst {:?}", times[JOINS - 1]);
    median
}

#[test]
fn is_there_at_once_with_a_keyframe_a_second() {
    let _turn = alone();
    fifty_joins(&servers::relayed(&["x264"]));
}

#[test]
fn is_there_at_once_with_a_keyframe_every_five_seconds() {
    let _turn = alone();
    fifty_joins(&servers::relayed(&["x264", "--gop", "150"]));
}

#[test]
fn comes_from_the_log_with_all_that_followed_it() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::connecting_to(&camera.url());
    camera.wait_playing();
    camera.keyframe(5_000);
    camera.delta_frame(3_000);
    camera.delta_frame(100);
    let relay = relay.serving("/");
    relay.has_sent("/", 3);
    let (_, first) = join(&relay);
    assert!(h264::is_complete_keyframe(&first));

    let mut client = Client::connect(relay.address());
    client.play_everything(&relay.url("/"));
    let frames = [client.frame_on(0), client.frame_on(0), client.frame_on(0)];
    assert!(h264::is_complete_keyframe(&frames[0]));
    assert_eq!(h264::types(&frames[1]), [1]);
    assert_eq!(h264::types(&frames[2]), [1]);
    camera.delta_frame(200);
    let next = client.frame_on(0);
    assert_eq!(next[0].seq(), frames[2].last().unwrap().seq().wrapping_add(1));
}

#[test]
fn is_the_next_one_with_start_live() {
    let _turn = beside_others();
    let camera = Camera::start();
    let relay = Relay::configured(&format!(
        "listen = [\"127.0.0.1:0\"]\n\n[[stream]]\nname = \"cam\"\nsource = \"{}\"\nstart = \"live\"\n",
        camera.url()
    ));
    camera.wait_playing();
    let relay = relay.serving("/cam");
    let mut before = Client::connect(relay.address());
    before.play_everything(&relay.url("/cam"));
    camera.keyframe(5_000);
    camera.delta_frame(100);
    before.frame_on(0);
    before.frame_on(0);
    let mut client = Client::connect(relay.address());
    let (_, played) = client.play_everything(&relay.url("/cam"));
    assert_eq!(played.rtp_info().len(), 2);
    // Neither frames from the log nor a frame that needs others.
    camera.delta_frame(100);
    camera.keyframe(4_000);
    camera.delta_frame(150);
    let frame = client.frame_on(0);
    assert!(h264::is_complete_keyframe(&frame));
    assert_eq!(frame.len(), 2 + 4_000usize.div_ceil(1_400), "it is the second keyframe");
    assert_eq!(h264::types(&client.frame_on(0)), [1]);
}
