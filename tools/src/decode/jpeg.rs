//! JPEG, by zune-jpeg.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Backend, DecodeError};
use crate::picture::Pixels;

/// Each picture is independent.
pub struct Jpeg;

impl Backend for Jpeg {
    fn decode(&mut self, data: &[u8], out: &mut dyn FnMut(Pixels)) -> Result<(), DecodeError> {
        let options =
            DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB).set_max_width(8192).set_max_height(8192);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
        let rgb = decoder.decode().map_err(|error| DecodeError::Rejected("JPEG", error.to_string()))?;
        let (width, height) = decoder.dimensions().ok_or(DecodeError::Incomplete("JPEG"))?;
        if rgb.len() < width * height * 3 {
            return Err(DecodeError::Incomplete("JPEG"));
        }
        out(Pixels::rgb(width, height, rgb));
        Ok(())
    }
}
