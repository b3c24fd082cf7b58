//! Malformed or unusual packets.

use super::{Terms, Variant, WHOLE, play};
use crate::harness::machine::beside_others;
use crate::harness::scripted::{Kind, Outgoing, Piece, Script};
use std::time::Duration;

/// A packet of `bytes` that begins like this and is otherwise meaningless.
fn rtcp(begin: &[u8], bytes: usize) -> Vec<u8> {
    let mut packet = begin.to_vec();
    packet.extend((0..bytes - begin.len()).map(|at| at as u8 + 1));
    packet
}

/// Sends these on the RTCP path, besides valid packets.
fn with_rtcp(bad: Vec<Vec<u8>>) -> Script {
    Script::default().packets(move |packet| {
        let mut pieces = packet.whole();
        if packet.rtcp {
            // Everything is valid except its length.
            let mut longer = packet.bytes[..28].to_vec();
            longer[3] = 12;
            pieces.push(Piece::Report(longer));
        } else if packet.count % 7 == 3 {
            pieces.push(Piece::Report(bad[packet.count as usize / 7 % bad.len()].clone()));
        }
        pieces
    })
}

/// RTCP that is shorter than its length field, or empty.
pub(super) fn row_2() -> Vec<Variant> {
    vec![("r2", with_rtcp(vec![rtcp(&[0x81, 202, 0, 9], 12), Vec::new()]))]
}

/// RTCP that is cut off, or is 3 bytes long. ffmpeg gives up at the first, and does not find the next packet after the other.
fn row_2_beyond_ffmpeg() -> Vec<Variant> {
    let halves = [rtcp(&[0x80, 200, 0, 6], 12), rtcp(&[0x81, 201, 0, 7], 9)];
    vec![("r2-half", with_rtcp(halves.to_vec())), ("r2-three", with_rtcp(vec![rtcp(&[0x80, 201, 0], 3)]))]
}

/// A new SSRC with each keyframe; the sequence numbers continue.
pub(super) fn row_8() -> Vec<Variant> {
    let mut ssrc = 1;
    let script = Script::default().packets(move |packet| {
        if packet.kind == Kind::Video {
            if packet.key && packet.first && !packet.rtcp {
                ssrc = fastrand::u32(1..);
            }
            packet.set_ssrc(ssrc);
        }
        packet.whole()
    });
    vec![("r8", script)]
}

/// The payload type of a format that was not set up.
const FOREIGN_TYPE: u8 = 107;

/// Packets of another type with their own SSRC on the video channel.
pub(super) fn row_11() -> Vec<Variant> {
    let mut foreign = 7u16;
    let script = Script::default().packets(move |packet| {
        let mut pieces = packet.whole();
        if !packet.rtcp && packet.kind == Kind::Video && packet.count % 5 == 2 {
            foreign += 1;
            let mut other = vec![0x80, FOREIGN_TYPE];
            other.extend(foreign.to_be_bytes());
            other.extend([0, 0, 0, 9, 0xFE, 0xED, 0xBE, 0xEF, b'm', b'e', b't', b'a']);
            pieces.push(Piece::Packet(other));
        }
        pieces
    });
    vec![("r11", script)]
}

/// The interval between two cuts.
const CUT_EVERY: u64 = 37;

/// Half of a frame's first packet instead of all of it, at intervals.
fn half() -> impl FnMut(&mut Outgoing) -> Vec<Piece> + Send {
    |packet: &mut Outgoing| {
        let hit =
            packet.kind == Kind::Video && !packet.rtcp && packet.first && packet.frame % CUT_EVERY == CUT_EVERY - 1;
        if hit { vec![Piece::Raw(packet.framed()[..packet.bytes.len() / 2].to_vec())] } else { packet.whole() }
    }
}

/// 37 meaningless bytes between two frames, at intervals; with or without a `$` among them.
fn rubbish(with_dollar: bool) -> impl FnMut(&mut Outgoing) -> Vec<Piece> + Send {
    move |packet: &mut Outgoing| {
        let mut pieces = packet.whole();
        if packet.kind == Kind::Video && !packet.rtcp && packet.first && packet.frame % CUT_EVERY == CUT_EVERY - 1 {
            let mut bytes: Vec<u8> =
                (0..37u8).map(|at| at.wrapping_mul(29) ^ 0x83).map(|it| if it == b'$' { 1 } else { it }).collect();
            if with_dollar {
                // A channel that was not set up, and one that was, followed by something else.
                bytes[5..10].copy_from_slice(&[b'$', 77, 0, 9, 0x80]);
                bytes[20..25].copy_from_slice(&[b'$', 0, 3, 9, 0x11]);
            }
            pieces.insert(0, Piece::Raw(bytes));
        }
        pieces
    }
}

/// Half packets and random bytes in the connection. ffmpeg continues after a while: it looks for a `$` after a line feed, and uses the
/// first one.
pub(super) fn row_17() -> Vec<Variant> {
    vec![
        ("r17-half", Script::default().packets(half())),
        ("r17-rubbish", Script::default().packets(rubbish(false))),
        ("r17-dollar", Script::default().packets(rubbish(true))),
    ]
}

/// The same from a camera that serves one connection at a time, and is free 1 s after its end.
pub(super) fn row_18() -> Vec<Variant> {
    let alone = || Script { one_at_a_time: Some(Duration::from_secs(1)), ..Script::default() };
    vec![("r18-half", alone().packets(half())), ("r18-rubbish", alone().packets(rubbish(false)))]
}

/// The sequence numbers restart at 0 while everything else continues.
pub(super) fn row_19() -> Vec<Variant> {
    let mut again = None;
    let script = Script { first_seq: Some(31_000), ..Script::default() }.packets(move |packet| {
        if packet.kind == Kind::Video && !packet.rtcp && packet.frame >= 50 {
            let from = *again.get_or_insert(packet.seq());
            packet.set_seq(packet.seq().wrapping_sub(from));
        }
        packet.whole()
    });
    vec![("r19", script)]
}

/// Duplicate packets, and packets in swapped order.
pub(super) fn doubled_and_swapped() -> Vec<Variant> {
    let doubled = Script::default().packets(|packet| {
        let times = if !packet.rtcp && packet.count % 11 == 5 { 2 } else { 1 };
        (0..times).flat_map(|_| packet.whole()).collect()
    });
    let mut held = None;
    let swapped = Script::default().packets(move |packet| {
        if packet.rtcp || packet.kind == Kind::Audio {
            return packet.whole();
        }
        // Not across the end of a frame: that would delay a frame until the next one.
        if packet.count % 11 == 5 && !packet.last {
            held = Some(packet.bytes.clone());
            return Vec::new();
        }
        packet.whole().into_iter().chain(held.take().map(Piece::Packet)).collect()
    });
    vec![("doubled", doubled), ("swapped", swapped)]
}

/// What a cut may cost: the frame with the cut, and the frame that the reader took for the rest.
const CUT: Terms = Terms { lost_max: 2 * (FRAMES_OF_CUTS / CUT_EVERY as usize), frames: FRAMES_OF_CUTS - 10, ..WHOLE };
const FRAMES_OF_CUTS: usize = 4 * CUT_EVERY as usize;

#[test]
fn row_2_rtcp_that_cannot_be_read_is_dropped_and_counted() {
    let _turn = beside_others();
    let played = play(row_2().into_iter().chain(row_2_beyond_ffmpeg()).collect(), WHOLE);
    for name in &played.names {
        assert!(played.dropped(name) >= 10.0, "{name}: {} counted", played.dropped(name));
    }
}

#[test]
fn row_8_another_ssrc_with_each_keyframe_is_no_break() {
    let _turn = beside_others();
    play(row_8(), WHOLE);
}

#[test]
fn row_11_packets_of_another_type_are_passed_over_and_counted() {
    let _turn = beside_others();
    let played = play(row_11(), WHOLE);
    let counted = played.metric("rtsprelay_source_packets_dropped_total", "stream=\"r11\",reason=\"payload_type\"");
    assert!(counted >= 20.0, "{counted} counted");
}

#[test]
fn row_17_the_next_frame_is_found_behind_half_a_frame() {
    let _turn = beside_others();
    let played = play(row_17().drain(..1).collect(), CUT);
    let lost = played.metric("rtsprelay_source_packets_lost_total", "stream=\"r17-half\"");
    assert!(lost >= 3.0, "{lost} counted");
}

#[test]
fn row_17_the_next_frame_is_found_behind_rubbish() {
    let _turn = beside_others();
    play(row_17().drain(1..).collect(), WHOLE);
}

#[test]
fn row_18_a_camera_with_room_for_one_is_not_connected_anew() {
    let _turn = beside_others();
    let played = play(row_18(), CUT);
    for camera in &played.cameras {
        assert_eq!(camera.record().opened.len(), 1);
    }
}

#[test]
fn row_19_sequence_numbers_may_begin_again() {
    let _turn = beside_others();
    play(row_19(), WHOLE);
}

#[test]
fn packets_that_are_doubled_or_swapped_over_tcp_arrive_once_and_in_order() {
    let _turn = beside_others();
    play(doubled_and_swapped(), WHOLE);
}
