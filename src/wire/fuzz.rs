//! Bodies of fuzz targets: each takes any bytes and panics where a promise is broken.
#![allow(missing_docs)]

use std::time::Instant;

use bytes::Bytes;

use super::auth::{self, Algorithm, Authorization};
use super::rtsp::{Decoder, Invalid, Message};
use super::{interleaved, rtcp, rtp, sdp, transport};
use crate::limits::PACKET_BYTES_MAX;
use crate::stream::{Description, Track};

/// Input up to which every place is tried to cut it in two.
const CUTS_BYTES_MAX: usize = 100;

fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Message>, Option<Invalid>, u64) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    let mut fed = 0;
    for piece in pieces {
        decoder.feed(piece);
        fed += piece.len() as u64;
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(invalid) => {
                    assert!(invalid.offset <= fed);
                    assert_eq!(decoder.next_message(), Err(invalid.clone()));
                    return (messages, Some(invalid), decoder.consumed());
                }
            }
        }
    }
    assert_eq!(decoder.consumed() + decoder.pending() as u64, fed);
    (messages, None, decoder.consumed())
}

/// The same messages and the same fault come out whatever pieces the bytes come in.
pub fn decode(bytes: &[u8], step: usize) {
    assert_eq!(decode_pieces([bytes]), decode_pieces(bytes.chunks(step.max(1))));
}

/// [`decode`] in pieces of as many bytes as the first byte says; and wherever a short input is cut in two.
pub fn requests(data: &[u8]) {
    let Some((step, bytes)) = data.split_first() else { return };
    decode(bytes, usize::from(*step) + 1);
    if bytes.len() <= CUTS_BYTES_MAX {
        let whole = decode_pieces([bytes]);
        for cut in 1..bytes.len() {
            assert_eq!(decode_pieces([&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
    }
}

/// Frames between requests are all found, in any pieces, and an unfinished one at the end is waited for.
pub fn frames(data: &[u8]) {
    const REQUEST: &[u8] = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";
    let [step, missing, rest @ ..] = data else { return };
    let mut rest = rest;
    let (mut bytes, mut written) = (Vec::new(), Vec::new());
    while let [kind, channel, len, tail @ ..] = rest {
        let body;
        (body, rest) = tail.split_at(usize::from(*len).min(tail.len()));
        if kind % 4 == 0 {
            bytes.extend_from_slice(REQUEST);
            written.push(None);
            continue;
        }
        // Now and then one of tens of kilobytes.
        let packet = body.repeat(if *kind == 255 { PACKET_BYTES_MAX / body.len().max(1) } else { 1 });
        let frame = interleaved::frame(*channel, &packet);
        assert_eq!(interleaved::parse(&frame), Some((*channel, packet.len())));
        assert_eq!(interleaved::parse(&frame[..3]), None);
        bytes.extend_from_slice(&frame);
        written.push(Some((*channel, Bytes::from(packet))));
    }
    let missing = usize::from(*missing) % 4;
    if missing > 0 && !bytes.is_empty() {
        // The shortest message has four bytes.
        bytes.truncate(bytes.len() - missing);
        written.pop();
    }
    let (messages, invalid, _) = decode_pieces(bytes.chunks(usize::from(*step) + 1));
    assert_eq!((invalid, messages.len()), (None, written.len()));
    for (message, written) in messages.into_iter().zip(written) {
        match (message, written) {
            (Message::Request(request), None) => assert_eq!(request.raw, REQUEST),
            (Message::Frame { channel, packet }, Some(written)) => assert_eq!((channel, packet), written),
            other => panic!("{other:?}"),
        }
    }
}

/// RTP and RTCP: what is told lies within the packet.
pub fn packets(bytes: &[u8]) {
    if let Ok(header) = rtp::Header::parse(bytes) {
        assert!(header.payload.start >= rtp::HEADER_BYTES);
        assert!(header.payload.start <= header.payload.end && header.payload.end <= bytes.len());
        assert!(header.extension.is_none_or(|(_, content)| content.end == header.payload.start));
        let written =
            rtp::Header::write(header.marker, header.payload_type, header.sequence, header.timestamp, header.ssrc);
        assert_eq!(written[1..], bytes[1..rtp::HEADER_BYTES]);
    }
    assert!(rtcp::parse(bytes).count() <= bytes.len() / 4 + 1);
}

/// A camera's description is read whatever is wrong with it, and nothing in it makes a line of its own in ours.
pub fn descriptions(bytes: &[u8]) {
    let medias = sdp::media_attributes(bytes);
    assert!(medias.len() <= bytes.len() / 2);
    let clock = (Instant::now(), 0);
    let mut tracks = Vec::new();
    for media in medias {
        assert!(media.attributes.iter().all(|attribute| sdp::may_pass(attribute)));
        assert!(media.payload_type.is_none_or(|number| number < 128));
        let Some(rtpmap) = media.rtpmap else { continue };
        assert!(media.payload_type.is_some() && rtpmap.clock_rate > 0 && !rtpmap.encoding.is_empty());
        tracks.push(Track {
            media: media.media,
            encoding: rtpmap.encoding,
            payload_type: media.payload_type.unwrap_or_default(),
            clock_rate: rtpmap.clock_rate,
            channels: rtpmap.channels,
            fmtp: media.fmtp,
            attributes: media.attributes,
            ssrc: 1,
            first_seq: 1,
            clock,
        });
    }
    let name = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]);
    let written = sdp::describe(&name, &Description { tracks: tracks.clone() }, false);
    let known = ["v=", "o=", "s=", "c=", "t=", "a=", "m="];
    assert!(written.split("\r\n").all(|line| line.is_empty() || known.iter().any(|kind| line.starts_with(kind))));
    assert!(!written.replace("\r\n", "").contains(['\r', '\n']));
    let read = sdp::media_attributes(written.as_bytes());
    assert_eq!(read.len(), tracks.len(), "{written}");
    for (index, (read, track)) in read.iter().zip(&tracks).enumerate() {
        assert_eq!(read.control.as_deref(), Some(format!("{}{index}", sdp::TRACK_PREFIX).as_str()));
        assert_eq!(read.payload_type, Some(track.payload_type));
        assert_eq!(read.attributes.len(), track.attributes.len());
    }
}

/// A client's transports are read, or passed over.
pub fn transports(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let specs = transport::parse(&text);
    assert!(specs.len() <= text.split(',').count());
    for spec in specs {
        assert!(spec.client_port.is_none_or(|(rtp, rtcp)| rtp != 0 && rtcp != 0));
        assert!(spec.lower != Some(transport::Lower::Udp) || spec.interleaved.is_none() || spec.client_port.is_some());
        if let Some(client_port) = spec.client_port {
            let protocol = &spec.protocol;
            let answer = transport::Answer::Udp { protocol, client_port, server_port: (1, 2), ssrc: 3 }.to_string();
            let read = transport::parse(&answer);
            assert!(
                read.iter().any(|read| read.client_port == Some(client_port)) || protocol.contains('"'),
                "{answer}"
            );
        }
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

    fn read(bytes: &[u8]) {
        super::packets(bytes);
        super::descriptions(bytes);
        super::transports(bytes);
        super::frames(bytes);
    }

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
            read(&bytes);
        }

        #[test]
        fn readers_take_what_looks_right(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..200),
            kind in 200u8..205,
            words in 0u8..20,
        ) {
            bytes[0] = 0x80 | bytes[0] & 0x3f;
            read(&bytes);
            (bytes[1], bytes[2], bytes[3]) = (kind, 0, words);
            read(&bytes);
        }

        #[test]
        fn descriptions_that_look_right_are_read(text in "(m=[a-z]{1,5} 0 RTP/AVP (96|0|8)\r\n(a=(rtpmap:96 [A-Z0-9]{1,4}/[0-9]{1,5}|fmtp:96 [a-z=;\u{1}]{0,5}|[a-z]{1,4}:[ -~]{0,9}|control:[a-z/]{0,5})\r?\n){0,5}){0,3}") {
            super::descriptions(text.as_bytes());
        }
    }
}
