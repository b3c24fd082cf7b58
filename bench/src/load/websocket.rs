//! A WebSocket player: messages, each an MP4 fragment with one frame. No socket and no clock.

use rtsprelay::source::stamp;

use super::receive::{Broken, Env, Receiver};

/// Bytes at the start of a message that are parsed: the boxes before the media, and the stamp in it.
const HEAD_BYTES: usize = 448;

/// Bytes of the longest header of a server's frame.
const HEADER_BYTES_MAX: usize = 10;

/// The messages of one connection, however their bytes are split.
#[derive(Debug, Default)]
pub struct Messages {
    /// The header of the next frame, as far as it has arrived.
    header: Vec<u8>,
    /// The start of the current message, and the number of its bytes that are still to come.
    head: Vec<u8>,
    left: usize,
    hash: crc32fast::Hasher,
    opcode: u8,
}

/// The whole header in `bytes`: how many bytes it has, the opcode, and the payload's length.
fn header(bytes: &[u8]) -> Result<Option<(usize, u8, usize)>, Broken> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(Broken::NoFrame(first, second));
    }
    Ok(match second {
        127 => bytes.get(2..10).map(|len| (10, len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))),
        126 => bytes.get(2..4).map(|len| (4, usize::from(len[0]) << 8 | usize::from(len[1]))),
        short => Some((2, usize::from(short))),
    }
    .map(|(size, len)| (size, first & 0x0f, len)))
}

impl Messages {
    /// Processes bytes, and tells the receiver about each video frame that ends in them.
    pub fn take(&mut self, mut bytes: &[u8], receiver: &mut Receiver, env: &mut Env<'_>) -> Result<(), Broken> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let before = self.header.len();
                self.header.extend_from_slice(&bytes[..bytes.len().min(HEADER_BYTES_MAX - before)]);
                let Some((size, opcode, len)) = header(&self.header)? else { return Ok(()) };
                bytes = &bytes[size - before..];
                self.header.clear();
                (self.opcode, self.left) = (opcode, len);
                self.head.clear();
                self.hash = crc32fast::Hasher::new();
                if opcode == 8 {
                    return Err(Broken::Closed);
                }
            }
            let part = &bytes[..bytes.len().min(self.left)];
            let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(part.len());
            self.head.extend_from_slice(&part[..wanted]);
            if receiver.is_hashing() {
                self.hash.update(part);
            }
            self.left -= part.len();
            bytes = &bytes[part.len()..];
            if self.left == 0 {
                self.ended(receiver, env);
            }
        }
        Ok(())
    }

    /// A message is complete.
    fn ended(&mut self, receiver: &mut Receiver, env: &mut Env<'_>) {
        // Only the video's fragments: audio was not requested.
        if let (2, [_, kind @ (1 | 2), ..]) = (self.opcode, &self.head[..]) {
            let stamp = stamp::search(&self.head);
            receiver.fragment(stamp, *kind == 1, self.hash.clone().finalize(), env);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_their_bytes_are_cut() {
        let message = |opcode: u8, payload: &[u8]| {
            let mut out = vec![0x80 | opcode, 126];
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            out.extend_from_slice(payload);
            out
        };
        let fragment = |kind: u8| [&[0, kind][..], &[0x11; 600]].concat();
        let mut bytes = message(1, b"{\"type\":\"hello\"}");
        bytes.extend(message(2, &[0, 0, 1, 2, 3]));
        bytes.extend([message(2, &fragment(1)), message(9, b""), message(2, &fragment(2))].concat());
        for at in 0..bytes.len() {
            let mut totals = super::super::receive::Totals::new();
            totals.measuring = true;
            let mut receiver = Receiver::by_websocket(0, false, 0);
            for part in [&bytes[..at], &bytes[at..]] {
                let mut env = Env { totals: &mut totals, verify: None, now_ns: 1_000 };
                receiver.interleaved(part, &mut env).unwrap();
            }
            assert_eq!((totals.frames, totals.began_elsewhere, receiver.seen_keyframe), (2, 0, true), "cut at {at}");
        }
    }

    #[test]
    fn headers_of_every_size_are_read_at_every_split() {
        for (bytes, expected) in [
            (&[0x81, 5][..], (2, 1, 5)),
            (&[0x82, 126, 1, 0], (4, 2, 256)),
            (&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], (10, 2, 65_536)),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(header(&bytes[..end]).unwrap(), None);
            }
            assert_eq!(header(bytes).unwrap(), Some(expected));
        }
        assert!(header(b"HTTP").is_err() && header(&[0x82, 0x85]).is_err());
    }
}
