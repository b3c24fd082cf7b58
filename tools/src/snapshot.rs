//! Pictures in files.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use crate::picture::Picture;

/// Writes `picture` as a PNG file of 8-bit RGB.
pub fn write_png(picture: &Picture, path: &Path) -> io::Result<()> {
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(path)?), picture.width() as u32, picture.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&picture.to_rgb()).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)
}

/// A name for a picture of now, in the current directory.
pub fn name_of_now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("rtsprelay-view-{}.png", since.as_millis())
}
