//! Whether decoding can start at a frame, read from RTP payloads without putting them together.
//!
//! [`inspect`] is shown the payloads of a frame one after another and notes in a [`Sight`] what it finds in them. It never fails:
//! what it does not understand teaches it nothing.

pub mod annex_b;
mod av1;
mod h264;
mod h265;
mod vp8;
mod vp9;

/// A video codec whose payloads can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// RFC 6184.
    H264,
    /// RFC 7798.
    H265 {
        /// Whether payloads carry decoding order numbers (`sprop-max-don-diff` over 0).
        donl: bool,
    },
    /// The AOMedia RTP payload format for AV1.
    Av1,
    /// RFC 7741.
    Vp8,
    /// RFC 9628.
    Vp9,
    /// A codec without references between frames (RFC 2435), or one that is not known: every frame is a start.
    Intra,
}

impl Codec {
    /// The codec of an SDP's encoding name and format parameters.
    pub fn new(encoding: &str, fmtp: Option<&str>) -> Codec {
        match encoding.to_ascii_uppercase().as_str() {
            "H264" => Codec::H264,
            "H265" | "HEVC" => Codec::H265 {
                donl: fmtp
                    .into_iter()
                    .flat_map(|fmtp| fmtp.split(';'))
                    .filter_map(|item| item.trim().split_once('='))
                    .any(|(key, value)| {
                        key.eq_ignore_ascii_case("sprop-max-don-diff")
                            && value.trim().parse::<u32>().is_ok_and(|d| d > 0)
                    }),
            },
            "AV1" => Codec::Av1,
            "VP8" => Codec::Vp8,
            "VP9" => Codec::Vp9,
            _ => Codec::Intra,
        }
    }

    /// Whether the payload holds NAL units, so that it can be cut into smaller packets.
    pub fn has_nal_units(self) -> bool {
        matches!(self, Codec::H264 | Codec::H265 { .. })
    }
}

/// A kind of parameter set. AV1's sequence header counts as [`ParameterSet::Sequence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterSet {
    /// H.265 video parameter set.
    Video = 1,
    /// Sequence parameter set.
    Sequence = 2,
    /// Picture parameter set.
    Picture = 4,
}

/// What has been seen of a frame so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Coded picture data, or something not understood that may be some.
    pub picture: bool,
    /// An IDR, IRAP or key frame, or a recovery point.
    pub random_access: bool,
    /// A picture that needs others before it.
    pub inter: bool,
    /// The picture's first packet is missing.
    pub beheaded: bool,
    /// Kinds of parameter sets, as a set of [`ParameterSet`] bits.
    sets: u8,
}

impl Sight {
    /// Whether decoding can start at the frame.
    pub fn starts(self) -> bool {
        self.picture && !self.beheaded && (self.random_access || (self.has(ParameterSet::Sequence) && !self.inter))
    }

    /// Whether a parameter set of this kind has been seen.
    pub fn has(self, set: ParameterSet) -> bool {
        self.sets & set as u8 != 0
    }

    fn add(&mut self, set: ParameterSet) {
        self.sets |= set as u8;
    }

    /// Notes picture data; `first` is whether it is the picture's beginning, where that can be told.
    fn add_picture(&mut self, first: Option<bool>) {
        if !self.picture {
            self.picture = true;
            self.beheaded = first == Some(false);
        }
    }
}

/// Notes in `sight` what a frame's next payload holds, and shows each whole H.264 or H.265 parameter set in it to `on_set`.
pub fn inspect(codec: Codec, payload: &[u8], sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    match codec {
        Codec::H264 => h264::inspect(payload, sight, on_set),
        Codec::H265 { donl } => h265::inspect(payload, donl, sight, on_set),
        Codec::Av1 => av1::inspect(payload, sight),
        Codec::Vp8 => vp8::inspect(payload, sight),
        Codec::Vp9 => vp9::inspect(payload, sight),
        Codec::Intra => {
            sight.add_picture(None);
            sight.random_access = true;
        }
    }
}

/// Whether an SEI message list (H.264 section 7.3.2.3, H.265 section 7.3.2.4) holds a recovery point (payload type 6 in both).
fn has_recovery_point(mut messages: &[u8]) -> bool {
    fn number(bytes: &mut &[u8]) -> Option<usize> {
        let mut value = 0;
        loop {
            let (&byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value += usize::from(byte);
            if byte != 0xff {
                return Some(value);
            }
        }
    }
    // The last byte holds the trailing bits alone.
    while messages.len() > 1 {
        let Some(kind) = number(&mut messages) else { return false };
        let Some(size) = number(&mut messages) else { return false };
        if kind == 6 {
            return true;
        }
        let Some(rest) = messages.get(size..) else { return false };
        messages = rest;
    }
    false
}

/// The body of the fuzz target: any bytes as payloads of any codec.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&which, rest)) = data.split_first() else { return };
    let codec = match which % 7 {
        0 => Codec::H264,
        1 => Codec::H265 { donl: false },
        2 => Codec::H265 { donl: true },
        3 => Codec::Av1,
        4 => Codec::Vp8,
        5 => Codec::Vp9,
        _ => Codec::Intra,
    };
    let mut sight = Sight::default();
    for payload in rest.split(|&byte| byte == 0xa5) {
        let mut shown = 0;
        inspect(codec, payload, &mut sight, &mut |set| shown += set.len());
        assert!(shown <= payload.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_point_is_found_behind_other_messages() {
        assert!(has_recovery_point(&[6, 1, 0xc4, 0x80]));
        assert!(has_recovery_point(&[1, 2, 9, 9, 6, 1, 0xc4, 0x80]));
        // A type over 255 that ends in 6, and a size that passes the end.
        assert!(!has_recovery_point(&[0xff, 6, 1, 0xc4, 0x80]));
        assert!(!has_recovery_point(&[5, 200, 6, 1, 0xc4, 0x80]));
        assert!(!has_recovery_point(&[0xff; 40]));
        assert!(!has_recovery_point(&[]));
    }

    #[test]
    fn codecs_are_known_by_their_names() {
        assert_eq!(Codec::new("h264", None), Codec::H264);
        assert_eq!(Codec::new("H265", Some("sprop-max-don-diff=0")), Codec::H265 { donl: false });
        assert_eq!(Codec::new("H265", Some("tx-mode=SRST; sprop-max-don-diff=2")), Codec::H265 { donl: true });
        assert_eq!(Codec::new("JPEG", None), Codec::Intra);
        assert_eq!(Codec::new("x-new", None), Codec::Intra);
    }
}
