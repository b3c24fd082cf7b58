//! JPEG, by zune-jpeg.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Backend;
use crate::picture::Pixels;

/// Each picture stands for itself.
pub struct Jpeg;

impl Backend for Jpeg {
    fn decode(&mut self, data: &[u8], out: &mut dyn FnMut(Pixels)) -> Result<(), String> {
        let options =
            DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB).set_max_width(8192).set_max_height(8192);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
        let rgb = decoder.decode().map_err(|error| format!("JPEG: {error}"))?;
        let (width, height) = decoder.dimensions().ok_or("JPEG: no size")?;
        if rgb.len() < width * height * 3 {
            return Err("JPEG: fewer pixels than its size implies".to_owned());
        }
        out(Pixels::rgb(width, height, rgb));
        Ok(())
    }
}
