//! Finds out whether decoding can start at a frame, from its RTP payloads, without reassembling them.
//!
//! [`inspect`] is called with the payloads of a frame one after another and records its findings in a [`Sight`]. It never fails: it
//! ignores what it does not understand. Each codec has a file, such as `vp9.rs`.

pub mod access_unit;
pub mod annex_b;
pub mod av1;
pub mod bits;
pub mod fragment;
mod h263;
mod h264;
mod h265;
pub mod jpeg;
mod mpeg2;
mod mpeg4;
pub mod parameter_sets;
pub mod sps;
mod vp8;
pub mod vp9;

use serde::{Deserialize, Serialize};

/// A video codec whose payloads can be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// MPEG-4 part 2 (RFC 6416).
    Mpeg4,
    /// MPEG-1 and MPEG-2 (RFC 2250).
    Mpeg2,
    /// H.263 in the format of RFC 4629.
    H263,
    /// H.263 in the format of RFC 2190.
    H263Rfc2190,
    /// A codec without references between frames (RFC 2435), or an unknown one: decoding is assumed to start at any frame.
    Intra,
}

impl Codec {
    /// The codec for an SDP's encoding name and format parameters.
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
            "MP4V-ES" => Codec::Mpeg4,
            "MPV" => Codec::Mpeg2,
            "H263-1998" | "H263-2000" => Codec::H263,
            "H263" => Codec::H263Rfc2190,
            _ => Codec::Intra,
        }
    }

    /// Whether the payload consists of NAL units, so that it can be split into smaller packets.
    pub fn has_nal_units(self) -> bool {
        matches!(self, Codec::H264 | Codec::H265 { .. })
    }
}

/// A kind of parameter set. The sequence headers of AV1 and MPEG-2 and MPEG-4's video object layer count as [`ParameterSet::Sequence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ParameterSet {
    /// H.265 video parameter set.
    Video = 1,
    /// Sequence parameter set.
    Sequence = 2,
    /// Picture parameter set.
    Picture = 4,
}

/// What has been found in a frame so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Coded picture data, or something unknown that may be picture data.
    pub picture: bool,
    /// An IDR, IRAP or key frame, or a recovery point.
    pub random_access: bool,
    /// A picture that depends on others.
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

    /// What `inspect` finds in the payloads of one frame.
    #[cfg(test)]
    fn of(inspect: fn(&[u8], &mut Sight), payloads: &[&[u8]]) -> Sight {
        let mut sight = Sight::default();
        for payload in payloads {
            inspect(payload, &mut sight);
        }
        sight
    }

    fn add(&mut self, set: ParameterSet) {
        self.sets |= set as u8;
    }

    /// Records picture data; `first` says whether it is the start of the picture, if that is known.
    fn add_picture(&mut self, first: Option<bool>) {
        if !self.picture {
            self.picture = true;
            self.beheaded = first == Some(false);
        }
    }
}

/// Records in `sight` what a frame's next payload contains, and passes each whole H.264 or H.265 parameter set in it to `on_set`.
pub fn inspect(codec: Codec, payload: &[u8], sight: &mut Sight, on_set: &mut dyn FnMut(&[u8])) {
    match codec {
        Codec::H264 => h264::inspect(payload, sight, on_set),
        Codec::H265 { donl } => h265::inspect(payload, donl, sight, on_set),
        Codec::Av1 => av1::inspect(payload, sight),
        Codec::Vp8 => vp8::inspect(payload, sight),
        Codec::Vp9 => vp9::inspect(payload, sight),
        Codec::Mpeg4 => mpeg4::inspect(payload, sight),
        Codec::Mpeg2 => mpeg2::inspect(payload, sight),
        Codec::H263 => h263::inspect(payload, sight),
        Codec::H263Rfc2190 => h263::inspect_rfc2190(payload, sight),
        Codec::Intra => {
            sight.add_picture(None);
            sight.random_access = true;
        }
    }
}

/// Whether an SEI message list (H.264 section 7.3.2.3, H.265 section 7.3.2.4) contains a recovery point (payload type 6 in both).
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
    // The last byte has only the trailing bits.
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
#[cfg(feature = "testing")]
pub fn fuzz(data: &[u8]) {
    let Some((&which, rest)) = data.split_first() else { return };
    let codec = match which % 11 {
        0 => Codec::H264,
        1 => Codec::H265 { donl: false },
        2 => Codec::H265 { donl: true },
        3 => Codec::Av1,
        4 => Codec::Vp8,
        5 => Codec::Vp9,
        6 => Codec::Mpeg4,
        7 => Codec::Mpeg2,
        8 => Codec::H263,
        9 => Codec::H263Rfc2190,
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
