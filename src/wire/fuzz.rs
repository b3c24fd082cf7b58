//! Bodies of fuzz targets: each takes any bytes and panics where a promise is broken.
#![allow(missing_docs)]

use super::auth::{self, Algorithm, Authorization};
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

/// The readers of `Authorization` and of challenges take anything; what a client makes of a challenge is read back as it was meant.
pub fn authorization(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for value in [text.to_string(), format!("Digest {text}"), format!("Basic {text}")] {
        if let Some(Authorization::Digest(digest)) = auth::parse(&value) {
            assert_eq!(digest.response.len(), digest.algorithm.digits());
            assert_eq!(digest.expected("", "PLAY").len(), digest.algorithm.digits());
        }
        auth::answer(&value, "user", "password", "PLAY", "/");
    }
    let (name, url) = text.split_once(' ').unwrap_or(("", &text));
    assert!(auth::same_resource(url, url));
    let quotable = |text: &str| !text.contains(['"', '\\']);
    if quotable(name) && quotable(url) {
        for challenge in auth::challenges("realm", "nonce", true, false) {
            let value = auth::answer(&challenge, name, "password", "PLAY", url).expect("an answer to a challenge");
            let Some(Authorization::Digest(digest)) = auth::parse(&value) else { panic!("{value} is not read") };
            let ha1 = Algorithm::ha1(digest.algorithm, name, "realm", "password");
            assert_eq!((digest.user.as_str(), digest.uri.as_str()), (name, url));
            assert_eq!(digest.expected(&ha1, "PLAY"), digest.response);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn credentials_may_be_anything(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::authorization(&bytes);
        }

        #[test]
        fn credentials_may_look_right(text in "([a-z]{1,9}=(\"[^\"]{0,9}\"|[a-f0-9]{32}|auth)[, ]{0,2}){0,9}") {
            super::authorization(text.as_bytes());
        }

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
