//! AV1 payloads (RTP Payload Format For AV1, section 4).

use super::{ParameterSet, Sight};

/// Reads a leb128 number (AV1 specification section 4.10.5) off the front.
fn leb128(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0usize;
    for index in 0..8 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f).checked_shl(7 * index)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(super) fn inspect(payload: &[u8], sight: &mut Sight) {
    // The aggregation header: Z Y W W N - - -.
    let Some((&header, mut rest)) = payload.split_first() else { return };
    let continues = header & 0x80 != 0;
    let count = usize::from(header >> 4 & 3);
    // The first packet of a coded video sequence, which begins with a key frame.
    sight.random_access |= header & 0x08 != 0;
    sight.add_picture(Some(!continues));
    let mut index = 0usize;
    while !rest.is_empty() {
        index += 1;
        // The last of a counted number of elements goes on to the end.
        let element = if count > 0 && index >= count {
            std::mem::take(&mut rest)
        } else {
            let Some(len) = leb128(&mut rest) else { return };
            let Some(element) = rest.get(..len) else { return };
            rest = &rest[len..];
            element
        };
        if index > 1 || !continues {
            unit(element, sight);
        }
    }
}

/// The beginning of an OBU (AV1 specification section 5.3.1).
fn unit(element: &[u8], sight: &mut Sight) {
    let Some((&header, mut body)) = element.split_first() else { return };
    if header & 0x04 != 0 {
        body = body.get(1..).unwrap_or_default();
    }
    if header & 0x02 != 0 && leb128(&mut body).is_none() {
        return;
    }
    match header >> 3 & 0x0f {
        1 => sight.add(ParameterSet::Sequence),
        // Frame header and frame begin with show_existing_frame (1 bit) and frame_type (2 bits, 0 for a key frame).
        3 | 6 => match body.first() {
            Some(first) if first & 0x80 == 0 && first & 0x60 == 0 => sight.random_access = true,
            Some(first) if first & 0x80 == 0 => sight.inter = true,
            _ => {}
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(payloads: &[&[u8]]) -> Sight {
        let mut sight = Sight::default();
        for payload in payloads {
            inspect(payload, &mut sight);
        }
        sight
    }

    #[test]
    fn the_first_packet_of_a_sequence_is_a_start() {
        assert!(look(&[&[0x18, 0x0a, 0x0b, 0, 0, 0]]).starts());
    }

    #[test]
    fn a_sequence_header_or_a_key_frame_is_a_start() {
        // W 2: a sequence header of three bytes with its length, then a frame.
        assert!(look(&[&[0x20, 3, 0x08, 0x00, 0x00, 0x30, 0x10, 0]]).starts());
        // W 1: a key frame with its own size field.
        assert!(look(&[&[0x10, 0x32, 2, 0x10, 0]]).starts());
        // W 0: each with its length; the frame OBU has an extension.
        assert!(look(&[&[0x00, 2, 0x12, 0, 4, 0x34, 0x00, 0x10, 0]]).starts());
    }

    #[test]
    fn inter_frames_and_continuations_are_none() {
        assert!(!look(&[&[0x10, 0x30, 0x30, 0]]).starts());
        // A shown existing frame.
        assert!(!look(&[&[0x10, 0x18, 0x80]]).starts());
        // A repeated sequence header before an inter frame.
        assert!(!look(&[&[0x20, 3, 0x08, 0x00, 0x00, 0x30, 0x30, 0]]).starts());
        // The rest of an element that would read as a key frame.
        assert!(!look(&[&[0x90, 0x30, 0x10, 0]]).starts());
        assert!(!look(&[&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]).starts());
    }

    #[test]
    fn a_packet_may_hold_more_elements_than_a_byte_counts() {
        // W 0, and the second half of an element first: none of the empty ones behind it is taken for its rest.
        let mut payload = vec![0x80];
        payload.extend([0; 300]);
        payload.extend([3, 0x30, 0x10, 0]);
        assert!(look(&[&payload]).random_access);
        let mut first_again = vec![0x80];
        first_again.extend([0; 256]);
        first_again.extend([3, 0x30, 0x10, 0]);
        assert!(look(&[&first_again]).random_access);
    }
}
