//! Decoded pictures, and their conversion to RGB at any size.

use std::time::{Duration, Instant, SystemTime};

use rtsprelay::source::stamp::Stamp;

use crate::frame::{Age, Frame};

/// Samples of one component, row by row without gaps.
#[derive(Clone, PartialEq, Eq)]
pub struct Plane {
    /// The samples; exactly `width * height`.
    pub data: Vec<u8>,
    /// Samples in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Plane {
    /// A plane; none if `data` has too few samples for that size, or the size is nothing.
    pub fn new(mut data: Vec<u8>, width: usize, height: usize) -> Option<Self> {
        if width == 0 || height == 0 || data.len() < width.checked_mul(height)? {
            return None;
        }
        data.truncate(width * height);
        Some(Plane { data, width, height })
    }

    /// A plane copied out of rows that are `stride` apart.
    pub fn from_rows(data: &[u8], stride: usize, width: usize, height: usize) -> Option<Self> {
        if stride < width || stride == 0 {
            return None;
        }
        let mut out = Vec::with_capacity(width * height);
        for row in data.chunks(stride).take(height) {
            out.extend_from_slice(row.get(..width)?);
        }
        Plane::new(out, width, height)
    }
}

/// Which matrix makes RGB of YUV (H.273 section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// BT.601, of standard definition.
    Bt601,
    /// BT.709, of high definition.
    Bt709,
    /// BT.2020, of ultra high definition.
    Bt2020,
}

/// How the samples of a YUV picture represent colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// The matrix.
    pub matrix: Matrix,
    /// Samples from 0 to 255, instead of 16 to 235 (luma) and 240 (chroma).
    pub full_range: bool,
}

impl Colour {
    /// What players take for granted when a stream does not tell.
    pub fn unspecified(height: usize) -> Self {
        Colour { matrix: if height > 576 { Matrix::Bt709 } else { Matrix::Bt601 }, full_range: false }
    }
}

/// The samples of a picture.
#[derive(Clone, PartialEq, Eq)]
pub enum Pixels {
    /// Luma and two chroma components, those at any lower resolution.
    Yuv {
        /// Luma.
        y: Plane,
        /// Blue difference.
        u: Plane,
        /// Red difference.
        v: Plane,
        /// How they represent colours.
        colour: Colour,
    },
    /// Red, green, blue.
    Rgb {
        /// Three bytes a pixel, row by row without gaps.
        data: Vec<u8>,
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
}

/// What is known of a picture beside its samples.
#[derive(Clone, Debug)]
pub struct PictureInfo {
    /// RTP timestamp of its frame, made to not wrap.
    pub timestamp: i64,
    /// When its frame had been read.
    pub arrived: Instant,
    /// The time stamp in its frame.
    pub stamp: Option<Stamp>,
    /// When its frame left its source.
    pub age: Option<Age>,
    /// Whether it came in the burst at the start.
    pub catching_up: bool,
}

impl PictureInfo {
    /// What is known from the frame.
    pub fn new(frame: &Frame) -> Self {
        PictureInfo {
            timestamp: frame.timestamp,
            arrived: frame.arrived,
            stamp: frame.stamp,
            age: frame.age,
            catching_up: frame.catching_up,
        }
    }

    /// Its age at `wall`, if known.
    pub fn age_at(&self, wall: SystemTime) -> Option<Duration> {
        self.age.map(|age| wall.duration_since(age.left).unwrap_or_default())
    }
}

/// One decoded picture.
#[derive(Clone)]
pub struct Picture {
    /// Its samples.
    pub pixels: Pixels,
    /// What else is known.
    pub info: PictureInfo,
}

impl Picture {
    /// Pixels across.
    pub fn width(&self) -> usize {
        match &self.pixels {
            Pixels::Yuv { y, .. } => y.width,
            Pixels::Rgb { width, .. } => *width,
        }
    }

    /// Pixels down.
    pub fn height(&self) -> usize {
        match &self.pixels {
            Pixels::Yuv { y, .. } => y.height,
            Pixels::Rgb { height, .. } => *height,
        }
    }

    /// The whole picture as RGB, three bytes a pixel.
    pub fn to_rgb(&self) -> Vec<u8> {
        if let Pixels::Rgb { data, .. } = &self.pixels {
            return data.clone();
        }
        let mut out = Vec::with_capacity(self.width() * self.height() * 3);
        self.scale(self.width(), self.height(), |_, _, [red, green, blue]| out.extend_from_slice(&[red, green, blue]));
        out
    }

    /// Calls `put` with column, row and colour for each pixel of the picture scaled to `width` x `height`, row by row. Takes
    /// the nearest sample: at the picture's own size exact, otherwise fast.
    pub fn scale(&self, width: usize, height: usize, mut put: impl FnMut(usize, usize, [u8; 3])) {
        let columns = |from: usize| -> Vec<usize> { (0..width).map(|x| (2 * x + 1) * from / (2 * width)).collect() };
        match &self.pixels {
            Pixels::Yuv { y, u, v, colour } => {
                let matrix = Coefficients::new(*colour);
                let (luma, chroma) = (columns(y.width), columns(u.width));
                for row in 0..height {
                    let line = |plane: &Plane| (2 * row + 1) * plane.height / (2 * height) * plane.width;
                    let (y, u, v) = (&y.data[line(y)..], &u.data[line(u)..], &v.data[line(v)..]);
                    for (column, (&at, &at_chroma)) in luma.iter().zip(&chroma).enumerate() {
                        put(column, row, matrix.rgb(y[at], u[at_chroma], v[at_chroma]));
                    }
                }
            }
            Pixels::Rgb { data, width: from, height: rows } => {
                let columns = columns(*from);
                for row in 0..height {
                    let line = &data[(2 * row + 1) * rows / (2 * height) * from * 3..];
                    for (column, &at) in columns.iter().enumerate() {
                        put(column, row, [line[at * 3], line[at * 3 + 1], line[at * 3 + 2]]);
                    }
                }
            }
        }
    }
}

impl Pixels {
    /// RGB of this size; `data` has at least that many pixels.
    pub fn rgb(width: usize, height: usize, mut data: Vec<u8>) -> Self {
        data.truncate(width * height * 3);
        assert_eq!(data.len(), width * height * 3, "an RGB picture has three bytes for each pixel");
        Pixels::Rgb { data, width, height }
    }
}

/// Factors of the conversion to RGB, in 1/65536.
struct Coefficients {
    luma_offset: i32,
    luma: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

impl Coefficients {
    fn new(colour: Colour) -> Self {
        let (red, blue) = match colour.matrix {
            Matrix::Bt601 => (0.299, 0.114),
            Matrix::Bt709 => (0.2126, 0.0722),
            Matrix::Bt2020 => (0.2627, 0.0593),
        };
        let green = 1.0 - red - blue;
        let (offset, luma, chroma) = if colour.full_range { (0, 1.0, 1.0) } else { (16, 255.0 / 219.0, 255.0 / 224.0) };
        let fixed = |factor: f64| (factor * 65536.0).round() as i32;
        Coefficients {
            luma_offset: offset,
            luma: fixed(luma),
            red_v: fixed(2.0 * (1.0 - red) * chroma),
            green_u: fixed(2.0 * (1.0 - blue) * blue / green * chroma),
            green_v: fixed(2.0 * (1.0 - red) * red / green * chroma),
            blue_u: fixed(2.0 * (1.0 - blue) * chroma),
        }
    }

    #[inline]
    fn rgb(&self, y: u8, u: u8, v: u8) -> [u8; 3] {
        let luma = (i32::from(y) - self.luma_offset) * self.luma + 32768;
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let clip = |value: i32| (value >> 16).clamp(0, 255) as u8;
        [clip(luma + v * self.red_v), clip(luma - u * self.green_u - v * self.green_v), clip(luma + u * self.blue_u)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limited_range_maps_to_the_ends() {
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020] {
            let limited = Coefficients::new(Colour { matrix, full_range: false });
            assert_eq!(limited.rgb(16, 128, 128), [0, 0, 0]);
            assert_eq!(limited.rgb(235, 128, 128), [255, 255, 255]);
            let full = Coefficients::new(Colour { matrix, full_range: true });
            assert_eq!(full.rgb(0, 128, 128), [0, 0, 0]);
            assert_eq!(full.rgb(255, 128, 128), [255, 255, 255]);
        }
        // Pure red in BT.601.
        let [red, green, blue] =
            Coefficients::new(Colour { matrix: Matrix::Bt601, full_range: false }).rgb(81, 90, 240);
        assert!(red > 250 && green < 3 && blue < 3, "{red} {green} {blue}");
    }

    #[test]
    fn rows_are_cut_out_of_wider_ones() {
        let plane = Plane::from_rows(&[1, 2, 0, 3, 4, 0], 3, 2, 2).expect("a plane");
        assert_eq!(plane.data, [1, 2, 3, 4]);
        assert!(Plane::from_rows(&[1, 2, 0, 3], 3, 2, 2).is_none());
        assert!(Plane::new(vec![0; 3], 2, 2).is_none());
    }
}
