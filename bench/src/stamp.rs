//! The time stamp that frames carry: an SEI `user_data_unregistered` with the 16 bytes `rtsprelay-stamp1`, then in ASCII hex
//! 16 digits frame number, 16 digits CLOCK_REALTIME in ns, 8 digits flags.

/// What begins a stamp, in the place of the SEI's UUID.
pub const MAGIC: &[u8; 16] = b"rtsprelay-stamp1";

/// Bytes of a stamp from its magic on.
pub const STAMP_BYTES: usize = 16 + 16 + 16 + 8;

/// What a frame's stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The frame's number.
    pub number: u64,
    /// CLOCK_REALTIME in ns when it was made.
    pub wall_ns: u64,
    /// Whether decoding can start at it.
    pub keyframe: bool,
}

impl Stamp {
    /// The SEI NAL unit of H.264, without start code. ASCII holds no zeros, so nothing needs emulation prevention.
    pub fn sei(&self) -> Vec<u8> {
        let mut nal = vec![6, 5, STAMP_BYTES as u8];
        nal.extend_from_slice(MAGIC);
        let text = format!("{:016x}{:016x}{:08x}", self.number, self.wall_ns, u32::from(self.keyframe));
        nal.extend_from_slice(text.as_bytes());
        nal.push(0x80);
        nal
    }

    /// Finds a stamp in the first bytes of an RTP payload.
    pub fn find(payload: &[u8]) -> Option<Stamp> {
        let at = payload.windows(MAGIC.len()).position(|w| w == MAGIC)?;
        let text = std::str::from_utf8(payload.get(at + 16..at + STAMP_BYTES)?).ok()?;
        let hex = |range| u64::from_str_radix(text.get(range)?, 16).ok();
        Some(Stamp { number: hex(0..16)?, wall_ns: hex(16..32)?, keyframe: hex(32..40)? & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_again() {
        let stamp = Stamp { number: 0x1234, wall_ns: u64::MAX, keyframe: true };
        let mut payload = vec![24, 0, 3];
        payload.extend_from_slice(&stamp.sei());
        assert_eq!(Stamp::find(&payload), Some(stamp));
        assert_eq!(Stamp::find(&payload[..payload.len() - 2]), None);
    }
}
