//! The parameter sets of an H.264 or H.265 track: first from the SDP, then as they appear in the stream.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use std::time::{Duration, Instant};

use crate::limits::{
    DESCRIBED_PER_S, PARAMETER_SET_BYTES_MAX, PARAMETER_SETS_INSERTED_BYTES_PER_S, PARAMETER_SETS_MAX,
    PARAMETER_SETS_SEEN_PER_S,
};
use crate::media::codec::{Codec, ParameterSet, Sight, annex_b};

/// Base64 as found in SDPs: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    kind: ParameterSet,
    id: u32,
    nal: Box<[u8]>,
}

/// What a source's parameter sets may cost per second. Well-behaved sources never reach it.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    since: Option<Instant>,
    seen: u32,
    described: u32,
    inserted_bytes: usize,
}

/// The newest parameter set of each kind and id. Plain data that can be saved; the budget for the current second restarts then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParameterSets {
    codec: Codec,
    /// In the order in which they go before a keyframe.
    kept: Vec<Kept>,
    changed: bool,
    #[serde(skip)]
    budget: Budget,
}

impl ParameterSets {
    /// Starts empty. For codecs other than H.264 and H.265 it stays empty.
    pub fn new(codec: Codec) -> Self {
        ParameterSets { codec, kept: Vec::new(), changed: false, budget: Budget::default() }
    }

    /// Replaces the stored sets by those of `a=fmtp` (RFC 6184 section 8.1, RFC 7798 section 7.1), if it has any that can be parsed.
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

    /// To be called for each packet. Per second, this many parameter sets are parsed ([`PARAMETER_SETS_SEEN_PER_S`]), changes announced
    /// ([`DESCRIBED_PER_S`]), and bytes inserted ([`PARAMETER_SETS_INSERTED_BYTES_PER_S`]).
    pub fn at(&mut self, now: Instant) {
        let second = Duration::from_secs(1);
        if self.budget.since.is_none_or(|since| now.saturating_duration_since(since) >= second) {
            self.budget = Budget { since: Some(now), ..Budget::default() };
        }
    }

    /// Stores a parameter set of the stream. Other NAL units are ignored.
    pub fn see(&mut self, nal: &[u8]) {
        if self.budget.seen >= PARAMETER_SETS_SEEN_PER_S {
            return;
        }
        let Some((kind, id)) = identify(self.codec, nal) else { return };
        self.budget.seen += 1;
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

    /// Whether they have changed since this last returned true, and the budget allows announcing it now.
    pub fn take_changed(&mut self) -> bool {
        let tell = self.changed && self.budget.described < DESCRIBED_PER_S;
        if tell {
            self.changed = false;
            self.budget.described += 1;
        }
        tell
    }

    /// Whether the budget allows inserting this many bytes of them now.
    pub fn may_insert(&mut self, bytes: usize) -> bool {
        let inserted = self.budget.inserted_bytes + bytes;
        let may = inserted <= PARAMETER_SETS_INSERTED_BYTES_PER_S;
        if may {
            self.budget.inserted_bytes = inserted;
        }
        may
    }

    /// The stored sets of the kinds that a frame lacks.
    pub fn lacking(&self, sight: Sight) -> impl Iterator<Item = &[u8]> {
        self.kept.iter().filter(move |kept| !sight.has(kept.kind)).map(|kept| &*kept.nal)
    }

    /// The camera's format parameters with these parameter sets filled in.
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
        // The camera's order and spelling are kept; what is missing is appended.
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
            // Without it players assume mode 0, which has no fragments.
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

/// The format parameters that contain parameter sets, and of which kinds.
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

/// The parameter sets in a description (RFC 6184 section 8.1, RFC 7798 section 7.1), in the order in which they go before a keyframe.
pub fn described(codec: Codec, fmtp: Option<&str>) -> Vec<Vec<u8>> {
    let mut sets = ParameterSets::new(codec);
    sets.take_from(fmtp);
    sets.kept.into_iter().map(|kept| kept.nal.into_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const H265: Codec = Codec::H265 { donl: false };

    fn sets(codec: Codec, fmtp: &str) -> ParameterSets {
        let mut sets = ParameterSets::new(codec);
        sets.take_from(Some(fmtp));
        sets
    }

    fn all(sets: &ParameterSets) -> Vec<Vec<u8>> {
        sets.lacking(Sight::default()).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn cameras_spell_them_in_many_ways() {
        let wanted = [vec![0x67, 0x64, 0, 0x0d, 0xac], vec![0x68, 0xeb, 0xe3, 0xcb]];
        for fmtp in [
            "packetization-mode=1;sprop-parameter-sets=Z2QADaw=,aOvjyw==",
            "profile-level-id=64000D; SPROP-Parameter-Sets= Z2QADaw , aOvjyw ;packetization-mode=1",
            // Picture first, start codes left in at both ends, rubbish between.
            "sprop-parameter-sets=aOvjywAAAAE=,!,,AAAAAWdkAA2s",
        ] {
            assert_eq!(all(&sets(Codec::H264, fmtp)), wanted, "{fmtp}");
        }
        for fmtp in
            ["", "sprop-parameter-sets", "sprop-parameter-sets=", "sprop-parameter-sets=,;x=y", "sprop-sps=QgE="]
        {
            assert!(all(&sets(Codec::H264, fmtp)).is_empty(), "{fmtp}");
        }
    }

    #[test]
    fn the_newest_of_each_id_is_kept() {
        let mut kept = sets(Codec::H264, "sprop-parameter-sets=Z2QADaw=,aOvjyw==");
        kept.see(&[0x67, 0x64, 0, 0x0d, 0xac]);
        assert!(!kept.take_changed());
        // The same id with other content, another id, and NAL units that are none of it.
        kept.see(&[0x67, 0x42, 0, 0x0d, 0xff]);
        kept.see(&[0x68, 0x40, 9]);
        kept.see(&[0x65, 1, 2]);
        kept.see(&[0x67]);
        assert!(kept.take_changed() && !kept.take_changed());
        assert_eq!(all(&kept), [vec![0x67, 0x42, 0, 0x0d, 0xff], vec![0x68, 0xeb, 0xe3, 0xcb], vec![0x68, 0x40, 9]]);
        // An SDP without any does not take them away.
        kept.take_from(Some("packetization-mode=1"));
        assert_eq!(all(&kept).len(), 3);
        kept.take_from(Some("sprop-parameter-sets=Z2QADaw="));
        assert_eq!(all(&kept).len(), 1);
        for id in 0..1_000u16 {
            kept.see(&[[0x68, 0x00][..].to_vec(), (id | 0x8000).to_be_bytes().to_vec()].concat());
        }
        assert!(all(&kept).len() <= PARAMETER_SETS_MAX);
        assert!(!all(&kept).is_empty());
    }

    #[test]
    fn the_format_parameters_keep_what_is_not_theirs() {
        let mut kept = sets(Codec::H264, "sprop-parameter-sets=Z2QADaw=,aOvjyw==");
        let fmtp = |kept: &ParameterSets, camera| kept.fmtp(camera).unwrap();
        let camera = "profile-level-id=64000d;packetization-mode=1; x=y ;sprop-parameter-sets=Z2QADaw=,aOvjyw==";
        let tidy = "profile-level-id=64000d; packetization-mode=1; x=y; sprop-parameter-sets=Z2QADaw=,aOvjyw==";
        assert_eq!(fmtp(&kept, Some(camera)), tidy);
        kept.see(&[0x67, 0x42, 0xc0, 0x1e, 0xac]);
        assert_eq!(
            fmtp(&kept, Some(camera)),
            "profile-level-id=42C01E; packetization-mode=1; x=y; sprop-parameter-sets=Z0LAHqw=,aOvjyw=="
        );
        assert_eq!(ParameterSets::new(Codec::H264).fmtp(Some("a=b")).as_deref(), Some("a=b"));
        assert_eq!(ParameterSets::new(Codec::Vp8).fmtp(None), None);
    }

    #[test]
    fn h265_ids_are_read_behind_the_profile() {
        // SPS of x265, with emulation prevention in its profile: one layer, id 0. Then one that differs in its id alone.
        let sps = [0x42, 1, 1, 1, 0x60, 0, 0, 3, 0, 0x90, 0, 0, 3, 0, 0, 3, 0, 0x3c, 0xa0, 0x0a, 8];
        let mut other = sps;
        other[18] = 0x50;
        assert_eq!(identify(H265, &sps), Some((ParameterSet::Sequence, 0)));
        assert_eq!(identify(H265, &other), Some((ParameterSet::Sequence, 1)));
        // Two sub-layers, the first with a level of its own.
        let mut layered = vec![0x42, 1, 0x03];
        layered.extend_from_slice(&[0x11; 12]);
        layered.extend_from_slice(&[0x40, 0, 0x5a, 0xa0, 0]);
        assert_eq!(identify(H265, &layered), Some((ParameterSet::Sequence, 0)));
        assert_eq!(identify(H265, &[0x40, 1, 0x1c]), Some((ParameterSet::Video, 1)));
        assert_eq!(identify(H265, &[0x44, 1, 0xc1]), Some((ParameterSet::Picture, 0)));
        for short in [&[0x42, 1][..], &[0x42, 1, 0x0f, 0xff], &[0x44, 1, 0], &[0x40, 1], &[0x40], &[]] {
            assert_eq!(identify(H265, short), None);
        }
        let mut kept = sets(H265, "sprop-vps=QAEc; sprop-pps=RAHBcg==; sprop-sps=QgEBAWAAAAMAkAAAAwAAAwA8oAoI");
        assert_eq!(all(&kept).len(), 3);
        kept.see(&other);
        assert!(
            kept.fmtp(None).unwrap().contains("sprop-sps=QgEBAWAAAAMAkAAAAwAAAwA8oAoI,QgEBAWAAAAMAkAAAAwAAAwA8UAoI")
        );
    }

    #[test]
    fn a_source_has_a_budget_of_them_in_each_second() {
        let now = Instant::now();
        let mut kept = sets(Codec::H264, "sprop-parameter-sets=Z2QADaw=,aOvjyw==");
        let set = |content: u16| [&[0x68, 0xeb][..], &content.to_be_bytes()].concat();
        for at in [now, now + Duration::from_secs(1)] {
            let mut told = 0;
            for content in 0..60_000 {
                kept.at(at);
                kept.see(&set(content + (at > now) as u16));
                told += u32::from(kept.take_changed());
            }
            assert_eq!(told, DESCRIBED_PER_S);
            let newest = all(&kept).pop().unwrap();
            assert_eq!(
                u16::from_be_bytes([newest[2], newest[3]]) as u32 + 1 - (at > now) as u32,
                PARAMETER_SETS_SEEN_PER_S
            );
        }
        // What could not be announced then is announced when the budget allows it.
        kept.at(now + Duration::from_secs(2));
        assert!(kept.take_changed() && !kept.take_changed());
        let inserted = (0..).take_while(|_| kept.may_insert(1_000)).count();
        assert_eq!(inserted, PARAMETER_SETS_INSERTED_BYTES_PER_S / 1_000);
        kept.at(now + Duration::from_secs(3));
        assert!(kept.may_insert(1_000));
    }

    #[test]
    fn only_lacking_kinds_are_told() {
        let kept = sets(Codec::H264, "sprop-parameter-sets=Z2QADaw=,aOvjyw==");
        let mut sight = Sight::default();
        super::super::inspect(Codec::H264, &[0x67, 0x64, 0, 0x0d, 0xac], &mut sight, &mut |_| {});
        assert_eq!(kept.lacking(sight).collect::<Vec<_>>(), [&[0x68, 0xeb, 0xe3, 0xcb]]);
    }
}
