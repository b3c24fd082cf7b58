//! The parameter sets of an H.264 or H.265 track: from the SDP, then as the stream brings them.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::limits::{PARAMETER_SET_BYTES_MAX, PARAMETER_SETS_MAX};
use crate::stream::keyframe::{Codec, ParameterSet, Sight, annex_b};

/// Base64 as SDPs have it: with the padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    kind: ParameterSet,
    id: u32,
    nal: Box<[u8]>,
}

/// The newest parameter set of each kind and id.
#[derive(Clone, Debug)]
pub struct ParameterSets {
    codec: Codec,
    /// In the order in which they go before a keyframe.
    kept: Vec<Kept>,
    changed: bool,
}

impl ParameterSets {
    /// None yet. Of codecs other than H.264 and H.265 there never are any.
    pub fn new(codec: Codec) -> Self {
        ParameterSets { codec, kept: Vec::new(), changed: false }
    }

    /// Takes those of `a=fmtp` (RFC 6184 section 8.1, RFC 7798 section 7.1), if it has some that can be read, in place of what is
    /// kept.
    pub fn take_from(&mut self, fmtp: Option<&str>) {
        let mut found = ParameterSets::new(self.codec);
        for (key, value) in items(fmtp) {
            if names(self.codec).iter().any(|(name, _)| key.eq_ignore_ascii_case(name)) {
                for coded in value.split(',') {
                    let Ok(bytes) = BASE64.decode(coded.trim()) else { continue };
                    // Some cameras leave start codes in.
                    annex_b::nal_units(&bytes).for_each(|nal| found.see(nal));
                }
            }
        }
        if !found.kept.is_empty() {
            self.kept = found.kept;
        }
        self.changed = false;
    }

    /// Keeps a parameter set of the stream. Other NAL units are passed over.
    pub fn see(&mut self, nal: &[u8]) {
        let Some((kind, id)) = identify(self.codec, nal) else { return };
        if nal.len() > PARAMETER_SET_BYTES_MAX {
            return;
        }
        match self.kept.binary_search_by_key(&(kind, id), |kept| (kept.kind, kept.id)) {
            Ok(index) if *self.kept[index].nal == *nal => return,
            Ok(index) => self.kept[index].nal = nal.into(),
            Err(_) if self.kept.len() >= PARAMETER_SETS_MAX => return,
            Err(index) => self.kept.insert(index, Kept { kind, id, nal: nal.into() }),
        }
        self.changed = true;
    }

    /// Whether they have changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Those kept of the kinds that a frame lacks.
    pub fn lacking(&self, sight: Sight) -> impl Iterator<Item = &[u8]> {
        self.kept.iter().filter(move |kept| !sight.has(kept.kind)).map(|kept| &*kept.nal)
    }

    /// The camera's format parameters with these parameter sets in them.
    pub fn fmtp(&self, camera: Option<&str>) -> Option<String> {
        let mut ours: Vec<(&str, String)> = Vec::new();
        if let (Codec::H264, Some(sps)) = (self.codec, self.kept.iter().find(|k| k.kind == ParameterSet::Sequence))
            && let Some([a, b, c]) = sps.nal.get(1..4)
        {
            ours.push(("profile-level-id", format!("{a:02X}{b:02X}{c:02X}")));
        }
        for &(name, kinds) in names(self.codec) {
            let coded: Vec<String> = self
                .kept
                .iter()
                .filter(|kept| kinds.contains(&kept.kind))
                .map(|kept| BASE64.encode(&kept.nal))
                .collect();
            if !coded.is_empty() {
                ours.push((name, coded.join(",")));
            }
        }
        if ours.is_empty() {
            return camera.map(str::to_owned);
        }
        // The camera's order and spelling stay; what it lacks goes to the end.
        let mut out: Vec<String> = Vec::new();
        for item in camera.into_iter().flat_map(|fmtp| fmtp.split(';')).map(str::trim).filter(|item| !item.is_empty()) {
            let key = item.split('=').next().unwrap_or(item).trim();
            match ours.iter().position(|(name, _)| key.eq_ignore_ascii_case(name)) {
                Some(index) => {
                    let (_, value) = ours.remove(index);
                    let camera_value = item.split_once('=').map_or("", |(_, value)| value.trim());
                    let value = if value.eq_ignore_ascii_case(camera_value) { camera_value } else { &value };
                    out.push(format!("{key}={value}"));
                }
                None => out.push(item.to_owned()),
            }
        }
        if self.codec == Codec::H264 && !items(camera).any(|(key, _)| key.eq_ignore_ascii_case("packetization-mode")) {
            // Without it players take mode 0, which has no fragments.
            out.insert(0, "packetization-mode=1".to_owned());
        }
        out.extend(ours.into_iter().map(|(name, value)| format!("{name}={value}")));
        Some(out.join("; "))
    }
}

/// The `key=value` items of `a=fmtp`.
fn items(fmtp: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    fmtp.into_iter()
        .flat_map(|fmtp| fmtp.split(';'))
        .filter_map(|item| item.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
}

/// The format parameters that hold parameter sets, and of which kinds.
fn names(codec: Codec) -> &'static [(&'static str, &'static [ParameterSet])] {
    use ParameterSet::{Picture, Sequence, Video};
    match codec {
        Codec::H264 => &[("sprop-parameter-sets", &[Sequence, Picture])],
        Codec::H265 { .. } => &[("sprop-vps", &[Video]), ("sprop-sps", &[Sequence]), ("sprop-pps", &[Picture])],
        _ => &[],
    }
}

/// What kind of parameter set it is, and its id.
fn identify(codec: Codec, nal: &[u8]) -> Option<(ParameterSet, u32)> {
    let first = *nal.first()?;
    match codec {
        Codec::H264 => match first & 0x1f {
            // Profile, constraints and level come first (H.264 section 7.3.2.1.1).
            7 => Some((ParameterSet::Sequence, Bits::new(nal.get(4..)?).ue()?)),
            8 => Some((ParameterSet::Picture, Bits::new(nal.get(1..)?).ue()?)),
            _ => None,
        },
        Codec::H265 { .. } => {
            let mut bits = Bits::new(nal.get(2..)?);
            match first >> 1 & 0x3f {
                32 => Some((ParameterSet::Video, bits.take(4)?)),
                33 => Some((ParameterSet::Sequence, h265_sps_id(&mut bits)?)),
                34 => Some((ParameterSet::Picture, bits.ue()?)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Reads up to sps_seq_parameter_set_id (H.265 sections 7.3.2.2.1 and 7.3.3).
fn h265_sps_id(bits: &mut Bits) -> Option<u32> {
    bits.skip(4)?;
    let layers = bits.take(3)?;
    bits.skip(1 + 88 + 8)?;
    let mut flags = [(0, 0); 7];
    for flag in flags.iter_mut().take(layers as usize) {
        *flag = (bits.take(1)?, bits.take(1)?);
    }
    if layers > 0 {
        bits.skip(2 * (8 - layers as usize))?;
    }
    for (profile, level) in flags {
        bits.skip(88 * profile as usize + 8 * level as usize)?;
    }
    bits.ue()
}

/// Reads bits of a NAL unit's first bytes, past emulation prevention.
struct Bits {
    bytes: [u8; 128],
    len: usize,
    at: usize,
}

impl Bits {
    fn new(nal: &[u8]) -> Self {
        let mut bits = Bits { bytes: [0; 128], len: 0, at: 0 };
        let mut zeros = 0;
        for &byte in nal {
            if zeros >= 2 && byte == 3 {
                zeros = 0;
                continue;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            let Some(place) = bits.bytes.get_mut(bits.len) else { break };
            *place = byte;
            bits.len += 1;
        }
        bits
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.len * 8).then_some(())
    }

    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes[..self.len].get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    /// Exp-Golomb, unsigned (H.264 section 9.1).
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > 16 {
                return None;
            }
        }
        Some((1 << zeros) - 1 + self.take(zeros)?)
    }
}
