use proptest::prelude::*;

use super::*;
use crate::limits::{REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX, REQUEST_HEADERS_MAX};

fn all(bytes: &[u8], step: usize) -> (Vec<Message>, Option<Invalid>) {
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => out.push(message),
                Ok(None) => break,
                Err(invalid) => return (out, Some(invalid)),
            }
        }
    }
    (out, None)
}

fn request(bytes: &[u8]) -> Request {
    match all(bytes, bytes.len()) {
        (mut messages, None) if messages.len() == 1 => match messages.remove(0) {
            Message::Request(request) => request,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn fault(bytes: &[u8]) -> (Fault, u64) {
    let (_, invalid) = all(bytes, bytes.len());
    // A byte at a time it is the same, at the same place.
    assert_eq!(all(bytes, 1).1, invalid, "{:?}", String::from_utf8_lossy(bytes));
    let invalid = invalid.unwrap_or_else(|| panic!("{:?} passes", String::from_utf8_lossy(bytes)));
    (invalid.fault, invalid.offset)
}

#[test]
fn a_request_is_read_with_its_headers_and_body() {
    let got = request(b"SET_PARAMETER rtsp://h/x RTSP/1.0\r\ncseq: 7 \r\nContent-length:3\r\nX-A:\r\n b\r\n\t c\r\nREQUIRE: a\r\nRequire:b\r\n\r\nabc");
    assert_eq!((got.method.as_str(), got.url.as_str(), got.version_1_0), ("SET_PARAMETER", "rtsp://h/x", true));
    assert_eq!((got.cseq(), got.header("x-a")), (Some("7"), Some("b c")));
    assert_eq!(got.list("require").as_deref(), Some("a,b"));
    assert_eq!(got.list("transport"), None);
    assert_eq!(&got.body[..], b"abc");
    assert!(got.raw.starts_with(b"SET_PARAMETER") && got.raw.ends_with(b"abc"));
}

#[test]
fn bare_line_feeds_empty_lines_before_and_odd_spaces_are_taken() {
    let got = request(b"\r\n\n\r\nOPTIONS  rtsp://h/a b  RTSP/1.0\nCSeq : 1\n\n");
    assert_eq!((got.url.as_str(), got.cseq()), ("rtsp://h/a b", Some("1")));
    assert!(got.raw.starts_with(b"OPTIONS"));
    assert!(!request(b"OPTIONS * RTSP/2.0\r\n\r\n").version_1_0);
}

#[test]
fn a_sequence_number_that_is_no_number_is_none() {
    for bad in ["", "x", "-1", "1 2", "123456789012345678901"] {
        let text = format!("OPTIONS * RTSP/1.0\r\nCSeq: {bad}\r\n\r\n");
        assert_eq!(request(text.as_bytes()).cseq(), None, "{bad}");
    }
}

#[test]
fn incomplete_is_not_invalid() {
    let whole = b"GET_PARAMETER * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 2\r\n\r\nab";
    for end in 0..whole.len() {
        assert_eq!(all(&whole[..end], end), (vec![], None), "{end}");
    }
    assert_eq!(all(&whole[..], 1).0.len(), 1);
    assert_eq!(all(b"$\x01\x00\x02a", 9), (vec![], None));
}

#[test]
fn frames_and_responses_between_requests_are_told_apart() {
    let bytes =
        b"$\x01\x00\x03\r\n$RTSP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n$OPTIONS * RTSP/1.0\r\n\r\n$\x00\x00\x00";
    for step in 1..bytes.len() {
        let (messages, invalid) = all(bytes, step);
        assert_eq!(invalid, None);
        assert_eq!(messages.len(), 4);
        assert_eq!(messages[0], Message::Frame { channel: 1, packet: Bytes::from_static(b"\r\n$") });
        assert_eq!(messages[1], Message::Response);
        assert!(matches!(&messages[2], Message::Request(request) if request.method == "OPTIONS"));
        assert_eq!(messages[3], Message::Frame { channel: 0, packet: Bytes::new() });
    }
}

#[test]
fn other_protocols_are_known_by_their_first_bytes() {
    assert_eq!(fault(b"\x16\x03\x01\x02\x00\x01"), (Fault::Tls, 0));
    assert_eq!(fault(b"GET / HTTP/1.1\r\nHost: x\r\n"), (Fault::Http, 0));
    assert_eq!(fault(b"SSH-2.0-OpenSSH_9\r\n"), (Fault::NotRtsp, 0));
    assert_eq!(fault(b"\x00\x01"), (Fault::NotRtsp, 0));
    assert_eq!(fault(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"), (Fault::ProxyProtocol, 4));
    assert_eq!(fault(b"\xffOPTIONS"), (Fault::NotRtsp, 0));
    assert_eq!(fault(b"AB\x00"), (Fault::NotRtsp, 2));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\n\r\n:"), (Fault::NotRtsp, 22));
}

#[test]
fn what_cannot_be_understood_names_its_place() {
    assert_eq!(fault(b"OPTIONS\r\n"), (Fault::RequestLine, 0));
    assert_eq!(fault(b"OPTIONS RTSP/1.0\r\n"), (Fault::RequestLine, 0));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\nno colon\r\n\r\n"), (Fault::HeaderLine, 20));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\n: x\r\n\r\n"), (Fault::HeaderLine, 20));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\n folded\r\n\r\n"), (Fault::HeaderLine, 20));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\nA: \x01\r\n"), (Fault::Control, 23));
    assert_eq!(fault(b"OPTIONS * RTSP/1.0\r\nA: b\rC: d\r\n"), (Fault::Control, 25));
    for bad in ["-1", "x", "", "1, 1", "0x10"] {
        let text = format!("OPTIONS * RTSP/1.0\r\nContent-Length: {bad}\r\n\r\n");
        assert_eq!(fault(text.as_bytes()), (Fault::ContentLength, 20), "{bad}");
    }
    assert_eq!(
        fault(b"OPTIONS * RTSP/1.0\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (Fault::ContentLength, 39)
    );
    for folded in ["Content-Length:\r\n 0", "Content-Length: 0\r\n\t5", "X: y\r\n Content-Length: 5"] {
        let text = format!("OPTIONS * RTSP/1.0\r\n{folded}\r\n\r\n");
        assert_eq!(fault(text.as_bytes()).0, Fault::ContentLength, "{folded:?}");
    }
    let (_, invalid) = all(b"OPTIONS * RTSP/1.0\r\nCSeq: 5\r\nno colon\r\n\r\n", 100);
    assert_eq!(invalid.unwrap().cseq.as_deref(), Some("5"));
}

#[test]
fn limits_hold_to_the_byte() {
    let mut block = b"OPTIONS * RTSP/1.0\r\nX: ".to_vec();
    block.resize(REQUEST_HEADER_BYTES_MAX - 4, b'x');
    block.extend_from_slice(b"\r\n\r\n");
    assert_eq!(request(&block).raw.len(), REQUEST_HEADER_BYTES_MAX);
    block.insert(30, b'x');
    assert_eq!(fault(&block), (Fault::HeaderTooLarge, REQUEST_HEADER_BYTES_MAX as u64));
    let with = |len: &str| format!("OPTIONS * RTSP/1.0\r\nCSeq: 3\r\nContent-Length: {len}\r\n\r\n").into_bytes();
    let mut most = with(&REQUEST_BODY_BYTES_MAX.to_string());
    most.resize(most.len() + REQUEST_BODY_BYTES_MAX, b'$');
    assert_eq!(request(&most).body.len(), REQUEST_BODY_BYTES_MAX);
    assert_eq!(fault(&with(&(REQUEST_BODY_BYTES_MAX + 1).to_string())).0, Fault::BodyTooLarge);
    assert_eq!(fault(&with("99999999999999999999999999")).0, Fault::BodyTooLarge);
}

#[test]
fn a_request_has_only_so_many_header_lines() {
    let with = |lines: usize| format!("OPTIONS * RTSP/1.0\r\nCSeq: 3\r\n{}\r\n", "a:\n".repeat(lines)).into_bytes();
    assert_eq!(request(&with(REQUEST_HEADERS_MAX - 1)).headers.len(), REQUEST_HEADERS_MAX);
    let (_, invalid) = all(&with(REQUEST_HEADERS_MAX), 100);
    let invalid = invalid.unwrap();
    assert_eq!((invalid.fault, invalid.cseq.as_deref()), (Fault::TooManyHeaders, Some("3")));
    assert!(invalid.fault.is_too_large());
}

#[test]
fn a_decoder_at_rest_keeps_no_memory() {
    let mut decoder = Decoder::new();
    decoder.feed(b"OPTIONS * RTSP/1.0\r\n\r\n");
    assert!(decoder.next_message().unwrap().is_some());
    assert_eq!((decoder.pending(), decoder.consumed()), (0, 22));
    assert_eq!(decoder.next_message(), Ok(None));
    assert_eq!(decoder.buf_capacity(), 0);
    decoder.feed(b"OPT");
    assert_eq!(decoder.next_message(), Ok(None));
    assert_eq!(&decoder.take_unread()[..], b"OPT");
    decoder.feed(b"OPTIONS * RTSP/1.0\r\n\r\n");
    assert!(decoder.next_message().unwrap().is_some());
}

#[test]
fn no_header_value_makes_a_line_of_its_own() {
    let bytes = Response::new(Status::OK, Some("1")).header("X", "a\r\nY: b").finish();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(text, format!("RTSP/1.0 200 OK\r\nCSeq: 1\r\nServer: {SERVER}\r\nX: a  Y: b\r\n\r\n"));
    let bytes = Response::new(Status(455), None).body("text/plain", Bytes::from_static(b"hey")).finish();
    assert!(bytes.ends_with(b"Content-Type: text/plain\r\nContent-Length: 3\r\n\r\nhey"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_the_same_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
        crate::wire::fuzz::decode(&bytes, step);
    }

    #[test]
    fn nearly_requests_are_the_same_in_any_pieces(
        text in "(\r\n|\n)?[A-Z]{1,8} ?[a-z:/ ]{0,6} RTSP/[12]\\.0\r?\n(([A-Za-z-]{1,9}|Content-Length|CSeq)[: ]{0,2}[0-9a-z \r\u{1}]{0,4}\r?\n){0,4}\r?\n[$a-z\r\n\u{0}\u{1}]{0,9}",
        step in 1usize..20,
    ) {
        crate::wire::fuzz::decode(text.as_bytes(), step);
    }
}
