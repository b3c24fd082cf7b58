//! Bodies of fuzz targets: each takes any bytes and panics where a promise is broken.
#![allow(missing_docs)]

use super::rtsp::{Decoder, Invalid, Message};
use super::{rtcp, rtp, sdp, transport};

fn decode_in_pieces(bytes: &[u8], step: usize) -> (Vec<Message>, Option<Invalid>, u64) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(invalid) => {
                    assert!(invalid.offset <= bytes.len() as u64);
                    assert_eq!(decoder.next_message(), Err(invalid.clone()));
                    return (messages, Some(invalid), decoder.consumed());
                }
            }
        }
    }
    assert_eq!(decoder.consumed() + decoder.pending() as u64, bytes.len() as u64);
    (messages, None, decoder.consumed())
}

/// The same messages and the same fault come out whatever pieces the bytes come in.
pub fn decode(bytes: &[u8], step: usize) {
    let (messages, invalid, consumed) = decode_in_pieces(bytes, bytes.len());
    let (in_pieces, invalid_in_pieces, consumed_in_pieces) = decode_in_pieces(bytes, step);
    assert_eq!(messages, in_pieces);
    assert_eq!(consumed, consumed_in_pieces);
    assert_eq!(invalid, invalid_in_pieces);
}

/// None of the other readers panics, and what they tell lies within the bytes.
pub fn read(bytes: &[u8]) {
    if let Ok(header) = rtp::Header::parse(bytes) {
        assert!(header.payload.start <= header.payload.end && header.payload.end <= bytes.len());
    }
    assert!(rtcp::parse(bytes).count() <= bytes.len() / 4 + 1);
    for media in sdp::media_attributes(bytes) {
        assert!(media.attributes.iter().all(|attribute| sdp::may_pass(attribute)));
    }
    let text = String::from_utf8_lossy(bytes);
    for spec in transport::parse(&text) {
        assert!(spec.client_port.is_none_or(|(rtp, rtcp)| rtp != 0 && rtcp != 0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn readers_take_random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::read(&bytes);
        }

        #[test]
        fn readers_take_what_looks_right(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..200),
            kind in 200u8..205,
            words in 0u8..20,
        ) {
            bytes[0] = 0x80 | bytes[0] & 0x3f;
            super::read(&bytes);
            (bytes[1], bytes[2], bytes[3]) = (kind, 0, words);
            super::read(&bytes);
        }
    }
}
