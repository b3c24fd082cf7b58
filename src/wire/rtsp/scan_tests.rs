use super::*;
use crate::wire::interleaved::frame;
use crate::wire::rtp::Header;

/// What a scanner found, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    Request(String),
    Frame(u8, Vec<u8>),
    Torn(usize),
    Rubbish(usize),
}

fn scanner() -> Scanner {
    let mut scanner = Scanner::default();
    scanner.assign(0, Channel::Rtp(None));
    scanner.assign(1, Channel::Rtcp);
    scanner
}

/// Feeds `bytes` in pieces of `step`; consecutive bytes of rubbish are added up.
fn seen(bytes: &[u8], step: usize) -> Vec<Seen> {
    let mut scanner = scanner();
    let mut out: Vec<Seen> = Vec::new();
    for mut input in bytes.chunks(step) {
        while let Some(piece) = scanner.next(&mut input).expect("RTSP") {
            let seen = match piece {
                Piece::Answer(answer) => Seen::Answer(answer.status, answer.headers, answer.body.to_vec()),
                Piece::Request(request) => Seen::Request(request.method),
                Piece::Frame { channel, packet } => Seen::Frame(channel, packet.to_vec()),
                Piece::Torn(bytes) => Seen::Torn(bytes),
                Piece::Rubbish(bytes) => Seen::Rubbish(bytes),
            };
            match (out.last_mut(), seen) {
                (Some(Seen::Rubbish(before)), Seen::Rubbish(more)) => *before += more,
                (_, seen) => out.push(seen),
            }
        }
        assert!(input.is_empty());
    }
    out
}

fn packet(seq: u16, payload: usize) -> Vec<u8> {
    let mut packet = Header::write(false, 96, seq, 1_000, 0x1234_5678).to_vec();
    // It contains every byte with which a frame or a message can start.
    packet.extend((0..payload).map(|at| (at % 251) as u8));
    packet
}

const ANSWER: &[u8] = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 3\r\n\r\nabc";

fn answer() -> Seen {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Seen::Answer(200, vec![header("CSeq", "1"), header("Content-Length", "3")], b"abc".to_vec())
}

#[test]
fn pieces_are_the_same_however_they_are_cut() {
    let mut bytes = ANSWER.to_vec();
    bytes.extend(frame(0, &packet(1, 300)));
    bytes.extend(b"X-OWN_WAY * RTSP/1.0\r\nCSeq: 9\r\n\r\n");
    bytes.extend(frame(1, &[0x80, 200, 0, 1, 0, 0, 0, 0]));
    bytes.extend(frame(7, b"nobody set it up"));
    bytes.extend(b"\r\n");
    bytes.extend(frame(0, &packet(2, 0)));
    let whole = seen(&bytes, bytes.len());
    assert_eq!(whole.len(), 6);
    assert_eq!((&whole[0], &whole[2]), (&answer(), &Seen::Request("X-OWN_WAY".to_owned())));
    assert_eq!(whole[5], Seen::Frame(0, packet(2, 0)));
    for step in 1..bytes.len() {
        assert_eq!(seen(&bytes, step), whole, "in pieces of {step}");
    }
}

#[test]
fn heads_are_read_as_cameras_write_them() {
    for (text, headers) in [
        // QUIRKS: a folded line of one space, lines that end in LF alone, no length and no body.
        ("RTSP/1.0 200 OK\r\nCSeq: 4\r\n \r\nSession: 7\r\n\r\n", vec![("CSeq", "4"), ("Session", "7")]),
        ("RTSP/1.0 401 Unauthorized\nCSeq: 2\n\n", vec![("CSeq", "2")]),
        (
            "RTSP/1.0 200 OK\r\nTransport: a;\r\n\tb\r\nnonsense\r\nX :  y \r\n\r\n",
            vec![("Transport", "a; b"), ("X", "y")],
        ),
        // What would end a line, if it were sent back, ends none here.
        ("RTSP/1.0 200 OK\r\nSession: 1\rX: y\r\n\r\n", vec![("Session", "1 X: y")]),
        ("RTSP/1.0 200\r\nContent-Length: what\r\n\r\n", vec![("Content-Length", "what")]),
    ] {
        let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for step in [1, 7, text.len()] {
            let mut bytes = text.as_bytes().to_vec();
            bytes.extend(frame(0, &packet(1, 4)));
            let got = seen(&bytes, step);
            assert!(matches!(&got[0], Seen::Answer(_, have, body) if *have == headers && body.is_empty()), "{got:?}");
            assert_eq!(got[1..], [Seen::Frame(0, packet(1, 4))], "{text:?}");
        }
    }
}

#[test]
fn a_frame_cut_short_by_the_next_one_is_lost_alone() {
    let mut bytes = ANSWER.to_vec();
    bytes.extend(frame(0, &packet(1, 900)));
    let torn = frame(0, &packet(2, 900));
    bytes.extend(&torn[..torn.len() / 2]);
    for seq in 3..9 {
        bytes.extend(frame(0, &packet(seq, 900)));
    }
    let mut expected = vec![answer(), Seen::Frame(0, packet(1, 900)), Seen::Torn(torn.len() / 2)];
    expected.extend((3..9).map(|seq| Seen::Frame(0, packet(seq, 900))));
    assert_eq!(seen(&bytes, bytes.len()), expected);
}

#[test]
fn rubbish_between_two_frames_costs_neither() {
    let rubbish: Vec<u8> = b"$\x09rubbish that is no frame $\x00\x01 RTSP/".to_vec();
    let mut bytes = ANSWER.to_vec();
    let mut expected = vec![answer()];
    for seq in 1..5 {
        bytes.extend(frame(0, &packet(seq, 500)));
        bytes.extend(&rubbish);
        expected.extend([Seen::Frame(0, packet(seq, 500)), Seen::Rubbish(rubbish.len())]);
    }
    bytes.extend(frame(0, &packet(5, 500)));
    expected.push(Seen::Frame(0, packet(5, 500)));
    assert_eq!(seen(&bytes, bytes.len()), expected);
}

#[test]
fn what_is_no_rtsp_is_shown_and_what_never_ends_is_given_up() {
    let mut input: &[u8] = b"HTTP/1.0 200 OK\r\n\r\n";
    assert_eq!(Scanner::default().next(&mut input), Err(NotRtsp::Foreign("HTTP/1.0 200 OK".to_owned())));
    let mut scanner = Scanner::default();
    let endless = [b"RTSP/1.0 200 OK\r\nX: ".to_vec(), vec![b'x'; CAMERA_HEAD_BYTES_MAX + 1]].concat();
    assert_eq!(scanner.next(&mut &endless[..]), Err(NotRtsp::TooLarge));
    let mut large: &[u8] = b"RTSP/1.0 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n";
    assert_eq!(Scanner::default().next(&mut large), Err(NotRtsp::TooLarge));
}

#[test]
fn nothing_is_kept_of_whole_pieces() {
    let mut scanner = scanner();
    let bytes = [ANSWER.to_vec(), frame(0, &packet(1, 60_000))].concat();
    for mut input in bytes.chunks(1_000) {
        while scanner.next(&mut input).expect("RTSP").is_some() {}
    }
    assert_eq!((scanner.pending(), scanner.carry.capacity()), (0, 0));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_taken(data in proptest::collection::vec(0u8.., 0..600), step in 1u8..) {
        let mut bytes = vec![step];
        bytes.extend(b"RTSP/1.0 200 OK\r\n\r\n");
        bytes.extend(data);
        fuzz(&bytes);
    }
}
