//! Real players decode on through upgrades, without a picture that is missing or broken.

use crate::harness::machine::beside_others;
use crate::harness::program::Program;
use crate::harness::{DEADLINE, wait_until};
use crate::players::{
    DEMO, PATIENCE, assert_ffmpeg_decoded, assert_gstreamer_decoded, assert_opencv_decoded, ffmpeg_command,
    gstreamer_command, opencv_command,
};
use crate::upgrade::{STREAMS, Upgraded, serving};

/// Frames that each receives: half a minute, in which all of them have started and two upgrades are done.
const FRAMES: usize = 900;

#[test]
fn real_players_decode_on_through_two_upgrades() {
    let _turn = beside_others();
    let relay = Upgraded::start(STREAMS);
    serving(&relay, "/pattern");
    let url = relay.relay.url("/pattern");
    let play = |count: usize| wait_until("they play", DEADLINE, || relay.count(" started playing ") == count);
    // These take long to start.
    let [opencv, gstreamer, gstreamer_udp] =
        [opencv_command(&url, FRAMES), gstreamer_command(&url, "tcp", FRAMES), gstreamer_command(&url, "udp", FRAMES)]
            .map(Program::start);
    play(3);
    let [ffmpeg, ffmpeg_udp] = ["tcp", "udp"].map(|transport| Program::start(ffmpeg_command(&url, transport, FRAMES)));
    play(5);
    for _ in 0..2 {
        relay.upgrade();
    }
    assert_eq!(relay.count(" stopped playing "), 0, "a player had its frames before the upgrades were done");
    let [ffmpeg, ffmpeg_udp, gstreamer, gstreamer_udp, opencv] = [ffmpeg, ffmpeg_udp, gstreamer, gstreamer_udp, opencv]
        .map(|player| player.finish(PATIENCE).expect_silent_success());
    [ffmpeg, ffmpeg_udp].iter().for_each(|finished| assert_ffmpeg_decoded(finished, FRAMES));
    [gstreamer, gstreamer_udp].iter().for_each(|finished| assert_gstreamer_decoded(finished, DEMO, FRAMES));
    assert_opencv_decoded(&opencv, DEMO, FRAMES);
    assert_eq!(relay.count(" started playing "), 5, "a player has connected again");
}
