//! H.265, by rust_h265.

use rust_h265::{Frame, NalUnit, PixelData, parse_annex_b, parse_nal};

use super::{Backend, DecodeError, PIXELS_MAX};
use crate::picture::{Colour, Pixels, Plane};

/// An access unit delimiter: it ends the picture before it, so that it need not wait for the next one to begin.
const DELIMITER: [u8; 3] = [0x46, 0x01, 0x50];

/// A decoder and what it needs to end pictures at once.
pub struct H265 {
    decoder: rust_h265::Decoder,
}

impl H265 {
    /// A decoder in display order.
    pub fn new() -> Self {
        let limits = rust_h265::DecodeLimits { max_picture_pixels: PIXELS_MAX, ..Default::default() };
        H265 { decoder: rust_h265::Decoder::with_limits(limits).with_display_order() }
    }

    fn nal(&mut self, nal: &NalUnit<'_>, out: &mut dyn FnMut(Pixels)) -> Result<(), DecodeError> {
        let result = self.decoder.decode_nal(nal);
        while let Some(frame) = self.decoder.next_output() {
            if let Some(pixels) = pixels(frame) {
                out(pixels);
            }
        }
        result.map(drop).map_err(|error| DecodeError::Rejected("H.265", error.to_string()))
    }
}

impl Default for H265 {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for H265 {
    fn decode(&mut self, data: &[u8], out: &mut dyn FnMut(Pixels)) -> Result<(), DecodeError> {
        let mut result = Ok(());
        for nal in parse_annex_b(data) {
            result = result.and(self.nal(&nal, out));
        }
        if let Some(delimiter) = parse_nal(&DELIMITER) {
            result = result.and(self.nal(&delimiter, out));
        }
        result
    }
}

fn pixels(frame: Frame) -> Option<Pixels> {
    let (width, height) = (frame.width as usize, frame.height as usize);
    let (across, down) = match frame.chroma_format_idc {
        1 => (width.div_ceil(2), height.div_ceil(2)),
        3 => (width, height),
        _ => return None,
    };
    let depth = frame.bit_depth;
    let plane = |data: PixelData, width: usize, height: usize| {
        let data = match data {
            PixelData::U8(data) => data,
            PixelData::U16(data) => data.into_iter().map(|sample| (sample >> depth.saturating_sub(8)) as u8).collect(),
        };
        Plane::new(data, width, height)
    };
    Some(Pixels::Yuv {
        y: plane(frame.y, width, height)?,
        u: plane(frame.u, across, down)?,
        v: plane(frame.v, across, down)?,
        colour: Colour::unspecified(height),
    })
}
