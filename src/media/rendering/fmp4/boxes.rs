//! The boxes of fragmented MP4 (ISO/IEC 14496-12) for a single track: an initialization segment and fragments.

use bytes::Bytes;

/// Every initialization segment has one track, with this number.
const TRACK_ID: u32 = 1;

/// A track as described by its initialization segment.
#[derive(Clone, Copy, Debug)]
pub struct TrackInfo<'a> {
    /// Ticks per second.
    pub timescale: u32,
    /// Width and height of the picture; `None` for audio.
    pub picture: Option<(u16, u16)>,
    /// The sample entry, a whole box.
    pub entry: &'a [u8],
}

/// One sample of a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Bytes.
    pub size: u32,
    /// Duration in ticks.
    pub duration: u32,
}

/// A fragment without its media.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Number of the fragment, for `mfhd`.
    pub sequence: u32,
    /// When its first sample is decoded, in ticks.
    pub decode_time: u64,
    /// Ticks from decoding to presentation, for every sample.
    pub offset: i32,
    /// Whether decoding can start here.
    pub is_sync: bool,
    /// Whether it is video, whose samples say whether they are sync samples.
    pub is_video: bool,
    /// When its media arrived at the relay, as NTP time (RFC 3550 section 4).
    pub arrived: u64,
    /// Its samples, in order.
    pub samples: &'a [Sample],
}

/// Appends a box of that type with the bytes that `content` appends.
pub fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    content(out);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// The same for a box with a version and flags.
pub fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, flags: u32, content: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        u32(out, u32::from(version) << 24 | flags);
        content(out);
    });
}

/// Appends a number.
pub fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a number.
pub fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a number.
pub fn u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// The unity matrix (section 6.2.2).
fn matrix(out: &mut Vec<u8>) {
    for value in [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000] {
        u32(out, value);
    }
}

/// A visual sample entry (section 12.1.3) with the boxes for its codec.
pub fn visual_entry(kind: &[u8; 4], (width, height): (u16, u16), config: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    boxed(&mut out, kind, |out| {
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend_from_slice(&[0; 16]);
        u16(out, width);
        u16(out, height);
        // 72 dots per inch, and one frame per sample.
        u32(out, 0x48_0000);
        u32(out, 0x48_0000);
        u32(out, 0);
        u16(out, 1);
        out.extend_from_slice(&[0; 32]);
        u16(out, 24);
        u16(out, 0xffff);
        out.extend_from_slice(config);
    });
    out
}

/// An audio sample entry (section 12.2.3) with the boxes for its codec.
pub fn audio_entry(kind: &[u8; 4], channels: u16, rate: u32, config: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    boxed(&mut out, kind, |out| {
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend_from_slice(&[0; 8]);
        u16(out, channels);
        u16(out, 16);
        u32(out, 0);
        // Rates over 16 bits are only in the codec's own box.
        u32(out, u32::from(u16::try_from(rate).unwrap_or(0)) << 16);
        out.extend_from_slice(config);
    });
    out
}

/// The initialization segment of a track.
pub fn initialization(track: &TrackInfo<'_>) -> Bytes {
    let mut out = Vec::with_capacity(640 + track.entry.len());
    boxed(&mut out, b"ftyp", |out| {
        out.extend_from_slice(b"iso6\0\0\0\0iso6mp41");
    });
    boxed(&mut out, b"moov", |out| {
        full(out, b"mvhd", 0, 0, |out| {
            u64(out, 0);
            u32(out, track.timescale);
            u32(out, 0);
            u32(out, 0x1_0000);
            u16(out, 0x100);
            out.extend_from_slice(&[0; 10]);
            matrix(out);
            out.extend_from_slice(&[0; 24]);
            u32(out, TRACK_ID + 1);
        });
        boxed(out, b"trak", |out| trak(out, track));
        boxed(out, b"mvex", |out| {
            full(out, b"trex", 0, 0, |out| {
                for value in [TRACK_ID, 1, 0, 0, 0] {
                    u32(out, value);
                }
            });
        });
    });
    Bytes::from(out)
}

fn trak(out: &mut Vec<u8>, track: &TrackInfo<'_>) {
    let (width, height) = track.picture.unwrap_or_default();
    // Enabled, in the movie, in the preview.
    full(out, b"tkhd", 0, 7, |out| {
        u64(out, 0);
        u32(out, TRACK_ID);
        u64(out, 0);
        u64(out, 0);
        u32(out, 0);
        u16(out, if track.picture.is_none() { 0x100 } else { 0 });
        u16(out, 0);
        matrix(out);
        u32(out, u32::from(width) << 16);
        u32(out, u32::from(height) << 16);
    });
    boxed(out, b"mdia", |out| {
        full(out, b"mdhd", 0, 0, |out| {
            u64(out, 0);
            u32(out, track.timescale);
            u32(out, 0);
            // No language ("und").
            u16(out, 0x55c4);
            u16(out, 0);
        });
        full(out, b"hdlr", 0, 0, |out| {
            u32(out, 0);
            out.extend_from_slice(if track.picture.is_some() { b"vide" } else { b"soun" });
            out.extend_from_slice(&[0; 12]);
            out.push(0);
        });
        boxed(out, b"minf", |out| {
            match track.picture {
                Some(_) => full(out, b"vmhd", 0, 1, |out| u64(out, 0)),
                None => full(out, b"smhd", 0, 0, |out| u32(out, 0)),
            }
            boxed(out, b"dinf", |out| {
                full(out, b"dref", 0, 0, |out| {
                    u32(out, 1);
                    full(out, b"url ", 0, 1, |_| ());
                });
            });
            boxed(out, b"stbl", |out| {
                full(out, b"stsd", 0, 0, |out| {
                    u32(out, 1);
                    out.extend_from_slice(track.entry);
                });
                for kind in [b"stts", b"stsc", b"stco"] {
                    full(out, kind, 0, 0, |out| u32(out, 0));
                }
                full(out, b"stsz", 0, 0, |out| u64(out, 0));
            });
        });
    });
}

/// Appends `prft`, `moof` and the header of an `mdat` with `media` bytes to follow.
pub fn fragment(out: &mut Vec<u8>, fragment: &Fragment<'_>, media: usize) {
    // The time at which the encoder's output arrived at the relay (section 8.16.5).
    full(out, b"prft", 1, 1, |out| {
        u32(out, TRACK_ID);
        u64(out, fragment.arrived);
        u64(out, fragment.decode_time.saturating_add_signed(i64::from(fragment.offset)));
    });
    let moof = out.len();
    let mut data_offset = 0;
    boxed(out, b"moof", |out| {
        full(out, b"mfhd", 0, 0, |out| u32(out, fragment.sequence));
        boxed(out, b"traf", |out| {
            // Offsets are relative to the moof.
            full(out, b"tfhd", 0, 0x2_0000, |out| u32(out, TRACK_ID));
            full(out, b"tfdt", 1, 0, |out| u64(out, fragment.decode_time));
            // A data offset, then for each sample its duration and size; for video also flags and composition time offset.
            let flags = 0x301 | if fragment.is_video { 0xc00 } else { 0 };
            full(out, b"trun", 1, flags, |out| {
                u32(out, fragment.samples.len() as u32);
                data_offset = out.len();
                u32(out, 0);
                for sample in fragment.samples {
                    u32(out, sample.duration);
                    u32(out, sample.size);
                    if fragment.is_video {
                        // It depends on no other sample, or on others and is no sync sample (section 8.8.3.1).
                        u32(out, if fragment.is_sync { 0x0200_0000 } else { 0x0101_0000 });
                        u32(out, fragment.offset as u32);
                    }
                }
            });
        });
    });
    let to_data = (out.len() - moof + 8) as u32;
    out[data_offset..data_offset + 4].copy_from_slice(&to_data.to_be_bytes());
    u32(out, (8 + media) as u32);
    out.extend_from_slice(b"mdat");
}
