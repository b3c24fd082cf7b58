//! A minimal FLAC (RFC 9639) encoder, because browsers play FLAC in MP4, but neither G.711 nor PCM.
//!
//! A block is coded with a fixed second-order predictor and one Rice parameter, or as a constant if it is silent.

use super::boxes;

/// Parameters of a stream of 16-bit samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pcm {
    /// Sample rate of each channel; at most 655,350.
    pub rate: u32,
    /// Channels, 1 to 8.
    pub channels: u8,
}

/// Maximum number of samples in a block.
pub(super) const BLOCK_SAMPLES_MAX: usize = 4_608;

/// The sample entry's box (`dfLa`) with STREAMINFO (RFC 9639 section 8.2).
pub(super) fn config(pcm: Pcm) -> Vec<u8> {
    let mut out = Vec::new();
    boxes::full(&mut out, b"dfLa", 0, 0, |out| {
        // The last metadata block, of type 0.
        out.extend_from_slice(&[0x80, 0, 0, 34]);
        boxes::u16(out, 16);
        boxes::u16(out, BLOCK_SAMPLES_MAX as u16);
        // Sizes of frames, and the number of samples: unknown.
        out.extend_from_slice(&[0; 6]);
        let packed = u64::from(pcm.rate) << 44 | u64::from(pcm.channels - 1) << 41 | 15 << 36;
        boxes::u64(out, packed);
        out.extend_from_slice(&[0; 16]);
    });
    out
}

/// Appends a frame of interleaved samples; `number` is that of the first sample.
///
/// # Panics
/// If there are no samples, more than [`BLOCK_SAMPLES_MAX`] per channel, or an incomplete set of channels.
pub(super) fn frame(out: &mut Vec<u8>, pcm: Pcm, first: u64, samples: &[i16]) {
    let channels = usize::from(pcm.channels);
    let block = samples.len() / channels;
    assert!(block > 0 && block <= BLOCK_SAMPLES_MAX && samples.len() == block * channels);
    let start = out.len();
    // Sync code, blocks of varying size.
    out.extend_from_slice(&[0xff, 0xf9]);
    // The block's size in 16 bits at the end of the header; the rate as in STREAMINFO.
    out.push(0x70);
    out.push((pcm.channels - 1) << 4 | 0x08);
    coded_number(out, first & 0xf_ffff_ffff);
    boxes::u16(out, (block - 1) as u16);
    out.push(crc8(&out[start..]));
    let mut bits = Writer { out, held: 0, count: 0 };
    for channel in 0..channels {
        subframe(&mut bits, samples.iter().skip(channel).step_by(channels).copied());
    }
    bits.align();
    let crc = crc16(&out[start..]);
    boxes::u16(out, crc);
}

/// A number of up to 36 bits in UTF-8-like coding (RFC 9639 section 9.1.5).
fn coded_number(out: &mut Vec<u8>, number: u64) {
    if number < 0x80 {
        out.push(number as u8);
        return;
    }
    // Six bits per byte; the first byte has what its length marker leaves.
    let following = (1..=6).find(|bytes| number < 1 << (6 * bytes + 6 - bytes)).unwrap_or(6);
    let marker = !(0xffu16 >> (following + 1)) as u8;
    out.push(marker | (number >> (6 * following)) as u8);
    for byte in (0..following).rev() {
        out.push(0x80 | (number >> (6 * byte) & 0x3f) as u8);
    }
}

fn subframe(bits: &mut Writer<'_>, samples: impl Iterator<Item = i16> + Clone) {
    const ORDER: usize = 2;
    let first = samples.clone().next().unwrap_or(0);
    if samples.clone().all(|sample| sample == first) {
        // SUBFRAME_CONSTANT.
        bits.put(0, 8);
        bits.put(u64::from(first as u16), 16);
        return;
    }
    let all: Vec<i32> = samples.map(i32::from).collect();
    if all.len() <= ORDER {
        // SUBFRAME_VERBATIM.
        bits.put(0b0000_0010, 8);
        all.iter().for_each(|sample| bits.put(*sample as u64 & 0xffff, 16));
        return;
    }
    // SUBFRAME_FIXED.
    bits.put((0b00_1000 | ORDER as u64) << 1, 8);
    all[..ORDER].iter().for_each(|sample| bits.put(*sample as u64 & 0xffff, 16));
    let residual = |three: &[i32]| three[2] - 2 * three[1] + three[0];
    // The sign goes into the lowest bit.
    let folded = all.windows(3).map(|three| {
        let residual = residual(three);
        ((residual << 1) ^ (residual >> 31)) as u32
    });
    let sum: u64 = folded.clone().map(u64::from).sum();
    let mean = sum / (all.len() - ORDER) as u64;
    let parameter = (64 - mean.leading_zeros()).saturating_sub(1).min(14);
    // Rice coding with parameters of four bits, in one partition.
    bits.put(0, 2);
    bits.put(0, 4);
    bits.put(u64::from(parameter), 4);
    for value in folded {
        for _ in 0..value >> parameter {
            bits.put(0, 1);
        }
        bits.put(1, 1);
        bits.put(u64::from(value) & ((1 << parameter) - 1), parameter);
    }
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    held: u64,
    count: u32,
}

impl Writer<'_> {
    /// Writes the lowest `count` bits of a value, up to 32.
    fn put(&mut self, value: u64, count: u32) {
        self.held = self.held << count | value;
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            self.out.push((self.held >> self.count) as u8);
        }
    }

    fn align(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
    }
}

fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc: u8, _| if crc & 0x80 != 0 { crc << 1 ^ 0x07 } else { crc << 1 })
    })
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let crc = crc ^ u16::from(*byte) << 8;
        (0..8).fold(crc, |crc: u16, _| if crc & 0x8000 != 0 { crc << 1 ^ 0x8005 } else { crc << 1 })
    })
}

/// Decodes a G.711 sample (ITU-T G.711), µ-law or A-law, to 16 bits.
pub(super) fn g711(byte: u8, is_mu_law: bool) -> i16 {
    if is_mu_law {
        let byte = !byte;
        let magnitude = ((i16::from(byte & 0x0f) << 3) + 0x84) << (byte >> 4 & 7);
        if byte & 0x80 != 0 { 0x84 - magnitude } else { magnitude - 0x84 }
    } else {
        let byte = byte ^ 0x55;
        let mantissa = i16::from(byte & 0x0f) << 4;
        let magnitude = match byte >> 4 & 7 {
            0 => mantissa + 8,
            segment => (mantissa + 0x108) << (segment - 1),
        };
        if byte & 0x80 != 0 { magnitude } else { -magnitude }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_g711_are_those_of_the_standard() {
        // The loudest, the quietest, and silence.
        for (byte, is_mu_law, expected) in [
            (0x80, true, 32_124),
            (0x00, true, -32_124),
            (0xff, true, 0),
            (0x7f, true, 0),
            (0xaa, false, 32_256),
            (0x2a, false, -32_256),
            (0xd5, false, 8),
            (0x55, false, -8),
        ] {
            assert_eq!(g711(byte, is_mu_law), expected, "{byte:#x}");
        }
    }

    #[test]
    fn numbers_are_coded_like_characters() {
        for character in ['a', 'ä', '€', '𝄞'] {
            let mut out = Vec::new();
            coded_number(&mut out, u64::from(character as u32));
            assert_eq!(String::from_utf8(out).unwrap(), character.to_string());
        }
        let mut out = Vec::new();
        coded_number(&mut out, 0xf_ffff_ffff);
        assert_eq!(out, [0xfe, 0xbf, 0xbf, 0xbf, 0xbf, 0xbf, 0xbf]);
    }

    #[test]
    fn checksums_are_those_of_their_polynomials() {
        assert_eq!((crc8(b"123456789"), crc16(b"123456789")), (0xf4, 0xfee8));
    }

    /// What ffmpeg decodes from a FLAC file with these frames.
    fn decoded_by_ffmpeg(pcm: Pcm, frames: &[u8]) -> Vec<i16> {
        use std::io::Write;
        let mut file = b"fLaC".to_vec();
        file.extend_from_slice(&config(pcm)[12..]);
        file.extend_from_slice(frames);
        let mut ffmpeg = std::process::Command::new("ffmpeg")
            .args(["-v", "error", "-err_detect", "explode", "-f", "flac", "-i", "-", "-f", "s16le", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("ffmpeg, which tests/run installs");
        let mut stdin = ffmpeg.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&file));
        let output = ffmpeg.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success());
        output.stdout.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect()
    }

    #[test]
    fn another_decoder_gets_every_sample_back() {
        let mut random = fastrand::Rng::with_seed(7);
        for channels in [1, 2] {
            let pcm = Pcm { rate: 8_000, channels };
            let mut all = Vec::new();
            let mut frames = Vec::new();
            for block in [160, 1, 2, 3, 320, 800] {
                let samples: Vec<i16> = (0..block * usize::from(channels))
                    .map(|at| match block {
                        160 => (f64::from(at as u32).sin() * 20_000.0) as i16,
                        320 => -5,
                        _ => random.i16(..),
                    })
                    .collect();
                frame(&mut frames, pcm, (all.len() / usize::from(channels)) as u64, &samples);
                all.extend(samples);
            }
            assert_eq!(decoded_by_ffmpeg(pcm, &frames), all, "{channels} channels");
        }
    }
}
