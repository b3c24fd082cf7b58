use std::time::Instant;

use proptest::prelude::*;

use super::super::{fuzz, fuzz_publish};

fn start() -> Instant {
    Instant::now()
}

/// A typical conversation of a player, pipelined, with oddities in between. The session ids are those that the seed of
/// [`fuzz::conversation`] produces, so that sessions are really found.
fn conversation(choices: &[u8]) -> Vec<u8> {
    let events = fuzz::conversation(
        start(),
        b"SETUP rtsp://h/a/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP\r\n\r\n",
        1000,
    );
    let super::Event::Answer { bytes, .. } = &events[0] else { panic!("{events:?}") };
    let reply = super::Reply::read(bytes);
    let session = format!("Session: {}\r\n", reply.session());
    let mut out = b"SETUP rtsp://h/a/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP\r\n\r\n".to_vec();
    for (number, choice) in choices.iter().enumerate() {
        let line = match choice % 8 {
            0 => "PLAY rtsp://h/a/",
            1 => "PAUSE rtsp://h/a",
            2 => "GET_PARAMETER *",
            3 => "SETUP rtsp://h/a/trackID=1",
            4 => "DESCRIBE rtsp://h/a?x=y",
            5 if *choice == 5 => "TEARDOWN rtsp://h/a",
            6 => "FOO *",
            _ => "OPTIONS *",
        };
        let body = if *choice > 230 { "abc" } else { "" };
        out.extend_from_slice(
            format!(
                "{line} RTSP/1.0\r\nCSeq: {number}\r\n{session}Transport: RTP/AVP/TCP;interleaved={choice}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        match choice % 7 {
            0 => out.extend_from_slice(&crate::wire::interleaved::frame(1, &crate::wire::rtcp::bye(1, "x"))),
            1 => out.extend_from_slice(b"\r\n\n"),
            2 if *choice > 240 => out.extend_from_slice(b"rubbish\x01"),
            _ => {}
        }
    }
    out
}

#[test]
fn a_conversation_gives_the_same_at_every_split() {
    let bytes = conversation(&[3, 0, 2, 4, 7, 1, 6, 0, 14, 231, 5, 0]);
    let now = start();
    let whole = fuzz::conversation(now, &bytes, bytes.len());
    let answers = whole.iter().filter(|event| matches!(event, super::Event::Answer { .. })).count();
    assert_eq!(answers, 13);
    for step in 1..bytes.len() {
        assert_eq!(fuzz::conversation(now, &bytes, step), whole, "in pieces of {step}");
    }
}

#[test]
fn random_operations_reach_everything() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut seen = fuzz::Seen::new();
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..800).map(|_| random.u8(..)).collect();
        for (kind, count) in fuzz::operations(start(), &bytes) {
            *seen.entry(kind).or_default() += count;
        }
    }
    for kind in ["answer", "play", "resume", "pause", "end", "report", "move", "close"] {
        assert!(seen.get(kind).is_some_and(|count| *count >= 20), "{kind} in {seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_operations_keeps_the_books(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::operations(start(), &bytes);
    }

    #[test]
    fn conversations_are_the_same_in_any_pieces(choices in proptest::collection::vec(any::<u8>(), 0..40), step in 1usize..300) {
        fuzz::split(start(), &conversation(&choices), step);
    }

    #[test]
    fn random_bytes_are_the_same_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40) {
        fuzz::split(start(), &bytes, step);
    }

    #[test]
    fn publishers_of_all_kinds_keep_the_books(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_publish::publishers(start(), &bytes);
    }
}
