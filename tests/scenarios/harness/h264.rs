//! The part of RFC 6184 needed to tell whether a picture can be decoded.

use super::rtsp::Packet;

/// The NAL units in a frame's packets, reassembled.
pub fn nal_units(packets: &[Packet]) -> Vec<Vec<u8>> {
    let mut units: Vec<Vec<u8>> = Vec::new();
    for packet in packets {
        let payload = packet.payload();
        match payload[0] & 0x1F {
            1..=23 => units.push(payload.to_vec()),
            // STAP-A (section 5.7.1).
            24 => {
                let mut rest = &payload[1..];
                while let [a, b, tail @ ..] = rest {
                    let (unit, after) = tail.split_at(usize::from(u16::from_be_bytes([*a, *b])));
                    units.push(unit.to_vec());
                    rest = after;
                }
            }
            // FU-A (section 5.8).
            28 => {
                if payload[1] & 0x80 != 0 {
                    units.push(vec![payload[0] & 0xE0 | payload[1] & 0x1F]);
                }
                units.last_mut().expect("a fragment after its start").extend_from_slice(&payload[2..]);
            }
            other => panic!("packet type {other}"),
        }
    }
    units
}

/// The NAL unit types in a frame.
pub fn types(packets: &[Packet]) -> Vec<u8> {
    nal_units(packets).iter().map(|unit| unit[0] & 0x1F).collect()
}

/// Whether a frame can be decoded with nothing before it: parameter sets and an IDR picture.
pub fn is_complete_keyframe(packets: &[Packet]) -> bool {
    let types = types(packets);
    types.contains(&7) && types.contains(&8) && types.contains(&5)
}

/// The frame in the format of a file.
pub fn annex_b(packets: &[Packet]) -> Vec<u8> {
    nal_units(packets).iter().flat_map(|unit| [&[0, 0, 0, 1], unit.as_slice()].concat()).collect()
}
