//! WebSocket framing (RFC 6455): what a server sends, and what it reads from browsers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::escape::beginning;
use crate::limits::WEBSOCKET_MESSAGE_BYTES_MAX;

/// The GUID that RFC 6455 section 1.3 appends to the client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Maximum size of a server's frame header.
pub const HEADER_BYTES_MAX: usize = 10;

/// The frame types (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Text in UTF-8.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// The sender will send nothing more.
    Close = 8,
    /// To be answered with a pong.
    Ping = 9,
    /// The answer to a ping.
    Pong = 10,
}

/// Close codes (RFC 6455 section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    /// Normal closure.
    Normal = 1000,
    /// The server stops.
    GoingAway = 1001,
    /// The peer violated the protocol.
    Protocol = 1002,
    /// The peer has no right to what it requested.
    Policy = 1008,
    /// A message is too large.
    TooLarge = 1009,
    /// What was requested is not available now; try again later.
    TryAgain = 1013,
}

/// The value of `Sec-WebSocket-Accept` for a client's key (RFC 6455 section 4.2.2).
pub fn accept(key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID.as_bytes());
    STANDARD.encode(hash.finish())
}

/// Whether a value is a valid `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455 section 4.1).
pub fn is_key(value: &str) -> bool {
    STANDARD.decode(value).is_ok_and(|bytes| bytes.len() == 16)
}

/// Appends the header of an unmasked, final frame with a payload of `len` bytes.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, len: usize) {
    out.push(0x80 | opcode as u8);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// A whole unmasked frame.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES_MAX + payload.len());
    write_header(&mut out, opcode, payload.len());
    out.extend_from_slice(payload);
    out
}

/// A close frame; `reason` is truncated to what fits into a control frame.
pub fn close(code: CloseCode, reason: &str) -> Vec<u8> {
    let mut payload = Vec::from((code as u16).to_be_bytes());
    payload.extend_from_slice(beginning(reason, 123).as_bytes());
    frame(Opcode::Close, &payload)
}

/// A message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A whole text message.
    Text(String),
    /// A whole binary message.
    Binary(Vec<u8>),
    /// A ping, to be answered with the same bytes.
    Ping(Vec<u8>),
    /// The answer to a ping.
    Pong,
    /// It will send nothing more, and expects a close frame.
    Close,
}

/// Why the client's data is not valid WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A client's frames are masked (RFC 6455 section 5.1).
    #[error("a WebSocket frame without a mask")]
    Unmasked,
    /// A reserved bit, an unknown opcode, or a control frame that is fragmented or has more than 125 bytes.
    #[error("an invalid WebSocket frame")]
    Header,
    /// A continuation without a start, or a new message within another.
    #[error("WebSocket frames out of order")]
    Order,
    /// A message of more than [`WEBSOCKET_MESSAGE_BYTES_MAX`] bytes.
    #[error("a WebSocket message of over {WEBSOCKET_MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
    /// A text that is not UTF-8.
    #[error("a WebSocket text message that is not UTF-8")]
    Text,
}

impl Fault {
    /// The close code for the client.
    pub fn code(self) -> CloseCode {
        match self {
            Fault::TooLarge => CloseCode::TooLarge,
            _ => CloseCode::Protocol,
        }
    }
}

/// Parses a client's frames, however they are split. Serialized, it is what it has been fed and has not returned.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Decoder {
    #[serde(with = "crate::wire::saved_bytes")]
    unread: Vec<u8>,
    /// A message whose last frame has not arrived.
    begun: Option<(bool, Vec<u8>)>,
}

impl Decoder {
    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next message; `None` if it is incomplete.
    ///
    /// # Errors
    /// A [`Fault`], after which the connection is unusable.
    pub fn next_message(&mut self) -> Result<Option<Message>, Fault> {
        loop {
            let Some((first, payload)) = self.next_frame()? else { return Ok(None) };
            let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
            match opcode {
                8 => return Ok(Some(Message::Close)),
                9 => return Ok(Some(Message::Ping(payload))),
                10 => return Ok(Some(Message::Pong)),
                0 => {
                    let (_, begun) = self.begun.as_mut().ok_or(Fault::Order)?;
                    if begun.len() + payload.len() > WEBSOCKET_MESSAGE_BYTES_MAX {
                        return Err(Fault::TooLarge);
                    }
                    begun.extend_from_slice(&payload);
                }
                _ if self.begun.is_some() => return Err(Fault::Order),
                _ => self.begun = Some((opcode == 1, payload)),
            }
            if let (true, Some((is_text, bytes))) = (last, self.begun.take_if(|_| last)) {
                return match is_text {
                    true => String::from_utf8(bytes).map(|text| Some(Message::Text(text))).map_err(|_| Fault::Text),
                    false => Ok(Some(Message::Binary(bytes))),
                };
            }
        }
    }

    /// The first byte of the next complete frame, and its unmasked payload.
    fn next_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, Fault> {
        let [first, second, rest @ ..] = &self.unread[..] else { return Ok(None) };
        let (first, short) = (*first, second & 0x7f);
        let is_control = first & 0x08 != 0;
        if first & 0x70 != 0
            || !matches!(first & 0x0f, 0..=2 | 8..=10)
            || (is_control && (first & 0x80 == 0 || short > 125))
        {
            return Err(Fault::Header);
        }
        if second & 0x80 == 0 {
            return Err(Fault::Unmasked);
        }
        let (len, header) = match short {
            127 => return Err(Fault::TooLarge),
            126 => match rest {
                [high, low, ..] => (usize::from(u16::from_be_bytes([*high, *low])), 4),
                _ => return Ok(None),
            },
            short => (usize::from(short), 2),
        };
        if len > WEBSOCKET_MESSAGE_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        let Some(masked) = self.unread.get(header + 4..header + 4 + len) else { return Ok(None) };
        let mask = &self.unread[header..header + 4];
        let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        self.unread.drain(..header + 4 + len);
        Ok(Some((first, payload)))
    }
}

/// A client's frame: its first byte, and a payload of up to 64 KiB with a mask.
#[cfg(test)]
pub(super) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Message>, Fault> {
        let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
        decoder.feed(bytes);
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn the_key_of_the_standard_gets_the_answer_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ==") && !is_key("short") && !is_key(""));
    }

    #[test]
    fn messages_come_out_however_they_are_cut() {
        let long = vec![b'x'; 300];
        let mut bytes = masked(0x81, b"hello");
        bytes.extend(masked(0x01, b"in "));
        bytes.extend(masked(0x89, b"ping"));
        bytes.extend(masked(0x80, b"pieces"));
        bytes.extend(masked(0x82, &long));
        bytes.extend(masked(0x88, &[]));
        let all = vec![
            Message::Text("hello".into()),
            Message::Ping(b"ping".to_vec()),
            Message::Text("in pieces".into()),
            Message::Binary(long),
            Message::Close,
        ];
        assert_eq!(read(&bytes), Ok(all.clone()));
        for at in 0..bytes.len() {
            let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
            for piece in [&bytes[..at], &bytes[at..]] {
                decoder.feed(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, all, "cut at {at}");
        }
    }

    #[test]
    fn what_no_browser_sends_is_refused() {
        assert_eq!(read(&frame(Opcode::Text, b"no mask")), Err(Fault::Unmasked));
        assert_eq!(read(&masked(0x80, b"goes on with nothing")), Err(Fault::Order));
        let twice = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
        assert_eq!(read(&twice), Err(Fault::Order));
        assert_eq!(read(&masked(0xc1, b"compressed")), Err(Fault::Header));
        assert_eq!(read(&masked(0x09, b"a ping in pieces")), Err(Fault::Header));
        assert_eq!(read(&masked(0x81, &[0xff])), Err(Fault::Text));
        assert_eq!(read(&masked(0x81, &vec![b'x'; WEBSOCKET_MESSAGE_BYTES_MAX + 1])), Err(Fault::TooLarge));
        assert_eq!(read(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]), Err(Fault::TooLarge));
    }

    #[test]
    fn headers_tell_lengths_of_every_size() {
        for (len, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            write_header(&mut out, Opcode::Binary, len);
            assert_eq!(out, expected);
        }
        assert_eq!(close(CloseCode::Normal, "end"), [0x88, 5, 0x03, 0xe8, b'e', b'n', b'd']);
        assert!(close(CloseCode::Normal, &"ä".repeat(100)).len() <= 127);
    }
}
