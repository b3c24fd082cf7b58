//! The timestamp that the test source and the bench camera put into each frame, so that a player can measure the frame's age.
//!
//! It is an SEI message `user_data_unregistered` (H.264 annex D.1.7, H.265 annex D.2.7) before the frame's first slice. Its 16 bytes of
//! UUID are [`MAGIC`], followed by ASCII hex: 16 digits of frame number, 16 digits of `CLOCK_REALTIME` in nanoseconds, and 8 digits of
//! flags. ASCII never needs an emulation prevention byte, can be found without parsing, and is readable in packet dumps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The UUID of the SEI message.
pub const MAGIC: &[u8; 16] = b"rtsprelay-stamp1";

/// Flag: the frame is a keyframe.
pub const KEYFRAME: u32 = 1;

/// The header of an H.264 SEI NAL unit (type 6).
pub const H264_SEI: &[u8] = &[0x06];

/// The header of an H.265 prefix SEI NAL unit (type 39, temporal id 0).
pub const H265_SEI: &[u8] = &[0x4e, 0x01];

/// Bytes of the SEI payload: UUID and digits.
const PAYLOAD_BYTES: usize = MAGIC.len() + DIGITS;

/// Hex digits after the UUID.
const DIGITS: usize = 16 + 16 + 8;

/// `payloadType` of `user_data_unregistered`.
const USER_DATA_UNREGISTERED: u8 = 5;

/// Bytes of an SEI NAL unit in which a stamp is searched; encoders put longer texts of their own there.
const SEARCH_BYTES_MAX: usize = 512;

/// The contents of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the frame since its source started, contiguous from 0.
    pub frame: u64,
    /// `CLOCK_REALTIME` when the frame left its source, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Bit 0 is [`KEYFRAME`]; the others are 0.
    pub flags: u32,
}

impl Stamp {
    /// The stamp of frame `frame`, sent at `wall`.
    pub fn new(frame: u64, wall: SystemTime, keyframe: bool) -> Self {
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Stamp { frame, unix_ns, flags: if keyframe { KEYFRAME } else { 0 } }
    }

    /// Whether its frame is a keyframe.
    pub fn keyframe(&self) -> bool {
        self.flags & KEYFRAME != 0
    }

    /// When the frame left its source.
    pub fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.unix_ns)
    }

    /// Age of the frame at `wall`; zero if the clocks disagree.
    pub fn age(&self, wall: SystemTime) -> Duration {
        wall.duration_since(self.wall()).unwrap_or_default()
    }

    /// Appends the stamp's SEI NAL unit to `out`, without a start code. `header` is [`H264_SEI`] or [`H265_SEI`].
    pub fn write_nal(&self, header: &[u8], out: &mut Vec<u8>) {
        use std::io::Write as _;
        let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
        payload.extend_from_slice(MAGIC);
        write!(payload, "{:016x}{:016x}{:08x}", self.frame, self.unix_ns, self.flags).expect("a vector takes all");
        debug_assert_eq!(payload.len(), PAYLOAD_BYTES);
        out.extend_from_slice(header);
        write_sei(USER_DATA_UNREGISTERED, &payload, out);
    }

    /// Parses the stamp in the bytes right after [`MAGIC`].
    fn parse_digits(bytes: &[u8]) -> Option<Stamp> {
        let digits = bytes.get(..DIGITS)?;
        let frame = hex(&digits[..16])?;
        let unix_ns = hex(&digits[16..32])?;
        let flags = u32::try_from(hex(&digits[32..])?).ok()?;
        Some(Stamp { frame, unix_ns, flags })
    }
}

/// Appends one SEI message and the RBSP trailing bits (H.264 section 7.3.2.3), with emulation prevention (section 7.4.1).
fn write_sei(payload_type: u8, payload: &[u8], out: &mut Vec<u8>) {
    let mut rbsp = vec![payload_type];
    let mut size = payload.len();
    while size >= 255 {
        rbsp.push(255);
        size -= 255;
    }
    rbsp.push(size as u8);
    rbsp.extend_from_slice(payload);
    rbsp.push(0x80);
    let mut zeros = 0;
    for byte in rbsp {
        if zeros >= 2 && byte <= 3 {
            out.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
}

/// The value of hex digits; `None` for anything else, including a sign.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(number << 4 | u64::from(value))
    })
}

/// The stamp in the payload of an RTP packet of H.264 (RFC 6184) or H.265 (RFC 7798), if there is one.
///
/// Looks only where a stamp can be: in an SEI NAL unit, alone or aggregated (STAP-A, AP). So picture data costs only two comparisons.
pub fn find(payload: &[u8]) -> Option<Stamp> {
    let first = *payload.first()?;
    let (h264, h265) = (first & 0x1f, first >> 1 & 0x3f);
    if h264 == 6 || h265 == 39 {
        return search(&payload[..payload.len().min(SEARCH_BYTES_MAX)]);
    }
    let mut rest = match (h264, h265) {
        (24, _) => &payload[1..],
        (_, 48) => payload.get(2..)?,
        _ => return None,
    };
    while let Some((size, more)) = rest.split_at_checked(2) {
        let size = usize::from(u16::from_be_bytes([size[0], size[1]]));
        let nal = more.get(..size)?;
        if nal.first().is_some_and(|&byte| byte & 0x1f == 6 || byte >> 1 & 0x3f == 39)
            && let Some(stamp) = search(&nal[..nal.len().min(SEARCH_BYTES_MAX)])
        {
            return Some(stamp);
        }
        rest = &more[size..];
    }
    None
}

/// The first stamp anywhere in `bytes`, for frames in another form than RTP payloads.
pub fn search(bytes: &[u8]) -> Option<Stamp> {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == MAGIC[0]) {
        let here = &rest[at..];
        if let Some(digits) = here.strip_prefix(MAGIC)
            && let Some(stamp) = Stamp::parse_digits(digits)
        {
            return Some(stamp);
        }
        rest = &here[1..];
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nal(stamp: Stamp, header: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        stamp.write_nal(header, &mut out);
        out
    }

    #[test]
    fn the_bytes_are_as_designed() {
        let stamp = Stamp { frame: 0x1f, unix_ns: 0x1122_3344_5566_7788, flags: KEYFRAME };
        let mut want = vec![0x06, 5, 56];
        want.extend_from_slice(b"rtsprelay-stamp1000000000000001f112233445566778800000001");
        want.push(0x80);
        assert_eq!(nal(stamp, H264_SEI), want);
    }

    #[test]
    fn an_aggregated_stamp_is_found() {
        let stamp = Stamp { frame: 7, unix_ns: 9, flags: 0 };
        for (aggregate, header) in [(&[0x18][..], H264_SEI), (&[0x60, 0x01][..], H265_SEI)] {
            let mut packet = aggregate.to_vec();
            for unit in [&[0x67, 1, 2, 3][..], &nal(stamp, header)] {
                packet.extend_from_slice(&(unit.len() as u16).to_be_bytes());
                packet.extend_from_slice(unit);
            }
            assert_eq!(find(&packet), Some(stamp));
        }
    }

    #[test]
    fn other_packets_have_none() {
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[0x65; 40]), None);
        assert_eq!(find(&[0x18, 0, 9, 1]), None);
        let mut cut = nal(Stamp { frame: 0, unix_ns: 0, flags: 0 }, H264_SEI);
        cut.truncate(50);
        assert_eq!(find(&cut), None);
        // The right UUID followed by invalid digits.
        let mut bad = b"\x06\x05\x38rtsprelay-stamp1".to_vec();
        bad.extend_from_slice(&[b'+'; DIGITS]);
        assert_eq!(find(&bad), None);
    }

    #[test]
    fn emulation_is_prevented() {
        let mut out = Vec::new();
        write_sei(5, &[0, 0, 1, 0, 0, 0, 0, 0], &mut out);
        assert_eq!(out, [5, 8, 0, 0, 3, 1, 0, 0, 3, 0, 0, 3, 0, 0x80]);
    }

    #[test]
    fn age_never_goes_below_zero() {
        let now = UNIX_EPOCH + Duration::from_secs(5);
        let stamp = Stamp::new(0, now, true);
        assert_eq!(stamp.age(now + Duration::from_millis(3)), Duration::from_millis(3));
        assert_eq!(stamp.age(now - Duration::from_millis(3)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn what_is_written_is_found(frame: u64, unix_ns: u64, flags: u32) {
            let stamp = Stamp { frame, unix_ns, flags };
            prop_assert_eq!(find(&nal(stamp, H264_SEI)), Some(stamp));
            prop_assert_eq!(find(&nal(stamp, H265_SEI)), Some(stamp));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = find(&bytes);
            let _ = search(&bytes);
        }
    }
}
