//! Cameras that send requests themselves.

use std::time::Duration;

use super::{Variant, WHOLE, play};
use crate::harness::machine::beside_others;
use crate::harness::scripted::{Camera, Kind, Outgoing, Piece, Script};

/// How long they wait for a response.
const PATIENT: Option<Duration> = Some(Duration::from_secs(2));

/// The number of a camera's first request; higher than any of the relay's own.
const FIRST: usize = 1_000;

/// Sends the requests in `methods`, in turn, between frames.
fn asking(methods: &'static [&'static str]) -> impl FnMut(&mut Outgoing) -> Vec<Piece> + Send {
    let mut asked = 0;
    move |packet: &mut Outgoing| {
        let mut pieces = packet.whole();
        let within = packet.kind == Kind::Video && !packet.rtcp && packet.first && !packet.last;
        if within && packet.frame % 10 == 5 {
            let method = methods[asked % methods.len()];
            pieces.push(Piece::Ask(format!("{method} * RTSP/1.0\r\nCSeq: {}\r\n\r\n", FIRST + asked)));
            asked += 1;
        }
        pieces
    }
}

/// `OPTIONS *` while it plays, or before it answers SETUP.
pub(super) fn row_7() -> Vec<Variant> {
    let while_playing = Script { patience: PATIENT, ..Script::default() }.packets(asking(&["OPTIONS"]));
    let before_setup = Script { patience: PATIENT, ..Script::default() }.answers(|request, reply| {
        if request.method == "SETUP" {
            reply.ask = Some(format!("OPTIONS * RTSP/1.0\r\nCSeq: {FIRST}\r\n\r\n"));
        }
    });
    vec![("r7-playing", while_playing), ("r7-setup", before_setup)]
}

/// The numbers of its requests and the responses, in order.
fn answered(camera: &Camera) -> Vec<(usize, u16)> {
    let record = camera.record();
    let number = |head: &str| {
        let line = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("cseq:").map(str::to_owned));
        line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
    };
    let status = |head: &str| head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    record.answers.iter().map(|head| (number(head), status(head))).collect()
}

#[test]
fn row_7_a_cameras_options_are_answered_and_no_packet_is_lost() {
    let _turn = beside_others();
    let played = play(row_7(), WHOLE);
    let answers = answered(&played.cameras[0]);
    let expected: Vec<_> = (0..answers.len()).map(|at| (FIRST + at, 200)).collect();
    assert!(answers.len() >= 10 && answers == expected, "{answers:?}");
    let answers = answered(&played.cameras[1]);
    assert_eq!(answers, [(FIRST, 200), (FIRST, 200)]);
}

#[test]
fn what_a_camera_asks_is_answered_with_200_or_with_501_if_nobody_knows_it() {
    let _turn = beside_others();
    let script = Script { patience: PATIENT, ..Script::default() };
    let script = script.packets(asking(&["OPTIONS", "GET_PARAMETER", "FLUSH", "X-WHAT_IS_THIS"]));
    let played = play(vec![("asking", script)], WHOLE);
    let answers = answered(&played.cameras[0]);
    assert!(answers.len() >= 8, "{answers:?}");
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, (FIRST + at, if at % 4 < 2 { 200 } else { 501 }), "{answers:?}");
    }
}
