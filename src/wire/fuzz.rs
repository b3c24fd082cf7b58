//! Bodies of fuzz targets: each takes any bytes and panics where a promise is broken.
#![allow(missing_docs)]

use bytes::Bytes;

use super::auth::{self, Algorithm, Authorization};
use super::rtsp::{Decoder, Invalid, Message};
use super::{interleaved, proxy_protocol, rtcp, rtp, transport, websocket};
use crate::limits::{PACKET_BYTES_MAX, PROXY_HEADER_BYTES_MAX};

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

/// A PROXY protocol header is read to its end and no further, says one address at most, and says the same whatever follows it.
pub fn proxy_headers(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk() else { return };
    let Ok(head) = proxy_protocol::Head::parse(head) else { return };
    assert!(data.starts_with(&proxy_protocol::SIGNATURE));
    assert!(proxy_protocol::HEAD_BYTES + head.rest_bytes() <= PROXY_HEADER_BYTES_MAX);
    let Some(whole) = rest.get(..head.rest_bytes()) else {
        // The reader waits for the rest; incomplete data must break nothing.
        head.client(rest);
        return;
    };
    let client = head.client(whole);
    assert_eq!(client, head.client(rest));
    let is_proxied = data[12] & 0xF == 1 && data[13] != 0;
    assert_eq!(client.is_some(), is_proxied, "a whole header that names a client gives its address");
}

/// Of headers with what the bytes say, and lengths about each bound, those are served that have room for their addresses and are no longer
/// than is read.
pub fn proxy_header_lengths(data: &[u8]) {
    let [version_command, family, fields @ ..] = data else { return };
    let least = match (version_command & 0xF, family) {
        (0, _) | (1, 0) => Some(0),
        (1, 0x11) => Some(12),
        (1, 0x21) => Some(36),
        _ => None,
    };
    let longest = PROXY_HEADER_BYTES_MAX - proxy_protocol::HEAD_BYTES;
    for about in [0, 12, 36, longest, usize::from(u16::MAX) - 1] {
        for len in about.saturating_sub(1)..=about + 1 {
            let mut head = [0; proxy_protocol::HEAD_BYTES];
            head[..12].copy_from_slice(&proxy_protocol::SIGNATURE);
            head[12..14].copy_from_slice(&[*version_command, *family]);
            head[14..].copy_from_slice(&(len as u16).to_be_bytes());
            let parsed = proxy_protocol::Head::parse(&head);
            let is_served = version_command >> 4 == 2 && len <= longest && least.is_some_and(|least| len >= least);
            assert_eq!(parsed.is_ok(), is_served, "{head:?}");
            let Ok(head) = parsed else { continue };
            assert_eq!(head.rest_bytes(), len);
            let rest: Vec<u8> = fields.iter().copied().chain([0]).cycle().take(len).collect();
            assert_eq!(head.client(&rest).is_some(), least != Some(0), "{head:?}");
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

/// RTP and RTCP: the parts found are within the packet.
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
    super::challenge::fuzz(bytes);
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

/// The same messages and the same fault come out of a client's WebSocket frames whatever pieces the bytes come in.
pub fn websocket(data: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let (mut decoder, mut messages) = (websocket::Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(fault) => return (messages, Some(fault)),
                }
            }
        }
        (messages, None)
    };
    let whole = read(&[data]);
    for at in 0..data.len().min(CUTS_BYTES_MAX) {
        assert_eq!(read(&[&data[..at], &data[at..]]), whole, "cut at {at}");
    }
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(read(&bytes), whole);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::wire::websocket::masked;

    fn read(bytes: &[u8]) {
        super::packets(bytes);
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
        fn websocket_frames_may_be_anything(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::websocket(&bytes);
        }

        #[test]
        fn websocket_frames_may_look_right(
            frames in proptest::collection::vec((0usize..8, proptest::collection::vec(any::<u8>(), 0..200)), 0..6),
        ) {
            // Texts and bytes, whole and in pieces, and what stands between pieces; a text of ASCII is UTF-8.
            const FIRST: [u8; 8] = [0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x88];
            let ascii = |payload: &[u8]| payload.iter().map(|byte| byte & 0x7f).collect::<Vec<_>>();
            let bytes: Vec<u8> = frames.iter().flat_map(|(at, payload)| masked(FIRST[*at], &ascii(payload))).collect();
            super::websocket(&bytes);
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
    }
}
