//! Audio. Its samples must follow each other without gaps, or browsers stop.

use smallvec::{SmallVec, smallvec};

use super::boxes::Sample;
use super::flac::{self, BLOCK_SAMPLES_MAX};
use super::format::{Format, Samples, opus_samples};
use super::{Last, Payloads, Unit};
use crate::limits::SILENCE_MAX_MS;

/// A timestamp may differ by this much from the end of the previous sample without counting as a gap, because cameras compute
/// timestamps from their clocks.
const JITTER_MS: i64 = 40;

/// Converts an audio frame. A gap since the previous frame is filled with silence if it is not longer than [`SILENCE_MAX_MS`].
pub(super) fn unit(
    format: &Format,
    rate: u32,
    last: &mut Option<Last>,
    payloads: &Payloads<'_>,
    frame: u64,
    shown: i64,
) -> Option<Unit> {
    let follows = last.filter(|last| last.frame < frame && frame - last.frame <= 64);
    let ms = i64::from(rate) / 1_000;
    let (start, missing) = match follows.map(|last| (last.ticks, shown - last.ticks)) {
        Some((end, off)) if off.abs() <= JITTER_MS * ms => (end, 0),
        Some((end, off)) if (0..=i64::from(SILENCE_MAX_MS) * ms).contains(&off) => (end, off),
        _ => (shown, 0),
    };
    let mut unit = Unit { media: Vec::new(), samples: smallvec![], decoded: start, offset: 0, is_sync: true };
    silence(format, rate, missing, start, &mut unit);
    for (payload, _) in payloads.iter() {
        media(format, rate, payload, start, &mut unit);
    }
    if unit.media.is_empty() {
        return None;
    }
    *last = Some(Last { frame, ticks: start + duration(&unit.samples) });
    Some(unit)
}

fn duration(samples: &SmallVec<[Sample; 2]>) -> i64 {
    samples.iter().map(|sample| i64::from(sample.duration)).sum()
}

fn push(unit: &mut Unit, bytes: &[u8], duration: u32) {
    unit.media.extend_from_slice(bytes);
    unit.samples.push(Sample { size: bytes.len() as u32, duration });
}

/// Appends silence of approximately this many ticks.
fn silence(format: &Format, rate: u32, missing: i64, start: i64, unit: &mut Unit) {
    match format {
        Format::Aac(aac) => {
            let Some(silent) = aac.silence() else { return };
            let ticks = ticks(aac.unit_samples, aac.rate, rate);
            for _ in 0..missing / i64::from(ticks.max(1)) {
                push(unit, silent, ticks);
            }
        }
        Format::Opus => {
            // A packet of 20 ms without frame data: the decoder conceals the loss (RFC 6716 section 3.2.1), then falls silent.
            for _ in 0..missing / 960 {
                push(unit, &[0xf8], 960);
            }
        }
        Format::Pcm(pcm, _) => {
            let mut missing = usize::try_from(missing).unwrap_or(0);
            while missing > 0 {
                let block = missing.min(BLOCK_SAMPLES_MAX);
                let zeros = vec![0; block * usize::from(pcm.channels)];
                flac_block(*pcm, &zeros, start, unit);
                missing -= block;
            }
        }
        _ => {}
    }
}

/// Duration of this many samples in ticks.
fn ticks(samples: u32, sample_rate: u32, rate: u32) -> u32 {
    (u64::from(samples) * u64::from(rate) / u64::from(sample_rate.max(1))) as u32
}

fn flac_block(pcm: flac::Pcm, samples: &[i16], start: i64, unit: &mut Unit) {
    let first = (start + duration(&unit.samples)).max(0) as u64;
    let before = unit.media.len();
    flac::frame(&mut unit.media, pcm, first, samples);
    let size = (unit.media.len() - before) as u32;
    unit.samples.push(Sample { size, duration: (samples.len() / usize::from(pcm.channels)) as u32 });
}

/// Appends the contents of a payload.
fn media(format: &Format, rate: u32, payload: &[u8], start: i64, unit: &mut Unit) {
    match format {
        Format::Aac(aac) => {
            let ticks = ticks(aac.unit_samples, aac.rate, rate);
            for bytes in aac.units(payload) {
                push(unit, bytes, ticks);
            }
        }
        Format::Opus => {
            let samples = opus_samples(payload);
            if samples > 0 {
                push(unit, payload, samples);
            }
        }
        Format::Pcm(pcm, kind) => {
            let samples: Vec<i16> = match kind {
                Samples::MuLaw => payload.iter().map(|byte| flac::g711(*byte, true)).collect(),
                Samples::ALaw => payload.iter().map(|byte| flac::g711(*byte, false)).collect(),
                Samples::L16 => payload.as_chunks::<2>().0.iter().map(|pair| i16::from_be_bytes(*pair)).collect(),
            };
            let channels = usize::from(pcm.channels);
            let whole = samples.len() / channels * channels;
            for block in samples[..whole].chunks(BLOCK_SAMPLES_MAX * channels) {
                flac_block(*pcm, block, start, unit);
            }
        }
        _ => {}
    }
}
