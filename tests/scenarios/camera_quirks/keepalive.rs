//! What cameras accept as a keepalive.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{HEAD, Played, Terms, Variant, Viewer, play, stream};
use crate::harness::machine::beside_others;
use crate::harness::relay::Relay;
use crate::harness::scripted::auth::Login;
use crate::harness::scripted::{Camera, Kind, Report, Script, SentPacket, Sign};
use crate::harness::{DEADLINE, wait_until};

/// Methods that keep a session alive.
const KINDS: [&str; 3] = ["OPTIONS", "GET_PARAMETER", "SET_PARAMETER"];

/// The packet type of a receiver report.
const RECEIVER_REPORT: u8 = 201;

fn is_receiver_report(sign: &Sign) -> bool {
    matches!(sign, Sign::Report([_, RECEIVER_REPORT, ..]))
}

/// A nonce that expires before the session does.
pub(super) fn row_9() -> Vec<Variant> {
    let login = Login { nonce_lifetime: Some(Duration::from_secs(2)), ..Login::digest() };
    let authorized = |sign: &Sign| matches!(sign, Sign::Request(request) if request.authorized);
    vec![("r9", Script::default().for_user(login).lives_by(4, authorized))]
}

/// Never answers requests during playback.
pub(super) fn row_12() -> Vec<Variant> {
    let script = Script { session_timeout_s: 2, ..Script::default() };
    vec![("r12", script.answers(|request, reply| reply.silent = request.playing))]
}

/// Answers the keep-alive with 400 and the previous request's number.
pub(super) fn row_13() -> Vec<Variant> {
    let script = Script { session_timeout_s: 2, ..Script::default() }.answers(|request, reply| {
        if request.playing && KINDS.contains(&request.method.as_str()) {
            let number: u32 = request.header("CSeq").and_then(|number| number.parse().ok()).unwrap_or(1);
            reply.refuse(400, "Bad Request");
            reply.set("CSeq", (number - 1).to_string());
        }
    });
    vec![("r13", script)]
}

/// Accepts only receiver reports as a sign of life.
fn row_14() -> Script {
    Script::default().lives_by(8, is_receiver_report)
}

/// Accepts only GET_PARAMETER, and does not list it in `Public`.
fn row_15() -> Script {
    let script = Script::default().answers(|request, reply| {
        if request.method == "OPTIONS" {
            reply.set("Public", "OPTIONS, DESCRIBE, SETUP, TEARDOWN, PLAY");
        }
    });
    script.lives_by(3, |sign| matches!(sign, Sign::Request(request) if request.method == "GET_PARAMETER"))
}

/// The methods that kept a camera alive in its latest session.
fn kinds(camera: &Camera) -> BTreeSet<String> {
    let record = camera.record();
    let newest = record.requests.iter().map(|request| request.connection).max();
    let playing = record.requests.iter().filter(|request| request.playing && Some(request.connection) == newest);
    playing.map(|request| request.method.clone()).filter(|method| KINDS.contains(&method.as_str())).collect()
}

fn assert_not_closed(played: &Played) {
    for (name, camera) in played.names.iter().zip(&played.cameras) {
        assert_eq!(camera.record().closed, Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn row_9_a_keepalive_is_authenticated_anew_with_the_new_nonce() {
    let _turn = beside_others();
    let played = play(row_9(), Terms::lasting(10));
    assert_not_closed(&played);
    assert_eq!(played.cameras[0].wrong_passwords(), 0);
}

#[test]
fn row_12_media_that_flow_are_life_enough() {
    let _turn = beside_others();
    play(row_12(), Terms::lasting(8));
}

#[test]
fn row_13_when_a_keepalive_is_refused_the_next_kind_is_tried() {
    let _turn = beside_others();
    let played = play(row_13(), Terms::lasting(8));
    let kinds = kinds(&played.cameras[0]);
    assert!(kinds.len() >= 2, "{kinds:?} alone");
}

#[test]
fn row_14_receiver_reports_are_sent_over_tcp() {
    let _turn = beside_others();
    assert_not_closed(&play(vec![("r14-tcp", row_14())], Terms::lasting(18)));
}

#[test]
fn row_14_receiver_reports_are_sent_over_udp() {
    let _turn = beside_others();
    let terms = Terms { more: "transport = \"udp\"", ..Terms::lasting(18) };
    assert_not_closed(&play(vec![("r14-udp", row_14())], terms));
}

#[test]
fn row_15_both_kinds_are_sent_when_the_session_was_closed_after_one_timeout() {
    let _turn = beside_others();
    let script = row_15();
    let camera = Camera::start(script.clone());
    let relay = Relay::configured(&format!("{HEAD}{}", stream("r15", &camera, &script, "")));
    // The first session may end, or even the second: there may be other reasons.
    wait_until("it is kept alive by GET_PARAMETER", DEADLINE, || kinds(&camera).contains("GET_PARAMETER"));
    let sessions = camera.count("PLAY");
    assert!(sessions <= 3, "{sessions} sessions");
    let viewer = Viewer::start(&relay, "r15").unwrap();
    viewer.gets(9 * 50, DEADLINE).unwrap();
    assert_eq!(camera.count("PLAY"), sessions);
    let faults = viewer.finish().faults(&camera, 0);
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn keepalives_come_by_what_the_camera_offers_and_within_its_timeout() {
    let _turn = beside_others();
    let offering = |public: &'static str, sign: &'static str| {
        let script = Script::default().answers(move |request, reply| {
            if request.method == "OPTIONS" {
                reply.set("Public", public);
            }
        });
        script.lives_by(4, move |it| matches!(it, Sign::Request(request) if request.method == sign && request.playing))
    };
    let cameras = vec![
        ("get", offering("OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER", "GET_PARAMETER")),
        ("get-small", offering("options,describe,setup,play,teardown,get_parameter", "GET_PARAMETER")),
        ("set", offering("OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, SET_PARAMETER", "SET_PARAMETER")),
        ("options", offering("OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN", "OPTIONS")),
    ];
    assert_not_closed(&play(cameras, Terms::lasting(10)));
}

/// One report block of a receiver report (RFC 3550 section 6.4.1).
#[derive(Debug)]
struct Block {
    ssrc: u32,
    lost: u32,
    highest: u32,
}

/// The report blocks in a compound packet.
fn blocks(report: &Report) -> Vec<Block> {
    let mut found = Vec::new();
    let mut rest = report.bytes.as_slice();
    while rest.len() >= 8 {
        let len = 4 + 4 * usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        assert!(len <= rest.len() && rest[0] >> 6 == 2, "malformed RTCP: {report:?}");
        let (packet, after) = rest.split_at(len);
        if packet[1] == RECEIVER_REPORT {
            let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            let block = |it: &[u8]| Block {
                ssrc: word(&it[..4]),
                lost: word(&it[4..8]) & 0xFF_FFFF,
                highest: word(&it[8..12]),
            };
            found.extend(packet[8..].chunks_exact(24).take(usize::from(packet[0] & 0x1F)).map(block));
        }
        rest = after;
    }
    found
}

/// A correct block: the highest number is that of a packet that was sent, and the packets before it that never arrived are counted as lost.
fn assert_right(block: &Block, sent: &[SentPacket]) {
    let of_track: Vec<_> = sent.iter().filter(|packet| packet.ssrc == block.ssrc).collect();
    let highest = of_track.iter().find(|packet| packet.extended_seq == block.highest);
    assert!(highest.is_some_and(|packet| !packet.left_out), "{block:?}: no such packet was sent");
    let first = of_track.iter().position(|packet| !packet.left_out).unwrap();
    let before = of_track[first..].iter().filter(|packet| packet.extended_seq < block.highest);
    assert_eq!(block.lost as usize, before.filter(|packet| packet.left_out).count(), "{block:?}");
}

#[test]
fn receiver_reports_say_which_packet_is_the_highest_and_how_many_are_lost() {
    let _turn = beside_others();
    let mut config = HEAD.to_owned();
    let cameras = ["tcp", "udp"].map(|transport| {
        // The sequence numbers wrap soon.
        let script = Script { first_seq: Some(65_400), ..Script::default() }.packets(|packet| {
            let lost = packet.kind == Kind::Video && !packet.rtcp && packet.count % 40 == 39;
            if lost { Vec::new() } else { packet.whole() }
        });
        let camera = Camera::start(script.clone());
        config += &stream(transport, &camera, &script, &format!("transport = \"{transport}\""));
        camera
    });
    let _relay = Relay::configured(&config);
    for camera in &cameras {
        let of = |kind| {
            let record = camera.record();
            let reports = record.reports.iter().filter(|report| report.kind == kind);
            reports.flat_map(blocks).collect::<Vec<_>>()
        };
        wait_until("reports of both tracks after the turn", DEADLINE, || {
            let turned = |kind| of(kind).iter().filter(|block| block.highest > 0xFFFF).count();
            turned(Kind::Video) >= 2 && turned(Kind::Audio) >= 1
        });
        for kind in [Kind::Video, Kind::Audio] {
            let blocks = of(kind);
            let sent: Vec<_> = camera.record().packets.iter().filter(|packet| packet.kind == kind).copied().collect();
            for block in &blocks {
                assert_right(block, &sent);
            }
        }
        assert!(of(Kind::Video).last().unwrap().lost > 0);
    }
}
