//! The RTP header (RFC 3550 section 5.1).

use std::ops::Range;

/// Bytes of the header without contributing sources or an extension.
pub const HEADER_BYTES: usize = 12;

/// Why bytes are not an RTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It ends within the header, the contributing sources or the extension.
    #[error("RTP packet of {len} bytes ends inside its header, which needs {needed}")]
    Short {
        /// Bytes there are.
        len: usize,
        /// Minimum size of the header.
        needed: usize,
    },
    /// The version is not 2.
    #[error("RTP version {0} instead of 2")]
    Version(u8),
    /// The last byte claims more padding than there is payload, or none.
    #[error("RTP padding of {padding} bytes in a payload of {payload}")]
    Padding {
        /// The padding that the packet's last byte claims.
        padding: u8,
        /// Bytes between the header and the packet's end.
        payload: usize,
    },
}

/// A validated RTP header, and the ranges of the parts after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The marker bit.
    pub marker: bool,
    /// The payload type, 0 to 127.
    pub payload_type: u8,
    /// The sequence number.
    pub sequence: u16,
    /// The timestamp, in ticks of the payload's clock.
    pub timestamp: u32,
    /// The synchronization source.
    pub ssrc: u32,
    /// Contributing sources after the fixed header, 0 to 15.
    pub csrc_count: u8,
    /// The extension's profile and the range of its content, without its four-byte header.
    pub extension: Option<(u16, Range<usize>)>,
    /// The range of the payload, without padding. May be empty.
    pub payload: Range<usize>,
}

impl Header {
    /// Parses and validates the header of a whole packet.
    ///
    /// # Errors
    /// A [`Fault`] if the version is not 2, or if contributing sources, extension or padding exceed the packet.
    pub fn parse(packet: &[u8]) -> Result<Header, Fault> {
        let short = |needed| Fault::Short { len: packet.len(), needed };
        let Some(fixed) = packet.first_chunk::<HEADER_BYTES>() else {
            // Report a wrong version first, because it means that this is not RTP at all.
            return Err(match packet.first() {
                Some(first) if first >> 6 != 2 => Fault::Version(first >> 6),
                _ => short(HEADER_BYTES),
            });
        };
        if fixed[0] >> 6 != 2 {
            return Err(Fault::Version(fixed[0] >> 6));
        }
        let csrc_count = fixed[0] & 0x0f;
        let mut start = HEADER_BYTES + usize::from(csrc_count) * 4;
        let mut extension = None;
        if fixed[0] & 0x10 != 0 {
            let Some(head) = packet.get(start..).and_then(|rest| rest.first_chunk::<4>()) else {
                return Err(short(start + 4));
            };
            let profile = u16::from_be_bytes([head[0], head[1]]);
            let words = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let content = start + 4..start + 4 + words * 4;
            start = content.end;
            extension = Some((profile, content));
        }
        if start > packet.len() {
            return Err(short(start));
        }
        let mut end = packet.len();
        if fixed[0] & 0x20 != 0 {
            let padding = packet[packet.len() - 1];
            let payload = packet.len() - start;
            if padding == 0 || usize::from(padding) > payload {
                return Err(Fault::Padding { padding, payload });
            }
            end -= usize::from(padding);
        }
        Ok(Header {
            marker: fixed[1] & 0x80 != 0,
            payload_type: fixed[1] & 0x7f,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            csrc_count,
            extension,
            payload: start..end,
        })
    }

    /// The fixed twelve bytes for these values, without padding, extension or contributing sources.
    pub fn write(marker: bool, payload_type: u8, sequence: u16, timestamp: u32, ssrc: u32) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = 0x80;
        out[1] = u8::from(marker) << 7 | (payload_type & 0x7f);
        out[2..4].copy_from_slice(&sequence.to_be_bytes());
        out[4..8].copy_from_slice(&timestamp.to_be_bytes());
        out[8..12].copy_from_slice(&ssrc.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut out = Header::write(true, 96, 65_535, 0xdead_beef, 7).to_vec();
        out[0] = first;
        out.extend_from_slice(rest);
        out
    }

    #[test]
    fn what_is_written_is_read_back() {
        let header = Header::parse(&packet(0x80, b"abc")).unwrap();
        assert!(header.marker);
        assert_eq!((header.payload_type, header.sequence, header.timestamp), (96, 65_535, 0xdead_beef));
        assert_eq!((header.ssrc, header.csrc_count, header.payload), (7, 0, 12..15));
    }

    #[test]
    fn sources_extension_and_padding_are_not_payload() {
        let mut rest = vec![1, 1, 1, 1, 2, 2, 2, 2];
        rest.extend_from_slice(&[0xbe, 0xde, 0, 1, 9, 9, 9, 9]);
        rest.extend_from_slice(&[5, 6, 0, 0, 3]);
        let header = Header::parse(&packet(0xb2, &rest)).unwrap();
        assert_eq!(header.csrc_count, 2);
        assert_eq!(header.extension, Some((0xbede, 24..28)));
        assert_eq!(header.payload, 28..30);
    }

    #[test]
    fn what_passes_the_end_is_refused() {
        assert_eq!(Header::parse(&[]), Err(Fault::Short { len: 0, needed: 12 }));
        assert_eq!(Header::parse(b"GET / HTTP/1.0"), Err(Fault::Version(1)));
        assert_eq!(Header::parse(&[0x16]), Err(Fault::Version(0)));
        assert_eq!(Header::parse(&packet(0x8f, &[0; 8])), Err(Fault::Short { len: 20, needed: 72 }));
        assert_eq!(Header::parse(&packet(0x90, &[0, 0])), Err(Fault::Short { len: 14, needed: 16 }));
        assert_eq!(Header::parse(&packet(0x90, &[0, 0, 255, 255])), Err(Fault::Short { len: 16, needed: 262_156 }));
        assert_eq!(Header::parse(&packet(0xa0, &[1, 2, 4])), Err(Fault::Padding { padding: 4, payload: 3 }));
        assert_eq!(Header::parse(&packet(0xa0, &[1, 2, 0])), Err(Fault::Padding { padding: 0, payload: 3 }));
        // If all of it is padding, the packet has no payload, which is legal.
        assert_eq!(Header::parse(&packet(0xa0, &[0, 0, 3])).unwrap().payload, 12..12);
    }
}
