//! The audio of the test source: a quiet tone in PCMU.

use std::f64::consts::TAU;

/// Samples a second.
pub const RATE: u32 = 8_000;

/// Samples after which the tone repeats: 11 periods of 440 Hz.
const PERIOD: usize = 200;

/// Peak amplitude; full scale is 32,767, so this is about 20 dB below.
const AMPLITUDE: f64 = 3_000.0;

/// A continuous 440 Hz sine.
#[derive(Clone, Debug)]
pub struct Tone {
    table: Vec<u8>,
    next: usize,
}

impl Default for Tone {
    fn default() -> Self {
        let turns = 440.0 / f64::from(RATE);
        let sample = |index: usize| (AMPLITUDE * (TAU * turns * index as f64).sin()).round() as i16;
        Tone { table: (0..PERIOD).map(|index| mu_law(sample(index))).collect(), next: 0 }
    }
}

impl From<usize> for Tone {
    /// The tone from that sample of its period on.
    fn from(at: usize) -> Tone {
        Tone { next: at % PERIOD, ..Tone::default() }
    }
}

impl Tone {
    /// The next sample's place in the period.
    pub fn at(&self) -> usize {
        self.next
    }

    /// Fills `out` with the next samples.
    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            *byte = self.table[self.next];
            self.next = (self.next + 1) % PERIOD;
        }
    }
}

/// A 16-bit sample as G.711 µ-law.
pub fn mu_law(sample: i16) -> u8 {
    // G.711 uses 14 bits; adding 33 shifts every value into a segment that starts at a power of two.
    let magnitude = (i32::from(sample).unsigned_abs().min(32_635) + 132) as u16;
    let segment = (magnitude.ilog2() - 7) as u8;
    let step = (magnitude >> (segment + 3)) as u8 & 0x0f;
    let sign = if sample < 0 { 0x80 } else { 0 };
    !(sign | segment << 4 | step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The middle of a µ-law step, as in G.711 table 2b, in 16 bits.
    fn linear(byte: u8) -> i16 {
        let byte = !byte;
        let magnitude = ((i32::from(byte & 0x0f) << 3) + 0x84) << (byte >> 4 & 7);
        let value = magnitude - 0x84;
        (if byte & 0x80 == 0 { value } else { -value }) as i16
    }

    #[test]
    fn mu_law_meets_known_values() {
        assert_eq!(mu_law(0), 0xff);
        assert_eq!(mu_law(-1), 0x7f);
        assert_eq!(mu_law(i16::MAX), 0x80);
        assert_eq!(mu_law(i16::MIN), 0x00);
    }

    #[test]
    fn every_code_but_negative_zero_comes_back() {
        for code in 0..=255u8 {
            let want = if code == 0x7f { 0xff } else { code };
            assert_eq!(mu_law(linear(code)), want, "code {code:#x}");
        }
    }

    #[test]
    fn no_sample_is_far_off() {
        for sample in i16::MIN..=i16::MAX {
            let error = (i32::from(linear(mu_law(sample))) - i32::from(sample)).abs();
            assert!(error <= i32::from(sample).abs() / 16 + 10, "{sample}: off by {error}");
        }
    }

    #[test]
    fn the_tone_goes_on_where_it_stopped() {
        let (mut whole, mut parts) = ([0; 1000], [0; 1000]);
        Tone::default().fill(&mut whole);
        let mut tone = Tone::default();
        for part in parts.chunks_mut(160) {
            tone.fill(part);
        }
        assert_eq!(whole, parts);
        let loudest = whole.iter().map(|&byte| linear(byte).abs()).max();
        assert!(loudest.is_some_and(|loudest| (2_800..3_200).contains(&loudest)));
    }
}
