//! How a track is represented in MP4: whether browsers can play it, its sample entry, and its codec name in MIME types.

use serde::{Deserialize, Serialize};

use super::boxes;
use super::flac::{self, Pcm};
use crate::media::Track;
use crate::media::codec::bits::Bits;
use crate::media::codec::sps::Sps;
use crate::media::codec::{Codec, av1, vp9};

/// How a track's packets are converted to samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264 or H.265.
    Nal(Codec),
    /// AV1.
    Av1,
    /// VP9.
    Vp9,
    /// Motion JPEG, as one message per picture.
    Jpeg,
    /// AAC (RFC 3640).
    Aac(Aac),
    /// Opus (RFC 7587).
    Opus,
    /// Uncompressed audio or G.711, which are converted to FLAC.
    Pcm(Pcm, Samples),
}

/// Encoding of uncompressed audio samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// G.711 µ-law.
    MuLaw,
    /// G.711 A-law.
    ALaw,
    /// 16 bits, big-endian (RFC 3551 section 4.5.11).
    L16,
}

/// AAC as its packets carry it (RFC 3640 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aac {
    /// The AudioSpecificConfig (ISO/IEC 14496-3 section 1.6.2.1).
    pub config: Vec<u8>,
    /// The audio object type.
    pub object: u8,
    /// Samples per second.
    pub rate: u32,
    /// Channels.
    pub channels: u16,
    /// Samples per access unit.
    pub unit_samples: u32,
    /// Bits of the size of each access unit.
    pub size_bits: u32,
    /// Bits of the index, for the first and further units.
    pub index_bits: (u32, u32),
}

/// What a browser needs before a track's first fragment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The name of the codec (RFC 6381).
    pub codec: String,
    /// The initialization segment.
    #[serde(with = "crate::media::saved::bytes")]
    pub segment: bytes::Bytes,
    /// The picture's size.
    pub picture: Option<(u16, u16)>,
}

/// The value of a parameter of `a=fmtp`.
fn parameter<'a>(fmtp: Option<&'a str>, name: &str) -> Option<&'a str> {
    let items = fmtp?.split(';').filter_map(|item| item.trim().split_once('='));
    items.into_iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

impl Format {
    /// The format of a track.
    ///
    /// # Errors
    /// Why browsers cannot play it, as text for people.
    pub fn of(track: &Track) -> Result<Format, &'static str> {
        let pcm = |samples| {
            let channels = u8::try_from(track.channels.unwrap_or(1)).ok().filter(|channels| (1..=8).contains(channels));
            let rate = Some(track.clock_rate).filter(|rate| *rate <= 655_350);
            match (rate, channels) {
                (Some(rate), Some(channels)) => Ok(Format::Pcm(Pcm { rate, channels }, samples)),
                _ => Err("sound of more channels or samples than browsers play"),
            }
        };
        let codec = Codec::new(&track.encoding, track.fmtp.as_deref());
        match (track.media.as_str(), codec, track.encoding.to_ascii_uppercase().as_str()) {
            ("video", Codec::H264 | Codec::H265 { .. }, _) => Ok(Format::Nal(codec)),
            ("video", Codec::Av1, _) => Ok(Format::Av1),
            ("video", Codec::Vp9, _) => Ok(Format::Vp9),
            ("video", _, "JPEG") => Ok(Format::Jpeg),
            ("video", Codec::Vp8, _) => Err("VP8, which browsers do not play in MP4"),
            ("video", ..) => Err("a video codec that browsers do not play"),
            ("audio", _, "MPEG4-GENERIC") => {
                Aac::of(track).map(Format::Aac).ok_or("AAC with parameters that make no sense")
            }
            ("audio", _, "OPUS") => Ok(Format::Opus),
            ("audio", _, "PCMU") => pcm(Samples::MuLaw),
            ("audio", _, "PCMA") => pcm(Samples::ALaw),
            ("audio", _, "L16") => pcm(Samples::L16),
            ("audio", ..) => Err("an audio codec that browsers do not play"),
            _ => Err("neither video nor sound"),
        }
    }

    /// Whether it is video.
    pub fn is_video(&self) -> bool {
        matches!(self, Format::Nal(_) | Format::Av1 | Format::Vp9 | Format::Jpeg)
    }

    /// The initialization segment of an audio track, which does not depend on the data; `None` for video.
    pub fn audio_init(&self, timescale: u32) -> Option<Init> {
        let (codec, entry) = match self {
            Format::Aac(aac) => (
                format!("mp4a.40.{}", aac.object),
                boxes::audio_entry(b"mp4a", aac.channels, aac.rate, &esds(&aac.config)),
            ),
            Format::Opus => ("opus".into(), boxes::audio_entry(b"Opus", 2, 48_000, &dops())),
            Format::Pcm(pcm, _) => {
                ("flac".into(), boxes::audio_entry(b"fLaC", pcm.channels.into(), pcm.rate, &flac::config(*pcm)))
            }
            _ => return None,
        };
        let segment = boxes::initialization(&boxes::TrackInfo { timescale, picture: None, entry: &entry });
        Some(Init { codec, segment, picture: None })
    }

    /// That of video with these parameter sets (H.264, H.265), or with this key frame's bytes (AV1, VP9). `None` if they lack the
    /// necessary information. `in_order`: the H.264 stream is known to show its pictures in decoding order.
    pub fn video_init(&self, timescale: u32, sets: &[Vec<u8>], frame: &[u8], in_order: bool) -> Option<Init> {
        let (codec, kind, picture, config) = match self {
            Format::Nal(Codec::H264) => avc(sets, in_order)?,
            Format::Nal(_) => hevc(sets)?,
            Format::Av1 => av1_config(frame)?,
            Format::Vp9 => vp9_config(frame)?,
            _ => return None,
        };
        let entry = boxes::visual_entry(&kind, picture, &config);
        let segment = boxes::initialization(&boxes::TrackInfo { timescale, picture: Some(picture), entry: &entry });
        Some(Init { codec, segment, picture: Some(picture) })
    }
}

type Config = (String, [u8; 4], (u16, u16), Vec<u8>);

/// The sequence parameter set of H.264 that applies: the last one.
pub(super) fn avc_sps(sets: &[Vec<u8>]) -> Option<&[u8]> {
    let is_sps = |set: &&Vec<u8>| set.len() >= 4 && set[0] & 0x1f == 7;
    sets.iter().rfind(is_sps).map(Vec::as_slice)
}

/// `avcC` (ISO/IEC 14496-15 section 5.3.3.1).
fn avc(sets: &[Vec<u8>], in_order: bool) -> Option<Config> {
    let of = |kind| sets.iter().filter(move |set| set.first().is_some_and(|first| first & 0x1f == kind));
    let sps = avc_sps(sets)?;
    let told = Sps::h264(sps)?;
    let says_so = Sps::without_reordering(sps, in_order);
    let sps = says_so.as_deref().unwrap_or(sps);
    let pictures: Vec<_> = of(8).collect();
    if pictures.is_empty() {
        return None;
    }
    let mut out = Vec::new();
    boxes::boxed(&mut out, b"avcC", |out| {
        // Lengths of four bytes, one sequence parameter set.
        out.extend_from_slice(&[1, sps[1], sps[2], sps[3], 0xff, 0xe1]);
        boxes::u16(out, sps.len() as u16);
        out.extend_from_slice(sps);
        out.push(pictures.len() as u8);
        for set in &pictures {
            boxes::u16(out, set.len() as u16);
            out.extend_from_slice(set);
        }
        if matches!(sps[1], 100 | 110 | 122 | 144 | 244) {
            out.extend_from_slice(&[0xfc | told.chroma, 0xf8 | (told.luma_bits - 8), 0xf8 | (told.chroma_bits - 8), 0]);
        }
    });
    let codec = format!("avc1.{:02x}{:02x}{:02x}", sps[1], sps[2], sps[3]);
    Some((codec, *b"avc1", (told.width, told.height), out))
}

/// `hvcC` (ISO/IEC 14496-15 section 8.3.3.1).
fn hevc(sets: &[Vec<u8>]) -> Option<Config> {
    let of = |kind| sets.iter().filter(move |set| set.first().is_some_and(|first| first >> 1 & 0x3f == kind));
    let sps = of(33).next_back()?;
    let told = Sps::h265(sps)?;
    let rbsp = crate::media::codec::bits::unescape(sps);
    // After the header of two bytes: ids and sub-layers, then the general profile, tier and level.
    let (layers, profile) = (*rbsp.get(2)?, rbsp.get(3..15)?);
    let mut out = Vec::new();
    boxes::boxed(&mut out, b"hvcC", |out| {
        out.push(1);
        out.extend_from_slice(profile);
        out.extend_from_slice(&[0xf0, 0, 0xfc, 0xfc | told.chroma]);
        out.extend_from_slice(&[0xf8 | (told.luma_bits - 8), 0xf8 | (told.chroma_bits - 8), 0, 0]);
        let sub_layers = (layers >> 1 & 7) + 1;
        out.push(sub_layers << 3 | (layers & 1) << 2 | 3);
        out.push(3);
        for kind in [32, 33, 34] {
            let sets: Vec<_> = of(kind).collect();
            // All of them are here, and none are in the samples.
            out.push(0x80 | kind);
            boxes::u16(out, sets.len() as u16);
            for set in sets {
                boxes::u16(out, set.len() as u16);
                out.extend_from_slice(set);
            }
        }
    });
    of(32).next()?;
    of(34).next()?;
    Some((hevc_codec(profile), *b"hvc1", (told.width, told.height), out))
}

/// The name of a profile (ISO/IEC 14496-15 annex E.3).
fn hevc_codec(profile: &[u8]) -> String {
    let space = ["", "A", "B", "C"][usize::from(profile[0] >> 6)];
    let compatible = u32::from_be_bytes([profile[1], profile[2], profile[3], profile[4]]).reverse_bits();
    let tier = if profile[0] & 0x20 != 0 { 'H' } else { 'L' };
    let mut codec = format!("hvc1.{space}{}.{compatible:X}.{tier}{}", profile[0] & 0x1f, profile[11]);
    let used = profile[5..11].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    for byte in &profile[5..5 + used] {
        codec.push_str(&format!(".{byte:X}"));
    }
    codec
}

/// `av1C` (AV1 Codec ISO Media File Format Binding section 2.3).
fn av1_config(frame: &[u8]) -> Option<Config> {
    let (obu, told) = av1::sequence_header(frame)?;
    let mut out = Vec::new();
    boxes::boxed(&mut out, b"av1C", |out| {
        out.push(0x81);
        out.push(told.profile << 5 | told.level);
        let depth = u8::from(told.bits > 8) << 6 | u8::from(told.bits == 12) << 5;
        out.push(u8::from(told.high_tier) << 7 | depth | told.chroma);
        out.push(0);
        out.extend_from_slice(obu);
    });
    let tier = if told.high_tier { 'H' } else { 'M' };
    let codec = format!("av01.{}.{:02}{tier}.{:02}", told.profile, told.level, told.bits);
    Some((codec, *b"av01", told.picture, out))
}

/// `vpcC` (VP Codec ISO Media File Format Binding).
fn vp9_config(frame: &[u8]) -> Option<Config> {
    let told = vp9::key_frame(frame)?;
    let mut out = Vec::new();
    // The lowest level that fits the picture; browsers do not check it.
    let level = match u32::from(told.picture.0) * u32::from(told.picture.1) {
        0..=245_760 => 21,
        245_761..=983_040 => 31,
        983_041..=2_228_224 => 41,
        _ => 51,
    };
    boxes::full(&mut out, b"vpcC", 1, 0, |out| {
        out.extend_from_slice(&[told.profile, level, told.bits << 4 | told.chroma << 1, 2, 2, 2, 0, 0]);
    });
    let codec = format!("vp09.{:02}.{level:02}.{:02}", told.profile, told.bits);
    Some((codec, *b"vp09", told.picture, out))
}

/// `esds` (ISO/IEC 14496-14 section 5.6) with this AudioSpecificConfig.
fn esds(config: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let len = config.len() as u8;
    boxes::full(&mut out, b"esds", 0, 0, |out| {
        // ES_Descriptor, DecoderConfigDescriptor (AAC, an audio stream), DecoderSpecificInfo, SLConfigDescriptor.
        out.extend_from_slice(&[3, 23 + len, 0, 1, 0]);
        out.extend_from_slice(&[4, 15 + len, 0x40, 0x15, 0, 0, 0]);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&[5, len]);
        out.extend_from_slice(config);
        out.extend_from_slice(&[6, 1, 2]);
    });
    out
}

/// `dOps` (Encapsulation of Opus in ISO Base Media File Format section 4.3.2).
fn dops() -> Vec<u8> {
    let mut out = Vec::new();
    boxes::boxed(&mut out, b"dOps", |out| {
        // Version, channels, no samples to skip, the rate, no gain, no mapping.
        out.extend_from_slice(&[0, 2, 0, 0]);
        boxes::u32(out, 48_000);
        out.extend_from_slice(&[0, 0, 0]);
    });
    out
}

impl Aac {
    fn of(track: &Track) -> Option<Aac> {
        const RATES: [u32; 13] =
            [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];
        let fmtp = track.fmtp.as_deref();
        let hex = parameter(fmtp, "config").filter(|hex| hex.is_ascii() && hex.len() <= 128)?;
        let config: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok())
            .collect::<Option<_>>()?;
        let mut bits = Bits::new(&config);
        let mut object = bits.bits(5)?;
        if object == 31 {
            object = 32 + bits.bits(6)?;
        }
        let rate = match bits.bits(4)? {
            15 => bits.bits(24)?,
            index => *RATES.get(index as usize)?,
        };
        let channels = match bits.bits(4)? {
            0 => track.channels.unwrap_or(2),
            7 => 8,
            channels => channels as u16,
        };
        // With SBR, a second rate and the real object type come before the frame length.
        if matches!(object, 5 | 29) {
            if bits.bits(4)? == 15 {
                bits.bits(24)?;
            }
            bits.bits(5)?;
        }
        let is_short = bits.bit().unwrap_or(false);
        let number =
            |name| parameter(fmtp, name).and_then(|value| value.parse::<u32>().ok()).filter(|bits| *bits <= 32);
        Some(Aac {
            config,
            object: object as u8,
            rate,
            channels,
            unit_samples: if is_short { 960 } else { 1_024 },
            size_bits: number("sizelength").filter(|bits| *bits > 0)?,
            index_bits: (number("indexlength").unwrap_or(0), number("indexdeltalength").unwrap_or(0)),
        })
    }

    /// The access units of a payload. Truncated ones are omitted.
    pub fn units<'a>(&self, payload: &'a [u8]) -> Vec<&'a [u8]> {
        let Some((bits, rest)) = payload.split_first_chunk::<2>() else { return Vec::new() };
        let header_bits = usize::from(u16::from_be_bytes(*bits));
        let Some((headers, mut media)) = rest.split_at_checked(header_bits.div_ceil(8)) else { return Vec::new() };
        let mut headers = Bits::new(headers);
        let mut units = Vec::new();
        let mut read = 0;
        while read < header_bits {
            let index = if units.is_empty() { self.index_bits.0 } else { self.index_bits.1 };
            let (Some(size), Some(_)) = (headers.bits(self.size_bits), headers.bits(index)) else { break };
            read += (self.size_bits + index) as usize;
            let Some((unit, more)) = media.split_at_checked(size as usize) else { break };
            if !unit.is_empty() {
                units.push(unit);
            }
            media = more;
        }
        units
    }

    /// An access unit of silence, of AAC LC with one or two channels.
    pub fn silence(&self) -> Option<&'static [u8]> {
        // One channel: SCE with a global gain and no bands. Two: CPE with a common window. Then END.
        match (self.object, self.channels) {
            (2, 1) => Some(&[0x00, 0xc8, 0x00, 0x07]),
            (2, 2) => Some(&[0x21, 0x00, 0x03, 0x20, 0x64, 0x1c]),
            _ => None,
        }
    }
}

/// Samples at 48 kHz in an Opus packet (RFC 6716 section 3.1); 0 if it is invalid.
pub(super) fn opus_samples(packet: &[u8]) -> u32 {
    let Some(&toc) = packet.first() else { return 0 };
    let frame = match toc >> 3 {
        config @ 0..=11 => [480, 960, 1_920, 2_880][usize::from(config & 3)],
        config @ 12..=15 => [480, 960][usize::from(config & 1)],
        config => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => packet.get(1).map_or(0, |count| u32::from(count & 0x3f)),
    };
    (frame * frames).min(5_760)
}
