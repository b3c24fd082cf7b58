//! Interleaved frames: packets in the RTSP connection, between messages (RFC 2326 section 10.12).

use crate::limits::{INTERLEAVED_HEADER_BYTES, PACKET_BYTES_MAX};

/// The first byte of every frame, which no RTSP message starts with.
pub const MAGIC: u8 = b'$';

/// The four bytes before a packet.
///
/// # Panics
/// If `len` exceeds [`PACKET_BYTES_MAX`].
pub fn header(channel: u8, len: usize) -> [u8; INTERLEAVED_HEADER_BYTES] {
    assert!(len <= PACKET_BYTES_MAX, "an interleaved packet of {len} bytes");
    let len = (len as u16).to_be_bytes();
    [MAGIC, channel, len[0], len[1]]
}

/// A packet with its header for a channel.
///
/// # Panics
/// If the packet exceeds [`PACKET_BYTES_MAX`].
pub fn frame(channel: u8, packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(INTERLEAVED_HEADER_BYTES + packet.len());
    out.extend_from_slice(&header(channel, packet.len()));
    out.extend_from_slice(packet);
    out
}

/// Channel and length from a frame's header; `None` while the header is incomplete.
///
/// # Panics
/// If the bytes do not start with [`MAGIC`].
pub fn parse(bytes: &[u8]) -> Option<(u8, usize)> {
    let head = bytes.first_chunk::<INTERLEAVED_HEADER_BYTES>()?;
    assert_eq!(head[0], MAGIC, "not the start of an interleaved frame");
    Some((head[1], usize::from(u16::from_be_bytes([head[2], head[3]]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back() {
        let bytes = frame(7, b"abc");
        assert_eq!(bytes, b"$\x07\x00\x03abc");
        assert_eq!(parse(&bytes), Some((7, 3)));
        assert_eq!(parse(&bytes[..3]), None);
        assert_eq!(parse(&header(255, 65_535)), Some((255, 65_535)));
    }
}
