//! H.264, by openh264.

use openh264::OpenH264API;
use openh264::decoder::{DecodeOptions, DecodedYUV, DecoderConfig, Flush};
use openh264::formats::YUVSource as _;
use rtsprelay::media::codec::annex_b::nal_units;
use rtsprelay::media::codec::sps::{Sps, Vui};

use super::sps::{colour, is_b_slice};
use super::{Backend, DecodeError, PIXELS_MAX};
use crate::picture::{Colour, Pixels, Plane};

/// A decoder and what it does not tell of the stream.
pub struct H264 {
    decoder: openh264::decoder::Decoder,
    sps: Option<(Sps, Vui)>,
    /// Pictures come in another order than they are to be shown in. The decoder must then keep some back; for all other
    /// streams that would only be delay.
    reorders: bool,
}

impl H264 {
    /// A decoder; fails only when there is no memory.
    pub fn new() -> Result<Self, DecodeError> {
        let config = DecoderConfig::new();
        let decoder = openh264::decoder::Decoder::with_api_config(OpenH264API::from_source(), config)
            .map_err(|error| DecodeError::Start(error.to_string()))?;
        Ok(H264 { decoder, sps: None, reorders: false })
    }

    /// Takes from the NAL units what the decoder does not tell.
    fn look(&mut self, data: &[u8]) -> Result<(), DecodeError> {
        for nal in nal_units(data) {
            match nal.first().map(|header| header & 0x1f) {
                Some(7) => {
                    let (sps, vui) = Sps::h264_with_vui(nal).ok_or(DecodeError::ParameterSet)?;
                    let (width, height) = sps.coded;
                    if u64::from(width) * u64::from(height) > PIXELS_MAX {
                        return Err(DecodeError::TooLarge(width, height));
                    }
                    self.reorders = match vui.reorder {
                        Some(count) => count > 0,
                        None => self.reorders && !sps.in_order,
                    };
                    self.sps = Some((sps, vui));
                }
                Some(1) if !self.reorders && self.sps.is_some_and(|(_, vui)| vui.reorder.is_none()) => {
                    self.reorders = is_b_slice(nal);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Backend for H264 {
    fn decode(&mut self, data: &[u8], out: &mut dyn FnMut(Pixels)) -> Result<(), DecodeError> {
        self.look(data)?;
        let colour = self.sps.map(|(sps, vui)| colour(&sps, &vui));
        let flush = if self.reorders { Flush::NoFlush } else { Flush::Flush };
        let options = DecodeOptions::new().flush_after_decode(flush);
        match self.decoder.decode_with_options(data, options) {
            Ok(Some(yuv)) => {
                if let Some(pixels) = pixels(&yuv, colour) {
                    out(pixels);
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(DecodeError::Rejected("H.264", error.to_string())),
        }
    }
}

/// A copy, because the decoder writes over its pictures.
fn pixels(yuv: &DecodedYUV<'_>, colour: Option<Colour>) -> Option<Pixels> {
    let (width, height) = yuv.dimensions();
    let (y_stride, u_stride, v_stride) = yuv.strides();
    let (across, down) = (width.div_ceil(2), height.div_ceil(2));
    Some(Pixels::Yuv {
        y: Plane::from_rows(yuv.y(), y_stride, width, height)?,
        u: Plane::from_rows(yuv.u(), u_stride, across, down)?,
        v: Plane::from_rows(yuv.v(), v_stride, across, down)?,
        colour: colour.unwrap_or(Colour::unspecified(height)),
    })
}
