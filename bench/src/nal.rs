//! Recognizes keyframes from the first bytes of an RTP payload, for streams without stamps.

use crate::client::Codec;

/// Whether a packet with this payload belongs to a frame that decoding can start at, as far as this packet tells.
pub fn tells_keyframe(codec: Codec, payload: &[u8]) -> bool {
    match codec {
        // RFC 6184: IDR or SPS, alone, first in a STAP-A, or as the start of an FU-A.
        Codec::H264 => {
            let starts = |kind: u8| kind == 5 || kind == 7;
            match payload.first().map(|b| b & 0x1F) {
                Some(24) => payload.get(3).is_some_and(|b| starts(b & 0x1F)),
                Some(28) => payload.get(1).is_some_and(|b| b & 0x80 != 0 && starts(b & 0x1F)),
                Some(kind) => starts(kind),
                None => false,
            }
        }
        // RFC 7798: IRAP pictures (16 to 23) or VPS, SPS (32, 33).
        Codec::H265 => {
            let starts = |kind: u8| (16..=23).contains(&kind) || kind == 32 || kind == 33;
            match payload.first().map(|b| b >> 1 & 0x3F) {
                Some(48) => payload.get(4).is_some_and(|b| starts(b >> 1 & 0x3F)),
                Some(49) => payload.get(2).is_some_and(|b| b & 0x80 != 0 && starts(b & 0x3F)),
                Some(kind) => starts(kind),
                None => false,
            }
        }
        Codec::Other => true,
    }
}

/// The payload of an RTP packet, as far as `packet` holds it (RFC 3550 section 5.1); `None` if it is no RTP packet.
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    if first >> 6 != 2 {
        return None;
    }
    let mut start = 12 + 4 * usize::from(first & 0x0F);
    if first & 0x10 != 0 {
        let words = packet.get(start + 2..start + 4)?;
        start += 4 + 4 * usize::from(u16::from_be_bytes([words[0], words[1]]));
    }
    packet.get(start..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyframes_of_h264_and_h265() {
        for (codec, payload, expected) in [
            (Codec::H264, &[0x67u8, 66][..], true),
            (Codec::H264, &[0x65, 1], true),
            (Codec::H264, &[0x41, 1], false),
            (Codec::H264, &[0x7C, 0x85], true),
            (Codec::H264, &[0x7C, 0x05], false),
            (Codec::H264, &[24, 0, 9, 0x67], true),
            (Codec::H265, &[19 << 1, 1], true),
            (Codec::H265, &[49 << 1, 1, 0x80 | 19], true),
            (Codec::H265, &[1 << 1, 1], false),
        ] {
            assert_eq!(tells_keyframe(codec, payload), expected, "{codec:?} {payload:?}");
        }
    }

    #[test]
    fn the_payload_lies_past_extensions() {
        let mut packet = vec![0x91u8, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        packet.extend_from_slice(&[1, 2, 3, 4, 0xBE, 0xDE, 0, 1, 9, 9, 9, 9, 42]);
        assert_eq!(payload(&packet), Some(&[42][..]));
        assert_eq!(payload(&[0x40; 20]), None);
    }
}
